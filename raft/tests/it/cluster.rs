//! Several replicas of one group in one process: disks that can lose power, links that can be cut, disks that take time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::{DatabaseId, GroupId, TxId};
use alhambra_raft::env::{BoxIo, Clock, Env, Executor, Listener, Net, Rng};
use alhambra_raft::error::{GroupError, MembershipError, ProposeError, ReadError};
use alhambra_raft::forward::{Forward, ForwardError, ReadIndex, SegmentPart, Written};
use alhambra_raft::group::{Group, GroupSpec, Level, ReadPoint, Tuning};
use alhambra_raft::mending::{Mending, mend};
use alhambra_raft::snapshot::SnapshotData;
use alhambra_raft::types::{RaftVote, TypeConfig};
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{ProposalEntry, Settings, TxProposal};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{File, FileKind, LockGuard, OpenMode, Vfs};
use alhambra_storage::{SegmentVersion, SegmentVote};
use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::network::v2::RaftNetworkV2;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{BasicNode, RaftNetworkFactory};
use parking_lot::Mutex;
use tokio::time::Instant;

pub const DATABASE: DatabaseId = DatabaseId(*b"0123456789abcdef");

/// Time that a message takes.
const LINK: Duration = Duration::from_millis(1);
/// Time that a job on a disk takes.
const DISK: Duration = Duration::from_millis(2);
/// Bytes of a snapshot in one message.
const CHUNK: u64 = 1000;

/// Runs a test on one thread in virtual time.
pub fn run<F: Future>(test: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Whom tokio wakes first when several wait for one thing is drawn: from this seed, not from the machine.
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(b"replicas"));
    builder.enable_time().start_paused(true).build().unwrap().block_on(test)
}

/// The time in `ms` from now.
pub fn after(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// Waits until a condition holds; says what was waited for when it does not within 60 s of virtual time.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = after(60_000);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Debug)]
struct TestClock(Instant);

impl Clock for TestClock {
    fn now_unix_ms(&self) -> i64 {
        1_767_225_600_000 + i64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

#[derive(Debug)]
struct TestRng(AtomicU64);

impl Rng for TestRng {
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes()[..chunk.len()]);
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Each job of a strand takes [`DISK`], so that appends gather behind a sync as they do on a real disk; while it is held,
/// jobs that have not begun do not begin.
#[derive(Debug)]
struct SlowDisk {
    strands: Mutex<BTreeMap<u64, tokio::sync::mpsc::UnboundedSender<Job>>>,
    held: tokio::sync::watch::Sender<bool>,
}

impl Executor for SlowDisk {
    fn submit(&self, strand: u64, job: Job) {
        let mut strands = self.strands.lock();
        let sender = strands.entry(strand).or_insert_with(|| {
            let (sender, mut jobs) = tokio::sync::mpsc::unbounded_channel::<Job>();
            let mut held = self.held.subscribe();
            tokio::spawn(async move {
                while let Some(job) = jobs.recv().await {
                    tokio::time::sleep(DISK).await;
                    if held.wait_for(|held| !held).await.is_err() {
                        return;
                    }
                    job();
                }
            });
            sender
        });
        assert!(sender.send(job).is_ok(), "a strand runs for as long as the test");
    }
}

#[derive(Debug)]
struct InlineDisk;

impl Executor for InlineDisk {
    fn submit(&self, _strand: u64, job: Job) {
        job();
    }
}

#[derive(Debug)]
struct NoNet;

impl Net for NoNet {
    fn listen<'a>(&'a self, _addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
    fn connect<'a>(&'a self, _addr: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}

/// A disk as one run of a process sees it: after the crash its calls fail, even those that open anew.
#[derive(Debug)]
pub struct BootVfs {
    disk: MemVfs,
    state: Arc<DiskState>,
}

#[derive(Debug, Default)]
struct DiskState {
    /// Every call is refused.
    down: AtomicBool,
    /// Syncs of segments answer at once and do nothing.
    lies: AtomicBool,
}

impl DiskState {
    fn up(&self) -> io::Result<()> {
        if self.down.load(Ordering::Relaxed) { Err(io::Error::other("the machine is down")) } else { Ok(()) }
    }
}

#[derive(Debug)]
struct BootFile {
    file: Box<dyn File>,
    segment: bool,
    state: Arc<DiskState>,
}

impl File for BootFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.state.up()?;
        self.file.read_at(offset, len)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state.up()?;
        self.file.write_at(offset, data)
    }
    fn len(&self) -> io::Result<u64> {
        self.state.up()?;
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state.up()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.state.up()?;
        // Votes and checkpoints are kept, so that what is missed is the log alone.
        if self.segment && self.state.lies.load(Ordering::Relaxed) { Ok(()) } else { self.file.sync_data() }
    }
}

impl BootVfs {
    fn up(&self) -> io::Result<&MemVfs> {
        self.state.up().map(|()| &self.disk)
    }
}

impl Vfs for BootVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let file = self.up()?.open(path, mode)?;
        let segment = path.extension().is_some_and(|extension| extension == "seg");
        Ok(Box::new(BootFile { file, segment, state: self.state.clone() }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.up()?.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.up()?.read_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.up()?.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.up()?.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.up()?.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.up()?.sync_dir(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.up()?.exists(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.up()?.lock(path)
    }
    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.up()?.free_space(dir)
    }
}

/// Who is up, and which links are cut. A cut link loses messages silently; a node that is down refuses them.
#[derive(Default)]
pub struct Board {
    nodes: BTreeMap<u64, Arc<Group>>,
    cut: BTreeSet<(u64, u64)>,
    /// Answers to forwarded proposals that still get lost.
    lose_answers: u32,
    /// Snapshots that reached a node.
    pub snapshots: u32,
    /// Parts of segments that still get a wrong byte on their way.
    pub spoil_parts: u32,
}

#[derive(Clone, Default)]
pub struct Switch(pub Arc<Mutex<Board>>);

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("switch")
    }
}

