//! Rot in a database that has lost values to prunes: the offline check and the scrub find it wherever it sits, repair takes a
//! segment of the own generation or, when a majority says so, of a later one, and a crash leaves the old or the new file.

use std::path::PathBuf;
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_storage::command::{Citation, Command, Compression, Prune, PruneTarget, Seal};
use alhambra_storage::error::Damage;
use alhambra_storage::fsck::{self, Checked};
use alhambra_storage::repair::FolderSource;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::Crash;
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Damaged, Database, Error, Health, SegmentVersion, Unopened};

use crate::fsck::crc32c;
use crate::prune::{Order, carry_out, check, pruned};
use crate::repair::{
    copy, first_frame, lose_sidecar, rot_byte_of_frame, rot_byte_with_fitting_checksum, rot_unnoticed,
    rot_with_fitting_checksum,
};
use crate::replicas::files;
use crate::scrub::{all_files, pass};
use crate::support::{self, apply_through, dir, open};
use crate::transfer::flip;

const ALL: LogIndex = LogIndex(u64::MAX);

fn segment(number: u64) -> PathBuf {
    dir().join(format!("ledger/{number:010}.seg"))
}

fn prune_all(db: &Database) {
    while db.prune_step(ALL).expect("healthy").rewritten.is_some() {}
    db.seal_closed().expect("healthy");
    db.checkpoint().expect("healthy");
}

/// Opens the database, whose segment was mended, and prunes: it has to end as `ahead`, which never had rotted.
fn derived_again_and_equal(vfs: &Arc<dyn Vfs>, ahead: &Arc<dyn Vfs>, number: u64, what: &str) -> Database {
    let db = crate::scrub::open(vfs);
    apply_through(&db, support::next_index(&db) - 1).expect("derived again");
    prune_all(&db);
    assert_eq!(bytes_of(vfs, &segment(number)), bytes_of(ahead, &segment(number)), "R2, {what}");
    db
}

fn generations(db: &Database) -> Vec<u32> {
    db.ledger().segments().iter().map(|segment| segment.generation).collect()
}

fn derive_again(vfs: &Arc<dyn Vfs>) -> Checked {
    fsck::check(vfs, &dir(), None, &mut |_| true).expect("readable")
}

fn bytes_of(vfs: &Arc<dyn Vfs>, path: &std::path::Path) -> Vec<u8> {
    let file = vfs.open(path, OpenMode::Read).expect("there");
    file.read_at(0, file.len().expect("there") as usize).expect("there").to_vec()
}

#[test]
fn a_pruned_database_is_derived_again_and_every_flipped_byte_of_a_segment_is_found() {
    let (vfs, db, model, _) = pruned(Compression::Lz4);
    prune_all(&db);
    drop(db);
    let before = files(&vfs, &dir());
    let mut last = fsck::Progress::default();
    let checked = fsck::check(&vfs, &dir(), None, &mut |progress| {
        last = progress;
        true
    })
    .expect("readable");
    assert!(checked.is_sound() && checked.complete, "{:?}", checked.findings);
    assert_eq!(checked.txs, model.txs.len() as u64);
    // Its last merge was given up with it.
    assert!(checked.unfinished.iter().all(|path| path.starts_with(dir().join("index"))), "{:?}", checked.unfinished);
    assert!(checked.sealed > 3 && last.bytes_done <= last.bytes_total);
    assert_eq!(files(&vfs, &dir()), before, "nothing is changed");

    let (first, next, with_tx) = {
        let db = open(&vfs, &dir()).expect("sound");
        let segments = db.ledger().segments();
        assert!(segments[1].generation == 1 && segments[1].hole_count > 1, "{:?}", segments[1]);
        let tx_of = |index| (1..=model.txs.len() as u64).map(TxId).find(|tx| db.log_index_of(*tx).unwrap() >= index);
        let with_tx = (1..=model.txs.len() as u64).map(|tx| db.log_index_of(TxId(tx)).unwrap());
        let (first, next) = (segments[1].first_log_id.index, segments[2].first_log_id.index);
        (tx_of(first).unwrap(), tx_of(next).unwrap(), with_tx.collect::<Vec<_>>())
    };
    let carries_tx = |index| with_tx.contains(&index);
    let path = segment(1);
    let (mut named, mut unnamed) = (0, 0);
    for at in 0..bytes_of(&vfs, &path).len() as u64 {
        flip(&vfs, &path, at);
        let checked = derive_again(&vfs);
        let bad = checked.findings.first().unwrap_or_else(|| panic!("byte {at}"));
        assert_eq!(bad.path(), Some(&*path), "byte {at}: {bad}");
        match bad.tx {
            Some(tx) => {
                assert!(first <= tx && tx < next, "byte {at}: {bad}");
                named += 1;
            }
            // The log entry of a seal carries none.
            None => {
                assert!(!carries_tx(bad.log_index.expect("named")), "byte {at}: {bad}");
                unnamed += 1;
            }
        }
        flip(&vfs, &path, at);
    }
    assert!(named > unnamed && unnamed > 0, "{named} named, {unnamed} not");
    assert!(derive_again(&vfs).is_sound(), "flipped back");
}

