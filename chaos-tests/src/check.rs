//! Properties, one file each; the ids are those of `ARCHITECTURE.md`. A new one is a file and a row of [`PROPERTIES`].

pub mod acked_durable;
pub mod atomic;
pub mod conditions;
pub mod databases;
pub mod deadlines;
pub mod floor;
pub mod forged;
pub mod index;
pub mod linearizable;
pub mod memory;
pub mod one_cluster;
pub mod one_leader;
pub mod past;
pub mod pruned;
pub mod replicas_equal;
pub mod serializable;
pub mod snapshot;
pub mod sorted_sets;
pub mod trusted;
pub mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::acked_durable::Ledger;
use self::index::Indexed;
use self::memory::MemorySeen;
use self::replicas_equal::Replica;
use self::versions::Versions;
use crate::history::History;
use crate::wall::Wall;

/// What was seen of the nodes from outside while they ran.
#[derive(Clone, Debug, Default, Hash)]
pub struct Sightings {
    /// Clusters that nodes said they belong to, with the nodes that said so.
    pub clusters: BTreeMap<String, Vec<String>>,
    /// Leaders by database and term, with all nodes that led in it.
    pub leaders: BTreeMap<(String, u64), Vec<String>>,
    /// Leaders that lost their office to a node that only came back: what happened.
    pub deposed: Vec<String>,
    /// What the wall clock of each node has shown, by its number.
    pub clocks: BTreeMap<u32, Wall>,
    /// Databases that the cluster listed at the end, loaded or not.
    pub listed: BTreeSet<String>,
    /// When nobody looked any more.
    pub until: Duration,
    /// What each node's memory was seen to be.
    pub memory: BTreeMap<String, MemorySeen>,
    /// What the workload itself found wrong.
    pub wrong: Vec<String>,
}

/// Everything that is judged.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// What clients did and saw.
    pub history: &'a History,
    /// The final ledger, which all nodes have shown to be theirs.
    pub ledger: &'a Ledger,
    /// The same, by key.
    pub versions: &'a Versions,
    /// What every node holds.
    pub replicas: &'a [Replica],
    /// What the index of every node says of every database.
    pub indexes: &'a [Indexed],
    /// What was seen while they ran.
    pub sightings: &'a Sightings,
}

/// Something that must hold.
#[derive(Clone, Copy)]
pub struct Property {
    /// Its id, for messages and documents.
    pub id: &'static str,
    /// What must hold.
    pub says: &'static str,
    /// Finds the first violation.
    pub check: fn(&Evidence<'_>) -> Result<(), String>,
}

/// All properties, cheapest to understand first.
pub const PROPERTIES: &[Property] = &[
    Property {
        id: "R4",
        says: "an acknowledged write is never lost, stands where it was said to, and nothing stands twice or uninvited",
        check: |e| acked_durable::check(e.history, e.ledger),
    },
    Property {
        id: "R5",
        says: "linearizable reads are linearizable",
        check: |e| linearizable::check(e.history, e.ledger),
    },
    Property {
        id: "R2",
        says: "replicas are equal in Alh and sealed bytes",
        check: |e| replicas_equal::check(e.replicas, true),
    },
    Property { id: "A1", says: "what is written together stands together", check: atomic::check },
    Property {
        id: "A2",
        says: "a condition holds where its write stands, and fails where it was refused",
        check: conditions::check,
    },
    Property { id: "A3", says: "transactions are serializable in the order of the ledger", check: serializable::check },
    Property { id: "R6", says: "a read of several keys shows one state", check: snapshot::check },
    Property { id: "R7", says: "a read at a floor shows at least the floor", check: floor::check },
    Property { id: "R8", says: "the past of a key is what the ledger says, and never changes", check: past::check },
    Property { id: "R10", says: "a scan of a sorted set shows the members of one state", check: sorted_sets::check },
    Property { id: "R9", says: "the index of every node says what the ledger says", check: index::check },
    Property { id: "S5", says: "what was to be forgotten is shown to nobody", check: pruned::forgotten },
    Property { id: "S6", says: "nothing else is forgotten, and hashes stay", check: pruned::kept },
    Property {
        id: "D2",
        says: "a database that was made is there, and one that was deleted is not",
        check: databases::check,
    },
    Property { id: "I2", says: "a copy is the beginning of what it is a copy of", check: databases::copies },
    Property { id: "V2", says: "trusted states only move forward and are states of the ledger", check: trusted::check },
    Property {
        id: "P2",
        says: "no proof verifies for a history that was changed, however well it is made",
        check: forged::check,
    },
    Property { id: "M2", says: "one cluster is formed, never two", check: one_cluster::check },
    Property { id: "M3", says: "one leader per term, and nobody who comes back deposes it", check: one_leader::check },
    Property { id: "T1", says: "a call ends by its deadline", check: deadlines::check },
    Property { id: "B1", says: "memory stays within its budget", check: memory::check },
    Property { id: "W1", says: "nothing was wrong in the eyes of the workload", check: workload_was_content },
];

fn workload_was_content(evidence: &Evidence<'_>) -> Result<(), String> {
    evidence.sightings.wrong.first().map_or(Ok(()), |wrong| Err(wrong.clone()))
}

/// Checks everything; the first violation, with the id of its property.
pub fn all(evidence: &Evidence<'_>) -> Result<(), String> {
    for property in PROPERTIES {
        (property.check)(evidence).map_err(|what| format!("{}: {what}", property.id))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
