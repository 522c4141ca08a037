//! The index by itself: keys and transaction ids, without a ledger that they come from. For those who embed only this, and for
//! measuring it beside other stores.
//!
//! Nothing here survives a crash by itself: there is no log to insert again from. What [`Alone::finish`] has written does.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::{DatabaseId, TxId};

use super::{Index, IndexOptions};
use crate::error::Result;
use crate::limits::INDEX_WORK_BYTES;
use crate::vfs::Vfs;

/// See the module. One thread inserts, one works in the background, any number reads through [`Alone::index`].
#[derive(Debug)]
pub struct Alone {
    index: Index,
}

impl Alone {
    /// A new index in the folder `dir`; what is in it goes.
    pub fn create(vfs: &Arc<dyn Vfs>, dir: &Path, options: &IndexOptions) -> Result<Self> {
        Ok(Self { index: Index::open_empty(vfs, dir, DatabaseId([0; 16]), options)? })
    }

    /// For reading.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Inserts the keys of transaction `tx`, which comes after all before it; each key at most once. Pays for some of the
    /// background work, in proportion to what it inserts, when whoever works in the background is behind.
    pub fn insert<K: AsRef<[u8]>>(&self, tx: TxId, keys: impl Iterator<Item = K>) -> Result<()> {
        self.index.insert_tx(tx, (0u32..).zip(keys).map(|(entry, key)| (key, entry, KvMetadata::default())));
        self.index.help(&|_| Ok(Digest([0; 32])))
    }

    /// Does a bounded piece of background work: writes full parts out, merges runs. Whether more is due.
    pub fn work(&self) -> Result<bool> {
        self.index.work(&|_| Ok(Digest([0; 32])), INDEX_WORK_BYTES)
    }

    /// Writes everything out and merges what is due.
    pub fn finish(&self) -> Result<()> {
        self.index.freeze_now();
        while self.work()? {}
        Ok(())
    }
}
