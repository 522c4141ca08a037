//! What scrubbing and repair need of a ledger that is open: looking at a segment's files as they are now, and putting whole
//! ones in the place of damaged ones.

use std::path::PathBuf;
use std::sync::Arc;

use alhambra_ledger::digest::Digest;
use bytes::Bytes;

use super::readers::{read_sidecar, read_sidecar_header};
use super::writer::write_sidecar;
use super::{Layout, Ledger, SegmentInfo, scan};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::vfs::{File, OpenMode, Vfs};

/// One segment that has a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub info: SegmentInfo,
    /// Of its frames; these bytes change only by a cut or a repair, which begin another epoch.
    pub flushed_bytes: u64,
    pub epoch: u64,
    /// Of a closed segment, as it was written.
    pub digest: Option<Digest>,
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

    /// Reads the sidecar of a closed segment; answers its length in bytes.
    pub(crate) fn check_sidecar(&self, number: u64) -> Result<u64> {
        let Some(View { info, digest: Some(digest), .. }) = self.view(number) else { return Ok(0) };
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
        let Some(View { info, digest: Some(digest), .. }) = self.view(number) else { return Ok(()) };
        let (file, path) = self.open_to_read(number)?;
        let scan = scan::scan(&*file, &path, info.first_log_id, SEGMENT_HEADER_BYTES + info.frame_bytes)?;
        let same = scan.frame_bytes == info.frame_bytes && scan.hasher.finish() == digest;
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

    fn open_to_read(&self, number: u64) -> Result<(Box<dyn File>, std::path::PathBuf)> {
        let path = self.layout.segment_path(number);
        match self.layout.vfs.open(&path, OpenMode::Read) {
            Ok(file) => Ok((file, path)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(self.layout.corrupted(number, 0, Damage::Missing))
            }
            Err(e) => Err(Error::io(FileOp::Open, &path, e)),
        }
    }

    /// Checks length and header of a segment's file, whose frames end at byte `end`. The header is a function of what is known
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

    /// A file for the frames of a closed segment, to take its place once they are all there.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when it is not closed; IO.
    pub(crate) fn begin_repair(&self, number: u64) -> Result<Staged> {
        let view = self.view(number).filter(|view| view.digest.is_some()).ok_or(Error::NoSuchSegment { number })?;
        Staged::create(&self.layout, view.info)
    }

    /// Puts a whole file in the place of a closed segment. Its frames must hash to `expected` and be as many bytes as this
    /// ledger knows of. Until the swap nothing is changed; a crash leaves the old or the new file.
    ///
    /// # Errors
    /// [`Error::Corrupted`] for what was staged, [`Error::NoSuchSegment`] when the segment is another by now; IO. When the
    /// swap itself fails the ledger is poisoned.
    pub(crate) fn replace(&self, staged: &Staged, expected: Digest) -> Result<()> {
        let info = staged.info;
        let number = info.number;
        let offsets = staged.verify(&self.layout, expected)?;
        let _writer = self.writer.lock();
        self.check_poison()?;
        if self.view(number).is_none_or(|now| now.info != info) {
            // Cut meanwhile: closed segments that are sealed never are.
            return Err(Error::NoSuchSegment { number });
        }
        // The sidecar stays until the segment is whole, because opening believes it or reads all frames, which are damaged. A
        // crash here leaves one with the digest of before: then the segment is taken for rotten and fetched once more.
        self.poison_if_failed(name(&self.layout, number))?;
        {
            let mut state = self.state.lock();
            // Whoever reads the old file now throws its result away.
            state.cut_epoch += 1;
            if let Some(segment) = state.segments.get_mut(number as usize) {
                segment.digest = Some(expected);
            }
        }
        self.clear_suspect(number);
        write_sidecar(&self.layout, &info, &offsets, expected)
    }

    /// `len` bytes of the frames of a closed segment, from `offset`, as they stand in its file: whoever asks for them compares
    /// the digest of all of them.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when it is not closed or ends before; IO.
    pub(crate) fn read_raw(&self, number: u64, offset: u64, len: usize) -> Result<Bytes> {
        let whole = |view: &View| {
            view.digest.is_some() && offset.checked_add(len as u64).is_some_and(|end| end <= view.flushed_bytes)
        };
        self.view(number).filter(whole).ok_or(Error::NoSuchSegment { number })?;
        let (file, path) = self.open_to_read(number)?;
        file.read_at(SEGMENT_HEADER_BYTES + offset, len).map_err(|e| Error::io(FileOp::Read, &path, e))
    }
}

