//! M3: a term has one leader, and a node that comes back from a partition does not depose a leader that works.

use super::Evidence;

/// Looks at all leaders that were seen.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    if let Some(what) = evidence.sightings.deposed.first() {
        return Err(what.clone());
    }
    match evidence.sightings.leaders.iter().find(|(_, nodes)| nodes.len() > 1) {
        Some(((database, term), nodes)) => Err(format!("term {term} of {database} had the leaders {nodes:?}")),
        None => Ok(()),
    }
}
