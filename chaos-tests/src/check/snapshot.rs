//! R6: a read of several keys shows one state of the ledger, and not one older than what was acknowledged before it began.

use super::Evidence;
use crate::history::Ending;

/// Intersects the spans in which each value was current.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for read in &evidence.history.snapshots {
        let who = || format!("{} on node {} at {:?}", read.call, read.node, read.invoked);
        let floor = (evidence.history.writes.iter())
            .filter_map(|write| match write.ending {
                Ending::Acknowledged(tx) if write.ended < read.invoked => Some(tx),
                _ => None,
            })
            .max()
            .unwrap_or(0);
        let (mut from, mut to) = (floor, u64::MAX);
        for (key, value) in &read.pairs {
            let span = evidence.versions.span(key, value.as_deref()).map_err(|e| format!("{}: {e}", who()))?;
            (from, to) = (from.max(span.0), to.min(span.1));
        }
        if from > to {
            return Err(format!("{}: no state from {floor} on has all that it returned ({from} > {to})", who()));
        }
    }
    Ok(())
}