enum NoWay {
    Down,
    Lost,
}

impl Switch {
    async fn carry(&self, from: u64, to: u64) -> Result<Arc<Group>, NoWay> {
        tokio::time::sleep(LINK).await;
        let board = self.0.lock();
        if board.cut.contains(&(from, to)) {
            return Err(NoWay::Lost);
        }
        board.nodes.get(&to).cloned().ok_or(NoWay::Down)
    }

    async fn raft_way(&self, from: u64, to: u64, ttl: Duration) -> Result<Arc<Group>, Unreachable<TypeConfig>> {
        match self.carry(from, to).await {
            Ok(group) => Ok(group),
            Err(NoWay::Down) => Err(unreachable("down")),
            Err(NoWay::Lost) => {
                tokio::time::sleep(ttl).await;
                Err(unreachable("no answer"))
            }
        }
    }
}

fn unreachable(why: &str) -> Unreachable<TypeConfig> {
    Unreachable::from_string(why)
}

/// The links of one node.
#[derive(Clone, Debug)]
struct Links {
    from: u64,
    switch: Switch,
}

struct Link {
    from: u64,
    to: u64,
    switch: Switch,
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Link {
        Link { from: self.from, to: target, switch: self.switch.clone() }
    }
}

impl Link {
    async fn call<T, E: std::error::Error + 'static>(
        &self,
        option: RPCOption,
        call: impl AsyncFnOnce(Arc<Group>) -> Result<T, E>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let ttl = option.soft_ttl();
        let group = self.switch.raft_way(self.from, self.to, ttl).await?;
        // The core of a replica that went down meanwhile never answers.
        let answer = tokio::time::timeout(ttl, call(group)).await.map_err(|_| unreachable("no answer"))?;
        let answer = answer.map_err(|e| unreachable(&e.to_string()))?;
        self.switch.raft_way(self.to, self.from, ttl).await?;
        Ok(answer)
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(option, async |group| group.raft().append_entries(rpc).await).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(option, async |group| group.raft().vote(rpc).await).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(option, async |group| group.raft().pre_vote(rpc).await).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(option, async |group| group.raft().handle_transfer_leader(rpc).await).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let ttl = option.soft_ttl().min(Duration::from_secs(1));
        let SnapshotData::Here(source) = &snapshot.snapshot else { panic!("a leader sends its own files") };
        let group = self.switch.raft_way(self.from, self.to, ttl).await?;
        let broken = |e: &dyn std::error::Error| unreachable(&e.to_string());
        let mut sink = group.snapshot_sink(source.manifest()).map_err(|e| broken(&e))?;
        for file in sink.files() {
            let mut offset = 0;
            while offset < file.len {
                self.switch.raft_way(self.from, self.to, ttl).await?;
                let len = CHUNK.min(file.len - offset);
                let bytes = source.read(&file.name, offset, len as usize).map_err(|e| broken(&e))?;
                sink.write(&file.name, offset, &bytes).map_err(|e| broken(&e))?;
                offset += len;
            }
        }
        let data = sink.finish().map_err(|e| broken(&e))?;
        let received = openraft::Snapshot { meta: snapshot.meta, snapshot: data };
        let answer = group.raft().install_full_snapshot(vote, received).await.map_err(|e| broken(&e))?;
        self.switch.0.lock().snapshots += 1;
        Ok(answer)
    }
}

