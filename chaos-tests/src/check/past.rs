//! R8: the past of a key, whenever and wherever it was read, is what the final ledger says.

use std::time::Duration;

use super::Evidence;
use super::versions::name;
use crate::history::{Ending, PastRead};

/// Newest transaction of the key that was acknowledged before `when`.
fn known(evidence: &Evidence<'_>, key: &[u8], when: Duration) -> u64 {
    let acknowledged = |write: &&crate::history::Write| write.key == key && write.ended < when;
    (evidence.history.writes.iter().filter(acknowledged))
        .filter_map(|write| if let Ending::Acknowledged(tx) = write.ending { Some(tx) } else { None })
        .max()
        .unwrap_or(0)
}

/// Compares every answer with the ledger.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for read in &evidence.history.pasts {
        match read {
            PastRead::History { node, key, versions, invoked } => {
                let all = evidence.versions.of_key(key);
                if !all.starts_with(versions) {
                    return Err(format!(
                        "history of {:?} on node {node} at {invoked:?} is not that of the ledger",
                        name(key)
                    ));
                }
                let (newest, known) = (versions.last().map_or(0, |(tx, _)| *tx), known(evidence, key, *invoked));
                if newest < known {
                    let key = name(key);
                    return Err(format!(
                        "history of {key:?} on node {node} at {invoked:?} ends at {newest}, {known} was known"
                    ));
                }
            }
            PastRead::AtTx { node, key, tx, value } => {
                let there = evidence.versions.at(key, *tx).filter(|(at, _)| at == tx).map(|(_, value)| value);
                if value.as_ref() != there {
                    return Err(format!(
                        "{:?} at transaction {tx} on node {node} is {value:?}, the ledger says {there:?}",
                        name(key)
                    ));
                }
            }
            PastRead::AtRevision { node, key, revision, found } => {
                let at = usize::try_from(*revision).unwrap_or(usize::MAX).wrapping_sub(1);
                if evidence.versions.of_key(key).get(at) != Some(found) {
                    return Err(format!(
                        "revision {revision} of {:?} on node {node} is not that of the ledger",
                        name(key)
                    ));
                }
            }
        }
    }
    Ok(())
}
