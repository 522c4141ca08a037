//! Compressed values: invisible but for their size, whatever the setting was when they were written; the same verdict about
//! bytes that do not decompress on every replica; and rot in them is found.

use std::sync::Arc;

use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Command, Compression, ProposalEntry, RequestId, Settings, TxProposal, ValueForm};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::{Database, DatabaseSpec, Error, fsck};
use bytes::Bytes;
use proptest::prelude::*;

use crate::model::{self, Model};
use crate::replicas::files;
use crate::support::{self, DATABASE, apply_through, commit_command, compare, dir, put};
use crate::transfer::flip;

fn spec() -> DatabaseSpec {
    DatabaseSpec { id: DATABASE, segment_bytes: 3000 }
}

fn open(vfs: &Arc<dyn Vfs>) -> Database {
    Database::open(Arc::clone(vfs), &dir(), spec(), support::options()).expect("opens")
}

fn settings(compression: Compression) -> Settings {
    Settings { key_len_max: 6, value_len_max: 2000, tx_entries_max: 3, compression, ..Settings::DEFAULT }
}

fn made(compression: Compression) -> (Arc<dyn Vfs>, Database, Model) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs);
    let genesis =
        Command::Genesis { database: DATABASE, segment_bytes: spec().segment_bytes, settings: settings(compression) };
    commit_command(&db, &genesis).expect("applies");
    let mut model = Model::new();
    model.limits = Some(model::Limits { key_len_max: 6, value_len_max: 2000, entries_max: 3 });
    (vfs, db, model)
}

/// As a node does it: compressed once, by the settings at hand, before the batch is made.
fn write(db: &Database, ts: i64, proposals: &[model::Proposal]) -> Vec<Outcome> {
    let settings = db.settings().expect("made");
    let mut proposals: Vec<_> = proposals.iter().map(support::proposal).collect();
    proposals.iter_mut().for_each(|proposal| proposal.compress(&settings));
    commit_command(db, &Command::Batch { ts, proposals }).expect("applies")
}

fn seal_all(db: &Database) {
    db.ledger().settle().expect("healthy disk");
    for seal in db.pending_seals().expect("healthy disk") {
        commit_command(db, &Command::Seal(seal)).expect("applies");
    }
}

fn a_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..200),
        (any::<u8>(), 1..2100_usize).prop_map(|(byte, len)| vec![byte; len]),
        (any::<u8>(), 1..150_usize).prop_map(|(word, times)| [b"name: ", &[word][..], b"; "].concat().repeat(times)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn readers_and_proofs_never_notice_the_setting(
        rounds in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec((0..6u8, a_value()), 1..4)), 4..20),
        restart in 0..20_usize,
    ) {
        let (vfs, mut db, mut model) = made(Compression::Lz4);
        for (n, (on, values)) in rounds.iter().enumerate() {
            let compression = if *on { Compression::Lz4 } else { Compression::None };
            commit_command(&db, &Command::Configure(settings(compression))).expect("applies");
            let proposals: Vec<_> = values.iter().map(|(key, value)| put(&format!("k{key}"), value)).collect();
            let outcomes: Vec<_> = write(&db, n as i64, &proposals).iter().map(support::outcome).collect();
            prop_assert_eq!(outcomes, model.batch(n as i64, &proposals));
            seal_all(&db);
            if n == restart {
                db.checkpoint().expect("healthy disk");
                drop(db);
                db = open(&vfs);
            }
        }
        compare(&db, &model);
        let last = db.ledger().last_log_id().expect("some").index;

        // A replica of the same log, and this one derived again from its ledger, have the same files.
        let other: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let replica = open(&other);
        let frames = db.ledger().read(LogIndex(0), LogIndex(last.0 + 1), usize::MAX).expect("whole");
        replica.ledger().stage(&frames.into_iter().map(|(_, frame)| frame).collect::<Vec<_>>()).expect("follows");
        replica.ledger().flush().expect("healthy disk");
        apply_through(&replica, last.0).expect("applies");
        db.checkpoint().expect("healthy disk");
        replica.checkpoint().expect("healthy disk");
        for folder in ["tx", "commit", "aht", "seal", "prune"] {
            prop_assert_eq!(files(&vfs, &dir().join(folder)), files(&other, &dir().join(folder)), "R2: {}", folder);
        }
        drop(replica);
        other.remove_file(&dir().join("checkpoint")).expect("there");
        let replica = open(&other);
        apply_through(&replica, last.0).expect("applies");
        compare(&replica, &model);
    }

    #[test]
    fn no_bytes_make_replicas_differ_or_stop(
        stored in proptest::collection::vec(any::<u8>(), 0..300),
        plain_len in prop_oneof![0..2100_u32, any::<u32>()],
    ) {
        let entry = ProposalEntry {
            key: Bytes::from_static(b"k"),
            metadata: Bytes::new(),
            value: stored.into(),
            form: ValueForm::Lz4 { plain_len },
        };
        let proposal = TxProposal { entries: vec![entry], ..empty() };
        let outcomes: Vec<_> = (0..2)
            .map(|_| {
                let (_, db, _) = made(Compression::None);
                let batch = Command::Batch { ts: 1, proposals: vec![proposal.clone()] };
                let outcome = commit_command(&db, &batch).expect("never fatal").remove(0);
                if let Outcome::Committed { tx, .. } = outcome {
                    let record = db.tx(tx).expect("applied");
                    let value = db.value(&record.entries[0]).expect("S4");
                    assert_eq!(value.len(), plain_len as usize);
                    assert_eq!(record.entries[0].value_hash.0, model::h(&[&value]));
                }
                outcome
            })
            .collect();
        prop_assert_eq!(&outcomes[0], &outcomes[1]);
    }
}

