//! Segments from elsewhere: a rotten replica never overwrites a good one, whoever is rotten, and a crash leaves the old or the
//! new file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_storage::command::Command;
use alhambra_storage::repair::{FolderSource, SegmentSource};
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Damaged, Database, Error, Health, Result, SegmentVersion};

use crate::scrub::{all_files, filled, grow, open, options, pass};
use crate::support::{self, compare, dir};
use crate::transfer::flip;

/// Copies the files of the database into a folder of another disk.
pub fn copy(vfs: &Arc<dyn Vfs>) -> (Arc<dyn Vfs>, FolderSource) {
    let other: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    for (path, bytes) in all_files(vfs) {
        other.create_dir_all(path.parent().expect("in a folder")).expect("healthy");
        other.open(&path, OpenMode::Create).and_then(|file| file.write_at(0, &bytes)).expect("healthy");
    }
    (Arc::clone(&other), FolderSource::new(other, &dir()))
}

fn segment(number: u64) -> PathBuf {
    dir().join(format!("ledger/{number:010}.seg"))
}

#[test]
fn every_byte_of_a_sealed_segment_comes_back_from_a_copy() {
    let (vfs, db, model) = filled(12);
    let (_, source) = copy(&vfs);
    let before = all_files(&vfs);
    let path = segment(1);
    for at in 0..before[&path].len() as u64 {
        flip(&vfs, &path, at);
        assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)], "byte {at}");
        let alone = db.mend(None).expect("healthy");
        if at < 256 {
            // The header is a function of what is known, so this needs nobody.
            assert_eq!((alone.repaired, alone.waiting.len()), (vec![Damaged::Segment(1)], 0), "byte {at}");
            assert_eq!(all_files(&vfs), before, "byte {at}");
            continue;
        }
        assert!(matches!(alone.waiting[..], [(Damaged::Segment(1), Error::Corrupted { .. })]), "{alone:?}");
        let mended = db.mend(Some(&source)).expect("healthy");
        assert_eq!((mended.repaired, mended.waiting.len()), (vec![Damaged::Segment(1)], 0), "byte {at}");
        assert_eq!(all_files(&vfs), before, "byte {at}");
    }
    let file = vfs.open(&path, OpenMode::ReadWrite).expect("there");
    file.set_len(300).expect("healthy");
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)]);
    db.mend(Some(&source)).expect("healthy");
    vfs.remove_file(&path).expect("there");
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)]);
    db.mend(Some(&source)).expect("healthy");
    assert_eq!(all_files(&vfs), before);
    compare(&db, &model);
}

