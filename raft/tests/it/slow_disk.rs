//! A disk that lets a write wait: the one thread that answers calls goes on meanwhile, and what waits for the replica goes on
//! when that fails.

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use alhambra_raft::env::Env;
use alhambra_raft::error::ProposeError;
use alhambra_raft::group::Level;
use alhambra_raft::groups::Groups;
use alhambra_raft::meta::{DEFAULT_DATABASE, MetaError, SYSTEM_DATABASE};
use alhambra_storage::command::{ProposalEntry, TxProposal};
use alhambra_storage::vfs::faulty::FaultyVfs;
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::{File, FileKind, LockGuard, OpenMode, Vfs};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::cluster::until;
use crate::nodes::{Nodes, soon, user};

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

/// A disk on which some writes pass a gate.
#[derive(Debug)]
struct GatedVfs {
    gate: Arc<Gate>,
    inner: Arc<dyn Vfs>,
    is_gated: fn(&Path) -> bool,
}

#[derive(Debug)]
struct GatedFile(Box<dyn File>, Option<Arc<Gate>>);

impl Vfs for GatedVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let gate = (self.is_gated)(path).then(|| self.gate.clone());
        Ok(Box::new(GatedFile(self.inner.open(path, mode)?, gate)))
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

/// Whether it is a file of the folder of this name.
fn is_in(path: &Path, folder: &str) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|name| name == folder)
}

/// Not those of the log.
fn is_derived(path: &Path) -> bool {
    ["tx", "commit", "aht", "index"].into_iter().any(|folder| is_in(path, folder))
}

/// A transaction of so many entries, whose record is large.
fn wide(n: u64) -> TxProposal {
    let entry = |k: u64| {
        let key = [&[0][..], format!("{n}-{k}").as_bytes()].concat();
        ProposalEntry::plain(key.into(), Bytes::new(), Bytes::from_static(b"v"))
    };
    TxProposal { entries: (0..1000).map(entry).collect(), ..TxProposal::default() }
}

/// Three nodes that are ready, and of each the gate of its writes and its disk.
async fn three_gated(is_gated: fn(&Path) -> bool) -> (Nodes, Vec<(Arc<Gate>, FaultyVfs)>) {
    let mut nodes = Nodes::new(3, 3);
    let mut disks = Vec::new();
    for node in 0..3 {
        let (gate, faulty) = (Arc::new(Gate::default()), FaultyVfs::new(Arc::new(OsVfs)));
        let disk = GatedVfs { gate: gate.clone(), inner: Arc::new(faulty.clone()), is_gated };
        let groups = Groups::start(Env::production(Arc::new(disk)), nodes.spec(node)).await.unwrap();
        nodes.running.insert(node, groups);
        disks.push((gate, faulty));
    }
    nodes.ready().await;
    (nodes, disks)
}

#[test]
fn a_write_of_derived_data_that_waits_for_the_disk_holds_no_call_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let gate = Arc::new(Gate::default());
    let nodes = Nodes::new(1, 1);
    let mut spec = nodes.spec(0);
    spec.peers.clear();
    let disk = GatedVfs { gate: gate.clone(), inner: Arc::new(OsVfs), is_gated: is_derived };
    let env = Env::production(Arc::new(disk));
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

/// The others make a majority, so that it has applied what it has not flushed, and nobody writes any more when it has.
#[test]
fn what_a_leader_flushes_late_is_sealed_though_nobody_writes_any_more() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let is_gated = |path: &Path| is_in(path, "ledger") && path.iter().all(|name| name != SYSTEM_DATABASE);
        let (mut nodes, disks) = three_gated(is_gated).await;
        let group = |node: usize| nodes.running[&node].group_by_name(DEFAULT_DATABASE).unwrap();
        let leader = (0..3).find(|node| group(*node).is_leader()).unwrap();
        let (gate, _) = &disks[leader];
        gate.set_shut(true);
        let large = ProposalEntry::plain([0, 1].as_slice().into(), Bytes::new(), vec![7; 300_000].into());
        for _ in 0..8 {
            let proposal = TxProposal { entries: vec![large.clone()], ..TxProposal::default() };
            group(leader).propose(proposal, soon()).await.unwrap();
        }
        // It looks for seals at once, and twice a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(group(leader).is_leader());
        let segments = group(leader).database().ledger().segments();
        let closed: Vec<u64> = segments[..segments.len() - 1].iter().map(|segment| segment.number).collect();
        assert!(!closed.is_empty(), "{segments:?}");
        let is_sealed = |node: usize, segment: u64| group(node).database().seal(segment).unwrap().is_some();
        assert!(!is_sealed(leader, *closed.last().unwrap()), "it has flushed before");
        gate.set_shut(false);
        until("what is closed is sealed", || (0..3).all(|node| closed.iter().all(|segment| is_sealed(node, *segment))))
            .await;
        nodes.stop_all().await;
    });
}

/// The others record the change, and the replica of the node that was asked fails before it has it: the call holds nothing of that
/// replica while it waits, so that it can be opened again.
#[test]
fn a_change_of_systemdb_is_seen_once_the_replica_that_failed_meanwhile_is_open_again() {
    const STILL: Duration = Duration::from_millis(500);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let is_gated = |path: &Path| is_derived(path) && path.iter().any(|name| name == SYSTEM_DATABASE);
        let (mut nodes, disks) = three_gated(is_gated).await;
        let systemdb = |node: usize| nodes.running[&node].group_by_name(SYSTEM_DATABASE);
        let leader = (0..3).find(|node| systemdb(*node).is_some_and(|group| group.is_leader())).unwrap();
        let node = (leader + 1) % 3;
        let (meta, (gate, faulty)) = (nodes.running[&node].meta(), &disks[node]);
        gate.set_shut(true);
        // It stops to apply when much of what it has applied is not written: then it stands still, however far behind.
        let applied = || systemdb(node).unwrap().status().applied.unwrap().index.get();
        let mut writes = 0;
        loop {
            systemdb(leader).unwrap().propose(wide(writes), soon()).await.unwrap();
            writes += 1;
            let now = applied();
            if now + 20 <= writes {
                tokio::time::sleep(STILL).await;
                if applied() == now {
                    break;
                }
            }
        }
        let fail = async {
            until("the change is recorded", || nodes.running[&leader].meta().user("meanwhile").is_some()).await;
            assert!(meta.user("meanwhile").is_none(), "the gated node has applied it");
            faulty.break_below(&nodes.dir(node).join(SYSTEM_DATABASE), io::ErrorKind::Other);
            gate.set_shut(false);
            until("systemdb is closed", || systemdb(node).is_none()).await;
            faulty.set_broken(None);
        };
        let change = meta.put_user(user("meanwhile", "hash"), None, None, soon());
        let (changed, ()) = tokio::join!(change, fail);
        assert!(matches!(changed, Ok(_) | Err(MetaError::Propose(ProposeError::OutcomeUnknown))), "{changed:?}");
        until("the change is seen", || meta.user("meanwhile").is_some()).await;
        nodes.stop_all().await;
    });
}
