//! What a durable commit costs above the disk: replicas in one process, real files and threads, calls instead of a network.
//!
//! `cargo bench -p alhambra-raft --bench commit -- [replicas] [seconds]`. The first line is the floor: one small write and
//! one sync of a file on the same disk, alone.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::{DatabaseId, GroupId};
use alhambra_raft::env::{Env, OsRng, StrandPool, SystemClock, TcpNet};
use alhambra_raft::error::{ProposeError, ReadError};
use alhambra_raft::forward::{Forward, ForwardError, ReadIndex, Written};
use alhambra_raft::group::{Group, GroupSpec, Level, Tuning};
use alhambra_raft::snapshot::SnapshotData;
use alhambra_raft::types::{RaftVote, TypeConfig};
use alhambra_storage::command::{ProposalEntry, Settings, TxProposal};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::{OpenMode, Vfs as _};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::network::v2::RaftNetworkV2;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{BasicNode, RaftNetworkFactory};
use parking_lot::RwLock;
use tokio::time::Instant;

type Nodes = Arc<RwLock<BTreeMap<u64, Arc<Group>>>>;

#[derive(Clone)]
struct Calls {
    nodes: Nodes,
    to: u64,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("calls")
    }
}

impl Calls {
    fn group(&self) -> Result<Arc<Group>, Unreachable<TypeConfig>> {
        self.nodes.read().get(&self.to).cloned().ok_or_else(|| Unreachable::from_string("not started"))
    }
}

fn broken(e: impl std::fmt::Display) -> Unreachable<TypeConfig> {
    Unreachable::from_string(e)
}

impl RaftNetworkFactory<TypeConfig> for Calls {
    type Network = Self;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Self {
        Self { nodes: self.nodes.clone(), to: target }
    }
}

impl RaftNetworkV2<TypeConfig> for Calls {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.group()?.raft().append_entries(rpc).await.map_err(broken)?)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let group = self.group()?;
            let (answers, receiver) = tokio::sync::mpsc::channel(64);
            tokio::spawn(async move {
                let mut stream = std::pin::pin!(group.stream_append(input).await);
                while let Some(answer) = stream.next().await {
                    if answers.send(answer.map_err(|e| broken(e).into())).await.is_err() {
                        return;
                    }
                }
            });
            Ok(tokio_stream::wrappers::ReceiverStream::new(receiver).boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.group()?.raft().vote(rpc).await.map_err(broken)?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.group()?.raft().pre_vote(rpc).await.map_err(broken)?)
    }

    async fn full_snapshot(
        &mut self,
        _vote: RaftVote,
        _snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(broken("nobody is far behind").into())
    }
}