impl Forward for Links {
    fn forward_propose(
        &self,
        _group: GroupId,
        leader: u64,
        proposal: TxProposal,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Written, ForwardError<ProposeError>>> {
        Box::pin(async move {
            let group = self.way(leader, deadline).await?;
            let answer = group.serve_propose(proposal, deadline).await.map_err(ForwardError::Remote);
            if std::mem::take(&mut self.switch.0.lock().lose_answers) > 0 {
                return Err(ForwardError::AnswerLost);
            }
            self.back(leader, deadline).await?;
            answer
        })
    }

    fn forward_read_index(
        &self,
        _group: GroupId,
        leader: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<ReadIndex, ForwardError<ReadError>>> {
        Box::pin(async move {
            let group = self.way(leader, deadline).await?;
            let answer = group.serve_read_index(deadline).await.map_err(ForwardError::Remote);
            self.back(leader, deadline).await?;
            answer
        })
    }

    fn segment_vote(
        &self,
        _group: GroupId,
        node: u64,
        segment: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Option<SegmentVote>> {
        Box::pin(self.there_and_back(node, deadline, async move |group| group.serve_segment_vote(segment).await))
    }

    fn segment_part(
        &self,
        _group: GroupId,
        node: u64,
        part: SegmentPart,
        deadline: Instant,
    ) -> BoxFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            let whole = self.there_and_back(node, deadline, async move |group| group.serve_segment_part(part).await);
            let mut bytes = whole.await?.to_vec();
            let mut board = self.switch.0.lock();
            if board.spoil_parts > 0 {
                board.spoil_parts -= 1;
                let at = (bytes.len() / 2).min(60);
                bytes[at] ^= 0x10;
            }
            Some(bytes.into())
        })
    }
}

impl Links {
    async fn there_and_back<T>(
        &self,
        node: u64,
        deadline: Instant,
        call: impl AsyncFnOnce(Arc<Group>) -> Option<T>,
    ) -> Option<T> {
        let group = self.way::<()>(node, deadline).await.ok()?;
        let answer = call(group).await?;
        match self.switch.carry(node, self.from).await {
            // The node may ask before its own replica is open.
            Ok(_) | Err(NoWay::Down) => Some(answer),
            Err(NoWay::Lost) => {
                tokio::time::sleep_until(deadline).await;
                None
            }
        }
    }

