//! The ledger of one database: frames in segment files. It is the value log and the replicated log in one, and the only
//! thing that is synced on the commit path. Frames carry opaque payloads: nothing here knows transactions or commands.
//!
//! ```text
//!  segment 0                     segment 1 (open)
//!  [header][frame][frame][frame] [header][frame][frame][frame]0000000000
//!          ^logical offset 0             ^offset = bytes of frames before, over all segments
//! ```
//!
//! A frame goes through three stages: staged (has its position, readable, lost in a crash), flushed (on disk and synced),
//! committed (the business of the layer above). What is not committed can be cut.
//!
//! Properties, in any order of calls and after any crash:
//! - what `flush` has reported is there, byte for byte, until it is cut;
//! - what `truncate_after` has cut, once it returned, never comes back;
//! - the frames on disk are a prefix of those staged, and no others; a damaged one is never returned;
//! - equal frames make equal files, whatever the batches in which they were flushed: rolling depends on offsets only.
//!
//! Three locks: the state (in memory, never held across IO), the writer (held for the whole of a flush or a cut) and the
//! readers' caches. `stage` and `read` take only the first and the last, so they never wait for a sync. Order: writer, state;
//! the caches are taken alone.
//!
//! Bytes: `docs/format.md`, sections "Segments" to "Recovery of the log".

mod pruned;
mod read;
mod readers;
mod recover;
mod scan;
mod state;
pub(crate) mod tail;
pub(crate) mod upkeep;
pub(crate) mod walk;
mod writer;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alhambra_ledger::digest::Digest;
use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::vfs::{OpenMode, Vfs};

use pruned::PrunedFile;
pub(crate) use pruned::{Hole, segment_generation, view as pruned_view};
pub(crate) use scan::bytes_before_zeros;
pub use tail::TailPiece;

use readers::Readers;
use state::{CutSegment, State};
use writer::OpenSegment;

pub(crate) const SEGMENT_SUFFIX: &str = ".seg";
pub(crate) const SIDECAR_SUFFIX: &str = ".idx";
const NEW_SEGMENT_SUFFIX: &str = ".new";
const FETCHED_SEGMENT_SUFFIX: &str = ".fetched";

/// Digits of a segment number in a file name.
const NAME_DIGITS: usize = 10;

/// Logical ledger offset: bytes of frames before it, over all segments; headers and padding do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Nothing: a new leader's first entry.
    Blank,
    /// An encoded `command::Command`.
    Command,
    /// A membership of the group.
    Membership,
}

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it stands in the replicated log.
    pub log_id: LogId,
    /// What the payload is.
    pub kind: FrameKind,
    /// Opaque to the ledger.
    pub payload: Bytes,
}

/// What all replicas of a database agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerSpec {
    /// Stands in every segment header.
    pub database: DatabaseId,
    /// Bytes of frames after which a segment is closed.
    pub segment_bytes: u64,
}

/// What is known to be durable, from outside the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryFloor {
    /// A frame at or below this index must be there and whole: if not, that is corruption and not a torn tail. Before
    /// [`Ledger::truncate_after`] cuts below it, whoever keeps it must lower it durably.
    pub durable_through: Option<LogIndex>,
}

/// What a node may choose for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerOptions {
    /// Flushed frames kept in memory, bytes.
    pub tail_cache_bytes: usize,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self { tail_cache_bytes: crate::limits::TAIL_CACHE_BYTES_DEFAULT }
    }
}

/// What opening found and repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerReport {
    /// Bytes of a torn tail that were zeroed.
    pub cut_bytes: u64,
    /// Segments whose damaged header was worked out again.
    pub headers_restored: u64,
    /// Sidecars written anew.
    pub sidecars_rebuilt: u64,
}

/// One segment, as far as it holds staged frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// From 0, without gaps.
    pub number: u64,
    /// Logical offset of its first frame.
    pub first_offset: Position,
    /// Of its first frame.
    pub first_log_id: LogId,
    /// Of its last frame.
    pub last_log_id: LogId,
    /// Bytes of frames, without header and padding.
    pub frame_bytes: u64,
    /// A later segment exists on disk: no frame follows in this one.
    pub closed: bool,
    /// 0 as written; else the number of the newest prune of which it has lost a value.
    pub generation: u32,
    /// Bytes behind the header of its file when it is closed: those of the frames, or fewer when it is pruned.
    pub stored_bytes: u64,
    /// Values that it has lost.
    pub hole_count: u32,
}

