//! A disk that fails, at every call of a whole workload and in every way: the error has a type, nothing acknowledged is lost,
//! nothing is served that was not written, and a database that was opened again goes on. The workload and the judge are
//! those of the crash tests.

use std::io::ErrorKind;
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_storage::error::FileOp;
use alhambra_storage::segment::FrameKind;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::{Database, Error, Result};
use bytes::Bytes;

use crate::db_crash::{Known, come_up, workload_on};
use crate::support::{self, compare, dir, open};

/// A disk, the faults on it, and the workload on both as far as it came.
struct Run {
    disk: MemVfs,
    faulty: FaultyVfs,
    vfs: Arc<dyn Vfs>,
    known: Known,
    db: Option<Database>,
    ended: Result<()>,
}

impl Run {
    fn with(patient: bool, prepare: impl FnOnce(&FaultyVfs, &MemVfs)) -> Self {
        let disk = MemVfs::new();
        let faulty = FaultyVfs::on_memory(disk.clone());
        prepare(&faulty, &disk);
        let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
        let mut known = Known { patient, ..Known::default() };
        let (db, ended) = match open(&vfs, &dir()) {
            Ok(db) => {
                let ended = workload_on(&db, &mut known);
                (Some(db), ended)
            }
            Err(error) => (None, Err(error)),
        };
        Self { disk, faulty, vfs, known, db, ended }
    }

    /// What the database that met the fault still answers is right, and it takes no writes when it is poisoned.
    fn still_serves(&self, place: &str) {
        let Some(db) = &self.db else { return };
        let applied = db.applied().log_id.map_or(0, |id| id.index.0 as usize + 1);
        let sent = self.known.log.len() + usize::from(self.known.ahead.is_some());
        assert!(applied <= sent, "{place}: {applied} of {sent} log entries are applied");
        compare(db, &self.known.model(applied));
        if db.ledger().is_poisoned() {
            let steps = self.faulty.step_count();
            let staged = support::stage(db, 9, FrameKind::Blank, Bytes::new());
            assert!(matches!(staged, Err(Error::Poisoned)), "{place}: {staged:?}");
            assert!(matches!(db.ledger().flush(), Err(Error::Poisoned)), "{place}");
            assert_eq!(self.faulty.step_count(), steps, "{place}: a poisoned ledger writes nothing");
        }
    }

    /// The database is closed and opened by the same process; then the power fails.
    fn reopens(mut self, place: &str) {
        self.db = None;
        let model = come_up(&self.vfs, &mut self.known, place);
        self.disk.crash(Crash::PowerLoss);
        let db = open(&self.vfs, &dir()).unwrap_or_else(|e| panic!("{place}: not after the power failed: {e}"));
        compare(&db, &model);
    }
}

/// Steps and looks of the workload, opening included.
fn counts() -> (u64, u64) {
    let run = Run::with(false, |_, _| ());
    run.ended.expect("no fault planned");
    assert!(run.known.log.len() > 20);
    let (steps, looks) = (run.faulty.step_count(), run.faulty.look_count());
    assert!(steps > 60 && looks > 10, "{steps} steps and {looks} looks are no workload");
    (steps, looks)
}

#[test]
fn every_write_and_sync_fails_in_every_way() {
    let (steps, _) = counts();
    for step in 0..steps {
        for fault in [
            Fault::Error(ErrorKind::Other),
            Fault::Short(ErrorKind::Other),
            Fault::LostSync(ErrorKind::Other),
            Fault::Error(ErrorKind::ReadOnlyFilesystem),
        ] {
            let place = format!("{fault:?} at step {step} of {steps}");
            let run = Run::with(false, |faulty, _| faulty.fail_at(step, fault));
            let error = run.ended.as_ref().expect_err("the fault is noticed");
            assert!(matches!(error, Error::Io { .. }), "{place}: {error}");
            assert!(!error.is_deterministic() && !error.waits_for_space(), "{place}: {error}");
            run.still_serves(&place);
            run.reopens(&place);
        }
    }
}

#[test]
fn every_read_of_the_workload_fails() {
    let (_, looks) = counts();
    for look in 0..looks {
        let place = format!("look {look} of {looks}");
        let run = Run::with(false, |faulty, _| faulty.fail_look_at(look, ErrorKind::Other));
        let error = run.ended.as_ref().expect_err("the fault is noticed");
        // A disk that does not answer is not taken for one that holds the wrong bytes.
        assert!(matches!(error, Error::Io { .. }), "{place}: {error}");
        run.still_serves(&place);
        run.reopens(&place);
    }
}

#[test]
fn every_call_of_an_opening_fails() {
    let opening = |prepare: &dyn Fn(&FaultyVfs)| {
        let mut run = Run::with(false, |_, _| ());
        run.db = None;
        run.faulty = FaultyVfs::on_memory(run.disk.clone());
        prepare(&run.faulty);
        run.vfs = Arc::new(run.faulty.clone());
        let opened = open(&run.vfs, &dir());
        (run, opened)
    };
    let (steps, looks) = {
        let (run, opened) = opening(&|_| ());
        opened.expect("healthy");
        (run.faulty.step_count(), run.faulty.look_count())
    };
    assert!(steps > 5 && looks > 50, "{steps} steps, {looks} looks");
    for step in 0..steps {
        for fault in [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(ErrorKind::Other)) {
            let place = format!("{fault:?} at step {step} of {steps} of opening");
            let (run, opened) = opening(&|faulty| faulty.fail_at(step, fault));
            let error = opened.expect_err("the fault is noticed");
            assert!(matches!(error, Error::Io { .. }), "{place}: {error}");
            run.reopens(&place);
        }
    }
    let mut sidecars = 0;
    for look in 0..looks {
        let place = format!("look {look} of {looks} of opening");
        let (run, opened) = opening(&|faulty| faulty.fail_look_at(look, ErrorKind::Other));
        match opened {
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{place}: {error}"),
            // A sidecar that cannot be read is made again.
            Ok(db) => {
                drop(db);
                sidecars += 1;
            }
        }
        run.reopens(&place);
    }
    assert!(sidecars > 0 && sidecars < looks / 10, "{sidecars} of {looks}");
}

