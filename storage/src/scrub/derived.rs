//! Transactions in order: each record by its checksum and its Alh, the hash tree by growing it again.

use alhambra_ledger::aht;
use alhambra_ledger::digest::{self, Digest};
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use crate::ahtlog::{Frontier, inner_count};
use crate::commitlog::CommitRecord;
use crate::core::Core;
use crate::error::{Damage, Result};
use crate::format::derived::{COMMIT_RECORD_BYTES, DIGEST_BYTES};
use crate::limits::COPY_BYTES;
use crate::txlog::Record;

/// Commit records that are read at once.
const COMMITS_AT_ONCE: u64 = 512;

/// How far the scrub is in the transactions.
#[derive(Debug)]
pub(crate) struct Place {
    next: TxId,
    through: TxId,
    /// Alh of `through`, from memory.
    alh: Digest,
    prev_alh: Digest,
    /// End of the last record in the tx log.
    offset: u64,
    frontier: Frontier,
}

impl Place {
    /// Of a pass through all that is applied now.
    pub(super) fn start(core: &Core) -> Self {
        let applied = core.applied();
        Self {
            next: TxId(1),
            through: applied.tx,
            alh: applied.alh,
            prev_alh: digest::EMPTY,
            offset: 0,
            frontier: Frontier::empty(),
        }
    }

    /// Checks about `budget` bytes of records; false at the end.
    pub(super) fn advance(&mut self, core: &Core, budget: u64, bytes: &mut u64) -> Result<bool> {
        while self.next <= self.through {
            let commits = self.commits(core)?;
            let from = self.offset;
            let end = commits.last().map_or(from, |commit| commit.offset + u64::from(commit.size));
            let records = Bytes::from(core.tx.read(from, (end - from) as usize)?);
            for commit in commits {
                let at = (commit.offset - from) as usize;
                *bytes += self.transaction(core, &commit, records.slice(at..at + commit.size as usize))?;
                *bytes += COMMIT_RECORD_BYTES + u64::from(commit.size);
            }
            if *bytes >= budget {
                return Ok(true);
            }
        }
        if self.prev_alh == self.alh { Ok(false) } else { Err(core.bad_hash(self.through)) }
    }

    /// The next commit records, as far as their tx records continue each other and are not too many bytes, but one.
    fn commits(&self, core: &Core) -> Result<Vec<CommitRecord>> {
        let count = (self.through.0 - self.next.0 + 1).min(COMMITS_AT_ONCE);
        let from = (self.next.0 - 1) * COMMIT_RECORD_BYTES;
        let bytes = core.commit.read(from, (count * COMMIT_RECORD_BYTES) as usize)?;
        let (records, _) = bytes.as_chunks::<{ COMMIT_RECORD_BYTES as usize }>();
        let mut end = self.offset;
        let mut commits = Vec::new();
        for (number, commit) in (0u64..).zip(records.iter().map(CommitRecord::decode)) {
            if commit.offset != end || end + u64::from(commit.size) > core.tx.end() {
                return Err(core.commit.corrupted(from + number * COMMIT_RECORD_BYTES, Damage::Field));
            }
            end += u64::from(commit.size);
            if !commits.is_empty() && end - self.offset > COPY_BYTES as u64 {
                break;
            }
            commits.push(commit);
        }
        Ok(commits)
    }

    /// Answers how many bytes of the hash tree were read.
    fn transaction(&mut self, core: &Core, commit: &CommitRecord, bytes: Bytes) -> Result<u64> {
        let tx = self.next;
        let record = Record::decode(tx, commit.log_index, bytes).map_err(|bad| core.bad_record(tx, bad))?;
        let bl_tx_id = record.head.bl_tx_id(tx).ok_or_else(|| core.bad_hash(tx))?;
        let bl_root =
            if record.head.link_gap == 0 { self.frontier.root() } else { aht::root(bl_tx_id.0, &core.nodes())? };
        let header = TxHeader {
            id: tx,
            ts: record.head.ts,
            version: record.head.version,
            metadata: record.head.metadata.clone(),
            nentries: record.head.nentries,
            eh: core.eh(tx, &record)?,
            bl_tx_id,
            bl_root,
            prev_alh: self.prev_alh,
        };
        if !header.alh().is_ok_and(|alh| alh == record.alh) {
            return Err(core.bad_hash(tx));
        }
        let mut nodes = Vec::new();
        self.frontier.append(&record.alh, &mut nodes);
        let at = inner_count(tx.0 - 1) * DIGEST_BYTES;
        let found = core.aht.read(at, nodes.len())?;
        if let Some(differs) = found.iter().zip(&nodes).position(|(found, want)| found != want) {
            return Err(core.aht.corrupted(at + differs as u64, Damage::Hash));
        }
        self.prev_alh = record.alh;
        self.offset = commit.offset + u64::from(commit.size);
        self.next = TxId(tx.0 + 1);
        Ok(nodes.len() as u64)
    }
}