#[test]
fn a_header_that_rotted_while_the_database_was_closed_is_mended_without_help() {
    let (vfs, db, model) = filled(12);
    drop(db);
    let before = all_files(&vfs);
    for at in (0..256).step_by(9) {
        for with_sidecar in [true, false] {
            flip(&vfs, &segment(1), at);
            if !with_sidecar {
                lose_sidecar(&vfs, 1);
            }
            let db = crate::scrub::open(&vfs);
            assert_eq!(db.damaged(), [Damaged::Segment(1)], "byte {at}");
            assert_eq!(db.mend(None).expect("healthy").repaired, [Damaged::Segment(1)], "byte {at}");
            compare(&db, &model);
            drop(db);
            assert_eq!(all_files(&vfs)[&segment(1)], before[&segment(1)], "byte {at}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_damage_and_comes_back_like_any_other() {
    let (vfs, db, model) = filled(12);
    drop(db);
    let (_, source) = copy(&vfs);
    let before = all_files(&vfs);
    let newest = before.keys().rfind(|path| path.extension().is_some_and(|e| e == "seg")).expect("some");
    for path in before.keys().filter(|path| !path.ends_with("lock")) {
        let faulty = FaultyVfs::new(Arc::clone(&vfs));
        let bad: Arc<dyn Vfs> = Arc::new(faulty.clone());
        let db = crate::scrub::open(&bad);
        db.load_vote().expect("healthy").expect("saved");
        faulty.make_unreadable(path, std::io::ErrorKind::Other);
        let name = path.display();
        let mut found = pass(&db, u64::MAX);
        found.dedup();
        assert_eq!(found.len(), 1, "{name}: one thing is damaged, and the pass goes on");
        let mended = db.mend(Some(&source)).expect("healthy");
        if path == newest {
            // Nobody can vouch for a segment that takes frames.
            assert!(matches!(mended.waiting[..], [(Damaged::Segment(_), Error::Io { .. })]), "{name}: {mended:?}");
            continue;
        }
        assert!(mended.waiting.is_empty(), "{name}: {mended:?}");
        assert_eq!(pass(&db, u64::MAX), [], "{name}");
        compare(&db, &model);
    }
    for (path, bytes) in &before {
        let derived = path.extension().is_some_and(|e| e == "seg" || e == "log");
        assert!(!derived || all_files(&vfs)[path] == *bytes, "{}", path.display());
    }
}

/// A segment that rotted while the database was closed, wherever, keys included, keeps it from nothing but the reads that need those
/// bytes: what is derived stays, the database opens, the segment is named and mended, and then the index is whole, too.
#[test]
fn a_segment_that_rotted_while_the_database_was_closed_is_mended_when_it_is_open() {
    let (vfs, db, model) = filled(12);
    let (_, source) = copy(&vfs);
    drop(db);
    let derived = |vfs: &Arc<dyn Vfs>| -> Vec<(PathBuf, Vec<u8>)> {
        let logs = ["tx", "commit", "aht"].map(|log| dir().join(log));
        all_files(vfs).into_iter().filter(|(path, _)| logs.iter().any(|log| path.starts_with(log))).collect()
    };
    let (path, before) = (segment(1), derived(&vfs));
    assert!(!before.is_empty());
    for at in 256..all_files(&vfs)[&path].len() as u64 {
        flip(&vfs, &path, at);
        // Without an index every key is read again from the segments.
        vfs.remove_dir_all(&dir().join("index")).expect("there");
        let db = open(&vfs);
        assert_eq!(derived(&vfs), before, "byte {at}: derived logs of a database whose segment has rotted");
        let found = pass(&db, u64::MAX);
        assert!(found.contains(&Damaged::Segment(1)), "byte {at}: {found:?}");
        // Nobody waits for ever, and nothing is tried again and again.
        while db.index_work().expect("healthy") {}
        let mended = db.mend(Some(&source)).expect("healthy");
        assert!(mended.repaired.contains(&Damaged::Segment(1)) && mended.waiting.is_empty(), "byte {at}: {mended:?}");
        while db.index_work_due() {
            db.index_work().expect("healthy");
        }
        assert_eq!(db.damaged(), [], "byte {at}");
        if at % 16 == 0 {
            compare(&db, &model);
        }
    }
}

#[test]
fn rot_in_the_file_being_sent_changes_nothing_here() {
    let (vfs, db, model) = filled(12);
    let (other, source) = copy(&vfs);
    flip(&vfs, &segment(1), 400);
    let before = all_files(&vfs);
    pass(&db, u64::MAX);
    for at in [256, 300, 700] {
        flip(&other, &segment(1), at);
        let mended = db.mend(Some(&source)).expect("healthy");
        let [(Damaged::Segment(1), error)] = &mended.waiting[..] else { panic!("{mended:?}") };
        assert!(matches!(error, Error::Corrupted { .. }), "{error}");
        assert_eq!(all_files(&vfs), before, "byte {at}");
        flip(&other, &segment(1), at);
    }
    // Too short, too long, not there.
    let file = other.open(&segment(1), OpenMode::ReadWrite).expect("there");
    let len = file.len().expect("there");
    for wrong in [len - 1, len + 1] {
        file.set_len(wrong).expect("healthy");
        assert_eq!(db.mend(Some(&source)).expect("healthy").repaired, []);
        assert_eq!(all_files(&vfs), before);
    }
    other.remove_file(&segment(1)).expect("there");
    let mended = db.mend(Some(&source)).expect("healthy");
    assert!(matches!(mended.waiting[..], [(_, Error::NoSuchSegment { number: 1 })]), "{mended:?}");
    assert_eq!(all_files(&vfs), before);
    flip(&vfs, &segment(1), 400);
    assert_eq!(db.mend(None).expect("healthy").repaired, [Damaged::Segment(1)], "found whole");
    compare(&db, &model);
}

/// Rewrites a frame's value with a fitting checksum: rot that only the hashes tell.
pub fn rot_with_fitting_checksum(vfs: &Arc<dyn Vfs>, number: u64) {
    let last = first_frame(vfs, number) - 1;
    rot_byte_with_fitting_checksum(vfs, number, last);
}

/// What was remembered of a segment is gone.
pub fn lose_sidecar(vfs: &Arc<dyn Vfs>, number: u64) {
    vfs.remove_file(&segment(number).with_extension("idx")).expect("there");
}

/// Rots so that only others can tell: what was remembered of the segment is gone too.
pub fn rot_unnoticed(vfs: &Arc<dyn Vfs>, number: u64) {
    rot_with_fitting_checksum(vfs, number);
    lose_sidecar(vfs, number);
}

/// Length of what the checksum of a segment's first frame covers, bytes.
pub fn first_frame(vfs: &Arc<dyn Vfs>, number: u64) -> usize {
    let file = vfs.open(&segment(number), OpenMode::Read).expect("there");
    let head = file.read_at(256, 4).expect("there");
    u32::from_be_bytes(head[..].try_into().expect("4 bytes")) as usize
}

/// The same with any byte of what the checksum covers.
pub fn rot_byte_with_fitting_checksum(vfs: &Arc<dyn Vfs>, number: u64, at: usize) {
    rot_byte_of_frame(vfs, number, 256, at);
}

/// The same of the frame at this byte of the file.
pub fn rot_byte_of_frame(vfs: &Arc<dyn Vfs>, number: u64, frame: u64, at: usize) {
    let file = vfs.open(&segment(number), OpenMode::ReadWrite).expect("there");
    let head = file.read_at(frame, 4).expect("there");
    let len = u32::from_be_bytes(head[..].try_into().expect("4 bytes")) as usize;
    let mut body = file.read_at(frame + 8, len).expect("there").to_vec();
    body[at] ^= 1;
    file.write_at(frame + 8, &body).expect("healthy");
    let crc = crate::fsck::crc32c(&body);
    file.write_at(frame + 4, &crc.to_be_bytes()).expect("healthy");
}

#[test]
fn a_seal_proposed_by_a_rotten_leader_overwrites_nobody() {
    // The leader's segment rotted before it proposed the seal: its digest is that of the rotten frames.
    let (vfs, db, model) = filled(3);
    let number = db.ledger().segments().iter().filter(|segment| segment.closed).count() as u64;
    let (other, source) = copy(&vfs);
    drop(other);
    let mut model = model;
    let mut n = 4;
    while db.pending_seals().expect("healthy").is_empty() {
        let proposals = [support::put("k", &[7; 40])];
        support::commit_command(&db, &support::batch(n, &proposals)).expect("applies");
        model.batch(n, &proposals);
        db.ledger().settle().expect("healthy");
        n += 1;
    }
    let mut seal = db.pending_seals().expect("healthy").remove(0);
    assert_eq!(seal.segment, number);
    seal.digest[5] ^= 1;
    let rotten = Digest(seal.digest);
    support::commit_command(&db, &Command::Seal(seal)).expect("applies");
    db.checkpoint().expect("healthy");
    let before = all_files(&vfs);
    // A follower that compares: its bytes are what it wrote, so they are not touched.
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(number)]);
    let mended = db.mend(Some(&source)).expect("healthy");
    assert!(
        matches!(mended.waiting[..], [(_, Error::SealDisputed { segment, sealed, .. })] if segment == number && sealed == rotten),
        "{mended:?}"
    );
    assert_eq!(all_files(&vfs), before);
    // Even when told to, nothing comes in that is not what was agreed on.
    let (_, own) = copy(&vfs);
    db.repair_segment(number, SegmentVersion { generation: 0, digest: rotten }, &own)
        .expect_err("no source has these bytes");
    assert_eq!(all_files(&vfs), before);
    compare(&db, &model);
    assert!(db.pending_seals().expect("healthy").is_empty(), "nobody has asked a majority");
    // The majority holds what this replica holds: that counts, and the next leader says so in the log.
    let vote = db.segment_vote(number).expect("healthy").expect("closed");
    assert!(vote.whole && vote.version.digest != rotten);
    db.settle_segment(number, vote.version).expect("healthy");
    assert_eq!(db.agreed_digest(number, 0), Some(vote.version.digest));
    assert_eq!((pass(&db, u64::MAX), db.damaged()), (vec![], vec![]));
    let correction = db.pending_seals().expect("healthy");
    let [seal] = &correction[..] else { panic!("{correction:?}") };
    assert_eq!((seal.segment, seal.generation, seal.digest), (number, 0, vote.version.digest.0));
    for _ in 0..2 {
        // The second is the one of another leader, and changes nothing.
        support::commit_command(&db, &Command::Seal(seal.clone())).expect("applies");
    }
    assert_eq!(db.compare_seals().expect("healthy"), Health::Sound);
    assert!(db.pending_seals().expect("healthy").is_empty());
    db.checkpoint().expect("healthy");
    drop(db);
    let db = crate::scrub::open(&vfs);
    assert_eq!(db.health(), Health::Sound);
    assert_eq!(db.agreed_digest(number, 0), Some(vote.version.digest));
    assert_eq!(pass(&db, u64::MAX), []);
    compare(&db, &model);
}

#[test]
fn a_follower_that_is_rotten_in_a_consistent_way_is_told_by_the_majority() {
    let (vfs, db, model) = filled(12);
    let (_, source) = copy(&vfs);
    let before = all_files(&vfs);
    rot_with_fitting_checksum(&vfs, 1);
    // The digest remembered since the writing tells, so this needs no majority.
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)]);
    // It may have been read for what it is not.
    let mended = db.mend(Some(&source));
    assert!(matches!(mended, Err(Error::DerivedFromRot { segment: 1 })), "{mended:?}");
    drop(db);
    let db = open(&vfs);
    assert_eq!(pass(&db, u64::MAX), []);
    // Nor does it when the sidecar went with it and was made again from the rotten frames: then it is disputed.
    rot_with_fitting_checksum(&vfs, 1);
    drop(db);
    lose_sidecar(&vfs, 1);
    let db = match Database::open(Arc::clone(&vfs), &dir(), support::spec(), options()) {
        Ok(db) => db,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)]);
    let mended = db.mend(Some(&source)).expect("healthy");
    let [(Damaged::Segment(1), Error::SealDisputed { sealed, .. })] = mended.waiting[..] else { panic!("{mended:?}") };
    let repaired = db.repair_segment(1, SegmentVersion { generation: 0, digest: sealed }, &source);
    assert!(matches!(repaired, Err(Error::DerivedFromRot { segment: 1 })), "{repaired:?}");
    drop(db);
    let db = open(&vfs);
    assert_eq!(pass(&db, u64::MAX), []);
    let files = all_files(&vfs);
    for name in ["seg", "idx"] {
        let path = dir().join(format!("ledger/0000000001.{name}"));
        assert_eq!(files[&path], before[&path]);
    }
    compare(&db, &model);
}

