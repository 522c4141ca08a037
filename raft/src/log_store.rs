//! The replicated log and the vote, kept in the database's ledger; never applies anything.
//!
//! ```text
//! append   -> frames staged: readable at once, in memory
//!               |
//! log strand:   one job writes everything staged with one sync, then reports every append it covers, in order
//! ```
//!
//! While a job syncs, further appends gather for the next one: group commit without a timer. Votes and cuts go through
//! the same strand, so they keep their order with appends. Purging only moves a mark: entries below it are not answered
//! any more, their bytes stay; the mark never passes the checkpoint (R3).
//!
//! A full disk is waited for: appends, and votes behind them, stay unanswered until there is space, and then go on in their
//! order. Any other failure of the disk stops the replica.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::{LogId, LogIndex, Term};
use alhambra_storage::database::Database;
use alhambra_storage::error::Error as StorageError;
use alhambra_storage::plant::{Plant, is_planted};
use alhambra_storage::segment::{Frame, FrameKind, Position};
use futures::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{BasicNode, EntryPayload};
use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock};

use crate::codec;
use crate::strand::{FailureCell, Strands};
use crate::types::{CommandBytes, RaftEntry, RaftLogId, RaftVote, TypeConfig, from_raft_log_id, to_raft_log_id};

/// A read that begins this many entries before the end is probably not in memory.
const WARM_ENTRIES: u64 = 1024;

/// How often a full disk is tried again.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// So many entries a planted bug answers before it syncs them.
const UNSYNCED_ENTRIES: u64 = 32;

/// The log of one group. Clones share it.
#[derive(Clone)]
pub struct LogStore(Arc<Shared>);

struct Shared {
    database: Arc<Database>,
    strands: Strands,
    failure: FailureCell,
    read_batch_bytes: usize,
    state: Mutex<State>,
    /// Appends share it; an install, which replaces the ledger, holds it alone.
    gate: Arc<RwLock<()>>,
    /// Something is unanswered because the disk is full.
    waits_for_space: AtomicBool,
    /// Wakes [`LogStore::run_space`].
    full: Notify,
    /// Nothing waits for space any more: the replica is going down.
    closing: AtomicBool,
}

struct State {
    vote: Option<RaftVote>,
    purged: Option<LogId>,
    /// Appends that no job has reported yet, oldest first.
    unreported: Vec<IOFlushed<TypeConfig>>,
    drain_queued: bool,
    /// Committed mark that no job has written yet.
    committed: Option<LogId>,
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "log that ends at {:?}", self.0.database.ledger().last_log_id())
    }
}

impl LogStore {
    /// The log of `database`, with the vote as it was saved.
    ///
    /// `gate` is held alone while an install replaces the ledger.
    pub(crate) fn open(
        database: Arc<Database>,
        strands: Strands,
        gate: Arc<RwLock<()>>,
        failure: FailureCell,
        read_batch_bytes: usize,
    ) -> io::Result<Self> {
        let vote = match database.load_vote().map_err(io::Error::other)? {
            Some(bytes) => Some(codec::decode_vote(&bytes).map_err(io::Error::other)?),
            None => None,
        };
        let purged = database.purge_mark();
        let state = Mutex::new(State { vote, purged, unreported: Vec::new(), drain_queued: false, committed: None });
        Ok(Self(Arc::new(Shared {
            database,
            strands,
            failure,
            read_batch_bytes,
            state,
            gate,
            waits_for_space: AtomicBool::new(false),
            full: Notify::new(),
            closing: AtomicBool::new(false),
        })))
    }

    /// Whether a write waits for space on the disk.
    pub(crate) fn waits_for_space(&self) -> bool {
        self.0.waits_for_space.load(Ordering::Acquire)
    }

    /// Lets nothing wait for space from now on, so that the core can end.
    pub(crate) fn close(&self) {
        self.0.closing.store(true, Ordering::Release);
    }

    /// Tries appends that found no space again, for as long as the replica runs.
    pub(crate) async fn run_space(self) {
        loop {
            self.0.full.notified().await;
            tokio::time::sleep(SPACE_RETRY).await;
            let shared = self.0.clone();
            self.0.strands.log.submit(move || shared.drain());
        }
    }

    fn purged(&self) -> Option<LogId> {
        self.0.state.lock().purged
    }

    /// Whether this replica has voted and has no entry: whoever began the group was not heard of again. The core takes neither
    /// elections nor another beginning then.
    pub(crate) fn has_only_voted(&self) -> bool {
        let state = self.0.state.lock();
        let voted = state.vote.is_some_and(|vote| vote.leader_id.term > 0);
        voted && state.purged.is_none() && self.0.database.ledger().last_log_id().is_none()
    }

