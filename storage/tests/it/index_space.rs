//! A disk that is full when the index writes, at every call and in every way: what is committed is applied all the same, with the
//! outcomes of every other replica, and the work is done when there is space again. Nobody works in the background here.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use alhambra_storage::apply::Outcome;
use alhambra_storage::index::IndexOptions;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs, StepKind};
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Database, Error, Options, ScanSpec};

use crate::model::{self, Condition, Model};
use crate::support::{self, commit_command, compare, dir, put};

/// A batch fills an in-memory part, so that the applier has to help soon.
const SMALL: usize = 900;
/// Many batches do.
const LARGE: usize = 8_000;

fn options(memtable_bytes: usize) -> Options {
    let index = IndexOptions { memtable_bytes, ..IndexOptions::default() };
    Options { index, ..support::options() }
}

fn open(vfs: &Arc<dyn Vfs>, memtable_bytes: usize) -> Database {
    let db = Database::open(Arc::clone(vfs), &dir(), support::spec(), options(memtable_bytes)).unwrap();
    if let Some(last) = db.ledger().last_log_id() {
        support::apply_through(&db, last.index.0).unwrap();
    }
    db
}

struct Replica {
    faulty: FaultyVfs,
    vfs: Arc<dyn Vfs>,
    db: Database,
    model: Model,
}

impl Replica {
    fn new() -> Self {
        Self::with(SMALL)
    }

    fn with(memtable_bytes: usize) -> Self {
        let faulty = FaultyVfs::on_memory(MemVfs::new());
        let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
        let db = open(&vfs, memtable_bytes);
        let mut model = Model::new();
        commit_command(&db, &support::genesis()).unwrap();
        model.limits = Some(support::limits());
        Self { faulty, vfs, db, model }
    }

    /// Applies one more batch, whose conditions read the index, and compares the outcomes with the model's.
    fn grow(&mut self, n: u64, place: &str) {
        let mut proposals = [put(&format!("k{}", n % 3), &[n as u8; 30]), put(&format!("l{n}"), &n.to_be_bytes())];
        proposals[1].conditions = vec![Condition::MustNotExist(format!("k{}", n % 7).into_bytes())];
        let applied = commit_command(&self.db, &support::batch(n as i64, &proposals));
        let applied = applied.unwrap_or_else(|e| panic!("{place}: a committed entry is not applied: {e}"));
        let found: Vec<_> = applied.iter().map(support::outcome).collect();
        assert_eq!(found, self.model.batch(n as i64, &proposals), "{place}");
    }

    /// Numbers and kinds of the steps of the index in what is done here.
    fn steps_of_index(&mut self, done: impl FnOnce(&mut Self)) -> Vec<(u64, StepKind)> {
        let before = self.faulty.step_count();
        self.faulty.record();
        done(self);
        let steps = (before..).zip(self.faulty.steps());
        steps.filter(|(_, step)| step.path.starts_with(index_dir())).map(|(at, step)| (at, step.kind)).collect()
    }

    /// Names of the runs on the disk.
    fn runs(&self) -> Vec<String> {
        let found = self.vfs.read_dir(&index_dir()).unwrap();
        found.into_iter().map(|(name, _)| name).filter(|name| name != "manifest").collect()
    }

    /// There is space: the work is done, everything is served, and no more than `left` files that a later open has to remove.
    fn recovers(self, left: usize, place: &str) {
        while self.db.index_work().unwrap_or_else(|e| panic!("{place}: {e}")) {}
        compare(&self.db, &self.model);
        self.db.verify_index().unwrap();
        let runs = self.runs();
        let Self { vfs, db, model, .. } = self;
        // Without one everything is derived again, the index too.
        db.checkpoint().unwrap();
        drop(db);
        // Nothing is written then.
        let db = open(&vfs, 1 << 20);
        let named = vfs.read_dir(&index_dir()).unwrap().len() - 1;
        compare(&db, &model);
        assert!((named..=named + left).contains(&runs.len()), "{place}: {runs:?}, {named} are named");
    }
}

fn index_dir() -> PathBuf {
    dir().join("index")
}

fn faults() -> [Fault; 3] {
    [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(ErrorKind::StorageFull))
}

#[test]
fn at_every_step_of_the_index_an_applied_entry_stays_applied() {
    const BATCHES: u64 = 30;
    let mut replica = Replica::new();
    let steps = replica.steps_of_index(|replica| (0..BATCHES).for_each(|n| replica.grow(n, "no fault")));
    let syncs = steps.iter().filter(|(_, kind)| *kind == StepKind::Sync).count();
    assert!(steps.len() > 30 && syncs > 5, "{} steps, {syncs} syncs: the applier never helped", steps.len());
    for (step, kind) in steps {
        for fault in faults() {
            let place = format!("{fault:?} at step {step}, {kind:?}");
            let mut replica = Replica::new();
            replica.faulty.fail_at(step, fault);
            (0..BATCHES).for_each(|n| replica.grow(n, &place));
            assert!(replica.faulty.step_count() > step, "{place}: it was never reached");
            replica.recovers(left_by(kind), &place);
        }
    }
}

/// Files that nothing names any more and that are there all the same: the one that could not be removed, and the one that a
/// manifest may name whose rename is not certain.
fn left_by(kind: StepKind) -> usize {
    usize::from(matches!(kind, StepKind::Remove | StepKind::Rename | StepKind::SyncDir))
}

