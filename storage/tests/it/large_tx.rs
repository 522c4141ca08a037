//! Transactions of many entries: one entry and its proof are read from a part of the record, and what is read that way is
//! what the whole record says.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_ledger::{htree, proof};
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{Command, ProposalEntry, Settings, TxProposal};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::{Database, DatabaseSpec, Error, Options, prove};

use crate::model::Metadata;
use crate::support::{self, commit_command, dir};
use crate::transfer::flip;

pub fn open(vfs: &Arc<dyn Vfs>, options: Options) -> Database {
    let spec = DatabaseSpec { id: support::DATABASE, segment_bytes: 1 << 20 };
    let db = Database::open(Arc::clone(vfs), &dir(), spec, options).expect("healthy disk");
    if db.settings().is_none() {
        let settings = Settings { tx_entries_max: 5000, ..Settings::DEFAULT };
        let genesis = Command::Genesis { database: spec.id, segment_bytes: spec.segment_bytes, settings };
        commit_command(&db, &genesis).expect("applies");
    }
    db
}

/// Keys and values of many lengths, every seventh entry with metadata, values of every thirteenth far apart.
fn entries(count: u32, salt: u8) -> Vec<ProposalEntry> {
    (0..count)
        .map(|n| {
            let key = [&[salt], &n.to_be_bytes()[..], &vec![b'k'; n as usize % 11]].concat();
            let expires = Metadata { expires_at: (n % 7 == 3).then_some(5_000_000_000), ..Metadata::default() };
            let value = vec![n as u8; if n % 13 == 5 { 1100 } else { n as usize % 40 }];
            ProposalEntry::plain(key.into(), expires.bytes().into(), value.into())
        })
        .collect()
}

pub fn commit(db: &Database, entries: Vec<ProposalEntry>) -> TxId {
    let proposal = TxProposal { entries, ..TxProposal::default() };
    let outcomes = commit_command(db, &Command::Batch { ts: 1, proposals: vec![proposal] }).expect("applies");
    match outcomes[..] {
        [Outcome::Committed { tx, .. }] => tx,
        _ => panic!("{outcomes:?}"),
    }
}

#[test]
fn parts_of_a_record_say_what_the_whole_says() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    // Small files, so that every part crosses them somewhere.
    let options = Options { derived_chunk_bytes: 700, ..Options::default() };
    let counts = [1, 2, 15, 16, 17, 31, 32, 33, 48, 255, 256, 257, 272, 273, 700, 4097];
    let db = open(&vfs, options.clone());
    for (n, count) in (0u8..).zip(counts) {
        commit(&db, entries(count, n));
    }
    db.checkpoint().expect("healthy disk");
    drop(db);
    // Nothing is remembered from writing.
    let db = open(&vfs, options);
    let snapshot = db.snapshot();
    for (tx, count) in (1..).map(TxId).zip(counts) {
        let whole = db.tx(tx).expect("applied");
        assert_eq!(whole.entries.len(), count as usize);
        assert_eq!(db.header(tx).expect("applied"), whole.header);
        assert_eq!(htree::root(&whole.entry_digests()), whole.header.eh, "L4");
        for (number, entry) in (0u32..).zip(&whole.entries) {
            // Of the largest one, each kind of group.
            if count > 1000 && number % 97 != 1 && number + 18 < count {
                continue;
            }
            let proven = db.prove_entry(tx, number).expect("applied");
            assert_eq!((&proven.header, &proven.entry), (&whole.header, entry), "entry {number} of {count}");
            assert!(proven.whole.is_some() || count > 16, "entry {number} of {count}");
            assert!(proven.whole.is_none() || count < 40, "entry {number} of {count}");
            assert!(proven.whole.is_none_or(|read| read == whole), "entry {number} of {count}");
            assert_eq!(proven.inclusion, prove::prove_entry(&whole, number).expect("it exists"));
            assert_eq!(db.prove_inclusion(tx, number).expect("applied"), proven.inclusion);
            proof::verify_entry(&proven.inclusion, &entry.digest(1), &whole.header).expect("V1");
            let version = snapshot.get(&entry.key).unwrap().expect("written");
            assert_eq!((version.tx, version.entry), (tx, number));
            assert_eq!(snapshot.entry(&entry.key, version.tx, version.entry).expect("applied"), *entry);
        }
        for beyond in [count, count + 1, u32::MAX] {
            let refused = db.prove_entry(tx, beyond).expect_err("no such entry");
            assert!(matches!(refused, Error::NoSuchTxEntry { entry, .. } if entry == beyond), "{refused}");
        }
    }
}

