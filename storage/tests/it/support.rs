//! A replica for tests: a database on a disk in memory whose log entries the test makes itself, and the comparison of a
//! database with the model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex, Revision, TxId};
use alhambra_ledger::proof::{verify_dual, verify_dual_v2, verify_entry};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Command, Precondition, ProposalEntry, RequestId, Settings, TxProposal};
use alhambra_storage::index::IndexOptions;
use alhambra_storage::segment::{Frame, FrameKind};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::{Database, DatabaseSpec, Error, Options, Result, ScanSpec};
use bytes::Bytes;

use crate::model::{self, Model};

pub const DATABASE: DatabaseId = DatabaseId(*b"a test database.");

pub fn spec() -> DatabaseSpec {
    DatabaseSpec { id: DATABASE, segment_bytes: 700 }
}

/// Small chunks, so that records cross them; an index that is written out after a handful of keys.
pub fn options() -> Options {
    let index = IndexOptions { memtable_bytes: 2_000, ..IndexOptions::default() };
    Options { derived_chunk_bytes: 500, index, ..Options::default() }
}

pub fn settings() -> Settings {
    Settings { key_len_max: 6, value_len_max: 40, tx_entries_max: 3, ..Settings::DEFAULT }
}

pub fn limits() -> model::Limits {
    model::Limits { key_len_max: 6, value_len_max: 40, entries_max: 3 }
}

pub fn dir() -> PathBuf {
    PathBuf::from("/data/db")
}

pub fn open(vfs: &Arc<dyn Vfs>, dir: &Path) -> Result<Database> {
    Database::open(Arc::clone(vfs), dir, spec(), options())
}

pub fn genesis() -> Command {
    Command::Genesis { database: DATABASE, segment_bytes: spec().segment_bytes, settings: settings() }
}

pub fn proposal(proposal: &model::Proposal) -> TxProposal {
    TxProposal {
        request: proposal.request.map(|(client, sequence, floor)| RequestId {
            client: [client; 16],
            sequence,
            floor: LogIndex(floor),
        }),
        metadata: Bytes::new(),
        entries: (proposal.entries.iter())
            .map(|entry| {
                let [key, value] = [&entry.key, &entry.value].map(|bytes| Bytes::copy_from_slice(bytes));
                ProposalEntry::plain(key, entry.metadata.bytes().into(), value)
            })
            .collect(),
        preconditions: (proposal.conditions.iter())
            .map(|condition| match condition {
                model::Condition::MustExist(key) => Precondition::MustExist(Bytes::copy_from_slice(key)),
                model::Condition::MustNotExist(key) => Precondition::MustNotExist(Bytes::copy_from_slice(key)),
                model::Condition::NotModifiedAfter(key, tx) => {
                    Precondition::NotModifiedAfter { key: Bytes::copy_from_slice(key), tx: TxId(*tx) }
                }
                model::Condition::Becomes(tx) => Precondition::Becomes(TxId(*tx)),
            })
            .collect(),
        read_set: None,
        foreign: None,
    }
}

pub fn batch(ts: i64, proposals: &[model::Proposal]) -> Command {
    Command::Batch { ts, proposals: proposals.iter().map(proposal).collect() }
}

/// One entry, plain.
pub fn put(key: &str, value: &[u8]) -> model::Proposal {
    let entry =
        model::Entry { key: key.as_bytes().to_vec(), metadata: model::Metadata::default(), value: value.to_vec() };
    model::Proposal { request: None, entries: vec![entry], conditions: Vec::new() }
}

