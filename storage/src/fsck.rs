//! Offline checks of a data folder. Read-only: opens no database, cuts and repairs nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;

use crate::checkpoint;
use crate::chunklog::ChunkLog;
use crate::error::{Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::format::derived::LogKind;
use crate::seal::SealLog;
use crate::transfer::hash_range;
use crate::vfs::{FileKind, OpenMode, Vfs};

/// What was found about one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentVerdict {
    /// Its number.
    pub segment: u64,
    /// Its file.
    pub path: PathBuf,
    /// Digest in the seal.
    pub sealed: Digest,
    /// Digest of the bytes on disk; `None` when the file is missing or too short to have frames.
    pub found: Option<Digest>,
}

impl SegmentVerdict {
    /// Whether the bytes on disk are the sealed ones.
    pub fn is_sound(&self) -> bool {
        self.found == Some(self.sealed)
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
    )?;
    let sealed = SealLog::open(log)?.digests();
    let ledger = dir.join("ledger");
    let names = vfs.read_dir(&ledger).map_err(|e| Error::io(FileOp::ReadDir, &ledger, e))?;
    let on_disk = names.iter().filter(|(name, kind)| *kind == FileKind::File && name.ends_with(".seg")).count();
    let total = sealed.len() as u64;
    let mut report = Report { unsealed: (on_disk as u64).saturating_sub(total), ..Report::default() };
    for (done, (segment, sealed)) in (1u64..).zip(sealed) {
        let path = ledger.join(format!("{segment:010}.seg"));
        let found = digest_on_disk(&**vfs, &path)?;
        report.segments.push(SegmentVerdict { segment, path, sealed, found });
        progress(done, total);
    }
    Ok(report)
}

/// A closed segment's file ends with its last frame.
fn digest_on_disk(vfs: &dyn Vfs, path: &Path) -> Result<Option<Digest>> {
    let file = match vfs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(FileOp::Open, path, e)),
    };
    let len = file.len().map_err(|e| Error::io(FileOp::Length, path, e))?;
    if len <= SEGMENT_HEADER_BYTES {
        return Ok(None);
    }
    hash_range(vfs, path, SEGMENT_HEADER_BYTES, len).map(Some)
}
