//! Any file system, made to fail at a chosen step.
//!
//! A step is a call that changes something on the disk or makes it durable; a look is any other call. Each kind is counted
//! from 0 over all files, so that a test can run a workload once, count, and then fail every single call of it. What is
//! drawn (which of the unsynced writes survive a power failure, in any order) is drawn by [`MemVfs::crash`] from a seed;
//! a full disk is [`MemVfs::set_capacity`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::mem::MemVfs;
use super::{File, FileKind, LockGuard, OpenMode, Vfs};

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// `open` that makes a file, or `lock` that does.
    Create,
    /// `create_dir_all`.
    CreateDir,
    /// `write_at`.
    Write {
        /// Where.
        offset: u64,
        /// How much, bytes.
        len: usize,
    },
    /// `set_len`.
    SetLength {
        /// The new length, bytes.
        len: u64,
    },
    /// `sync_data`.
    Sync,
    /// `sync_dir`.
    SyncDir,
    /// `rename`, under the old name.
    Rename,
    /// `remove_file` or `remove_dir_all`.
    Remove,
}

/// One step, on one file or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub kind: StepKind,
    /// On what.
    pub path: PathBuf,
}

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done and this error is returned; later steps work.
    Error(io::ErrorKind),
    /// A write leaves its first half and returns this error; any other step is as with `Error`.
    Short(io::ErrorKind),
    /// A sync returns this error, and what it should have made durable never will be, whatever later syncs answer: the
    /// system takes its pages for clean. Any other step is as with `Error`. Needs [`FaultyVfs::on_memory`].
    LostSync(io::ErrorKind),
    /// The machine stops before this step: it and every later call fail.
    Crash,
    /// The machine stops in the middle of this write; as `Crash` for any other step.
    CrashShort,
}

/// A file system around another one.
#[derive(Clone, Debug)]
pub struct FaultyVfs {
    inner: Arc<dyn Vfs>,
    memory: Option<MemVfs>,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    done: Vec<Step>,
    record: bool,
    count: u64,
    looks: u64,
    fault: Option<(u64, Fault)>,
    look_fault: Option<(u64, io::ErrorKind)>,
    broken: Option<(PathBuf, io::ErrorKind)>,
    /// Files with a bad sector.
    unreadable: BTreeMap<PathBuf, io::ErrorKind>,
    full_below: Option<PathBuf>,
    read_only_from: Option<u64>,
    stopped: bool,
    syncs_lie: bool,
}

/// What the caller of `Plan::step` is to do.
enum Go {
    Whole,
    Half(io::ErrorKind),
    Forget(io::ErrorKind),
}

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

impl Plan {
    fn step(&mut self, kind: StepKind, path: &Path) -> io::Result<Go> {
        if self.stopped {
            return Err(stopped());
        }
        let number = self.count;
        self.count += 1;
        if self.record {
            self.done.push(Step { kind, path: path.to_path_buf() });
        }
        self.broken(path)?;
        if self.read_only_from.is_some_and(|from| number >= from) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if self.full_below.as_ref().is_some_and(|below| path.starts_with(below)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let fault = self.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        let writes = matches!(kind, StepKind::Write { .. });
        let syncs = kind == StepKind::Sync;
        match fault {
            None => Ok(Go::Whole),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Short(kind)) if writes => Ok(Go::Half(kind)),
            Some(Fault::Short(kind)) => Err(kind.into()),
            Some(Fault::LostSync(kind)) if syncs => Ok(Go::Forget(kind)),
            Some(Fault::LostSync(kind)) => Err(kind.into()),
            Some(Fault::CrashShort) if writes => {
                self.stopped = true;
                Ok(Go::Half(io::ErrorKind::Other))
            }
            Some(Fault::Crash | Fault::CrashShort) => {
                self.stopped = true;
                Err(stopped())
            }
        }
    }

    fn broken(&self, path: &Path) -> io::Result<()> {
        match &self.broken {
            Some((below, kind)) if path.starts_with(below) => Err((*kind).into()),
            _ => Ok(()),
        }
    }

