//! A transaction of the embedded library: reads one snapshot and its own writes, and becomes a proposal.
//!
//! Nothing is locked and the leader knows nothing of it, so it runs on any replica. What it reads is remembered ([`Reads`])
//! and travels with the proposal; apply refuses the proposal when any of it is different at its place in the log
//! (`Rejection::Conflict`). A transaction that is committed has therefore read what it would read there: all transactions
//! together are as if run one after the other, in the order of their ids.
//!
//! There is no clock: whoever begins a transaction says what time it is. Whether an entry that was read has expired is decided
//! at that time, and the proposal is refused if it would have been decided otherwise at the time of the log entry.
//!
//! Keys and values are in stored form. A read answers live entries only: neither deleted nor expired, and indexable. Not
//! remembered, because nothing that comes later changes it: what a pending write of the same key hides, and the older end of
//! a history.

use std::collections::BTreeMap;
use std::ops::Bound;

use alhambra_ledger::entry::KvMetadata;
use bytes::Bytes;

use crate::command::{Precondition, ProposalEntry, Settings, TxProposal, ValueForm};
use crate::database::Database;
use crate::error::{self, Error};
use crate::index::{KeyRange, ScanSpec, Version};
use crate::limits::{FRAME_PAYLOAD_BYTES_MAX, SAVEPOINTS_MAX};
use crate::read::ReadSnapshot;
use crate::reads::{Reads, half_open};

/// Why a call on a transaction was refused. The transaction is as before.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// The snapshot could not be read.
    #[error(transparent)]
    Storage(#[from] Error),
    /// The database has no settings before its `Genesis` is applied.
    #[error("the database is not initialised")]
    NotInitialised,
    /// A stored key is empty.
    #[error("empty key")]
    NullKey,
    /// A stored key is longer than the database takes.
    #[error("key of {len_bytes} bytes, the database takes {len_bytes_max}")]
    KeyTooLong {
        /// Its length.
        len_bytes: usize,
        /// Longest that is taken.
        len_bytes_max: u32,
    },
    /// A stored value is longer than the database takes.
    #[error("value of {len_bytes} bytes, the database takes {len_bytes_max}")]
    ValueTooLong {
        /// Its length.
        len_bytes: usize,
        /// Longest that is taken.
        len_bytes_max: u32,
    },
    /// As many entries, or preconditions, as a transaction may have are there already.
    #[error("a transaction of this database has at most {max} entries, and as many preconditions")]
    TooMany {
        /// The limit.
        max: u32,
    },
    /// The entries would not fit into one log entry; those that a savepoint keeps count.
    #[error("entries of {len_bytes} bytes, a transaction takes {len_bytes_max}")]
    TooLarge {
        /// With the one that was refused.
        len_bytes: usize,
        /// Most that is taken.
        len_bytes_max: usize,
    },
    /// Metadata in a database with header version 0, or bytes that are no metadata.
    #[error("metadata that the database does not take")]
    Metadata,
    /// Values are compressed when the transaction is committed.
    #[error("a compressed value in a transaction")]
    Compressed,
    /// As many savepoints as a transaction may have are there already.
    #[error("a transaction has at most {SAVEPOINTS_MAX} savepoints")]
    TooManySavepoints,
    /// The savepoint was released, or rolled back past.
    #[error("the savepoint does not exist any more")]
    NoSuchSavepoint,
}

/// What the calls of this module answer.
pub type Result<T> = std::result::Result<T, TransactionError>;

/// A point of a transaction to which its writes can be rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(u64);

/// An entry that a transaction has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Stored key.
    pub key: Bytes,
    /// Its metadata.
    pub metadata: KvMetadata,
    /// Where it comes from.
    pub source: Source,
}

/// Where an entry comes from that a transaction has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is in the snapshot.
    Committed(Version),
    /// The transaction itself has written it.
    Pending {
        /// The stored value.
        value: Bytes,
    },
}

