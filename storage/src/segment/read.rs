//! Reading: from the tail in memory, else from disk, without a lock across IO.
//!
//! A cut may come in between: what was located is then gone, half zeroed or written over. So each read remembers the cut epoch
//! in which it began and, when that has passed, throws its result away, good or bad, and starts again.

use alhambra_ledger::digest::{Digest, Hasher};
use alhambra_ledger::ids::{LogId, LogIndex};
use bytes::Bytes;

use super::state::{self, OnDisk, Stretch};
use super::{Frame, Ledger, Position, SegmentInfo};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{self, SEGMENT_HEADER_BYTES};
use crate::transfer::hash_range;

/// How much is read at once where a whole segment is hashed, bytes.
const HASH_READ_BYTES: u64 = 1 << 20;

impl Ledger {
    /// Frames from `from` on, in order, up to `to_exclusive` or the end of the ledger, as many as fit into `bytes_max` (head
    /// and payload counted), but at least one when there is one. Empty when the ledger does not hold `from`. Never waits
    /// for a sync.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when a frame's checksum or log id is wrong; IO.
    pub fn read(&self, from: LogIndex, to_exclusive: LogIndex, bytes_max: usize) -> Result<Vec<(Position, Frame)>> {
        loop {
            let epoch = self.state.lock().cut_epoch;
            let frames = self.try_read(epoch, from, to_exclusive, bytes_max);
            // A cut while reading: what was read may be gone or half zeroed. It is not the disk's fault.
            if self.state.lock().cut_epoch == epoch {
                return frames;
            }
        }
    }

