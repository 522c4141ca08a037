//! What is known in memory: the table of segments and the tail of frames. No IO here, so its lock is held for
//! microseconds and neither staging nor reading waits for a disk.
//!
//! ```text
//!   first frame .......... flushed .......... last staged
//!   |<-- on disk ----------->|<-- in the tail only -->|
//!                 |<-- tail: a suffix of the log ---->|
//! ```

use std::collections::VecDeque;

use alhambra_ledger::digest::Digest;
use alhambra_ledger::ids::{LogId, LogIndex};
use bytes::Bytes;

use super::{Frame, Position, SegmentInfo};
use crate::error::{Error, Result};
use crate::format::{self, FRAME_HEAD_BYTES, SegmentHeader};
use crate::limits;
use crate::plant::{Plant, is_planted};

/// One segment, from the moment its first frame is staged.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub first_offset: u64,
    pub first_log_id: LogId,
    pub last_log_id: LogId,
    pub frame_bytes: u64,
    /// How much of `frame_bytes` has been flushed; 0 when there is no file yet.
    pub flushed_bytes: u64,
    /// Offset of each frame from the first; `None` when it is read from the sidecar.
    pub offsets: Option<Vec<u32>>,
    /// Of a closed segment.
    pub digest: Option<Digest>,
    /// See [`SegmentInfo::generation`].
    pub generation: u32,
    /// Bytes behind the header of a pruned segment's file, and how many values it has lost.
    pub pruned_bytes: u64,
    pub hole_count: u32,
}

impl Segment {
    /// A closed one, as far as its header describes it.
    pub fn pruned(header: &SegmentHeader) -> Self {
        Self {
            number: header.number,
            first_offset: header.first_offset,
            first_log_id: header.first_log_id,
            last_log_id: header.first_log_id,
            frame_bytes: header.frame_bytes,
            flushed_bytes: header.frame_bytes,
            offsets: None,
            digest: None,
            generation: header.generation,
            pruned_bytes: header.stored_bytes(0),
            hole_count: header.hole_count,
        }
    }

    pub fn end_offset(&self) -> u64 {
        self.first_offset + self.frame_bytes
    }

    pub fn info(&self) -> SegmentInfo {
        SegmentInfo {
            number: self.number,
            first_offset: Position(self.first_offset),
            first_log_id: self.first_log_id,
            last_log_id: self.last_log_id,
            frame_bytes: self.frame_bytes,
            closed: self.digest.is_some(),
            generation: self.generation,
            stored_bytes: if self.generation == 0 { self.frame_bytes } else { self.pruned_bytes },
            hole_count: self.hole_count,
        }
    }
}

#[derive(Debug)]
struct TailFrame {
    position: u64,
    frame: Frame,
}

impl TailFrame {
    fn bytes(&self) -> u64 {
        format::frame_bytes(self.frame.payload.len())
    }
}

/// Frames of one segment that wait to be written.
#[derive(Debug)]
pub(super) struct Batch {
    pub segment: SegmentInfo,
    /// Offset of the first of them in its segment.
    pub start: u64,
    pub frames: Vec<Frame>,
}

/// Where the frames of a range stand on disk.
#[derive(Debug)]
pub(super) enum OnDisk {
    /// Here.
    Bytes(Stretch),
    /// The segment's sidecar must be asked.
    InSidecar { segment: SegmentInfo },
}

/// `frame_count` frames in these bytes of the segment, counted from its first frame.
#[derive(Debug)]
pub(super) struct Stretch {
    pub segment: SegmentInfo,
    pub start: u64,
    pub end: u64,
    pub frame_count: usize,
}

#[derive(Debug)]
pub(super) struct State {
    segment_bytes: u64,
    /// `segments[n]` has number n.
    pub segments: Vec<Segment>,
    pub flushed: Option<LogId>,
    /// One more for each cut that reached the disk, and for each file that took the place of another. Who read from disk without the lock and finds another epoch
    /// afterwards has to start again.
    pub cut_epoch: u64,
    /// Of the last frame of the newest segment that was pruned.
    pub pruned_through: Option<LogId>,
    tail: VecDeque<TailFrame>,
    tail_bytes: u64,
    tail_bytes_max: u64,
}

impl State {
    /// All segments are flushed.
    pub fn new(segment_bytes: u64, tail_bytes_max: usize, segments: Vec<Segment>) -> Self {
        let flushed = segments.last().map(|segment| segment.last_log_id);
        let tail_bytes_max = tail_bytes_max as u64;
        let pruned_through = segments.iter().rev().find(|s| s.generation > 0).map(|s| s.last_log_id);
        Self {
            segment_bytes,
            segments,
            flushed,
            cut_epoch: 0,
            pruned_through,
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_bytes_max,
        }
    }

