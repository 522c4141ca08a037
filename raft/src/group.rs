//! One replica of one database: starts and stops the consensus core on top of the database, proposes and reads.
//!
//! ```text
//!              propose, barrier                        raft messages of peers
//!                     |                                          |
//! Group ---- proposer, rounds ----> consensus core (openraft) <--'
//!   |                                   |               |
//!   '-- duties of a leader         LogStore        StateMachine
//!       (genesis, seals, seeding)       |               |
//!                                       '-- Database ---'
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alhambra_ledger::ids::{DatabaseId, GroupId, LogId, TxId};
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{Citation, Command, ProposalEntry, Prune, Settings, TxProposal};
use alhambra_storage::database::{Database, DatabaseSpec, Options};
use alhambra_storage::error::Error as StorageError;
use alhambra_storage::memory::MemoryBudget;
use alhambra_storage::plant::{Plant, is_planted};
use alhambra_storage::{Damaged, SegmentVersion, SegmentVote};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::network::{NetSnapshot, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{BasicNode, Config, Raft, ServerState, SnapshotPolicy};
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;
use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock, watch};
use tokio::time::Instant;

use crate::env::Env;
use crate::error::{GroupError, MembershipError, ProposeError, ReadError, SnapshotError, WriteLimit};
use crate::forward::{Forward, ReadIndex, SegmentPart, Written};
use crate::log_store::LogStore;
use crate::read::Rounds;
use crate::scrub::{SCRUB_BYTES_PER_SECOND_DEFAULT, SCRUB_INTERVAL_MS_DEFAULT, Scrub, ScrubPace, ScrubStatus};
use crate::snapshot::{SnapshotData, SnapshotSink, SnapshotSource};
use crate::state_machine::{Applied, StateMachine};
use crate::strand::{FailureCell, Strands};
use crate::tasks::Tasks;
use crate::turns::{Turn, Turns};
use crate::types::{TypeConfig, from_raft_log_id};
use crate::write::Proposer;

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
    /// Node id and peer address of the members that the group begins with; empty where this replica must not begin it.
    pub first_members: BTreeMap<u64, String>,
    /// Versions of closed segments on which the members were found to agree while the database did not open.
    pub settled: BTreeMap<u64, SegmentVersion>,
}

/// Timing and bounds of a group. Node-local: replicas may differ.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How often a leader shows that it lives, milliseconds.
    pub heartbeat_ms: u64,
    /// A follower stands for election when it has heard nothing for `election_max_ms` (the leader's lease) and then for a
    /// random time from here up to that again, milliseconds.
    pub election_min_ms: u64,
    /// See `election_min_ms`; a leader that has not heard of a quorum for this long takes no proposals.
    pub election_max_ms: u64,
    /// Bytes of proposals that may be queued. More wait for room there, and are `Overloaded` shortly before their deadlines.
    pub queue_bytes_max: u64,
    /// Encoded bytes of one batch, after which it is closed; one proposal may be larger.
    pub batch_bytes: u64,
    /// Most proposals of one batch.
    pub batch_proposals_max: usize,
    /// Batches handed to the consensus core and not yet applied.
    pub batches_in_flight_max: usize,
    /// While a batch is on its way the next one leaves only when so many bytes wait for it: small ones gather instead, which
    /// costs less than a sync and a round of messages for each. No timer: the batch on its way comes back and wakes them.
    pub pipeline_bytes: u64,
    /// A follower that misses more closed segments than this gets files instead of log entries.
    pub seed_lag_segments: u64,
    /// Read at most this much of the log at once, bytes; one entry may be larger.
    pub read_batch_bytes: usize,
    /// Log entries in one message to a follower, at most.
    pub payload_entries_max: u64,
    /// The memory of all databases; clones of a tuning share it, so all groups of a node do.
    pub memory: Arc<MemoryBudget>,
    /// How fast files are read again to find rot; clones of a tuning share it, so all groups of a node do.
    pub scrub_pace: Arc<ScrubPace>,
    /// A pass over the files of a database begins so long after the one before, milliseconds.
    pub scrub_interval_ms: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_ms: 150,
            election_min_ms: 350,
            election_max_ms: 700,
            queue_bytes_max: 64 << 20,
            batch_bytes: 1 << 20,
            batch_proposals_max: 4096,
            batches_in_flight_max: 4,
            pipeline_bytes: 256 << 10,
            seed_lag_segments: 2,
            read_batch_bytes: 1 << 20,
            payload_entries_max: 1024,
            memory: Arc::default(),
            scrub_pace: Arc::new(ScrubPace::new(SCRUB_BYTES_PER_SECOND_DEFAULT)),
            scrub_interval_ms: SCRUB_INTERVAL_MS_DEFAULT,
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
    /// The disk of this node is full: what has to be written here waits for space.
    pub waits_for_space: bool,
    /// Why this replica, as the leader, refuses user writes for now.
    pub limit: Option<WriteLimit>,
    /// What reading the files again has found.
    pub scrub: ScrubStatus,
    /// User writes that were refused here, by [`WriteLimit::number`].
    pub refused: [u64; WriteLimit::REASONS.len()],
    /// Members with a vote.
    pub voters: BTreeMap<u64, BasicNode>,
    /// Members without a vote.
    pub learners: BTreeMap<u64, BasicNode>,
}

