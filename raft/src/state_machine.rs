//! Applies committed entries to the database, in log order, each once (R1), and answers those who proposed them.
//!
//! No decision of its own: what becomes of a command is the database's, the same on every replica. What the database
//! cannot apply stops this replica; it never guesses.
//!
//! Apply runs among the tasks that answer calls, so it writes no file: what becomes much in memory is written on strands, and
//! when it becomes too much apply waits for them, without a thread.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_storage::Unwritten;
use alhambra_storage::database::Database;
use alhambra_storage::segment::Position;
use alhambra_storage::vfs::Vfs;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock, watch};
use tokio::time::sleep;

use crate::codec;
use crate::log_store::frame_of_entry;
use crate::snapshot::{DatabaseSource, SnapshotData};
use crate::strand::{FailureCell, Strands};
use crate::types::{RaftLogId, RaftStoredMembership, TypeConfig, from_raft_log_id, to_raft_log_id};

/// How often a disk without room for the index is tried again. Nobody waits for it, and a try may write much.
const INDEX_SPACE_RETRY: Duration = Duration::from_secs(1);

/// How far this replica has applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Newest log entry.
    pub log_id: Option<LogId>,
    /// Newest transaction.
    pub tx: TxId,
}

/// What openraft drives: applies committed entries to the database. Clones share it.
#[derive(Clone, Debug)]
pub struct StateMachine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    database: Arc<Database>,
    applied: watch::Sender<Applied>,
    strands: Strands,
    gate: Arc<RwLock<()>>,
    failure: FailureCell,
    /// Nothing is applied any more, and no work goes on: see [`StateMachine::close`].
    closed: AtomicBool,
    checkpoint_queued: AtomicBool,
    write_out_queued: AtomicBool,
    index_work_queued: AtomicBool,
    /// Wakes [`StateMachine::run_space`].
    index_full: Notify,
    index_waits: AtomicBool,
    seals_due: Arc<Notify>,
    seals_told: AtomicU64,
    current: Mutex<Option<Arc<DatabaseSource>>>,
}

impl StateMachine {
    /// On top of `database`; `seals_due` is notified when a segment may have become ready to be sealed.
    pub(crate) fn new(
        vfs: Arc<dyn Vfs>,
        dir: PathBuf,
        database: Arc<Database>,
        strands: Strands,
        gate: Arc<RwLock<()>>,
        failure: FailureCell,
        seals_due: Arc<Notify>,
    ) -> Self {
        let applied = watch::Sender::new(applied_of(&database));
        let checkpoint_queued = AtomicBool::new(false);
        let current = Mutex::new(None);
        Self(Arc::new(Shared {
            vfs,
            dir,
            database,
            applied,
            strands,
            gate,
            failure,
            closed: AtomicBool::new(false),
            checkpoint_queued,
            write_out_queued: AtomicBool::new(false),
            index_work_queued: AtomicBool::new(false),
            index_full: Notify::new(),
            index_waits: AtomicBool::new(false),
            seals_due,
            seals_told: AtomicU64::new(0),
            current,
        }))
    }

    /// Ends what would go on by itself: the database is closed, and may be opened again, when nobody works on it any more.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// Follows what is applied.
    pub(crate) fn watch(&self) -> watch::Receiver<Applied> {
        self.0.applied.subscribe()
    }

    /// The snapshot that openraft knows as the current one.
    pub(crate) fn current_snapshot(&self) -> Option<Arc<DatabaseSource>> {
        self.0.current.lock().clone()
    }

    /// Whether somebody is being sent the current snapshot.
    pub(crate) fn is_snapshot_in_use(&self) -> bool {
        self.0.current.lock().as_ref().is_some_and(|source| Arc::strong_count(source) > 1)
    }

    /// Applies one entry, lets readers see it, then answers.
    fn apply_one(&self, (entry, responder): EntryResponder<TypeConfig>) -> io::Result<()> {
        let shared = &*self.0;
        let frame = frame_of_entry(entry);
        let ledger = shared.database.ledger();
        let position = ledger.position(frame.log_id.index);
        if let Ok(Some(at)) = position {
            self.look_for_seals(at);
        }
        let outcomes = match position {
            Ok(Some(position)) => shared.database.apply(frame.log_id, position, frame.kind, &frame.payload),
            Ok(None) => Err(alhambra_storage::error::Error::NoSuchEntry { index: frame.log_id.index }),
            Err(e) => Err(e),
        };
        let outcomes = outcomes.map_err(|e| shared.failure.fail("a committed entry cannot be applied", &e))?;
        shared.applied.send_replace(applied_of(&shared.database));
        if let Some(responder) = responder {
            responder.send(outcomes);
        }
        if shared.database.checkpoint_due() {
            self.queue_checkpoint();
        }
        if shared.database.unwritten() == Unwritten::Much {
            self.queue_write_out();
        }
        self.look_for_index_work();
        Ok(())
    }