#[test]
fn a_hash_that_rotted_with_its_checksum_names_its_transaction() {
    let (vfs, db, ..) = pruned(Compression::None);
    prune_all(&db);
    let info = db.ledger().segments()[1];
    drop(db);
    let path = segment(1);
    let bytes = bytes_of(&vfs, &path);
    let rows = bytes.len() - 8 - 40 * info.hole_count as usize;
    // The hash of the last value but one, and the checksum of the table.
    let at = bytes.len() - 8 - 80 + 8;
    flip(&vfs, &path, at as u64);
    let file = vfs.open(&path, OpenMode::ReadWrite).expect("there");
    let table = file.read_at(rows as u64, bytes.len() - 4 - rows).expect("there");
    file.write_at(bytes.len() as u64 - 4, &crc32c(&table).to_be_bytes()).expect("written");
    let offset = u64::from(u32::from_be_bytes(bytes[at - 8..at - 4].try_into().expect("4 bytes")));
    let checked = derive_again(&vfs);
    let bad = checked.first_bad_tx().expect("found");
    assert!(bad.path().expect("a file").starts_with(dir().join("tx")), "{bad}");
    assert_eq!(bad.derived_from.as_ref().map(|(path, _)| path), Some(&path));
    let sealed = checked.findings.iter().find(|finding| finding.path() == Some(&path)).expect("the seal is against it");
    assert!(matches!(sealed.error, Error::Corrupted { damage: Damage::Hash, .. }), "{sealed}");
    // The record of that transaction says that its value stood there.
    let db = open(&vfs, &dir()).expect("opens");
    let entries = db.tx(bad.tx.expect("named")).expect("applied").entries;
    assert!(entries.iter().any(|entry| entry.value_at.0 == info.first_offset.0 + offset), "{bad}");
}

#[test]
fn an_interrupted_check_goes_on_although_segments_were_pruned_meanwhile() {
    let (vfs, db, model, _) = pruned(Compression::None);
    db.checkpoint().expect("healthy");
    drop(db);
    let position = std::path::Path::new("/position");
    let mut calls = 0;
    let first = fsck::check(&vfs, &dir(), Some(position), &mut |_| {
        calls += 1;
        calls < 4
    })
    .expect("readable");
    assert!(!first.complete && first.is_sound() && first.txs > 0);
    let db = open(&vfs, &dir()).expect("sound");
    prune_all(&db);
    drop(db);
    let rest = fsck::check(&vfs, &dir(), Some(position), &mut |_| true).expect("readable");
    assert!(rest.is_sound() && rest.complete, "{:?}", rest.findings);
    assert!(rest.resumed_after > 0);
    assert_eq!(rest.resumed_after + rest.txs, model.txs.len() as u64);
}

