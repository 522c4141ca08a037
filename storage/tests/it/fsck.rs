//! The offline check against rot planted with a known victim: the first bad transaction is computed here from the bytes of
//! the commit log as `docs/format.md` has them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_storage::error::Damage;
use alhambra_storage::fsck::{self, Checked, Progress};
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Database, Error};

use crate::corruption::filled;
use crate::replicas::files;
use crate::support::{self, dir, open};
use crate::transfer::flip;

const CHUNK_BYTES: u64 = 500;

fn check(vfs: &Arc<dyn Vfs>) -> Checked {
    fsck::check(vfs, &dir(), None, &mut |_| true).expect("readable")
}

/// Bytes of a derived log without chunk headers.
fn log(vfs: &Arc<dyn Vfs>, name: &str) -> Vec<u8> {
    files(vfs, &dir().join(name)).into_values().flat_map(|bytes| bytes[64..].to_vec()).collect()
}

/// Offset and size of each tx record, by the commit log.
fn records(vfs: &Arc<dyn Vfs>) -> Vec<(u64, u64)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    log(vfs, "commit").chunks(20).map(|record| (number(&record[..8]), number(&record[8..12]))).collect()
}

/// File and offset in it of byte `at` of a derived log.
fn place(name: &str, at: u64) -> (PathBuf, u64) {
    (dir().join(format!("{name}/{:010}.log", at / CHUNK_BYTES)), 64 + at % CHUNK_BYTES)
}

/// What a check finds, and how far it said to be at last; it must not go back or beyond the end.
pub fn check_watched(vfs: &Arc<dyn Vfs>) -> (Checked, Progress) {
    let mut last = Progress::default();
    let checked = fsck::check(vfs, &dir(), None, &mut |progress| {
        assert!(progress.bytes_done >= last.bytes_done && progress.bytes_done <= progress.bytes_total);
        last = progress;
        true
    })
    .expect("readable");
    (checked, last)
}

#[test]
fn a_sound_database_is_derived_again_to_the_last_transaction_and_nothing_is_changed() {
    let (vfs, model) = filled();
    let before = files(&vfs, &dir());
    let (checked, last) = check_watched(&vfs);
    assert!(checked.is_sound() && checked.complete, "{:?}", checked.findings);
    assert_eq!((checked.txs, checked.database), (model.txs.len() as u64, Some(support::DATABASE)));
    assert_eq!((last.tx.0, last.bytes_done > 0), (checked.txs, true));
    assert!(checked.segments > 2 && checked.sealed >= 2 && checked.sealed < checked.segments);
    assert_eq!((checked.uncompared_frames, checked.torn_bytes, checked.unfinished.len()), (0, 0, 0));
    assert_eq!(files(&vfs, &dir()), before);

    // Behind the checkpoint there are frames and nothing to compare them with.
    let db = open(&vfs, &dir()).expect("sound");
    support::commit_command(&db, &support::batch(99, &[support::put("x", b"y")])).expect("applies");
    assert!(matches!(
        fsck::check(&vfs, &dir(), None, &mut |_| true),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock
    ));
    drop(db);
    let checked = check(&vfs);
    assert!(checked.is_sound(), "{:?}", checked.findings);
    assert_eq!((checked.txs, checked.uncompared_frames), (model.txs.len() as u64, 1));
}

#[test]
fn the_first_bad_transaction_is_named_wherever_a_tx_record_rots() {
    let (vfs, _) = filled();
    let records = records(&vfs);
    assert!(records.len() > 30);
    for (tx, (offset, size)) in (1u64..).zip(&records) {
        for at in [*offset, offset + size / 2, offset + size - 1] {
            let (path, within) = place("tx", at);
            flip(&vfs, &path, within);
            // A later one as well: it must not be the one that is named.
            let (later, later_within) = place("tx", records.last().expect("many").0 + 20);
            if tx < records.len() as u64 {
                flip(&vfs, &later, later_within);
            }
            let checked = check(&vfs);
            let first = checked.first_bad_tx().unwrap_or_else(|| panic!("{at}: {:?}", checked.findings));
            assert_eq!(first.tx, Some(TxId(tx)), "byte {at}: {first}");
            assert_eq!((first.path(), first.offset()), (Some(&*path), Some(within)), "{first}");
            let derived_from = first.derived_from.as_ref().expect("its frame is whole");
            assert!(first.to_string().contains(&derived_from.0.display().to_string()), "{first}");
            flip(&vfs, &path, within);
            if tx < records.len() as u64 {
                flip(&vfs, &later, later_within);
            }
        }
    }
    assert!(check(&vfs).is_sound(), "flipped back");
}

