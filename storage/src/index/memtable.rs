//! The newest transactions of an index, in memory: cheap to insert into, because every replica does so for every committed
//! entry on the way of an answer.
//!
//! ```text
//! table    hash of a key -> number of the key          open addressing; one place in memory is looked at per insert
//! keys     number -> first bytes, place in the arena, versions oldest first
//! arena    bytes of the keys, one behind the other
//! writes   numbers of the keys in the order of transactions: what changed since
//! order    pieces of numbers in the order of their keys, made when somebody asks for order and kept
//! ```
//!
//! Nothing is kept in the order of keys while transactions go in: sorting waits until a scan or a run needs it, happens on
//! the thread of whoever needs it, and holds the lock for some thousand keys at a time. What is sorted once stays sorted; pieces
//! are merged when they are about equally long, so there are few of them.
//!
//! Versions are only ever added, behind those that are there, so what a transaction id `at` sees never changes.

use std::cmp::Ordering as KeyOrder;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::TxId;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::range::KeyRange;
use super::version::{Found, Stored};

mod order;

use order::{Order, next, peek};
pub(super) use order::{Piece, Sorting};

/// Keys whose memory is fetched together.
const TOGETHER: usize = 32;

/// How often a reader looks whether it can have the lock before it sleeps: longer than the inserter holds it.
const READ_SPINS: u32 = 1000;

/// How often the inserter looks whether those who wait have had their turn.
const TURN_SPINS: u32 = 100;

/// The first block of the arena, bytes; blocks double up to [`ARENA_BLOCK_BYTES_MAX`], so that a small database stays small.
const ARENA_BLOCK_BYTES_MIN: usize = 1 << 10;
const ARENA_BLOCK_BYTES_MAX: usize = 256 << 10;

/// Places of the smallest hash table.
const TABLE_PLACES_MIN: usize = 32;

/// What an allocation costs beyond its length, bytes.
const ALLOCATION_BYTES: usize = 16;

/// What a version takes beyond the bytes of its key, about: the key, two places of the table, its place in `writes`, and slack.
const ENTRY_BYTES: usize = 96;

/// A version without its expiry, which few versions have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    tx: TxId,
    entry: u32,
    deleted: bool,
    expires: bool,
}

/// The versions of one key, oldest first. Most keys are written once and need no list.
#[derive(Debug)]
pub(super) enum Versions {
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

    /// The versions of transactions up to `at`.
    fn seen_at(&self, at: TxId) -> &[Slot] {
        let slots = self.slots();
        match slots.last() {
            Some(last) if last.tx <= at => slots,
            _ => &slots[..slots.partition_point(|slot| slot.tx <= at)],
        }
    }

    fn push(&mut self, slot: Slot) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, slot]),
            Self::Many(slots) => slots.push(slot),
        }
    }

    fn list_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Many(slots) => slots.capacity() * size_of::<Slot>() + ALLOCATION_BYTES,
        }
    }
}

/// A key: 64 bytes, a cache line.
#[derive(Debug)]
pub(super) struct Key {
    /// The first 16 bytes, big endian, filled up with zeros: most comparisons follow no pointer.
    head: u128,
    block: u32,
    offset: u32,
    len: u32,
    versions: Versions,
}

