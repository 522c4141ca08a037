//! TruncateDatabase: values that are older than a period are forgotten; hashes, headers and proofs stay.
//!
//! The order stands in `systemdb`, with who gave it and when; the prune cites it. The cut-off is the beginning of a day in UTC, so
//! that it does not depend on which node is asked.

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
/// How many headers are looked at before others have their turn on the thread: some milliseconds, also from disk.
const HEADERS_A_PIECE: u64 = 4096;
const UNFINISHED: Error = Error::Unfinished { what: "forgetting all that is old" };

/// The beginning of the day, Unix seconds, before which everything is older than `retention_ms` at `now_ms`.
fn cutoff(now_ms: i64, retention_ms: i64) -> i64 {
    now_ms.saturating_sub(retention_ms).div_euclid(DAY_MS) * DAY_S
}

/// What an order to truncate came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truncated {
    /// The values are gone for every read on this node from now on.
    Done,
    /// Some of them are, or it is known which; the next order goes on from there.
    Partly,
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
                Truncated::Partly => return Err(UNFINISHED),
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
        let mut replica = self.router.locate(&record.name, deadline).await?;
        // One of the same name that was deleted may be open here for a moment yet: what is found in it says nothing about this one.
        if replica.id() != record.group {
            return Ok(Truncated::Changed);
        }
        if replica.database().settings().is_some_and(|settings| settings.replica) {
            return Err(text::IS_REPLICA.into());
        }
        replica.barrier(Level::Linearizable, deadline).await?;
        let cutoff = cutoff(now_ms, retention_ms);
        let kept = self.searches.lock().remove(&record.group);
        let mut search = Search::resumed(kept, replica.database().truncated_before(), cutoff);
        // Time is left for the truncation itself: what was found until then is forgotten, and the rest the next time.
        let enough = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        while !search.ended && Instant::now() < enough {
            let database = replica.database().clone();
            let piece = self.env.blocking(of_node::MEMORY, move || search.look_at(&database).map(|()| search));
            search = timeout_at(deadline, piece).await.map_err(|_| UNFINISHED)?.ok_or(Error::Stopping)??;
        }
        if !search.ended {
            self.searches.lock().insert(record.group, search);
        }
        // Before the first transaction there is nothing, and what is forgotten already is not forgotten again.
        let before = TxId(search.old);
        if before <= replica.database().truncated_before() || before.get() <= 1 {
            return Ok(if search.ended { Truncated::NotReached } else { Truncated::Partly });
        }
        // Nothing of this database is held while another one is written to.
        drop(replica);
        let order = TruncationOrder { before, cutoff, retention_ms, by };
        let citation = match self.groups.meta().order_truncation(record, &order, deadline).await {
            Err(MetaError::Conflict { .. }) => return Ok(Truncated::Changed),
            ordered => ordered?,
        };
        replica = self.router.locate(&record.name, deadline).await?;
        if replica.id() != record.group {
            return Ok(Truncated::Changed);
        }
        match replica.truncate(citation, before, Vec::new(), deadline).await? {
            Written::Committed(marker) => {
                // Whoever reads here from now on does not find them.
                let point = Level::AtLeast(marker.id);
                let shown = replica.barrier(point, deadline).await;
                shown.map_err(|error| Error::from(error).after_commit(marker.id))?;
                let name = &record.name;
                tracing::info!(name, by, %before, marker = %marker.id, order = %citation.tx, "the database is truncated");
                Ok(if search.ended { Truncated::Done } else { Truncated::Partly })
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

/// A search, in pieces, for the newest transaction with entries whose time, and that of all before it, is before a cut-off. One
/// without a time is as old as the next one that has one. Times of another server, whose clock was set back, do fall, and nothing
/// younger than the cut-off may be forgotten, so it looks at each; as long as the part that is to be forgotten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    cutoff: i64,
    /// The one to look at next.
    next: u64,
    /// The last one with entries before that.
    filled: u64,
    /// What it has found.
    old: u64,
    /// Nothing is left to look at.
    ended: bool,
}

impl Search {
    /// What is before `known` is forgotten already.
    const fn new(known: TxId, cutoff: i64) -> Self {
        Self { cutoff, next: known.0 + 1, filled: known.0, old: known.0, ended: false }
    }

    /// The same, from where an earlier one stopped: what was old stays old, unless more of it is to be kept now.
    fn resumed(kept: Option<Self>, known: TxId, cutoff: i64) -> Self {
        match kept.filter(|kept| kept.cutoff <= cutoff && kept.old >= known.0) {
            Some(kept) => Self { cutoff, ..kept },
            None => Self::new(known, cutoff),
        }
    }

    /// Looks at the next piece.
    fn look_at(&mut self, database: &Database) -> alhambra_storage::Result<()> {
        let header = |tx| database.header(TxId(tx)).map(|header| (header.ts, header.nentries > 0));
        self.look(database.applied().tx.get(), HEADERS_A_PIECE, header)
    }

    /// Looks at the next `count` of those up to `last`. `header` tells the time of one, and whether it has entries.
    fn look<E>(
        &mut self,
        last: u64,
        count: u64,
        header: impl Fn(u64) -> std::result::Result<(i64, bool), E>,
    ) -> std::result::Result<(), E> {
        for tx in (self.next..=last).take(usize::try_from(count).unwrap_or(usize::MAX)) {
            let (ts, filled) = header(tx)?;
            if ts >= self.cutoff && ts != 0 {
                self.ended = true;
                return Ok(());
            }
            if filled {
                self.filled = tx;
            }
            if ts != 0 {
                self.old = self.filled;
            }
            self.next = tx + 1;
        }
        self.ended = self.next > last;
        Ok(())
    }
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

    /// Against what the definition says, for every small history, whatever the pieces.
    #[test]
    fn the_search_finds_what_is_old_in_pieces() {
        const CUTOFF: i64 = 10;
        let mut compared = 0;
        for len in 0..6u32 {
            for form in 0..6u32.pow(len) {
                // Each is without time, old or young, with or without entries; times may fall, as those of other servers do.
                let kinds: Vec<u32> = (0..len).map(|n| form / 6u32.pow(n) % 6).collect();
                let txs: Vec<_> = kinds.iter().map(|kind| ([0, 9, 10][*kind as usize % 3], *kind < 3)).collect();
                let old = txs.iter().take_while(|(ts, _)| *ts < CUTOFF).count();
                let old = txs[..old].iter().rposition(|(ts, _)| *ts == 9).map_or(0, |n| n + 1);
                let wanted = txs[..old].iter().rposition(|(_, filled)| *filled).map_or(0, |n| n as u64 + 1);
                for known in 0..=wanted {
                    for count in 1..=3 {
                        let mut search = Search::new(TxId(known), CUTOFF);
                        while !search.ended {
                            // As another call does, later.
                            search = Search::resumed(Some(search), TxId(known), CUTOFF);
                            let read = std::cell::Cell::new(0);
                            let header = |n: u64| {
                                read.set(read.get() + 1);
                                Ok::<_, ()>(txs[n as usize - 1])
                            };
                            search.look(u64::from(len), count, header).unwrap();
                            assert!(read.get() <= count, "a piece is no longer than it is told");
                        }
                        let again = Search::resumed(Some(search), TxId(known), CUTOFF - 1);
                        assert_eq!(again.next, known + 1, "more is to be kept");
                        assert_eq!(search.old, wanted, "{txs:?} behind {known} by {count}");
                    }
                }
                compared += 1;
            }
        }
        assert_eq!(compared, (0..6u32).map(|len| 6u32.pow(len)).sum::<u32>());
    }
}
