//! Databases in which values are forgotten: S5, what was to be forgotten is shown to nobody who has to know it, and stays gone;
//! S6, nothing else is forgotten, and of what is, the hash and the place stay.
//!
//! An order forgets all values that are older than the beginning of the day, by the clock of the node that is asked, but for the
//! newest of them. When that clock was asked is not known, only that it was during the call; when nobody knows how the call ended,
//! it may have been until the end. So there is what an order must have forgotten, and what it can have forgotten. Each such
//! database is one client's own, so what had been written when an order was given is known.

use std::time::Duration;

use super::Evidence;
use super::acked_durable::{self, Ledger};
use super::index::Indexed;
use super::versions::name;
use crate::history::{Ending, Forgetful, ForgetfulRead, History, Showed, Truncation, TruncationEnding, Write};
use crate::model::chain::{Transaction, hash, truncated_up_to};

const DAY_MS: i64 = 86_400_000;

/// One of these databases: what its client did, and what is there at the end.
struct Story<'a> {
    evidence: &'a Evidence<'a>,
    own: &'a Forgetful,
    indexed: &'a Indexed,
}

/// All of them that are there at the end, by name.
fn stories<'a>(evidence: &'a Evidence<'a>) -> impl Iterator<Item = (&'a String, Story<'a>)> {
    evidence.history.forgetful.iter().filter_map(move |(database, own)| {
        let indexed = evidence.indexes.iter().find(|indexed| indexed.database == *database)?;
        Some((database, Story { evidence, own, indexed }))
    })
}

