//! A disk that lets a write wait: the one thread that answers calls goes on meanwhile.

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use alhambra_raft::env::Env;
use alhambra_raft::group::Level;
use alhambra_raft::groups::Groups;
use alhambra_raft::meta::DEFAULT_DATABASE;
use alhambra_storage::command::{ProposalEntry, TxProposal};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::{File, FileKind, LockGuard, OpenMode, Vfs};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::nodes::{Nodes, soon};

/// Anything that takes longer does not happen.
const LONG: Duration = Duration::from_secs(60);

/// Holds writes while it is shut.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is shut, and how many wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock();
        state.1 += 1;
        self.changed.notify_all();
        while state.0 {
            self.changed.wait(&mut state);
        }
        state.1 -= 1;
    }

    fn set_shut(&self, shut: bool) {
        self.state.lock().0 = shut;
        self.changed.notify_all();
    }

    /// Whether a write has come to it.
    fn wait_for_one(&self) -> bool {
        let mut state = self.state.lock();
        while state.1 == 0 {
            if self.changed.wait_for(&mut state, LONG).timed_out() {
                return false;
            }
        }
        true
    }
}

/// A disk on which writes of derived data pass a gate; those of the log do not.
#[derive(Debug)]
struct GatedVfs(Arc<Gate>);

#[derive(Debug)]
struct GatedFile(Box<dyn File>, Option<Arc<Gate>>);

impl Vfs for GatedVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let derived = ["tx", "commit", "aht", "index"];
        let of = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let gate = of.is_some_and(|of| derived.contains(&of)).then(|| self.0.clone());
        Ok(Box::new(GatedFile(OsVfs.open(path, mode)?, gate)))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        OsVfs.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        OsVfs.read_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsVfs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        OsVfs.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        OsVfs.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsVfs.sync_dir(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        OsVfs.exists(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        OsVfs.lock(path)
    }
    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        OsVfs.free_space(dir)
    }
}

impl File for GatedFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.0.read_at(offset, len)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(gate) = &self.1 {
            gate.pass();
        }
        self.0.write_at(offset, data)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// A transaction of so many entries, whose record is large.
fn wide(n: u64) -> TxProposal {
    let entry = |k: u64| {
        let key = [&[0][..], format!("{n}-{k}").as_bytes()].concat();
        ProposalEntry::plain(key.into(), Bytes::new(), Bytes::from_static(b"v"))
    };
    TxProposal { entries: (0..1000).map(entry).collect(), ..TxProposal::default() }
}

#[test]
fn a_write_of_derived_data_that_waits_for_the_disk_holds_no_call_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let gate = Arc::new(Gate::default());
    let nodes = Nodes::new(1, 1);
    let mut spec = nodes.spec(0);
    spec.peers.clear();
    let env = Env::production(Arc::new(GatedVfs(gate.clone())));
    let groups = runtime.block_on(async {
        let groups = Groups::start(env, spec).await.unwrap();
        assert!(groups.wait_ready(soon()).await, "{:?}", groups.ready());
        groups
    });
    let group = groups.group_by_name(DEFAULT_DATABASE).unwrap();
    gate.set_shut(true);
    let writes: Vec<_> = (0..40)
        .map(|n| {
            let group = group.clone();
            runtime.spawn(async move { group.propose(wide(n), soon()).await })
        })
        .collect();
    let waits = gate.wait_for_one();
    // This thread may wait: it is none of the runtime's.
    let (answer, answered) = mpsc::channel();
    let reader = group.clone();
    runtime.spawn(async move {
        let _ = answer.send(reader.barrier(Level::Linearizable, soon()).await);
    });
    let read = answered.recv_timeout(LONG / 4);
    gate.set_shut(false);
    assert!(waits, "so much is written after a while");
    assert!(matches!(read, Ok(Ok(_))), "a read waited for a write of the disk: {read:?}");
    runtime.block_on(async {
        for write in writes {
            write.await.unwrap().unwrap();
        }
        groups.shutdown(soon()).await;
    });
}
