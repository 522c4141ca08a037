//! Rules of apply that the random workload does not reach: settings, time, the window of requests, metadata; and readers
//! beside the applier.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Command, Precondition, ProposalEntry, RequestId, Settings, TxProposal};
use alhambra_storage::segment::{FrameKind, Position};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::{Database, DatabaseSpec, Error, Options, ScanSpec};
use bytes::Bytes;

use crate::support::{self, DATABASE, apply_through, commit, commit_command, dir, next_index, put, stage};

fn spec() -> DatabaseSpec {
    DatabaseSpec { id: DATABASE, segment_bytes: 1 << 20 }
}

fn with(settings: Settings) -> (Arc<dyn Vfs>, Database) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = Database::open(Arc::clone(&vfs), &dir(), spec(), Options::default()).expect("an empty disk");
    let genesis = Command::Genesis { database: DATABASE, segment_bytes: spec().segment_bytes, settings };
    commit_command(&db, &genesis).expect("applies");
    (vfs, db)
}

fn plain(key: &[u8], value: &[u8]) -> TxProposal {
    TxProposal {
        request: None,
        metadata: Bytes::new(),
        entries: vec![ProposalEntry::plain(Bytes::copy_from_slice(key), Bytes::new(), Bytes::copy_from_slice(value))],
        ..TxProposal::default()
    }
}

fn one(db: &Database, ts: i64, proposal: TxProposal) -> Outcome {
    commit_command(db, &Command::Batch { ts, proposals: vec![proposal] }).expect("applies").remove(0)
}

#[test]
fn limits_hold_at_the_limit_and_not_one_past_it() {
    let settings = Settings { key_len_max: 10, value_len_max: 20, tx_entries_max: 12, ..Settings::DEFAULT };
    let (_, db) = with(settings.clone());
    let rejected = |proposal, why| assert_eq!(one(&db, 1, proposal), Outcome::Rejected(why));
    let accepted = |proposal| assert!(matches!(one(&db, 1, proposal), Outcome::Committed { .. }));
    accepted(plain(&[1; 10], &[2; 20]));
    rejected(plain(&[1; 11], b""), Rejection::KeyTooLong);
    rejected(plain(&[1; 10], &[2; 21]), Rejection::ValueTooLong);
    rejected(plain(b"", b""), Rejection::NullKey);
    let many = |count: u8| {
        let mut proposal = plain(b"", b"");
        proposal.entries = (0..count).map(|n| plain(&[n], b"").entries.remove(0)).collect();
        proposal
    };
    accepted(many(12));
    rejected(many(13), Rejection::TooManyEntries);
    rejected(many(0), Rejection::NoEntries);
    let mut twice = many(12);
    twice.entries[11].key = twice.entries[3].key.clone();
    rejected(twice, Rejection::DuplicateKey);
    let mut bad = many(1);
    bad.entries[0].metadata = Bytes::from_static(&[9]);
    rejected(bad, Rejection::MetadataInvalid);
    let mut extra = many(0);
    extra.metadata = Bytes::from_static(&[1, 0, 1, 7]);
    rejected(extra.clone(), Rejection::NoEntries);
    extra.entries = many(1).entries;
    accepted(extra);
    let mut marker = many(0);
    marker.metadata = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 1]);
    accepted(marker);
    let last = db.applied().tx;
    assert_eq!(db.tx(last).expect("applied").header.metadata.truncated_up_to, Some(TxId(1)));
    db.dual_proof(TxId(1), last).expect("V1");

    commit_command(&db, &Command::Configure(Settings { key_len_max: 11, ..settings })).expect("applies");
    accepted(plain(&[1; 11], b""));
}