fn empty() -> TxProposal {
    TxProposal::default()
}

fn compressed(value: &[u8]) -> TxProposal {
    let mut proposal = support::proposal(&put("k", value));
    proposal.compress(&settings(Compression::Lz4));
    assert!(matches!(proposal.entries[0].form, ValueForm::Lz4 { .. }));
    proposal
}

#[test]
fn bytes_that_do_not_decompress_are_refused_and_a_retry_hears_the_same() {
    let (_, db, _) = made(Compression::Lz4);
    let good = compressed(&[5; 900]);
    let mut cases = Vec::new();
    for plain_len in [0, 1, 899, 901, 2000] {
        let mut bad = good.clone();
        bad.entries[0].form = ValueForm::Lz4 { plain_len };
        cases.push(bad);
    }
    let mut cut = good.clone();
    cut.entries[0].value.truncate(good.entries[0].value.len() - 1);
    cases.push(cut);
    let mut nothing = good.clone();
    nothing.entries[0].value = Bytes::new();
    cases.push(nothing);
    for (n, mut bad) in cases.into_iter().enumerate() {
        bad.request = Some(RequestId { client: [3; 16], sequence: n as u64, floor: LogIndex(0) });
        for _ in 0..2 {
            let batch = Command::Batch { ts: 1, proposals: vec![bad.clone()] };
            let outcomes = commit_command(&db, &batch).expect("applies");
            assert_eq!(outcomes, [Outcome::Rejected(Rejection::ValueForm)], "case {n}");
        }
    }
    assert_eq!(db.applied().tx, TxId(0), "nothing was written");
    let batch = Command::Batch { ts: 1, proposals: vec![good] };
    assert!(matches!(commit_command(&db, &batch).expect("applies")[..], [Outcome::Committed { .. }]));
}

#[test]
fn limits_are_about_the_plain_value() {
    let (_, db, _) = made(Compression::Lz4);
    let send = |value: &[u8]| {
        let batch = Command::Batch { ts: 1, proposals: vec![compressed(value)] };
        commit_command(&db, &batch).expect("applies").remove(0)
    };
    assert!(matches!(send(&[5; 2000]), Outcome::Committed { .. }));
    assert_eq!(send(&[5; 2001]), Outcome::Rejected(Rejection::ValueTooLong));
    let entry = db.tx(TxId(1)).expect("applied").entries.remove(0);
    assert_eq!(entry.value_len, 2000, "what is shown and proven");
    assert!(entry.stored_len < 100);
    let snapshot = db.snapshot();
    let version = snapshot.get(b"k").unwrap().expect("written");
    assert_eq!(snapshot.value(b"k", &version).expect("S4"), vec![5; 2000]);
}

