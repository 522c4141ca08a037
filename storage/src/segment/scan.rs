//! What a whole segment file holds.

use std::path::Path;

use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::LogId;

use super::walk::{CHUNK_BYTES, Step, Walk};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::vfs::File;

/// The good frames at the start of a segment.
#[derive(Debug)]
pub(super) struct Scan {
    /// Offset of each frame from the first one.
    pub offsets: Vec<u32>,
    /// Of the last frame; `None` without frames.
    pub last_log_id: Option<LogId>,
    /// Bytes of the frames.
    pub frame_bytes: u64,
    /// Over the bytes of the frames.
    pub hasher: Hasher,
    /// Why no frame follows, if not for zeros or the end of what was to be scanned.
    pub damage: Option<Damage>,
}

/// Scans frames from the header up to byte `end` of the file, which must not be longer than the file.
pub(super) fn scan(file: &dyn File, path: &Path, first_log_id: LogId, end: u64) -> Result<Scan> {
    let mut walk = Walk::new(file, path, first_log_id, end);
    let mut scan = Scan { offsets: Vec::new(), last_log_id: None, frame_bytes: 0, hasher: Hasher::new(), damage: None };
    loop {
        match walk.next()? {
            Step::Frame { at, frame, bytes } => {
                let Ok(offset) = u32::try_from(at - SEGMENT_HEADER_BYTES) else {
                    scan.damage = Some(Damage::Length);
                    return Ok(scan);
                };
                scan.offsets.push(offset);
                scan.last_log_id = Some(frame.log_id);
                scan.frame_bytes += bytes.len() as u64;
                scan.hasher.update(&bytes);
            }
            Step::End => return Ok(scan),
            Step::Bad(damage) => {
                scan.damage = Some(damage);
                return Ok(scan);
            }
        }
    }
}

/// Bytes from `from` to the last byte of the file that is not zero.
pub(crate) fn bytes_before_zeros(file: &dyn File, path: &Path, from: u64, len: u64) -> Result<u64> {
    let mut end = len;
    while end > from {
        let start = end.saturating_sub(CHUNK_BYTES).max(from);
        let chunk_len = usize::try_from(end - start).expect("a chunk fits into memory");
        let chunk = file.read_at(start, chunk_len).map_err(|e| Error::io(FileOp::Read, path, e))?;
        if let Some(last) = chunk.iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1 - from);
        }
        end = start;
    }
    Ok(0)
}