#[test]
fn a_scrub_finds_every_flipped_byte_and_what_is_damaged_is_mended() {
    let (vfs, db, model, prunes) = pruned(Compression::Lz4);
    prune_all(&db);
    let (_, source) = copy(&vfs);
    for budget in [1, 100, u64::MAX] {
        assert_eq!(pass(&db, budget), []);
    }
    let before = all_files(&vfs);
    let sidecar = dir().join("ledger/0000000001.idx");
    let cases = [
        (segment(1), Damaged::Segment(1)),
        (sidecar, Damaged::Sidecar(1)),
        (dir().join("prune/0000000000.log"), Damaged::Derived),
        (dir().join("pruned"), Damaged::PruneMark),
    ];
    for (path, damaged) in cases {
        for at in 0..before[&path].len() as u64 {
            flip(&vfs, &path, at);
            let mut found = pass(&db, u64::MAX);
            found.dedup();
            assert_eq!(found, [damaged], "{} byte {at}", path.display());
            if matches!(damaged, Damaged::Segment(_)) {
                let alone = db.mend(None).expect("healthy");
                if at < 256 {
                    // The header is a function of what is known, so this needs nobody.
                    assert_eq!((alone.repaired, alone.waiting.len()), (vec![damaged], 0), "byte {at}");
                    assert!(all_files(&vfs) == before, "byte {at}");
                    continue;
                }
                assert!(matches!(alone.waiting[..], [(Damaged::Segment(1), Error::Corrupted { .. })]), "{alone:?}");
            }
            let mended = db.mend(Some(&source)).expect("healthy");
            assert_eq!((mended.repaired, mended.waiting.len()), (vec![damaged], 0), "{} byte {at}", path.display());
            assert!(all_files(&vfs) == before, "{} byte {at}", path.display());
        }
    }
    check(&db, &model, &prunes);
}

#[test]
fn a_damaged_mark_of_prunes_that_are_done_costs_a_look_and_nothing_else() {
    let (vfs, db, model, prunes) = pruned(Compression::None);
    prune_all(&db);
    drop(db);
    let mark = dir().join("pruned");
    let before = files(&vfs, &dir().join("ledger"));
    flip(&vfs, &mark, 30);
    let db = open(&vfs, &dir()).expect("opens");
    assert_eq!(pass(&db, u64::MAX), [Damaged::PruneMark]);
    assert_eq!(db.mend(None).expect("healthy").repaired, [Damaged::PruneMark]);
    assert!(!vfs.exists(&mark).expect("healthy"), "what says nothing is removed");
    assert!(db.has_pruning_to_do());
    assert_eq!(db.prune_step(ALL).expect("healthy").rewritten, None);
    assert!(!db.has_pruning_to_do() && vfs.exists(&mark).expect("healthy"));
    assert_eq!(files(&vfs, &dir().join("ledger")), before);
    check(&db, &model, &prunes);
}

/// A database with a rotten segment 1 that has lost nothing and is read from disk, and one that has pruned all it can.
struct Behind {
    vfs: Arc<dyn Vfs>,
    db: Database,
    ahead: Arc<dyn Vfs>,
    source: FolderSource,
    /// Of segment 1 there.
    agreed: SegmentVersion,
}

fn one_behind() -> Behind {
    let (vfs, db, ..) = pruned(Compression::None);
    db.checkpoint().expect("healthy");
    let (ahead, source) = copy(&vfs);
    let other = open(&ahead, &dir()).expect("sound");
    while other.prune_step(ALL).expect("healthy").rewritten.is_some() {}
    let agreed = other.segment_vote(1).expect("healthy").expect("closed").version;
    assert_eq!(agreed.generation, 1);
    drop(db);
    flip(&vfs, &segment(1), 400);
    let db = crate::scrub::open(&vfs);
    Behind { vfs, db, ahead, source, agreed }
}

#[test]
fn a_rotten_segment_that_the_others_have_pruned_comes_in_their_generation_when_a_majority_says_so() {
    let Behind { vfs, db, ahead, source, agreed } = one_behind();
    let (.., model, prunes) = pruned(Compression::None);
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)]);
    // The others go on, the rotten one is told of.
    let others = db.ledger().segments().len() as u64;
    while db.prune_step(ALL).is_ok_and(|progress| progress.rewritten.is_some()) {}
    assert!(matches!(db.prune_step(ALL), Err(Error::Corrupted { segment: Some(1), .. })));
    let generations = generations(&db);
    assert!(others > 4 && generations[1] == 0 && generations[0] == 1 && generations[2] == 1, "{generations:?}");
    let before = all_files(&vfs);
    // No source has the own generation, and nothing is taken for being the only thing there is.
    let mended = db.mend(Some(&source)).expect("healthy");
    assert!(matches!(mended.waiting[..], [(Damaged::Segment(1), Error::Corrupted { .. })]), "{mended:?}");
    for wrong in [SegmentVersion { generation: 0, ..agreed }, SegmentVersion { digest: Digest([7; 32]), ..agreed }] {
        db.repair_segment(1, wrong, &source).expect_err("not what was agreed on");
    }
    assert!(all_files(&vfs) == before, "nothing came in");
    db.repair_segment(1, agreed, &source).expect("a majority has it");
    assert_eq!(bytes_of(&vfs, &segment(1)), bytes_of(&ahead, &segment(1)), "R2");
    assert_eq!(pass(&db, u64::MAX), []);
    assert_eq!(db.prune_step(ALL).expect("healthy").rewritten, None, "nothing is left to do");
    db.seal_closed().expect("healthy");
    assert_eq!(db.seal(1).expect("healthy").expect("sealed").generation, 1);
    check(&db, &model, &prunes);
    // One that has lost values is not replaced by one that has not.
    let whole = SegmentVersion { generation: 0, digest: Digest([0; 32]) };
    assert!(matches!(db.repair_segment(1, whole, &source), Err(Error::NoSuchSegment { number: 1 })));
}

