//! Segments that have lost values: how their files look, how they are read, and how one takes the place of another.
//!
//! ```text
//!  plain   [header][frame....value....][frame..value..]
//!  pruned  [header][frame........][frame....][table: offset, length and hash of each value that went][count][CRC]
//! ```
//!
//! Only bytes on disk move. Everybody above reads through [`PrunedFile`], in which the frames stand where they always stood
//! and a removed value reads as zeros; checksums of frames are those of that view. So positions, sidecars and the index stay
//! as they are, and space comes back to the byte on every file system, and stays so when the file is copied.
//!
//! What stands behind the header says of itself how it is to be read, so it can be fetched and checked without the header,
//! which is a function of it.
//!
//! A rewritten segment gets its name by one rename, so a crash leaves the old or the new file, and each says by its header
//! which generation it is.

use std::io;
use std::path::{Path, PathBuf};

use alhambra_ledger::digest::{Digest, Hasher};
use bytes::Bytes;

use super::recover::remove_sidecar;
use super::state::Segment;
use super::writer::write_sidecar;
use super::{Layout, Ledger, SegmentInfo, upkeep};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{
    self, FRAME_PREFIX_BYTES, HOLE_BYTES, HOLES_END_BYTES, HeaderFault, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::vfs::{File, OpenMode};
use crate::wire::Put;

const ROW_BYTES: usize = HOLE_BYTES as usize;

/// How many times longer a pruned segment can be: the smallest entry that has a value is 5 bytes of a frame, of which one
/// goes and is told of in 40.
const EXPANSION_MAX: u64 = 8;

/// How much is written at once, bytes.
const WRITE_BYTES: usize = 1 << 20;

/// A value that went, or is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    /// Of its first byte, counted from the segment's first frame.
    pub offset: u32,
    /// Bytes that it had in the ledger, at least 1.
    pub len: u32,
    /// SHA-256 of the plain value.
    pub hash: Digest,
    /// Offset of the byte that says so in its entry, as `offset`.
    pub tag_at: u32,
}

/// Where the holes are.
#[derive(Debug)]
struct Map {
    /// (offset, bytes of holes before it), by offset.
    holes: Vec<(u32, u32)>,
    removed_bytes: u64,
    frame_bytes: u64,
    kept_bytes: u64,
}

impl Map {
    fn len_of(&self, hole: usize) -> u64 {
        let before = u64::from(self.holes[hole].1);
        self.holes.get(hole + 1).map_or(self.removed_bytes, |(_, next)| u64::from(*next)) - before
    }

    /// Number of kept bytes before a place among the frames.
    fn kept_before(&self, offset: u64) -> u64 {
        let after = self.holes.partition_point(|(hole, _)| u64::from(*hole) < offset);
        let Some(last) = after.checked_sub(1) else { return offset };
        let (start, before) = self.holes[last];
        let inside = (offset - u64::from(start)).min(self.len_of(last));
        offset - u64::from(before) - inside
    }
}

/// A pruned segment's file, seen as if its frames still stood where they did.
#[derive(Debug)]
pub(super) struct PrunedFile {
    inner: Box<dyn File>,
    map: Map,
}

/// Bytes of frames in a pruned segment's file, of which this much stands behind the header.
pub(super) const fn kept_bytes(stored_bytes: u64, hole_count: u32) -> u64 {
    stored_bytes - hole_count as u64 * HOLE_BYTES - HOLES_END_BYTES
}

/// Bytes behind the header of a segment of that generation, at most.
pub(super) const fn stored_bytes_max(frame_bytes: u64, generation: u32) -> u64 {
    if generation == 0 { frame_bytes } else { frame_bytes * EXPANSION_MAX + HOLES_END_BYTES }
}

/// The header that belongs to the first `len` bytes behind it, which are of `segment` in another generation or the same.
pub(super) fn header_of_body(
    layout: &Layout,
    file: &dyn File,
    len: u64,
    segment: &SegmentInfo,
    generation: u32,
    path: &Path,
) -> Result<SegmentHeader> {
    let corrupted = |damage| Error::Corrupted {
        path: path.to_path_buf(),
        segment: Some(segment.number),
        offset: SEGMENT_HEADER_BYTES + len,
        damage,
    };
    let end = len.checked_sub(HOLES_END_BYTES).ok_or_else(|| corrupted(Damage::Missing))?;
    let bytes = file.read_at(SEGMENT_HEADER_BYTES + end, 4).map_err(|e| Error::io(FileOp::Read, path, e))?;
    let hole_count = u32::from_be_bytes(bytes[..].try_into().expect("4 bytes"));
    let kept_bytes = end.checked_sub(u64::from(hole_count) * HOLE_BYTES).ok_or_else(|| corrupted(Damage::Length))?;
    let header = SegmentHeader {
        database: layout.spec.database,
        number: segment.number,
        first_offset: segment.first_offset.0,
        first_log_id: segment.first_log_id,
        segment_bytes: layout.spec.segment_bytes,
        generation,
        hole_count,
        frame_bytes: segment.frame_bytes,
        kept_bytes,
    };
    match SegmentHeader::decode(&header.encode()) {
        Ok(header) => Ok(header),
        Err(HeaderFault::Damaged(damage)) => Err(corrupted(damage)),
        Err(HeaderFault::Version(_)) => unreachable!("the header is of this version"),
    }
}