impl Tuning {
    fn config(&self, name: &str) -> Result<Config, GroupError> {
        let config = Config {
            cluster_name: name.to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            // The time for a whole snapshot, not for a part: files are large. The network ends a stalled one itself.
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            max_payload_entries: self.payload_entries_max,
            max_append_entries: Some(self.payload_entries_max),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(!is_planted(Plant::DropPreVote)),
            enable_leader_restore: Some(false),
            broadcast_submitted_on_append: Some(true),
            ..Config::default()
        };
        config.validate().map_err(GroupError::Tuning)
    }
}

pub(crate) type ServerWatch = WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>;

/// A snapshot that takes longer than this is begun anew, milliseconds.
const SNAPSHOT_TIMEOUT_MS: u64 = 3_600_000;

/// One replica of one database.
pub struct Group {
    replica: Arc<Replica>,
    tasks: Arc<Tasks>,
    /// Tells when the end is done; none while nobody has asked for it.
    ended: Mutex<Option<watch::Receiver<bool>>>,
}

/// What the tasks of a group share.
pub(crate) struct Replica {
    pub(crate) group: GroupId,
    pub(crate) node_id: u64,
    pub(crate) env: Env,
    pub(crate) tuning: Tuning,
    pub(crate) spec: GroupSpec,
    pub(crate) database: Arc<Database>,
    pub(crate) state_machine: StateMachine,
    pub(crate) raft: GroupRaft,
    pub(crate) forward: Arc<dyn Forward>,
    pub(crate) applied: watch::Receiver<Applied>,
    pub(crate) proposer: Arc<Proposer>,
    /// Of imported transactions that are brought to this node, and of those that come into its queue as the leader.
    brought: Turns,
    pub(crate) queued: Turns,
    pub(crate) rounds: Rounds,
    pub(crate) strands: Strands,
    pub(crate) seals_due: Arc<Notify>,
    pub(crate) scrub: Scrub,
    pub(crate) failure: FailureCell,
    log_store: LogStore,
    stopping: AtomicBool,
    /// Held while a snapshot is received and installed: a second one would clear away what the first is taken from.
    installing: Arc<tokio::sync::Mutex<()>>,
    server: ServerWatch,
    metrics: WatchReceiverOf<TypeConfig, openraft::RaftMetrics<TypeConfig>>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} ({}) on node {}", self.replica.group, self.replica.spec.name, self.replica.node_id)
    }
}

impl Replica {
    pub(crate) fn applied(&self) -> Applied {
        *self.applied.borrow()
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.server.borrow_watched().current_leader
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.server.borrow_watched().state.is_leader()
    }