#[test]
fn rot_with_a_fitting_checksum_is_not_written_again_under_a_digest_of_its_own() {
    let (vfs, db, model, prunes) = pruned(Compression::None);
    db.checkpoint().expect("healthy");
    let (_, whole) = copy(&vfs);
    let (ahead, _) = copy(&vfs);
    prune_all(&open(&ahead, &dir()).expect("sound"));
    drop(db);
    // Opened without reading the frames: the sidecar tells of them.
    let db = crate::scrub::open(&vfs);
    rot_with_fitting_checksum(&vfs, 1);
    while db.prune_step(ALL).is_ok_and(|progress| progress.rewritten.is_some()) {}
    let refused = db.prune_step(ALL);
    assert!(matches!(refused, Err(Error::Corrupted { segment: Some(1), damage: Damage::Hash, .. })), "{refused:?}");
    assert_eq!(db.ledger().segments()[1].generation, 0);
    assert_eq!(db.damaged(), [Damaged::Segment(1)]);
    let mended = db.mend(Some(&whole));
    assert!(matches!(mended, Err(Error::DerivedFromRot { segment: 1 })), "{mended:?}");
    drop(db);
    let db = derived_again_and_equal(&vfs, &ahead, 1, "segment 1");
    check(&db, &model, &prunes);
}

/// Where the payload of a frame begins in what its checksum covers.
const PAYLOAD_AT: usize = 17;

/// A healthy database that has heard that the others have pruned segment 1, and has not begun; one that has; and what that
/// holds of the segment.
fn told_of_a_later_generation() -> (Arc<dyn Vfs>, Arc<dyn Vfs>, FolderSource, SegmentVersion) {
    let (vfs, db, ..) = pruned(Compression::None);
    db.checkpoint().expect("healthy");
    let (ahead, source) = copy(&vfs);
    let other = open(&ahead, &dir()).expect("sound");
    prune_all(&other);
    let sealed = other.seal(1).expect("healthy").expect("sealed");
    let agreed = other.segment_vote(1).expect("healthy").expect("closed").version;
    assert_eq!((sealed.generation, agreed.generation), (1, 1));
    support::commit_command(&db, &Command::Seal(sealed)).expect("applies");
    db.checkpoint().expect("healthy");
    (vfs, ahead, source, agreed)
}