/// Frames of a segment that are not trusted yet, behind a header, in a file that opening removes.
#[derive(Debug)]
pub(crate) struct Staged {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    file: Box<dyn File>,
    info: SegmentInfo,
    len: u64,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Not there when it has taken its place; else removed at the next open at the latest.
        let _ = self.vfs.remove_file(&self.path);
    }
}

impl Staged {
    /// Writes the header, which is a function of what is known.
    fn create(layout: &Layout, info: SegmentInfo) -> Result<Self> {
        let path = layout.fetched_segment_path(info.number);
        let file = layout.vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
        let staged = Self { vfs: Arc::clone(&layout.vfs), path, file, info, len: 0 };
        staged.file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, &staged.path, e))?;
        staged.file.write_at(0, &layout.header_of(&info)).map_err(|e| Error::io(FileOp::Write, &staged.path, e))?;
        Ok(staged)
    }

    fn corrupted(&self, offset: u64, damage: Damage) -> Error {
        Error::Corrupted { path: self.path.clone(), segment: Some(self.info.number), offset, damage }
    }

    /// How many bytes of frames there must be.
    pub(crate) fn frame_bytes(&self) -> u64 {
        self.info.frame_bytes
    }

    /// Takes the next bytes of the frames.
    pub(crate) fn write(&mut self, piece: &[u8]) -> Result<()> {
        let at = SEGMENT_HEADER_BYTES + self.len;
        if piece.len() as u64 > self.info.frame_bytes - self.len {
            return Err(self.corrupted(at, Damage::Length));
        }
        self.file.write_at(at, piece).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        self.len += piece.len() as u64;
        Ok(())
    }

    /// Reads it all again, and makes it durable when it is what was expected. Answers the offsets of its frames.
    fn verify(&self, layout: &Layout, expected: Digest) -> Result<Vec<u32>> {
        let info = &self.info;
        if self.len != info.frame_bytes {
            return Err(self.corrupted(SEGMENT_HEADER_BYTES + self.len, Damage::Missing));
        }
        let head = self.file.read_at(0, SEGMENT_HEADER_BYTES as usize);
        if head.map_err(|e| Error::io(FileOp::Read, &self.path, e))? != layout.header_of(info) {
            return Err(self.corrupted(0, Damage::Changed));
        }
        let end = SEGMENT_HEADER_BYTES + info.frame_bytes;
        let scan = scan::scan(&*self.file, &self.path, info.first_log_id, end)?;
        let at = SEGMENT_HEADER_BYTES + scan.frame_bytes;
        if scan.frame_bytes != info.frame_bytes || scan.last_log_id != Some(info.last_log_id) {
            return Err(self.corrupted(at, scan.damage.unwrap_or(Damage::Sequence)));
        }
        if scan.hasher.finish() != expected {
            return Err(self.corrupted(SEGMENT_HEADER_BYTES, Damage::Hash));
        }
        self.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &self.path, e))?;
        Ok(scan.offsets)
    }
}

fn name(layout: &Layout, number: u64) -> Result<()> {
    let (from, to) = (layout.fetched_segment_path(number), layout.segment_path(number));
    layout.vfs.rename(&from, &to).map_err(|e| Error::io(FileOp::Rename, &to, e))?;
    layout.sync_dir()
}
