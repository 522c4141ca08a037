//! Rot in an open database: every bit of every file is noticed by a scrub, no reader is ever told anything wrong, and what is
//! damaged is made whole while the database runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_storage::command::Command;
use alhambra_storage::index::IndexOptions;
use alhambra_storage::segment::{FrameKind, LedgerOptions};
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{FileKind, OpenMode, Vfs};
use alhambra_storage::{Damaged, Database, Error, Options};
use bytes::Bytes;

use crate::model::Model;
use crate::support::{self, commit_command, compare, dir, put};

/// A tail that is kept in memory would hide the files from readers.
pub fn options() -> Options {
    let index = IndexOptions { memtable_bytes: 600, ..IndexOptions::default() };
    Options { ledger: LedgerOptions { tail_cache_bytes: 0 }, index, ..support::options() }
}

pub fn open(vfs: &Arc<dyn Vfs>) -> Database {
    Database::open(Arc::clone(vfs), &dir(), support::spec(), options()).expect("opens")
}

/// `batches` log entries of two transactions, sealed and with a checkpoint, all kinds of files.
pub fn filled(batches: u64) -> (Arc<dyn Vfs>, Database, Model) {
    let (vfs, db, model) = filled_without_vote(batches);
    db.save_vote(b"for me").expect("healthy");
    // Twice, so that both places of the marks have the newest.
    db.checkpoint().expect("healthy");
    drop(db);
    let db = open(&vfs);
    assert_eq!(db.load_vote().expect("healthy").as_deref(), Some(&b"for me"[..]));
    (vfs, db, model)
}

/// The same, of a database that Raft knows nothing of.
pub fn filled_without_vote(batches: u64) -> (Arc<dyn Vfs>, Database, Model) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs);
    let mut model = Model::new();
    commit_command(&db, &support::genesis()).expect("applies");
    support::commit(&db, FrameKind::Membership, Bytes::from_static(b"three nodes")).expect("applies");
    model.limits = Some(support::limits());
    for n in 0..batches {
        grow(&db, &mut model, n);
    }
    db.save_committed(db.ledger().last_log_id().expect("filled")).expect("healthy");
    // Twice, so that both places of the marks are written.
    db.checkpoint().expect("healthy");
    grow(&db, &mut model, batches);
    db.save_committed(db.ledger().last_log_id().expect("filled")).expect("healthy");
    db.checkpoint().expect("healthy");
    while db.index_work().expect("healthy") {}
    (vfs, db, model)
}

pub fn grow(db: &Database, model: &mut Model, n: u64) {
    let proposals = [put(&format!("k{}", n % 3), &[n as u8 | 0x80; 38]), put(&format!("l{n}"), &n.to_be_bytes())];
    commit_command(db, &support::batch(n as i64, &proposals)).expect("applies");
    model.batch(n as i64, &proposals);
    db.ledger().settle().expect("healthy");
    for seal in db.pending_seals().expect("healthy") {
        commit_command(db, &Command::Seal(seal)).expect("applies");
    }
}

/// All files of the database, by path.
pub fn all_files(vfs: &Arc<dyn Vfs>) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir()];
    while let Some(folder) = folders.pop() {
        for (name, kind) in vfs.read_dir(&folder).expect("folder") {
            let path = folder.join(name);
            match kind {
                FileKind::Dir => folders.push(path),
                FileKind::File => {
                    let file = vfs.open(&path, OpenMode::Read).expect("file");
                    let len = file.len().expect("file") as usize;
                    found.insert(path, file.read_at(0, len).expect("file").to_vec());
                }
            }
        }
    }
    found
}

/// One pass over everything, in steps of about `budget` bytes.
pub fn pass(db: &Database, budget: u64) -> Vec<Damaged> {
    let mut found = Vec::new();
    loop {
        let step = db.scrub_step(budget).expect("healthy");
        for found in &step.found {
            assert!(found.path().is_some_and(|path| path.starts_with(dir())), "{found:?}");
            assert!(found.offset().is_some() || found.error.is_unreadable(), "{found:?}");
        }
        found.extend(step.found.into_iter().map(|found| found.what));
        if step.pass_completed {
            return found;
        }
    }
}