impl Story<'_> {
    /// The earliest and the latest cut-off of an order that was carried out by `until`, Unix seconds.
    fn cutoffs(&self, order: &Truncation, until: Duration) -> (i64, i64) {
        let clock = self.evidence.sightings.clocks.get(&order.node);
        let (least, most) = clock.map_or((i64::MIN, i64::MAX), |clock| clock.between(order.invoked, until));
        let day = |ms: i64| ms.div_euclid(DAY_MS) * (DAY_MS / 1000);
        (day(least), day(most))
    }

    /// The newest transaction with entries that is older than `cutoff`, among those of writes that fit; 0 for none. Times never
    /// fall, so all before it are older as well.
    fn newest_before(&self, cutoff: i64, fits: impl Fn(&Write) -> bool) -> u64 {
        let old = |tx: &u64| self.transaction(*tx).is_some_and(|there| there.ts < cutoff);
        let fitting = self.own.writes.iter().filter(|write| fits(write));
        fitting.filter_map(|write| self.place(write)).filter(old).max().unwrap_or(0)
    }

    fn transaction(&self, tx: u64) -> Option<&Transaction> {
        self.indexed.chain.get(usize::try_from(tx.checked_sub(1)?).ok()?)
    }

    /// The transaction of a write, if it stands anywhere.
    fn place(&self, write: &Write) -> Option<u64> {
        if let Ending::Acknowledged(tx) = write.ending {
            return Some(tx);
        }
        let there = self.indexed.ledger.iter().find(|(_, key, value)| *key == write.key && *value == write.value);
        let gone = || self.indexed.gone.iter().find(|gone| gone.key == write.key && gone.value_hash == stored(write));
        there.map(|(tx, _, _)| *tx).or_else(|| gone().map(|gone| gone.tx))
    }

    /// Transactions before this one can have been forgotten by `until`.
    fn can_be_gone(&self, until: Duration) -> u64 {
        let orders = self.own.truncations.iter().filter(|order| order.invoked <= until);
        let reach = orders.filter(|order| order.ending != TruncationEnding::NothingOld).map(|order| {
            let is_open = order.ending == TruncationEnding::Unknown;
            let end = if is_open { until.min(self.evidence.sightings.until) } else { order.ended };
            self.newest_before(self.cutoffs(order, end).1, |write| write.invoked <= end)
        });
        reach.max().unwrap_or(0)
    }

    /// Transactions before this one must have been forgotten before `moment`: an order that was acknowledged then, or that found
    /// nothing left to forget, had to reach them; or somebody had seen that a value is gone.
    fn must_be_gone(&self, moment: Duration) -> u64 {
        let ended = self.own.truncations.iter().filter(|order| order.ended <= moment);
        let known = |write: &Write| matches!(write.ending, Ending::Acknowledged(_));
        let reach = ended.filter(|order| order.ending != TruncationEnding::Unknown).map(|order| {
            let (earliest, _) = self.cutoffs(order, order.ended);
            self.newest_before(earliest, |write| known(write) && write.ended <= order.invoked)
        });
        let seen = self.own.reads.iter().filter(|read| read.ended <= moment);
        let seen = seen.filter_map(|read| match read.showed {
            Showed::Gone(tx) => Some(tx + 1),
            Showed::Value(..) | Showed::Nothing => None,
        });
        reach.chain(seen).max().unwrap_or(0)
    }

    /// S5.
    fn forgotten(&self) -> Result<(), String> {
        for read in &self.own.reads {
            if let (Showed::Value(tx, _), Some(moment)) = (&read.showed, read.sees)
                && *tx < self.must_be_gone(moment)
            {
                let before = self.must_be_gone(moment);
                return Err(format!("{}: transaction {tx}, when all before {before} had to be forgotten", who(read)));
            }
        }
        let must = self.must_be_gone(Duration::MAX).max(self.markers().last().map_or(0, |(_, kept)| *kept));
        match self.indexed.ledger.iter().find(|(tx, ..)| *tx < must) {
            Some((tx, ..)) => {
                Err(format!("transaction {tx} has its value in the end; all before {must} are forgotten"))
            }
            None => Ok(()),
        }
    }

    /// S6.
    fn kept(&self) -> Result<(), String> {
        let ledger = self.ledger()?;
        for read in &self.own.reads {
            let known = |write: &&Write| write.key == read.key && read.sees.is_some_and(|moment| write.ended <= moment);
            match &read.showed {
                Showed::Value(tx, value) => {
                    if !ledger.iter().any(|(at, key, there)| (at, key, there) == (tx, &read.key, value)) {
                        return Err(format!("{}: {:?} at {tx}, which the ledger never had", who(read), name(value)));
                    }
                }
                Showed::Gone(tx) => {
                    if *tx >= self.can_be_gone(read.ended) {
                        return Err(format!("{}: transaction {tx} is forgotten, and nobody ordered that", who(read)));
                    }
                }
                Showed::Nothing => {
                    // The newest version may be one that nobody has acknowledged.
                    let newest = self.own.writes.iter().filter(known).filter_map(|write| match write.ending {
                        Ending::Acknowledged(tx) => Some(tx),
                        Ending::Refused | Ending::Unknown => None,
                    });
                    if let Some(newest) = newest.max().filter(|newest| *newest >= self.can_be_gone(read.ended)) {
                        return Err(format!("{}: nothing, though transaction {newest} was acknowledged", who(read)));
                    }
                }
            }
        }
        let can = self.can_be_gone(Duration::MAX);
        if let Some(gone) = self.indexed.gone.iter().find(|gone| gone.tx >= can) {
            return Err(format!("transaction {} is forgotten in the end, and nobody ordered that", gone.tx));
        }
        self.orders()?;
        let history = History { writes: self.own.writes.clone(), ..History::default() };
        acked_durable::check(&history, &ledger)
    }

    /// The ledger as it was before anything was forgotten: each hash that stands in the place of a value is that of a write.
    fn ledger(&self) -> Result<Ledger, String> {
        let mut ledger = self.indexed.ledger.clone();
        for gone in &self.indexed.gone {
            let wrote = |write: &&Write| write.key == gone.key && stored(write) == gone.value_hash;
            let Some(write) = self.own.writes.iter().find(wrote) else {
                return Err(format!("the hash of what is forgotten in transaction {} is of no write", gone.tx));
            };
            ledger.push((gone.tx, gone.key.clone(), write.value.clone()));
        }
        ledger.sort();
        Ok(ledger)
    }

    /// Transactions that say that something is forgotten, each with the first one that kept its values; 0 for one that makes no sense.
    fn markers(&self) -> Vec<(u64, u64)> {
        let marking = self.indexed.chain.iter().filter(|tx| !tx.metadata.is_empty());
        let kept = |marker: &Transaction| (1..marker.id).find(|tx| marker.metadata == truncated_up_to(*tx));
        marking.map(|marker| (marker.id, kept(marker).filter(|_| marker.entries.is_empty()).unwrap_or(0))).collect()
    }

    /// Each order that was acknowledged has left a transaction of its own that says what it forgot, and none has left two.
    fn orders(&self) -> Result<(), String> {
        let (markers, mut last) = (self.markers(), 0);
        for (marker, kept) in &markers {
            if *kept <= last || self.transaction(*kept).is_none_or(|tx| tx.entries.is_empty()) {
                return Err(format!("transaction {marker} forgets all before {kept}, after all before {last}"));
            }
            last = *kept;
        }
        if let Some(gone) = self.indexed.gone.iter().find(|gone| gone.tx >= last) {
            return Err(format!("transaction {} is forgotten, and no transaction says so", gone.tx));
        }
        let ended = |ending| self.own.truncations.iter().filter(|order| order.ending == ending).count();
        let (done, unknown) = (ended(TruncationEnding::Done), ended(TruncationEnding::Unknown));
        if markers.len() < done || markers.len() > done + unknown {
            let count = markers.len();
            return Err(format!(
                "{count} transactions forget, {done} orders were acknowledged and {unknown} may have been"
            ));
        }
        Ok(())
    }
}

/// Hash of the stored form of a value.
fn stored(write: &Write) -> [u8; 32] {
    hash(&[&[0], &write.value])
}

fn who(read: &ForgetfulRead) -> String {
    format!("{} of {:?} on node {} at {:?}", read.call, name(&read.key), read.node, read.ended)
}

/// Compares what was shown with what had to be forgotten.
pub fn forgotten(evidence: &Evidence<'_>) -> Result<(), String> {
    stories(evidence).try_for_each(|(database, story)| story.forgotten().map_err(|what| format!("{database}: {what}")))
}

/// Compares what is gone with what can have been forgotten, and what is left with what was written.
pub fn kept(evidence: &Evidence<'_>) -> Result<(), String> {
    for (database, own) in &evidence.history.forgetful {
        if !own.writes.is_empty() && !evidence.indexes.iter().any(|indexed| indexed.database == *database) {
            return Err(format!("{database} is gone"));
        }
    }
    stories(evidence).try_for_each(|(database, story)| story.kept().map_err(|what| format!("{database}: {what}")))
}

#[cfg(test)]
mod tests;
