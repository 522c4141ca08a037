//! The writing side: the open segment's file, rolling to the next one, cutting. Whoever holds it may wait for the disk.

use std::path::PathBuf;
use std::sync::Arc;

use alhambra_ledger::digest::{Digest, Hasher};
use bytes::Bytes;
use parking_lot::Mutex;

use super::readers::Readers;
use super::state::{Batch, State};
use super::{Layout, SegmentInfo};
use crate::error::{Error, FileOp, Result};
use crate::format::{self, SEGMENT_HEADER_BYTES, SidecarHeader};
use crate::limits;
use crate::vfs::{File, OpenMode};

/// Zeros are written in pieces of this size, bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The segment that takes frames.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub number: u64,
    pub path: PathBuf,
    pub file: Box<dyn File>,
    /// Bytes of frames in the file.
    pub frame_bytes: u64,
    /// Length of the file: header, frames, zeros.
    pub file_bytes: u64,
    /// Over the frames but for `unhashed`.
    pub hasher: Hasher,
    /// Written, in order, to be hashed when nobody waits for it.
    pub unhashed: Vec<Bytes>,
    pub unhashed_bytes: usize,
    /// The file holds something else than zeros behind its frames: remains of a write that found no space.
    pub remains: bool,
    /// Cut to its last frame and synced.
    pub finished: bool,
}

/// Where an open segment stood before a write.
struct Mark {
    frame_bytes: u64,
    hasher: Hasher,
    unhashed: usize,
    unhashed_bytes: usize,
}

/// How long the file is to be so that `len` bytes of frames, up to byte `end`, stand in zeroed space with room for more: a
/// first step and then doubling, in steps that stop growing, and never more than the segment can use. Large frames get no
/// zeros: they save a sync the length of the file, and every byte would be written twice for it.
pub(super) fn file_bytes_for(end: u64, len: u64, file_bytes: u64, segment_bytes: u64) -> u64 {
    if end <= file_bytes {
        return file_bytes;
    }
    let step = file_bytes.clamp(limits::ZERO_FILL_BYTES_MIN, limits::ZERO_FILL_BYTES_MAX);
    if len > limits::ZERO_FILL_FRAMES_MAX {
        return end;
    }
    let cap = (SEGMENT_HEADER_BYTES + segment_bytes).max(end);
    end.next_multiple_of(step).min(cap)
}

impl OpenSegment {
    /// A new segment. It gets its name when the header and the first zeros are durable, so a named segment always has a
    /// whole header; and its name is durable before the first frame is written.
    fn create(layout: &Layout, segment: &SegmentInfo) -> Result<Self> {
        let created = Self::try_create(layout, segment);
        if matches!(created, Err(Error::NoSpace { .. })) {
            // It will be made anew, perhaps for another frame. What cannot be taken back must not be built on.
            super::recover::abandon_segment(layout, segment.number).map_err(|_| Error::Poisoned)?;
        }
        created
    }

    fn try_create(layout: &Layout, segment: &SegmentInfo) -> Result<Self> {
        let mut bytes = layout.header_of(segment);
        let file_bytes = file_bytes_for(SEGMENT_HEADER_BYTES, 0, 0, layout.spec.segment_bytes);
        bytes.resize(usize::try_from(file_bytes).expect("one small step"), 0);
        let (path, unnamed) = (layout.segment_path(segment.number), layout.new_segment_path(segment.number));
        let file =
            layout.vfs.open(&unnamed, OpenMode::CreateNew).map_err(|e| Error::io(FileOp::Create, &unnamed, e))?;
        file.write_at(0, &bytes).map_err(|e| Error::io(FileOp::Write, &unnamed, e))?;
        file.sync_data().map_err(|e| Error::io(FileOp::Sync, &unnamed, e))?;
        layout.vfs.rename(&unnamed, &path).map_err(|e| Error::io(FileOp::Rename, &unnamed, e))?;
        layout.sync_dir()?;
        Ok(Self {
            number: segment.number,
            path,
            file,
            frame_bytes: 0,
            file_bytes,
            hasher: Hasher::new(),
            unhashed: Vec::new(),
            unhashed_bytes: 0,
            remains: false,
            finished: false,
        })
    }

