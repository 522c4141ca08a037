//! Group commit: many threads, one order, nobody left behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use alhambra_ledger::ids::TxId;
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Precondition, ProposalEntry, Settings, TxProposal};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::{Committer, Database, DatabaseSpec, Durability, Error, Options, ScanSpec};
use bytes::Bytes;

use crate::support::{self, dir};

const SEGMENT_BYTES: u64 = 2000;

fn open(vfs: &Arc<dyn Vfs>) -> Arc<Database> {
    let spec = DatabaseSpec { id: support::DATABASE, segment_bytes: SEGMENT_BYTES };
    let options = Options { checkpoint_txs: 50, ..Options::default() };
    Arc::new(Database::open_embedded(Arc::clone(vfs), &dir(), spec, options, Settings::DEFAULT).expect("healthy disk"))
}

fn proposal(key: &str, value: &[u8]) -> TxProposal {
    let entry = ProposalEntry::plain(Bytes::from(key.to_owned()), Bytes::new(), Bytes::copy_from_slice(value));
    TxProposal {
        request: None,
        metadata: Bytes::new(),
        entries: vec![entry],
        preconditions: Vec::new(),
        read_set: None,
        foreign: None,
    }
}

/// What the threads of a test answer; a caller left hanging fails the test instead of stopping it.
fn within<T: Send>(what: &str, threads: usize, run: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (done, answers) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (done, run) = (done.clone(), &run);
            scope.spawn(move || done.send(run(thread)));
        }
        drop(done);
        let next = |_| match answers.recv_timeout(Duration::from_secs(120)) {
            Ok(answer) => Some(answer),
            // A thread panicked, and so will the scope.
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                // Leaving the scope would wait for it for ever.
                eprintln!("{what}: a caller hangs");
                std::process::abort();
            }
        };
        (0..threads).map_while(next).collect()
    })
}

/// Every transaction that the database has, by id: key and value.
fn contents(db: &Database) -> BTreeMap<u64, (Bytes, Bytes)> {
    (1..=db.applied().tx.0)
        .map(|id| {
            let record = db.tx(TxId(id)).expect("L4");
            let entry = &record.entries[0];
            (id, (entry.key.clone(), db.value(entry).expect("S4")))
        })
        .collect()
}

#[test]
fn many_threads_get_one_order_and_each_its_own_answer() {
    // Rounds of several log entries.
    const THREADS: usize = 40;
    const EACH: usize = 15;
    for durability in [Durability::Synced, Durability::Unsynced] {
        let disk = MemVfs::new();
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let db = open(&vfs);
        let committer = Committer::new(Arc::clone(&db), durability);
        let answers = within("commit", THREADS, |thread| {
            (0..EACH)
                .map(|n| {
                    let (key, value) = (format!("k{thread}"), format!("{thread}/{n}"));
                    let outcome = committer.commit(n as i64, proposal(&key, value.as_bytes())).expect("healthy");
                    let Outcome::Committed { tx, alh } = outcome else { panic!("{outcome:?}") };
                    // It is visible at once, and no other commit of this key can have come in between.
                    let snapshot = committer.database().snapshot();
                    let version = snapshot.get(key.as_bytes()).expect("readable").expect("just written");
                    assert_eq!(version.tx, tx);
                    assert_eq!(committer.database().alh(tx).expect("applied").0, alh);
                    (tx.0, (Bytes::from(key), Bytes::from(value)))
                })
                .collect::<Vec<_>>()
        });
        for thread in &answers {
            assert!(thread.is_sorted_by_key(|(tx, _)| *tx), "one caller's transactions are in its order");
        }
        let told: BTreeMap<_, _> = answers.into_iter().flatten().collect();
        assert_eq!(told.len(), THREADS * EACH, "every transaction has one caller");
        assert_eq!(contents(&db), told);
        assert!(db.seal(0).expect("readable").is_some(), "segments are sealed on the way");
        assert!(db.checkpoint_position().is_some(), "checkpoints are taken on the way");
        committer.sync().expect("healthy disk");
        drop((committer, db));
        disk.crash(Crash::PowerLoss);
        assert_eq!(contents(&open(&vfs)), told, "{durability:?}: what was synced outlives a crash");
    }
}

