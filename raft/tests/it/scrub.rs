//! Rot in a cluster: whichever node it sits on, and on the way too, it is found and mended from the others, and never gets
//! into a replica that was whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use alhambra_raft::group::{Health as Running, Tuning};
use alhambra_raft::scrub::{ScrubPace, ScrubStatus};
use alhambra_storage::{Error, Health};

use crate::cluster::{Cluster, put, run, until};

/// Frames of these tests take about 200 bytes, so a segment holds about five.
const SEGMENT_BYTES: u64 = 1_024;
/// Neither the first nor the last.
const SEGMENT: u64 = 1;
const FILE: &str = "ledger/0000000001.seg";
const SIDECAR: &str = "ledger/0000000001.idx";
/// Of a segment and of a frame.
const HEADER: usize = 256;
const FRAME_HEAD: usize = 8;

fn tuning(bytes_per_second: u64) -> Tuning {
    Tuning { scrub_pace: Arc::new(ScrubPace::new(bytes_per_second)), scrub_interval_ms: 300, ..Tuning::default() }
}

/// A cluster whose first segments are sealed on all nodes, and their bytes, which are the same everywhere.
async fn sealed(voters: u64, bytes_per_second: u64) -> (Cluster, Vec<u8>) {
    let cluster = Cluster::tuned(voters, SEGMENT_BYTES, false, tuning(bytes_per_second)).await;
    for n in 0..20 {
        put(&cluster.group(1 + n % voters), &format!("k{n}"), &"x".repeat(100)).await.unwrap();
    }
    cluster.assert_equal().await;
    let is_sealed = |id: &u64| cluster.group(*id).database().seal(SEGMENT).unwrap().is_some();
    until("all nodes have the seal", || cluster.up().iter().all(is_sealed)).await;
    cluster.assert_equal().await;
    let bytes = cluster.read_file(1, FILE);
    for id in cluster.up() {
        assert_eq!(cluster.read_file(id, FILE), bytes, "node {id}");
    }
    (cluster, bytes)
}

fn status(cluster: &Cluster, id: u64) -> ScrubStatus {
    cluster.group(id).status().scrub
}

fn is_clean(cluster: &Cluster, id: u64) -> bool {
    let database = cluster.group(id).database().clone();
    database.damaged().is_empty() && status(cluster, id).waiting == 0
}

/// Waits until every node has read all of its files twice more and has found nothing.
async fn assert_whole(cluster: &Cluster, bytes: &[u8]) {
    for id in cluster.up() {
        let passed = |before: Option<i64>| status(cluster, id).last_pass_ms > before;
        let found = loop {
            let before = status(cluster, id);
            until("a pass", || passed(before.last_pass_ms)).await;
            let first = status(cluster, id).last_pass_ms;
            until("a whole pass", || passed(first)).await;
            if status(cluster, id).mismatches == before.mismatches && is_clean(cluster, id) {
                break before;
            }
        };
        assert!(found.bytes > 0);
        assert_eq!(cluster.read_file(id, FILE), bytes, "node {id}");
        assert_eq!(cluster.group(id).database().health(), Health::Sound, "node {id}");
        assert!(cluster.group(id).database().pending_seals().unwrap().is_empty(), "node {id}");
    }
    cluster.assert_equal().await;
    put(&cluster.group(1), "later", "v").await.unwrap();
    cluster.assert_equal().await;
}

/// The files of the nodes that are whole, which must stay what they are.
fn others(cluster: &Cluster, rotten: &[u64]) -> BTreeMap<u64, Vec<u8>> {
    let whole = cluster.up().into_iter().filter(|id| !rotten.contains(id));
    whole.map(|id| (id, cluster.read_file(id, FILE))).collect()
}

/// A node whose value in the segment is another, with a fitting checksum, and that does not remember what was written: its
/// segment is consistent in itself.
async fn rot_unnoticed(cluster: &mut Cluster, id: u64, bit: u8) {
    cluster.stop(id).await;
    twist(cluster, id, bit);
    cluster.start(id).await;
}