/// Reads everything; whatever is answered is right. Answers whether anything was refused.
fn read_all(db: &Database, model: &Model, place: &str) -> bool {
    let mut refused = false;
    let mut check = |result: Result<bool, Error>| match result {
        Ok(right) => assert!(right, "{place}: wrong answer"),
        Err(Error::Corrupted { .. }) => refused = true,
        Err(other) => panic!("{place}: {other}"),
    };
    let last = model.txs.len() as u64;
    for (id, tx) in (1u64..).zip(&model.txs) {
        let id = TxId(id);
        check(db.header(id).map(|header| header.alh().expect("valid").0 == tx.alh));
        check(db.alh(id).map(|alh| alh.0 == tx.alh));
        let record = db.tx(id);
        if let Ok(record) = &record {
            for (entry, want) in record.entries.iter().zip(&tx.entries) {
                check(db.value(entry).map(|value| value == want.value));
            }
        }
        check(record.map(|record| record.entries[0].key == tx.entries[0].key));
        // Two transactions per log entry, behind genesis and membership; seals come in between.
        check(db.log_index_of(id).map(|index| index == db.log_index_of(TxId(id.0 + id.0 % 2)).unwrap_or(index)));
        let snapshot = db.snapshot();
        let key = &tx.entries[0].key;
        let version = snapshot.get_at(key, id);
        if let Ok(Some(version)) = &version {
            check(snapshot.value(key, version).map(|value| value == tx.entries[0].value));
        }
        check(version.map(|version| version.is_some()));
    }
    check(
        db.dual_proof(TxId(1), TxId(last))
            .map(|proof| proof.target.alh().expect("valid").0 == model.txs[last as usize - 1].alh),
    );
    // That one is remembered from when all was sound; this one is made anew.
    check(
        db.dual_proof_v2(TxId(1), TxId(last))
            .map(|proof| proof.target.alh().expect("valid").0 == model.txs[last as usize - 1].alh),
    );
    refused
}

#[test]
fn every_bit_of_every_file_is_noticed_and_nothing_wrong_is_ever_read() {
    let (vfs, db, model) = filled(8);
    assert_eq!(pass(&db, u64::MAX), []);
    assert!(!read_all(&db, &model, "sound"));
    let files = all_files(&vfs);
    let kinds = ["seg", "idx", "log", "run", "manifest", "checkpoint", "marks", "vote", "lock"];
    let kind = |path: &Path| {
        let name = path.extension().or(path.file_name()).expect("named").to_str().expect("ours").to_owned();
        assert!(kinds.contains(&&*name), "{name}: a new kind of file needs a scrub");
        name
    };
    let mut bits = BTreeMap::new();
    for (path, bytes) in &files {
        let file = vfs.open(path, OpenMode::ReadWrite).expect("there");
        for (at, byte) in bytes.iter().enumerate() {
            for bit in 0..8 {
                file.write_at(at as u64, &[byte ^ 1 << bit]).expect("healthy");
                let place = format!("{} byte {at} bit {bit}", path.display());
                let found = pass(&db, u64::MAX);
                assert!(!found.is_empty(), "{place}: not noticed");
                if bit == at % 8 {
                    read_all(&db, &model, &place);
                }
                *bits.entry(kind(path)).or_insert(0u64) += 1;
            }
            file.write_at(at as u64, &[*byte]).expect("healthy");
        }
    }
    assert_eq!(bits.len(), kinds.len() - 1, "all but the empty lock: {bits:?}");
    assert_eq!(pass(&db, u64::MAX), []);
    assert!(!read_all(&db, &model, "sound again"));
}