    /// Writes the entry with which every group begins, the same on every member. Before the core starts.
    pub(crate) async fn begin(&self, members: &BTreeMap<u64, String>) -> Result<(), StorageError> {
        let nodes: BTreeMap<u64, BasicNode> = members.iter().map(|(id, addr)| (*id, BasicNode::new(addr))).collect();
        let first = RaftEntry {
            log_id: to_raft_log_id(LogId { term: Term(0), index: LogIndex(0) }),
            payload: EntryPayload::Membership(nodes.into()),
        };
        let (shared, frame) = (self.0.clone(), frame_of_entry(first));
        let written = self.0.strands.log.run(move || {
            shared.database.ledger().stage(&[frame])?;
            shared.database.ledger().flush().map(drop)
        });
        written.await.unwrap_or(Err(StorageError::Poisoned))
    }

    /// Entries of `from..to`, as many as fit into `bytes_max`, at least one when there is one.
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<RaftEntry>> {
        let from = from.max(self.purged().map_or(0, |id| id.index.get() + 1));
        let end = self.0.database.ledger().last_log_id().map_or(0, |id| id.index.get() + 1);
        let to = to.min(end);
        if from >= to {
            return Ok(Vec::new());
        }
        let shared = self.0.clone();
        let read = move || shared.database.ledger().read(LogIndex(from), LogIndex(to), bytes_max);
        let frames = if from + WARM_ENTRIES >= end { read() } else { self.0.strands.reads.run(read).await? };
        let frames = frames.map_err(|e| self.0.failure.fail("the log cannot be read", &e))?;
        // Purged while this was read: the segment may have lost values, so it is not what was appended.
        let purged = self.0.database.purge_mark().map(|id| id.index);
        let kept = frames.into_iter().skip_while(|(_, frame)| Some(frame.log_id.index) <= purged);
        kept.map(entry_of_frame).collect()
    }

    async fn read_all(&self, from: u64, to: u64) -> io::Result<Vec<RaftEntry>> {
        let mut entries = self.read(from, to, self.0.read_batch_bytes).await?;
        loop {
            let Some(last) = entries.last() else { return Ok(entries) };
            let mut more = self.read(last.log_id.index + 1, to, self.0.read_batch_bytes).await?;
            if more.is_empty() {
                return Ok(entries);
            }
            entries.append(&mut more);
        }
    }
}

impl Shared {
    fn write_committed(&self) {
        let Some(committed) = self.state.lock().committed.take() else { return };
        match self.database.save_committed(committed) {
            Err(e) if !e.waits_for_space() => drop(self.failure.fail("the committed mark cannot be saved", &e)),
            // It only shortens the next start, and a newer one comes.
            _ => {}
        }
    }

    /// Writes everything staged with one sync and reports every append that is covered.
    fn drain(&self) {
        let mut covered = {
            let mut state = self.state.lock();
            state.drain_queued = false;
            std::mem::take(&mut state.unreported)
        };
        if is_planted(Plant::AcknowledgeBeforeSync) {
            let ledger = self.database.ledger();
            let waits = ledger.last_log_id().map_or(0, |last| last.index.get())
                - ledger.flushed().map_or(0, |flushed| flushed.index.get());
            covered.drain(..).for_each(|append| append.io_completed(Ok(())));
            if waits < UNSYNCED_ENTRIES {
                return;
            }
        }
        match self.database.ledger().flush() {
            Ok(_) => {
                self.has_space();
                for append in covered {
                    append.io_completed(Ok(()));
                }
            }
            Err(e @ StorageError::NoSpace { .. }) => {
                self.has_no_space(&e);
                let mut state = self.state.lock();
                // Nobody else queues a drain until this one has been repeated.
                state.drain_queued = true;
                state.unreported.splice(..0, covered);
                self.full.notify_one();
                return;
            }
            Err(e) => {
                let reason = self.failure.fail("the log cannot be written", &e).to_string();
                for append in covered {
                    append.io_completed(Err(io::Error::other(reason.clone())));
                }
                return;
            }
        }
        if let Err(e) = self.database.ledger().settle() {
            self.failure.fail("the log cannot be prepared for further writes", &e);
        }
    }
}

impl Shared {
    fn has_no_space(&self, error: &StorageError) {
        if !self.waits_for_space.swap(true, Ordering::AcqRel) {
            tracing::warn!(%error, "the disk is full: writes wait here until there is space");
        }
    }

    fn has_space(&self) {
        if self.waits_for_space.swap(false, Ordering::AcqRel) {
            tracing::info!("the disk has space again, writes go on");
        }
    }

    /// Saves the vote behind all appends before it; `None` when one of both waits for space.
    fn try_save_vote(&self, bytes: &[u8]) -> Option<Result<(), StorageError>> {
        if !self.state.lock().unreported.is_empty() {
            self.drain();
            if self.waits_for_space.load(Ordering::Acquire) {
                return None;
            }
        }
        // A candidate promises with its vote what stands in its log, the entry that begins the group first of all.
        if self.failure.get().is_some() {
            return Some(Err(StorageError::Poisoned));
        }
        if is_planted(Plant::ForgetVote) && self.database.load_vote().is_ok_and(|vote| vote.is_some()) {
            return Some(Ok(()));
        }
        match self.database.save_vote(bytes) {
            Err(e @ StorageError::NoSpace { .. }) if !self.closing.load(Ordering::Acquire) => {
                self.has_no_space(&e);
                None
            }
            Err(e) => Some(Err(e)),
            Ok(()) => {
                self.has_space();
                Some(Ok(()))
            }
        }
    }
}

