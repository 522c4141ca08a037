//! `prune/`: the prunes applied so far, in order, and the rules that they make.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use bytes::Bytes;
use parking_lot::RwLock;

use super::rules::{PruneRecord, Pruned, Rules};
use crate::chunklog::ChunkLog;
use crate::command::Citation;
use crate::error::{Damage, Result};
use crate::wire::{Malformed, Put, Reader};

const BEFORE: u8 = 1;
const VERSIONS: u8 = 2;
const VALUE: u8 = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct PruneLog {
    pub log: ChunkLog,
    /// Replaced as a whole: a reader or a rewrite keeps the rules that it began with.
    rules: RwLock<Arc<Rules>>,
}

impl PruneLog {
    /// Reads all prunes of the log.
    pub(crate) fn open(log: ChunkLog) -> Result<Self> {
        let mut rules = Rules::default();
        for record in read_all(&log)? {
            rules.add(&record);
        }
        Ok(Self { log, rules: RwLock::new(Arc::new(rules)) })
    }

    /// The prunes in force.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read())
    }

    /// Puts a prune in force; answers its number.
    pub(crate) fn append(&self, as_of: TxId, order: Option<Citation>, pruned: Pruned) -> u32 {
        let mut rules = self.rules.write();
        let record = PruneRecord { number: rules.newest() + 1, as_of, order, pruned };
        self.log.append_record(&encode(&record));
        Arc::make_mut(&mut rules).add(&record);
        record.number
    }

    /// Reads all records again; answers how many bytes they are.
    pub(crate) fn check(&self) -> Result<u64> {
        let end = self.log.end();
        read_all(&self.log).map(|_| end)
    }

    /// All prunes, in order.
    pub(crate) fn records(&self) -> Result<Vec<PruneRecord>> {
        read_all(&self.log)
    }
}

fn read_all(log: &ChunkLog) -> Result<Vec<PruneRecord>> {
    let mut records: Vec<PruneRecord> = Vec::new();
    let (mut at, end) = (0, log.end());
    while at < end {
        let (content, len) = log.read_record(at)?;
        let mut reader = Reader::new(&content);
        let record = read(&mut reader).and_then(|record| reader.finish().map(|()| record));
        match record {
            Ok(record) if record.number as usize == records.len() + 1 => records.push(record),
            Ok(_) | Err(Malformed) => return Err(log.corrupted(at, Damage::Field)),
        }
        at += len as u64;
    }
    Ok(records)
}

/// The content of a record.
fn encode(record: &PruneRecord) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u32(record.number);
    body.put_u64(record.as_of.0);
    Citation::encode_optional(record.order.as_ref(), &mut body);
    match &record.pruned {
        Pruned::Before(tx) => {
            body.put_u8(BEFORE);
            body.put_u64(tx.0);
        }
        Pruned::Versions { prefix, keep } => {
            body.put_u8(VERSIONS);
            body.put_prefixed(prefix);
            body.put_u32(*keep);
        }
        Pruned::Value { tx, entry } => {
            body.put_u8(VALUE);
            body.put_u64(tx.0);
            body.put_u32(*entry);
        }
    }
    body
}

fn read(reader: &mut Reader<'_>) -> std::result::Result<PruneRecord, Malformed> {
    let number = reader.u32()?;
    let as_of = TxId(reader.u64()?);
    let order = Citation::read_optional(reader)?;
    let pruned = match reader.u8()? {
        BEFORE => Pruned::Before(TxId(reader.u64()?)),
        VERSIONS => {
            let prefix = Bytes::copy_from_slice(reader.prefixed()?);
            Pruned::Versions { prefix, keep: reader.u32()? }
        }
        VALUE => Pruned::Value { tx: TxId(reader.u64()?), entry: reader.u32()? },
        _ => return Err(Malformed),
    };
    Ok(PruneRecord { number, as_of, order, pruned })
}