    pub fn first_index(&self) -> Option<LogIndex> {
        self.segments.first().map(|segment| segment.first_log_id.index)
    }

    pub fn last_log_id(&self) -> Option<LogId> {
        self.segments.last().map(|segment| segment.last_log_id)
    }

    pub fn end_offset(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end_offset)
    }

    /// Adds all of the frames or, when one does not follow, none.
    pub fn stage(&mut self, frames: &[Frame]) -> Result<Vec<Position>> {
        let mut last = self.last_log_id();
        for frame in frames {
            let found = frame.log_id;
            let follows = match last {
                None => true,
                Some(last) => Some(found.index) == last.index.next() && found.term >= last.term,
            };
            if !follows {
                return Err(Error::NotNext { last, found });
            }
            let len = frame.payload.len();
            if len > limits::FRAME_PAYLOAD_BYTES_MAX {
                return Err(Error::FrameTooLong { len, max: limits::FRAME_PAYLOAD_BYTES_MAX });
            }
            last = Some(found);
        }
        Ok(frames.iter().map(|frame| self.push(frame)).collect())
    }

    fn push(&mut self, frame: &Frame) -> Position {
        let bytes = format::frame_bytes(frame.payload.len());
        let position = self.end_offset();
        // The one rule of rolling. It looks at offsets only, so all replicas close the same segments.
        let rolls = self.segments.last().is_none_or(|segment| segment.frame_bytes + bytes > self.segment_bytes);
        if rolls {
            self.segments.push(Segment {
                number: self.segments.len() as u64,
                first_offset: position,
                first_log_id: frame.log_id,
                last_log_id: frame.log_id,
                frame_bytes: 0,
                flushed_bytes: 0,
                offsets: Some(Vec::new()),
                digest: None,
                generation: 0,
                pruned_bytes: 0,
                hole_count: 0,
            });
        }
        let segment = self.segments.last_mut().expect("a segment was added when there was none");
        let offset = u32::try_from(segment.frame_bytes).expect("SEGMENT_BYTES_MAX keeps offsets below 32 bits");
        segment.offsets.as_mut().expect("the last segment keeps its offsets in memory").push(offset);
        segment.frame_bytes += bytes;
        segment.last_log_id = frame.log_id;
        self.tail.push_back(TailFrame { position, frame: frame.clone() });
        self.tail_bytes += bytes;
        Position(position)
    }

    /// Frames after the flushed one, by segment, in order.
    pub fn unflushed(&self) -> Vec<Batch> {
        let first = match (self.flushed, self.first_index()) {
            (Some(flushed), _) => flushed.index.0 + 1,
            (None, Some(first)) => first.0,
            (None, None) => return Vec::new(),
        };
        let from = self.tail.partition_point(|cached| cached.frame.log_id.index.0 < first);
        let mut frames = self.tail.range(from..);
        let waiting = self.segments.iter().filter(|segment| segment.flushed_bytes < segment.frame_bytes);
        waiting
            .map(|segment| {
                let count = usize::try_from(segment.last_log_id.index.0 + 1 - first.max(segment.first_log_id.index.0))
                    .expect("staged frames are in memory");
                let frames = frames.by_ref().take(count).map(|cached| cached.frame.clone()).collect();
                Batch { segment: segment.info(), start: segment.flushed_bytes, frames }
            })
            .collect()
    }

    /// A closed segment has another file now; what memory holds of it as it was appended goes as well. Whoever reads the
    /// old file throws its result away.
    pub fn set_rewritten(
        &mut self,
        number: u64,
        header: &SegmentHeader,
        pruned_bytes: u64,
        digest: Digest,
    ) -> SegmentInfo {
        self.cut_epoch += 1;
        let segment = self.segment_mut(number);
        segment.generation = header.generation;
        segment.pruned_bytes = pruned_bytes;
        segment.hole_count = header.hole_count;
        segment.digest = Some(digest);
        let info = segment.info();
        self.pruned_through = self.pruned_through.max(Some(info.last_log_id));
        while self.tail.front().is_some_and(|cached| cached.frame.log_id.index <= info.last_log_id.index) {
            let cached = self.tail.pop_front().expect("looked at just now");
            self.tail_bytes -= cached.bytes();
        }
        info
    }

    /// These frames are durable.
    pub fn set_flushed(&mut self, batches: &[Batch]) {
        for batch in batches {
            let bytes: u64 = batch.frames.iter().map(|frame| format::frame_bytes(frame.payload.len())).sum();
            self.segment_mut(batch.segment.number).flushed_bytes = batch.start + bytes;
            self.flushed = batch.frames.last().map(|frame| frame.log_id).or(self.flushed);
        }
        self.evict(self.tail_bytes_max);
    }

    /// A segment that is not closed, and its offsets.
    pub fn open_segment(&self, number: u64) -> (SegmentInfo, &[u32]) {
        let segment = usize::try_from(number).ok().and_then(|at| self.segments.get(at));
        let segment = segment.expect("the segment is not cut while the writer is locked");
        (segment.info(), segment.offsets.as_ref().expect("an open segment keeps its offsets in memory"))
    }

    /// The segment on disk is complete and durable; its offsets are in the sidecar from now on.
    pub fn set_closed(&mut self, number: u64, digest: Digest) {
        let segment = self.segment_mut(number);
        segment.digest = Some(digest);
        segment.flushed_bytes = segment.frame_bytes;
        segment.offsets = None;
    }

    fn segment_mut(&mut self, number: u64) -> &mut Segment {
        let at = usize::try_from(number).expect("segments are counted in memory");
        self.segments.get_mut(at).expect("the segment is not cut while the writer is locked")
    }

    pub fn tail_bytes(&self) -> u64 {
        self.tail_bytes
    }

    /// Flushed frames leave the tail.
    pub fn forget_flushed(&mut self) {
        self.evict(0);
        self.tail.shrink_to_fit();
    }

    fn evict(&mut self, bytes_max: u64) {
        while self.tail_bytes > bytes_max {
            let flushed = self.flushed;
            match self.tail.front() {
                Some(cached) if flushed.is_some_and(|flushed| cached.frame.log_id.index <= flushed.index) => {
                    self.tail_bytes -= cached.bytes();
                    self.tail.pop_front();
                }
                _ => return,
            }
        }
    }

    /// Index of the segment that holds a log index.
    pub fn segment_of(&self, index: LogIndex) -> Option<&Segment> {
        let after = self.segments.partition_point(|segment| segment.first_log_id.index <= index);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        (index <= segment.last_log_id.index).then_some(segment)
    }

    /// Forgets staged frames after `last_kept`, which is at or after the flushed one.
    pub fn cut_staged(&mut self, last_kept: Option<LogIndex>) {
        debug_assert!(last_kept >= self.flushed.map(|flushed| flushed.index));
        // What is not flushed is in the tail, and so is its last log id; the segment before keeps its own.
        while self.tail.back().is_some_and(|cached| last_kept.is_none_or(|kept| cached.frame.log_id.index > kept)) {
            let cached = self.tail.pop_back().expect("looked at just now");
            self.tail_bytes -= cached.bytes();
            let segment = self.segments.last_mut().expect("a staged frame has a segment");
            segment.frame_bytes -= cached.bytes();
            segment.offsets.as_mut().expect("the last segment keeps its offsets in memory").pop();
            if segment.frame_bytes == 0 {
                self.segments.pop();
            } else {
                let term = match self.tail.back() {
                    Some(before) => before.frame.log_id,
                    None => self.flushed.expect("a frame that is not in the tail is flushed"),
                };
                segment.last_log_id = term;
            }
        }
    }

    /// Forgets frames after the first `offsets.len()` of segment `number`, which becomes the open one; or everything.
    pub fn cut_flushed(&mut self, kept: Option<CutSegment>) {
        self.cut_epoch += 1;
        let kept_index = kept.as_ref().map(|kept| kept.last_log_id.index);
        let forgets = !is_planted(Plant::StaleFrameAfterCut);
        while forgets
            && self.tail.back().is_some_and(|cached| kept_index.is_none_or(|kept| cached.frame.log_id.index > kept))
        {
            let cached = self.tail.pop_back().expect("looked at just now");
            self.tail_bytes -= cached.bytes();
        }
        self.flushed = kept.as_ref().map(|kept| kept.last_log_id);
        let Some(kept) = kept else { return self.segments.clear() };
        self.segments.truncate(usize::try_from(kept.number + 1).expect("segments are counted in memory"));
        let segment = self.segment_mut(kept.number);
        segment.last_log_id = kept.last_log_id;
        segment.frame_bytes = kept.frame_bytes;
        segment.flushed_bytes = kept.frame_bytes;
        segment.offsets = Some(kept.offsets);
        segment.digest = None;
    }

    /// Frames from `from` on that are in the tail, up to `to_exclusive` and `bytes_left`, into `out`. At least one when
    /// there is one and `out` is empty.
    pub fn read_tail(
        &self,
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_left: usize,
        out: &mut Vec<(Position, Frame)>,
    ) {
        let start = self.tail.partition_point(|cached| cached.frame.log_id.index < from);
        let mut bytes_left = bytes_left as u64;
        for cached in self.tail.range(start..).take_while(|cached| cached.frame.log_id.index < to_exclusive) {
            if cached.bytes() > bytes_left && !out.is_empty() {
                return;
            }
            bytes_left = bytes_left.saturating_sub(cached.bytes());
            out.push((Position(cached.position), cached.frame.clone()));
        }
    }

    /// Whether the frame is in the tail.
    pub fn in_tail(&self, index: LogIndex) -> bool {
        self.tail.front().is_some_and(|front| front.frame.log_id.index <= index)
            && self.tail.back().is_some_and(|back| index <= back.frame.log_id.index)
    }

    /// Where frames from `from` on stand, as far as they are in one segment and not beyond `to_exclusive` and `bytes_max`.
    pub fn locate(&self, from: LogIndex, to_exclusive: LogIndex, bytes_max: usize) -> Option<OnDisk> {
        let segment = self.segment_of(from)?;
        Some(match &segment.offsets {
            Some(offsets) => {
                OnDisk::Bytes(within(&segment.info(), segment.flushed_bytes, offsets, from, to_exclusive, bytes_max))
            }
            None => OnDisk::InSidecar { segment: segment.info() },
        })
    }

    /// Bytes at a logical offset, when they are within a frame of the tail. `Err` when they are not within one frame.
    pub fn read_tail_bytes(&self, position: Position, len: usize) -> Option<Result<Bytes>> {
        let after = self.tail.partition_point(|cached| cached.position <= position.0);
        let cached = self.tail.get(after.checked_sub(1)?)?;
        let skip = usize::try_from(position.0 - cached.position).ok()?;
        if skip + len > FRAME_HEAD_BYTES + cached.frame.payload.len() {
            return Some(Err(Error::NoSuchBytes { position: position.0, len: len as u64 }));
        }
        if let Some(skip) = skip.checked_sub(FRAME_HEAD_BYTES) {
            return Some(Ok(cached.frame.payload.slice(skip..skip + len)));
        }
        let mut bytes = Vec::with_capacity(FRAME_HEAD_BYTES + cached.frame.payload.len());
        format::encode_frame(&cached.frame, &mut bytes);
        Some(Ok(Bytes::from(bytes).slice(skip..skip + len)))
    }
}

