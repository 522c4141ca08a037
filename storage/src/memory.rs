//! The memory that the databases of a process share: one budget, obeyed however many of them are open.
//!
//! ```text
//! budget    1/4 blocks of index runs      the cache throws out by itself
//!           1/2 what databases hold       in-memory parts of indexes, newest frames, unwritten logs, outcomes of requests
//!           1/8 proposals that wait       refused beyond; half of it in equal shares, so that nobody is kept out
//!           1/8 everything else           what a database is made of, messages under way, proofs that are remembered; not counted
//! ```
//!
//! Every database says after each applied log entry what it holds. From three quarters of their share on, the ones that hold
//! most are asked to give it back ([`MemoryBudget::relieve`], by whoever was woken); at the whole share the applier that
//! needs more has one of them do it before it goes on. Those that nobody has written to since they were looked at last come
//! first, and they alone leave the outcomes of their requests to their checkpoint, unless that is not enough. So a database that nobody writes to keeps nothing but its frame: it is written
//! out, and comes back from its files when it is used.
//!
//! Giving back changes no answer: everything that is given up is on disk.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::database::Database;
use crate::index::BlockCache;
use crate::limits::{
    GROUP_PROOFS_OF_BUDGET, MEMORY_BUDGET_BYTES_DEFAULT, MEMORY_BUDGET_BYTES_MIN, MEMORY_RELEASE_BYTES_MIN,
};
use crate::prove::ProofCache;
use crate::release;

mod rooms;

use rooms::Rooms;
pub use rooms::{Room, Waiting};

/// What a database holds, as it said last, and the budget that counts it. Dropped with the database.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<MemoryBudget>,
    held: AtomicU64,
    /// Applied to since it was looked at last.
    is_hot: AtomicBool,
}

impl Account {
    pub(crate) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: Arc::clone(budget), held: AtomicU64::new(0), is_hot: AtomicBool::new(false) }
    }

    pub(crate) fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn warm(&self) {
        self.is_hot.store(true, Ordering::Relaxed);
    }

    /// Says what is held now. Concurrent calls may leave the older figure for a while; the sum stays right.
    pub(crate) fn note(&self, bytes: u64) {
        let before = self.held.swap(bytes, Ordering::Relaxed);
        self.budget.held.fetch_add(signed(bytes) - signed(before), Ordering::Relaxed);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(signed(self.held()), Ordering::Relaxed);
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Bytes that something else than a database holds of the databases' share, until it is dropped. See [`MemoryBudget::take`].
#[derive(Debug)]
#[must_use = "what is dropped is given back"]
pub struct Taken {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(signed(self.bytes), Ordering::Relaxed);
    }
}

/// How much a database gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// What it needs again for its next write as well.
    All,
    /// What only reads miss.
    Caches,
}

/// See the module.
pub struct MemoryBudget {
    bytes: u64,
    cache: Arc<BlockCache>,
    proofs: Arc<ProofCache>,
    /// The sum of what the accounts say; for a moment it may be below 0.
    held: AtomicI64,
    rooms: Arc<Rooms>,
    databases: Mutex<Vec<Weak<Database>>>,
    /// Called when databases should be asked to give back.
    wake: RwLock<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBudget")
            .field("bytes", &self.bytes)
            .field("held_bytes", &self.held_bytes())
            .finish_non_exhaustive()
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::new(MEMORY_BUDGET_BYTES_DEFAULT)
    }
}

impl MemoryBudget {
    /// A budget of so many bytes, at least [`MEMORY_BUDGET_BYTES_MIN`].
    pub fn new(bytes: u64) -> Self {
        Self::exactly(bytes.max(MEMORY_BUDGET_BYTES_MIN))
    }

    /// However little that is.
    pub(crate) fn exactly(bytes: u64) -> Self {
        Self {
            bytes,
            cache: Arc::new(BlockCache::new(bytes / 4)),
            proofs: Arc::new(ProofCache::new(bytes / GROUP_PROOFS_OF_BUDGET)),
            held: AtomicI64::new(0),
            rooms: Rooms::new(bytes / 8),
            databases: Mutex::default(),
            wake: RwLock::default(),
        }
    }

    /// The whole budget, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blocks of the index runs of all databases.
    pub fn cache(&self) -> &Arc<BlockCache> {
        &self.cache
    }

    /// Proofs of all databases that are remembered.
    pub(crate) fn proofs(&self) -> &Arc<ProofCache> {
        &self.proofs
    }

