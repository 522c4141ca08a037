//! Raft messages to other nodes, over [`crate::link`]: openraft's network traits, and the one hop of proposals and reads.
//!
//! Replication is pipelined: appends of one stream are sent without waiting for the answers, arrive in order and are
//! answered in order. Every answer is awaited for a bounded time, because a lost one would otherwise hold up its
//! replication stream for ever.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use alhambra_storage::SegmentVote;
use alhambra_storage::command::{Prune, TxProposal};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::BasicNode;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::disk::{DiskReport, Disks};
use crate::envelope::{self, EnvelopeError, Fetch, Install, kind};
use crate::error::{ProposeError, ReadError};
use crate::forward::{Forward, ForwardError, ReadIndex, SegmentPart, Written};
use crate::link::{Lane, LinkError, Links, Refusal, Reply, Request, Sent};
use crate::snapshot::{SnapshotData, SnapshotSource};
use crate::types::{RaftVote, TypeConfig};

/// Appends of one stream under way; the answering side takes no more.
const APPENDS_IN_FLIGHT_MAX: usize = crate::link::SESSION_APPENDS_MAX;
/// Bytes of appends of one stream under way; one append may be larger.
const APPEND_BYTES_IN_FLIGHT_MAX: usize = 16 << 20;
/// An append is answered after the disk of the follower has synced, which may take long on a bad day.
const APPEND_ANSWER_WAIT: Duration = Duration::from_secs(3);
/// A snapshot is pulled by its receiver; a receiver that is gone is noticed by the link.
const INSTALL_WAIT: Duration = Duration::from_secs(3600);
/// Bodies from this size on do not travel on the small lane.
const SMALL_BODY_BYTES_MAX: usize = 64 << 10;
/// Waits of openraft before it tries an unreachable node again.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_millis(500);

type RpcError = RPCError<TypeConfig>;

/// What all groups of a node share: the links, and the snapshots that are being pulled from here.
pub struct Network {
    links: Arc<Links>,
    /// Replication streams and snapshot transfers, counted.
    numbers: AtomicU64,
    transfers: Mutex<BTreeMap<u64, Arc<dyn SnapshotSource>>>,
    disks: Disks,
    snapshots_sent: AtomicU64,
    snapshots_received: AtomicU64,
    snapshot_bytes_received: AtomicU64,
}

/// What a node has exchanged with the others since it joined them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// What went out on each lane.
    pub sent: [(Lane, Sent); 3],
    /// Raft snapshots that were offered to others.
    pub snapshots_sent: u64,
    /// Raft snapshots whose files came whole.
    pub snapshots_received: u64,
    /// Bytes of those files.
    pub snapshot_bytes_received: u64,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("links", &self.links).finish_non_exhaustive()
    }
}

impl Network {
    /// The network of one node.
    pub fn new(links: Arc<Links>) -> Arc<Self> {
        Arc::new(Self {
            links,
            numbers: AtomicU64::new(1),
            transfers: Mutex::default(),
            disks: Disks::default(),
            snapshots_sent: AtomicU64::new(0),
            snapshots_received: AtomicU64::new(0),
            snapshot_bytes_received: AtomicU64::new(0),
        })
    }

