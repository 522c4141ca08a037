//! Staging and reading go on while a sync takes its time; readers never see a cut half done.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alhambra_ledger::ids::{LogId, LogIndex};
use alhambra_storage::segment::{Frame, Ledger};
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{File, FileKind, LockGuard, OpenMode, Vfs};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::ledger_support::*;

/// A test that hangs fails after this long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Lets syncs through one by one, or all.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    shut: bool,
    waiting: usize,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.shut {
            assert!(!self.changed.wait_for(&mut state, DEADLINE).timed_out(), "nobody opened the gate");
        }
        state.waiting -= 1;
    }

    fn shut(&self) {
        self.state.lock().shut = true;
    }

    fn open(&self) {
        self.state.lock().shut = false;
        self.changed.notify_all();
    }

    fn wait_for_one(&self) {
        let mut state = self.state.lock();
        while state.waiting == 0 {
            assert!(!self.changed.wait_for(&mut state, DEADLINE).timed_out(), "nobody came to the gate");
        }
    }
}

/// A disk whose `sync_data` passes a gate.
#[derive(Debug)]
struct GatedVfs {
    inner: MemVfs,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct GatedFile {
    inner: Box<dyn File>,
    gate: Arc<Gate>,
}

impl Vfs for GatedVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        Ok(Box::new(GatedFile { inner: self.inner.open(path, mode)?, gate: Arc::clone(&self.gate) }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.inner.read_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
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

impl File for GatedFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.inner.read_at(offset, len)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, data)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass();
        self.inner.sync_data()
    }
}

#[test]
fn staging_and_reading_do_not_wait_for_a_sync() {
    let gate = Arc::new(Gate::default());
    let vfs: Arc<dyn Vfs> = Arc::new(GatedVfs { inner: MemVfs::new(), gate: Arc::clone(&gate) });
    // No tail cache: what is flushed is evicted at once, what is not must stay.
    let (ledger, _) = open_with(&vfs, 1000, None, 0).unwrap();
    let ledger = Arc::new(ledger);
    ledger.stage(&frames(1, 0..20, 75)).unwrap();
    ledger.flush().unwrap();

    gate.shut();
    ledger.stage(&frames(1, 20..35, 75)).unwrap();
    let (told, flushed) = mpsc::channel();
    let flusher = {
        let ledger = Arc::clone(&ledger);
        thread::spawn(move || told.send(ledger.flush().unwrap()).unwrap())
    };
    gate.wait_for_one();
    // All of this in the middle of the flush, with a frame that rolls to a further segment.
    ledger.stage(&frames(1, 35..60, 75)).unwrap();
    let all = frames(1, 0..60, 75);
    assert_eq!(read_all(&ledger, 700).unwrap(), with_positions(&all));
    assert_eq!(ledger.log_id(LogIndex(59)).unwrap(), Some(LogId::new(1, 59)));
    assert_eq!(ledger.read_bytes(ledger.position(LogIndex(30)).unwrap().unwrap(), 100).unwrap().len(), 100);
    assert_eq!(ledger.segments().len(), 6);
    assert_eq!(ledger.flushed(), Some(LogId::new(1, 19)), "nothing is durable before the sync returns");
    assert!(flushed.try_recv().is_err());
    gate.open();
    assert_eq!(
        flushed.recv_timeout(DEADLINE).unwrap(),
        Some(LogId::new(1, 34)),
        "through what was staged at its start"
    );
    flusher.join().unwrap();

    assert_eq!(ledger.flushed(), Some(LogId::new(1, 34)));
    assert_eq!(read_all(&ledger, 700).unwrap(), with_positions(&all), "what is not flushed was not evicted");
    assert_eq!(ledger.flush().unwrap(), Some(LogId::new(1, 59)));
    assert_eq!(read_all(&ledger, 700).unwrap(), with_positions(&all));
}

#[test]
fn readers_see_either_side_of_a_cut() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let (ledger, _) = open_with(&vfs, 600, None, 0).unwrap();
    let ledger = Arc::new(ledger);
    let stop = Arc::new(AtomicBool::new(false));
    let kept = frames(1, 0..10, 60);
    ledger.stage(&kept).unwrap();
    ledger.flush().unwrap();

    let longest = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..3)
        .map(|reader| {
            let (ledger, stop, longest, kept) =
                (Arc::clone(&ledger), Arc::clone(&stop), Arc::clone(&longest), kept.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    longest.fetch_max(judge_one_read(&ledger, &kept, reader), Ordering::Relaxed);
                }
            })
        })
        .collect();
    // Until the readers have surely been at it.
    let mut rounds = 0;
    while rounds < 150 || longest.load(Ordering::Relaxed) <= kept.len() {
        assert!(rounds < 1_000_000, "the readers never saw more than what is always there");
        ledger.stage(&frames(2 + rounds, 10..30, 60)).unwrap();
        ledger.flush().unwrap();
        ledger.truncate_after(Some(LogIndex(9))).unwrap();
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&kept));
}

/// One read: the frames that are always there, then frames of a single round. Returns how far it reached.
fn judge_one_read(ledger: &Ledger, kept: &[Frame], from: usize) -> usize {
    let found = ledger.read(LogIndex(from as u64), LogIndex(u64::MAX), 1 << 20).unwrap();
    let found: Vec<Frame> = found.into_iter().map(|(_, frame)| frame).collect();
    let (before, after) = found.split_at(kept.len() - from);
    assert_eq!(before, &kept[from..]);
    if let Some(first) = after.first() {
        let term = first.log_id.term.0;
        assert_eq!(after, frames(term, 10..10 + after.len() as u64, 60));
    }
    from + found.len()
}
