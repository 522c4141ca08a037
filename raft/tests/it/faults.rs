//! Nodes that go down: nothing acknowledged is lost (R4), nobody waits for ever, and nothing is written twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_raft::error::{ProposeError, ReadError};
use alhambra_raft::group::{Group, Health, Level};
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::RequestId;
use alhambra_storage::vfs::mem::Crash;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::cluster::{Cluster, after, get, peek, put, revisions, run, set, until};

/// Writers that never stop, and what they were told.
struct Load {
    acknowledged: Arc<Mutex<BTreeMap<String, TxId>>>,
    unknown: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(groups: &[Arc<Group>], tag: &str) -> Self {
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        let unknown = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (g, group) in groups.iter().enumerate() {
            for w in 0..4 {
                let (group, acknowledged, unknown) = (group.clone(), acknowledged.clone(), unknown.clone());
                let tag = format!("{tag}-{g}-{w}");
                tasks.push(tokio::spawn(async move {
                    for n in 0.. {
                        let key = format!("{tag}-{n}");
                        match group.propose(set(&key, "v"), after(3_000)).await {
                            Ok(Outcome::Committed { tx, .. }) => drop(acknowledged.lock().insert(key, tx)),
                            Ok(other) => panic!("not committed: {other:?}"),
                            Err(e) if e.may_be_applied() => unknown.lock().push(key),
                            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                        }
                    }
                }));
            }
        }
        Self { acknowledged, unknown, tasks }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().len()
    }

    fn stop(self) -> (BTreeMap<String, TxId>, Vec<String>) {
        self.tasks.iter().for_each(JoinHandle::abort);
        (self.acknowledged.lock().clone(), self.unknown.lock().clone())
    }
}

/// Every acknowledged key is there exactly once, in the transaction that was acknowledged; an unknown one at most once.
async fn assert_kept(cluster: &Cluster, acknowledged: &BTreeMap<String, TxId>, unknown: &[String]) {
    cluster.assert_equal().await;
    for id in cluster.up() {
        let group = cluster.group(id);
        let snapshot = group.database().snapshot();
        for (key, tx) in acknowledged {
            let stored: bytes::Bytes = [b"\0".as_slice(), key.as_bytes()].concat().into();
            let version =
                snapshot.get(&stored).unwrap().unwrap_or_else(|| panic!("node {id} lost {key} of transaction {tx}"));
            assert_eq!((version.tx, snapshot.revisions(&stored).unwrap()), (*tx, 1), "{key} on node {id}");
        }
        for key in unknown {
            assert!(revisions(&group, key) <= 1, "{key} is written twice on node {id}");
        }
    }
}

#[test]
fn the_leader_is_killed_under_load() {
    run(async {
        let mut cluster = Cluster::three().await;
        let old = cluster.leader().await;
        let others: Vec<_> = (1..=3).filter(|id| *id != old).map(|id| cluster.group(id)).collect();
        let load = Load::start(&others, "w");
        until("some writes", || load.count() > 50).await;
        cluster.crash(old, Crash::Process).await;
        let began = tokio::time::Instant::now();
        let before = load.count();
        until("writes go on", || load.count() > before + 20).await;
        assert!(began.elapsed().as_millis() < 3_000, "writes went on after {:?}", began.elapsed());
        let (acknowledged, unknown) = load.stop();
        cluster.start(old).await;
        assert_kept(&cluster, &acknowledged, &unknown).await;
    });
}

/// Writes until every node loses power at the same moment, starts them again, and does so four times.
async fn lose_power_under_load(lying_disks: bool) {
    let mut cluster = Cluster::formed(3, 4_096, true).await;
    let mut all = BTreeMap::new();
    let mut all_unknown = Vec::new();
    for round in 0..4_u64 {
        let groups: Vec<_> = (1..=3).map(|id| cluster.group(id)).collect();
        if lying_disks {
            (1..=3).for_each(|id| cluster.let_disk_lie(id));
        }
        let load = Load::start(&groups, &format!("round{round}"));
        until("some writes", || load.count() > 60).await;
        let acknowledged = load.acknowledged.lock().clone();
        let how = if round % 2 == 0 { Crash::PowerLoss } else { Crash::PowerLossTorn { seed: round } };
        cluster.crash_all(&[1, 2, 3], how).await;
        let (_, unknown) = load.stop();
        all.extend(acknowledged);
        all_unknown.extend(unknown);
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster.leader().await;
    }
    assert!(all.len() > 240);
    assert_kept(&cluster, &all, &all_unknown).await;
}

