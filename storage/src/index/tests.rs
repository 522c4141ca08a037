use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

/// Keys with what was written to them: transaction, entry, deleted, expiry. Judges the index from the outside: filters
/// every pair by the words of the contract, without ranges, bounds or searches.
type Model = BTreeMap<Vec<u8>, Vec<(u64, u32, bool, Option<i64>)>>;

type Found = (u64, u32, u64, bool, Option<i64>);

fn found(version: Version) -> Found {
    assert!(!version.metadata.non_indexable);
    (version.tx.0, version.entry, version.revision.0, version.metadata.deleted, version.metadata.expires_at)
}

fn model_history(model: &Model, key: &[u8], at: u64) -> Vec<Found> {
    let mut out = Vec::new();
    for &(tx, entry, deleted, expires_at) in model.get(key).into_iter().flatten() {
        if tx <= at {
            out.push((tx, entry, out.len() as u64 + 1, deleted, expires_at));
        }
    }
    out
}

fn model_scan(model: &Model, spec: &ScanSpec, at: u64) -> Vec<(Vec<u8>, Found)> {
    let mut out = Vec::new();
    for key in model.keys() {
        // Position relative to a bound, counted in the direction of the scan.
        let ahead_of = |bound: &[u8]| if spec.desc { key[..] < *bound } else { key[..] > *bound };
        let behind_start =
            spec.start.as_ref().is_none_or(|start| ahead_of(start) || (spec.start_inclusive && key == start));
        let before_end =
            spec.end.as_ref().is_none_or(|end| if key == end { spec.end_inclusive } else { !ahead_of(end) });
        if key.starts_with(&spec.prefix) && behind_start && before_end {
            out.extend(model_history(model, key, at).last().map(|&newest| (key.clone(), newest)));
        }
    }
    if spec.desc {
        out.reverse();
    }
    out
}

/// A whole scan, `n` keys at a time; `between` runs after every chunk.
fn scan_all(index: &Index, spec: &ScanSpec, at: u64, n: usize, mut between: impl FnMut()) -> Vec<(Vec<u8>, Found)> {
    let mut out: Vec<(Vec<u8>, Found)> = Vec::new();
    loop {
        let after = out.last().map(|(key, _)| key.clone());
        let chunk = index.scan_chunk(spec, TxId(at), after.as_deref(), n);
        let len = chunk.len();
        assert!(len <= n);
        out.extend(chunk.into_iter().map(|(key, version)| (key.to_vec(), found(version))));
        between();
        if len < n {
            return out;
        }
    }
}

/// What the incremental estimate must be, from scratch.
fn memory_from_scratch(index: &Index) -> u64 {
    let state = index.state.read();
    let keys: u64 = state.keys.iter().map(|(key, versions)| State::key_bytes(&key.bytes) + versions.list_bytes()).sum();
    keys + state.expiries.len() as u64 * State::EXPIRY_BYTES
}

fn plain() -> KvMetadata {
    KvMetadata::default()
}

fn put(index: &Index, tx: u64, keys: &[&[u8]]) {
    let entries = (0..).zip(keys).map(|(entry, key)| (Bytes::copy_from_slice(key), entry, plain()));
    index.insert_tx(TxId(tx), entries);
}

#[test]
fn most_keys_cost_one_compact_slot() {
    assert_eq!(size_of::<Slot>(), 16);
    assert_eq!(size_of::<Versions>(), 24);
}

#[test]
fn an_empty_index_answers_nothing() {
    let index = Index::new();
    let at = TxId(u64::MAX);
    assert_eq!(index.newest_tx(), TxId(0));
    assert_eq!((index.get(b"k", at), index.get_exact(b"k", at), index.revision(b"k", 1, at)), (None, None, None));
    assert_eq!((index.revisions(b"k", at), index.count(b"", at), index.memory_bytes()), (0, 0, 0));
    assert!(index.history(b"k", at, 0, usize::MAX, true).is_empty());
    assert!(index.scan_chunk(&ScanSpec::default(), at, None, usize::MAX).is_empty());
}

#[test]
fn entries_that_are_not_indexable_leave_no_trace_but_their_transaction_counts() {
    let index = Index::new();
    put(&index, 1, &[b"k"]);
    let hidden = KvMetadata { non_indexable: true, ..plain() };
    index
        .insert_tx(TxId(2), [(Bytes::from_static(b"k"), 0, hidden), (Bytes::from_static(b"l"), 1, hidden)].into_iter());
    assert_eq!(index.newest_tx(), TxId(2));
    assert_eq!(index.revisions(b"k", TxId(2)), 1);
    assert_eq!(index.count(b"", TxId(2)), 1);
    put(&index, 3, &[b"k"]);
    assert_eq!(index.get(b"k", TxId(3)).map(found), Some((3, 0, 2, false, None)));
}

