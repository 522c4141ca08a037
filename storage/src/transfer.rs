//! A database as files: the manifest of everything at the applied entry, what a receiver lacks of it, and the swap that
//! turns received files into the database.
//!
//! Segments are named with the digest of their frames, which is that of their seal once they are sealed; files of derived
//! logs with the digest of the part that belongs to the checkpoint. Everything is append-only, so a manifest stays valid
//! while the database goes on.
//!
//! The swap: verify all files in the staging folder, make them durable, write `install` (the manifest and which files are
//! staged) atomically, then move the files into place, remove what the manifest does not name, write marks and checkpoint,
//! remove `install`. A crash before `install` is durable leaves the old database and a staging folder that means nothing;
//! after it, opening goes on with the swap, every step of which may be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::{DatabaseId, LogId, TxId};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::checkpoint::{self, CHECKPOINT_MAGIC, CHECKPOINT_NAME, Checkpoint};
use crate::core::Core;
use crate::database::{Database, DatabaseSpec};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::format::derived::{CHUNK_HEADER_BYTES, open_small, seal_small};
use crate::limits::{COPY_BYTES, REQUEST_OUTCOMES_KEPT};
use crate::marks::Marks;
use crate::plant::{Plant, is_planted};
use crate::prune;
use crate::recover;
use crate::requests::Requests;
use crate::smallfile;
use crate::vfs::{OpenMode, Vfs};
use crate::wire::{Malformed, Put, Reader};

const MANIFEST_MAGIC: [u8; 8] = *b"ALHMANIF";
const INSTALL_MAGIC: [u8; 8] = *b"ALHINSTL";
const INSTALL_NAME: &str = "install";

/// Folders whose files a manifest names.
const FOLDERS: [&str; 6] = ["ledger", "tx", "commit", "aht", "seal", "prune"];

/// One file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Path below the database's folder, parts separated by `/`.
    pub path: String,
    /// How much of the file belongs to the manifest, bytes from its start.
    pub len: u64,
    /// The segment, for files of the ledger.
    pub segment: Option<u64>,
    /// First bytes of the file, not part of the digest: the header of a segment, nothing for others.
    pub head: Bytes,
    /// SHA-256 of everything behind `head`, up to `len`.
    pub digest: Digest,
}

/// Part of a file, to be read or sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRange {
    /// Path below the database's folder, parts separated by `/`.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// A database at exactly one applied entry, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The database.
    pub database: DatabaseId,
    /// Bytes of frames after which a segment is closed.
    pub segment_bytes: u64,
    /// Bytes of a derived log per file.
    pub derived_chunk_bytes: u64,
    /// Last applied log entry.
    pub log_id: Option<LogId>,
    /// Last applied membership; opaque bytes of the caller.
    pub membership: Option<(LogId, Bytes)>,
    /// Newest transaction.
    pub tx: TxId,
    /// Its Alh.
    pub alh: Digest,
    /// The checkpoint's content.
    pub checkpoint: Bytes,
    /// The files, in the order in which they should be sent.
    pub files: Vec<ManifestFile>,
}

impl Manifest {
    /// The manifest's bytes, checksum included.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        out.put_u64(self.segment_bytes);
        out.put_u64(self.derived_chunk_bytes);
        out.put_prefixed(&self.checkpoint);
        out.put_varint(self.files.len() as u64);
        for file in &self.files {
            out.put_prefixed(file.path.as_bytes());
            out.put_u64(file.len);
            out.put_u8(u8::from(file.segment.is_some()));
            out.put_u64(file.segment.unwrap_or(0));
            out.put_prefixed(&file.head);
            out.put_bytes(&file.digest.0);
        }
        Bytes::from(seal_small(MANIFEST_MAGIC, &out))
    }

    /// Reads a manifest. What describes the applied entry comes from the checkpoint within.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let name = Path::new("manifest");
        let content = open_small(MANIFEST_MAGIC, bytes, name)?;
        let mut reader = Reader::new(content);
        Self::read(&mut reader).map_err(|Malformed| Error::Corrupted {
            path: name.to_path_buf(),
            segment: None,
            offset: reader.at() as u64,
            damage: Damage::Field,
        })
    }

    fn read(reader: &mut Reader<'_>) -> std::result::Result<Self, Malformed> {
        let (segment_bytes, derived_chunk_bytes) = (reader.u64()?, reader.u64()?);
        let checkpoint = Bytes::copy_from_slice(reader.prefixed()?);
        let count = reader.count(51)?;
        let mut files = Vec::with_capacity(count);
        for _ in 0..count {
            let path = std::str::from_utf8(reader.prefixed()?).map_err(|_| Malformed)?;
            if !is_file_of_a_database(path) {
                return Err(Malformed);
            }
            let len = reader.u64()?;
            let (is_segment, number) = (reader.u8()?, reader.u64()?);
            let head = Bytes::copy_from_slice(reader.prefixed()?);
            if is_segment > 1 || (is_segment == 0 && number != 0) || head.len() as u64 > len {
                return Err(Malformed);
            }
            let digest = Digest(reader.array()?);
            let segment = (is_segment == 1).then_some(number);
            files.push(ManifestFile { path: path.to_owned(), len, segment, head, digest });
        }
        if reader.left() != 0 {
            return Err(Malformed);
        }
        let taken = Checkpoint::decode(&checkpoint)?;
        Ok(Self {
            database: taken.database,
            segment_bytes,
            derived_chunk_bytes,
            log_id: taken.state.applied,
            membership: taken.state.membership,
            tx: taken.state.tx,
            alh: taken.state.alh,
            checkpoint,
            files,
        })
    }
}