#[test]
fn a_segment_that_is_not_the_sealed_one_is_known_although_a_later_generation_is_sealed_already() {
    let (healthy, ahead, source, agreed) = told_of_a_later_generation();
    let (.., model, prunes) = pruned(Compression::None);
    let (mut stayed, mut went_on, mut gone) = (0, 0, 0);
    for at in PAYLOAD_AT..first_frame(&healthy, 1) {
        let (vfs, _) = copy(&healthy);
        rot_byte_with_fitting_checksum(&vfs, 1, at);
        // Nothing but the seal of what it was before can tell any more.
        lose_sidecar(&vfs, 1);
        let db = crate::scrub::open(&vfs);
        assert_eq!(db.health(), Health::SealMismatch { segment: 1 }, "byte {at}");
        assert_eq!(db.damaged(), [Damaged::Segment(1)], "byte {at}");
        assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)], "byte {at}");
        while db.prune_step(ALL).is_ok_and(|progress| progress.rewritten.is_some()) {}
        let generations = generations(&db);
        assert_eq!((generations[0], generations[2]), (1, 1), "byte {at}: the others need not wait");
        match (generations[1], db.compare_seals().expect("healthy")) {
            (0, _) => stayed += 1,
            // What had rotted is gone with a value.
            (_, Health::Sound) => {
                gone += 1;
                assert_eq!(bytes_of(&vfs, &segment(1)), bytes_of(&ahead, &segment(1)), "R2, byte {at}");
                check(&db, &model, &prunes);
                continue;
            }
            _ => went_on += 1,
        }
        assert_eq!(db.compare_seals().expect("healthy"), Health::SealMismatch { segment: 1 }, "byte {at}");
        let mended = db.mend(Some(&source)).expect("healthy");
        let waits = |what: &(Damaged, Error)| matches!(what, (Damaged::Segment(1), Error::SealDisputed { .. }));
        assert!(mended.waiting.iter().any(waits), "byte {at}: {mended:?}");
        let mended = db.repair_segment(1, agreed, &source);
        assert!(matches!(mended, Err(Error::DerivedFromRot { segment: 1 })), "byte {at}: {mended:?}");
        drop(db);
        let db = derived_again_and_equal(&vfs, &ahead, 1, &format!("byte {at}"));
        assert_eq!(db.health(), Health::Sound, "byte {at}");
        check(&db, &model, &prunes);
    }
    assert!(stayed > 0 && went_on > 0 && gone > 0, "{stayed} stayed, {went_on} went on, {gone} gone");
}

/// What would come of it no seal speaks of.
#[test]
fn a_segment_in_dispute_is_written_again_no_further_than_it_is_sealed() {
    let (vfs, db, mut model, mut prunes) = pruned(Compression::None);
    db.checkpoint().expect("healthy");
    let (ahead, _) = copy(&vfs);
    let other = open(&ahead, &dir()).expect("sound");
    prune_all(&other);
    // It holds values on both sides of where the first truncation ended.
    let segments = other.ledger().segments();
    let last = segments.iter().filter(|info| info.generation == 1).map(|info| info.number).max().expect("pruned");
    support::commit_command(&db, &Command::Seal(other.seal(last).expect("healthy").expect("sealed"))).expect("applies");
    let (command, ..) = carry_out(&Order::Before(80), 90, &mut model, &mut prunes);
    let Command::Prune(Prune { order, target }) = command else { panic!("a prune") };
    db.prune(order, target).expect("healthy");
    db.checkpoint().expect("healthy");
    drop(db);
    rot_unnoticed(&vfs, last);
    let db = crate::scrub::open(&vfs);
    assert_eq!(db.health(), Health::SealMismatch { segment: last });
    while db.prune_step(ALL).is_ok_and(|progress| progress.rewritten.is_some()) {}
    assert!(db.has_pruning_to_do(), "it is not done with");
    assert_eq!(generations(&db)[last as usize - 1..][..3], [1, 0, 2]);
}

/// Nor does it become a generation that was left out, of which no seal speaks either.
#[test]
fn a_segment_in_dispute_is_not_written_again_below_what_is_sealed() {
    let (vfs, db, ..) = pruned(Compression::None);
    let segments = db.ledger().segments();
    let holds = |number: usize, tx| {
        let index = db.log_index_of(TxId(tx)).expect("applied");
        segments[number].first_log_id.index <= index && index <= segments[number].last_log_id.index
    };
    // It holds values of both prunes: of the truncation, and one that is named behind it.
    let number = (0..segments.len()).find(|number| holds(*number, 60)).expect("closed");
    let later = (61..=120).rev().find(|tx| holds(number, *tx)).expect("it does not end with the truncation");
    let order = Citation { tx: TxId(121), alh: [1; 32] };
    db.prune(Some(order), PruneTarget::Value { tx: TxId(later), entry: 0 }).expect("healthy");
    db.checkpoint().expect("healthy");
    let (ahead, source) = copy(&vfs);
    let other = open(&ahead, &dir()).expect("sound");
    prune_all(&other);
    let agreed = other.segment_vote(number as u64).expect("healthy").expect("closed").version;
    assert_eq!(agreed.generation, 2, "at once");
    let sealed = other.seal(number as u64).expect("healthy").expect("sealed");
    support::commit_command(&db, &Command::Seal(sealed)).expect("applies");
    db.checkpoint().expect("healthy");
    let index = db.log_index_of(TxId(later)).expect("applied");
    let (position, _) = db.ledger().read(index, ALL, 1).expect("healthy").remove(0);
    let at = 256 + position.0 - segments[number].first_offset.0;
    let info = segments[number];
    drop(db);
    // Its kind: no command any more, and so nothing to prune in it.
    rot_byte_of_frame(&vfs, info.number, at, PAYLOAD_AT - 1);
    lose_sidecar(&vfs, info.number);
    let db = crate::scrub::open(&vfs);
    assert_eq!(db.health(), Health::SealMismatch { segment: info.number });
    while db.prune_step(ALL).is_ok_and(|progress| progress.rewritten.is_some()) {}
    assert_eq!(db.ledger().segments()[number].generation, 0);
    assert_eq!(db.compare_seals().expect("healthy"), Health::SealMismatch { segment: info.number });
    assert!(db.has_pruning_to_do(), "it is not done with");
    let mended = db.repair_segment(info.number, agreed, &source);
    assert!(matches!(mended, Err(Error::DerivedFromRot { .. })), "{mended:?}");
    drop(db);
    let db = derived_again_and_equal(&vfs, &ahead, info.number, "of two prunes");
    assert!(!db.has_pruning_to_do());
}