    /// Ends when this replica knows another leader than `seen`, or none, or has stopped.
    pub(crate) async fn leader_other_than(&self, seen: Option<u64>) {
        let mut server = self.server.clone();
        while server.borrow_watched().current_leader == seen {
            if server.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends when the consensus core has.
    pub(crate) async fn core_stopped(&self) {
        let mut server = self.server.clone();
        while server.changed().await.is_ok() {}
    }

    /// Follows role and leader.
    pub(crate) fn watch_server(&self) -> ServerWatch {
        self.server.clone()
    }

    pub(crate) fn raft_metrics(&self) -> openraft::RaftMetrics<TypeConfig> {
        self.metrics.borrow_watched().clone()
    }

    fn health(&self) -> Health {
        if let Some(reason) = self.failure.get() {
            return Health::Failed { reason };
        }
        if self.stopping.load(Ordering::Acquire) {
            return Health::Stopped;
        }
        match &self.metrics.borrow_watched().running_state {
            Ok(()) => Health::Running,
            Err(fatal) => Health::Failed { reason: fatal.to_string().into() },
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.health() != Health::Running
    }

    pub(crate) fn is_initialised(&self) -> bool {
        self.database.settings().is_some()
    }

    pub(crate) fn genesis(&self) -> Command {
        Command::Genesis {
            database: self.spec.database,
            segment_bytes: self.spec.segment_bytes,
            settings: self.spec.settings.clone(),
        }
    }
}

impl Group {
    /// Opens the database and starts the replica. It follows until it is initialised or hears of a leader.
    ///
    /// `network` carries raft messages to the members; `forward` carries calls to the leader.
    pub async fn start<N>(
        env: Env,
        spec: GroupSpec,
        tuning: Tuning,
        network: N,
        forward: Arc<dyn Forward>,
    ) -> Result<Arc<Self>, GroupError>
    where
        N: RaftNetworkFactory<TypeConfig>,
        N::Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotData>,
    {
        let config = Arc::new(tuning.config(&spec.name)?);
        let strands = Strands::new(&env.executor, spec.group);
        let failure = FailureCell::default();

        let storage_error =
            |source: Box<dyn std::error::Error + Send + Sync>| GroupError::Storage { dir: spec.dir.clone(), source };
        let database = {
            let (vfs, dir) = (env.vfs.clone(), spec.dir.clone());
            let database = DatabaseSpec { id: spec.database, segment_bytes: spec.segment_bytes };
            // The state machine sees to it, on a strand.
            let settled = spec.settled.clone();
            let options = Options { applier_writes: false, settled, ..Options::new(tuning.memory.clone()) };
            strands.log.run(move || Database::open(vfs, &dir, database, options)).await
        };
        let database = database.map_err(|e| storage_error(e.into()))?.map_err(|e| match e {
            StorageError::Corrupted { segment: Some(segment), .. } => {
                GroupError::Rotten { dir: spec.dir.clone(), segment, source: e.into() }
            }
            StorageError::SegmentMissing { number: segment, .. } | StorageError::SealDisputed { segment, .. } => {
                GroupError::Rotten { dir: spec.dir.clone(), segment, source: e.into() }
            }
            other => storage_error(other.into()),
        })?;
        let database = Arc::new(database);
        tuning.memory.watch(&database);

        let seals_due = Arc::new(Notify::new());
        let gate = Arc::new(RwLock::new(()));
        let log_store =
            LogStore::open(database.clone(), strands.clone(), gate.clone(), failure.clone(), tuning.read_batch_bytes)
                .map_err(|e| storage_error(e.into()))?;
        if !spec.first_members.is_empty() && log_store.has_only_voted() {
            log_store.begin(&spec.first_members).await.map_err(|e| storage_error(e.into()))?;
            tracing::info!(group = %spec.group, name = spec.name, "the group begins here: no entry had come with the vote");
        }
        let own_log = log_store.clone();
        let state_machine = StateMachine::new(
            env.vfs.clone(),
            spec.dir.clone(),
            database.clone(),
            strands.clone(),
            gate,
            failure.clone(),
            seals_due.clone(),
        );
        let mut kept = CloseUnlessKept(Some(state_machine.clone()));
        // What a stop left: a full part that was not written, a merge, an index that is lost.
        state_machine.look_for_index_work();
        let applied = state_machine.watch();
        let seed = random_u64(&env);
        let raft = Raft::new(spec.node_id, config, network, log_store, state_machine.clone());
        let raft = DeterministicRng::<TokioRuntime>::scope(seed, raft).await;
        let raft = match raft {
            Ok(raft) => raft,
            // The core starts by applying what the last checkpoint does not cover.
            Err(e) => {
                give_up_damaged(&strands, &database).await;
                return Err(match first_rotten(&database) {
                    Some(segment) => GroupError::Rotten { dir: spec.dir.clone(), segment, source: Box::new(e) },
                    None => GroupError::Raft(Box::new(e)),
                });
            }
        };

        kept.0 = None;
        let mut client = [0; 16];
        env.rng.fill(&mut client);
        let replica = Arc::new(Replica {
            group: spec.group,
            node_id: spec.node_id,
            proposer: Arc::new(Proposer::new(client, &tuning)),
            brought: Turns::new(),
            queued: Turns::new(),
            rounds: Rounds::default(),
            server: raft.server_metrics(),
            metrics: raft.metrics(),
            env,
            tuning,
            spec,
            database,
            state_machine,
            raft,
            forward,
            applied,
            strands,
            seals_due,
            scrub: Scrub::default(),
            failure,
            log_store: own_log,
            stopping: AtomicBool::new(false),
            installing: Arc::default(),
        });
        let tasks = Arc::new(Tasks::default());
        tasks.spawn(replica.clone().run_proposer());
        tasks.spawn(replica.clone().run_rounds());
        tasks.spawn(replica.clone().run_duties());
        tasks.spawn(replica.clone().run_scrub());
        tasks.spawn(replica.log_store.clone().run_space());
        tasks.spawn(replica.clone().run_pruner());
        tasks.spawn(replica.state_machine.clone().run_space());
        Ok(Arc::new(Self { replica, tasks, ended: Mutex::default() }))
    }

    /// Makes these nodes the group's voters. Called on one node of a new group, once.
    pub async fn initialize(&self, members: BTreeMap<u64, BasicNode>) -> Result<(), MembershipError> {
        self.replica.initialize(members).await
    }

    /// Whether the group has members: it was initialised here, or this replica has heard of a leader.
    pub async fn is_initialized(&self) -> bool {
        self.replica.raft.is_initialized().await.unwrap_or(false)
    }

    /// Stops the replica, to be opened again: then it begins the group itself, see [`GroupSpec::first_members`].
    pub(crate) fn begin_anew(&self) {
        let gone = io::Error::new(io::ErrorKind::TimedOut, "whoever began the group was not heard of again");
        self.replica.failure.fail("no first entry came", &gone);
    }

    /// Number of the group.
    pub fn id(&self) -> GroupId {
        self.replica.group
    }

    /// Name of the database.
    pub fn name(&self) -> &str {
        &self.replica.spec.name
    }

    /// The database, for reads. Writing goes through [`Group::propose`] alone.
    pub fn database(&self) -> &Arc<Database> {
        &self.replica.database
    }

    /// The consensus core: inbound raft messages go here, except for streams of entries ([`Group::stream_append`]).
    pub fn raft(&self) -> &GroupRaft {
        &self.replica.raft
    }

    /// Inbound entries of a leader, as a stream. Answers come in the order of the requests.
    ///
    /// Prefer this to `raft().stream_append`, which starts a task and so needs the group's randomness around it.
    pub async fn stream_append<S>(
        &self,
        requests: S,
    ) -> BoxStream<'static, Result<StreamAppendResult<TypeConfig>, openraft::errors::Fatal<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static,
    {
        let seed = random_u64(&self.replica.env);
        DeterministicRng::<TokioRuntime>::scope(seed, async { self.replica.raft.stream_append(requests).boxed() }).await
    }

    /// The leader, as far as this replica knows.
    pub fn leader(&self) -> Option<u64> {
        self.replica.leader()
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.replica.is_leader()
    }

    /// Waits until this replica has applied so far.
    ///
    /// # Errors
    /// [`ReadError::Lagging`] at the deadline, and [`ReadError::Stopped`] as soon as this replica has ended: what is waited for
    /// then comes in another one, which is opened only when nobody holds this one any more.
    pub async fn wait_applied(&self, deadline: Instant, reached: impl Fn(&Applied) -> bool) -> Result<(), ReadError> {
        self.replica.wait_applied(deadline, reached).await
    }

    /// Follows how far this replica has applied. Whoever holds the replica does not see its end here: see [`Group::wait_applied`].
    pub fn watch_applied(&self) -> watch::Receiver<Applied> {
        self.replica.applied.clone()
    }

    /// Waits until a transaction that another server made can be brought with [`Group::write`]: until the one before it is applied
    /// here or was brought here. `None` when this replica has ended.
    pub async fn import_turn(&self, tx: TxId) -> Option<Turn> {
        let mut turn = tokio::select! {
            biased;
            () = self.ended() => return None,
            turn = self.replica.brought.wait(tx, self.replica.applied.clone()) => turn?,
        };
        turn.hand_on();
        Some(turn)
    }

    /// Waits until this replica has stopped itself or was asked to stop.
    pub async fn ended(&self) {
        let replica = &self.replica;
        tokio::select! {
            () = replica.failure.failed() => {}
            () = replica.core_stopped() => {}
        }
    }

    /// What this replica knows about itself and its group.
    pub fn status(&self) -> GroupStatus {
        let metrics = self.replica.raft_metrics();
        let applied = self.replica.applied();
        let health = self.replica.health();
        let members = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = members.voter_ids().collect();
        let (voters, learners) =
            members.nodes().map(|(id, node)| (*id, node.clone())).partition(|(id, _)| voters.contains(id));
        GroupStatus {
            role: if health == Health::Running { role_of(metrics.state) } else { Role::Stopped },
            health,
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log: self.replica.database.ledger().last_log_id(),
            committed: metrics.local_committed.as_ref().map(from_raft_log_id),
            applied: applied.log_id,
            applied_tx: applied.tx,
            waits_for_space: self.replica.log_store.waits_for_space(),
            limit: self.replica.proposer.limit(),
            scrub: self.replica.scrub.status(),
            refused: self.replica.proposer.refused(),
            voters,
            learners,
        }
    }

    /// Commits one proposal; in one hop when another node leads. Ends by the deadline.
    ///
    /// A proposal without a request id gets one of this node's. It is tried again with the same id, which never commits
    /// it twice, until the deadline; [`ProposeError::may_be_applied`] tells what is known then.
    pub async fn propose(&self, proposal: TxProposal, deadline: Instant) -> Result<Outcome, ProposeError> {
        self.write(proposal, deadline).await.map(Outcome::from)
    }

    /// As [`Group::propose`], with the header of the transaction. The leader has applied it; this replica may not have yet.
    pub async fn write(&self, proposal: TxProposal, deadline: Instant) -> Result<Written, ProposeError> {
        self.replica.propose(proposal, deadline).await
    }

    /// Orders values to be forgotten; in force on every replica that has applied it. Leader only: never forwarded. The time
    /// of a truncation is stamped here. Given again after [`ProposeError::OutcomeUnknown`] it does nothing twice if the
    /// marker of a truncation has a request id; the others may be given again as they are.
    ///
    /// # Errors
    /// [`ProposeError::OutcomeUnknown`] when it may be in the log; any other: it is not.
    pub async fn prune(&self, prune: Prune, deadline: Instant) -> Result<Outcome, ProposeError> {
        self.replica.prune(prune, deadline).await
    }

    /// Has the values of all transactions before `before` forgotten, by order of a `systemdb` transaction, and commits the marker
    /// that says so, with `entries` in it; in one hop when another node leads. The leader has applied it; this replica may not
    /// have yet. Tried again until the deadline, which never does it twice.
    ///
    /// # Errors
    /// [`ProposeError::OutcomeUnknown`] when it may be in the log; any other: it is not.
    pub async fn truncate(
        &self,
        order: Citation,
        before: TxId,
        entries: Vec<ProposalEntry>,
        deadline: Instant,
    ) -> Result<Written, ProposeError> {
        self.replica.truncate(order, before, entries, deadline).await
    }

    /// A truncation that came from another node: never forwarded again.
    pub async fn serve_truncation(&self, prune: Prune, deadline: Instant) -> Result<Written, ProposeError> {
        self.replica.serve_truncation(prune, deadline).await
    }

    /// Replaces the settings of the database; in force on every replica from its place in the log on. Leader only: never
    /// forwarded. May be given again.
    ///
    /// # Errors
    /// [`ProposeError::OutcomeUnknown`] when it may be in the log; any other: it is not.
    ///
    /// # Panics
    /// When the settings are not valid ([`Settings::is_valid`]): no replica could apply them.
    pub async fn configure(&self, settings: Settings, deadline: Instant) -> Result<(), ProposeError> {
        assert!(settings.is_valid(), "settings are checked where they come in");
        self.replica.administer(&Command::Configure(settings), deadline).await.map(drop)
    }

    /// Sees to it that what is due on the index is being done, in short steps, also while nothing is applied.
    pub fn tend_index(&self) {
        self.replica.state_machine.look_for_index_work();
    }

    /// Waits until a read of this level may begin here. Ends by the deadline.
    pub async fn barrier(&self, level: Level, deadline: Instant) -> Result<ReadPoint, ReadError> {
        self.replica.barrier(level, deadline).await
    }

    /// A proposal that came from another node: never forwarded again.
    pub async fn serve_propose(&self, proposal: TxProposal, deadline: Instant) -> Result<Written, ProposeError> {
        self.replica.serve_propose(proposal, deadline).await
    }

    /// Another node's question for the read index: never forwarded again.
    pub async fn serve_read_index(&self, deadline: Instant) -> Result<ReadIndex, ReadError> {
        self.replica.serve_read_index(deadline).await
    }

    /// What this replica holds of a closed segment, for a node that is in doubt about its own.
    pub async fn serve_segment_vote(&self, segment: u64) -> Option<SegmentVote> {
        self.replica.own_segment_vote(segment).await
    }

    /// Bytes of a closed segment, for a node that repairs its own.
    pub async fn serve_segment_part(&self, part: SegmentPart) -> Option<Bytes> {
        self.replica.own_segment_part(part).await
    }

    /// The snapshot with this manifest, for a node that pulls its files; none when it is not the current one.
    pub fn snapshot_source(&self, manifest: &Bytes) -> Option<Arc<dyn SnapshotSource>> {
        let current = self.replica.state_machine.current_snapshot()?;
        (current.manifest() == *manifest).then_some(current as Arc<dyn SnapshotSource>)
    }

    /// Held by whoever installs a snapshot; `None` while somebody does.
    pub(crate) fn one_install(&self) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.replica.installing.clone().try_lock_owned().ok()
    }

    /// A place for the files of a snapshot that another node sends. Any earlier unfinished one is dropped.
    ///
    /// Touches the disk: call it on an executor.
    pub fn snapshot_sink(&self, manifest: Bytes) -> Result<Box<dyn SnapshotSink>, SnapshotError> {
        crate::snapshot::sink(&self.replica.env.vfs, &self.replica.spec.dir, &self.replica.database, manifest)
    }

    /// Adds a member without a vote and waits until it has caught up. Leader only.
    pub async fn add_learner(&self, id: u64, node: BasicNode, deadline: Instant) -> Result<(), MembershipError> {
        self.replica.add_learner(id, node, deadline).await
    }

    /// Makes exactly these members voters; each must be a member already. Who was a voter and is not any more stays as a
    /// member without a vote. Leader only.
    pub async fn change_voters(&self, voters: BTreeSet<u64>, deadline: Instant) -> Result<(), MembershipError> {
        self.replica.change_voters(voters, deadline).await
    }

    /// Hands the leadership to another voter. Leader only; returns when the wish is taken, not when it is fulfilled.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), MembershipError> {
        self.replica.raft.trigger().transfer_leader(to).await.map_err(|_| MembershipError::Stopped)
    }

    /// Stops in order: no new calls, the core, the tasks, the disk. Waiting calls end. Whoever calls it again waits for the same end,
    /// which goes on when a caller goes away.
    pub async fn shutdown(&self) {
        let mut ended = self.ended.lock().get_or_insert_with(|| self.begin_end()).clone();
        // Without an answer the runtime is going away.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    fn begin_end(&self) -> watch::Receiver<bool> {
        let failed = matches!(self.replica.health(), Health::Failed { .. });
        self.replica.stopping.store(true, Ordering::Release);
        let (replica, tasks) = (self.replica.clone(), self.tasks.clone());
        let (told, ended) = watch::channel(false);
        tokio::spawn(async move {
            replica.end(&tasks, failed).await;
            // Whoever waits may open the database again.
            drop((replica, tasks));
            told.send_replace(true);
        });
        ended
    }
}

impl Replica {
    async fn end(&self, tasks: &Tasks, failed: bool) {
        self.proposer.close();
        self.log_store.close();
        // The core may have failed before; it is stopped either way. Going away in the middle would leave a handle that nobody can
        // wait for: openraft keeps who joins the core, and not that nobody does any more.
        let _ = self.raft.shutdown().await;
        self.state_machine.close();
        self.rounds.close();
        tasks.end().await;
        match failed {
            // Nothing more is written to a disk that failed; opening finds out what it holds.
            true => give_up_damaged(&self.strands, &self.database).await,
            false => self.write_last().await,
        }
    }

