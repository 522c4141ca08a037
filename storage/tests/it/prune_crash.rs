//! The power fails at every step of getting rid of pruned bytes: each segment is the old one or the new one, which of the two
//! is known, and the work is finished after the restart.

use std::sync::Arc;

use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_storage::command::PruneTarget;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::{Database, Error, Health, Manifest};

use crate::model::Model;
use crate::prune::{Named, check};
use crate::replicas::files;
use crate::support::{self, apply_through, dir, open, put};

const ALL: LogIndex = LogIndex(u64::MAX);

/// A database with three prunes in force and nothing done about them, checkpointed.
fn ready(vfs: &Arc<dyn Vfs>) -> (Database, Model, Vec<Named>) {
    let db = Database::open_embedded(Arc::clone(vfs), &dir(), support::spec(), support::options(), support::settings())
        .expect("an empty disk");
    let mut model = Model::new();
    model.limits = Some(support::limits());
    for n in 0..30u64 {
        let proposals = [put(&format!("k{}", n % 4), &[n as u8; 40]), put("", b"refused"), put(&format!("l{n}"), &[])];
        db.commit(n as i64, proposals.iter().map(support::proposal).collect()).expect("healthy disk");
        model.batch(n as i64, &proposals);
    }
    let last = model.txs.len() as u64;
    db.prune(None, PruneTarget::Value { tx: TxId(3), entry: 0 }).expect("healthy disk");
    let marker = PruneTarget::marker(None, TxId(21), Vec::new());
    db.prune(None, PruneTarget::Before { tx: TxId(21), ts: 40, marker }).expect("healthy disk");
    model.marker(40, 21, &[]);
    db.prune(None, PruneTarget::Versions { prefix: b"k1"[..].into(), keep: 2 }).expect("healthy disk");
    let limit = Named::Versions { prefix: b"k1".to_vec(), keep: 2, as_of: last + 1 };
    let prunes = vec![Named::Value(3, 0), Named::Before(21), limit];
    // What was written last is sealed as well.
    for n in 30..50u64 {
        let filler = [put("filler", &[n as u8; 40])];
        db.commit(n as i64, filler.iter().map(support::proposal).collect()).expect("healthy disk");
        model.batch(n as i64, &filler);
    }
    db.checkpoint().expect("healthy disk");
    (db, model, prunes)
}

fn prune_all(db: &Database) -> Result<(), Error> {
    while db.prune_step(ALL)?.rewritten.is_some() {}
    db.seal_closed()?;
    db.checkpoint()
}

#[test]
fn a_segment_is_old_or_new_wherever_the_power_fails() {
    let sound = || {
        let disk = MemVfs::new();
        let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
        let vfs: Arc<dyn Vfs> = faulty.clone();
        let (db, model, prunes) = ready(&vfs);
        (disk, faulty, vfs, db, model, prunes)
    };
    let (_, faulty, vfs, db, model, prunes) = sound();
    let before = faulty.step_count();
    prune_all(&db).expect("no fault planned");
    let steps = faulty.step_count() - before;
    assert!(steps > 40, "{steps} steps");
    check(&db, &model, &prunes);
    drop(db);
    let want = files(&vfs, &dir().join("ledger"));
    let (mut done, mut not_done) = (0, 0);
    for step in 0..steps {
        for (fault, crash) in [
            (Fault::Crash, Crash::PowerLoss),
            (Fault::CrashShort, Crash::Process),
            (Fault::CrashShort, Crash::PowerLossTorn { seed: step }),
        ] {
            let place = format!("step {step}, {fault:?}, {crash:?}");
            let (disk, faulty, _, db, model, prunes) = sound();
            faulty.fail_after(step, fault);
            prune_all(&db).expect_err("the machine stopped");
            drop(db);
            disk.crash(crash);
            let vfs: Arc<dyn Vfs> = Arc::new(disk);
            let db = open(&vfs, &dir()).unwrap_or_else(|e| panic!("{place}: {e}"));
            let last = support::next_index(&db) - 1;
            apply_through(&db, last).unwrap_or_else(|e| panic!("{place}: {e}"));
            for segment in db.ledger().segments().iter().filter(|segment| segment.closed) {
                if segment.generation > 0 {
                    done += 1
                } else {
                    not_done += 1
                }
                let digest = db.ledger().digest(segment.number).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert_eq!(digest, db.ledger().recompute_digest(segment.number).expect("there"), "{place}");
            }
            check(&db, &model, &prunes);
            prune_all(&db).unwrap_or_else(|e| panic!("{place}: {e}"));
            check(&db, &model, &prunes);
            assert_eq!(db.compare_seals().expect("healthy disk"), Health::Sound, "{place}");
            drop(db);
            // Seals may stand in other places of the log; what was pruned is equal byte for byte.
            let found = files(&vfs, &dir().join("ledger"));
            for number in 0..6 {
                let name = format!("{number:010}.seg");
                assert_eq!(found[std::path::Path::new(&name)], want[std::path::Path::new(&name)], "{place}: {name}");
            }
            assert!(!found.keys().any(|name| name.extension().is_some_and(|e| e == "new")), "{place}");
        }
    }
    assert!(done > 0 && not_done > 0, "{done} done, {not_done} not");
}

