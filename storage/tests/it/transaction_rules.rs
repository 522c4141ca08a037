//! Single rules of transactions: what is remembered and what not, savepoints, limits, bad input. Serializability is judged in
//! `transactions`.

use std::sync::Arc;

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv::{set_key, set_value};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Precondition, ProposalEntry, ReadRange, Settings, TxProposal, ValueForm};
use alhambra_storage::limits::{READ_SET_BYTES_MAX, SAVEPOINTS_MAX};
use alhambra_storage::reads::Reads;
use alhambra_storage::transaction::TransactionError;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::{Database, DatabaseSpec, Options, ScanSpec, Transaction};
use bytes::Bytes;

use crate::support::{DATABASE, dir};

fn database(settings: Settings) -> Database {
    let spec = DatabaseSpec { id: DATABASE, segment_bytes: 1 << 20 };
    Database::open_embedded(Arc::new(MemVfs::new()), &dir(), spec, Options::default(), settings).expect("an empty disk")
}

fn key(text: &str) -> Bytes {
    set_key(text.as_bytes()).into()
}

fn put(db: &Database, keys: &[&str]) {
    let entries = keys.iter().map(|key| ProposalEntry::set(key.as_bytes(), b"put")).collect();
    let outcomes = db.commit(100, vec![TxProposal { entries, ..TxProposal::default() }]).expect("healthy disk");
    assert!(matches!(outcomes[..], [Outcome::Committed { .. }]), "{outcomes:?}");
}

fn commit(db: &Database, transaction: Transaction, ts: i64) -> Outcome {
    db.commit(ts, vec![transaction.into_proposal()]).expect("healthy disk").remove(0)
}

fn keys_of(db: &Database, prefix: &str) -> Vec<String> {
    let mut transaction = db.begin(100).expect("initialised");
    let mut scan = transaction.scan(&ScanSpec::prefix(key(prefix)));
    let mut out = Vec::new();
    while let Some(found) = scan.next(&mut transaction).expect("healthy") {
        out.push(String::from_utf8_lossy(&found.key[1..]).into_owned());
    }
    out
}

#[test]
fn a_transaction_reads_its_snapshot_and_its_own_writes() {
    let db = database(Settings::DEFAULT);
    put(&db, &["a", "c"]);
    let mut transaction = db.begin(100).expect("initialised");
    put(&db, &["a", "d"]);
    transaction.set(key("b"), set_value(b"own").into()).expect("within limits");
    transaction.delete(key("c")).expect("within limits");
    let mut scan = transaction.scan(&ScanSpec::prefix(key("")));
    // Written while the scan runs: one ahead of it, one behind.
    let first = scan.next(&mut transaction).expect("healthy").expect("there is one");
    assert_eq!(first.key, key("a"));
    transaction.set(key("bb"), set_value(b"ahead").into()).expect("within limits");
    transaction.set(key("A"), set_value(b"behind").into()).expect("within limits");
    let mut rest = Vec::new();
    while let Some(found) = scan.next(&mut transaction).expect("healthy") {
        rest.push((found.key.clone(), transaction.value(&found).expect("S4")));
    }
    assert_eq!(rest, [(key("b"), set_value(b"own").into()), (key("bb"), Bytes::from(set_value(b"ahead")))]);
    assert!(scan.next(&mut transaction).expect("healthy").is_none(), "stays at its end");
    assert!(!transaction.exists(&key("d")).expect("healthy"), "came after the snapshot");
    assert!(!transaction.exists(&key("c")).expect("healthy"), "deleted here");
    assert!(matches!(commit(&db, transaction, 100), Outcome::Rejected(Rejection::Conflict { range: Some(_) })));
    assert_eq!(keys_of(&db, ""), ["a", "c", "d"], "nothing of a refused transaction is there");
}