impl Forward for Calls {
    fn forward_propose(
        &self,
        _group: GroupId,
        leader: u64,
        proposal: TxProposal,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Written, ForwardError<ProposeError>>> {
        let group = self.nodes.read()[&leader].clone();
        Box::pin(async move { group.serve_propose(proposal, deadline).await.map_err(ForwardError::Remote) })
    }

    fn forward_read_index(
        &self,
        _group: GroupId,
        leader: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<ReadIndex, ForwardError<ReadError>>> {
        let group = self.nodes.read()[&leader].clone();
        Box::pin(async move { group.serve_read_index(deadline).await.map_err(ForwardError::Remote) })
    }
}

fn proposal(n: u64) -> TxProposal {
    let entry =
        ProposalEntry::plain(format!("\0key-{n:012}").into_bytes().into(), Bytes::new(), Bytes::from(vec![b'v'; 128]));
    TxProposal { entries: vec![entry], ..TxProposal::default() }
}

/// Median and 99th of 100, microseconds.
fn percentiles(mut times: Vec<Duration>) -> (u128, u128) {
    times.sort_unstable();
    let at = |p: usize| times[(times.len() - 1) * p / 100].as_micros();
    (at(50), at(99))
}

/// Calls `work` from `clients` tasks for `seconds`; answers all times.
async fn load<F, W>(clients: u64, seconds: u64, work: W) -> Vec<Duration>
where
    F: Future<Output = ()> + Send,
    W: Fn(u64) -> F + Clone + Send + 'static,
{
    let counter = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (counter, work) = (counter.clone(), work.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < end {
                    let began = Instant::now();
                    work(counter.fetch_add(1, Ordering::Relaxed)).await;
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("no client panics"));
    }
    all
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let replicas = arguments.next().unwrap_or(3);
    let seconds = arguments.next().unwrap_or(3);
    let dir = tempfile::Builder::new().prefix("alhambra-bench").tempdir_in(".").expect("a folder can be made here");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be started");
    runtime.block_on(run(replicas, seconds, dir.path().to_path_buf()));
}

async fn run(replicas: u64, seconds: u64, dir: PathBuf) {
    let file = OsVfs.open(&dir.join("floor"), OpenMode::Create).expect("a file can be made here");
    // As segments are: space that has been written before.
    file.write_at(0, &[0; 1 << 17]).expect("space");
    file.sync_data().expect("sync");
    let mut floor = Vec::new();
    for n in 0..300_u64 {
        let began = Instant::now();
        file.write_at(n * 256, &[7; 256]).expect("write");
        file.sync_data().expect("sync");
        floor.push(began.elapsed());
    }
    let (p50, p99) = percentiles(floor);
    println!("write and sync alone: p50 {p50} us, p99 {p99} us");

    let nodes = Nodes::default();
    for id in 1..=replicas {
        let env = Env {
            vfs: Arc::new(OsVfs),
            clock: Arc::new(SystemClock),
            rng: Arc::new(OsRng),
            executor: Arc::new(StrandPool::new(4)),
            net: Arc::new(TcpNet),
        };
        let spec = GroupSpec {
            group: GroupId(1),
            name: "bench".to_owned(),
            database: DatabaseId([1; 16]),
            segment_bytes: 64 << 20,
            settings: Settings::DEFAULT,
            dir: dir.join(id.to_string()),
            node_id: id,
            first_members: BTreeMap::new(),
            settled: BTreeMap::new(),
        };
        let calls = Calls { nodes: nodes.clone(), to: id };
        let group = Group::start(env, spec, Tuning::default(), calls.clone(), Arc::new(calls)).await;
        nodes.write().insert(id, group.expect("a new group starts"));
    }
    let group = |id: u64| nodes.read()[&id].clone();
    let members = (1..=replicas).map(|id| (id, BasicNode::new(""))).collect();
    group(1).initialize(members).await.expect("a new group is initialised");
    let deadline = || Instant::now() + Duration::from_secs(10);
    group(1).propose(proposal(u64::MAX), deadline()).await.expect("the group serves");
    let leader = group(1).leader().expect("it served");

    for (name, id) in [("leader", leader), ("follower", leader % replicas + 1)] {
        for clients in [1, 10, 100] {
            let node = group(id);
            let before = node.status().last_log.expect("entries").index.get();
            let times = load(clients, seconds, move |n| {
                let node = node.clone();
                async move {
                    node.propose(proposal(n), deadline()).await.expect("commits");
                }
            })
            .await;
            let count = times.len() as u64;
            let entries = group(id).status().last_log.expect("entries").index.get() - before;
            let (p50, p99) = percentiles(times);
            let rate = count / seconds;
            println!(
                "commit, {clients} clients at the {name}: p50 {p50} us, p99 {p99} us, {rate} per s, {} per log entry",
                count / entries.max(1)
            );
        }
        for clients in [1, 10] {
            let node = group(id);
            let times = load(clients, seconds, move |_| {
                let node = node.clone();
                async move {
                    node.barrier(Level::Linearizable, deadline()).await.expect("reads");
                }
            })
            .await;
            let rate = times.len() as u64 / seconds;
            let (p50, p99) = percentiles(times);
            println!("read barrier, {clients} clients at the {name}: p50 {p50} us, p99 {p99} us, {rate} per s");
        }
    }
}
