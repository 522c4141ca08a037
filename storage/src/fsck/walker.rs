//! Goes over all files of a stopped database: the small ones, then the segments in order, each frame handed to the replay.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex, TxId};

use super::replay::Replay;
use super::resume::{Position as Kept, PositionFile};
use super::{Checked, Finding, Progress};
use crate::checkpoint::{self, CHECKPOINT_NAME, Checkpoint};
use crate::chunklog::ChunkLog;
use crate::command;
use crate::database::DatabaseSpec;
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::derived::{LogKind, SMALL_FILE_HEAD_BYTES};
use crate::format::{self, HeaderFault, SEGMENT_HEADER_BYTES, SIDECAR_HEADER_BYTES, SegmentHeader, SidecarHeader};
use crate::index::OnDisk;
use crate::limits::COPY_BYTES;
use crate::marks::{Marks, MarksOnDisk, Vote};
use crate::seal::SealLog;
use crate::segment::walk::{Step, Walk};
use crate::segment::{FrameKind, Position, SEGMENT_SUFFIX, SIDECAR_SUFFIX, file_name, parse_name, pruned_view};
use crate::transfer::hash_range;
use crate::vfs::{File, FileKind, OpenMode, Vfs};

mod index;

/// Frames between two calls of the progress callback, at most so many bytes.
const PROGRESS_BYTES: u64 = COPY_BYTES as u64;

/// One segment's file, opened. Values that it has lost read as zeros.
struct Segment {
    number: u64,
    path: PathBuf,
    file: Box<dyn File>,
    /// Header and frames, what is gone included.
    len: u64,
    /// On disk.
    file_bytes: u64,
    header: SegmentHeader,
    closed: bool,
}

/// Where the ledger goes on.
#[derive(Clone, Copy)]
struct End {
    offset: u64,
    last: LogId,
}

pub(super) struct Walker {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    ledger: PathBuf,
    checkpoint: Option<Checkpoint>,
    marks: MarksOnDisk,
    numbers: Vec<u64>,
    position: Option<PositionFile>,
    kept: Option<Kept>,
    replay: Option<Replay>,
    index: Option<OnDisk>,
    /// Generations and digests of the closed segments that are whole.
    digests: BTreeMap<u64, (u32, Digest)>,
    /// `None` at the start and behind damage.
    end: Option<End>,
    progress: Progress,
    reported_bytes: u64,
    report: Checked,
}

/// Damage is told, everything else stops the check.
fn damage_or(error: Error) -> Result<Error> {
    match error {
        Error::Corrupted { .. } | Error::ForeignDatabase { .. } | Error::SegmentSizeMismatch { .. } => Ok(error),
        other => Err(other),
    }
}

impl Walker {
    pub(super) fn start(vfs: &Arc<dyn Vfs>, dir: &Path, position: Option<&Path>) -> Result<Self> {
        let exists = |name: &str| vfs.exists(&dir.join(name)).map_err(|e| Error::io(FileOp::Open, &dir.join(name), e));
        let ledger = dir.join("ledger");
        if !exists("ledger")? {
            return Err(Error::NoDatabase { dir: dir.into() });
        }
        if exists("install")? {
            return Err(Error::Unfinished { dir: dir.into() });
        }
        let mut walker = Self {
            vfs: Arc::clone(vfs),
            dir: dir.to_path_buf(),
            numbers: segment_numbers(&**vfs, &ledger)?,
            ledger,
            checkpoint: None,
            marks: MarksOnDisk::default(),
            position: position.map(|path| PositionFile::new(vfs, path)),
            kept: None,
            replay: None,
            index: None,
            digests: BTreeMap::new(),
            end: None,
            progress: Progress::default(),
            reported_bytes: 0,
            report: Checked::default(),
        };
        match checkpoint::read(&**vfs, dir, None) {
            Ok(checkpoint) => walker.checkpoint = checkpoint,
            Err(error) => walker.found(damage_or(error)?),
        }
        let spec = walker.spec()?;
        if let Some(DatabaseSpec { id, .. }) = spec {
            walker.small_files(id)?;
            walker.open_index(id)?;
        } else if walker.checkpoint.is_none() && walker.report.is_sound() && walker.numbers.is_empty() {
            return Err(Error::NoDatabase { dir: dir.into() });
        }
        if let (Some(spec), Some(checkpoint)) = (spec, walker.checkpoint.clone()) {
            walker.prepare_replay(spec, &checkpoint)?;
        }
        Ok(walker)
    }

