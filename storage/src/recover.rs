//! Opening a database after a stop or a crash, and the few operations that change it besides apply.
//!
//! Open = finish an interrupted install, read the checkpoint, cut the derived logs to it, rebuild the index from the tx log
//! and the keys in the ledger. The caller applies the rest of the committed log. A derived log that turns out damaged is
//! not a loss: everything is derived again from the ledger, up to where it is known to be committed.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::ahtlog::{Frontier, inner_count};
use crate::apply::{Applier, Applying};
use crate::checkpoint::{self, Checkpoint, LogSizes, State};
use crate::chunklog::ChunkLog;
use crate::commitlog::CommitRecord;
use crate::core::Core;
use crate::database::{Database, DatabaseSpec, Options};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::FRAME_HEAD_BYTES;
use crate::format::derived::{COMMIT_RECORD_BYTES, DIGEST_BYTES};
use crate::limits::REPLAY_READ_BYTES;
use crate::marks::{Marks, Vote};
use crate::segment::{Frame, Ledger, LedgerReport, LedgerSpec, Position, RecoveryFloor};
use crate::transfer;
use crate::txlog::Record;
use crate::vfs::Vfs;
use crate::waiting::Waiting;

/// See [`Database::open`].
pub(crate) fn open(vfs: Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec, options: Options) -> Result<Database> {
    vfs.create_dir_all(dir).map_err(|e| Error::io(FileOp::CreateDir, dir, e))?;
    let lock_path = dir.join("lock");
    let lock = vfs.lock(&lock_path).map_err(|e| Error::io(FileOp::Lock, &lock_path, e))?;
    transfer::finish_install(&vfs, dir, spec)?;
    let marks = Marks::open(&*vfs, dir, spec.id)?;
    let (core, applier, report) = attach(&vfs, dir, spec, &options, &marks)?;
    let db = Database {
        vote: Vote::new(dir, spec.id),
        dir: dir.to_path_buf(),
        vfs,
        spec,
        options,
        report,
        core: RwLock::new(Arc::new(core)),
        applier: Mutex::new(applier),
        exclusive: Mutex::new(()),
        marks: Mutex::new(marks),
        waiting: Waiting::default(),
        digests: transfer::ChunkDigests::default(),
        _lock: lock,
    };
    if db.checkpoint_position() < db.applied().log_id {
        // Everything was derived again: once is enough.
        db.checkpoint()?;
    }
    Ok(db)
}

/// Brings the files in `dir` to life.
pub(crate) fn attach(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    spec: DatabaseSpec,
    options: &Options,
    marks: &Marks,
) -> Result<(Core, Applier, LedgerReport)> {
    let checkpoint = match checkpoint::read(&**vfs, dir, Some(spec.id)) {
        Err(error @ Error::Corrupted { .. }) => {
            tracing::error!(%error, "the checkpoint is damaged, deriving everything again from the ledger");
            None
        }
        other => other?,
    };
    let checkpointed = checkpoint.as_ref().and_then(|checkpoint| checkpoint.state.applied);
    let durable_through = marks.durable_through().max(checkpointed.map(|id| id.index));
    let ledger_spec = LedgerSpec { database: spec.id, segment_bytes: spec.segment_bytes };
    let floor = RecoveryFloor { durable_through };
    let (ledger, report) = Ledger::open(Arc::clone(vfs), &dir.join("ledger"), ledger_spec, floor, options.ledger)?;
    let ledger = Arc::new(ledger);
    let resume = |state, sizes| resume(vfs, dir, spec, options, Arc::clone(&ledger), state, sizes);
    if let Some(Checkpoint { state, sizes, .. }) = checkpoint {
        match resume(state, sizes) {
            Ok((core, applier)) => return Ok((core, applier, report)),
            // Segments are the truth and cannot be derived again; everything else can.
            Err(error @ Error::Corrupted { segment: None, .. }) => {
                tracing::error!(%error, "a derived log is damaged, deriving everything again from the ledger");
            }
            Err(error) => return Err(error),
        }
    }
    let (core, mut applier) = resume(State::empty(), LogSizes::default())?;
    // Log entries below the purge mark are not given to the caller any more; all of these are committed.
    let committed = marks.committed().max(marks.purged()).max(checkpointed);
    if let Some(through) = committed {
        replay(&core, &mut applier, through.index)?;
    }
    Ok((core, applier, report))
}