#[test]
fn nothing_is_derived_again_from_a_segment_that_is_not_what_was_sealed_before() {
    let (vfs, ahead, _, agreed) = told_of_a_later_generation();
    let (.., model, prunes) = pruned(Compression::None);
    rot_unnoticed(&vfs, 1);
    flip(&vfs, &dir().join("tx/0000000000.log"), 60);
    let refused = Database::open(Arc::clone(&vfs), &dir(), support::spec(), crate::scrub::options());
    assert!(matches!(refused, Err(Error::SealDisputed { segment: 1, .. })), "{refused:?}");
    let unopened = Unopened::open(Arc::clone(&vfs), &dir(), support::spec()).expect("its log is whole");
    let own = unopened.segment_vote(1).expect("healthy").expect("closed").version;
    assert_ne!(unopened.sealed_digest(1, 0).expect("sealed before"), own.digest);
    assert_eq!(unopened.sealed_digest(1, 1), Some(agreed.digest));
    let mut fetched = unopened.begin_segment_repair(1, agreed).expect("committed");
    fetched.write(&bytes_of(&ahead, &segment(1))[256..]).expect("healthy");
    unopened.finish_segment_repair(&fetched).expect("what was agreed on");
    drop(unopened);
    let db = derived_again_and_equal(&vfs, &ahead, 1, "segment 1");
    check(&db, &model, &prunes);
}

#[test]
fn a_segment_in_dispute_stays_so_while_the_seals_cannot_be_read() {
    let (vfs, ..) = told_of_a_later_generation();
    rot_unnoticed(&vfs, 1);
    let db = crate::scrub::open(&vfs);
    flip(&vfs, &dir().join("seal/0000000000.log"), 90);
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1), Damaged::Derived]);
    let mended = db.mend(None).expect("healthy");
    let is_disputed = |(what, error): &(Damaged, Error)| {
        *what == Damaged::Segment(1) && matches!(error, Error::SealDisputed { segment: 1, .. })
    };
    assert!(mended.repaired.is_empty() && mended.waiting.iter().any(is_disputed), "{mended:?}");
    assert_eq!(db.health(), Health::SealMismatch { segment: 1 });
}

#[test]
fn a_wrong_seal_of_what_it_was_before_does_not_keep_its_values() {
    let (vfs, ahead, ..) = told_of_a_later_generation();
    let db = crate::scrub::open(&vfs);
    let own = db.segment_vote(1).expect("healthy").expect("closed").version;
    let later = db.seal(1).expect("healthy").expect("sealed");
    for settled in [false, true] {
        // As if its leader had rotted before it sealed, and had been mended behind that.
        let (vfs, db, ..) = pruned(Compression::None);
        let first = db.seal(1).expect("healthy").expect("sealed");
        assert_eq!(first.digest, own.digest.0);
        for seal in [Seal { digest: [9; 32], ..first }, later.clone()] {
            support::commit_command(&db, &Command::Seal(seal)).expect("applies");
        }
        assert_eq!(db.compare_seals().expect("healthy"), Health::SealMismatch { segment: 1 });
        if settled {
            db.settle_segment(1, own).expect("healthy");
            assert_eq!(db.compare_seals().expect("healthy"), Health::Sound);
            assert_eq!(db.agreed_digest(1, 0), Some(own.digest));
            let pending = db.pending_seals().expect("healthy");
            assert!(
                pending.iter().all(|seal| seal.segment != 1),
                "nobody seals what all have left behind: {pending:?}"
            );
        }
        prune_all(&db);
        assert_eq!(db.compare_seals().expect("healthy"), Health::Sound);
        assert_eq!(bytes_of(&vfs, &segment(1)), bytes_of(&ahead, &segment(1)), "R2");
    }
}