/// Stays awake until `done` or it was asked `times`.
fn spin(times: u32, mut done: impl FnMut() -> bool) {
    for _ in 0..times {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
}

fn head(key: &[u8]) -> u128 {
    let mut head = [0; 16];
    let len = key.len().min(head.len());
    head[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(head)
}

/// One entry of a transaction on its way in.
#[derive(Debug)]
pub(super) struct Insert<K> {
    key: K,
    hash: u32,
    slot: Slot,
    expires_at: Option<i64>,
}

impl<K: AsRef<[u8]>> Insert<K> {
    /// Memory that it takes, about, whatever has to grow for it.
    pub(super) fn bytes(&self) -> u64 {
        (self.key.as_ref().len() + ENTRY_BYTES) as u64
    }
}

#[derive(Debug, Default)]
struct State {
    /// Upper half the hash, lower half the number of the key plus one; 0 is free. At most half of the places are taken.
    table: Vec<u64>,
    keys: Vec<Key>,
    arena: Vec<Vec<u8>>,
    arena_bytes: usize,
    list_bytes: usize,
    /// Expiry of the versions that have one, by transaction and entry, Unix seconds.
    expiries: BTreeMap<(TxId, u32), i64>,
    /// Number of the key of each version, in the order in which they came.
    writes: Vec<u32>,
    /// Each transaction with its first place in `writes`.
    txs: Vec<(TxId, u32)>,
}

impl State {
    fn bytes_of(&self, key: &Key) -> &[u8] {
        let from = key.offset as usize;
        &self.arena[key.block as usize][from..from + key.len as usize]
    }

    fn key(&self, number: u32) -> &Key {
        &self.keys[number as usize]
    }

    fn cmp(&self, a: u32, b: u32) -> KeyOrder {
        let (a, b) = (self.key(a), self.key(b));
        a.head.cmp(&b.head).then_with(|| self.bytes_of(a).cmp(self.bytes_of(b)))
    }

    /// How the key `number` lies to another one.
    fn cmp_to(&self, number: u32, other_head: u128, other: &[u8]) -> KeyOrder {
        let key = self.key(number);
        key.head.cmp(&other_head).then_with(|| self.bytes_of(key).cmp(other))
    }

    /// The place of a key in the table, or the free one where it belongs.
    fn place(&self, key: &[u8], hash: u32) -> (usize, Option<u32>) {
        let mask = self.table.len() - 1;
        let mut place = hash as usize & mask;
        loop {
            let taken = self.table[place];
            if taken == 0 {
                return (place, None);
            }
            if (taken >> 32) as u32 == hash {
                let number = taken as u32 - 1;
                if self.bytes_of(self.key(number)) == key {
                    return (place, Some(number));
                }
            }
            place = (place + 1) & mask;
        }
    }

    /// Has the places of these entries brought into the caches, all at once; waited for one by one, this is most of the time
    /// of an insert.
    fn fetch<K>(&self, inserts: &[Insert<K>]) {
        if let Some(mask) = self.table.len().checked_sub(1) {
            let places = inserts.iter().map(|insert| self.table[insert.hash as usize & mask]);
            std::hint::black_box(places.fold(0, |all, place| all ^ place));
        }
    }

    fn find(&self, key: &[u8], hash: u32) -> Option<&Key> {
        if self.table.is_empty() {
            return None;
        }
        self.place(key, hash).1.map(|number| self.key(number))
    }

    fn grow(&mut self) {
        if (self.keys.len() + 1) * 2 <= self.table.len() {
            return;
        }
        let places = (self.table.len() * 2).max(TABLE_PLACES_MIN);
        let mut table = vec![0; places];
        for &taken in self.table.iter().filter(|taken| **taken != 0) {
            let mut place = (taken >> 32) as usize & (places - 1);
            while table[place] != 0 {
                place = (place + 1) & (places - 1);
            }
            table[place] = taken;
        }
        self.table = table;
    }

    fn store(&mut self, key: &[u8]) -> (u32, u32) {
        let full = self.arena.last().is_none_or(|block| block.capacity() - block.len() < key.len());
        if full {
            let double = self.arena.last().map_or(ARENA_BLOCK_BYTES_MIN, |block| block.capacity() * 2);
            let block = Vec::with_capacity(double.min(ARENA_BLOCK_BYTES_MAX).max(key.len()));
            self.arena_bytes += block.capacity() + ALLOCATION_BYTES;
            self.arena.push(block);
        }
        let number = self.arena.len() - 1;
        let block = &mut self.arena[number];
        let offset = block.len();
        block.extend_from_slice(key);
        (number as u32, offset as u32)
    }

    fn insert(&mut self, tx: TxId, insert: &Insert<impl AsRef<[u8]>>) {
        let Insert { key, hash, slot, expires_at } = insert;
        let key = key.as_ref();
        if let Some(expires_at) = expires_at {
            self.expiries.insert((tx, slot.entry), *expires_at);
        }
        self.grow();
        let number = match self.place(key, *hash) {
            (_, Some(number)) => {
                let versions = &mut self.keys[number as usize].versions;
                debug_assert!(
                    versions.slots().last().is_some_and(|last| last.tx < tx),
                    "a transaction writes a key once"
                );
                let before = versions.list_bytes();
                versions.push(*slot);
                self.list_bytes += versions.list_bytes() - before;
                number
            }
            (place, None) => {
                let number = u32::try_from(self.keys.len()).expect("memory holds fewer keys than 2^32");
                self.table[place] = u64::from(*hash) << 32 | u64::from(number + 1);
                let (block, offset) = self.store(key);
                let len = u32::try_from(key.len()).expect("keys are shorter than 64 KiB");
                self.keys.push(Key { head: head(key), block, offset, len, versions: Versions::One(*slot) });
                number
            }
        };
        self.writes.push(number);
    }

    fn stored(&self, slot: &Slot) -> Stored {
        let expires_at = slot.expires.then(|| {
            *self.expiries.get(&(slot.tx, slot.entry)).expect("an expiry goes in under the same hold as its version")
        });
        Stored { tx: slot.tx, entry: slot.entry, deleted: slot.deleted, expires_at }
    }

    fn memory_bytes(&self) -> usize {
        self.table.capacity() * 8
            + self.keys.capacity() * size_of::<Key>()
            + self.arena_bytes
            + self.list_bytes
            + self.expiries.len() * 48
            + self.writes.capacity() * 4
            + self.txs.capacity() * 16
    }
}

/// See the module. One thread inserts, any number reads.
#[derive(Debug)]
pub(super) struct Memtable {
    state: RwLock<State>,
    /// Readers that wait for `state`.
    waiting: AtomicUsize,
    order: Mutex<Order>,
    /// Makes it hard to find keys that meet in the table; has no influence on answers.
    seed: u64,
    /// Transactions before this one are elsewhere.
    first_tx: TxId,
    steps_per_lock: usize,
}

impl Memtable {
    pub(super) fn new(first_tx: TxId, seed: u64, steps_per_lock: usize) -> Self {
        let waiting = AtomicUsize::new(0);
        Self { state: RwLock::default(), waiting, order: Mutex::default(), seed, first_tx, steps_per_lock }
    }

    /// For reading. The inserter lets go of the lock between `TOGETHER` keys when somebody waits here; for so short a time it is
    /// cheaper to stay awake, and only so a reader is there before the inserter has the lock again.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        if let Some(state) = self.state.try_read() {
            return state;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut found = None;
        spin(READ_SPINS, || {
            found = self.state.try_read();
            found.is_some()
        });
        let state = found.unwrap_or_else(|| self.state.read());
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// The first transaction that belongs here.
    pub(super) fn first_tx(&self) -> TxId {
        self.first_tx
    }

    fn hash(&self, key: &[u8]) -> u32 {
        xxhash_rust::xxh3::xxh3_64_with_seed(key, self.seed) as u32
    }

    /// An entry of `tx` that is ready to go in.
    pub(super) fn prepare<K: AsRef<[u8]>>(&self, tx: TxId, key: K, entry: u32, metadata: &KvMetadata) -> Insert<K> {
        let hash = self.hash(key.as_ref());
        let slot = Slot { tx, entry, deleted: metadata.deleted, expires: metadata.expires_at.is_some() };
        Insert { key, hash, slot, expires_at: metadata.expires_at }
    }

    pub(super) fn steps_per_lock(&self) -> usize {
        self.steps_per_lock
    }

    pub(super) fn is_empty(&self) -> bool {
        self.read().keys.is_empty()
    }

    /// Adds entries of a transaction, which comes after all that are here; several calls may bring one. Answers the bytes of
    /// memory in use.
    pub(super) fn insert(&self, tx: TxId, inserts: &[Insert<impl AsRef<[u8]>>]) -> usize {
        let mut state = self.state.write();
        if state.txs.last().is_none_or(|(last, _)| *last < tx) {
            let first = u32::try_from(state.writes.len()).expect("memory holds fewer versions than 2^32");
            state.txs.push((tx, first));
        }
        for some in inserts.chunks(TOGETHER) {
            if self.waiting.load(Ordering::Relaxed) > 0 {
                // Whoever waits is awake and takes the lock at once, or sleeps and has its turn another time.
                RwLockWriteGuard::unlocked(&mut state, || {
                    spin(TURN_SPINS, || self.waiting.load(Ordering::Relaxed) == 0)
                });
            }
            state.fetch(some);
            for insert in some {
                state.insert(tx, insert);
            }
        }
        state.memory_bytes()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let order = { self.order.lock().sorted * 4 };
        self.read().memory_bytes() + order
    }

    /// Calls `read` with the versions of `key` up to `at`.
    fn with_versions<T>(&self, key: &[u8], at: TxId, read: impl FnOnce(&State, &[Slot]) -> T) -> T {
        let hash = self.hash(key);
        let state = self.read();
        let slots = state.find(key, hash).map_or(&[][..], |key| key.versions.seen_at(at));
        read(&state, slots)
    }

    /// The newest version of `key` up to `at`, and how many there are.
    pub(super) fn newest(&self, key: &[u8], at: TxId) -> Option<(Stored, u64)> {
        self.with_versions(key, at, |state, slots| Some((state.stored(slots.last()?), slots.len() as u64)))
    }

    /// How many versions of `key` there are up to `at`.
    pub(super) fn count(&self, key: &[u8], at: TxId) -> u64 {
        self.with_versions(key, at, |_, slots| slots.len() as u64)
    }

    /// Versions `from..from + len` of `key`, counted from 0 from the oldest here, as far as they are from up to `at`.
    pub(super) fn versions(&self, key: &[u8], at: TxId, from: u64, len: usize, out: &mut Vec<Stored>) {
        let mut from = usize::try_from(from).unwrap_or(usize::MAX);
        let end = from.saturating_add(len);
        while from < end {
            let step = (end - from).min(self.steps_per_lock);
            let found = self.with_versions(key, at, |state, slots| {
                let slots = slots.get(from..(from + step).min(slots.len())).unwrap_or(&[]);
                out.extend(slots.iter().map(|slot| state.stored(slot)));
                slots.len()
            });
            if found < step {
                return;
            }
            from += step;
        }
    }

    /// Keys of `range` that have a version after `since` and up to `at`, in their order or with `desc` against it: walks at
    /// most one hold of the lock and moves `range` behind what it has seen. False when the range is exhausted.
    pub(super) fn visit(
        &self,
        range: &mut KeyRange,
        since: TxId,
        at: TxId,
        desc: bool,
        n: usize,
        out: &mut impl Extend<Found>,
    ) -> bool {
        if range.is_empty() {
            return false;
        }
        let pieces = self.pieces();
        let state = self.read();
        let mut cursors: Vec<&[u32]> = pieces.iter().map(|piece| state.within(piece, range)).collect();
        cursors.retain(|cursor| !cursor.is_empty());
        let mut found = 0;
        for _ in 0..self.steps_per_lock {
            let Some(number) = next(&state, &mut cursors, desc) else { return false };
            let key = state.key(number);
            let slots = key.versions.seen_at(at);
            let last = match slots.last() {
                Some(newest) if newest.tx > since => {
                    let bytes = Bytes::copy_from_slice(state.bytes_of(key));
                    let newest = state.stored(newest);
                    out.extend([Found { key: bytes.clone(), newest, count: slots.len() as u64 }]);
                    found += 1;
                    Some(bytes)
                }
                _ => None,
            };
            if found == n {
                range.continue_behind(last.expect("just found"), desc);
                return true;
            }
        }
        // Where the walk stands; seen or not.
        match peek(&state, &cursors, desc) {
            None => false,
            Some(next) => {
                let key = Bytes::copy_from_slice(state.bytes_of(state.key(next)));
                range.begin_at(key, desc);
                true
            }
        }
    }

    /// Whether a key of `range` has a version after `since` and up to `at`. Looks at the keys of the range or at what was
    /// written after `since`, whichever is less, a step of one and a step of the other: at most twice the smaller of them.
    pub(super) fn changed_since(&self, range: &KeyRange, since: TxId, at: TxId) -> bool {
        if let Some(key) = range.only_key() {
            return self.newest(key, at).is_some_and(|(newest, _)| newest.tx > since);
        }
        let mut by_key = range.clone();
        let mut write = None;
        loop {
            let state = self.read();
            let from = write.unwrap_or_else(|| {
                let first = state.txs.partition_point(|(tx, _)| *tx <= since);
                state.txs.get(first).map_or(state.writes.len(), |(_, write)| *write as usize)
            });
            let to = state.writes.len().min(from + self.steps_per_lock);
            let hit = state.writes[from..to].iter().any(|number| {
                let key = state.key(*number);
                range.contains(state.bytes_of(key))
                    && key.versions.seen_at(at).last().is_some_and(|slot| slot.tx > since)
            });
            if hit {
                return true;
            }
            if to == state.writes.len() {
                return false;
            }
            write = Some(to);
            drop(state);
            let mut found = Vec::new();
            let more = self.visit(&mut by_key, since, at, false, 1, &mut found);
            if !found.is_empty() {
                return true;
            }
            if !more {
                return false;
            }
        }
    }

    /// Hands these keys to `each`, with all their versions.
    pub(super) fn drain<E>(
        &self,
        keys: &[u32],
        mut each: impl FnMut(&[u8], &[Stored]) -> Result<(), E>,
    ) -> Result<(), E> {
        let state = self.read();
        let (mut versions, mut bytes) = (Vec::new(), Vec::new());
        for some in keys.chunks(TOGETHER) {
            // The keys lie all over the memory. Read one after the other with work in between, each would be waited for;
            // read together they come together.
            bytes.clear();
            for key in some.iter().map(|number| state.key(*number)) {
                bytes.extend_from_slice(state.bytes_of(key));
            }
            let mut rest = &bytes[..];
            for key in some.iter().map(|number| state.key(*number)) {
                versions.clear();
                versions.extend(key.versions.slots().iter().map(|slot| state.stored(slot)));
                let (this, behind) = rest.split_at(key.len as usize);
                each(this, &versions)?;
                rest = behind;
            }
        }
        Ok(())
    }
}
