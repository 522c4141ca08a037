//! A2: where a conditional write stands, its condition held in the state before; where it was refused for its condition, there
//! was a state, not older than what the client knew, in which the condition did not hold.

use super::Evidence;
use super::versions::{Versions, name};
use crate::history::Condition;

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
        // The client may know transactions that are newer than every entry of a key.
        let mut states = write.floor..=last.max(write.floor);
        if write.unmet && states.all(|state| holds(evidence.versions, &write.condition, state)) {
            let (value, condition) = (name(&write.value), &write.condition);
            return Err(format!("{value:?} was refused, and {condition:?} held in all states from {} on", write.floor));
        }
    }
    Ok(())
}
