//! Writing: the proposer of a leader, and the way of a proposal to it.
//!
//! ```text
//! propose() --- leads here ---> queue --- one batch ---> consensus core ---> apply ---> each caller
//!     |                         bounded                  a few in flight
//!     '--- another leads -----> one hop (Forward) -----> serve_propose() there, never forwarded again
//! ```
//!
//! No timers: a batch leaves at once when none is on its way, and takes with it whatever waits or is about to. While one
//! is written and replicated the next one gathers; it leaves before the other is back only when it has grown to
//! `pipeline_bytes`.
//!
//! User writes are refused here, and not at apply, when disks are low or a quota is used up: free space and time are no
//! replicated state. So a quota may be passed by what is on its way when leaders change, and never by more.
//!
//! A proposal is tried again, with the same request id, until its deadline; that never commits it twice, because the
//! outcomes of request ids are replicated state. Each attempt ends as surely not applied or as possibly applied, and the
//! answer at the deadline says which (R4).

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Command, RequestId, TxProposal};
use alhambra_storage::limits::FRAME_PAYLOAD_BYTES_MAX;
use alhambra_storage::memory;
use bytes::Bytes;
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::charges::Charges;
use crate::envelope::PROPOSAL_BYTES_MAX;
use crate::error::{ProposeError, WriteLimit};
use crate::forward::{ForwardError, Written};
use crate::group::Replica;
use crate::turns::Turn;
use crate::types::{CommandBytes, Completion, TypeConfig};

/// So long before its deadline a proposal for which there is no room is refused, so that its caller hears that it is surely not applied.
const ROOM_REFUSED_BEFORE: Duration = Duration::from_millis(100);
/// Pause before the next attempt when nothing tells that it would end otherwise.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How often a batch waits for tasks that are ready, as long as each time brings more.
const GATHER_ROUNDS_MAX: usize = 4;

/// What an encoded batch takes besides its proposals, bytes, at most.
const BATCH_HEAD_BYTES: usize = 64;

/// How one attempt on this node ended without an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Missed {
    /// Surely not applied: another node leads, if any.
    NotLeader(Option<u64>),
    /// Surely not applied: this node leads but has not heard from a quorum lately.
    LeaseExpired,
    /// Surely not applied: it still waited when its time was over.
    Waited,
    /// Surely not applied.
    Refused(ProposeError),
    /// Possibly applied: the log entry was cut here, but another leader may have it.
    Discarded,
    /// Possibly applied: it was on its way when its time was over or the leader changed.
    OnItsWay,
    /// Possibly applied: the consensus core stopped.
    CoreStopped,
}

type Answer = Result<Outcome, Missed>;

/// A proposal in the queue. Whoever takes the content out answers for it: the proposer or the caller who gives up.
struct Slot(Mutex<Option<Waiting>>);

