//! Rot that a restart comes upon, in what a replica has to read before it opens: it is mended from the others first, keeps what
//! it has promised, and takes nothing that is not agreed on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use alhambra_raft::error::GroupError;
use alhambra_raft::mending::Mending;
use alhambra_storage::vfs::mem::Crash;

use crate::cluster::{Cluster, put, run, until};
use crate::scrub::{open_again, twist};

/// Frames of these tests take about 200 bytes, so a segment holds about five.
const SEGMENT_BYTES: u64 = 1_024;
const HEADER: u64 = 256;

/// What is done to the disk of a node.
type Harm = Box<dyn Fn(&Cluster, u64)>;

fn file(segment: u64) -> String {
    format!("ledger/{segment:010}.seg")
}

fn sidecar(segment: u64) -> String {
    format!("ledger/{segment:010}.idx")
}

/// A cluster of which one node is down after a crash and has everything to apply again, and its files.
async fn crashed(voters: u64) -> (Cluster, u64, BTreeMap<PathBuf, Vec<u8>>) {
    let cluster = Cluster::formed(voters, SEGMENT_BYTES, false).await;
    crashed_of(cluster).await
}

/// The same, of a cluster that has hardly begun.
async fn crashed_of(mut cluster: Cluster) -> (Cluster, u64, BTreeMap<PathBuf, Vec<u8>>) {
    let voters = cluster.up().len() as u64;
    for n in 0..20 {
        put(&cluster.group(1 + n % voters), &format!("k{n}"), &"x".repeat(100)).await.unwrap();
    }
    cluster.assert_equal().await;
    until("all nodes have the seal", || {
        cluster.up().iter().all(|id| cluster.group(*id).database().seal(1).unwrap().is_some())
    })
    .await;
    let down = cluster.follower().await;
    cluster.crash(down, Crash::Process).await;
    let files = cluster.ledger_files(down).into_iter().collect();
    (cluster, down, files)
}

fn vote(cluster: &Cluster, id: u64) -> Vec<u8> {
    cluster.read_file(id, "vote")
}

async fn rotten_segment(cluster: &mut Cluster, id: u64) -> u64 {
    match cluster.try_start(id).await {
        Err(GroupError::Rotten { segment, .. }) => segment,
        other => panic!("started: {other:?}"),
    }
}

fn mended(segment: u64, offset: u64) -> Mending {
    Mending::Mended { segment, offset }
}

