//! What a log entry of kind `Command` carries: the only way in which a database changes.
//!
//! Bytes are specified in `docs/format.md`; encoded commands are kept for ever, so every form is versioned.

use alhambra_ledger::ids::{DatabaseId, LogIndex, TxId};
use bytes::Bytes;

mod codec;
mod foreign;
mod kv;
mod prune;
pub(crate) mod read_set;
mod value_form;

pub(crate) use codec::encode_batch;
pub use codec::{
    COMMAND_VERSION, DecodeError, Located, LocatedBatch, LocatedEntry, LocatedPrecondition, LocatedProposal,
    decode_located,
};
pub use foreign::ForeignHeader;
pub use prune::{Citation, LocatedTarget, Prune, PruneTarget};
pub use read_set::{LocatedReadSet, ReadRange, ReadSet};
pub(crate) use value_form::VALUE_IS_PRUNED;

/// Names one intention of one client, so that a retry is recognised: the first outcome is answered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Who asks; random, 128 bit, never reused.
    pub client: [u8; 16],
    /// Counts the client's requests from 1.
    pub sequence: u64,
    /// Newest log entry that was applied where the request was made, when it was made. A request whose floor is older than the
    /// window of remembered outcomes is refused, because nobody can tell any more whether it was carried out.
    pub floor: LogIndex,
}

/// One key, value and metadata of a proposal, in stored form (prefix bytes included).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProposalEntry {
    /// Stored key.
    pub key: Bytes,
    /// Serialised entry metadata (`alhambra_ledger::entry::KvMetadata`), empty for none.
    pub metadata: Bytes,
    /// Stored value, in the form that `form` names.
    pub value: Bytes,
    /// Set by [`TxProposal::compress`]; plain before.
    pub form: ValueForm,
}

impl ProposalEntry {
    /// An entry whose value is not compressed (yet).
    pub const fn plain(key: Bytes, metadata: Bytes, value: Bytes) -> Self {
        Self { key, metadata, value, form: ValueForm::Plain }
    }
}

/// How a value's bytes stand in the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ValueForm {
    /// As they are.
    #[default]
    Plain,
    /// One block of the LZ4 block format.
    Lz4 {
        /// Bytes of the plain value.
        plain_len: u32,
    },
    /// The value was gone already when its transaction was imported; the 32 bytes here are its SHA-256.
    Gone,
}

impl ValueForm {
    /// Bytes of the plain value of which `stored_len` bytes are stored; 0 when nobody knows.
    pub const fn plain_len(self, stored_len: u32) -> u32 {
        match self {
            Self::Plain => stored_len,
            Self::Lz4 { plain_len } => plain_len,
            Self::Gone => 0,
        }
    }
}

/// What new proposals do with values that get shorter by it. Old values keep their form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Values stand as they are.
    #[default]
    None,
    /// LZ4 block format.
    Lz4,
}

/// Condition on the state just before the transaction, evaluated at apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The stored key has a version that is neither deleted nor expired.
    MustExist(Bytes),
    /// The stored key has no version, or its newest is deleted or expired.
    MustNotExist(Bytes),
    /// The newest version of the stored key, deleted or not, is not from a transaction after `tx`.
    NotModifiedAfter {
        /// Stored key.
        key: Bytes,
        /// Newest transaction that may have written the key.
        tx: TxId,
    },
    /// The transaction becomes this one: its own id stands in what it writes.
    Becomes(TxId),
}

impl Precondition {
    /// The stored key that it is about, if it is about one.
    pub const fn key(&self) -> Option<&Bytes> {
        match self {
            Self::MustExist(key) | Self::MustNotExist(key) | Self::NotModifiedAfter { key, .. } => Some(key),
            Self::Becomes(_) => None,
        }
    }
}

/// One client's transaction before it has an id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxProposal {
    /// Always set by nodes (their own when the client sends none); the embedded library may leave it out.
    pub request: Option<RequestId>,
    /// Serialised transaction metadata, empty for none.
    pub metadata: Bytes,
    /// In the order in which they are hashed.
    pub entries: Vec<ProposalEntry>,
    /// All must hold; the first that fails is reported.
    pub preconditions: Vec<Precondition>,
    /// What was read to make this, if it must not have changed until it is applied.
    pub read_set: Option<ReadSet>,
    /// Of a transaction that was made elsewhere: its header, which it keeps. Taken in replica mode only, and only by the
    /// database whose history it continues.
    pub foreign: Option<Box<ForeignHeader>>,
}

/// Settings that apply uses. Replicated state: changed only by a command in the database's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest stored key, prefix byte included, bytes.
    pub key_len_max: u32,
    /// Longest stored value, prefix byte included, in plain, bytes.
    pub value_len_max: u32,
    /// Most entries of a transaction.
    pub tx_entries_max: u32,
    /// Header version of new transactions: 0 or 1.
    pub header_version: u16,
    /// New headers carry ts 0.
    pub exclude_commit_time: bool,
    /// Bytes the database may take before user writes are refused; 0 = no limit. Looked at by the
    /// proposer, because what a replica takes on disk is its own.
    pub quota_bytes: u64,
    /// Transactions per second that users may write; 0 = no limit. Looked at by the proposer: apply has no clock.
    pub quota_tx_per_second: u64,
    /// What whoever makes a proposal does with its values.
    pub compression: Compression,
    /// Replica mode: only transactions that were made elsewhere are taken.
    pub replica: bool,
}

/// The replicated command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// First command of a database. A second one is ignored.
    Genesis {
        /// Must equal the id in the segment headers.
        database: DatabaseId,
        /// Bytes after which a segment is closed; must equal the one in the segment headers.
        segment_bytes: u64,
        /// Settings in force from here on.
        settings: Settings,
    },
    /// Replaces the settings.
    Configure(Settings),
    /// A batch of transactions, each applied on its own, in order.
    Batch {
        /// Unix seconds, stamped by the leader's proposer.
        ts: i64,
        /// In order.
        proposals: Vec<TxProposal>,
    },
    /// Digest of a full and committed segment, as the leader has it.
    Seal(Seal),
    /// Forgets values.
    Prune(Prune),
}

/// Digest of a closed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Segment number, from 0.
    pub segment: u64,
    /// 0 for the segment as it was written, else the number of the newest prune of which it has lost a value.
    pub generation: u32,
    /// SHA-256 over the frames of the segment, in order, without header and padding; of a pruned one over everything
    /// behind the header of its file.
    pub digest: [u8; 32],
    /// Newest transaction whose proposal stands in this or an earlier segment.
    pub last_tx: TxId,
    /// Alh of that transaction.
    pub alh: [u8; 32],
    /// Positions (log index, number within the batch) of the proposals in this segment that were rejected.
    pub rejected: Vec<(u64, u32)>,
}
