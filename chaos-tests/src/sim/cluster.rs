//! One simulated life of a cluster, decided by a seed: three production nodes, clients, faults, healing, judgement.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use alhambra_node::config::{Config, Secret};
use alhambra_node::node::{Node, NodeHandle};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{FileKind, OpenMode};
use turmoil::{Builder, Sim};

use super::client::{self, Session};
use super::env::{self, SimRng};
use super::plant::AcknowledgeBeforeFsync;
use crate::check::replicas_equal::Replica;
use crate::check::{acked_durable, linearizable, replicas_equal};
use crate::history::{Ending, History, Read, Write};
use crate::model::chain;

/// Hosts of the cluster.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Clients, each with one call at a time.
const CLIENTS: u32 = 3;
/// Keys that clients write; few, so that reads meet writes.
const KEYS: u64 = 8;
/// Closed segments must appear within the simulated minute, so they are small.
const SEGMENT_BYTES: u64 = 64 << 10;

/// A bug that is planted to show that the judge would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The production node, unchanged.
    Nothing,
    /// A sync answers before anything is on the disk, so writes are acknowledged that a power loss takes away.
    AcknowledgeBeforeFsync,
}

/// What a simulation runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Simulated time of load and faults; healing comes after it.
    pub load: Duration,
    /// Print the story while it happens.
    pub story: bool,
    /// A planted bug.
    pub plant: Plant,
}

/// What came out of a simulation that found nothing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Hash over every call of every client with its times, every fault, and the final ledger.
    pub trace: String,
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Writes with an unknown outcome.
    pub unknown: usize,
    /// Successful linearizable reads.
    pub reads: usize,
    /// Faults injected.
    pub faults: usize,
    /// Closed segments on the first node at the end.
    pub closed_segments: usize,
    /// Transactions at the end.
    pub transactions: usize,
    /// Longest time between two acknowledged writes of the whole cluster.
    pub longest_gap: Duration,
}

/// What the parts of a simulation share; one thread, so no locks.
#[derive(Default)]
struct Shared {
    history: History,
    handles: BTreeMap<usize, Rc<NodeHandle>>,
    lives: BTreeMap<usize, u64>,
    load_over: bool,
    clients_done: u32,
    verdict: Option<Result<Final, String>>,
    trace: Trace,
}

struct Final {
    ledger: acked_durable::Ledger,
    alhs: Vec<Vec<[u8; 32]>>,
}

/// FNV-1a over everything that happens; two equal runs have equal traces.
struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

fn config(node: usize) -> Config {
    let peers: Vec<String> = NODES.iter().map(|name| format!("{name}:3323")).collect();
    let mut config = Config::default();
    config.dir = PathBuf::from("/data");
    config.address = NODES[node].to_string();
    config.port = client::PORT;
    config.bootstrap_expect = 3;
    config.peers = peers;
    // Simulated hosts have names, not loopback addresses; nothing leaves the process.
    config.insecure_peers = true;
    config.metrics_server = false;
    config.admin_password = Some(Secret::new(client::PASSWORD));
    config.segment_size = SEGMENT_BYTES;
    config.password_hash_memory = 8;
    config.password_hash_passes = 1;
    // Disks in memory have room without bound; the bytes of a reserve would only take time.
    config.disk_reserve = 0;
    config
}

