//! One replica of one database: starts and stops the consensus core on top of the database, proposes and reads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, GroupId, LogId, TxId};
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{Settings, TxProposal};
use bytes::Bytes;
use openraft::network::{NetSnapshot, RaftNetworkFactory};
use openraft::{BasicNode, Raft};
use tokio::time::Instant;

use crate::env::Env;
use crate::error::{GroupError, MembershipError, ProposeError, ReadError, SnapshotError};
use crate::forward::{Forward, ReadIndex};
use crate::snapshot::{SnapshotData, SnapshotSink, SnapshotSource};
use crate::state_machine::StateMachine;
use crate::types::TypeConfig;

/// The consensus core of a group.
pub type GroupRaft = Raft<TypeConfig, StateMachine>;

/// What a group replicates, and where.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Number of the group.
    pub group: GroupId,
    /// Name of its database, for logs and metrics.
    pub name: String,
    /// Id of its database, in every segment header.
    pub database: DatabaseId,
    /// Size at which segments are closed.
    pub segment_bytes: u64,
    /// What the first leader proposes with `Genesis`.
    pub settings: Settings,
    /// Folder of the database.
    pub dir: PathBuf,
    /// This node.
    pub node_id: u64,
}

/// Timing and bounds of a group. Node-local: replicas may differ.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How often a leader shows that it lives, milliseconds.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for this long stands for election, milliseconds, at least.
    pub election_min_ms: u64,
    /// The same, at most.
    pub election_max_ms: u64,
    /// Bytes of proposals that may wait before `Overloaded`.
    pub queue_bytes_max: u64,
    /// Encoded bytes of one batch, after which it is closed; one proposal may be larger.
    pub batch_bytes: u64,
    /// Most proposals of one batch.
    pub batch_proposals_max: usize,
    /// Batches handed to the consensus core and not yet applied.
    pub batches_in_flight_max: usize,
    /// A follower that misses more closed segments than this gets files instead of log entries.
    pub seed_lag_segments: u64,
    /// Read at most this much of the log at once, bytes; one entry may be larger.
    pub read_batch_bytes: usize,
    /// Log entries in one message to a follower, at most.
    pub payload_entries_max: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_ms: 150,
            election_min_ms: 600,
            election_max_ms: 1200,
            queue_bytes_max: 64 << 20,
            batch_bytes: 1 << 20,
            batch_proposals_max: 4096,
            batches_in_flight_max: 4,
            seed_lag_segments: 2,
            read_batch_bytes: 1 << 20,
            payload_entries_max: 1024,
        }
    }
}

/// How much a read has to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Everything acknowledged before the call.
    Linearizable,
    /// This transaction and all before it.
    AtLeast(TxId),
    /// Whatever is applied here.
    Local,
}

/// From where a read may look back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPoint {
    /// Newest transaction applied here; at least what the level asks for.
    pub tx: TxId,
}

/// Role of this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Votes and follows.
    Follower,
    /// Stands for election.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Does nothing any more.
    Stopped,
}

/// Whether this replica works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Running,
    /// It was asked to stop.
    Stopped,
    /// It stopped itself rather than guess: apply, the disk or the consensus core failed.
    Failed {
        /// What failed, for people.
        reason: Arc<str>,
    },
}

/// What a replica knows about itself and its group.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// Whether it works.
    pub health: Health,
    /// Its role.
    pub role: Role,
    /// The leader, as far as this replica knows.
    pub leader: Option<u64>,
    /// Its epoch.
    pub term: u64,
    /// Newest log entry here.
    pub last_log: Option<LogId>,
    /// Newest log entry known to be committed.
    pub committed: Option<LogId>,
    /// Newest log entry applied here.
    pub applied: Option<LogId>,
    /// Newest transaction applied here.
    pub applied_tx: TxId,
    /// Members with a vote.
    pub voters: BTreeMap<u64, BasicNode>,
    /// Members without a vote.
    pub learners: BTreeMap<u64, BasicNode>,
}

