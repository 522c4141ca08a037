//! Small files that are written whole and atomically (checkpoint, vote, install mark), and one that is written often and
//! may fall back by one version (marks).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Damage, Error, FileOp, Result};
use crate::format::derived::{open_small, seal_small};
use crate::vfs::{File, OpenMode, Vfs};

/// Writes a file so that a crash leaves the old or the new content, and returns when the new one is durable.
pub(crate) fn write_atomic(vfs: &dyn Vfs, path: &Path, magic: [u8; 8], content: &[u8]) -> Result<()> {
    let dir = path.parent().expect("files of a database are in its folder");
    let tmp = path.with_extension("tmp");
    let file = vfs.open(&tmp, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &tmp, e))?;
    file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, &tmp, e))?;
    file.write_at(0, &seal_small(magic, content)).map_err(|e| Error::io(FileOp::Write, &tmp, e))?;
    file.sync_data().map_err(|e| Error::io(FileOp::Sync, &tmp, e))?;
    drop(file);
    vfs.rename(&tmp, path).map_err(|e| Error::io(FileOp::Rename, path, e))?;
    vfs.sync_dir(dir).map_err(|e| Error::io(FileOp::SyncDir, dir, e))
}

/// Content of a file written by [`write_atomic`]; `None` when there is none.
pub(crate) fn read(vfs: &dyn Vfs, path: &Path, magic: [u8; 8]) -> Result<Option<Vec<u8>>> {
    let file = match vfs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(FileOp::Open, path, e)),
    };
    let bytes = read_all(&*file, path)?;
    open_small(magic, &bytes, path).map(|content| Some(content.to_vec()))
}

fn read_all(file: &dyn File, path: &Path) -> Result<bytes::Bytes> {
    let len = file.len().map_err(|e| Error::io(FileOp::Length, path, e))?;
    let len = usize::try_from(len).map_err(|_| Error::Corrupted {
        path: path.to_path_buf(),
        segment: None,
        offset: 0,
        damage: Damage::Length,
    })?;
    file.read_at(0, len).map_err(|e| Error::io(FileOp::Read, path, e))
}

/// A file that was written and is to be made durable.
#[derive(Debug)]
pub(crate) struct ToSync {
    file: Arc<dyn File>,
    path: PathBuf,
}

impl ToSync {
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &self.path, e))
    }
}

/// Bytes of one of the two places of a [`TwinFile`]: a disk sector, so that writing one never tears the other.
const PLACE_BYTES: u64 = 4096;

/// A file of two places written in turn, each with a counter and a checksum. Writing costs one positioned write and no
/// sync; a write torn by a crash leaves the version before.
#[derive(Debug)]
pub(crate) struct TwinFile {
    file: Arc<dyn File>,
    path: PathBuf,
    magic: [u8; 8],
    counter: u64,
}

impl TwinFile {
    /// Opens or makes the file; answers the newest content that is whole.
    pub(crate) fn open(vfs: &dyn Vfs, path: PathBuf, magic: [u8; 8]) -> Result<(Self, Option<Vec<u8>>)> {
        let file = vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
        let len = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let mut newest: Option<(u64, Vec<u8>)> = None;
        for place in 0..2 {
            let at = place * PLACE_BYTES;
            if at >= len {
                break;
            }
            let have = (len - at).min(PLACE_BYTES) as usize;
            let bytes = file.read_at(at, have).map_err(|e| Error::io(FileOp::Read, &path, e))?;
            // Whatever is not whole is a write that was cut short; the other place holds the version before it.
            let whole = bytes.get(12..16).map(|len| {
                let len = u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize;
                bytes.get(..len.saturating_add(crate::format::derived::SMALL_FILE_HEAD_BYTES + 4))
            });
            let Some(Some(framed)) = whole else { continue };
            let Ok(content) = open_small(magic, framed, &path) else { continue };
            let Some((counter, content)) = content.split_first_chunk::<8>() else { continue };
            let counter = u64::from_be_bytes(*counter);
            if newest.as_ref().is_none_or(|(best, _)| counter > *best) {
                newest = Some((counter, content.to_vec()));
            }
        }
        let counter = newest.as_ref().map_or(0, |(counter, _)| *counter);
        Ok((Self { file: Arc::from(file), path, magic, counter }, newest.map(|(_, content)| content)))
    }

    /// Writes new content, unsynced.
    pub(crate) fn write(&mut self, content: &[u8]) -> Result<()> {
        self.counter += 1;
        let framed = seal_small(self.magic, &[&self.counter.to_be_bytes(), content].concat());
        assert!(framed.len() as u64 <= PLACE_BYTES, "marks are a fixed handful of numbers");
        let at = (self.counter % 2) * PLACE_BYTES;
        self.file.write_at(at, &framed).map_err(|e| Error::io(FileOp::Write, &self.path, e))
    }

    /// Makes the newest content durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.to_sync().sync()
    }

    /// For whoever must not hold up writers while it waits for the disk.
    pub(crate) fn to_sync(&self) -> ToSync {
        ToSync { file: Arc::clone(&self.file), path: self.path.clone() }
    }
}