#[test]
fn rot_that_makes_a_command_unreadable_is_for_a_repair() {
    let (healthy, db, ..) = pruned(Compression::None);
    db.checkpoint().expect("healthy");
    drop(db);
    let (_, whole) = copy(&healthy);
    let mut unreadable = 0;
    for at in PAYLOAD_AT..first_frame(&healthy, 1) {
        let (vfs, _) = copy(&healthy);
        let db = crate::scrub::open(&vfs);
        rot_byte_with_fitting_checksum(&vfs, 1, at);
        let frames = db.ledger().read(db.ledger().segments()[1].first_log_id.index, ALL, 1).expect("its checksum fits");
        unreadable += u32::from(Command::decode(&frames[0].1.payload).is_err());
        while db.prune_step(ALL).is_ok_and(|progress| progress.rewritten.is_some()) {}
        let generations = generations(&db);
        assert_eq!(generations[..3], [1, 0, 1], "byte {at}: the others need not wait");
        if !db.damaged().contains(&Damaged::Segment(1)) {
            // Where it says that a value stands elsewhere, what was derived of it is doubted first.
            assert_eq!(db.damaged(), [Damaged::Derived], "byte {at}");
            db.mend(Some(&whole)).expect("nothing is derived from it");
        }
        let mended = db.mend(Some(&whole));
        assert!(matches!(mended, Err(Error::DerivedFromRot { segment: 1 })), "byte {at}: {mended:?}");
    }
    assert!(unreadable > 0);
}

#[test]
fn a_crash_while_a_later_generation_comes_in_leaves_the_old_or_the_new_file() {
    let (mut done, mut not_done) = (0, 0);
    for step in 0.. {
        let Behind { vfs, db, ahead, source, agreed } = one_behind();
        drop(db);
        let (.., model, prunes) = pruned(Compression::None);
        let disk = alhambra_storage::vfs::mem::MemVfs::new();
        for (path, bytes) in all_files(&vfs) {
            disk.create_dir_all(path.parent().expect("in a folder")).expect("healthy");
            let file = disk.open(&path, OpenMode::Create).expect("healthy");
            file.write_at(0, &bytes).and_then(|()| file.sync_data()).expect("healthy");
            disk.sync_dir(path.parent().expect("in a folder")).expect("healthy");
        }
        let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
        let vfs: Arc<dyn Vfs> = faulty.clone();
        let db = open(&vfs, &dir()).expect("opens");
        apply_through(&db, support::next_index(&db) - 1).expect("applies");
        faulty.fail_after(step, Fault::Crash);
        let repaired = db.repair_segment(1, agreed, &source);
        drop(db);
        if repaired.is_ok() {
            assert!(step > 4, "{step} steps");
            break;
        }
        disk.crash(if step % 2 == 0 { Crash::PowerLoss } else { Crash::PowerLossTorn { seed: step } });
        let vfs: Arc<dyn Vfs> = Arc::new(disk);
        let new = bytes_of(&vfs, &segment(1)) == bytes_of(&ahead, &segment(1));
        if new {
            done += 1
        } else {
            not_done += 1
        }
        let db = open(&vfs, &dir()).unwrap_or_else(|e| panic!("step {step}: {e}"));
        apply_through(&db, support::next_index(&db) - 1).unwrap_or_else(|e| panic!("step {step}: {e}"));
        assert_eq!(db.ledger().segments()[1].generation, u32::from(new), "step {step}");
        db.repair_segment(1, agreed, &source).unwrap_or_else(|e| panic!("step {step}: {e}"));
        prune_all(&db);
        assert_eq!(pass(&db, u64::MAX), [], "step {step}");
        check(&db, &model, &prunes);
    }
    assert!(done > 0 && not_done > 0, "{done} done, {not_done} not");
}
