//! One life of a cluster, decided by a seed: production nodes, clients, faults, healing, judgement.

use std::cell::Cell;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use alhambra_node::node::Node;
use alhambra_storage::vfs::{OpenMode, Vfs};
use turmoil::Builder;

use super::collect::{Collector, Segments};
use super::disk::SimDisk;
use super::env::{self, SimClock, SimExecutor, SimRng};
use super::faults::Heal;
use super::links::Links;
use super::plant::{Plant, plant_inside};
use super::report::Report;
use super::setup::{NAMES, Setup};
use super::shared::{HostJob, Running, Shared, State, now};
use super::watch::Watch;
use super::workload::Client;
use super::world::{Host, Troubles, World};
use crate::check::replicas_equal::{self, Replica};
use crate::check::versions::Versions;
use crate::check::{self, Evidence};
use crate::history::Ending;

/// How long a healed cluster may take until all nodes are alike and every one takes a write.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same where a bug is planted, so that one that keeps a cluster from healing is found sooner.
const PATIENCE_WITH_A_BUG: Duration = Duration::from_secs(30);
/// Simulated time moves in steps of this length. Within one, the hosts take their turns in a drawn order.
const TICK: Duration = Duration::from_millis(2);
/// How long a leader must stay in office after a node came back to it.
const STEADY: Duration = Duration::from_secs(3);

thread_local! {
    static SIMULATED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// How far the life of this thread has come, also when it failed.
pub fn simulated() -> Duration {
    SIMULATED.get()
}

/// What a simulation runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Simulated time of load and faults; healing comes after it.
    pub load: Duration,
    /// Print the story while it happens.
    pub story: bool,
    /// A planted bug.
    pub plant: Option<Plant>,
    /// The same life without the bug: with the faults and the patience of one that has it.
    pub control: bool,
    /// These faults and no others; empty for those that the seed draws.
    pub faults: Vec<String>,
}