#[derive(Clone, Debug)]
struct Write {
    entry: ProposalEntry,
    metadata: KvMetadata,
    /// The write of the same key that this one replaced, for the way back.
    replaced: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    id: u64,
    writes: usize,
    preconditions: usize,
    bytes: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Transaction {
    snapshot: ReadSnapshot,
    settings: Settings,
    now: i64,
    reads: Reads,
    /// In order; one that was replaced stays as long as a savepoint before its replacement may bring it back.
    writes: Vec<Write>,
    /// The write of each key that counts.
    pending: BTreeMap<Bytes, usize>,
    preconditions: Vec<Precondition>,
    /// Of all writes and preconditions in memory.
    bytes: usize,
    marks: Vec<Mark>,
    savepoints_made: u64,
}

impl Database {
    /// Begins a transaction on the newest state that is applied here, at `now`, Unix seconds.
    pub fn begin(&self, now: i64) -> Result<Transaction> {
        // Settings first: those of a later state may be stricter, and apply has the last word anyway.
        let settings = self.settings().ok_or(TransactionError::NotInitialised)?;
        Ok(Transaction::new(self.snapshot(), settings, now))
    }
}

impl Transaction {
    /// A transaction on a snapshot of any age; `settings` are those that its entries are checked against early.
    pub fn new(snapshot: ReadSnapshot, settings: Settings, now: i64) -> Self {
        Self {
            reads: Reads::new(snapshot.tx()),
            snapshot,
            settings,
            now,
            writes: Vec::new(),
            pending: BTreeMap::new(),
            preconditions: Vec::new(),
            bytes: 0,
            marks: Vec::new(),
            savepoints_made: 0,
        }
    }

    /// The state that is read. What is read past the transaction is not remembered, so it must not decide what is written,
    /// unless it cannot change: a version by its transaction, say.
    pub fn snapshot(&self) -> &ReadSnapshot {
        &self.snapshot
    }

    /// What was read so far.
    pub fn reads(&self) -> &Reads {
        &self.reads
    }

    /// Whether nothing would be written. Such a transaction has read one state and needs no commit.
    pub fn is_read_only(&self) -> bool {
        self.pending.is_empty()
    }

    /// The live entry under a stored key: that of this transaction, else that of the snapshot.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Found>> {
        if let Some((key, metadata, value)) = self.pending_at(key) {
            let live = self.reads.is_live(&metadata, self.now);
            return Ok(live.then_some(Found { key, metadata, source: Source::Pending { value } }));
        }
        self.reads.key(key);
        let Some(version) = self.snapshot.get(key)? else { return Ok(None) };
        let live = self.reads.is_live(&version.metadata, self.now);
        Ok(live.then(|| Found::committed(Bytes::copy_from_slice(key), version)))
    }

    /// Whether there is a live entry under a stored key.
    pub fn exists(&mut self, key: &[u8]) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// The stored value of an entry that this transaction has read.
    pub fn value(&self, found: &Found) -> Result<Bytes> {
        match &found.source {
            Source::Committed(version) => Ok(self.snapshot.value(&found.key, version)?),
            Source::Pending { value } => Ok(value.clone()),
        }
    }

