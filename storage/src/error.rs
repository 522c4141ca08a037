//! The one error type of the crate, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex};

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
    /// Two files that must agree do not: first offset, log id or length of neighbouring segments.
    Chain,
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
            Self::Chain => "does not continue the segment before",
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
    /// The disk or the quota is full. The store is poisoned as after any failed write; free space and reopen.
    #[error("no space left to {op} {}", path.display())]
    NoSpace {
        /// What was tried.
        op: FileOp,
        /// On which file or folder.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync failed, so nobody knows what is on disk: reopen.
    #[error("store is closed to writes after a failed write or sync; reopen it")]
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
            // This machine's disk.
            Self::Io { .. } | Self::NoSpace { .. } | Self::Poisoned => false,
            // This replica's files.
            Self::Corrupted { .. }
            | Self::SegmentMissing { .. }
            | Self::ForeignDatabase { .. }
            | Self::UnsupportedVersion { .. }
            | Self::SegmentSizeMismatch { .. } => false,
            // How this replica was configured.
            Self::SegmentSizeInvalid { .. } => false,
            // Calls made by code next to the log, before or outside of apply.
            Self::NotNext { .. }
            | Self::FrameTooLong { .. }
            | Self::NoSuchEntry { .. }
            | Self::NoSuchBytes { .. }
            | Self::NoSuchSegment { .. } => false,
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
