//! Small files that are written whole and atomically (checkpoint, vote, install mark), and one that is written often and
//! may fall back by one version (marks).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Damage, Error, FileOp, Result};
use crate::format::derived::{SMALL_FILE_HEAD_BYTES, open_small, seal_small};
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

/// What the two places of a [`TwinFile`] hold.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Counter and content of the newest whole one.
    pub newest: Option<(u64, Vec<u8>)>,
    /// Offset of a place that holds something else than a whole version with zeros behind it, or zeros alone.
    pub torn: Option<u64>,
}

/// Reads a file that a [`TwinFile`] writes; `None` when there is none.
pub(crate) fn read_twin(vfs: &dyn Vfs, path: &Path, magic: [u8; 8]) -> Result<Option<Places>> {
    match vfs.open(path, OpenMode::Read) {
        Ok(file) => read_places(&*file, path, magic).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(FileOp::Open, path, e)),
    }
}

fn read_places(file: &dyn File, path: &Path, magic: [u8; 8]) -> Result<Places> {
    let len = file.len().map_err(|e| Error::io(FileOp::Length, path, e))?;
    let mut places = Places::default();
    for place in 0..2 {
        let at = place * PLACE_BYTES;
        if at >= len {
            break;
        }
        let have = (len - at).min(PLACE_BYTES) as usize;
        let bytes = file.read_at(at, have).map_err(|e| Error::io(FileOp::Read, path, e))?;
        // Whatever is not whole is a write that was cut short; the other place holds the version before it.
        let framed_len = bytes.get(12..16).map_or(usize::MAX, |len| {
            let len = u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize;
            len.saturating_add(SMALL_FILE_HEAD_BYTES + 4)
        });
        let content = match bytes.get(..framed_len).map(|framed| open_small(magic, framed, path)) {
            Some(Ok(content)) => content.split_first_chunk::<8>(),
            Some(Err(error @ Error::UnsupportedVersion { .. })) => return Err(error),
            Some(Err(_)) | None => None,
        };
        let zeros_from = if content.is_some() { framed_len } else { 0 };
        if bytes[zeros_from..].iter().any(|byte| *byte != 0) {
            places.torn = places.torn.or(Some(at));
        }
        let Some((counter, content)) = content else { continue };
        let counter = u64::from_be_bytes(*counter);
        if places.newest.as_ref().is_none_or(|(best, _)| counter > *best) {
            places.newest = Some((counter, content.to_vec()));
        }
    }
    Ok(places)
}

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
        let newest = read_places(&*file, &path, magic)?.newest;
        let counter = newest.as_ref().map_or(0, |(counter, _)| *counter);
        Ok((Self { file: Arc::from(file), path, magic, counter }, newest.map(|(_, content)| content)))
    }

    /// Writes new content, unsynced.
    pub(crate) fn write(&mut self, content: &[u8]) -> Result<()> {
        let framed = self.frame(content);
        self.put(&framed)
    }

    /// The next version of the content.
    fn frame(&self, content: &[u8]) -> Vec<u8> {
        let framed = seal_small(self.magic, &[&(self.counter + 1).to_be_bytes(), content].concat());
        assert!(framed.len() as u64 <= PLACE_BYTES, "marks are a fixed handful of numbers");
        framed
    }

    /// Writes the next version to the place that is its turn.
    fn put(&mut self, framed: &[u8]) -> Result<()> {
        let counter = self.counter + 1;
        let at = (counter % 2) * PLACE_BYTES;
        self.file.write_at(at, framed).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        // Only now: a write that failed is repeated in the same place, never in that of the last whole version.
        self.counter = counter;
        Ok(())
    }

    /// What is in the file now.
    pub(crate) fn read(&self) -> Result<Places> {
        read_places(&*self.file, &self.path, self.magic)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file once both places are written.
    pub(crate) const fn bytes(&self) -> u64 {
        2 * PLACE_BYTES
    }

    /// Writes both places again, whole, one after the other, durably; into a new file when there is none of this name.
    pub(crate) fn rewrite(&mut self, vfs: &dyn Vfs, content: &[u8]) -> Result<()> {
        let (dir, path) = (self.path.parent().expect("files of a database are in its folder"), &self.path);
        self.file = Arc::from(vfs.open(path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, path, e))?);
        self.file.set_len(2 * PLACE_BYTES).map_err(|e| Error::io(FileOp::SetLength, path, e))?;
        vfs.sync_dir(dir).map_err(|e| Error::io(FileOp::SyncDir, dir, e))?;
        for _ in 0..2 {
            let mut framed = self.frame(content);
            // What rotted behind it goes too.
            framed.resize(PLACE_BYTES as usize, 0);
            self.put(&framed)?;
            self.sync()?;
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::faulty::{Fault, FaultyVfs};
    use crate::vfs::mem::MemVfs;

    const MAGIC: [u8; 8] = *b"ALHTEST\0";

    #[test]
    fn writes_that_fail_one_after_the_other_leave_the_last_whole_version() {
        let vfs = FaultyVfs::new(Arc::new(MemVfs::new()));
        let path = PathBuf::from("twin");
        let (mut file, found) = TwinFile::open(&vfs, path.clone(), MAGIC).unwrap();
        assert_eq!(found, None);
        for n in 0..6_u8 {
            file.write(&[n; 50]).unwrap();
            for _ in 0..3 {
                vfs.fail_after(0, Fault::Short(io::ErrorKind::StorageFull));
                assert!(matches!(file.write(&[99; 50]), Err(Error::NoSpace { .. })));
                let (_, found) = TwinFile::open(&vfs, path.clone(), MAGIC).unwrap();
                assert_eq!(found, Some(vec![n; 50]));
            }
        }
    }

    #[test]
    fn a_twin_file_of_a_newer_version_is_refused_and_kept() {
        let vfs = MemVfs::new();
        let path = PathBuf::from("twin");
        TwinFile::open(&vfs, path.clone(), MAGIC).unwrap().0.write(b"content").unwrap();
        let file = vfs.open(&path, OpenMode::ReadWrite).unwrap();
        let mut framed = file.read_at(PLACE_BYTES, 16 + 8 + 7).unwrap().to_vec();
        framed[9] += 1;
        let checksum = crc32c::crc32c(&framed);
        framed.extend(checksum.to_be_bytes());
        file.write_at(PLACE_BYTES, &framed).unwrap();
        let refused = TwinFile::open(&vfs, path.clone(), MAGIC).map(drop);
        assert!(matches!(refused, Err(Error::UnsupportedVersion { found: 2, supported: 1, .. })), "{refused:?}");
        assert_eq!(file.read_at(PLACE_BYTES, framed.len()).unwrap(), framed);
    }
}
