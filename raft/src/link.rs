//! Links: one gRPC connection to each peer, shared by all groups.
//!
//! A connection carries three lanes, each a stream of its own, so that one kind of traffic does not wait behind another:
//! small messages (votes, heartbeats, read index, forwards), log entries, and bulk (files of snapshots, large forwards).
//! A lane packs whatever waits into one message and never waits for more. Every call has a deadline and ends by it with
//! an error that says whether the other side may have acted. Memory that waits is bounded in bytes per lane.
//!
//! Nothing here knows Raft: bodies are opaque, [`crate::codec`] fills them.

mod io;
mod peer;
mod serve;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use alhambra_proto::peer as wire;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::env::Net;

pub use self::io::dial;
use self::peer::Peer;
pub use self::peer::Reply;
pub(crate) use self::serve::SESSION_APPENDS_MAX;
pub use self::serve::{Serving, serve};

/// Version of frames and bodies; nodes of another version are refused.
pub const FORMAT: u32 = 1;

/// Which stream of a connection carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Votes, heartbeats, read index, small forwards.
    Small,
    /// Log entries.
    Append,
    /// Files of snapshots, large forwards.
    Bulk,
}

impl Lane {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Small, Self::Append, Self::Bulk];

    const fn index(self) -> usize {
        match self {
            Self::Small => 0,
            Self::Append => 1,
            Self::Bulk => 2,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Append => "append",
            Self::Bulk => "bulk",
        }
    }
}

/// Bounds of a link.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Frames are packed up to this many bytes; a larger frame travels alone.
    pub packet_bytes: usize,
    /// Bytes of requests that may wait per peer and lane.
    pub queue_bytes_max: usize,
    /// Largest message, both directions.
    pub message_bytes_max: usize,
    /// Calls of one lane that the answering side carries out at a time.
    pub calls_max: usize,
    /// A connection that is not usable after this long is given up.
    pub connect_timeout: Duration,
    /// Wait before the second attempt to connect; doubled for each further one.
    pub backoff_min: Duration,
    /// Longest wait between attempts.
    pub backoff_max: Duration,
    /// When nothing has come for this long, the peer is asked for a sign of life.
    pub ping_after: Duration,
    /// When nothing has come for this long, the connection is given up.
    pub stall_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_bytes: 256 << 10,
            queue_bytes_max: 64 << 20,
            message_bytes_max: crate::envelope::BODY_BYTES_MAX + (8 << 20),
            calls_max: 4096,
            connect_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(500),
            ping_after: Duration::from_millis(500),
            stall_after: Duration::from_secs(2),
        }
    }
}

/// Who a node is to its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster's UUID.
    pub cluster: String,
    /// Its number.
    pub node: u64,
}

impl From<Hello> for wire::Hello {
    fn from(hello: Hello) -> Self {
        Self { cluster: hello.cluster, node: hello.node, format: FORMAT }
    }
}

/// One message to a peer.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which lane it takes.
    pub lane: Lane,
    /// Whom it is for.
    pub group: GroupId,
    /// What the body is; never 0.
    pub kind: u32,
    /// Replication stream, for [`Lane::Append`].
    pub session: u64,
    /// Versioned bytes.
    pub body: Bytes,
}