#[test]
fn deleted_and_expired_versions_are_answered_and_say_so() {
    let index = Index::new();
    let key = Bytes::from_static(b"k");
    let expiring = KvMetadata { expires_at: Some(10), ..plain() };
    let deleted = KvMetadata { deleted: true, ..plain() };
    index.insert_tx(TxId(1), [(key.clone(), 0, expiring)].into_iter());
    index.insert_tx(TxId(2), [(key.clone(), 0, deleted)].into_iter());
    let version = index.get(&key, TxId(1)).unwrap();
    assert!(version.is_live(9) && !version.is_live(10));
    let version = index.get(&key, TxId(2)).unwrap();
    assert!(!version.is_live(0));
    assert_eq!(version.revision, Revision(2));
}

#[test]
fn extreme_offsets_limits_and_revisions_do_not_overflow() {
    let index = Index::with_steps_per_lock(1);
    put(&index, 1, &[b"k"]);
    put(&index, 2, &[b"k"]);
    for desc in [false, true] {
        assert_eq!(index.history(b"k", TxId(2), 0, usize::MAX, desc).len(), 2);
        assert_eq!(index.history(b"k", TxId(2), u64::MAX, usize::MAX, desc), []);
        assert_eq!(index.history(b"k", TxId(2), 0, 0, desc), []);
    }
    assert_eq!(index.revision(b"k", 0, TxId(2)), None);
    assert_eq!(index.revision(b"k", u64::MAX, TxId(2)), None);
    assert_eq!(index.scan_chunk(&ScanSpec::default(), TxId(2), None, 0), []);
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "transaction 2 comes after 2"))]
fn a_transaction_goes_in_once() {
    let index = Index::new();
    put(&index, 2, &[b"k"]);
    put(&index, 2, &[b"k"]);
    assert_eq!(index.revisions(b"k", TxId(2)), 1);
}

#[test]
fn a_transaction_that_is_in_by_half_is_not_seen_whatever_a_reader_asks_for() {
    let index = Index::with_steps_per_lock(1);
    put(&index, 1, &[b"a", b"b"]);
    let mut looks = 0;
    let entries = (0u32..).zip([b"a", b"b", b"c"]).map(|(entry, key)| {
        // Runs between two holds of the lock.
        for at in [TxId(1), TxId(2), TxId(u64::MAX)] {
            assert_eq!(index.newest_tx(), TxId(1));
            assert_eq!(index.get(b"a", at).map(found), Some((1, 0, 1, false, None)));
            assert_eq!((index.revisions(b"a", at), index.revision(b"a", 2, at)), (1, None));
            assert_eq!(index.get_exact(b"a", TxId(2)), None);
            assert_eq!(index.history(b"a", at, 0, 9, true).len(), 1);
            assert_eq!(index.scan_chunk(&ScanSpec::default(), at, None, 9).len(), 2);
            assert_eq!(index.count(b"", at), 2);
            looks += 1;
        }
        (Bytes::from_static(key), entry, plain())
    });
    index.insert_tx(TxId(2), entries);
    assert_eq!(looks, 9);
    assert_eq!(index.get(b"a", TxId(2)).map(found), Some((2, 0, 2, false, None)));
    assert_eq!(index.count(b"", TxId(2)), 3);
}

#[test]
fn one_hold_of_the_lock_walks_a_bounded_number_of_keys_even_if_it_sees_none() {
    let index = Index::with_steps_per_lock(4);
    put(&index, 1, &[b"z"]);
    let names: Vec<[u8; 1]> = (0..10).map(|n| [n]).collect();
    put(&index, 2, &names.iter().map(|name| &name[..]).collect::<Vec<_>>());
    let mut range = KeyRange::all();
    let mut seen = Vec::new();
    let mut holds = 0;
    loop {
        holds += 1;
        let more = index.visit(&mut range, false, TxId(1), |_, key, _| {
            seen.push(key.to_vec());
            ControlFlow::Continue(())
        });
        if !more {
            break;
        }
        // 4 new keys are passed over in each of the first holds.
        assert_eq!(range.low(), std::ops::Bound::Excluded(&[holds * 4 - 1][..]));
        assert!(seen.is_empty());
    }
    assert_eq!((holds, seen), (3, vec![b"z".to_vec()]));
    assert_eq!(index.scan_chunk(&ScanSpec::default(), TxId(1), None, 1).len(), 1);
}

