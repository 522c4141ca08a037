//! What mends a database that does not open: the power fails at every step of it, and what does not fit is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::error::Damage;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{DamagedLog, Database, Error, Result, SegmentVersion, TailPiece, Unopened};
use bytes::Bytes;

use crate::replicas::files;
use crate::support::{self, dir, open, put};

const HEADER: u64 = 256;
const CLOSED: u64 = 1;

struct Sample {
    disk: MemVfs,
    vfs: Arc<dyn Vfs>,
    /// Of the ledger.
    files: BTreeMap<PathBuf, Vec<u8>>,
    newest: u64,
}

fn path(segment: u64) -> PathBuf {
    dir().join(format!("ledger/{segment:010}.seg"))
}

/// A closed database whose whole log is known to be durable, on a disk that has everything synced.
fn sample() -> Sample {
    let disk = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let db =
        Database::open_embedded(Arc::clone(&vfs), &dir(), support::spec(), support::options(), support::settings())
            .expect("an empty disk");
    let mut n = 0;
    let mut commit = || {
        n += 1;
        db.commit(n, vec![support::proposal(&put(&format!("k{}", n % 4), &[n as u8; 40]))]).expect("healthy disk");
    };
    (0..30).for_each(|_| commit());
    while db.ledger().segments().last().expect("frames").frame_bytes < 400 {
        commit();
    }
    let newest = db.ledger().segments().len() as u64 - 1;
    assert!(newest > CLOSED + 1);
    db.checkpoint().expect("healthy disk");
    drop(db);
    let ledger = dir().join("ledger");
    let files = files(&vfs, &ledger);
    // Sidecars are not synced by themselves: they can be made again, while the segment is whole.
    for name in files.keys() {
        let file = vfs.open(&ledger.join(name), OpenMode::ReadWrite).expect("there");
        file.sync_data().expect("healthy disk");
    }
    vfs.sync_dir(&ledger).expect("healthy disk");
    Sample { disk, vfs, files, newest }
}

fn bytes(sample: &Sample, segment: u64) -> Bytes {
    let name = path(segment);
    Bytes::from(sample.files[Path::new(name.file_name().expect("named"))].clone())
}

/// Offset behind the header and length of the frames of a segment.
fn frames(segment: &[u8]) -> Vec<(usize, usize)> {
    let mut frames = Vec::new();
    let mut at = HEADER as usize;
    while let Some(len) = segment.get(at..at + 4).map(|len| u32::from_be_bytes(len.try_into().expect("4 bytes")))
        && len > 0
    {
        frames.push((at - HEADER as usize, 8 + len as usize));
        at += 8 + len as usize;
    }
    frames
}

fn flip(disk: &MemVfs, segment: u64, at: u64) {
    let file = disk.open(&path(segment), OpenMode::ReadWrite).expect("there");
    let byte = file.read_at(at, 1).expect("there")[0];
    file.write_at(at, &[!byte]).expect("healthy");
    file.sync_data().expect("healthy");
}

fn set_len(disk: &MemVfs, segment: u64, len: u64) {
    disk.open(&path(segment), OpenMode::ReadWrite).expect("there").set_len(len).expect("healthy");
}

/// What is done to a segment on a disk.
type Harm = dyn Fn(&MemVfs, u64);

/// Loses a file, durably.
fn lose(disk: &MemVfs, path: &Path) {
    disk.remove_file(path).expect("there");
    disk.sync_dir(path.parent().expect("a folder")).expect("healthy");
}

fn mend_closed(vfs: &Arc<dyn Vfs>, whole: &Bytes) -> Result<()> {
    mend_segment(vfs, CLOSED, whole)
}

fn mend_segment(vfs: &Arc<dyn Vfs>, segment: u64, whole: &Bytes) -> Result<()> {
    let unopened = Unopened::open(Arc::clone(vfs), &dir(), support::spec())?;
    // Where it is forgotten the others say what it is to be, which the seal says too.
    let remembered = unopened.segment_vote(segment)?.map(|vote| vote.version);
    assert_eq!(remembered.is_none(), unopened.forgotten(segment).is_some());
    let sealed = || SegmentVersion { generation: 0, digest: unopened.sealed_digest(segment, 0).expect("sealed") };
    let mut fetched = unopened.begin_segment_repair(segment, remembered.unwrap_or_else(sealed))?;
    for piece in whole[HEADER as usize..].chunks(300) {
        fetched.write(piece)?;
    }
    unopened.finish_segment_repair(&fetched)
}

