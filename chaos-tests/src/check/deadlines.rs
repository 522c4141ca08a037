//! T1: a node that lives answers every call by its deadline, if only to say that it cannot.

use super::Evidence;

/// Reports the first call that was left waiting.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    match evidence.history.overdue.first() {
        Some(call) => Err(format!("{call:?} had no answer")),
        None => Ok(()),
    }
}
