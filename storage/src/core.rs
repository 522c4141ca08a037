//! What one incarnation of a database is made of: the ledger, the derived logs, the index, and the mark up to which readers
//! see. An install replaces it as a whole; whoever still holds the old one reads the old files.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_ledger::{Digest, digest};
use parking_lot::{Mutex, RwLock};

use crate::checkpoint::{Applied, LogSizes, State};
use crate::chunklog::{ChunkLog, Unwritten};
use crate::command::Settings;
use crate::commitlog::CommitRecord;
use crate::database::{DatabaseSpec, Options};
use crate::error::{Damage, Error, Result};
use crate::format::derived::LogKind;
use crate::index::Index;
use crate::indexing;
use crate::limits::RECENT_HEADERS;
use crate::prove::ProofCache;
use crate::prune::{PruneLog, Pruner};
use crate::seal::SealLog;
use crate::segment::{Ledger, LedgerSpec};
use crate::txlog::{BadRecord, RECORD_TAIL_BYTES, Record};
use crate::vfs::Vfs;

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    pub spec: DatabaseSpec,
    pub ledger: Arc<Ledger>,
    pub tx: ChunkLog,
    pub commit: ChunkLog,
    pub aht: ChunkLog,
    pub seals: SealLog,
    pub prunes: PruneLog,
    pub pruner: Mutex<Pruner>,
    pub index: Index,
    /// Of the process; what is of this core has its number.
    pub proofs: Arc<ProofCache>,
    pub number: u64,
    /// Headers of the newest transactions, in order, without gap; what a verified write asks for next.
    recent: RwLock<VecDeque<TxHeader>>,
    published: RwLock<Published>,
    /// Last log entry covered by a durable checkpoint.
    pub checkpointed: RwLock<Option<LogId>>,
}

#[derive(Clone, Debug)]
struct Published {
    applied: Applied,
    settings: Option<Settings>,
}

impl Core {
    /// Puts the parts together, derived logs cut to `sizes`.
    pub(crate) fn open(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        spec: DatabaseSpec,
        options: &Options,
        ledger: Arc<Ledger>,
        sizes: LogSizes,
        state: &State,
    ) -> Result<Self> {
        let log =
            |name, kind, len| ChunkLog::open(vfs, dir.join(name), kind, spec.id, options.derived_chunk_bytes, len);
        Ok(Self {
            spec,
            ledger,
            tx: log("tx", LogKind::Tx, sizes.tx)?,
            commit: log("commit", LogKind::Commit, sizes.commit)?,
            aht: log("aht", LogKind::Aht, sizes.aht)?,
            seals: SealLog::open(log("seal", LogKind::Seal, sizes.seal)?)?,
            prunes: PruneLog::open(log("prune", LogKind::Prune, sizes.prune)?)?,
            pruner: Mutex::default(),
            index: indexing::open(vfs, &dir.join("index"), spec.id, &options.index)?,
            number: options.memory.proofs().name_core(),
            proofs: Arc::clone(options.memory.proofs()),
            recent: RwLock::new(VecDeque::new()),
            published: RwLock::new(Published { applied: state.applied(), settings: state.settings.clone() }),
            checkpointed: RwLock::new(state.applied),
        })
    }

    /// For deriving everything again and comparing it with the files, of which the first `sizes` are known to be equal. No
    /// file is changed, and the ledger is read by other means.
    pub(crate) fn read_only(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        spec: DatabaseSpec,
        sizes: LogSizes,
        state: &State,
    ) -> Result<Self> {
        let log = |name, kind, len| ChunkLog::open_read_only(vfs, dir.join(name), kind, spec.id, sizes.chunk, len);
        let ledger_spec = LedgerSpec { database: spec.id, segment_bytes: spec.segment_bytes };
        Ok(Self {
            spec,
            ledger: Arc::new(Ledger::detached(Arc::clone(vfs), &dir.join("ledger"), ledger_spec)),
            tx: log("tx", LogKind::Tx, sizes.tx),
            commit: log("commit", LogKind::Commit, sizes.commit),
            aht: log("aht", LogKind::Aht, sizes.aht),
            seals: SealLog::open(log("seal", LogKind::Seal, sizes.seal))?,
            prunes: PruneLog::open(log("prune", LogKind::Prune, sizes.prune))?,
            pruner: Mutex::default(),
            index: indexing::in_memory(spec.id)?,
            proofs: Arc::new(ProofCache::new(0)),
            number: 0,
            recent: RwLock::new(VecDeque::new()),
            published: RwLock::new(Published { applied: state.applied(), settings: state.settings.clone() }),
            checkpointed: RwLock::new(state.applied),
        })
    }

    pub(crate) fn sizes(&self) -> LogSizes {
        LogSizes {
            chunk: self.tx.chunk_bytes(),
            tx: self.tx.end(),
            commit: self.commit.end(),
            aht: self.aht.end(),
            seal: self.seals.log.end(),
            prune: self.prunes.log.end(),
        }
    }

    /// The logs that are derived from the segments.
    pub(crate) fn derived_logs(&self) -> [&ChunkLog; 5] {
        [&self.tx, &self.commit, &self.aht, &self.seals.log, &self.prunes.log]
    }

