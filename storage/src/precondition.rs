//! Conditions of a proposal, evaluated against the state just before it: a function of the log alone.

use alhambra_ledger::ids::TxId;

use crate::apply::Rejection;
use crate::command::LocatedPrecondition;
use crate::error;
use crate::index::Index;

/// Checks the conditions in order; `now` is the time of the transaction, so that all replicas agree on what is expired.
pub(crate) fn check(
    conditions: &[LocatedPrecondition<'_>],
    index: &Index,
    tail: TxId,
    now: i64,
) -> error::Result<Result<(), Rejection>> {
    for (number, condition) in (0u32..).zip(conditions) {
        let holds = match *condition {
            LocatedPrecondition::MustExist(key) => index.get(key, tail)?.is_some_and(|version| version.is_live(now)),
            LocatedPrecondition::MustNotExist(key) => {
                !index.get(key, tail)?.is_some_and(|version| version.is_live(now))
            }
            LocatedPrecondition::NotModifiedAfter { key, tx } => {
                index.get(key, tail)?.is_none_or(|version| version.tx <= tx)
            }
        };
        if !holds {
            return Ok(Err(Rejection::Precondition { index: number }));
        }
    }
    Ok(Ok(()))
}
