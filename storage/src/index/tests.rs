use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use alhambra_ledger::ids::Revision;

use super::*;
use crate::vfs::mem::MemVfs;

mod behind;

/// An index whose files are whole: no read fails.
#[derive(Debug)]
struct Sound(Index);

impl std::ops::Deref for Sound {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.0
    }
}

const DATABASE: DatabaseId = DatabaseId([7; 16]);

impl Sound {
    fn new() -> Self {
        Self::with_steps_per_lock(STEPS_PER_LOCK)
    }

    fn with_steps_per_lock(steps: usize) -> Self {
        Self::open(&(Arc::new(MemVfs::new()) as Arc<dyn Vfs>), steps, 1 << 20)
    }

    fn open(vfs: &Arc<dyn Vfs>, steps_per_lock: usize, memtable_bytes: usize) -> Self {
        let options = IndexOptions { memtable_bytes, steps_per_lock, ..IndexOptions::default() };
        Self(Index::open(vfs, Path::new("/db/index"), DATABASE, &options).unwrap())
    }

    /// All the work that is due, in steps of so many bytes.
    fn work_all(&self, budget: u64) {
        while self.0.work(&|tx| Ok(Digest([tx.0 as u8; 32])), budget).unwrap() {}
    }

    fn get(&self, key: &[u8], at: TxId) -> Option<Version> {
        self.0.get(key, at).unwrap()
    }

    fn get_exact(&self, key: &[u8], tx: TxId) -> Option<Version> {
        self.0.get_exact(key, tx).unwrap()
    }

    fn revisions(&self, key: &[u8], at: TxId) -> u64 {
        self.0.revisions(key, at).unwrap()
    }

    fn revision(&self, key: &[u8], n: u64, at: TxId) -> Option<Version> {
        self.0.revision(key, n, at).unwrap()
    }

    fn history(&self, key: &[u8], at: TxId, offset: u64, limit: usize, desc: bool) -> Vec<Version> {
        self.0.history(key, at, offset, limit, desc).unwrap()
    }

    fn scan_chunk(&self, spec: &ScanSpec, at: TxId, after: Option<&[u8]>, n: usize) -> Vec<(Bytes, Version)> {
        self.0.scan_chunk(spec, at, after, n).unwrap()
    }