#[test]
fn a_flip_in_a_large_record_is_refused_and_never_served() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs, Options::default());
    let wanted = commit(&db, entries(3, 0)).next().expect("small");
    let from = db.size_bytes();
    let written = entries(40, 1);
    let ledger = db.ledger().end().0;
    assert_eq!(commit(&db, written.clone()), wanted);
    // The record, a commit record, and one node of the main tree for the second transaction.
    let size = db.size_bytes() - from - (db.ledger().end().0 - ledger) - 20 - 32;
    commit(&db, entries(3, 2));
    db.checkpoint().expect("healthy disk");
    drop(db);
    let db = open(&vfs, Options::default());
    let whole = db.tx(wanted).expect("sound");
    let proven: Vec<_> = (0..40).map(|n| db.prove_entry(wanted, n).expect("sound")).collect();
    let snapshot = db.snapshot();
    let versions: Vec<_> = whole.entries.iter().map(|e| snapshot.get(&e.key).unwrap().expect("written")).collect();
    drop((snapshot, db));

    let path = dir().join(Path::new("tx/0000000000.log"));
    let len = vfs.open(&path, alhambra_storage::vfs::OpenMode::Read).expect("there").len().expect("readable");
    let (mut refused_whole, mut refused_in_part) = (0, 0);
    for at in 64..len {
        // It remembers nothing that it has proven before.
        let db = open(&vfs, Options::default());
        let snapshot = db.snapshot();
        flip(&vfs, &path, at);
        match db.tx(wanted) {
            Ok(found) => assert_eq!(found, whole, "at {at}"),
            Err(Error::Corrupted { .. }) => refused_whole += 1,
            Err(other) => panic!("at {at}: {other}"),
        }
        let mut refused = false;
        match db.header(wanted) {
            Ok(found) => assert_eq!(found, whole.header, "at {at}"),
            Err(Error::Corrupted { .. }) => refused = true,
            Err(other) => panic!("at {at}: {other}"),
        }
        for n in [0, 15, 16, 31, 32, 39] {
            match db.prove_entry(wanted, n) {
                Ok(found) => assert_eq!(found, proven[n as usize], "at {at}"),
                Err(Error::Corrupted { .. }) => refused = true,
                Err(other) => panic!("at {at}: {other}"),
            }
            let version = &versions[n as usize];
            match snapshot.entry(&whole.entries[n as usize].key, version.tx, version.entry) {
                Ok(found) => assert_eq!(found, whole.entries[n as usize], "at {at}"),
                Err(Error::Corrupted { .. }) => refused = true,
                Err(other) => panic!("at {at}: {other}"),
            }
        }
        refused_in_part += u64::from(refused);
        flip(&vfs, &path, at);
    }
    // The Alh before, 32 bytes, belongs to the record before and is hashed into this header.
    assert_eq!(refused_whole, size + 32, "every flip in the record is noticed by who reads it whole");
    // But for the checksum of the whole, 4 bytes, and ends of groups that lie elsewhere, all of it is needed.
    assert!((size + 32 - 4 - 8..=size + 32).contains(&refused_in_part), "{refused_in_part} of {size}");
    assert_eq!(open(&vfs, Options::default()).tx(wanted).expect("flipped back"), whole);
}

/// What was proven is remembered, what is read is not: it is held against the proof each time.
#[test]
fn a_flip_in_a_group_that_was_proven_is_refused_and_never_served() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs, Options::default());
    let wanted = commit(&db, entries(40, 1));
    db.checkpoint().expect("healthy disk");
    drop(db);
    let db = open(&vfs, Options::default());
    let proven: Vec<_> = (0..40).map(|n| db.prove_entry(wanted, n).expect("sound")).collect();
    let mut refused = std::collections::BTreeMap::<_, u32>::new();
    for file in ["tx/0000000000.log", "ledger/0000000000.seg"] {
        let path = dir().join(Path::new(file));
        let len = vfs.open(&path, alhambra_storage::vfs::OpenMode::Read).expect("there").len().expect("readable");
        for at in 64..len {
            flip(&vfs, &path, at);
            for n in 0..40 {
                match db.prove_entry(wanted, n) {
                    Ok(found) => assert_eq!(found, proven[n as usize], "entry {n}, {file} at {at}"),
                    Err(Error::Corrupted { .. }) => *refused.entry(file).or_default() += 1,
                    Err(other) => panic!("{file} at {at}: {other}"),
                }
            }
            flip(&vfs, &path, at);
        }
    }
    // Of the ledger each byte of each key is read, of the records each byte of the group, by all who ask for one of its entries.
    let key_bytes = proven.iter().map(|proven| proven.entry.key.len()).sum::<usize>();
    assert_eq!(refused["ledger/0000000000.seg"] as usize, key_bytes);
    assert!(refused["tx/0000000000.log"] > 40 * 16 * 32, "{refused:?}");
    for (n, before) in (0..).zip(&proven) {
        assert_eq!(db.prove_entry(wanted, n).expect("flipped back"), *before);
    }
}