/// The same, of a node that is down.
pub fn twist(cluster: &Cluster, id: u64, bit: u8) {
    let bytes = cluster.read_file(id, FILE);
    let len = u32::from_be_bytes(bytes[HEADER..HEADER + 4].try_into().unwrap()) as usize;
    let mut body = bytes[HEADER + FRAME_HEAD..HEADER + FRAME_HEAD + len].to_vec();
    *body.last_mut().unwrap() ^= bit;
    cluster.write_file(id, FILE, HEADER as u64 + 4, &crc32c::crc32c(&body).to_be_bytes());
    cluster.write_file(id, FILE, (HEADER + FRAME_HEAD) as u64, &body);
    cluster.remove_file(id, SIDECAR);
}

/// A replica that may have been misled by rot ends, and derives everything again when it is opened.
pub async fn open_again(cluster: &mut Cluster, id: u64) {
    let group = cluster.group(id);
    until("it ends", || matches!(group.status().health, Running::Failed { .. })).await;
    drop(group);
    cluster.stop(id).await;
    cluster.start(id).await;
}

async fn make_leader(cluster: &Cluster, id: u64) {
    while cluster.leader().await != id {
        let leader = cluster.leader().await;
        cluster.group(leader).transfer_leader(id).await.unwrap();
        until("another leader", || !cluster.group(leader).is_leader()).await;
    }
}

#[test]
fn rot_on_the_leader_is_mended_from_the_followers() {
    run(async {
        let (cluster, bytes) = sealed(3, 1 << 20).await;
        let leader = cluster.leader().await;
        let whole = others(&cluster, &[leader]);
        // In the header, in a checksum, in the middle, at the end.
        for at in [3, HEADER as u64 + 5, 500, bytes.len() as u64 - 1] {
            let before = status(&cluster, leader);
            cluster.flip(leader, FILE, at);
            until("it is found and mended", || {
                status(&cluster, leader).repaired > before.repaired && is_clean(&cluster, leader)
            })
            .await;
            assert!(status(&cluster, leader).mismatches > before.mismatches, "byte {at}");
            assert_eq!(cluster.read_file(leader, FILE), bytes, "byte {at}");
            assert_eq!(others(&cluster, &[leader]), whole, "byte {at}");
        }
        assert_whole(&cluster, &bytes).await;
    });
}

#[test]
fn rot_on_a_follower_is_mended_also_when_the_file_is_gone() {
    run(async {
        let (cluster, bytes) = sealed(3, 1 << 20).await;
        let follower = cluster.follower().await;
        let whole = others(&cluster, &[follower]);
        cluster.flip(follower, FILE, 700);
        until("it is mended", || status(&cluster, follower).repaired > 0 && is_clean(&cluster, follower)).await;
        cluster.remove_file(follower, FILE);
        until("it is mended again", || status(&cluster, follower).repaired > 1 && is_clean(&cluster, follower)).await;
        // What is derived needs nobody else.
        cluster.group(follower).database().checkpoint().unwrap();
        cluster.flip(follower, "tx/0000000000.log", 100);
        until("it is derived again", || status(&cluster, follower).repaired > 2 && is_clean(&cluster, follower)).await;
        assert_eq!(others(&cluster, &[follower]), whole);
        assert_whole(&cluster, &bytes).await;
    });
}

#[test]
fn a_leader_that_is_rotten_in_a_consistent_way_overwrites_nobody_and_is_overwritten() {
    run(async {
        let (mut cluster, bytes) = sealed(3, 1 << 20).await;
        let rotten = cluster.follower().await;
        rot_unnoticed(&mut cluster, rotten, 1).await;
        make_leader(&cluster, rotten).await;
        let whole = others(&cluster, &[rotten]);
        until("the majority has decided", || cluster.read_file(rotten, FILE) == bytes).await;
        assert_eq!(others(&cluster, &[rotten]), whole);
        open_again(&mut cluster, rotten).await;
        assert_whole(&cluster, &bytes).await;
        for id in whole.keys() {
            assert_eq!(status(&cluster, *id).mismatches, 0, "node {id}");
        }
    });
}

