//! Rot that fits its checksum, met when something is to be derived from it: nothing is derived from a segment that is not what
//! was written or agreed on, and what was, before anybody could know, is derived again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_storage::command::Command;
use alhambra_storage::error::Damage;
use alhambra_storage::segment::FrameKind;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::{Damaged, Database, Error, Health, Options, Result, SegmentVersion};

use crate::model::Model;
use crate::repair::{copy, lose_sidecar, rot_unnoticed, rot_with_fitting_checksum};
use crate::scrub::{all_files, filled, open, options, pass};
use crate::support::{self, apply_through, commit_command, compare, dir, put};
use crate::transfer::flip;

fn try_open(vfs: &Arc<dyn Vfs>, settled: BTreeMap<u64, SegmentVersion>) -> Result<Database> {
    Database::open(Arc::clone(vfs), &dir(), support::spec(), Options { settled, ..options() })
}

/// Why it does not open.
fn refused(vfs: &Arc<dyn Vfs>, settled: &BTreeMap<u64, SegmentVersion>) -> Error {
    try_open(vfs, settled.clone()).map(drop).expect_err("it must not open")
}

/// What the database holds of a segment.
fn version(vfs: &Arc<dyn Vfs>, segment: u64) -> SegmentVersion {
    let unopened =
        alhambra_storage::Unopened::open(Arc::clone(vfs), &dir(), support::spec()).expect("its log is whole");
    unopened.segment_vote(segment).expect("healthy").expect("closed").version
}

/// Puts a segment into the place of one of a database that does not open.
fn mend(vfs: &Arc<dyn Vfs>, source: &Arc<dyn Vfs>, segment: u64, agreed: SegmentVersion) {
    let unopened =
        alhambra_storage::Unopened::open(Arc::clone(vfs), &dir(), support::spec()).expect("its log is whole");
    let mut fetched = unopened.begin_segment_repair(segment, agreed).expect("closed");
    let whole = all_files(source).remove(&dir().join(format!("ledger/{segment:010}.seg"))).expect("there");
    fetched.write(&whole[256..]).expect("healthy");
    unopened.finish_segment_repair(&fetched).expect("what was agreed on");
}

/// What has rotted besides the segment, so that everything has to be derived again.
const DERIVED: [&str; 5] =
    ["tx/0000000000.log", "commit/0000000000.log", "aht/0000000000.log", "seal/0000000000.log", "checkpoint"];

#[test]
fn nothing_is_derived_again_from_a_segment_that_is_not_the_sealed_one() {
    for lost in DERIVED {
        let (vfs, db, model) = filled(12);
        let sealed = db.segment_vote(1).expect("healthy").expect("closed").version;
        drop(db);
        let (whole, source) = copy(&vfs);
        rot_unnoticed(&vfs, 1);
        flip(&vfs, &dir().join(lost), 60);
        if lost == "checkpoint" {
            // Nothing tells before all is derived that the segment is another one. Then its seal does.
            let db = open(&vfs);
            assert_eq!(db.health(), Health::SealMismatch { segment: 1 });
            let repaired = db.repair_segment(1, sealed, &source);
            assert!(matches!(repaired, Err(Error::DerivedFromRot { segment: 1 })), "{repaired:?}");
        } else {
            let error = refused(&vfs, &BTreeMap::new());
            let named = match error {
                Error::SealDisputed { segment, .. } | Error::Corrupted { segment: Some(segment), .. } => segment,
                other => panic!("{lost}: {other:?}"),
            };
            assert_eq!(named, 1, "{lost}");
            mend(&vfs, &whole, 1, sealed);
        }
        let db = open(&vfs);
        assert_eq!(db.health(), Health::Sound);
        compare(&db, &model);
        assert_eq!(pass(&db, u64::MAX), [], "{lost}");
    }
}

#[test]
fn nothing_is_derived_again_from_a_segment_that_is_not_what_was_written_here() {
    let (vfs, db, model) = filled(12);
    let (whole, _) = copy(&vfs);
    let own = db.segment_vote(1).expect("healthy").expect("closed").version;
    drop(db);
    rot_with_fitting_checksum(&vfs, 1);
    flip(&vfs, &dir().join(DERIVED[0]), 60);
    let error = refused(&vfs, &BTreeMap::new());
    assert!(matches!(error, Error::Corrupted { segment: Some(1), damage: Damage::Hash, .. }), "{error:?}");
    mend(&vfs, &whole, 1, own);
    compare(&open(&vfs), &model);
}