struct Waiting {
    proposal: TxProposal,
    len: u64,
    /// Its part of what all databases of the process may keep waiting.
    _memory: memory::Waiting,
    /// Its part of the queue.
    _room: OwnedSemaphorePermit,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct Queue {
    slots: VecDeque<Arc<Slot>>,
    bytes: u64,
    in_flight: usize,
    closed: bool,
    /// Why user writes are refused for now.
    limit: Option<WriteLimit>,
    /// When the transactions taken so far would all have come, one by one at the rate of the quota.
    paid_until: Option<Instant>,
    /// Which those were.
    charges: Charges,
}

/// Gathers proposals into batches and hands them to the consensus core.
pub(crate) struct Proposer {
    queue: Mutex<Queue>,
    wake: Notify,
    last_ts: AtomicI64,
    genesis_on_its_way: AtomicBool,
    client: [u8; 16],
    sequence: AtomicU64,
    bytes_max: u64,
    batch_bytes: u64,
    batch_proposals_max: usize,
    in_flight_max: usize,
    pipeline_bytes: u64,
    proposal_bytes_max: u64,
    memory: memory::Room,
    /// Of the queue, in bytes.
    room: Arc<Semaphore>,
    /// User writes that were refused, by [`WriteLimit::number`].
    refused: [AtomicU64; WriteLimit::REASONS.len()],
}

/// Quotas of a database as they are in force.
#[derive(Clone, Copy, Debug, Default)]
struct Quotas {
    bytes: u64,
    tx_per_second: u64,
    /// What the database takes, when that counts, bytes.
    used_bytes: u64,
}

impl Queue {
    /// Whether one more proposal is taken, and the count of it: a retry of one that was taken before is the same transaction.
    fn admit(&mut self, len: u64, request: Option<&RequestId>, quotas: Quotas, now: Instant) -> Result<(), WriteLimit> {
        if let Some(limit) = self.limit {
            return Err(limit);
        }
        let used_bytes = quotas.used_bytes.saturating_add(self.bytes);
        if quotas.bytes > 0 && used_bytes.saturating_add(len) > quotas.bytes {
            return Err(WriteLimit::QuotaBytes { used_bytes, needed_bytes: len, quota_bytes: quotas.bytes });
        }
        if quotas.tx_per_second == 0 {
            self.paid_until = None;
            return Ok(());
        }
        if request.is_some_and(|request| self.charges.contains(request)) {
            return Ok(());
        }
        // As many as the quota at once after a pause, then one whenever its share of a second has passed.
        let share = Duration::from_nanos(1_000_000_000 / quotas.tx_per_second.min(1_000_000_000));
        let paid_until = self.paid_until.unwrap_or(now).max(now) + share;
        if paid_until > now + Duration::from_secs(1) {
            return Err(WriteLimit::QuotaTransactions { per_second: quotas.tx_per_second });
        }
        self.paid_until = Some(paid_until);
        if let Some(request) = request {
            self.charges.note(request);
        }
        Ok(())
    }
}

impl fmt::Debug for Proposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.queue.lock();
        f.debug_struct("Proposer")
            .field("waiting", &queue.slots.len())
            .field("bytes", &queue.bytes)
            .field("in_flight", &queue.in_flight)
            .finish_non_exhaustive()
    }
}

/// The callers of one batch. Dropped without an answer, all of them learn that the core stopped.
struct BatchCallers {
    proposer: Arc<Proposer>,
    callers: Vec<oneshot::Sender<Answer>>,
}

impl BatchCallers {
    fn complete(mut self, result: ClientWriteResult<TypeConfig>) {
        let callers = std::mem::take(&mut self.callers);
        match result {
            Ok(done) => {
                assert_eq!(done.data.len(), callers.len(), "apply answers every proposal of a batch");
                for (caller, outcome) in callers.into_iter().zip(done.data) {
                    // A caller that gave up has dropped its receiver.
                    let _ = caller.send(Ok(outcome));
                }
            }
            Err(error) => {
                let missed = missed_by_core(error);
                for caller in callers {
                    let _ = caller.send(Err(missed.clone()));
                }
            }
        }
    }
}

impl Drop for BatchCallers {
    fn drop(&mut self) {
        for caller in self.callers.drain(..) {
            let _ = caller.send(Err(Missed::CoreStopped));
        }
        self.proposer.queue.lock().in_flight -= 1;
        self.proposer.wake.notify_one();
    }
}

fn missed_by_core(error: ClientWriteError<TypeConfig>) -> Missed {
    match error {
        ClientWriteError::ForwardToLeader(to) if to.reason == ForwardReason::LeaseExpired => Missed::LeaseExpired,
        ClientWriteError::ForwardToLeader(to) => Missed::NotLeader(to.leader_id),
        // Only changes of members end in the first two ways; a batch is none.
        ClientWriteError::ChangeMembershipError(_)
        | ClientWriteError::PreconditionFailed(_)
        | ClientWriteError::LogEntryDiscarded(_) => Missed::Discarded,
    }
}

