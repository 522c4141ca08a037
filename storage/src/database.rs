//! The database: a facade. Every method hands on to the module that knows; nothing is decided here.
//!
//! One caller applies ([`Database::apply`] takes the entries in log order), any number read. Readers never wait for the
//! disk on behalf of the applier or of a checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::Digest;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::htree::InclusionProof;
use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex, TxId};
use alhambra_ledger::proof::{DualProof, DualProofV2};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::apply::{self, Applier, Applying, Outcome};
use crate::checkpoint::{self, Applied};
use crate::chunklog::Unwritten;
use crate::command::{Seal, Settings};
use crate::core::Core;
use crate::digested::Digested;
use crate::error::Result;
use crate::format::derived::CHUNK_BYTES_DEFAULT;
use crate::index::IndexOptions;
use crate::indexing;
use crate::marks::{Marks, Vote};
use crate::memory::{Account, MemoryBudget, Release};
use crate::parts::ProvenEntry;
use crate::read::ReadSnapshot;
use crate::recover;
use crate::release;
use crate::repair::{self, Mended, SegmentRepair, SegmentSource, SegmentVote};
use crate::scrub::{self, Damaged, ScrubStep, Scrubber};
use crate::seal::{self, Health, SegmentVersion};
use crate::segment::{FrameKind, Ledger, LedgerOptions, LedgerReport, Position};
use crate::transfer::{self, FileRange, Manifest};
use crate::txlog::{EntryRecord, TxRecord};
use crate::vfs::{LockGuard, Vfs};
use crate::waiting::{OnApplied, Waiting};

/// What all replicas of a database agree on from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseSpec {
    /// Stands in every file.
    pub id: DatabaseId,
    /// Bytes of frames after which a segment is closed.
    pub segment_bytes: u64,
}

/// What a node chooses for itself, but for `derived_chunk_bytes`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of the ledger.
    pub ledger: LedgerOptions,
    /// A checkpoint is due when log entries of so many bytes were applied since the last.
    pub checkpoint_bytes: u64,
    /// A checkpoint is due when so many transactions were applied since the last.
    pub checkpoint_txs: u64,
    /// Bytes of a derived log per file. Equal on all replicas; smaller than the default in tests only.
    pub derived_chunk_bytes: u64,
    /// Bounds of the index in memory.
    pub index: IndexOptions,
    /// Counts what this database holds in memory; shared by all databases of a process.
    pub memory: Arc<MemoryBudget>,
    /// Whether [`Database::apply`] also writes out what waits in memory. Whoever applies where nothing may wait for a file says
    /// no, looks at [`Database::unwritten`] and [`Database::index_is_behind`] after each entry, and has [`Database::write_out`] and
    /// [`Database::index_work`] done on another thread.
    pub applier_writes: bool,
    /// Versions of closed segments on which the replicas were found to agree when the database did not open: they count, whatever
    /// the seals say.
    pub settled: BTreeMap<u64, SegmentVersion>,
}

impl Default for Options {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Options {
    /// The usual bounds, within a budget that other databases share.
    pub fn new(memory: Arc<MemoryBudget>) -> Self {
        let mut index = IndexOptions::new(Arc::clone(memory.cache()));
        index.memtable_bytes = memory.memtable_bytes(index.memtable_bytes);
        Self {
            ledger: LedgerOptions::default(),
            checkpoint_bytes: 64 << 20,
            checkpoint_txs: 100_000,
            derived_chunk_bytes: CHUNK_BYTES_DEFAULT,
            index,
            memory,
            applier_writes: true,
            settled: BTreeMap::new(),
        }
    }
}

/// One database on local disk.
#[derive(Debug)]
pub struct Database {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) spec: DatabaseSpec,
    pub(crate) options: Options,
    pub(crate) report: LedgerReport,
    pub(crate) core: RwLock<Arc<Core>>,
    pub(crate) applier: Mutex<Applier>,
    /// Held during a checkpoint and an install, so that there is one at a time.
    pub(crate) exclusive: Mutex<()>,
    /// Held during work on the index and while an install replaces it.
    pub(crate) index_gate: Mutex<()>,
    pub(crate) marks: Mutex<Marks>,
    pub(crate) vote: Vote,
    pub(crate) waiting: Waiting,
    pub(crate) digests: transfer::ChunkDigests,
    pub(crate) scrubber: Mutex<Scrubber>,
    /// Held while something is repaired, pruned or installed. Taken before all the others.
    pub(crate) mending: Mutex<()>,
    pub(crate) account: Account,
    /// Bytes of the replicated state, as the applier said last.
    pub(crate) state_bytes: AtomicU64,
    pub(crate) _lock: Box<dyn LockGuard>,
}

