//! Values that a group forgets: gone on every replica, which end with equal files, also one that was away meanwhile.

use alhambra_ledger::ids::TxId;
use alhambra_raft::error::{GroupError, ProposeError};
use alhambra_raft::mending::Mending;
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Citation, Compression, Prune, PruneTarget, Settings};
use alhambra_storage::vfs::mem::Crash;
use alhambra_storage::{Error, Health};

use crate::cluster::{Cluster, after, get, put, run, until};

/// Frames of these tests take about 200 bytes, so a segment holds about five.
const SEGMENT_BYTES: u64 = 1_024;

async fn write(cluster: &Cluster, tag: &str, count: u64) -> TxId {
    let mut last = TxId(0);
    for n in 0..count {
        let via = cluster.up()[usize::try_from(n).unwrap() % cluster.up().len()];
        last = put(&cluster.group(via), &format!("{tag}{n}"), &format!("{tag}{n} is secret").repeat(8)).await.unwrap();
    }
    last
}

fn order(target: PruneTarget) -> Prune {
    Prune { order: Some(Citation { tx: TxId(7), alh: [7; 32] }), target }
}

async fn prune(cluster: &Cluster, target: PruneTarget) -> Outcome {
    let leader = cluster.leader().await;
    cluster.group(leader).prune(order(target), after(10_000)).await.unwrap()
}

fn before(tx: TxId) -> PruneTarget {
    PruneTarget::Before { tx, ts: 0, marker: PruneTarget::marker(None, tx, Vec::new()) }
}

/// Whether the bytes stand in any file of the node's ledger.
fn on_disk(cluster: &Cluster, id: u64, text: &str) -> bool {
    cluster.ledger_files(id).iter().any(|(_, bytes)| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
}

/// Waits until every node has written the segments with transactions before this one again.
async fn all_gone(cluster: &Cluster, before: TxId) {
    for id in cluster.up() {
        let group = cluster.group(id);
        until(&format!("node {id} has written its segments again"), || {
            let Ok(newest) = group.database().log_index_of(TxId(before.0 - 1)) else { return false };
            let segments = group.database().ledger().segments();
            segments.iter().filter(|s| s.first_log_id.index <= newest).all(|s| s.generation > 0)
        })
        .await;
    }
}

/// Closed segments are equal as files, not only as they are read.
async fn assert_equal_files(cluster: &Cluster) {
    cluster.assert_equal().await;
    let all = || cluster.up().into_iter().map(|id| cluster.ledger_files(id)).collect::<Vec<_>>();
    let closed = |files: &[(std::path::PathBuf, Vec<u8>)]| {
        let segments: Vec<_> = files.iter().filter(|(name, _)| name.extension().is_some_and(|e| e == "seg")).collect();
        segments[..segments.len() - 1].iter().map(|(name, bytes)| (name.clone(), bytes.clone())).collect::<Vec<_>>()
    };
    until("closed segments are equal files", || all().windows(2).all(|pair| closed(&pair[0]) == closed(&pair[1])))
        .await;
    for id in cluster.up() {
        let database = cluster.group(id).database().clone();
        assert_eq!(database.compare_seals().unwrap(), Health::Sound, "node {id}");
    }
}

#[test]
fn three_replicas_forget_and_one_of_them_was_away() {
    run(async {
        let mut cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        let old = write(&cluster, "old", 40).await;
        let away = cluster.follower().await;
        cluster.crash(away, Crash::PowerLoss).await;
        let kept = write(&cluster, "kept", 10).await;
        assert!(on_disk(&cluster, cluster.leader().await, "old7 is secret"));
        assert!(matches!(prune(&cluster, before(TxId(old.0 + 1))).await, Outcome::Committed { .. }));
        assert!(matches!(
            prune(&cluster, PruneTarget::Value { tx: kept, entry: 0 }).await,
            Outcome::Pruned { number: 2 }
        ));
        write(&cluster, "later", 20).await;
        all_gone(&cluster, old).await;
        for id in cluster.up() {
            assert!(!on_disk(&cluster, id, "old7 is secret"), "node {id}");
        }
        // It comes back, by files whose values are gone already.
        cluster.start(away).await;
        write(&cluster, "last", 10).await;
        all_gone(&cluster, old).await;
        assert_equal_files(&cluster).await;
        for id in cluster.up() {
            let group = cluster.group(id);
            assert!(!on_disk(&cluster, id, "old7 is secret") && !on_disk(&cluster, id, "kept9 is secret"), "node {id}");
            for tx in [TxId(8), old, kept] {
                let record = group.database().tx(tx).unwrap();
                let value = group.database().value(&record.entries[0]);
                assert!(matches!(value, Err(Error::ValuePruned { entry: 0, .. })), "node {id}, {tx}: {value:?}");
                group.database().dual_proof(tx, group.database().applied().tx).unwrap();
                group.database().prove_inclusion(tx, 0).unwrap();
            }
            assert_eq!(get(&group, "kept8").await.unwrap().as_deref(), Some("kept8 is secret".repeat(8).as_str()));
            assert_eq!(group.database().prunes().unwrap().len(), 2);
        }
        // A power failure everywhere takes nothing back, and the group goes on.
        let all = cluster.up();
        cluster.crash_all(&all, Crash::PowerLoss).await;
        for id in all {
            cluster.start(id).await;
        }
        write(&cluster, "after", 10).await;
        assert_equal_files(&cluster).await;
        assert!(cluster.up().into_iter().all(|id| !on_disk(&cluster, id, "old7 is secret")));
    });
}

/// Each generation has a digest of its own; without its seal no replica could tell that it has other bytes than the others.
#[test]
fn what_is_written_again_is_sealed_though_nobody_writes_any_more() {
    run(async {
        let cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        let old = write(&cluster, "old", 40).await;
        write(&cluster, "kept", 10).await;
        prune(&cluster, before(TxId(old.0 + 1))).await;
        all_gone(&cluster, old).await;
        for id in cluster.up() {
            let database = cluster.group(id).database().clone();
            let is_sealed = |number: u64, generation: u32| {
                database.seal(number).unwrap().is_some_and(|seal| seal.generation == generation)
            };
            until("each segment is sealed as it is", || {
                let segments = database.ledger().segments();
                segments.iter().filter(|s| s.generation > 0).all(|s| is_sealed(s.number, s.generation))
            })
            .await;
        }
    });
}

#[test]
fn only_the_leader_takes_a_prune_and_a_wrong_one_changes_nothing() {
    run(async {
        let cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        let last = write(&cluster, "k", 10).await;
        let follower = cluster.group(cluster.follower().await);
        let refused = follower.prune(order(before(last)), after(5_000)).await;
        assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(cluster.leader().await) }));
        let future = prune(&cluster, before(TxId(last.0 + 100))).await;
        assert_eq!(future, Outcome::Rejected(Rejection::NothingToPrune));
        assert_eq!(get(&follower, "k3").await.unwrap().as_deref(), Some("k3 is secret".repeat(8).as_str()));
        cluster.assert_equal().await;
        assert!(follower.database().prunes().unwrap().is_empty());
    });
}

