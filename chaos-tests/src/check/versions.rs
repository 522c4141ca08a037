//! The final ledger by key: what every state of every key was.

use std::collections::BTreeMap;

use super::acked_durable::Ledger;

/// Versions of every key, oldest first, as (transaction, value).
#[derive(Clone, Debug, Default)]
pub struct Versions {
    keys: BTreeMap<Vec<u8>, Vec<(u64, Vec<u8>)>>,
    /// Transaction of each value; values are unique.
    places: BTreeMap<Vec<u8>, u64>,
}

impl Versions {
    /// Sorts a ledger by key.
    pub fn of(ledger: &Ledger) -> Self {
        let mut versions = Self::default();
        for (tx, key, value) in ledger {
            versions.keys.entry(key.clone()).or_default().push((*tx, value.clone()));
            versions.places.insert(value.clone(), *tx);
        }
        versions
    }

    /// All versions of a key.
    pub fn of_key(&self, key: &[u8]) -> &[(u64, Vec<u8>)] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// The newest version of a key in the state after `tx`.
    pub fn at(&self, key: &[u8], tx: u64) -> Option<&(u64, Vec<u8>)> {
        let all = self.of_key(key);
        all[..all.partition_point(|(at, _)| *at <= tx)].last()
    }

    /// Where a value stands.
    pub fn place(&self, value: &[u8]) -> Option<u64> {
        self.places.get(value).copied()
    }

    /// The states, as an inclusive range of transactions, in which `key` has `value`; `Err` when there is none.
    pub fn span(&self, key: &[u8], value: Option<&[u8]>) -> Result<(u64, u64), String> {
        let all = self.of_key(key);
        let until = |i: usize| all.get(i).map_or(u64::MAX, |(tx, _)| tx - 1);
        match value {
            None => Ok((0, until(0))),
            Some(value) => all
                .iter()
                .position(|(_, there)| there == value)
                .map(|i| (all[i].0, until(i + 1)))
                .ok_or_else(|| format!("{:?} never had {:?}", name(key), name(value))),
        }
    }
}

/// Short form of a key or value for messages.
pub(crate) fn name(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().take(32).collect()
}
