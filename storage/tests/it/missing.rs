//! Files that somebody removed while the database was closed: what nothing else can tell is noticed at open, with the name of what is
//! missing, and nothing is changed.

use std::path::Path;

use alhambra_storage::fsck;
use alhambra_storage::segment::FrameKind;
use alhambra_storage::{Database, Error};
use bytes::Bytes;

use crate::scrub::{all_files, filled, open, options};
use crate::support::{self, compare, dir};

#[test]
fn marks_and_vote_are_missed_once_they_were_there() {
    for name in ["marks", "vote"] {
        let (vfs, db, model) = filled(6);
        drop(db);
        let whole = all_files(&vfs);
        vfs.remove_file(&dir().join(name)).expect("there");
        let before = all_files(&vfs);
        let opened = Database::open(vfs.clone(), &dir(), support::spec(), options());
        let error = opened.err().unwrap_or_else(|| panic!("opened without {name}"));
        assert!(matches!(&error, Error::Corrupted { path, .. } if path.ends_with(name)), "{name}: {error}");
        assert_eq!(all_files(&vfs), before, "{name}");
        let checked = fsck::check(&vfs, &dir(), None, &mut |_| true).expect("healthy");
        let named = |path: &Path| path.ends_with(name);
        assert!(checked.findings.iter().any(|finding| finding.path().is_some_and(named)), "{name}: {checked:?}");
        // Put back, everything is as before.
        let file = vfs.open(&dir().join(name), alhambra_storage::vfs::OpenMode::Create).expect("healthy");
        file.write_at(0, &whole[&dir().join(name)]).expect("healthy");
        compare(&open(&vfs), &model);
    }
}

#[test]
fn a_database_that_never_voted_needs_no_vote() {
    let (vfs, db, model) = crate::scrub::filled_without_vote(6);
    drop(db);
    compare(&open(&vfs), &model);
}

#[test]
fn the_newest_segment_is_missed_also_when_no_mark_reaches_into_it() {
    let (vfs, db, _) = filled(6);
    // More segments than any mark or checkpoint knows of, and a process that is killed.
    let known = db.ledger().segments().len();
    while db.ledger().segments().len() < known + 2 {
        support::stage(&db, 1, FrameKind::Command, Bytes::from(vec![1; 300])).expect("healthy");
        db.ledger().flush().expect("healthy");
    }
    let newest = db.ledger().segments().last().expect("some").number;
    drop(db);
    vfs.remove_file(&dir().join(format!("ledger/{newest:010}.seg"))).expect("there");
    let before = all_files(&vfs);
    let error = Database::open(vfs.clone(), &dir(), support::spec(), options()).expect_err("a segment is missing");
    assert!(matches!(error, Error::SegmentMissing { number, .. } if number == newest), "{error}");
    assert_eq!(all_files(&vfs), before);
}

#[test]
fn a_cut_is_not_taken_for_a_missing_segment() {
    let (vfs, db, model) = filled(6);
    let kept = db.ledger().last_log_id();
    let known = db.ledger().segments().len();
    while db.ledger().segments().len() < known + 3 {
        support::stage(&db, 1, FrameKind::Command, Bytes::from(vec![1; 300])).expect("healthy");
        db.ledger().flush().expect("healthy");
    }
    db.truncate_after(kept).expect("healthy");
    assert_eq!(crate::scrub::pass(&db, u64::MAX), []);
    drop(db);
    compare(&open(&vfs), &model);
}