/// Where the files are and whose they are.
#[derive(Debug)]
struct Layout {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    spec: LedgerSpec,
    /// Segments in which damage was met; they are looked at by whoever repairs.
    suspects: Mutex<BTreeSet<u64>>,
    /// Closed segments of which no digest is known any more, when such a one is let through, to be mended; else it is an error.
    forgotten: Option<Mutex<BTreeSet<u64>>>,
}

impl Layout {
    fn new(vfs: Arc<dyn Vfs>, dir: &Path, spec: LedgerSpec) -> Self {
        Self { vfs, dir: dir.to_path_buf(), spec, suspects: Mutex::default(), forgotten: None }
    }

    /// One that lets closed segments through that cannot be read, as far as their neighbours say where they begin and end.
    fn to_mend(vfs: Arc<dyn Vfs>, dir: &Path, spec: LedgerSpec) -> Self {
        Self { forgotten: Some(Mutex::default()), ..Self::new(vfs, dir, spec) }
    }

    fn is_forgotten(&self, number: u64) -> bool {
        self.forgotten.as_ref().is_some_and(|forgotten| forgotten.lock().contains(&number))
    }

    fn path(&self, number: u64, suffix: &str) -> PathBuf {
        self.dir.join(file_name(number, suffix))
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        self.path(number, SEGMENT_SUFFIX)
    }

    fn new_segment_path(&self, number: u64) -> PathBuf {
        self.path(number, NEW_SEGMENT_SUFFIX)
    }

    fn fetched_segment_path(&self, number: u64) -> PathBuf {
        self.path(number, FETCHED_SEGMENT_SUFFIX)
    }

    fn sidecar_path(&self, number: u64) -> PathBuf {
        self.path(number, SIDECAR_SUFFIX)
    }

    /// The header that a segment has as long as it has lost no value.
    fn header_at_first(&self, info: &SegmentInfo) -> SegmentHeader {
        SegmentHeader {
            database: self.spec.database,
            number: info.number,
            first_offset: info.first_offset.0,
            first_log_id: info.first_log_id,
            segment_bytes: self.spec.segment_bytes,
            generation: 0,
            hole_count: 0,
            // Not known when the header is written.
            frame_bytes: 0,
            kept_bytes: 0,
        }
    }

    /// A segment's header is a function of what is known of it.
    fn header_of(&self, info: &SegmentInfo) -> Vec<u8> {
        let SegmentInfo { generation, hole_count, frame_bytes, stored_bytes, .. } = *info;
        let header = self.header_at_first(info);
        if generation == 0 {
            return header.encode();
        }
        let kept_bytes = pruned::kept_bytes(stored_bytes, hole_count);
        SegmentHeader { generation, hole_count, frame_bytes, kept_bytes, ..header }.encode()
    }

    fn sync_dir(&self) -> Result<()> {
        self.vfs.sync_dir(&self.dir).map_err(|e| Error::io(FileOp::SyncDir, &self.dir, e))
    }

    fn corrupted(&self, number: u64, offset: u64, damage: Damage) -> Error {
        self.suspects.lock().insert(number);
        Error::Corrupted { path: self.segment_path(number), segment: Some(number), offset, damage }
    }
}

/// The name of a file of a segment; [`parse_name`] reads it.
pub(crate) fn file_name(number: u64, suffix: &str) -> String {
    format!("{number:0NAME_DIGITS$}{suffix}")
}