impl Proposer {
    pub(crate) fn new(client: [u8; 16], tuning: &crate::group::Tuning) -> Self {
        Self {
            queue: Mutex::new(Queue::default()),
            wake: Notify::new(),
            last_ts: AtomicI64::new(0),
            genesis_on_its_way: AtomicBool::new(false),
            client,
            sequence: AtomicU64::new(0),
            bytes_max: tuning.queue_bytes_max,
            batch_bytes: tuning.batch_bytes,
            batch_proposals_max: tuning.batch_proposals_max.max(1),
            in_flight_max: tuning.batches_in_flight_max.max(1),
            pipeline_bytes: tuning.pipeline_bytes,
            proposal_bytes_max: PROPOSAL_BYTES_MAX.min(FRAME_PAYLOAD_BYTES_MAX - BATCH_HEAD_BYTES) as u64,
            memory: tuning.memory.room(),
            room: Arc::new(Semaphore::new(tuning.queue_bytes_max.min(Semaphore::MAX_PERMITS as u64) as usize)),
            refused: Default::default(),
        }
    }

    /// From now on user writes are refused for this reason, or taken.
    pub(crate) fn set_limit(&self, limit: Option<WriteLimit>) {
        self.queue.lock().limit = limit;
    }

    /// Why user writes are refused here for now.
    pub(crate) fn limit(&self) -> Option<WriteLimit> {
        self.queue.lock().limit
    }

    /// User writes that were refused here, by [`WriteLimit::number`].
    pub(crate) fn refused(&self) -> [u64; WriteLimit::REASONS.len()] {
        self.refused.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// A request id that no other request of any client has.
    pub(crate) fn next_request(&self, floor: LogIndex) -> RequestId {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        RequestId { client: self.client, sequence, floor }
    }

    /// Queues a proposal, behind those that wait for room there as well, and refuses it when there is none shortly before its deadline.
    /// A caller on this node that goes away while it waits takes it back.
    async fn enqueue(
        &self,
        proposal: TxProposal,
        deadline: Instant,
        quotas: impl FnOnce() -> Quotas,
    ) -> Result<(Arc<Slot>, oneshot::Receiver<Answer>), ProposeError> {
        let len = proposal.encoded_len_max() as u64;
        if len > self.proposal_bytes_max {
            return Err(ProposeError::TooLarge { len_bytes: len, len_bytes_max: self.proposal_bytes_max });
        }
        let Some(memory) = self.memory.take(len) else {
            let (queued_bytes, queued_bytes_max) = (self.memory.bytes(), self.memory.bytes_max());
            return Err(ProposeError::Overloaded { queued_bytes, queued_bytes_max });
        };
        // A larger one than all the room has it for itself.
        let share = u32::try_from(len.min(self.bytes_max)).unwrap_or(u32::MAX);
        let room = match self.room.clone().try_acquire_many_owned(share) {
            Err(TryAcquireError::NoPermits) => {
                let until = deadline.checked_sub(ROOM_REFUSED_BEFORE).unwrap_or(deadline);
                match timeout_at(until, self.room.clone().acquire_many_owned(share)).await {
                    Ok(room) => room.map_err(|_| ProposeError::Stopped)?,
                    Err(_) => {
                        let queued_bytes = self.queue.lock().bytes;
                        return Err(ProposeError::Overloaded { queued_bytes, queued_bytes_max: self.bytes_max });
                    }
                }
            }
            room => room.map_err(|_| ProposeError::Stopped)?,
        };
        // What others have written while this one waited counts.
        let quotas = quotas();
        let (answer, receiver) = oneshot::channel();
        let request = proposal.request;
        let waiting = Waiting { proposal, len, _memory: memory, _room: room, deadline, answer };
        let slot = Arc::new(Slot(Mutex::new(Some(waiting))));
        {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Err(ProposeError::Stopped);
            }
            while queue.slots.front().is_some_and(|slot| slot.0.lock().is_none()) {
                queue.slots.pop_front();
            }
            if let Err(limit) = queue.admit(len, request.as_ref(), quotas, Instant::now()) {
                self.refused[limit.number()].fetch_add(1, Ordering::Relaxed);
                return Err(ProposeError::LimitExceeded(limit));
            }
            queue.bytes += len;
            queue.slots.push_back(slot.clone());
        }
        self.wake.notify_one();
        Ok((slot, receiver))
    }

