//! All groups of one node: forms or resumes the cluster, runs group 0, and starts a group for every database that
//! `systemdb` places here.

mod company;
mod disk;
mod lifecycle;
mod peers;
mod reopening;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alhambra_ledger::digest::sha256_parts;
use alhambra_ledger::ids::{DatabaseId, GroupId, LogId};
use alhambra_storage::command::Settings;
use alhambra_storage::limits::SEGMENT_BYTES_DEFAULT;
use alhambra_storage::memory::MemoryBudget;
use alhambra_storage::vfs::LockGuard;
use futures::future::join_all;
use openraft::BasicNode;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::disk::{DiskLimits, DiskReport};
use crate::env::Env;
use crate::error::{GroupError, WriteLimit};
use crate::forming::company::Stranger;
use crate::forming::driver::{Channels, Former};
use crate::forming::{FormError, Identity, Plan, PlanError};
use crate::group::{Group, GroupSpec, Health, Role, Tuning};
use crate::hosting::{Hosted, Hosting, until_unwanted};
use crate::link::{Hello, Limits, Links, Serving, serve};
use crate::meta::{DEFAULT_DATABASE, DatabaseRecord, Meta, NewDatabase, SYSTEM_DATABASE, User};
use crate::network::{Network, Traffic};
use crate::server::Server;
use crate::strand::of_node;
use crate::tasks::Tasks;

/// Groups that are opened at the same time.
const OPENING_MAX: usize = 4;
/// A member that is not the preferred one initialises a new group after this long, times its distance.
const INITIALISE_GRACE: Duration = Duration::from_secs(2);
/// How long one attempt to write the first records may take.
const BOOTSTRAP_WAIT: Duration = Duration::from_secs(10);
/// Wait before a failed attempt is repeated.
const RETRY_WAIT: Duration = Duration::from_millis(200);
/// After records of `systemdb` could not be read, before they are read again.
const REREAD_WAIT: Duration = Duration::from_secs(1);
/// How long the first entry of a new group may take to come here from whoever began it.
const FIRST_ENTRY_WAIT: Duration = Duration::from_secs(10);
/// How often a wait looks at what nothing wakes it for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a stop waits for the node's own tasks, which end at once unless one waits for a disk that hangs.
const TASKS_END: Duration = Duration::from_secs(2);
/// How long a node that stops tries to hand its leaderships over.
const HAND_OVER_WAIT: Duration = Duration::from_secs(2);

/// What a node is told.
#[derive(Clone)]
pub struct NodeSpec {
    /// Data folder.
    pub dir: PathBuf,
    /// Where peers connect, `host:port`; port 0 picks a free one.
    pub listen: String,
    /// How many nodes form the cluster.
    pub bootstrap_expect: usize,
    /// Addresses of all nodes, this one included; empty for a node alone.
    pub peers: Vec<String>,
    /// No TLS between nodes. Several peers without it are refused until mutual TLS exists.
    pub insecure_peers: bool,
    /// Segment size of `systemdb` and `defaultdb`, bytes.
    pub segment_bytes: u64,
    /// Settings of `systemdb` and `defaultdb`.
    pub settings: Settings,
    /// Face settings of `defaultdb`.
    pub default_face: serde_json::Value,
    /// Makes the record of the first administrator (hashes the password: slow). Called once, on group 0's first leader.
    pub first_user: Arc<dyn Fn() -> User + Send + Sync>,
    /// Timing and bounds of the groups.
    pub tuning: Tuning,
    /// Marks of the disk.
    pub disk: DiskLimits,
    /// A group that has this many committed entries yet to apply is not ready.
    pub apply_lag_max: u64,
}

impl fmt::Debug for NodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSpec")
            .field("dir", &self.dir)
            .field("listen", &self.listen)
            .field("bootstrap_expect", &self.bootstrap_expect)
            .field("peers", &self.peers)
            .field("insecure_peers", &self.insecure_peers)
            .finish_non_exhaustive()
    }
}