#[test]
fn a_rotten_replica_that_differs_from_the_seal_does_not_believe_the_seal_alone() {
    // Its own bytes are rotten, and the seal is that of a rotten leader: neither is believed.
    let (vfs, db, model) = filled(12);
    let (_, source) = copy(&vfs);
    let own = db.segment_vote(1).expect("healthy").expect("closed");
    let sealed = db.seal(1).expect("healthy").expect("sealed");
    let wrong = Digest([9; 32]);
    support::commit_command(&db, &Command::Seal(alhambra_storage::command::Seal { digest: wrong.0, ..sealed }))
        .expect("applies");
    flip(&vfs, &segment(1), 400);
    assert_eq!(pass(&db, u64::MAX), [Damaged::Segment(1)]);
    let before = all_files(&vfs);
    let mended = db.mend(Some(&source)).expect("healthy");
    assert!(matches!(mended.waiting[..], [(_, Error::SealDisputed { segment: 1, .. })]), "{mended:?}");
    assert_eq!(all_files(&vfs), before);
    assert_eq!(db.segment_vote(1).expect("healthy").map(|vote| (vote.version, vote.whole)), Some((own.version, false)));
    // In pieces, as they come over a network. Given up in the middle it leaves nothing.
    let whole = db.segment_vote(0).expect("healthy").expect("closed");
    assert!(whole.whole);
    let pieces = |repair: &mut alhambra_storage::SegmentRepair, bytes: u64| {
        source.fetch(1, &own.version.digest, &mut |piece| repair.write(&piece[..bytes as usize]))
    };
    let mut repair = db.begin_segment_repair(1, own.version).expect("healthy");
    let frame_bytes = own.bytes;
    pieces(&mut repair, frame_bytes - 1).expect("healthy");
    repair.finish(&db).expect_err("a byte is missing");
    assert_eq!(all_files(&vfs), before);
    let mut repair = db.begin_segment_repair(1, own.version).expect("healthy");
    pieces(&mut repair, frame_bytes).expect("healthy");
    repair.write(b"x").expect_err("a byte too many");
    repair.finish(&db).expect("what a majority holds");
    assert_eq!((pass(&db, u64::MAX), db.damaged()), (vec![], vec![]));
    assert_eq!(db.pending_seals().expect("healthy").len(), 1, "the seal is to be corrected");
    compare(&db, &model);
}