    async fn way<E>(&self, to: u64, deadline: Instant) -> Result<Arc<Group>, ForwardError<E>> {
        match self.switch.carry(self.from, to).await {
            Ok(group) => Ok(group),
            Err(NoWay::Down) => Err(ForwardError::NotSent),
            Err(NoWay::Lost) => {
                tokio::time::sleep_until(deadline).await;
                Err(ForwardError::AnswerLost)
            }
        }
    }

    async fn back<E>(&self, from: u64, deadline: Instant) -> Result<(), ForwardError<E>> {
        match self.switch.carry(from, self.from).await {
            Ok(_) => Ok(()),
            Err(NoWay::Down) => Err(ForwardError::AnswerLost),
            Err(NoWay::Lost) => {
                tokio::time::sleep_until(deadline).await;
                Err(ForwardError::AnswerLost)
            }
        }
    }
}

struct Machine {
    disk: MemVfs,
    /// Whether the disk begins nothing.
    held: tokio::sync::watch::Sender<bool>,
    boot: Option<(Arc<BootVfs>, Arc<Group>)>,
}

/// Replicas of one group.
pub struct Cluster {
    pub switch: Switch,
    machines: BTreeMap<u64, Machine>,
    began: Instant,
    segment_bytes: u64,
    slow: bool,
    tuning: Tuning,
    settings: Settings,
    /// See [`GroupSpec`].
    pub first_members: BTreeMap<u64, String>,
    /// See [`GroupSpec`].
    pub settled: BTreeMap<u64, SegmentVersion>,
}

impl Cluster {
    /// Three voters that have elected a leader; disks take time.
    pub async fn three() -> Self {
        Self::formed(3, 64 << 20, true).await
    }

    /// Voters that have elected a leader.
    pub async fn formed(voters: u64, segment_bytes: u64, slow: bool) -> Self {
        Self::tuned(voters, segment_bytes, slow, Tuning::default()).await
    }

    /// The same, with other bounds.
    pub async fn tuned(voters: u64, segment_bytes: u64, slow: bool, tuning: Tuning) -> Self {
        Self::with_settings(voters, segment_bytes, slow, tuning, Settings::DEFAULT).await
    }

    /// The same, for a database with these settings.
    pub async fn with_settings(
        voters: u64,
        segment_bytes: u64,
        slow: bool,
        tuning: Tuning,
        settings: Settings,
    ) -> Self {
        let cluster = Self::unformed(voters, segment_bytes, slow, tuning, settings).await;
        let members = (1..=voters).map(|id| (id, node(id))).collect();
        cluster.group(1).initialize(members).await.unwrap();
        cluster.leader().await;
        cluster
    }

    /// Nodes that do not know of each other.
    pub async fn unformed(voters: u64, segment_bytes: u64, slow: bool, tuning: Tuning, settings: Settings) -> Self {
        let mut cluster = Self {
            switch: Switch::default(),
            machines: BTreeMap::new(),
            began: Instant::now(),
            segment_bytes,
            slow,
            tuning,
            settings,
            first_members: BTreeMap::new(),
            settled: BTreeMap::new(),
        };
        for id in 1..=voters {
            cluster.start(id).await;
        }
        cluster
    }

    /// Starts a node that is down or new.
    pub async fn start(&mut self, id: u64) {
        self.try_start(id).await.unwrap_or_else(|e| panic!("node {id} does not start: {e:?}"));
    }

    /// The same, for a node that may not start.
    pub async fn try_start(&mut self, id: u64) -> Result<(), GroupError> {
        self.machines.entry(id).or_insert_with(|| Machine {
            disk: MemVfs::new(),
            held: tokio::sync::watch::Sender::new(false),
            boot: None,
        });
        let (vfs, env) = self.env(id);
        let links = Links { from: id, switch: self.switch.clone() };
        let group = Group::start(env, self.spec(id), self.tuning.clone(), links.clone(), Arc::new(links)).await?;
        self.switch.0.lock().nodes.insert(id, group.clone());
        self.machines.get_mut(&id).unwrap().boot = Some((vfs, group));
        Ok(())
    }