/// The number in a file name with this suffix.
pub(crate) fn parse_name(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    let plain = digits.len() >= NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// The ledger of one database. All methods may be called from any thread; those that write are meant for one.
#[derive(Debug)]
pub struct Ledger {
    layout: Layout,
    state: Mutex<State>,
    writer: Mutex<Option<OpenSegment>>,
    readers: Readers,
    /// The pruned segment of which a hash was asked for last: number, generation, file.
    last_pruned: Mutex<Option<(u64, u32, PrunedFile)>>,
    /// Set by the first write or sync that fails, for ever: after it nobody knows what is on disk.
    poisoned: AtomicBool,
}

impl Ledger {
    /// Opens the ledger in `dir`, which is made when absent; an empty folder is an empty ledger. When it returns, every
    /// frame in the ledger is durable. Reads the newest segment whole and, of each other one, two headers.
    ///
    /// # Errors
    /// [`Error::Corrupted`] for a bad or missing frame at or below the floor in the newest segment, or in another one that has to be
    /// read because its sidecar is no help, for a bad segment header that cannot be worked out again, and for segments that do not
    /// continue each other; [`Error::SegmentMissing`],
    /// [`Error::ForeignDatabase`], [`Error::UnsupportedVersion`], [`Error::SegmentSizeMismatch`],
    /// [`Error::SegmentSizeInvalid`]; IO. A ledger that is refused has not been changed, but that a sidecar may have been
    /// made anew.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        spec: LedgerSpec,
        floor: RecoveryFloor,
        options: LedgerOptions,
    ) -> Result<(Self, LedgerReport)> {
        Self::open_layout(Layout::new(vfs, dir, spec), floor, options)
    }

    /// The same when closed segments are missing or damaged and no digest of them is known: they are forgotten, and are to be
    /// put in place by [`Ledger::replace`]. Nothing may be read of this ledger.
    pub(crate) fn open_to_mend(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        spec: LedgerSpec,
        floor: RecoveryFloor,
    ) -> Result<(Self, LedgerReport)> {
        Self::open_layout(Layout::to_mend(vfs, dir, spec), floor, LedgerOptions::default())
    }

    fn open_layout(layout: Layout, floor: RecoveryFloor, options: LedgerOptions) -> Result<(Self, LedgerReport)> {
        let spec = layout.spec;
        recover::check_segment_bytes(spec.segment_bytes)?;
        let recovered = recover::recover(&layout, floor)?;
        let state = State::new(spec.segment_bytes, options.tail_cache_bytes, recovered.segments);
        let ledger = Self {
            layout,
            state: Mutex::new(state),
            writer: Mutex::new(recovered.open),
            readers: Readers::new(),
            last_pruned: Mutex::new(None),
            poisoned: AtomicBool::new(false),
        };
        Ok((ledger, recovered.report))
    }

    /// A ledger without frames that never touches the files in `dir`: for who reads them by other means, and stages none.
    pub(crate) fn detached(vfs: Arc<dyn Vfs>, dir: &Path, spec: LedgerSpec) -> Self {
        Self {
            layout: Layout::new(vfs, dir, spec),
            state: Mutex::new(State::new(spec.segment_bytes, 0, Vec::new())),
            writer: Mutex::new(None),
            readers: Readers::new(),
            last_pruned: Mutex::new(None),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Adds frames to the end and returns the position of each. They can be read at once and are lost in a crash until
    /// they are flushed. Never waits for the disk.
    ///
    /// # Errors
    /// [`Error::NotNext`] when an index leaves a gap or a term falls (the first frame of a ledger may have any log id),
    /// [`Error::FrameTooLong`]: then none of the frames is added. [`Error::Poisoned`].
    pub fn stage(&self, frames: &[Frame]) -> Result<Vec<Position>> {
        self.check_poison()?;
        self.state.lock().stage(frames)
    }

    /// Writes all staged frames, one write per segment, syncs once, and returns through where the ledger is durable now.
    /// When a segment is full it is also cut, synced and given a sidecar, and the next one is made.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: nothing is lost or half done, and the same call succeeds when there is space again; what is not
    /// flushed stays staged and may be cut. IO; the ledger is poisoned then. [`Error::Poisoned`].
    pub fn flush(&self) -> Result<Option<LogId>> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        let batches = self.state.lock().unflushed();
        let written = writer::write_out(&self.layout, &self.state, &self.readers, &mut writer, &batches);
        if !matches!(written, Err(Error::NoSpace { .. })) {
            self.poison_if_failed(written)?;
        } else {
            written?;
        }
        Ok(self.state.lock().flushed)
    }

    /// Hashes what the last flushes wrote, so that neither a flush nor `digest` has to. The log thread calls it when it has
    /// answered whoever waited for the flush; without it, hashing is done when a few MiB wait.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn settle(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        if let Some(open) = writer.as_mut() {
            open.hash();
        }
        Ok(())
    }

    /// Frames and offset maps that are in memory and can be read again, bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.state.lock().tail_bytes() + self.readers.memory_bytes() as u64
    }

    /// Forgets flushed frames, offset maps and open files of closed segments; they are read again when somebody asks.
    pub(crate) fn forget(&self) {
        self.state.lock().forget_flushed();
        self.readers.forget();
    }

    /// Removes all frames after `last_kept`, or all frames for `None`, from memory and durably from disk: whole segments
    /// after the cut are removed, and the cut region is zeroed. Nothing happens when there are none.
    ///
    /// A [`RecoveryFloor`] above `last_kept` must have been lowered durably before, or the next open takes what is cut here
    /// for missing.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when a frame to be kept in the segment that is cut is damaged; nothing has changed then. IO;
    /// the ledger is poisoned then. [`Error::Poisoned`].
    pub fn truncate_after(&self, last_kept: Option<LogIndex>) -> Result<()> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        if last_kept >= self.flushed().map(|flushed| flushed.index) {
            return self.cut_staged(&mut writer, last_kept);
        }
        let cut = {
            let state = self.state.lock();
            // A segment holds the last kept frame, or nothing is kept.
            let kept = last_kept.and_then(|kept| state.segment_of(kept).map(|segment| (segment.info(), kept)));
            let files = state.segments.iter().filter(|segment| segment.flushed_bytes > 0).count() as u64;
            // A flush that found no space may have made one more.
            (kept, files.max(writer.as_ref().map_or(0, |open| open.number + 1)))
        };
        let (kept, files) = cut;
        self.cut_files(&mut writer, kept, files)
    }

    /// Forgets the frames from `first` on, which a flush has found no space for, so that they do not come with later ones;
    /// `false` when another flush has made them durable meanwhile: then they stay. So nothing durable is ever cut here, and no
    /// [`RecoveryFloor`] can be above what is left.
    ///
    /// # Errors
    /// IO; the ledger is poisoned then, and nobody knows whether the frames are on disk. [`Error::Poisoned`].
    pub(crate) fn take_back(&self, first: LogIndex) -> Result<bool> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        let flushed = self.flushed().map(|flushed| flushed.index);
        if flushed >= Some(first) {
            return Ok(false);
        }
        self.cut_staged(&mut writer, first.0.checked_sub(1).map(LogIndex))?;
        Ok(true)
    }

    /// Forgets frames that are not flushed, and what a flush that found no space has left of them on disk.
    fn cut_staged(&self, writer: &mut Option<OpenSegment>, last_kept: Option<LogIndex>) -> Result<()> {
        let (count, closed) = {
            let mut state = self.state.lock();
            state.cut_staged(last_kept);
            let last = state.segments.last();
            (state.segments.len() as u64, last.filter(|last| last.digest.is_some()).map(state::Segment::info))
        };
        if let Some(empty) = writer.take_if(|open| open.number >= count) {
            // Its header names a frame that is gone.
            drop(empty.file);
            self.poison_if_failed(recover::remove_segment(&self.layout, empty.number))?;
        }
        if let Some(open) = writer {
            let cleared = open.clear_remains();
            self.poison_if_failed(cleared)?;
        }
        match closed {
            // The next frame may have room in it: it is open again, as on a replica that never closed it.
            Some(closed) => self.cut_files(writer, Some((closed, closed.last_log_id.index)), count),
            None => Ok(()),
        }
    }

    /// Cuts what is on disk, in `files` files, behind a frame of a segment, or everything.
    fn cut_files(
        &self,
        writer: &mut Option<OpenSegment>,
        kept: Option<(SegmentInfo, LogIndex)>,
        files: u64,
    ) -> Result<()> {
        let reopened = match kept {
            Some((segment, last_kept)) => Some(self.prepare_cut(&segment, last_kept)?),
            None => None,
        };
        let first_removed = reopened.as_ref().map_or(0, |(cut, _)| cut.number + 1);
        let reopened = {
            let mut state = self.state.lock();
            let (cut, open) = reopened.unzip();
            state.cut_flushed(cut);
            open
        };
        *writer = None;
        // Newest first, each durably: a crash in between leaves no gap.
        let removed = (first_removed..files).rev().try_for_each(|number| recover::remove_segment(&self.layout, number));
        self.poison_if_failed(removed)?;
        if let Some(open) = reopened {
            let from = SEGMENT_HEADER_BYTES + open.frame_bytes;
            let zeroed = recover::remove_sidecar(&self.layout, open.number).and_then(|()| open.zero_from(from));
            self.poison_if_failed(zeroed)?;
            *writer = Some(open);
        }
        Ok(())
    }

    /// Reads the frames of a segment up to `last_kept`, which is in it, and changes nothing.
    fn prepare_cut(&self, segment: &SegmentInfo, last_kept: LogIndex) -> Result<(CutSegment, OpenSegment)> {
        let number = segment.number;
        let end = match self.position(LogIndex(last_kept.0 + 1))? {
            Some(end) if last_kept < segment.last_log_id.index => end.0 - segment.first_offset.0,
            _ => segment.frame_bytes,
        };
        let path = self.layout.segment_path(number);
        let file = self.layout.vfs.open(&path, OpenMode::ReadWrite).map_err(|e| Error::io(FileOp::Open, &path, e))?;
        let file_bytes = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let scan = scan::scan(&*file, &path, segment.first_log_id, (SEGMENT_HEADER_BYTES + end).min(file_bytes))?;
        let Some(last_log_id) = scan.last_log_id.filter(|last| last.index == last_kept && scan.frame_bytes == end)
        else {
            let damage = scan.damage.unwrap_or(Damage::Missing);
            return Err(self.layout.corrupted(number, SEGMENT_HEADER_BYTES + scan.frame_bytes, damage));
        };
        let cut = CutSegment { number, last_log_id, frame_bytes: end, offsets: scan.offsets };
        let open = OpenSegment {
            number,
            path,
            file,
            frame_bytes: end,
            file_bytes,
            hasher: scan.hasher,
            unhashed: Vec::new(),
            unhashed_bytes: 0,
            remains: false,
            finished: false,
        };
        Ok((cut, open))
    }

    /// Index of the first frame; `None` when the ledger is empty.
    pub fn first_index(&self) -> Option<LogIndex> {
        self.state.lock().first_index()
    }

    /// Log id of the last staged frame; `None` when the ledger is empty.
    pub fn last_log_id(&self) -> Option<LogId> {
        self.state.lock().last_log_id()
    }

    /// Log id of the last durable frame. Falls only by a cut.
    pub fn flushed(&self) -> Option<LogId> {
        self.state.lock().flushed
    }

    /// Logical offset behind the last staged frame.
    pub fn end(&self) -> Position {
        Position(self.state.lock().end_offset())
    }

    /// Bytes of all frames, but for values that are gone.
    pub fn stored_bytes(&self) -> u64 {
        self.state.lock().segments.iter().map(|segment| segment.info().stored_bytes).sum()
    }

    /// Log id of the last entry of the newest segment that has lost values: entries up to here may not be as they were
    /// appended.
    pub fn pruned_through(&self) -> Option<LogId> {
        self.state.lock().pruned_through
    }

    /// All segments, in order, those included whose frames are staged but have no file yet.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.state.lock().segments.iter().map(state::Segment::info).collect()
    }

    /// The digest of a segment and the generation that has it; see [`Ledger::digest`].
    pub(crate) fn generation_and_digest(&self, number: u64) -> Result<(u32, Digest)> {
        loop {
            let generation = |ledger: &Self| ledger.segment(number).map_or(0, |(info, _)| info.generation);
            let before = generation(self);
            let digest = self.digest(number)?;
            // Else it was written again in between.
            if generation(self) == before {
                return Ok((before, digest));
            }
        }
    }

    /// SHA-256 of the frames of a segment as they were appended; of a pruned one of everything behind its file's header. Of a closed segment it is remembered. Of the open one it
    /// covers what has been flushed, and may have to wait for a flush.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when the segment has no file.
    pub fn digest(&self, number: u64) -> Result<Digest> {
        let remembered = || self.segment(number).and_then(|(_, digest)| digest);
        if let Some(digest) = remembered() {
            return Ok(digest);
        }
        let mut writer = self.writer.lock();
        match writer.as_mut() {
            Some(open) if open.number == number => Ok(open.digest()),
            // Closed while this waited.
            _ => remembered().ok_or(Error::NoSuchSegment { number }),
        }
    }

    fn segment(&self, number: u64) -> Option<(SegmentInfo, Option<Digest>)> {
        let state = self.state.lock();
        let segment = state.segments.get(usize::try_from(number).ok()?)?;
        Some((segment.info(), segment.digest))
    }

    /// Path of a segment's file, there or not. Its frames start behind `format::SEGMENT_HEADER_BYTES`.
    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.layout.segment_path(number)
    }

    /// Path of a segment's sidecar, there or not: only closed segments have one.
    pub fn sidecar_path(&self, number: u64) -> PathBuf {
        self.layout.sidecar_path(number)
    }

    /// Whether a write or sync has failed; then only reads work until the ledger is opened again.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    fn check_poison(&self) -> Result<()> {
        if self.is_poisoned() { Err(Error::Poisoned) } else { Ok(()) }
    }

    fn poison_if_failed<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }
}
