//! Files that are gone, that are another database's, that stand in another's place, or that a newer release wrote: opening or
//! reading says so with a type, or derives the file again. Nothing wrong is ever served, and nothing is destroyed: when the
//! right file is back, everything is. Generated over every file of a database.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, LogIndex, TxId};
use alhambra_storage::command::Command;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{FileKind, OpenMode, Vfs};
use alhambra_storage::{Database, DatabaseSpec, Error, Result};

use crate::model::Model;
use crate::support::{self, apply_through, commit_command, compare, dir, options, put};

const OTHER: DatabaseId = DatabaseId(*b"another database");

/// What a database holds, and how far the log goes and the checkpoint covers it.
struct Content {
    model: Model,
    last: u64,
    checkpointed: u64,
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The files of a database with several segments and chunks, and what it holds.
fn filled(id: DatabaseId, salt: u8) -> (Files, Content) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let spec = DatabaseSpec { id, ..support::spec() };
    let db = Database::open(Arc::clone(&vfs), &dir(), spec, options()).unwrap();
    let mut model = Model::new();
    let mut checkpointed = 0;
    let genesis = Command::Genesis { database: id, segment_bytes: spec.segment_bytes, settings: support::settings() };
    commit_command(&db, &genesis).unwrap();
    model.limits = Some(support::limits());
    for n in 0..20u8 {
        let proposals = [put(&format!("k{}", n % 5), &[n ^ salt; 40]), put(&format!("l{n}"), &[salt; 9])];
        commit_command(&db, &support::batch(i64::from(n), &proposals)).unwrap();
        model.batch(i64::from(n), &proposals);
        db.ledger().settle().unwrap();
        for seal in db.pending_seals().unwrap() {
            commit_command(&db, &Command::Seal(seal)).unwrap();
        }
        if n == 12 {
            db.save_vote(&[salt; 18]).unwrap();
            db.save_committed(db.applied().log_id.unwrap()).unwrap();
            db.checkpoint().unwrap();
            checkpointed = support::next_index(&db) - 1;
        }
    }
    let last = support::next_index(&db) - 1;
    drop(db);
    let mut all = Files::new();
    collect(&*vfs, Path::new(""), &mut all);
    (all, Content { model, last, checkpointed })
}

/// All files below a folder of the database, by their path from its folder.
fn collect(vfs: &dyn Vfs, below: &Path, all: &mut Files) {
    for (name, kind) in vfs.read_dir(&dir().join(below)).unwrap() {
        let path = below.join(name);
        if kind == FileKind::Dir {
            collect(vfs, &path, all);
            continue;
        }
        let file = vfs.open(&dir().join(&path), OpenMode::Read).unwrap();
        let len = usize::try_from(file.len().unwrap()).unwrap();
        all.insert(path, file.read_at(0, len).unwrap().to_vec());
    }
}

fn disk_of(files: &Files) -> Arc<dyn Vfs> {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    vfs.create_dir_all(&dir()).unwrap();
    for (path, bytes) in files {
        write(&*vfs, path, bytes);
    }
    vfs
}

fn write(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) {
    let path = dir().join(path);
    vfs.create_dir_all(path.parent().unwrap()).unwrap();
    let file = vfs.open(&path, OpenMode::Create).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, bytes).unwrap();
    file.sync_data().unwrap();
}

/// Opens, applies the whole log, and compares every answer: right, or an error that says that the bytes are wrong.
fn look(vfs: &Arc<dyn Vfs>, Content { model, last, checkpointed }: &Content) -> Result<()> {
    let (last, checkpointed) = (*last, *checkpointed);
    let db = support::open(vfs, &dir())?;
    db.load_vote()?;
    let found = db.ledger().last_log_id().map_or(0, |id| id.index.0);
    if found < last {
        // What was flushed behind the last checkpoint is known to nobody but the segment that held it.
        assert!(found >= checkpointed, "log entries below the checkpoint are gone and nobody misses them");
        return Err(Error::NoSuchEntry { index: LogIndex(last) });
    }
    apply_through(&db, last)?;
    for (id, want) in (1u64..).zip(&model.txs) {
        let record = db.tx(TxId(id))?;
        assert_eq!(record.header.alh().unwrap().0, want.alh, "a transaction that nobody wrote is served");
        for (entry, want) in record.entries.iter().zip(&want.entries) {
            assert_eq!(&entry.key[..], want.key);
            assert_eq!(db.value(entry)?, want.value, "a value that nobody wrote is served");
        }
        db.dual_proof(TxId(1), TxId(id))?;
    }
    compare(&db, model);
    Ok(())
}

fn must_be_typed(error: &Error, place: &str) {
    match error {
        Error::Corrupted { .. }
        | Error::SegmentMissing { .. }
        | Error::ForeignDatabase { .. }
        | Error::UnsupportedVersion { .. }
        | Error::SegmentSizeMismatch { .. }
        | Error::NoSuchEntry { .. } => {
            assert!(!error.is_deterministic() && !error.waits_for_space(), "{place}: {error}");
        }
        other => panic!("{place}: {other:?}"),
    }
}

