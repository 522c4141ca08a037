//! After healing: demands that every node takes a write, and what was sent before, once more; waits until all have the same newest
//! transaction and the same bytes in closed segments, then reads every ledger whole, recomputes its chain, and reads it once more
//! through the index: of every database that there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alhambra_raft::group::Health;
use tokio::time::Instant;
use tonic::Status;

use super::client::{self, DATABASE, DEADLINE, PASSWORD, Session};
use super::ops::again::all_again;
use super::plant::Plant;
use super::setup::NAMES;
use super::shared::Shared;
use crate::check::acked_durable::Ledger;
use crate::check::index::{self, Indexed};
use crate::model::chain;
use crate::reader::{Reader, Whole};

/// What the nodes show.
pub struct Final {
    /// Transaction, key and value of every entry that clients wrote to the database of the workload, the same on all nodes.
    pub ledger: Ledger,
    /// Nodes that were read, by number, with the Alh of every transaction of that database.
    pub alhs: Vec<(usize, Vec<[u8; 32]>)>,
    /// Every database, that of the workload first, with what the indexes say of it.
    pub indexes: Vec<Indexed>,
    /// Closed segments of each node, by its number and by path, at a moment when they were alike.
    pub segments: Segments,
    /// How long it took from the end of the faults until the nodes were alike.
    pub healed_in: Duration,
    /// Replicas that are for their operator.
    pub lost: u64,
}

/// Closed segments of nodes, by number and path.
pub type Segments = BTreeMap<usize, BTreeMap<String, Vec<u8>>>;

/// Key of the writes that show progress after healing; the judge leaves them out.
pub const HEALED_KEY: &[u8] = b"healed";
/// The database of the nodes themselves.
const SYSTEM: &str = "systemdb";
/// What a node says of a replica that cannot come back by itself (`docs/operating/disk.md`).
const FOR_THE_OPERATOR: &str = "the others have forgotten values of it, and what is known here to be committed does not reach behind it; put the file back";
/// Every call of the judge ends within this.
const CALL: Duration = Duration::from_secs(DEADLINE.as_secs() + 1);

fn pause() -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_millis(500))
}

/// One life at its end.
pub struct Collector<'a> {
    /// What is known of it.
    pub shared: &'a Shared,
    /// How many nodes there are.
    pub nodes: usize,
    /// Those whose disks rot.
    pub rotting: &'a [usize],
    /// How long healing may take.
    pub patience: Duration,
    /// The bug of this life.
    pub plant: Option<Plant>,
}

