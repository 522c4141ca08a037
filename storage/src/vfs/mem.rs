//! A disk in memory that knows what a power failure would leave of it.
//!
//! Every file has two images, the live one that reads see and the durable one, and so has every folder. `sync_data` and
//! `sync_dir` carry one over to the other. [`MemVfs::crash`] rebuilds the disk as a crash leaves it; files and locks opened
//! before a crash answer every call with an error, as the process that had them is gone.
//!
//! Nothing here depends on time, threads or a random source: the same calls and the same seeds give the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{File, FileKind, LockGuard, OpenMode, Vfs};

/// What is written whole or not at all, bytes.
pub const SECTOR_BYTES: u64 = 512;

/// How a machine goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: the system keeps what was written, synced or not.
    Process,
    /// Power fails and nothing that was not synced survives.
    PowerLoss,
    /// Power fails and, as drawn from `seed`, parts of what was not synced survive: any sectors of any writes, any changes
    /// of length, any changes of names.
    PowerLossTorn {
        /// Of the draw.
        seed: u64,
    },
}

/// Calls so far, of all handles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// `write_at`.
    pub writes: u64,
    /// Bytes of them.
    pub bytes_written: u64,
    /// `sync_data`.
    pub syncs: u64,
    /// `sync_dir`.
    pub dir_syncs: u64,
    /// `read_at`.
    pub reads: u64,
}

/// A handle to a disk in memory; clones are handles to the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemVfs {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    root: Dir,
    /// Changes of names that no `sync_dir` has carried over, in the order in which they were made.
    renames: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    /// One more for each crash; handles of an earlier boot are dead.
    boot: u64,
    counts: OpCounts,
    /// Bytes in files, at most; without a bound there is always room.
    capacity_bytes: Option<u64>,
    lose_next_sync: bool,
}

/// A folder is shared between the live and the durable tree, so that renaming it moves both.
#[derive(Clone, Debug, Default)]
struct Dir(Arc<Mutex<DirImages>>);

#[derive(Debug, Default)]
struct DirImages {
    live: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
}

#[derive(Clone, Debug)]
enum Node {
    File(Inode),
    Dir(Dir),
}

#[derive(Clone, Debug, Default)]
struct Inode(Arc<Mutex<FileImages>>);

#[derive(Debug, Default)]
struct FileImages {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// What `sync_data` would carry over, in order.
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write { offset: u64, data: Bytes },
    Length(u64),
}

/// Names that change together: one for a creation or a removal, two for a rename.
#[derive(Debug)]
struct NameChange(Vec<(Dir, String, Option<Node>)>);

fn write_into(image: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).expect("an image in memory is addressable");
    let end = start + data.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(data);
}

fn set_len_of(image: &mut Vec<u8>, len: u64) {
    image.resize(usize::try_from(len).expect("an image in memory is addressable"), 0);
}

/// SplitMix64: enough to draw which sectors survive.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True in `of_four` of four cases.
    fn chance(&mut self, of_four: u64) -> bool {
        self.next() % 4 < of_four
    }
}

impl FileImages {
    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, data } => write_into(&mut self.durable, offset, &data),
                Change::Length(len) => set_len_of(&mut self.durable, len),
            }
        }
        // Differs only after a lost sync; the length is the file system's own and not lost with them.
        let len = self.live.len() as u64;
        set_len_of(&mut self.durable, len);
    }

    /// Carries over a part of what was not synced. How much survives differs from file to file, so that "nothing of this
    /// file, all of that one" is drawn as often as a mixture.
    fn tear(&mut self, draw: &mut Draw) {
        let of_four = draw.next() % 5;
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, data } => {
                    let mut at = 0_usize;
                    while at < data.len() {
                        let absolute = offset + at as u64;
                        let to_boundary = SECTOR_BYTES - absolute % SECTOR_BYTES;
                        let end = data.len().min(at + usize::try_from(to_boundary).expect("a sector is small"));
                        if draw.chance(of_four) {
                            write_into(&mut self.durable, absolute, &data[at..end]);
                        }
                        at = end;
                    }
                }
                Change::Length(len) if draw.chance(of_four) => set_len_of(&mut self.durable, len),
                Change::Length(_) => {}
            }
        }
    }
}

impl NameChange {
    fn make_live(&self) {
        for (dir, name, node) in &self.0 {
            set_name(&mut dir.0.lock().live, name, node);
        }
    }

    fn make_durable(&self) {
        for (dir, name, node) in &self.0 {
            set_name(&mut dir.0.lock().durable, name, node);
        }
    }

    fn touches(&self, dir: &Dir) -> bool {
        self.0.iter().any(|(touched, ..)| Arc::ptr_eq(&touched.0, &dir.0))
    }
}

fn set_name(names: &mut BTreeMap<String, Node>, name: &str, node: &Option<Node>) {
    match node {
        Some(node) => names.insert(name.to_owned(), node.clone()),
        None => names.remove(name),
    };
}

