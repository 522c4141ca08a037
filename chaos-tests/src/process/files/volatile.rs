//! Files whose unsynced bytes live in this process alone: SIGKILL takes them away as a power failure would.
//!
//! Names are durable at once, which is kinder than [`Vfs`] promises; the simulation is not so kind. A process that ends in
//! order calls [`Volatile::write_back`], because a power failure is not what happened to it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::vfs::{File, FileKind, LockGuard, OpenMode, Vfs};
use bytes::Bytes;
use parking_lot::Mutex;

const PAGE: usize = 4096;

/// A file system around another one.
#[derive(Clone, Debug)]
pub struct Volatile {
    inner: Arc<dyn Vfs>,
    files: Arc<Mutex<HashMap<PathBuf, Arc<Mutex<Unsynced>>>>>,
    /// Files with this ending say that they are synced and are not.
    lies_about: Option<&'static str>,
}

/// What the file below does not have yet.
#[derive(Debug, Default)]
struct Unsynced {
    /// Whole pages by number.
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Nothing when the file is as it is below.
    length: Option<Length>,
}

#[derive(Clone, Copy, Debug)]
struct Length {
    /// Of the file as it is seen.
    seen: u64,
    /// So much of the file below still counts; it has been cut there.
    below: u64,
}

impl Unsynced {
    fn length(&self, below: &dyn File) -> io::Result<Length> {
        match self.length {
            Some(length) => Ok(length),
            None => below.len().map(|len| Length { seen: len, below: len }),
        }
    }

    /// `out.len()` bytes at `offset`, zeros where nothing is.
    fn read(&self, below: &dyn File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        let length = self.length(below)?;
        if offset < length.below {
            let len = usize::try_from(end.min(length.below) - offset).expect("not longer than the buffer");
            out[..len].copy_from_slice(&below.read_at(offset, len)?);
        }
        for (number, page) in self.pages.range(offset / PAGE as u64..end.div_ceil(PAGE as u64)) {
            let start = number * PAGE as u64;
            let (from, to) = (start.max(offset), (start + PAGE as u64).min(end));
            let at =
                |position: u64, base: u64| usize::try_from(position - base).expect("inside of a page or the buffer");
            out[at(from, offset)..at(to, offset)].copy_from_slice(&page[at(from, start)..at(to, start)]);
        }
        Ok(())
    }

    fn write(&mut self, below: &dyn File, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut length = self.length(below)?;
        let end = offset + data.len() as u64;
        for number in offset / PAGE as u64..end.div_ceil(PAGE as u64) {
            let start = number * PAGE as u64;
            if !self.pages.contains_key(&number) {
                let mut page = Box::new([0; PAGE]);
                self.read(below, start, &mut page[..])?;
                self.pages.insert(number, page);
            }
            let page = self.pages.get_mut(&number).expect("just put there");
            let (from, to) = (start.max(offset), (start + PAGE as u64).min(end));
            let at = |position: u64, base: u64| usize::try_from(position - base).expect("inside of a page or the data");
            page[at(from, start)..at(to, start)].copy_from_slice(&data[at(from, offset)..at(to, offset)]);
        }
        length.seen = length.seen.max(end);
        self.length = Some(length);
        Ok(())
    }

    fn set_len(&mut self, below: &dyn File, len: u64) -> io::Result<()> {
        let mut length = self.length(below)?;
        if len < length.seen {
            self.pages.retain(|number, _| number * (PAGE as u64) < len);
            if let Some(page) = self.pages.get_mut(&(len / PAGE as u64)) {
                page[usize::try_from(len % PAGE as u64).expect("inside of a page")..].fill(0);
            }
        }
        length.below = length.below.min(len);
        length.seen = len;
        self.length = Some(length);
        Ok(())
    }

    /// Brings everything into the file below, unsynced there.
    fn write_back(&mut self, below: &dyn File) -> io::Result<()> {
        let Some(length) = self.length else { return Ok(()) };
        if length.below < below.len()? {
            below.set_len(length.below)?;
        }
        if below.len()? != length.seen {
            below.set_len(length.seen)?;
        }
        for (number, page) in &self.pages {
            let start = number * PAGE as u64;
            let len = usize::try_from(length.seen.saturating_sub(start)).unwrap_or(PAGE).min(PAGE);
            if len > 0 {
                below.write_at(start, &page[..len])?;
            }
        }
        *self = Self::default();
        Ok(())
    }
}

#[derive(Debug)]
struct VolatileFile {
    below: Box<dyn File>,
    unsynced: Arc<Mutex<Unsynced>>,
    lies: bool,
}

impl File for VolatileFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let unsynced = self.unsynced.lock();
        if unsynced.length.is_none() {
            return self.below.read_at(offset, len);
        }
        if offset + len as u64 > unsynced.length(&*self.below)?.seen {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut out = vec![0; len];
        unsynced.read(&*self.below, offset, &mut out)?;
        Ok(out.into())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.unsynced.lock().write(&*self.below, offset, data)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.unsynced.lock().length(&*self.below)?.seen)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.unsynced.lock().set_len(&*self.below, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.lies {
            return Ok(());
        }
        self.unsynced.lock().write_back(&*self.below)?;
        self.below.sync_data()
    }
}

