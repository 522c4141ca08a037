//! Conditions of a proposal, evaluated against the state just before it: a function of the log alone.
//!
//! First what was read, then the preconditions: if the reads are stale, a precondition that fails may do so only because of
//! them, and running the transaction again is the answer that helps.

use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use crate::apply::Rejection;
use crate::command::{LocatedPrecondition, LocatedReadSet};
use crate::error;
use crate::index::{Index, KeyRange};
use crate::plant::{Plant, is_planted};

/// What must hold for a proposal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions<'a> {
    /// What the others are borrowed from.
    pub payload: &'a Bytes,
    pub reads: Option<&'a LocatedReadSet<'a>>,
    pub preconditions: &'a [LocatedPrecondition<'a>],
}

impl Conditions<'_> {
    /// Whether nothing needs to be looked at.
    pub(crate) fn is_empty(&self) -> bool {
        self.reads.is_none() && self.preconditions.is_empty()
    }
}

/// Checks the conditions in order; `now` is the time of the transaction, so that all replicas agree on what is expired. An
/// error says that this replica cannot tell.
pub(crate) fn check(
    conditions: &Conditions<'_>,
    index: &Index,
    tail: TxId,
    now: i64,
) -> error::Result<Result<(), Rejection>> {
    if let Some(reads) = conditions.reads.filter(|_| !is_planted(Plant::IgnoreReadSets))
        && let Err(rejection) = check_reads(reads, conditions.payload, index, tail, now)?
    {
        return Ok(Err(rejection));
    }
    for (number, condition) in (0u32..).zip(conditions.preconditions) {
        let holds = match *condition {
            LocatedPrecondition::MustExist(key) => index.get(key, tail)?.is_some_and(|version| version.is_live(now)),
            LocatedPrecondition::MustNotExist(key) => {
                !index.get(key, tail)?.is_some_and(|version| version.is_live(now))
            }
            LocatedPrecondition::NotModifiedAfter { key, tx } => {
                index.get(key, tail)?.is_none_or(|version| version.tx <= tx)
            }
            LocatedPrecondition::Becomes(tx) => tail.next() == Some(tx),
        };
        if !holds && !is_planted(Plant::IgnorePreconditions) {
            return Ok(Err(Rejection::Precondition { index: number }));
        }
    }
    Ok(Ok(()))
}

fn check_reads(
    reads: &LocatedReadSet<'_>,
    payload: &Bytes,
    index: &Index,
    tail: TxId,
    now: i64,
) -> error::Result<Result<(), Rejection>> {
    if reads.snapshot > tail {
        return Ok(Err(Rejection::SnapshotAhead));
    }
    if reads.valid_from.is_some_and(|from| now < from) || reads.valid_until.is_some_and(|until| now >= until) {
        return Ok(Err(Rejection::Conflict { range: None }));
    }
    if reads.snapshot == tail {
        return Ok(Ok(()));
    }
    for (number, range) in (0u32..).zip(&reads.ranges) {
        if index.changed_since(&KeyRange::from(range.within(payload)), reads.snapshot, tail)? {
            return Ok(Err(Rejection::Conflict { range: Some(number) }));
        }
    }
    Ok(Ok(()))
}
