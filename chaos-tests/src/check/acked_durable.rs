//! R4: an acknowledged write is never lost, stands where it was said to stand, and nothing stands twice or uninvited.

use std::collections::BTreeMap;

use super::versions::name;
use crate::history::{Ending, History};

/// What one replica's ledger holds, read at the end: for each value its transaction and key.
pub type Ledger = Vec<(u64, Vec<u8>, Vec<u8>)>;

/// Compares the clients' record with a replica's whole ledger of (transaction id, key, value).
pub fn check(history: &History, ledger: &Ledger) -> Result<(), String> {
    let mut found: BTreeMap<&[u8], Vec<(u64, &[u8])>> = BTreeMap::new();
    for (tx, key, value) in ledger {
        found.entry(value).or_default().push((*tx, key));
    }
    for write in &history.writes {
        let places = found.remove(write.value.as_slice()).unwrap_or_default();
        let name = || format!("write {:?} of client {}", name(&write.value), write.client);
        if places.len() > 1 {
            return Err(format!("{} stands {} times: {places:?}", name(), places.len()));
        }
        if places.iter().any(|(_, key)| *key != write.key) {
            return Err(format!("{} stands under another key", name()));
        }
        match (write.ending, places.first()) {
            (Ending::Acknowledged(tx), None) => {
                return Err(format!("{} was acknowledged at {tx} and is lost", name()));
            }
            (Ending::Acknowledged(tx), Some((at, _))) if tx != *at => {
                return Err(format!("{} was acknowledged at {tx} and stands at {at}", name()));
            }
            (Ending::Refused, Some((at, _))) => return Err(format!("{} was refused and stands at {at}", name())),
            _ => {}
        }
    }
    match found.keys().next() {
        Some(value) => Err(format!("nobody wrote {:?}", name(value))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::Write;

    fn history(ending: Ending) -> History {
        let at = Duration::from_secs(1);
        let write = Write { client: 1, key: b"k".into(), value: b"v".into(), invoked: at, ended: at, ending };
        History { writes: vec![write], ..History::default() }
    }

    #[test]
    fn judges_each_ending() {
        let here: Ledger = vec![(5, b"k".into(), b"v".into())];
        let twice: Ledger = vec![(5, b"k".into(), b"v".into()), (6, b"k".into(), b"v".into())];
        assert!(check(&history(Ending::Acknowledged(5)), &here).is_ok());
        assert!(check(&history(Ending::Acknowledged(4)), &here).is_err(), "stands elsewhere");
        assert!(check(&history(Ending::Acknowledged(5)), &vec![]).is_err(), "lost");
        assert!(check(&history(Ending::Acknowledged(5)), &twice).is_err(), "twice");
        assert!(check(&history(Ending::Refused), &here).is_err(), "refused but there");
        assert!(check(&history(Ending::Refused), &vec![]).is_ok());
        assert!(check(&history(Ending::Unknown), &here).is_ok());
        assert!(check(&history(Ending::Unknown), &vec![]).is_ok());
        assert!(check(&history(Ending::Unknown), &twice).is_err(), "unknown, but never twice");
        assert!(check(&History::default(), &here).is_err(), "uninvited");
    }
}
