//! Reading: how far this replica must have applied before a read may begin (R5).
//!
//! A linearizable read needs a read index: the leader's commit position, confirmed by a quorum after the read began.
//! One question to the quorum serves every read that waited when it was asked; reads that come while it runs wait for
//! the next one. A follower asks the leader, in one hop, and shares the answer in the same way.
//!
//! ```text
//! reads:   a b c        d e f g            h
//! rounds:  [--- 1 ---]  [--- 2 ---]  ...
//!          serves a     serves b c d e f g
//! ```

use std::sync::Arc;

use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_storage::plant::{Plant, is_planted};
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::ReadError;
use crate::forward::{ForwardError, ReadIndex};
use crate::group::{Level, ReadPoint, Replica};
use crate::state_machine::Applied;

/// How the last round ended, for those whose time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// Worth another round.
    Again(ReadError),
    /// This replica cannot answer.
    Final(ReadError),
}

struct Waiter {
    deadline: Instant,
    /// Came from another node: never forwarded again.
    here_only: bool,
    answer: oneshot::Sender<Result<ReadIndex, ReadError>>,
}

/// Reads that wait for the next round.
#[derive(Default)]
pub(crate) struct Rounds {
    waiting: Mutex<Vec<Waiter>>,
    wake: Notify,
}

impl std::fmt::Debug for Rounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} reads wait for a read index", self.waiting.lock().len())
    }
}

impl Rounds {
    fn join(&self, here_only: bool, deadline: Instant) -> oneshot::Receiver<Result<ReadIndex, ReadError>> {
        let (answer, receiver) = oneshot::channel();
        self.waiting.lock().push(Waiter { deadline, here_only, answer });
        self.wake.notify_one();
        receiver
    }

    /// Everybody who waits learns that the replica has stopped.
    pub(crate) fn close(&self) {
        self.waiting.lock().clear();
    }
}

impl Replica {
    /// Runs for as long as the replica: one round after the other while somebody waits.
    pub(crate) async fn run_rounds(self: Arc<Self>) {
        let mut waiters: Vec<Waiter> = Vec::new();
        loop {
            if waiters.is_empty() {
                self.rounds.wake.notified().await;
            }
            waiters.append(&mut self.rounds.waiting.lock());
            // A caller whose time is over has gone.
            waiters.retain(|w| !w.answer.is_closed());
            let leader = self.leader();
            if leader != Some(self.node_id) {
                for refused in waiters.extract_if(.., |w| w.here_only) {
                    let _ = refused.answer.send(Err(ReadError::NotLeader { leader }));
                }
            }
            let Some(last_deadline) = waiters.iter().map(|w| w.deadline).max() else { continue };
            match self.round(leader, last_deadline).await {
                Ok(point) => {
                    for waiter in waiters.drain(..) {
                        let _ = waiter.answer.send(Ok(point));
                    }
                }
                Err(Failure::Final(error)) => {
                    for waiter in waiters.drain(..) {
                        let _ = waiter.answer.send(Err(error.clone()));
                    }
                }
                Err(Failure::Again(error)) => {
                    let now = Instant::now();
                    for late in waiters.extract_if(.., |w| w.deadline <= now) {
                        let _ = late.answer.send(Err(error.clone()));
                    }
                    if !waiters.is_empty() {
                        self.pause(leader, last_deadline).await;
                    }
                }
            }
        }
    }

    async fn round(&self, leader: Option<u64>, deadline: Instant) -> Result<ReadIndex, Failure> {
        if self.is_stopped() {
            return Err(Failure::Final(ReadError::Stopped));
        }
        let asked = async {
            match leader {
                None => {
                    self.leader_other_than(None).await;
                    Err(Failure::Again(ReadError::NoQuorum))
                }
                Some(id) if id == self.node_id => self.ask_quorum(deadline).await,
                Some(id) => self.ask_leader(id, deadline).await,
            }
        };
        tokio::select! {
            biased;
            point = asked => point,
            () = self.leader_other_than(leader) => Err(Failure::Again(ReadError::NoQuorum)),
            () = sleep_until(deadline) => Err(Failure::Again(match leader {
                Some(id) if id != self.node_id => ReadError::Unavailable { leader: id },
                _ => ReadError::NoQuorum,
            })),
        }
    }