/// Runs one seed. One seed per process: openraft and tokio keep some randomness per thread.
pub fn run(options: &Options) -> Result<Report, String> {
    let plant = options.plant.filter(|_| !options.control);
    if !plant_inside(plant) {
        return Err("this build has no bugs in the server: take one with debug assertions".to_string());
    }
    let rng = SimRng::new(options.seed);
    let only = match options.plant {
        Some(plant) if options.faults.is_empty() => plant.faults().iter().map(|name| name.to_string()).collect(),
        _ => options.faults.clone(),
    };
    let setup = Setup::draw(options.seed, &rng, &only);
    if !options.faults.is_empty() && setup.faults.is_empty() {
        return Err(format!("{} nodes cannot have these faults: take another seed", setup.nodes));
    }
    let sim = Builder::new()
        .rng_seed(rng.next())
        .simulation_duration(options.load + PATIENCE * 4 + Duration::from_secs(60))
        .tick_duration(TICK)
        .enable_random_order()
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(setup.latency)
        .tcp_capacity(4096)
        .build();
    if options.story {
        println!("seed {}: {setup}", options.seed);
    }
    let shared = Shared::default();
    let mut world = World { sim, hosts: Vec::new(), rng, shared: shared.clone(), setup, links: Links::default() };
    for node in 0..world.setup.nodes {
        add_host(&mut world, node, plant);
    }
    for number in 0..world.setup.clients {
        let (shared, setup) = (shared.clone(), &world.setup);
        let client = Client {
            number,
            rng: SimRng::new(world.rng.next()),
            patience: setup.patience[number as usize],
            rots: setup.rots(),
            plant,
            nodes: setup.nodes,
            keys: setup.keys,
            rest_ms: setup.rest_ms,
            ops: setup.ops.clone(),
        };
        world.sim.client(format!("c{number}"), async move {
            client.run(&shared).await;
            let mut shared = shared.borrow_mut();
            (shared.clients_done, shared.clients_ended) = (shared.clients_done + 1, now());
            Ok(())
        });
    }
    let (clients, nodes) = (world.setup.clients, world.setup.nodes);
    let patience = if options.plant.is_some() { PATIENCE_WITH_A_BUG } else { PATIENCE };
    {
        let shared = shared.clone();
        let rotting = world.setup.victims.clone();
        let disks: Vec<SimDisk> = world.hosts.iter().map(|host| host.disk.clone()).collect();
        world.sim.client("judge", async move {
            // A call that is still on its way when the load ends may be acknowledged after the ledgers were read.
            while shared.borrow().clients_done < clients {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let collector = Collector { shared: &shared, nodes, rotting: &rotting, patience, plant };
            let sealed = |inside: &[usize], databases: &[String]| {
                let show = |node: &usize| Replica {
                    name: NAMES[*node].to_string(),
                    alhs: Vec::new(),
                    segments: closed_segments(&disks[*node], databases),
                };
                let replicas: Vec<Replica> = inside.iter().map(show).collect();
                replicas_equal::check(&replicas, true)?;
                let segments: Segments =
                    inside.iter().copied().zip(replicas.into_iter().map(|replica| replica.segments)).collect();
                Ok(segments)
            };
            let verdict = collector.collect(sealed).await;
            shared.borrow_mut().verdict = Some(verdict);
            Ok(())
        });
    }
    let none = world.setup.faults.iter().map(|fault| (fault.name().to_string(), 0)).collect();
    let faults = Driver { options, faults: none, heals: BinaryHeap::new(), order: 0 }.drive(&mut world)?;
    let simulated = world.sim.elapsed();
    judge(&world, options, faults, simulated)
}

fn add_host(world: &mut World<'_>, node: usize, plant: Option<Plant>) {
    let (disk, seed) = (SimDisk::new(world.rng.next()), world.rng.next());
    match plant {
        Some(Plant::AcknowledgeBeforeFsync) => disk.set_lying_syncs("seg"),
        Some(Plant::ForgetVote) => disk.set_lying_syncs("vote"),
        _ => {}
    }
    let midnight = world.setup.midnight.as_millis() as i64;
    let clock = Arc::new(SimClock::new(world.rng.below(400) as i64 - 200 - midnight));
    let executor = Arc::new(SimExecutor::default());
    let (shared, mut config) = (world.shared.clone(), world.setup.config(node));
    if plant == Some(Plant::NoScrub) {
        config.scrub_bytes_per_second = 0;
    }
    if plant == Some(Plant::NoDeadline) {
        config.request_timeout = Duration::from_secs(30);
    }
    let host = Host {
        disk: disk.clone(),
        clock: clock.clone(),
        executor: executor.clone(),
        up: true,
        troubles: Troubles::default(),
    };
    world.sim.host(NAMES[node], move || {
        let (shared, config, disk) = (shared.clone(), config.clone(), disk.clone());
        let (clock, executor) = (clock.clone(), executor.clone());
        async move {
            let life = {
                let mut shared = shared.borrow_mut();
                let life = shared.lives.entry(node).or_default();
                *life += 1;
                *life
            };
            let vfs: Arc<dyn Vfs> = Arc::new(disk);
            let env = env::env(vfs, seed ^ life.wrapping_mul(0x9e37_79b9_7f4a_7c15), clock, &executor);
            // As a supervisor does: a node that did not start, or stopped by itself, is started again after a while.
            loop {
                match Node::start(config.clone(), env.clone()).await {
                    Ok(handle) => {
                        let handle = Rc::new(handle);
                        let (jobs, mut work) = tokio::sync::mpsc::unbounded_channel::<HostJob>();
                        shared.borrow_mut().running.insert(node, Running { handle: handle.clone(), jobs });
                        let ended = loop {
                            tokio::select! {
                                biased;
                                ended = handle.wait() => break ended,
                                Some(job) = work.recv() => drop(tokio::task::spawn_local(job(handle.clone()))),
                            }
                        };
                        shared.borrow_mut().running.remove(&node);
                        handle.shutdown().await;
                        if let Err(e) = ended {
                            shared.borrow_mut().trace.add(&e.to_string());
                            tracing::error!(node = NAMES[node], error = %e, "stopped by itself");
                        }
                    }
                    Err(e) => {
                        shared.borrow_mut().trace.add(&e.to_string());
                        tracing::error!(node = NAMES[node], error = %e, "did not start");
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
    world.hosts.push(host);
}

/// Something to be undone.
struct Due {
    at: Duration,
    order: u64,
    cut_off: Option<usize>,
    heal: Heal,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Driver<'a> {
    options: &'a Options,
    faults: BTreeMap<String, u64>,
    heals: BinaryHeap<Due>,
    order: u64,
}

impl Driver<'_> {
    fn tell(&self, world: &World<'_>, at: Duration, what: &str) {
        let mut shared = world.shared.borrow_mut();
        shared.trace.add(&(at, what));
        if self.options.story {
            println!("{:>10.3} s  {what}", at.as_secs_f64());
        }
    }

    /// Steps the world to its end and injects faults on the way.
    fn drive(mut self, world: &mut World<'_>) -> Result<BTreeMap<String, u64>, String> {
        let (from, to) = world.setup.pause;
        let pause = |world: &World<'_>| world.between(from.as_millis() as u64, to.as_millis() as u64);
        let mut next = world.setup.first_fault;
        let mut watch = Watch::default();
        // Every fault that the life has comes once, in an order that the seed decides; then whatever comes.
        let mut due = world.setup.faults.clone();
        // When something else than the partition of one node began or ended last.
        let mut disturbed = Duration::ZERO;
        loop {
            let now = world.sim.elapsed();
            let over = now >= self.options.load;
            while let Some(heal) = self.heals.peek()
                && (heal.at <= now || over)
                && let Some(Due { heal, cut_off, .. }) = self.heals.pop()
            {
                let what = heal(world);
                self.tell(world, now, &what);
                if let Some(node) = cut_off
                    && self.heals.is_empty()
                    && now >= disturbed + STEADY
                    && !over
                {
                    next = next.max(now + STEADY);
                    watch.expect_steady(world, node, now + STEADY);
                }
                disturbed = now;
            }
            if over {
                world.shared.borrow_mut().load_over = true;
            } else if now >= next && self.heals.len() < world.setup.together && !world.setup.faults.is_empty() {
                let all = &world.setup.faults;
                let fault = if due.is_empty() {
                    all[world.rng.below(all.len() as u64) as usize]
                } else {
                    due.swap_remove(world.rng.below(due.len() as u64) as usize)
                };
                watch.judge_steady(world, now);
                if let Some(incident) = fault.inject(world, now) {
                    watch.expect_nothing();
                    if incident.cut_off.is_none() {
                        disturbed = now;
                    }
                    *self.faults.entry(fault.name().to_string()).or_default() += 1;
                    self.tell(world, now, &incident.what);
                    for (after, heal) in incident.heals {
                        self.order += 1;
                        let (at, order, cut_off) = (now + after, self.order, incident.cut_off);
                        self.heals.push(Due { at, order, cut_off, heal });
                    }
                }
                next = now + pause(world);
            }
            let step = world.sim.step();
            SIMULATED.set(world.sim.elapsed());
            match step {
                Ok(true) => return Ok(self.faults),
                Ok(false) => {}
                Err(e) => return Err(format!("a host failed at {now:?}: {e}")),
            }
            for what in watch.look(world, world.sim.elapsed()) {
                self.tell(world, world.sim.elapsed(), &what);
            }
        }
    }
}

/// Judges what clients saw against what the nodes have.
fn judge(
    world: &World<'_>,
    options: &Options,
    faults: BTreeMap<String, u64>,
    simulated: Duration,
) -> Result<Report, String> {
    let mut shared = world.shared.borrow_mut();
    shared.sightings.until = simulated;
    for (node, host) in (0..).zip(&world.hosts) {
        shared.sightings.clocks.insert(node, host.clock.past());
    }
    let last = match shared.verdict.take() {
        Some(Ok(last)) => last,
        Some(Err(e)) => return Err(e),
        None => return Err("the judge did not come to an end".to_string()),
    };
    if options.story {
        println!("operations: done, refused, of unknown outcome");
        for (name, tally) in &shared.done {
            println!("  {name}: {}, {}, {}", tally.done, tally.refused, tally.unknown);
        }
    }
    let replicas: Vec<Replica> = (last.alhs.iter())
        .map(|(node, alhs)| Replica {
            name: NAMES[*node].to_string(),
            alhs: alhs.clone(),
            segments: last.segments.get(node).cloned().unwrap_or_default(),
        })
        .collect();
    let versions = Versions::of(&last.ledger);
    check::all(&Evidence {
        history: &shared.history,
        ledger: &last.ledger,
        versions: &versions,
        replicas: &replicas,
        indexes: &last.indexes,
        sightings: &shared.sightings,
    })?;
    let history = &shared.history;
    let mut times: Vec<Duration> = history
        .writes
        .iter()
        // What nobody told before all was healed is no progress under load.
        .filter(|write| matches!(write.ending, Ending::Acknowledged(_)) && write.ended <= shared.clients_ended)
        .map(|write| write.ended)
        .collect();
    times.sort();
    let operations = world
        .setup
        .ops
        .iter()
        .map(|op| (op.name().to_string(), shared.done.get(op.name()).copied().unwrap_or_default()));
    let report = Report {
        seed: options.seed,
        nodes: world.setup.nodes as u64,
        acknowledged: times.len() as u64,
        unknown: history.writes.iter().filter(|write| write.ending == Ending::Unknown).count() as u64,
        reads: history.reads.len() as u64,
        proofs: history.trusted.len() as u64,
        closed_segments: replicas[0].segments.len() as u64,
        transactions: replicas[0].alhs.len() as u64,
        longest_gap: times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default(),
        healed_in: last.healed_in,
        snapshots: shared.snapshots.total,
        lost: last.lost,
        simulated,
        operations: operations.collect(),
        faults,
        trace: String::new(),
    };
    let State { trace, history, sightings, .. } = &mut *shared;
    trace.add(&(history, sightings, &replicas[0].alhs));
    Ok(Report { trace: shared.trace.digest(), ..report })
}

/// Closed segments, those with a sidecar, of `systemdb` and of these databases: by the name of the database's folder and their own.
/// A database that is not loaded is not among them, because a node that was away then may lack what it missed.
fn closed_segments(disk: &SimDisk, databases: &[String]) -> BTreeMap<String, Vec<u8>> {
    let files = disk.files();
    let closed = |path: &Path| {
        path.extension().is_some_and(|e| e == "seg") && files.exists(&path.with_extension("idx")).unwrap_or(false)
    };
    let mut found = BTreeMap::new();
    for path in disk.find(Path::new("/data"), &closed) {
        let text = path.to_string_lossy().into_owned();
        let is_open = |name: &String| text.contains(&format!("/databases/{name}."));
        if (text.starts_with("/data/systemdb/") || databases.iter().any(is_open))
            && let Ok(file) = files.open(&path, OpenMode::Read)
        {
            let len = file.len().map_or(0, |len| len as usize);
            found.insert(text, file.read_at(0, len).map(|bytes| bytes.to_vec()).unwrap_or_default());
        }
    }
    found
}
