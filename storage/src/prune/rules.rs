//! The prunes in force: which values are gone, and by which of them first. In memory; no IO.

use std::collections::BTreeMap;

use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use crate::command::Citation;
use crate::error::Result;
use crate::index::Index;
use crate::limits::{HISTORY_LIMIT_PREFIXES_MAX, PRUNES_MAX};
use crate::plant::{Plant, is_planted};

/// What a prune names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pruned {
    /// All values of transactions before this one.
    Before(TxId),
    /// Of each key with the prefix all versions but the newest, counted when the prune was applied.
    Versions {
        /// Of stored keys.
        prefix: Bytes,
        /// How many stay.
        keep: u32,
    },
    /// One value.
    Value {
        /// Its transaction.
        tx: TxId,
        /// Entry of it.
        entry: u32,
    },
}

/// A prune in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneRecord {
    /// From 1, in log order.
    pub number: u32,
    /// Newest transaction when it was applied.
    pub as_of: TxId,
    /// The `systemdb` transaction that ordered it.
    pub order: Option<Citation>,
    /// What went.
    pub pruned: Pruned,
}

/// One history limit.
#[derive(Clone, Copy, Debug)]
struct Limit {
    number: u32,
    as_of: TxId,
    keep: u64,
}

/// All prunes in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    newest: u32,
    /// Rising in both: transactions before the first lost their values to the second.
    before: Vec<(TxId, u32)>,
    erased: BTreeMap<(TxId, u32), u32>,
    /// By prefix; those of one prefix rise in number and in `as_of`.
    limits: BTreeMap<Bytes, Vec<Limit>>,
}

impl Rules {
    /// Number of the newest prune, 0 when there is none.
    pub(crate) fn newest(&self) -> u32 {
        self.newest
    }

    /// Transactions before this one have lost all values.
    pub(crate) fn truncated(&self) -> TxId {
        self.before.last().map_or(TxId(0), |(tx, _)| *tx)
    }

    /// Whether a prune would name a value that is not gone already, as far as that can be told without reading.
    pub(crate) fn takes(&self, pruned: &Pruned) -> bool {
        let room = self.newest < PRUNES_MAX;
        room && match pruned {
            Pruned::Before(tx) => *tx > self.truncated(),
            Pruned::Versions { prefix, .. } => {
                self.limits.contains_key(prefix) || self.limits.len() < HISTORY_LIMIT_PREFIXES_MAX
            }
            Pruned::Value { tx, entry } => *tx >= self.truncated() && !self.erased.contains_key(&(*tx, *entry)),
        }
    }

    /// Puts the next prune in force.
    pub(crate) fn add(&mut self, record: &PruneRecord) {
        debug_assert_eq!(record.number, self.newest + 1, "prunes are numbered in log order");
        let number = record.number;
        self.newest = number;
        match &record.pruned {
            Pruned::Before(tx) => self.before.push((*tx, number)),
            Pruned::Versions { prefix, keep } => {
                let limit = Limit { number, as_of: record.as_of, keep: u64::from(*keep) };
                self.limits.entry(prefix.clone()).or_default().push(limit);
            }
            Pruned::Value { tx, entry } => {
                self.erased.entry((*tx, *entry)).or_insert(number);
            }
        }
    }

    /// The first prune that took everything of a transaction; for rejected proposals of the one that they would have become.
    pub(crate) fn first_before(&self, tx: TxId) -> Option<u32> {
        let at = self.before.partition_point(|(before, _)| *before <= tx);
        self.before.get(at).map(|(_, number)| *number)
    }

    /// The first prune that names the value of an entry.
    pub(crate) fn first(&self, tx: TxId, entry: u32, key: &[u8], index: &Index) -> Result<Option<u32>> {
        let mut first = [self.erased.get(&(tx, entry)).copied(), self.first_before(tx)].into_iter().flatten().min();
        for limits in self.limits_of(key) {
            for limit in limits {
                if first.is_none_or(|first| limit.number < first) && limit.names(tx, entry, key, index)? {
                    first = Some(limit.number);
                }
            }
        }
        Ok(first)
    }

    /// Whether the value of an entry is gone.
    pub(crate) fn name(&self, tx: TxId, entry: u32, key: &[u8], index: &Index) -> Result<bool> {
        if is_planted(Plant::ForgetTooMuch) && tx == self.truncated() {
            return Ok(true);
        }
        if tx < self.truncated() || self.erased.contains_key(&(tx, entry)) {
            return Ok(true);
        }
        for limits in self.limits_of(key) {
            for limit in limits.iter().rev() {
                if limit.names(tx, entry, key, index)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn limits_of<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Vec<Limit>> {
        (self.limits.iter()).filter(|(prefix, _)| key.starts_with(prefix)).map(|(_, limits)| limits)
    }
}

impl Limit {
    fn names(&self, tx: TxId, entry: u32, key: &[u8], index: &Index) -> Result<bool> {
        if tx > self.as_of {
            return Ok(false);
        }
        // What the index does not have is no version and not limited.
        match index.get_exact(key, tx)? {
            Some(version) if version.entry == entry => {
                Ok(index.revisions(key, self.as_of)? - version.revision.0 >= self.keep)
            }
            _ => Ok(false),
        }
    }
}
