//! What scrubbing and repair need of a ledger that is open: looking at a segment's files as they are now, and putting whole
//! ones in the place of damaged ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::digest::Digest;
use alhambra_ledger::ids::LogId;
use bytes::Bytes;

use super::readers::{read_sidecar, read_sidecar_header};
use super::writer::write_sidecar;
use super::{Layout, Ledger, SegmentInfo, pruned, scan};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{self, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::seal::SegmentVersion;
use crate::transfer::hash_range;
use crate::vfs::{File, OpenMode, Vfs};

/// One segment that has a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub info: SegmentInfo,
    /// Of its frames; what is on disk of them changes only by a cut, a repair or a prune, which begin another epoch.
    pub flushed_bytes: u64,
    pub epoch: u64,
    /// Of a closed segment, as it was written.
    pub digest: Option<Digest>,
}

impl View {
    /// Byte of the file up to which it belongs to the segment.
    pub(crate) fn end(&self) -> u64 {
        let behind = if self.info.generation == 0 { self.flushed_bytes } else { self.info.stored_bytes };
        SEGMENT_HEADER_BYTES + behind
    }

    /// Of a closed segment.
    pub(crate) fn version(&self) -> Option<SegmentVersion> {
        self.digest.map(|digest| SegmentVersion { generation: self.info.generation, digest })
    }
}

impl Ledger {
    /// A segment as far as it is on disk.
    pub(crate) fn view(&self, number: u64) -> Option<View> {
        let state = self.state.lock();
        let segment = state.segments.get(usize::try_from(number).ok()?)?;
        let view = View {
            info: segment.info(),
            flushed_bytes: segment.flushed_bytes,
            epoch: state.cut_epoch,
            digest: segment.digest,
        };
        (view.flushed_bytes > 0).then_some(view)
    }

    /// Segments in which a reader has come upon damage.
    pub(crate) fn suspects(&self) -> Vec<u64> {
        self.layout.suspects.lock().iter().copied().collect()
    }

    /// A value in this segment does not hash to what it should.
    pub(crate) fn suspect(&self, number: u64) {
        self.layout.suspects.lock().insert(number);
    }

    /// It was looked at, and is whole.
    pub(crate) fn clear_suspect(&self, number: u64) {
        self.layout.suspects.lock().remove(&number);
    }

    /// A closed segment that has or should have a sidecar: the next one has frames.
    fn with_sidecar(&self, number: u64) -> Option<(SegmentInfo, Digest)> {
        let View { info, digest, .. } = self.view(number)?;
        self.view(number + 1).and(digest).map(|digest| (info, digest))
    }

    /// Reads the sidecar of a closed segment; answers its length in bytes.
    pub(crate) fn check_sidecar(&self, number: u64) -> Result<u64> {
        let Some((info, digest)) = self.with_sidecar(number) else { return Ok(0) };
        let path = self.layout.sidecar_path(number);
        let header = read_sidecar_header(&self.layout, &path)?.map(|(_, header)| header);
        match header {
            Some(header) if header.digest == digest && read_sidecar(&self.layout, &info)?.is_some() => {
                Ok(header.file_bytes())
            }
            _ => Err(Error::Corrupted { path, segment: Some(number), offset: 0, damage: Damage::Checksum }),
        }
    }

    /// Makes the sidecar of a closed segment again, from its frames.
    pub(crate) fn rewrite_sidecar(&self, number: u64) -> Result<()> {
        let _writer = self.writer.lock();
        let Some((info, digest)) = self.with_sidecar(number) else { return Ok(()) };
        let (file, path) = self.open_to_read(number)?;
        let header = pruned::read_header(&*file, number, &path)?;
        let file = pruned::view(file, &header, &path)?;
        let scan = scan::scan(&*file, &path, info.first_log_id, SEGMENT_HEADER_BYTES + info.frame_bytes)?;
        let found = if info.generation == 0 {
            scan.hasher.finish()
        } else {
            hash_range(&*self.layout.vfs, &path, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + info.stored_bytes)?
        };
        let same = scan.frame_bytes == info.frame_bytes && header.generation == info.generation && found == digest;
        if !same {
            let damage = scan.damage.unwrap_or(Damage::Hash);
            return Err(self.layout.corrupted(number, SEGMENT_HEADER_BYTES + scan.frame_bytes, damage));
        }
        write_sidecar(&self.layout, &info, &scan.offsets, digest)
    }