    fn mark(&mut self) -> Mark {
        if self.unhashed_bytes > limits::UNHASHED_BYTES_MAX {
            self.hash();
        }
        Mark {
            frame_bytes: self.frame_bytes,
            hasher: self.hasher.clone(),
            unhashed: self.unhashed.len(),
            unhashed_bytes: self.unhashed_bytes,
        }
    }

    /// Forgets what was written since the mark. The file keeps it until it is written over.
    fn roll_back(&mut self, mark: Mark) -> Result<()> {
        self.frame_bytes = mark.frame_bytes;
        self.hasher = mark.hasher;
        self.unhashed.truncate(mark.unhashed);
        self.unhashed_bytes = mark.unhashed_bytes;
        self.remains = true;
        self.finished = false;
        self.file_bytes = self.file.len().map_err(|e| Error::io(FileOp::Length, &self.path, e))?;
        Ok(())
    }

    /// Zeroes, durably, what a write that found no space has left.
    pub fn clear_remains(&mut self) -> Result<()> {
        if self.remains {
            self.zero_from(SEGMENT_HEADER_BYTES + self.frame_bytes)?;
            self.remains = false;
        }
        Ok(())
    }

    /// Writes frames behind the last one, and zeros behind them when the zeroed space runs out, in one call.
    fn append(&mut self, layout: &Layout, batch: &Batch) -> Result<()> {
        assert_eq!(self.frame_bytes, batch.start, "frames are written in the order in which they were staged");
        let mut bytes = Vec::new();
        batch.frames.iter().for_each(|frame| format::encode_frame(frame, &mut bytes));
        let frame_bytes = bytes.len();
        let at = SEGMENT_HEADER_BYTES + self.frame_bytes;
        let end = at + frame_bytes as u64;
        let file_bytes = file_bytes_for(end, frame_bytes as u64, self.file_bytes, layout.spec.segment_bytes);
        // Remains need no zeros here: what is written starts with the frames that they are of, as a cut clears them.
        if file_bytes > self.file_bytes {
            bytes.resize(usize::try_from(file_bytes - at).expect("a batch and a step are in memory"), 0);
        }
        self.file.write_at(at, &bytes).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        self.file_bytes = file_bytes;
        (self.remains, self.finished) = (false, false);
        self.frame_bytes += frame_bytes as u64;
        self.unhashed.push(Bytes::from(bytes).slice(..frame_bytes));
        self.unhashed_bytes += frame_bytes;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &self.path, e))
    }

    /// Hashes what waits for it.
    pub fn hash(&mut self) {
        self.unhashed.drain(..).for_each(|bytes| self.hasher.update(&bytes));
        self.unhashed_bytes = 0;
    }

    /// Over the frames written so far.
    pub fn digest(&mut self) -> Digest {
        self.hash();
        self.hasher.clone().finish()
    }

    /// Cuts the file to its last frame and makes all of it durable.
    fn finish(&mut self) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        let end = SEGMENT_HEADER_BYTES + self.frame_bytes;
        if self.file_bytes != end {
            self.file.set_len(end).map_err(|e| Error::io(FileOp::SetLength, &self.path, e))?;
            self.file_bytes = end;
        }
        self.sync()?;
        self.finished = true;
        Ok(())
    }

    /// Writes zeros from byte `from` to the end of the file and makes them durable.
    pub fn zero_from(&self, from: u64) -> Result<()> {
        let mut at = from;
        while at < self.file_bytes {
            let piece = usize::try_from(self.file_bytes - at).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
            self.file.write_at(at, &ZEROS[..piece]).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
            at += piece as u64;
        }
        self.sync()
    }
}

