//! openraft's own conformance suite of log and state machine, on disks in memory.
//!
//! The suite treats log and state machine as unrelated: it appends entries from any index to an empty log, applies entries
//! that no log holds, and purges what was never applied. Here both are one database, whose log begins at index 0 and whose
//! state machine reads positions from it. So the suite gets one database for each, and whatever it leaves out is filled
//! with blank entries first, which it does not see: the code under test meets only what can happen.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alhambra_ledger::ids::{DatabaseId, GroupId, LogId, LogIndex};
use alhambra_storage::database::{Database, DatabaseSpec, Options};
use alhambra_storage::segment::{Frame, FrameKind};
use alhambra_storage::vfs::mem::MemVfs;
use futures::{Stream, StreamExt, stream};
use openraft::StorageError;
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use tokio::sync::{Notify, RwLock};

use crate::env::Executor;
use crate::log_store::{LogStore, frame_of_entry};
use crate::snapshot::SnapshotData;
use crate::state_machine::StateMachine;
use crate::strand::{FailureCell, Strands};
use crate::types::{RaftEntry, RaftLogId, RaftStoredMembership, RaftVote, TypeConfig, from_raft_log_id};

#[derive(Debug)]
struct Inline;

impl Executor for Inline {
    fn submit(&self, _strand: u64, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}

/// Stages and flushes blank entries from the end of the ledger up to, and without, `end`.
fn fill(database: &Database, term: u64, end: u64) {
    let ledger = database.ledger();
    let next = ledger.last_log_id().map_or(0, |id| id.index.get() + 1);
    let blank = |index| Frame { log_id: LogId::new(term, index), kind: FrameKind::Blank, payload: bytes::Bytes::new() };
    let frames: Vec<Frame> = (next..end).map(blank).collect();
    ledger.stage(&frames).unwrap();
    ledger.flush().unwrap();
}

/// Applies what the ledger holds up to, and without, `end`.
fn apply_own(database: &Database, end: u64) {
    let next = database.applied().log_id.map_or(0, |id| id.index.get() + 1);
    for (position, frame) in database.ledger().read(LogIndex(next), LogIndex(end), usize::MAX).unwrap() {
        database.apply(frame.log_id, position, frame.kind, &frame.payload).unwrap();
    }
}

/// The log under test; what was filled in is hidden.
struct Log {
    store: LogStore,
    database: Arc<Database>,
    first: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Reader {
    store: LogStore,
    first: Arc<AtomicU64>,
}

impl RaftLogReader<TypeConfig> for Reader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let mut entries = self.store.try_get_log_entries(range).await?;
        entries.retain(|entry| entry.log_id.index >= self.first.load(Ordering::Relaxed));
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.store.limited_get_log_entries(start, end).await
    }

    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = Result<RaftEntry, io::Error>> + Send
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        self.store.entries_stream(range).await
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        self.store.read_vote().await
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.store.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader { store: self.store.clone(), first: self.first.clone() }
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.store.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        self.store.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<RaftEntry> = entries.into_iter().collect();
        let first = from_raft_log_id(&entries[0].log_id);
        if self.database.ledger().last_log_id().is_none() {
            self.first.store(first.index.get(), Ordering::Relaxed);
        }
        fill(&self.database, first.term.get(), first.index.get());
        self.store.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        self.store.truncate_after(last_log_id).await
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        let upto = from_raft_log_id(&log_id);
        fill(&self.database, upto.term.get(), upto.index.get() + 1);
        apply_own(&self.database, upto.index.get() + 1);
        self.store.purge(log_id).await
    }
}

/// The state machine under test.
struct Machine {
    machine: StateMachine,
    database: Arc<Database>,
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, RaftStoredMembership), io::Error> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let id = from_raft_log_id(&entry.log_id);
            fill(&self.database, id.term.get(), id.index.get());
            apply_own(&self.database, id.index.get());
            self.database.ledger().stage(&[frame_of_entry(entry.clone())]).unwrap();
            self.database.ledger().flush().unwrap();
            self.machine.apply(stream::iter([Ok((entry, responder))])).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.machine.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.machine.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        self.machine.get_current_snapshot().await
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, Log, Machine> for Builder {
    async fn build(&self) -> Result<((), Log, Machine), StorageError<TypeConfig>> {
        let executor: Arc<dyn Executor> = Arc::new(Inline);
        let disk = Arc::new(MemVfs::new());
        let open = |dir: &str| {
            let spec = DatabaseSpec { id: DatabaseId([5; 16]), segment_bytes: 1_024 };
            Arc::new(Database::open(disk.clone(), Path::new(dir), spec, Options::default()).unwrap())
        };
        let strands = |group| Strands::new(&executor, GroupId(group));
        let gate = || Arc::new(RwLock::new(()));
        let failure = FailureCell::default;

        let database = open("/log");
        let store = LogStore::open(database.clone(), strands(1), gate(), failure(), 1 << 20).unwrap();
        let log = Log { store, database, first: Arc::default() };
        let database = open("/machine");
        let machine = StateMachine::new(
            disk.clone(),
            "/machine".into(),
            database.clone(),
            strands(2),
            gate(),
            failure(),
            Arc::new(Notify::new()),
        );
        Ok(((), log, Machine { machine, database }))
    }
}

#[test]
fn openraft_accepts_log_and_state_machine() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