    /// Tells the leader's duties when about a segment was applied since it was told last. It looks for itself from time to
    /// time, so that this may miss the moment.
    fn look_for_seals(&self, at: Position) {
        let segment_bytes = self.0.database.spec().segment_bytes;
        if self.0.seals_told.swap(at.0 / segment_bytes, Ordering::Relaxed) != at.0 / segment_bytes {
            self.0.seals_due.notify_one();
        }
    }

    fn queue_checkpoint(&self) {
        if self.0.checkpoint_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.0.clone();
        self.0.strands.background.submit(move || {
            shared.checkpoint_queued.store(false, Ordering::Release);
            match shared.database.checkpoint() {
                Ok(()) => {}
                // It stays due.
                Err(e) if e.waits_for_space() => {
                    tracing::warn!(error = %e, "no checkpoint until there is space on the disk");
                }
                Err(e) => drop(shared.failure.fail("a checkpoint cannot be written", &e)),
            }
        });
    }

    /// Derived data is written on a strand: a write may have to wait for the disk, and what runs here must not.
    fn queue_write_out(&self) {
        if self.0.write_out_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.0.clone();
        self.0.strands.background.submit(move || {
            shared.write_out_queued.store(false, Ordering::Release);
            if let Err(e) = shared.database.write_out() {
                shared.failure.fail("what was applied cannot be written", &e);
            }
        });
    }

    /// Waits, and no thread with it, when so much is unwritten that nothing more should be applied.
    async fn bound_unwritten(&self) -> io::Result<()> {
        if self.0.database.unwritten() == Unwritten::TooMuch {
            let shared = self.0.clone();
            let written = self.0.strands.background.run(move || shared.database.write_out()).await?;
            written.map_err(|e| self.0.failure.fail("what was applied cannot be written", &e))?;
        }
        while !self.0.has_ended() && self.0.database.index_is_behind() {
            let shared = self.0.clone();
            match self.0.strands.index.run(move || shared.database.index_work()).await? {
                Ok(true) => {}
                // Nothing is left to do, or it is put off: a full disk holds up nothing that is committed.
                Ok(false) | Err(alhambra_storage::error::Error::NoSpace { .. }) => break,
                Err(e) => return Err(self.0.failure.fail("the index cannot be written", &e)),
            }
        }
        Ok(())
    }

    /// Queues work on the index when there is some and none is queued.
    pub(crate) fn look_for_index_work(&self) {
        if !self.0.has_ended()
            && self.0.database.index_work_due()
            && !self.0.index_work_queued.swap(true, Ordering::AcqRel)
        {
            self.0.clone().queue_index_work();
        }
    }

    /// Tries work on the index that found no space again, for as long as the replica runs, also when no entry comes.
    pub(crate) async fn run_space(self) {
        loop {
            self.0.index_full.notified().await;
            sleep(INDEX_SPACE_RETRY).await;
            self.look_for_index_work();
        }
    }

    /// Takes a manifest of the database as it is and makes it the current snapshot.
    async fn take_snapshot(&self) -> io::Result<Arc<DatabaseSource>> {
        let shared = self.0.clone();
        let taken = self.0.strands.background.run(move || DatabaseSource::take(shared.database.clone())).await?;
        let source = Arc::new(taken.map_err(|e| self.0.failure.fail("a snapshot cannot be taken", &e))?);
        let mut current = self.0.current.lock();
        if current.as_ref().is_none_or(|old| old.last_log_id() <= source.last_log_id()) {
            *current = Some(source.clone());
        }
        Ok(source)
    }

    /// Whether a segment was closed, and applied to its end, after this entry.
    fn closed_since(&self, log_id: Option<LogId>) -> bool {
        let applied = self.0.database.applied().log_id;
        let segments = self.0.database.ledger().segments();
        segments.iter().any(|s| s.closed && Some(s.last_log_id) > log_id && Some(s.last_log_id) <= applied)
    }

