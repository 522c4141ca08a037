//! Whole nodes on disks that fail or run full: the others go on, nothing acknowledged is lost, and the node comes back by
//! itself, in the same process, when its disk answers again or has room.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::TxId;
use alhambra_raft::disk::DiskLimits;
use alhambra_raft::env::Env;
use alhambra_raft::error::{ProposeError, ReadError, WriteLimit};
use alhambra_raft::group::{Group, Health, Level, Tuning};
use alhambra_raft::groups::{GroupReadiness, Groups, NodeSpec};
use alhambra_raft::meta::{ADMIN_USER, DEFAULT_DATABASE, NewDatabase, User};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Citation, Prune, PruneTarget, Settings};
use alhambra_storage::error::Error as StorageError;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{OpenMode, Vfs as _};
use futures::future::{join, join_all};
use tokio::time::Instant;

use crate::cluster::{peek, set, until};
use crate::own_address::own_address;

const LONG: Duration = Duration::from_secs(60);
const LIMITS: DiskLimits = DiskLimits { low_bytes: 800_000, reserve_bytes: 100_000 };

fn soon() -> Instant {
    Instant::now() + LONG
}

pub fn user(name: &str) -> User {
    User {
        name: name.into(),
        password: "hash".into(),
        permissions: BTreeMap::from([("*".into(), 255)]),
        sql_privileges: BTreeMap::new(),
        active: true,
        created_by: ADMIN_USER.into(),
        created_at_ms: 0,
    }
}

struct Node {
    disk: MemVfs,
    faulty: FaultyVfs,
    spec: NodeSpec,
    groups: Arc<Groups>,
}

/// Nodes of one cluster.
struct Nodes(Vec<Node>);

impl Nodes {
    /// Three that are ready, each with a database `orders` besides the first one.
    async fn three() -> Self {
        let nodes = Self::of(3).await;
        nodes.create("orders", 1 << 20).await;
        nodes
    }

    /// So many that are ready.
    async fn of(count: usize) -> Self {
        let addrs: Vec<String> = (0..count).map(|_| own_address().to_string()).collect();
        let mut nodes = Vec::new();
        for addr in &addrs {
            let disk = MemVfs::new();
            let faulty = FaultyVfs::on_memory(disk.clone());
            let spec = NodeSpec {
                dir: PathBuf::from("/data"),
                listen: addr.clone(),
                bootstrap_expect: count,
                peers: addrs.clone(),
                insecure_peers: true,
                segment_bytes: 1 << 20,
                settings: Settings::DEFAULT,
                default_face: serde_json::json!({}),
                first_user: Arc::new(|| user(ADMIN_USER)),
                tuning: Tuning::default(),
                disk: LIMITS,
                apply_lag_max: 100,
            };
            let groups = Groups::start(Env::production(Arc::new(faulty.clone())), spec.clone()).await.unwrap();
            nodes.push(Node { disk, faulty, spec, groups });
        }
        let nodes = Self(nodes);
        nodes.ready().await;
        nodes
    }

