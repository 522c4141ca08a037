//! A1: entries that were written together stand in one transaction, or none of them stands.

use super::Evidence;
use super::versions::name;

/// Looks up every batch.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for batch in &evidence.history.batches {
        let places: Vec<Option<u64>> = batch.iter().map(|value| evidence.versions.place(value)).collect();
        if let Some(first) = places.first()
            && places.iter().any(|place| place != first)
        {
            return Err(format!("the batch of {:?} stands at {places:?}", name(&batch[0])));
        }
    }
    Ok(())
}
