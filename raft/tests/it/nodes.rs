//! Whole nodes in one process over TCP: form a cluster, create a database, write and read on any node, stop, resume.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::TxId;
use alhambra_raft::disk::DiskLimits;
use alhambra_raft::env::Env;
use alhambra_raft::envelope::PROPOSAL_BYTES_MAX;
use alhambra_raft::error::ProposeError;
use alhambra_raft::forming::machine::Durable;
use alhambra_raft::forming::{FormError, Identity, PlanError, RELEASE_COMMAND, store};
use alhambra_raft::group::{Group, Level, Tuning};
use alhambra_raft::groups::{Groups, NodeSpec, Phase, StartError};
use alhambra_raft::meta::{ADMIN_USER, DEFAULT_DATABASE, MetaError, NewDatabase, SYSTEM_DATABASE, User};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Compression, Settings};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::os::OsVfs;
use openraft::BasicNode;
use tokio::time::Instant;

use crate::cluster::{peek, set, until};
use crate::own_address::own_address;

/// Long enough for a machine that does other things too; nothing waits for it when all is well.
const LONG: Duration = Duration::from_secs(60);

pub fn soon() -> Instant {
    Instant::now() + LONG
}

fn settings() -> Settings {
    Settings {
        key_len_max: 1024,
        value_len_max: 1 << 20,
        tx_entries_max: 1024,
        header_version: 1,
        exclude_commit_time: false,
        quota_bytes: 0,
        quota_tx_per_second: 0,
        compression: Compression::None,
        replica: false,
    }
}

pub fn user(name: &str, password: &str) -> User {
    User {
        name: name.into(),
        password: password.into(),
        permissions: BTreeMap::from([("*".into(), 255)]),
        sql_privileges: BTreeMap::new(),
        active: true,
        created_by: ADMIN_USER.into(),
        created_at_ms: 0,
    }
}

pub fn orders() -> NewDatabase {
    NewDatabase {
        name: "orders".into(),
        settings: settings(),
        segment_bytes: 1 << 20,
        face: serde_json::json!({ "fileSize": 7 }),
        created_by: ADMIN_USER.into(),
    }
}

/// Nodes on one machine; `running` holds those that were started and not stopped.
pub struct Nodes {
    root: tempfile::TempDir,
    pub addrs: Vec<String>,
    expect: usize,
    users_made: Arc<AtomicU64>,
    pub running: BTreeMap<usize, Arc<Groups>>,
}

impl Nodes {
    pub fn new(count: usize, expect: usize) -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            addrs: (0..count).map(|_| own_address().to_string()).collect(),
            expect,
            users_made: Arc::default(),
            running: BTreeMap::new(),
        }
    }

    pub fn env() -> Env {
        let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
        Env::production(vfs)
    }

    pub fn dir(&self, node: usize) -> PathBuf {
        self.root.path().join(format!("node{node}"))
    }

    pub fn spec(&self, node: usize) -> NodeSpec {
        let made = self.users_made.clone();
        NodeSpec {
            dir: self.dir(node),
            listen: self.addrs[node].clone(),
            bootstrap_expect: self.expect,
            peers: self.addrs.clone(),
            insecure_peers: true,
            segment_bytes: 1 << 20,
            settings: settings(),
            default_face: serde_json::json!({}),
            first_user: Arc::new(move || {
                made.fetch_add(1, Ordering::Relaxed);
                user(ADMIN_USER, "hash")
            }),
            tuning: Tuning::default(),
            disk: DiskLimits { low_bytes: 0, reserve_bytes: 0 },
            apply_lag_max: 100,
        }
    }

    pub async fn start(&mut self, node: usize) {
        let groups = Groups::start(Self::env(), self.spec(node)).await.unwrap();
        self.running.insert(node, groups);
    }

    pub async fn ready(&self) {
        for (node, groups) in &self.running {
            assert!(groups.wait_ready(soon()).await, "node {node}: {:?}", groups.ready());
        }
    }

    pub async fn stop(&mut self, node: usize) {
        let groups = self.running.remove(&node).unwrap();
        groups.shutdown(soon()).await;
    }

    pub async fn stop_all(&mut self) {
        for node in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(node).await;
        }
    }

    async fn put(&self, node: usize, database: &str, key: &str, value: &str) -> TxId {
        let group = self.running[&node].group_by_name(database).unwrap();
        match group.propose(set(key, value), soon()).await.unwrap() {
            Outcome::Committed { tx, .. } => tx,
            other => panic!("{other:?}"),
        }
    }

    /// Reads with the strongest level.
    async fn get(&self, node: usize, database: &str, key: &str) -> Option<String> {
        let group = self.running[&node].group_by_name(database).unwrap();
        group.barrier(Level::Linearizable, soon()).await.unwrap();
        peek(&group, key)
    }
}

pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

#[test]
fn three_nodes_form_write_and_read_everywhere_and_resume_with_the_same_identity() {
    run(async {
        let mut nodes = Nodes::new(3, 3);
        for node in 0..3 {
            nodes.start(node).await;
        }
        nodes.ready().await;
        let identity = nodes.running[&0].identity().unwrap();
        assert_eq!(identity.cluster.len(), 20);
        let mut ids: Vec<u64> = Vec::new();
        for groups in nodes.running.values() {
            assert_eq!(groups.identity().unwrap().cluster, identity.cluster);
            assert_eq!(groups.identity().unwrap().members, identity.members);
            ids.push(groups.identity().unwrap().node_id);
            groups.meta().barrier(soon()).await.unwrap();
            assert_eq!(groups.meta().user(ADMIN_USER).unwrap().password, "hash");
            let default = groups.meta().database(DEFAULT_DATABASE).unwrap();
            assert_eq!((default.created_by.as_str(), default.group.get()), (SYSTEM_DATABASE, 1));
        }
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!(nodes.users_made.load(Ordering::Relaxed), 1, "the first user is made once");

        // A database made on one node serves on all of them.
        let (record, existed) = nodes.running[&2].meta().create_database(orders(), false, soon()).await.unwrap();
        assert!(!existed);
        let again = nodes.running[&1].meta().create_database(orders(), false, soon()).await;
        assert_eq!(again, Err(MetaError::Exists { name: "orders".into() }));
        let (same, existed) = nodes.running[&0].meta().create_database(orders(), true, soon()).await.unwrap();
        assert!(existed);
        assert_eq!(same, record);
        assert_eq!(record.face, serde_json::json!({ "fileSize": 7 }));

        for node in 0..3 {
            nodes.put(node, "orders", &format!("from {node}"), "x").await;
            nodes.put(node, DEFAULT_DATABASE, "last", &node.to_string()).await;
        }
        for node in 0..3 {
            for from in 0..3 {
                assert_eq!(nodes.get(node, "orders", &format!("from {from}")).await.as_deref(), Some("x"));
            }
            assert_eq!(nodes.get(node, DEFAULT_DATABASE, "last").await.as_deref(), Some("2"));
        }

        // What could not cross a link is refused before it is in the log, and the largest that is taken crosses.
        let group = nodes.running[&1].group_by_name("orders").unwrap();
        let vast = group.propose(set("vast", &"x".repeat(PROPOSAL_BYTES_MAX)), soon()).await;
        assert!(matches!(vast, Err(ProposeError::TooLarge { .. })), "{vast:?}");
        for node in 0..3 {
            let group = nodes.running[&node].group_by_name("orders").unwrap();
            let large = group.propose(set("large", &"x".repeat(PROPOSAL_BYTES_MAX - 1024)), soon()).await;
            assert_eq!(large, Ok(Outcome::Rejected(Rejection::ValueTooLong)), "applied everywhere, with a verdict");
        }
        drop(group);

        // Users change under conditions.
        let eve = user("eve", "one");
        let meta = nodes.running[&1].meta();
        meta.put_user(eve.clone(), None, None, soon()).await.unwrap();
        assert_eq!(meta.put_user(eve.clone(), None, None, soon()).await, Err(MetaError::Exists { name: "eve".into() }));
        meta.put_user(user("eve", "two"), Some(&eve), None, soon()).await.unwrap();
        let stale = meta.put_user(user("eve", "three"), Some(&eve), None, soon()).await;
        assert_eq!(stale, Err(MetaError::Conflict { name: "eve".into() }));
        // Also under the condition that whoever writes has still the rights that were looked at.
        let other = nodes.running[&2].meta();
        other.barrier(soon()).await.unwrap();
        let (admin, two) = (other.user(ADMIN_USER).unwrap(), other.user("eve").unwrap());
        other.put_user(user("mallory", "one"), None, Some(&two), soon()).await.unwrap();
        other.put_user(user("eve", "three"), Some(&two), Some(&admin), soon()).await.unwrap();
        // Node 1 may not have heard of it: then the ledger refuses what its records allow.
        let late = meta.put_user(user("trent", "one"), None, Some(&two), soon()).await;
        assert_eq!(late, Err(MetaError::Conflict { name: "eve".into() }));
        meta.barrier(soon()).await.unwrap();
        assert_eq!((meta.user("trent"), meta.user("eve").unwrap().password), (None, "three".into()));
        let gone = meta.put_user(user("trent", "one"), None, Some(&user("nobody", "x")), soon()).await;
        assert_eq!(gone, Err(MetaError::NotFound { name: "nobody".into() }));

        // One node less: the others go on, wherever the leaders were.
        nodes.stop(0).await;
        for node in 1..3 {
            nodes.put(node, "orders", "while one is away", &node.to_string()).await;
        }
        nodes.start(0).await;
        nodes.ready().await;
        assert_eq!(nodes.get(0, "orders", "while one is away").await.as_deref(), Some("2"));

        nodes.stop_all().await;
        for node in 0..3 {
            nodes.start(node).await;
        }
        nodes.ready().await;
        for node in 0..3 {
            let groups = &nodes.running[&node];
            assert_eq!(groups.identity().unwrap().cluster, identity.cluster);
            assert_eq!(nodes.get(node, "orders", "from 1").await.as_deref(), Some("x"));
            groups.meta().barrier(soon()).await.unwrap();
            assert_eq!(groups.meta().user("eve").unwrap().password, "three");
            assert_eq!(groups.meta().database("orders").unwrap(), record);
        }
        assert_eq!(nodes.users_made.load(Ordering::Relaxed), 1);
        nodes.stop_all().await;
    });
}