    /// Versions of a stored key, deleted and expired ones included, oldest first unless `desc`, at most `limit` behind the
    /// first `offset`. A pending write is the newest.
    pub fn history(&mut self, key: &[u8], offset: u64, limit: usize, desc: bool) -> Result<Vec<Found>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let shared = Bytes::copy_from_slice(key);
        let newest = (self.pending_at(key)).map(|(key, metadata, value)| Found {
            key,
            metadata,
            source: Source::Pending { value },
        });
        let found = |version: Version| Found::committed(shared.clone(), version);
        if desc {
            let before = u64::from(newest.is_some());
            let mut out: Vec<Found> = newest.filter(|_| offset == 0).into_iter().collect();
            if out.len() < limit {
                self.reads.key(key);
                let rest = self.snapshot.history(key, offset.saturating_sub(before), limit - out.len(), true)?;
                out.extend(rest.into_iter().map(found));
            }
            return Ok(out);
        }
        let mut out: Vec<Found> = self.snapshot.history(key, offset, limit, false)?.into_iter().map(found).collect();
        if out.len() < limit {
            // The end was seen. Versions before it stay where they are.
            self.reads.key(key);
            let count = self.snapshot.revisions(key)?;
            out.extend(newest.filter(|_| offset <= count));
        }
        Ok(out)
    }

    /// Live entries of a range, in order. Only as much is remembered as is asked for.
    pub fn scan(&self, spec: &ScanSpec) -> TransactionScan {
        let (low, high) = half_open(&KeyRange::of(spec));
        let done = high.as_ref().is_some_and(|high| *high <= low);
        let committed = committed(&self.snapshot, &low, high.as_ref(), spec.desc);
        TransactionScan { committed, ahead: None, low, high, desc: spec.desc, done }
    }

    /// Writes a stored value.
    pub fn set(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        self.write(ProposalEntry::plain(key, Bytes::new(), value))
    }

    /// Writes a stored value that does not count any more from `expires_at`, Unix seconds, on.
    pub fn set_expiring(&mut self, key: Bytes, value: Bytes, expires_at: i64) -> Result<()> {
        let metadata = KvMetadata { expires_at: Some(expires_at), ..KvMetadata::default() };
        self.write(ProposalEntry::plain(key, Bytes::new(), value).with_metadata(&metadata))
    }

    /// Deletes a stored key, whether it is there or not; [`Self::exists`] tells.
    pub fn delete(&mut self, key: Bytes) -> Result<()> {
        self.write(ProposalEntry::stored_deletion(key))
    }

    /// Writes an entry; a pending one of the same key is replaced. It stands where its key was first written since the last
    /// savepoint. One that is not indexable is not read, neither here nor later.
    pub fn write(&mut self, entry: ProposalEntry) -> Result<()> {
        let metadata = self.check(&entry)?;
        let kept_from = self.marks.last().map_or(0, |mark| mark.writes);
        let before = self.pending.get(&entry.key).copied();
        let in_place = before.filter(|&at| at >= kept_from);
        if before.is_none() && self.pending.len() >= self.settings.tx_entries_max as usize {
            return Err(TransactionError::TooMany { max: self.settings.tx_entries_max });
        }
        let freed = in_place.map_or(0, |at| entry_bytes(&self.writes[at].entry));
        self.bytes = self.grown(entry_bytes(&entry), freed)?;
        if let Some(at) = in_place {
            let write = &mut self.writes[at];
            (write.entry, write.metadata) = (entry, metadata);
        } else {
            self.pending.insert(entry.key.clone(), self.writes.len());
            self.writes.push(Write { entry, metadata, replaced: before });
        }
        Ok(())
    }

    /// Adds a condition on the state just before the transaction; pending writes do not count.
    pub fn require(&mut self, precondition: Precondition) -> Result<()> {
        let key = precondition.key();
        key.map_or(Ok(()), |key| self.check_key(key))?;
        if self.preconditions.len() >= self.settings.tx_entries_max as usize {
            return Err(TransactionError::TooMany { max: self.settings.tx_entries_max });
        }
        self.bytes = self.grown(precondition_bytes(key.map_or(&[], |key| key)), 0)?;
        self.preconditions.push(precondition);
        Ok(())
    }

    /// Remembers this point.
    pub fn savepoint(&mut self) -> Result<Savepoint> {
        if self.marks.len() >= SAVEPOINTS_MAX {
            return Err(TransactionError::TooManySavepoints);
        }
        self.savepoints_made += 1;
        let id = self.savepoints_made;
        let (writes, preconditions, bytes) = (self.writes.len(), self.preconditions.len(), self.bytes);
        self.marks.push(Mark { id, writes, preconditions, bytes });
        Ok(Savepoint(id))
    }

    /// Takes back every entry and precondition since `savepoint`, and the savepoints made since; it stays itself. What was
    /// read stays read, for it may have decided what happened then.
    pub fn roll_back_to(&mut self, savepoint: Savepoint) -> Result<()> {
        let place = self.place_of(savepoint)?;
        self.marks.truncate(place + 1);
        let mark = self.marks[place];
        for write in self.writes.drain(mark.writes..).rev() {
            match write.replaced {
                Some(before) => self.pending.insert(write.entry.key, before),
                None => self.pending.remove(&write.entry.key),
            };
        }
        self.preconditions.truncate(mark.preconditions);
        self.bytes = mark.bytes;
        Ok(())
    }

    /// Forgets `savepoint` and those made since; their entries stay.
    pub fn release(&mut self, savepoint: Savepoint) -> Result<()> {
        let place = self.place_of(savepoint)?;
        self.marks.truncate(place);
        Ok(())
    }

    /// What is to be committed: the entries that count, in order, the preconditions, and what was read.
    pub fn into_proposal(self) -> TxProposal {
        let Self { writes, pending, preconditions, reads, .. } = self;
        let counts = |(at, write): (usize, Write)| (pending.get(&write.entry.key) == Some(&at)).then_some(write.entry);
        TxProposal {
            entries: writes.into_iter().enumerate().filter_map(counts).collect(),
            preconditions,
            read_set: reads.finish(),
            ..TxProposal::default()
        }
    }

    /// The pending write of a key that reads see.
    fn pending_at(&self, key: &[u8]) -> Option<(Bytes, KvMetadata, Bytes)> {
        let write = &self.writes[*self.pending.get(key)?];
        let Write { entry, metadata, .. } = write;
        (!metadata.non_indexable).then(|| (entry.key.clone(), *metadata, entry.value.clone()))
    }

    /// The first pending write in a range that reads see.
    fn pending_within(&self, low: &Bytes, high: Option<&Bytes>, desc: bool) -> Option<Bytes> {
        let high = high.map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys = self.pending.range::<Bytes, _>((Bound::Included(low), high));
        let seen = |&(_, &at): &(&Bytes, &usize)| !self.writes[at].metadata.non_indexable;
        let first = if desc { keys.rfind(seen) } else { keys.find(seen) };
        first.map(|(key, _)| key.clone())
    }

    fn place_of(&self, savepoint: Savepoint) -> Result<usize> {
        self.marks.iter().rposition(|mark| mark.id == savepoint.0).ok_or(TransactionError::NoSuchSavepoint)
    }

    fn grown(&self, by: usize, freed: usize) -> Result<usize> {
        let len_bytes = self.bytes - freed + by;
        let len_bytes_max = FRAME_PAYLOAD_BYTES_MAX;
        if len_bytes > len_bytes_max {
            return Err(TransactionError::TooLarge { len_bytes, len_bytes_max });
        }
        Ok(len_bytes)
    }

    fn check(&self, entry: &ProposalEntry) -> Result<KvMetadata> {
        self.check_key(&entry.key)?;
        if entry.form != ValueForm::Plain {
            return Err(TransactionError::Compressed);
        }
        let (len_bytes, len_bytes_max) = (entry.value.len(), self.settings.value_len_max);
        if len_bytes > len_bytes_max as usize {
            return Err(TransactionError::ValueTooLong { len_bytes, len_bytes_max });
        }
        if !entry.metadata.is_empty() && self.settings.header_version == 0 {
            return Err(TransactionError::Metadata);
        }
        KvMetadata::from_bytes(&entry.metadata).map_err(|_| TransactionError::Metadata)
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        let (len_bytes, len_bytes_max) = (key.len(), self.settings.key_len_max);
        match len_bytes {
            0 => Err(TransactionError::NullKey),
            _ if len_bytes > len_bytes_max as usize => Err(TransactionError::KeyTooLong { len_bytes, len_bytes_max }),
            _ => Ok(()),
        }
    }
}

