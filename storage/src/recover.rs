//! Opening a database after a stop or a crash, and the few operations that change it besides apply.
//!
//! Open = finish an interrupted install, read the checkpoint, cut the derived logs to it, rebuild the index from the tx log
//! and the keys in the ledger. The caller applies the rest of the committed log. A derived log that turns out damaged is
//! not a loss: everything is derived again from the ledger, up to where it is known to be committed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use parking_lot::{Mutex, RwLock};

use crate::ahtlog::{Frontier, inner_count};
use crate::apply::{Applier, Applying};
use crate::checkpoint::{self, Checkpoint, LogSizes, State};
use crate::chunklog::ChunkLog;
use crate::core::Core;
use crate::database::{Database, DatabaseSpec, Options};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::derived::{COMMIT_RECORD_BYTES, DIGEST_BYTES};
use crate::indexing;
use crate::limits::REPLAY_READ_BYTES;
use crate::marks::{Marks, Vote};
use crate::memory::Account;
use crate::rebuild;
use crate::removal;
use crate::repair;
use crate::seal;
use crate::segment::{Frame, Ledger, LedgerReport, LedgerSpec, RecoveryFloor, SegmentInfo};
use crate::transfer;
use crate::vfs::{LockGuard, Vfs};
use crate::waiting::Waiting;

/// See [`Database::open`].
pub(crate) fn open(vfs: Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec, options: Options) -> Result<Database> {
    let (lock, marks) = enter(&vfs, dir, spec)?;
    let (core, applier, report) = attach(&vfs, dir, spec, &options, &marks)?;
    let state_bytes = applier.state_bytes();
    let account = Account::new(&options.memory);
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
        index_gate: Mutex::new(()),
        marks: Mutex::new(marks),
        waiting: Waiting::default(),
        digests: transfer::ChunkDigests::default(),
        scrubber: Mutex::default(),
        mending: Mutex::default(),
        account,
        state_bytes: AtomicU64::new(0),
        _lock: lock,
    };
    db.note_memory(state_bytes);
    if db.checkpoint_position() < db.applied().log_id {
        // Everything was derived again: once is enough.
        db.checkpoint()?;
    }
    Ok(db)
}

/// Locks the folder, finishes what was interrupted in it, and reads what this node has promised.
pub(crate) fn enter(vfs: &Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec) -> Result<(Box<dyn LockGuard>, Marks)> {
    vfs.create_dir_all(dir).map_err(|e| Error::io(FileOp::CreateDir, dir, e))?;
    let lock_path = dir.join("lock");
    let lock = vfs.lock(&lock_path).map_err(|e| Error::io(FileOp::Lock, &lock_path, e))?;
    removal::must_not_be_removed(&**vfs, dir)?;
    rebuild::remove(&**vfs, dir)?;
    transfer::finish_install(vfs, dir, spec)?;
    Marks::must_be_there(&**vfs, dir, spec.id)?;
    let marks = Marks::open(&**vfs, dir, spec.id)?;
    Ok((lock, marks))
}

/// The checkpoint, and the floor below which no log entry may be missing.
pub(crate) fn floor(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    spec: DatabaseSpec,
    marks: &Marks,
) -> Result<(Option<Checkpoint>, RecoveryFloor)> {
    let checkpoint = match checkpoint::read(&**vfs, dir, Some(spec.id)) {
        Err(error @ Error::Corrupted { .. }) => {
            tracing::error!(%error, "the checkpoint is damaged, deriving everything again from the ledger");
            None
        }
        other => other?,
    };
    let checkpointed = checkpoint.as_ref().and_then(|checkpoint| checkpoint.state.applied);
    let durable_through = marks.durable_through().max(checkpointed.map(|id| id.index));
    Ok((checkpoint, RecoveryFloor { durable_through }))
}