#[test]
fn in_a_running_database_neither() {
    let (vfs, db, model) = filled(12);
    let (_, source) = copy(&vfs);
    let before = all_files(&vfs);
    rot_with_fitting_checksum(&vfs, 1);
    flip(&vfs, &dir().join(DERIVED[0]), 100);
    // A reader comes upon the one and nobody upon the other yet.
    assert!((1..=db.applied().tx.0).any(|tx| db.tx(TxId(tx)).is_err()));
    assert_eq!(db.damaged(), [Damaged::Derived]);
    let mended = db.mend(Some(&source)).expect("healthy");
    assert!(
        matches!(mended.waiting[..], [(Damaged::Derived, Error::Corrupted { segment: Some(1), .. })]),
        "{mended:?}"
    );
    assert_eq!(db.damaged(), [Damaged::Segment(1), Damaged::Derived], "now it is known");
    let mended = db.mend(Some(&source));
    assert!(matches!(mended, Err(Error::DerivedFromRot { segment: 1 })), "{mended:?}");
    drop(db);
    let db = open(&vfs);
    assert_eq!(pass(&db, u64::MAX), []);
    let kept = |files: BTreeMap<PathBuf, Vec<u8>>| {
        let of_the_log =
            files.into_iter().filter(|(path, _)| path.extension().is_some_and(|of| of == "seg" || of == "log"));
        of_the_log.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(kept(all_files(&vfs)), kept(before));
    compare(&db, &model);
}

#[test]
fn a_seal_that_is_wrong_keeps_it_closed_only_until_the_others_are_heard() {
    let (vfs, db, model) = filled(12);
    let own = db.segment_vote(1).expect("healthy").expect("closed").version;
    let sealed = db.seal(1).expect("healthy").expect("sealed");
    commit_command(&db, &Command::Seal(alhambra_storage::command::Seal { digest: [9; 32], ..sealed }))
        .expect("applies");
    db.checkpoint().expect("healthy");
    drop(db);
    flip(&vfs, &dir().join(DERIVED[0]), 60);
    let error = refused(&vfs, &BTreeMap::new());
    assert!(matches!(error, Error::SealDisputed { segment: 1, .. }), "{error:?}");
    let db = try_open(&vfs, BTreeMap::from([(1, own)])).expect("what counts is known");
    assert_eq!(db.health(), Health::Sound);
    assert_eq!(db.agreed_digest(1, 0), Some(own.digest));
    let corrections = db.pending_seals().expect("healthy");
    assert_eq!(corrections.iter().map(|seal| (seal.segment, seal.digest)).collect::<Vec<_>>(), [(1, own.digest.0)]);
    compare(&db, &model);
}

/// A database none of whose segments is sealed, applied and with a checkpoint up to the entry `checkpointed` of `entries`.
fn unsealed(entries: u64, checkpointed: u64) -> (Arc<dyn Vfs>, Model) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs);
    let mut model = Model::new();
    model.limits = Some(support::limits());
    commit_command(&db, &support::genesis()).expect("applies");
    for n in 1..=entries {
        let proposals = [put(&format!("k{}", n % 3), &[n as u8; 38]), put(&format!("l{n}"), &n.to_be_bytes())];
        let batch = support::batch(n as i64, &proposals);
        support::stage(&db, 1, FrameKind::Command, batch.encode()).expect("healthy");
        db.ledger().flush().expect("healthy");
        model.batch(n as i64, &proposals);
        if n <= checkpointed {
            apply_through(&db, n).expect("healthy");
        }
    }
    db.checkpoint().expect("healthy");
    db.ledger().settle().expect("healthy");
    (vfs, model)
}

#[test]
fn what_is_derived_again_is_what_the_checkpoint_says_or_the_others_are_asked() {
    let (vfs, model) = unsealed(60, 60);
    let (whole, _) = copy(&vfs);
    let right = version(&vfs, 1);
    rot_unnoticed(&vfs, 1);
    flip(&vfs, &dir().join(DERIVED[0]), 60);
    let mut settled = BTreeMap::new();
    // Whoever asks others about the one that is named, and hears that they have the same, goes on with the next.
    for number in 0..2 {
        match refused(&vfs, &settled) {
            Error::Corrupted { segment: Some(named), damage: Damage::Changed, .. } => assert_eq!(named, number),
            other => panic!("segment {number}: {other:?}"),
        }
        settled.insert(number, version(&vfs, number));
    }
    mend(&vfs, &whole, 1, right);
    let db = open(&vfs);
    apply_through(&db, 60).expect("whole");
    compare(&db, &model);
}

