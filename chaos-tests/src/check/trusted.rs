//! V2: what a client has verified only moves forward, and is a state of the ledger that stands at the end.

use std::collections::BTreeMap;

use super::Evidence;
use crate::history::Trusted;

/// Follows every client.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    if let Some(replica) = evidence.replicas.first() {
        follow(&evidence.history.trusted, &replica.alhs)?;
    }
    for (database, own) in &evidence.history.forgetful {
        if let Some(indexed) = evidence.indexes.iter().find(|indexed| indexed.database == *database) {
            follow(&own.trusted, &indexed.alhs).map_err(|what| format!("{database}: {what}"))?;
        }
    }
    Ok(())
}

fn follow(states: &[Trusted], alhs: &[[u8; 32]]) -> Result<(), String> {
    let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
    for state in states {
        let before = newest.insert(state.client, state.tx).unwrap_or(0);
        if state.tx < before {
            return Err(format!("client {} went back from transaction {before} to {}", state.client, state.tx));
        }
        let at = usize::try_from(state.tx).unwrap_or(usize::MAX).wrapping_sub(1);
        match alhs.get(at) {
            Some(alh) if alh.as_slice() == state.alh => {}
            Some(_) => {
                return Err(format!("client {} trusts another transaction {} than there is", state.client, state.tx));
            }
            None => return Err(format!("client {} trusts transaction {}, which is lost", state.client, state.tx)),
        }
    }
    Ok(())
}