    /// Tries to mend a segment of a node that is down from the others.
    pub async fn mend(&self, id: u64, segment: u64) -> Mending {
        let links = Links { from: id, switch: self.switch.clone() };
        let members = self.machines.keys().copied().collect();
        mend(&self.env(id).1, &self.spec(id), segment, &members, &links).await
    }

    fn spec(&self, id: u64) -> GroupSpec {
        GroupSpec {
            group: GroupId(1),
            name: "defaultdb".to_owned(),
            database: DATABASE,
            segment_bytes: self.segment_bytes,
            settings: self.settings.clone(),
            dir: PathBuf::from("/data/db"),
            node_id: id,
            first_members: self.first_members.clone(),
            settled: self.settled.clone(),
        }
    }

    /// What a node that is down starts with.
    fn env(&self, id: u64) -> (Arc<BootVfs>, Env) {
        let machine = &self.machines[&id];
        assert!(machine.boot.is_none(), "node {id} is up");
        let vfs = Arc::new(BootVfs { disk: machine.disk.clone(), state: Arc::default() });
        let slow = SlowDisk { strands: Mutex::default(), held: machine.held.clone() };
        let executor: Arc<dyn Executor> = if self.slow { Arc::new(slow) } else { Arc::new(InlineDisk) };
        let env = Env {
            vfs: vfs.clone(),
            clock: Arc::new(TestClock(self.began)),
            rng: Arc::new(TestRng(AtomicU64::new(id << 32 | u64::try_from(self.began.elapsed().as_millis()).unwrap()))),
            executor,
            net: Arc::new(NoNet),
        };
        (vfs, env)
    }

    /// The node goes down at once; what happens to its disk is said by `how`.
    pub async fn crash(&mut self, id: u64, how: Crash) {
        self.crash_all(&[id], how).await;
    }

    /// The nodes go down at the same moment.
    pub async fn crash_all(&mut self, ids: &[u64], how: Crash) {
        let mut gone = Vec::new();
        for id in ids {
            let machine = self.machines.get_mut(id).unwrap();
            let (vfs, group) = machine.boot.take().expect("the node is up");
            self.switch.0.lock().nodes.remove(id);
            vfs.state.down.store(true, Ordering::Relaxed);
            machine.disk.crash(how);
            gone.push(group);
        }
        // Frees the tasks; nothing reaches the disks any more.
        for group in gone {
            group.shutdown().await;
        }
    }

    /// The node stops in order.
    pub async fn stop(&mut self, id: u64) {
        let (_, group) = self.machines.get_mut(&id).unwrap().boot.take().expect("the node is up");
        self.switch.0.lock().nodes.remove(&id);
        group.shutdown().await;
        // The lock on the folder goes with the last handle.
        let database = Arc::downgrade(group.database());
        drop(group);
        until("the database is closed", || database.strong_count() == 0).await;
    }

    /// Cuts a node off from all others, or connects it again.
    pub fn isolate(&self, id: u64, cut: bool) {
        let mut board = self.switch.0.lock();
        for other in self.machines.keys().copied().filter(|other| *other != id) {
            for link in [(id, other), (other, id)] {
                if cut {
                    board.cut.insert(link)
                } else {
                    board.cut.remove(&link)
                };
            }
        }
    }

    /// From now on the node's disk says that it has synced segments and has not.
    pub fn let_disk_lie(&self, id: u64) {
        self.machines[&id].boot.as_ref().expect("the node is up").0.state.lies.store(true, Ordering::Relaxed);
    }

    /// Sets the length of a file of the database on the node's disk.
    pub fn cut_file(&self, id: u64, path: &str, len: u64) {
        let file = self.machines[&id].disk.open(&Path::new("/data/db").join(path), OpenMode::ReadWrite).unwrap();
        file.set_len(len).unwrap();
    }

