//! Which transactions wrote a key: the versions of every key of one database, in memory, keys in stored order.
//!
//! ```text
//! keys      "a" -> [tx 1] [tx 4] [tx 9]       oldest first; the place in the list is the revision
//!           "b" -> [tx 4]
//! expiries  (tx 9, entry 0) -> Unix seconds   only of versions that expire
//! newest_tx 9                                 stored after all entries of transaction 9 are in
//! ```
//!
//! The index is rebuilt at open and fed by one applier while many readers read. Versions are only ever added, and only
//! behind those that are there, so what a transaction id `at` sees never changes: a read snapshot *is* that id, costs
//! nothing to open and copies nothing. Nobody holds the lock for longer than `STEPS_PER_LOCK` steps: a long scan
//! continues behind the last key that it saw, and a large transaction goes in piece by piece, unseen until it is
//! published.
//!
//! Whether a deleted or expired version counts is for the caller to say; nothing here knows the time. Keys are copied,
//! in both directions, so that neither the index nor its answers keep whole log frames in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::{Revision, TxId};
use bytes::Bytes;
use parking_lot::RwLock;

use crate::error::Result;

mod range;

pub use range::{KeyRange, ScanSpec};

/// Keys or versions visited, or entries inserted, under one hold of the lock.
const STEPS_PER_LOCK: usize = 256;

/// What an allocation costs beyond its length, bytes: header and rounding of common allocators.
const ALLOCATION_BYTES: usize = 16;

/// Estimated bytes that one element of `size_bytes` takes in a B-tree: nodes have 11 places, about 8 are taken.
const fn in_tree_bytes(size_bytes: usize) -> u64 {
    (size_bytes * 11).div_ceil(8) as u64
}

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The transaction that wrote it.
    pub tx: TxId,
    /// 0-based place of the entry within the transaction.
    pub entry: u32,
    /// Number among the versions of the key, from 1; deletions count.
    pub revision: Revision,
    /// Metadata of the entry.
    pub metadata: KvMetadata,
}

impl Version {
    /// Whether the key has a value at `now`, Unix seconds, if this is its newest version: neither deleted nor expired.
    pub fn is_live(&self, now: i64) -> bool {
        !self.metadata.deleted && !self.metadata.is_expired(now)
    }
}

/// A version without its revision, which its place tells, and without its expiry, which few versions have.
#[derive(Clone, Copy, Debug)]
struct Slot {
    tx: TxId,
    entry: u32,
    deleted: bool,
    expires: bool,
}

/// The versions of one key, oldest first. Most keys are written once and need no list.
#[derive(Debug)]
enum Versions {
    One(Slot),
    Many(Vec<Slot>),
}

impl Versions {
    fn slots(&self) -> &[Slot] {
        match self {
            Self::One(slot) => std::slice::from_ref(slot),
            Self::Many(slots) => slots,
        }
    }

    /// What a snapshot at `at` sees: the versions of transactions up to `at`.
    fn seen_at(&self, at: TxId) -> &[Slot] {
        let slots = self.slots();
        &slots[..slots.partition_point(|slot| slot.tx <= at)]
    }

    fn push(&mut self, slot: Slot) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, slot]),
            Self::Many(slots) => slots.push(slot),
        }
    }

    /// Bytes of the list, 0 without one.
    fn list_bytes(&self) -> u64 {
        match self {
            Self::One(_) => 0,
            Self::Many(slots) => (slots.capacity() * size_of::<Slot>() + ALLOCATION_BYTES) as u64,
        }
    }
}

/// A stored key with its first bytes beside the pointer, so that walking down the tree hardly ever follows one: in a large
/// tree each key that is looked at elsewhere in memory is a cache miss. Ordered as its bytes are.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    /// The first 16 bytes, big endian, filled up with zeros.
    head: u128,
    bytes: Box<[u8]>,
}

impl Key {
    fn new(bytes: &[u8]) -> Self {
        let mut head = [0; 16];
        let len = bytes.len().min(head.len());
        head[..len].copy_from_slice(&bytes[..len]);
        Self { head: u128::from_be_bytes(head), bytes: bytes.into() }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Equal heads may hide different lengths, so they decide nothing.
        self.head.cmp(&other.head).then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Allowed because keys are ordered as their bytes are.
impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.bytes
    }
}

/// What the lock guards.
#[derive(Debug, Default)]
struct State {
    keys: BTreeMap<Key, Versions>,
    /// Expiry of the versions that have one, by transaction and entry, Unix seconds.
    expiries: BTreeMap<(TxId, u32), i64>,
    memory_bytes: u64,
}