impl Dir {
    fn get(&self, name: &str) -> Option<Node> {
        self.0.lock().live.get(name).cloned()
    }

    fn size_bytes(&self) -> u64 {
        let nodes: Vec<Node> = self.0.lock().live.values().cloned().collect();
        let size = |node: &Node| match node {
            Node::Dir(dir) => dir.size_bytes(),
            Node::File(inode) => inode.0.lock().live.len() as u64,
        };
        nodes.iter().map(size).sum()
    }

    /// Visits every folder and file that the durable tree reaches, folders first.
    fn walk_durable(&self, visit: &mut dyn FnMut(&Node)) {
        let nodes: Vec<Node> = self.0.lock().durable.values().cloned().collect();
        for node in nodes {
            visit(&node);
            if let Node::Dir(dir) = &node {
                dir.walk_durable(visit);
            }
        }
    }

    /// What is seen becomes what is durable.
    fn revert(&self) {
        let mut images = self.0.lock();
        images.live = images.durable.clone();
    }
}

/// Components of a path as names. Relative and absolute paths name the same tree.
fn names(path: &Path) -> io::Result<Vec<&str>> {
    let mut out = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => out.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?),
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(out)
}

impl Disk {
    fn dir(&self, names: &[&str]) -> io::Result<Dir> {
        let mut dir = self.root.clone();
        for name in names {
            dir = match dir.get(name) {
                Some(Node::Dir(below)) => below,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => return Err(io::ErrorKind::NotFound.into()),
            };
        }
        Ok(dir)
    }

    /// The folder that holds `path`, which must exist, and the last name.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(Dir, &'a str)> {
        let names = names(path)?;
        let (last, above) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.dir(above)?, last))
    }

    /// How many more bytes files may hold.
    fn room_bytes(&self) -> u64 {
        self.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.root.size_bytes()))
    }

    fn change_names(&mut self, changes: Vec<(Dir, String, Option<Node>)>) {
        let change = NameChange(changes);
        change.make_live();
        self.renames.push(change);
    }
}

impl MemVfs {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine goes down and comes up again. What was opened or locked before is dead; open it anew.
    pub fn crash(&self, how: Crash) {
        let mut disk = self.disk.lock();
        disk.boot += 1;
        disk.locks.clear();
        let renames = std::mem::take(&mut disk.renames);
        let mut draw = match how {
            // Nothing is lost, and nothing becomes durable either.
            Crash::Process => {
                disk.renames = renames;
                return;
            }
            Crash::PowerLoss => None,
            Crash::PowerLossTorn { seed } => Some(Draw(seed)),
        };
        if let Some(draw) = &mut draw {
            let of_four = draw.next() % 5;
            renames.iter().filter(|_| draw.chance(of_four)).for_each(NameChange::make_durable);
        }
        disk.root.revert();
        disk.root.walk_durable(&mut |node| match node {
            Node::Dir(dir) => dir.revert(),
            Node::File(inode) => {
                let mut images = inode.0.lock();
                match &mut draw {
                    Some(draw) => images.tear(draw),
                    None => images.unsynced.clear(),
                }
                images.live = images.durable.clone();
            }
        });
    }

    /// Calls so far.
    pub fn counts(&self) -> OpCounts {
        self.disk.lock().counts
    }

    /// Bytes in files, as they are seen now.
    pub fn size_bytes(&self) -> u64 {
        self.disk.lock().root.size_bytes()
    }

    /// From now on files hold this many bytes together, or any number for `None`. Beyond it a write takes what
    /// fits and answers `StorageFull`, and so do a growing `set_len` and, when nothing fits, the making of a file.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// The next sync of any file fails and throws away what it should have made durable, as a system does that takes its
    /// pages for clean then: they stay readable, and no later sync makes anything of them durable.
    pub fn lose_next_sync(&self) {
        self.disk.lock().lose_next_sync = true;
    }
}