#[test]
fn power_fails_everywhere_at_once() {
    run(lose_power_under_load(false));
}

/// The test above notices when something is acknowledged before it is durable: a key is gone, or a node misses log entries
/// that its marks say were durable.
#[test]
#[should_panic(expected = "node 1 ")]
fn power_fails_everywhere_at_once_and_the_disks_lied() {
    run(lose_power_under_load(true));
}

#[test]
fn two_of_three_nodes_are_down() {
    run(async {
        let mut cluster = Cluster::three().await;
        put(&cluster.group(1), "k", "v").await.unwrap();
        let leader = cluster.leader().await;
        let down: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
        for id in &down {
            cluster.crash(*id, Crash::PowerLoss).await;
        }
        let group = cluster.group(leader);
        let began = tokio::time::Instant::now();
        // The first is taken by a leader that does not know yet; the others come when it does.
        let first = group.propose(set("first", "v"), after(2_000)).await;
        assert!(matches!(first, Err(ProposeError::OutcomeUnknown)), "{first:?}");
        let late = group.propose(set("late", "v"), after(1_000)).await;
        assert_eq!(late, Err(ProposeError::NoQuorum));
        let read = group.barrier(Level::Linearizable, after(1_000)).await;
        assert_eq!(read, Err(ReadError::NoQuorum));
        let at_least = group.barrier(Level::AtLeast(TxId(1_000)), after(1_000)).await;
        assert_eq!(at_least, Err(ReadError::NoQuorum));
        assert_eq!(
            began.elapsed().as_millis(),
            5_000,
            "every call ends by its deadline, none earlier without an answer"
        );
        assert!(group.barrier(Level::Local, after(1)).await.is_ok());

        cluster.start(down[0]).await;
        put(&group, "again", "v").await.unwrap();
        assert_eq!(peek(&group, "late"), None, "what surely was not applied never is");
        assert!(revisions(&group, "first") <= 1);
        cluster.assert_equal().await;
    });
}

#[test]
fn a_retry_across_a_leader_change_never_commits_twice() {
    run(async {
        let cluster = Cluster::three().await;
        for round in 0..6_u64 {
            let old = cluster.leader().await;
            let key = format!("k{round}");
            let mut proposal = set(&key, "v");
            proposal.request = Some(RequestId { client: [9; 16], sequence: round + 1, floor: LogIndex(0) });
            // The leader hands it to its followers and is cut off at some moment on the way.
            let first = tokio::spawn({
                let (group, proposal) = (cluster.group(old), proposal.clone());
                async move { group.propose(proposal, after(1_000)).await }
            });
            tokio::time::sleep(std::time::Duration::from_millis(round)).await;
            cluster.isolate(old, true);
            let new = cluster.leader_other_than(old).await;
            let outcome = cluster.group(new).propose(proposal.clone(), after(5_000)).await.unwrap();
            cluster.isolate(old, false);
            if let Ok(early) = first.await.unwrap() {
                assert_eq!(early, outcome, "round {round}");
            }
            let retried = cluster.group(old).propose(proposal, after(10_000)).await.unwrap();
            assert_eq!(retried, outcome, "round {round}");
            cluster.assert_equal().await;
            for id in 1..=3 {
                assert_eq!(revisions(&cluster.group(id), &key), 1, "round {round}, node {id}");
            }
        }
    });
}

#[test]
fn a_node_alone_keeps_what_it_acknowledged() {
    run(async {
        let mut cluster = Cluster::formed(1, 1_024, true).await;
        for round in 0..5_u64 {
            let group = cluster.group(1);
            let writes = (0..20).map(|n| {
                let group = group.clone();
                async move { put(&group, &format!("r{round}-{n}"), "v").await.unwrap() }
            });
            join_all(writes).await;
            cluster.crash(1, if round % 2 == 0 { Crash::PowerLoss } else { Crash::Process }).await;
            cluster.start(1).await;
            cluster.leader().await;
        }
        for key in (0..5).flat_map(|r| (0..20).map(move |n| format!("r{r}-{n}"))) {
            assert_eq!(get(&cluster.group(1), &key).await.unwrap().as_deref(), Some("v"), "{key}");
        }
    });
}