pub fn outcome(outcome: &Outcome) -> model::Outcome {
    model::Outcome::Refused(match outcome {
        Outcome::Committed { tx, alh } => return model::Outcome::Committed(tx.0, *alh),
        Outcome::Pruned { .. } => panic!("no answer to a proposal"),
        Outcome::Rejected(rejection) => match rejection {
            Rejection::Precondition { index } => model::Refusal::Condition(*index),
            Rejection::NotInitialised => model::Refusal::NotInitialised,
            Rejection::NoEntries => model::Refusal::NoEntries,
            Rejection::NullKey => model::Refusal::NullKey,
            Rejection::KeyTooLong => model::Refusal::KeyTooLong,
            Rejection::ValueTooLong => model::Refusal::ValueTooLong,
            Rejection::TooManyEntries => model::Refusal::TooManyEntries,
            Rejection::DuplicateKey => model::Refusal::DuplicateKey,
            Rejection::MetadataUnsupported
            | Rejection::MetadataInvalid
            | Rejection::RequestTooOld
            | Rejection::ValueForm
            | Rejection::Conflict { .. }
            | Rejection::SnapshotAhead
            | Rejection::NothingToPrune
            | Rejection::Replica
            | Rejection::Import(_) => {
                panic!("the workload makes no {rejection:?}")
            }
        },
    })
}

pub fn next_index(db: &Database) -> u64 {
    db.ledger().last_log_id().map_or(0, |id| id.index.0 + 1)
}

/// Appends a log entry without flushing or applying it.
pub fn stage(db: &Database, term: u64, kind: FrameKind, payload: Bytes) -> Result<LogId> {
    let log_id = LogId::new(term, next_index(db));
    db.ledger().stage(&[Frame { log_id, kind, payload }])?;
    Ok(log_id)
}

/// Applies everything in the ledger up to `through`.
pub fn apply_through(db: &Database, through: u64) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    loop {
        let next = db.applied().log_id.map_or(0, |id| id.index.0 + 1);
        if next > through {
            return Ok(outcomes);
        }
        let frames = db.ledger().read(LogIndex(next), LogIndex(through + 1), 1000)?;
        assert!(!frames.is_empty(), "the log ends before {through}");
        for (position, frame) in frames {
            outcomes.extend(db.apply(frame.log_id, position, frame.kind, &frame.payload)?);
        }
    }
}

/// Appends, flushes and applies one log entry.
pub fn commit(db: &Database, kind: FrameKind, payload: Bytes) -> Result<Vec<Outcome>> {
    let log_id = stage(db, 1, kind, payload)?;
    db.ledger().flush()?;
    apply_through(db, log_id.index.0)
}

pub fn commit_command(db: &Database, command: &Command) -> Result<Vec<Outcome>> {
    commit(db, FrameKind::Command, command.encode())
}

/// Compares everything that a reader can see with the model, and checks the proofs between `pairs` of transactions.
pub fn compare(db: &Database, model: &Model) {
    compare_pruned(db, model, &|_, _| false);
}

/// As [`compare`]; values for which `pruned(transaction, entry)` holds are gone, and nothing else is.
pub fn compare_pruned(db: &Database, model: &Model, pruned: &dyn Fn(u64, u32) -> bool) {
    let last = model.txs.len() as u64;
    let applied = db.applied();
    assert_eq!(applied.tx, TxId(last));
    assert_eq!(applied.alh.0, model.txs.last().map_or(model::h(&[]), |tx| tx.alh));
    for (id, tx) in (1u64..).zip(&model.txs) {
        let record = db.tx(TxId(id)).expect("applied");
        let header = &record.header;
        assert_eq!(*header, db.header(TxId(id)).expect("applied"));
        assert_eq!((header.id.0, header.ts, header.version), (id, tx.ts, 1));
        assert_eq!((header.bl_tx_id.0, header.nentries as usize), (id - 1, tx.entries.len()), "L3");
        assert_eq!((header.eh.0, header.bl_root.0, header.prev_alh.0), (tx.eh, tx.bl_root, tx.prev_alh));
        assert_eq!(header.alh().expect("valid").0, tx.alh);
        assert_eq!(db.alh(TxId(id)).expect("applied").0, tx.alh);
        assert_eq!(record.entries.len(), tx.entries.len());
        for (n, (found, want)) in record.entries.iter().zip(&tx.entries).enumerate() {
            assert_eq!((&found.key[..], &found.metadata[..]), (&want.key[..], &want.metadata.bytes()[..]));
            assert_eq!(found.value_len as usize, want.value.len());
            assert_eq!(found.value_hash.0, model::h(&[&want.value]));
            assert_value(db.value(found), &want.value, id, n as u32, pruned);
            let proof = db.prove_inclusion(TxId(id), n as u32).expect("applied");
            verify_entry(&proof, &found.digest(1), header).expect("V1");
        }
    }
    for (source, target) in pairs(last) {
        let (alh_s, alh_t) = (model.txs[source as usize - 1].alh, model.txs[target as usize - 1].alh);
        let (s, t) = (TxId(source), TxId(target));
        let (alh_s, alh_t) = (alhambra_ledger::Digest(alh_s), alhambra_ledger::Digest(alh_t));
        verify_dual(&db.dual_proof(s, t).expect("applied"), s, t, &alh_s, &alh_t).expect("V1");
        verify_dual_v2(&db.dual_proof_v2(s, t).expect("applied"), s, t, &alh_s, &alh_t).expect("V1");
    }
    for at in [last, last / 2, last.saturating_sub(1), 0] {
        compare_snapshot(db, model, at, pruned);
    }
}