/// One replica of one database.
#[derive(Debug)]
pub struct Group {}

fn not_connected() -> Box<dyn std::error::Error + Send + Sync> {
    "the database is not connected yet".into()
}

impl Group {
    /// Opens the database and starts the replica. It follows until it is initialised or hears of a leader.
    ///
    /// `network` carries raft messages to the members; `forward` carries calls to the leader.
    pub async fn start<N>(
        _env: Env,
        _spec: GroupSpec,
        _tuning: Tuning,
        _network: N,
        _forward: Arc<dyn Forward>,
    ) -> Result<Arc<Self>, GroupError>
    where
        N: RaftNetworkFactory<TypeConfig>,
        N::Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotData>,
    {
        Err(GroupError::Raft(not_connected()))
    }

    /// Makes these nodes the group's voters. Called on one node of a new group, once.
    pub async fn initialize(&self, _members: BTreeMap<u64, BasicNode>) -> Result<(), MembershipError> {
        Err(MembershipError::Stopped)
    }

    /// Number of the group.
    pub fn id(&self) -> GroupId {
        GroupId(0)
    }

    /// The consensus core: inbound raft messages go here.
    pub fn raft(&self) -> Option<&GroupRaft> {
        None
    }

    /// The leader, as far as this replica knows.
    pub fn leader(&self) -> Option<u64> {
        None
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        false
    }

    /// What this replica knows about itself and its group.
    pub fn status(&self) -> GroupStatus {
        GroupStatus {
            health: Health::Stopped,
            role: Role::Stopped,
            leader: None,
            term: 0,
            last_log: None,
            committed: None,
            applied: None,
            applied_tx: TxId(0),
            voters: BTreeMap::new(),
            learners: BTreeMap::new(),
        }
    }

    /// Commits one proposal; in one hop when another node leads. Ends by the deadline.
    pub async fn propose(&self, _proposal: TxProposal, _deadline: Instant) -> Result<Outcome, ProposeError> {
        Err(ProposeError::Stopped)
    }

    /// Waits until a read of this level may begin here. Ends by the deadline.
    pub async fn barrier(&self, _level: Level, _deadline: Instant) -> Result<ReadPoint, ReadError> {
        Err(ReadError::Stopped)
    }

    /// A proposal that came from another node: never forwarded again.
    pub async fn serve_propose(&self, _proposal: TxProposal, _deadline: Instant) -> Result<Outcome, ProposeError> {
        Err(ProposeError::Stopped)
    }

    /// Another node's question for the read index: never forwarded again.
    pub async fn serve_read_index(&self, _deadline: Instant) -> Result<ReadIndex, ReadError> {
        Err(ReadError::Stopped)
    }

    /// The snapshot with this manifest, for a node that pulls its files; none when it is not the current one.
    pub fn snapshot_source(&self, _manifest: &Bytes) -> Option<Arc<dyn SnapshotSource>> {
        None
    }

    /// A place for the files of a snapshot that another node sends. Any earlier unfinished one is dropped.
    pub fn snapshot_sink(&self, _manifest: Bytes) -> Result<Box<dyn SnapshotSink>, SnapshotError> {
        Err(SnapshotError::Manifest(not_connected()))
    }

    /// Adds a member without a vote and waits until it has caught up. Leader only.
    pub async fn add_learner(&self, _id: u64, _node: BasicNode, _deadline: Instant) -> Result<(), MembershipError> {
        Err(MembershipError::Stopped)
    }

    /// Makes exactly these members voters; each must be a member already. Leader only.
    pub async fn change_voters(
        &self,
        _voters: std::collections::BTreeSet<u64>,
        _deadline: Instant,
    ) -> Result<(), MembershipError> {
        Err(MembershipError::Stopped)
    }

    /// Stops in order: no new calls, the core, the disk. Waiting calls end.
    pub async fn shutdown(&self) {}
}