#[test]
fn header_version_0_and_databases_without_time() {
    let (_, db) =
        with(Settings { header_version: 0, exclude_commit_time: true, tx_entries_max: 9, ..Settings::DEFAULT });
    assert!(matches!(one(&db, 77, plain(b"k", b"v")), Outcome::Committed { .. }));
    let header = db.header(TxId(1)).expect("applied");
    assert_eq!((header.version, header.ts), (0, 0));
    let mut with_metadata = plain(b"k", b"v");
    with_metadata.entries[0].metadata = Bytes::from_static(&[0]);
    assert_eq!(one(&db, 78, with_metadata), Outcome::Rejected(Rejection::MetadataUnsupported));
    let mut with_metadata = plain(b"k", b"v");
    with_metadata.metadata = Bytes::from_static(&[1, 0, 1, 7]);
    assert_eq!(one(&db, 78, with_metadata), Outcome::Rejected(Rejection::MetadataUnsupported));
    assert_eq!(db.tx(TxId(1)).expect("applied").entry_digests().len(), 1);
}

#[test]
fn header_time_never_runs_backward() {
    let (_, db) = with(Settings::DEFAULT);
    for (ts, want) in [(100, 100), (90, 100), (101, 101), (i64::MIN, 101)] {
        let Outcome::Committed { tx, .. } = one(&db, ts, plain(b"k", b"v")) else { panic!("accepted") };
        assert_eq!(db.header(tx).expect("applied").ts, want);
    }
}

#[test]
fn settings_that_nobody_can_obey_are_no_command() {
    for settings in [
        Settings { header_version: 2, ..Settings::DEFAULT },
        Settings { key_len_max: 0, ..Settings::DEFAULT },
        Settings { key_len_max: 65_536, ..Settings::DEFAULT },
        Settings { tx_entries_max: 65_536, header_version: 0, ..Settings::DEFAULT },
    ] {
        assert!(!settings.is_valid());
        Command::decode(&Command::Configure(settings).encode()).expect_err("refused");
    }
}

/// Outcomes that are remembered.
const WINDOW: u64 = 65_536;
/// Proposals of one batch.
const BATCH: u64 = 4096;

/// A proposal with a request id that was made when this much of the log was applied.
fn numbered(sequence: u64, floor: LogIndex) -> TxProposal {
    let mut proposal = plain(b"k", b"v");
    proposal.request = Some(RequestId { client: [5; 16], sequence, floor });
    proposal
}

fn newest(db: &Database) -> LogIndex {
    db.applied().log_id.expect("something is applied").index
}

#[test]
fn a_retry_is_answered_within_the_window_and_refused_behind_it() {
    let (vfs, db) = with(Settings::DEFAULT);
    let before = newest(&db);
    for first in (0..WINDOW).step_by(BATCH as usize) {
        let floor = newest(&db);
        let proposals = (first..first + BATCH).map(|n| numbered(n, floor)).collect();
        commit_command(&db, &Command::Batch { ts: 1, proposals }).expect("applies");
    }
    let first = Outcome::Committed { tx: TxId(1), alh: db.alh(TxId(1)).expect("applied").0 };
    assert_eq!(one(&db, 1, numbered(0, before)), first, "the oldest of a full window");
    assert_eq!(db.applied().tx, TxId(WINDOW), "a retry writes nothing");
    assert!(matches!(one(&db, 1, numbered(WINDOW, newest(&db))), Outcome::Committed { .. }));
    // The first one is forgotten, which came with the entry behind `before`.
    assert_eq!(one(&db, 1, numbered(0, before)), Outcome::Rejected(Rejection::RequestTooOld));
    assert_eq!(one(&db, 1, numbered(WINDOW + 9, before)), Outcome::Rejected(Rejection::RequestTooOld));
    let second = Outcome::Committed { tx: TxId(2), alh: db.alh(TxId(2)).expect("applied").0 };
    assert_eq!(one(&db, 1, numbered(1, before)), second);
    assert!(matches!(one(&db, 1, numbered(WINDOW + 9, LogIndex(before.0 + 1))), Outcome::Committed { .. }));

    db.checkpoint().expect("healthy disk");
    drop(db);
    let db = Database::open(vfs, &dir(), spec(), Options::default()).expect("reopens");
    assert_eq!(
        one(&db, 1, numbered(0, before)),
        Outcome::Rejected(Rejection::RequestTooOld),
        "the table is in the checkpoint"
    );
    let third = Outcome::Committed { tx: TxId(3), alh: db.alh(TxId(3)).expect("applied").0 };
    assert_eq!(one(&db, 1, numbered(2, before)), third);
}

