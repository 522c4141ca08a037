//! The block cache of a process: blocks of the runs of all its databases, within one budget in bytes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::block::Block;
use crate::limits::INDEX_BLOCK_BYTES;

/// A run, counted in the process, and the offset of a block in it.
type BlockKey = (u64, u64);

#[derive(Clone)]
struct Bytes;

impl Weighter<BlockKey, Block> for Bytes {
    fn weight(&self, _: &BlockKey, block: &Block) -> u64 {
        block.memory_bytes()
    }
}

/// Keys of a cache are numbers that nobody outside chooses.
type Hasher = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// Shared by all databases of a process; clones of the `Arc` around it are what they hold.
pub struct BlockCache {
    blocks: Cache<BlockKey, Block, Bytes, Hasher>,
    next_run: AtomicU64,
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache").field("used_bytes", &self.used_bytes()).finish_non_exhaustive()
    }
}

impl BlockCache {
    /// Holds at most about `budget_bytes`.
    pub fn new(budget_bytes: u64) -> Self {
        let blocks = usize::try_from(budget_bytes / INDEX_BLOCK_BYTES as u64).unwrap_or(usize::MAX).max(16);
        Self {
            blocks: Cache::with(
                blocks,
                budget_bytes,
                Bytes,
                Hasher::default(),
                quick_cache::sync::DefaultLifecycle::default(),
            ),
            next_run: AtomicU64::new(0),
        }
    }

    /// Bytes of the blocks that are in it now.
    pub fn used_bytes(&self) -> u64 {
        self.blocks.weight()
    }

    /// A number for a run that no other run of this process has.
    pub(super) fn name_run(&self) -> u64 {
        self.next_run.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, run: u64, offset: u64) -> Option<Block> {
        self.blocks.get(&(run, offset))
    }

    pub(super) fn put(&self, run: u64, offset: u64, block: &Block) {
        self.blocks.insert((run, offset), block.clone());
    }
}
