//! Forgetting values: the order of a leader, and the work of each replica afterwards.
//!
//! Every replica writes its own sealed segments again, in its own time. Before it touches one, its purge mark passes it: from
//! then on no follower is sent log entries of it, but files, so what is sent is always what was appended. While a snapshot
//! is being sent nothing is written again, because its files must stay what its manifest says.

use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::LogIndex;
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{Command, Prune, PruneTarget};
use tokio::time::Instant;

use crate::error::ProposeError;
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
                    self.seals_due.notify_one();
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