#[test]
fn values_are_compressed_once_where_they_come_in_and_the_setting_can_change() {
    run(async {
        let cluster = Cluster::formed(3, 64 << 20, false).await;
        let text = "a line of a log, again and again; ".repeat(50);
        let mut stored = Vec::new();
        for compression in [Compression::None, Compression::Lz4, Compression::None] {
            let leader = cluster.group(cluster.leader().await);
            let settings = Settings { compression, ..Settings::DEFAULT };
            leader.configure(settings.clone(), after(10_000)).await.unwrap();
            cluster.assert_equal().await;
            for id in cluster.up() {
                let group = cluster.group(id);
                assert_eq!(group.database().settings(), Some(settings.clone()));
                let tx = put(&group, &format!("from{id}"), &text).await.unwrap();
                stored.push((compression, tx));
            }
        }
        cluster.assert_equal().await;
        for id in cluster.up() {
            let database = cluster.group(id).database().clone();
            for (compression, tx) in &stored {
                let entry = database.tx(*tx).unwrap().entries.remove(0);
                assert_eq!(entry.value_len as usize, text.len() + 1, "in plain");
                assert_eq!(entry.stored_len < 200, *compression == Compression::Lz4, "node {id}: {entry:?}");
                assert_eq!(database.value(&entry).unwrap()[1..], *text.as_bytes());
            }
        }
    });
}

/// A cluster of which one node is down, with a segment that rots and of which the others have forgotten values before it had applied
/// it; with a checkpoint before that, or none.
async fn forgotten_by_the_others(how: Crash, checkpoint: bool) -> (Cluster, u64) {
    let mut cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
    if checkpoint {
        write(&cluster, "first", 1).await;
        cluster.assert_equal().await;
        cluster.up().iter().for_each(|id| cluster.group(*id).database().checkpoint().unwrap());
    }
    let old = write(&cluster, "old", 20).await;
    cluster.assert_equal().await;
    let down = cluster.follower().await;
    cluster.crash(down, how).await;
    write(&cluster, "new", 10).await;
    prune(&cluster, before(old)).await;
    all_gone(&cluster, old).await;
    cluster.flip(down, "ledger/0000000001.seg", 700);
    let started = cluster.try_start(down).await;
    assert!(matches!(started, Err(GroupError::Rotten { segment: 1, .. })), "{started:?}");
    (cluster, down)
}

/// What it has not applied is to be had from nobody, but all of it is known to be committed.
#[test]
fn rot_in_what_the_others_have_forgotten_is_derived_without_the_values() {
    run(async {
        for checkpoint in [false, true] {
            let (mut cluster, down) = forgotten_by_the_others(Crash::Process, checkpoint).await;
            assert_eq!(cluster.mend(down, 1).await, Mending::Mended { segment: 1, offset: 0 }, "{checkpoint}");
            cluster.start(down).await;
            cluster.assert_equal().await;
            write(&cluster, "later", 3).await;
            cluster.assert_equal().await;
        }
    });
}

/// It has lost power, and does not know what is committed.
#[test]
fn rot_in_what_the_others_have_forgotten_is_nothing_to_wait_for() {
    run(async {
        let (cluster, down) = forgotten_by_the_others(Crash::PowerLoss, true).await;
        let mending = cluster.mend(down, 1).await;
        let Mending::Hopeless(why) = &mending else { panic!("{mending:?}") };
        assert!(why.contains("cannot be fetched from other members: the others have forgotten values of it"), "{why}");
    });
}
