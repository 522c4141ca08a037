//! The disk of a simulated host: files in memory that lose what was not synced, with faults that the driver switches on, and the
//! bug of a planted log store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{File, FileKind, LockGuard, OpenMode, Vfs};
use bytes::Bytes;
use parking_lot::Mutex;

use super::env::SimRng;

/// What is wrong with a disk at the moment.
#[derive(Debug, Default)]
struct Condition {
    /// Of a thousand writes and syncs so many fail.
    failing: u64,
    /// Of a thousand writes to derived files so many go a little beside their place.
    misdirected: u64,
    /// Syncs of these files do nothing: `seg` for segments, else a name.
    lying_syncs: Option<&'static str>,
}

#[derive(Debug)]
struct Inner {
    files: Mutex<MemVfs>,
    condition: Mutex<Condition>,
    rng: SimRng,
}

/// See the module. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Inner>);

impl SimDisk {
    /// An empty disk whose faults follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let (files, condition) = (Mutex::new(MemVfs::new()), Mutex::default());
        Self(Arc::new(Inner { files, condition, rng: SimRng::new(seed) }))
    }

    /// The files, without any fault.
    pub fn files(&self) -> MemVfs {
        self.0.files.lock().clone()
    }

    /// The machine loses power; what was not synced is gone, or torn.
    pub fn crash(&self, torn: bool) {
        let how = if torn { Crash::PowerLossTorn { seed: self.0.rng.next() } } else { Crash::PowerLoss };
        self.files().crash(how);
    }

    /// Somebody puts an empty disk into the machine.
    pub fn replace(&self) {
        *self.0.files.lock() = MemVfs::new();
    }

    /// Of a thousand writes and syncs so many fail from now on.
    pub fn set_failing(&self, of_thousand: u64) {
        self.0.condition.lock().failing = of_thousand;
    }

    /// Of a thousand writes to derived files so many go beside their place from now on.
    pub fn set_misdirected(&self, of_thousand: u64) {
        self.0.condition.lock().misdirected = of_thousand;
    }

    /// A planted bug: syncs of such files answer `Ok` and do nothing, which is what a store that answers before its sync would
    /// look like. `seg` for segments, else the name of the file.
    pub fn set_lying_syncs(&self, of: &'static str) {
        self.0.condition.lock().lying_syncs = Some(of);
    }

    fn lies_about(&self, path: &Path) -> bool {
        let of = self.0.condition.lock().lying_syncs;
        of.is_some_and(
            |of| if of == "seg" { is_segment(path) } else { path.file_stem().is_some_and(|stem| stem == of) },
        )
    }

    /// All files below a folder whose path the filter takes, sorted.
    pub fn find(&self, below: &Path, filter: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
        let files = self.files();
        let (mut found, mut folders) = (Vec::new(), vec![below.to_path_buf()]);
        while let Some(folder) = folders.pop() {
            for (name, kind) in files.read_dir(&folder).unwrap_or_default() {
                let path = folder.join(name);
                match kind {
                    FileKind::Dir => folders.push(path),
                    FileKind::File if filter(&path) => found.push(path),
                    _ => {}
                }
            }
        }
        found.sort();
        found
    }

    /// Flips one bit of a file, durably, behind everybody's back; answers where.
    pub fn flip(&self, path: &Path, rng: &SimRng) -> io::Result<u64> {
        let file = self.files().open(path, OpenMode::ReadWrite)?;
        let at = rng.below(file.len()?.max(1));
        let byte = file.read_at(at, 1)?[0] ^ (1 << rng.below(8));
        file.write_at(at, &[byte])?;
        file.sync_data()?;
        Ok(at)
    }

    fn fails(&self) -> io::Result<()> {
        let failing = self.0.condition.lock().failing;
        if failing > 0 && self.0.rng.below(1000) < failing {
            Err(io::Error::other("the simulated disk failed"))
        } else {
            Ok(())
        }
    }
}

/// Whether a file holds, or will hold, a segment of a ledger: they are written under another name first.
fn is_segment(path: &Path) -> bool {
    let ledger = path.parent().is_some_and(|folder| folder.ends_with("ledger"));
    ledger && path.extension().is_none_or(|extension| extension != "idx")
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: Box<dyn File>,
    path: PathBuf,
}

impl File for SimFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.file.read_at(offset, len)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.fails()?;
        let misdirected = self.disk.0.condition.lock().misdirected;
        if misdirected > 0 && !is_segment(&self.path) && self.disk.0.rng.below(1000) < misdirected {
            return self.file.write_at(offset.saturating_sub(512), data);
        }
        self.file.write_at(offset, data)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.fails()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.disk.lies_about(&self.path) {
            return Ok(());
        }
        self.disk.fails()?;
        self.file.sync_data()
    }
}

impl Vfs for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let file = self.files().open(path, mode)?;
        Ok(Box::new(SimFile { disk: self.clone(), file, path: path.to_path_buf() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.files().create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.files().read_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fails()?;
        self.files().rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.files().remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.files().remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.fails()?;
        self.files().sync_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.files().exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.files().lock(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.files().free_space(dir)
    }
}