    /// What the databases hold together, bytes.
    pub fn held_bytes(&self) -> u64 {
        u64::try_from(self.held.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// What the databases may hold together, bytes.
    pub fn held_bytes_max(&self) -> u64 {
        self.bytes / 2
    }

    /// Counts these bytes as if a database held them, which makes others give theirs back.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Taken {
        self.held.fetch_add(signed(bytes), Ordering::Relaxed);
        Taken { budget: Arc::clone(self), bytes }
    }

    /// Bytes of proposals that wait.
    pub fn waiting_bytes(&self) -> u64 {
        self.rooms.bytes()
    }

    /// How large one in-memory part of an index gets: a database must not hold most of the share by itself, and a part has three
    /// full ones before it that are being written.
    pub(crate) fn memtable_bytes(&self, wanted: usize) -> usize {
        wanted.min(usize::try_from(self.held_bytes_max() / 8).unwrap_or(usize::MAX))
    }

    /// Where the proposals of one more database wait.
    pub fn room(&self) -> Room {
        self.rooms.open()
    }

    /// From now on this database is one of those that are asked to give back.
    pub fn watch(&self, database: &Arc<Database>) {
        let mut databases = self.databases.lock();
        databases.retain(|known| known.strong_count() > 0);
        databases.push(Arc::downgrade(database));
    }

    /// `wake` is called, from an applier's thread, whenever [`MemoryBudget::relieve`] should be. It must not block.
    pub fn on_pressure(&self, wake: impl Fn() + Send + Sync + 'static) {
        *self.wake.write() = Some(Box::new(wake));
    }

    /// Whether databases should be asked to give back.
    pub fn is_tight(&self) -> bool {
        self.held_bytes() > self.held_bytes_max() / 4 * 3
    }

    /// Whether the databases hold more than their share.
    pub fn is_exceeded(&self) -> bool {
        self.held_bytes() > self.held_bytes_max()
    }

    /// After an applier has noted what it holds. Whether it has to see to it itself that memory is given back.
    pub(crate) fn look(&self) -> bool {
        if !self.is_tight() {
            return false;
        }
        match &*self.wake.read() {
            Some(wake) => {
                wake();
                false
            }
            None => self.is_exceeded(),
        }
    }

    /// Asks databases to give back, one after the other, until all together hold less than half of their share or nobody has
    /// anything to give. Waits for the disk.
    pub fn relieve(&self) {
        while self.held_bytes() > self.held_bytes_max() / 2 && self.relieve_one() {}
    }

    /// Asks one database to give back: of those that nobody writes to the one that holds most, else the one that holds most of
    /// all. False when there is none, or it cannot because its disk is full or broken; it says so itself. Waits for the disk.
    pub fn relieve_one(&self) -> bool {
        let Some((database, release)) = self.next_to_release() else { return false };
        let before = database.held_bytes();
        if let Err(error) = release::run(&database, release) {
            tracing::warn!(%error, "a database cannot give its memory back now");
            return false;
        }
        database.held_bytes() < before
    }

    fn next_to_release(&self) -> Option<(Arc<Database>, Release)> {
        let databases = self.databases.lock();
        let mut coldest: Option<(bool, u64, &Weak<Database>)> = None;
        for known in databases.iter() {
            let Some(database) = known.upgrade() else { continue };
            let held = database.held_bytes();
            let is_cold = !database.account.is_hot.swap(false, Ordering::Relaxed);
            if held >= MEMORY_RELEASE_BYTES_MIN && coldest.is_none_or(|(cold, most, _)| (cold, most) < (is_cold, held))
            {
                coldest = Some((is_cold, held, known));
            }
        }
        let (is_cold, _, known) = coldest?;
        // Outcomes of requests come back with the next write: of a database that is in use they go only when they must.
        let release = if is_cold || self.is_exceeded() { Release::All } else { Release::Caches };
        Some((known.upgrade()?, release))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_take_counts_as_held_until_it_is_dropped() {
        let budget = Arc::new(MemoryBudget::exactly(800));
        let most = budget.take(300);
        assert!(!budget.is_tight());
        let rest = budget.take(101);
        assert!(budget.is_tight() && budget.is_exceeded());
        drop(most);
        assert_eq!((budget.held_bytes(), budget.is_tight()), (101, false));
        drop(rest);
        assert_eq!(budget.held_bytes(), 0);
    }
}
