//! Forgetting values: the order of a leader, and the work of each replica afterwards.
//!
//! Every replica writes its own sealed segments again, in its own time. Before it touches one, its purge mark passes it: from
//! then on no follower is sent log entries of it, but files, so what is sent is always what was appended. While a snapshot
//! is being sent nothing is written again, because its files must stay what its manifest says.

use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Citation, Command, ProposalEntry, Prune, PruneTarget};
use tokio::time::Instant;

use crate::error::ProposeError;
use crate::forward::{ForwardError, Written};
use crate::group::Replica;
use crate::strand::Chain;

/// How long to wait before looking again at what could not be done yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

enum Step {
    /// There may be more to do at once.
    Done,
    /// Nothing can be done for now.
    Waits,
    Stopped,
}

impl Replica {
    /// See [`crate::group::Group::prune`].
    pub(crate) async fn prune(&self, mut prune: Prune, deadline: Instant) -> Result<Outcome, ProposeError> {
        if let PruneTarget::Before { ts, .. } = &mut prune.target {
            *ts = self.proposer.stamp(self.env.clock.now_unix_ms());
        }
        let outcomes = self.administer(&Command::Prune(prune), deadline).await?;
        Ok(outcomes.into_iter().next().expect("apply answers a prune with one outcome"))
    }

    /// See [`crate::group::Group::truncate`].
    pub(crate) async fn truncate(
        &self,
        order: Citation,
        before: TxId,
        entries: Vec<ProposalEntry>,
        deadline: Instant,
    ) -> Result<Written, ProposeError> {
        let mut marker = PruneTarget::marker(Some(self.next_request()), before, entries);
        if let Some(settings) = self.database.settings() {
            marker.compress(&settings);
        }
        let prune = Prune { order: Some(order), target: PruneTarget::Before { tx: before, ts: 0, marker } };
        let mut may_be_applied = false;
        loop {
            let leader = self.leader();
            let answer = match leader {
                None => Err(ProposeError::NoQuorum),
                Some(id) if id == self.node_id => self.serve_truncation(prune.clone(), deadline).await,
                Some(id) => self.truncate_there(id, prune.clone(), deadline).await,
            };
            let error = match answer {
                // Whoever remembers the first attempt knows its outcome; nobody else can tell.
                Ok(Written::Rejected(Rejection::RequestTooOld)) if may_be_applied => {
                    return Err(ProposeError::OutcomeUnknown);
                }
                Ok(written) => return Ok(written),
                Err(error) => error,
            };
            may_be_applied |= error.may_be_applied();
            let again = match error {
                ProposeError::NotLeader { .. }
                | ProposeError::NoQuorum
                | ProposeError::Unavailable { .. }
                | ProposeError::OutcomeUnknown => !self.is_stopped() && Instant::now() < deadline,
                ProposeError::Overloaded { .. }
                | ProposeError::TooLarge { .. }
                | ProposeError::LimitExceeded(_)
                | ProposeError::Stopped => false,
            };
            if !again {
                return Err(if may_be_applied { ProposeError::OutcomeUnknown } else { error });
            }
            self.pause(leader, deadline).await;
        }
    }

    async fn truncate_there(&self, leader: u64, prune: Prune, deadline: Instant) -> Result<Written, ProposeError> {
        let answer = tokio::select! {
            biased;
            answer = self.forward.forward_truncation(self.group, leader, prune, deadline) => answer,
            () = self.leader_other_than(Some(leader)) => Err(ForwardError::AnswerLost),
        };
        answer.map_err(|error| match error {
            ForwardError::NotSent | ForwardError::Remote(ProposeError::Stopped) => ProposeError::Unavailable { leader },
            ForwardError::AnswerLost => ProposeError::OutcomeUnknown,
            ForwardError::Remote(error) => error,
        })
    }

    /// See [`crate::group::Group::serve_truncation`].
    pub(crate) async fn serve_truncation(&self, prune: Prune, deadline: Instant) -> Result<Written, ProposeError> {
        match self.prune(prune, deadline).await? {
            Outcome::Rejected(rejection) => Ok(Written::Rejected(rejection)),
            Outcome::Committed { tx, .. } => self.database.header(tx).map(Written::Committed).map_err(|error| {
                tracing::error!(%tx, %error, "the header of a committed transaction cannot be read");
                ProposeError::OutcomeUnknown
            }),
            Outcome::Pruned { .. } => unreachable!("a truncation is a transaction"),
        }
    }

    /// Runs for as long as the replica.
    pub(crate) async fn run_pruner(self: Arc<Self>) {
        let mut applied = self.applied.clone();
        // A failure is said once, not at each attempt.
        let mut failing = false;
        loop {
            while self.database.has_pruning_to_do() {
                match self.prune_step(&mut failing).await {
                    Step::Done => {}
                    Step::Waits => tokio::time::sleep(LOOK_INTERVAL).await,
                    Step::Stopped => return,
                }
            }
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    async fn prune_step(&self, failing: &mut bool) -> Step {
        if self.is_stopped() {
            return Step::Stopped;
        }
        if self.state_machine.is_snapshot_in_use() {
            return Step::Waits;
        }
        let Some(through) = self.database.purge_mark().map(|id| id.index) else { return self.release().await };
        let database = self.database.clone();
        match self.strands.background.run(move || database.prune_step(through)).await {
            Err(_) => Step::Stopped,
            Ok(Err(error)) if self.database.ledger().is_poisoned() => {
                self.failure.fail("a segment without its pruned values cannot take its place", &error);
                Step::Stopped
            }
            Ok(Err(error)) => {
                if !std::mem::replace(failing, true) {
                    tracing::error!(group = %self.group, error = %Chain(&error), "pruned values cannot leave the disk");
                }
                Step::Waits
            }
            Ok(Ok(progress)) => {
                *failing = false;
                if let Some(segment) = progress.rewritten {
                    tracing::info!(group = %self.group, segment, "pruned values are gone from disk");
                    // It has a digest of its own now, and until that is sealed nobody can tell that it has rotted.
                    self.look_for_seals();
                    return Step::Done;
                }
                if progress.needed_by_log { self.release().await } else { Step::Waits }
            }
        }
    }

    /// Moves the purge mark as far as it can go, so that segments may be written again.
    async fn release(&self) -> Step {
        let mark = || self.database.purge_mark().map(|id| id.index).unwrap_or(LogIndex(0));
        let before = mark();
        self.move_purge_mark().await;
        if mark() > before { Step::Done } else { Step::Waits }
    }
}