impl Database {
    /// Opens the database in `dir`, or makes it when the folder is empty: finishes an interrupted install, cuts the
    /// derived logs to the checkpoint and rebuilds the index. Log entries after [`Database::applied`] are the caller's to
    /// apply again, as far as they are committed.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec, options: Options) -> Result<Self> {
        recover::open(vfs, dir, spec, options)
    }

    /// The log of this database, which is its value log. An install replaces it: hold it no longer than a call lasts.
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.core().ledger)
    }

    /// What opening found in the ledger and repaired.
    pub fn recovery(&self) -> LedgerReport {
        self.report
    }

    /// Identity and segment size.
    pub fn spec(&self) -> DatabaseSpec {
        self.spec
    }

    /// How far this database has come.
    pub fn applied(&self) -> Applied {
        self.core().applied()
    }

    /// Settings in force; `None` before `Genesis`.
    pub fn settings(&self) -> Option<Settings> {
        self.core().settings()
    }

    /// Applies the log entry at the next index, whose frame stands at `position` in the ledger `R1`. One outcome per
    /// proposal of a batch, none for anything else. An error is fatal for this replica.
    pub fn apply(&self, log_id: LogId, position: Position, kind: FrameKind, payload: &Bytes) -> Result<Vec<Outcome>> {
        apply::run(self, Applying { log_id, position, kind, payload, digested: &[] })
    }

    /// As [`Database::apply`], for a command whose proposals, or the first ones of them, were digested before: theirs in order.
    /// What was digested under other settings than those in force is worked out again.
    pub fn apply_digested(
        &self,
        log_id: LogId,
        position: Position,
        payload: &Bytes,
        digested: &[Digested],
    ) -> Result<Vec<Outcome>> {
        apply::run(self, Applying { log_id, position, kind: FrameKind::Command, payload, digested })
    }

    /// Whether enough was applied since the last checkpoint that one is worth its syncs.
    pub fn checkpoint_due(&self) -> bool {
        self.applier.lock().since.is_due(&self.options)
    }

    /// How much of the derived logs is in memory that belongs in their files.
    pub fn unwritten(&self) -> Unwritten {
        self.core().unwritten()
    }

    /// Writes out what waits of the derived logs when it is much; see [`Options::applier_writes`].
    ///
    /// # Errors
    /// After them this replica cannot go on, as after those of [`Database::apply`].
    pub fn write_out(&self) -> Result<()> {
        apply::write_out_apart(self)
    }

    /// Takes a checkpoint of everything applied; what of it the ledger has not flushed yet is flushed first.
    pub fn checkpoint(&self) -> Result<()> {
        checkpoint::write(self).map(drop)
    }

    /// Whether [`Database::index_work`] has something to do.
    pub fn index_work_due(&self) -> bool {
        indexing::is_due(&self.core())
    }

    /// Whether so much of the index is in memory only that nothing more should be applied before [`Database::index_work`]. Not so
    /// for a while after that found no space.
    pub fn index_is_behind(&self) -> bool {
        self.core().index.must_be_helped()
    }

    /// Does a bounded piece of what the index does in the background: writes full in-memory parts out, merges runs, rebuilds.
    /// Whether more is due. Neither applying nor reading waits for it.
    pub fn index_work(&self) -> Result<bool> {
        let _no_install = self.index_gate.lock();
        let more = indexing::work(&self.core());
        if more.is_ok() {
            self.note_memory(self.state_bytes.load(Ordering::Relaxed));
        }
        more
    }

    /// The memory that it shares with other databases.
    pub fn memory(&self) -> &Arc<MemoryBudget> {
        self.account.budget()
    }

    /// Bytes of memory that this database could give back, as it said last.
    pub fn held_bytes(&self) -> u64 {
        self.account.held()
    }

    /// Gives memory back: writes out what is in memory only, takes a checkpoint and forgets what can be read again. Waits for the
    /// disk; applying and reading go on meanwhile. What is used afterwards comes back by itself.
    pub fn release_memory(&self) -> Result<()> {
        release::run(self, Release::All)
    }

    /// Counts what this database holds; `state_bytes` of it are the applier's.
    pub(crate) fn note_memory(&self, state_bytes: u64) {
        self.state_bytes.store(state_bytes, Ordering::Relaxed);
        self.account.note(state_bytes + self.core().memory_bytes());
    }

    /// Reads and checks all files of the index. `Corrupted` also makes the next [`Database::index_work`] rebuild it.
    pub fn verify_index(&self) -> Result<()> {
        self.core().index.verify()
    }

    /// Last log entry that the newest durable checkpoint covers.
    pub fn checkpoint_position(&self) -> Option<LogId> {
        *self.core().checkpointed.read()
    }

    /// Keeps the Raft vote; durable when this returns.
    pub fn save_vote(&self, vote: &[u8]) -> Result<()> {
        self.vote.save(&self.vfs, vote)?;
        self.marks.lock().note_voted()
    }

    /// The vote kept last.
    pub fn load_vote(&self) -> Result<Option<Vec<u8>>> {
        self.vote.load(&self.vfs)
    }

    /// Remembers the committed log id, unsynced, and no further than this node has flushed. A crash may bring back an
    /// older one.
    pub fn save_committed(&self, committed: LogId) -> Result<()> {
        let mut marks = self.marks.lock();
        // Under the lock: a cut holds it as well.
        let flushed = self.core().ledger.flushed();
        marks.note_committed(committed, flushed)
    }

    /// The committed log id remembered last.
    pub fn load_committed(&self) -> Option<LogId> {
        self.marks.lock().committed()
    }

    /// Log entries up to here are answered as purged; their bytes stay, but for values that were pruned. A segment that has
    /// lost values is always below it, whatever a crash has left of the mark.
    pub fn purge_mark(&self) -> Option<LogId> {
        let pruned = self.ledger().pruned_through();
        self.marks.lock().purged().max(pruned)
    }

    /// Moves the purge mark forward, unsynced.
    pub fn set_purge_mark(&self, purged: LogId) -> Result<()> {
        self.marks.lock().note_purged(purged)
    }

    /// Cuts the uncommitted tail of the ledger behind `kept`, durably; lowers the marks that speak of it first.
    pub fn truncate_after(&self, kept: Option<LogId>) -> Result<()> {
        recover::truncate_after(self, kept)
    }

    /// Calls `f` after each applied log entry, on the applier's thread, with the newest transaction and the log index.
    pub fn on_applied(&self, f: OnApplied) {
        self.waiting.on_applied(f);
    }

    /// Waits until transaction `tx` is applied; `false` when it is not within `timeout`.
    pub fn wait_applied(&self, tx: TxId, timeout: Duration) -> bool {
        self.waiting.wait(tx, timeout, || self.core().last_tx())
    }

    /// Header of a transaction.
    pub fn header(&self, tx: TxId) -> Result<TxHeader> {
        self.core().header(tx)
    }

    /// Alh of a transaction; that of the empty ledger for 0.
    pub fn alh(&self, tx: TxId) -> Result<Digest> {
        let core = self.core();
        if tx.0 > 0 {
            core.must_exist(tx)?;
        }
        core.checked_alh(tx)
    }

    /// A transaction with all its entries.
    pub fn tx(&self, tx: TxId) -> Result<TxRecord> {
        self.core().tx_record(tx)
    }

    /// The log entry that carried a transaction.
    pub fn log_index_of(&self, tx: TxId) -> Result<LogIndex> {
        let core = self.core();
        core.must_exist(tx)?;
        core.log_index_of(tx)
    }

    /// The stored value of an entry, checked against its hash `S4`.
    pub fn value(&self, entry: &EntryRecord) -> Result<Bytes> {
        self.core().value(entry)
    }

    /// The newest state.
    pub fn snapshot(&self) -> ReadSnapshot {
        let core = self.core();
        let tx = core.last_tx();
        ReadSnapshot::new(core, tx)
    }

    /// The state just after transaction `tx`, or the newest when it is not applied yet.
    pub fn snapshot_at(&self, tx: TxId) -> ReadSnapshot {
        let core = self.core();
        let tx = tx.min(core.last_tx());
        ReadSnapshot::new(core, tx)
    }

    /// Proof that entry `entry` is in transaction `tx`.
    pub fn prove_inclusion(&self, tx: TxId, entry: u32) -> Result<InclusionProof> {
        self.core().prove_inclusion(tx, entry)
    }

    /// Entry `entry` of transaction `tx` with the header and the proof that it is in there. Costs the same for a large
    /// transaction as for a small one, and no more than the proof alone.
    pub fn prove_entry(&self, tx: TxId, entry: u32) -> Result<ProvenEntry> {
        self.core().prove_entry(tx, entry)
    }

    /// Proof that `source` is history of `target`; verified before it is answered `V1`.
    pub fn dual_proof(&self, source: TxId, target: TxId) -> Result<DualProof> {
        self.core().dual_proof(source, target)
    }

    /// The compact form of [`Database::dual_proof`].
    ///
    /// # Errors
    /// [`crate::Error::NoCompactProof`] when an imported header records a tree that lags behind.
    pub fn dual_proof_v2(&self, source: TxId, target: TxId) -> Result<DualProofV2> {
        self.core().dual_proof_v2(source, target)
    }

    /// Seals to propose: closed segments, applied to their end, for which no seal is applied yet.
    pub fn pending_seals(&self) -> Result<Vec<Seal>> {
        seal::pending(self)
    }

    /// The applied seal of a segment.
    pub fn seal(&self, segment: u64) -> Result<Option<Seal>> {
        self.core().seals.get(segment)
    }

    /// Whether this replica's bytes are what was agreed on, as far as compared.
    pub fn health(&self) -> Health {
        self.core().seals.health()
    }

    /// Compares seals applied since the last comparison with the own digests. Checkpoints do so as well.
    pub fn compare_seals(&self) -> Result<Health> {
        let core = self.core();
        core.seals.compare(&core.ledger).map(|()| core.seals.health())
    }

    /// Reads about `budget_bytes` of the files again, on from where the last call stopped, and says what has rotted. Meant to
    /// be called for ever, at the pace that the caller chooses.
    pub fn scrub_step(&self, budget_bytes: u64) -> Result<ScrubStep> {
        scrub::step(self, budget_bytes)
    }

    /// What a scrub found or a reader came upon, and is not mended yet.
    pub fn damaged(&self) -> Vec<Damaged> {
        scrub::damaged(self)
    }

    /// Repairs what is damaged, while the database runs: what is derived from the own segments, these from `source`.
    pub fn mend(&self, source: Option<&dyn SegmentSource>) -> Result<Mended> {
        repair::mend(self, source)
    }

    /// Replaces a closed segment by one from `source` of the version in `agreed`: what a majority of the replicas holds. The
    /// generation is that of the own segment or a later one.
    pub fn repair_segment(&self, segment: u64, agreed: SegmentVersion, source: &dyn SegmentSource) -> Result<()> {
        repair::segment(self, segment, agreed, source)
    }

    /// The same, for pieces that come one by one.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchSegment`] when it is not closed; IO.
    pub fn begin_segment_repair(&self, segment: u64, agreed: SegmentVersion) -> Result<SegmentRepair> {
        repair::begin(self, segment, agreed)
    }

    /// What this replica holds of a closed segment, which is read from the disk for it; `None` when it has none.
    pub fn segment_vote(&self, segment: u64) -> Result<Option<SegmentVote>> {
        repair::vote(self, segment)
    }

    /// For a replica that has failed and is about to be closed: when a derived log is known to have rotted, nobody will mend it any
    /// more, and whatever has met the rot would meet it again before anybody can. The checkpoint is removed then, so that the
    /// next opening derives everything again; not while a segment is damaged, without which that cannot be done.
    ///
    /// # Errors
    /// IO; nothing is changed when the file cannot be removed.
    pub fn give_up_damaged(&self) -> Result<()> {
        let core = self.core();
        let applied = core.applied().log_id;
        let (true, Some(applied)) = (core.derived_logs().iter().any(|log| log.is_rotten()), applied) else {
            return Ok(());
        };
        let agreed = |segment, generation| core.seals.digest(segment, generation);
        match repair::must_be_agreed(&*self.vfs, &core.ledger, applied.index, agreed) {
            Ok(()) => checkpoint::give_up(self),
            Err(error) => {
                tracing::warn!(%error, "derived files are damaged, and so is what they come from");
                Ok(())
            }
        }
    }

    /// A majority of the replicas holds `agreed`: it counts from now on, whatever the seal says, and
    /// [`Database::pending_seals`] asks for another seal.
    pub fn settle_segment(&self, segment: u64, agreed: SegmentVersion) -> Result<()> {
        repair::settle(self, segment, agreed)
    }

    /// The digest that counts of a segment in this generation: that of its seal, or what a majority was found to hold, also when
    /// a later generation is sealed; `None` when this one never was.
    pub fn agreed_digest(&self, segment: u64, generation: u32) -> Option<Digest> {
        self.core().seals.digest(segment, generation)
    }

    /// Up to `len` bytes of what stands behind the header of a segment, as they stand in the file, for a replica that repairs its
    /// own. Fewer where it ends, which of the open one is where it is durable.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchSegment`] when it is of another generation, ends before, or is not there; IO.
    pub fn read_segment(&self, segment: u64, generation: u32, offset: u64, len: usize) -> Result<Bytes> {
        self.core().ledger.read_raw(segment, generation, offset, len)
    }

    /// What another replica needs to become this one at the applied entry; takes a checkpoint first.
    pub fn manifest(&self) -> Result<Manifest> {
        transfer::manifest(self)
    }

    /// Whether the files that an own manifest names are still here as it names them: a segment may have been pruned since.
    pub fn holds(&self, manifest: &Manifest) -> bool {
        transfer::holds(self, manifest)
    }

    /// What of a manifest this replica does not have yet.
    pub fn missing(&self, manifest: &Manifest) -> Result<Vec<FileRange>> {
        transfer::missing(self, manifest)
    }

    /// Reads part of a file that an own manifest names.
    pub fn read_file(&self, range: &FileRange) -> Result<Bytes> {
        transfer::read_file(self, range)
    }

    /// Becomes what `manifest` describes, with the files in `staging` and the sealed segments at hand: all or, after any
    /// failure before the swap, nothing. No log entry may be staged or flushed meanwhile; an own tail is discarded.
    pub fn install(&self, manifest: &Manifest, staging: &Path) -> Result<()> {
        transfer::install(self, manifest, staging)
    }

    /// Bytes of segments and derived logs.
    pub fn size_bytes(&self) -> u64 {
        let core = self.core();
        let sizes = core.sizes();
        core.ledger.stored_bytes() + sizes.tx + sizes.commit + sizes.aht + sizes.seal + sizes.prune
    }

    pub(crate) fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core.read())
    }
}
