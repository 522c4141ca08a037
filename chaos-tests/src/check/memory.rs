//! B1: what the databases of a node hold stays within the node's budget.

use super::Evidence;

/// Compares the highest sightings with the budgets.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    match evidence.sightings.memory.iter().find(|(_, (held, budget))| held > budget) {
        Some((node, (held, budget))) => Err(format!("{node} held {held} bytes of {budget}")),
        None => Ok(()),
    }
}
