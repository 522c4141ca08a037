//! Any file system, made to fail at a chosen step.
//!
//! A step is a call that changes something on the disk or makes it durable; steps are counted from 0 over all files.
//! Reads are not steps.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

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
    /// A write leaves its first half and returns `StorageFull`; any other step is as with `Error(StorageFull)`.
    ShortWrite,
    /// The machine stops before this step: it and every later call fail.
    Crash,
    /// The machine stops in the middle of this write; as `Crash` for any other step.
    CrashShort,
}

/// A file system around another one.
#[derive(Clone, Debug)]
pub struct FaultyVfs {
    inner: Arc<dyn Vfs>,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    done: Vec<Step>,
    record: bool,
    count: u64,
    fault: Option<(u64, Fault)>,
    stopped: bool,
    syncs_lie: bool,
}

/// What the caller of `Plan::step` is to do.
enum Go {
    Whole,
    Half(io::ErrorKind),
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
        let fault = self.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        let writes = matches!(kind, StepKind::Write { .. });
        if self.record {
            self.done.push(Step { kind, path: path.to_path_buf() });
        }
        match fault {
            None => Ok(Go::Whole),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::ShortWrite) if writes => Ok(Go::Half(io::ErrorKind::StorageFull)),
            Some(Fault::ShortWrite) => Err(io::ErrorKind::StorageFull.into()),
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
}

impl FaultyVfs {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        Self { inner, plan: Arc::default() }
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
            Go::Half(error) => Err(error.into()),
        }
    }

    fn look(&self) -> io::Result<()> {
        if self.plan.lock().stopped { Err(stopped()) } else { Ok(()) }
    }
}

impl Vfs for FaultyVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let creates = match mode {
            OpenMode::Read | OpenMode::ReadWrite => false,
            OpenMode::Create => !self.inner.exists(path)?,
            OpenMode::CreateNew => true,
        };
        if creates {
            self.step(StepKind::Create, path)?;
        } else {
            self.look()?;
        }
        let inner = self.inner.open(path, mode)?;
        Ok(Box::new(FaultyFile { inner, plan: Arc::clone(&self.plan), path: path.to_path_buf() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step(StepKind::CreateDir, path)?;
        self.inner.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.look()?;
        self.inner.read_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(StepKind::Rename, from)?;
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(StepKind::Remove, path)?;
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
        self.look()?;
        self.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        if self.inner.exists(path)? {
            self.look()?;
        } else {
            self.step(StepKind::Create, path)?;
        }
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn File>,
    plan: Arc<Mutex<Plan>>,
    path: PathBuf,
}

impl FaultyFile {
    fn step(&self, kind: StepKind) -> io::Result<Go> {
        self.plan.lock().step(kind, &self.path)
    }

    fn look(&self) -> io::Result<()> {
        if self.plan.lock().stopped { Err(stopped()) } else { Ok(()) }
    }
}

impl File for FaultyFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.look()?;
        self.inner.read_at(offset, len)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.step(StepKind::Write { offset, len: data.len() })? {
            Go::Whole => self.inner.write_at(offset, data),
            Go::Half(error) => {
                self.inner.write_at(offset, &data[..data.len() / 2])?;
                Err(error.into())
            }
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
        self.step(StepKind::Sync)?;
        if self.plan.lock().syncs_lie {
            return Ok(());
        }
        self.inner.sync_data()
    }
}