fn mend_newest(vfs: &Arc<dyn Vfs>, whole: &Bytes) -> Result<()> {
    let Some(log) = DamagedLog::find(vfs, &dir(), support::spec())? else { return Ok(()) };
    let theirs = whole.slice((HEADER + log.offset()) as usize..);
    match log.judge(&theirs)? {
        TailPiece::Fits(len) => log.mend(&theirs.slice(..len)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mended_segment_is_old_or_new_wherever_the_power_fails() {
    type Mend = fn(&Arc<dyn Vfs>, &Bytes) -> Result<()>;
    let newest = sample().newest;
    let rot = |disk: &MemVfs, segment: u64| flip(disk, segment, HEADER + 150);
    let rot_and_lose_sidecar = |disk: &MemVfs, segment: u64| {
        flip(disk, segment, HEADER + 150);
        lose(disk, &path(segment).with_extension("idx"));
    };
    let gone = |disk: &MemVfs, segment: u64| lose(disk, &path(segment));
    let cases: [(u64, &Harm, Mend); 4] = [
        (CLOSED, &rot, mend_closed),
        (CLOSED, &rot_and_lose_sidecar, mend_closed),
        (CLOSED, &gone, mend_closed),
        (newest, &rot, mend_newest),
    ];
    for (case, (segment, harm, mend)) in cases.into_iter().enumerate() {
        let rotten = || {
            let sample = sample();
            harm(&sample.disk, segment);
            let faulty = Arc::new(FaultyVfs::new(Arc::new(sample.disk.clone())));
            (sample, faulty)
        };
        let (whole, faulty) = rotten();
        let before = faulty.step_count();
        mend(&(faulty.clone() as Arc<dyn Vfs>), &bytes(&whole, segment)).expect("no fault planned");
        let steps = faulty.step_count() - before;
        assert!(steps >= 5, "{steps} steps");
        assert!(files(&whole.vfs, &dir().join("ledger")) == whole.files);
        for step in 0..steps {
            for (fault, crash) in [
                (Fault::Crash, Crash::PowerLoss),
                (Fault::CrashShort, Crash::Process),
                (Fault::CrashShort, Crash::PowerLossTorn { seed: step }),
            ] {
                let place = format!("case {case}, step {step}, {fault:?}, {crash:?}");
                let (sample, faulty) = rotten();
                faulty.fail_after(step, fault);
                let stopped = mend(&(faulty as Arc<dyn Vfs>), &bytes(&sample, segment));
                // The last step of all clears away what is not there any more.
                assert!(stopped.is_err() || step == steps - 1, "{place}");
                sample.disk.crash(crash);
                mend(&sample.vfs, &bytes(&sample, segment)).unwrap_or_else(|e| panic!("{place}: {e}"));
                let db = open(&sample.vfs, &dir()).unwrap_or_else(|e| panic!("{place}: {e}"));
                drop(db);
                assert!(files(&sample.vfs, &dir().join("ledger")) == sample.files, "{place}");
            }
        }
    }
}

#[test]
fn what_leads_to_no_entry_of_this_log_does_not_fit() {
    let sample = sample();
    let whole = bytes(&sample, sample.newest);
    let frames = frames(&whole);
    let (first, second) = (frames[0], frames[1]);
    assert!(frames.len() >= 2, "{frames:?}");
    flip(&sample.disk, sample.newest, HEADER + first.1 as u64 - 1);
    let refused = open(&sample.vfs, &dir()).expect_err("rotten below what is durable");
    assert!(matches!(refused, Error::Corrupted { segment: Some(n), .. } if n == sample.newest), "{refused}");
    let rotten = files(&sample.vfs, &dir().join("ledger"));
    let log = DamagedLog::find(&sample.vfs, &dir(), support::spec()).expect("readable").expect("damaged");
    assert_eq!((log.segment(), log.offset()), (sample.newest, 0));
    let theirs = whole.slice(HEADER as usize..);
    let judge = |bytes: &[u8]| log.judge(&Bytes::copy_from_slice(bytes)).expect("readable");
    assert_eq!(judge(&theirs), TailPiece::Fits(first.1));
    // Not all of it: more is needed, up to the end of the second.
    for len in [0, 7, first.1 - 1, first.1, first.1 + second.1 - 1] {
        assert_eq!(judge(&theirs[..len]), TailPiece::Short, "{len} bytes");
    }
    // Not whole, or nothing.
    for at in [0, 4, 20, first.1 - 1] {
        let mut bad = theirs.to_vec();
        bad[at] ^= 1;
        assert_ne!(judge(&bad), TailPiece::Fits(first.1), "byte {at}");
    }
    assert_eq!(judge(&vec![0; 500]), TailPiece::Unfit);
    // Whole, and of another place in the log.
    assert_eq!(judge(&theirs[second.0..]), TailPiece::Unfit);
    // Another log, whose entries have other terms: it has none in common with this one.
    let mut other = theirs.to_vec();
    for (at, len) in &frames {
        let frame = &mut other[*at..*at + *len];
        frame[15] ^= 4;
        let crc = crate::fsck::crc32c(&frame[8..]);
        frame[4..8].copy_from_slice(&crc.to_be_bytes());
    }
    assert_ne!(judge(&other), TailPiece::Fits(first.1));
    assert!(!matches!(judge(&other), TailPiece::Fits(_)));
    // What is left speaks for the right entry, and not for another.
    let right = theirs.slice(..first.1);
    assert!(log.speaks_for(&right).expect("readable"));
    let mut forged = right.to_vec();
    forged[first.1 - 2] ^= 1;
    let crc = crate::fsck::crc32c(&forged[8..]);
    forged[4..8].copy_from_slice(&crc.to_be_bytes());
    assert!(!log.speaks_for(&Bytes::from(forged.clone())).expect("readable"));
    // Nothing is put there that does not fit.
    for piece in [theirs.slice(..first.1 - 1), theirs.slice(second.0..), Bytes::new()] {
        let error = log.mend(&piece).expect_err("it does not fit");
        assert!(matches!(error, Error::Corrupted { damage: Damage::Changed, .. }), "{error}");
    }
    assert!(files(&sample.vfs, &dir().join("ledger")) == rotten);
    log.mend(&right).expect("it fits");
    drop(log);
    assert!(DamagedLog::find(&sample.vfs, &dir(), support::spec()).expect("readable").is_none());
    assert!(files(&sample.vfs, &dir().join("ledger")) == sample.files);
    open(&sample.vfs, &dir()).expect("whole");
}

#[test]
fn a_file_of_the_wrong_length_is_taken_for_rotten_when_the_sidecar_says_what_it_was() {
    let lengths = |len: u64| [0, 1, HEADER - 1, HEADER, HEADER + 1, len - 1, len + 1, len + 1000];
    let len = bytes(&sample(), CLOSED).len() as u64;
    for wrong in lengths(len) {
        let sample = sample();
        let file = sample.disk.open(&path(CLOSED), OpenMode::ReadWrite).expect("there");
        file.set_len(wrong).expect("healthy");
        drop(file);
        let unopened = Unopened::open(Arc::clone(&sample.vfs), &dir(), support::spec())
            .unwrap_or_else(|e| panic!("{wrong} bytes: {e}"));
        let vote = unopened.segment_vote(CLOSED).expect("readable").expect("closed");
        assert!(!vote.whole, "{wrong} bytes");
        assert_eq!(vote.bytes, len - HEADER);
        assert_eq!(unopened.sealed_digest(CLOSED, 0), Some(vote.version.digest));
        assert_eq!(unopened.sealed_digest(CLOSED, 1), None);
        drop(unopened);
        mend_closed(&sample.vfs, &bytes(&sample, CLOSED)).unwrap_or_else(|e| panic!("{wrong} bytes: {e}"));
        assert!(files(&sample.vfs, &dir().join("ledger")) == sample.files, "{wrong} bytes");
    }
}

#[test]
fn a_segment_of_which_nothing_is_remembered_is_mended_whatever_is_left_of_it() {
    let len = bytes(&sample(), CLOSED).len() as u64;
    let sidecar = path(CLOSED).with_extension("idx");
    let mut harms: Vec<Box<Harm>> = Vec::new();
    for at in [HEADER, HEADER + 5, HEADER + 150, len - 1] {
        let sidecar = sidecar.clone();
        harms.push(Box::new(move |disk, _| {
            flip(disk, CLOSED, at);
            lose(disk, &sidecar);
        }));
    }
    for wrong in [0, HEADER + 1, len - 1, len + 1] {
        let sidecar = sidecar.clone();
        harms.push(Box::new(move |disk, _| {
            disk.open(&path(CLOSED), OpenMode::ReadWrite).expect("there").set_len(wrong).expect("healthy");
            // Rotten, not lost.
            disk.open(&sidecar, OpenMode::ReadWrite).expect("there").write_at(40, &[0xa5; 8]).expect("healthy");
        }));
    }
    for (number, harm) in harms.iter().enumerate() {
        let sample = sample();
        harm(&sample.disk, CLOSED);
        let refused = open(&sample.vfs, &dir()).expect_err("nothing says what it was");
        assert!(matches!(refused, Error::Corrupted { segment: Some(CLOSED), .. }), "case {number}: {refused}");
        // An empty file does not even say where it began.
        let opened = Unopened::open(Arc::clone(&sample.vfs), &dir(), support::spec());
        if number == 4 {
            let refused = opened.expect_err("neither header nor sidecar");
            assert!(matches!(refused, Error::Corrupted { segment: Some(CLOSED), .. }), "{refused}");
            continue;
        }
        let unopened = opened.unwrap_or_else(|e| panic!("case {number}: {e}"));
        assert_eq!(unopened.forgotten(CLOSED), Some(0), "case {number}");
        assert_eq!(unopened.forgotten(CLOSED - 1), None, "case {number}");
        assert_eq!(unopened.segment_vote(CLOSED).expect("readable"), None, "case {number}");
        assert!(unopened.takes_later_generation(CLOSED), "all of it is below the checkpoint");
        let sealed = unopened.sealed_digest(CLOSED, 0).expect("sealed");
        // What is not it does not take its place.
        let mut fetched =
            unopened.begin_segment_repair(CLOSED, SegmentVersion { generation: 0, digest: sealed }).expect("closed");
        let mut wrong = bytes(&sample, CLOSED).to_vec();
        *wrong.last_mut().expect("frames") ^= 1;
        fetched.write(&wrong[HEADER as usize..]).expect("not longer");
        let refused = unopened.finish_segment_repair(&fetched).expect_err("rotten too");
        assert!(matches!(refused, Error::Corrupted { .. }), "{refused}");
        drop((fetched, unopened));
        mend_closed(&sample.vfs, &bytes(&sample, CLOSED)).unwrap_or_else(|e| panic!("case {number}: {e}"));
        assert!(files(&sample.vfs, &dir().join("ledger")) == sample.files, "case {number}");
        drop(open(&sample.vfs, &dir()).unwrap_or_else(|e| panic!("case {number}: {e}")));
    }
}

/// A sample whose newest segment has no frame, and of which nothing is known to be durable but what stands there.
fn with_an_empty_newest() -> Sample {
    let sample = sample();
    let newest = sample.disk.open(&path(sample.newest), OpenMode::ReadWrite).expect("there");
    let len = newest.len().expect("healthy");
    newest.write_at(HEADER, &vec![0; (len - HEADER) as usize]).expect("healthy");
    newest.sync_data().expect("healthy");
    drop(newest);
    for name in ["marks", "checkpoint"] {
        if sample.disk.exists(&dir().join(name)).expect("healthy") {
            lose(&sample.disk, &dir().join(name));
        }
    }
    sample
}

#[test]
fn a_forgotten_segment_before_an_empty_one_is_not_cut() {
    // The next segment has a name and no frame yet, so the one before has no sidecar yet.
    let sample = with_an_empty_newest();
    let last = sample.newest;
    lose(&sample.disk, &path(last - 1).with_extension("idx"));
    let whole = bytes(&sample, last - 1);
    flip(&sample.disk, last - 1, HEADER + 150);
    let rotten = files(&sample.vfs, &dir().join("ledger"));
    let unopened = Unopened::open(Arc::clone(&sample.vfs), &dir(), support::spec()).expect("to be mended");
    assert_eq!(unopened.forgotten(last - 1), Some(0));
    drop(unopened);
    let found = files(&sample.vfs, &dir().join("ledger"));
    let name = PathBuf::from(path(last - 1).file_name().expect("named"));
    assert_eq!(found[&name], rotten[&name]);
    assert_eq!(found[&name].len(), whole.len());
}

#[test]
fn nothing_is_removed_that_a_damaged_segment_before_an_empty_one_is_mended_by() {
    let gone = |disk: &MemVfs, segment: u64| lose(disk, &path(segment));
    let empty = |disk: &MemVfs, segment: u64| set_len(disk, segment, 0);
    let cut = |disk: &MemVfs, segment: u64| set_len(disk, segment, HEADER + 150);
    let rot = |disk: &MemVfs, segment: u64| flip(disk, segment, HEADER + 150);
    let harms: [(&str, &Harm); 4] = [("rotten", &rot), ("empty", &empty), ("cut", &cut), ("gone", &gone)];
    for (case, harm) in harms {
        let sample = with_an_empty_newest();
        let before = sample.newest - 1;
        harm(&sample.disk, before);
        let found = files(&sample.vfs, &dir().join("ledger"));
        // Neither who opens it nor who looks at it to mend it takes anything away, however often.
        for _ in 0..2 {
            let refused = open(&sample.vfs, &dir()).err().unwrap_or_else(|| panic!("{case}: opened"));
            let named = match refused {
                Error::SegmentMissing { number, .. } => Some(number),
                Error::Corrupted { segment, .. } => segment,
                ref other => panic!("{case}: {other}"),
            };
            assert_eq!(named, Some(before), "{case}: {refused}");
            assert!(files(&sample.vfs, &dir().join("ledger")) == found, "{case}");
            let unopened = Unopened::open(Arc::clone(&sample.vfs), &dir(), support::spec());
            let vote = unopened.unwrap_or_else(|e| panic!("{case}: {e}")).segment_vote(before).expect("readable");
            assert!(!vote.expect("its sidecar is there").whole, "{case}");
            assert!(files(&sample.vfs, &dir().join("ledger")) == found, "{case}");
        }
        let whole = bytes(&sample, before);
        mend_segment(&sample.vfs, before, &whole).unwrap_or_else(|e| panic!("{case}: {e}"));
        let db = open(&sample.vfs, &dir()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let last = *db.ledger().segments().last().expect("frames");
        assert_eq!((last.number, last.frame_bytes), (before, whole.len() as u64 - HEADER), "{case}");
        drop(db);
        let name = PathBuf::from(path(before).file_name().expect("named"));
        assert!(files(&sample.vfs, &dir().join("ledger"))[&name] == whole, "{case}");
    }
}

#[test]
fn where_a_rotten_header_begins_is_known_by_the_sidecar_before_when_that_segment_is_gone_or_short() {
    let gone = |disk: &MemVfs, segment: u64| lose(disk, &path(segment));
    let short = |disk: &MemVfs, segment: u64| set_len(disk, segment, HEADER + 150);
    let harms: [(&str, &Harm); 2] = [("gone", &gone), ("short", &short)];
    for (case, harm) in harms {
        let sample = sample();
        let before = sample.newest - 1;
        harm(&sample.disk, before);
        // The newest has no sidecar, which would say it.
        flip(&sample.disk, sample.newest, 40);
        mend_segment(&sample.vfs, before, &bytes(&sample, before)).unwrap_or_else(|e| panic!("{case}: {e}"));
        drop(open(&sample.vfs, &dir()).unwrap_or_else(|e| panic!("{case}: {e}")));
        assert!(files(&sample.vfs, &dir().join("ledger")) == sample.files, "{case}");
    }
}