/// Why the answering side has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no such group (yet).
    #[error("the node does not run this group")]
    UnknownGroup,
    /// The group or the node is going down.
    #[error("the group has stopped")]
    Stopped,
    /// It has too many calls already.
    #[error("the node has too many calls")]
    Overloaded,
    /// An earlier append of the same stream failed.
    #[error("the replication stream has ended")]
    SessionEnded,
    /// The body does not parse.
    #[error("the request does not parse")]
    BadRequest,
    /// What was asked for is gone.
    #[error("what was asked for is not there any more")]
    Gone,
    /// The bytes that were asked for fail their checksum.
    #[error("the bytes that were asked for are corrupted")]
    Corrupted,
    /// The disk or the consensus core failed.
    #[error("the node failed to carry out the call")]
    Failed,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::UnknownGroup,
        Self::Stopped,
        Self::Overloaded,
        Self::SessionEnded,
        Self::BadRequest,
        Self::Gone,
        Self::Corrupted,
        Self::Failed,
    ];

    fn status(self) -> u32 {
        match self {
            Self::UnknownGroup => 1,
            Self::Stopped => 2,
            Self::Overloaded => 3,
            Self::SessionEnded => 4,
            Self::BadRequest => 5,
            Self::Gone => 6,
            Self::Corrupted => 7,
            Self::Failed => 8,
        }
    }

    /// `None` for 0, which is no refusal; a status of a later version counts as failed.
    fn from_status(status: u32) -> Option<Self> {
        if status == 0 {
            return None;
        }
        Some(Self::ALL.into_iter().find(|refusal| refusal.status() == status).unwrap_or(Self::Failed))
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No address of this node is known.
    #[error("no address of node {node} is known")]
    UnknownNode {
        /// The node.
        node: u64,
    },
    /// There is no connection. Nothing was sent.
    #[error("node {node} at {addr} cannot be reached")]
    Unreachable {
        /// The node.
        node: u64,
        /// Where it was tried.
        addr: String,
    },
    /// Another node answers at this address. Nothing was sent.
    #[error("node {found} answers at {addr}, where node {node} was expected")]
    OtherNode {
        /// The node that was meant.
        node: u64,
        /// Where it was tried.
        addr: String,
        /// The node that is there.
        found: u64,
    },
    /// A node of another cluster answers at this address. Nothing was sent.
    #[error("the node at {addr} belongs to cluster {theirs}, this one to cluster {ours}")]
    OtherCluster {
        /// Where.
        addr: String,
        /// This node's cluster.
        ours: String,
        /// That node's cluster.
        theirs: String,
    },
    /// A node of another version answers at this address. Nothing was sent.
    #[error("the node at {addr} speaks version {theirs} between nodes, this one {FORMAT}")]
    OtherFormat {
        /// Where.
        addr: String,
        /// That node's version.
        theirs: u32,
    },
    /// The node at this address is in no cluster yet. Nothing was sent.
    #[error("the node at {addr} is not in a cluster yet")]
    NotFormed {
        /// Where.
        addr: String,
    },
    /// The queue stayed full, or the connection not ready, until the deadline. Nothing was sent.
    #[error("the call to node {node} was not sent before its deadline")]
    NotSent {
        /// The node.
        node: u64,
    },
    /// The call was sent; no answer came before the deadline or before the connection broke. It may have been carried out.
    #[error("node {node} did not answer")]
    AnswerLost {
        /// The node.
        node: u64,
    },
    /// The other side refused.
    #[error("node {node} refused: {refusal}")]
    Refused {
        /// The node.
        node: u64,
        /// Its answer.
        refusal: Refusal,
    },
    /// This side is going down. Nothing was sent.
    #[error("the link to node {node} has been closed")]
    Closed {
        /// The node.
        node: u64,
    },
}

impl LinkError {
    /// Whether the other side surely did nothing.
    pub const fn surely_not_done(&self) -> bool {
        match self {
            Self::AnswerLost { .. } => false,
            Self::Refused { refusal, .. } => {
                matches!(refusal, Refusal::UnknownGroup | Refusal::Overloaded | Refusal::BadRequest)
            }
            Self::UnknownNode { .. }
            | Self::Unreachable { .. }
            | Self::OtherNode { .. }
            | Self::OtherCluster { .. }
            | Self::OtherFormat { .. }
            | Self::NotFormed { .. }
            | Self::NotSent { .. }
            | Self::Closed { .. } => true,
        }
    }
}