/// Refusals make no transactions, and fill the window all the same.
#[test]
fn any_number_of_refusals_keeps_no_new_request_out() {
    let (_, db) = with(Settings::DEFAULT);
    for first in (0..WINDOW + BATCH).step_by(BATCH as usize) {
        let floor = newest(&db);
        let refused = |n| TxProposal {
            preconditions: vec![Precondition::MustExist(Bytes::from_static(b"\0absent"))],
            ..numbered(n, floor)
        };
        let proposals = (first..first + BATCH).map(refused).collect();
        let outcomes = commit_command(&db, &Command::Batch { ts: 1, proposals }).expect("applies");
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Rejected(Rejection::Precondition { index: 0 })));
    }
    assert_eq!(db.applied().tx, TxId(0));
    let committed = one(&db, 1, numbered(WINDOW + BATCH, newest(&db)));
    assert!(matches!(committed, Outcome::Committed { .. }), "{committed:?}");
    // And a late copy of a refused one that is forgotten never comes to something.
    assert_eq!(one(&db, 1, numbered(0, LogIndex(0))), Outcome::Rejected(Rejection::RequestTooOld));
}

#[test]
fn log_entries_are_applied_in_order_and_once() {
    let (_, db) = with(Settings::DEFAULT);
    let log_id = stage(&db, 1, FrameKind::Command, support::batch(1, &[put("k", b"v")]).encode()).expect("follows");
    db.ledger().flush().expect("healthy disk");
    let frames = db.ledger().read(log_id.index, LogIndex(log_id.index.0 + 1), 0).expect("staged");
    let (position, frame) = &frames[0];
    let apply = |log_id, position: Position| db.apply(log_id, position, frame.kind, &frame.payload);
    let ahead = apply(LogId::new(1, log_id.index.0 + 1), *position);
    assert!(matches!(ahead, Err(Error::NotNextToApply { .. })), "{ahead:?}");
    let elsewhere = apply(log_id, Position(position.0 + 1));
    assert!(matches!(elsewhere, Err(Error::NotWhereApplied { .. })), "{elsewhere:?}");
    apply(log_id, *position).expect("the next");
    let again = apply(log_id, *position);
    assert!(matches!(again, Err(Error::NotNextToApply { .. })), "{again:?}");
    let cut = db.truncate_after(Some(LogId::new(1, 0)));
    assert!(matches!(cut, Err(Error::CutBelowApplied { .. })), "{cut:?}");
    let garbage = commit(&db, FrameKind::Command, Bytes::from_static(b"\x01\x77"));
    assert!(matches!(garbage, Err(Error::Command(_))), "{garbage:?}");
    let after = apply_through(&db, next_index(&db) - 1);
    assert!(matches!(after, Err(Error::Poisoned)), "a replica that cannot apply stops: {after:?}");
    assert!(db.snapshot().get(b"k").unwrap().is_some(), "and still reads");
}

#[test]
fn what_does_not_exist_is_said_to_be_absent() {
    let (_, db) = with(Settings::DEFAULT);
    assert!(matches!(one(&db, 1, plain(b"k", b"v")), Outcome::Committed { .. }));
    for tx in [0, 2, u64::MAX] {
        assert!(matches!(db.header(TxId(tx)), Err(Error::NoSuchTx { .. })));
        assert!(matches!(db.tx(TxId(tx)), Err(Error::NoSuchTx { .. })));
    }
    assert!(matches!(db.prove_inclusion(TxId(1), 1), Err(Error::NoSuchTxEntry { .. })));
    assert!(matches!(db.dual_proof(TxId(1), TxId(2)), Err(Error::NoSuchTx { .. })));
    one(&db, 1, plain(b"k", b"v"));
    assert!(matches!(db.dual_proof(TxId(2), TxId(1)), Err(Error::ProofOrder { .. })));
    assert_eq!(db.snapshot().get(b"other").unwrap(), None);
}