    fn try_read(
        &self,
        epoch: u64,
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<(Position, Frame)>> {
        let mut out = Vec::new();
        let mut next = from;
        let mut bytes_left = bytes_max;
        while next < to_exclusive {
            let on_disk = {
                let state = self.state.lock();
                if state.cut_epoch != epoch {
                    return Ok(out);
                }
                if state.in_tail(next) {
                    state.read_tail(next, to_exclusive, bytes_left, &mut out);
                    return Ok(out);
                }
                match state.locate(next, to_exclusive, bytes_left) {
                    None => return Ok(out),
                    Some(on_disk) => on_disk,
                }
            };
            let Stretch { start, end, frame_count, segment } = match on_disk {
                OnDisk::Bytes(stretch) => stretch,
                OnDisk::InSidecar { segment } => {
                    let offsets = self.readers.offsets(&self.layout, &segment, epoch)?;
                    state::within(&segment, segment.frame_bytes, &offsets, next, to_exclusive, bytes_left)
                }
            };
            let bytes = usize::try_from(end - start).expect("a read is bounded by a budget or a frame");
            if bytes > bytes_left && !out.is_empty() {
                return Ok(out);
            }
            let chunk = self.read_segment(&segment, start, bytes, epoch)?;
            self.decode(&segment, start, &chunk, next, frame_count, &mut out)?;
            next = LogIndex(next.0 + frame_count as u64);
            bytes_left = bytes_left.saturating_sub(bytes);
        }
        Ok(out)
    }

    fn read_segment(&self, segment: &SegmentInfo, start: u64, len: usize, epoch: u64) -> Result<Bytes> {
        let file = self.readers.file(&self.layout, segment.number, epoch)?;
        file.read_at(SEGMENT_HEADER_BYTES + start, len).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                self.layout.corrupted(segment.number, SEGMENT_HEADER_BYTES + start, Damage::Missing)
            }
            _ => {
                self.suspect(segment.number);
                Error::io(FileOp::Read, &self.layout.segment_path(segment.number), e)
            }
        })
    }

    /// Takes `frame_count` frames out of bytes read at `start` of a segment.
    fn decode(
        &self,
        segment: &SegmentInfo,
        start: u64,
        chunk: &Bytes,
        first: LogIndex,
        frame_count: usize,
        out: &mut Vec<(Position, Frame)>,
    ) -> Result<()> {
        let mut at = 0;
        for index in (first.0..).map(LogIndex).take(frame_count) {
            let offset = start + at as u64;
            let decoded = match format::decode_frame(&chunk.slice(at..)) {
                Ok((frame, _)) if frame.log_id.index != index => Err(Damage::Sequence),
                decoded => decoded,
            };
            let (frame, bytes) = decoded
                .map_err(|damage| self.layout.corrupted(segment.number, SEGMENT_HEADER_BYTES + offset, damage))?;
            out.push((Position(segment.first_offset.0 + offset), frame));
            at += bytes;
        }
        Ok(())
    }

    /// `len` bytes at a position within one frame, as they stand on disk or in memory: the frame's checksum is not looked
    /// at, so whoever reads a value compares its hash (`S4`).
    ///
    /// # Errors
    /// [`Error::NoSuchBytes`] when the ledger does not hold them within one segment, IO.
    pub fn read_bytes(&self, position: Position, len: usize) -> Result<Bytes> {
        let no_such_bytes = || Error::NoSuchBytes { position: position.0, len: len as u64 };
        loop {
            let (segment, epoch) = {
                let state = self.state.lock();
                if let Some(found) = state.read_tail_bytes(position, len) {
                    return found;
                }
                let after = state.segments.partition_point(|segment| segment.first_offset <= position.0);
                let segment = after.checked_sub(1).and_then(|at| state.segments.get(at)).ok_or_else(no_such_bytes)?;
                let end = position.0.checked_add(len as u64).ok_or_else(no_such_bytes)?;
                if end > segment.first_offset + segment.flushed_bytes {
                    return Err(no_such_bytes());
                }
                (segment.info(), state.cut_epoch)
            };
            let bytes = self.read_segment(&segment, position.0 - segment.first_offset.0, len, epoch);
            if self.state.lock().cut_epoch == epoch {
                return bytes;
            }
        }
    }

    /// Log id of the frame at `index`; `None` when the ledger does not hold it. May read from disk.
    ///
    /// # Errors
    /// As `read`.
    pub fn log_id(&self, index: LogIndex) -> Result<Option<LogId>> {
        {
            let state = self.state.lock();
            let ends = state.segments.iter().rev().take(1).flat_map(|s| [s.first_log_id, s.last_log_id]);
            if let Some(log_id) = ends.into_iter().find(|log_id| log_id.index == index) {
                return Ok(Some(log_id));
            }
        }
        let Some(next) = index.next() else { return Ok(None) };
        Ok(self.read(index, next, 0)?.first().map(|(_, frame)| frame.log_id))
    }

    /// Position of the frame at `index`; `None` when the ledger does not hold it. May read a sidecar.
    ///
    /// # Errors
    /// As `read`.
    pub fn position(&self, index: LogIndex) -> Result<Option<Position>> {
        loop {
            let (segment, epoch) = {
                let state = self.state.lock();
                let Some(segment) = state.segment_of(index) else { return Ok(None) };
                let info = segment.info();
                if let Some(offsets) = &segment.offsets {
                    return Ok(nth_position(&info, offsets, index));
                }
                (info, state.cut_epoch)
            };
            let offsets = self.readers.offsets(&self.layout, &segment, epoch);
            if self.state.lock().cut_epoch == epoch {
                return Ok(nth_position(&segment, &offsets?, index));
            }
        }
    }

    /// Digest of a segment from what stands on disk now, up to what is flushed; checksums are not looked at.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when the segment has no file, [`Error::Corrupted`] when it is too short, IO.
    pub fn recompute_digest(&self, number: u64) -> Result<Digest> {
        loop {
            let (segment, flushed_bytes, epoch) = {
                let state = self.state.lock();
                let at = usize::try_from(number).ok();
                let segment = at.and_then(|at| state.segments.get(at)).filter(|segment| segment.flushed_bytes > 0);
                let segment = segment.ok_or(Error::NoSuchSegment { number })?;
                (segment.info(), segment.flushed_bytes, state.cut_epoch)
            };
            let digest = self.hash_segment(&segment, flushed_bytes, epoch);
            if self.state.lock().cut_epoch == epoch {
                return digest;
            }
        }
    }

    fn hash_segment(&self, segment: &SegmentInfo, bytes: u64, epoch: u64) -> Result<Digest> {
        if segment.generation > 0 {
            let path = self.layout.segment_path(segment.number);
            let end = SEGMENT_HEADER_BYTES + segment.stored_bytes;
            return hash_range(&*self.layout.vfs, &path, SEGMENT_HEADER_BYTES, end);
        }
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < bytes {
            let piece = usize::try_from(HASH_READ_BYTES.min(bytes - at)).expect("a small constant");
            hasher.update(&self.read_segment(segment, at, piece, epoch)?);
            at += piece as u64;
        }
        Ok(hasher.finish())
    }
}

fn nth_position(segment: &SegmentInfo, offsets: &[u32], index: LogIndex) -> Option<Position> {
    let n = usize::try_from(index.0.checked_sub(segment.first_log_id.index.0)?).ok()?;
    Some(Position(segment.first_offset.0 + u64::from(*offsets.get(n)?)))
}
