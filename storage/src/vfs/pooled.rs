//! Bounds how many files are open at once, whatever the number of databases and of files that they hold on to.
//!
//! A file that nobody has used for a while is closed behind the back of its holder and opened again by the next call. What makes
//! that safe:
//!
//! - A file with writes that are not synced stays open, so a sync that fails is heard of by whoever asks for it.
//! - Renames and removals go through here: a closed file is opened again under the name that it has by then, and one that
//!   loses its name is open before it does and stays so.
//!
//! The bound is kept as long as enough files may be closed; otherwise more are opened rather than refused. Locks are not
//! counted.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{File, FileKind, LockGuard, OpenMode, Vfs};

/// Another file system with a bound on open files.
#[derive(Debug)]
pub struct PooledVfs {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    inner: Arc<dyn Vfs>,
    open_max: usize,
    open: AtomicUsize,
    /// Who holds which name. Read while a file is opened again, written while names change.
    names: RwLock<BTreeMap<PathBuf, Vec<Weak<Entry>>>>,
    /// Open files; the next to be closed first, unless they were used meanwhile.
    queue: Mutex<VecDeque<Weak<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    used: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    mode: OpenMode,
    handle: Option<Arc<dyn File>>,
    /// Writes begun so far, those that are under way, and those that are known to be synced.
    writes: u64,
    writing: u64,
    synced: u64,
    /// Another file has the name, or none: this one cannot be opened again.
    nameless: bool,
}

/// A file that is open and stays so.
struct Held {
    entry: Arc<Entry>,
    _handle: Arc<dyn File>,
}

/// Places of files that are gone, in the queue, before they are cleared away.
const QUEUE_SLACK: usize = 64;

impl PooledVfs {
    /// At most `open_max` files of `inner` are open at once, as far as they may be closed.
    pub fn new(inner: Arc<dyn Vfs>, open_max: usize) -> Self {
        let (names, queue) = (RwLock::default(), Mutex::default());
        Self { pool: Arc::new(Pool { inner, open_max: open_max.max(1), open: AtomicUsize::new(0), names, queue }) }
    }

    /// Files that are open now.
    pub fn open_files(&self) -> usize {
        self.pool.open.load(Ordering::Relaxed)
    }
}