#[test]
fn the_index_and_its_answers_do_not_keep_the_buffers_that_keys_came_in() {
    struct Frame(Vec<u8>, mpsc::Sender<()>);
    impl AsRef<[u8]> for Frame {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Frame {
        fn drop(&mut self) {
            self.1.send(()).unwrap();
        }
    }
    let (sender, dropped) = mpsc::channel();
    let frame = Bytes::from_owner(Frame(vec![7; 4096], sender));
    let index = Index::new();
    index.insert_tx(TxId(1), [(frame.slice(10..12), 0, plain())].into_iter());
    drop(frame);
    assert_eq!(dropped.try_recv(), Ok(()));
    let answers = index.scan_chunk(&ScanSpec::default(), TxId(1), None, 2);
    index.clear();
    assert_eq!(answers[0].0, [7, 7][..]);
}

#[test]
fn a_cleared_index_starts_over() {
    let index = Index::new();
    put(&index, 5, &[b"k"]);
    index.clear();
    assert_eq!((index.newest_tx(), index.memory_bytes(), index.count(b"", TxId(5))), (TxId(0), 0, 0));
    put(&index, 1, &[b"k"]);
    assert_eq!(index.get(b"k", TxId(9)).map(found), Some((1, 0, 1, false, None)));
}

/// Every prefix, start, end, inclusiveness and direction over a small alphabet that has the byte without successor.
#[test]
fn bounds_enumerated() {
    let mut names: Vec<Vec<u8>> = vec![vec![]];
    for a in [0x00, 0xfe, 0xff] {
        names.push(vec![a]);
        names.extend([0x00, 0xff].map(|b| vec![a, b]));
    }
    let index = Index::with_steps_per_lock(2);
    let mut model = Model::new();
    // The names in between are bounds that are no keys, or keys of a later transaction.
    for (tx, keys) in [(1, [0, 2, 4, 6, 8]), (2, [1, 2, 3, 8, 9])] {
        put(&index, tx, &keys.map(|n| &names[n][..]));
        for (entry, n) in (0..).zip(keys) {
            model.entry(names[n].clone()).or_default().push((tx, entry, false, None));
        }
    }
    let bounds: Vec<Option<Bytes>> =
        std::iter::once(None).chain(names.iter().map(|name| Some(Bytes::copy_from_slice(name)))).collect();
    for prefix in &names {
        for (start, end) in bounds.iter().flat_map(|start| bounds.iter().map(move |end| (start, end))) {
            for flags in 0..8 {
                let spec = ScanSpec {
                    prefix: Bytes::copy_from_slice(prefix),
                    start: start.clone(),
                    start_inclusive: flags & 1 != 0,
                    end: end.clone(),
                    end_inclusive: flags & 2 != 0,
                    desc: flags & 4 != 0,
                };
                for at in 0..=2 {
                    let expected = model_scan(&model, &spec, at);
                    for n in [1, 3, usize::MAX] {
                        assert_eq!(scan_all(&index, &spec, at, n, || ()), expected, "{spec:?} at {at}, {n} a time");
                    }
                }
            }
        }
    }
}

/// Keys from few bytes, so that prefixes are shared and keys are written often.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(vec![0x00, 0x01, 0xfe, 0xff]), 0..4)
}

fn metadata() -> impl Strategy<Value = KvMetadata> {
    let expiry = prop_oneof![Just(None), prop::sample::select(vec![i64::MIN, -1, 0, 1, i64::MAX]).prop_map(Some)];
    (any::<bool>(), expiry, prop::bool::weighted(0.2)).prop_map(|(deleted, expires_at, non_indexable)| KvMetadata {
        deleted,
        expires_at,
        non_indexable,
    })
}

fn specs() -> impl Strategy<Value = ScanSpec> {
    let prefix = vec(prop::sample::select(vec![0x00, 0x01, 0xfe, 0xff]), 0..3);
    let bound = || prop::option::of(keys().prop_map(Bytes::from));
    (prefix, bound(), any::<bool>(), bound(), any::<bool>(), any::<bool>()).prop_map(
        |(prefix, start, start_inclusive, end, end_inclusive, desc)| ScanSpec {
            prefix: Bytes::from(prefix),
            start,
            start_inclusive,
            end,
            end_inclusive,
            desc,
        },
    )
}

type Txs = Vec<(u64, BTreeMap<Vec<u8>, KvMetadata>)>;