/// What remains of the segment that a cut reopens.
#[derive(Debug)]
pub(super) struct CutSegment {
    pub number: u64,
    pub last_log_id: LogId,
    pub frame_bytes: u64,
    pub offsets: Vec<u32>,
}

/// Bytes of a segment that hold frames from `from` on, not beyond `to_exclusive`, `bytes_max` and what is flushed; at
/// least one frame.
pub(super) fn within(
    segment: &SegmentInfo,
    flushed_bytes: u64,
    offsets: &[u32],
    from: LogIndex,
    to_exclusive: LogIndex,
    bytes_max: usize,
) -> Stretch {
    let nth = |index: LogIndex| {
        let n = index.0.saturating_sub(segment.first_log_id.index.0);
        usize::try_from(n).map_or(offsets.len(), |n| n.min(offsets.len()))
    };
    let flushed = offsets.partition_point(|offset| u64::from(*offset) < flushed_bytes);
    let (first, last) = (nth(from), nth(to_exclusive).min(flushed));
    assert!(first < last, "what is not flushed is read from the tail");
    let end_of = |n: usize| if n + 1 < flushed { u64::from(offsets[n + 1]) } else { flushed_bytes };
    let start = u64::from(offsets[first]);
    let budget_end = start.saturating_add(bytes_max as u64);
    // A frame ends where the next one starts.
    let all_but_last = offsets[first + 1..last].partition_point(|next| u64::from(*next) <= budget_end);
    let fits = all_but_last + usize::from(first + all_but_last + 1 == last && end_of(last - 1) <= budget_end);
    let frame_count = fits.max(1);
    Stretch { segment: *segment, start, end: end_of(first + frame_count - 1), frame_count }
}