/// Before the new file takes the old one's name nothing has happened; where it cannot be told whether it has, the database
/// takes no more until it is opened again.
#[test]
fn an_error_on_the_way_leaves_the_segment_and_the_database_in_use() {
    let steps = 12;
    let (mut went_on, mut opened_again) = (0, 0);
    for step in 0..steps {
        for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::Other] {
            let faulty = Arc::new(FaultyVfs::new(Arc::new(MemVfs::new())));
            let vfs: Arc<dyn Vfs> = faulty.clone();
            let (mut db, mut model, prunes) = ready(&vfs);
            let before = faulty.step_count();
            faulty.fail_after(step, Fault::Error(kind));
            while db.prune_step(ALL).is_ok_and(|progress| progress.rewritten.is_some()) {}
            assert!(faulty.step_count() > before + step, "the fault was met");
            let after = [put("after", b"fault")];
            if db.ledger().is_poisoned() {
                opened_again += 1;
                check(&db, &model, &prunes);
                let refused = db.commit(60, after.iter().map(support::proposal).collect());
                assert!(matches!(refused, Err(Error::Poisoned)), "{refused:?}");
                drop(db);
                db = open(&vfs, &dir()).expect("reopens");
                apply_through(&db, support::next_index(&db) - 1).expect("applies");
            } else {
                went_on += 1;
            }
            db.commit(60, after.iter().map(support::proposal).collect()).expect("writes go on");
            model.batch(60, &after);
            check(&db, &model, &prunes);
            prune_all(&db).expect("healthy again");
            check(&db, &model, &prunes);
        }
    }
    assert!(went_on > opened_again && opened_again > 0, "{went_on} went on, {opened_again} were opened again");
}

#[test]
fn a_replica_that_lags_gets_pruned_segments_as_files() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let (leader, model, prunes) = ready(&vfs);
    prune_all(&leader).expect("healthy disk");
    let manifest = leader.manifest().expect("healthy disk");
    let other: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&other, &dir()).expect("an empty disk");
    let manifest = Manifest::decode(&manifest.encode()).expect("own bytes");
    crate::transfer::fetch(&other, &leader, &db.missing(&manifest).expect("healthy disk")).expect("healthy disk");
    db.install(&manifest, &crate::transfer::staging()).expect("whole");
    check(&db, &model, &prunes);
    assert_eq!(db.compare_seals().expect("healthy disk"), Health::Sound);
    assert_eq!(db.manifest().expect("healthy disk"), manifest, "R2");
    assert_eq!(db.prune_step(ALL).expect("healthy disk").rewritten, None, "there is nothing left to do");
    assert!(db.missing(&manifest).expect("healthy disk").iter().all(|range| {
        let closed = leader.ledger().segments().iter().filter(|segment| segment.closed).count();
        !(0..closed).any(|number| range.path == format!("ledger/{number:010}.seg"))
    }));
}
