//! The one error type of the crate, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex, TxId};

use crate::command::DecodeError;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What was being done to a file when the operating system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name says it all")]
pub enum FileOp {
    Open,
    Create,
    CreateDir,
    ReadDir,
    Read,
    Write,
    Length,
    SetLength,
    Sync,
    SyncDir,
    Rename,
    Remove,
    Lock,
}

impl std::fmt::Display for FileOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::CreateDir => "create folder",
            Self::ReadDir => "list folder",
            Self::Read => "read",
            Self::Write => "write",
            Self::Length => "get the length of",
            Self::SetLength => "set the length of",
            Self::Sync => "sync",
            Self::SyncDir => "sync folder",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Lock => "lock",
        })
    }
}

/// How stored bytes differ from what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The file ends before the structure does, or durable frames are missing at the end of the ledger.
    Missing,
    /// The magic at the start of a file is another.
    Magic,
    /// The checksum does not hold.
    Checksum,
    /// A length is impossible.
    Length,
    /// A field holds a value that no version of the format writes.
    Field,
    /// The frame belongs elsewhere: its log id does not continue the one before.
    Sequence,
    /// The bytes do not hash to what was stored for them.
    Hash,
    /// Two files that must agree do not: first offset, log id or length of neighbouring segments.
    Chain,
    /// The bytes are not those that the ledger gives when they are derived again.
    Differs,
    /// Whole, and not what was written here.
    Changed,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "bytes are missing",
            Self::Magic => "not a file of this kind",
            Self::Checksum => "checksum does not hold",
            Self::Length => "impossible length",
            Self::Field => "impossible value in a field",
            Self::Sequence => "log id does not continue the one before",
            Self::Hash => "does not hash to the stored digest",
            Self::Chain => "does not continue the segment before",
            Self::Changed => "not what was written here",
            Self::Differs => "not what the ledger gives when it is derived again",
        })
    }
}