impl Found {
    fn committed(key: Bytes, version: Version) -> Self {
        Self { key, metadata: version.metadata, source: Source::Committed(version) }
    }
}

/// More than an entry takes in a log entry besides its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 32;

fn entry_bytes(entry: &ProposalEntry) -> usize {
    ENTRY_OVERHEAD_BYTES + entry.key.len() + entry.metadata.len() + entry.value.len()
}

fn precondition_bytes(key: &[u8]) -> usize {
    ENTRY_OVERHEAD_BYTES + key.len()
}

type Committed = Box<dyn Iterator<Item = error::Result<(Bytes, Version)>> + Send>;

/// The keys of a snapshot from `low` on and below `high`.
fn committed(snapshot: &ReadSnapshot, low: &Bytes, high: Option<&Bytes>, desc: bool) -> Committed {
    let (low, high) = ((Some(low.clone()), true), (high.cloned(), false));
    let ((start, start_inclusive), (end, end_inclusive)) = if desc { (high, low) } else { (low, high) };
    Box::new(snapshot.scan(&ScanSpec { prefix: Bytes::new(), start, start_inclusive, end, end_inclusive, desc }))
}

/// A scan of a transaction, which it does not borrow: entries written while it runs are answered if they are still ahead.
pub struct TransactionScan {
    committed: Committed,
    /// The next of `committed`, if it was looked at.
    ahead: Option<(Bytes, Version)>,
    /// What is not scanned yet: from here on,
    low: Bytes,
    /// and below this.
    high: Option<Bytes>,
    desc: bool,
    done: bool,
}