#[test]
fn the_first_bad_transaction_is_named_wherever_commit_records_or_the_tree_rot() {
    let (vfs, _) = filled();
    for at in 0..log(&vfs, "commit").len() as u64 {
        let (path, within) = place("commit", at);
        flip(&vfs, &path, within);
        let checked = check(&vfs);
        let first = checked.first_bad_tx().unwrap_or_else(|| panic!("{at}"));
        assert_eq!((first.tx, first.path(), first.offset()), (Some(TxId(at / 20 + 1)), Some(&*path), Some(within)));
        flip(&vfs, &path, within);
    }
    // Leaf n completes as many inner nodes as n has trailing zero bits.
    let mut node = 0;
    for tx in 1..=records(&vfs).len() as u64 {
        for _ in 0..tx.trailing_zeros() {
            let (path, within) = place("aht", node * 32 + tx % 32);
            flip(&vfs, &path, within);
            let checked = check(&vfs);
            let first = checked.first_bad_tx().unwrap_or_else(|| panic!("{node}"));
            assert_eq!((first.tx, first.path(), first.offset()), (Some(TxId(tx)), Some(&*path), Some(within)));
            flip(&vfs, &path, within);
            node += 1;
        }
    }
    assert_eq!(node * 32, log(&vfs, "aht").len() as u64);
}

#[test]
fn a_rotten_frame_names_its_transaction_and_one_with_a_fitting_checksum_its_segment_too() {
    let (vfs, model) = filled();
    let at = {
        let db = open(&vfs, &dir()).expect("sound");
        let record = db.tx(TxId(1)).expect("applied");
        record.entries[0].value_at.0 + 256
    };
    let path = dir().join("ledger/0000000000.seg");
    flip(&vfs, &path, at);
    let checked = check(&vfs);
    let first = checked.first_bad_tx().expect("found");
    assert_eq!((first.tx, first.path()), (Some(TxId(1)), Some(&*path)), "{first}");
    assert!(matches!(first.error, Error::Corrupted { damage: Damage::Checksum, segment: Some(0), .. }), "{first}");
    assert_eq!(checked.findings.len(), 1, "what cannot be derived is not called wrong: {:?}", checked.findings);
    assert_eq!(checked.segments, files(&vfs, &dir().join("ledger")).len() as u64 / 2 + 1, "others are read");

    // Rot that takes care of the checksum: the hashes still tell.
    let frame = first.offset().expect("a frame");
    let file = vfs.open(&path, OpenMode::ReadWrite).expect("there");
    let head = file.read_at(frame, 8).expect("there");
    let len = u32::from_be_bytes(head[..4].try_into().expect("4 bytes")) as usize;
    let crc = crc32c(&file.read_at(frame + 8, len).expect("there"));
    file.write_at(frame + 4, &crc.to_be_bytes()).expect("written");
    let checked = check(&vfs);
    let first = checked.first_bad_tx().expect("found");
    assert_eq!(first.tx, Some(TxId(1)), "{first}");
    assert_eq!(first.derived_from, Some((path.clone(), frame)));
    assert!(first.path().expect("a file").starts_with(dir().join("tx")), "{first}");
    let seal = checked.findings.iter().find(|finding| finding.path() == Some(&path)).expect("the seal is against it");
    assert!(matches!(seal.error, Error::Corrupted { damage: Damage::Hash, .. }), "{seal}");
    assert_eq!(checked.txs, 0);
    assert!(model.txs.len() > 1);
}