/// Writes the sidecar of a closed segment. It is not synced: if it is lost or torn it is made again.
pub(super) fn write_sidecar(layout: &Layout, segment: &SegmentInfo, offsets: &[u32], digest: Digest) -> Result<()> {
    let body = format::encode_offsets(offsets);
    let header = SidecarHeader {
        database: layout.spec.database,
        number: segment.number,
        first_offset: segment.first_offset.0,
        first_log_id: segment.first_log_id,
        last_log_id: segment.last_log_id,
        frame_count: u32::try_from(offsets.len()).expect("SEGMENT_BYTES_MAX bounds the frames of a segment"),
        frame_bytes: segment.frame_bytes,
        digest,
        generation: segment.generation,
        offsets_crc: crc32c::crc32c(&body),
    };
    let mut bytes = header.encode();
    bytes.extend_from_slice(&body);
    let path = layout.sidecar_path(segment.number);
    let file = layout.vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
    file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, &path, e))?;
    file.write_at(0, &bytes).map_err(|e| Error::io(FileOp::Write, &path, e))
}

/// Writes batches and makes them durable, rolling where they say. In order, so that a crash leaves a prefix: a segment is
/// complete and durable before the next one has a name.
///
/// After [`Error::NoSpace`] everything is as before, but that whole segments may have been closed: their frames are
/// flushed. The same frames, or others after a cut, can be written when there is space.
pub(super) fn write_out(
    layout: &Layout,
    state: &Mutex<State>,
    readers: &Readers,
    open: &mut Option<OpenSegment>,
    batches: &[Batch],
) -> Result<()> {
    for (n, batch) in batches.iter().enumerate() {
        let fills = n + 1 < batches.len();
        if let Some(full) = open.take_if(|open| open.number != batch.segment.number) {
            close(state, readers, open, full)?;
        }
        let segment = match open {
            Some(segment) => segment,
            None => open.insert(OpenSegment::create(layout, &batch.segment)?),
        };
        let mark = segment.mark();
        let written = segment.append(layout, batch);
        let written = written.and_then(|()| if fills { segment.finish() } else { segment.sync() });
        if let Err(error) = written {
            if matches!(error, Error::NoSpace { .. }) {
                segment.roll_back(mark)?;
            }
            return Err(error);
        }
        state.lock().set_flushed(std::slice::from_ref(batch));
        if let (0, Some(before)) = (batch.start, batch.segment.number.checked_sub(1)) {
            write_sidecar_of(layout, state, readers, before)?;
        }
    }
    Ok(())
}

/// Writes the sidecar of a closed segment when the next one has frames, so that a segment with a whole sidecar is never the
/// newest one: opening then notices that the next one is gone.
fn write_sidecar_of(layout: &Layout, state: &Mutex<State>, readers: &Readers, number: u64) -> Result<()> {
    let (info, digest, epoch) = {
        let state = state.lock();
        let Some(segment) = usize::try_from(number).ok().and_then(|number| state.segments.get(number)) else {
            return Ok(());
        };
        (segment.info(), segment.digest, state.cut_epoch)
    };
    let Some(digest) = digest else { return Ok(()) };
    let offsets = readers.offsets(layout, &info, epoch)?;
    match write_sidecar(layout, &info, &offsets, digest) {
        Err(Error::NoSpace { .. }) => {
            tracing::warn!(segment = number, "no space for a sidecar, it is made again later");
            super::recover::remove_sidecar(layout, number).map_err(|_| Error::Poisoned)
        }
        written => written,
    }
}

/// The order keeps readers from finding a closed segment whose offsets are nowhere. When there is no space the segment
/// stays open.
fn close(state: &Mutex<State>, readers: &Readers, open: &mut Option<OpenSegment>, mut full: OpenSegment) -> Result<()> {
    if let Err(error) = full.finish() {
        if matches!(error, Error::NoSpace { .. }) {
            *open = Some(full);
        }
        return Err(error);
    }
    let digest = full.digest();
    let (offsets, epoch) = {
        let state = state.lock();
        let (_, offsets) = state.open_segment(full.number);
        (Arc::<[u32]>::from(offsets), state.cut_epoch)
    };
    readers.keep_offsets(full.number, epoch, offsets);
    state.lock().set_closed(full.number, digest);
    Ok(())
}