    /// Looks for anything but zeros behind the frames of the open segment; answers how many bytes were read.
    pub(crate) fn check_zeros(&self, number: u64) -> Result<u64> {
        let writer = self.writer.lock();
        let Some(open) = writer.as_ref().filter(|open| open.number == number && !open.remains) else { return Ok(0) };
        let from = SEGMENT_HEADER_BYTES + open.frame_bytes;
        let corrupted = |damage| Error::Corrupted {
            path: self.layout.segment_path(number),
            segment: Some(number),
            offset: from,
            damage,
        };
        let len = open.file.len().map_err(|e| Error::io(FileOp::Length, &open.path, e))?;
        if len != open.file_bytes {
            return Err(corrupted(Damage::Length));
        }
        if scan::bytes_before_zeros(&*open.file, &open.path, from, len)? > 0 {
            return Err(corrupted(Damage::Field));
        }
        Ok(len - from)
    }

    /// Writes the zeros behind the frames of the open segment again.
    pub(crate) fn rewrite_zeros(&self, number: u64) -> Result<()> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        let Some(open) = writer.as_mut().filter(|open| open.number == number) else { return Ok(()) };
        let len = open.file.len().map_err(|e| Error::io(FileOp::Length, &open.path, e))?;
        open.file_bytes = len.max(SEGMENT_HEADER_BYTES + open.frame_bytes);
        let zeroed = open.zero_from(SEGMENT_HEADER_BYTES + open.frame_bytes);
        self.poison_if_failed(zeroed)
    }

    fn open_to_read(&self, number: u64) -> Result<(Box<dyn File>, PathBuf)> {
        let path = self.layout.segment_path(number);
        match self.layout.vfs.open(&path, OpenMode::Read) {
            Ok(file) => Ok((file, path)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(self.layout.corrupted(number, 0, Damage::Missing))
            }
            Err(e) => Err(Error::io(FileOp::Open, &path, e)),
        }
    }

    /// Checks length and header of a segment's file, which ends at byte `end`. The header is a function of what is known
    /// of the segment, so all of its bits are.
    pub(crate) fn check_head(&self, info: &SegmentInfo, file: &dyn File, end: u64) -> Result<()> {
        let path = self.layout.segment_path(info.number);
        let len = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let damage = if len < end || (info.closed && len != end) {
            Some((len.min(end), Damage::Length))
        } else {
            let want = self.layout.header_of(info);
            let found = file.read_at(0, want.len()).map_err(|e| Error::io(FileOp::Read, &path, e))?;
            (found != want).then_some((0, Damage::Field))
        };
        match damage {
            None => Ok(()),
            Some((offset, damage)) => Err(Error::Corrupted { path, segment: Some(info.number), offset, damage }),
        }
    }

    /// Reads a closed segment and compares it with the digest that was kept since it was written.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when it is another, [`Error::NoSuchSegment`] when the segment is not closed; IO.
    pub(crate) fn check_bytes(&self, number: u64) -> Result<()> {
        let view = self.view(number).ok_or(Error::NoSuchSegment { number })?;
        let digest = view.digest.ok_or(Error::NoSuchSegment { number })?;
        let (file, path) = self.open_to_read(number)?;
        self.check_head(&view.info, &*file, view.end()).inspect_err(|_| self.suspect(number))?;
        if hash_range(&*self.layout.vfs, &path, SEGMENT_HEADER_BYTES, view.end())? == digest {
            Ok(())
        } else {
            Err(self.layout.corrupted(number, SEGMENT_HEADER_BYTES, Damage::Hash))
        }
    }

    /// A file for what stands behind the header of a closed segment, to take its place once it is all there. Its generation
    /// is that of the segment here or a later one.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when it is not closed or of a later generation; IO.
    pub(crate) fn begin_repair(&self, number: u64, version: SegmentVersion) -> Result<Staged> {
        let closed = |view: &View| {
            (view.digest.is_some() || self.is_forgotten(number)) && view.info.generation <= version.generation
        };
        let view = self.view(number).filter(closed).ok_or(Error::NoSuchSegment { number })?;
        Staged::create(&self.layout, view.info, version)
    }

    /// The header of a segment, which is a function of what is known of it.
    pub(crate) fn header_of(&self, info: &SegmentInfo) -> Bytes {
        Bytes::from(self.layout.header_of(info))
    }

    /// Whether nothing is remembered of a closed segment, and it cannot be read: only in a ledger that is to be mended.
    pub(crate) fn is_forgotten(&self, number: u64) -> bool {
        self.layout.is_forgotten(number)
    }

    /// Reads what was staged and makes it durable. It must be of the version for which it was begun, and its frames as many bytes
    /// as this ledger knows of.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when it is not; IO.
    pub(crate) fn check_staged(&self, staged: &Staged) -> Result<Whole> {
        staged.verify(&self.layout)
    }

    /// Whether a frame in the file that is to be replaced, both of generation 0, is another one whose checksum holds: it may have
    /// been read for what it is not.
    ///
    /// # Errors
    /// IO.
    pub(crate) fn has_other_frames(&self, staged: &Staged, whole: &Whole) -> Result<bool> {
        let path = self.segment_path(staged.info.number);
        let file = match self.layout.vfs.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io(FileOp::Open, &path, e)),
        };
        let there = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let starts: Vec<u64> = whole.offsets.iter().map(|offset| SEGMENT_HEADER_BYTES + u64::from(*offset)).collect();
        let end = SEGMENT_HEADER_BYTES + staged.info.frame_bytes;
        let ends = starts.iter().skip(1).copied().chain([end.min(there)]);
        for (start, end) in starts.iter().copied().zip(ends) {
            let len = usize::try_from(end.saturating_sub(start)).expect("of one frame");
            if end > there {
                break;
            }
            // What cannot be read was not applied.
            let Ok(old) = file.read_at(start, len) else { continue };
            let new = staged.file.read_at(start, len).map_err(|e| Error::io(FileOp::Read, &staged.path, e))?;
            if old != new && format::decode_frame(&old).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts a file that was [found whole](Ledger::check_staged) in the place of a closed segment. Until the swap nothing is
    /// changed; a crash leaves the old or the new file.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when the segment is another by now; IO. When the swap itself fails the ledger is poisoned.
    pub(crate) fn replace(&self, staged: &Staged, whole: &Whole) -> Result<()> {
        let (info, version) = (staged.info, staged.version);
        let number = info.number;
        let _writer = self.writer.lock();
        self.check_poison()?;
        if self.view(number).is_none_or(|now| now.info != info) {
            // Cut meanwhile: closed segments that are sealed never are.
            return Err(Error::NoSuchSegment { number });
        }
        // The sidecar stays until the segment is whole, because opening believes it or reads all frames, which are damaged. A
        // crash here leaves one with the digest of before: then the segment is taken for rotten and fetched once more.
        self.poison_if_failed(name(&self.layout, &staged.path, number))?;
        {
            let mut state = self.state.lock();
            // It was known but for its term, if the segment was forgotten.
            if let Some(segment) = state.segments.get_mut(number as usize) {
                segment.last_log_id = whole.last_log_id;
            }
            if version.generation == 0 {
                // Whoever reads the old file now throws its result away.
                state.cut_epoch += 1;
                if let Some(segment) = state.segments.get_mut(number as usize) {
                    segment.digest = Some(version.digest);
                }
            } else {
                state.set_rewritten(number, &whole.header, staged.len, version.digest);
            }
        }
        if let Some(forgotten) = &self.layout.forgotten {
            forgotten.lock().remove(&number);
        }
        self.forget_file(number);
        self.clear_suspect(number);
        match self.with_sidecar(number) {
            Some((info, digest)) => write_sidecar(&self.layout, &info, &whole.offsets, digest),
            None => Ok(()),
        }
    }

    /// Up to `len` bytes of what stands behind the header of a segment, from `offset`, as they stand in its file: whoever asks
    /// for them finds out what they are worth. Fewer where it ends, which of the open one is where it is durable.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when it is of another generation, ends before, or is not there; IO.
    pub(crate) fn read_raw(&self, number: u64, generation: u32, offset: u64, len: usize) -> Result<Bytes> {
        let missing = || Error::NoSuchSegment { number };
        let view = self.view(number).filter(|view| view.info.generation == generation).ok_or_else(missing)?;
        let start = SEGMENT_HEADER_BYTES.checked_add(offset).ok_or_else(missing)?;
        let there = view.end().checked_sub(start).ok_or_else(missing)?;
        let len = usize::try_from(there).map_or(len, |there| len.min(there));
        let (file, path) = self.open_to_read(number)?;
        file.read_at(start, len).map_err(|e| Error::io(FileOp::Read, &path, e))
    }
}