impl State {
    fn insert(&mut self, key: &[u8], tx: TxId, entry: u32, metadata: KvMetadata) {
        let slot = Slot { tx, entry, deleted: metadata.deleted, expires: metadata.expires_at.is_some() };
        if let Some(expires_at) = metadata.expires_at {
            self.expiries.insert((tx, entry), expires_at);
            self.memory_bytes += Self::EXPIRY_BYTES;
        }
        match self.keys.entry(Key::new(key)) {
            Entry::Occupied(mut versions) => {
                let versions = versions.get_mut();
                debug_assert!(
                    versions.slots().last().is_some_and(|last| last.tx < tx),
                    "a transaction writes a key once"
                );
                let before = versions.list_bytes();
                versions.push(slot);
                self.memory_bytes += versions.list_bytes() - before;
            }
            Entry::Vacant(place) => {
                place.insert(Versions::One(slot));
                self.memory_bytes += Self::key_bytes(key);
            }
        }
    }

    /// The versions of a key.
    fn versions(&self, key: &[u8]) -> Option<&Versions> {
        self.keys.get(&Key::new(key))
    }

    /// Estimated bytes of a key with one version, without expiry.
    const fn key_bytes(key: &[u8]) -> u64 {
        in_tree_bytes(size_of::<(Key, Versions)>()) + (key.len() + ALLOCATION_BYTES) as u64
    }

    /// Estimated bytes of one expiry.
    const EXPIRY_BYTES: u64 = in_tree_bytes(size_of::<((TxId, u32), i64)>());

    /// The version with number `revision`, one of `1..=slots.len()`.
    fn version(&self, slots: &[Slot], revision: usize) -> Version {
        let slot = slots[revision - 1];
        let expires_at = slot.expires.then(|| {
            *self.expiries.get(&(slot.tx, slot.entry)).expect("an expiry goes in under the same hold as its version")
        });
        Version {
            tx: slot.tx,
            entry: slot.entry,
            revision: Revision(revision as u64),
            metadata: KvMetadata { deleted: slot.deleted, expires_at, non_indexable: false },
        }
    }
}

/// The versioned index of one database: one writer, any number of readers.
///
/// `at` is the transaction up to which a read sees; one that is not published yet reads as [`newest_tx`] of that call,
/// so no read sees a part of a transaction. For a stable view over several calls take `at` from [`newest_tx`] once.
///
/// [`newest_tx`]: Self::newest_tx
#[derive(Debug)]
pub struct Index {
    state: RwLock<State>,
    newest_tx: AtomicU64,
    /// [`STEPS_PER_LOCK`]; tests take less to cross the seams more often.
    steps_per_lock: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An index without keys.
    pub fn new() -> Self {
        Self::with_steps_per_lock(STEPS_PER_LOCK)
    }

    fn with_steps_per_lock(steps_per_lock: usize) -> Self {
        assert!(steps_per_lock > 0, "a hold of the lock makes progress");
        Self { state: RwLock::default(), newest_tx: AtomicU64::new(0), steps_per_lock }
    }

    /// Adds the entries of one transaction, as (stored key, 0-based place in the transaction, metadata), each key at
    /// most once, then publishes the transaction. Entries that are not indexable are left out and make no revision.
    ///
    /// Transactions come from one thread at a time and in order. One that is in already is a bug of the caller: debug
    /// builds panic, others leave the index as it is, because a second insert would invent revisions.
    pub fn insert_tx(&self, tx: TxId, entries: impl Iterator<Item = (Bytes, u32, KvMetadata)>) {
        let newest = self.newest_tx();
        debug_assert!(tx > newest, "transaction {tx} comes after {newest}");
        if tx <= newest {
            return;
        }
        let mut entries = entries.filter(|(_, _, metadata)| !metadata.non_indexable);
        loop {
            // The iterator may decode or read, so it runs without the lock.
            let batch: Vec<_> = entries.by_ref().take(self.steps_per_lock).collect();
            if batch.is_empty() {
                break;
            }
            let mut state = self.state.write();
            for (key, entry, metadata) in &batch {
                state.insert(key, tx, *entry, *metadata);
            }
        }
        self.newest_tx.store(tx.0, Ordering::Release);
    }

    /// The newest transaction of which all entries are in; 0 when there is none.
    pub fn newest_tx(&self) -> TxId {
        TxId(self.newest_tx.load(Ordering::Acquire))
    }

    /// The newest version of `key` up to `at`, also when it is deleted or expired.
    pub fn get(&self, key: &[u8], at: TxId) -> Option<Version> {
        let at = self.published(at);
        let state = self.state.read();
        let slots = state.versions(key)?.seen_at(at);
        (!slots.is_empty()).then(|| state.version(slots, slots.len()))
    }

    /// The version of `key` that `tx` itself wrote.
    pub fn get_exact(&self, key: &[u8], tx: TxId) -> Option<Version> {
        self.get(key, tx).filter(|version| version.tx == tx)
    }

    /// How many versions of `key` there are up to `at`, deletions included.
    pub fn revisions(&self, key: &[u8], at: TxId) -> u64 {
        let at = self.published(at);
        self.state.read().versions(key).map_or(0, |versions| versions.seen_at(at).len() as u64)
    }

    /// Version number `n` of `key`, from 1, if it is not from after `at`.
    pub fn revision(&self, key: &[u8], n: u64, at: TxId) -> Option<Version> {
        let at = self.published(at);
        let state = self.state.read();
        let slots = state.versions(key)?.seen_at(at);
        let n = usize::try_from(n).ok()?;
        (1..=slots.len()).contains(&n).then(|| state.version(slots, n))
    }