#[test]
fn only_what_was_read_is_remembered() {
    let db = database(Settings::DEFAULT);
    put(&db, &["a", "b", "c", "d"]);
    let ranges = |drive: &dyn Fn(&mut Transaction)| {
        let mut transaction = db.begin(100).expect("initialised");
        drive(&mut transaction);
        transaction.into_proposal().read_set.map_or(Vec::new(), |set| set.ranges().to_vec())
    };
    let take = |spec: &ScanSpec, n: usize, transaction: &mut Transaction| {
        let mut scan = transaction.scan(spec);
        for _ in 0..n {
            scan.next(transaction).expect("healthy");
        }
    };
    let all = ScanSpec::prefix(key(""));
    let between = |from: &str, to: &[u8]| [ReadRange::Between(key(from), Bytes::copy_from_slice(to))];
    assert_eq!(ranges(&|t| drop(t.get(&key("x")).expect("healthy"))), [ReadRange::Key(key("x"))]);
    assert_eq!(ranges(&|t| t.set(key("x"), Bytes::new()).expect("within limits")), [], "a write is no read");
    assert_eq!(ranges(&|t| take(&all, 0, t)), []);
    assert_eq!(ranges(&|t| take(&all, 2, t)), between("", b"\0b\0"));
    assert_eq!(ranges(&|t| take(&all, 5, t)), [ReadRange::Prefix(key(""))], "with its end");
    let down = ScanSpec { desc: true, ..all.clone() };
    assert_eq!(ranges(&|t| take(&down, 2, t)), between("c", b"\x01"));
    let own_c = |t: &mut Transaction| {
        t.set(key("c"), Bytes::new()).expect("within limits");
        t.get(&key("c")).expect("healthy");
        take(&down, 2, t);
    };
    assert_eq!(ranges(&own_c), between("c\0", b"\x01"), "c was not read but from this transaction");
    assert_eq!(ranges(&|t| drop(t.history(&key("a"), 0, 1, false).expect("healthy"))), [], "the first never changes");
    assert_eq!(ranges(&|t| drop(t.history(&key("a"), 0, 2, false).expect("healthy"))), [ReadRange::Key(key("a"))]);
    assert_eq!(ranges(&|t| drop(t.history(&key("a"), 0, 1, true).expect("healthy"))), [ReadRange::Key(key("a"))]);
}

#[test]
fn a_savepoint_takes_back_entries_and_preconditions_for_good() {
    let db = database(Settings::DEFAULT);
    let mut transaction = db.begin(100).expect("initialised");
    let value = |transaction: &mut Transaction, name: &str| {
        let found = transaction.get(&key(name)).expect("healthy")?;
        Some(transaction.value(&found).expect("S4"))
    };
    let set = |transaction: &mut Transaction, name: &str, value: &'static str| {
        transaction.set(key(name), value.into()).expect("within limits");
    };
    set(&mut transaction, "a", "1");
    let first = transaction.savepoint().expect("few");
    set(&mut transaction, "a", "2");
    set(&mut transaction, "a", "3");
    set(&mut transaction, "b", "3");
    transaction.require(Precondition::MustExist(key("never"))).expect("within limits");
    let second = transaction.savepoint().expect("few");
    transaction.delete(key("a")).expect("within limits");
    assert_eq!(value(&mut transaction, "a"), None);
    transaction.roll_back_to(second).expect("exists");
    assert_eq!(value(&mut transaction, "a"), Some("3".into()));
    transaction.roll_back_to(first).expect("exists");
    assert!(matches!(transaction.roll_back_to(second), Err(TransactionError::NoSuchSavepoint)));
    assert!(matches!(transaction.release(second), Err(TransactionError::NoSuchSavepoint)));
    assert_eq!((value(&mut transaction, "a"), value(&mut transaction, "b")), (Some("1".into()), None));
    set(&mut transaction, "c", "4");
    transaction.roll_back_to(first).expect("a savepoint can be used again");
    set(&mut transaction, "d", "5");
    transaction.release(first).expect("exists");
    assert!(matches!(transaction.roll_back_to(first), Err(TransactionError::NoSuchSavepoint)));
    let proposal = transaction.clone().into_proposal();
    let entries: Vec<(Bytes, Bytes)> = proposal.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(entries, [(key("a"), "1".into()), (key("d"), "5".into())]);
    assert_eq!(proposal.preconditions, []);
    assert!(matches!(commit(&db, transaction, 100), Outcome::Committed { .. }));
    assert_eq!(keys_of(&db, ""), ["a", "d"]);
}

