//! A replica that gets files: complete, refused when anything is wrong with them, and old or new after any crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_storage::command::Command;
use alhambra_storage::segment::FrameKind;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Database, Error, FileRange, Health, Manifest, Result};
use bytes::Bytes;

use crate::model::Model;
use crate::support::{self, commit_command, compare, dir, open, put};

fn grow(db: &Database, model: &mut Model, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let proposals = [put(&format!("k{}", n % 9), &[n as u8; 40]), put(&format!("l{n}"), &n.to_be_bytes())];
        commit_command(db, &support::batch(n as i64, &proposals)).expect("applies");
        model.batch(n as i64, &proposals);
        db.ledger().settle().expect("healthy disk");
        for seal in db.pending_seals().expect("healthy disk") {
            commit_command(db, &Command::Seal(seal)).expect("applies");
        }
    }
}

/// A leader with many segments, and its model after the first `behind` batches and now.
fn leader(behind: u64) -> (Arc<dyn Vfs>, Database, Model, Model) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs, &dir()).expect("an empty disk");
    let mut model = Model::new();
    commit_command(&db, &support::genesis()).expect("applies");
    model.limits = Some(support::limits());
    grow(&db, &mut model, 0..behind);
    let old = model.clone();
    grow(&db, &mut model, behind..60);
    assert!(db.ledger().segments().len() > 5);
    (vfs, db, old, model)
}

/// A follower that has the log of `leader` up to the transaction `tx`, and a tail of its own behind it.
fn follower(vfs: &Arc<dyn Vfs>, leader: &Database, tx: u64) -> Result<Database> {
    let db = open(vfs, &dir())?;
    let through = leader.log_index_of(TxId(tx)).expect("applied").0;
    let mut next = 0;
    while next <= through {
        let frames = leader.ledger().read(LogIndex(next), LogIndex(through + 1), 1 << 20)?;
        let frames: Vec<_> = frames.into_iter().map(|(_, frame)| frame).collect();
        next += frames.len() as u64;
        db.ledger().stage(&frames)?;
    }
    db.ledger().flush()?;
    db.ledger().settle().expect("healthy disk");
    support::apply_through(&db, through)?;
    for n in 0..120u8 {
        support::stage(&db, 1, FrameKind::Command, support::batch(3, &[put("own", &[n; 40])]).encode())?;
    }
    db.ledger().flush()?;
    db.save_vote(b"mine")?;
    Ok(db)
}

pub fn staging() -> PathBuf {
    dir().join("incoming")
}

/// Copies what is missing into the staging folder, in pieces.
pub fn fetch(vfs: &Arc<dyn Vfs>, leader: &Database, ranges: &[FileRange]) -> Result<()> {
    for range in ranges {
        let path = staging().join(&range.path);
        let io = |e| Error::io(alhambra_storage::error::FileOp::Write, &path, e);
        vfs.create_dir_all(path.parent().expect("in a folder")).map_err(io)?;
        let file = vfs.open(&path, OpenMode::Create).map_err(io)?;
        let mut offset = 0;
        while offset < range.len {
            let len = (range.len - offset).min(700);
            let piece = leader.read_file(&FileRange { path: range.path.clone(), offset, len }).expect("leader");
            file.write_at(offset, &piece).map_err(io)?;
            offset += len;
        }
        file.set_len(range.len).map_err(io)?;
    }
    Ok(())
}

#[test]
fn a_follower_far_behind_becomes_the_leader_and_goes_on() {
    let (_, leader, _, mut model) = leader(20);
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = follower(&vfs, &leader, 30).expect("healthy disk");
    let reader = db.snapshot();
    let manifest = leader.manifest().expect("healthy disk");
    assert_eq!(Manifest::decode(&manifest.encode()).expect("own bytes"), manifest);
    assert_eq!((manifest.tx, manifest.alh), (leader.applied().tx, leader.applied().alh));
    let missing = db.missing(&manifest).expect("healthy disk");
    let segments = |paths: &[String]| paths.iter().filter(|path| path.starts_with("ledger/")).count();
    let named: Vec<String> = manifest.files.iter().map(|file| file.path.clone()).collect();
    let asked: Vec<String> = missing.iter().map(|range| range.path.clone()).collect();
    assert!(segments(&asked) < segments(&named), "equal closed segments are not sent again");
    assert!(!asked.contains(&"ledger/0000000000.seg".to_owned()));
    fetch(&vfs, &leader, &missing).expect("healthy disk");
    // The leader goes on meanwhile; the manifest stays what it was.
    let installed = model.clone();
    grow(&leader, &mut model, 60..70);
    db.install(&manifest, &staging()).expect("whole");
    compare(&db, &installed);
    assert_eq!(db.applied().log_id, manifest.log_id);
    assert_eq!(db.ledger().last_log_id(), manifest.log_id, "the own tail is gone");
    assert_eq!(db.manifest().expect("healthy disk"), manifest, "R2");
    assert_eq!(db.health(), Health::Sound);
    assert_eq!(db.load_vote().expect("healthy disk").as_deref(), Some(&b"mine"[..]));
    assert!(!vfs.exists(&staging()).expect("healthy disk"));
    assert_eq!(reader.tx(), TxId(30), "an old snapshot reads on");
    let version = reader.get(b"k1").unwrap().expect("written");
    reader.value(b"k1", &version).expect("from the old files or the same segments");
    // The rest comes through the log.
    let from = manifest.log_id.expect("applied").index.0 + 1;
    let through = leader.applied().log_id.expect("applied").index.0;
    let frames = leader.ledger().read(LogIndex(from), LogIndex(through + 1), 1 << 20).expect("leader");
    let frames: Vec<_> = frames.into_iter().map(|(_, frame)| frame).collect();
    db.ledger().stage(&frames).expect("follows");
    db.ledger().flush().expect("healthy disk");
    support::apply_through(&db, through).expect("applies");
    assert_eq!(db.applied(), leader.applied());
    compare(&db, &model);
    drop(db);
    let db = open(&vfs, &dir()).expect("reopens");
    support::apply_through(&db, through).expect("applies");
    compare(&db, &model);
}

