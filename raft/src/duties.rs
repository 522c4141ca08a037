//! What a leader does without being asked: the first command of a database, seals of closed segments, files for followers
//! that are far behind, and a look at the disks: for want of room it refuses user writes, or hands the leadership to a node
//! that has some.
//!
//! A follower that misses many closed segments gets them as files. openraft sends a snapshot only to a follower that
//! needs entries below the purge mark, so the leader takes a snapshot and moves the mark to the end of the newest closed
//! segment. Nothing is lost by that: purging keeps the bytes.

use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::{LogId, LogIndex};
use alhambra_storage::command::Command;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::Instant;

use crate::disk;
use crate::group::Replica;
use crate::strand::Chain;
use crate::types::from_raft_log_id;

/// How often a leader looks after followers that are behind.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A leader without room tries to hand over once in this time.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(5);

/// So long may a segment of a leader be another one than is sealed, before another node is asked to lead: the dispute may need the
/// vote of a follower, which takes no files from this one.
const DISPUTE_WAIT: Duration = Duration::from_secs(15);

/// After this long without a snapshot the leader gives up and looks again later.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(30);

impl Replica {
    /// Runs for as long as the replica.
    pub(crate) async fn run_duties(self: Arc<Self>) {
        let mut server = self.watch_server();
        let mut led_from = None;
        let mut looked_at = None;
        let mut failing = false;
        let mut handed_over = None;
        let mut disputed_since = None;
        loop {
            let leads = server.borrow_and_update().state.is_leader();
            if !leads {
                led_from = None;
                self.proposer.set_limit(None);
                if server.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let end = self.database.ledger().last_log_id().map_or(LogIndex(0), |id| id.index);
            let led_from = *led_from.get_or_insert(end);
            if self.ensure_genesis().await.is_err() {
                return;
            }
            self.look_at_disks(&mut handed_over).await;
            self.look_at_disputes(&mut disputed_since, &mut handed_over).await;
            // What is applied may not be flushed here yet, and is not sealed before.
            let now = Some((self.applied().log_id, self.database.ledger().flushed()));
            let are_due = self.scrub.take_seals_due();
            if now != looked_at || are_due {
                looked_at = if self.propose_seals(&mut failing).await { now } else { None };
            }
            if self.someone_lags(led_from) {
                self.move_purge_mark().await;
            }
            tokio::select! {
                biased;
                changed = server.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.seals_due.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Administration is always taken, so `systemdb` has no limit.
    async fn look_at_disks(&self, handed_over: &mut Option<Instant>) {
        if self.group.get() == 0 {
            return;
        }
        let metrics = self.raft_metrics();
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let limit = disk::limit(&voters, |node| self.forward.disk(node));
        self.proposer.set_limit(limit);
        let low = |node: u64| self.forward.disk(node).is_some_and(|report| report.low);
        if limit.is_some() || !low(self.node_id) || handed_over.is_some_and(|at| at.elapsed() < HAND_OVER_INTERVAL) {
            return;
        }
        // A majority has room.
        self.ask_to_lead("the disk here is low", |node| !low(node), handed_over).await;
    }

    async fn look_at_disputes(&self, disputed_since: &mut Option<Instant>, handed_over: &mut Option<Instant>) {
        if self.database.health() == alhambra_storage::Health::Sound {
            *disputed_since = None;
            return;
        }
        let waits = disputed_since.get_or_insert_with(Instant::now).elapsed() < DISPUTE_WAIT;
        if waits || handed_over.is_some_and(|at| at.elapsed() < HAND_OVER_INTERVAL) {
            return;
        }
        self.ask_to_lead("a segment here is not the sealed one", |_| true, handed_over).await;
    }

    /// Asks a voter to lead; of those that are fit who has most of the log, because that one takes over soonest.
    async fn ask_to_lead(&self, why: &str, fit: impl Fn(u64) -> bool, handed_over: &mut Option<Instant>) {
        let metrics = self.raft_metrics();
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let followers = metrics.replication.unwrap_or_default().into_iter();
        let others = followers.filter(|(node, _)| *node != self.node_id && voters.contains(node) && fit(*node));
        if let Some((heir, Some(_))) = others.max_by_key(|(_, matched)| matched.map(|id| id.index)) {
            tracing::info!(group = %self.group, heir, why, "another node is asked to lead");
            *handed_over = Some(Instant::now());
            // The core is gone: nobody needs to lead.
            let _ = self.raft.trigger().transfer_leader(heir).await;
        }
    }

    /// False when not all could be read or were taken, so that it is to be done again. `failing` is said once.
    async fn propose_seals(&self, failing: &mut bool) -> bool {
        let database = self.database.clone();
        let seals = match self.strands.background.run(move || database.pending_seals()).await {
            Ok(Ok(seals)) => seals,
            Ok(Err(e)) => {
                if !std::mem::replace(failing, true) {
                    tracing::error!(group = %self.group, error = %Chain(&e), "closed segments cannot be sealed");
                }
                return false;
            }
            Err(_) => return false,
        };
        *failing = false;
        for seal in seals {
            let segment = seal.segment;
            if !self.write_own(&Command::Seal(seal)).await {
                return false;
            }
            tracing::debug!(group = %self.group, segment, "segment sealed");
        }
        true
    }

    /// Whether a follower misses so many closed segments that files are better, and would not get them yet.
    fn someone_lags(&self, led_from: LogIndex) -> bool {
        let Some(followers) = self.raft_metrics().replication else { return false };
        let closed: Vec<LogId> = self.closed_segments();
        let purged = self.database.purge_mark().map(|id| id.index);
        followers.iter().filter(|(id, _)| **id != self.node_id).any(|(_, matched)| {
            // A follower that has not answered yet has no entries of this leader: it may have all before.
            let has = matched.as_ref().map_or(led_from, |id| LogIndex(id.index));
            let missing = closed.iter().filter(|last| last.index > has).count() as u64;
            missing > self.tuning.seed_lag_segments && purged <= Some(has)
        })
    }

    /// Last log ids of the segments that are closed and wholly applied, oldest first.
    fn closed_segments(&self) -> Vec<LogId> {
        let applied = self.applied().log_id;
        let segments = self.database.ledger().segments();
        segments.iter().filter(|s| s.closed && Some(s.last_log_id) <= applied).map(|s| s.last_log_id).collect()
    }

    /// Takes a snapshot and moves the purge mark to the end of the newest closed segment that it covers.
    pub(crate) async fn move_purge_mark(&self) {
        let Some(boundary) = self.closed_segments().last().copied() else { return };
        if self.database.purge_mark() >= Some(boundary) {
            return;
        }
        if self.raft.trigger().snapshot().await.is_err() {
            return;
        }
        let mut metrics = self.raft.metrics();
        let taken = async {
            loop {
                let snapshot = metrics.borrow_watched().snapshot.as_ref().map(from_raft_log_id);
                if snapshot >= Some(boundary) {
                    return true;
                }
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
        };
        if tokio::time::timeout(SNAPSHOT_WAIT, taken).await == Ok(true) {
            tracing::info!(group = %self.group, %boundary, "followers that are behind get files");
            // The core is gone: nothing to do any more.
            let _ = self.raft.trigger().purge_log(boundary.index.get()).await;
        }
    }
}