#[test]
fn what_cannot_be_committed_is_refused_at_once_and_changes_nothing() {
    let settings = Settings { key_len_max: 4, value_len_max: 8, tx_entries_max: 2, ..Settings::DEFAULT };
    let db = database(settings.clone());
    let mut transaction = db.begin(100).expect("initialised");
    transaction.set(key("a"), "1".into()).expect("within limits");
    transaction.set(key("b"), "2".into()).expect("within limits");
    transaction.require(Precondition::MustNotExist(key("a"))).expect("within limits");
    let before = transaction.clone().into_proposal();
    let plain = |name: &'static [u8], metadata: &'static [u8], value: &'static [u8]| {
        ProposalEntry::plain(name.into(), metadata.into(), value.into())
    };
    let error = |result| match result {
        Err(error) => error,
        Ok(()) => panic!("was taken"),
    };
    use TransactionError as E;
    let refused = transaction.write(plain(b"", b"", b""));
    assert!(matches!(error(refused), E::NullKey));
    let refused = transaction.write(plain(b"\0long", b"", b""));
    assert!(matches!(error(refused), E::KeyTooLong { len_bytes: 5, len_bytes_max: 4 }));
    let refused = transaction.write(plain(b"\0a", b"", b"\0too long"));
    assert!(matches!(error(refused), E::ValueTooLong { len_bytes: 9, len_bytes_max: 8 }));
    let refused = transaction.write(plain(b"\0c", b"", b""));
    assert!(matches!(error(refused), E::TooMany { max: 2 }));
    let refused = transaction.write(plain(b"\0a", b"\x07", b""));
    assert!(matches!(error(refused), E::Metadata));
    let refused =
        transaction.write(ProposalEntry { form: ValueForm::Lz4 { plain_len: 5 }, ..plain(b"\0a", b"", b"abc") });
    assert!(matches!(error(refused), E::Compressed));
    let refused = transaction.require(Precondition::MustExist(key("long")));
    assert!(matches!(error(refused), E::KeyTooLong { .. }));
    transaction.require(Precondition::MustNotExist(key("b"))).expect("within limits");
    let refused = transaction.require(Precondition::MustNotExist(key("c")));
    assert!(matches!(error(refused), E::TooMany { max: 2 }));
    for _ in 0..SAVEPOINTS_MAX {
        transaction.savepoint().expect("within limits");
    }
    assert!(matches!(transaction.savepoint(), Err(E::TooManySavepoints)));
    let mut after = transaction.clone().into_proposal();
    assert_eq!(after.preconditions.pop(), Some(Precondition::MustNotExist(key("b"))));
    assert_eq!(after, before);
    assert!(matches!(commit(&db, transaction, 100), Outcome::Committed { .. }));

    let old = database(Settings { header_version: 0, ..settings });
    let mut transaction = old.begin(100).expect("initialised");
    assert!(matches!(error(transaction.delete(key("a"))), E::Metadata), "header version 0 has no metadata");
    assert!(transaction.is_read_only());
}

#[test]
fn writes_that_a_savepoint_keeps_count_for_the_size() {
    let db = database(Settings::DEFAULT);
    let mut transaction = db.begin(100).expect("initialised");
    let value = Bytes::from(vec![7; 32 << 20]);
    // The same key again and again takes no more room, but for what may have to come back.
    for _ in 0..20 {
        transaction.set(key("a"), value.clone()).expect("within limits");
    }
    let mut taken = 1;
    let refused = loop {
        transaction.savepoint().expect("few");
        match transaction.set(key("a"), value.clone()) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, TransactionError::TooLarge { .. }));
    assert_eq!(taken, 7, "the eighth would fill a log entry to the last byte");
    assert_eq!(transaction.into_proposal().entries.len(), 1);
}

#[test]
fn expiry_between_read_and_commit_is_a_conflict_in_both_directions() {
    let db = database(Settings::DEFAULT);
    let expiring = |at: i64| {
        let entry =
            ProposalEntry::set(b"k", b"v").with_metadata(&KvMetadata { expires_at: Some(at), ..KvMetadata::default() });
        TxProposal { entries: vec![entry], ..TxProposal::default() }
    };
    db.commit(100, vec![expiring(110)]).expect("healthy disk");
    let reading = |now: i64, live: bool| {
        let mut transaction = db.begin(now).expect("initialised");
        assert_eq!(transaction.exists(&key("k")).expect("healthy"), live);
        transaction.set(key("other"), Bytes::new()).expect("within limits");
        transaction
    };
    let early = reading(110, false);
    assert_eq!(
        commit(&db, early, 109),
        Outcome::Rejected(Rejection::Conflict { range: None }),
        "has not expired yet, whatever a fast clock says"
    );
    let late = reading(109, true);
    assert!(matches!(commit(&db, late.clone(), 109), Outcome::Committed { .. }));
    let again = reading(109, true);
    assert_eq!(commit(&db, again, 110), Outcome::Rejected(Rejection::Conflict { range: None }));
    let after = reading(110, false);
    assert!(matches!(commit(&db, after, 110), Outcome::Committed { .. }));
}