/// What can go wrong below the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; after a refused write or sync the store is poisoned.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried.
        op: FileOp,
        /// On which file or folder.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The disk, or the quota of the system, is full. Nothing acknowledged is lost; free space, then see
    /// [`Error::waits_for_space`].
    #[error("no space left to {op} {}: free space on this disk or prune", path.display())]
    NoSpace {
        /// What was tried.
        op: FileOp,
        /// On which file or folder.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The index is being rebuilt and does not have this transaction yet; headers, transactions and proofs are served.
    #[error("the index is being rebuilt: it has transactions up to {through}, asked for {asked}; retry later")]
    IndexRebuilding {
        /// Newest transaction that it has.
        through: TxId,
        /// Transaction up to which the read sees.
        asked: TxId,
    },
    /// An earlier write or sync failed, so nobody knows what is on disk: reopen.
    #[error("store is closed to writes after a failed write or sync; mend the disk and reopen it")]
    Poisoned,
    /// Durable bytes are not what was written. Repair from a replica; never guess.
    #[error("{} is corrupted at byte {offset}: {damage}", path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// Segment number, for files of the ledger.
        segment: Option<u64>,
        /// First byte of the damaged structure within the file.
        offset: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A segment before the newest is not there.
    #[error("segment {number} is missing in {}", dir.display())]
    SegmentMissing {
        /// The folder.
        dir: PathBuf,
        /// The missing number.
        number: u64,
    },
    /// The file belongs to another database.
    #[error("{} belongs to database {found}, expected {expected}", path.display())]
    ForeignDatabase {
        /// The file.
        path: PathBuf,
        /// The database that was opened.
        expected: DatabaseId,
        /// The database named in the file.
        found: DatabaseId,
    },
    /// The database was deleted, and its files are being removed.
    #[error("the database in {} was deleted and is being removed", dir.display())]
    Removed {
        /// Its folder.
        dir: PathBuf,
    },
    /// No file in a folder says which database it is of.
    #[error("nothing in {} says which database it is, so it is not removed", dir.display())]
    NobodysDatabase {
        /// The folder.
        dir: PathBuf,
    },
    /// The file was written by a newer release.
    #[error("{} has format version {found}, this release reads up to {supported}", path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u16,
        /// Newest version that can be read.
        supported: u16,
    },
    /// The segments were written with another segment size.
    #[error("{} has segments of {found} bytes, expected {expected}", path.display())]
    SegmentSizeMismatch {
        /// The file.
        path: PathBuf,
        /// As asked for.
        expected: u64,
        /// As stored.
        found: u64,
    },
    /// The segment size asked for is out of bounds.
    #[error("segments of {segment_bytes} bytes are not possible, allowed are {min} to {max}")]
    SegmentSizeInvalid {
        /// As asked for.
        segment_bytes: u64,
        /// Smallest, bytes.
        min: u64,
        /// Largest, bytes.
        max: u64,
    },
    /// A frame does not follow the last one: indexes have no gaps and terms never fall.
    #[error("log entry {found} does not follow {last:?}")]
    NotNext {
        /// Last log id in the ledger.
        last: Option<LogId>,
        /// The one offered.
        found: LogId,
    },
    /// A frame's payload is longer than the format allows.
    #[error("payload of {len} bytes is longer than {max}")]
    FrameTooLong {
        /// Its length, bytes.
        len: usize,
        /// The longest allowed, bytes.
        max: usize,
    },
    /// The log entry is not in the ledger.
    #[error("log entry {index} is not in the ledger")]
    NoSuchEntry {
        /// The index asked for.
        index: LogIndex,
    },
    /// The bytes are not (all) frames of the ledger.
    #[error("{len} bytes at ledger offset {position} are not within one frame")]
    NoSuchBytes {
        /// Logical offset.
        position: u64,
        /// Length, bytes.
        len: u64,
    },
    /// The transaction is not applied here.
    #[error("no transaction {tx}, the newest is {last}")]
    NoSuchTx {
        /// The one asked for.
        tx: TxId,
        /// Newest applied transaction.
        last: TxId,
    },
    /// The value was pruned; its hash, and every proof, is still there.
    #[error("value of entry {entry} of transaction {tx} was pruned")]
    ValuePruned {
        /// The transaction.
        tx: TxId,
        /// 0-based entry of it.
        entry: u32,
    },
    /// The transaction has fewer entries.
    #[error("transaction {tx} has no entry {entry}")]
    NoSuchTxEntry {
        /// The transaction.
        tx: TxId,
        /// Number of the entry asked for, from 0.
        entry: u32,
    },
    /// The header of an imported transaction records a tree that lags behind, which the compact proof has no room for; the long
    /// one has.
    #[error("the header of tx {tx} lags behind, so there is no compact proof")]
    NoCompactProof {
        /// The first such transaction of the two.
        tx: TxId,
    },
    /// A proof leads from an earlier transaction to a later one.
    #[error("no proof from transaction {source_tx} to {target_tx}")]
    ProofOrder {
        /// Asked for as source.
        source_tx: TxId,
        /// Asked for as target.
        target_tx: TxId,
    },
    /// The log entry is not the next to apply.
    #[error("log entry {found} is not the next to apply, {expected} is")]
    NotNextToApply {
        /// The next.
        expected: LogIndex,
        /// The one offered.
        found: LogIndex,
    },
    /// The log entry stands elsewhere in the ledger than the applied ones end.
    #[error("log entry at ledger offset {found} does not follow what is applied, which ends at {expected}")]
    NotWhereApplied {
        /// End of what is applied, logical offset.
        expected: u64,
        /// Position offered, logical offset.
        found: u64,
    },
    /// A log entry is not a command of this release; a replica must not guess.
    #[error("cannot apply the log entry")]
    Command(#[from] DecodeError),
    /// The first command makes another database than this one.
    #[error("log makes database {found} with segments of {segment_bytes} bytes, this is {expected}")]
    GenesisMismatch {
        /// This database.
        expected: DatabaseId,
        /// The database in the log.
        found: DatabaseId,
        /// The segment size in the log.
        segment_bytes: u64,
    },
    /// Only what is not applied may be cut from the log.
    #[error("cannot cut the log behind {kept:?}, applied is {applied:?}")]
    CutBelowApplied {
        /// Last applied log entry.
        applied: Option<LogId>,
        /// Last log entry that was to be kept.
        kept: Option<LogId>,
    },
    /// The files offered are of an earlier state than the one here.
    #[error("files at {manifest:?} are behind what is applied, {applied:?}")]
    InstallBehind {
        /// Last applied log entry.
        applied: Option<LogId>,
        /// That of the manifest.
        manifest: Option<LogId>,
    },
    /// A file is missing that the manifest names, or one is asked for that no manifest names.
    #[error("{} is not among the files of the manifest or not in the staging folder", path.display())]
    NotInManifest {
        /// The file.
        path: PathBuf,
    },
    /// The folder holds no checkpoint of a database.
    #[error("no database in {}", dir.display())]
    NoDatabase {
        /// The folder.
        dir: PathBuf,
    },
    /// A segment is what was written here, and not what was sealed: one of the two is wrong, and only a majority of the
    /// replicas can say which.
    #[error("segment {segment} has digest {own} here, was sealed with {sealed}, and is consistent in itself")]
    SealDisputed {
        /// Its number.
        segment: u64,
        /// Digest here.
        own: Digest,
        /// Digest in the seal.
        sealed: Digest,
    },
    /// A segment was replaced by what the replicas agreed on, and something had been derived from what it held before: the database
    /// has to be opened again, which derives everything again.
    #[error(
        "segment {segment} was not what was agreed on when it was applied; everything is to be derived again at the next opening"
    )]
    DerivedFromRot {
        /// Its number.
        segment: u64,
    },
    /// An install was interrupted: opening the database finishes it, before that its files are of two states.
    #[error("an install in {} is unfinished; open the database once, which finishes it", dir.display())]
    Unfinished {
        /// The folder.
        dir: PathBuf,
    },
    /// There is no such segment, or it is not closed yet where a closed one is needed.
    #[error("segment {number} does not exist or is not closed")]
    NoSuchSegment {
        /// Its number.
        number: u64,
    },
}