impl Collector<'_> {
    /// Reads everything, or says why that cannot be. `sealed` reads the closed segments of these databases on these nodes, and says
    /// where they differ.
    pub async fn collect(
        &self,
        sealed: impl Fn(&[usize], &[String]) -> Result<Segments, String>,
    ) -> Result<Final, String> {
        let (begin, patience) = (Instant::now(), self.patience);
        let until = begin + patience;
        let outside = self.shared.borrow().outside.clone();
        let inside: Vec<usize> = (0..self.nodes).filter(|i| !outside.contains(i)).collect();
        self.all_write(&inside, until).await?;
        // Once everybody is what it will be, by files of another node or without.
        self.alike(DATABASE, &inside, until).await?;
        let again = Instant::now();
        all_again(self.shared, &inside, again + patience).await?;
        let again = again.elapsed();
        let until = Instant::now() + patience;
        let mut open = match self.alike(DATABASE, &inside, until).await? {
            Some(open) => open,
            None => return Err(format!("liveness: {DATABASE} is gone")),
        };
        // What has rotted is found and mended by itself, whatever database it is of.
        let (names, _) = self.sealed_alike(&inside, until, &sealed).await?;
        let healed_in = begin.elapsed() - again;
        // Its segments are too large to close in a life, so its history is compared as the hash over all of it.
        self.alike(SYSTEM, &inside, until).await?;
        for node in &outside {
            if Session::open(NAMES[*node], DATABASE).await.is_ok() {
                return Err(format!("M2: {} has lost its disk and serves under its old name", NAMES[*node]));
            }
        }
        // The chain of reads below is as long as there is to read, so it has a time of its own.
        let until = Instant::now() + patience;
        let (all, alhs) = self.whole(DATABASE, &mut open, until).await?;
        let mut indexes = vec![self.through_index(all, &mut open, until).await?];
        for name in names.iter().filter(|name| *name != DATABASE) {
            // Deleted, or unloaded, by a call whose client did not wait for its end.
            let Some(mut open) = self.alike(name, &self.holders(&inside, name), until).await? else { continue };
            let (all, _) = self.whole(name, &mut open, until).await?;
            indexes.push(self.through_index(all, &mut open, until).await?);
        }
        let mut ledger = indexes[0].ledger.clone();
        ledger.retain(|(_, key, _)| key != HEALED_KEY);
        // An order of which nobody waited for the end may have been carried out meanwhile, on one node before the others.
        let (_, segments) = self.sealed_alike(&inside, Instant::now() + patience, &sealed).await?;
        self.shared.borrow_mut().sightings.listed = self.listed(inside[0], Instant::now() + patience).await?;
        let lost = names.iter().map(|name| (inside.len() - self.holders(&inside, name).len()) as u64).sum();
        Ok(Final { ledger, alhs, indexes, segments, healed_in, lost })
    }

    /// Names of all databases, loaded or not.
    async fn listed(&self, node: usize, until: Instant) -> Result<BTreeSet<String>, String> {
        loop {
            let listed = async { reader(node, DATABASE).await?.listed().await };
            match listed.await {
                Ok(listed) => return Ok(listed.into_iter().map(|(name, _)| name).collect()),
                Err(e) if Instant::now() > until => return Err(format!("liveness: the databases are not listed: {e}")),
                Err(_) => pause().await,
            }
        }
    }

    /// Those that are to have a database. A replica that is for its operator is not among them: what it has still to apply has rotted, and
    /// the others, which were to mend it, have forgotten the values of it meanwhile. It has to say so, and its disk has to be one that
    /// rots.
    fn holders(&self, inside: &[usize], name: &str) -> Vec<usize> {
        let shared = self.shared.borrow();
        let is_lost = |node: &usize| {
            let Some(running) = shared.running.get(node).filter(|_| self.rotting.contains(node)) else { return false };
            let groups = running.handle.groups().ready().groups;
            groups.iter().filter(|group| group.name == name).any(|group| match &group.health {
                Some(Health::Failed { reason }) => reason.contains(FOR_THE_OPERATOR),
                _ => false,
            })
        };
        inside.iter().copied().filter(|node| !is_lost(node)).collect()
    }

    /// Waits until the closed segments of all databases are alike. Answers the names of the databases, and the segments.
    async fn sealed_alike(
        &self,
        inside: &[usize],
        until: Instant,
        sealed: &impl Fn(&[usize], &[String]) -> Result<Segments, String>,
    ) -> Result<(Vec<String>, Segments), String> {
        loop {
            let names = databases(inside[0]).await.map_err(|e| e.to_string());
            let alike = names.and_then(|names| {
                let (whole, lacking): (Vec<_>, Vec<_>) =
                    names.iter().cloned().partition(|name| self.holders(inside, name).len() == inside.len());
                for name in lacking {
                    let holders = self.holders(inside, &name);
                    if holders.len() * 2 <= self.nodes {
                        return Err(format!("{name} is left on {holders:?} only"));
                    }
                    sealed(&holders, &[name])?;
                }
                sealed(inside, &whole).map(|segments| (names, segments))
            });
            match alike {
                Ok(alike) => return Ok(alike),
                Err(differ) if Instant::now() > until => {
                    let patience = self.patience;
                    return Err(format!("R2: within {patience:?} after healing nobody mended it: {differ}"));
                }
                Err(_) => pause().await,
            }
        }
    }

    /// The healed cluster takes a write through each node.
    async fn all_write(&self, inside: &[usize], until: Instant) -> Result<(), String> {
        let (patience, mut last) = (self.patience, String::new());
        for node in inside {
            loop {
                if Instant::now() > until {
                    return Err(format!(
                        "liveness: {} takes no write within {patience:?} after healing: {last}",
                        NAMES[*node]
                    ));
                }
                let written = match Session::open(NAMES[*node], DATABASE).await {
                    Ok(mut session) => session.set(HEALED_KEY, format!("healed-{node}").as_bytes()).await,
                    Err(e) => Err(e),
                };
                match written {
                    Ok(_) => break,
                    Err(e) => last = e.to_string(),
                }
                pause().await;
            }
        }
        Ok(())
    }

    /// Waits until all nodes have the newest transaction of a database that was acknowledged; nothing when it is there no more. That
    /// they are alike is not enough: without a leader they may be alike in what they do not know yet.
    async fn alike(&self, name: &str, inside: &[usize], until: Instant) -> Result<Option<Vec<Open>>, String> {
        loop {
            let (mut states, mut open) = (Vec::new(), Vec::new());
            for node in inside {
                let state = match reader(*node, name).await {
                    Ok(mut reader) => {
                        let state = reader.state().await;
                        open.push(Open { node: *node, reader, at: state.as_ref().map_or(0, |(tx, _)| *tx) });
                        state
                    }
                    Err(e) => Err(e),
                };
                states.push(state.map_err(|e| format!("{}: {e}", NAMES[*node])));
            }
            let newest = match open.first_mut() {
                Some(open) => open.reader.newest().await.map_err(|e| e.to_string()),
                None => Err("it is open nowhere".to_string()),
            };
            if newest.is_ok() && states.iter().all(|state| *state == newest) {
                return Ok(Some(open));
            }
            if ![DATABASE, SYSTEM].contains(&name)
                && let Ok(names) = databases(inside[0]).await
                && !names.iter().any(|there| there == name)
            {
                return Ok(None);
            }
            if Instant::now() > until {
                let patience = self.patience;
                if let Some(differ) = histories_differ(name, &mut open).await {
                    return Err(differ);
                }
                return Err(format!(
                    "liveness: the nodes did not converge in {name} within {patience:?} after healing: {states:?}, the newest: \
                     {newest:?}"
                ));
            }
            pause().await;
        }
    }

    /// The whole ledger of every node, which must be the same, and the Alhs of each.
    async fn whole(
        &self,
        name: &str,
        open: &mut [Open],
        until: Instant,
    ) -> Result<(Indexed, Vec<(usize, Vec<[u8; 32]>)>), String> {
        let (mut first, mut alhs): (Option<Indexed>, Vec<_>) = (None, Vec::new());
        let first_node = NAMES[open[0].node];
        for open in open {
            let mut whole = Whole::default();
            loop {
                let from = whole.chain.len() as u64 + 1;
                let batch = patiently(name, open, until, async |reader, _| reader.transactions(from).await).await?;
                if batch.is_empty() {
                    break;
                }
                whole.extend(batch);
            }
            let node = NAMES[open.node];
            let chained = chain::check(&whole.chain);
            let chained = chained.map_err(|b| format!("{node}: transaction {} of {name}: {}", b.tx, b.rule))?;
            alhs.push((open.node, chained.clone()));
            let Whole { ledger, gone, members, chain } = whole;
            match &first {
                Some(first) if first.ledger != ledger => {
                    return Err(format!("R2: {node} shows other entries of {name} than {first_node}"));
                }
                Some(first) if first.members != members => {
                    return Err(format!("R2: {node} shows other members of sets of {name} than {first_node}"));
                }
                Some(first) if first.gone != gone => {
                    return Err(format!("R2: {node} has forgotten other values of {name} than {first_node}"));
                }
                Some(_) => {}
                None => {
                    let database = name.to_string();
                    first = Some(Indexed { database, ledger, gone, members, chain, alhs: chained, shown: Vec::new() });
                }
            }
        }
        Ok((first.unwrap_or_default(), alhs))
    }

    /// The same once more, as every node's index has it.
    async fn through_index(&self, mut indexed: Indexed, open: &mut [Open], until: Instant) -> Result<Indexed, String> {
        let (keys, name) = (indexed.keys(), indexed.database.clone());
        for open in open {
            let mut shown = index::Shown { node: NAMES[open.node].to_string(), ..index::Shown::default() };
            for key in &keys {
                let mut found = patiently(&name, open, until, async |reader, at| reader.key(key, at).await).await?;
                if self.plant == Some(Plant::IndexLags) && found.past.len() > 1 {
                    found.past.pop();
                    (found.newest, found.revision) = (found.past.last().cloned(), found.past.len() as u64);
                }
                shown.keys.push(found);
            }
            shown.scan = patiently(&name, open, until, async |reader, at| reader.scan(at).await).await?;
            for set in indexed.sets().into_keys() {
                let members = patiently(&name, open, until, async |reader, at| reader.set(&set, at).await).await?;
                shown.sets.insert(set, members);
            }
            indexed.shown.push(shown);
        }
        Ok(indexed)
    }
}