    fn prepare_replay(&mut self, spec: DatabaseSpec, checkpoint: &Checkpoint) -> Result<()> {
        if let Some(position) = &self.position {
            let applied = checkpoint.state.applied;
            self.kept = position.read(spec.id)?.filter(|kept| kept.checkpoint.state.applied <= applied);
        }
        let from = self.kept.as_ref().map(|kept| kept.checkpoint.clone());
        self.report.resumed_after = from.as_ref().map_or(0, |from| from.state.tx.0);
        match Replay::new(&self.vfs, &self.dir, spec, checkpoint.sizes, from) {
            Ok(replay) => self.replay = Some(replay),
            Err(error) => self.found(damage_or(error)?),
        }
        Ok(())
    }

    /// Who this is: the checkpoint says it, or the first segment whose header is whole.
    fn spec(&mut self) -> Result<Option<DatabaseSpec>> {
        let mut spec = None;
        for number in self.numbers.clone() {
            let path = self.segment_path(number);
            let file = self.vfs.open(&path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, &path, e))?;
            let len = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
            let header = read_header(&*file, &path, number, len)?.ok();
            let pruned = header.as_ref().filter(|header| header.generation > 0);
            self.progress.bytes_total +=
                pruned.map_or(len.saturating_sub(SEGMENT_HEADER_BYTES), |header| header.frame_bytes);
            spec =
                spec.or(header.map(|header| DatabaseSpec { id: header.database, segment_bytes: header.segment_bytes }));
        }
        if let Some(checkpoint) = &self.checkpoint {
            let segment_bytes = spec.map_or(crate::limits::SEGMENT_BYTES_DEFAULT, |spec| spec.segment_bytes);
            spec = Some(DatabaseSpec { id: checkpoint.database, segment_bytes });
        }
        self.report.database = spec.map(|spec| spec.id);
        Ok(spec)
    }

    fn small_files(&mut self, id: DatabaseId) -> Result<()> {
        match Marks::read(&*self.vfs, &self.dir, id) {
            Ok((marks, torn)) => {
                self.marks = marks;
                if torn.is_some() {
                    self.report.unfinished.push(self.dir.join("marks"));
                }
            }
            Err(error) => self.found(damage_or(error)?),
        }
        // What else is wrong with them is found above and below.
        if let Err(error @ Error::Corrupted { damage: Damage::Missing, .. }) =
            Marks::must_be_there(&*self.vfs, &self.dir, id)
        {
            self.found(error);
        }
        if let Err(error) = Vote::new(&self.dir, id).load(&self.vfs) {
            self.found(damage_or(error)?);
        }
        Ok(())
    }

    fn found(&mut self, error: Error) {
        self.report.findings.push(Finding { tx: None, log_index: None, derived_from: None, error });
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        self.ledger.join(file_name(number, SEGMENT_SUFFIX))
    }

    pub(super) fn run(mut self, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Checked> {
        let last = self.numbers.last().copied();
        let mut next = 0;
        for number in self.numbers.clone() {
            if number != next {
                // One finding for the gap, however wide.
                self.end = None;
                let (path, segment) = (self.segment_path(next), Some(next));
                self.bad_frame(Error::Corrupted { path, segment, offset: 0, damage: Damage::Missing }, None);
            }
            next = number + 1;
            if !self.segment(number, Some(number) < last, progress)? {
                return Ok(self.report);
            }
        }
        self.finish()?;
        if !self.check_index(progress)? {
            return Ok(self.report);
        }
        if let Some(position) = &self.position {
            position.remove()?;
        }
        self.report.complete = true;
        Ok(self.report)
    }

    /// False when the caller wants no more.
    fn segment(&mut self, number: u64, closed: bool, progress: &mut dyn FnMut(Progress) -> bool) -> Result<bool> {
        let before = self.end.take();
        let Some(segment) = self.open_segment(number, closed, before)? else {
            self.replay = None;
            return Ok(true);
        };
        self.report.segments += 1;
        let mut walk = Walk::new(&*segment.file, &segment.path, segment.header.first_log_id, segment.len);
        let mut hasher = Hasher::new();
        let mut offsets = Vec::new();
        let generation = segment.header.generation;
        let kept = self.kept.as_ref().and_then(|kept| kept.digests.get(number as usize)).copied();
        let done_before = kept.is_some();
        // It may have been pruned since.
        let kept = kept.filter(|(then, _)| *then == generation).map(|(_, digest)| digest);
        if let (Some(replay), true) = (&self.replay, generation > 0) {
            replay.lend(&segment.header);
        }
        let stopped_by = loop {
            match walk.next()? {
                Step::Frame { at, frame, bytes } => {
                    if kept.is_none() && generation == 0 {
                        hasher.update(&bytes);
                    }
                    offsets.push(at - SEGMENT_HEADER_BYTES);
                    self.progress.bytes_done += bytes.len() as u64;
                    let position = Position(segment.header.first_offset + at - SEGMENT_HEADER_BYTES);
                    self.frame(&segment, at, position, &frame)?;
                    if self.progress.bytes_done - self.reported_bytes >= PROGRESS_BYTES {
                        self.reported_bytes = self.progress.bytes_done;
                        if !progress(self.progress) {
                            return Ok(false);
                        }
                    }
                }
                Step::End => break None,
                Step::Bad(damage) => break Some(damage),
            }
        };
        let whole = self.segment_end(&segment, walk.at(), walk.last(), stopped_by)?;
        let digest = match kept {
            Some(kept) => kept,
            None if generation == 0 => hasher.finish(),
            None => hash_range(&*self.vfs, &segment.path, SEGMENT_HEADER_BYTES, segment.file_bytes)?,
        };
        if whole && closed {
            self.digests.insert(number, (generation, digest));
        }
        self.end = match walk.last() {
            Some(last) if whole => {
                let offset = segment.header.first_offset + walk.at() - SEGMENT_HEADER_BYTES;
                Some(End { offset, last })
            }
            _ => None,
        };
        if whole && closed {
            self.sidecar(&segment, walk.at(), walk.last(), digest, &offsets)?;
            if !done_before {
                self.keep_position()?;
            }
        }
        Ok(progress(self.progress))
    }

    fn open_segment(&mut self, number: u64, closed: bool, before: Option<End>) -> Result<Option<Segment>> {
        let path = self.segment_path(number);
        let corrupted = |damage| Error::Corrupted { path: path.clone(), segment: Some(number), offset: 0, damage };
        let file = self.vfs.open(&path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, &path, e))?;
        let len = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let header = match read_header(&*file, &path, number, len)? {
            Ok(header) => header,
            Err(damage) => {
                self.bad_frame(corrupted(damage), before.and_then(|end| end.last.index.next()));
                return Ok(None);
            }
        };
        if let Some(expected) = self.report.database
            && header.database != expected
        {
            self.found(Error::ForeignDatabase { path, expected, found: header.database });
            return Ok(None);
        }
        let continues = match before {
            None => number > 0 || header.first_offset == 0,
            Some(end) => {
                header.first_offset == end.offset
                    && Some(header.first_log_id.index) == end.last.index.next()
                    && header.first_log_id.term >= end.last.term
            }
        };
        if header.number != number || !continues {
            self.bad_frame(corrupted(Damage::Chain), Some(header.first_log_id.index));
            return Ok(None);
        }
        let file_bytes = len;
        let (file, len) = match pruned_view(file, &header, &path) {
            Ok(file) if header.generation > 0 => (file, SEGMENT_HEADER_BYTES + header.frame_bytes),
            Ok(file) => (file, len),
            Err(error) => {
                self.bad_frame(damage_or(error)?, Some(header.first_log_id.index));
                return Ok(None);
            }
        };
        Ok(Some(Segment { number, path, file, len, file_bytes, header, closed }))
    }

    fn frame(&mut self, segment: &Segment, at: u64, position: Position, frame: &crate::segment::Frame) -> Result<()> {
        let index = frame.log_id.index;
        let applied = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.state.applied);
        if Some(frame.log_id) > applied {
            self.report.uncompared_frames += 1;
            if frame.kind == FrameKind::Command && Some(frame.log_id) <= self.marks.committed.max(applied) {
                // What is committed must be readable for ever.
                if let Err(error) = command::decode_located(&frame.payload) {
                    self.at_frame(segment, at, index, None, error.into());
                }
            }
            return Ok(());
        }
        let Some(replay) = &mut self.replay else { return Ok(()) };
        if replay.state().applied.is_some_and(|done| index <= done.index) {
            if let Err(error) = replay.skip(position, frame) {
                self.replay = None;
                self.at_frame(segment, at, index, None, damage_or(error)?);
            }
            return Ok(());
        }
        let differences = replay.apply(position, frame)?;
        self.progress.tx = replay.state().tx;
        if differences.is_empty() {
            self.report.txs = self.progress.tx.0 - self.report.resumed_after;
            return Ok(());
        }
        self.replay = None;
        for difference in differences {
            self.at_frame(segment, at, index, difference.tx, difference.error);
        }
        Ok(())
    }

    fn at_frame(&mut self, segment: &Segment, at: u64, index: LogIndex, tx: Option<TxId>, error: Error) {
        let derived_from = Some((segment.path.clone(), at));
        self.report.findings.push(Finding { tx, log_index: Some(index), derived_from, error });
    }

    /// The frame at `index` cannot be read, so nothing behind it can be derived.
    fn bad_frame(&mut self, error: Error, index: Option<LogIndex>) {
        let index = index.or_else(|| self.replay.as_ref().and_then(|replay| replay.state().applied?.index.next()));
        let tx = self.replay.take().and_then(|replay| replay.tx_of_next(index?));
        self.report.findings.push(Finding { tx, log_index: index, derived_from: None, error });
    }

    /// Whether the segment's frames go as far as they must.
    fn segment_end(
        &mut self,
        segment: &Segment,
        at: u64,
        last: Option<LogId>,
        stopped_by: Option<Damage>,
    ) -> Result<bool> {
        let next = last.map_or(Some(segment.header.first_log_id.index), |last| last.index.next());
        let corrupted =
            |damage| Error::Corrupted { path: segment.path.clone(), segment: Some(segment.number), offset: at, damage };
        if segment.closed {
            if stopped_by.is_none() && at == segment.len && last.is_some() {
                return Ok(true);
            }
            self.bad_frame(corrupted(stopped_by.unwrap_or(Damage::Missing)), next);
            return Ok(false);
        }
        let applied = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.state.applied);
        let floor = self.marks.durable.max(applied).map(|id| id.index);
        if next.is_some() && floor >= next {
            self.bad_frame(corrupted(stopped_by.unwrap_or(Damage::Missing)), next);
            return Ok(false);
        }
        self.report.torn_bytes = crate::segment::bytes_before_zeros(&*segment.file, &segment.path, at, segment.len)?;
        Ok(true)
    }

    /// A sidecar may be missing or torn: a crash does that, and it is made again.
    fn sidecar(
        &mut self,
        segment: &Segment,
        end: u64,
        last: Option<LogId>,
        digest: Digest,
        offsets: &[u64],
    ) -> Result<()> {
        let path = self.ledger.join(file_name(segment.number, SIDECAR_SUFFIX));
        let file = match self.vfs.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(FileOp::Open, &path, e)),
        };
        let len = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let whole = usize::try_from(len).ok().filter(|_| len >= SIDECAR_HEADER_BYTES);
        let equal = match whole {
            None => false,
            Some(len) => {
                let bytes = file.read_at(0, len).map_err(|e| Error::io(FileOp::Read, &path, e))?;
                let (head, body) = bytes.split_at(SIDECAR_HEADER_BYTES as usize);
                SidecarHeader::decode(head).is_ok_and(|header| {
                    let found = if header.file_bytes() == len as u64 {
                        format::decode_offsets(&header, body).unwrap_or_default()
                    } else {
                        Vec::new()
                    };
                    header.database == segment.header.database
                        && header.number == segment.number
                        && header.first_offset == segment.header.first_offset
                        && header.first_log_id == segment.header.first_log_id
                        && Some(header.last_log_id) == last
                        && header.frame_bytes == end - SEGMENT_HEADER_BYTES
                        && (header.generation, header.digest) == (segment.header.generation, digest)
                        && found.iter().map(|offset| u64::from(*offset)).eq(offsets.iter().copied())
                })
            }
        };
        if !equal {
            self.report.unfinished.push(path);
        }
        Ok(())
    }

    /// Remembers that the segments so far are done, when everything in them was compared.
    fn keep_position(&self) -> Result<()> {
        let (Some(position), Some(replay), Some(end)) = (&self.position, &self.replay, self.end) else {
            return Ok(());
        };
        let digests: Vec<_> = self.digests.values().copied().collect();
        let Some(database) = self.report.database else { return Ok(()) };
        if self.report.is_sound() && replay.state().applied == Some(end.last) {
            position.write(database, &digests, &replay.encode())?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let applied = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.state.applied);
        if let (Some(replay), Some(checkpoint)) = (&self.replay, &self.checkpoint) {
            let path = self.dir.join(CHECKPOINT_NAME);
            let encoded = Checkpoint::encode(checkpoint.database, &checkpoint.state, &checkpoint.sizes);
            if replay.state().applied == applied && replay.encode() != encoded {
                let offset = SMALL_FILE_HEAD_BYTES as u64;
                let error = Error::Corrupted { path, segment: None, offset, damage: Damage::Differs };
                let log_index = applied.map(|id| id.index);
                self.report.findings.push(Finding { tx: None, log_index, derived_from: None, error });
            }
        }
        let floor = self.marks.durable.max(applied);
        let end = self.end.map(|end| end.last.index);
        if self.report.is_sound() && floor.map(|id| id.index) > end {
            let number = self.numbers.last().copied().unwrap_or(0);
            let path = self.segment_path(number);
            let offset = SEGMENT_HEADER_BYTES;
            let error = Error::Corrupted { path, segment: Some(number), offset, damage: Damage::Missing };
            self.bad_frame(error, end.map_or(Some(LogIndex(0)), |end| end.next()));
        }
        self.seals()
    }

    /// Seals are read from the disk: a damaged one was found above, when the log could be derived that far.
    fn seals(&mut self) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let (id, sizes) = (checkpoint.database, checkpoint.sizes);
        let log =
            ChunkLog::open_read_only(&self.vfs, self.dir.join("seal"), LogKind::Seal, id, sizes.chunk, sizes.seal);
        let sealed = match SealLog::open(log) {
            Ok(seals) => seals.digests(),
            Err(error) => {
                let error = damage_or(error)?;
                if self.report.findings.iter().all(|finding| finding.to_string() != error.to_string()) {
                    self.found(error);
                }
                return Ok(());
            }
        };
        for (number, (sealed_generation, digest)) in sealed {
            let Some((generation, found)) = self.digests.get(&number).copied() else { continue };
            if generation != sealed_generation {
                // Pruned here and not sealed yet, or the other way round.
                continue;
            }
            self.report.sealed += 1;
            if found != digest {
                let path = self.segment_path(number);
                let offset = SEGMENT_HEADER_BYTES;
                self.found(Error::Corrupted { path, segment: Some(number), offset, damage: Damage::Hash });
            }
        }
        Ok(())
    }
}

