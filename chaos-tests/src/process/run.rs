//! One run: form, load, faults, heal, judge.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cluster::{Cluster, Kind, Plan, Programs};
use super::faults::{Fault, Group, Hit};
use super::judge::{Final, Verdict, judge};
use super::leftovers::Folder;
use super::monitor::{Monitor, Sample};
use super::net::Net;
use super::rng::Rng;
use crate::workload::ours::Ours;
use crate::workload::record::{Call, Record};
use crate::workload::sdk::{Program, Sdk};
use crate::workload::{Client, Part};

/// A cluster that does not serve after this will not by waiting longer, however busy the machine is.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Load without faults before the first and after the last.
const QUIET: Duration = Duration::from_secs(3);
/// Each kind of client has a write acknowledged within this after healing.
const WRITES_WITHIN: Duration = Duration::from_secs(60);
/// A cluster that takes longer to be ready after healing is told with its reason.
const LONG: Duration = Duration::from_secs(4);
/// So many of a hundred faults have another one beside them.
const BESIDE_PERCENT: usize = 30;
/// Clients of each kind.
const CLIENTS_EACH: usize = 2;

/// What is run.
#[derive(Clone)]
pub struct Options {
    /// Decides about faults and load.
    pub seed: u64,
    /// Load with faults.
    pub load: Duration,
    /// How many nodes.
    pub nodes: usize,
    /// Which faults.
    pub faults: Vec<&'static dyn Fault>,
    /// No namespaces even where they are possible.
    pub loopback: bool,
    /// The binaries.
    pub programs: Programs,
    /// SDKs that take part beside our own client.
    pub sdks: Vec<Program>,
    /// A call that was answered is followed by the next one after this.
    pub pace: Duration,
    /// Plants a bug: syncs of segments lie, on all nodes.
    pub syncs_lie: bool,
    /// Where the logs of the nodes are kept when something was found.
    pub logs: PathBuf,
    /// Keep them also when nothing was found.
    pub keep_logs: bool,
}

/// A fault that was.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// What it is of.
    pub group: Group,
    /// Whom it hit and how.
    pub hit: Hit,
    /// When it began, since the run began.
    pub from: Duration,
    /// When it was made good.
    pub to: Duration,
    /// When all nodes were ready again; nothing when they were not in time.
    pub ready: Option<Duration>,
}

/// Everything about a run.
#[derive(Debug)]
pub struct Story {
    /// Its seed.
    pub seed: u64,
    /// Which network.
    pub network: String,
    /// What each node ran.
    pub kinds: Vec<Kind>,
    /// From the first client to the end of the load.
    pub length: Duration,
    /// The faults.
    pub events: Vec<Event>,
    /// The calls.
    pub calls: Vec<Call>,
    /// The nodes, now and then.
    pub samples: Vec<Sample>,
    /// The verdicts.
    pub verdicts: Vec<Verdict>,
    /// What the nodes had in the end.
    pub end: Final,
}

impl Story {
    /// Whether nothing was found.
    pub fn is_good(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.outcome.is_ok())
    }
}

/// What each node runs: at least one is the binary that users run, unless a bug is planted.
fn kinds(options: &Options) -> Vec<Kind> {
    let real = if options.syncs_lie { 0 } else { options.nodes.div_ceil(3) };
    let mut kinds: Vec<Kind> =
        (0..options.nodes).map(|node| if node < real { Kind::Serve } else { Kind::Steered }).collect();
    Rng::new(options.seed, "kinds").shuffle(&mut kinds);
    kinds
}

