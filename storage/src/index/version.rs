//! What the index knows of one version of a key.

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::{Revision, TxId};

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

/// A version as a part of the index holds it. Its revision is not known there: that takes the older parts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub tx: TxId,
    pub entry: u32,
    pub deleted: bool,
    pub expires_at: Option<i64>,
}

impl Stored {
    pub(super) fn with_revision(self, revision: u64) -> Version {
        let metadata = KvMetadata { deleted: self.deleted, expires_at: self.expires_at, non_indexable: false };
        Version { tx: self.tx, entry: self.entry, revision: Revision(revision), metadata }
    }
}

/// A key that a part of the index has, with what it has of it up to some transaction.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub key: bytes::Bytes,
    /// The newest version.
    pub newest: Stored,
    /// How many versions, at least one.
    pub count: u64,
}
