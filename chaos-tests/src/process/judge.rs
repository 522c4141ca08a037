//! The verdicts, after healing: what every node has, against what every client saw.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{Cluster, DATABASE, MEMORY_BUDGET_BYTES};
use super::faults::rot::closed_segments;
use super::monitor::Sample;
use super::wire;
use crate::check::acked_durable::{self, Ledger};
use crate::check::linearizable;
use crate::check::replicas_equal::{self, Replica};
use crate::history::{Ending, History};
use crate::model::chain;
use crate::reader::Whole;
use crate::workload::record::Record;

/// All nodes have the same newest transaction within this time after the clients have stopped.
const CONVERGES_WITHIN: Duration = Duration::from_secs(90);
/// One call that reads a part of a ledger.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Rot is mended within this: a node begins to read its files again 30 s after its start.
const MENDED_WITHIN: Duration = Duration::from_secs(120);
/// Findings of one kind that are told; one cause often has many.
const TOLD_MAX: usize = 6;
/// Resident memory beyond the budget: the program itself, its threads, answers under way; bytes.
pub const MEMORY_BESIDE_BUDGET_BYTES: u64 = 128 << 20;

/// What a property came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The property.
    pub property: &'static str,
    /// What was found, or what was looked at.
    pub outcome: Result<String, String>,
}

fn verdict(property: &'static str, outcome: Result<String, String>) -> Verdict {
    Verdict { property, outcome }
}

/// What the nodes have in the end.
#[derive(Debug, Default)]
pub struct Final {
    /// Entries of every node: transaction, key, value.
    pub ledger: Ledger,
    /// Each node's Alhs.
    pub replicas: Vec<Replica>,
}