#[test]
fn what_an_unsynced_commit_loses_in_a_crash_is_the_end() {
    let disk = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let db = open(&vfs);
    let committer = Committer::new(Arc::clone(&db), Durability::Unsynced);
    for n in 0..30u8 {
        committer.commit(1, proposal(&format!("k{n}"), &[n])).expect("healthy disk");
        if n == 9 {
            committer.sync().expect("healthy disk");
        }
    }
    let told = contents(&db);
    drop((committer, db));
    disk.crash(Crash::PowerLoss);
    let found = contents(&open(&vfs));
    assert!(found.len() >= 10, "synced");
    assert!(found.iter().zip(&told).all(|(found, told)| found == told), "a prefix");
}

#[test]
fn refusals_reach_the_caller_they_are_meant_for() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs);
    let committer = Committer::new(Arc::clone(&db), Durability::Synced);
    let winners = AtomicUsize::new(0);
    within("commit", 4, |n| {
        for round in 0..20 {
            let key = format!("round{round}");
            let mut first = proposal(&key, &[n as u8]);
            first.preconditions = vec![Precondition::MustNotExist(Bytes::from(key))];
            match committer.commit(1, first).expect("healthy") {
                Outcome::Committed { .. } => winners.fetch_add(1, Ordering::Relaxed),
                Outcome::Rejected(rejection) => {
                    assert_eq!(rejection, Rejection::Precondition { index: 0 });
                    0
                }
                other @ Outcome::Pruned { .. } => panic!("{other:?}"),
            };
            let empty = TxProposal { entries: Vec::new(), ..proposal("", b"") };
            let refused = committer.commit(1, empty).expect("healthy");
            assert_eq!(refused, Outcome::Rejected(Rejection::NoEntries));
        }
    });
    assert_eq!(winners.into_inner(), 20, "one per round");
    assert_eq!(db.snapshot().scan(&ScanSpec::prefix(b"round".to_vec())).count(), 20);
}

#[test]
fn after_a_failed_step_every_caller_gets_an_error_and_nothing_told_is_lost() {
    // Whatever step of the disk fails, in whatever thread.
    let (count, ..) = run_with_fault(None);
    assert!(count > 60, "{count}");
    for step in (0..count).step_by(3) {
        let (_, told, disk) = run_with_fault(Some(step));
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        disk.crash(Crash::PowerLoss);
        let found = contents(&open(&vfs));
        for (tx, content) in &told {
            assert_eq!(found.get(tx), Some(content), "step {step}: told, then lost");
        }
    }
}

/// Commits from many threads, so that rounds have several log entries, until they are through or refused; answers what they were told.
fn run_with_fault(step: Option<u64>) -> (u64, BTreeMap<u64, (Bytes, Bytes)>, MemVfs) {
    let disk = MemVfs::new();
    drop(open(&(Arc::new(disk.clone()) as Arc<dyn Vfs>)));
    let faulty = FaultyVfs::on_memory(disk.clone());
    let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
    let db = open(&vfs);
    let before = faulty.step_count();
    if let Some(step) = step {
        faulty.fail_at(before + step, Fault::Error(std::io::ErrorKind::Other));
    }
    let committer = Committer::new(Arc::clone(&db), Durability::Synced);
    let told = within("commit", 20, |thread| {
        let mut told = Vec::new();
        for n in 0..4 {
            let (key, value) = (format!("k{thread}"), format!("{thread}/{n}").repeat(20));
            match committer.commit(1, proposal(&key, value.as_bytes())) {
                Ok(Outcome::Committed { tx, .. }) => told.push((tx.0, (Bytes::from(key), Bytes::from(value)))),
                Ok(rejected) => panic!("{rejected:?}"),
                Err(Error::Poisoned | Error::Io { .. }) => {
                    let again = committer.commit(1, proposal("again", b""));
                    assert!(again.is_err(), "no writes after a failed one");
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        told
    });
    drop((committer, db));
    (faulty.step_count() - before, told.into_iter().flatten().collect(), disk)
}