impl Volatile {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        Self { inner, files: Arc::default(), lies_about: None }
    }

    /// The planted bug: a sync of a file with this ending answers `Ok` and makes nothing durable.
    pub fn lying_about(inner: Arc<dyn Vfs>, ending: &'static str) -> Self {
        Self { lies_about: Some(ending), ..Self::new(inner) }
    }

    /// Brings everything unsynced to the disk, as the system does for a process that ends.
    pub fn write_back(&self) -> io::Result<()> {
        for (path, unsynced) in self.files.lock().iter() {
            let mut unsynced = unsynced.lock();
            if unsynced.length.is_some() {
                unsynced.write_back(&*self.inner.open(path, OpenMode::ReadWrite)?)?;
            }
        }
        Ok(())
    }
}

impl Vfs for Volatile {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let below = self.inner.open(path, mode)?;
        let unsynced = self.files.lock().entry(path.to_path_buf()).or_default().clone();
        let lies = self.lies_about.is_some_and(|ending| path.to_string_lossy().ends_with(ending));
        Ok(Box::new(VolatileFile { below, unsynced, lies }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.inner.read_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files.lock();
        self.inner.rename(from, to)?;
        match files.remove(from) {
            Some(unsynced) => files.insert(to.to_path_buf(), unsynced),
            None => files.remove(to),
        };
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut files = self.files.lock();
        self.inner.remove_file(path)?;
        files.remove(path);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut files = self.files.lock();
        self.inner.remove_dir_all(path)?;
        files.retain(|file, _| !file.starts_with(path));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.inner.lock(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.inner.free_space(dir)
    }
}

#[cfg(test)]
mod tests {
    use alhambra_storage::vfs::mem::MemVfs;

    use super::*;
    use crate::process::rng::Rng;

    /// A file against a plain vector, with syncs and power failures in between.
    #[test]
    fn a_file_is_what_was_written_and_a_power_failure_leaves_what_was_synced() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed, "volatile");
            let disk: Arc<dyn Vfs> = Arc::new(MemVfs::new());
            let path = Path::new("/f");
            let mut vfs = Volatile::new(disk.clone());
            let mut file = vfs.open(path, OpenMode::Create).unwrap();
            let (mut model, mut synced) = (Vec::new(), Vec::new());
            for _ in 0..200 {
                match rng.below(12) {
                    0..5 => {
                        let offset = rng.below(model.len() + 5000);
                        let salt = rng.draw() as u8;
                        let data: Vec<u8> = (0..=rng.below(9000)).map(|n| n as u8 ^ salt).collect();
                        file.write_at(offset as u64, &data).unwrap();
                        model.resize(model.len().max(offset + data.len()), 0);
                        model[offset..offset + data.len()].copy_from_slice(&data);
                    }
                    5..7 => {
                        let len = rng.below(model.len() + 6000);
                        file.set_len(len as u64).unwrap();
                        model.resize(len, 0);
                    }
                    7..9 => {
                        file.sync_data().unwrap();
                        synced = model.clone();
                    }
                    9 => {
                        vfs = Volatile::new(disk.clone());
                        file = vfs.open(path, OpenMode::ReadWrite).unwrap();
                        model = synced.clone();
                    }
                    10 => {
                        file = vfs.open(path, OpenMode::ReadWrite).unwrap();
                    }
                    _ => {
                        vfs.write_back().unwrap();
                        synced = model.clone();
                    }
                }
                assert_eq!(file.len().unwrap(), model.len() as u64, "seed {seed}");
                let from = rng.below(model.len());
                let len = rng.below(model.len() - from + 1);
                assert_eq!(&*file.read_at(from as u64, len).unwrap(), &model[from..from + len], "seed {seed}");
                assert!(file.read_at(from as u64, model.len() - from + 1).is_err());
            }
        }
    }

    #[test]
    fn names_take_their_bytes_along_and_a_lie_keeps_nothing() {
        let disk: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let vfs = Volatile::lying_about(disk.clone(), ".seg");
        let write = |name: &str| {
            let file = vfs.open(Path::new(name), OpenMode::Create).unwrap();
            file.write_at(0, b"bytes").unwrap();
            file.sync_data().unwrap();
        };
        write("/a.seg");
        write("/b.idx");
        vfs.rename(Path::new("/a.seg"), Path::new("/c.seg")).unwrap();
        let length = |vfs: &dyn Vfs, name: &str| vfs.open(Path::new(name), OpenMode::Read).unwrap().len().unwrap();
        assert_eq!(length(&vfs, "/c.seg"), 5);
        assert_eq!(length(&*disk, "/c.seg"), 0, "the sync has lied");
        assert_eq!(length(&*disk, "/b.idx"), 5);
        vfs.write_back().unwrap();
        assert_eq!(length(&*disk, "/c.seg"), 5);
    }
}
