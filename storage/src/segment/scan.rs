//! Walks over the frames of a segment file, in bounded memory.

use std::path::Path;

use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::LogId;
use bytes::Bytes;

use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{self, FramePrefix, SEGMENT_HEADER_BYTES};
use crate::vfs::File;

/// How much is read at once, bytes; a longer frame is read whole.
const CHUNK_BYTES: u64 = 1 << 20;

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

struct Window<'a> {
    file: &'a dyn File,
    path: &'a Path,
    end: u64,
    chunk: Bytes,
    chunk_at: u64,
}

impl Window<'_> {
    /// `len` bytes at `at`, or `None` when they go beyond the end.
    fn get(&mut self, at: u64, len: usize) -> Result<Option<Bytes>> {
        if self.end.saturating_sub(at) < len as u64 {
            return Ok(None);
        }
        let inside = at >= self.chunk_at && at + len as u64 <= self.chunk_at + self.chunk.len() as u64;
        if !inside {
            let want = CHUNK_BYTES.max(len as u64).min(self.end - at);
            let want = usize::try_from(want).expect("a chunk is as long as a frame at most");
            self.chunk = self.file.read_at(at, want).map_err(|e| Error::io(FileOp::Read, self.path, e))?;
            self.chunk_at = at;
        }
        let start = usize::try_from(at - self.chunk_at).expect("the chunk is in memory");
        Ok(Some(self.chunk.slice(start..start + len)))
    }
}

/// Whether a frame with log id `found` may stand behind `last`; the first frame must be the one the header names.
fn follows(first: LogId, last: Option<LogId>, found: LogId) -> bool {
    match last {
        None => found == first,
        Some(last) => Some(found.index) == last.index.next() && found.term >= last.term,
    }
}

/// Scans frames from the header up to byte `end` of the file, which must not be longer than the file.
pub(super) fn scan(file: &dyn File, path: &Path, first_log_id: LogId, end: u64) -> Result<Scan> {
    let mut window = Window { file, path, end, chunk: Bytes::new(), chunk_at: 0 };
    let mut scan = Scan { offsets: Vec::new(), last_log_id: None, frame_bytes: 0, hasher: Hasher::new(), damage: None };
    loop {
        let at = SEGMENT_HEADER_BYTES + scan.frame_bytes;
        if at >= end {
            return Ok(scan);
        }
        let total = match window.get(at, format::FRAME_PREFIX_BYTES)? {
            Some(prefix) => format::frame_prefix(&prefix),
            // Too short for a frame: padding, or something cut off.
            None => {
                let rest = usize::try_from(end - at).expect("shorter than a prefix");
                let zeros = window.get(at, rest)?.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
                if zeros { Ok(FramePrefix::Nothing) } else { Err(Damage::Missing) }
            }
        };
        let frame = match total {
            Ok(FramePrefix::Nothing) => return Ok(scan),
            Ok(FramePrefix::Frame(total)) => window.get(at, total)?.ok_or(Damage::Missing),
            Err(damage) => Err(damage),
        };
        let decoded = frame.and_then(|bytes| format::decode_frame(&bytes).map(|(frame, _)| (frame, bytes)));
        let offset = u32::try_from(scan.frame_bytes).map_err(|_| Damage::Length);
        match decoded.and_then(|found| Ok((found, offset?))) {
            Ok(((frame, bytes), offset)) if follows(first_log_id, scan.last_log_id, frame.log_id) => {
                scan.offsets.push(offset);
                scan.last_log_id = Some(frame.log_id);
                scan.frame_bytes += bytes.len() as u64;
                scan.hasher.update(&bytes);
            }
            Ok(_) => scan.damage = Some(Damage::Sequence),
            Err(damage) => scan.damage = Some(damage),
        }
        if scan.damage.is_some() {
            return Ok(scan);
        }
    }
}

/// Bytes from `from` to the last byte of the file that is not zero.
pub(super) fn bytes_before_zeros(file: &dyn File, path: &Path, from: u64, len: u64) -> Result<u64> {
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