    fn count(&self, prefix: &[u8], at: TxId) -> u64 {
        self.0.count(prefix, at).unwrap()
    }
}

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
fn scan_all(index: &Sound, spec: &ScanSpec, at: u64, n: usize, mut between: impl FnMut()) -> Vec<(Vec<u8>, Found)> {
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

fn plain() -> KvMetadata {
    KvMetadata::default()
}

fn put(index: &Sound, tx: u64, keys: &[&[u8]]) {
    let entries = (0..).zip(keys).map(|(entry, key)| (Bytes::copy_from_slice(key), entry, plain()));
    index.insert_tx(TxId(tx), entries);
}

#[test]
fn an_empty_index_answers_nothing() {
    let index = Sound::new();
    let at = TxId(u64::MAX);
    assert_eq!(index.newest_tx(), TxId(0));
    assert_eq!((index.get(b"k", at), index.get_exact(b"k", at), index.revision(b"k", 1, at)), (None, None, None));
    assert_eq!((index.revisions(b"k", at), index.count(b"", at)), (0, 0));
    assert!(index.memory_bytes() < 1024);
    assert!(index.history(b"k", at, 0, usize::MAX, true).is_empty());
    assert!(index.scan_chunk(&ScanSpec::default(), at, None, usize::MAX).is_empty());
}

#[test]
fn entries_that_are_not_indexable_leave_no_trace_but_their_transaction_counts() {
    let index = Sound::new();
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
    let index = Sound::new();
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
    let index = Sound::with_steps_per_lock(1);
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
fn a_transaction_goes_in_once() {
    let index = Sound::new();
    put(&index, 2, &[b"k"]);
    put(&index, 2, &[b"k"]);
    assert_eq!(index.revisions(b"k", TxId(2)), 1);
}

#[test]
fn a_transaction_that_is_in_by_half_is_not_seen_whatever_a_reader_asks_for() {
    let index = Sound::with_steps_per_lock(1);
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
    let table = Memtable::new(TxId(1), 0, 4);
    let put = |tx, keys: &[[u8; 1]]| {
        let inserts: Vec<_> = (0..).zip(keys).map(|(n, key)| table.prepare(TxId(tx), key, n, &plain())).collect();
        table.insert(TxId(tx), &inserts);
    };
    put(1, &[*b"z"]);
    put(2, &std::array::from_fn::<_, 10, _>(|n| [n as u8]));
    let mut range = KeyRange::prefix(Bytes::new());
    let mut seen: Vec<version::Found> = Vec::new();
    let mut holds = 0;
    while table.visit(&mut range, TxId(0), TxId(1), false, 9, &mut seen) {
        holds += 1;
        // 4 new keys are passed over in each of the first holds.
        assert_eq!(range.low(), std::ops::Bound::Included(&[holds * 4][..]));
        assert!(seen.is_empty());
    }
    assert_eq!((holds, seen.len()), (2, 1));
    assert_eq!(seen[0].key, "z");
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
    let index = Sound::new();
    index.insert_tx(TxId(1), [(frame.slice(10..12), 0, plain())].into_iter());
    drop(frame);
    assert_eq!(dropped.try_recv(), Ok(()));
    let answers = index.scan_chunk(&ScanSpec::default(), TxId(1), None, 2);
    assert_eq!(answers[0].0, [7, 7][..]);
}

/// Every prefix, start, end, inclusiveness and direction over a small alphabet that has the byte without successor.
#[test]
fn bounds_enumerated() {
    let mut names: Vec<Vec<u8>> = vec![vec![]];
    for a in [0x00, 0xfe, 0xff] {
        names.push(vec![a]);
        names.extend([0x00, 0xff].map(|b| vec![a, b]));
    }
    let index = Sound::with_steps_per_lock(2);
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
fn build(index: &Sound, model: &mut Model, txs: &Txs, mut tx: u64) -> u64 {
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

/// A transaction with its entries.
type Inserted = (u64, Vec<(Vec<u8>, KvMetadata)>);

/// What happens to an index while it is used.
#[derive(Clone, Debug)]
enum Step {
    /// Transactions come.
    Put(Txs),
    /// The active part is full.
    Freeze,
    /// Some background work, in steps of so many bytes.
    Work(u8, u64),
    /// All of it.
    WorkAll,
    /// The process stops; what no run has is inserted again.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(
        prop_oneof![
            4 => txs().prop_map(Step::Put),
            4 => Just(Step::Freeze),
            2 => (1..4u8, 1..200u64).prop_map(|(times, bytes)| Step::Work(times, bytes)),
            1 => Just(Step::WorkAll),
            1 => Just(Step::Reopen),
        ],
        1..24,
    )
}

/// Every read of every key, at every transaction, against the model.
fn agrees(index: &Sound, model: &Model, newest: u64, specs: &[ScanSpec]) {
    for at in (0..=newest).rev().take(6).chain([1, newest / 2]) {
        for key in model.keys() {
            let history = model_history(model, key, at);
            let tx = TxId(at);
            assert_eq!(index.get(key, tx).map(found), history.last().copied());
            assert_eq!(index.revisions(key, tx), history.len() as u64);
            for n in 1..=history.len() {
                assert_eq!(index.revision(key, n as u64, tx).map(found), Some(history[n - 1]));
            }
            let newest_first: Vec<Found> = history.iter().rev().copied().collect();
            let some = |offset, limit, desc| -> Vec<Found> {
                index.history(key, tx, offset, limit, desc).into_iter().map(found).collect()
            };
            assert_eq!(some(0, usize::MAX, false), history);
            assert_eq!(some(1, 2, true), newest_first.into_iter().skip(1).take(2).collect::<Vec<_>>());
        }
        for spec in specs {
            assert_eq!(scan_all(index, spec, at, 3, || ()), model_scan(model, spec, at), "{spec:?} at {at}");
        }
    }
    for spec in specs {
        let range = KeyRange::of(spec);
        for since in [0, newest / 2, newest.saturating_sub(1), newest] {
            let expected: Vec<(Vec<u8>, Found)> = model_scan(model, &ScanSpec { desc: false, ..flipped(spec) }, newest)
                .into_iter()
                .filter(|(_, newest)| newest.0 > since)
                .collect();
            let changes = index.diff_chunk(&range, TxId(since), TxId(newest), None, usize::MAX).unwrap();
            let changes: Vec<_> = changes.into_iter().map(|c| (c.key.to_vec(), found(c.version))).collect();
            assert_eq!(changes, expected, "{spec:?} since {since}");
            let changed = index.changed_since(&range, TxId(since), TxId(newest)).unwrap();
            assert_eq!(changed, !expected.is_empty(), "{spec:?} since {since}");
        }
    }
    for (key, versions) in model {
        let last = versions.last().unwrap().0;
        let range = KeyRange::key(Bytes::copy_from_slice(key));
        assert!(index.changed_since(&range, TxId(last - 1), TxId(newest)).unwrap());
        assert!(!index.changed_since(&range, TxId(last), TxId(newest)).unwrap());
    }
}

/// The same keys, walked upward.
fn flipped(spec: &ScanSpec) -> ScanSpec {
    if !spec.desc {
        return spec.clone();
    }
    ScanSpec {
        prefix: spec.prefix.clone(),
        start: spec.end.clone(),
        start_inclusive: spec.end_inclusive,
        end: spec.start.clone(),
        end_inclusive: spec.start_inclusive,
        desc: false,
    }
}

proptest! {
    #[test]
    fn whatever_happened_in_between_every_read_agrees_with_the_model(
        steps in steps(),
        specs in vec(specs(), 1..6),
        steps_per_lock in 1..8usize,
    ) {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let mut index = Sound::open(&vfs, steps_per_lock, usize::MAX);
        let mut model = Model::new();
        let mut all: Vec<Inserted> = Vec::new();
        let mut newest = 0;
        for step in steps {
            match step {
                Step::Put(txs) => {
                    let mut tx = newest;
                    for (distance, entries) in &txs {
                        tx += distance;
                        all.push((tx, entries.iter().map(|(key, md)| (key.clone(), *md)).collect()));
                    }
                    newest = build(&index, &mut model, &txs, newest);
                }
                Step::Freeze => index.freeze(),
                Step::Work(times, bytes) => {
                    for _ in 0..times {
                        index.0.work(&|_| Ok(Digest([1; 32])), bytes).unwrap();
                    }
                }
                Step::WorkAll => index.work_all(64),
                Step::Reopen => {
                    drop(index);
                    index = Sound::open(&vfs, steps_per_lock, usize::MAX);
                    for (tx, entries) in &all {
                        index.insert_tx(TxId(*tx), (0..).zip(entries).map(|(n, (key, md))| (key, n, *md)));
                    }
                }
            }
            prop_assert_eq!(index.newest_tx(), TxId(newest));
        }
        agrees(&index, &model, newest, &specs);
        index.work_all(1 << 20);
        agrees(&index, &model, newest, &specs);
        index.0.verify().unwrap();
    }

    #[test]
    fn point_reads_and_histories_agree_with_the_model(
        txs in txs(),
        steps in 1..8usize,
        offset in 0..6u64,
        limit in 0..6usize,
    ) {
        let index = Sound::with_steps_per_lock(steps);
        let mut model = Model::new();
        let newest = build(&index, &mut model, &txs, 0);
        prop_assert_eq!(index.newest_tx(), TxId(newest));
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
        let index = Sound::with_steps_per_lock(steps);
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
        let index = Sound::with_steps_per_lock(steps);
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
        let index = Sound::with_steps_per_lock(2);
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

/// Three levels, keys whose versions go over many leaves, prefixes that are shared and not: what small cases do not reach.
#[test]
fn large_runs_agree_with_the_model_before_and_after_merging() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let index = Sound::open(&vfs, 256, usize::MAX);
    let mut model = Model::new();
    let mut state = 42u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let newest = 3_000;
    for tx in 1..=newest {
        let mut keys: BTreeMap<Vec<u8>, KvMetadata> = BTreeMap::new();
        keys.insert(b"often".to_vec(), KvMetadata { deleted: tx % 5 == 0, ..plain() });
        for _ in 0..10 {
            let key = format!("key/{:06}/{}", random(9_000), "x".repeat(random(40) as usize)).into_bytes();
            keys.insert(key, KvMetadata { expires_at: (random(4) == 0).then_some(7), ..plain() });
        }
        index.insert_tx(TxId(tx), (0..).zip(&keys).map(|(n, (key, md))| (key, n, *md)));
        for (n, (key, md)) in (0..).zip(keys) {
            model.entry(key).or_default().push((tx, n, md.deleted, md.expires_at));
        }
        if tx % 700 == 0 {
            index.freeze();
        }
    }
    let check = || {
        for at in [1, 700, 701, 1_999, newest] {
            for key in model.keys().step_by(97).map(|key| &key[..]).chain([&b"often"[..], b"key/", b"zzz"]) {
                let history = model_history(&model, key, at);
                assert_eq!(index.get(key, TxId(at)).map(found), history.last().copied());
                for offset in [0, 1, 127, 128, 129, 650, history.len().saturating_sub(3)] {
                    let some = index.history(key, TxId(at), offset as u64, 5, false);
                    let some: Vec<Found> = some.into_iter().map(found).collect();
                    assert_eq!(some, history.iter().copied().skip(offset).take(5).collect::<Vec<_>>());
                }
            }
            for desc in [false, true] {
                let prefix = ScanSpec { desc, ..ScanSpec::prefix(&b"key/0042"[..]) };
                assert_eq!(scan_all(&index, &prefix, at, 7, || ()), model_scan(&model, &prefix, at));
                let whole = ScanSpec { desc, ..ScanSpec::default() };
                assert_eq!(scan_all(&index, &whole, at, 1000, || ()), model_scan(&model, &whole, at));
            }
        }
        let since =
            |since: u64| index.diff_chunk(&KeyRange::all(), TxId(since), TxId(newest), None, usize::MAX).unwrap();
        for from in [0, 699, 700, 2_990, newest] {
            let expected = model_scan(&model, &ScanSpec::default(), newest);
            let expected: Vec<_> = expected.into_iter().filter(|(_, newest)| newest.0 > from).collect();
            let changes: Vec<_> = since(from).into_iter().map(|c| (c.key.to_vec(), found(c.version))).collect();
            assert_eq!(changes, expected);
        }
    };
    check();
    index.work_all(4096);
    // Four equal runs became one of the next size, or stayed if they are of the smallest class together.
    assert!(index.run_count() < crate::limits::INDEX_MERGE_RUNS, "{} runs", index.run_count());
    check();
    index.0.verify().unwrap();
    assert!(vfs.read_dir(Path::new("/db/index")).unwrap().len() <= index.run_count() + 1, "merged files are gone");
}

/// The bytes of `docs/format.md`. A difference is a decision, taken with `ALHAMBRA_UPDATE_GOLDEN=1`.
#[test]
fn runs_and_manifests_have_the_bytes_of_the_format() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let index = Sound::open(&vfs, 256, usize::MAX);
    let deleted = KvMetadata { deleted: true, ..plain() };
    let expiring = KvMetadata { expires_at: Some(1_700_000_000), ..plain() };
    index.insert_tx(TxId(1), [(&b"apple"[..], 0, plain()), (b"apricot", 1, expiring)].into_iter());
    index.insert_tx(TxId(2), [(&b"apple"[..], 7, deleted)].into_iter());
    index.insert_tx(TxId(300), [(&b"apple"[..], 0, plain()), (b"pear", 1, plain())].into_iter());
    index.freeze();
    index.work_all(1 << 20);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/index");
    for (name, golden) in [("0000000000.run", "run.hex"), ("manifest", "manifest.hex")] {
        let file = vfs.open(&Path::new("/db/index").join(name), crate::vfs::OpenMode::Read).unwrap();
        let bytes = file.read_at(0, file.len().unwrap() as usize).unwrap();
        let lines =
            bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n");
        let found: String = lines.collect();
        let path = folder.join(golden);
        if std::env::var_os("ALHAMBRA_UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &found).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), found, "{golden}");
    }
}

/// Each bit of a run and of a manifest: opening or reading notices it, and nothing wrong is ever answered.
#[test]
fn every_flipped_bit_of_a_run_or_manifest_is_noticed() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let index = Sound::open(&vfs, 256, usize::MAX);
    for tx in 1..=40 {
        let keys = [format!("k{}", tx % 7), format!("only-{tx}")];
        index.insert_tx(TxId(tx), (0..).zip(&keys).map(|(n, key)| (key, n, plain())));
    }
    index.freeze();
    index.work_all(1 << 20);
    let answers = |index: &Index| index.scan_chunk(&ScanSpec::default(), TxId(40), None, usize::MAX);
    let right = answers(&index).unwrap();
    assert_eq!(right.len(), 47);
    drop(index);
    let dir = Path::new("/db/index");
    let options = IndexOptions::default();
    for (name, _) in vfs.read_dir(dir).unwrap() {
        let path = dir.join(&name);
        let file = vfs.open(&path, crate::vfs::OpenMode::ReadWrite).unwrap();
        let good = file.read_at(0, file.len().unwrap() as usize).unwrap();
        for bit in 0..good.len() * 8 {
            let byte = good[bit / 8] ^ (1 << (bit % 8));
            file.write_at(bit as u64 / 8, &[byte]).unwrap();
            // A cache of its own, or blocks from before the flip would be found.
            let options = IndexOptions { cache: Arc::new(BlockCache::new(1 << 20)), ..options.clone() };
            match Index::open(&vfs, dir, DATABASE, &options) {
                Err(Error::Corrupted { .. } | Error::ForeignDatabase { .. } | Error::UnsupportedVersion { .. }) => {}
                Err(error) => panic!("{name} bit {bit}: {error}"),
                Ok(index) => {
                    assert!(index.verify().is_err(), "{name} bit {bit} is not noticed by a check");
                    assert!(index.is_damaged());
                    match answers(&index) {
                        Ok(found) => assert_eq!(found, right, "{name} bit {bit}"),
                        Err(Error::Corrupted { .. }) => {}
                        Err(error) => panic!("{name} bit {bit}: {error}"),
                    }
                }
            }
            file.write_at(bit as u64 / 8, &good[bit / 8..=bit / 8]).unwrap();
        }
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

    fn check(index: &Sound, at: TxId) {
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

    let index = Arc::new(Sound::with_steps_per_lock(2));
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
}