fn entry_of_frame((_, frame): (Position, Frame)) -> io::Result<RaftEntry> {
    let payload = match frame.kind {
        FrameKind::Blank => EntryPayload::Blank,
        FrameKind::Command => EntryPayload::Normal(CommandBytes(frame.payload)),
        FrameKind::Membership => {
            EntryPayload::Membership(codec::decode_membership(&frame.payload).map_err(io::Error::other)?)
        }
    };
    Ok(RaftEntry { log_id: to_raft_log_id(frame.log_id), payload })
}

/// The frame that holds an entry; what every replica has byte for byte.
pub(crate) fn frame_of_entry(entry: RaftEntry) -> Frame {
    let log_id = from_raft_log_id(&entry.log_id);
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (FrameKind::Blank, bytes::Bytes::new()),
        EntryPayload::Normal(command) => (FrameKind::Command, command.0),
        EntryPayload::Membership(members) => (FrameKind::Membership, codec::encode_membership(&members)),
    };
    Frame { log_id, kind, payload }
}

/// Half-open bounds of a range.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(n) => *n,
        Bound::Excluded(n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(n) => n.saturating_add(1),
        Bound::Excluded(n) => *n,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let (from, to) = bounds(&range);
        self.read_all(from, to).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start, end, self.0.read_batch_bytes).await
    }

    /// What apply reads: a bounded batch at a time.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = Result<RaftEntry, io::Error>> + Send
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (from, to) = bounds(&range);
        let store = self.clone();
        stream::unfold((store, from, Vec::new().into_iter()), move |(store, mut next, mut batch)| async move {
            loop {
                if let Some(entry) = batch.next() {
                    return Some((Ok(entry), (store, next, batch)));
                }
                match store.read(next, to, store.0.read_batch_bytes).await {
                    Ok(entries) => {
                        next = entries.last()?.log_id.index + 1;
                        batch = entries.into_iter();
                    }
                    Err(e) => return Some((Err(e), (store, to, Vec::new().into_iter()))),
                }
            }
        })
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.0.state.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.purged();
        let last = self.0.database.ledger().last_log_id().max(purged);
        Ok(LogState { last_purged_log_id: purged.map(to_raft_log_id), last_log_id: last.map(to_raft_log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let bytes = codec::encode_vote(vote);
        let saved = loop {
            let (shared, bytes) = (self.0.clone(), bytes.clone());
            match self.0.strands.log.run(move || shared.try_save_vote(&bytes)).await? {
                Some(saved) => break saved,
                None if self.0.closing.load(Ordering::Acquire) => return Err(io::ErrorKind::StorageFull.into()),
                None => tokio::time::sleep(SPACE_RETRY).await,
            }
        };
        saved.map_err(|e| self.0.failure.fail("the vote cannot be saved", &e))?;
        self.0.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        // Not here: a checkpoint may hold the marks. What gathers behind it is written once.
        if self.0.state.lock().committed.replace(from_raft_log_id(&committed)).is_none() {
            let shared = self.0.clone();
            self.0.strands.background.submit(move || shared.write_committed());
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        let waiting = self.0.state.lock().committed;
        let committed = waiting.max(self.0.database.load_committed());
        Ok(committed.map(to_raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + Send,
        I::IntoIter: Send,
    {
        let frames: Vec<Frame> = entries.into_iter().map(frame_of_entry).collect();
        let _no_install = self.0.gate.read().await;
        if let Err(e) = self.0.database.ledger().stage(&frames) {
            return Err(self.0.failure.fail("entries do not fit the log", &e));
        }
        {
            let mut state = self.0.state.lock();
            state.unreported.push(callback);
            if std::mem::replace(&mut state.drain_queued, true) {
                return Ok(());
            }
        }
        let shared = self.0.clone();
        self.0.strands.log.submit(move || shared.drain());
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        let last_kept = last_log_id.as_ref().map(from_raft_log_id);
        let shared = self.0.clone();
        let cut = self.0.strands.log.run(move || shared.database.truncate_after(last_kept)).await?;
        cut.map_err(|e| self.0.failure.fail("the log cannot be cut", &e))
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        let upto = from_raft_log_id(&log_id);
        let shared = self.0.clone();
        let moved = self.0.strands.background.run(move || {
            if shared.database.checkpoint_position() < Some(upto) {
                shared.database.checkpoint()?;
            }
            shared.database.set_purge_mark(upto)
        });
        moved.await?.map_err(|e| self.0.failure.fail("the purge mark cannot be moved", &e))?;
        let mut state = self.0.state.lock();
        state.purged = state.purged.max(Some(upto));
        Ok(())
    }
}