#[test]
fn an_empty_replica_can_be_filled() {
    let (_, leader, _, model) = leader(20);
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs, &dir()).expect("an empty disk");
    let manifest = leader.manifest().expect("healthy disk");
    fetch(&vfs, &leader, &db.missing(&manifest).expect("healthy disk")).expect("healthy disk");
    db.install(&manifest, &staging()).expect("whole");
    compare(&db, &model);
    drop(db);
    compare(&open(&vfs, &dir()).expect("reopens"), &model);
}

#[test]
fn every_flipped_byte_of_a_received_file_is_refused_and_nothing_changes() {
    let (_, leader, old, _) = leader(15);
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = follower(&vfs, &leader, 30).expect("healthy disk");
    let manifest = leader.manifest().expect("healthy disk");
    let missing = db.missing(&manifest).expect("healthy disk");
    for range in &missing {
        for at in [0, 20, range.len / 2, range.len - 1] {
            fetch(&vfs, &leader, &missing).expect("healthy disk");
            flip(&vfs, &staging().join(&range.path), at);
            let refused = db.install(&manifest, &staging());
            assert!(matches!(refused, Err(Error::Corrupted { .. })), "{} at {at}: {refused:?}", range.path);
        }
    }
    fetch(&vfs, &leader, &missing).expect("healthy disk");
    let lost = &missing[0].path;
    vfs.remove_file(&staging().join(lost)).expect("there");
    assert!(matches!(db.install(&manifest, &staging()), Err(Error::NotInManifest { .. })));
    let mut foreign = manifest.clone();
    foreign.database.0[0] ^= 1;
    assert!(matches!(db.install(&foreign, &staging()), Err(Error::ForeignDatabase { .. })));
    compare(&db, &old);
    let encoded = manifest.encode();
    for at in 0..encoded.len() {
        let mut bad = encoded.to_vec();
        bad[at] ^= 0x40;
        Manifest::decode(&bad).expect_err("checksum");
    }
}

#[test]
fn files_outside_the_database_are_never_touched() {
    let (_, leader, ..) = leader(15);
    for path in ["../secret", "vote", "ledger/../vote", "/etc/passwd", "tx/../../x", "ledger"] {
        let range = FileRange { path: path.to_owned(), offset: 0, len: 1 };
        assert!(matches!(leader.read_file(&range), Err(Error::NotInManifest { .. })), "{path}");
        let mut manifest = leader.manifest().expect("healthy disk");
        manifest.files[0].path = path.to_owned();
        Manifest::decode(&manifest.encode()).expect_err("names a file outside");
    }
}

#[test]
fn a_crash_during_an_install_leaves_the_old_or_the_new_database() {
    let (_, leader, old, new) = leader(15);
    let manifest = leader.manifest().expect("healthy disk");
    let prepare = || {
        let disk = MemVfs::new();
        let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
        let vfs: Arc<dyn Vfs> = faulty.clone();
        let db = follower(&vfs, &leader, 30).expect("healthy disk");
        db.checkpoint().expect("healthy disk");
        fetch(&vfs, &leader, &db.missing(&manifest).expect("healthy disk")).expect("healthy disk");
        (disk, faulty, db)
    };
    let steps = {
        let (_, faulty, db) = prepare();
        let before = faulty.step_count();
        db.install(&manifest, &staging()).expect("no fault planned");
        faulty.step_count() - before
    };
    assert!(steps > 20, "{steps} steps");
    let (mut olds, mut news) = (0, 0);
    for step in 0..steps {
        for crash in [Crash::PowerLoss, Crash::Process, Crash::PowerLossTorn { seed: step }] {
            let (disk, faulty, db) = prepare();
            faulty.fail_after(step, Fault::CrashShort);
            db.install(&manifest, &staging()).expect_err("the machine stopped");
            drop(db);
            disk.crash(crash);
            let vfs: Arc<dyn Vfs> = Arc::new(disk);
            let db = open(&vfs, &dir()).unwrap_or_else(|e| panic!("step {step}, {crash:?}: {e}"));
            assert_eq!(db.load_vote().expect("kept").as_deref(), Some(&b"mine"[..]));
            if db.applied().log_id == manifest.log_id {
                news += 1;
                compare(&db, &new);
                assert_eq!(db.ledger().last_log_id(), manifest.log_id);
                assert_eq!(db.manifest().expect("healthy disk"), manifest, "R2");
            } else {
                olds += 1;
                compare(&db, &old);
                let missing = db.missing(&manifest).expect("healthy disk");
                vfs.create_dir_all(&staging()).expect("healthy disk");
                vfs.remove_dir_all(&staging()).expect("healthy disk");
                fetch(&vfs, &leader, &missing).expect("healthy disk");
                db.install(&manifest, &staging()).expect("whole");
                compare(&db, &new);
            }
        }
    }
    assert!(olds > 0 && news > 0, "{olds} old, {news} new");
}

pub fn flip(vfs: &Arc<dyn Vfs>, path: &Path, at: u64) {
    let file = vfs.open(path, OpenMode::ReadWrite).expect("there");
    let byte: Bytes = file.read_at(at, 1).expect("there");
    file.write_at(at, &[byte[0] ^ 0x04]).expect("healthy disk");
}
