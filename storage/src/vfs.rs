//! The only file access: a handful of calls, so that a disk can be simulated and made to fail.

pub mod faulty;
pub mod mem;
pub mod os;
pub mod pooled;

use std::fmt::Debug;
use std::io;
use std::path::Path;

use bytes::Bytes;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Must exist; writes fail.
    Read,
    /// Must exist.
    ReadWrite,
    /// Made when absent.
    Create,
    /// Must not exist.
    CreateNew,
    /// Must not exist. Where the system knows owners of files, nobody but the owner may read it.
    CreatePrivate,
}

/// What a folder holds under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Dir,
}

/// A file system.
///
/// Durability contract: bytes written are durable after `File::sync_data`; a file's existence, a rename and a removal are
/// durable after `sync_dir` of the folder. `storage/tests/it/vfs_suite.rs` is the conformance suite.
pub trait Vfs: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>>;
    /// Makes a folder and its parents, durably.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, sorted.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>>;
    /// Renames within one file system, replacing the target file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with everything in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes names created, renamed and removed in the folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Whether a file or folder exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Takes an exclusive lock that ends with the process or when the guard is dropped; `WouldBlock` when taken.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;
    /// Bytes that this process may still write to the file system of an existing folder.
    fn free_space(&self, dir: &Path) -> io::Result<u64>;
}

/// Holds a lock until dropped.
pub trait LockGuard: Send + Sync + Debug {}

/// An open file. All calls are positioned, so a file may be shared by threads.
pub trait File: Send + Sync + Debug {
    /// Reads exactly `len` bytes at `offset`; `UnexpectedEof` when the file ends before.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Writes all of `data` at `offset`, growing the file when needed.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file or grows it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes bytes and length durable.
    fn sync_data(&self) -> io::Result<()>;
}
