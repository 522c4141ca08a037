//! Errors of a group, by what the caller can do.
//!
//! Every error of a proposal says whether the proposal may have been applied: only [`ProposeError::OutcomeUnknown`] does.

use std::path::PathBuf;

use alhambra_ledger::ids::TxId;

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the group and the call has already made its one hop. Surely not applied.
    #[error("not the leader of this group (leader: {leader:?})")]
    NotLeader {
        /// The leader as this node knows it.
        leader: Option<u64>,
    },
    /// No leader with a quorum was found before the deadline. Surely not applied.
    #[error("no quorum: no leader took the proposal before its deadline")]
    NoQuorum,
    /// The leader was known but could not be reached before the deadline. Surely not applied.
    #[error("the leader (node {leader}) could not be reached before the deadline")]
    Unavailable {
        /// The node that was tried last.
        leader: u64,
    },
    /// The proposal was on its way when the deadline passed: it may have been applied or may still be. Ask again with the
    /// same request id.
    #[error("the outcome is unknown: the proposal may have been applied")]
    OutcomeUnknown,
    /// There was no room in the queue of proposals until shortly before the deadline, or no memory for them. Surely not applied.
    #[error("too many proposals wait ({queued_bytes} bytes of at most {queued_bytes_max})")]
    Overloaded {
        /// Bytes that wait.
        queued_bytes: u64,
        /// Bytes that may wait.
        queued_bytes_max: u64,
    },
    /// The proposal is larger than a log entry may be. Surely not applied.
    #[error("the proposal takes {len_bytes} bytes, more than the {len_bytes_max} of one log entry")]
    TooLarge {
        /// Encoded length.
        len_bytes: u64,
        /// Longest encoded length.
        len_bytes_max: u64,
    },
    /// User writes are refused for now. Surely not applied.
    #[error(transparent)]
    LimitExceeded(WriteLimit),
    /// This replica has stopped. Surely not applied.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why a leader refuses user writes, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteLimit {
    /// Fewer than a majority of the nodes have room on their disks.
    #[error(
        "the disk of node {node} has {} left, below the low-water mark of {}: free space or prune; writes resume by themselves",
        Size(*.free_bytes),
        Size(*.low_bytes)
    )]
    DiskLow {
        /// The node with the least room.
        node: u64,
        /// What is free there, bytes.
        free_bytes: u64,
        /// Its low-water mark, bytes.
        low_bytes: u64,
    },
    /// The database would be larger than its quota.
    #[error(
        "the database takes {} of at most {} (quota_bytes) and {needed_bytes} more are needed: prune or raise the quota",
        Size(*.used_bytes),
        Size(*.quota_bytes)
    )]
    QuotaBytes {
        /// What it takes on the leader, with what waits, bytes.
        used_bytes: u64,
        /// What the proposal may take, bytes.
        needed_bytes: u64,
        /// The quota, bytes.
        quota_bytes: u64,
    },
    /// More transactions than the quota allows.
    #[error("more than {per_second} transactions per second (quota_tx_per_second): send fewer or raise the quota")]
    QuotaTransactions {
        /// The quota.
        per_second: u64,
    },
}

impl WriteLimit {
    /// Names of the limits, as metrics have them, in the order of [`WriteLimit::number`].
    pub const REASONS: [&'static str; 3] = ["disk_low", "quota_bytes", "quota_tx_per_second"];

    /// Place in [`WriteLimit::REASONS`].
    pub const fn number(&self) -> usize {
        match self {
            Self::DiskLow { .. } => 0,
            Self::QuotaBytes { .. } => 1,
            Self::QuotaTransactions { .. } => 2,
        }
    }
}

/// Bytes for people.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes @ 0..1024 => write!(f, "{bytes} bytes"),
            bytes @ 1024..1_048_576 => write!(f, "{} KiB", bytes >> 10),
            bytes @ 1_048_576..10_737_418_240 => write!(f, "{} MiB", bytes >> 20),
            bytes => write!(f, "{} GiB", bytes >> 30),
        }
    }
}