/// The file as the rest of the ledger is to see it.
pub(crate) fn view(file: Box<dyn File>, header: &SegmentHeader, path: &Path) -> Result<Box<dyn File>> {
    if header.generation == 0 { Ok(file) } else { Ok(Box::new(open_pruned(file, header, path)?)) }
}

fn open_pruned(file: Box<dyn File>, header: &SegmentHeader, path: &Path) -> Result<PrunedFile> {
    let corrupted =
        |offset, damage| Error::Corrupted { path: path.to_path_buf(), segment: Some(header.number), offset, damage };
    let table_at = SEGMENT_HEADER_BYTES + header.kept_bytes;
    let len = header.stored_bytes(0);
    if file.len().map_err(|e| Error::io(FileOp::Length, path, e))? != SEGMENT_HEADER_BYTES + len {
        return Err(corrupted(table_at, Damage::Length));
    }
    let table_len = usize::try_from(len - header.kept_bytes).expect("a segment's worth of rows");
    let bytes = file.read_at(table_at, table_len).map_err(|e| Error::io(FileOp::Read, path, e))?;
    let (covered, crc) = bytes.split_at(table_len - 4);
    if crc32c::crc32c(covered).to_be_bytes() != crc {
        return Err(corrupted(table_at, Damage::Checksum));
    }
    let (rows, count) = covered.split_at(covered.len() - 4);
    if count != header.hole_count.to_be_bytes() {
        return Err(corrupted(table_at, Damage::Field));
    }
    let mut holes = Vec::with_capacity(header.hole_count as usize);
    let (mut removed, mut end) = (0u64, 0u64);
    for row in rows.chunks_exact(ROW_BYTES) {
        let (offset, len) = row_range(row);
        let follows = u64::from(offset) >= end && len > 0;
        end = u64::from(offset) + u64::from(len);
        if !follows || end > header.frame_bytes {
            return Err(corrupted(table_at, Damage::Field));
        }
        holes.push((offset, u32::try_from(removed).map_err(|_| corrupted(table_at, Damage::Field))?));
        removed += u64::from(len);
    }
    if header.frame_bytes.checked_sub(removed) != Some(header.kept_bytes) {
        return Err(corrupted(table_at, Damage::Field));
    }
    let map = Map { holes, removed_bytes: removed, frame_bytes: header.frame_bytes, kept_bytes: header.kept_bytes };
    Ok(PrunedFile { inner: file, map })
}

fn row_range(row: &[u8]) -> (u32, u32) {
    let field = |at: usize| u32::from_be_bytes(row[at..at + 4].try_into().expect("4 bytes"));
    (field(0), field(4))
}

impl PrunedFile {
    /// Hash of the value that stood at an offset among the frames.
    fn hash(&self, offset: u64) -> io::Result<Option<Digest>> {
        let Ok(hole) = self.map.holes.binary_search_by_key(&offset, |(hole, _)| u64::from(*hole)) else {
            return Ok(None);
        };
        let at = SEGMENT_HEADER_BYTES + self.map.kept_bytes + (hole * ROW_BYTES) as u64;
        let row = self.inner.read_at(at, ROW_BYTES)?;
        Ok(Some(Digest(row[8..].try_into().expect("32 bytes"))))
    }
}

