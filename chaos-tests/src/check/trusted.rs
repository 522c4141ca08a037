//! V2: what a client has verified only moves forward, and is a state of the ledger that stands at the end.

use std::collections::BTreeMap;

use alhambra_ledger::digest::EMPTY;

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
        // An SDK that asks before anybody has written keeps the state of the empty ledger.
        let known = match state.tx.checked_sub(1) {
            None => Some(&EMPTY.0),
            Some(at) => usize::try_from(at).ok().and_then(|at| alhs.get(at)),
        };
        match known {
            Some(alh) if alh.as_slice() == state.alh => {}
            Some(_) => {
                return Err(format!("client {} trusts another transaction {} than there is", state.client, state.tx));
            }
            None => return Err(format!("client {} trusts transaction {}, which is lost", state.client, state.tx)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_ledger_is_a_state_and_no_other_of_its_number() {
        let alhs = [[1; 32], [2; 32]];
        let trusted = |tx, alh: [u8; 32]| Trusted { client: 4, tx, alh: alh.to_vec() };
        let follow = |states: &[Trusted]| follow(states, &alhs);
        assert_eq!(follow(&[trusted(0, EMPTY.0), trusted(1, [1; 32]), trusted(2, [2; 32])]), Ok(()));
        for wrong in [trusted(0, [0; 32]), trusted(1, [2; 32]), trusted(3, [3; 32])] {
            follow(&[wrong]).expect_err("no state of the ledger");
        }
        follow(&[trusted(1, [1; 32]), trusted(0, EMPTY.0)]).expect_err("back");
    }
}