    /// Applies entries of the own log up to and including `last`, all known to be committed.
    async fn apply_own_log(&self, last: LogId) -> io::Result<()> {
        let database = &self.0.database;
        loop {
            let next = applied_of(database).log_id.map_or(0, |id| id.index.get() + 1);
            if next > last.index.get() {
                return Ok(());
            }
            let ledger = database.ledger();
            let read = move || ledger.read(LogIndex(next), LogIndex(last.index.get() + 1), 1 << 20);
            let entries = self.0.strands.reads.run(read).await?;
            let entries = entries.map_err(|e| self.0.failure.fail("the log cannot be read", &e))?;
            for (position, frame) in entries {
                self.0.must_go_on()?;
                database
                    .apply(frame.log_id, position, frame.kind, &frame.payload)
                    .map_err(|e| self.0.failure.fail("a committed entry cannot be applied", &e))?;
                if database.unwritten() == Unwritten::Much {
                    self.queue_write_out();
                }
                self.bound_unwritten().await?;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Shared {
    /// Whether the replica was stopped or has failed.
    fn has_ended(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.failure.has_failed()
    }

    /// Fails once that is so. The library logs this as an error: it is seen when a replica ends that has still to apply much.
    fn must_go_on(&self) -> io::Result<()> {
        if self.has_ended() { Err(io::Error::other("the replica has ended")) } else { Ok(()) }
    }

    /// One step at a time, each a job of its own: groups that share a thread take turns. None once the replica has ended.
    fn queue_index_work(self: Arc<Self>) {
        let shared = self.clone();
        self.strands.index.submit(move || {
            if shared.has_ended() {
                return;
            }
            match shared.database.index_work() {
                Ok(true) => {
                    shared.index_has_space();
                    shared.queue_index_work();
                }
                Ok(false) => {
                    shared.index_has_space();
                    shared.index_work_queued.store(false, Ordering::Release);
                    // What became due since is not forgotten.
                    if shared.database.index_work_due() && !shared.index_work_queued.swap(true, Ordering::AcqRel) {
                        shared.queue_index_work();
                    }
                }
                Err(e @ alhambra_storage::error::Error::NoSpace { .. }) => {
                    if !shared.index_waits.swap(true, Ordering::AcqRel) {
                        tracing::warn!(error = %e, "the index waits for space on the disk");
                    }
                    shared.index_work_queued.store(false, Ordering::Release);
                    shared.index_full.notify_one();
                }
                Err(e) => {
                    shared.failure.fail("the index cannot be written", &e);
                }
            }
        });
    }
}

impl Shared {
    fn index_has_space(&self) {
        if self.index_waits.swap(false, Ordering::AcqRel) {
            tracing::info!("the disk has space for the index again");
        }
    }
}

fn applied_of(database: &Database) -> Applied {
    let applied = database.applied();
    Applied { log_id: applied.log_id, tx: applied.tx }
}

/// The meta of a snapshot, as openraft wants it.
fn meta_of(source: &DatabaseSource) -> io::Result<SnapshotMetaOf<TypeConfig>> {
    let last_membership = stored_membership(source.membership())?;
    Ok(SnapshotMeta { last_log_id: source.last_log_id().map(to_raft_log_id), last_membership })
}

fn stored_membership(stored: Option<(LogId, bytes::Bytes)>) -> io::Result<RaftStoredMembership> {
    match stored {
        None => Ok(RaftStoredMembership::default()),
        Some((log_id, bytes)) => {
            let members = codec::decode_membership(&bytes).map_err(io::Error::other)?;
            Ok(RaftStoredMembership::new(Some(to_raft_log_id(log_id)), members))
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        let source = self.take_snapshot().await?;
        Ok(Snapshot { meta: meta_of(&source)?, snapshot: SnapshotData::Here(source) })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, RaftStoredMembership), io::Error> {
        let applied = self.0.database.applied();
        Ok((applied.log_id.map(to_raft_log_id), stored_membership(applied.membership)?))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(entry) = entries.next().await {
            // What is committed is applied when the replica is opened again.
            self.0.must_go_on()?;
            self.apply_one(entry?)?;
            self.bound_unwritten().await?;
            // Whoever fills the memory up waits until some of it is given back, and no thread with it.
            if self.0.database.memory().is_exceeded() {
                let memory = self.0.database.memory().clone();
                self.0.strands.background.run(move || memory.relieve_one()).await?;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.0.must_go_on()?;
        let last = meta.last_log_id.as_ref().map(from_raft_log_id);
        let Some(last) = last else { return Ok(()) };
        let own = self.0.database.ledger().log_id(last.index);
        let own = own.map_err(|e| self.0.failure.fail("the log cannot be read", &e))?;
        if own == Some(last) {
            // The own log has it all, and perhaps entries after it that must stay: nothing to install but to apply.
            self.apply_own_log(last).await?;
        } else {
            let _no_appends = self.0.gate.write().await;
            let shared = self.0.clone();
            let installed = self
                .0
                .strands
                .log
                .run(move || crate::snapshot::install(&shared.vfs, &shared.dir, &shared.database, snapshot));
            installed.await?.map_err(|e| self.0.failure.fail("a received snapshot cannot be installed", &e))?;
        }
        self.0.applied.send_replace(applied_of(&self.0.database));
        // The index does not come with the files, and perhaps nothing is applied for long.
        self.look_for_index_work();
        self.take_snapshot().await?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let Some(mut source) = self.current_snapshot() else { return Ok(None) };
        // It is read when it is sent: a follower that was away for long gets a newer one.
        // Its files may have lost values since.
        if self.closed_since(source.last_log_id()) || !source.still_holds() {
            source = self.take_snapshot().await?;
        }
        Ok(Some(Snapshot { meta: meta_of(&source)?, snapshot: SnapshotData::Here(source) }))
    }
}