/// Puts `found` (nothing: no file) in the place of one file, looks, puts the right file back and looks again.
fn judge(ours: &Files, path: &Path, found: Option<&[u8]>, content: &Content, place: &str) -> Result<()> {
    let mut changed = ours.clone();
    changed.remove(path);
    if let Some(found) = found {
        changed.insert(path.to_path_buf(), found.to_vec());
    }
    let vfs = disk_of(&changed);
    let answer = look(&vfs, content);
    if let Err(error) = &answer {
        must_be_typed(error, place);
        write(&*vfs, path, &ours[path]);
        look(&vfs, content).unwrap_or_else(|e| panic!("{place}: the right file is back, and: {e}"));
    }
    answer
}

/// Node-local files that hold nothing which could be missed in another file.
fn is_missed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

#[test]
fn every_file_is_removed() {
    let (ours, content) = filled(support::DATABASE, 0);
    assert!(ours.len() > 12, "{:?}", ours.keys());
    let mut refused = 0;
    for path in ours.keys() {
        let answer = judge(&ours, path, None, &content, &format!("{} is gone", path.display()));
        assert!(!(answer.is_ok() && is_missed(path)), "nobody misses {}", path.display());
        refused += u64::from(answer.is_err());
    }
    assert!(refused >= 3, "only {refused} files were missed");
}

#[test]
fn every_file_is_that_of_another_database() {
    let (ours, content) = filled(support::DATABASE, 0);
    let (theirs, _) = filled(OTHER, 0x80);
    let mut foreign = 0;
    for path in ours.keys().filter(|path| *path != Path::new("lock")) {
        let Some(bytes) = theirs.get(path) else { continue };
        assert_ne!(&ours[path], bytes, "{}", path.display());
        let place = format!("{} of another database", path.display());
        match judge(&ours, path, Some(bytes), &content, &place) {
            Err(Error::ForeignDatabase { expected, found, .. }) => {
                assert_eq!((expected, found), (support::DATABASE, OTHER), "{place}");
                foreign += 1;
            }
            // A sidecar is made again.
            Ok(()) => assert!(path.extension().is_some_and(|extension| extension == "idx"), "{place}"),
            Err(error) => panic!("{place}: {error}"),
        }
    }
    assert!(foreign > 8, "only {foreign} files were recognised");
}

#[test]
fn every_two_files_change_places() {
    let (ours, content) = filled(support::DATABASE, 0);
    let mut noticed = 0;
    for (path, bytes) in &ours {
        for (other, found) in ours.iter().filter(|(_, found)| *found != bytes) {
            let place = format!("{} stands for {}", other.display(), path.display());
            noticed += u64::from(judge(&ours, path, Some(found), &content, &place).is_err());
        }
    }
    assert!(noticed > 50, "only {noticed} exchanges were noticed");
}

/// Where a file has its version and its checksum: `None` for files that have none.
fn with_newer_version(path: &Path, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let head = match path.extension().and_then(|extension| extension.to_str()) {
        Some("seg") => 252,
        Some("idx") => 124,
        Some("log" | "run") => 60,
        _ if path == Path::new("marks") => {
            for place in [0, 4096] {
                if bytes.get(place).is_none_or(|byte| *byte == 0) {
                    continue;
                }
                bytes[place + 9] += 1;
                let len = u32::from_be_bytes(bytes[place + 12..place + 16].try_into().unwrap()) as usize;
                let checksum = crc(&bytes[place..place + 16 + len]);
                bytes[place + 16 + len..place + 20 + len].copy_from_slice(&checksum);
            }
            return Some(bytes);
        }
        _ if path == Path::new("lock") => return None,
        _ => bytes.len() - 4,
    };
    bytes[9] += 1;
    let checksum = crc(&bytes[..head]);
    bytes[head..head + 4].copy_from_slice(&checksum);
    Some(bytes)
}

/// CRC-32C, bit by bit.
fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (0u32.wrapping_sub(crc & 1)));
        }
    }
    (!crc).to_be_bytes()
}

#[test]
fn every_file_is_of_a_newer_release() {
    let (ours, content) = filled(support::DATABASE, 0);
    let mut refused = Vec::new();
    for (path, bytes) in &ours {
        let Some(newer) = with_newer_version(path, bytes) else { continue };
        let place = format!("{} of a newer release", path.display());
        match judge(&ours, path, Some(&newer), &content, &place) {
            Err(Error::UnsupportedVersion { path: named, found: 2, supported: 1 }) => {
                assert_eq!(named, dir().join(path));
                refused.push(path.clone());
            }
            Ok(()) => assert!(path.extension().is_some_and(|extension| extension == "idx"), "{place}"),
            Err(error) => panic!("{place}: {error}"),
        }
    }
    for name in [
        "checkpoint",
        "vote",
        "marks",
        "ledger/0000000000.seg",
        "tx/0000000000.log",
        "commit/0000000000.log",
        "index/0000000000.run",
    ] {
        assert!(refused.contains(&PathBuf::from(name)), "{name} of a newer release is not refused: {refused:?}");
    }
}