#[test]
fn a_waiter_wakes_when_its_transaction_is_applied() {
    let (_, db) = with(Settings::DEFAULT);
    let told = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&told);
    db.on_applied(Box::new(move |tx, _| counter.store(tx.0, Ordering::Release)));
    assert!(!db.wait_applied(TxId(1), Duration::from_millis(1)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| db.wait_applied(TxId(3), Duration::from_secs(60)));
        for _ in 0..3 {
            one(&db, 1, plain(b"k", b"v"));
        }
        assert!(waiter.join().expect("no panic"));
    });
    assert_eq!(told.load(Ordering::Acquire), 3);
    assert!(db.wait_applied(TxId(2), Duration::ZERO));
}

/// Every transaction moves one unit between ten accounts; whoever reads sees the sum, whatever the applier and checkpoints
/// do meanwhile, and every header and proof holds.
#[test]
fn readers_see_whole_transactions_beside_the_applier_and_checkpoints() {
    let (_, db) = with(Settings::DEFAULT);
    let account = |n: u64| format!("a{}", n % 10).into_bytes();
    let mut opening = plain(b"", b"");
    opening.entries = (0..10).map(|n| plain(&account(n), &100u64.to_be_bytes()).entries.remove(0)).collect();
    one(&db, 1, opening);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut rounds = 0;
                    while !done.load(Ordering::Acquire) || rounds == 0 {
                        let snapshot = db.snapshot();
                        let sum: u64 = (snapshot.scan(&ScanSpec::default()))
                            .map(|found| {
                                let (key, version) = found.expect("no file is damaged");
                                let value = snapshot.value(&key, &version).expect("S4");
                                u64::from_be_bytes(value[..].try_into().expect("8 bytes"))
                            })
                            .sum();
                        assert_eq!(sum, 1000);
                        let tx = snapshot.tx();
                        assert_eq!(db.tx(tx).expect("visible").header.id, tx);
                        db.dual_proof(TxId(tx.0 / 2 + 1), tx).expect("V1");
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                db.checkpoint().expect("healthy disk");
            }
        });
        let mut balances = [100u64; 10];
        for n in 0..400u64 {
            let (from, to) = ((n % 10) as usize, ((n * 7 + 3) % 10) as usize);
            if from == to || balances[from] == 0 {
                continue;
            }
            balances[from] -= 1;
            balances[to] += 1;
            let mut transfer = plain(&account(from as u64), &balances[from].to_be_bytes());
            transfer.entries.push(plain(&account(to as u64), &balances[to].to_be_bytes()).entries.remove(0));
            assert!(matches!(one(&db, n as i64, transfer), Outcome::Committed { .. }));
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().expect("no panic") > 0);
        }
    });
}

#[test]
fn an_embedded_database_goes_on_where_it_stopped() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let open = || {
        Database::open_embedded(Arc::clone(&vfs), &dir(), support::spec(), Options::default(), Settings::DEFAULT)
            .expect("healthy disk")
    };
    for round in 0..4u8 {
        let db = open();
        assert_eq!(db.applied().tx.0, u64::from(round) * 10);
        for n in 0..10u8 {
            let outcomes = db.commit(5, vec![plain(&[n], &[round; 200])]).expect("healthy disk");
            assert!(matches!(outcomes[..], [Outcome::Committed { .. }]));
        }
        if round == 2 {
            db.checkpoint().expect("healthy disk");
        }
        let mut version = db.snapshot().get(&[3]).unwrap().expect("written");
        assert_eq!(db.snapshot().value(&[3], &version).expect("S4"), vec![round; 200]);
        assert_eq!(version.revision.0, u64::from(round) + 1);
        version = db.snapshot_at(TxId(4)).get(&[3]).unwrap().expect("written in the first round");
        assert_eq!(db.snapshot().value(&[3], &version).expect("S4"), vec![0; 200]);
        assert!(db.seal(0).expect("healthy disk").is_some(), "segments of an embedded database are sealed too");
    }
}