    /// A snapshot has come whole.
    pub fn snapshot_received(&self, bytes: u64) {
        self.snapshots_received.fetch_add(1, Ordering::Relaxed);
        self.snapshot_bytes_received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was exchanged so far.
    pub fn traffic(&self) -> Traffic {
        let [snapshots_sent, snapshots_received, snapshot_bytes_received] =
            [&self.snapshots_sent, &self.snapshots_received, &self.snapshot_bytes_received]
                .map(|count| count.load(Ordering::Relaxed));
        let sent = Lane::ALL.map(|lane| (lane, self.links.sent(lane)));
        Traffic { sent, snapshots_sent, snapshots_received, snapshot_bytes_received }
    }

    /// The links.
    pub fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// What the nodes have said about their disks.
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// Asks a node something on behalf of a group and waits for the answer.
    async fn ask(
        &self,
        node: u64,
        group: GroupId,
        (lane, kind): (Lane, u32),
        body: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, LinkError> {
        self.links.call(node, Request { lane, group, kind, session: 0, body }, deadline).await
    }

    /// Tells a node about the disk of this one and keeps what it answers about its own.
    pub async fn exchange_disk(&self, node: u64, own: DiskReport, deadline: Instant) {
        let body = envelope::encode_disk(&own);
        // A node that does not answer is not heard, which is all there is to do.
        if let Ok(answer) = self.ask(node, GroupId(0), (Lane::Small, kind::DISK), body, deadline).await
            && let Ok(Some(report)) = envelope::decode_disk_reply(&answer)
        {
            self.disks.note(node, report);
        }
    }

    /// Hands a call to the program above, on another node.
    pub async fn node_call(&self, node: u64, body: Bytes, deadline: Instant) -> Result<Bytes, LinkError> {
        self.ask(node, GroupId(0), (Lane::Small, kind::NODE), body, deadline).await
    }

    /// Whether a node has a group open; nothing when it does not answer by the deadline.
    pub async fn hosts(&self, node: u64, group: GroupId, deadline: Instant) -> Option<bool> {
        match self.ask(node, group, (Lane::Small, kind::HOSTS), Bytes::new(), deadline).await {
            Ok(_) => Some(true),
            Err(LinkError::Refused { refusal: Refusal::UnknownGroup, .. }) => Some(false),
            Err(_) => None,
        }
    }

    /// The network of one group.
    pub fn of_group(self: &Arc<Self>, group: GroupId) -> GroupNetwork {
        GroupNetwork { network: self.clone(), group }
    }

    /// Files that another node pulls.
    pub fn transfer(&self, number: u64) -> Option<Arc<dyn SnapshotSource>> {
        self.transfers.lock().get(&number).cloned()
    }

    /// Asks a node for a part of a file of the snapshot that it sends.
    pub async fn fetch(&self, from: u64, group: GroupId, fetch: &Fetch, deadline: Instant) -> Result<Bytes, LinkError> {
        self.ask(from, group, (Lane::Bulk, kind::FETCH), envelope::encode_fetch(fetch), deadline).await
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// openraft's factory of connections, for one group.
#[derive(Clone, Debug)]
pub struct GroupNetwork {
    network: Arc<Network>,
    group: GroupId,
}

impl RaftNetworkFactory<TypeConfig> for GroupNetwork {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> PeerNetwork {
        self.network.links.set_addr(target, &node.addr);
        PeerNetwork { network: self.network.clone(), group: self.group, target, heartbeats: false }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> PeerNetwork {
        self.network.links.set_addr(target, &node.addr);
        PeerNetwork { network: self.network.clone(), group: self.group, target, heartbeats: true }
    }
}

/// One group's way to one node.
#[derive(Clone, Debug)]
pub struct PeerNetwork {
    network: Arc<Network>,
    group: GroupId,
    target: u64,
    /// Heartbeats do not wait behind log entries.
    heartbeats: bool,
}

fn rpc_error(error: &LinkError) -> RpcError {
    if error.surely_not_done() {
        // openraft waits a little before it tries again.
        RPCError::Unreachable(Unreachable::new(error))
    } else {
        RPCError::Network(NetworkError::new(error))
    }
}

fn bad_answer(error: EnvelopeError) -> RpcError {
    RPCError::Unreachable(Unreachable::new(&error))
}

impl PeerNetwork {
    fn request(&self, lane: Lane, kind: u32, body: Bytes) -> Request {
        Request { lane, group: self.group, kind, session: 0, body }
    }

    async fn call(&self, lane: Lane, kind: u32, body: Bytes, wait: Duration) -> Result<Bytes, RpcError> {
        let request = self.request(lane, kind, body);
        self.network.links.call(self.target, request, Instant::now() + wait).await.map_err(|error| rpc_error(&error))
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let lane = if rpc.entries.is_empty() { Lane::Small } else { Lane::Append };
        let answer = self.call(lane, kind::HEARTBEAT, envelope::encode_append(rpc), option.soft_ttl()).await?;
        Ok(envelope::decode_append_reply(&answer).map_err(bad_answer)?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        if self.heartbeats {
            return openraft::network::stream_append_sequential(self, input, option);
        }
        let pipeline = Pipeline {
            peer: self.clone(),
            session: self.network.next_number(),
            wait: option.soft_ttl().max(APPEND_ANSWER_WAIT),
            input: Some(input),
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            failed: None,
        };
        let answers = futures::stream::unfold(Some(pipeline), |pipeline| async move {
            let mut pipeline = pipeline?;
            let answer = pipeline.next().await?;
            // After anything but a plain success openraft begins a new stream.
            let goes_on = matches!(answer, Ok(Ok(_)));
            Some((answer, goes_on.then_some(pipeline)))
        });
        Box::pin(futures::future::ready(Ok(answers.boxed())))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let answer = self.call(Lane::Small, kind::VOTE, envelope::encode_vote_request(&rpc), option.soft_ttl()).await?;
        envelope::decode_vote_reply(&answer).map_err(bad_answer)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = envelope::encode_vote_request(&rpc);
        let answer = self.call(Lane::Small, kind::PRE_VOTE, body, option.soft_ttl()).await?;
        envelope::decode_vote_reply(&answer).map_err(bad_answer)
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Here(source) = snapshot.snapshot else {
            let staged = LinkError::NotSent { node: self.target };
            return Err(StreamingError::Unreachable(Unreachable::new(&staged)));
        };
        let transfer = self.network.next_number();
        let manifest = source.manifest();
        self.network.transfers.lock().insert(transfer, source);
        let _withdrawn = Withdraw { network: self.network.clone(), transfer };
        let body = envelope::encode_install(&Install { vote, meta: snapshot.meta, transfer, manifest });
        tracing::info!(group = %self.group, node = self.target, transfer, "sending a raft snapshot");
        self.network.snapshots_sent.fetch_add(1, Ordering::Relaxed);
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = self.call(Lane::Bulk, kind::INSTALL, body, option.hard_ttl().max(INSTALL_WAIT)) => answer?,
        };
        Ok(envelope::decode_install_reply(&answer).map_err(bad_answer)?)
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let body = envelope::encode_transfer(&req);
        let answer = self.call(Lane::Small, kind::TRANSFER, body, option.hard_ttl()).await?;
        envelope::decode_transfer_reply(&answer).map_err(bad_answer)
    }

    fn backoff(&self) -> Option<Backoff> {
        let waits = std::iter::successors(Some(RETRY_MIN), |wait| Some((*wait * 2).min(RETRY_MAX)));
        Some(Backoff::new(waits))
    }
}

/// Forgets a transfer when the call for it has ended.
struct Withdraw {
    network: Arc<Network>,
    transfer: u64,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.network.transfers.lock().remove(&self.transfer);
    }
}

/// One replication stream.
struct Pipeline<S> {
    peer: PeerNetwork,
    session: u64,
    wait: Duration,
    /// None when it has ended.
    input: Option<S>,
    in_flight: VecDeque<(Reply, usize)>,
    bytes_in_flight: usize,
    /// Why nothing more is sent; told after the answers to what was.
    failed: Option<RpcError>,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin,
{
    /// The next answer, sending whatever may be sent meanwhile.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RpcError>> {
        loop {
            let room = self.in_flight.is_empty()
                || (self.in_flight.len() < APPENDS_IN_FLIGHT_MAX && self.bytes_in_flight < APPEND_BYTES_IN_FLIGHT_MAX);
            if self.in_flight.is_empty() && self.input.is_none() {
                return self.failed.take().map(Err);
            }
            let (input, in_flight) = (&mut self.input, &mut self.in_flight);
            tokio::select! {
                biased;
                answer = first_answer(in_flight) => {
                    let (_, bytes) = self.in_flight.pop_front().expect("an answer belongs to the first append in flight");
                    self.bytes_in_flight -= bytes;
                    let answer = answer.map_err(|error| rpc_error(&error));
                    return Some(answer.and_then(|body| envelope::decode_append_reply(&body).map_err(bad_answer)));
                }
                append = next_append(input), if room => match append {
                    Some(append) => self.send(append).await,
                    None => self.input = None,
                },
            }
        }
    }

    async fn send(&mut self, append: AppendEntriesRequest<TypeConfig>) {
        let body = envelope::encode_append(append);
        let bytes = body.len();
        let request = Request { session: self.session, ..self.peer.request(Lane::Append, kind::APPEND, body) };
        match self.peer.network.links.send(self.peer.target, request, Instant::now() + self.wait).await {
            Ok(reply) => {
                self.in_flight.push_back((reply, bytes));
                self.bytes_in_flight += bytes;
            }
            Err(error) => {
                self.input = None;
                self.failed = Some(rpc_error(&error));
            }
        }
    }
}

async fn first_answer(in_flight: &mut VecDeque<(Reply, usize)>) -> Result<Bytes, LinkError> {
    match in_flight.front_mut() {
        Some((reply, _)) => reply.wait().await,
        None => std::future::pending().await,
    }
}

async fn next_append<S>(input: &mut Option<S>) -> Option<AppendEntriesRequest<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}

fn forward_error<E>(error: &LinkError) -> ForwardError<E> {
    if error.surely_not_done() { ForwardError::NotSent } else { ForwardError::AnswerLost }
}

impl Forward for Network {
    fn forward_propose(
        &self,
        group: GroupId,
        leader: u64,
        proposal: TxProposal,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Written, ForwardError<ProposeError>>> {
        Box::pin(async move {
            let body = envelope::encode_propose(proposal);
            let lane = if body.len() < SMALL_BODY_BYTES_MAX { Lane::Small } else { Lane::Bulk };
            let answer = self.ask(leader, group, (lane, kind::PROPOSE), body, deadline).await;
            let answer = answer.map_err(|error| forward_error(&error))?;
            match envelope::decode_propose_reply(&answer) {
                Ok(answer) => answer.map_err(ForwardError::Remote),
                Err(_) => Err(ForwardError::AnswerLost),
            }
        })
    }

    fn forward_truncation(
        &self,
        group: GroupId,
        leader: u64,
        prune: Prune,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Written, ForwardError<ProposeError>>> {
        Box::pin(async move {
            let body = envelope::encode_truncation(prune);
            let lane = if body.len() < SMALL_BODY_BYTES_MAX { Lane::Small } else { Lane::Bulk };
            let answer = self.ask(leader, group, (lane, kind::TRUNCATE), body, deadline).await;
            let answer = answer.map_err(|error| forward_error(&error))?;
            match envelope::decode_propose_reply(&answer) {
                Ok(answer) => answer.map_err(ForwardError::Remote),
                Err(_) => Err(ForwardError::AnswerLost),
            }
        })
    }

    fn forward_read_index(
        &self,
        group: GroupId,
        leader: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<ReadIndex, ForwardError<ReadError>>> {
        Box::pin(async move {
            let answer = self.ask(leader, group, (Lane::Small, kind::READ_INDEX), Bytes::new(), deadline).await;
            let answer = answer.map_err(|error| forward_error(&error))?;
            match envelope::decode_read_index_reply(&answer) {
                Ok(answer) => answer.map_err(ForwardError::Remote),
                Err(_) => Err(ForwardError::AnswerLost),
            }
        })
    }

    fn segment_vote(
        &self,
        group: GroupId,
        node: u64,
        segment: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Option<SegmentVote>> {
        Box::pin(async move {
            let body = envelope::encode_segment_ask(segment);
            let answer = self.ask(node, group, (Lane::Small, kind::SEGMENT_VOTE), body, deadline).await.ok()?;
            envelope::decode_segment_vote(&answer).ok().flatten()
        })
    }

    fn segment_part(
        &self,
        group: GroupId,
        node: u64,
        part: SegmentPart,
        deadline: Instant,
    ) -> BoxFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            let body = envelope::encode_segment_part(&part);
            self.ask(node, group, (Lane::Bulk, kind::SEGMENT_PART), body, deadline).await.ok()
        })
    }

    fn disk(&self, node: u64) -> Option<DiskReport> {
        self.disks.get(node)
    }
}