/// All pairs of few transactions, some of many.
fn pairs(last: u64) -> Vec<(u64, u64)> {
    let step = (last / 12).max(1);
    let picked: Vec<u64> = (1..=last).filter(|id| *id == last || id % step == 0 || *id == 1).collect();
    picked.iter().flat_map(|t| picked.iter().filter(move |s| *s <= t).map(move |s| (*s, *t))).collect()
}

fn assert_value(found: Result<Bytes>, want: &[u8], id: u64, entry: u32, pruned: &dyn Fn(u64, u32) -> bool) {
    match found {
        Err(Error::ValuePruned { tx, entry: n }) => {
            assert!((tx.0, n) == (id, entry) && pruned(id, entry), "{tx} {n} is not pruned");
        }
        Ok(value) => assert!(value == want && !pruned(id, entry), "{id} {entry}"),
        Err(other) => panic!("{id} {entry}: {other}"),
    }
}

fn compare_snapshot(db: &Database, model: &Model, at: u64, pruned: &dyn Fn(u64, u32) -> bool) {
    let snapshot = db.snapshot_at(TxId(at));
    assert_eq!(snapshot.tx(), TxId(at));
    let keys = model.keys(at);
    for desc in [false, true] {
        let found: Vec<Vec<u8>> =
            snapshot.scan(&ScanSpec { desc, ..ScanSpec::default() }).map(|found| found.unwrap().0.to_vec()).collect();
        let mut want = keys.clone();
        if desc {
            want.reverse();
        }
        assert_eq!(found, want);
    }
    assert_eq!(snapshot.count(b"k").unwrap(), keys.iter().filter(|key| key.starts_with(b"k")).count() as u64);
    for key in model.histories.keys() {
        let want = model.history(key, at);
        let found = snapshot.history(key, 0, usize::MAX, false).unwrap();
        assert_eq!(snapshot.revisions(key).unwrap(), want.len() as u64);
        assert_eq!(found.len(), want.len());
        for (n, (version, (tx, entry, metadata))) in found.iter().zip(&want).enumerate() {
            assert_eq!((version.tx.0, version.entry), (*tx, *entry));
            assert_eq!(version.revision, Revision(n as u64 + 1));
            assert_eq!(version.metadata.deleted, metadata.deleted);
            assert_eq!(version.metadata.expires_at, metadata.expires_at);
            assert_eq!(snapshot.get_at(key, TxId(*tx)).unwrap(), Some(*version));
            assert_eq!(snapshot.revision(key, version.revision).unwrap(), Some(*version));
            let value = &model.txs[*tx as usize - 1].entries[*entry as usize].value;
            assert_value(snapshot.value(key, version), value, *tx, *entry, pruned);
        }
        assert_eq!(snapshot.get(key).unwrap(), found.last().copied());
        let mut backward = snapshot.history(key, 0, usize::MAX, true).unwrap();
        backward.reverse();
        assert_eq!(backward, found);
    }
}
