//! Replicas that are new or far behind come up by files; closed segments are sealed and equal everywhere.

use alhambra_raft::error::MembershipError;
use alhambra_raft::group::Health;
use alhambra_storage::vfs::mem::Crash;

use crate::cluster::{Cluster, after, get, node, put, run, set, settled, until};

/// Frames of these tests take about 200 bytes, so a segment holds about five.
const SEGMENT_BYTES: u64 = 1_024;

async fn write(cluster: &Cluster, tag: &str, count: u64) {
    for n in 0..count {
        let via = cluster.up()[usize::try_from(n).unwrap() % cluster.up().len()];
        put(&cluster.group(via), &format!("{tag}{n}"), &"x".repeat(100)).await.unwrap();
    }
}

fn closed(cluster: &Cluster, id: u64) -> usize {
    cluster.group(id).database().ledger().segments().iter().filter(|s| s.closed).count()
}

#[test]
fn a_node_that_was_away_comes_back_by_files() {
    run(async {
        let mut cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        write(&cluster, "before", 5).await;
        let away = cluster.follower().await;
        cluster.crash(away, Crash::PowerLoss).await;
        write(&cluster, "meanwhile", 60).await;
        let leader = cluster.leader().await;
        until("the leader has prepared files", || cluster.group(leader).database().purge_mark().is_some()).await;
        cluster.start(away).await;
        until("files arrived", || cluster.switch.0.lock().snapshots > 0).await;
        write(&cluster, "after", 10).await;
        cluster.assert_equal().await;
        for key in ["before4", "meanwhile59", "after9"] {
            assert!(get(&cluster.group(away), key).await.unwrap().is_some(), "{key}");
        }
        // What came as files survives the next power loss, and the node can lead.
        cluster.crash(away, Crash::PowerLoss).await;
        cluster.start(away).await;
        cluster.assert_equal().await;
        cluster.crash(leader, Crash::PowerLoss).await;
        write(&cluster, "later", 5).await;
        cluster.start(leader).await;
        cluster.assert_equal().await;
    });
}

#[test]
fn a_node_that_was_away_for_a_moment_gets_log_entries() {
    run(async {
        let mut cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        write(&cluster, "before", 20).await;
        let away = cluster.follower().await;
        cluster.crash(away, Crash::Process).await;
        write(&cluster, "meanwhile", 3).await;
        cluster.start(away).await;
        cluster.assert_equal().await;
        assert_eq!(cluster.switch.0.lock().snapshots, 0);
    });
}

#[test]
fn a_new_learner_comes_up_by_files_and_becomes_a_voter() {
    run(async {
        let mut cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        write(&cluster, "k", 40).await;
        cluster.start(4).await;
        let leader = cluster.leader().await;
        settled(cluster.group(leader).add_learner(4, node(4), after(30_000)).await);
        assert_eq!(cluster.switch.0.lock().snapshots, 1);
        assert!(get(&cluster.group(4), "k39").await.unwrap().is_some());
        settled(cluster.group(leader).change_voters([1, 2, 3, 4].into(), after(30_000)).await);
        write(&cluster, "more", 20).await;
        cluster.assert_equal().await;
    });
}

#[test]
fn a_damaged_segment_is_not_taken_over() {
    run(async {
        let mut cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        write(&cluster, "k", 40).await;
        let leader = cluster.leader().await;
        cluster.flip(leader, "ledger/0000000002.seg", 700);
        cluster.start(4).await;
        let refused = cluster.group(leader).add_learner(4, node(4), after(10_000)).await;
        assert!(matches!(refused, Err(MembershipError::OutcomeUnknown)), "{refused:?}");
        assert_eq!(cluster.switch.0.lock().snapshots, 0);
        assert_eq!(cluster.group(4).status().health, Health::Running, "the receiver is not to blame");
        assert_eq!(cluster.group(4).database().applied().log_id, None);

        cluster.flip(leader, "ledger/0000000002.seg", 700);
        until("the learner catches up", || cluster.group(4).status().applied == cluster.group(leader).status().applied)
            .await;
        cluster.assert_equal().await;
    });
}

#[test]
fn closed_segments_are_sealed_across_a_leader_change() {
    run(async {
        let mut cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        write(&cluster, "a", 30).await;
        let old = cluster.leader().await;
        cluster.crash(old, Crash::PowerLoss).await;
        write(&cluster, "b", 30).await;
        cluster.start(old).await;
        cluster.assert_equal().await;
        let sealed = |id: u64| {
            let database = cluster.group(id).database().clone();
            (0..).take_while(|n| database.seal(*n).unwrap().is_some()).count()
        };
        // The seal of the newest closed segment may be on its way.
        until("seals on all replicas", || cluster.up().into_iter().all(|id| sealed(id) + 1 >= closed(&cluster, id)))
            .await;
        assert!(sealed(old) >= 8, "{} segments are sealed", sealed(old));
        cluster.assert_equal().await;
        for id in cluster.up() {
            let health = cluster.group(id).database().compare_seals().unwrap();
            assert_eq!(health, alhambra_storage::seal::Health::Sound, "node {id}");
        }
    });
}

/// Segments of a size that people may use, through everything that could make replicas differ: a change of leader, a tail
/// that is cut, a node that is restored by files.
#[test]
fn eight_megabyte_segments_are_equal_after_a_leader_change_a_cut_tail_and_a_restore_by_files() {
    run(async {
        let mut cluster = Cluster::formed(3, 1 << 20, false).await;
        let value = "x".repeat(64 << 10);
        let fill = async |cluster: &Cluster, via: u64, tag: &str| {
            for n in 0..50 {
                put(&cluster.group(via), &format!("{tag}{n}"), &value).await.unwrap();
            }
        };
        let old = cluster.leader().await;
        fill(&cluster, old, "before").await;

        cluster.isolate(old, true);
        let stuck = cluster.group(old).propose(set("stuck", &value), after(400)).await;
        assert!(stuck.is_err(), "a leader without a quorum acknowledges nothing: {stuck:?}");
        let new = cluster.leader_other_than(old).await;
        let tail = cluster.group(old).database().ledger().last_log_id();
        fill(&cluster, new, "meanwhile").await;
        cluster.isolate(old, false);
        until("the old leader has cut its tail and follows", || {
            cluster.group(old).database().ledger().last_log_id().map(|id| id.term) > tail.map(|id| id.term)
        })
        .await;
        cluster.assert_equal().await;

        let leader = cluster.leader().await;
        let away = cluster.up().into_iter().find(|id| *id != leader).unwrap();
        cluster.crash(away, Crash::PowerLoss).await;
        fill(&cluster, leader, "away").await;
        until("the leader has prepared files", || cluster.group(leader).database().purge_mark().is_some()).await;
        cluster.start(away).await;
        until("files arrived", || cluster.switch.0.lock().snapshots > 0).await;
        put(&cluster.group(leader), "last", "v").await.unwrap();
        cluster.assert_equal().await;

        let sealed = |id: u64| {
            let database = cluster.group(id).database().clone();
            (0..).take_while(|n| database.seal(*n).unwrap().is_some()).count() as u64
        };
        until("eight seals on all replicas", || cluster.up().into_iter().all(|id| sealed(id) >= 8)).await;
        for number in 0..8 {
            let digests: Vec<_> = (cluster.up().into_iter())
                .map(|id| cluster.group(id).database().ledger().recompute_digest(number).unwrap())
                .collect();
            assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "segment {number}: {digests:?}");
        }
        for id in cluster.up() {
            assert_eq!(get(&cluster.group(id), "stuck").await.unwrap(), None, "node {id}");
        }
    });
}
