//! Raft snapshots are files: a manifest at exactly the last applied entry, and the prefixes of files that it names.
//!
//! The sender hands out ranges of the files ([`SnapshotSource`]); the receiver collects them in a folder of its own
//! ([`SnapshotSink`]) and only then lets openraft install them. Nothing here looks into a file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::LogId;
use alhambra_storage::database::Database;
use alhambra_storage::transfer::{FileRange, Manifest};
use alhambra_storage::vfs::{File, OpenMode, Vfs};
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
    /// What has to be sent, in order. Segments that are here already are left out.
    fn files(&self) -> Vec<SnapshotFile>;
    /// Takes the next bytes of a file. Writes the disk: call it on an executor.
    fn write(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), SnapshotError>;
    /// All bytes are there and have the digests that the manifest names. Writes the disk: call it on an executor.
    fn finish(self: Box<Self>) -> Result<SnapshotData, SnapshotError>;
}

/// Bytes copied at once between two databases of one process.
const COPY_BYTES: u64 = 1 << 20;

/// A manifest of the own database.
pub struct DatabaseSource {
    database: Arc<Database>,
    manifest: Manifest,
    encoded: Bytes,
}

impl fmt::Debug for DatabaseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "manifest at {:?}", self.manifest.log_id)
    }
}

impl DatabaseSource {
    /// Takes the manifest at the applied entry; a checkpoint is taken there first.
    pub(crate) fn take(database: Arc<Database>) -> alhambra_storage::error::Result<Self> {
        let manifest = database.manifest()?;
        let encoded = manifest.encode();
        Ok(Self { database, manifest, encoded })
    }

    /// Whether the files are still those that the manifest names: pruning replaces sealed segments.
    pub(crate) fn still_holds(&self) -> bool {
        self.database.holds(&self.manifest)
    }

    /// The entry it stands at.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        self.manifest.log_id
    }

    /// The members at that entry.
    pub(crate) fn membership(&self) -> Option<(LogId, Bytes)> {
        self.manifest.membership.clone()
    }
}

impl SnapshotSource for DatabaseSource {
    fn manifest(&self) -> Bytes {
        self.encoded.clone()
    }

    fn files(&self) -> Vec<SnapshotFile> {
        self.manifest.files.iter().map(|file| SnapshotFile { name: file.path.clone(), len: file.len }).collect()
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> Result<Bytes, SnapshotError> {
        let file = self.manifest.files.iter().find(|file| file.path == name);
        let file = file.ok_or_else(|| SnapshotError::NoSuchFile { name: name.to_owned() })?;
        let end = offset.saturating_add(len as u64);
        if end > file.len {
            return Err(SnapshotError::Range { name: name.to_owned(), offset, end, len: file.len });
        }
        let range = FileRange { path: name.to_owned(), offset, len: len as u64 };
        Ok(self.database.read_file(&range)?)
    }
}

/// Files that arrive in a folder of their own, hashed on the way.
struct FolderSink {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    encoded: Bytes,
    /// What has to come, in order.
    order: Vec<SnapshotFile>,
    files: BTreeMap<String, Arriving>,
}

struct Arriving {
    file: Option<Box<dyn File>>,
    len: u64,
    got: u64,
    head: Bytes,
    hasher: Hasher,
    digest: alhambra_ledger::Digest,
}

impl fmt::Debug for FolderSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files that arrive in {}", self.order.len(), self.dir.display())
    }
}

/// A place for the files of `manifest` below the folder of `database`. What an earlier one left there is removed.
pub(crate) fn sink(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    database: &Database,
    encoded: Bytes,
) -> Result<Box<dyn SnapshotSink>, SnapshotError> {
    let manifest = Manifest::decode(&encoded)?;
    let missing = database.missing(&manifest)?;
    let dir = dir.join("incoming");
    if vfs.exists(&dir)? {
        vfs.remove_dir_all(&dir)?;
    }
    vfs.create_dir_all(&dir)?;
    let mut files = BTreeMap::new();
    let mut order = Vec::new();
    for file in manifest.files.into_iter().filter(|file| missing.iter().any(|range| range.path == file.path)) {
        order.push(SnapshotFile { name: file.path.clone(), len: file.len });
        let (len, head, digest) = (file.len, file.head, file.digest);
        files.insert(file.path, Arriving { file: None, len, got: 0, head, hasher: Hasher::new(), digest });
    }
    Ok(Box::new(FolderSink { vfs: vfs.clone(), dir, encoded, order, files }))
}

impl SnapshotSink for FolderSink {
    fn files(&self) -> Vec<SnapshotFile> {
        self.order.clone()
    }

    fn write(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), SnapshotError> {
        let arriving = self.files.get_mut(name).ok_or_else(|| SnapshotError::NoSuchFile { name: name.to_owned() })?;
        let end = offset.saturating_add(data.len() as u64);
        if offset != arriving.got {
            return Err(SnapshotError::Order { name: name.to_owned(), offset, expected: arriving.got });
        }
        if end > arriving.len {
            return Err(SnapshotError::Range { name: name.to_owned(), offset, end, len: arriving.len });
        }
        let file = match &mut arriving.file {
            Some(file) => file,
            none => {
                let path = self.dir.join(name);
                if let Some(folder) = path.parent() {
                    self.vfs.create_dir_all(folder)?;
                }
                none.insert(self.vfs.open(&path, OpenMode::CreateNew)?)
            }
        };
        file.write_at(offset, data)?;
        // The head is not part of the digest; it must be as the manifest says.
        let head_left = arriving.head.len().saturating_sub(usize::try_from(offset).unwrap_or(usize::MAX));
        let (head, rest) = data.split_at(head_left.min(data.len()));
        let head_from = arriving.head.len() - head_left;
        if !arriving.head[head_from..].starts_with(head) {
            return Err(SnapshotError::Digest { name: name.to_owned() });
        }
        arriving.hasher.update(rest);
        arriving.got = end;
        if end == arriving.len {
            // Fewer handles; the install syncs every file.
            arriving.file = None;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<SnapshotData, SnapshotError> {
        for (name, arriving) in self.files {
            if arriving.got != arriving.len {
                return Err(SnapshotError::Incomplete { name, got: arriving.got, expected: arriving.len });
            }
            if arriving.hasher.finish() != arriving.digest {
                return Err(SnapshotError::Digest { name });
            }
        }
        Ok(SnapshotData::Staged { manifest: self.encoded, dir: self.dir })
    }
}

/// Copies what another database of this process hands out.
pub(crate) fn copy_into(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    database: &Database,
    source: &dyn SnapshotSource,
) -> Result<SnapshotData, SnapshotError> {
    let mut sink = sink(vfs, dir, database, source.manifest())?;
    for file in sink.files() {
        let mut offset = 0;
        while offset < file.len {
            let len = COPY_BYTES.min(file.len - offset);
            let bytes = source.read(&file.name, offset, usize::try_from(len).unwrap_or(usize::MAX))?;
            sink.write(&file.name, offset, &bytes)?;
            offset += len;
        }
    }
    sink.finish()
}

/// Makes the database what the snapshot says. Reads and writes the disk.
pub(crate) fn install(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    database: &Database,
    snapshot: SnapshotData,
) -> Result<(), SnapshotError> {
    let staged = match snapshot {
        SnapshotData::Here(source) => copy_into(vfs, dir, database, &*source)?,
        staged => staged,
    };
    let SnapshotData::Staged { manifest, dir } = staged else { unreachable!("copied above") };
    Ok(database.install(&Manifest::decode(&manifest)?, &dir)?)
}