/// Answers peers. `link/serve.rs` calls it; `crate::server` is the one that production uses.
pub trait Handler: Send + Sync + 'static {
    /// Whether a node may open a lane; answers who this node is.
    fn welcome(&self, theirs: &wire::Hello) -> Result<Hello, wire::Refused>;

    /// Answers one call. Calls are carried out side by side and dropped at their deadline.
    fn call(&self, from: u64, frame: Incoming) -> BoxFuture<'static, Result<Bytes, Refusal>>;

    /// Answers the appends of one replication stream of one group: as many answers as appends, in the same order. The
    /// stream of answers may end early; later appends are then refused.
    fn appends(
        &self,
        from: u64,
        group: GroupId,
        bodies: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, Refusal>>;

    /// Answers a probe.
    fn probe(&self, view: wire::View) -> BoxFuture<'static, Result<wire::View, Refusal>>;

    /// Answers a request for a promise, after it is durable.
    fn promise(&self, request: wire::PromiseRequest) -> BoxFuture<'static, Result<wire::PromiseReply, Refusal>>;
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Whom it is for.
    pub group: GroupId,
    /// What the body is.
    pub kind: u32,
    /// Versioned bytes.
    pub body: Bytes,
    /// When the asking side stops waiting.
    pub deadline: Instant,
}

/// What went out to all peers on one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Requests.
    pub frames: u64,
    /// What carried them: everything that waited when the transport could take more.
    pub packets: u64,
}

/// The same, counted on every lane.
#[derive(Debug, Default)]
struct Outgoing {
    frames: [AtomicU64; 3],
    packets: [AtomicU64; 3],
}

impl Outgoing {
    fn packet(&self, lane: Lane, frames: usize) {
        self.frames[lane.index()].fetch_add(frames as u64, Ordering::Relaxed);
        self.packets[lane.index()].fetch_add(1, Ordering::Relaxed);
    }
}

/// The links of one node to its peers.
pub struct Links {
    net: Arc<dyn Net>,
    limits: Limits,
    me: Hello,
    peers: Mutex<Registry>,
    outgoing: Arc<Outgoing>,
}

#[derive(Default)]
struct Registry {
    peers: BTreeMap<u64, Arc<Peer>>,
    closed: bool,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Links {
    /// Links of the node `me`; connections begin with [`Links::set_addr`].
    pub fn new(net: Arc<dyn Net>, me: Hello, limits: Limits) -> Arc<Self> {
        Arc::new(Self { net, limits, me, peers: Mutex::default(), outgoing: Arc::default() })
    }

    /// Who this node is.
    pub fn me(&self) -> &Hello {
        &self.me
    }

    /// Says where a node is, and connects. A changed address closes the old connection.
    pub fn set_addr(&self, node: u64, addr: &str) {
        if node == self.me.node {
            return;
        }
        let mut registry = self.peers.lock();
        if registry.closed {
            return;
        }
        match registry.peers.get(&node) {
            Some(peer) => peer.set_addr(addr),
            None => {
                let peer =
                    Peer::start(node, addr, self.me.clone(), (self.net.clone(), self.limits), self.outgoing.clone());
                registry.peers.insert(node, peer);
            }
        }
    }

    /// Sends a request, waiting for room in the queue until the deadline, and answers what will become of it. Requests on
    /// one lane arrive in the order in which this method returned.
    pub async fn send(&self, to: u64, request: Request, deadline: Instant) -> Result<Reply, LinkError> {
        let peer = {
            let registry = self.peers.lock();
            if registry.closed {
                return Err(LinkError::Closed { node: to });
            }
            registry.peers.get(&to).cloned().ok_or(LinkError::UnknownNode { node: to })?
        };
        peer.send(request, deadline).await
    }

    /// Sends a request and waits for its answer until the deadline.
    pub async fn call(&self, to: u64, request: Request, deadline: Instant) -> Result<Bytes, LinkError> {
        self.send(to, request, deadline).await?.wait().await
    }

    /// Whether there is a working connection to this node, or why not.
    pub fn state(&self, node: u64) -> Result<(), LinkError> {
        let registry = self.peers.lock();
        registry.peers.get(&node).ok_or(LinkError::UnknownNode { node })?.state()
    }

    /// What this node has sent on a lane since the links were made.
    pub fn sent(&self, lane: Lane) -> Sent {
        let [frames, packets] =
            [&self.outgoing.frames, &self.outgoing.packets].map(|counts| counts[lane.index()].load(Ordering::Relaxed));
        Sent { frames, packets }
    }

    /// Closes all connections. Waiting calls end.
    pub fn close(&self) {
        let mut registry = self.peers.lock();
        registry.closed = true;
        for (_, peer) in std::mem::take(&mut registry.peers) {
            peer.close();
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.close();
    }
}