    /// Inverts one byte of a file of the database.
    pub fn flip(&self, id: u64, path: &str, offset: u64) {
        let disk = &self.machines[&id].disk;
        let file = disk.open(&Path::new("/data/db").join(path), OpenMode::ReadWrite).unwrap();
        let byte = file.read_at(offset, 1).unwrap()[0];
        file.write_at(offset, &[!byte]).unwrap();
    }

    /// A file of the database as it is on the node's disk.
    pub fn read_file(&self, id: u64, path: &str) -> Vec<u8> {
        let file = self.machines[&id].disk.open(&Path::new("/data/db").join(path), OpenMode::Read).unwrap();
        file.read_at(0, usize::try_from(file.len().unwrap()).unwrap()).unwrap().to_vec()
    }

    /// Writes into a file of the database on the node's disk.
    pub fn write_file(&self, id: u64, path: &str, offset: u64, bytes: &[u8]) {
        let file = self.machines[&id].disk.open(&Path::new("/data/db").join(path), OpenMode::ReadWrite).unwrap();
        file.write_at(offset, bytes).unwrap();
    }

    /// Removes a file of the database from the node's disk.
    pub fn remove_file(&self, id: u64, path: &str) {
        self.machines[&id].disk.remove_file(&Path::new("/data/db").join(path)).unwrap();
    }

    /// The files of the node's ledger, by name.
    pub fn ledger_files(&self, id: u64) -> Vec<(PathBuf, Vec<u8>)> {
        let disk = &self.machines[&id].disk;
        let dir = Path::new("/data/db/ledger");
        let read = |name: String| {
            let file = disk.open(&dir.join(&name), OpenMode::Read).unwrap();
            (PathBuf::from(name), file.read_at(0, usize::try_from(file.len().unwrap()).unwrap()).unwrap().to_vec())
        };
        disk.read_dir(dir).unwrap().into_iter().map(|(name, _)| read(name)).collect()
    }

    /// From now on the node's disk refuses every call.
    pub fn break_disk(&self, id: u64) {
        self.machines[&id].boot.as_ref().expect("the node is up").0.state.down.store(true, Ordering::Relaxed);
    }

    /// From now on the node's disk begins nothing that it is asked, or goes on. Needs disks that take time.
    pub fn hold_disk(&self, id: u64, held: bool) {
        assert!(self.slow);
        self.machines[&id].held.send_replace(held);
    }

    /// From now on the node's disk has room for so many more bytes, or for any number.
    pub fn leave_room(&self, id: u64, bytes: Option<u64>) {
        let disk = &self.machines[&id].disk;
        disk.set_capacity(bytes.map(|bytes| disk.size_bytes() + bytes));
    }

    /// The answer to the next forwarded proposal gets lost after it was served.
    pub fn lose_next_answer(&self) {
        self.switch.0.lock().lose_answers = 1;
    }

    pub fn group(&self, id: u64) -> Arc<Group> {
        self.machines[&id].boot.as_ref().expect("the node is up").1.clone()
    }

    pub fn up(&self) -> Vec<u64> {
        self.machines.iter().filter(|(_, m)| m.boot.is_some()).map(|(id, _)| *id).collect()
    }

    /// The leader that a node which is up and connected sees itself to be.
    pub async fn leader(&self) -> u64 {
        self.leader_other_than(0).await
    }

    pub async fn leader_other_than(&self, old: u64) -> u64 {
        let find = || {
            let mut leaders: Vec<_> = self.up().into_iter().filter(|id| *id != old).collect();
            leaders.retain(|id| self.group(*id).is_leader() && self.group(*id).leader() == Some(*id));
            leaders.into_iter().max_by_key(|id| self.group(*id).status().term)
        };
        until("a leader", || find().is_some()).await;
        find().unwrap()
    }

