//! A2: where a conditional write stands, its condition held in the state before; where it was refused for its condition, there
//! was a state, not older than what the client knew and not newer than the answer, in which the condition did not hold.

use std::time::Duration;

use super::Evidence;
use super::versions::{Versions, name};
use crate::history::{Condition, Write};

fn holds(versions: &Versions, condition: &Condition, state: u64) -> bool {
    match condition {
        Condition::Exists(key) => versions.at(key, state).is_some(),
        Condition::Absent(key) => versions.at(key, state).is_none(),
        Condition::UnchangedSince(key, tx) => versions.at(key, state).is_none_or(|(at, _)| at <= tx),
    }
}

/// Looks at every conditional write.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    let last = evidence.ledger.last().map_or(0, |(tx, _, _)| *tx);
    let place = |write: &Write| Some((write.invoked, evidence.versions.place(&write.value)?));
    let sent: Vec<_> = evidence.history.writes.iter().filter_map(place).collect();
    // Transactions are numbered as they are decided: what stands behind one that was sent later came later as well.
    let newest_at = |time: Duration| {
        let later = sent.iter().filter(|(sent, _)| *sent > time).map(|(_, tx)| *tx);
        later.min().map_or(last, |tx| tx - 1)
    };
    for write in &evidence.history.conditionals {
        if let Some(tx) = evidence.versions.place(&write.value) {
            if write.unmet {
                return Err(format!("{:?} was refused for its condition and stands at {tx}", name(&write.value)));
            }
            if !holds(evidence.versions, &write.condition, tx - 1) {
                return Err(format!(
                    "{:?} stands at {tx}, where {:?} did not hold",
                    name(&write.value),
                    write.condition
                ));
            }
        }
        if !write.unmet {
            continue;
        }
        // The client may know transactions that are newer than every entry of a key.
        let newest = newest_at(write.ended).max(write.floor);
        if (write.floor..=newest).all(|state| holds(evidence.versions, &write.condition, state)) {
            let (value, condition, floor) = (name(&write.value), &write.condition, write.floor);
            return Err(format!(
                "{value:?} was refused, and {condition:?} held in all states from {floor} to {newest}"
            ));
        }
    }
    Ok(())
}
