//! Removing a database for good, so that a crash in between leaves something that the next attempt finishes, and no folder
//! is touched that is not provably that database's.
//!
//! Order: prove whose files these are; say so in `removed`, durably; remove everything else; remove the folder. From the
//! second step on the folder does not open any more.

use std::io;
use std::path::Path;

use alhambra_ledger::ids::DatabaseId;

use crate::checkpoint;
use crate::error::{Error, FileOp, Result};
use crate::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::marks;
use crate::smallfile;
use crate::vfs::{FileKind, OpenMode, Vfs};

const REMOVED_NAME: &str = "removed";
const REMOVED_MAGIC: [u8; 8] = *b"ALHGONE\0";
const LOCK_NAME: &str = "lock";

/// Removes the database in `dir`, or goes on with that; whether there was anything.
///
/// # Errors
/// Nothing is removed when it is open, when its files say that they are another database's ([`Error::ForeignDatabase`]), and
/// when there are files of which none says whose they are ([`Error::NobodysDatabase`]). After an IO error try again.
pub fn remove(vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<bool> {
    if !vfs.exists(dir).map_err(|e| Error::io(FileOp::Open, dir, e))? {
        return Ok(false);
    }
    let lock_path = dir.join(LOCK_NAME);
    let lock = vfs.lock(&lock_path).map_err(|e| Error::io(FileOp::Lock, &lock_path, e))?;
    let marked = is_marked(vfs, dir, database)?;
    // An empty folder is a database that was about to be made, or what a crash left of one that was removed.
    if !marked && !others(vfs, dir)?.is_empty() {
        prove(vfs, dir, database)?;
        smallfile::write_atomic(vfs, &dir.join(REMOVED_NAME), REMOVED_MAGIC, &database.0)?;
    }
    for (name, kind) in others(vfs, dir)? {
        let path = dir.join(name);
        match kind {
            FileKind::File => vfs.remove_file(&path).map_err(|e| Error::io(FileOp::Remove, &path, e))?,
            FileKind::Dir => vfs.remove_dir_all(&path).map_err(|e| Error::io(FileOp::Remove, &path, e))?,
        }
    }
    // Only behind the others may the mark go.
    vfs.sync_dir(dir).map_err(|e| Error::io(FileOp::SyncDir, dir, e))?;
    drop(lock);
    vfs.remove_dir_all(dir).map_err(|e| Error::io(FileOp::Remove, dir, e))?;
    let parent = dir.parent().expect("a database is in a folder");
    vfs.sync_dir(parent).map_err(|e| Error::io(FileOp::SyncDir, parent, e))?;
    Ok(true)
}

/// Refuses a folder whose removal has begun.
pub(crate) fn must_not_be_removed(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    let path = dir.join(REMOVED_NAME);
    if vfs.exists(&path).map_err(|e| Error::io(FileOp::Open, &path, e))? {
        return Err(Error::Removed { dir: dir.to_path_buf() });
    }
    Ok(())
}

/// What is in the folder besides lock and mark.
fn others(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<(String, FileKind)>> {
    let mut names = vfs.read_dir(dir).map_err(|e| Error::io(FileOp::ReadDir, dir, e))?;
    names.retain(|(name, _)| name != REMOVED_NAME && name != LOCK_NAME);
    Ok(names)
}

fn is_marked(vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<bool> {
    let path = dir.join(REMOVED_NAME);
    match smallfile::read(vfs, &path, REMOVED_MAGIC)? {
        None => Ok(false),
        Some(found) if found == database.0 => Ok(true),
        Some(found) => {
            let found = found.first_chunk().copied().map_or(DatabaseId([0; 16]), DatabaseId);
            Err(Error::ForeignDatabase { path, expected: database, found })
        }
    }
}

/// At least one file must say that it is this database's, and none that it is another's. Damaged ones say nothing.
fn prove(vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<()> {
    let mut proven = false;
    for said in [
        marks::says_database(vfs, dir, database),
        checkpoint::read(vfs, dir, Some(database)).map(|checkpoint| checkpoint.is_some()),
        segments_say(vfs, &dir.join("ledger"), database),
    ] {
        match said {
            Ok(said) => proven |= said,
            Err(Error::Corrupted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if proven { Ok(()) } else { Err(Error::NobodysDatabase { dir: dir.to_path_buf() }) }
}

fn segments_say(vfs: &dyn Vfs, ledger: &Path, database: DatabaseId) -> Result<bool> {
    let names = match vfs.read_dir(ledger) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io(FileOp::ReadDir, ledger, e)),
    };
    let mut said = false;
    for (name, _) in names.into_iter().filter(|(_, kind)| *kind == FileKind::File) {
        let path = ledger.join(name);
        let file = vfs.open(&path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, &path, e))?;
        if file.len().map_err(|e| Error::io(FileOp::Length, &path, e))? < SEGMENT_HEADER_BYTES {
            continue;
        }
        let len = usize::try_from(SEGMENT_HEADER_BYTES).expect("a small constant");
        let head = file.read_at(0, len).map_err(|e| Error::io(FileOp::Read, &path, e))?;
        // Sidecars are there too, and segments may be damaged.
        let Ok(header) = SegmentHeader::decode(&head) else { continue };
        if header.database != database {
            return Err(Error::ForeignDatabase { path, expected: database, found: header.database });
        }
        said = true;
    }
    Ok(said)
}
