//! What a seed decides before anything runs. Not every life has every fault and every operation: some things only happen when
//! others do not get in their way.

use std::path::PathBuf;
use std::time::Duration;

use alhambra_node::config::{Config, Secret};

use super::client;
use super::env::SimRng;
use super::faults::{self, Fault};
use super::ops::{self, Op};

/// Names of the hosts, in the order of their numbers.
pub const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// One life.
pub struct Setup {
    /// How many nodes: 1, 3 or 5.
    pub nodes: usize,
    /// How many clients.
    pub clients: u32,
    /// The deadline that each client gives the calls of its session; nothing for those that leave it to the node.
    pub patience: Vec<Option<Duration>>,
    /// Keys that clients write; few, so that reads meet writes.
    pub keys: u64,
    /// Most milliseconds that a client rests between two calls.
    pub rest_ms: u64,
    /// Most time that a message takes.
    pub latency: Duration,
    /// When a clock that is right shows midnight.
    pub midnight: Duration,
    /// Ledger segments are closed at this size, bytes.
    pub segment_bytes: u64,
    /// Heartbeat, and the two bounds of the election time.
    pub raft: [Duration; 3],
    /// What the databases of a node may hold, bytes.
    pub memory_budget: u64,
    /// When the first fault may come; early ones meet the cluster while it forms.
    pub first_fault: Duration,
    /// Shortest and longest pause between two faults.
    pub pause: (Duration, Duration),
    /// Most faults that last at the same time.
    pub together: usize,
    /// Nodes whose disks may do more than lose what was not synced: always a minority.
    pub victims: Vec<usize>,
    /// What goes wrong.
    pub faults: Vec<&'static dyn Fault>,
    /// What clients do.
    pub ops: Vec<&'static dyn Op>,
}

impl Setup {
    /// Draws the life of a seed. `only` names the faults, when somebody chooses them.
    ///
    /// What was added later has a stream of its own, so that the seeds that do not get it live as they did.
    pub fn draw(seed: u64, rng: &SimRng, only: &[String]) -> Self {
        let pick = |list: &[u64]| list[rng.below(list.len() as u64) as usize];
        let nodes = pick(&[1, 3, 3, 3, 3, 5]) as usize;
        let ms = Duration::from_millis;
        let mut raft = [[150, 600, 1200], [50, 200, 400], [100, 250, 500]][rng.below(3) as usize].map(ms);
        if SimRng::of(seed, "short leases").below(4) == 0 {
            raft = [20, 80, 160].map(ms);
        }
        let budgets = [64 << 20, 64 << 20, 96 << 20, 256 << 20];
        let memory_budget = budgets[SimRng::of(seed, "memory budget").below(4) as usize];
        let mut victims = Vec::new();
        while victims.len() < (nodes - 1) / 2 {
            let node = rng.below(nodes as u64) as usize;
            if !victims.contains(&node) {
                victims.push(node);
            }
        }
        let is_drawn = |(purpose, one_in): (&str, u64)| SimRng::of(seed, purpose).below(one_in) == 0;
        let fits = |fault: &&dyn Fault| fault.fits(nodes);
        let faults: Vec<&dyn Fault> = if only.is_empty() {
            let first = || faults::ALL.iter().copied().filter(fits).filter(|fault| fault.own_draw().is_none());
            let mut drawn: Vec<_> = first().filter(|_| rng.below(2) == 0).collect();
            if drawn.len() < 2 {
                drawn = first().collect();
            }
            drawn.extend(
                faults::ALL.iter().copied().filter(fits).filter(|fault| fault.own_draw().is_some_and(is_drawn)),
            );
            drawn
        } else {
            let chosen = |fault: &&dyn Fault| only.iter().any(|name| name == fault.name());
            faults::ALL.iter().copied().filter(fits).filter(chosen).collect()
        };
        let has = |op: &&dyn Op| match op.own_draw() {
            Some(own) => is_drawn(own),
            None => op.is_always() || rng.below(3) > 0,
        };
        let ops = ops::ALL.iter().copied().filter(has).collect();
        let pause = pick(&[500, 2_000, 2_000, 5_000]);
        let clients = pick(&[2, 3, 3, 4]);
        // One of four gives its calls a deadline of its own, often one that is too short.
        let waits = SimRng::of(seed, "how long clients wait");
        let patience = (0..clients).map(|_| {
            let patience = ms([15, 50, 200, 1_000][waits.below(4) as usize]);
            (waits.below(4) == 0).then_some(patience)
        });
        Self {
            nodes,
            clients: clients as u32,
            patience: patience.collect(),
            keys: pick(&[2, 4, 8, 16]),
            rest_ms: pick(&[10, 20, 50, 200]),
            latency: ms(2 + rng.below(10)),
            midnight: ms(4_000 + SimRng::of(seed, "midnight").below(4_000)),
            segment_bytes: pick(&[64 << 10, 64 << 10, 256 << 10]),
            raft,
            memory_budget,
            first_fault: ms(pick(&[100, 1_000, 5_000, 5_000]) + rng.below(2_000)),
            pause: (ms(pause), ms(pause * 3)),
            together: pick(&[1, 1, 2, 3]) as usize,
            victims,
            faults,
            ops,
        }
    }

    /// Whether anything changes what disks have.
    pub fn rots(&self) -> bool {
        self.faults.iter().any(|fault| fault.rots())
    }

    /// What a node is started with.
    pub fn config(&self, node: usize) -> Config {
        let mut config = Config::default();
        config.dir = PathBuf::from("/data");
        config.address = NAMES[node].to_string();
        config.port = client::PORT;
        config.bootstrap_expect = self.nodes as u32;
        config.peers = NAMES[..self.nodes].iter().map(|name| format!("{name}:3323")).collect();
        // Simulated hosts have names, not loopback addresses; nothing leaves the process.
        config.insecure_peers = true;
        config.metrics_server = false;
        config.web_server = false;
        config.request_timeout = client::DEADLINE;
        config.admin_password = Some(Secret::new(client::PASSWORD));
        config.segment_size = self.segment_bytes;
        config.password_hash_memory = 8;
        config.password_hash_passes = 1;
        [config.raft_heartbeat, config.raft_election_min, config.raft_election_max] = self.raft;
        // Disks in memory have room without bound; the bytes of a reserve would only take time.
        config.disk_reserve = 0;
        config.disk_low_water = 0;
        config.scrub_interval = Duration::from_secs(5);
        config.memory_budget = self.memory_budget;
        config
    }
}

impl std::fmt::Display for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(|fault| fault.name()).collect();
        let ops: Vec<_> = self.ops.iter().map(|op| op.name()).collect();
        let until =
            |patience: &Option<Duration>| patience.map_or("as told".to_string(), |patience| format!("{patience:?}"));
        let patience: Vec<_> = self.patience.iter().map(until).collect();
        let [heartbeat, min, max] = self.raft;
        writeln!(
            f,
            "{} nodes, {} clients that wait {}, {} keys, rest {} ms, latency {:?}, segments {} KiB, memory {} MiB, \
             raft {heartbeat:?}/{min:?}/{max:?}",
            self.nodes,
            self.clients,
            patience.join(", "),
            self.keys,
            self.rest_ms,
            self.latency,
            self.segment_bytes >> 10,
            self.memory_budget >> 20,
        )?;
        writeln!(
            f,
            "midnight at {:?}, faults from {:?}, every {:?}, at most {} together: {}",
            self.midnight,
            self.first_fault,
            self.pause,
            self.together,
            faults.join(" ")
        )?;
        write!(f, "disks that rot: {:?}; operations: {}", self.victims, ops.join(" "))
    }
}
