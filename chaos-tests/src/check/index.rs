//! R9: in the end the index of every node says of every key what the ledger says: its newest version, how many there are, its whole
//! past; and a scan shows all keys and no others. Of every database, on every node.

use std::collections::BTreeSet;

use super::Evidence;
use super::acked_durable::Ledger;
use super::versions::{Versions, name};

/// What an index says of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyShown {
    /// The key.
    pub key: Vec<u8>,
    /// Transaction and value of the newest version.
    pub newest: Option<(u64, Vec<u8>)>,
    /// The number of the newest version, from 1.
    pub revision: u64,
    /// Transaction and value of every version, oldest first.
    pub past: Vec<(u64, Vec<u8>)>,
}

/// What the index of one node says of one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The node.
    pub node: String,
    /// Every key of the ledger.
    pub keys: Vec<KeyShown>,
    /// A scan over all: key, transaction, value.
    pub scan: Vec<(Vec<u8>, u64, Vec<u8>)>,
}

/// One database in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Its name.
    pub database: String,
    /// Its ledger, the same on all nodes.
    pub ledger: Ledger,
    /// What every node's index says of it.
    pub shown: Vec<Shown>,
}

impl Indexed {
    /// Every key of the ledger.
    pub fn keys(&self) -> BTreeSet<Vec<u8>> {
        self.ledger.iter().map(|(_, key, _)| key.clone()).collect()
    }
}

fn key(versions: &Versions, shown: &KeyShown) -> Result<(), String> {
    let all = versions.of_key(&shown.key);
    if shown.newest.as_ref() != all.last() {
        let tx = |version: Option<&(u64, Vec<u8>)>| version.map(|(tx, value)| (*tx, name(value)));
        return Err(format!("is {:?}, the ledger says {:?}", tx(shown.newest.as_ref()), tx(all.last())));
    }
    if shown.revision != all.len() as u64 {
        return Err(format!("has {} versions, the ledger {}", shown.revision, all.len()));
    }
    if shown.past != all {
        let at = shown.past.iter().zip(all).position(|(a, b)| a != b).unwrap_or(all.len().min(shown.past.len()));
        let (there, here) = (all.len(), shown.past.len());
        return Err(format!("has a history of {here} versions, the ledger {there}; they differ from {} on", at + 1));
    }
    Ok(())
}

/// Compares everything.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for indexed in evidence.indexes {
        let versions = Versions::of(&indexed.ledger);
        let keys = indexed.keys();
        let scan: Vec<_> = (keys.iter())
            .filter_map(|key| versions.of_key(key).last().map(|(tx, value)| (key.clone(), *tx, value.clone())))
            .collect();
        for shown in &indexed.shown {
            let who = || format!("{} of {}", indexed.database, shown.node);
            let asked: BTreeSet<&Vec<u8>> = shown.keys.iter().map(|shown| &shown.key).collect();
            if let Some(missing) = keys.iter().find(|key| !asked.contains(key)) {
                return Err(format!("{}: nobody has looked up {:?}", who(), name(missing)));
            }
            for shown in &shown.keys {
                key(&versions, shown).map_err(|what| format!("{}: {:?} {what}", who(), name(&shown.key)))?;
            }
            if shown.scan != scan {
                let (there, here) = (scan.len(), shown.scan.len());
                let differs =
                    scan.iter().find(|entry| !shown.scan.contains(entry)).map(|(key, tx, _)| (name(key), *tx));
                return Err(format!("{}: a scan shows {here} keys of {there}; missing: {differs:?}", who()));
            }
        }
    }
    Ok(())
}
