//! Raft snapshots are files: a manifest at exactly the last applied entry, and the prefixes of files that it names.
//!
//! The sender hands out ranges of the files ([`SnapshotSource`]); the receiver collects them in a folder of its own
//! ([`SnapshotSink`]) and only then lets openraft install them. Nothing here looks into a file.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::SnapshotError;

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Path below the database's folder, parts separated by `/`.
    pub name: String,
    /// How much of the file belongs to the snapshot, bytes.
    pub len: u64,
}

/// Reads the files of one snapshot. Sealed and append-only, so that the same range answers the same bytes for as long as
/// the source is held.
pub trait SnapshotSource: Send + Sync + fmt::Debug {
    /// The encoded manifest.
    fn manifest(&self) -> Bytes;
    /// What the manifest names, in the order in which it should be sent.
    fn files(&self) -> Vec<SnapshotFile>;
    /// `len` bytes of a file from `offset`; a range past the file's end is an error. Reads the disk: call it on an executor.
    fn read(&self, name: &str, offset: u64, len: usize) -> Result<Bytes, SnapshotError>;
}

/// What openraft calls the snapshot's data: files here, or files received.
#[derive(Clone)]
pub enum SnapshotData {
    /// Files of this node's own database.
    Here(Arc<dyn SnapshotSource>),
    /// Files received from another node, complete, in a folder of their own.
    Staged {
        /// The encoded manifest.
        manifest: Bytes,
        /// Holds the files.
        dir: PathBuf,
    },
}

impl SnapshotData {
    /// The encoded manifest.
    pub fn manifest(&self) -> Bytes {
        match self {
            Self::Here(source) => source.manifest(),
            Self::Staged { manifest, .. } => manifest.clone(),
        }
    }
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(source) => write!(f, "snapshot of {} files here", source.files().len()),
            Self::Staged { dir, .. } => write!(f, "snapshot received in {}", dir.display()),
        }
    }
}

/// Collects the files of one snapshot: ranges of each file in order, then [`SnapshotSink::finish`].
pub trait SnapshotSink: Send + Sync + fmt::Debug {
    /// What has to be sent, in order.
    fn files(&self) -> Vec<SnapshotFile>;
    /// Takes the next bytes of a file. Writes the disk: call it on an executor.
    fn write(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), SnapshotError>;
    /// All bytes are there and durable. Writes the disk: call it on an executor.
    fn finish(self: Box<Self>) -> Result<SnapshotData, SnapshotError>;
}