/// How far a node has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The cluster does not exist yet, or this node is not in it; the text says what is waited for.
    Forming(String),
    /// `systemdb` is being opened.
    Starting,
    /// Databases are served.
    Serving,
    /// Going down.
    Stopping,
}

/// One group as the readiness check sees it.
#[derive(Clone, Debug)]
pub struct GroupReadiness {
    /// Database.
    pub name: String,
    /// Group.
    pub group: GroupId,
    /// Whether it has a known leader and a small lag.
    pub ready: bool,
    /// Known leader.
    pub leader: Option<u64>,
    /// Newest entry known to be committed.
    pub committed: Option<LogId>,
    /// Newest entry applied here.
    pub applied: Option<LogId>,
    /// Whether the replica works; none while it is being opened.
    pub health: Option<Health>,
    /// What has to be written here waits, because the disk is full.
    pub waits_for_space: bool,
    /// Why this node, as the leader, refuses user writes for now.
    pub limit: Option<WriteLimit>,
    /// How often it was opened again after its disk had failed.
    pub reopened: u64,
}

/// Whether this node may be sent traffic.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// All of it: serving, among nodes of the same cluster, and every group ready.
    pub ready: bool,
    /// How far the node has come.
    pub phase: Phase,
    /// A majority of the listed nodes, this one included, has been seen to be of the same cluster.
    pub among_peers: bool,
    /// Listed peers that belong to another cluster.
    pub strangers: Vec<Stranger>,
    /// The disk of this node; nothing before the cluster is formed.
    pub disk: Option<DiskReport>,
    /// Every group that this node hosts, by number.
    pub groups: Vec<GroupReadiness>,
}