impl Pool {
    /// Closes files until one more may be opened, or none may be closed.
    fn make_room(&self) {
        let mut tries = self.queue.lock().len() * 2;
        while self.open.load(Ordering::Relaxed) >= self.open_max && tries > 0 {
            tries -= 1;
            let Some(weak) = self.queue.lock().pop_front() else { return };
            let Some(entry) = weak.upgrade() else { continue };
            let mut state = entry.state.lock();
            let Some(handle) = &state.handle else { continue };
            let busy = entry.used.swap(false, Ordering::Relaxed) || Arc::strong_count(handle) > 1;
            if busy || state.writes != state.synced || state.nameless {
                self.queue.lock().push_back(weak);
            } else {
                state.handle = None;
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn put(&self, entry: &Arc<Entry>, state: &mut State, handle: Arc<dyn File>) {
        state.handle = Some(handle);
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let mut queue = self.queue.lock();
        // Whoever lets go of a file leaves its place behind.
        if queue.len() >= 2 * open + QUEUE_SLACK {
            queue.retain(|entry| entry.strong_count() > 0);
        }
        queue.push_back(Arc::downgrade(entry));
    }

    /// The open file, opened again when it was closed. `change` is made to the state while the file is open.
    fn file(&self, entry: &Arc<Entry>, change: impl Fn(&mut State)) -> io::Result<Arc<dyn File>> {
        entry.used.store(true, Ordering::Relaxed);
        {
            let mut state = entry.state.lock();
            if let Some(handle) = state.handle.clone() {
                change(&mut state);
                return Ok(handle);
            }
        }
        self.make_room();
        let _names_stay = self.names.read();
        let mut state = entry.state.lock();
        let handle = match &state.handle {
            Some(handle) => Arc::clone(handle),
            None => {
                let handle: Arc<dyn File> = Arc::from(self.inner.open(&state.path, state.mode)?);
                self.put(entry, &mut state, Arc::clone(&handle));
                handle
            }
        };
        change(&mut state);
        Ok(handle)
    }

    /// All files at or below `path` are opened, for they are about to lose their names; none of them is closed while the
    /// answer is held.
    fn hold<'a>(&self, names: &'a BTreeMap<PathBuf, Vec<Weak<Entry>>>, path: &'a Path) -> io::Result<Vec<Held>> {
        let entries = below(names, path).flat_map(|(_, held)| held.iter().filter_map(Weak::upgrade));
        let mut out = Vec::new();
        for entry in entries {
            let mut state = entry.state.lock();
            let handle = match &state.handle {
                Some(handle) => Arc::clone(handle),
                None => {
                    let handle: Arc<dyn File> = Arc::from(self.inner.open(&state.path, state.mode)?);
                    self.put(&entry, &mut state, Arc::clone(&handle));
                    handle
                }
            };
            drop(state);
            out.push(Held { entry, _handle: handle });
        }
        Ok(out)
    }

    /// Removes names by `remove`; who holds the files keeps them.
    fn unname(&self, path: &Path, remove: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut names = self.names.write();
        let held = self.hold(&names, path)?;
        remove()?;
        held.iter().for_each(|held| held.entry.state.lock().nameless = true);
        let gone: Vec<PathBuf> = below(&names, path).map(|(path, _)| path.clone()).collect();
        gone.iter().for_each(|path| drop(names.remove(path)));
        Ok(())
    }
}

/// Names at or below `path`.
fn below<'a>(
    names: &'a BTreeMap<PathBuf, Vec<Weak<Entry>>>,
    path: &'a Path,
) -> impl Iterator<Item = (&'a PathBuf, &'a Vec<Weak<Entry>>)> {
    // Paths are ordered by their components, so these are neighbours.
    names
        .range::<Path, _>((Bound::Included(path), Bound::Unbounded))
        .take_while(move |(name, _)| name.starts_with(path))
}

impl Vfs for PooledVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        self.pool.make_room();
        let mut names = self.pool.names.write();
        let handle: Arc<dyn File> = Arc::from(self.pool.inner.open(path, mode)?);
        // Opened again it must be there, and stays as it is.
        let mode = if mode == OpenMode::Read { mode } else { OpenMode::ReadWrite };
        let state =
            State { path: path.to_path_buf(), mode, handle: None, writes: 0, writing: 0, synced: 0, nameless: false };
        let entry = Arc::new(Entry { used: AtomicBool::new(true), state: Mutex::new(state) });
        self.pool.put(&entry, &mut entry.state.lock(), handle);
        names.entry(path.to_path_buf()).or_default().push(Arc::downgrade(&entry));
        Ok(Box::new(PooledFile { pool: Arc::clone(&self.pool), entry }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pool.inner.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.pool.inner.read_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.pool.names.write();
        let replaced = if from == to { Vec::new() } else { self.pool.hold(&names, to)? };
        self.pool.inner.rename(from, to)?;
        if from == to {
            return Ok(());
        }
        replaced.iter().for_each(|held| held.entry.state.lock().nameless = true);
        let gone: Vec<PathBuf> = below(&names, to).map(|(path, _)| path.clone()).collect();
        gone.iter().for_each(|path| drop(names.remove(path)));
        let moved: Vec<PathBuf> = below(&names, from).map(|(path, _)| path.clone()).collect();
        for path in moved {
            let held = names.remove(&path).unwrap_or_default();
            let rest = path.strip_prefix(from).expect("found below it");
            // Joining nothing would add a slash.
            let now = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
            held.iter().filter_map(Weak::upgrade).for_each(|entry| entry.state.lock().path.clone_from(&now));
            names.insert(now, held);
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.pool.unname(path, || self.pool.inner.remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pool.unname(path, || self.pool.inner.remove_dir_all(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pool.inner.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.pool.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.pool.inner.lock(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.pool.inner.free_space(dir)
    }
}

#[derive(Debug)]
struct PooledFile {
    pool: Arc<Pool>,
    entry: Arc<Entry>,
}

impl PooledFile {
    fn file(&self) -> io::Result<Arc<dyn File>> {
        self.pool.file(&self.entry, |_| {})
    }

    fn write(&self, write: impl FnOnce(&dyn File) -> io::Result<()>) -> io::Result<()> {
        let handle = self.pool.file(&self.entry, |state| {
            state.writes += 1;
            state.writing += 1;
        })?;
        let written = write(&*handle);
        self.entry.state.lock().writing -= 1;
        written
    }
}

impl File for PooledFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.file()?.read_at(offset, len)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(|file| file.write_at(offset, data))
    }

    fn len(&self) -> io::Result<u64> {
        self.file()?.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(|file| file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let handle = self.file()?;
        // Writes that are under way or begin from now on are not known to be in it.
        let covered = {
            let state = self.entry.state.lock();
            (state.writing == 0).then_some(state.writes)
        };
        handle.sync_data()?;
        let mut state = self.entry.state.lock();
        state.synced = state.synced.max(covered.unwrap_or(0));
        Ok(())
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        let mut names = self.pool.names.write();
        let mut state = self.entry.state.lock();
        if !state.nameless
            && let Some(held) = names.get_mut(&state.path)
        {
            held.retain(|entry| entry.strong_count() > 0 && !std::ptr::eq(entry.as_ptr(), Arc::as_ptr(&self.entry)));
            if held.is_empty() {
                names.remove(&state.path);
            }
        }
        if state.handle.take().is_some() {
            self.pool.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mem::MemVfs;
    use super::*;

    #[test]
    fn files_that_are_gone_leave_nothing_behind() {
        let vfs = PooledVfs::new(Arc::new(MemVfs::new()), 1_000);
        vfs.create_dir_all(Path::new("/d")).unwrap();
        for n in 0..5_000 {
            let path = PathBuf::from(format!("/d/{n}"));
            let file = vfs.open(&path, OpenMode::CreateNew).unwrap();
            file.write_at(0, b"x").unwrap();
            drop(file);
            vfs.remove_file(&path).unwrap();
        }
        assert!(vfs.pool.queue.lock().len() <= QUEUE_SLACK);
        assert!(vfs.pool.names.read().is_empty());
        assert_eq!(vfs.open_files(), 0);
    }
}