/// Brings the files in `dir` to life.
pub(crate) fn attach(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    spec: DatabaseSpec,
    options: &Options,
    marks: &Marks,
) -> Result<(Core, Applier, LedgerReport)> {
    let (checkpoint, floor) = floor(vfs, dir, spec, marks)?;
    let checkpointed = checkpoint.as_ref().and_then(|checkpoint| checkpoint.state.applied);
    let ledger_spec = LedgerSpec { database: spec.id, segment_bytes: spec.segment_bytes };
    let (ledger, report) = Ledger::open(Arc::clone(vfs), &dir.join("ledger"), ledger_spec, floor, options.ledger)?;
    let ledger = Arc::new(ledger);
    if let Some(Checkpoint { state, sizes, .. }) = checkpoint {
        match resume(vfs, dir, spec, options, Arc::clone(&ledger), state, sizes) {
            Ok((core, applier)) => return Ok((core, applier, report)),
            // Segments are the truth and cannot be derived again; everything else can.
            Err(error @ Error::Corrupted { segment: None, .. }) => {
                tracing::error!(%error, "a derived log is damaged, deriving everything again from the ledger");
            }
            Err(error) => return Err(error),
        }
    }
    // Log entries below the purge mark are not given to the caller any more; all of these are committed.
    let committed = marks.committed().max(marks.purged()).max(checkpointed).map(|id| id.index);
    // A segment loses its values when a checkpoint, or what is durably known to be committed, stands behind it: so one entry behind
    // it is committed as well.
    let behind_pruned = ledger.pruned_through().map(|last| LogIndex(last.index.0 + 1));
    let again = Again { vfs, dir, spec, options, ledger, through: committed.max(behind_pruned) };
    let (core, applier) = again.derive()?;
    Ok((core, applier, report))
}

/// Deriving everything again from the ledger.
struct Again<'a> {
    vfs: &'a Arc<dyn Vfs>,
    dir: &'a Path,
    spec: DatabaseSpec,
    options: &'a Options,
    ledger: Arc<Ledger>,
    /// The last log entry that is known to be committed.
    through: Option<LogIndex>,
}

impl Again<'_> {
    fn derive(&self) -> Result<(Core, Applier)> {
        let before = match checkpoint::read(&**self.vfs, self.dir, Some(self.spec.id)) {
            Err(Error::Corrupted { .. }) => None,
            other => other?,
        };
        self.ledger_must_be_agreed(before.as_ref())?;
        let Self { vfs, dir, spec, options, ledger, .. } = self;
        let empty = (State::empty(), LogSizes::default());
        let (core, mut applier) = resume(vfs, dir, *spec, options, Arc::clone(ledger), empty.0, empty.1)?;
        match &before {
            Some(before) => {
                if let Some(applied) = before.state.applied {
                    replay(&core, &mut applier, applied.index)?;
                }
                if !self.is_as_checkpointed(&core, &applier.state, before)? {
                    // All closed segments are what counts. Should the newest one have rotted, its seal will tell.
                    tracing::error!("the checkpoint is not what the ledger gives, deriving everything without it");
                    drop((core, applier));
                    checkpoint::remove(&***vfs, dir)?;
                    return self.derive();
                }
            }
            // It may have come from what was not agreed on, and conditions are looked up in it.
            None if core.index.newest_tx() > TxId(0) => {
                core.index.start_over()?;
                core.index.end_rebuild(|| TxId(0));
            }
            None => {}
        }
        if let Some(through) = self.through {
            replay(&core, &mut applier, through)?;
        }
        // What is not the sealed one is mended when it is open: others may have to hear of it.
        self.compare_seals(&core)?;
        indexing::catch_up_at_open(&core, applier.state.tx)?;
        Ok((core, applier))
    }

    /// See [`repair::must_be_agreed`]; by the seals as of the checkpoint, if there is one.
    fn ledger_must_be_agreed(&self, before: Option<&Checkpoint>) -> Result<()> {
        let Some(through) = self.through else { return Ok(()) };
        let sealed = before.map(|before| seal::sealed_at(self.vfs, self.dir, self.spec, before)).transpose()?;
        let mut known = sealed.unwrap_or_default();
        let settled = self.options.settled.iter();
        known.extend(settled.map(|(segment, settled)| ((*segment, settled.generation), settled.digest)));
        repair::must_be_agreed(&**self.vfs, &self.ledger, through, |segment, generation| {
            known.get(&(segment, generation)).copied()
        })
    }

    fn compare_seals(&self, core: &Core) -> Result<()> {
        self.options.settled.iter().for_each(|(segment, version)| core.seals.settle(*segment, *version));
        core.seals.compare(&core.ledger)
    }

    /// Whether what was derived again is what a checkpoint says, which rot that fits its checksum changes. When it is not, the
    /// first segment of which nothing is known from others is to be looked at.
    fn is_as_checkpointed(&self, core: &Core, state: &State, before: &Checkpoint) -> Result<bool> {
        let encode = |state| Checkpoint::encode(self.spec.id, state, &before.sizes);
        if encode(state) == encode(&before.state) {
            return Ok(true);
        }
        self.compare_seals(core)?;
        let mismatched = core.seals.mismatched();
        let is_known = |info: &SegmentInfo| {
            let own = core.ledger.view(info.number).and_then(|view| view.version());
            let sealed = core.seals.is_sealed(info.number) && !mismatched.contains(&info.number);
            sealed || own == self.options.settled.get(&info.number).copied()
        };
        let segments = core.ledger.segments();
        let mut applied = segments.iter().filter(|info| info.closed && Some(info.first_log_id) <= state.applied);
        match applied.find(|info| !is_known(info)) {
            None => Ok(false),
            Some(info) => Err(Error::Corrupted {
                path: core.ledger.segment_path(info.number),
                segment: Some(info.number),
                offset: 0,
                damage: Damage::Changed,
            }),
        }
    }
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
    let mut proven = TxId(0);
    if state.tx.0 > 0 {
        // Reads the newest record and the peaks of the tree, and hashes them together [L1, L3].
        let header = core.header(state.tx)?;
        if header.alh().ok() != Some(state.alh) {
            return Err(core.bad_hash(state.tx));
        }
        proven = header.bl_tx_id;
    }
    let frontier = frontier(&core, proven, state.tx)?;
    indexing::catch_up_at_open(&core, state.tx)?;
    core.seals.compare(&core.ledger)?;
    Ok((core, Applier::new(state, frontier, spec.segment_bytes)))
}