#[test]
fn rot_on_the_way_takes_no_place() {
    run(async {
        let (cluster, bytes) = sealed(3, 1 << 20).await;
        let follower = cluster.follower().await;
        let whole = others(&cluster, &[follower]);
        // What comes from either of the others is spoiled at first.
        cluster.switch.0.lock().spoil_parts = 2;
        cluster.flip(follower, FILE, 700);
        let rotten = cluster.read_file(follower, FILE);
        until("both have been tried", || status(&cluster, follower).waiting > 0).await;
        assert_eq!(cluster.switch.0.lock().spoil_parts, 0);
        assert_eq!(cluster.read_file(follower, FILE), rotten, "nothing was put in place");
        until("it is mended", || status(&cluster, follower).repaired > 0 && is_clean(&cluster, follower)).await;
        assert_eq!(others(&cluster, &[follower]), whole);
        assert_whole(&cluster, &bytes).await;
    });
}

#[test]
fn a_minority_with_the_same_rot_does_not_win() {
    run(async {
        let (mut cluster, bytes) = sealed(5, 1 << 20).await;
        let leader = cluster.leader().await;
        let rotten: Vec<u64> = cluster.up().into_iter().filter(|id| *id != leader).take(2).collect();
        for id in &rotten {
            rot_unnoticed(&mut cluster, *id, 1).await;
        }
        make_leader(&cluster, rotten[0]).await;
        let whole = others(&cluster, &rotten);
        until("the majority has decided", || rotten.iter().all(|id| cluster.read_file(*id, FILE) == bytes)).await;
        assert_eq!(others(&cluster, &rotten), whole);
        for id in rotten {
            open_again(&mut cluster, id).await;
        }
        assert_whole(&cluster, &bytes).await;
    });
}

#[test]
fn without_a_majority_nobody_is_overwritten() {
    run(async {
        let (mut cluster, _) = sealed(3, 1 << 20).await;
        let leader = cluster.leader().await;
        let rotten: Vec<u64> = cluster.up().into_iter().filter(|id| *id != leader).collect();
        for (bit, id) in (0..).zip(&rotten) {
            rot_unnoticed(&mut cluster, *id, 1 << bit).await;
        }
        let files = others(&cluster, &[]);
        until("both wait", || rotten.iter().all(|id| status(&cluster, *id).waiting == 1)).await;
        // Some attempts later.
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert_eq!(others(&cluster, &[]), files);
        for id in &rotten {
            assert_eq!(status(&cluster, *id).waiting, 1, "node {id} goes on asking");
            assert_eq!(status(&cluster, *id).repaired, 0);
        }
        put(&cluster.group(leader), "writes go on", "v").await.unwrap();
    });
}

#[test]
fn what_a_reader_comes_upon_is_mended_without_a_pass() {
    run(async {
        let (mut cluster, bytes) = sealed(3, 0).await;
        let follower = cluster.follower().await;
        // What is in memory would hide the file.
        cluster.stop(follower).await;
        let at = bytes.windows(100).position(|value| value == [b'x'; 100]).unwrap() + 50;
        cluster.flip(follower, FILE, at as u64);
        cluster.start(follower).await;
        let group = cluster.group(follower);
        let goal = cluster.group(cluster.leader().await).status().applied;
        until("it has applied everything", || group.status().applied >= goal).await;
        let read = |n: u64| {
            let key: bytes::Bytes = format!("\0k{n}").into();
            let database = group.database();
            let version = database.snapshot().get(&key)?.expect("written");
            database.value(&database.tx(version.tx)?.entries[version.entry as usize])
        };
        let refused: Vec<_> = (0..20).filter_map(|n| read(n).err()).collect();
        assert!(matches!(refused[..], [Error::Corrupted { segment: Some(SEGMENT), .. }]), "{refused:?}");
        until("it is mended", || status(&cluster, follower).repaired > 0 && is_clean(&cluster, follower)).await;
        assert_eq!(status(&cluster, follower).bytes, 0, "no pass");
        assert_eq!(cluster.read_file(follower, FILE), bytes);
        for n in 0..20 {
            assert_eq!(read(n).unwrap()[1..], [b'x'; 100]);
        }
    });
}