fn waits(mending: &Mending) -> &str {
    match mending {
        Mending::Waits(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_replica_that_rotted_before_a_restart_is_mended_from_the_others_and_opens() {
    run(async {
        let flip = |at: u64| Box::new(move |cluster: &Cluster, id: u64| cluster.flip(id, &file(1), at)) as Harm;
        let cut = |len: u64| Box::new(move |cluster: &Cluster, id: u64| cluster.cut_file(id, &file(1), len)) as Harm;
        // In a frame's length, in a checksum, in a value; nothing behind the first frame; nothing at all.
        let harms = [flip(HEADER), flip(HEADER + 5), flip(700), cut(HEADER + 150), cut(HEADER - 20), cut(0)];
        for (number, harm) in harms.iter().enumerate() {
            let (mut cluster, down, files) = crashed(3).await;
            let promised = vote(&cluster, down);
            harm(&cluster, down);
            assert_eq!(rotten_segment(&mut cluster, down).await, 1, "case {number}");
            assert_eq!(cluster.mend(down, 1).await, mended(1, 0), "case {number}");
            let found: BTreeMap<_, _> = cluster.ledger_files(down).into_iter().collect();
            assert_eq!(found, files, "case {number}");
            assert_eq!(vote(&cluster, down), promised, "case {number}");
            cluster.start(down).await;
            cluster.assert_equal().await;
            put(&cluster.group(down), "later", "v").await.unwrap();
            cluster.assert_equal().await;
        }
    });
}

#[test]
fn everything_is_derived_again_from_what_the_group_agreed_on() {
    run(async {
        let (mut cluster, down, files) = crashed(3).await;
        cluster.start(down).await;
        cluster.assert_equal().await;
        cluster.group(down).database().checkpoint().unwrap();
        cluster.stop(down).await;
        // Only the others can tell that the segment is not what was written.
        twist(&cluster, down, 1);
        cluster.flip(down, "tx/0000000000.log", 60);
        assert_eq!(rotten_segment(&mut cluster, down).await, 1);
        assert_eq!(cluster.mend(down, 1).await, mended(1, 0));
        assert_eq!(cluster.read_file(down, &file(1)), files[&PathBuf::from("0000000001.seg")]);
        cluster.start(down).await;
        cluster.assert_equal().await;
    });
}

#[test]
fn a_replica_that_has_applied_rot_is_opened_again_and_is_as_the_others() {
    run(async {
        // It applies all of it from its files, and the seals come behind what they are of.
        let cluster = Cluster::formed(3, SEGMENT_BYTES, false).await;
        put(&cluster.group(1), "first", "v").await.unwrap();
        cluster.assert_equal().await;
        cluster.up().iter().for_each(|id| cluster.group(*id).database().checkpoint().unwrap());
        let (mut cluster, down, files) = crashed_of(cluster).await;
        twist(&cluster, down, 1);
        cluster.start(down).await;
        until("the majority has decided", || {
            cluster.read_file(down, &file(1)) == files[&PathBuf::from("0000000001.seg")]
        })
        .await;
        open_again(&mut cluster, down).await;
        cluster.assert_equal().await;
        put(&cluster.group(down), "later", "v").await.unwrap();
        cluster.assert_equal().await;
    });
}

#[test]
fn what_is_here_as_the_others_have_it_counts_whatever_was_sealed() {
    run(async {
        let (mut cluster, down, _) = crashed(3).await;
        let Mending::Agreed { segment: 1, version } = cluster.mend(down, 1).await else { panic!("it is whole") };
        cluster.settled.insert(1, version);
        cluster.start(down).await;
        cluster.assert_equal().await;
        assert_eq!(cluster.group(down).database().agreed_digest(1, 0), Some(version.digest));
    });
}

#[test]
fn several_segments_are_mended_one_after_the_other() {
    run(async {
        let (mut cluster, down, files) = crashed(3).await;
        for segment in [0, 1, 2] {
            cluster.flip(down, &file(segment), 600);
        }
        for segment in [0, 1, 2] {
            assert_eq!(rotten_segment(&mut cluster, down).await, segment);
            assert_eq!(cluster.mend(down, segment).await, mended(segment, 0));
        }
        assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), files);
        cluster.start(down).await;
        cluster.assert_equal().await;
    });
}

#[test]
fn a_segment_without_its_sidecar_is_what_more_than_half_of_the_voters_say() {
    run(async {
        let (mut cluster, down, files) = crashed(3).await;
        let promised = vote(&cluster, down);
        // The sidecar never reached the disk, as nobody syncs it: nothing is remembered here of what has rotted.
        cluster.remove_file(down, &sidecar(1));
        cluster.flip(down, &file(1), 700);
        assert_eq!(rotten_segment(&mut cluster, down).await, 1);
        let rotten: BTreeMap<_, _> = cluster.ledger_files(down).into_iter().collect();
        // One of both is not more than half of three.
        let other = cluster.up()[0];
        cluster.isolate(other, true);
        let mending = cluster.mend(down, 1).await;
        assert!(waits(&mending).contains("1 of 2 other members answer, and no whole copy is agreed on"), "{mending:?}");
        assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), rotten);
        cluster.isolate(other, false);
        // Other bytes come from both.
        cluster.switch.0.lock().spoil_parts = 2;
        let mending = cluster.mend(down, 1).await;
        assert!(waits(&mending).ends_with("no member could send it whole"), "{mending:?}");
        assert_eq!(cluster.mend(down, 1).await, mended(1, 0));
        assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), files);
        assert_eq!(vote(&cluster, down), promised);
        cluster.start(down).await;
        cluster.assert_equal().await;
    });
}