/// The peaks of the tree as of transaction `last`, of which the header of that one has proven those as of `proven`. Its own leaf, and
/// those between, have completed nodes that no header speaks of yet: they are hashed again and compared.
fn frontier(core: &Core, proven: TxId, last: TxId) -> Result<Frontier> {
    let mut frontier = Frontier::load(proven.0, &core.nodes())?;
    let mut at = inner_count(proven.0) * DIGEST_BYTES;
    for tx in proven.0 + 1..=last.0 {
        let mut nodes = Vec::new();
        frontier.append(&core.checked_alh(TxId(tx))?, &mut nodes);
        if core.aht.read(at, nodes.len())? != nodes {
            return Err(core.aht.corrupted(at, Damage::Hash));
        }
        at += nodes.len() as u64;
    }
    Ok(frontier)
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
            applier
                .apply(core, Applying { log_id: *log_id, position: *position, kind: *kind, payload, digested: &[] })?;
        }
    }
}

/// See [`Database::truncate_after`].
pub(crate) fn truncate_after(db: &Database, kept: Option<LogId>) -> Result<()> {
    let core = db.core();
    let applied = core.applied().log_id;
    if kept < applied {
        return Err(Error::CutBelowApplied { applied, kept });
    }
    // Held until it is cut: a checkpoint that is being taken must not raise them in between.
    let mut marks = db.marks.lock();
    marks.lower(kept)?;
    core.ledger.truncate_after(kept.map(|id| id.index))
}

impl ChunkLog {
    /// All files of this log that hold its first `len` bytes, as the manifest names them.
    pub(crate) fn manifest_files(&self, chunk_bytes: u64, len: u64) -> Vec<(String, u64)> {
        let name = self.dir().file_name().and_then(|name| name.to_str()).expect("named by this crate");
        Self::files(chunk_bytes, len).map(|(file, len)| (format!("{name}/{file}"), len)).collect()
    }
}
