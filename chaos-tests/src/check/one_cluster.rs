//! M2: however forming went, all nodes belong to one cluster.

use super::Evidence;

/// Counts clusters.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    match evidence.sightings.clusters.len() {
        0 | 1 => Ok(()),
        n => Err(format!("{n} clusters: {:?}", evidence.sightings.clusters)),
    }
}
