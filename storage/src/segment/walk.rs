//! Steps over the frames of a segment file, one at a time, in bounded memory. Knows nothing of the ledger that is open: who
//! opens one, who scrubs it and who checks a stopped one walk alike.

use std::path::Path;

use alhambra_ledger::ids::LogId;
use bytes::Bytes;

use super::Frame;
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{self, FramePrefix, SEGMENT_HEADER_BYTES};
use crate::vfs::File;

/// How much is read at once, bytes; a longer frame is read whole.
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;

/// What stands where a frame may stand.
#[derive(Debug)]
pub(crate) enum Step {
    /// A whole frame that continues the ones before.
    Frame {
        /// Its first byte in the file.
        at: u64,
        /// The frame.
        frame: Frame,
        /// Its bytes, head included.
        bytes: Bytes,
    },
    /// Zeros, or the end of what was to be walked.
    End,
    /// Something else.
    Bad(Damage),
}

/// A place in a segment file.
pub(crate) struct Walk<'a> {
    file: &'a dyn File,
    path: &'a Path,
    /// Where to stop; not beyond the end of the file.
    end: u64,
    at: u64,
    first: LogId,
    last: Option<LogId>,
    chunk: Bytes,
    chunk_at: u64,
}

impl<'a> Walk<'a> {
    /// Starts at the first frame, whose log id the header names, and goes up to byte `end` of the file.
    pub(crate) fn new(file: &'a dyn File, path: &'a Path, first: LogId, end: u64) -> Self {
        Self { file, path, end, at: SEGMENT_HEADER_BYTES, first, last: None, chunk: Bytes::new(), chunk_at: 0 }
    }

    /// Starts behind the frame `last`, which ends at byte `at`.
    pub(crate) fn go_on(mut self, at: u64, last: Option<LogId>) -> Self {
        (self.at, self.last) = (at, last);
        self
    }

    /// Byte behind the last frame.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Log id of the last frame.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.last
    }

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

    /// Goes on to the next frame. Stays where it is when there is none.
    pub(crate) fn next(&mut self) -> Result<Step> {
        let at = self.at;
        if at >= self.end {
            return Ok(Step::End);
        }
        let total = match self.get(at, format::FRAME_PREFIX_BYTES)? {
            Some(prefix) => format::frame_prefix(&prefix),
            // Too short for a frame: padding, or something cut off.
            None => {
                let rest = usize::try_from(self.end - at).expect("shorter than a prefix");
                let zeros = self.get(at, rest)?.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
                if zeros { Ok(FramePrefix::Nothing) } else { Err(Damage::Missing) }
            }
        };
        let bytes = match total {
            Ok(FramePrefix::Nothing) => return Ok(Step::End),
            Ok(FramePrefix::Frame(total)) => self.get(at, total)?.ok_or(Damage::Missing),
            Err(damage) => Err(damage),
        };
        let decoded = bytes.and_then(|bytes| format::decode_frame(&bytes).map(|(frame, _)| (frame, bytes)));
        Ok(match decoded {
            Ok((frame, bytes)) if self.follows(frame.log_id) => {
                self.at += bytes.len() as u64;
                self.last = Some(frame.log_id);
                Step::Frame { at, frame, bytes }
            }
            Ok(_) => Step::Bad(Damage::Sequence),
            Err(damage) => Step::Bad(damage),
        })
    }

    /// Whether a frame with log id `found` may stand here; the first frame must be the one the header names.
    fn follows(&self, found: LogId) -> bool {
        match self.last {
            None => found == self.first,
            Some(last) => Some(found.index) == last.index.next() && found.term >= last.term,
        }
    }
}