#[test]
fn a_disk_that_stays_full_is_not_tried_at_every_entry_and_holds_nothing_up() {
    let mut replica = Replica::with(LARGE);
    (0..10).for_each(|n| replica.grow(n, "space"));
    replica.faulty.set_full_below(Some(&index_dir()));
    (10..160).for_each(|n| replica.grow(n, "no space"));
    assert!(matches!(replica.db.index_work(), Err(Error::NoSpace { .. })), "there is something to write");
    let entries = 80;
    let tried = replica.steps_of_index(|replica| (160..160 + entries).for_each(|n| replica.grow(n, "no space"))).len();
    // As often as an in-memory part becomes full, which is not at every entry.
    assert!(tried > 0 && (tried as u64) < entries / 2, "{tried} attempts in {entries} entries");
    replica.faulty.set_full_below(None);
    replica.recovers(0, "a long time without space");
}

/// A replica with a run of several blocks that have rotted, which its next condition finds out.
fn damaged() -> Replica {
    let mut replica = Replica::new();
    let many: Vec<_> = (0..KEYS)
        .map(|n| {
            let entry = |k| model::Entry {
                key: format!("x{:05}", 3 * n + k).into_bytes(),
                metadata: model::Metadata::default(),
                value: vec![7],
            };
            model::Proposal { request: None, entries: (0..3).map(entry).collect(), conditions: Vec::new() }
        })
        .collect();
    commit_command(&replica.db, &support::batch(0, &many)).unwrap();
    replica.model.batch(0, &many);
    while replica.db.index_work().unwrap() {}
    let Replica { faulty, vfs, db, model } = replica;
    drop(db);
    // The root of a run is read when it is opened, its leaves are when they are asked for.
    let db = open(&vfs, SMALL);
    for (name, _) in vfs.read_dir(&index_dir()).unwrap() {
        if name != "manifest" {
            let file = vfs.open(&index_dir().join(name), OpenMode::ReadWrite).unwrap();
            let len = usize::try_from(file.len().unwrap()).unwrap();
            file.write_at(0, &vec![0xa5; len]).unwrap();
        }
    }
    Replica { faulty, vfs, db, model }
}

const KEYS: u64 = 400;

/// Batches whose conditions look at all blocks of the run; the outcomes are the model's.
fn ask(replica: &mut Replica, place: &str) {
    for n in 0..4 {
        let mut proposal = put(&format!("y{n}"), b"v");
        proposal.conditions = vec![Condition::MustExist(format!("x{:05}", 3 * n * KEYS / 4).into_bytes())];
        let proposals = [proposal];
        let applied = commit_command(&replica.db, &support::batch(n as i64, &proposals));
        let applied = applied.unwrap_or_else(|e| panic!("{place}: a committed entry is not applied: {e}"));
        let found: Vec<_> = applied.iter().map(support::outcome).collect();
        assert_eq!(found, replica.model.batch(n as i64, &proposals), "{place}");
        assert!(matches!(found[..], [model::Outcome::Committed(..)]), "{place}");
    }
}

/// There is space: the index is whole again, now and after another opening.
fn is_whole(replica: Replica, place: &str) {
    while replica.db.index_work().unwrap_or_else(|e| panic!("{place}: {e}")) {}
    let Replica { vfs, db, model, .. } = replica;
    let keys = model.keys(model.txs.len() as u64);
    let check = |db: &Database| {
        db.verify_index().unwrap_or_else(|e| panic!("{place}: {e}"));
        let found = db.snapshot().scan(&ScanSpec::default()).map(|found| found.unwrap().0.to_vec());
        assert_eq!(found.collect::<Vec<_>>(), keys, "{place}");
    };
    check(&db);
    drop(db);
    check(&open(&vfs, SMALL));
}

#[test]
fn a_damaged_index_is_made_anew_for_a_condition_on_a_full_disk() {
    let steps = damaged().steps_of_index(|replica| ask(replica, "no fault"));
    assert_eq!(steps.first().map(|(_, kind)| *kind), Some(StepKind::Remove), "the manifest goes first: {steps:?}");
    // Those of one run and its manifest; the others are alike.
    for (step, kind) in steps.into_iter().take(20) {
        for fault in faults() {
            let place = format!("{fault:?} at step {step}, {kind:?}");
            let mut replica = damaged();
            replica.faulty.fail_at(step, fault);
            ask(&mut replica, &place);
            is_whole(replica, &place);
        }
    }
    let mut replica = damaged();
    replica.faulty.set_full_below(Some(&index_dir()));
    ask(&mut replica, "no space at all");
    replica.faulty.set_full_below(None);
    is_whole(replica, "no space at all");
}

#[test]
fn outcomes_are_compared() {
    // A guard of the tests above: the conditions do refuse some of their proposals.
    let mut replica = Replica::new();
    replica.grow(0, "first");
    let proposals = [{
        let mut again = put("m", b"v");
        again.conditions = vec![Condition::MustNotExist(b"k0".to_vec())];
        again
    }];
    let applied = commit_command(&replica.db, &support::batch(1, &proposals)).unwrap();
    assert!(matches!(applied[..], [Outcome::Rejected(_)]));
}
