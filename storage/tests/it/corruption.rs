//! Bits that rot: noticed when read and by the offline check, repaired where the bytes can be derived again, never served.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_storage::command::Command;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::{Database, Error, Health, fsck};

use crate::model::Model;
use crate::replicas::files;
use crate::support::{self, commit_command, compare, dir, open, put};
use crate::transfer::flip;

/// A database with sealed segments and a checkpoint, and its model.
pub fn filled() -> (Arc<dyn Vfs>, Model) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs, &dir()).expect("an empty disk");
    let mut model = Model::new();
    commit_command(&db, &support::genesis()).expect("applies");
    model.limits = Some(support::limits());
    for n in 0..40u64 {
        let proposals = [put(&format!("k{}", n % 9), &[n as u8 | 0x80; 40]), put(&format!("l{n}"), &n.to_be_bytes())];
        commit_command(&db, &support::batch(n as i64, &proposals)).expect("applies");
        model.batch(n as i64, &proposals);
        db.ledger().settle().expect("healthy disk");
        for seal in db.pending_seals().expect("healthy disk") {
            commit_command(&db, &Command::Seal(seal)).expect("applies");
        }
    }
    db.checkpoint().expect("healthy disk");
    (vfs, model)
}

/// Offset in the first segment's file of the value of the first transaction.
fn first_value(db: &Database) -> u64 {
    256 + db.tx(TxId(1)).expect("applied").entries[0].value_at.0
}

#[test]
fn a_flipped_value_in_a_sealed_segment_is_noticed_when_read_and_by_fsck() {
    let (vfs, model) = filled();
    let report = fsck::seals(&vfs, &dir(), |_, _| ()).expect("readable");
    assert!(report.is_sound() && report.segments.len() >= 2, "{report:?}");
    let at = first_value(&open(&vfs, &dir()).expect("reopens"));
    let segment = Path::new("ledger/0000000000.seg");
    flip(&vfs, &dir().join(segment), at + 3);

    let before = files(&vfs, &dir().join("ledger"));
    let mut calls = Vec::new();
    let report = fsck::seals(&vfs, &dir(), |done, total| calls.push((done, total))).expect("readable");
    assert_eq!(calls.len(), report.segments.len());
    assert!(!report.is_sound());
    let bad: Vec<u64> = report.segments.iter().filter(|s| !s.is_sound()).map(|s| s.segment).collect();
    assert_eq!(bad, [0]);
    assert_eq!(files(&vfs, &dir().join("ledger")), before, "fsck reads only");

    let db = open(&vfs, &dir()).expect("keys are still what they were");
    let record = db.tx(TxId(1)).expect("header and entries are sound");
    let refused = db.value(&record.entries[0]).expect_err("S4");
    let Error::Corrupted { segment: number, offset, path, .. } = refused else { panic!("{refused}") };
    assert_eq!((number, offset), (Some(0), at));
    assert_eq!(path, dir().join(segment));
    // Everything else is served.
    for (id, tx) in (2u64..).zip(&model.txs[1..]) {
        let record = db.tx(TxId(id)).expect("sound");
        assert_eq!(db.value(&record.entries[0]).expect("sound"), tx.entries[0].value);
    }
    db.dual_proof(TxId(1), TxId(40)).expect("proofs need no values");
}

#[test]
fn a_flipped_key_in_a_sealed_segment_is_never_served() {
    let (vfs, _) = filled();
    let at = first_value(&open(&vfs, &dir()).expect("reopens")) - 3;
    flip(&vfs, &dir().join("ledger/0000000000.seg"), at);
    match open(&vfs, &dir()) {
        Err(Error::Corrupted { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(db) => assert!(matches!(db.tx(TxId(1)), Err(Error::Corrupted { .. }))),
    }
}

#[test]
fn flips_in_derived_files_are_repaired_at_open() {
    let (vfs, model) = filled();
    let paths: Vec<_> = ["tx", "commit", "aht", "seal", "prune"]
        .iter()
        .flat_map(|folder| files(&vfs, &dir().join(folder)).into_iter().map(move |(name, bytes)| (folder, name, bytes)))
        .collect();
    let checkpoint = files(&vfs, &dir()).remove(Path::new("checkpoint")).expect("written");
    let mut flips: Vec<_> =
        paths.iter().map(|(folder, name, bytes)| (Path::new(folder).join(name), bytes.len() as u64)).collect();
    flips.push(("checkpoint".into(), checkpoint.len() as u64));
    for (path, len) in flips {
        for at in [0, 17, 40, 62, 70, len / 2, len - 1] {
            let (vfs, _) = if at == 0 { filled() } else { (Arc::clone(&vfs), Model::new()) };
            flip(&vfs, &dir().join(&path), at.min(len - 1));
            read_all_or_refuse(&vfs, &model, &format!("{} at {at}", path.display()));
        }
    }
}

/// Whatever is answered is right; what is not answered is called corrupted; after a checkpoint by a fresh derivation all is
/// well.
fn read_all_or_refuse(vfs: &Arc<dyn Vfs>, model: &Model, place: &str) {
    let db = open(vfs, &dir()).unwrap_or_else(|e| panic!("{place}: {e}"));
    let last = db.ledger().last_log_id().expect("filled").index.0;
    support::apply_through(&db, last).unwrap_or_else(|e| panic!("{place}: {e}"));
    assert_eq!(db.applied().tx.0 as usize, model.txs.len(), "{place}");
    let mut refused = false;
    for (id, tx) in (1u64..).zip(&model.txs) {
        match db.header(TxId(id)) {
            Ok(header) => assert_eq!(header.alh().expect("valid").0, tx.alh, "{place}"),
            Err(Error::Corrupted { .. }) => refused = true,
            Err(other) => panic!("{place}: {other}"),
        }
        for source in [1, id / 2 + 1, id] {
            match db.dual_proof(TxId(source), TxId(id)) {
                Ok(_) => {}
                Err(Error::Corrupted { .. }) => refused = true,
                Err(other) => panic!("{place}: {other}"),
            }
        }
        match db.tx(TxId(id)) {
            Ok(record) => assert_eq!(record.entries[0].key, tx.entries[0].key, "{place}"),
            Err(Error::Corrupted { .. }) => refused = true,
            Err(other) => panic!("{place}: {other}"),
        }
    }
    if refused {
        // Removing the checkpoint is what an operator does to derive everything again.
        drop(db);
        vfs.remove_file(&dir().join("checkpoint")).expect("there");
        let db = open(vfs, &dir()).unwrap_or_else(|e| panic!("{place}: {e}"));
        support::apply_through(&db, last).unwrap_or_else(|e| panic!("{place}: {e}"));
        compare(&db, model);
        db.checkpoint().unwrap_or_else(|e| panic!("{place}: {e}"));
    } else {
        compare(&db, model);
        db.checkpoint().unwrap_or_else(|e| panic!("{place}: {e}"));
        drop(db);
    }
    drop(open(vfs, &dir()).unwrap_or_else(|e| panic!("{place}: {e}")));
}

#[test]
fn a_checkpoint_of_another_database_is_refused() {
    let (vfs, _) = filled();
    let mut spec = support::spec();
    spec.id.0[3] ^= 1;
    let refused = Database::open(Arc::clone(&vfs), &dir(), spec, support::options()).map(drop);
    assert!(matches!(refused, Err(Error::ForeignDatabase { .. })), "{refused:?}");
    let db = open(&vfs, &dir()).expect("unchanged");
    assert_eq!(db.health(), Health::Sound);
    let second = open(&vfs, &dir()).map(drop);
    assert!(matches!(second, Err(Error::Io { .. })), "locked: {second:?}");
}