impl File for PrunedFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= SEGMENT_HEADER_BYTES + self.map.frame_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let header_end = end.min(SEGMENT_HEADER_BYTES);
        let mut out = Vec::with_capacity(len);
        if offset < header_end {
            out.extend_from_slice(&self.inner.read_at(offset, (header_end - offset) as usize)?);
        }
        if end <= SEGMENT_HEADER_BYTES {
            return Ok(out.into());
        }
        // Kept bytes stand side by side on disk: one read, then spread over the places that they have among the frames.
        let (from, to) = (offset.saturating_sub(SEGMENT_HEADER_BYTES), end - SEGMENT_HEADER_BYTES);
        let (kept_from, kept_to) = (self.map.kept_before(from), self.map.kept_before(to));
        let kept = self.inner.read_at(SEGMENT_HEADER_BYTES + kept_from, (kept_to - kept_from) as usize)?;
        let mut kept = &kept[..];
        let mut at = from;
        let mut hole = self.map.holes.partition_point(|(start, _)| u64::from(*start) < from).saturating_sub(1);
        while at < to {
            let next = self.map.holes.get(hole).map(|(start, _)| u64::from(*start));
            let hole_end = next.map_or(0, |start| start + self.map.len_of(hole));
            match next {
                Some(start) if start <= at => {
                    let skipped = hole_end.min(to).saturating_sub(at);
                    out.resize(out.len() + skipped as usize, 0);
                    at += skipped;
                    hole += 1;
                }
                next => {
                    let (piece, rest) = kept.split_at((next.unwrap_or(to).min(to) - at) as usize);
                    out.extend_from_slice(piece);
                    kept = rest;
                    at += piece.len() as u64;
                }
            }
        }
        Ok(out.into())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(SEGMENT_HEADER_BYTES + self.map.frame_bytes)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
}

/// The header of a segment's file.
pub(super) fn read_header(file: &dyn File, number: u64, path: &Path) -> Result<SegmentHeader> {
    let corrupted = |damage| Error::Corrupted { path: path.to_path_buf(), segment: Some(number), offset: 0, damage };
    let bytes = match file.read_at(0, SEGMENT_HEADER_BYTES as usize) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(corrupted(Damage::Missing)),
        Err(e) => return Err(Error::io(FileOp::Read, path, e)),
    };
    match SegmentHeader::decode(&bytes) {
        Ok(header) => Ok(header),
        Err(HeaderFault::Damaged(damage)) => Err(corrupted(damage)),
        Err(HeaderFault::Version(found)) => {
            Err(Error::UnsupportedVersion { path: path.to_path_buf(), found, supported: format::SEGMENT_VERSION })
        }
    }
}

/// The generation that a segment's file says it is; `None` when its header is damaged.
pub(crate) fn segment_generation(file: &dyn File, number: u64, path: &Path) -> Result<Option<u32>> {
    match read_header(file, number, path) {
        Ok(header) => Ok(Some(header.generation)),
        Err(Error::Corrupted { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Ledger {
    /// Hash of the value that stood at `position` before it was pruned; `None` when none was pruned there.
    pub(crate) fn pruned_hash(&self, position: super::Position) -> Result<Option<Digest>> {
        let Some(segment) = self.segment_at(position) else { return Ok(None) };
        if segment.generation == 0 {
            return Ok(None);
        }
        let path = self.layout.segment_path(segment.number);
        let mut last = self.last_pruned.lock();
        let file = match &*last {
            Some((number, generation, file)) if (*number, *generation) == (segment.number, segment.generation) => file,
            _ => {
                let file =
                    self.layout.vfs.open(&path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, &path, e))?;
                let header = read_header(&*file, segment.number, &path)?;
                let file = open_pruned(file, &header, &path)?;
                &last.insert((segment.number, header.generation, file)).2
            }
        };
        file.hash(position.0 - segment.first_offset.0).map_err(|e| Error::io(FileOp::Read, &path, e))
    }

    /// Makes a pruned segment known to a ledger that reads no files by itself, so that its hashes can be asked for.
    pub(crate) fn lend(&self, header: &SegmentHeader) {
        let segment = Segment::pruned(header);
        self.state.lock().segments = vec![segment];
    }

    /// Lets go of a segment's old file, so that its space returns.
    pub(super) fn forget_file(&self, number: u64) {
        self.readers.forget_segment(number);
        self.last_pruned.lock().take_if(|(last, ..)| *last == number);
    }

    fn segment_at(&self, position: super::Position) -> Option<SegmentInfo> {
        let state = self.state.lock();
        let after = state.segments.partition_point(|segment| segment.first_offset <= position.0);
        Some(state.segments.get(after.checked_sub(1)?)?.info())
    }

    /// Begins to write a closed segment again. Its frames follow through [`Rewrite::push`].
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when it is not closed; IO, which leaves the ledger as it was.
    pub(crate) fn rewrite(&self, number: u64, generation: u32) -> Result<Rewrite<'_>> {
        let (segment, _) =
            self.segment(number).filter(|(info, _)| info.closed).ok_or(Error::NoSuchSegment { number })?;
        let path = self.layout.new_segment_path(number);
        let file = self.layout.vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
        let rewrite = Rewrite {
            ledger: self,
            segment,
            generation,
            path,
            file,
            kept_bytes: 0,
            frame_bytes: 0,
            hasher: Hasher::new(),
            waiting: Vec::new(),
            written: 0,
            table: Vec::new(),
            done: false,
        };
        rewrite.file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, &rewrite.path, e))?;
        Ok(rewrite)
    }
}

