//! R9: in the end the index of every node says of every key what the ledger says: its newest version, how many there are, its whole
//! past; and a scan shows all keys and no others, one of a sorted set its members in their order. Of every database, on every node. Versions whose value is forgotten count, and
//! are not shown.

use std::collections::{BTreeMap, BTreeSet};

use super::Evidence;
use super::acked_durable::Ledger;
use super::versions::{Versions, name};
use crate::history::{Member, MemberShown};
use crate::model::chain::{Hash, Transaction};

/// An entry whose value is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its transaction.
    pub tx: u64,
    /// The key.
    pub key: Vec<u8>,
    /// Hash of the stored value.
    pub value_hash: Hash,
}

/// What an index says of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyShown {
    /// The key.
    pub key: Vec<u8>,
    /// Transaction and value of the newest version.
    pub newest: Option<(u64, Vec<u8>)>,
    /// Transaction of the newest version, when its value is forgotten.
    pub gone: Option<u64>,
    /// The number of the newest version, from 1; 0 when that is not told.
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
    /// Every sorted set of the ledger, by name.
    pub sets: BTreeMap<Vec<u8>, Vec<MemberShown>>,
}

/// One database in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Its name.
    pub database: String,
    /// Its ledger, the same on all nodes.
    pub ledger: Ledger,
    /// Entries that have lost their value, on all nodes the same.
    pub gone: Vec<Gone>,
    /// Transaction and member of every addition to a sorted set.
    pub members: Vec<(u64, Member)>,
    /// All its transactions.
    pub chain: Vec<Transaction>,
    /// Their Alhs.
    pub alhs: Vec<Hash>,
    /// What every node's index says of it.
    pub shown: Vec<Shown>,
}

impl Indexed {
    /// Every key of the ledger.
    pub fn keys(&self) -> BTreeSet<Vec<u8>> {
        let gone = self.gone.iter().map(|gone| &gone.key);
        self.ledger.iter().map(|(_, key, _)| key).chain(gone).cloned().collect()
    }

    /// Every sorted set of the ledger, with what a scan has to show of it.
    pub fn sets(&self) -> BTreeMap<Vec<u8>, Vec<MemberShown>> {
        let versions = Versions::of(&self.ledger);
        let mut sets: BTreeMap<Vec<u8>, Vec<MemberShown>> = BTreeMap::new();
        for member in self.members.iter().map(|(_, member)| member).collect::<BTreeSet<_>>() {
            let set = sets.entry(member.set.clone()).or_default();
            let found = if member.at_tx == 0 {
                self.newest(&versions, &member.key)
            } else {
                versions.at(&member.key, member.at_tx).filter(|(tx, _)| *tx == member.at_tx)
            };
            set.extend(found.map(|(tx, value)| MemberShown { member: member.clone(), tx: *tx, value: value.clone() }));
        }
        sets.values_mut().for_each(|set| set.sort_by(|a, b| a.member.place().cmp(&b.member.place())));
        sets
    }

    /// Transactions in which the key has lost its value, oldest first.
    fn gone_of(&self, key: &[u8]) -> Vec<u64> {
        self.gone.iter().filter(|gone| gone.key == key).map(|gone| gone.tx).collect()
    }

    /// The newest version of a key, unless its value is forgotten.
    fn newest<'a>(&self, versions: &'a Versions, key: &[u8]) -> Option<&'a (u64, Vec<u8>)> {
        let gone = self.gone_of(key).last().copied().unwrap_or(0);
        versions.of_key(key).last().filter(|(tx, _)| *tx > gone)
    }
}

fn key(indexed: &Indexed, versions: &Versions, shown: &KeyShown) -> Result<(), String> {
    let (all, gone) = (versions.of_key(&shown.key), indexed.gone_of(&shown.key));
    let newest = indexed.newest(versions, &shown.key);
    if shown.newest.as_ref() != newest {
        let tx = |version: Option<&(u64, Vec<u8>)>| version.map(|(tx, value)| (*tx, name(value)));
        return Err(format!("is {:?}, the ledger says {:?}", tx(shown.newest.as_ref()), tx(newest)));
    }
    let newest_gone = gone.last().copied().filter(|_| newest.is_none());
    if shown.gone != newest_gone {
        return Err(format!("is forgotten in {:?}, the ledger says {newest_gone:?}", shown.gone));
    }
    let count = all.len() + gone.len();
    if newest.is_some() && shown.revision != count as u64 {
        return Err(format!("has {} versions, the ledger {count}", shown.revision));
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
        let (keys, sets) = (indexed.keys(), indexed.sets());
        let scan: Vec<_> = (keys.iter())
            .filter_map(|key| indexed.newest(&versions, key).map(|(tx, value)| (key.clone(), *tx, value.clone())))
            .collect();
        for shown in &indexed.shown {
            let who = || format!("{} of {}", indexed.database, shown.node);
            let asked: BTreeSet<&Vec<u8>> = shown.keys.iter().map(|shown| &shown.key).collect();
            if let Some(missing) = keys.iter().find(|key| !asked.contains(key)) {
                return Err(format!("{}: nobody has looked up {:?}", who(), name(missing)));
            }
            for shown in &shown.keys {
                key(indexed, &versions, shown).map_err(|what| format!("{}: {:?} {what}", who(), name(&shown.key)))?;
            }
            if shown.scan != scan {
                let (there, here) = (scan.len(), shown.scan.len());
                let differs =
                    scan.iter().find(|entry| !shown.scan.contains(entry)).map(|(key, tx, _)| (name(key), *tx));
                return Err(format!("{}: a scan shows {here} keys of {there}; missing: {differs:?}", who()));
            }
            if let Some((set, all)) = sets.iter().find(|(set, all)| shown.sets.get(*set) != Some(all)) {
                let here = shown.sets.get(set).map_or(0, Vec::len);
                let differs = all.iter().find(|one| !shown.sets.get(set).is_some_and(|there| there.contains(one)));
                let differs = differs.map(|one| one.member.to_string());
                let (set, there) = (name(set), all.len());
                return Err(format!("{}: the set {set:?} has {here} members of {there}; missing: {differs:?}", who()));
            }
        }
    }
    Ok(())
}
