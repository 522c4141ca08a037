//! Applying commands: pure preparation of transaction records, then the derived logs and the index, in order.

use alhambra_ledger::ids::TxId;

/// What became of one proposal; the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The transaction exists.
    Committed {
        /// Its id.
        tx: TxId,
        /// Its Alh.
        alh: [u8; 32],
    },
    /// Nothing was written.
    Rejected(Rejection),
}

/// Why a proposal was refused at apply. Deterministic: a function of the log alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The precondition at this position of the proposal does not hold.
    Precondition {
        /// 0-based position in `TxProposal::preconditions`.
        index: u32,
    },
    /// No `Genesis` stands before this command.
    NotInitialised,
    /// No entries and no transaction metadata.
    NoEntries,
    /// A stored key is empty.
    NullKey,
    /// A stored key is longer than `key_len_max`.
    KeyTooLong,
    /// A stored value is longer than `value_len_max`.
    ValueTooLong,
    /// More entries than `tx_entries_max`.
    TooManyEntries,
    /// Two entries have the same stored key.
    DuplicateKey,
    /// Entry or transaction metadata in a database whose header version is 0.
    MetadataUnsupported,
    /// Metadata bytes that do not parse.
    MetadataInvalid,
    /// The request's floor is older than the window of remembered outcomes: nobody can tell whether it was carried out.
    RequestTooOld,
}
