//! The ledger of one database: frames in segment files, the only thing that is synced on the commit path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex};
use bytes::Bytes;

use crate::error::Result;
use crate::vfs::Vfs;

/// Logical ledger offset: bytes of frames before it, over all segments; headers and padding do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Nothing: a new leader's first entry.
    Blank,
    /// An encoded `command::Command`.
    Command,
    /// A membership of the group.
    Membership,
}

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it stands in the replicated log.
    pub log_id: LogId,
    /// What the payload is.
    pub kind: FrameKind,
    /// Opaque to the ledger.
    pub payload: Bytes,
}

/// What all replicas of a database agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerSpec {
    /// Stands in every segment header.
    pub database: DatabaseId,
    /// Bytes of frames after which a segment is closed.
    pub segment_bytes: u64,
}

/// What is known to be durable, from outside the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryFloor {
    /// A frame at or below this index must be there and whole. Before `truncate_after` cuts below it, it must be lowered
    /// where it is kept, durably.
    pub durable_through: Option<LogIndex>,
}

/// What a node may choose for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerOptions {
    /// Flushed frames kept in memory, bytes.
    pub tail_cache_bytes: usize,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self { tail_cache_bytes: crate::limits::TAIL_CACHE_BYTES_DEFAULT }
    }
}

/// What opening found and repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerReport {
    /// Bytes of a torn tail that were zeroed.
    pub cut_bytes: u64,
    /// Sidecars written anew.
    pub sidecars_rebuilt: u64,
}

/// One segment, as far as it holds staged frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// From 0, without gaps.
    pub number: u64,
    /// Logical offset of its first frame.
    pub first_offset: Position,
    /// Of its first frame.
    pub first_log_id: LogId,
    /// Of its last frame.
    pub last_log_id: LogId,
    /// Bytes of frames, without header and padding.
    pub frame_bytes: u64,
    /// A later segment exists on disk: no frame follows in this one.
    pub closed: bool,
}

/// The ledger of one database.
#[derive(Debug)]
pub struct Ledger {}

#[allow(unused_variables, missing_docs, reason = "signatures first, so that the layer above can be built on them")]
impl Ledger {
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        spec: LedgerSpec,
        floor: RecoveryFloor,
        options: LedgerOptions,
    ) -> Result<(Self, LedgerReport)> {
        unimplemented!()
    }
    pub fn stage(&self, frames: &[Frame]) -> Result<Vec<Position>> {
        unimplemented!()
    }
    /// Returns what is flushed now.
    pub fn flush(&self) -> Result<Option<LogId>> {
        unimplemented!()
    }
    /// `None` cuts everything.
    pub fn truncate_after(&self, last_kept: Option<LogIndex>) -> Result<()> {
        unimplemented!()
    }
    pub fn read(&self, from: LogIndex, to_exclusive: LogIndex, bytes_max: usize) -> Result<Vec<(Position, Frame)>> {
        unimplemented!()
    }
    pub fn read_bytes(&self, position: Position, len: usize) -> Result<Bytes> {
        unimplemented!()
    }
    /// `None` when the ledger does not hold the index.
    pub fn log_id(&self, index: LogIndex) -> Result<Option<LogId>> {
        unimplemented!()
    }
    /// `None` when the ledger does not hold the index.
    pub fn position(&self, index: LogIndex) -> Result<Option<Position>> {
        unimplemented!()
    }
    pub fn first_index(&self) -> Option<LogIndex> {
        unimplemented!()
    }
    pub fn last_log_id(&self) -> Option<LogId> {
        unimplemented!()
    }
    pub fn flushed(&self) -> Option<LogId> {
        unimplemented!()
    }
    /// Logical offset behind the last staged frame.
    pub fn end(&self) -> Position {
        unimplemented!()
    }
    pub fn segments(&self) -> Vec<SegmentInfo> {
        unimplemented!()
    }
    /// Of the flushed frames of the segment.
    pub fn digest(&self, number: u64) -> Result<[u8; 32]> {
        unimplemented!()
    }
    pub fn recompute_digest(&self, number: u64) -> Result<[u8; 32]> {
        unimplemented!()
    }
    /// Work kept off the commit path (hashing, filling ahead); the log thread calls it when a flush has been answered.
    pub fn settle(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn segment_path(&self, number: u64) -> PathBuf {
        unimplemented!()
    }
}
