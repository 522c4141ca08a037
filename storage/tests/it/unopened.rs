//! What mends a database that does not open: the power fails at every step of it, and what does not fit is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::error::Damage;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{DamagedLog, Database, Error, Result, TailPiece, Unopened};
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

fn mend_closed(vfs: &Arc<dyn Vfs>, whole: &Bytes) -> Result<()> {
    let unopened = Unopened::open(Arc::clone(vfs), &dir(), support::spec())?;
    let vote = unopened.segment_vote(CLOSED)?.expect("closed");
    let mut fetched = unopened.begin_segment_repair(CLOSED, vote.version)?;
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
    for (segment, mend) in [(CLOSED, mend_closed as Mend), (newest, mend_newest as Mend)] {
        let rotten = || {
            let sample = sample();
            flip(&sample.disk, segment, HEADER + 150);
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
                let place = format!("segment {segment}, step {step}, {fault:?}, {crash:?}");
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