/// Transactions as (distance from the one before, entries).
fn txs() -> impl Strategy<Value = Txs> {
    vec((1..3u64, btree_map(keys(), metadata(), 0..12)), 1..10)
}

/// Inserts into both; answers the newest transaction id.
fn build(index: &Index, model: &mut Model, txs: &Txs, mut tx: u64) -> u64 {
    for (distance, entries) in txs {
        tx += distance;
        let numbered = || (0u32..).zip(entries);
        index.insert_tx(TxId(tx), numbered().map(|(n, (key, md))| (Bytes::copy_from_slice(key), n, *md)));
        for (n, (key, md)) in numbered().filter(|(_, (_, md))| !md.non_indexable) {
            model.entry(key.clone()).or_default().push((tx, n, md.deleted, md.expires_at));
        }
    }
    tx
}

proptest! {
    #[test]
    fn point_reads_and_histories_agree_with_the_model(
        txs in txs(),
        steps in 1..8usize,
        offset in 0..6u64,
        limit in 0..6usize,
    ) {
        let index = Index::with_steps_per_lock(steps);
        let mut model = Model::new();
        let newest = build(&index, &mut model, &txs, 0);
        prop_assert_eq!(index.newest_tx(), TxId(newest));
        prop_assert_eq!(index.memory_bytes(), memory_from_scratch(&index));
        let absent = std::iter::once(&b"absent"[..]);
        for key in model.keys().map(|key| &key[..]).chain(absent) {
            // One past the newest reads like the newest.
            for at in 0..=newest + 1 {
                let mut history = model_history(&model, key, at);
                let tx = TxId(at);
                prop_assert_eq!(index.get(key, tx).map(found), history.last().copied());
                prop_assert_eq!(index.get_exact(key, tx).map(found), history.iter().find(|v| v.0 == at).copied());
                prop_assert_eq!(index.revisions(key, tx), history.len() as u64);
                for n in 0..=history.len() + 1 {
                    let expected = history.iter().find(|v| v.2 == n as u64).copied();
                    prop_assert_eq!(index.revision(key, n as u64, tx).map(found), expected);
                }
                for desc in [false, true] {
                    let some: Vec<Found> =
                        index.history(key, tx, offset, limit, desc).into_iter().map(found).collect();
                    let expected: Vec<Found> =
                        history.iter().copied().skip(offset as usize).take(limit).collect();
                    prop_assert_eq!(some, expected);
                    history.reverse();
                }
            }
        }
    }

    #[test]
    fn scans_and_counts_agree_with_the_model(
        txs in txs(),
        steps in 1..8usize,
        n in 1..8usize,
        specs in vec(specs(), 1..12),
    ) {
        let index = Index::with_steps_per_lock(steps);
        let mut model = Model::new();
        let newest = build(&index, &mut model, &txs, 0);
        for (spec, at) in specs.iter().flat_map(|spec| (0..=newest + 1).map(move |at| (spec, at))) {
            prop_assert_eq!(scan_all(&index, spec, at, n, || ()), model_scan(&model, spec, at));
            let all = ScanSpec { start: None, end: None, ..spec.clone() };
            prop_assert_eq!(index.count(&spec.prefix, TxId(at)), model_scan(&model, &all, at).len() as u64);
        }
    }

    #[test]
    fn changes_since_agree_with_the_model(txs in txs(), steps in 1..8usize, specs in vec(specs(), 1..12)) {
        let index = Index::with_steps_per_lock(steps);
        let mut model = Model::new();
        let newest = build(&index, &mut model, &txs, 0);
        let judge = |range: &KeyRange, holds: &dyn Fn(&[u8]) -> bool| {
            for (since, at) in (0..=newest).flat_map(|since| (0..=newest).map(move |at| (since, at))) {
                let expected = model.iter().any(|(key, versions)| {
                    holds(key) && versions.iter().any(|version| since < version.0 && version.0 <= at)
                });
                prop_assert_eq!(index.changed_since(range, TxId(since), TxId(at)).expect("in memory"), expected);
            }
            Ok(())
        };
        for spec in &specs {
            let all = (model.keys()).map(|key| (key.clone(), vec![(0, 0, false, None)])).collect();
            let inside: Vec<Vec<u8>> = model_scan(&all, spec, newest).into_iter().map(|(key, _)| key).collect();
            judge(&KeyRange::of(spec), &|key| inside.iter().any(|other| other == key))?;
            judge(&KeyRange::prefix(spec.prefix.clone()), &|key| key.starts_with(&spec.prefix))?;
            judge(&KeyRange::key(spec.prefix.clone()), &|key| key == spec.prefix)?;
        }
    }

    #[test]
    fn a_snapshot_does_not_see_what_comes_while_it_is_read(
        before in txs(),
        after in txs(),
        spec in specs(),
        n in 1..4usize,
    ) {
        let index = Index::with_steps_per_lock(2);
        let mut model = Model::new();
        let at = build(&index, &mut model, &before, 0);
        let expected = model_scan(&model, &spec, at);
        let mut rest = after.chunks(1);
        let mut newest = at;
        let scanned = scan_all(&index, &spec, at, n, || {
            if let Some(next) = rest.next() {
                newest = build(&index, &mut Model::new(), &next.to_vec(), newest);
            }
        });
        prop_assert_eq!(scanned, expected);
    }
}