fn resume(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    spec: DatabaseSpec,
    options: &Options,
    ledger: Arc<Ledger>,
    state: State,
    sizes: LogSizes,
) -> Result<(Core, Applier)> {
    let core = Core::open(vfs, dir, spec, options, ledger, sizes, &state)?;
    let expected = (state.tx.0 * COMMIT_RECORD_BYTES, inner_count(state.tx.0) * DIGEST_BYTES);
    if (sizes.commit, sizes.aht) != expected {
        return Err(core.commit.corrupted(sizes.commit, Damage::Length));
    }
    if state.tx.0 > 0 {
        // Reads the newest record and the peaks of the tree, and hashes them together [L1, L3].
        let header = core.header(state.tx)?;
        if header.alh().ok() != Some(state.alh) {
            return Err(core.bad_hash(state.tx));
        }
    }
    let frontier = Frontier::load(state.tx.0, &core.nodes())?;
    if let Some(applied) = state.applied {
        rebuild_index(&core, state.tx, applied.index)?;
    }
    core.seals.compare(&core.ledger)?;
    Ok((core, Applier::new(state, frontier, spec.segment_bytes)))
}

/// Applies what the ledger holds after the applied entry, up to `through`.
pub(crate) fn replay(core: &Core, applier: &mut Applier, through: LogIndex) -> Result<()> {
    loop {
        let next = applier.state.applied.map_or(0, |id| id.index.0 + 1);
        if next > through.0 {
            return Ok(());
        }
        let frames = core.ledger.read(LogIndex(next), LogIndex(through.0 + 1), REPLAY_READ_BYTES)?;
        if frames.is_empty() {
            return Ok(());
        }
        for (position, Frame { log_id, kind, payload }) in &frames {
            applier.apply(core, Applying { log_id: *log_id, position: *position, kind: *kind, payload })?;
        }
    }
}

/// Fills the index with the entries of transactions 1 to `last`, which came with log entries up to `through`. Keys are read
/// from the frames, whose checksums are checked on the way.
fn rebuild_index(core: &Core, last: TxId, through: LogIndex) -> Result<()> {
    let mut records = Records { core, last, next: TxId(1), window: Window::default() };
    let mut index = match records.peek()? {
        Some((_, first)) => first.log_index,
        None => return Ok(()),
    };
    while index <= through {
        let frames = match core.ledger.read(index, LogIndex(through.0 + 1), REPLAY_READ_BYTES) {
            Ok(frames) => frames,
            // Somewhere in what was read; the frame before the damage may be whole, so go on one by one.
            Err(Error::Corrupted { .. }) => match core.ledger.read(index, LogIndex(index.0 + 1), 0) {
                Ok(frames) => frames,
                Err(error @ Error::Corrupted { .. }) => {
                    tracing::error!(%error, index = index.0, "a log entry is damaged, its keys are checked by their hashes");
                    while let Some((tx, commit)) = records.peek()?
                        && commit.log_index == index
                    {
                        insert_proven(core, tx)?;
                        records.skip();
                    }
                    index = LogIndex(index.0 + 1);
                    continue;
                }
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        };
        let Some((_, Frame { log_id, .. })) = frames.last() else { break };
        index = LogIndex(log_id.index.0 + 1);
        for (position, frame) in &frames {
            while let Some((tx, commit)) = records.peek()?
                && commit.log_index == frame.log_id.index
            {
                let record = records.take()?;
                insert(core, tx, &record, *position, &frame.payload)?;
            }
        }
    }
    match records.peek()? {
        None => Ok(()),
        Some((tx, _)) => Err(core.commit.corrupted((tx.0 - 1) * COMMIT_RECORD_BYTES, Damage::Field)),
    }
}

fn insert(core: &Core, tx: TxId, record: &Record, position: Position, payload: &Bytes) -> Result<()> {
    let payload_at = position.0 + FRAME_HEAD_BYTES as u64;
    let mut entries = Vec::with_capacity(record.head.nentries as usize);
    for (number, entry) in (0u32..).zip(record.entries()) {
        let entry = entry.map_err(|bad| core.bad_record(tx, bad))?;
        let key = (entry.key_at.0.checked_sub(payload_at))
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| payload.get(at..at.checked_add(entry.key_len as usize)?));
        let metadata = KvMetadata::from_bytes(&entry.metadata).ok();
        let (Some(key), Some(metadata)) = (key, metadata) else {
            return Err(core.bad_hash(tx));
        };
        entries.push((payload.slice_ref(key), number, metadata));
    }
    core.index.insert_tx(tx, entries.into_iter());
    Ok(())
}