/// A manifest comes from another machine: it must not name files outside the database's folders.
fn is_file_of_a_database(path: &str) -> bool {
    let parts: Vec<_> = Path::new(path).components().collect();
    let [Component::Normal(folder), Component::Normal(file)] = parts[..] else { return false };
    let (Some(folder), Some(file)) = (folder.to_str(), file.to_str()) else { return false };
    FOLDERS.contains(&folder) && format!("{folder}/{file}") == path
}

/// Digests of chunk files that are full and therefore never change.
#[derive(Debug, Default)]
pub(crate) struct ChunkDigests(Mutex<BTreeMap<String, Digest>>);

impl ChunkDigests {
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// See [`Database::manifest`].
pub(crate) fn manifest(db: &Database) -> Result<Manifest> {
    let bytes = checkpoint::write(db)?;
    let Ok(Checkpoint { state, sizes, .. }) = Checkpoint::decode(&bytes) else {
        return Err(Error::Corrupted {
            path: db.dir.join(CHECKPOINT_NAME),
            segment: None,
            offset: 0,
            damage: Damage::Field,
        });
    };
    let core = db.core();
    let mut files = Vec::new();
    let (open_segment, open_bytes) = state.trail.open_segment();
    if state.applied.is_some() {
        for segment in core.ledger.segments().iter().filter(|segment| segment.number <= open_segment) {
            let file = core.ledger.segment_path(segment.number);
            let (len, head, digest) = if segment.number < open_segment {
                closed_segment(&core, segment.number)?
            } else {
                let len = SEGMENT_HEADER_BYTES + open_bytes;
                (len, core.ledger.header_of(segment), hash_range(&*db.vfs, &file, SEGMENT_HEADER_BYTES, len)?)
            };
            let path = relative(&db.dir, &file);
            files.push(ManifestFile { path, len, segment: Some(segment.number), head, digest });
        }
    }
    let chunk_bytes = db.options.derived_chunk_bytes;
    let logs = [
        (&core.tx, sizes.tx),
        (&core.commit, sizes.commit),
        (&core.aht, sizes.aht),
        (&core.seals.log, sizes.seal),
        (&core.prunes.log, sizes.prune),
    ];
    for (log, size) in logs {
        for (path, len) in log.manifest_files(chunk_bytes, size) {
            let digest = chunk_digest(db, &path, len)?;
            files.push(ManifestFile { path, len, segment: None, head: Bytes::new(), digest });
        }
    }
    Ok(Manifest {
        database: db.spec.id,
        segment_bytes: db.spec.segment_bytes,
        derived_chunk_bytes: chunk_bytes,
        log_id: state.applied,
        membership: state.membership,
        tx: state.tx,
        alh: state.alh,
        checkpoint: Bytes::from(bytes),
        files,
    })
}

/// Length, header and digest of a closed segment, all of one generation.
fn closed_segment(core: &Core, number: u64) -> Result<(u64, Bytes, Digest)> {
    loop {
        let info = || core.ledger.segments().get(number as usize).copied().ok_or(Error::NoSuchSegment { number });
        let before = info()?;
        // As it was written, not as it is on this disk now, and as it was sealed: the receiver notices when these differ, and takes
        // no rot over.
        let digest = core.ledger.digest(number)?;
        if info()?.generation == before.generation {
            let digest = core.seals.digest(number, before.generation).unwrap_or(digest);
            return Ok((SEGMENT_HEADER_BYTES + before.stored_bytes, core.ledger.header_of(&before), digest));
        }
    }
}

fn chunk_digest(db: &Database, path: &str, len: u64) -> Result<Digest> {
    let full = len == CHUNK_HEADER_BYTES + db.options.derived_chunk_bytes;
    if full && let Some(digest) = db.digests.0.lock().get(path) {
        return Ok(*digest);
    }
    let digest = hash_range(&*db.vfs, &db.dir.join(path), 0, len)?;
    if full {
        db.digests.0.lock().insert(path.to_owned(), digest);
    }
    Ok(digest)
}

/// See [`Database::holds`].
pub(crate) fn holds(db: &Database, manifest: &Manifest) -> bool {
    let ledger = db.ledger();
    let segments = ledger.segments();
    let closed = |file: &&ManifestFile| {
        file.segment.is_some_and(|number| segments.get(number as usize).is_some_and(|info| info.closed))
    };
    // The newest one of the manifest was open then: it is a prefix, and cannot have been pruned before it was closed.
    manifest.files.iter().filter(closed).all(|file| {
        let number = file.segment.unwrap_or_default();
        let info = &segments[number as usize];
        let was_open = SEGMENT_HEADER_BYTES + info.frame_bytes != file.len && info.generation == 0;
        was_open || ledger.digest(number).is_ok_and(|digest| digest == file.digest)
    })
}

/// See [`Database::missing`].
pub(crate) fn missing(db: &Database, manifest: &Manifest) -> Result<Vec<FileRange>> {
    let core = db.core();
    let mut ranges = Vec::new();
    for file in &manifest.files {
        if !is_here(&core, file)? {
            ranges.push(FileRange { path: file.path.clone(), offset: 0, len: file.len });
        }
    }
    Ok(ranges)
}

/// Whether an own closed segment is exactly the one that the manifest names.
fn is_here(core: &Core, file: &ManifestFile) -> Result<bool> {
    let Some(number) = file.segment else { return Ok(false) };
    let flushed = core.ledger.flushed();
    let same_length = core.ledger.segments().iter().any(|segment| {
        let whole = segment.closed && Some(segment.last_log_id) <= flushed;
        segment.number == number && whole && SEGMENT_HEADER_BYTES + segment.stored_bytes == file.len
    });
    Ok(same_length && core.ledger.digest(number)? == file.digest)
}

/// See [`Database::read_file`].
pub(crate) fn read_file(db: &Database, range: &FileRange) -> Result<Bytes> {
    if !is_file_of_a_database(&range.path) {
        return Err(Error::NotInManifest { path: PathBuf::from(&range.path) });
    }
    let len = usize::try_from(range.len).map_err(|_| Error::NotInManifest { path: PathBuf::from(&range.path) })?;
    read_at(&*db.vfs, &db.dir.join(&range.path), range.offset, len)
}

/// See [`Database::install`].
pub(crate) fn install(db: &Database, manifest: &Manifest, staging: &Path) -> Result<()> {
    // Nothing is repaired or pruned meanwhile: that replaces files as well.
    let _alone = db.mending.lock();
    let _one_at_a_time = db.exclusive.lock();
    let old = db.core();
    let staged = verify(db, &old, manifest, staging)?;
    let relative_staging = relative(&db.dir, staging);
    let mut content = Vec::new();
    content.put_prefixed(relative_staging.as_bytes());
    content.put_varint(staged.len() as u64);
    for path in &staged {
        content.put_prefixed(path.as_bytes());
    }
    content.put_bytes(&manifest.encode());
    // Until the swap is over the old incarnation must not write any more.
    let _no_index_work = db.index_gate.lock();
    let mut applier = db.applier.lock();
    applier.must_be_sound()?;
    smallfile::write_atomic(&*db.vfs, &db.dir.join(INSTALL_NAME), INSTALL_MAGIC, &content)?;
    applier.fail();
    let mut marks = db.marks.lock();
    finish_install(&db.vfs, &db.dir, db.spec)?;
    *marks = Marks::open(&*db.vfs, &db.dir, db.spec.id)?;
    let (core, new_applier, _) = recover::attach(&db.vfs, &db.dir, db.spec, &db.options, &marks)?;
    let (tx, log_id) = (new_applier.state.tx, new_applier.state.applied);
    *db.core.write() = Arc::new(core);
    *applier = new_applier;
    // Of the files before.
    db.digests.clear();
    drop((applier, marks));
    if let Some(log_id) = log_id {
        db.waiting.advance(tx, log_id.index);
    }
    Ok(())
}

/// Checks that the manifest can replace what is here and that every file of it is staged, whole and as its digest says, or
/// here. Answers the staged paths; their bytes are durable when this returns.
fn verify(db: &Database, core: &Core, manifest: &Manifest, staging: &Path) -> Result<Vec<String>> {
    let own = core.applied().log_id;
    if manifest.database != db.spec.id {
        let (expected, found) = (db.spec.id, manifest.database);
        return Err(Error::ForeignDatabase { path: staging.to_path_buf(), expected, found });
    }
    if manifest.segment_bytes != db.spec.segment_bytes || manifest.derived_chunk_bytes != db.options.derived_chunk_bytes
    {
        let (expected, found) = (db.spec.segment_bytes, manifest.segment_bytes);
        return Err(Error::SegmentSizeMismatch { path: staging.to_path_buf(), expected, found });
    }
    if manifest.log_id < own {
        return Err(Error::InstallBehind { applied: own, manifest: manifest.log_id });
    }
    if staging.strip_prefix(&db.dir).is_err() {
        return Err(Error::NotInManifest { path: staging.to_path_buf() });
    }
    let mut staged = Vec::new();
    let mut folders = BTreeSet::from([staging.to_path_buf()]);
    for file in &manifest.files {
        let path = staging.join(&file.path);
        if !db.vfs.exists(&path).map_err(|e| Error::io(FileOp::Open, &path, e))? {
            if is_here(core, file)? {
                continue;
            }
            return Err(Error::NotInManifest { path });
        }
        let corrupted = |offset, damage| Error::Corrupted { path: path.clone(), segment: file.segment, offset, damage };
        let open = db.vfs.open(&path, OpenMode::ReadWrite).map_err(|e| Error::io(FileOp::Open, &path, e))?;
        if open.len().map_err(|e| Error::io(FileOp::Length, &path, e))? != file.len {
            return Err(corrupted(0, Damage::Length));
        }
        if read_at(&*db.vfs, &path, 0, file.head.len())? != file.head {
            return Err(corrupted(0, Damage::Field));
        }
        if hash_range(&*db.vfs, &path, file.head.len() as u64, file.len)? != file.digest {
            return Err(corrupted(file.head.len() as u64, Damage::Hash));
        }
        open.sync_data().map_err(|e| Error::io(FileOp::Sync, &path, e))?;
        folders.extend(path.parent().map(Path::to_path_buf));
        staged.push(file.path.clone());
    }
    for folder in folders {
        db.vfs.sync_dir(&folder).map_err(|e| Error::io(FileOp::SyncDir, &folder, e))?;
    }
    Ok(staged)
}

/// Carries out the swap that `install` describes, if there is one. May be repeated from any point.
pub(crate) fn finish_install(vfs: &Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec) -> Result<()> {
    let mark = dir.join(INSTALL_NAME);
    let Some(content) = smallfile::read(&**vfs, &mark, INSTALL_MAGIC)? else { return Ok(()) };
    let malformed =
        |at| Error::Corrupted { path: mark.clone(), segment: None, offset: at as u64, damage: Damage::Field };
    let mut reader = Reader::new(&content);
    let (staging, staged, manifest) = read_install(&mut reader).map_err(|Malformed| malformed(reader.at()))?;
    let manifest = Manifest::decode(manifest)?;
    if manifest.database != spec.id {
        return Err(Error::ForeignDatabase { path: mark, expected: spec.id, found: manifest.database });
    }
    let staging = dir.join(staging);
    for path in &staged {
        let (from, to) = (staging.join(path), dir.join(path));
        if vfs.exists(&from).map_err(|e| Error::io(FileOp::Open, &from, e))? {
            let folder = to.parent().expect("files are in folders of the database");
            vfs.create_dir_all(folder).map_err(|e| Error::io(FileOp::CreateDir, folder, e))?;
            vfs.rename(&from, &to).map_err(|e| Error::io(FileOp::Rename, &to, e))?;
        } else if !vfs.exists(&to).map_err(|e| Error::io(FileOp::Open, &to, e))? {
            // Neither came nor is it here: going on would make marks and checkpoint speak of what does not exist.
            return Err(Error::Corrupted { path: to, segment: None, offset: 0, damage: Damage::Missing });
        }
    }
    for folder in FOLDERS {
        remove_others(&**vfs, &dir.join(folder), folder, &manifest, &staged)?;
    }
    // It speaks of segments that may have been replaced by others.
    let pruned = dir.join(prune::MARK_NAME);
    if vfs.exists(&pruned).map_err(|e| Error::io(FileOp::Open, &pruned, e))? {
        vfs.remove_file(&pruned).map_err(|e| Error::io(FileOp::Remove, &pruned, e))?;
    }
    Marks::open(&**vfs, dir, spec.id)?.installed(manifest.log_id)?;
    let checkpoint = match is_planted(Plant::ForgetRequestsOnInstall) {
        true => without_requests(&manifest.checkpoint).map_err(|Malformed| malformed(0))?,
        false => manifest.checkpoint.clone(),
    };
    smallfile::write_atomic(&**vfs, &dir.join(CHECKPOINT_NAME), CHECKPOINT_MAGIC, &checkpoint)?;
    if vfs.exists(&staging).map_err(|e| Error::io(FileOp::Open, &staging, e))? {
        vfs.remove_dir_all(&staging).map_err(|e| Error::io(FileOp::Remove, &staging, e))?;
    }
    vfs.remove_file(&mark).map_err(|e| Error::io(FileOp::Remove, &mark, e))?;
    vfs.sync_dir(dir).map_err(|e| Error::io(FileOp::SyncDir, dir, e))
}

/// What [`Plant::ForgetRequestsOnInstall`] makes of a checkpoint.
fn without_requests(checkpoint: &[u8]) -> std::result::Result<Bytes, Malformed> {
    let Checkpoint { database, mut state, sizes } = Checkpoint::decode(checkpoint)?;
    state.requests = Requests::new(REQUEST_OUTCOMES_KEPT);
    Ok(Checkpoint::encode(database, &state, &sizes).into())
}

pub(crate) fn read_install<'a>(
    reader: &mut Reader<'a>,
) -> std::result::Result<(&'a str, Vec<String>, &'a [u8]), Malformed> {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Malformed);
    let staging = text(reader.prefixed()?)?;
    let mut staged = Vec::new();
    for _ in 0..reader.count(1)? {
        staged.push(text(reader.prefixed()?)?.to_owned());
    }
    let manifest = reader.take(reader.left())?;
    Ok((staging, staged, manifest))
}