    /// Takes no more proposals; those that wait surely are not applied.
    pub(crate) fn close(&self) {
        self.room.close();
        let waiting = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.bytes = 0;
            std::mem::take(&mut queue.slots)
        };
        for waiting in waiting.iter().filter_map(|slot| slot.0.lock().take()) {
            let _ = waiting.answer.send(Err(Missed::Refused(ProposeError::Stopped)));
        }
    }

    /// Takes a proposal back out of the queue; false when the proposer has it already.
    fn withdraw(&self, slot: &Slot) -> bool {
        let Some(waiting) = slot.0.lock().take() else { return false };
        let mut queue = self.queue.lock();
        queue.bytes = queue.bytes.saturating_sub(waiting.len);
        true
    }

    /// What waits, up to the bounds of a batch; nothing when enough is on its way.
    fn take_batch(&self, now: Instant) -> Option<Vec<Waiting>> {
        let mut queue = self.queue.lock();
        if queue.in_flight >= self.in_flight_max || (queue.in_flight > 0 && queue.bytes < self.pipeline_bytes) {
            return None;
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(slot) = queue.slots.front() {
            let mut content = slot.0.lock();
            let Some(waiting) = content.as_ref() else {
                drop(content);
                queue.slots.pop_front();
                continue;
            };
            if !batch.is_empty() && (bytes + waiting.len > self.batch_bytes || batch.len() == self.batch_proposals_max)
            {
                break;
            }
            let waiting = content.take().expect("checked above");
            drop(content);
            queue.slots.pop_front();
            queue.bytes -= waiting.len;
            if waiting.deadline <= now {
                let _ = waiting.answer.send(Err(Missed::Waited));
                continue;
            }
            bytes += waiting.len;
            batch.push(waiting);
        }
        if batch.is_empty() {
            return None;
        }
        queue.in_flight += 1;
        Some(batch)
    }

    /// Lets the tasks run that are ready to run: what they are about to propose comes into the same batch. That is no timer;
    /// when nothing else is ready it costs nothing.
    async fn gather(&self) {
        let waiting = || self.queue.lock().slots.len();
        let mut before = waiting();
        for _ in 0..GATHER_ROUNDS_MAX {
            tokio::task::yield_now().await;
            let now = waiting();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// Unix seconds, never below an earlier answer of this node.
    pub(crate) fn stamp(&self, now_unix_ms: i64) -> i64 {
        let now = now_unix_ms.div_euclid(1000);
        self.last_ts.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

impl Replica {
    /// Runs for as long as the replica: one batch after the other.
    pub(crate) async fn run_proposer(self: Arc<Self>) {
        loop {
            self.proposer.wake.notified().await;
            self.proposer.gather().await;
            while let Some(batch) = self.proposer.take_batch(Instant::now()) {
                if self.hand_over(batch).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn hand_over(&self, batch: Vec<Waiting>) -> Result<(), Stopped> {
        let proposer = self.proposer.clone();
        let (proposals, callers) = batch.into_iter().map(|w| (w.proposal, w.answer)).unzip();
        let callers = BatchCallers { proposer, callers };
        let command = Command::Batch { ts: self.proposer.stamp(self.env.clock.now_unix_ms()), proposals };
        self.ensure_genesis().await?;
        self.write(command.encode(), Some(Completion::new(move |result| callers.complete(result)))).await
    }

    /// Proposes `Genesis` when none is applied and none on its way. A second one is ignored at apply.
    pub(crate) async fn ensure_genesis(&self) -> Result<(), Stopped> {
        if self.is_initialised() || self.proposer.genesis_on_its_way.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let proposer = self.proposer.clone();
        let guard = ClearOnDrop(proposer);
        let done = Completion::new(move |_| drop(guard));
        self.write(self.genesis().encode(), Some(done)).await
    }

    async fn write(
        &self,
        command: Bytes,
        done: Option<Completion<ClientWriteResult<TypeConfig>>>,
    ) -> Result<(), Stopped> {
        self.raft.client_write_ff(CommandBytes(command), done).await.map_err(|_| Stopped)
    }

    /// Commits a command that is not a client's (a seal); ends with the entry, with leadership or with the core.
    pub(crate) async fn write_own(&self, command: &Command) -> bool {
        let (answer, receiver) = oneshot::channel();
        let done = Completion::new(move |result: ClientWriteResult<TypeConfig>| {
            let _ = answer.send(result.is_ok());
        });
        match self.write(command.encode(), Some(done)).await {
            Ok(()) => receiver.await.unwrap_or(false),
            Err(Stopped) => false,
        }
    }

    /// Commits a command of an administrator on the leader, and answers what apply says to it.
    pub(crate) async fn administer(&self, command: &Command, deadline: Instant) -> Result<Vec<Outcome>, ProposeError> {
        if self.is_stopped() {
            return Err(ProposeError::Stopped);
        }
        let leader = self.leader();
        if leader != Some(self.node_id) {
            return Err(ProposeError::NotLeader { leader });
        }
        let command = command.encode();
        let (len_bytes, len_bytes_max) = (command.len() as u64, self.proposer.proposal_bytes_max);
        if len_bytes > len_bytes_max {
            return Err(ProposeError::TooLarge { len_bytes, len_bytes_max });
        }
        let (answer, receiver) = oneshot::channel();
        let done = Completion::new(move |result: ClientWriteResult<TypeConfig>| {
            // Who asked may have gone away.
            let _ = answer.send(result);
        });
        let written = async {
            self.ensure_genesis().await?;
            self.write(command, Some(done)).await
        };
        written.await.map_err(|Stopped| ProposeError::Stopped)?;
        match timeout_at(deadline, receiver).await {
            Ok(Ok(Ok(done))) => Ok(done.data),
            Ok(Ok(Err(error))) => Err(match missed_by_core(error) {
                Missed::NotLeader(leader) => ProposeError::NotLeader { leader },
                Missed::LeaseExpired => ProposeError::NoQuorum,
                _ => ProposeError::OutcomeUnknown,
            }),
            // The core stopped, or the time is over: it may be in the log.
            Ok(Err(_)) | Err(_) => Err(ProposeError::OutcomeUnknown),
        }
    }

    /// See [`crate::group::Group::write`].
    pub(crate) async fn propose(&self, mut proposal: TxProposal, deadline: Instant) -> Result<Written, ProposeError> {
        let own_request = proposal.request.is_none();
        if own_request {
            proposal.request = Some(self.next_request());
        }
        // Here and never again: the leader, the log and the replicas carry the value as it is now.
        if let Some(settings) = self.database.settings() {
            proposal.compress(&settings);
        }
        let mut may_be_applied = false;
        // What is answered at the deadline when nothing may be applied.
        let mut reason = ProposeError::NoQuorum;
        let mut hint = None;
        loop {
            if self.is_stopped() {
                return Err(if may_be_applied { ProposeError::OutcomeUnknown } else { ProposeError::Stopped });
            }
            if Instant::now() >= deadline {
                return Err(if may_be_applied { ProposeError::OutcomeUnknown } else { reason });
            }
            let leader = hint.take().or_else(|| self.leader());
            let answer = match leader {
                None => {
                    reason = ProposeError::NoQuorum;
                    let _ = timeout_at(deadline, self.leader_other_than(None)).await;
                    continue;
                }
                Some(id) if id == self.node_id => self.propose_here(proposal.clone(), deadline).await,
                Some(id) => self.propose_there(id, proposal.clone(), deadline).await,
            };
            match answer {
                // Neither is remembered, so an earlier attempt may still come to something.
                Ok(Written::Rejected(Rejection::RequestTooOld | Rejection::NotInitialised)) if may_be_applied => {
                    return Err(ProposeError::OutcomeUnknown);
                }
                Ok(Written::Rejected(Rejection::RequestTooOld)) if own_request => {
                    // This replica is far behind, so its floor was too old; the id was never used for anything else.
                    self.pause(leader, deadline).await;
                    let Ok(Ok(point)) = timeout_at(deadline, self.read_index(deadline)).await else { continue };
                    proposal.request = Some(self.proposer.next_request(point.index));
                }
                Ok(written) => return Ok(written),
                Err(Missed::NotLeader(other)) => {
                    reason = ProposeError::NoQuorum;
                    hint = other.filter(|id| Some(*id) != leader);
                    if hint.is_none() {
                        self.pause(leader, deadline).await;
                    }
                }
                Err(Missed::LeaseExpired) => {
                    reason = ProposeError::NoQuorum;
                    self.pause(leader, deadline).await;
                }
                Err(Missed::Waited) => reason = ProposeError::NoQuorum,
                Err(Missed::Refused(ProposeError::Unavailable { leader: id })) => {
                    reason = ProposeError::Unavailable { leader: id };
                    self.pause(leader, deadline).await;
                }
                Err(Missed::Refused(error)) if may_be_applied => {
                    reason = error;
                    self.pause(leader, deadline).await;
                }
                Err(Missed::Refused(error)) => return Err(error),
                Err(Missed::Discarded | Missed::OnItsWay) => {
                    may_be_applied = true;
                    self.pause(leader, deadline).await;
                }
                Err(Missed::CoreStopped) => return Err(ProposeError::OutcomeUnknown),
            }
        }
    }

    /// A request id for what is proposed from now on.
    pub(crate) fn next_request(&self) -> RequestId {
        self.proposer.next_request(self.applied().log_id.map_or(LogIndex(0), |log_id| log_id.index))
    }

    fn quotas(&self) -> Quotas {
        let Some(settings) = self.database.settings() else { return Quotas::default() };
        let used_bytes = if settings.quota_bytes > 0 { self.database.size_bytes() } else { 0 };
        Quotas { bytes: settings.quota_bytes, tx_per_second: settings.quota_tx_per_second, used_bytes }
    }

    /// One attempt on this node.
    async fn propose_here(&self, proposal: TxProposal, deadline: Instant) -> Result<Written, Missed> {
        match self.outcome_here(proposal, deadline).await? {
            Outcome::Rejected(rejection) => Ok(Written::Rejected(rejection)),
            Outcome::Pruned { .. } => unreachable!("apply answers a proposal as a proposal"),
            Outcome::Committed { tx, .. } => match self.database.header(tx) {
                Ok(header) => Ok(Written::Committed(header)),
                Err(error) => {
                    tracing::error!(tx = tx.get(), %error, "the header of a committed transaction cannot be read");
                    Err(Missed::OnItsWay)
                }
            },
        }
    }

    async fn outcome_here(&self, proposal: TxProposal, deadline: Instant) -> Answer {
        let mut turn = match proposal.foreign.as_ref().map(|foreign| foreign.id) {
            Some(tx) => Some(self.turn_in_queue(tx, deadline).await?),
            None => None,
        };
        let (slot, receiver) = tokio::select! {
            biased;
            queued = self.proposer.enqueue(proposal, deadline, || self.quotas()) => queued.map_err(Missed::Refused)?,
            () = self.leader_other_than(Some(self.node_id)) => return Err(Missed::NotLeader(self.leader())),
        };
        if let Some(turn) = &mut turn {
            turn.hand_on();
        }
        let answer = self.answer(&slot, receiver, deadline).await;
        if let (Some(turn), Ok(Outcome::Committed { .. })) = (turn, &answer) {
            turn.committed();
        }
        answer
    }

    /// Waits until an imported transaction follows what is in the queue.
    async fn turn_in_queue(&self, tx: TxId, deadline: Instant) -> Result<Turn, Missed> {
        tokio::select! {
            biased;
            turn = self.queued.wait(tx, self.applied.clone()) => turn.ok_or(Missed::Refused(ProposeError::Stopped)),
            () = self.leader_other_than(Some(self.node_id)) => Err(Missed::NotLeader(self.leader())),
            () = sleep_until(deadline) => Err(Missed::Waited),
        }
    }

    async fn answer(&self, slot: &Arc<Slot>, mut receiver: oneshot::Receiver<Answer>, deadline: Instant) -> Answer {
        let given_up = GiveUp { proposer: &self.proposer, slot };
        tokio::select! {
            biased;
            answer = &mut receiver => return answer.unwrap_or(Err(Missed::CoreStopped)),
            () = self.leader_other_than(Some(self.node_id)) => {}
            () = sleep_until(deadline) => {}
        }
        if given_up.withdraw() {
            return Err(match self.leader() {
                Some(id) if id == self.node_id => Missed::Waited,
                other => Missed::NotLeader(other),
            });
        }
        // It was handed over; perhaps the answer came in between.
        receiver.try_recv().unwrap_or(Err(Missed::OnItsWay))
    }

    /// One attempt on the leader, which is another node.
    async fn propose_there(&self, leader: u64, proposal: TxProposal, deadline: Instant) -> Result<Written, Missed> {
        let answer = tokio::select! {
            biased;
            answer = self.forward.forward_propose(self.group, leader, proposal, deadline) => answer,
            // The old leader may never answer; a new one can tell what became of the request.
            () = self.leader_other_than(Some(leader)) => Err(ForwardError::AnswerLost),
            () = sleep_until(deadline) => Err(ForwardError::AnswerLost),
        };
        answer.map_err(|error| match error {
            ForwardError::NotSent => Missed::Refused(ProposeError::Unavailable { leader }),
            ForwardError::AnswerLost | ForwardError::Remote(ProposeError::OutcomeUnknown) => Missed::OnItsWay,
            ForwardError::Remote(ProposeError::NotLeader { leader }) => Missed::NotLeader(leader),
            ForwardError::Remote(ProposeError::NoQuorum) => Missed::LeaseExpired,
            ForwardError::Remote(ProposeError::Stopped) => Missed::Refused(ProposeError::Unavailable { leader }),
            ForwardError::Remote(error) => Missed::Refused(error),
        })
    }

    /// See [`crate::group::Group::serve_propose`].
    pub(crate) async fn serve_propose(&self, proposal: TxProposal, deadline: Instant) -> Result<Written, ProposeError> {
        if self.is_stopped() {
            return Err(ProposeError::Stopped);
        }
        loop {
            let leader = self.leader();
            if leader != Some(self.node_id) {
                return Err(ProposeError::NotLeader { leader });
            }
            return match self.propose_here(proposal.clone(), deadline).await {
                Ok(written) => Ok(written),
                Err(Missed::NotLeader(leader)) => Err(ProposeError::NotLeader { leader }),
                Err(Missed::LeaseExpired) if Instant::now() < deadline => {
                    self.pause(leader, deadline).await;
                    continue;
                }
                Err(Missed::LeaseExpired | Missed::Waited) => Err(ProposeError::NoQuorum),
                Err(Missed::Refused(error)) => Err(error),
                Err(Missed::Discarded | Missed::OnItsWay | Missed::CoreStopped) => Err(ProposeError::OutcomeUnknown),
            };
        }
    }

    /// Lets a little time pass before the next attempt; less when the leader changes.
    pub(crate) async fn pause(&self, leader: Option<u64>, deadline: Instant) {
        let until = deadline.min(Instant::now() + RETRY_PAUSE);
        let _ = timeout_at(until, self.leader_other_than(leader)).await;
    }
}

/// The consensus core does not take calls any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

struct ClearOnDrop(Arc<Proposer>);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.genesis_on_its_way.store(false, Ordering::Release);
    }
}

/// Takes a proposal out of the queue when its caller goes away.
struct GiveUp<'a> {
    proposer: &'a Proposer,
    slot: &'a Slot,
}

impl GiveUp<'_> {
    fn withdraw(&self) -> bool {
        self.proposer.withdraw(self.slot)
    }
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.proposer.withdraw(self.slot);
    }
}
