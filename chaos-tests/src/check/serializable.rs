//! A3: transactions are serializable. The ledger gives their order, so the search for a cycle comes down to this: whatever a
//! committed transaction has read is what the state before it says. An edge from a later writer back to an earlier reader
//! would be a version that is missing there.

use super::Evidence;
use super::versions::name;

/// Replays every transaction that stands in the ledger.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for transaction in &evidence.history.transactions {
        let Some(tx) = evidence.versions.place(&transaction.value) else { continue };
        for (key, seen) in &transaction.reads {
            let there = evidence.versions.at(key, tx - 1).map(|(_, value)| value);
            if seen.as_ref() != there {
                return Err(format!(
                    "transaction {tx} has read {:?} = {:?}, which was {:?} before it",
                    name(key),
                    seen.as_deref().map(name),
                    there.map(|value| name(value)),
                ));
            }
        }
    }
    Ok(())
}
