//! A database is removed for good: wherever the power fails the next attempt finishes it, its neighbour is untouched, and
//! no folder is removed that does not say that it is this database's.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::DatabaseId;
use alhambra_storage::removal::remove;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Database, DatabaseSpec, Error};

use crate::replicas::files;
use crate::support::{self, DATABASE, dir, open, put};

const OTHER: DatabaseId = DatabaseId(*b"another database");

/// A database with closed segments, runs of an index, a checkpoint and a vote, and its neighbour.
fn ready(vfs: &Arc<dyn Vfs>) {
    for (dir, id) in [(dir(), DATABASE), (neighbour(), OTHER)] {
        let spec = DatabaseSpec { id, ..support::spec() };
        let db = Database::open_embedded(Arc::clone(vfs), &dir, spec, support::options(), support::settings())
            .expect("an empty disk");
        for n in 0..30u64 {
            let proposals = [put(&format!("k{}", n % 4), &[n as u8; 40])];
            db.commit(n as i64, proposals.iter().map(support::proposal).collect()).expect("healthy disk");
        }
        db.save_vote(b"a vote").expect("healthy disk");
        db.checkpoint().expect("healthy disk");
    }
}

fn neighbour() -> std::path::PathBuf {
    dir().with_file_name("neighbour")
}

fn exists(vfs: &dyn Vfs, path: &Path) -> bool {
    vfs.exists(path).expect("healthy disk")
}

#[test]
fn a_removal_is_finished_wherever_the_power_fails() {
    let sound = || {
        let disk = MemVfs::new();
        let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
        let vfs: Arc<dyn Vfs> = faulty.clone();
        ready(&vfs);
        (disk, faulty, vfs)
    };
    let (_, faulty, vfs) = sound();
    let untouched = files(&vfs, &neighbour());
    let before = faulty.step_count();
    assert!(remove(&*vfs, &dir(), DATABASE).expect("no fault planned"));
    let steps = faulty.step_count() - before;
    assert!(steps > 10, "{steps} steps");
    assert!(!exists(&*vfs, &dir()));
    assert!(!remove(&*vfs, &dir(), DATABASE).expect("no fault planned"), "there is nothing any more");
    let (mut whole, mut begun) = (0, 0);
    for step in 0..steps {
        for (fault, crash) in [
            (Fault::Crash, Crash::PowerLoss),
            (Fault::CrashShort, Crash::Process),
            (Fault::CrashShort, Crash::PowerLossTorn { seed: step }),
        ] {
            let place = format!("step {step}, {fault:?}, {crash:?}");
            let (disk, faulty, vfs) = sound();
            faulty.fail_after(step, fault);
            remove(&*vfs, &dir(), DATABASE).expect_err("the machine stopped");
            drop(vfs);
            disk.crash(crash);
            let vfs: Arc<dyn Vfs> = Arc::new(disk);
            if exists(&*vfs, &dir().join("removed")) {
                begun += 1;
                let opened = open(&vfs, &dir());
                assert!(matches!(opened, Err(Error::Removed { .. })), "{place}: a part of a database opens");
            } else if exists(&*vfs, &dir().join("checkpoint")) {
                whole += 1;
                let db = open(&vfs, &dir()).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert_eq!(db.applied().tx.get(), 30, "{place}");
            }
            remove(&*vfs, &dir(), DATABASE).unwrap_or_else(|e| panic!("{place}: {e}"));
            assert!(!exists(&*vfs, &dir()), "{place}");
            assert_eq!(files(&vfs, &neighbour()), untouched, "{place}");
        }
    }
    assert!(whole > 0 && begun > 0, "{whole} whole, {begun} begun");
}

#[test]
fn what_is_not_provably_this_database_stays() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    ready(&vfs);
    let (ours, theirs) = (files(&vfs, &dir()), files(&vfs, &neighbour()));
    // Another database.
    let refused = remove(&*vfs, &neighbour(), DATABASE);
    assert!(matches!(refused, Err(Error::ForeignDatabase { found: OTHER, .. })), "{refused:?}");
    assert_eq!(files(&vfs, &neighbour()), theirs);
    // One that is open.
    let db = open(&vfs, &dir()).unwrap();
    let refused = remove(&*vfs, &dir(), DATABASE);
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    drop(db);
    assert_eq!(files(&vfs, &dir()).len(), ours.len());
    // One in which a single file is another's.
    let vote = dir().join("vote");
    vfs.remove_file(&vote).unwrap();
    vfs.rename(&neighbour().join("vote"), &vote).unwrap();
    let refused = remove(&*vfs, &dir(), DATABASE);
    assert!(matches!(refused, Err(Error::ForeignDatabase { found: OTHER, .. })), "{refused:?}");
    assert!(exists(&*vfs, &dir().join("marks")));
    // Something that is no database.
    let strange = dir().with_file_name("strange");
    vfs.create_dir_all(&strange).unwrap();
    vfs.open(&strange.join("letter"), OpenMode::CreateNew).unwrap().write_at(0, b"dear").unwrap();
    let refused = remove(&*vfs, &strange, DATABASE);
    assert!(matches!(refused, Err(Error::NobodysDatabase { .. })), "{refused:?}");
    assert!(exists(&*vfs, &strange.join("letter")));
}

#[test]
fn damage_keeps_nothing_from_being_removed_as_long_as_one_file_says_whose_it_is() {
    for kept in ["marks", "vote", "checkpoint", "ledger"] {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        ready(&vfs);
        for name in ["marks", "vote", "checkpoint"].into_iter().filter(|name| *name != kept) {
            let file = vfs.open(&dir().join(name), OpenMode::ReadWrite).unwrap();
            for at in 0..file.len().unwrap() {
                file.write_at(at, &[0x5a]).unwrap();
            }
        }
        if kept != "ledger" {
            vfs.remove_dir_all(&dir().join("ledger")).unwrap();
        }
        assert!(remove(&*vfs, &dir(), DATABASE).unwrap(), "{kept}");
        assert!(!exists(&*vfs, &dir()), "{kept}");
    }
}