    /// Makes everything applied so far visible to readers that start now.
    pub(crate) fn publish(&self, state: &State) {
        let mut published = self.published.write();
        published.applied.log_id = state.applied;
        published.applied.tx = state.tx;
        published.applied.alh = state.alh;
        if published.applied.membership.as_ref().map(|(id, _)| id) != state.membership.as_ref().map(|(id, _)| id) {
            published.applied.membership.clone_from(&state.membership);
        }
        if published.settings != state.settings {
            published.settings.clone_from(&state.settings);
        }
    }

    pub(crate) fn applied(&self) -> Applied {
        self.published.read().applied.clone()
    }

    pub(crate) fn last_tx(&self) -> TxId {
        self.published.read().applied.tx
    }

    pub(crate) fn settings(&self) -> Option<Settings> {
        self.published.read().settings.clone()
    }

    /// How much of the derived logs waits to be written.
    pub(crate) fn unwritten(&self) -> Unwritten {
        self.derived_logs().into_iter().map(ChunkLog::unwritten).max().unwrap_or(Unwritten::Little)
    }

    /// Writes out what waits in memory, when it is much.
    pub(crate) fn spill(&self) -> Result<()> {
        self.derived_logs().into_iter().try_for_each(ChunkLog::spill)
    }

    /// What is held in memory and could be given back, bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let logs: usize = self.derived_logs().into_iter().map(ChunkLog::waiting_bytes).sum();
        let recent = self.recent.read().capacity() * size_of::<TxHeader>();
        self.index.memory_bytes() + self.ledger.memory_bytes() + (logs + recent) as u64
    }

    /// Forgets what can be read again.
    pub(crate) fn forget(&self) {
        *self.recent.write() = VecDeque::new();
        self.ledger.forget();
    }

    pub(crate) fn remember(&self, header: TxHeader) {
        let mut recent = self.recent.write();
        if recent.len() == RECENT_HEADERS {
            recent.pop_front();
        }
        recent.push_back(header);
    }

    pub(crate) fn recent_header(&self, tx: TxId) -> Option<TxHeader> {
        let recent = self.recent.read();
        let first = recent.front()?.id;
        recent.get(usize::try_from(tx.0.checked_sub(first.0)?).ok()?).cloned()
    }

    /// The commit record of a transaction that exists.
    pub(crate) fn commit_record(&self, tx: TxId) -> Result<CommitRecord> {
        CommitRecord::read(&self.commit, tx)
    }

    /// The log entry that carried a transaction that exists.
    pub(crate) fn log_index_of(&self, tx: TxId) -> Result<LogIndex> {
        // The record's checksum covers the index, which the commit record alone does not prove.
        self.record(tx)?;
        Ok(self.commit_record(tx)?.log_index)
    }

    /// The Alh of a transaction, its record checked whole; that of the empty ledger for 0.
    pub(crate) fn checked_alh(&self, tx: TxId) -> Result<Digest> {
        if tx.0 == 0 { Ok(digest::EMPTY) } else { self.record(tx).map(|(record, _)| record.alh) }
    }

    /// The Alh of a transaction, as stored and not checked: for what is hashed and then compared. That of the empty ledger
    /// for 0.
    pub(crate) fn alh(&self, tx: TxId) -> Result<Digest> {
        if tx.0 == 0 {
            return Ok(digest::EMPTY);
        }
        let commit = self.commit_record(tx)?;
        self.alh_before(commit.offset + u64::from(commit.size))
    }

    /// The Alh in the record that ends at `end`.
    fn alh_before(&self, end: u64) -> Result<Digest> {
        let mut alh = Digest([0; 32]);
        let at = end.checked_sub(RECORD_TAIL_BYTES).ok_or_else(|| self.tx.corrupted(end, Damage::Missing))?;
        self.tx.read_into(at, &mut alh.0)?;
        Ok(alh)
    }

    /// The record of a transaction that exists, and the Alh before it.
    pub(crate) fn record(&self, tx: TxId) -> Result<(Record, Digest)> {
        self.record_at(tx, &self.commit_record(tx)?)
    }

    /// The same, where its commit record says that it is.
    pub(crate) fn record_at(&self, tx: TxId, commit: &CommitRecord) -> Result<(Record, Digest)> {
        let before = if tx.0 > 1 { RECORD_TAIL_BYTES } else { 0 };
        let at =
            (commit.offset.checked_sub(before)).ok_or_else(|| self.tx.corrupted(commit.offset, Damage::Missing))?;
        let bytes = bytes::Bytes::from(self.tx.read(at, (before + u64::from(commit.size)) as usize)?);
        let prev_alh = if tx.0 > 1 { Digest(bytes[..32].try_into().expect("32 bytes")) } else { digest::EMPTY };
        let record = Record::decode(tx, commit.log_index, bytes.slice(before as usize..))
            .map_err(|bad| self.bad_record(tx, bad))?;
        Ok((record, prev_alh))
    }

    pub(crate) fn bad_record(&self, tx: TxId, bad: BadRecord) -> Error {
        let damage = match bad {
            BadRecord::Checksum => Damage::Checksum,
            BadRecord::Malformed => Damage::Field,
        };
        let at = self.commit_record(tx).map_or(0, |commit| commit.offset);
        self.tx.corrupted(at, damage)
    }

    /// A derived log holds bytes that do not hash to what they should.
    pub(crate) fn bad_hash(&self, tx: TxId) -> Error {
        let at = self.commit_record(tx).map_or(0, |commit| commit.offset);
        self.tx.corrupted(at, Damage::Hash)
    }
}