impl ProposeError {
    /// Whether the proposal may have been, or may still be, applied.
    pub const fn may_be_applied(&self) -> bool {
        matches!(self, Self::OutcomeUnknown)
    }
}

/// Why a read may not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This node does not lead the group and the call has already made its one hop.
    #[error("not the leader of this group (leader: {leader:?})")]
    NotLeader {
        /// The leader as this node knows it.
        leader: Option<u64>,
    },
    /// No leader confirmed by a quorum was found before the deadline.
    #[error("no quorum: no leader confirmed itself before the deadline")]
    NoQuorum,
    /// The leader is known but this replica did not reach its position before the deadline.
    #[error("this replica did not catch up with the leader before the deadline")]
    Lagging,
    /// The leader could not be reached before the deadline.
    #[error("the leader (node {leader}) could not be reached before the deadline")]
    Unavailable {
        /// The node that was tried last.
        leader: u64,
    },
    /// A quorum confirms that the transaction does not exist.
    #[error("transaction {asked} does not exist: the newest is {latest}")]
    BeyondLedger {
        /// What was asked for.
        asked: TxId,
        /// Newest transaction of the confirmed leader.
        latest: TxId,
    },
    /// This replica has stopped.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why a group does not start.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The database does not open.
    #[error("the database in {dir} does not open")]
    Storage {
        /// Its folder.
        dir: PathBuf,
        /// What storage says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A segment of the database has rotted, and it does not open, or not start, without what stood there.
    #[error("segment {segment} of the database in {dir} has rotted")]
    Rotten {
        /// Its folder.
        dir: PathBuf,
        /// Number of the segment.
        segment: u64,
        /// What met it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The consensus core does not start.
    #[error("the replica does not start")]
    Raft(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The timing is not possible.
    #[error("this timing of heartbeats and elections is not possible")]
    Tuning(#[source] openraft::ConfigError),
}

/// Why a change of the members did not happen.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The group is already initialised, or another node of it is ahead.
    #[error("the group is initialised already")]
    AlreadyInitialised,
    /// Only the leader changes members.
    #[error("not the leader of this group (leader: {leader:?})")]
    NotLeader {
        /// The leader as this node knows it.
        leader: Option<u64>,
    },
    /// The change did not finish before its deadline; it may still happen.
    #[error("the change of members did not finish before its deadline")]
    OutcomeUnknown,
    /// The change is not allowed now.
    #[error("the change of members was refused")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This replica has stopped.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why a raft snapshot was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The manifest has no such file.
    #[error("the snapshot has no file {name}")]
    NoSuchFile {
        /// What was asked for.
        name: String,
    },
    /// The range is not inside the file.
    #[error("bytes {offset}..{end} are not inside {name} ({len} bytes)")]
    Range {
        /// The file.
        name: String,
        /// First byte asked for.
        offset: u64,
        /// End of the range asked for.
        end: u64,
        /// Length of the file in the snapshot.
        len: u64,
    },
    /// Bytes came out of order.
    #[error("{name} continues at {expected}, not at {offset}")]
    Order {
        /// The file.
        name: String,
        /// Where the bytes were said to belong.
        offset: u64,
        /// Where the next bytes belong.
        expected: u64,
    },
    /// A file is missing or shorter than the manifest says.
    #[error("{name} is incomplete: {got} of {expected} bytes")]
    Incomplete {
        /// The file.
        name: String,
        /// Bytes received.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// A file is not the one that the manifest names: it is damaged where it came from, or was on the way.
    #[error("{name} does not have the digest that the manifest names")]
    Digest {
        /// The file.
        name: String,
    },
    /// The manifest does not parse, or the database refuses.
    #[error("the database refuses the snapshot")]
    Storage(#[from] alhambra_storage::error::Error),
    /// The disk failed.
    #[error("the snapshot was not read or written")]
    Io(#[from] std::io::Error),
}
