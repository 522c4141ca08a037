//! R5: linearizable reads are linearizable.
//!
//! Values are unique and the ledger gives the version order of each key, so no search is needed: a read must return a
//! version that is not older than the newest one acknowledged (or read by anybody) before the read began, and not one whose
//! write began after the read ended.

use std::collections::BTreeMap;
use std::time::Duration;

use super::acked_durable::Ledger;
use crate::history::{Ending, History};

/// Compares every read with the version order of the final ledger.
pub fn check(history: &History, ledger: &Ledger) -> Result<(), String> {
    let places: BTreeMap<&[u8], (u64, &[u8])> =
        ledger.iter().map(|(tx, key, value)| (value.as_slice(), (*tx, key.as_slice()))).collect();
    let place = |value: &[u8]| places.get(value).map(|(tx, _)| *tx);
    let invoked: BTreeMap<&[u8], Duration> =
        history.writes.iter().map(|write| (write.value.as_slice(), write.invoked)).collect();
    // Times at which a version of a key was known to exist: acknowledged, or seen by a read.
    let mut known: BTreeMap<&[u8], Vec<(Duration, u64)>> = BTreeMap::new();
    for write in &history.writes {
        if let Ending::Acknowledged(tx) = write.ending {
            known.entry(&write.key).or_default().push((write.ended, tx));
        }
    }
    for read in &history.reads {
        if let Some(tx) = read.value.as_ref().and_then(|value| place(value)) {
            known.entry(&read.key).or_default().push((read.ended, tx));
        }
    }
    // A write that begins when a transaction is known stands behind it, whatever key either of them has.
    let mut all: Vec<(Duration, u64)> = known.values().flatten().copied().collect();
    all.sort_unstable();
    let mut newest = 0;
    let newest: Vec<(Duration, u64)> = (all.into_iter())
        .map(|(when, tx)| {
            newest = newest.max(tx);
            (when, newest)
        })
        .collect();
    for write in &history.writes {
        let before = newest[..newest.partition_point(|(when, _)| *when < write.invoked)].last();
        if let (Some(tx), Some((_, before))) = (place(&write.value), before)
            && tx <= *before
        {
            let value: String = String::from_utf8_lossy(&write.value).chars().take(32).collect();
            return Err(format!(
                "{value:?} was sent at {:?}, when {before} was known, and stands at {tx}",
                write.invoked
            ));
        }
    }
    for read in &history.reads {
        let who = || {
            let key = String::from_utf8_lossy(&read.key);
            format!("read of {key:?} by client {} on node {} at {:?}", read.client, read.node, read.invoked)
        };
        let seen = match &read.value {
            None => 0,
            Some(value) => match places.get(value.as_slice()) {
                Some((tx, key)) if *key == read.key => *tx,
                Some((tx, _)) => return Err(format!("{} returned what {tx} wrote to another key", who())),
                None => return Err(format!("{} returned a value that is not in the ledger", who())),
            },
        };
        let floor = known
            .get(read.key.as_slice())
            .into_iter()
            .flatten()
            .filter(|(when, _)| *when < read.invoked)
            .map(|(_, tx)| *tx)
            .max()
            .unwrap_or(0);
        if seen < floor {
            return Err(format!("{} returned version {seen}, older than {floor}, which was known before", who()));
        }
        if let Some(value) = &read.value
            && invoked.get(value.as_slice()).is_some_and(|begin| *begin > read.ended)
        {
            return Err(format!("{} returned a value before it was written", who()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Read, Write};

    #[test]
    fn a_stale_read_is_found() {
        let s = Duration::from_secs;
        let write = |value: &[u8], from, to, tx| Write {
            client: 0,
            key: b"k".into(),
            value: value.into(),
            invoked: s(from),
            ended: s(to),
            ending: Ending::Acknowledged(tx),
        };
        let read = |value: Option<&[u8]>, from, to| Read {
            client: 1,
            node: 1,
            key: b"k".into(),
            value: value.map(Into::into),
            invoked: s(from),
            ended: s(to),
        };
        let ledger: Ledger = vec![(1, b"k".into(), b"a".into()), (2, b"k".into(), b"b".into())];
        let writes = vec![write(b"a", 1, 2, 1), write(b"b", 3, 6, 2)];
        let judge = |reads: Vec<Read>| check(&History { writes: writes.clone(), reads, ..History::default() }, &ledger);
        assert!(judge(vec![read(Some(b"a"), 4, 5)]).is_ok(), "b is not acknowledged yet");
        assert!(judge(vec![read(Some(b"b"), 4, 5)]).is_ok(), "b may be visible already");
        assert!(judge(vec![read(Some(b"a"), 7, 8)]).is_err(), "b was acknowledged before");
        assert!(judge(vec![read(None, 3, 4)]).is_err(), "a was acknowledged before");
        assert!(judge(vec![read(Some(b"b"), 4, 5), read(Some(b"a"), 6, 7)]).is_err(), "somebody had seen b");
        assert!(judge(vec![read(Some(b"b"), 1, 2)]).is_err(), "b from the future");
        let other = Read { key: b"another".into(), ..read(Some(b"b"), 7, 8) };
        assert!(judge(vec![other]).is_err(), "a value of another key");
    }
}
