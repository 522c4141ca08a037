//! What scrubbing and repair need of a ledger that is open: looking at a segment's files as they are now, and putting whole
//! ones in the place of damaged ones.

use alhambra_ledger::digest::{Digest, Hasher};

use super::readers::{read_sidecar, read_sidecar_header};
use super::writer::write_sidecar;
use super::{Layout, Ledger, SegmentInfo, scan};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::vfs::{File, OpenMode};

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

/// Whoever hands over the frames of a segment calls this with each piece.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

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

    /// Puts a whole file in the place of a closed segment. `fetch` hands over its frames, which must hash to `expected` and
    /// be as many bytes as this ledger knows of. Until the swap nothing is changed; a crash leaves the old or the new file.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when it is not closed, [`Error::Corrupted`] for what was fetched, those of `fetch`, IO. When
    /// the swap itself fails the ledger is poisoned.
    pub(crate) fn replace(
        &self,
        number: u64,
        expected: Digest,
        fetch: &mut dyn FnMut(Sink<'_>) -> Result<()>,
    ) -> Result<()> {
        let view = self.view(number).filter(|view| view.digest.is_some()).ok_or(Error::NoSuchSegment { number })?;
        let info = view.info;
        let staged = Staged::make(&self.layout, number, info.frame_bytes, fetch);
        let offsets = staged.and_then(|staged| staged.verify(&self.layout, &info, expected));
        let unnamed = self.layout.new_segment_path(number);
        let offsets = match offsets {
            Ok(offsets) => offsets,
            Err(error) => {
                // Removed at the next open at the latest.
                let _ = self.layout.vfs.remove_file(&unnamed);
                return Err(error);
            }
        };
        let _writer = self.writer.lock();
        self.check_poison()?;
        if self.view(number).is_none_or(|now| now.info != info) {
            // Cut meanwhile: closed segments that are sealed never are.
            let _ = self.layout.vfs.remove_file(&unnamed);
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
}

/// Frames of a segment that are not trusted yet, behind a header, in a file that opening removes.
struct Staged {
    file: Box<dyn File>,
    hasher: Hasher,
}

impl Staged {
    fn make(
        layout: &Layout,
        number: u64,
        frame_bytes: u64,
        fetch: &mut dyn FnMut(Sink<'_>) -> Result<()>,
    ) -> Result<Self> {
        let path = layout.new_segment_path(number);
        let file = layout.vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
        file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, &path, e))?;
        let corrupted = || Error::Corrupted {
            path: path.clone(),
            segment: Some(number),
            offset: SEGMENT_HEADER_BYTES,
            damage: Damage::Length,
        };
        let mut hasher = Hasher::new();
        let mut len = 0;
        fetch(&mut |piece| {
            if piece.len() as u64 > frame_bytes - len {
                return Err(corrupted());
            }
            file.write_at(SEGMENT_HEADER_BYTES + len, piece).map_err(|e| Error::io(FileOp::Write, &path, e))?;
            hasher.update(piece);
            len += piece.len() as u64;
            Ok(())
        })?;
        if len == frame_bytes { Ok(Self { file, hasher }) } else { Err(corrupted()) }
    }

    /// Writes the header, which is a function of what is known, and makes the file durable when it is what was expected.
    /// Answers the offsets of its frames.
    fn verify(self, layout: &Layout, info: &SegmentInfo, expected: Digest) -> Result<Vec<u32>> {
        let path = layout.new_segment_path(info.number);
        let corrupted =
            |offset, damage| Error::Corrupted { path: path.clone(), segment: Some(info.number), offset, damage };
        if self.hasher.finish() != expected {
            return Err(corrupted(SEGMENT_HEADER_BYTES, Damage::Hash));
        }
        self.file.write_at(0, &layout.header_of(info)).map_err(|e| Error::io(FileOp::Write, &path, e))?;
        let end = SEGMENT_HEADER_BYTES + info.frame_bytes;
        let scan = scan::scan(&*self.file, &path, info.first_log_id, end)?;
        if scan.frame_bytes != info.frame_bytes || scan.last_log_id != Some(info.last_log_id) {
            return Err(corrupted(SEGMENT_HEADER_BYTES + scan.frame_bytes, scan.damage.unwrap_or(Damage::Sequence)));
        }
        self.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &path, e))?;
        Ok(scan.offsets)
    }
}

fn name(layout: &Layout, number: u64) -> Result<()> {
    let (from, to) = (layout.new_segment_path(number), layout.segment_path(number));
    layout.vfs.rename(&from, &to).map_err(|e| Error::io(FileOp::Rename, &to, e))?;
    layout.sync_dir()
}