    /// Makes a database, which is open on all nodes then. Tries again when it is not told whether it was made.
    async fn create(&self, name: &str, segment_bytes: u64) {
        let database = || NewDatabase {
            name: name.into(),
            settings: Settings::DEFAULT,
            segment_bytes,
            face: serde_json::json!({}),
            created_by: ADMIN_USER.into(),
        };
        let until = soon();
        while let Err(error) = self.0[0].groups.meta().create_database(database(), true, until).await {
            assert!(Instant::now() < until, "{name} is not made: {error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.ready().await;
    }

    /// Kills a node; what it had written stays.
    async fn kill(&mut self, node: usize) {
        let node = &mut self.0[node];
        node.faulty.break_below(Path::new("/data"), ErrorKind::Other);
        node.groups.shutdown(soon()).await;
        node.disk.crash(Crash::Process);
    }

    /// Starts a node again that was killed.
    async fn start(&mut self, node: usize) {
        let node = &mut self.0[node];
        node.faulty = FaultyVfs::on_memory(node.disk.clone());
        node.groups = Groups::start(Env::production(Arc::new(node.faulty.clone())), node.spec.clone()).await.unwrap();
    }

    /// The folder of a database on a node.
    fn folder(&self, node: usize, name: &str) -> PathBuf {
        let names = self.0[node].disk.read_dir(Path::new("/data/databases")).unwrap();
        let (folder, _) = names.into_iter().find(|(folder, _)| folder.starts_with(&format!("{name}."))).unwrap();
        Path::new("/data/databases").join(folder)
    }

    async fn ready(&self) {
        for node in &self.0 {
            assert!(node.groups.wait_ready(soon()).await, "{:?}", node.groups.ready());
        }
    }

    fn group(&self, node: usize, name: &str) -> Arc<Group> {
        self.0[node].groups.group_by_name(name).expect("open")
    }

    /// The group, once it is open: a replica that notices late that its disk had failed is opened again even now.
    async fn opened(&self, node: usize, name: &str) -> Arc<Group> {
        until("the group to be open", || self.0[node].groups.group_by_name(name).is_some()).await;
        self.group(node, name)
    }

    fn readiness(&self, node: usize, name: &str) -> GroupReadiness {
        let ready = self.0[node].groups.ready();
        ready.groups.into_iter().find(|group| group.name == name).expect("hosted")
    }

    async fn leader(&self, name: &str) -> usize {
        let find =
            || (0..3).find(|node| self.0[*node].groups.group_by_name(name).is_some_and(|group| group.is_leader()));
        until("a leader", || find().is_some()).await;
        find().unwrap()
    }

    /// Writes through a node until it is acknowledged; what cannot be known is written again under the same key.
    async fn put(&self, node: usize, name: &str, key: &str) -> TxId {
        loop {
            match self.opened(node, name).await.propose(set(key, "v"), soon()).await {
                Ok(Outcome::Committed { tx, .. }) => return tx,
                Ok(other) => panic!("not committed: {other:?}"),
                // It may have noticed only now that its disk had failed, and is opened again then.
                Err(ProposeError::OutcomeUnknown | ProposeError::Stopped) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// All nodes have the same, and every acknowledged key.
    async fn assert_equal(&self, name: &str, keys: &[String]) {
        for node in 0..3 {
            let group = self.opened(node, name).await;
            group.barrier(Level::Linearizable, soon()).await.unwrap();
            for key in keys {
                assert_eq!(peek(&group, key).as_deref(), Some("v"), "{key} on node {node}");
            }
        }
        let applied = || {
            let groups = (0..3).map(|node| self.0[node].groups.group_by_name(name));
            groups.map(|group| group.map(|group| group.database().applied())).collect::<Vec<_>>()
        };
        until("equal replicas", || {
            let applied = applied();
            applied[0].is_some() && applied.windows(2).all(|pair| pair[0] == pair[1])
        })
        .await;
    }

    async fn stop(self) {
        for node in &self.0 {
            node.groups.shutdown(soon()).await;
        }
    }

    /// Breaks a folder of a node's disk, writes through another node meanwhile, mends the disk and waits.
    async fn fail_and_mend(&self, broken: usize, below: &Path, name: &str, tag: &str) -> Vec<String> {
        let other = (broken + 1) % 3;
        let mut keys = Vec::new();
        let reopened = self.readiness(broken, name).reopened;
        self.0[broken].faulty.break_below(below, ErrorKind::Other);
        let mut write = async |n: usize| {
            let key = format!("{tag}{n}");
            self.put(other, name, &key).await;
            keys.push(key);
        };
        for n in 0..20 {
            write(n).await;
        }
        until("the node says that its disk failed", || {
            let readiness = self.readiness(broken, name);
            !readiness.ready && matches!(readiness.health, Some(Health::Failed { .. }))
        })
        .await;
        until("callers of the node find no group to wait for", || self.0[broken].groups.group_by_name(name).is_none())
            .await;
        for n in 20..40 {
            write(n).await;
        }
        self.0[broken].faulty.set_broken(None);
        assert!(self.0[broken].groups.wait_ready(soon()).await, "{:?}", self.0[broken].groups.ready());
        assert!(self.readiness(broken, name).reopened > reopened);
        keys
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

#[test]
fn a_node_whose_disk_failed_comes_back_by_itself_and_ends_equal() {
    run(async {
        let nodes = Nodes::three().await;
        let leader = nodes.leader("orders").await;
        let mut keys = Vec::new();
        for (round, broken) in [(leader + 1) % 3, (leader + 2) % 3].into_iter().enumerate() {
            keys.extend(nodes.fail_and_mend(broken, Path::new("/data"), "orders", &format!("r{round}-")).await);
        }
        nodes.ready().await;
        nodes.assert_equal("orders", &keys).await;
        nodes.stop().await;
    });
}

#[test]
fn a_leader_whose_disk_fails_loses_its_place_and_nothing_acknowledged() {
    run(async {
        let nodes = Nodes::three().await;
        let old = nodes.leader("orders").await;
        let keys = nodes.fail_and_mend(old, Path::new("/data"), "orders", "k").await;
        nodes.ready().await;
        nodes.assert_equal("orders", &keys).await;
        nodes.stop().await;
    });
}

#[test]
fn databases_of_the_node_whose_files_answer_go_on() {
    run(async {
        let nodes = Nodes::three().await;
        let broken = nodes.leader("orders").await;
        let before = nodes.readiness(broken, DEFAULT_DATABASE).reopened;
        let folder = nodes.folder(broken, "orders");
        let keys = nodes.fail_and_mend(broken, &folder, "orders", "k").await;
        let tx = nodes.put(broken, DEFAULT_DATABASE, "elsewhere").await;
        assert!(tx.0 > 0);
        assert_eq!(nodes.readiness(broken, DEFAULT_DATABASE).reopened, before, "the other database was never closed");
        nodes.assert_equal("orders", &keys).await;
        nodes.stop().await;
    });
}

#[test]
fn systemdb_is_opened_again_like_any_other() {
    run(async {
        let nodes = Nodes::three().await;
        let broken = nodes.leader("systemdb").await;
        nodes.0[broken].faulty.break_below(Path::new("/data/systemdb"), ErrorKind::Other);
        let other = (broken + 1) % 3;
        // The first may end unknown, as the leader goes; the next ones are taken by another.
        let mut made = Vec::new();
        for n in 0..5 {
            let name = format!("user{n}");
            if nodes.0[other].groups.meta().put_user(user(&name), None, None, soon()).await.is_ok() {
                made.push(name);
            }
        }
        assert!(made.len() >= 4, "{made:?}");
        until("systemdb of the broken node is closed", || nodes.0[broken].groups.group_by_name("systemdb").is_none())
            .await;
        nodes.0[broken].faulty.set_broken(None);
        nodes.ready().await;
        let meta = nodes.0[broken].groups.meta();
        meta.barrier(soon()).await.unwrap();
        for name in made {
            assert!(meta.user(&name).is_some(), "{name}");
        }
        let record = NewDatabase {
            name: "later".into(),
            settings: Settings::DEFAULT,
            segment_bytes: 1 << 20,
            face: serde_json::json!({}),
            created_by: ADMIN_USER.into(),
        };
        meta.create_database(record, false, soon()).await.unwrap();
        nodes.put(broken, "later", "k").await;
        nodes.stop().await;
    });
}

/// Whoever went on waiting would hold it, and it could not be opened again before the deadline.
#[test]
fn whoever_waits_for_a_replica_that_fails_is_told_at_once_and_it_is_opened_again() {
    run(async {
        let nodes = Nodes::of(1).await;
        nodes.create("orders", 1 << 20).await;
        let faulty = &nodes.0[0].faulty;
        let group = nodes.group(0, "orders");
        let (never, late) = (TxId(99), Instant::now() + 60 * LONG);
        let waits = async {
            let applied = group.wait_applied(late, |applied| applied.tx >= never);
            let (turn, applied) = tokio::join!(group.import_turn(never), applied);
            assert!(turn.is_none() && matches!(applied, Err(ReadError::Stopped)), "{turn:?} {applied:?}");
        };
        let fails = async {
            faulty.break_below(Path::new("/data/databases"), ErrorKind::Other);
            assert!(group.propose(set("lost", "v"), soon()).await.is_err());
            until("it is closed", || nodes.0[0].groups.group_by_name("orders").is_none()).await;
            faulty.set_broken(None);
        };
        let both = tokio::time::timeout_at(soon(), join(waits, fails)).await;
        assert!(both.is_ok(), "they wait for what does not come");
        drop(group);
        nodes.put(0, "orders", "later").await;
        nodes.stop().await;
    });
}

fn segment_file(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("ledger/{segment:010}.seg"))
}

/// Inverts a byte of an entry of a segment, counted from 0; answers the bytes before.
fn rot(disk: &MemVfs, folder: &Path, segment: u64, entry: usize) -> Vec<u8> {
    let file = disk.open(&segment_file(folder, segment), OpenMode::ReadWrite).unwrap();
    let bytes = file.read_at(0, usize::try_from(file.len().unwrap()).unwrap()).unwrap();
    let len = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let start = (0..entry).fold(256, |at, _| at + 8 + len(at));
    assert!(len(start) > 0);
    let at = start + 8 + len(start) - 1;
    file.write_at(at as u64, &[!bytes[at]]).unwrap();
    bytes.to_vec()
}

/// The frames of a segment are what they were in `whole`; zeros may follow.
fn assert_mended(disk: &MemVfs, folder: &Path, segment: u64, whole: &[u8]) {
    let path = segment_file(folder, segment);
    let frames_then = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let file = disk.open(&path, OpenMode::Read).unwrap();
    assert_eq!(file.read_at(0, frames_then).unwrap(), &whole[..frames_then], "{}", path.display());
}

#[test]
fn what_rotted_before_a_restart_is_mended_from_the_others_and_waited_for_while_they_cannot_help() {
    run(async {
        let mut nodes = Nodes::three().await;
        let keys: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
        for key in &keys {
            nodes.put(0, "orders", key).await;
        }
        nodes.assert_equal("orders", &keys).await;
        let rotten = (nodes.leader("orders").await + 1) % 3;
        let folders = [PathBuf::from("/data/systemdb"), nodes.folder(rotten, "orders")];
        nodes.kill(rotten).await;
        let disk = nodes.0[rotten].disk.clone();
        let whole = folders.clone().map(|folder| rot(&disk, &folder, 0, 1));
        // The others cannot read what they have, but for `systemdb`.
        let others = [(rotten + 1) % 3, (rotten + 2) % 3];
        for other in others {
            nodes.0[other].faulty.break_below(Path::new("/data/databases"), ErrorKind::Other);
        }
        nodes.start(rotten).await;
        until("it says what it waits for", || {
            let groups = nodes.0[rotten].groups.ready().groups;
            groups.iter().any(|group| match (&group.health, group.name.as_str()) {
                (Some(Health::Failed { reason }), "orders") => {
                    reason.starts_with("segment 0 of orders has rotted; waiting for other members") && !group.ready
                }
                _ => false,
            })
        })
        .await;
        assert!(nodes.0[rotten].groups.group_by_name("systemdb").is_some(), "the others could help with this one");
        assert!(nodes.0[rotten].groups.group_by_name("orders").is_none());
        for other in others {
            nodes.0[other].faulty.set_broken(None);
        }
        nodes.ready().await;
        nodes.assert_equal("orders", &keys).await;
        for (folder, whole) in folders.iter().zip(&whole) {
            assert_mended(&disk, folder, 0, whole);
        }
        nodes.put(rotten, "orders", "later").await;
        nodes.stop().await;
    });
}

#[test]
fn a_closed_segment_and_the_newest_that_rotted_together_are_both_mended() {
    run(async {
        let mut nodes = Nodes::three().await;
        nodes.create("small", 1_024).await;
        let rotten = (nodes.leader("small").await + 1) % 3;
        let group = nodes.group(rotten, "small");
        let database = group.database();
        let mut keys = Vec::new();
        // Until the newest of some segments has several entries; nothing more is to come by itself.
        loop {
            let key = format!("k{}", keys.len());
            nodes.put(0, "small", &key).await;
            keys.push(key);
            nodes.assert_equal("small", &keys).await;
            until("all that is closed is sealed", || {
                let mut closed = database.ledger().segments().into_iter().filter(|segment| segment.closed);
                closed.next_back().is_none_or(|last| database.seal(last.number).unwrap().is_some())
            })
            .await;
            let newest = *database.ledger().segments().last().unwrap();
            if newest.number > 2 && newest.frame_bytes > 500 {
                break;
            }
        }
        nodes.assert_equal("small", &keys).await;
        database.checkpoint().unwrap();
        let newest = database.ledger().segments().last().unwrap().number;
        drop(group);
        nodes.kill(rotten).await;
        let (disk, folder) = (nodes.0[rotten].disk.clone(), nodes.folder(rotten, "small"));
        // Of the closed one nothing is remembered, so that opening stops there; and the newest is mended before it.
        disk.remove_file(&folder.join("ledger/0000000001.idx")).unwrap();
        let whole = [(1, 1), (newest, 0)].map(|(segment, entry)| (segment, rot(&disk, &folder, segment, entry)));
        nodes.start(rotten).await;
        nodes.ready().await;
        nodes.assert_equal("small", &keys).await;
        for (segment, whole) in &whole {
            assert_mended(&disk, &folder, *segment, whole);
        }
        nodes.put(rotten, "small", "later").await;
        nodes.stop().await;
    });
}

/// Which is before the group has an entry, or a vote, or both.
#[test]
fn a_database_is_begun_whichever_step_of_its_beginning_the_disk_refuses() {
    const AT_ONCE: u64 = 8;
    run(async {
        let refuse = async |step: u64| {
            let nodes = Nodes::of(1).await;
            let faulty = nodes.0[0].faulty.clone();
            let at = faulty.step_count() + step;
            faulty.fail_at(at, Fault::Error(ErrorKind::Other));
            nodes.create("late", 1 << 20).await;
            let was_reached = faulty.step_count() > at;
            nodes.put(0, "late", "k").await;
            nodes.stop().await;
            was_reached
        };
        for from in (0..).step_by(AT_ONCE as usize) {
            let reached = join_all((from..from + AT_ONCE).map(refuse)).await;
            if !reached.contains(&true) {
                assert!(from > 2 * AT_ONCE, "a beginning has more steps than {from}");
                break;
            }
        }
    });
}

#[test]
fn below_the_low_water_mark_user_writes_are_refused_until_there_is_room() {
    run(async {
        let nodes = Nodes::three().await;
        nodes.put(0, "orders", "before").await;
        let leave = |node: usize, bytes: Option<u64>| {
            let disk = &nodes.0[node].disk;
            disk.set_capacity(bytes.map(|bytes| disk.size_bytes() + bytes));
        };
        let low = |node: usize| nodes.0[node].groups.ready().disk.is_some_and(|disk| disk.low);
        // One node without room: the others are a majority, and one of them leads.
        let first = nodes.leader("orders").await;
        leave(first, Some(LIMITS.low_bytes - 1));
        until("the node says that it is low", || low(first)).await;
        until("another node leads", || !nodes.group(first, "orders").is_leader()).await;
        nodes.put(first, "orders", "one is low").await;
        // Two nodes without room.
        let second = (first + 1) % 3;
        leave(second, Some(LIMITS.low_bytes - 1));
        let refused = async |node: usize| nodes.group(node, "orders").propose(set("refused", "v"), soon()).await;
        let deadline = soon();
        let limit = loop {
            match refused(0).await {
                Err(ProposeError::LimitExceeded(limit)) => break limit,
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let WriteLimit::DiskLow { low_bytes, free_bytes, .. } = limit else { panic!("{limit}") };
        assert!(low_bytes == LIMITS.low_bytes && free_bytes < low_bytes, "{limit}");
        assert!(limit.to_string().contains("free space or prune; writes resume by themselves"), "{limit}");
        for node in 0..3 {
            assert!(matches!(refused(node).await, Err(ProposeError::LimitExceeded(WriteLimit::DiskLow { .. }))));
        }
        let leader = nodes.leader("orders").await;
        assert!(nodes.readiness(leader, "orders").limit.is_some());
        assert!(nodes.group(leader, "orders").status().refused[0] >= 4);
        // Reading and administration go on.
        nodes.group(0, "orders").barrier(Level::Linearizable, soon()).await.unwrap();
        nodes.0[0].groups.meta().put_user(user("dave"), None, None, soon()).await.unwrap();
        // The mark itself is not enough: it takes an eighth more, so that writes do not stop and go.
        leave(second, Some(LIMITS.room_bytes()));
        let deadline = soon();
        while nodes.group(0, "orders").propose(set("resumed", "v"), soon()).await.is_err() {
            assert!(Instant::now() < deadline, "writes do not resume");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        leave(first, None);
        leave(second, None);
        until("all have room", || (0..3).all(|node| !low(node))).await;
        nodes.ready().await;
        let keys = ["before".to_owned(), "one is low".to_owned(), "resumed".to_owned()];
        nodes.assert_equal("orders", &keys).await;
        nodes.stop().await;
    });
}

#[test]
fn space_that_a_prune_frees_lets_writes_resume() {
    run(async {
        const VALUE_BYTES: usize = 100_000;
        let nodes = Nodes::three().await;
        // Some segments of values that are to go.
        let mut last = TxId(0);
        for n in 0..45 {
            let proposal = set(&format!("old{n}"), &"v".repeat(VALUE_BYTES));
            match nodes.opened(0, "orders").await.propose(proposal, soon()).await {
                Ok(Outcome::Committed { tx, .. }) => last = tx,
                other => panic!("{other:?}"),
            }
        }
        let disk = |node: usize| &nodes.0[node].disk;
        for node in 0..3 {
            disk(node).set_capacity(Some(disk(node).size_bytes() + LIMITS.low_bytes - 1));
        }
        let write = async || nodes.group(0, "orders").propose(set("resumed", "v"), soon()).await;
        let deadline = soon();
        while !matches!(write().await, Err(ProposeError::LimitExceeded(WriteLimit::DiskLow { .. }))) {
            assert!(Instant::now() < deadline, "writes are not refused");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // They are refused for good: nothing but the prune changes that.
        let before: Vec<u64> = (0..3).map(|node| disk(node).size_bytes()).collect();
        let deadline = soon();
        loop {
            let leader = nodes.leader("orders").await;
            let marker = PruneTarget::marker(None, last, Vec::new());
            let target = PruneTarget::Before { tx: last, ts: 0, marker };
            let order = Citation { tx: TxId(1), alh: [1; 32] };
            match nodes.group(leader, "orders").prune(Prune { order: Some(order), target }, soon()).await {
                Ok(Outcome::Committed { .. }) => break,
                // It was taken the first time.
                Ok(Outcome::Rejected(Rejection::NothingToPrune)) => break,
                Err(ProposeError::NotLeader { .. } | ProposeError::OutcomeUnknown) => {}
                other => panic!("{other:?}"),
            }
            assert!(Instant::now() < deadline, "no leader takes the prune");
        }
        let deadline = soon();
        while write().await.is_err() {
            assert!(Instant::now() < deadline, "writes do not resume");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        until("space returns on every node", || {
            (0..3).all(|node| disk(node).size_bytes() + 3 * 1_000_000 < before[node])
        })
        .await;
        for node in 0..3 {
            disk(node).set_capacity(None);
            let database = nodes.opened(node, "orders").await.database().clone();
            let entry = database.tx(TxId(last.0 - 1)).unwrap().entries.remove(0);
            assert!(matches!(database.value(&entry), Err(alhambra_storage::Error::ValuePruned { .. })));
            let entry = database.tx(last).unwrap().entries.remove(0);
            assert_eq!(database.value(&entry).unwrap().len(), VALUE_BYTES + 1);
        }
        nodes.ready().await;
        nodes.assert_equal("orders", &[]).await;
        nodes.stop().await;
    });
}

#[test]
fn an_index_that_found_no_space_is_written_when_there_is_some_though_nobody_writes() {
    run(async {
        let nodes = Nodes::three().await;
        let node = nodes.leader("orders").await;
        let group = nodes.group(node, "orders");
        nodes.put(node, "orders", "before").await;
        // Wherever the databases are: everything below their folders but the indexes has room.
        let database = group.database().clone();
        let folder = database.ledger().segment_path(0).parent().unwrap().parent().unwrap().join("index");
        nodes.0[node].faulty.set_full_below(Some(&folder));
        let refused = database.release_memory();
        assert!(matches!(refused, Err(StorageError::NoSpace { .. })), "{refused:?}");
        nodes.put(node, "orders", "on a full disk").await;
        assert!(database.index_work_due());
        let readiness = nodes.readiness(node, "orders");
        assert_eq!(readiness.health, Some(Health::Running), "a full disk is no failure");
        nodes.0[node].faulty.set_full_below(None);
        until("the index to be written", || !database.index_work_due()).await;
        assert_eq!(peek(&group, "on a full disk").as_deref(), Some("v"));
        drop((database, group));
        nodes.stop().await;
    });
}