/// Frames of this database take about 200 bytes, so a segment holds about ten.
fn small_segments() -> NewDatabase {
    NewDatabase { name: "small".into(), segment_bytes: 2048, ..orders() }
}

/// Numbers of closed segments and what they hold.
fn closed_segments(group: &Group) -> BTreeMap<u64, Vec<u8>> {
    let ledger = group.database().ledger();
    let closed = ledger.segments().into_iter().filter(|segment| segment.closed);
    closed.map(|segment| (segment.number, std::fs::read(ledger.segment_path(segment.number)).unwrap())).collect()
}

/// Newest entry of the raft snapshot that this replica has installed or made.
fn snapshot_of(group: &Group) -> Option<u64> {
    use openraft::async_runtime::WatchReceiver as _;
    group.raft().metrics().borrow_watched().snapshot.map(|id| id.index)
}

#[test]
fn a_node_that_missed_many_segments_gets_files_over_the_link_and_a_damaged_file_is_noticed() {
    run(async {
        let mut nodes = Nodes::new(3, 3);
        for node in 0..3 {
            nodes.start(node).await;
        }
        nodes.ready().await;
        nodes.running[&0].meta().create_database(small_segments(), false, soon()).await.unwrap();
        nodes.ready().await;
        let away = 2;
        nodes.stop(away).await;
        for n in 0..120 {
            nodes.put(n % 2, "small", &format!("k{n}"), &"x".repeat(100)).await;
        }
        let leader = {
            let group = nodes.running[&0].group_by_name("small").unwrap();
            let identity = nodes.running[&0].identity().unwrap();
            until("a leader", || group.leader().is_some()).await;
            let addr = &identity.members[&group.leader().unwrap()];
            nodes.addrs.iter().position(|own| own == addr).unwrap()
        };
        let leading = nodes.running[&leader].group_by_name("small").unwrap();
        until("files to be prepared", || leading.database().purge_mark().is_some()).await;

        // A byte flips in a sealed segment of the leader: the receiver does not take it over.
        let path = leading.database().ledger().segment_path(1);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[700] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        nodes.start(away).await;
        let behind = nodes.running[&away].clone();
        until("the group to open", || behind.group_by_name("small").is_some()).await;
        let receiver = behind.group_by_name("small").unwrap();
        let taken = catches_up(&receiver, &leading, Duration::from_secs(3)).await;
        assert!(!taken, "files with a flipped byte were taken over");
        std::fs::write(&path, &good).unwrap();

        until("the node to catch up", || receiver.database().applied().tx == leading.database().applied().tx).await;
        // The core hears of it a moment after the database has it.
        until("the node to have come up by files", || snapshot_of(&receiver).is_some()).await;
        let [came, went] = [away, leader].map(|node| nodes.running[&node].traffic().unwrap());
        let bytes = leading.database().ledger().segment_path(1).metadata().unwrap().len();
        assert!(came.snapshots_received > 0 && came.snapshot_bytes_received > bytes, "{came:?}");
        assert!(went.snapshots_sent > 0 && went.snapshots_received == 0, "{went:?}");
        assert!(went.sent.iter().all(|(_, sent)| sent.frames >= sent.packets && sent.packets > 0), "{went:?}");
        assert_eq!(nodes.get(away, "small", "k119").await, Some("x".repeat(100)));
        let (ours, theirs) = (closed_segments(&receiver), closed_segments(&leading));
        assert!(ours.len() > 5);
        for (number, bytes) in ours {
            assert!(theirs.get(&number).is_none_or(|same| *same == bytes), "segment {number}");
        }
        drop((behind, receiver, leading));
        nodes.stop_all().await;
    });
}

