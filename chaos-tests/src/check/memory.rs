//! B1: what the databases of a node hold stays within the node's budget, and each part of it within its share; and what waited has
//! given its place back when nothing waits any more.

use super::Evidence;

/// What was seen of a node's memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemorySeen {
    /// The whole budget.
    pub budget: u64,
    /// Most at one moment of all that counts: blocks, what databases hold, what waits.
    pub most: u64,
    /// Most of blocks of indexes.
    pub cached: u64,
    /// Most of proposals that wait.
    pub waiting: u64,
    /// The least that was said to wait after the last client had ended; nothing when nobody looked.
    pub left: Option<u64>,
}

/// One proposal may wait beyond the share of all, whatever its size; those of the workload are smaller than this, bytes.
const ONE_PROPOSAL: u64 = 64 << 10;

/// Compares the highest sightings with the budgets.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for (node, seen) in &evidence.sightings.memory {
        let MemorySeen { budget, most, cached, waiting, left } = *seen;
        let bounds = [
            ("in all", most, budget),
            ("of blocks of indexes", cached, budget / 4),
            ("of proposals that wait", waiting, budget / 8 + ONE_PROPOSAL),
        ];
        if let Some((what, held, bound)) = bounds.into_iter().find(|(_, held, bound)| held > bound) {
            return Err(format!("{node} held {held} bytes {what}, {bound} are allowed"));
        }
        if let Some(left) = left.filter(|left| *left > 0) {
            return Err(format!("{node} counts {left} bytes of proposals that wait, after the last one has ended"));
        }
    }
    Ok(())
}