#[test]
fn a_checkpoint_that_is_not_what_the_ledger_gives_gives_way() {
    let (vfs, model) = unsealed(60, 60);
    let (whole, _) = copy(&vfs);
    // A checkpoint of rot, as an earlier release could leave it, and everything else whole.
    rot_unnoticed(&vfs, 1);
    vfs.remove_file(&dir().join("checkpoint")).expect("there");
    let db = open(&vfs);
    apply_through(&db, 60).expect("its checksums fit");
    db.checkpoint().expect("healthy");
    assert_ne!(db.applied().alh.0, model.txs.last().expect("filled").alh);
    drop(db);
    for (path, bytes) in all_files(&whole) {
        if path.starts_with(dir().join("ledger")) {
            let file = vfs.open(&path, alhambra_storage::vfs::OpenMode::Create).expect("healthy");
            file.set_len(0).and_then(|()| file.write_at(0, &bytes)).expect("healthy");
        }
    }
    flip(&vfs, &dir().join(DERIVED[0]), 60);
    let settled = (0..).map_while(|number| {
        let unopened = alhambra_storage::Unopened::open(Arc::clone(&vfs), &dir(), support::spec()).expect("whole");
        Some((number, unopened.segment_vote(number).expect("healthy")?.version))
    });
    let settled = settled.collect();
    let db = try_open(&vfs, settled).expect("all segments are what counts");
    apply_through(&db, 60).expect("healthy");
    compare(&db, &model);
}

/// How a replica comes to know that what it has applied is not what counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Learns {
    /// In the life in which it has applied it.
    AtOnce,
    /// After a restart, with a checkpoint of it.
    AfterARestart,
    /// When it has failed for another reason, so that the segment is replaced before it is open.
    Unopened,
}

#[test]
fn what_was_derived_before_anybody_could_know_is_derived_again() {
    for (learns, sidecar) in [
        (Learns::AtOnce, false),
        (Learns::AfterARestart, false),
        (Learns::Unopened, false),
        (Learns::AtOnce, true),
        (Learns::AfterARestart, true),
        (Learns::Unopened, true),
    ] {
        // The last segments are applied from their files when it opens, as after any crash, and are sealed only then.
        let (vfs, mut model) = unsealed(60, 4);
        let (whole, source) = copy(&vfs);
        let rotten = 2;
        let right = version(&vfs, rotten);
        rot_with_fitting_checksum(&vfs, rotten);
        if !sidecar {
            lose_sidecar(&vfs, rotten);
        }
        let mut db = open(&vfs);
        apply_through(&db, 60).expect("its checksums fit");
        assert_ne!(db.applied().alh.0, model.txs.last().expect("filled").alh, "it differs from the others");
        let leader = try_open(&whole, BTreeMap::new()).expect("whole");
        apply_through(&leader, 60).expect("whole");
        let seals = leader.pending_seals().expect("healthy");
        assert!(seals.len() as u64 > rotten);
        for seal in seals {
            commit_command(&db, &Command::Seal(seal)).expect("applies");
        }
        db.checkpoint().expect("healthy");
        let last = support::next_index(&db) - 1;
        let next = put("k", b"v");
        if learns != Learns::AtOnce {
            drop(db);
            db = open(&vfs);
        }
        // What is remembered of the segment may be right, and its bytes are not.
        let health = if sidecar { Health::Sound } else { Health::SealMismatch { segment: rotten } };
        assert_eq!(db.compare_seals().expect("healthy"), health);
        if learns == Learns::Unopened {
            drop(db);
            mend(&vfs, &whole, rotten, right);
        } else {
            match db.repair_segment(rotten, right, &source) {
                Err(Error::DerivedFromRot { segment }) => assert_eq!(segment, rotten),
                other => panic!("{learns:?}: {other:?}"),
            }
            let refused = commit_command(&db, &support::batch(99, std::slice::from_ref(&next)));
            assert!(matches!(refused, Err(Error::Poisoned)), "{refused:?}");
            db.checkpoint().expect_err("of what is wrong none is taken");
            drop(db);
        }
        let db = open(&vfs);
        apply_through(&db, support::next_index(&db) - 1).expect("whole");
        if support::next_index(&db) - 1 > last {
            model.batch(99, &[next]);
        }
        assert_eq!(db.health(), Health::Sound);
        compare(&db, &model);
    }
}