    /// A node that is up and does not lead.
    pub async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        self.up().into_iter().find(|id| *id != leader).unwrap()
    }

    /// Waits until all nodes that are up have applied the same, and compares them (R2).
    pub async fn assert_equal(&self) {
        let nodes = self.up();
        let leader = self.group(self.leader().await);
        leader.barrier(Level::Linearizable, after(20_000)).await.unwrap();
        let alone = || {
            let goal = leader.status().last_log;
            nodes.iter().all(|id| self.group(*id).status().applied == goal)
        };
        until("all replicas applied everything", alone).await;
        let first = self.group(nodes[0]);
        for id in &nodes[1..] {
            let other = self.group(*id);
            assert_eq!(other.database().applied(), first.database().applied(), "nodes {} and {id}", nodes[0]);
            let (ours, theirs) = (segments(&first), segments(&other));
            assert_eq!(theirs.len(), ours.len(), "segments of nodes {} and {id}", nodes[0]);
            for (n, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                assert!(a == b, "segment {n} of nodes {} and {id} differs", nodes[0]);
            }
        }
    }
}

/// The frames of every segment, as they are read.
fn segments(group: &Group) -> Vec<Bytes> {
    let ledger = group.database().ledger();
    let mut out = Vec::new();
    for segment in ledger.segments() {
        let mut bytes = Vec::new();
        let mut index = segment.first_log_id.index;
        while index <= segment.last_log_id.index {
            let end = alhambra_ledger::ids::LogIndex(segment.last_log_id.index.get() + 1);
            for (position, frame) in ledger.read(index, end, 1 << 20).unwrap() {
                bytes.extend_from_slice(format!("{position:?} {frame:?};").as_bytes());
                index = frame.log_id.index.next().unwrap();
            }
        }
        out.push(bytes.into());
    }
    out
}

pub fn node(id: u64) -> BasicNode {
    BasicNode::new(format!("node-{id}:1"))
}

/// A proposal that sets one key.
pub fn set(key: &str, value: &str) -> TxProposal {
    let entry = ProposalEntry::plain(
        [b"\0".as_slice(), key.as_bytes()].concat().into(),
        Bytes::new(),
        [b"\0".as_slice(), value.as_bytes()].concat().into(),
    );
    TxProposal { entries: vec![entry], ..TxProposal::default() }
}

/// Sets one key and answers the transaction.
pub async fn put(group: &Group, key: &str, value: &str) -> Result<TxId, ProposeError> {
    match group.propose(set(key, value), after(10_000)).await? {
        Outcome::Committed { tx, .. } => Ok(tx),
        other => panic!("not committed: {other:?}"),
    }
}

/// What a linearizable read of one key sees.
pub async fn get(group: &Group, key: &str) -> Result<Option<String>, ReadError> {
    let point: ReadPoint = group.barrier(Level::Linearizable, after(10_000)).await?;
    assert!(point.tx <= group.database().applied().tx);
    Ok(peek(group, key))
}

/// What is applied here for one key.
pub fn peek(group: &Group, key: &str) -> Option<String> {
    let stored: Bytes = [b"\0".as_slice(), key.as_bytes()].concat().into();
    let version = group.database().snapshot().get(&stored).unwrap()?;
    let record = group.database().tx(version.tx).unwrap();
    let value = group.database().value(&record.entries[version.entry as usize]).unwrap();
    Some(String::from_utf8(value[1..].to_vec()).unwrap())
}

/// How many versions a key has here.
pub fn revisions(group: &Group, key: &str) -> u64 {
    let stored: Bytes = [b"\0".as_slice(), key.as_bytes()].concat().into();
    group.database().snapshot().revisions(&stored).unwrap()
}

/// The members' error must not be an unfinished one.
pub fn settled<T>(result: Result<T, MembershipError>) -> T {
    result.unwrap_or_else(|e| panic!("members: {e:?}"))
}
