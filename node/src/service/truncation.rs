//! TruncateDatabase: values that are older than a period are forgotten; hashes, headers and proofs stay.
//!
//! The order stands in `systemdb`, with who gave it and when; the prune cites it. The cut-off is the beginning of a day in UTC, so
//! that it does not depend on which node is asked.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_raft::forward::Written;
use alhambra_raft::group::Level;
use alhambra_raft::meta::{DatabaseRecord, MetaError, TruncationOrder};
use alhambra_raft::strand::of_node;
use alhambra_storage::Database;
use alhambra_storage::apply::Rejection;
use tokio::time::{Instant, timeout_at};

use super::App;
use crate::context::Call;
use crate::error::{Error, Result};

const DAY_S: i64 = 86_400;
const DAY_MS: i64 = 1000 * DAY_S;

/// The beginning of the day, Unix seconds, before which everything is older than `retention_ms` at `now_ms`.
fn cutoff(now_ms: i64, retention_ms: i64) -> i64 {
    now_ms.saturating_sub(retention_ms).div_euclid(DAY_MS) * DAY_S
}

/// What an order to truncate came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truncated {
    /// The values are gone for every read on this node from now on.
    Done,
    /// Nothing is old enough.
    NotReached,
    /// The record of the database is another one by now; nothing was done.
    Changed,
}

impl App {
    /// Has all values forgotten that were written before the day that lay `retention_ms` back; 0 for today.
    pub async fn truncate_database(&self, call: &Call, name: &str, retention_ms: i64) -> Result<()> {
        loop {
            let record = self.administrated(call, name).await?;
            if retention_ms != 0 && retention_ms < DAY_MS {
                return Err(Error::RetentionPeriod { name: name.to_owned() });
            }
            let by = self.authenticate(call)?.user;
            let now_ms = self.env.clock.now_unix_ms();
            match self.truncate(&record, (retention_ms, now_ms), &by.name, call.deadline).await? {
                Truncated::Done => return Ok(()),
                Truncated::NotReached => return Err(text::RETENTION_NOT_REACHED.into()),
                Truncated::Changed => {}
            }
        }
    }

    /// The same for a database whose record was just read, at the time `now_ms` (Unix). `by` is who orders it.
    pub(super) async fn truncate(
        &self,
        record: &DatabaseRecord,
        (retention_ms, now_ms): (i64, i64),
        by: &str,
        deadline: Instant,
    ) -> Result<Truncated> {
        let replica = self.router.locate(&record.name, deadline).await?;
        if replica.database().settings().is_some_and(|settings| settings.replica) {
            return Err(text::IS_REPLICA.into());
        }
        replica.barrier(Level::Linearizable, deadline).await?;
        let cutoff = cutoff(now_ms, retention_ms);
        let database = replica.database().clone();
        let found = self.env.blocking(of_node::MEMORY, move || {
            let known = database.truncated_before();
            newest_before(&database, known, cutoff)
        });
        let found = timeout_at(deadline, found).await.map_err(|_| Error::GoesOn { what: "looking for old data" })?;
        // Before the first transaction there is nothing, and what is forgotten already is not forgotten again.
        let forgotten = replica.database().truncated_before();
        let Some(before) = found.ok_or(Error::Stopping)??.filter(|tx| *tx > forgotten && tx.get() > 1) else {
            return Ok(Truncated::NotReached);
        };
        let order = TruncationOrder { before, cutoff, retention_ms, by };
        let citation = match self.groups.meta().order_truncation(record, &order, deadline).await {
            Err(MetaError::Conflict { .. }) => return Ok(Truncated::Changed),
            ordered => ordered?,
        };
        match replica.truncate(citation, before, Vec::new(), deadline).await? {
            Written::Committed(marker) => {
                // Whoever reads here from now on does not find them.
                let point = Level::AtLeast(marker.id);
                let shown = replica.barrier(point, deadline).await;
                shown.map_err(|error| Error::from(error).after_commit(marker.id))?;
                let name = &record.name;
                tracing::info!(name, by, %before, marker = %marker.id, order = %citation.tx, "the database is truncated");
                Ok(Truncated::Done)
            }
            // Somebody else was faster.
            Written::Rejected(Rejection::NothingToPrune) => Ok(Truncated::NotReached),
            Written::Rejected(Rejection::Replica) => Err(text::IS_REPLICA.into()),
            // The marker is metadata.
            Written::Rejected(Rejection::MetadataUnsupported) => Err(text::METADATA_UNSUPPORTED.into()),
            Written::Rejected(rejection) => Err(MetaError::Rejected { rejection }.into()),
        }
    }
}