#[test]
fn a_pass_in_small_steps_finds_the_same_and_is_bounded() {
    let (vfs, db, mut model) = filled(12);
    let total: u64 = all_files(&vfs).values().map(|bytes| bytes.len() as u64).sum();
    for budget in [1, 100, 1000, 1 << 20] {
        let mut bytes = 0;
        loop {
            let step = db.scrub_step(budget).expect("healthy");
            assert!(step.found.is_empty(), "{:?}", step.found);
            assert!(
                step.bytes < budget + 11_000,
                "the marks, one frame, sidecar or window of records more: {}",
                step.bytes
            );
            assert!(step.progress.done_bytes >= bytes && step.progress.total_bytes > total / 3, "{:?}", step.progress);
            bytes += step.bytes;
            if step.pass_completed {
                break;
            }
        }
        assert!(bytes > total / 2 && bytes < 2 * total, "{bytes} of {total}");
    }
    let path = dir().join("ledger/0000000002.seg");
    crate::transfer::flip(&vfs, &path, 300);
    assert_eq!(pass(&db, 1), [Damaged::Segment(2)]);
    crate::transfer::flip(&vfs, &path, 300);
    // Writes, rolled segments, checkpoints and a cut tail between the steps.
    for n in 13..60 {
        let step = db.scrub_step(150).expect("healthy");
        assert!(step.found.is_empty(), "{:?}", step.found);
        grow(&db, &mut model, n);
        let kept = db.ledger().last_log_id();
        support::stage(&db, 1, FrameKind::Command, Bytes::from(vec![1; 600])).expect("healthy");
        db.ledger().flush().expect("healthy");
        let step = db.scrub_step(400).expect("healthy");
        assert!(step.found.is_empty(), "{:?}", step.found);
        db.truncate_after(kept).expect("healthy");
        if n % 7 == 0 {
            db.checkpoint().expect("healthy");
        }
    }
    assert_eq!(pass(&db, 100), []);
    compare(&db, &model);
}

#[test]
fn what_can_be_derived_is_made_whole_while_the_database_runs() {
    let (vfs, db, mut model) = filled(12);
    let mut n = 13;
    for path in all_files(&vfs).into_keys() {
        // Runs of the index come and go.
        let Some(bytes) = all_files(&vfs).remove(&path) else { continue };
        let extension = path.extension().map(|extension| extension.to_str().expect("ours").to_owned());
        if extension.as_deref() == Some("seg") || bytes.is_empty() {
            continue;
        }
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            // Some are shorter when they are made again.
            if all_files(&vfs).get(&path).is_none_or(|now| now.len() <= at) {
                break;
            }
            let place = format!("{} byte {at}", path.display());
            crate::transfer::flip(&vfs, &path, at as u64);
            let found = pass(&db, 500);
            assert_eq!(found.len(), 1, "{place}: {found:?}");
            assert_eq!(db.damaged(), found, "{place}");
            let mended = db.mend(None).expect("healthy");
            assert!(mended.waiting.is_empty(), "{place}: {:?}", mended.waiting);
            assert_eq!(mended.repaired, found, "{place}");
            assert_eq!(pass(&db, 500), [], "{place}");
            assert_eq!(db.damaged(), [], "{place}");
            if matches!(extension.as_deref(), Some("log" | "idx")) {
                assert_eq!(all_files(&vfs).get(&path), Some(&bytes), "{place}: byte for byte");
            }
        }
        // Life goes on, so the last files grow between the repairs.
        grow(&db, &mut model, n);
        n += 1;
        db.checkpoint().expect("healthy");
    }
    compare(&db, &model);
    assert!(!all_files(&vfs).keys().any(|path| path.starts_with(dir().join("rebuild"))));
    drop(db);
    let db = open(&vfs);
    support::apply_through(&db, db.ledger().last_log_id().expect("filled").index.0).expect("applies");
    compare(&db, &model);
    assert_eq!(pass(&db, 500), []);
}

#[test]
fn damage_that_a_reader_comes_upon_is_remembered_and_mended_without_a_scrub() {
    let (vfs, db, model) = filled(12);
    let path = dir().join("tx/0000000000.log");
    crate::transfer::flip(&vfs, &path, 64 + 40);
    assert_eq!(db.damaged(), []);
    assert!(read_all(&db, &model, "tx"));
    assert_eq!(db.damaged(), [Damaged::Derived]);
    assert_eq!(db.mend(None).expect("healthy").repaired, [Damaged::Derived]);
    assert!(!read_all(&db, &model, "mended"));
    assert_eq!(db.damaged(), []);
}