/// Everything that a reader may ask for.
fn read_all(db: &Database) -> Result<()> {
    let last = db.applied().tx;
    for tx in (1..=last.0).map(TxId) {
        db.header(tx)?;
        let record = db.tx(tx)?;
        for (n, entry) in (0u32..).zip(&record.entries) {
            db.value(entry)?;
            db.prove_inclusion(tx, n)?;
        }
        db.dual_proof(tx, last)?;
        db.log_index_of(tx)?;
    }
    db.manifest().map(drop)
}

#[test]
fn every_read_of_a_reader_fails() {
    let prepared = || {
        let run = Run::with(false, |_, _| ());
        let Run { disk, faulty, vfs, known, db, .. } = run;
        drop(db);
        let db = open(&vfs, &dir()).expect("healthy");
        support::apply_through(&db, known.log.len() as u64 - 1).expect("healthy");
        (disk, faulty, known, db)
    };
    let looks = {
        let (_disk, faulty, _known, db) = prepared();
        let before = faulty.look_count();
        read_all(&db).expect("healthy");
        before..faulty.look_count()
    };
    assert!(looks.clone().count() > 50, "{looks:?}");
    for look in looks {
        let (_disk, faulty, known, db) = prepared();
        faulty.fail_look_at(look, ErrorKind::Other);
        let error = read_all(&db).expect_err("the fault is noticed");
        assert!(matches!(error, Error::Io { .. }), "look {look}: {error}");
        // It has passed: what was not readable is.
        compare(&db, &known.model(known.log.len()));
    }
}

#[test]
fn every_step_finds_no_space_and_waits_for_it() {
    let (steps, _) = counts();
    let (mut waited, mut reopened) = (0, 0);
    for step in 0..steps {
        for fault in [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(ErrorKind::StorageFull)) {
            let place = format!("{fault:?} at step {step} of {steps}");
            let run = Run::with(true, |faulty, _| faulty.fail_at(step, fault));
            match &run.ended {
                Ok(()) => {
                    waited += 1;
                    assert!(!run.db.as_ref().expect("open").ledger().is_poisoned(), "{place}");
                    compare(run.db.as_ref().expect("open"), &run.known.model(run.known.log.len()));
                }
                // What cannot simply be repeated: opening, cutting the log, syncs of derived logs.
                Err(Error::NoSpace { .. } | Error::Poisoned) => reopened += 1,
                Err(error) => panic!("{place}: {error}"),
            }
            run.still_serves(&place);
            run.reopens(&place);
        }
    }
    assert!(waited > 2 * reopened, "{waited} waited, {reopened} were opened anew");
}

#[test]
fn a_disk_of_any_size_fills_up_and_everything_acknowledged_is_there() {
    let full = Run::with(false, |_, _| ()).disk.size_bytes();
    let mut fills = 0;
    for capacity in (0..full).step_by(usize::try_from(full / 150).expect("small")) {
        let place = format!("{capacity} of {full} bytes");
        let run = Run::with(false, |_, disk| disk.set_capacity(Some(capacity)));
        let error = run.ended.as_ref().expect_err("the disk is too small");
        assert!(matches!(error, Error::NoSpace { .. }), "{place}: {error}");
        assert!(error.to_string().contains("free space"), "{place}: {error}");
        run.still_serves(&place);
        run.disk.set_capacity(None);
        if let Some(db) = &run.db
            && error.waits_for_space()
        {
            db.ledger().flush().unwrap_or_else(|e| panic!("{place}: {e}"));
            db.checkpoint().unwrap_or_else(|e| panic!("{place}: {e}"));
            run.still_serves(&place);
        }
        run.reopens(&place);
        fills += 1;
    }
    assert!(fills > 100, "{fills}");
}

#[test]
fn a_disk_becomes_read_only_at_any_step() {
    let (steps, _) = counts();
    for step in 0..steps {
        let place = format!("read-only from step {step} of {steps} on");
        let mut run = Run::with(false, |faulty, _| faulty.read_only_from(step));
        let error = run.ended.as_ref().expect_err("nothing can be written");
        let Error::Io { source, op, .. } = error else { panic!("{place}: {error}") };
        assert_eq!(source.kind(), ErrorKind::ReadOnlyFilesystem, "{place}: {error}");
        assert!(!matches!(op, FileOp::Read | FileOp::Length | FileOp::ReadDir), "{place}: {error}");
        run.still_serves(&place);
        run.db = None;
        let refused = open(&run.vfs, &dir());
        assert!(matches!(refused, Err(Error::Io { .. })), "{place}: it opens without being able to write");
        run.faulty.set_read_only(false);
        run.reopens(&place);
    }
}