/// Whether the replica reaches the other within the time.
async fn catches_up(replica: &Group, other: &Group, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        if replica.database().applied().tx == other.database().applied().tx {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

#[test]
fn a_node_that_waits_is_added_as_a_learner() {
    run(async {
        let mut nodes = Nodes::new(3, 2);
        nodes.start(0).await;
        nodes.start(1).await;
        nodes.ready().await;
        let identity = nodes.running[&0].identity().unwrap();
        // What the command for joining will write.
        let joined = Identity { node_id: 3, ..identity };
        let dir = nodes.dir(2);
        std::fs::create_dir_all(&dir).unwrap();
        store::save(&OsVfs, &dir, &Durable::Formed(joined)).unwrap();
        nodes.start(2).await;
        let new = nodes.running[&2].clone();
        until("systemdb to open", || new.group_by_name(SYSTEM_DATABASE).is_some()).await;
        let systems: Vec<_> =
            nodes.running.values().map(|groups| groups.group_by_name(SYSTEM_DATABASE).unwrap()).collect();
        until("a leader", || systems.iter().any(|group| group.is_leader())).await;
        let leader = systems.iter().find(|group| group.is_leader()).unwrap();
        leader.add_learner(3, BasicNode::new(&nodes.addrs[2]), soon()).await.unwrap();
        new.meta().barrier(soon()).await.unwrap();
        assert_eq!(new.meta().user(ADMIN_USER).unwrap().password, "hash");
        assert_eq!(systems[2].status().learners.keys().copied().collect::<Vec<_>>(), [3]);
        // It writes like any other node: one hop.
        new.meta().put_user(user("eve", "one"), None, None, soon()).await.unwrap();
        nodes.running[&0].meta().barrier(soon()).await.unwrap();
        assert!(nodes.running[&0].meta().user("eve").is_some());
        drop((new, systems));
        nodes.stop_all().await;
    });
}

#[test]
fn one_node_alone_forms_at_once_and_a_second_process_on_its_folder_is_refused() {
    run(async {
        let mut nodes = Nodes::new(1, 1);
        let mut spec = nodes.spec(0);
        spec.peers.clear();
        spec.insecure_peers = false;
        spec.listen = "127.0.0.1:0".into();
        let groups = Groups::start(Nodes::env(), spec.clone()).await.unwrap();
        assert!(groups.wait_ready(soon()).await, "{:?}", groups.ready());
        nodes.running.insert(0, groups.clone());
        nodes.put(0, DEFAULT_DATABASE, "k", "v").await;
        let second = Groups::start(Nodes::env(), spec.clone()).await;
        assert!(matches!(second, Err(StartError::InUse { .. })), "{second:?}");
        // Its port, with another folder.
        let mut neighbour = spec.clone();
        neighbour.dir = nodes.dir(1);
        neighbour.listen = groups.peer_addr();
        let neighbour = Groups::start(Nodes::env(), neighbour).await;
        assert!(matches!(neighbour, Err(StartError::Listen { .. })), "{neighbour:?}");
        let cluster = groups.identity().unwrap().cluster;
        drop(groups);
        nodes.stop_all().await;
        let groups = Groups::start(Nodes::env(), spec).await.unwrap();
        assert!(groups.wait_ready(soon()).await);
        assert_eq!(groups.identity().unwrap().cluster, cluster);
        nodes.running.insert(0, groups);
        assert_eq!(nodes.get(0, DEFAULT_DATABASE, "k").await.as_deref(), Some("v"));
        nodes.stop_all().await;
    });
}

#[test]
fn impossible_plans_and_foreign_folders_are_refused_with_what_to_do() {
    run(async {
        let mut nodes = Nodes::new(2, 2);
        let mut spec = nodes.spec(0);
        spec.insecure_peers = false;
        let refused = Groups::start(Nodes::env(), spec).await;
        assert!(matches!(refused, Err(StartError::Plan(PlanError::Insecure))), "{refused:?}");
        let mut spec = nodes.spec(0);
        spec.bootstrap_expect = 1;
        let refused = Groups::start(Nodes::env(), spec).await;
        assert!(matches!(refused, Err(StartError::Plan(PlanError::NotMoreThanHalf { .. }))), "{refused:?}");
        assert!(!nodes.dir(0).exists(), "nothing is made before the plan is known to be possible");

        nodes.start(0).await;
        nodes.start(1).await;
        nodes.ready().await;
        // Another cluster, whose node then is started with the peers of the first.
        let mut alone = nodes.spec(0);
        alone.dir = nodes.dir(7);
        alone.listen = "127.0.0.1:0".into();
        alone.peers.clear();
        alone.bootstrap_expect = 1;
        let other = Groups::start(Nodes::env(), alone.clone()).await.unwrap();
        assert!(other.wait_ready(soon()).await);
        other.shutdown(soon()).await;
        drop(other);
        alone.peers = nodes.addrs.clone();
        alone.bootstrap_expect = 2;
        let refused = Groups::start(Nodes::env(), alone).await;
        match refused {
            Err(StartError::Form(FormError::OtherCluster { theirs, .. })) => {
                assert_eq!(theirs, nodes.running[&0].identity().unwrap().cluster);
            }
            other => panic!("{other:?}"),
        }
        // A node that is not in the list finds that out.
        let mut stranger = nodes.spec(0);
        stranger.dir = nodes.dir(8);
        stranger.listen = "127.0.0.1:0".into();
        let stranger = Groups::start(Nodes::env(), stranger).await.unwrap();
        let error = stranger.failed().await;
        assert!(matches!(error, StartError::Form(FormError::NotListed { .. })), "{error:?}");
        stranger.shutdown(soon()).await;
        nodes.stop_all().await;
    });
}

#[test]
fn two_of_three_form_and_the_third_waits_to_be_added() {
    run(async {
        let mut nodes = Nodes::new(3, 2);
        nodes.start(0).await;
        nodes.start(1).await;
        nodes.ready().await;
        nodes.start(2).await;
        let late = nodes.running[&2].clone();
        let deadline = soon();
        while !matches!(late.ready().phase, Phase::Forming(text) if text.contains("waits to be added")) {
            assert!(Instant::now() < deadline, "{:?}", late.ready());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(late.identity(), None);
        assert_eq!(late.meta().barrier(soon()).await, Err(MetaError::Starting));
        assert!(!RELEASE_COMMAND.is_empty());
        drop(late);
        nodes.stop_all().await;
    });
}