/// The newest transaction with entries whose time, and that of all before it, is before `cutoff`. One without a time is as old as the
/// next one that has one. What is before `known` is forgotten already.
fn newest_before(database: &Arc<Database>, known: TxId, cutoff: i64) -> alhambra_storage::Result<Option<TxId>> {
    let times = |tx: u64| database.header(TxId(tx)).map(|header| header.ts);
    let guess = oldest_beyond(database.applied().tx.get(), cutoff, times)?;
    let mut found = without_younger(known.get(), guess, cutoff, times)?;
    while found > 0 && database.header(TxId(found))?.nentries == 0 {
        found -= 1;
    }
    Ok((found > 0).then_some(TxId(found)))
}

/// The last of the numbers up to `guess` that has a time, with none behind `known` up to it that is not before `cutoff`; `known` for
/// none. Times of another server, whose clock was set back, do fall, and nothing younger than the cut-off may be forgotten. As
/// long as the part that is to be forgotten.
fn without_younger<E>(
    known: u64,
    guess: u64,
    cutoff: i64,
    time: impl Fn(u64) -> std::result::Result<i64, E>,
) -> std::result::Result<u64, E> {
    let mut found = known;
    for tx in known + 1..=guess {
        match time(tx)? {
            0 => {}
            ts if ts < cutoff => found = tx,
            _ => break,
        }
    }
    Ok(found)
}

/// The last of the numbers 1 to `last` whose time, or that of the first behind it that has one, is before `cutoff`; 0 for none.
/// That holds where times do not fall, except to 0, which is none. Where they do, it is a bound: [`without_younger`] looks at all below.
fn oldest_beyond<E>(
    last: u64,
    cutoff: i64,
    time: impl Fn(u64) -> std::result::Result<i64, E>,
) -> std::result::Result<u64, E> {
    // Up to `old` all are before the cut-off, from `young` on none is.
    let (mut old, mut young) = (0, last + 1);
    while old + 1 < young {
        let middle = old + (young - old) / 2;
        let mut timed = middle;
        let mut ts = time(timed)?;
        while ts == 0 && timed + 1 < young {
            timed += 1;
            ts = time(timed)?;
        }
        if ts != 0 && ts < cutoff { old = timed } else { young = middle }
    }
    Ok(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cutoff_is_the_beginning_of_a_day() {
        assert_eq!(cutoff(10 * DAY_MS, 0), 10 * DAY_S);
        assert_eq!(cutoff(10 * DAY_MS - 1, 0), 9 * DAY_S);
        assert_eq!(cutoff(10 * DAY_MS + 5, DAY_MS), 9 * DAY_S);
        assert_eq!(cutoff(10 * DAY_MS + 5, DAY_MS + 6), 8 * DAY_S);
        assert_eq!(cutoff(0, 1), -DAY_S);
        assert!(cutoff(0, i64::MAX) < 0);
    }

    /// Against a walk over all of them, for every small history.
    #[test]
    fn the_search_finds_what_a_walk_finds() {
        const CUTOFF: i64 = 10;
        let mut compared = 0;
        for len in 0..7u32 {
            for form in 0..3u32.pow(len) {
                // Each is without time, old or young; times may fall, as those of other servers do.
                let kinds: Vec<u32> = (0..len).map(|n| form / 3u32.pow(n) % 3).collect();
                let first_young = kinds.iter().position(|kind| *kind == 2).unwrap_or(kinds.len());
                let times: Vec<i64> = kinds.iter().map(|kind| [0, 9, 10][*kind as usize]).collect();
                let walked = times[..first_young].iter().rposition(|ts| *ts == 9).map_or(0, |n| n as u64 + 1);
                let time = |n: u64| Ok::<_, ()>(times[n as usize - 1]);
                let guess = oldest_beyond(u64::from(len), CUTOFF, time).unwrap();
                assert_eq!(without_younger(0, guess, CUTOFF, time), Ok(walked), "{times:?}");
                for known in 1..=walked {
                    assert_eq!(without_younger(known, guess, CUTOFF, time), Ok(walked), "{times:?} behind {known}");
                }
                compared += 1;
            }
        }
        assert_eq!(compared, (0..7u32).map(|len| 3u32.pow(len)).sum::<u32>());
    }
}