fn segment_numbers(vfs: &dyn Vfs, ledger: &Path) -> Result<Vec<u64>> {
    let names = vfs.read_dir(ledger).map_err(|e| Error::io(FileOp::ReadDir, ledger, e))?;
    let files = names.iter().filter(|(_, kind)| *kind == FileKind::File);
    let mut numbers: Vec<u64> = files.filter_map(|(name, _)| parse_name(name, SEGMENT_SUFFIX)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The header of a segment file, or why it is none.
fn read_header(
    file: &dyn File,
    path: &Path,
    number: u64,
    len: u64,
) -> Result<std::result::Result<SegmentHeader, Damage>> {
    if len < SEGMENT_HEADER_BYTES {
        return Ok(Err(Damage::Missing));
    }
    let head = usize::try_from(SEGMENT_HEADER_BYTES).expect("a small constant");
    let bytes = file.read_at(0, head).map_err(|e| Error::io(FileOp::Read, path, e))?;
    match SegmentHeader::decode(&bytes) {
        Ok(header) if header.number != number => Ok(Err(Damage::Chain)),
        Ok(header) => Ok(Ok(header)),
        Err(HeaderFault::Damaged(damage)) => Ok(Err(damage)),
        Err(HeaderFault::Version(found)) => {
            let (path, supported) = (path.to_path_buf(), format::SEGMENT_VERSION);
            Err(Error::UnsupportedVersion { path, found, supported })
        }
    }
}