/// Transaction t writes all of the rows and one key of its own, over several holds of the lock. So a snapshot at t has
/// every row at revision t and exactly t own keys; a transaction seen by half, or a snapshot that moves, shows.
#[test]
fn readers_see_whole_transactions_and_stable_snapshots_while_the_applier_writes() {
    const TXS: u64 = 300;
    const ROWS: u64 = 7;
    const READERS: u64 = 3;
    const DEADLINE: Duration = Duration::from_secs(30);

    fn check(index: &Index, at: TxId) {
        let rows = index.scan_chunk(&ScanSpec::prefix(&b"row"[..]), at, None, usize::MAX);
        assert_eq!(rows.len() as u64, if at.0 == 0 { 0 } else { ROWS });
        for (key, version) in &rows {
            assert_eq!((version.tx, version.revision), (at, Revision(at.0)));
            assert_eq!(version.metadata.expires_at, Some(at.0 as i64));
            assert_eq!(index.get(key, at), Some(*version));
            assert_eq!(index.revisions(key, at), at.0);
        }
        assert_eq!(index.count(b"own", at), at.0);
        let mut own = ScanSpec { desc: true, ..ScanSpec::prefix(&b"own"[..]) };
        for desc in [false, true] {
            own.desc = desc;
            let mut found: Vec<u64> =
                scan_all(index, &own, at.0, 50, || ()).into_iter().map(|(_, version)| version.0).collect();
            if desc {
                found.reverse();
            }
            assert!(found.into_iter().eq(1..=at.0));
            let history = index.history(b"row0", at, 0, usize::MAX, desc);
            assert_eq!(history.len() as u64, at.0);
        }
    }

    let index = Arc::new(Index::with_steps_per_lock(2));
    let started = Arc::new(Barrier::new(READERS as usize + 1));
    let checks = Arc::new(AtomicU64::new(0));
    let (done, all_done) = mpsc::channel();
    for _ in 0..READERS {
        let (index, started, checks, done) = (index.clone(), started.clone(), checks.clone(), done.clone());
        std::thread::spawn(move || {
            started.wait();
            let mut old = index.newest_tx();
            loop {
                let at = index.newest_tx();
                check(&index, at);
                check(&index, old);
                checks.fetch_add(1, Ordering::Relaxed);
                if at.0 == TXS {
                    break;
                }
                if at.0 >= old.0 + 40 {
                    old = at;
                }
            }
            done.send(()).unwrap();
        });
    }
    let writer = {
        let (index, checks) = (index.clone(), checks.clone());
        move || {
            started.wait();
            for tx in 1..=TXS {
                let md = KvMetadata { expires_at: Some(tx as i64), ..KvMetadata::default() };
                let rows = (0..ROWS).map(|row| Bytes::from(format!("row{row}")));
                let keys = rows.chain([Bytes::from(format!("own{tx:06}"))]);
                let entries = (0..).zip(keys).map(|(entry, key)| {
                    // Readers that get no turn would check nothing: some of their rounds must end while a transaction
                    // is in by half.
                    let seen = checks.load(Ordering::Relaxed);
                    while tx.is_multiple_of(10) && u64::from(entry) == ROWS && checks.load(Ordering::Relaxed) == seen {
                        std::thread::yield_now();
                    }
                    (key, entry, md)
                });
                index.insert_tx(TxId(tx), entries);
            }
            done.send(()).unwrap();
        }
    };
    std::thread::spawn(writer);
    for _ in 0..=READERS {
        all_done.recv_timeout(DEADLINE).expect("a thread failed or is stuck");
    }
    assert!(checks.load(Ordering::Relaxed) >= TXS / 10);
    assert_eq!(index.memory_bytes(), memory_from_scratch(&index));
}