/// Bit by bit, from the polynomial, so that it is not the crate's.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[test]
fn an_interrupted_check_goes_on_where_it_was() {
    let (vfs, model) = filled();
    let position = Path::new("/elsewhere/position");
    vfs.create_dir_all(Path::new("/elsewhere")).expect("healthy");
    let segments = check(&vfs).segments;
    let mut resumed = Vec::new();
    for stop_after in 1..segments {
        let _ = vfs.remove_file(position);
        let mut calls = 0;
        let interrupted = fsck::check(&vfs, &dir(), Some(position), &mut |_| {
            calls += 1;
            calls < stop_after
        });
        let interrupted = interrupted.expect("readable");
        assert!(!interrupted.complete && interrupted.is_sound());
        let checked = fsck::check(&vfs, &dir(), Some(position), &mut |_| true).expect("readable");
        assert!(checked.complete && checked.is_sound(), "{:?}", checked.findings);
        assert_eq!(checked.resumed_after, interrupted.txs);
        assert_eq!(checked.resumed_after + checked.txs, model.txs.len() as u64);
        resumed.push(checked.resumed_after);
        assert!(!vfs.exists(position).expect("healthy"), "removed at the end");

        // What is found after the place where it goes on is found as from the start.
        let mut calls = 0;
        fsck::check(&vfs, &dir(), Some(position), &mut |_| {
            calls += 1;
            calls < stop_after
        })
        .expect("readable");
        let last = *records(&vfs).last().expect("many");
        let (path, within) = place("tx", last.0 + 3);
        flip(&vfs, &path, within);
        let checked = fsck::check(&vfs, &dir(), Some(position), &mut |_| true).expect("readable");
        assert_eq!(checked.first_bad_tx().and_then(|first| first.tx), Some(TxId(model.txs.len() as u64)));
        flip(&vfs, &path, within);
    }
    assert!(resumed.windows(2).all(|pair| pair[0] < pair[1]) && resumed[0] > 0, "{resumed:?}");
}

#[test]
fn a_position_of_another_database_or_of_a_later_state_is_not_used() {
    let (vfs, model) = filled();
    let position = Path::new("/elsewhere/position");
    vfs.create_dir_all(Path::new("/elsewhere")).expect("healthy");
    let mut calls = 0;
    fsck::check(&vfs, &dir(), Some(position), &mut |_| {
        calls += 1;
        calls < 3
    })
    .expect("readable");
    let len = vfs.open(position, OpenMode::Read).and_then(|file| file.len()).expect("written");
    for at in [0, len / 2, len - 1] {
        let kept = vfs.open(position, OpenMode::Read).and_then(|file| file.read_at(0, len as usize)).expect("there");
        flip(&vfs, position, at);
        let checked = fsck::check(&vfs, &dir(), Some(position), &mut |_| true).expect("readable");
        assert_eq!((checked.resumed_after, checked.txs), (0, model.txs.len() as u64), "byte {at}");
        vfs.open(position, OpenMode::Create).and_then(|file| file.write_at(0, &kept)).expect("written");
    }
    let mut spec = support::spec();
    spec.id.0[0] ^= 1;
    let other = Path::new("/data/other");
    let genesis = alhambra_storage::command::Command::Genesis {
        database: spec.id,
        segment_bytes: spec.segment_bytes,
        settings: support::settings(),
    };
    let db = Database::open(Arc::clone(&vfs), other, spec, support::options()).expect("new");
    support::commit_command(&db, &genesis).expect("applies");
    support::commit_command(&db, &support::batch(1, &[support::put("k", b"v")])).expect("applies");
    db.checkpoint().expect("healthy");
    drop(db);
    let checked = fsck::check(&vfs, other, Some(position), &mut |_| true).expect("readable");
    assert_eq!((checked.resumed_after, checked.txs, checked.is_sound()), (0, 1, true));
}

#[test]
fn a_folder_without_database_and_a_lost_segment_are_told() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    vfs.create_dir_all(&dir()).expect("healthy");
    assert!(matches!(fsck::check(&vfs, &dir(), None, &mut |_| true), Err(Error::NoDatabase { .. })));
    let (vfs, _) = filled();
    let lost = dir().join("ledger/0000000001.seg");
    vfs.remove_file(&lost).expect("there");
    let checked = check(&vfs);
    let first = checked.first_bad_tx().expect("the next transaction is in it");
    assert_eq!(first.path(), Some(&*lost));
    assert!(matches!(first.error, Error::Corrupted { damage: Damage::Missing, segment: Some(1), .. }), "{first}");
    assert_eq!(first.tx, Some(TxId(checked.txs + 1)));
}