#[test]
fn compressed_values_take_less_of_the_ledger_and_small_ones_are_left_alone() {
    let text = b"a line of a log file that repeats itself, as they do; ".repeat(30);
    let mut ends = Vec::new();
    for compression in [Compression::None, Compression::Lz4] {
        let (_, db, _) = made(compression);
        for n in 0..20 {
            write(&db, n, &[put("long", &text), put("short", b"thirty bytes, far from sixty.")]);
        }
        let forms: Vec<_> = (1..=2).map(|tx| db.tx(TxId(tx)).expect("applied").entries.remove(0).form).collect();
        let long = ValueForm::Lz4 { plain_len: text.len() as u32 };
        let want = if compression == Compression::Lz4 { long } else { ValueForm::Plain };
        assert_eq!(forms, [want, ValueForm::Plain]);
        ends.push(db.ledger().end().0);
    }
    assert!(ends[1] * 4 < ends[0], "{ends:?}");
}

/// Two LZ4 blocks may mean the same value, so reading finds every flip that changes the value, and the seal finds all.
#[test]
fn every_flipped_bit_of_a_compressed_value_is_found() {
    let (vfs, db, mut model) = made(Compression::Lz4);
    let value: Vec<u8> = (0..600u32).map(|n| (n * n % 61) as u8).collect();
    let proposals = [put("k", &value), put("l", b"beside")];
    write(&db, 1, &proposals);
    model.batch(1, &proposals);
    for n in 0..200u8 {
        let filler = [put("f", &[n; 60])];
        write(&db, 2, &filler);
        model.batch(2, &filler);
    }
    seal_all(&db);
    db.checkpoint().expect("healthy disk");
    let entry = db.tx(TxId(1)).expect("applied").entries.remove(0);
    assert!(matches!(entry.form, ValueForm::Lz4 { .. }));
    assert!(db.seal(0).expect("healthy disk").is_some(), "in a sealed segment, read from disk");
    drop(db);
    let segment = dir().join("ledger/0000000000.seg");
    let mut found_by_reading = 0;
    for at in 0..u64::from(entry.stored_len) {
        let at = 256 + entry.value_at.0 + at;
        flip(&vfs, &segment, at);
        let db = open(&vfs);
        match db.value(&entry) {
            Ok(same) => assert_eq!(same, value, "byte {at}: S4"),
            Err(Error::Corrupted { segment: Some(0), .. }) => found_by_reading += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
        let report = fsck::seals(&vfs, &dir(), |_, _| ()).expect("readable");
        assert!(!report.is_sound(), "byte {at}");
        db.prove_inclusion(TxId(1), 0).expect("hashes are sound");
        drop(db);
        flip(&vfs, &segment, at);
    }
    assert!(found_by_reading * 10 > u64::from(entry.stored_len) * 9, "{found_by_reading} of {}", entry.stored_len);
    let db = open(&vfs);
    apply_through(&db, support::next_index(&db) - 1).expect("applies");
    compare(&db, &model);
}

#[test]
fn an_embedded_database_compresses_by_its_settings() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = Database::open_embedded(vfs, &dir(), spec(), support::options(), settings(Compression::Lz4))
        .expect("an empty disk");
    db.commit(1, vec![support::proposal(&put("k", &[9; 1500]))]).expect("healthy disk");
    let entry = db.tx(TxId(1)).expect("applied").entries.remove(0);
    assert!(entry.stored_len < 60 && entry.value_len == 1500, "{entry:?}");
    assert_eq!(db.value(&entry).expect("S4"), vec![9; 1500]);
}