    /// The versions of `key` up to `at`, oldest first or with `desc` newest first: at most `limit` of them behind the
    /// first `offset`.
    pub fn history(&self, key: &[u8], at: TxId, offset: u64, limit: usize, desc: bool) -> Vec<Version> {
        let at = self.published(at);
        let mut out = Vec::new();
        let Ok(offset) = usize::try_from(offset) else { return out };
        while out.len() < limit {
            let state = self.state.read();
            let Some(versions) = state.versions(key) else { break };
            let slots = versions.seen_at(at);
            let passed = offset.saturating_add(out.len());
            let steps = slots.len().saturating_sub(passed).min(limit - out.len()).min(self.steps_per_lock);
            if steps == 0 {
                break;
            }
            out.extend((passed..passed + steps).map(|n| {
                let revision = if desc { slots.len() - n } else { n + 1 };
                state.version(slots, revision)
            }));
        }
        out
    }

    /// The next keys of a scan, each with its newest version up to `at`, also when that is deleted or expired; keys
    /// first written after `at` are passed over.
    ///
    /// The answer has at most `n` keys, in the order of the scan, strictly behind `after`; fewer than `n` mean that the
    /// range is exhausted. Calls that pass the last key on as `after`, with one published `at`, answer every key once,
    /// whatever is inserted meanwhile.
    pub fn scan_chunk(&self, spec: &ScanSpec, at: TxId, after: Option<&[u8]>, n: usize) -> Vec<(Bytes, Version)> {
        let at = self.published(at);
        let mut range = KeyRange::of(spec);
        if let Some(after) = after {
            range.continue_behind(Bytes::copy_from_slice(after), spec.desc);
        }
        let mut out = Vec::new();
        let mut more = n > 0;
        while more {
            more = self.visit(&mut range, spec.desc, at, |state, key, slots| {
                out.push((Bytes::copy_from_slice(key), state.version(slots, slots.len())));
                if out.len() < n { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        out
    }

    /// How many keys that begin with `prefix` have a version up to `at`, those whose newest is deleted or expired
    /// included. Cost is linear in the answer.
    pub fn count(&self, prefix: &[u8], at: TxId) -> u64 {
        let at = self.published(at);
        let mut range = KeyRange::prefix(Bytes::copy_from_slice(prefix));
        let mut count = 0;
        while self.visit(&mut range, false, at, |_, _, _| {
            count += 1;
            ControlFlow::Continue(())
        }) {}
        count
    }

    /// Whether a key of `range` has a version of a transaction after `since` and up to `at`, deletions included.
    pub fn changed_since(&self, range: &KeyRange, since: TxId, at: TxId) -> Result<bool> {
        if since >= self.published(at) {
            return Ok(false);
        }
        let mut range = range.clone();
        let mut changed = false;
        while self.visit(&mut range, false, at, |_, _, slots| {
            changed = slots.last().is_some_and(|newest| newest.tx > since);
            if changed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }) {}
        Ok(changed)
    }

    /// Estimate of the memory in use, bytes: exact for keys and lists, the usual fill for tree nodes.
    pub fn memory_bytes(&self) -> u64 {
        self.state.read().memory_bytes
    }

    /// Forgets everything, for a database whose files are replaced. Snapshots from before must not be used after.
    pub fn clear(&self) {
        let old = {
            let mut state = self.state.write();
            self.newest_tx.store(0, Ordering::Release);
            std::mem::take(&mut *state)
        };
        // Freeing millions of keys takes a while: not under the lock.
        drop(old);
    }

    /// Readers never look beyond what is published: a transaction after it may be in by half.
    fn published(&self, at: TxId) -> TxId {
        at.min(self.newest_tx())
    }

    /// Visits the keys of `range` that have versions up to `at`, with those versions, under one hold of the lock. Walks
    /// over at most `steps_per_lock` keys, seen or not, and moves `range` behind the last one.
    ///
    /// Returns whether to call again: false when the range is exhausted or `each` has broken off.
    fn visit(
        &self,
        range: &mut KeyRange,
        desc: bool,
        at: TxId,
        mut each: impl FnMut(&State, &[u8], &[Slot]) -> ControlFlow<()>,
    ) -> bool {
        if range.is_empty() {
            return false;
        }
        let state = self.state.read();
        let mut keys = state.keys.range::<[u8], _>((range.low(), range.high()));
        let mut last = None;
        for _ in 0..self.steps_per_lock {
            let Some((key, versions)) = (if desc { keys.next_back() } else { keys.next() }) else { return false };
            let slots = versions.seen_at(at);
            if !slots.is_empty() && each(&state, &key.bytes, slots).is_break() {
                return false;
            }
            last = Some(key);
        }
        if let Some(last) = last {
            range.continue_behind(Bytes::copy_from_slice(&last.bytes), desc);
        }
        true
    }
}

#[cfg(test)]
mod tests;