impl Vfs for MemVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let mut disk = self.disk.lock();
        let (dir, name) = disk.parent(path)?;
        let inode = match (dir.get(name), mode) {
            (Some(Node::Dir(_)), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(Node::File(_)), OpenMode::CreateNew | OpenMode::CreatePrivate) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            (Some(Node::File(inode)), _) => inode,
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(io::ErrorKind::NotFound.into()),
            (None, OpenMode::Create | OpenMode::CreateNew | OpenMode::CreatePrivate) => {
                if disk.room_bytes() == 0 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let inode = Inode::default();
                disk.change_names(vec![(dir, name.to_owned(), Some(Node::File(inode.clone())))]);
                inode
            }
        };
        let boot = disk.boot;
        Ok(Box::new(MemFile { disk: Arc::clone(&self.disk), boot, writable: mode != OpenMode::Read, inode }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let disk = self.disk.lock();
        let mut dir = disk.root.clone();
        for name in names(path)? {
            dir = match dir.get(name) {
                Some(Node::Dir(below)) => below,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    let below = Dir::default();
                    let change = NameChange(vec![(dir, name.to_owned(), Some(Node::Dir(below.clone())))]);
                    change.make_live();
                    change.make_durable();
                    below
                }
            };
        }
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        let dir = self.disk.lock().dir(&names(path)?)?;
        let kind = |node: &Node| match node {
            Node::File(_) => FileKind::File,
            Node::Dir(_) => FileKind::Dir,
        };
        let images = dir.0.lock();
        Ok(images.live.iter().map(|(name, node)| (name.clone(), kind(node))).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let (from_dir, from_name) = disk.parent(from)?;
        let (to_dir, to_name) = disk.parent(to)?;
        let node = from_dir.get(from_name).ok_or(io::ErrorKind::NotFound)?;
        match (&node, to_dir.get(to_name)) {
            (_, None) | (Node::File(_), Some(Node::File(_))) => {}
            (Node::File(_), Some(Node::Dir(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (Node::Dir(_), Some(Node::File(_))) => return Err(io::ErrorKind::NotADirectory.into()),
            (Node::Dir(_), Some(Node::Dir(target))) if target.0.lock().live.is_empty() => {}
            (Node::Dir(_), Some(Node::Dir(_))) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
        if Arc::ptr_eq(&from_dir.0, &to_dir.0) && from_name == to_name {
            return Ok(());
        }
        disk.change_names(vec![(from_dir, from_name.to_owned(), None), (to_dir, to_name.to_owned(), Some(node))]);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let (dir, name) = disk.parent(path)?;
        match dir.get(name) {
            Some(Node::File(_)) => disk.change_names(vec![(dir, name.to_owned(), None)]),
            Some(Node::Dir(_)) => return Err(io::ErrorKind::IsADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let (dir, name) = disk.parent(path)?;
        match dir.get(name) {
            Some(Node::Dir(_)) => disk.change_names(vec![(dir, name.to_owned(), None)]),
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let dir = disk.dir(&names(path)?)?;
        disk.counts.dir_syncs += 1;
        let (durable, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut disk.renames).into_iter().partition(|change| change.touches(&dir));
        durable.iter().for_each(NameChange::make_durable);
        disk.renames = rest;
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let disk = self.disk.lock();
        let names = names(path)?;
        let Some((last, above)) = names.split_last() else { return Ok(true) };
        match disk.dir(above) {
            Ok(dir) => Ok(dir.get(last).is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        drop(self.open(path, OpenMode::Create)?);
        let mut disk = self.disk.lock();
        let key: PathBuf = names(path)?.iter().collect();
        if !disk.locks.insert(key.clone()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock { disk: Arc::clone(&self.disk), boot: disk.boot, key }))
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.dir(&names(dir)?)?;
        Ok(disk.room_bytes())
    }
}

#[derive(Debug)]
struct MemLock {
    disk: Arc<Mutex<Disk>>,
    boot: u64,
    key: PathBuf,
}

impl LockGuard for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.boot == self.boot {
            disk.locks.remove(&self.key);
        }
    }
}

#[derive(Debug)]
struct MemFile {
    disk: Arc<Mutex<Disk>>,
    boot: u64,
    writable: bool,
    inode: Inode,
}

impl MemFile {
    /// Counts the call, or refuses it when the machine has been down since the file was opened.
    fn enter(&self, count: impl FnOnce(&mut OpCounts)) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if disk.boot != self.boot {
            return Err(io::Error::other("file was opened before the crash"));
        }
        count(&mut disk.counts);
        Ok(())
    }

    /// Answers as well how long this file may become.
    fn enter_to_write(&self, count: impl FnOnce(&mut OpCounts)) -> io::Result<u64> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.enter(count)?;
        let room = self.disk.lock().room_bytes();
        Ok(room.saturating_add(self.inode.0.lock().live.len() as u64))
    }
}

impl File for MemFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.enter(|counts| counts.reads += 1)?;
        let images = self.inode.0.lock();
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = images.live.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len_max = self.enter_to_write(|counts| {
            counts.writes += 1;
            counts.bytes_written += data.len() as u64;
        })?;
        let fits = usize::try_from(len_max.saturating_sub(offset)).map_or(data.len(), |fits| fits.min(data.len()));
        if fits > 0 {
            let mut images = self.inode.0.lock();
            write_into(&mut images.live, offset, &data[..fits]);
            images.unsynced.push(Change::Write { offset, data: Bytes::copy_from_slice(&data[..fits]) });
        }
        if fits == data.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn len(&self) -> io::Result<u64> {
        self.enter(|_| ())?;
        Ok(self.inode.0.lock().live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len_max = self.enter_to_write(|_| ())?;
        let mut images = self.inode.0.lock();
        if len > len_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        set_len_of(&mut images.live, len);
        images.unsynced.push(Change::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.enter(|counts| counts.syncs += 1)?;
        let lost = std::mem::take(&mut self.disk.lock().lose_next_sync);
        let mut images = self.inode.0.lock();
        if lost {
            images.unsynced.clear();
            return Err(io::Error::other("the sync was lost"));
        }
        images.sync();
        Ok(())
    }
}