/// Of nodes that do not come to the same: where their histories are not one and the same.
async fn histories_differ(name: &str, open: &mut [Open]) -> Option<String> {
    let least = open.iter().map(|open| open.at).min().filter(|least| *least > 0)?;
    let mut seen: Option<(usize, chain::Hash)> = None;
    for open in open {
        let shown = open.reader.transactions(least).await.ok()?;
        let alh = chain::alh(&shown.first()?.chain);
        let (first, of_first) = *seen.get_or_insert((open.node, alh));
        if of_first != alh {
            let (one, other) = (NAMES[first], NAMES[open.node]);
            return Some(format!("R2: {one} and {other} differ in the Alh of transaction {least} of {name}"));
        }
    }
    None
}

/// A node that is read.
struct Open {
    node: usize,
    reader: Reader,
    /// Its newest transaction.
    at: u64,
}

async fn reader(node: usize, database: &str) -> Result<Reader, Status> {
    Reader::open(client::channel(NAMES[node]).await?, "immudb", PASSWORD, database, CALL).await
}

/// The databases that are loaded.
async fn databases(node: usize) -> Result<Vec<String>, Status> {
    reader(node, DATABASE).await?.databases().await
}

/// What has rotted is mended from the others when a reader comes upon it, so a read may fail for a while.
async fn patiently<T>(
    name: &str,
    open: &mut Open,
    until: Instant,
    read: impl AsyncFn(&mut Reader, u64) -> Result<T, Status>,
) -> Result<T, String> {
    loop {
        let failed = match read(&mut open.reader, open.at).await {
            Ok(shown) => return Ok(shown),
            Err(status) => status,
        };
        if Instant::now() > until {
            return Err(format!("liveness: {name} of {} cannot be read: {failed}", NAMES[open.node]));
        }
        pause().await;
        if let Ok(again) = reader(open.node, name).await {
            open.reader = again;
        }
    }
}