    /// Leaves on the disk what makes the next start short.
    async fn write_last(&self) {
        let database = self.database.clone();
        let _ = self.strands.log.run(move || database.ledger().flush().map(drop)).await;
        let database = self.database.clone();
        let last = self.strands.background.run(move || database.checkpoint()).await;
        if let Ok(Err(e)) = last {
            tracing::warn!(group = %self.group, error = %crate::strand::Chain(&e), "no last checkpoint");
        }
    }
}

/// Ends the work on the index of a replica that does not come to be.
struct CloseUnlessKept(Option<StateMachine>);

impl Drop for CloseUnlessKept {
    fn drop(&mut self) {
        if let Some(state_machine) = &self.0 {
            state_machine.close();
        }
    }
}

fn role_of(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Stopped,
    }
}

fn random_u64(env: &Env) -> u64 {
    let mut bytes = [0; 8];
    env.rng.fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// See [`Database::give_up_damaged`].
async fn give_up_damaged(strands: &Strands, database: &Arc<Database>) {
    let database = database.clone();
    if let Ok(Err(error)) = strands.background.run(move || database.give_up_damaged()).await {
        tracing::warn!(error = %crate::strand::Chain(&error), "the checkpoint of a damaged database was not removed");
    }
}

/// The first segment in which somebody has come upon damage.
pub(crate) fn first_rotten(database: &Database) -> Option<u64> {
    database.damaged().into_iter().find_map(|what| match what {
        Damaged::Segment(segment) => Some(segment),
        _ => None,
    })
}