#[test]
fn waiting_calls_end_when_the_replica_stops() {
    run(async {
        let mut cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        put(&cluster.group(leader), "k", "v").await.unwrap();
        cluster.isolate(leader, true);
        let group = cluster.group(leader);
        // Enough that some are on their way and some wait.
        let began = tokio::time::Instant::now();
        let writes = (0..20).map(|n| {
            let group = group.clone();
            tokio::spawn(async move { group.propose(set(&format!("k{n}"), "v"), after(60_000)).await })
        });
        let writes: Vec<_> = writes.collect();
        let read = tokio::spawn({
            let group = group.clone();
            async move { group.barrier(Level::AtLeast(TxId(1_000)), after(60_000)).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        drop(group);
        cluster.stop(leader).await;
        for write in writes {
            let answer = write.await.unwrap();
            assert!(matches!(answer, Err(ProposeError::OutcomeUnknown | ProposeError::Stopped)), "{answer:?}");
        }
        assert_eq!(read.await.unwrap(), Err(ReadError::Stopped));
        assert!(began.elapsed().as_millis() < 2_000, "they waited for {:?}", began.elapsed());
    });
}

#[test]
fn a_disk_that_fails_stops_the_replica_and_not_the_group() {
    run(async {
        let mut cluster = Cluster::three().await;
        let old = cluster.leader().await;
        put(&cluster.group(old), "k", "1").await.unwrap();
        cluster.break_disk(old);
        let stopped = cluster.group(old);
        let lost = stopped.propose(set("k", "2"), after(5_000)).await;
        assert!(lost.is_err(), "{lost:?}");
        until("the replica says that it failed", || {
            matches!(stopped.status().health, alhambra_raft::group::Health::Failed { .. })
        })
        .await;
        assert_eq!(stopped.propose(set("k", "3"), after(5_000)).await, Err(ProposeError::Stopped));
        assert_eq!(stopped.barrier(Level::Linearizable, after(5_000)).await, Err(ReadError::Stopped));
        let new = cluster.leader_other_than(old).await;
        put(&cluster.group(new), "k", "4").await.unwrap();
        cluster.crash(old, Crash::PowerLoss).await;
        cluster.start(old).await;
        assert_eq!(get(&cluster.group(old), "k").await.unwrap().as_deref(), Some("4"));
        cluster.assert_equal().await;
    });
}

#[test]
fn a_follower_whose_disk_is_full_waits_and_the_group_goes_on() {
    run(async {
        let cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        let full = cluster.follower().await;
        put(&cluster.group(full), "k", "0").await.unwrap();
        for room in [0, 1, 70_000, 200_000] {
            cluster.leave_room(full, Some(room));
            let began = tokio::time::Instant::now();
            let mut n = 0;
            while !cluster.group(full).status().waits_for_space {
                n += 1;
                put(&cluster.group(leader), &format!("r{room}-{n}"), &"v".repeat(5_000)).await.unwrap();
                assert!(n < 200, "{room} bytes of room never run out");
            }
            put(&cluster.group(leader), "k", &room.to_string()).await.unwrap();
            assert!(began.elapsed().as_secs() < 20, "writes waited for the full disk: {:?}", began.elapsed());
            assert_eq!(
                cluster.group(full).status().health,
                alhambra_raft::group::Health::Running,
                "full is no failure"
            );
            cluster.leave_room(full, None);
            until("the follower goes on by itself", || !cluster.group(full).status().waits_for_space).await;
            cluster.assert_equal().await;
            assert_eq!(get(&cluster.group(full), "k").await.unwrap(), Some(room.to_string()));
        }
    });
}

#[test]
fn two_full_disks_hold_writes_up_until_there_is_room_and_nothing_is_lost() {
    run(async {
        let cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        put(&cluster.group(leader), "k", "before").await.unwrap();
        let full: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        full.iter().for_each(|id| cluster.leave_room(*id, Some(0)));
        let began = tokio::time::Instant::now();
        let big = "v".repeat(200_000);
        let first = cluster.group(leader).propose(set("k", &big), after(3_000)).await;
        assert_eq!(first, Err(ProposeError::OutcomeUnknown), "it may be on the disks once there is room");
        assert_eq!(began.elapsed().as_millis(), 3_000, "the deadline holds");
        full.iter().for_each(|id| cluster.leave_room(*id, None));
        put(&cluster.group(leader), "later", "v").await.unwrap();
        cluster.assert_equal().await;
        assert_eq!(revisions(&cluster.group(leader), "k"), 2, "and it was, once");
    });
}

#[test]
fn a_leader_whose_disk_is_full_loses_nothing_of_what_it_acknowledged() {
    run(async {
        let mut cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        cluster.leave_room(leader, Some(0));
        // A majority has room, so writes go on while the leader's own disk waits.
        for n in 0..30 {
            put(&cluster.group(leader), &format!("k{n}"), &"v".repeat(5_000)).await.unwrap();
        }
        assert!(cluster.group(leader).status().waits_for_space);
        cluster.crash(leader, Crash::PowerLoss).await;
        cluster.leave_room(leader, None);
        cluster.start(leader).await;
        cluster.assert_equal().await;
        for n in 0..30 {
            assert!(get(&cluster.group(leader), &format!("k{n}")).await.unwrap().is_some(), "k{n}");
        }
    });
}

#[test]
fn a_disk_that_answers_late_holds_no_call_beyond_its_deadline() {
    run(async {
        let cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        put(&cluster.group(leader), "k", "before").await.unwrap();
        // One slow disk, whosever it is, does not matter; two do, and all three.
        for slow in [vec![leader], vec![cluster.follower().await], (1..=3).collect()] {
            slow.iter().for_each(|id| cluster.hold_disk(*id, true));
            let began = tokio::time::Instant::now();
            let writes = (1..=3).map(|id| {
                let group = cluster.group(id);
                async move { group.propose(set("k", "held"), after(2_000)).await }
            });
            let answers = join_all(writes).await;
            let reads = (1..=3).map(|id| {
                let group = cluster.group(id);
                async move { group.barrier(Level::Linearizable, after(500)).await }
            });
            let _ = join_all(reads).await;
            assert!(began.elapsed().as_millis() <= 2_500, "calls ended after {:?}", began.elapsed());
            for answer in answers {
                match answer {
                    Ok(_) => assert!(slow.len() < 3, "acknowledged without a disk"),
                    Err(error) => {
                        assert!(slow.len() == 3, "{slow:?}: {error}");
                        assert!(matches!(error, ProposeError::OutcomeUnknown | ProposeError::NoQuorum), "{error}");
                    }
                }
            }
            slow.iter().for_each(|id| cluster.hold_disk(*id, false));
            cluster.leader().await;
            put(&cluster.group(cluster.leader().await), "k", "after").await.unwrap();
            cluster.assert_equal().await;
        }
    });
}

#[test]
fn an_end_goes_on_when_whoever_asked_for_it_goes_away() {
    run(async {
        let mut cluster = Cluster::formed(1, 1_024, true).await;
        let group = cluster.group(1);
        put(&group, "a", "1").await.unwrap();
        let covered = || group.database().checkpoint_position() == group.database().applied().log_id;
        assert!(!covered(), "or nothing is left for the end");
        cluster.hold_disk(1, true);
        assert!(timeout_at(after(100), group.shutdown()).await.is_err(), "the disk is held");
        let mut second = Box::pin(group.shutdown());
        assert!(timeout_at(after(100), &mut second).await.is_err(), "the disk is held");
        assert!(!covered());
        cluster.hold_disk(1, false);
        timeout_at(after(10_000), second).await.unwrap();
        assert!(covered());
        assert_eq!(group.status().health, Health::Stopped);
        // Nothing of the end holds the folder.
        drop(group);
        cluster.stop(1).await;
        cluster.start(1).await;
        assert_eq!(get(&cluster.group(1), "a").await.unwrap().as_deref(), Some("1"));
    });
}