    fn look(&mut self, path: &Path) -> io::Result<()> {
        if self.stopped {
            return Err(stopped());
        }
        let number = self.looks;
        self.looks += 1;
        let planned = self.look_fault.filter(|(at, _)| *at == number).map(|(_, kind)| kind);
        self.broken(path)?;
        planned.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl FaultyVfs {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        Self { inner, memory: None, plan: Arc::default() }
    }

    /// Wraps a disk in memory, which can also lose what a sync has failed to make durable.
    pub fn on_memory(disk: MemVfs) -> Self {
        Self { memory: Some(disk.clone()), ..Self::new(Arc::new(disk)) }
    }

    /// Looks so far.
    pub fn look_count(&self) -> u64 {
        self.plan.lock().looks
    }

    /// Makes look number `look` fail, counted from the making of this file system.
    pub fn fail_look_at(&self, look: u64, kind: io::ErrorKind) {
        self.plan.lock().look_fault = Some((look, kind));
    }

    /// From now on every call fails with this error, or none does.
    pub fn set_broken(&self, kind: Option<io::ErrorKind>) {
        self.plan.lock().broken = kind.map(|kind| (PathBuf::new(), kind));
    }

    /// From now on every call on something at or below `path` fails with this error.
    pub fn break_below(&self, path: &Path, kind: io::ErrorKind) {
        self.plan.lock().broken = Some((path.to_path_buf(), kind));
    }

    /// From now on reads of this file fail with this error, until another file takes its name or it is written to, which gives
    /// it another sector.
    pub fn make_unreadable(&self, path: &Path, kind: io::ErrorKind) {
        self.plan.lock().unreadable.insert(path.to_path_buf(), kind);
    }

    /// From now on every step on something at or below `path` finds no space, or none does.
    pub fn set_full_below(&self, path: Option<&Path>) {
        self.plan.lock().full_below = path.map(Path::to_path_buf);
    }

    /// From now on every step fails with `ReadOnlyFilesystem`, as after a file system has remounted itself, or none does.
    pub fn set_read_only(&self, read_only: bool) {
        self.plan.lock().read_only_from = read_only.then_some(0);
    }

    /// As [`FaultyVfs::set_read_only`] from step number `step` on.
    pub fn read_only_from(&self, step: u64) {
        self.plan.lock().read_only_from = Some(step);
    }

    /// Steps so far.
    pub fn step_count(&self) -> u64 {
        self.plan.lock().count
    }

    /// Makes step number `step` fail, counted from the making of this file system.
    pub fn fail_at(&self, step: u64, fault: Fault) {
        self.plan.lock().fault = Some((step, fault));
    }

    /// Makes the `n`-th step from now fail, 0 being the next.
    pub fn fail_after(&self, n: u64, fault: Fault) {
        let mut plan = self.plan.lock();
        plan.fault = Some((plan.count + n, fault));
    }

    /// Stops the machine now: every later call fails.
    pub fn stop(&self) {
        self.plan.lock().stopped = true;
    }

    /// Whether a fault has stopped the machine.
    pub fn is_stopped(&self) -> bool {
        self.plan.lock().stopped
    }

    /// From now on `sync_data` answers `Ok` and makes nothing durable, or is honest again.
    pub fn set_syncs_lie(&self, lie: bool) {
        self.plan.lock().syncs_lie = lie;
    }

    /// From now on steps are remembered for `steps`.
    pub fn record(&self) {
        self.plan.lock().record = true;
    }

    /// The steps since `record`.
    pub fn steps(&self) -> Vec<Step> {
        self.plan.lock().done.clone()
    }

    fn step(&self, kind: StepKind, path: &Path) -> io::Result<()> {
        match self.plan.lock().step(kind, path)? {
            Go::Whole => Ok(()),
            Go::Half(error) | Go::Forget(error) => Err(error.into()),
        }
    }

    fn look(&self, path: &Path) -> io::Result<()> {
        self.plan.lock().look(path)
    }
}

impl Vfs for FaultyVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let creates = match mode {
            OpenMode::Read | OpenMode::ReadWrite => false,
            OpenMode::Create => !self.inner.exists(path)?,
            OpenMode::CreateNew | OpenMode::CreatePrivate => true,
        };
        if creates {
            self.step(StepKind::Create, path)?;
        } else {
            self.look(path)?;
        }
        let inner = self.inner.open(path, mode)?;
        let (memory, plan) = (self.memory.clone(), Arc::clone(&self.plan));
        Ok(Box::new(FaultyFile { inner, memory, plan, path: path.to_path_buf() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step(StepKind::CreateDir, path)?;
        self.inner.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.look(path)?;
        self.inner.read_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(StepKind::Rename, from)?;
        self.inner.rename(from, to)?;
        let mut plan = self.plan.lock();
        match plan.unreadable.remove(from) {
            Some(kind) => plan.unreadable.insert(to.to_path_buf(), kind),
            None => plan.unreadable.remove(to),
        };
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(StepKind::Remove, path)?;
        self.plan.lock().unreadable.remove(path);
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step(StepKind::Remove, path)?;
        self.inner.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(StepKind::SyncDir, path)?;
        self.inner.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.look(path)?;
        self.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        if self.inner.exists(path)? {
            self.look(path)?;
        } else {
            self.step(StepKind::Create, path)?;
        }
        self.inner.lock(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.look(dir)?;
        self.inner.free_space(dir)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn File>,
    memory: Option<MemVfs>,
    plan: Arc<Mutex<Plan>>,
    path: PathBuf,
}

impl FaultyFile {
    fn step(&self, kind: StepKind) -> io::Result<Go> {
        self.plan.lock().step(kind, &self.path)
    }

    fn look(&self) -> io::Result<()> {
        self.plan.lock().look(&self.path)
    }
}

impl File for FaultyFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.look()?;
        if let Some(kind) = self.plan.lock().unreadable.get(&self.path) {
            return Err((*kind).into());
        }
        self.inner.read_at(offset, len)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.step(StepKind::Write { offset, len: data.len() })? {
            Go::Whole => {
                self.plan.lock().unreadable.remove(&self.path);
                self.inner.write_at(offset, data)
            }
            Go::Half(error) => {
                self.inner.write_at(offset, &data[..data.len() / 2])?;
                Err(error.into())
            }
            Go::Forget(error) => Err(error.into()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.look()?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(StepKind::SetLength { len })?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.step(StepKind::Sync)? {
            Go::Whole => {}
            Go::Half(error) => return Err(error.into()),
            Go::Forget(error) => {
                self.memory.as_ref().expect("a lost sync is planned on memory only").lose_next_sync();
                return self.inner.sync_data().map_err(|_| error.into());
            }
        }
        if self.plan.lock().syncs_lie {
            return Ok(());
        }
        self.inner.sync_data()
    }
}