/// Why a node does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the operator asked for is not possible.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The data folder does not open.
    #[error("the data folder {dir} cannot be used")]
    Dir {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Another process uses the data folder.
    #[error("the data folder {dir} is in use by another process; stop that one, or use another --dir")]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The address for peers cannot be bound.
    #[error("cannot listen for peers on {addr}; if the port is in use, choose another --peer-port")]
    Listen {
        /// The address.
        addr: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Forming cannot go on.
    #[error(transparent)]
    Form(#[from] FormError),
    /// `systemdb` does not open.
    #[error("systemdb does not open")]
    SystemDatabase(#[source] GroupError),
}

/// All groups of this node.
pub struct Groups {
    env: Env,
    spec: NodeSpec,
    meta: Meta,
    hosting: Arc<Hosting>,
    former: Arc<Former>,
    server: Arc<Server>,
    addr: String,
    phase: watch::Sender<Life>,
    failure: Mutex<Option<StartError>>,
    failed: watch::Sender<bool>,
    serving: Mutex<Option<Serving>>,
    lock: Mutex<Option<Box<dyn LockGuard>>>,
    tasks: Tasks,
    /// A place has become free: perhaps its database is wanted again.
    reconsider: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Forming,
    Starting,
    Serving,
    Stopping,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("addr", &self.addr).field("hosting", &self.hosting).finish_non_exhaustive()
    }
}

impl Groups {
    /// Locks the data folder, listens for peers, and begins to form or resume in the background. Errors that only the
    /// operator can mend are returned at once, before anything is changed.
    pub async fn start(env: Env, spec: NodeSpec) -> Result<Arc<Self>, StartError> {
        if spec.peers.len() > 1 && !spec.insecure_peers {
            return Err(PlanError::Insecure.into());
        }
        // The address with which a lone node fills the list may have port 0 until it is bound.
        Plan::new(spec.bootstrap_expect, &spec.peers, &spec.listen)?;
        let lock = lock(&env, &spec)?;
        let listener = env
            .net
            .listen(&spec.listen)
            .await
            .map_err(|source| StartError::Listen { addr: spec.listen.clone(), source })?;
        let bound = listener.local_addr().unwrap_or_else(|_| spec.listen.clone());
        let addr = if spec.listen.ends_with(":0") { bound } else { spec.listen.clone() };
        let plan = Plan::new(spec.bootstrap_expect, &spec.peers, &addr)?;
        let former = Former::open(env.clone(), spec.dir.clone(), plan, addr.clone())?;
        if former.identity().is_some_and(|identity| identity.members.len() > 1) && !spec.insecure_peers {
            return Err(PlanError::Insecure.into());
        }
        let hosting = Arc::new(Hosting::default());
        let server = Arc::new(Server {
            env: env.clone(),
            former: former.clone(),
            groups: hosting.clone(),
            network: RwLock::new(None),
            node_calls: OnceLock::new(),
            stranger: Mutex::default(),
        });
        let serving = serve(listener, Arc::new(server.clone()), Limits::default());
        if let Err(error) = former.look_around(&mut Channels::new()).await {
            serving.stop().await;
            return Err(error.into());
        }
        let groups = Arc::new(Self {
            meta: Meta::new(env.clone(), hosting.clone()),
            env,
            spec,
            hosting,
            former,
            server,
            addr,
            phase: watch::Sender::new(Life::Forming),
            failure: Mutex::new(None),
            failed: watch::Sender::new(false),
            serving: Mutex::new(Some(serving)),
            lock: Mutex::new(Some(lock)),
            tasks: Tasks::default(),
            reconsider: Notify::new(),
        });
        groups.tasks.spawn(groups.clone().run());
        Ok(groups)
    }

    /// `systemdb`. Answers [`crate::meta::MetaError::Starting`] until it is open.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The memory that the databases of this node share.
    pub fn memory(&self) -> &Arc<MemoryBudget> {
        &self.spec.tuning.memory
    }

    /// Who this node is; none until the cluster is formed.
    pub fn identity(&self) -> Option<Identity> {
        self.former.identity()
    }

    /// Address at which peers reach this node.
    pub fn peer_addr(&self) -> String {
        self.addr.clone()
    }

    /// The replica of this database on this node; `systemdb` names group 0.
    pub fn group_by_name(&self, name: &str) -> Option<Arc<Group>> {
        self.hosting.by_name(name)
    }

    /// Waits for a group that is being opened; None at the deadline, and at once when it has trouble or is being closed.
    pub async fn wait_open(&self, id: GroupId, deadline: Instant) -> Option<Arc<Group>> {
        self.hosting.wait_found(id, deadline).await
    }

    /// Whether this node may be sent traffic, and what is missing.
    pub fn ready(&self) -> Readiness {
        let life = *self.phase.borrow();
        let phase = match life {
            Life::Forming => Phase::Forming(self.former.status()),
            Life::Starting => Phase::Starting,
            Life::Serving => Phase::Serving,
            Life::Stopping => Phase::Stopping,
        };
        let hosted = self.hosting.all();
        let wanted = hosted.iter().filter(|hosted| !hosted.is_unwanted());
        let groups: Vec<GroupReadiness> = wanted.map(|hosted| self.readiness_of(hosted)).collect();
        let placed = self.placed().iter().all(|record| groups.iter().any(|group| group.group == record.group));
        let among_peers = self.former.is_sound();
        let ready = life == Life::Serving
            && among_peers
            && self.meta.bootstrapped()
            && placed
            && groups.iter().all(|group| group.ready);
        Readiness { ready, phase, among_peers, strangers: self.former.strangers(), disk: self.own_disk(), groups }
    }

    /// Waits until [`Groups::ready`] holds; false at the deadline.
    pub async fn wait_ready(&self, deadline: Instant) -> bool {
        let ready = async {
            while !self.ready().ready {
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout_at(deadline, ready).await.is_ok()
    }

    /// Waits for an error that makes going on pointless (a disk that fails, a list of peers without this node).
    pub async fn failed(&self) -> StartError {
        let mut failed = self.failed.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = failed.wait_for(|failed| *failed).await;
            if let Some(error) = self.failure.lock().take() {
                return error;
            }
            // Somebody else has taken the error.
            std::future::pending::<()>().await;
        }
    }

    /// Stops in order: no new calls, leadership away where possible, groups, checkpoint, lock. Ends by the deadline.
    pub async fn shutdown(&self, deadline: Instant) {
        if self.phase.send_replace(Life::Stopping) == Life::Stopping {
            return;
        }
        // Before the places of the groups are free: one that still ran would open them again.
        if timeout_at(deadline.min(Instant::now() + TASKS_END), self.tasks.end()).await.is_err() {
            tracing::warn!("some tasks of the node did not end in time");
        }
        self.meta.detach();
        let hand_over = deadline.min(Instant::now() + HAND_OVER_WAIT);
        let led: Vec<Arc<Group>> = self
            .hosting
            .all()
            .into_iter()
            .filter_map(|hosted| hosted.group)
            .filter(|group| group.is_leader())
            .collect();
        join_all(led.iter().map(|group| self.hand_over(group, hand_over))).await;
        let groups = self.hosting.clear();
        if timeout_at(deadline, join_all(groups.iter().map(|group| group.shutdown()))).await.is_err() {
            tracing::warn!("some groups did not stop in time; they are recovered at the next start");
        }
        drop(groups);
        let serving = self.serving.lock().take();
        if let Some(serving) = serving {
            serving.stop().await;
        }
        if let Some(network) = self.server.network.write().take() {
            network.links().close();
        }
        self.lock.lock().take();
    }

    /// Stops without order, as a crash would, and waits for nothing.
    pub fn abandon(&self) {
        self.tasks.abort();
    }

    fn fail(&self, error: StartError) {
        tracing::error!(%error, source = ?std::error::Error::source(&error), "the node cannot go on");
        *self.failure.lock() = Some(error);
        self.failed.send_replace(true);
    }

    /// Forms or resumes, opens group 0, and follows it.
    async fn run(self: Arc<Self>) {
        let identity = match self.former.run().await {
            Ok(identity) => identity,
            Err(error) => return self.fail(error.into()),
        };
        let mut channels = Channels::new();
        if let Err(error) = self.former.await_company(&mut channels).await {
            return self.fail(error.into());
        }
        if !self.advance(Life::Starting) {
            return;
        }
        let me = Hello { cluster: identity.cluster.clone(), node: identity.node_id };
        let links = Links::new(self.env.net.clone(), me, Limits::default());
        for (node, addr) in &identity.members {
            links.set_addr(*node, addr);
        }
        let network = Network::new(links);
        *self.server.network.write() = Some(network.clone());
        self.tasks.spawn(self.clone().watch_company(identity.clone(), network.clone(), channels));
        let spec = self.system_spec(&identity);
        let (group, unwanted) = match self.open_system(spec.clone(), &network).await {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => return self.fail(StartError::SystemDatabase(error)),
            None => return,
        };
        self.meta.attach(&group, identity.members.clone());
        if !self.advance(Life::Serving) {
            return;
        }
        self.tasks.spawn(self.clone().watch_disk(identity.clone(), network.clone()));
        self.tasks.spawn(self.clone().watch_memory());
        self.tasks.spawn(self.clone().remove_leftovers());
        self.tasks.spawn(self.clone().bootstrap());
        let opening = Arc::new(Semaphore::new(OPENING_MAX));
        let mut applied = group.watch_applied();
        {
            let (groups, network) = (self.clone(), network.clone());
            self.tasks.spawn(async move { groups.keep_open(group, spec, &network, unwanted).await });
        }
        loop {
            applied.mark_unchanged();
            self.meta.refresh();
            self.reconcile(&identity, &network, &opening);
            let changed = tokio::select! {
                biased;
                changed = applied.changed() => changed,
                () = self.reconsider.notified() => continue,
                () = sleep(REREAD_WAIT), if self.meta.is_incomplete() => continue,
            };
            if changed.is_err() {
                // Its disk failed; it is being opened again.
                let group = self.hosting.wait_open(GroupId(0)).await;
                self.meta.attach(&group, identity.members.clone());
                applied = group.watch_applied();
            }
        }
    }

    /// Has databases give memory back when they hold much of the budget.
    async fn watch_memory(self: Arc<Self>) {
        let memory = &self.spec.tuning.memory;
        let tight = Arc::new(Notify::new());
        let wake = tight.clone();
        memory.on_pressure(move || wake.notify_one());
        loop {
            tight.notified().await;
            // One database at a time, so that others of the strand's thread come in between.
            while memory.is_tight() {
                let memory = memory.clone();
                match self.env.blocking(of_node::MEMORY, move || memory.relieve_one()).await {
                    Some(true) => {}
                    // Nobody has anything to give, or cannot: the next entry that is applied asks again.
                    Some(false) => break,
                    None => return,
                }
            }
        }
    }

    /// False when the node is being stopped.
    fn advance(&self, life: Life) -> bool {
        self.phase.send_if_modified(|now| {
            let goes_on = *now != Life::Stopping;
            if goes_on {
                *now = life;
            }
            goes_on
        })
    }

    fn system_spec(&self, identity: &Identity) -> GroupSpec {
        let digest = sha256_parts(&[b"systemdb of ", identity.cluster.as_bytes()]);
        let mut database = [0; 16];
        database.copy_from_slice(&digest.0[..16]);
        GroupSpec {
            group: GroupId(0),
            name: SYSTEM_DATABASE.to_owned(),
            database: DatabaseId(database),
            // Must be known before any record can be read, so it is no choice.
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            settings: self.spec.settings.clone(),
            dir: self.spec.dir.join(SYSTEM_DATABASE),
            node_id: identity.node_id,
            // Only the initiator begins: a member that has lost its files must not invent a new beginning.
            first_members: match identity.initiator == identity.node_id {
                true => identity.members.clone(),
                false => BTreeMap::new(),
            },
            settled: BTreeMap::new(),
        }
    }

    async fn open_system(
        &self,
        spec: GroupSpec,
        network: &Arc<Network>,
    ) -> Option<Result<(Arc<Group>, watch::Receiver<bool>), GroupError>> {
        let id = spec.group;
        let mut unwanted = self.hosting.reserve(id, SYSTEM_DATABASE).expect("systemdb is opened once");
        let group = match self.open_patiently(&spec, network, None, &mut unwanted).await? {
            Ok(group) => group,
            Err(error) => return Some(Err(error)),
        };
        self.hosting.settle(id, Ok(group.clone()));
        Some(Ok((group, unwanted)))
    }

    async fn open(&self, spec: GroupSpec, network: &Arc<Network>) -> Result<Arc<Group>, GroupError> {
        let began = Instant::now();
        let (id, name) = (spec.group, spec.name.clone());
        let (env, tuning) = (self.env.clone(), self.spec.tuning.clone());
        let group = Group::start(env, spec, tuning, network.of_group(id), network.clone()).await?;
        tracing::info!(group = %id, name, milliseconds = began.elapsed().as_millis(), "group is open");
        Ok(group)
    }

    /// Writes the first records as soon as group 0 has a leader. Any node may; the conditions let only one succeed.
    async fn bootstrap(self: Arc<Self>) {
        let user: Arc<Mutex<Option<User>>> = Arc::default();
        while !self.meta.bootstrapped() {
            if self.hosting.get(GroupId(0)).is_some_and(|group| group.is_leader()) {
                let database = NewDatabase {
                    name: DEFAULT_DATABASE.to_owned(),
                    settings: self.spec.settings.clone(),
                    segment_bytes: self.spec.segment_bytes,
                    face: self.spec.default_face.clone(),
                    created_by: SYSTEM_DATABASE.to_owned(),
                };
                // The record is made once, so that a password that is made up and shown is the one that counts.
                let (kept, make) = (user.clone(), self.spec.first_user.clone());
                let first_user = move || kept.lock().get_or_insert_with(|| make()).clone();
                let written = self.meta.bootstrap(first_user, database, Instant::now() + BOOTSTRAP_WAIT).await;
                if let Err(error) = written {
                    tracing::warn!(%error, "systemdb does not have its first records yet");
                }
            }
            sleep(RETRY_WAIT).await;
            self.meta.refresh();
        }
    }

    /// Databases that are to be open on this node.
    fn placed(&self) -> Vec<DatabaseRecord> {
        let Some(identity) = self.identity() else { return Vec::new() };
        let mut records = self.meta.databases();
        records.retain(|record| record.loaded && record.members.contains_key(&identity.node_id));
        records.sort_by_key(|record| record.group);
        records
    }

    /// Opens what belongs here and is not open, and closes what is open and does not belong here any more.
    fn reconcile(self: &Arc<Self>, identity: &Identity, network: &Arc<Network>, opening: &Arc<Semaphore>) {
        let placed = self.placed();
        let wanted: BTreeSet<GroupId> = placed.iter().map(|record| record.group).collect();
        let hosted = self.hosting.all();
        for id in hosted.iter().map(|hosted| hosted.id).filter(|id| id.get() != 0 && !wanted.contains(id)) {
            self.hosting.retire(id);
        }
        for record in placed {
            if let Some(unwanted) = self.hosting.reserve(record.group, &record.name) {
                let task = self.clone().host(record, identity.node_id, network.clone(), opening.clone(), unwanted);
                self.tasks.spawn(task);
            }
        }
    }

    /// What this node has exchanged with the others since it joined them; nothing before, and when it has left.
    pub fn traffic(&self) -> Option<Traffic> {
        self.server.network.read().as_ref().map(|network| network.traffic())
    }

    /// Runs until the database is not wanted here any more and is closed.
    async fn host(
        self: Arc<Self>,
        record: DatabaseRecord,
        node_id: u64,
        network: Arc<Network>,
        opening: Arc<Semaphore>,
        mut unwanted: watch::Receiver<bool>,
    ) {
        let id = record.group;
        self.open_and_keep(record, node_id, &network, &opening, unwanted.clone()).await;
        // One that does not open keeps its place and says why, until it is not wanted.
        if until_unwanted(&mut unwanted).await {
            self.hosting.remove(id);
            self.reconsider.notify_one();
        }
    }

    async fn open_and_keep(
        &self,
        record: DatabaseRecord,
        node_id: u64,
        network: &Arc<Network>,
        opening: &Semaphore,
        mut unwanted: watch::Receiver<bool>,
    ) {
        let id = record.group;
        let spec = GroupSpec {
            group: id,
            name: record.name.clone(),
            database: record.id,
            segment_bytes: record.segment_bytes,
            settings: record.settings.clone(),
            dir: self.dir_of(&record),
            node_id,
            first_members: record.members.clone(),
            settled: BTreeMap::new(),
        };
        let Ok(permit) = opening.acquire().await else { return };
        // One whose disk fails must not keep others from being opened.
        let group = match self.open_patiently(&spec, network, Some(permit), &mut unwanted).await {
            Some(Ok(group)) => group,
            Some(Err(error)) => {
                tracing::error!(group = %id, name = record.name, %error, source = ?std::error::Error::source(&error),
                    "the database does not open");
                return self.hosting.settle(id, Err(with_sources(&error).into()));
            }
            None => return,
        };
        self.hosting.settle(id, Ok(group.clone()));
        self.keep_open(group, spec, network, unwanted).await;
    }

    fn databases_dir(&self) -> PathBuf {
        self.spec.dir.join("databases")
    }

    /// Folder of a database.
    fn dir_of(&self, record: &DatabaseRecord) -> PathBuf {
        self.databases_dir().join(record.folder())
    }

    fn readiness_of(&self, hosted: &Hosted) -> GroupReadiness {
        let Some(group) = &hosted.group else {
            return GroupReadiness {
                name: hosted.name.clone(),
                group: hosted.id,
                ready: false,
                leader: None,
                committed: None,
                applied: None,
                health: hosted.trouble.clone().map(|reason| Health::Failed { reason }),
                waits_for_space: false,
                limit: None,
                reopened: hosted.reopened,
            };
        };
        let status = group.status();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index.get() + 1);
        let lag = index(status.committed).saturating_sub(index(status.applied));
        let ready = status.health == Health::Running
            && status.leader.is_some()
            && status.applied.is_some()
            && !status.waits_for_space
            && lag <= self.spec.apply_lag_max;
        GroupReadiness {
            name: hosted.name.clone(),
            group: hosted.id,
            ready,
            leader: status.leader,
            committed: status.committed,
            applied: status.applied,
            health: Some(status.health),
            waits_for_space: status.waits_for_space,
            limit: status.limit,
            reopened: hosted.reopened,
        }
    }

    /// Tries to make another voter the leader of a group.
    async fn hand_over(&self, group: &Group, deadline: Instant) {
        let Some(identity) = self.identity() else { return };
        let network = self.server.network.read().clone();
        let reachable = |node: u64| network.as_ref().is_some_and(|network| network.links().state(node).is_ok());
        let heirs = group.status().voters.into_keys().filter(|node| *node != identity.node_id && reachable(*node));
        for heir in heirs {
            if group.transfer_leader(heir).await.is_err() {
                return;
            }
            let handed = async {
                while group.status().role == Role::Leader {
                    sleep(LOOK_AGAIN).await;
                }
            };
            let attempt = deadline.min(Instant::now() + HAND_OVER_WAIT / 2);
            if timeout_at(attempt, handed).await.is_ok() || Instant::now() >= deadline {
                return;
            }
        }
    }
}

/// Sees to it that the group has members, if this one may. The preferred member begins, so that leaders are spread; the others only
/// when it does not.
async fn begin(group: &Group, spec: &GroupSpec) {
    let ids: Vec<u64> = spec.first_members.keys().copied().collect();
    let Some(own) = ids.iter().position(|member| *member == spec.node_id) else { return };
    let distance = match spec.group.get() {
        // It is begun by one of them alone.
        0 => 0,
        number => (own + ids.len() - usize::try_from(number % ids.len() as u64).unwrap_or(0)) % ids.len(),
    };
    let grace = INITIALISE_GRACE * u32::try_from(distance).unwrap_or(u32::MAX);
    let begun =
        group.is_initialized().await || (distance > 0 && timeout(grace, until_initialised(group)).await.is_ok());
    if !begun {
        initialise(group, &spec.first_members).await;
    }
    // With a vote alone the core does not let the group be initialised.
    while timeout(FIRST_ENTRY_WAIT, until_first_entry(group)).await.is_err() {
        // Files that are coming bring it.
        if group.one_install().is_some() {
            return group.begin_anew();
        }
    }
}

async fn until_initialised(group: &Group) {
    while !group.is_initialized().await {
        sleep(RETRY_WAIT).await;
    }
}

async fn until_first_entry(group: &Group) {
    while group.database().ledger().last_log_id().is_none() {
        sleep(LOOK_AGAIN).await;
    }
}

async fn initialise(group: &Group, members: &BTreeMap<u64, String>) {
    let nodes = members.iter().map(|(id, addr)| (*id, BasicNode::new(addr))).collect();
    match group.initialize(nodes).await {
        Ok(()) => tracing::info!(group = %group.id(), members = members.len(), "group initialised"),
        // Another member was faster; both wrote the same.
        Err(error) => tracing::info!(group = %group.id(), %error, "group not initialised here"),
    }
}

/// The error and its sources in one line: the innermost names the file.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Makes the data folder and takes its lock.
fn lock(env: &Env, spec: &NodeSpec) -> Result<Box<dyn LockGuard>, StartError> {
    let dir = |source| StartError::Dir { dir: spec.dir.clone(), source };
    env.vfs.create_dir_all(&spec.dir).map_err(dir)?;
    env.vfs.lock(&spec.dir.join("LOCK")).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StartError::InUse { dir: spec.dir.clone() },
        _ => dir(error),
    })
}