#[test]
fn a_segment_that_is_gone_is_fetched_when_its_sidecar_is_left() {
    run(async {
        let (mut cluster, down, files) = crashed(3).await;
        cluster.remove_file(down, &file(1));
        assert_eq!(rotten_segment(&mut cluster, down).await, 1);
        assert_eq!(cluster.mend(down, 1).await, mended(1, 0));
        assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), files);
        // With it all is gone that says where the segment begins.
        cluster.remove_file(down, &file(1));
        cluster.remove_file(down, &sidecar(1));
        assert_eq!(rotten_segment(&mut cluster, down).await, 1);
        let Mending::Hopeless(why) = cluster.mend(down, 1).await else { panic!("nothing is left") };
        assert!(why.contains("segment 1 of defaultdb has rotted and cannot be fetched"), "{why}");
    });
}

#[test]
fn without_the_others_it_waits_and_is_not_touched() {
    run(async {
        let (mut cluster, down, _) = crashed(3).await;
        cluster.flip(down, &file(1), 700);
        let rotten: BTreeMap<_, _> = cluster.ledger_files(down).into_iter().collect();
        let same = |cluster: &Cluster| cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>() == rotten;
        assert_eq!(rotten_segment(&mut cluster, down).await, 1);
        cluster.isolate(down, true);
        let mending = cluster.mend(down, 1).await;
        let why = waits(&mending);
        assert!(why.starts_with("segment 1 of defaultdb has rotted; waiting for other members: 0 of 2"), "{why}");
        assert!(same(&cluster));
        assert_eq!(rotten_segment(&mut cluster, down).await, 1, "it does not open by itself");
        cluster.isolate(down, false);
        assert_eq!(cluster.mend(down, 1).await, mended(1, 0));
        cluster.start(down).await;
        cluster.assert_equal().await;
    });
}

#[test]
fn bytes_that_are_not_agreed_on_are_not_taken() {
    run(async {
        let (mut cluster, down, files) = crashed(3).await;
        cluster.flip(down, &file(1), 700);
        let rotten: BTreeMap<_, _> = cluster.ledger_files(down).into_iter().collect();
        // Other bytes come from both.
        cluster.switch.0.lock().spoil_parts = 2;
        let mending = cluster.mend(down, 1).await;
        assert!(waits(&mending).ends_with("no member could send it whole"), "{mending:?}");
        assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), rotten);
        // One of both is enough, as memory and majority say the same.
        cluster.switch.0.lock().spoil_parts = 1;
        assert_eq!(cluster.mend(down, 1).await, mended(1, 0));
        assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), files);
        cluster.start(down).await;
        cluster.assert_equal().await;
    });
}

#[test]
fn a_replica_alone_stays_closed_and_says_why() {
    run(async {
        let mut cluster = Cluster::formed(1, SEGMENT_BYTES, false).await;
        for n in 0..20 {
            put(&cluster.group(1), &format!("k{n}"), &"x".repeat(100)).await.unwrap();
        }
        cluster.crash(1, Crash::Process).await;
        cluster.flip(1, &file(1), 700);
        assert_eq!(rotten_segment(&mut cluster, 1).await, 1);
        let Mending::Hopeless(why) = cluster.mend(1, 1).await else { panic!("there is nobody to ask") };
        assert!(why.contains("no other member"), "{why}");
        assert_eq!(rotten_segment(&mut cluster, 1).await, 1);
    });
}

/// Where the frames of the newest segment with at least two stand, and the file; what stands behind the frames is zeros.
fn newest(cluster: &Cluster, id: u64) -> (u64, Vec<Range<usize>>) {
    let files = cluster.ledger_files(id);
    let segments = files.iter().filter(|(name, _)| name.extension().is_some_and(|ext| ext == "seg"));
    let (_, bytes) = segments.clone().next_back().unwrap();
    let mut frames = Vec::new();
    let mut at = usize::try_from(HEADER).unwrap();
    while let Some(len) = bytes.get(at..at + 4).map(|len| u32::from_be_bytes(len.try_into().unwrap()) as usize)
        && len > 0
    {
        frames.push(at..at + 8 + len);
        at += 8 + len;
    }
    (segments.count() as u64 - 1, frames)
}

