//! Offline checks of a data folder. Read-only: opens no database, cuts and repairs nothing.
//!
//! [`check`] derives everything again from the segments, with the code that applies, and compares each transaction record,
//! commit record, hash and seal with the files, in bounded memory but for the keys: what was found equal is read from the
//! files from then on. The keys come last: every block of the index is read, and each run must hold the versions of the keys
//! that its transactions wrote and no others. [`seals`] hashes the sealed segments alone.
//!
//! Behind what a checkpoint covers there is nothing to compare with: derived logs are cut to it at the next open. Frames
//! there are checked by their own checksums and order.

mod replay;
pub(crate) mod resume;
mod walker;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{DatabaseId, LogIndex, TxId};

use crate::checkpoint;
use crate::chunklog::ChunkLog;
use crate::error::{Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::format::derived::LogKind;
use crate::seal::SealLog;
use crate::segment::segment_generation;
use crate::transfer::hash_range;
use crate::vfs::{FileKind, OpenMode, Vfs};

/// One thing that is wrong.
#[derive(Debug)]
pub struct Finding {
    /// The first transaction that it concerns; `None` when that cannot be told.
    pub tx: Option<TxId>,
    /// The log entry at or in which it was found.
    pub log_index: Option<LogIndex>,
    /// Where the frame stands from which the transaction was derived: segment file and first byte of the frame.
    pub derived_from: Option<(PathBuf, u64)>,
    /// What is wrong, with file and offset.
    pub error: Error,
}

impl Finding {
    /// The file.
    pub fn path(&self) -> Option<&Path> {
        self.error.damaged_path()
    }

    /// First byte of the damaged structure in the file.
    pub fn offset(&self) -> Option<u64> {
        self.error.damaged_offset()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tx) = self.tx {
            write!(f, "transaction {tx}: ")?;
        }
        if let Some(index) = self.log_index {
            write!(f, "log entry {index}: ")?;
        }
        write!(f, "{}", self.error)?;
        if let Some((path, at)) = &self.derived_from {
            write!(f, " (derived from {} byte {at})", path.display())?;
        }
        Ok(())
    }
}

/// What [`check`] found.
#[derive(Debug, Default)]
pub struct Checked {
    /// The database, as far as a file names it.
    pub database: Option<DatabaseId>,
    /// Transactions that were derived again and are what the files hold.
    pub txs: u64,
    /// Segments whose frames were read.
    pub segments: u64,
    /// Sealed segments that were compared with their seals.
    pub sealed: u64,
    /// Runs of the index that are whole and hold what the ledger gives.
    pub index_runs: u64,
    /// Frames behind the checkpoint: whole and in order; there is nothing to compare them with.
    pub uncompared_frames: u64,
    /// Bytes of a torn tail: what a crash leaves; cut at the next open.
    pub torn_bytes: u64,
    /// Files that a crash may leave unfinished and that are made again at the next open: sidecars, a place of `marks`,
    /// runs of the index that its manifest does not name.
    pub unfinished: Vec<PathBuf>,
    /// The check went to the end and was not stopped by its caller.
    pub complete: bool,
    /// Transactions that an earlier, interrupted check had done.
    pub resumed_after: u64,
    /// What is wrong, in the order of the ledger; the first one that names a transaction is the first bad one.
    pub findings: Vec<Finding>,
}

