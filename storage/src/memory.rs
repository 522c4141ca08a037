//! The memory that the databases of a process share: one budget, obeyed however many of them are open.
//!
//! ```text
//! budget    1/4 blocks of index runs      the cache throws out by itself
//!           1/2 what databases hold       in-memory parts of indexes, newest frames, unwritten logs, outcomes of requests
//!           1/8 proposals that wait       refused beyond
//!           1/8 everything else           what a database is made of, messages under way; not counted
//! ```
//!
//! Every database says after each applied log entry what it holds. From three quarters of their share on, the ones that hold
//! most are asked to give it back ([`MemoryBudget::relieve`], by whoever was woken); at the whole share the applier that
//! needs more does it itself before it goes on. So a database that nobody writes to keeps nothing but its frame: it is written
//! out, and comes back from its files when it is used.
//!
//! Giving back changes no answer: everything that is given up is on disk.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::database::Database;
use crate::index::BlockCache;
use crate::limits::{MEMORY_BUDGET_BYTES_DEFAULT, MEMORY_BUDGET_BYTES_MIN, MEMORY_RELEASE_BYTES_MIN};

/// What a database holds, as it said last, and the budget that counts it. Dropped with the database.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<MemoryBudget>,
    held: AtomicU64,
}

impl Account {
    pub(crate) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: Arc::clone(budget), held: AtomicU64::new(0) }
    }

    pub(crate) fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Says what is held now. Concurrent calls may leave the older figure for a while; the sum stays right.
    pub(crate) fn note(&self, bytes: u64) {
        let before = self.held.swap(bytes, Ordering::Relaxed);
        self.budget.add(before, bytes);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.add(self.held(), 0);
    }
}

/// Part of the budget that a proposal takes while it waits; given back when dropped.
#[derive(Debug)]
pub struct Waiting {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// See the module.
pub struct MemoryBudget {
    bytes: u64,
    cache: Arc<BlockCache>,
    held: AtomicU64,
    waiting: AtomicU64,
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
        let bytes = bytes.max(MEMORY_BUDGET_BYTES_MIN);
        Self {
            bytes,
            cache: Arc::new(BlockCache::new(bytes / 4)),
            held: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
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

    /// What the databases hold together, bytes.
    pub fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// What the databases may hold together, bytes.
    pub fn held_bytes_max(&self) -> u64 {
        self.bytes / 2
    }

    /// Bytes of proposals that wait.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Bytes of proposals that may wait.
    pub fn waiting_bytes_max(&self) -> u64 {
        self.bytes / 8
    }

    /// How large one in-memory part of an index gets: a database must not hold most of the share by itself, and a part has three
    /// full ones before it that are being written.
    pub(crate) fn memtable_bytes(&self, wanted: usize) -> usize {
        wanted.min(usize::try_from(self.held_bytes_max() / 8).unwrap_or(usize::MAX))
    }

    /// Takes `bytes` for a proposal that waits; `None` when too many do. One that is alone always finds room.
    pub fn wait(self: &Arc<Self>, bytes: u64) -> Option<Waiting> {
        let taken = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting == 0 || waiting + bytes <= self.waiting_bytes_max()).then_some(waiting + bytes)
        });
        taken.ok().map(|_| Waiting { budget: Arc::clone(self), bytes })
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

    fn add(&self, before: u64, after: u64) {
        if after >= before {
            self.held.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    fn is_tight(&self) -> bool {
        self.held_bytes() > self.held_bytes_max() / 4 * 3
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.held_bytes() > self.held_bytes_max()
    }

    /// After an applier has noted what it holds.
    pub(crate) fn look(&self) {
        if self.is_tight()
            && let Some(wake) = &*self.wake.read()
        {
            wake();
        }
    }

    /// Asks the databases that hold most to give it back, one after the other, until they hold less than half of their share.
    /// Waits for the disk. A database that cannot, because its disk is full or broken, is passed over; it says so itself.
    pub fn relieve(&self) {
        if !self.is_tight() {
            return;
        }
        let mut databases: Vec<Arc<Database>> = self.databases.lock().iter().filter_map(Weak::upgrade).collect();
        databases.sort_by_cached_key(|database| std::cmp::Reverse(database.held_bytes()));
        for database in databases {
            if self.held_bytes() <= self.held_bytes_max() / 2 || database.held_bytes() < MEMORY_RELEASE_BYTES_MIN {
                return;
            }
            if let Err(error) = database.release_memory() {
                tracing::warn!(%error, "a database cannot give its memory back now");
            }
        }
    }
}
