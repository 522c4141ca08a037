//! The verdicts, after healing: what every node has, against what every client saw.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{Cluster, DATABASE, MEMORY_BUDGET_BYTES};
use super::faults::rot::{Rot, closed_segments};
use super::monitor::Sample;
use super::wire;
use crate::check::acked_durable::Ledger;
use crate::check::index::{self, Indexed};
use crate::check::replicas_equal::{self, Replica};
use crate::check::versions::Versions;
use crate::check::{Evidence, PROPERTIES, Sightings};
use crate::history::{Ending, History};
use crate::model::chain;
use crate::reader::{Reader, Whole};
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
    pub property: String,
    /// What was found, or what was looked at.
    pub outcome: Result<String, String>,
}

fn verdict(property: impl Into<String>, outcome: Result<String, String>) -> Verdict {
    Verdict { property: property.into(), outcome }
}

/// What the nodes have in the end.
#[derive(Debug, Default)]
pub struct Final {
    /// Entries of every node: transaction, key, value.
    pub ledger: Ledger,
    /// Each node's Alhs and closed segments.
    pub replicas: Vec<Replica>,
    /// What each node's index says.
    pub index: Indexed,
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
    let mut all = Final { index: Indexed { database: DATABASE.to_owned(), ..Indexed::default() }, ..Final::default() };
    for node in 0..cluster.len() {
        let name = format!("node {}", node + 1);
        let failed = |error: tonic::Status| format!("{name}: its ledger cannot be read: {error}");
        let mut reader = wire::open(&cluster.endpoint(node), READ_WITHIN).await.map_err(failed)?;
        let Whole { ledger, chain, .. } = wire::whole(&mut reader).await.map_err(failed)?;
        let alhs =
            chain::check(&chain).map_err(|broken| format!("{name}: transaction {}: {}", broken.tx, broken.rule))?;
        if node > 0 && ledger != all.ledger {
            return Err(format!("R2: {name} shows other entries than node 1"));
        }
        all.ledger.clone_from(&ledger);
        all.index.ledger = ledger;
        let at = alhs.len() as u64;
        all.index.shown.push(through_index(&mut reader, &name, &all.index, at).await.map_err(failed)?);
        all.replicas.push(Replica { name, alhs, segments: BTreeMap::new() });
    }
    // A segment that was closed last may still be waiting for the file beside it, which says that it is.
    let until = Instant::now() + CONVERGES_WITHIN;
    loop {
        for (replica, member) in all.replicas.iter_mut().zip(&cluster.members) {
            replica.segments = segments(&member.dir)?;
        }
        if Instant::now() > until || replicas_equal::check(&all.replicas, true).is_ok() {
            return Ok(all);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn through_index(
    reader: &mut Reader,
    node: &str,
    index: &Indexed,
    at: u64,
) -> Result<index::Shown, tonic::Status> {
    let mut shown = index::Shown { node: node.to_owned(), ..index::Shown::default() };
    for key in index.keys() {
        shown.keys.push(reader.key(&key, at).await?);
    }
    shown.scan = reader.scan(at).await?;
    Ok(shown)
}

/// Bytes of the closed segments of all databases, by database and name.
fn segments(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let paths = closed_segments(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let read = |path: &Path| {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((path.strip_prefix(dir).unwrap_or(path).display().to_string(), bytes))
    };
    paths.iter().map(|path| read(path)).collect()
}

/// What was seen of the nodes while they ran, and what they have written down of themselves.
fn sightings(cluster: &Cluster, samples: &[Sample]) -> Result<Sightings, String> {
    let mut seen = Sightings::default();
    for sample in samples {
        if let (Some(true), Some(term)) = (sample.leads, sample.term) {
            let nodes = seen.leaders.entry((DATABASE.to_owned(), term)).or_default();
            let name = format!("node {}", sample.node + 1);
            if !nodes.contains(&name) {
                nodes.push(name);
            }
        }
    }
    for (node, member) in cluster.members.iter().enumerate() {
        let path = member.dir.join("identity");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let line: serde_json::Value =
            serde_json::from_str(text.lines().next().unwrap_or_default()).map_err(|error| error.to_string())?;
        let name = line["record"]["cluster"].as_str().ok_or_else(|| format!("{}: no cluster", path.display()))?;
        seen.clusters.entry(name.to_owned()).or_default().push(format!("node {}", node + 1));
    }
    Ok(seen)
}

/// Nodes with rotten files, each once however many of its files are.
fn rotten_nodes(rot: &[Rot]) -> BTreeSet<usize> {
    rot.iter().map(|rot| rot.node).collect()
}

/// Waits until every flipped bit is right again; restarts nodes that have not come upon theirs, which makes them read their files.
async fn mend(cluster: &mut Cluster) -> Result<String, String> {
    let flipped = cluster.flips;
    cluster.rot.retain(|rot| !rot.is_mended());
    if cluster.rot.is_empty() {
        return Ok(format!("{flipped} flipped, every file is as it was"));
    }
    let late = cluster.rot.len();
    for node in rotten_nodes(&cluster.rot) {
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
        match sightings(cluster, samples) {
            Ok(seen) => verdicts.extend(by_property(&history, &all, &seen)),
            Err(error) => verdicts.push(verdict("all nodes say to which cluster they belong", Err(error))),
        }
    }
    let none_of = |texts: &[String], good: &str| match texts {
        [] => Ok(good.to_owned()),
        texts if texts.len() <= TOLD_MAX => Err(texts.join("\n")),
        texts => Err(format!("{}\nand {} more", texts[..TOLD_MAX].join("\n"), texts.len() - TOLD_MAX)),
    };
    verdicts.extend([
        verdict("flipped bits are mended", mended),
        verdict(
            "every proof verifies in the eyes of every client (V1)",
            none_of(&record.wrongs(), "no client saw anything else"),
        ),
        verdict("every call ends by its deadline", none_of(&record.hangs(), "none was late")),
        verdict("no node ends by itself, all stop in order", none_of(&cluster.deaths, "as told, every time")),
        verdict("memory stays near its budget", memory(samples)),
    ]);
    (verdicts, all)
}

/// What this run has looked at for a property of the list; nothing for those that its workload gives no evidence of. `Err` when there
/// should be some.
fn looked_at(id: &str, history: &History, all: &Final, seen: &Sightings) -> Option<Result<String, String>> {
    let some = |count: usize, what: &str| match count {
        0 => Err(format!("{what}: none, so the run shows nothing")),
        _ => Ok(format!("{count} {what}")),
    };
    let acknowledged = history.writes.iter().filter(|write| matches!(write.ending, Ending::Acknowledged(_))).count();
    let closed: Vec<String> = all.replicas.iter().map(|replica| replica.segments.len().to_string()).collect();
    Some(match id {
        "R4" => some(acknowledged, "acknowledged writes").map(|said| format!("{said}, {} sent", history.writes.len())),
        "R5" => some(history.reads.len(), "reads"),
        "R2" => some(all.replicas.iter().map(|replica| replica.alhs.len()).min().unwrap_or(0), "equal Alhs")
            .map(|said| format!("{said}; equal bytes in closed segments ({})", closed.join(", "))),
        "R9" => some(all.index.keys().len(), "keys, each on every node, with their whole past"),
        "V2" => some(history.trusted.len(), "states that clients came to trust"),
        "M2" => some(seen.clusters.len(), "cluster"),
        "M3" => some(seen.leaders.len(), "terms with a leader that was seen"),
        _ => return None,
    })
}

/// The same history before the same properties as in the simulation.
fn by_property(history: &History, all: &Final, seen: &Sightings) -> Vec<Verdict> {
    let versions = Versions::of(&all.ledger);
    let indexes = std::slice::from_ref(&all.index);
    let evidence = Evidence {
        history,
        ledger: &all.ledger,
        versions: &versions,
        replicas: &all.replicas,
        indexes,
        sightings: seen,
    };
    (PROPERTIES.iter())
        .filter_map(|property| {
            let looked = looked_at(property.id, history, all, seen)?;
            let outcome = (property.check)(&evidence).and(looked);
            Some(verdict(format!("{} ({})", property.says, property.id), outcome))
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_properties_of_the_simulation_judge_here_too() {
        let write = |value: &str, ending| crate::history::Write {
            client: 0,
            key: "k".into(),
            value: value.into(),
            invoked: Duration::ZERO,
            ended: Duration::from_secs(1),
            ending,
        };
        let trusted = |tx, byte| crate::history::Trusted { client: 0, tx, alh: vec![byte; 32] };
        let found = |history: &History, seen: &Sightings| -> Vec<String> {
            let ledger: Ledger = vec![(1, "k".into(), "v".into())];
            let replica = Replica { name: "node 1".into(), alhs: vec![[1; 32]], segments: BTreeMap::new() };
            let index = Indexed { database: DATABASE.into(), ledger: ledger.clone(), ..Indexed::default() };
            let all = Final { ledger, replicas: vec![replica], index };
            let verdicts = by_property(history, &all, seen).into_iter();
            verdicts.filter(|verdict| verdict.outcome.is_err()).map(|verdict| verdict.property).collect()
        };
        let read = crate::history::Read {
            client: 0,
            node: 1,
            key: "k".into(),
            value: Some("v".into()),
            invoked: Duration::from_secs(2),
            ended: Duration::from_secs(3),
        };
        let mut history = History {
            writes: vec![write("v", Ending::Acknowledged(1))],
            reads: vec![read],
            trusted: vec![trusted(1, 1)],
            ..History::default()
        };
        let mut seen = Sightings::default();
        seen.clusters.insert("one".into(), vec![]);
        seen.leaders.insert((DATABASE.into(), 1), vec!["node 1".into()]);
        assert_eq!(found(&history, &seen), Vec::<String>::new());
        seen.clusters.insert("two".into(), vec![]);
        seen.leaders.insert((DATABASE.into(), 2), vec!["node 1".into(), "node 2".into()]);
        history.trusted.push(trusted(1, 2));
        history.writes.push(write("lost", Ending::Acknowledged(2)));
        let ids: Vec<String> = found(&history, &seen);
        for id in ["(R4)", "(V2)", "(M2)", "(M3)"] {
            assert!(ids.iter().any(|property| property.ends_with(id)), "{id}: {ids:?}");
        }
        let nothing = found(&History::default(), &Sightings::default());
        for id in ["(R4)", "(R5)", "(V2)", "(M2)", "(M3)"] {
            assert!(nothing.iter().any(|property| property.ends_with(id)), "{id} needs evidence: {nothing:?}");
        }
    }

    #[test]
    fn a_node_with_two_rotten_files_is_restarted_once() {
        let rot = [1, 0, 1].map(|node| Rot { node, path: "x".into(), right: vec![] });
        assert_eq!(rotten_nodes(&rot).into_iter().collect::<Vec<_>>(), [0, 1]);
    }
}