/// Removes the files of a folder that are not of the manifest. What a segment's sidecar says is kept only with the segment
/// that was here before, and has a next one.
fn remove_others(vfs: &dyn Vfs, dir: &Path, folder: &str, manifest: &Manifest, staged: &[String]) -> Result<()> {
    vfs.create_dir_all(dir).map_err(|e| Error::io(FileOp::CreateDir, dir, e))?;
    for (name, _) in vfs.read_dir(dir).map_err(|e| Error::io(FileOp::ReadDir, dir, e))? {
        let path = format!("{folder}/{name}");
        let named = |path: &str| manifest.files.iter().any(|file| file.path == path);
        let keep = match path.strip_suffix(".idx") {
            Some(stem) => {
                let segment = format!("{stem}.seg");
                let last = manifest.files.iter().filter(|file| file.segment.is_some()).map(|file| &file.path).max();
                named(&segment) && !staged.contains(&segment) && last != Some(&segment)
            }
            None => named(&path),
        };
        if !keep {
            let path = dir.join(&name);
            vfs.remove_file(&path).map_err(|e| Error::io(FileOp::Remove, &path, e))?;
        }
    }
    vfs.sync_dir(dir).map_err(|e| Error::io(FileOp::SyncDir, dir, e))
}

/// `path` as a manifest writes it.
fn relative(dir: &Path, path: &Path) -> String {
    let below = path.strip_prefix(dir).unwrap_or(path);
    let parts: Vec<_> = below.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

fn read_at(vfs: &dyn Vfs, path: &Path, offset: u64, len: usize) -> Result<Bytes> {
    let file = vfs.open(path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, path, e))?;
    file.read_at(offset, len).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::Corrupted { path: path.to_path_buf(), segment: None, offset, damage: Damage::Missing }
        }
        _ => Error::io(FileOp::Read, path, e),
    })
}

/// SHA-256 of the bytes of a file from `from` to `to`.
pub(crate) fn hash_range(vfs: &dyn Vfs, path: &Path, from: u64, to: u64) -> Result<Digest> {
    let file = vfs.open(path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, path, e))?;
    let mut hasher = Hasher::new();
    let mut at = from;
    while at < to {
        let len = (to - at).min(COPY_BYTES as u64);
        let bytes = file.read_at(at, len as usize).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::Corrupted { path: path.to_path_buf(), segment: None, offset: at, damage: Damage::Missing }
            }
            _ => Error::io(FileOp::Read, path, e),
        })?;
        hasher.update(&bytes);
        at += len;
    }
    Ok(hasher.finish())
}