impl TransactionScan {
    /// The next entry; `None` once the range is exhausted. `transaction` is the one that began the scan. After an error
    /// the same entry is tried again.
    pub fn next(&mut self, transaction: &mut Transaction) -> Result<Option<Found>> {
        while !self.done {
            if self.ahead.is_none() {
                self.ahead = match self.committed.next().transpose() {
                    Ok(ahead) => ahead,
                    Err(error) => {
                        // What has failed ends after its error, which must not look like the end of the range.
                        self.committed = committed(&transaction.snapshot, &self.low, self.high.as_ref(), self.desc);
                        return Err(error.into());
                    }
                };
            }
            let pending = transaction.pending_within(&self.low, self.high.as_ref(), self.desc);
            let found = match (&self.ahead, pending) {
                (None, None) => {
                    self.done = true;
                    transaction.reads.between(&self.low, self.high.as_deref());
                    break;
                }
                (Some((key, _)), Some(own)) if self.is_before(key, &own) => self.take_committed(transaction),
                (Some(_), None) => self.take_committed(transaction),
                (_, Some(own)) => self.take_pending(transaction, own),
            };
            if let Some(found) = found
                && transaction.reads.is_live(&found.metadata, transaction.now)
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn is_before(&self, key: &Bytes, other: &Bytes) -> bool {
        if self.desc { key > other } else { key < other }
    }

    fn take_committed(&mut self, transaction: &mut Transaction) -> Option<Found> {
        let (key, version) = self.ahead.take()?;
        self.go_behind(transaction, &key, true);
        Some(Found::committed(key, version))
    }

    /// The key hides what the snapshot has under it.
    fn take_pending(&mut self, transaction: &mut Transaction, key: Bytes) -> Option<Found> {
        self.ahead.take_if(|(ahead, _)| *ahead == key);
        self.go_behind(transaction, &key, false);
        let (key, metadata, value) = transaction.pending_at(&key)?;
        Some(Found { key, metadata, source: Source::Pending { value } })
    }

    /// Notes that everything up to `key` was read, it itself too if `inclusive`.
    fn go_behind(&mut self, transaction: &mut Transaction, key: &Bytes, inclusive: bool) {
        let behind = Bytes::from(crate::command::read_set::behind(key));
        if self.desc {
            let from = if inclusive { key } else { &behind };
            transaction.reads.between(from, self.high.as_deref());
            self.high = Some(key.clone());
        } else {
            let below = if inclusive { &behind } else { key };
            transaction.reads.between(&self.low, Some(below));
            self.low = behind;
        }
    }
}

impl std::fmt::Debug for TransactionScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { low, high, desc, done, .. } = self;
        f.debug_struct("TransactionScan")
            .field("low", low)
            .field("high", high)
            .field("desc", desc)
            .field("done", done)
            .finish_non_exhaustive()
    }
}