/// Runs one seed. One seed per process: openraft and tokio keep some randomness per thread.
pub fn run(options: Options) -> Result<Report, String> {
    let rng = SimRng::new(options.seed);
    let mut sim = Builder::new()
        .rng_seed(rng.next())
        .simulation_duration(options.load + Duration::from_secs(240))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(Duration::from_millis(2 + rng.below(8)))
        .tcp_capacity(4096)
        .build();
    let shared = Rc::new(RefCell::new(Shared::default()));
    let disks: Vec<MemVfs> = NODES.iter().map(|_| MemVfs::new()).collect();

    for (i, name) in NODES.iter().enumerate() {
        let (shared, disk, seed) = (shared.clone(), disks[i].clone(), rng.next());
        let clock_offset_ms = rng.below(400) as i64 - 200;
        sim.host(*name, move || {
            let (shared, disk) = (shared.clone(), disk.clone());
            async move {
                let life = {
                    let mut shared = shared.borrow_mut();
                    let life = shared.lives.entry(i).or_default();
                    *life += 1;
                    *life
                };
                let vfs: Arc<dyn Vfs> = match options.plant {
                    Plant::Nothing => Arc::new(disk),
                    Plant::AcknowledgeBeforeFsync => Arc::new(AcknowledgeBeforeFsync(Arc::new(disk))),
                };
                let env = env::env(vfs, seed ^ life.wrapping_mul(0x9e37_79b9), clock_offset_ms);
                let handle = Rc::new(Node::start(config(i), env).await?);
                shared.borrow_mut().handles.insert(i, handle.clone());
                handle.wait().await?;
                Ok(())
            }
        });
    }

    for number in 0..CLIENTS {
        let (shared, seed) = (shared.clone(), rng.next());
        sim.client(format!("c{number}"), async move {
            run_client(number, seed, &shared).await;
            shared.borrow_mut().clients_done += 1;
            Ok(())
        });
    }
    {
        let shared = shared.clone();
        sim.client("judge", async move {
            // A call that is still on its way when the load ends may be acknowledged after the ledgers were read.
            while shared.borrow().clients_done < CLIENTS {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let verdict = collect(Duration::from_secs(60)).await;
            shared.borrow_mut().verdict = Some(verdict);
            Ok(())
        });
    }

    let faults = drive(&mut sim, &options, &rng, &shared, &disks)?;
    judge(&shared, &disks, faults)
}

/// Steps the simulation to its end and injects faults on the way.
fn drive(
    sim: &mut Sim<'_>,
    options: &Options,
    rng: &SimRng,
    shared: &Rc<RefCell<Shared>>,
    disks: &[MemVfs],
) -> Result<usize, String> {
    let mut story = Story { shared, print: options.story, faults: 0 };
    // The cluster forms undisturbed in the first seconds; then something happens every two to six.
    let mut next_fault = Duration::from_millis(5_000 + rng.below(2_000));
    let mut repairs: Vec<(Duration, Repair)> = Vec::new();
    // Every life has these three at least once, in an order that the seed decides; then whatever comes.
    let mut due = vec![Fault::CrashLeader, Fault::Partition, Fault::PowerLoss];
    loop {
        let elapsed = sim.elapsed();
        let mut later = Vec::new();
        for (at, repair) in repairs.drain(..) {
            if at <= elapsed || elapsed >= options.load {
                match repair {
                    Repair::Start(node) => sim.bounce(NODES[node]),
                    Repair::Link(a, b) => sim.repair(NODES[a], NODES[b]),
                }
                story.tell(elapsed, &format!("{repair:?}"));
            } else {
                later.push((at, repair));
            }
        }
        repairs = later;
        if elapsed >= options.load {
            shared.borrow_mut().load_over = true;
        } else if elapsed >= next_fault && repairs.is_empty() {
            let fault = if options.plant == Plant::AcknowledgeBeforeFsync {
                // Only this shows the bug as what it is; with other faults consensus itself stumbles over it first.
                Fault::PowerLoss
            } else if due.is_empty() {
                [Fault::CrashLeader, Fault::CrashAny, Fault::Partition, Fault::OneLink, Fault::PowerLoss]
                    [rng.below(5) as usize]
            } else {
                due.swap_remove(rng.below(due.len() as u64) as usize)
            };
            inject(sim, fault, elapsed, rng, shared, disks, &mut repairs, &mut story);
            next_fault = elapsed + Duration::from_millis(2_000 + rng.below(4_000));
        }
        match sim.step() {
            Ok(true) => return Ok(story.faults),
            Ok(false) => {}
            Err(e) => return Err(format!("a host failed at {elapsed:?}: {e}")),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Kill the leader of the user database and lose what it had not synced.
    CrashLeader,
    /// The same for any node.
    CrashAny,
    /// Cut one node off from both others.
    Partition,
    /// Cut one link.
    OneLink,
    /// All machines lose power at once; all unsynced bytes of all disks are gone.
    PowerLoss,
}

#[derive(Clone, Copy, Debug)]
enum Repair {
    Start(usize),
    Link(usize, usize),
}

struct Story<'a> {
    shared: &'a Rc<RefCell<Shared>>,
    print: bool,
    faults: usize,
}

impl Story<'_> {
    fn tell(&self, at: Duration, what: &str) {
        let mut shared = self.shared.borrow_mut();
        shared.trace.add(&at.as_nanos().to_be_bytes());
        shared.trace.add(what.as_bytes());
        if self.print {
            println!("{:>10.3} s  {what}", at.as_secs_f64());
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn inject(
    sim: &mut Sim<'_>,
    fault: Fault,
    elapsed: Duration,
    rng: &SimRng,
    shared: &Rc<RefCell<Shared>>,
    disks: &[MemVfs],
    repairs: &mut Vec<(Duration, Repair)>,
    story: &mut Story<'_>,
) {
    let any = rng.below(3) as usize;
    let leader = shared.borrow().handles.iter().find(|(_, handle)| leads(handle)).map(|(i, _)| *i);
    let pause = Duration::from_millis(300 + rng.below(5_000));
    let mut crash = |node: usize, after: Duration| {
        shared.borrow_mut().handles.remove(&node);
        sim.crash(NODES[node]);
        let torn = if rng.below(2) == 0 { Crash::PowerLoss } else { Crash::PowerLossTorn { seed: rng.next() } };
        disks[node].crash(torn);
        repairs.push((elapsed + after, Repair::Start(node)));
    };
    let what = match fault {
        Fault::CrashLeader => {
            let node = leader.unwrap_or(any);
            crash(node, pause);
            format!("crash of {} (leader: {})", NODES[node], leader.is_some())
        }
        Fault::CrashAny => {
            crash(any, pause);
            format!("crash of {}", NODES[any])
        }
        Fault::PowerLoss => {
            for node in 0..NODES.len() {
                crash(node, Duration::from_millis(100 + rng.below(1_000)));
            }
            "power loss on all machines".to_string()
        }
        Fault::Partition => {
            for other in (0..NODES.len()).filter(|other| *other != any) {
                sim.partition(NODES[any], NODES[other]);
                repairs.push((elapsed + pause, Repair::Link(any, other)));
            }
            format!("partition of {}{}", NODES[any], if leader == Some(any) { " (leader)" } else { "" })
        }
        Fault::OneLink => {
            let other = (any + 1) % NODES.len();
            sim.partition(NODES[any], NODES[other]);
            repairs.push((elapsed + pause, Repair::Link(any, other)));
            format!("link {} - {} cut", NODES[any], NODES[other])
        }
    };
    story.faults += 1;
    story.tell(elapsed, &what);
}

/// Whether this node leads the database that clients write to.
fn leads(handle: &NodeHandle) -> bool {
    handle.groups().group_by_name(client::DATABASE).is_some_and(|group| group.is_leader())
}

/// Writes and reads until the load is over; goes to another node whenever a call fails.
async fn run_client(number: u32, seed: u64, shared: &Rc<RefCell<Shared>>) {
    let rng = SimRng::new(seed);
    let deadline = Duration::from_secs(3);
    let mut session: Option<(usize, Session)> = None;
    let mut sequence = 0u64;
    while !shared.borrow().load_over {
        let (node, api) = match &mut session {
            Some((node, api)) => (*node, api),
            None => {
                let node = rng.below(3) as usize;
                match Session::open(NODES[node], deadline).await {
                    Ok(open) => session = Some((node, open)),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100 + rng.below(200))).await,
                }
                continue;
            }
        };
        let key = format!("key-{}", rng.below(KEYS)).into_bytes();
        let invoked = now();
        let failed = if rng.below(3) == 0 {
            match api.get(&key).await {
                Ok(value) => {
                    let read = Read { client: number, node: node as u32, key, value, invoked, ended: now() };
                    let mut shared = shared.borrow_mut();
                    shared.trace.add(format!("{read:?}").as_bytes());
                    shared.history.reads.push(read);
                    false
                }
                Err(_) => true,
            }
        } else {
            sequence += 1;
            // Long enough that segments close within the minute.
            let value = format!("{number}-{sequence}-{}", "x".repeat(64 + rng.below(192) as usize)).into_bytes();
            let (ending, failed) = match api.set(&key, &value).await {
                Ok(tx) => (Ending::Acknowledged(tx), false),
                Err(status) => (client::ending_of(&status), true),
            };
            let write = Write { client: number, key, value, invoked, ended: now(), ending };
            let mut shared = shared.borrow_mut();
            shared.trace.add(format!("{write:?}").as_bytes());
            shared.history.writes.push(write);
            failed
        };
        if failed {
            session = None;
            tokio::time::sleep(Duration::from_millis(20 + rng.below(80))).await;
        } else {
            tokio::time::sleep(Duration::from_millis(rng.below(20))).await;
        }
    }
}

/// After healing: waits until all nodes have the same newest transaction, then reads every ledger whole.
async fn collect(patience: Duration) -> Result<Final, String> {
    let deadline = Duration::from_secs(5);
    let until = tokio::time::Instant::now() + patience;
    let mut last = String::new();
    let mut sessions: Vec<Session> = Vec::new();
    while sessions.is_empty() {
        if tokio::time::Instant::now() > until {
            return Err(format!("liveness: the nodes did not converge within {patience:?} after healing: {last}"));
        }
        let mut states = Vec::new();
        let mut open = Vec::new();
        for name in NODES {
            match Session::open(name, deadline).await {
                Ok(mut session) => {
                    states.push(session.local_state().await.map_err(|e| format!("{name}: {e}")));
                    open.push(session);
                }
                Err(e) => states.push(Err(format!("{name}: {e}"))),
            }
        }
        last = format!("{states:?}");
        let alike = states.iter().all(|state| state.is_ok() && state == &states[0]);
        // One more write through each node: the healed cluster must also make progress.
        if alike {
            sessions = open;
        } else {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    let mut result = Final { ledger: Vec::new(), alhs: Vec::new() };
    for (i, session) in sessions.iter_mut().enumerate() {
        let mut ledger = Vec::new();
        let mut transactions = Vec::new();
        loop {
            let first = transactions.len() as u64 + 1;
            let batch = session.transactions(first, 500).await.map_err(|e| format!("{}: {e}", NODES[i]))?;
            if batch.is_empty() {
                break;
            }
            for shown in batch {
                for (key, value) in &shown.values {
                    let strip = |bytes: &[u8]| bytes.get(1..).unwrap_or_default().to_vec();
                    ledger.push((shown.chain.id, strip(key), strip(value)));
                }
                transactions.push(shown.chain);
            }
        }
        let alhs =
            chain::check(&transactions).map_err(|b| format!("{}: transaction {}: {}", NODES[i], b.tx, b.rule))?;
        if i > 0 && ledger != result.ledger {
            return Err(format!("R2: {} shows other entries than {}", NODES[i], NODES[0]));
        }
        result.ledger = ledger;
        result.alhs.push(alhs);
    }
    Ok(result)
}

/// Judges what clients saw against what the nodes have.
fn judge(shared: &Rc<RefCell<Shared>>, disks: &[MemVfs], faults: usize) -> Result<Report, String> {
    let mut shared = shared.borrow_mut();
    let last = match shared.verdict.take() {
        Some(Ok(last)) => last,
        Some(Err(e)) => return Err(e),
        None => return Err("the judge did not come to an end".to_string()),
    };
    let history = &shared.history;
    acked_durable::check(history, &last.ledger)?;
    linearizable::check(history, &last.ledger)?;
    let replicas: Vec<Replica> = NODES
        .iter()
        .zip(&last.alhs)
        .zip(disks)
        .map(|((name, alhs), disk)| Replica {
            name: name.to_string(),
            alhs: alhs.clone(),
            segments: closed_segments(disk),
        })
        .collect();
    replicas_equal::check(&replicas, true)?;
    let mut times: Vec<Duration> = history
        .writes
        .iter()
        .filter(|write| matches!(write.ending, Ending::Acknowledged(_)))
        .map(|write| write.ended)
        .collect();
    times.sort();
    let report = Report {
        acknowledged: times.len(),
        unknown: history.writes.iter().filter(|write| write.ending == Ending::Unknown).count(),
        reads: history.reads.len(),
        faults,
        closed_segments: replicas[0].segments.len(),
        transactions: last.alhs[0].len(),
        longest_gap: times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default(),
        trace: String::new(),
    };
    for alh in &last.alhs[0] {
        shared.trace.add(alh);
    }
    if report.acknowledged == 0 || report.reads == 0 {
        return Err("nothing was acknowledged or nothing was read: the simulation shows nothing".to_string());
    }
    Ok(Report { trace: format!("{:016x}", shared.trace.0), ..report })
}

/// Closed segments of the user database: those with a sidecar.
fn closed_segments(disk: &MemVfs) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let root = Path::new("/data/databases");
    for (database, _) in disk.read_dir(root).unwrap_or_default() {
        let ledger = root.join(&database).join("ledger");
        for (name, kind) in disk.read_dir(&ledger).unwrap_or_default() {
            let path = ledger.join(&name);
            let closed = name.ends_with(".seg") && disk.exists(&path.with_extension("idx")).unwrap_or(false);
            if database.starts_with(client::DATABASE)
                && kind == FileKind::File
                && closed
                && let Ok(file) = disk.open(&path, OpenMode::Read)
            {
                let len = file.len().map_or(0, |len| len as usize);
                found.insert(name, file.read_at(0, len).map(|bytes| bytes.to_vec()).unwrap_or_default());
            }
        }
    }
    found
}