    /// On the leader: its commit position, confirmed by a quorum, and applied here.
    async fn ask_quorum(&self, deadline: Instant) -> Result<ReadIndex, Failure> {
        if is_planted(Plant::UnconfirmedReadIndex) {
            let applied = self.applied();
            return Ok(ReadIndex { index: applied.log_id.map_or(LogIndex(0), |id| id.index), tx: applied.tx });
        }
        let linearizer = match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => linearizer,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
                return Err(Failure::Again(ReadError::NoQuorum));
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                return Err(Failure::Again(ReadError::NoQuorum));
            }
            Err(RaftError::Fatal(_)) => return Err(Failure::Final(ReadError::Stopped)),
        };
        let index = LogIndex(linearizer.read_log_id().index());
        self.wait_applied_index(index, deadline).await.map_err(Failure::Again)?;
        Ok(ReadIndex { index, tx: self.applied().tx })
    }

    /// On a follower: the same, from the leader.
    async fn ask_leader(&self, leader: u64, deadline: Instant) -> Result<ReadIndex, Failure> {
        self.forward.forward_read_index(self.group, leader, deadline).await.map_err(|error| {
            Failure::Again(match error {
                ForwardError::NotSent | ForwardError::AnswerLost => ReadError::Unavailable { leader },
                ForwardError::Remote(ReadError::Stopped) => ReadError::Unavailable { leader },
                ForwardError::Remote(_) => ReadError::NoQuorum,
            })
        })
    }

    /// A read index that is newer than this call, from wherever the leader is.
    pub(crate) async fn read_index(&self, deadline: Instant) -> Result<ReadIndex, ReadError> {
        self.join_round(false, deadline).await
    }

    /// See [`crate::group::Group::serve_read_index`].
    pub(crate) async fn serve_read_index(&self, deadline: Instant) -> Result<ReadIndex, ReadError> {
        self.join_round(true, deadline).await
    }

    async fn join_round(&self, here_only: bool, deadline: Instant) -> Result<ReadIndex, ReadError> {
        if self.is_stopped() {
            return Err(ReadError::Stopped);
        }
        match timeout_at(deadline, self.rounds.join(here_only, deadline)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(match self.leader() {
                Some(id) if id != self.node_id => ReadError::Unavailable { leader: id },
                _ => ReadError::NoQuorum,
            }),
        }
    }

    /// See [`crate::group::Group::barrier`].
    pub(crate) async fn barrier(&self, level: Level, deadline: Instant) -> Result<ReadPoint, ReadError> {
        match level {
            Level::Local => {}
            Level::Linearizable if is_planted(Plant::SkipReadBarrier) => {}
            Level::Linearizable => {
                let point = self.read_index(deadline).await?;
                if !is_planted(Plant::ServeBeforeCaughtUp) {
                    self.wait_applied_index(point.index, deadline).await?;
                }
            }
            Level::AtLeast(asked) => {
                if self.applied().tx < asked {
                    let arrives = async {
                        let mut applied = self.applied.clone();
                        applied.wait_for(|applied| applied.tx >= asked).await.is_ok()
                    };
                    tokio::select! {
                        biased;
                        true = arrives => {}
                        exists = self.exists(asked, deadline) => exists?,
                    }
                }
            }
        }
        Ok(ReadPoint { tx: self.applied().tx })
    }

    /// Waits for a transaction, unless a quorum denies that it exists or nobody can be asked.
    async fn exists(&self, asked: TxId, deadline: Instant) -> Result<(), ReadError> {
        let latest = self.read_index(deadline).await?.tx;
        if latest < asked {
            return Err(ReadError::BeyondLedger { asked, latest });
        }
        self.wait_applied(deadline, |applied| applied.tx >= asked).await
    }

    async fn wait_applied_index(&self, index: LogIndex, deadline: Instant) -> Result<(), ReadError> {
        self.wait_applied(deadline, |applied| applied.log_id.is_some_and(|id| id.index >= index)).await
    }

    /// See [`crate::group::Group::wait_applied`].
    pub(crate) async fn wait_applied(
        &self,
        deadline: Instant,
        reached: impl Fn(&Applied) -> bool,
    ) -> Result<(), ReadError> {
        let mut applied = self.applied.clone();
        if reached(&applied.borrow_and_update()) {
            return Ok(());
        }
        tokio::select! {
            biased;
            reached = applied.wait_for(|a| reached(a)) => reached.map(drop).map_err(|_| ReadError::Stopped),
            () = self.core_stopped() => Err(ReadError::Stopped),
            () = sleep_until(deadline) => Err(ReadError::Lagging),
        }
    }
}