/// Waits until all nodes are at the same transaction, then reads all of them whole.
async fn collect(cluster: &Cluster) -> Result<Final, String> {
    let until = Instant::now() + CONVERGES_WITHIN;
    loop {
        let mut states = Vec::new();
        for node in 0..cluster.len() {
            let state = match wire::open(&cluster.endpoint(node), READ_WITHIN).await {
                Ok(mut reader) => reader.state().await,
                Err(error) => Err(error),
            };
            states.push(state.map_err(|error| error.to_string()));
        }
        if states.iter().all(|state| state.is_ok() && state == &states[0]) {
            break;
        }
        if Instant::now() > until {
            return Err(format!("the nodes are not at one transaction {CONVERGES_WITHIN:?} after healing: {states:?}"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut all = Final::default();
    for node in 0..cluster.len() {
        let name = format!("node {}", node + 1);
        let failed = |error: tonic::Status| format!("{name}: its ledger cannot be read: {error}");
        let mut reader = wire::open(&cluster.endpoint(node), READ_WITHIN).await.map_err(failed)?;
        let Whole { ledger, chain } = wire::whole(&mut reader).await.map_err(failed)?;
        let alhs =
            chain::check(&chain).map_err(|broken| format!("{name}: transaction {}: {}", broken.tx, broken.rule))?;
        if node > 0 && ledger != all.ledger {
            return Err(format!("R2: {name} shows other entries than node 1"));
        }
        all.ledger = ledger;
        all.replicas.push(Replica { name, alhs, segments: BTreeMap::new() });
    }
    Ok(all)
}

/// Names and bytes of the closed segments of the judged database.
fn segments(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let paths = closed_segments(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut found = BTreeMap::new();
    for path in paths {
        let database = path.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        if database.starts_with(DATABASE) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.insert(name, fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?);
        }
    }
    Ok(found)
}

/// Waits until every flipped bit is right again; restarts nodes that have not come upon theirs, which makes them read their files.
async fn mend(cluster: &mut Cluster) -> Result<String, String> {
    let flipped = cluster.flips;
    cluster.rot.retain(|rot| !rot.is_mended());
    if cluster.rot.is_empty() {
        return Ok(format!("{flipped} flipped, every file is as it was"));
    }
    let late = cluster.rot.len();
    let mut nodes: Vec<usize> = cluster.rot.iter().map(|rot| rot.node).collect();
    // A node with two rotten files is restarted once.
    nodes.sort_unstable();
    nodes.dedup();
    for node in nodes {
        cluster.stop(node).await?;
        cluster.start(node)?;
    }
    let until = Instant::now() + MENDED_WITHIN;
    while !cluster.rot.is_empty() {
        if Instant::now() > until {
            let left: Vec<String> =
                cluster.rot.iter().map(|rot| format!("node {}: {}", rot.node + 1, rot.path.display())).collect();
            return Err(format!("rot is not mended {MENDED_WITHIN:?} after a restart: {}", left.join(", ")));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        cluster.rot.retain(|rot| !rot.is_mended());
    }
    cluster.wait_ready(CONVERGES_WITHIN).await?;
    Ok(format!(
        "{flipped} flipped, every file is as it was; {late} were mended after the load, when the node had started again"
    ))
}

/// Judges a healed cluster whose clients have stopped.
pub async fn judge(
    cluster: &mut Cluster,
    record: &Record,
    samples: &[Sample],
    liveness: Result<String, String>,
) -> (Vec<Verdict>, Final) {
    let mended = mend(cluster).await;
    let (all, converged) = match collect(cluster).await {
        Ok(all) => {
            let transactions = all.replicas.first().map_or(0, |replica| replica.alhs.len());
            let nodes = cluster.len();
            (all, Ok(format!("{transactions} transactions on each of {nodes} nodes, every hash computed again")))
        }
        Err(error) => (Final::default(), Err(error)),
    };
    let history = record.history();
    let mut verdicts = vec![
        verdict("it serves again after every fault", liveness),
        verdict("all nodes converge to one ledger with a whole chain", converged),
    ];
    // Without a ledger there is nothing to compare with, which is the finding above.
    if !all.replicas.is_empty() {
        verdicts.extend([
            verdict("acknowledged writes are never lost (R4)", durable(&history, &all)),
            verdict("reads are linearizable (R5)", linear(&history, &all)),
            verdict("replicas are equal (R2)", equal(cluster, &all)),
        ]);
    }
    let none_of = |texts: &[String], good: &str| match texts {
        [] => Ok(good.to_owned()),
        texts if texts.len() <= TOLD_MAX => Err(texts.join("\n")),
        texts => Err(format!("{}\nand {} more", texts[..TOLD_MAX].join("\n"), texts.len() - TOLD_MAX)),
    };
    verdicts.extend([
        verdict("flipped bits are mended", mended),
        verdict(
            "every proof verifies, trusted states move forward (V1, V2)",
            none_of(&record.wrongs(), "no client saw anything else"),
        ),
        verdict("every call ends by its deadline", none_of(&record.hangs(), "none was late")),
        verdict("no node ends by itself, all stop in order", none_of(&cluster.deaths, "as told, every time")),
        verdict("memory stays near its budget", memory(samples)),
    ]);
    (verdicts, all)
}

fn durable(history: &History, all: &Final) -> Result<String, String> {
    let acknowledged = history.writes.iter().filter(|write| matches!(write.ending, Ending::Acknowledged(_))).count();
    if acknowledged == 0 {
        return Err("no write was acknowledged: the run shows nothing".to_owned());
    }
    acked_durable::check(history, &all.ledger)?;
    Ok(format!("{acknowledged} acknowledged, {} sent", history.writes.len()))
}

fn linear(history: &History, all: &Final) -> Result<String, String> {
    if history.reads.is_empty() {
        return Err("nothing was read: the run shows nothing".to_owned());
    }
    linearizable::check(history, &all.ledger)?;
    Ok(format!("{} reads", history.reads.len()))
}

fn equal(cluster: &Cluster, all: &Final) -> Result<String, String> {
    let mut replicas = all.replicas.clone();
    for (replica, member) in replicas.iter_mut().zip(&cluster.members) {
        replica.segments = segments(&member.dir)?;
    }
    replicas_equal::check(&replicas, true)?;
    let closed: Vec<String> = replicas.iter().map(|replica| replica.segments.len().to_string()).collect();
    Ok(format!("equal Alhs; equal bytes in closed segments ({})", closed.join(", ")))
}

fn memory(samples: &[Sample]) -> Result<String, String> {
    let most = MEMORY_BUDGET_BYTES + MEMORY_BESIDE_BUDGET_BYTES;
    let Some(highest) = samples.iter().max_by_key(|sample| sample.resident) else {
        return Err("nobody looked".to_owned());
    };
    let said = format!(
        "at most {} MiB resident (node {}); budget {} MiB and {} MiB beside it",
        highest.resident >> 20,
        highest.node + 1,
        MEMORY_BUDGET_BYTES >> 20,
        MEMORY_BESIDE_BUDGET_BYTES >> 20
    );
    if highest.resident > most { Err(said) } else { Ok(said) }
}