#[test]
fn a_snapshot_that_the_log_has_not_come_to_is_refused() {
    let db = database(Settings::DEFAULT);
    put(&db, &["a"]);
    for (snapshot, ok) in [(1, true), (2, true), (4, false)] {
        let mut reads = Reads::new(TxId(snapshot));
        reads.key(b"another");
        let entries = vec![ProposalEntry::set(b"a", b"v")];
        let proposal = TxProposal { entries, read_set: reads.finish(), ..TxProposal::default() };
        let outcome = db.commit(100, vec![proposal]).expect("healthy disk").remove(0);
        assert_eq!(matches!(outcome, Outcome::Committed { .. }), ok, "{snapshot}: {outcome:?}");
        if !ok {
            assert_eq!(outcome, Outcome::Rejected(Rejection::SnapshotAhead));
        }
    }
}

#[test]
fn a_read_set_that_was_coarsened_misses_none_of_its_keys() {
    let db = database(Settings::DEFAULT);
    put(&db, &["b"]);
    let name = |n: u32| format!("account/{:08x}/balance", n.wrapping_mul(0x9e37_79b9));
    let mut reader = db.begin(100).expect("initialised");
    for n in 0..5000 {
        assert!(!reader.exists(&key(&name(n))).expect("healthy"));
    }
    assert!(reader.exists(&key("b")).expect("healthy"));
    assert!(reader.reads().is_coarsened());
    reader.set(key("sum"), set_value(b"0").into()).expect("within limits");
    let proposal = reader.into_proposal();
    let without = TxProposal { read_set: None, ..proposal.clone() };
    assert!(proposal.encoded_len_max() - without.encoded_len_max() <= READ_SET_BYTES_MAX);
    let ranges = proposal.read_set.as_ref().expect("it has read").ranges();
    for other in ["a", "accounts", "aa", "c", "b\0"] {
        assert!(!ranges.iter().any(|range| range.contains(&key(other))), "{other} is far from all that was read");
    }
    for n in (0..5000).step_by(97) {
        assert!(ranges.iter().any(|range| range.contains(&key(&name(n)))));
    }
    // Untouched it is committed; after a write to one of them it is not.
    put(&db, &["a", "accounts", "c"]);
    let outcomes = db.commit(100, vec![proposal.clone()]).expect("healthy disk");
    assert!(matches!(outcomes[..], [Outcome::Committed { .. }]), "{outcomes:?}");
    put(&db, &[&name(4711)]);
    let outcomes = db.commit(100, vec![proposal]).expect("healthy disk");
    assert!(matches!(outcomes[..], [Outcome::Rejected(Rejection::Conflict { range: Some(_) })]), "{outcomes:?}");
}

#[test]
fn references_and_sorted_sets_are_entries_like_any_other() {
    let db = database(Settings::DEFAULT);
    put(&db, &["value"]);
    let mut transaction = db.begin(100).expect("initialised");
    transaction.write(ProposalEntry::reference(b"ref", b"value", TxId(1))).expect("within limits");
    for score in [2.0, 1.0] {
        transaction.write(ProposalEntry::sorted_set_member(b"set", score, b"value", TxId(0))).expect("within limits");
    }
    let hidden = KvMetadata { non_indexable: true, ..KvMetadata::default() };
    transaction.write(ProposalEntry::set(b"hidden", b"v").with_metadata(&hidden)).expect("within limits");
    assert!(!transaction.exists(&key("hidden")).expect("healthy"));
    assert!(matches!(commit(&db, transaction, 100), Outcome::Committed { .. }));
    let mut transaction = db.begin(100).expect("initialised");
    assert!(!transaction.exists(&key("hidden")).expect("healthy"), "is in the ledger, not in the index");
    let found = transaction.get(&key("ref")).expect("healthy").expect("written");
    let stored = transaction.value(&found).expect("S4");
    let want = alhambra_ledger::kv::StoredValue::Reference { at_tx: TxId(1), key: b"value" };
    assert_eq!(alhambra_ledger::kv::parse_value(&stored), Ok(want));
    let mut scan = transaction.scan(&ScanSpec::prefix(alhambra_ledger::kv::zset_prefix(b"set")));
    let mut scores = Vec::new();
    while let Some(found) = scan.next(&mut transaction).expect("healthy") {
        scores.push(alhambra_ledger::kv::parse_zadd_key(&found.key).expect("stored form").score);
    }
    assert_eq!(scores, [1.0, 2.0]);
}