/// A segment that is being written again without some of its values. Dropped before [`Rewrite::finish`], it leaves no trace.
#[derive(Debug)]
pub(crate) struct Rewrite<'a> {
    ledger: &'a Ledger,
    segment: SegmentInfo,
    generation: u32,
    path: PathBuf,
    file: Box<dyn File>,
    kept_bytes: u64,
    frame_bytes: u64,
    hasher: Hasher,
    waiting: Vec<u8>,
    /// Bytes behind the header that are in the file.
    written: u64,
    table: Vec<u8>,
    done: bool,
}

impl Rewrite<'_> {
    /// Adds the next frame, given as it is read, without the values in `holes`, which are in it and in order.
    pub(crate) fn push(&mut self, mut frame: Vec<u8>, holes: &[Hole]) -> Result<()> {
        let start = self.frame_bytes;
        let within = |offset: u32| usize::try_from(u64::from(offset) - start).expect("a hole is within its frame");
        for hole in holes {
            frame[within(hole.tag_at)] |= crate::command::VALUE_IS_PRUNED;
            let from = within(hole.offset);
            frame[from..from + hole.len as usize].fill(0);
        }
        if !holes.is_empty() {
            let crc = crc32c::crc32c(&frame[FRAME_PREFIX_BYTES..]);
            frame[4..FRAME_PREFIX_BYTES].copy_from_slice(&crc.to_be_bytes());
        }
        let mut at = 0;
        for hole in holes {
            let from = within(hole.offset);
            self.keep(&frame[at..from])?;
            at = from + hole.len as usize;
            self.table.put_u32(hole.offset);
            self.table.put_u32(hole.len);
            self.table.put_bytes(&hole.hash.0);
        }
        self.keep(&frame[at..])?;
        self.frame_bytes += frame.len() as u64;
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<()> {
        self.kept_bytes += bytes.len() as u64;
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= WRITE_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<()> {
        self.hasher.update(&self.waiting);
        self.file
            .write_at(SEGMENT_HEADER_BYTES + self.written, &self.waiting)
            .map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Makes the new file durable and puts it in the place of the old one.
    pub(crate) fn finish(mut self) -> Result<()> {
        let SegmentInfo { number, frame_bytes, .. } = self.segment;
        assert_eq!(self.frame_bytes, frame_bytes, "all frames of the segment were pushed");
        let ledger = self.ledger;
        let layout: &Layout = &ledger.layout;
        let epoch = ledger.state.lock().cut_epoch;
        let offsets = ledger.readers.offsets(layout, &self.segment, epoch)?;
        let hole_count = u32::try_from(self.table.len() / ROW_BYTES).expect("a hole has a byte of a segment");
        let mut table = std::mem::take(&mut self.table);
        table.put_u32(hole_count);
        self.waiting.extend_from_slice(&table);
        self.waiting.put_u32(crc32c::crc32c(&table));
        self.write_out()?;
        let header = SegmentHeader {
            database: layout.spec.database,
            number,
            first_offset: self.segment.first_offset.0,
            first_log_id: self.segment.first_log_id,
            segment_bytes: layout.spec.segment_bytes,
            generation: self.generation,
            hole_count,
            frame_bytes,
            kept_bytes: self.kept_bytes,
        };
        self.file.write_at(0, &header.encode()).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        self.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &self.path, e))?;
        let _writer = ledger.writer.lock();
        ledger.check_poison()?;
        match upkeep::name(layout, &self.path, number) {
            // Nothing has moved.
            Err(error @ Error::NoSpace { op: FileOp::Rename, .. }) => return Err(error),
            named => ledger.poison_if_failed(named)?,
        }
        self.done = true;
        let digest = self.hasher.clone().finish();
        let info = ledger.state.lock().set_rewritten(number, &header, self.written, digest);
        ledger.forget_file(number);
        if let Err(error) = write_sidecar(layout, &info, &offsets, digest) {
            // Whatever is left of it does not describe the segment, which says all of that itself.
            tracing::warn!(%error, segment = number, "the sidecar of a pruned segment could not be written");
            let _ = remove_sidecar(layout, number);
        }
        Ok(())
    }
}

impl Drop for Rewrite<'_> {
    fn drop(&mut self) {
        if !self.done {
            // If it cannot be removed now, opening does so.
            let _ = self.ledger.layout.vfs.remove_file(&self.path);
        }
    }
}
