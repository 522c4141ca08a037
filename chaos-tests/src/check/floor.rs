//! R7: a read at a floor shows a state that is not older than the floor, on any node.

use super::Evidence;
use super::versions::name;

/// The version seen is at least the one that the floor has.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for read in &evidence.history.floors {
        let who = || format!("read of {:?} on node {} at floor {}", name(&read.key), read.node, read.floor);
        let (_, to) =
            evidence.versions.span(&read.key, read.value.as_deref()).map_err(|e| format!("{}: {e}", who()))?;
        if to < read.floor {
            return Err(format!("{} saw a version that was replaced in transaction {}", who(), to + 1));
        }
    }
    Ok(())
}