/// What stands behind the header of a segment, not trusted yet, in a file that opening removes.
#[derive(Debug)]
pub(crate) struct Staged {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    file: Box<dyn File>,
    /// The segment as it was here when this was begun.
    info: SegmentInfo,
    /// What it is to be.
    version: SegmentVersion,
    len: u64,
}

/// A staged file that is what was expected.
pub(crate) struct Whole {
    header: SegmentHeader,
    last_log_id: LogId,
    offsets: Vec<u32>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Not there when it has taken its place; else removed at the next open at the latest.
        let _ = self.vfs.remove_file(&self.path);
    }
}

impl Staged {
    fn create(layout: &Layout, info: SegmentInfo, version: SegmentVersion) -> Result<Self> {
        let path = layout.fetched_segment_path(info.number);
        let file = layout.vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
        let staged = Self { vfs: Arc::clone(&layout.vfs), path, file, info, version, len: 0 };
        staged.file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, &staged.path, e))?;
        Ok(staged)
    }

    fn corrupted(&self, offset: u64, damage: Damage) -> Error {
        Error::Corrupted { path: self.path.clone(), segment: Some(self.info.number), offset, damage }
    }

    /// How many bytes there must be, when that is known: those of a later generation are whoever's has it.
    fn bytes(&self) -> Option<u64> {
        (self.version.generation == self.info.generation).then_some(self.info.stored_bytes)
    }

    /// Takes the next bytes.
    pub(crate) fn write(&mut self, piece: &[u8]) -> Result<()> {
        let at = SEGMENT_HEADER_BYTES + self.len;
        let most = pruned::stored_bytes_max(self.info.frame_bytes, self.version.generation);
        if piece.len() as u64 > self.bytes().unwrap_or(most) - self.len {
            return Err(self.corrupted(at, Damage::Length));
        }
        self.file.write_at(at, piece).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        self.len += piece.len() as u64;
        Ok(())
    }

    /// Puts the header before it, which is a function of what is known, reads it all again, and makes it durable when it is
    /// what was expected.
    fn verify(&self, layout: &Layout) -> Result<Whole> {
        let SegmentVersion { generation, digest } = self.version;
        let info = &self.info;
        let stored_end = SEGMENT_HEADER_BYTES + self.len;
        if self.bytes().is_some_and(|bytes| bytes != self.len) {
            return Err(self.corrupted(stored_end, Damage::Missing));
        }
        if generation > 0 && hash_range(&*self.vfs, &self.path, SEGMENT_HEADER_BYTES, stored_end)? != digest {
            return Err(self.corrupted(SEGMENT_HEADER_BYTES, Damage::Hash));
        }
        let header = if generation == 0 {
            layout.header_at_first(info)
        } else {
            pruned::header_of_body(layout, &*self.file, self.len, info, generation, &self.path)?
        };
        self.file.write_at(0, &header.encode()).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        let file = self.vfs.open(&self.path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, &self.path, e))?;
        if pruned::read_header(&*file, info.number, &self.path)? != header {
            return Err(self.corrupted(0, Damage::Changed));
        }
        let file = pruned::view(file, &header, &self.path)?;
        let scan = scan::scan(&*file, &self.path, info.first_log_id, SEGMENT_HEADER_BYTES + info.frame_bytes)?;
        let known = if layout.is_forgotten(info.number) {
            scan.last_log_id.filter(|last| last.index == info.last_log_id.index)
        } else {
            scan.last_log_id.filter(|last| *last == info.last_log_id)
        };
        let Some(last_log_id) = known.filter(|_| scan.frame_bytes == info.frame_bytes) else {
            let at = SEGMENT_HEADER_BYTES + scan.frame_bytes;
            return Err(self.corrupted(at, scan.damage.unwrap_or(Damage::Sequence)));
        };
        if generation == 0 && scan.hasher.finish() != digest {
            return Err(self.corrupted(SEGMENT_HEADER_BYTES, Damage::Hash));
        }
        self.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &self.path, e))?;
        Ok(Whole { header, last_log_id, offsets: scan.offsets })
    }
}

/// Gives the file that was made for a segment its name, in the place of the one that had it.
pub(super) fn name(layout: &Layout, from: &Path, number: u64) -> Result<()> {
    let to = layout.segment_path(number);
    layout.vfs.rename(from, &to).map_err(|e| Error::io(FileOp::Rename, &to, e))?;
    layout.sync_dir()
}