/// For a frame whose checksum does not hold: when the keys still hash to the Alh of the transaction, the damage is
/// elsewhere in the frame, and reads of the damaged value will say so.
fn insert_proven(core: &Core, tx: TxId) -> Result<()> {
    let record = core.tx_record(tx)?;
    core.index.insert_tx(
        tx,
        (0u32..).zip(&record.entries).map(|(number, entry)| (entry.key.clone(), number, entry.kv_metadata())),
    );
    Ok(())
}

/// Transaction records in order, read in large pieces.
struct Records<'a> {
    core: &'a Core,
    last: TxId,
    next: TxId,
    window: Window,
}

/// Commit records of transactions from `first`, and the bytes of the tx log that they name, from `at`.
#[derive(Default)]
struct Window {
    first: TxId,
    commits: Vec<CommitRecord>,
    at: u64,
    records: Bytes,
}

impl Records<'_> {
    /// Transactions per window.
    const WINDOW_TXS: u64 = 4096;

    /// Id and commit record of the next transaction.
    fn peek(&mut self) -> Result<Option<(TxId, CommitRecord)>> {
        if self.next > self.last {
            return Ok(None);
        }
        let within = self.next.0 - self.window.first.0;
        if let Some(commit) = self.window.commits.get(within as usize) {
            return Ok(Some((self.next, *commit)));
        }
        self.window = self.load()?;
        Ok(self.window.commits.first().map(|commit| (self.next, *commit)))
    }

    fn load(&self) -> Result<Window> {
        let count = (self.last.0 - self.next.0 + 1).min(Self::WINDOW_TXS);
        let from = (self.next.0 - 1) * COMMIT_RECORD_BYTES;
        let bytes = self.core.commit.read(from, (count * COMMIT_RECORD_BYTES) as usize)?;
        let (records, _) = bytes.as_chunks::<{ COMMIT_RECORD_BYTES as usize }>();
        let commits: Vec<_> = records.iter().map(CommitRecord::decode).collect();
        let mut end = commits[0].offset;
        for (number, commit) in (0u64..).zip(&commits) {
            if commit.offset != end {
                return Err(self.core.commit.corrupted(from + number * COMMIT_RECORD_BYTES, Damage::Field));
            }
            end += u64::from(commit.size);
        }
        let at = commits[0].offset;
        let records = Bytes::from(self.core.tx.read(at, (end - at) as usize)?);
        Ok(Window { first: self.next, commits, at, records })
    }

    fn take(&mut self) -> Result<Record> {
        let (tx, commit) = self.peek()?.expect("called behind a peek");
        let from = (commit.offset - self.window.at) as usize;
        let bytes = self.window.records.slice(from..from + commit.size as usize);
        self.skip();
        Record::decode(tx, commit.log_index, bytes).map_err(|bad| self.core.bad_record(tx, bad))
    }

    fn skip(&mut self) {
        self.next = TxId(self.next.0 + 1);
    }
}

/// See [`Database::truncate_after`].
pub(crate) fn truncate_after(db: &Database, kept: Option<LogId>) -> Result<()> {
    let core = db.core();
    let applied = core.applied().log_id;
    if kept < applied {
        return Err(Error::CutBelowApplied { applied, kept });
    }
    db.marks.lock().lower(kept)?;
    core.ledger.truncate_after(kept.map(|id| id.index))
}

impl ChunkLog {
    /// All files of this log that hold its first `len` bytes, as the manifest names them.
    pub(crate) fn manifest_files(&self, chunk_bytes: u64, len: u64) -> Vec<(String, u64)> {
        let name = self.dir().file_name().and_then(|name| name.to_str()).expect("named by this crate");
        Self::files(chunk_bytes, len).map(|(file, len)| (format!("{name}/{file}"), len)).collect()
    }
}