/// A node that is down after a crash, whose newest segment has at least four frames that were noted to be durable.
async fn crashed_in_the_open_segment() -> (Cluster, u64, u64, Vec<Range<usize>>) {
    let mut cluster = Cluster::formed(3, 1 << 20, false).await;
    for n in 0..8 {
        put(&cluster.group(1 + n % 3), &format!("k{n}"), &"x".repeat(100)).await.unwrap();
    }
    cluster.assert_equal().await;
    let down = cluster.follower().await;
    cluster.group(down).database().checkpoint().unwrap();
    cluster.crash(down, Crash::Process).await;
    let (segment, frames) = newest(&cluster, down);
    assert!(frames.len() >= 8, "{frames:?}");
    (cluster, down, segment, frames)
}

#[test]
fn rot_in_the_newest_segment_is_mended_from_the_logs_of_the_others_and_nothing_is_cut() {
    run(async {
        let (mut cluster, down, segment, frames) = crashed_in_the_open_segment().await;
        let files: BTreeMap<_, _> = cluster.ledger_files(down).into_iter().collect();
        let promised = vote(&cluster, down);
        // The length, the checksum, the content; of the first, of one in the middle, of the last.
        for frame in [&frames[0], &frames[3], frames.last().unwrap()] {
            for at in [frame.start + 3, frame.start + 5, frame.end - 1] {
                cluster.flip(down, &file(segment), at as u64);
                assert_eq!(rotten_segment(&mut cluster, down).await, segment);
                let place = frame.start as u64 - HEADER;
                assert_eq!(cluster.mend(down, segment).await, mended(segment, place), "byte {at}");
                assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), files, "byte {at}");
            }
        }
        // Two frames that are apart: one after the other.
        for frame in [&frames[2], &frames[5]] {
            cluster.flip(down, &file(segment), frame.end as u64 - 1);
        }
        for frame in [&frames[2], &frames[5]] {
            assert_eq!(rotten_segment(&mut cluster, down).await, segment);
            assert_eq!(cluster.mend(down, segment).await, mended(segment, frame.start as u64 - HEADER));
        }
        assert_eq!(cluster.ledger_files(down).into_iter().collect::<BTreeMap<_, _>>(), files);
        assert_eq!(vote(&cluster, down), promised);
        cluster.start(down).await;
        cluster.assert_equal().await;
        put(&cluster.group(down), "later", "v").await.unwrap();
        cluster.assert_equal().await;
    });
}

#[test]
fn entries_of_the_newest_segment_are_taken_when_enough_replicas_hold_the_same() {
    run(async {
        let (mut cluster, down, segment, frames) = crashed_in_the_open_segment().await;
        let frame = frames[3].clone();
        let whole = cluster.read_file(down, &file(segment));
        let same = |cluster: &Cluster, bytes: &[u8]| cluster.read_file(down, &file(segment)) == bytes;
        // One other replica, whose checksum for the entry is the one that is left here.
        let others: Vec<u64> = cluster.up();
        cluster.flip(down, &file(segment), frame.end as u64 - 1);
        let rotten = cluster.read_file(down, &file(segment));
        cluster.isolate(others[0], true);
        // What comes is not whole.
        cluster.switch.0.lock().spoil_parts = 1;
        let mending = cluster.mend(down, segment).await;
        assert!(waits(&mending).contains("0 of 2 hold its newest entries"), "{mending:?}");
        assert!(same(&cluster, &rotten));
        assert_eq!(cluster.mend(down, segment).await, mended(segment, frame.start as u64 - HEADER));
        assert!(same(&cluster, &whole));
        // Nothing is left here that could speak for it: one replica is not enough, two are.
        cluster.write_file(down, &file(segment), frame.start as u64, &vec![0xa5; frame.len()]);
        let rotten = cluster.read_file(down, &file(segment));
        let mending = cluster.mend(down, segment).await;
        assert!(waits(&mending).contains("1 of 2 hold its newest entries, and too few the same"), "{mending:?}");
        assert!(same(&cluster, &rotten));
        assert_eq!(rotten_segment(&mut cluster, down).await, segment, "it does not open by itself");
        cluster.isolate(others[0], false);
        assert_eq!(cluster.mend(down, segment).await, mended(segment, frame.start as u64 - HEADER));
        assert!(same(&cluster, &whole));
        cluster.start(down).await;
        cluster.assert_equal().await;
    });
}