/// Runs. An error is of the run itself, not of what it judges.
pub async fn run(options: &Options) -> Result<Story, String> {
    let folder = Folder::make()?;
    let (net, network) = Net::make(options.nodes, options.loopback).await?;
    println!("network: {network}");
    let plan = Plan { kinds: kinds(options), programs: options.programs.clone(), syncs_lie: options.syncs_lie };
    let kinds = plan.kinds.clone();
    let mut cluster = Cluster::prepare(folder.path(), net, plan)?;
    for node in 0..options.nodes {
        cluster.start(node)?;
    }
    if let Err(error) = cluster.wait_ready(READY_WITHIN).await {
        let logs: String =
            (0..cluster.len()).map(|node| format!("node {}:\n{}", node + 1, cluster.log_end(node))).collect();
        return Err(format!("the cluster does not form: {error}\n{logs}"));
    }
    println!("{} nodes serve: {}", options.nodes, described(&kinds));

    let begin = Instant::now();
    let monitor = Monitor::start(begin, (0..cluster.len()).map(|node| cluster.metrics(node)).collect());
    let record = Arc::new(Record::default());
    let stop = watch::Sender::new(false);
    let mut clients = start_clients(options, &cluster, &folder, begin, &record, &stop)?;

    let mut rng = Rng::new(options.seed, "schedule");
    let (mut events, mut late) = (Vec::new(), Vec::new());
    pass(&mut cluster, &monitor, QUIET).await?;
    while begin.elapsed() < options.load {
        let mut round: Vec<&'static dyn Fault> =
            options.faults.iter().copied().filter(|fault| fault.possible(&cluster)).collect();
        if round.is_empty() {
            return Err("none of these faults is possible here".to_owned());
        }
        rng.shuffle(&mut round);
        for fault in round {
            if begin.elapsed() >= options.load {
                break;
            }
            let beside = beside(fault, &options.faults, &cluster, &mut rng);
            let happened = happen(fault, beside, &mut cluster, &mut rng, begin, &monitor).await?;
            for event in &happened.events {
                println!("{}", line(event));
            }
            if happened.ready_after > LONG {
                println!("           ready only after {:.1} s: {}", happened.ready_after.as_secs_f64(), happened.said);
            }
            late.extend(happened.late);
            events.extend(happened.events);
            let pause = rng.between_ms(300, 1_500);
            pass(&mut cluster, &monitor, pause).await?;
        }
    }
    let healed = begin.elapsed();
    pass(&mut cluster, &monitor, QUIET).await?;
    late.extend(all_write(&mut cluster, &monitor, options, &record, healed, begin).await?);
    let length = begin.elapsed();
    stop.send_replace(true);
    while let Some(ended) = clients.join_next().await {
        ended.map_err(|error| format!("a client: {error}"))?;
    }

    println!("load over after {:.0} s, judging", length.as_secs_f64());
    let samples = monitor.samples();
    drop(monitor);
    let liveness = if late.is_empty() {
        let longest = events.iter().filter_map(|event: &Event| Some(event.ready?.saturating_sub(event.to))).max();
        Ok(format!(
            "{} faults; all nodes ready after at most {:.1} s, every kind of client writes",
            events.len(),
            longest.unwrap_or_default().as_secs_f64()
        ))
    } else {
        Err(late.join("\n"))
    };
    let (verdicts, end) = judge(&mut cluster, &record, &samples, liveness).await;
    let story =
        Story { seed: options.seed, network, kinds, length, events, calls: record.calls(), samples, verdicts, end };
    if !story.is_good() || options.keep_logs {
        keep_logs(&cluster, options)?;
    }
    Ok(story)
}

/// "1 alhambra serve, 2 steered".
pub fn described(kinds: &[Kind]) -> String {
    let real = kinds.iter().filter(|kind| **kind == Kind::Serve).count();
    format!("{real} `alhambra serve`, {} `chaos-node` (the same node on a steered disk and clock)", kinds.len() - real)
}

