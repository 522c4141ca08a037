//! Reading: headers, transactions and values by id, and read snapshots over the index.
//!
//! Nothing is answered that was not checked: a header against its stored Alh, entries against Eh `L4`, a value against its
//! hash `S4`. What does not hold is `Error::Corrupted`.

use std::sync::Arc;

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::{LogIndex, Revision, TxId};
use alhambra_ledger::{Digest, aht, digest, entry, htree};
use bytes::Bytes;

use crate::ahtlog::StoredNodes;
use crate::command::ValueForm;
use crate::commitlog::CommitRecord;
use crate::compression;
use crate::core::Core;
use crate::error::{Damage, Error, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::index::{Change, KeyRange, ScanSpec, Version};
use crate::plant::{Plant, is_planted};
use crate::segment::Position;
use crate::txlog::{EntryRecord, Head, Record, StoredEntry, TxRecord};

impl Core {
    /// `Ok` when the transaction is applied.
    pub(crate) fn must_exist(&self, tx: TxId) -> Result<()> {
        let last = self.last_tx();
        if (1..=last.0).contains(&tx.0) { Ok(()) } else { Err(Error::NoSuchTx { tx, last }) }
    }

    /// Header of a transaction, checked against the stored Alh.
    pub(crate) fn header(&self, tx: TxId) -> Result<TxHeader> {
        self.must_exist(tx)?;
        match self.recent_header(tx) {
            Some(header) => Ok(header),
            None => {
                let commit = self.commit_record(tx)?;
                match self.parts(tx, commit)? {
                    Some(parts) => {
                        let eh = parts.head.eh.ok_or_else(|| self.bad_hash(tx))?;
                        self.checked_header(tx, &parts.head, eh, parts.prev_alh, parts.alh()?)
                    }
                    None => {
                        let (record, prev_alh) = self.record_at(tx, &commit)?;
                        self.header_of(tx, &record, prev_alh)
                    }
                }
            }
        }
    }

    fn header_of(&self, tx: TxId, record: &Record, prev_alh: Digest) -> Result<TxHeader> {
        let eh = self.eh(tx, record)?;
        self.checked_header(tx, &record.head, eh, prev_alh, record.alh)
    }

    /// Eh of a record: stored, or that of its only entry, whose key is read from the ledger.
    pub(crate) fn eh(&self, tx: TxId, record: &Record) -> Result<Digest> {
        Ok(match record.head.eh {
            Some(eh) => eh,
            None => {
                let entry = self.entries(tx, record)?.next().ok_or_else(|| self.bad_hash(tx))??;
                let key = self.ledger.read_bytes(entry.key_at, entry.key_len as usize)?;
                digest::leaf(&self.entry_digest(tx, record.head.version, &key, &entry)?)
            }
        })
    }

    fn checked_header(&self, tx: TxId, head: &Head, eh: Digest, prev_alh: Digest, alh: Digest) -> Result<TxHeader> {
        let bl_tx_id = head.bl_tx_id(tx).ok_or_else(|| self.bad_hash(tx))?;
        let header = TxHeader {
            id: tx,
            ts: head.ts,
            version: head.version,
            metadata: head.metadata.clone(),
            nentries: head.nentries,
            eh,
            bl_tx_id,
            bl_root: aht::root(bl_tx_id.0, &self.nodes())?,
            prev_alh,
        };
        if header.alh().is_ok_and(|found| found == alh) { Ok(header) } else { Err(self.bad_keys(tx)) }
    }

    pub(crate) fn entry_digest(&self, tx: TxId, version: u16, key: &[u8], entry: &StoredEntry) -> Result<Digest> {
        entry::entry_digest(version, key, &entry.metadata, &entry.value_hash).map_err(|_| self.bad_hash(tx))
    }

    fn entries<'a>(&'a self, tx: TxId, record: &'a Record) -> Result<impl Iterator<Item = Result<StoredEntry>> + 'a> {
        Ok(record.entries().map(move |entry| entry.map_err(|bad| self.bad_record(tx, bad))))
    }

    /// BlTxID in the header of a transaction that is applied, visible to readers or not; 0 before the first.
    pub(crate) fn bl_tx_id(&self, tx: TxId) -> Result<TxId> {
        if tx.0 == 0 {
            return Ok(tx);
        }
        match self.recent_header(tx) {
            Some(header) => Ok(header.bl_tx_id),
            None => self.record(tx)?.0.head.bl_tx_id(tx).ok_or_else(|| self.bad_hash(tx)),
        }
    }

    /// Reads nodes of the main tree.
    pub(crate) fn nodes(&self) -> StoredNodes<'_, impl Fn(TxId) -> Result<Digest> + '_> {
        StoredNodes { log: &self.aht, alh: |tx| self.alh(tx) }
    }

    /// A transaction with all its entries; they hash to the Eh of its header.
    pub(crate) fn tx_record(&self, tx: TxId) -> Result<TxRecord> {
        self.must_exist(tx)?;
        self.tx_record_at(tx, &self.commit_record(tx)?)
    }

    /// The same, for one that exists, where its commit record says that it is.
    pub(crate) fn tx_record_at(&self, tx: TxId, commit: &CommitRecord) -> Result<TxRecord> {
        let (record, prev_alh) = self.record_at(tx, commit)?;
        let header = match self.recent_header(tx) {
            Some(header) => header,
            None => self.header_of(tx, &record, prev_alh)?,
        };
        let mut entries = Vec::with_capacity(record.head.nentries as usize);
        let mut digests = Vec::with_capacity(record.head.nentries as usize);
        for entry in self.entries(tx, &record)? {
            let entry = entry?;
            let key = self.ledger.read_bytes(entry.key_at, entry.key_len as usize)?;
            digests.push(self.entry_digest(tx, record.head.version, &key, &entry)?);
            entries.push(entry.named(tx, entries.len() as u32, key));
        }
        if htree::root(&digests) != header.eh {
            return Err(self.bad_keys(tx));
        }
        Ok(TxRecord { header, entries })
    }

    /// The record of a transaction and its keys, which may go into the header, do not belong together. The record has its own checksum, so it is to blame only when the log entry with
    /// the keys is whole.
    pub(crate) fn bad_keys(&self, tx: TxId) -> Error {
        let entry = self.commit_record(tx).and_then(|commit| {
            let at = commit.log_index;
            self.ledger.read(at, LogIndex(at.0 + 1), 0)
        });
        match entry {
            Err(error @ Error::Corrupted { .. }) => error,
            _ => self.bad_hash(tx),
        }
    }

    /// One entry of a transaction, with the key that the caller knows it by.
    pub(crate) fn entry_record(&self, tx: TxId, number: u32, key: Bytes) -> Result<EntryRecord> {
        self.must_exist(tx)?;
        let commit = self.commit_record(tx)?;
        if let Some(parts) = self.parts(tx, commit)? {
            let mut group = parts.group(number)?;
            let entry = group.entries.swap_remove((number - group.numbers.start) as usize);
            return Ok(entry.named(tx, number, key));
        }
        let (record, _) = self.record_at(tx, &commit)?;
        let entry = self.entries(tx, &record)?.nth(number as usize);
        let entry = entry.unwrap_or(Err(Error::NoSuchTxEntry { tx, entry: number }))?;
        Ok(entry.named(tx, number, key))
    }

    /// The value of an entry in plain; its SHA-256 is the stored one `S4`. [`Error::ValuePruned`] from the moment at which
    /// a prune that names it is applied; a value of no bytes has nothing to lose.
    pub(crate) fn value(&self, entry: &EntryRecord) -> Result<Bytes> {
        if entry.form == ValueForm::Gone {
            return Err(Error::ValuePruned { tx: entry.tx, entry: entry.number });
        }
        if entry.stored_len == 0 {
            return if entry.value_hash == digest::EMPTY {
                Ok(Bytes::new())
            } else {
                Err(self.bad_value(entry.value_at))
            };
        }
        let EntryRecord { tx, number, key, .. } = entry;
        let pruned = Error::ValuePruned { tx: *tx, entry: *number };
        if self.prunes.rules().name(*tx, *number, key, &self.index)? && !is_planted(Plant::ShowForgotten) {
            return Err(pruned);
        }
        let stored = self.ledger.read_bytes(entry.value_at, entry.stored_len as usize)?;
        match compression::plain(entry.form, stored) {
            Some(value) if digest::sha256(&value) == entry.value_hash => Ok(value),
            // The segment came as a file from a replica that has applied more of the log.
            _ if self.ledger.pruned_hash(entry.value_at)? == Some(entry.value_hash) => Err(pruned),
            _ => Err(self.bad_value(entry.value_at)),
        }
    }

    fn bad_value(&self, at: Position) -> Error {
        let segments = self.ledger.segments();
        let number = segments.partition_point(|segment| segment.first_offset <= at).saturating_sub(1);
        let (segment, first) = segments.get(number).map_or((0, 0), |s| (s.number, s.first_offset.0));
        self.ledger.suspect(segment);
        Error::Corrupted {
            path: self.ledger.segment_path(segment),
            segment: Some(segment),
            offset: SEGMENT_HEADER_BYTES + at.0.saturating_sub(first),
            damage: Damage::Hash,
        }
    }
}

/// One state of a database: everything up to a transaction, nothing after it. Costs nothing to take or to hold; never
/// changes however long it is held.
#[derive(Clone, Debug)]
pub struct ReadSnapshot {
    core: Arc<Core>,
    tx: TxId,
}

impl ReadSnapshot {
    pub(crate) fn new(core: Arc<Core>, tx: TxId) -> Self {
        Self { core, tx }
    }

    /// Newest transaction that this snapshot sees; 0 when it sees none.
    pub fn tx(&self) -> TxId {
        self.tx
    }

    /// Newest version of a stored key, deleted and expired ones included (see [`Version::is_live`]).
    pub fn get(&self, key: &[u8]) -> Result<Option<Version>> {
        if is_planted(Plant::IndexLags) {
            return self.core.index.get(key, TxId(self.tx.0.saturating_sub(1)));
        }
        self.core.index.get(key, self.tx)
    }

    /// The version that exactly the transaction `tx` wrote.
    pub fn get_at(&self, key: &[u8], tx: TxId) -> Result<Option<Version>> {
        if tx > self.tx { Ok(None) } else { self.core.index.get_exact(key, tx) }
    }

    /// Number of versions of a stored key; deletions count.
    pub fn revisions(&self, key: &[u8]) -> Result<u64> {
        self.core.index.revisions(key, self.tx)
    }

    /// Version number `revision` of a stored key, from 1.
    pub fn revision(&self, key: &[u8], revision: Revision) -> Result<Option<Version>> {
        self.core.index.revision(key, revision.0, self.tx)
    }

    /// Versions of a stored key, oldest first unless `desc`, from `offset`, at most `limit`.
    pub fn history(&self, key: &[u8], offset: u64, limit: usize, desc: bool) -> Result<Vec<Version>> {
        let versions = self.core.index.history(key, self.tx, offset, limit, desc)?;
        let told = |version: &Version| version.revision != Revision(1) || !is_planted(Plant::HistoryForgets);
        Ok(versions.into_iter().filter(told).collect())
    }

    /// Stored keys in order, each with its newest version, deleted and expired ones included. A lock of the index is
    /// held for a bounded number of keys at a time. After an error the scan has ended.
    pub fn scan(&self, spec: &ScanSpec) -> impl Iterator<Item = Result<(Bytes, Version)>> + Send + use<> {
        Scan {
            core: Arc::clone(&self.core),
            at: self.tx,
            spec: spec.clone(),
            chunk: Vec::new().into_iter(),
            last: None,
            done: false,
        }
    }

    /// Number of stored keys that begin with `prefix`; deleted and expired ones count. Walks them.
    pub fn count(&self, prefix: &[u8]) -> Result<u64> {
        self.core.index.count(prefix, self.tx)
    }

    /// Whether a key of `range` was written after transaction `since`, up to this snapshot.
    pub fn changed_since(&self, range: &KeyRange, since: TxId) -> Result<bool> {
        self.core.index.changed_since(range, since, self.tx)
    }

    /// Keys of `range` that were written after transaction `since`, up to this snapshot, each with its newest version: at most
    /// `n`, in order, behind `after`. What did not change is not read.
    pub fn diff(&self, range: &KeyRange, since: TxId, after: Option<&[u8]>, n: usize) -> Result<Vec<Change>> {
        self.core.index.diff_chunk(range, since, self.tx, after, n)
    }

    /// An entry by the number that a version of `key` names, which this snapshot answered.
    pub fn entry(&self, key: &[u8], tx: TxId, number: u32) -> Result<EntryRecord> {
        self.core.entry_record(tx, number, Bytes::copy_from_slice(key))
    }

    /// The stored value of an entry of this snapshot, checked against its hash `S4`.
    pub fn value_of(&self, entry: &EntryRecord) -> Result<Bytes> {
        self.core.value(entry)
    }

    /// The stored value behind a version that this snapshot answered for `key`, checked against its hash `S4`.
    pub fn value(&self, key: &[u8], version: &Version) -> Result<Bytes> {
        self.value_of(&self.entry(key, version.tx, version.entry)?)
    }
}

/// Keys of a scan, fetched from the index in chunks.
#[derive(Debug)]
struct Scan {
    core: Arc<Core>,
    at: TxId,
    spec: ScanSpec,
    chunk: std::vec::IntoIter<(Bytes, Version)>,
    last: Option<Bytes>,
    done: bool,
}

impl Iterator for Scan {
    type Item = Result<(Bytes, Version)>;

    fn next(&mut self) -> Option<Self::Item> {
        /// Keys copied out of the index at a time.
        const CHUNK_KEYS: usize = 256;
        if self.chunk.as_slice().is_empty() && !self.done {
            let chunk = self.core.index.scan_chunk(&self.spec, self.at, self.last.as_deref(), CHUNK_KEYS);
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            };
            self.done = chunk.len() < CHUNK_KEYS;
            self.last = chunk.last().map(|(key, _)| key.clone());
            self.chunk = chunk.into_iter();
        }
        self.chunk.next().map(Ok)
    }
}
