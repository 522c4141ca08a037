//! The disk of a `chaos-node`: the operating system's files, with faults and with a power that can fail.
//!
//! | layer | what |
//! |---|---|
//! | [`Faults`] | full, failing, read-only and slow, as [`Disk`] says |
//! | [`volatile::Volatile`] | keeps what is written in this process until it is synced, so that SIGKILL loses what a power failure would |

pub mod volatile;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alhambra_storage::vfs::{File, FileKind, LockGuard, OpenMode, Vfs};
use bytes::Bytes;
use parking_lot::RwLock;

use super::control::Disk;

/// EIO of Linux.
const EIO: i32 = 5;

/// A file system that fails as it is told.
#[derive(Clone, Debug)]
pub struct Faults {
    inner: Arc<dyn Vfs>,
    disk: Arc<RwLock<Disk>>,
}

impl Faults {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        Self { inner, disk: Arc::default() }
    }

    /// From now on it is like this.
    pub fn set(&self, disk: Disk) {
        *self.disk.write() = disk;
    }
}

trait Judge {
    fn look(&self) -> io::Result<()>;
    fn change(&self) -> io::Result<()>;
    fn grow(&self) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

impl Judge for RwLock<Disk> {
    fn look(&self) -> io::Result<()> {
        if self.read().read_errors { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn change(&self) -> io::Result<()> {
        let disk = *self.read();
        if disk.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if disk.write_errors { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn grow(&self) -> io::Result<()> {
        self.change()?;
        if self.read().full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let slow_ms = self.read().slow_ms;
        if slow_ms > 0 {
            // The thread of a disk waits, as it would for a slow one.
            std::thread::sleep(Duration::from_millis(slow_ms));
        }
        self.change()
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn File>,
    disk: Arc<RwLock<Disk>>,
}

impl File for FaultyFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.disk.look()?;
        self.inner.read_at(offset, len)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A full disk takes what lies inside a file.
        if offset + data.len() as u64 > self.inner.len()? {
            self.disk.grow()?;
        }
        self.disk.change()?;
        self.inner.write_at(offset, data)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.look()?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.inner.len()? {
            self.disk.grow()?;
        }
        self.disk.change()?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync()?;
        self.inner.sync_data()
    }
}

impl Vfs for Faults {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        self.disk.look()?;
        let makes = match mode {
            OpenMode::Read | OpenMode::ReadWrite => false,
            OpenMode::Create => !self.inner.exists(path)?,
            OpenMode::CreateNew | OpenMode::CreatePrivate => true,
        };
        if makes {
            self.disk.grow()?;
        }
        Ok(Box::new(FaultyFile { inner: self.inner.open(path, mode)?, disk: self.disk.clone() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if !self.inner.exists(path)? {
            self.disk.grow()?;
        }
        self.inner.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.disk.look()?;
        self.inner.read_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.change()?;
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.change()?;
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.change()?;
        self.inner.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync()?;
        self.inner.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.look()?;
        self.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.disk.look()?;
        self.inner.lock(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.disk.look()?;
        let free = self.inner.free_space(dir)?;
        Ok(if self.disk.read().full { 0 } else { free })
    }
}

#[cfg(test)]
mod tests {
    use alhambra_storage::vfs::mem::MemVfs;

    use super::*;

    #[test]
    fn a_disk_is_as_it_is_told() {
        let vfs = Faults::new(Arc::new(MemVfs::new()));
        let dir = Path::new("/d");
        vfs.create_dir_all(dir).unwrap();
        let file = vfs.open(&dir.join("f"), OpenMode::Create).unwrap();
        file.write_at(0, b"hello").unwrap();

        vfs.set(Disk { full: true, ..Disk::default() });
        file.write_at(0, b"HELLO").unwrap();
        assert_eq!(file.write_at(1, b"HELLO").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(vfs.open(&dir.join("g"), OpenMode::CreateNew).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(vfs.free_space(dir).unwrap(), 0);

        vfs.set(Disk { write_errors: true, ..Disk::default() });
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
        assert_eq!(&*file.read_at(0, 5).unwrap(), b"HELLO");

        vfs.set(Disk { read_errors: true, ..Disk::default() });
        assert_eq!(file.read_at(0, 5).unwrap_err().raw_os_error(), Some(EIO));

        vfs.set(Disk { read_only: true, ..Disk::default() });
        assert_eq!(file.set_len(0).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);

        vfs.set(Disk::default());
        file.write_at(5, b"!").unwrap();
        file.sync_data().unwrap();
        assert_eq!(&*file.read_at(0, 6).unwrap(), b"HELLO!");
    }
}