fn start_clients(
    options: &Options,
    cluster: &Cluster,
    folder: &Folder,
    begin: Instant,
    record: &Arc<Record>,
    stop: &watch::Sender<bool>,
) -> Result<JoinSet<()>, String> {
    let endpoints: Vec<String> = (0..cluster.len()).map(|node| cluster.endpoint(node)).collect();
    // Each begins with another node.
    let from = |first: usize| {
        let mut order = endpoints.clone();
        order.rotate_left(first % endpoints.len());
        order
    };
    let mut all: Vec<(&'static str, Box<dyn Client>)> = Vec::new();
    for place in 0..CLIENTS_EACH {
        all.push(("rust", Box::new(Ours::new(from(place)))));
    }
    for program in &options.sdks {
        for _ in 0..CLIENTS_EACH {
            let place = all.len();
            let own = folder.path().join(format!("client-{place}"));
            all.push((program.kind, Box::new(Sdk::start(program, &own, endpoints.clone(), place)?)));
        }
    }
    let mut clients = JoinSet::new();
    for (number, (kind, client)) in (0_u32..).zip(all) {
        let (record, stop) = (record.clone(), stop.subscribe());
        let part = Part { number, kind, client, seed: options.seed, pace: options.pace, begin, record, stop };
        clients.spawn(part.play());
    }
    Ok(clients)
}

/// Lets time pass, and looks after the nodes.
async fn pass(cluster: &mut Cluster, monitor: &Monitor, time: Duration) -> Result<(), String> {
    let until = Instant::now() + time;
    loop {
        cluster.look_after()?;
        monitor.know((0..cluster.len()).map(|node| cluster.process_id(node)).collect());
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(left.min(Duration::from_millis(200))).await;
    }
}

/// A second fault for the time of `fault`, if the schedule has one.
fn beside(
    fault: &dyn Fault,
    all: &[&'static dyn Fault],
    cluster: &Cluster,
    rng: &mut Rng,
) -> Option<&'static dyn Fault> {
    let fits =
        |other: &&&dyn Fault| other.goes_beside_others() && other.name() != fault.name() && other.possible(cluster);
    let others: Vec<&dyn Fault> = all.iter().filter(fits).copied().collect();
    // Drawn in every case, so that what comes after does not depend on it.
    let (wanted, other) = (rng.chance(BESIDE_PERCENT), rng.pick(&others).copied());
    other.filter(|_| wanted)
}

/// What came of a fault, and of the one beside it.
struct Happened {
    events: Vec<Event>,
    /// From healing until all nodes were ready.
    ready_after: Duration,
    /// What those that were not said last.
    said: String,
    /// Why they never were.
    late: Option<String>,
}

/// Injects a fault, and another one beside it, holds them, heals them, waits until all nodes are ready.
async fn happen(
    fault: &'static dyn Fault,
    beside: Option<&'static dyn Fault>,
    cluster: &mut Cluster,
    rng: &mut Rng,
    begin: Instant,
    monitor: &Monitor,
) -> Result<Happened, String> {
    let hold = fault.hold(rng);
    let mut events: Vec<Event> = Vec::new();
    let faults: Vec<&dyn Fault> = std::iter::once(fault).chain(beside).collect();
    for fault in &faults {
        let from = begin.elapsed();
        let hit = fault.inject(cluster, rng).await.map_err(|error| format!("{}: {error}", fault.name()))?;
        events.push(Event { name: fault.name(), group: fault.group(), hit, from, to: from, ready: None });
    }
    pass(cluster, monitor, hold).await?;
    for (fault, event) in faults.iter().zip(&mut events).rev() {
        fault.heal(cluster, &event.hit).await.map_err(|error| format!("{}: {error}", fault.name()))?;
        event.to = begin.elapsed();
    }
    let healed = begin.elapsed();
    let waited = cluster.wait_ready(READY_WITHIN).await;
    let ready = begin.elapsed();
    if waited.is_ok() {
        events.iter_mut().for_each(|event| event.ready = Some(ready));
    }
    let names: Vec<String> =
        events.iter().map(|event| format!("{} of node {:?}", event.name, event.hit.nodes)).collect();
    let (said, late) = match waited {
        Ok(said) => (said, None),
        Err(error) => {
            (String::new(), Some(format!("after {} at {:.1} s: {error}", names.join(" and "), healed.as_secs_f64())))
        }
    };
    Ok(Happened { events, ready_after: ready - healed, said, late })
}

/// A fault as a line of the story.
fn line(event: &Event) -> String {
    let hit: Vec<String> = event.hit.nodes.iter().map(|node| (node + 1).to_string()).collect();
    let ready = event.ready.map(|ready| format!("{:.1} s", ready.saturating_sub(event.to).as_secs_f64()));
    format!(
        "{:>7.1} s  {:<16} node {:<6} {} (held {:.1} s, ready after {})",
        event.from.as_secs_f64(),
        event.name,
        hit.join(","),
        event.hit.what,
        (event.to - event.from).as_secs_f64(),
        ready.unwrap_or_else(|| "-".to_owned()),
    )
}

/// Waits until every kind of client has a write acknowledged after `healed`; those that have not in time, in words.
async fn all_write(
    cluster: &mut Cluster,
    monitor: &Monitor,
    options: &Options,
    record: &Record,
    healed: Duration,
    begin: Instant,
) -> Result<Option<String>, String> {
    let kinds: Vec<&str> = std::iter::once("rust").chain(options.sdks.iter().map(|program| program.kind)).collect();
    loop {
        let wrote = record.wrote_since(healed);
        let missing: Vec<&str> = kinds.iter().copied().filter(|kind| !wrote.contains(kind)).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        if begin.elapsed() > healed + WRITES_WITHIN {
            return Ok(Some(format!(
                "no write of {missing:?} was acknowledged within {WRITES_WITHIN:?} after healing"
            )));
        }
        pass(cluster, monitor, Duration::from_millis(200)).await?;
    }
}

/// Keeps the nodes' logs beside the report, because the folder of the run goes.
fn keep_logs(cluster: &Cluster, options: &Options) -> Result<(), String> {
    let folder = &options.logs;
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for (node, member) in cluster.members.iter().enumerate() {
        let to = folder.join(format!("node-{}.log", node + 1));
        std::fs::copy(&member.log, &to).map_err(|error| format!("{}: {error}", to.display()))?;
    }
    println!("logs of the nodes: {}", folder.display());
    Ok(())
}