impl Checked {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// The finding that names the first bad transaction.
    pub fn first_bad_tx(&self) -> Option<&Finding> {
        self.findings.iter().filter(|finding| finding.tx.is_some()).min_by_key(|finding| finding.tx)
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of segments and of the index read.
    pub bytes_done: u64,
    /// Bytes of all segments and of the index.
    pub bytes_total: u64,
    /// Newest transaction derived again.
    pub tx: TxId,
}

/// Derives everything in `dir` again from its segments and compares it with what the files hold. `progress` is called after
/// every few frames; when it answers false the check ends with what it has found so far.
///
/// With `position`, a file outside the database's folder, the check remembers after each segment how far it came and goes
/// on from there when it was interrupted; the file is removed at the end. What was found sound before is not looked at again.
///
/// # Errors
/// [`Error::NoDatabase`] for a folder without checkpoint and ledger, [`Error::Io`] of kind `WouldBlock` when the database is
/// open, [`Error::Unfinished`] for an interrupted install, [`Error::UnsupportedVersion`]; IO. Damage is no error but a
/// finding.
pub fn check(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    position: Option<&Path>,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Checked> {
    let lock = dir.join("lock");
    let _nobody_else = if vfs.exists(&lock).map_err(|e| Error::io(FileOp::Open, &lock, e))? {
        Some(vfs.lock(&lock).map_err(|e| Error::io(FileOp::Lock, &lock, e))?)
    } else {
        None
    };
    walker::Walker::start(vfs, dir, position)?.run(progress)
}

/// What was found about one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentVerdict {
    /// Its number.
    pub segment: u64,
    /// Its file.
    pub path: PathBuf,
    /// Digest in the seal.
    pub sealed: Digest,
    /// Digest of the bytes on disk; `None` when the file is missing, too short to have frames, or its
    /// header is damaged.
    pub found: Option<Digest>,
    /// Generation in the seal.
    pub sealed_generation: u32,
    /// Generation that the file says it is.
    pub found_generation: u32,
}

impl SegmentVerdict {
    /// Whether the bytes on disk are the sealed ones, or of a generation for which there is no seal (yet).
    pub fn is_sound(&self) -> bool {
        self.found == Some(self.sealed) || (self.found.is_some() && self.is_of_another_generation())
    }

    /// Whether the file was pruned and that generation is not sealed yet, or the other way round: no digest to compare with.
    pub fn is_of_another_generation(&self) -> bool {
        self.found_generation != self.sealed_generation
    }
}

/// What [`seals`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Every sealed segment, by number.
    pub segments: Vec<SegmentVerdict>,
    /// Segments on disk for which the checkpoint has no seal yet; they were not checked.
    pub unsealed: u64,
}

impl Report {
    /// Whether every sealed segment is what was sealed.
    pub fn is_sound(&self) -> bool {
        self.segments.iter().all(SegmentVerdict::is_sound)
    }
}

/// Computes the digest of each sealed segment of the database in `dir` from its file, and compares it with the seal.
/// `progress` is called after each segment with how many are done and how many there are.
pub fn seals(vfs: &Arc<dyn Vfs>, dir: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Report> {
    let Some(checkpoint) = checkpoint::read(&**vfs, dir, None)? else {
        return Err(Error::NoDatabase { dir: dir.into() });
    };
    let log = ChunkLog::open_read_only(
        vfs,
        dir.join("seal"),
        LogKind::Seal,
        checkpoint.database,
        checkpoint.sizes.chunk,
        checkpoint.sizes.seal,
    );
    let sealed = SealLog::open(log)?.digests();
    let ledger = dir.join("ledger");
    let names = vfs.read_dir(&ledger).map_err(|e| Error::io(FileOp::ReadDir, &ledger, e))?;
    let on_disk = names.iter().filter(|(name, kind)| *kind == FileKind::File && name.ends_with(".seg")).count();
    let total = sealed.len() as u64;
    let mut report = Report { unsealed: (on_disk as u64).saturating_sub(total), ..Report::default() };
    for (done, (segment, (sealed_generation, sealed))) in (1u64..).zip(sealed) {
        let path = ledger.join(format!("{segment:010}.seg"));
        let (found_generation, found) = digest_on_disk(&**vfs, segment, &path)?;
        let verdict = SegmentVerdict { segment, path, sealed, found, sealed_generation, found_generation };
        report.segments.push(verdict);
        progress(done, total);
    }
    Ok(report)
}

/// Generation and digest. A closed segment's file ends with its last frame, or with the table of what was pruned.
fn digest_on_disk(vfs: &dyn Vfs, segment: u64, path: &Path) -> Result<(u32, Option<Digest>)> {
    let file = match vfs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((0, None)),
        Err(e) => return Err(Error::io(FileOp::Open, path, e)),
    };
    let len = file.len().map_err(|e| Error::io(FileOp::Length, path, e))?;
    if len <= SEGMENT_HEADER_BYTES {
        return Ok((0, None));
    }
    let Some(generation) = segment_generation(&*file, segment, path)? else { return Ok((0, None)) };
    Ok((generation, Some(hash_range(vfs, path, SEGMENT_HEADER_BYTES, len)?)))
}