/// Whether a file has the same bytes before damage and after the repair: all but those of the index and the small ones.
fn is_kept(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["seg", "idx", "log"].iter().any(|kept| extension == *kept))
}

/// What the whole repair does on disk, from the moment the damage is there.
fn repair(vfs: &Arc<dyn Vfs>, source: &dyn SegmentSource) -> Result<()> {
    let db = Database::open(Arc::clone(vfs), &dir(), support::spec(), options())?;
    loop {
        if db.scrub_step(u64::MAX)?.pass_completed {
            break;
        }
    }
    let mended = db.mend(Some(source))?;
    match mended.waiting.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

#[test]
fn a_crash_at_every_step_of_a_repair_leaves_the_old_or_the_new_file() {
    let build = || {
        let (vfs, db, model) = filled(8);
        drop(db);
        let (_, source) = copy(&vfs);
        let disk = MemVfs::new();
        let durable: Arc<dyn Vfs> = Arc::new(disk.clone());
        for (path, bytes) in all_files(&vfs) {
            durable.create_dir_all(path.parent().expect("in a folder")).expect("healthy");
            let file = durable.open(&path, OpenMode::Create).expect("healthy");
            file.write_at(0, &bytes).and_then(|()| file.sync_data()).expect("healthy");
            durable.sync_dir(path.parent().expect("in a folder")).expect("healthy");
        }
        let value = Path::new("ledger/0000000001.seg");
        let file = durable.open(&dir().join(value), OpenMode::ReadWrite).expect("there");
        // The last byte of the segment is in a value, so that opening does not need it.
        let at = file.len().expect("there") - 1;
        flip(&durable, &dir().join(value), at);
        flip(&durable, &dir().join("tx/0000000000.log"), 64 + 50);
        file.sync_data().expect("healthy");
        let log = durable.open(&dir().join("tx/0000000000.log"), OpenMode::ReadWrite).expect("there");
        log.sync_data().expect("healthy");
        (disk, source, all_files(&vfs), model)
    };
    let steps = {
        let (disk, source, _, _) = build();
        let faulty = Arc::new(FaultyVfs::new(Arc::new(disk)));
        let vfs: Arc<dyn Vfs> = faulty.clone();
        repair(&vfs, &source).expect("no fault planned");
        faulty.step_count()
    };
    assert!(steps > 10, "{steps}");
    for step in 0..steps {
        for (fault, crash) in
            [(Fault::Crash, Crash::PowerLoss), (Fault::CrashShort, Crash::PowerLossTorn { seed: step })]
        {
            let place = format!("step {step}, {fault:?}");
            let (disk, source, before, mut model) = build();
            let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
            faulty.fail_at(step, fault);
            let vfs: Arc<dyn Vfs> = faulty;
            repair(&vfs, &source).expect_err("the machine stopped");
            disk.crash(crash);
            let vfs: Arc<dyn Vfs> = Arc::new(disk);
            repair(&vfs, &source).unwrap_or_else(|e| panic!("{place}: {e}"));
            let db = crate::scrub::open(&vfs);
            assert_eq!(pass(&db, u64::MAX), [], "{place}");
            let files = all_files(&vfs);
            for (path, bytes) in before.iter().filter(|(path, _)| is_kept(path)) {
                assert!(files.get(path) == Some(bytes), "{place}: {}", path.display());
            }
            support::apply_through(&db, db.ledger().last_log_id().expect("filled").index.0).expect("applies");
            grow(&db, &mut model, 77);
            compare(&db, &model);
        }
    }
}

/// The state that a database leaves to its checkpoint while nobody writes is on disk only: rot there and elsewhere is mended all
/// the same, and no request is carried out twice.
#[test]
fn rot_in_a_database_that_has_given_its_memory_back_is_mended() {
    for (rotten, damaged) in [
        ("tx/0000000000.log", None),
        ("commit/0000000000.log", None),
        ("checkpoint", Some(Damaged::Checkpoint)),
        ("checkpoint", None),
    ] {
        let (vfs, db, mut model) = filled(12);
        let mut once = support::put("asked twice", b"v");
        once.request = Some((9, 1, 0));
        let ask = |ts| support::commit_command(&db, &support::batch(ts, std::slice::from_ref(&once)));
        let first = ask(20).expect("applies");
        model.batch(20, std::slice::from_ref(&once));
        db.release_memory().expect("healthy");
        let path = dir().join(rotten);
        let file = all_files(&vfs)
            .into_keys()
            .find(|file| file.starts_with(path.parent().expect("in a folder")))
            .filter(|_| rotten != "checkpoint");
        flip(&vfs, &file.unwrap_or(path), 60);
        let scrubs = rotten != "checkpoint" || damaged.is_some();
        if scrubs {
            let found = pass(&db, u64::MAX);
            assert_eq!(found.len(), 1, "{rotten}: {found:?}");
            let mended = db.mend(None).expect("healthy");
            assert_eq!((mended.repaired.len(), mended.waiting.len()), (1, 0), "{rotten}: {mended:?}");
            assert_eq!(pass(&db, u64::MAX), [], "{rotten}");
        }
        let again = ask(21).expect("applies");
        assert_eq!(again, first, "{rotten}: carried out twice");
        model.batch(21, std::slice::from_ref(&once));
        compare(&db, &model);
    }
}