impl Error {
    /// Whether the same call on every replica with the same log ends in the same error, so that it may be answered to a
    /// client as an outcome of the log. Everything else says something about this replica alone and stops it.
    pub const fn is_deterministic(&self) -> bool {
        match self {
            // The log itself holds something that this release cannot apply: every replica of this release stops there,
            // but nothing may be answered.
            Self::Command(_) | Self::GenesisMismatch { .. } => false,
            // Questions about what is not here; depends on how far this replica is.
            Self::NoSuchTx { .. }
            | Self::NoSuchTxEntry { .. }
            | Self::ProofOrder { .. }
            | Self::NoCompactProof { .. }
            | Self::NoDatabase { .. }
            | Self::Unfinished { .. }
            | Self::IndexRebuilding { .. } => false,
            // As far as this replica has applied.
            Self::ValuePruned { .. } => false,
            // Files offered by another machine.
            Self::InstallBehind { .. } | Self::NotInManifest { .. } => false,
            // This machine's disk.
            Self::Io { .. } | Self::NoSpace { .. } | Self::Poisoned => false,
            // This replica's files.
            Self::Corrupted { .. }
            | Self::SealDisputed { .. }
            | Self::DerivedFromRot { .. }
            | Self::SegmentMissing { .. }
            | Self::ForeignDatabase { .. }
            | Self::UnsupportedVersion { .. }
            | Self::SegmentSizeMismatch { .. }
            | Self::Removed { .. }
            | Self::NobodysDatabase { .. } => false,
            // How this replica was configured.
            Self::SegmentSizeInvalid { .. } => false,
            // Calls made by code next to the log, before or outside of apply.
            Self::NotNext { .. }
            | Self::NotNextToApply { .. }
            | Self::NotWhereApplied { .. }
            | Self::CutBelowApplied { .. }
            | Self::FrameTooLong { .. }
            | Self::NoSuchEntry { .. }
            | Self::NoSuchBytes { .. }
            | Self::NoSuchSegment { .. } => false,
        }
    }

    /// Whether the same call succeeds as soon as there is space: nothing is half done and nothing is poisoned. Not so when
    /// a sync is what found no space: then nobody knows what of the file is on disk, and only the ledger, which still has
    /// its frames in memory, writes them again.
    pub const fn waits_for_space(&self) -> bool {
        matches!(self, Self::NoSpace { op, .. } if !matches!(op, FileOp::Sync | FileOp::SyncDir))
    }

    /// Whether a file is there and its bytes cannot be read, as with a bad sector: for whoever keeps the file whole that is
    /// damage like any other.
    pub const fn is_unreadable(&self) -> bool {
        matches!(self, Self::Io { op: FileOp::Read, .. })
    }

    /// The damaged file, when the error is about one.
    pub fn damaged_path(&self) -> Option<&Path> {
        match self {
            Self::Io { op: FileOp::Read, path, .. }
            | Self::Corrupted { path, .. }
            | Self::ForeignDatabase { path, .. }
            | Self::UnsupportedVersion { path, .. }
            | Self::SegmentSizeMismatch { path, .. } => Some(path),
            _ => None,
        }
    }

    /// First byte of the damaged structure in that file.
    pub const fn damaged_offset(&self) -> Option<u64> {
        match self {
            Self::Corrupted { offset, .. } => Some(*offset),
            _ => None,
        }
    }

    /// Wraps a refusal of the operating system.
    pub fn io(op: FileOp, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { op, path, source },
            _ => Self::Io { op, path, source },
        }
    }
}