#[test]
fn damage_that_a_checksum_tells_misleads_nobody() {
    let (vfs, db, model) = filled(12);
    let (_, source) = copy(&vfs);
    flip(&vfs, &dir().join("ledger/0000000001.seg"), 400);
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)]);
    assert_eq!(db.mend(Some(&source)).expect("healthy").repaired, [Damaged::Segment(1)]);
    db.checkpoint().expect("it goes on");
    compare(&db, &model);
}

#[test]
fn the_newest_nodes_of_the_tree_are_hashed_again_at_open() {
    for batches in [12, 13] {
        let (vfs, db, mut model) = filled(batches);
        drop(db);
        let aht = dir().join("aht/0000000000.log");
        let len = all_files(&vfs)[&aht].len() as u64;
        // Whatever transaction is the newest, its own leaf has completed the last ones.
        for back in [1, 33, 65] {
            flip(&vfs, &aht, len - back);
        }
        let db = open(&vfs);
        let next = [put("k", b"v"), put("l", b"w")];
        for n in 90..94 {
            commit_command(&db, &support::batch(n, &next)).expect("applies");
            model.batch(n, &next);
        }
        compare(&db, &model);
    }
}

#[test]
fn damage_that_apply_has_met_is_gone_after_the_next_opening() {
    let (vfs, db, model) = filled(12);
    // The record of the first transaction, which no opening reads.
    flip(&vfs, &dir().join("tx/0000000000.log"), 70);
    let prune = Command::Prune(alhambra_storage::command::Prune {
        order: None,
        target: alhambra_storage::command::PruneTarget::Value { tx: TxId(1), entry: 0 },
    });
    let error = commit_command(&db, &prune).expect_err("the record is needed");
    assert!(matches!(error, Error::Corrupted { segment: None, .. }), "{error:?}");
    let last = support::next_index(&db) - 1;
    db.give_up_damaged().expect("healthy");
    drop(db);
    let db = open(&vfs);
    apply_through(&db, last).expect("derived again");
    assert_eq!(db.applied().tx.0, model.txs.len() as u64);
}

#[test]
fn an_index_that_has_read_what_had_rotted_is_made_anew() {
    let (vfs, db, model) = filled(12);
    let agreed = db.segment_vote(1).expect("healthy").expect("closed").version;
    drop(db);
    let (_, source) = copy(&vfs);
    // A key becomes another one, in a frame whose checksum fits.
    let segment = dir().join("ledger/0000000001.seg");
    let body = all_files(&vfs).remove(&segment).expect("there");
    let key = (0..12).find_map(|n| {
        let key = format!("l{n}");
        let at = body.windows(key.len()).position(|found| found == key.as_bytes())?;
        Some((key, at as u64))
    });
    let (key, at) = key.expect("a key stands there");
    twist(&vfs, &segment, at);
    vfs.remove_file(&segment.with_extension("idx")).expect("there");
    vfs.remove_dir_all(&dir().join("index")).expect("there");
    let db = open(&vfs);
    while db.index_work().expect("healthy") {}
    let has = |db: &Database| {
        let snapshot = db.snapshot();
        snapshot.get(key.as_bytes()).is_ok_and(|found| found.is_some())
    };
    assert!(!has(&db), "the index has another key");
    db.checkpoint().expect("healthy");
    drop(db);
    let db = open(&vfs);
    assert!(!has(&db), "nor after a restart");
    let repaired = db.repair_segment(1, agreed, &source);
    assert!(matches!(repaired, Err(Error::DerivedFromRot { segment: 1 })), "{repaired:?}");
    drop(db);
    let db = open(&vfs);
    while db.index_work().expect("healthy") {}
    assert!(has(&db));
    compare(&db, &model);
}

/// Changes the byte of a frame at `at` of a file, and the checksum of the frame with it.
fn twist(vfs: &Arc<dyn Vfs>, path: &Path, at: u64) {
    let bytes = all_files(vfs).remove(path).expect("there");
    let mut frame = 256;
    loop {
        let len = u32::from_be_bytes(bytes[frame..frame + 4].try_into().expect("4 bytes")) as usize;
        assert!(len > 0, "byte {at} is in no frame");
        if (at as usize) < frame + 8 + len {
            let mut body = bytes[frame + 8..frame + 8 + len].to_vec();
            body[at as usize - frame - 8] ^= 1;
            let file = vfs.open(path, alhambra_storage::vfs::OpenMode::ReadWrite).expect("there");
            file.write_at(frame as u64 + 8, &body).expect("healthy");
            file.write_at(frame as u64 + 4, &crate::fsck::crc32c(&body).to_be_bytes()).expect("healthy");
            return;
        }
        frame += 8 + len;
    }
}
