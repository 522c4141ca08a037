//! Opening: what is in the folder, does it belong together, where does it end.
//!
//! Only the newest segment can have a torn tail, because a segment is durable before the next one has a name. Older ones
//! are taken at the word of their sidecars; a sidecar that is missing or does not fit is made again from the segment,
//! where every frame is then checked. Where that fails too, a ledger that is opened to be mended goes on without the segment
//! ([`Ledger::open_to_mend`](super::Ledger::open_to_mend)): its neighbours say where it begins and ends.

use std::path::{Path, PathBuf};

use alhambra_ledger::ids::{LogId, LogIndex};

use super::readers::read_sidecar_header;
use super::scan::{self, Scan};
use super::state::Segment;
use super::writer::{OpenSegment, write_sidecar};
use super::{Layout, LedgerReport, Position, RecoveryFloor, SegmentInfo, parse_name, pruned};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{self, FRAME_PREFIX_BYTES, FramePrefix, SEGMENT_HEADER_BYTES, SegmentHeader, SidecarHeader};
use crate::limits;
use crate::transfer::hash_range;
use crate::vfs::{File, FileKind, OpenMode};

/// How much of a tail is written again at once, bytes.
const REWRITE_BYTES: u64 = 1 << 20;

/// What opening a folder ends with.
pub(super) struct Recovered {
    pub segments: Vec<Segment>,
    pub open: Option<OpenSegment>,
    pub report: LedgerReport,
}

/// Whether the sidecar is the one of this segment, as complete as the segment is.
pub(super) fn describes(sidecar: &SidecarHeader, layout: &Layout, segment: &SegmentInfo) -> bool {
    sidecar.database == layout.spec.database
        && sidecar.number == segment.number
        && sidecar.first_offset == segment.first_offset.0
        && sidecar.first_log_id == segment.first_log_id
        && sidecar.last_log_id == segment.last_log_id
        && sidecar.frame_bytes == segment.frame_bytes
        && sidecar.generation == segment.generation
}

/// The headers of all segments, and all segments but the newest.
pub(super) fn chain(layout: &Layout, report: &mut LedgerReport) -> Result<(Vec<SegmentHeader>, Vec<Segment>)> {
    let count = sort_folder(layout)?;
    let mut headers: Vec<SegmentHeader> = Vec::new();
    for number in 0..count {
        let header = match read_header(layout, number) {
            Err(Error::Corrupted { damage, .. }) => {
                report.headers_restored += 1;
                header_again(layout, number, headers.last(), damage)?
            }
            read => read?,
        };
        headers.push(header);
    }
    let mut segments: Vec<Segment> = Vec::new();
    for (at, header) in headers.iter().enumerate() {
        check_chain(layout, segments.last(), header)?;
        if let Some(next) = headers.get(at + 1) {
            segments.push(closed_segment(layout, header, next, report)?);
        }
    }
    Ok((headers, segments))
}

pub(super) fn recover(layout: &Layout, floor: RecoveryFloor) -> Result<Recovered> {
    let mut report = LedgerReport::default();
    let (headers, mut segments) = chain(layout, &mut report)?;
    let count = headers.len() as u64;
    let mut open = match headers.last() {
        None => None,
        Some(header) => {
            let newest = read_newest(layout, header, segments.last(), floor)?;
            open_newest(layout, header, newest, floor, &mut report)?
        }
    };
    // In a ledger that is to be mended no segment is removed: what another one is mended by would go with it.
    if let (None, Some(header), None) = (&open, headers.last(), &layout.forgotten) {
        // The newest segment never got a frame, so the log id in its header means nothing. The one before it takes over. That
        // was complete and durable before the newest had a name; if it is not, that is told before anything is removed.
        let before = match segments.pop() {
            None => None,
            Some(last) => {
                let before = &headers[headers.len() - 2];
                debug_assert_eq!(before.number, last.number);
                let complete = RecoveryFloor { durable_through: Some(last.last_log_id.index) };
                Some((before, read_newest(layout, before, segments.last(), complete)?))
            }
        };
        remove_segment(layout, header.number)?;
        if let Some((before, newest)) = before {
            open = open_newest(layout, before, newest, floor, &mut report)?;
        }
    }
    let open = open.map(|(segment, open)| {
        segments.push(segment);
        open
    });
    let last = segments.last().map(|segment| segment.last_log_id.index);
    if floor.durable_through > last {
        return Err(layout.corrupted(count.saturating_sub(1), SEGMENT_HEADER_BYTES, Damage::Missing));
    }
    if !segments.is_empty() {
        // Names that a killed process left unsynced.
        layout.sync_dir()?;
    }
    Ok(Recovered { segments, open, report })
}

/// Removes what was never given a name and counts segments, which have no gaps.
fn sort_folder(layout: &Layout) -> Result<u64> {
    layout.vfs.create_dir_all(&layout.dir).map_err(|e| Error::io(FileOp::CreateDir, &layout.dir, e))?;
    let names = layout.vfs.read_dir(&layout.dir).map_err(|e| Error::io(FileOp::ReadDir, &layout.dir, e))?;
    let mut numbers = Vec::new();
    for (name, _) in names.iter().filter(|(_, kind)| *kind == FileKind::File) {
        if let Some(number) = parse_name(name, super::SEGMENT_SUFFIX) {
            numbers.push(number);
        } else if [super::NEW_SEGMENT_SUFFIX, super::FETCHED_SEGMENT_SUFFIX]
            .iter()
            .any(|suffix| parse_name(name, suffix).is_some())
        {
            remove(layout, &layout.dir.join(name))?;
        }
    }
    numbers.sort_unstable();
    match (0..).zip(&numbers).find(|(expected, number)| expected != *number) {
        Some((number, _)) if layout.forgotten.is_none() => {
            Err(Error::SegmentMissing { dir: layout.dir.clone(), number })
        }
        _ => Ok(numbers.last().map_or(0, |last| last + 1)),
    }
}

/// The file of a segment that is not the newest. `None` when it is not there and the ledger is to be mended.
fn open_file(layout: &Layout, number: u64) -> Result<Option<Box<dyn File>>> {
    let path = layout.segment_path(number);
    match layout.vfs.open(&path, OpenMode::Read) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && layout.forgotten.is_some() => Ok(None),
        Err(e) => Err(Error::io(FileOp::Open, &path, e)),
    }
}

fn read_header(layout: &Layout, number: u64) -> Result<SegmentHeader> {
    let path = layout.segment_path(number);
    let Some(file) = open_file(layout, number)? else {
        return Err(layout.corrupted(number, 0, Damage::Missing));
    };
    let header = pruned::read_header(&*file, number, &path)?;
    if header.database != layout.spec.database {
        return Err(Error::ForeignDatabase { path, expected: layout.spec.database, found: header.database });
    }
    if header.segment_bytes != layout.spec.segment_bytes {
        let (expected, found) = (layout.spec.segment_bytes, header.segment_bytes);
        return Err(Error::SegmentSizeMismatch { path, expected, found });
    }
    Ok(header)
}

/// The header of a segment of which the own one is damaged. Everything in it stands elsewhere as well: in the spec, in the
/// sidecar or the length of the segment before, and in the sidecar or the first frame, each with a checksum; that it fits
/// its neighbours is looked at as of any other. The file stays as it is until it is mended, and is suspected until then.
fn header_again(layout: &Layout, number: u64, before: Option<&SegmentHeader>, damage: Damage) -> Result<SegmentHeader> {
    let path = layout.segment_path(number);
    let file = open_file(layout, number)?;
    let len = match &file {
        Some(file) => file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?,
        None => 0,
    };
    let stored_bytes = len.saturating_sub(SEGMENT_HEADER_BYTES);
    let file = file.filter(|_| stored_bytes > 0);
    let sidecar = read_sidecar_header(layout, &layout.sidecar_path(number))?.map(|(_, sidecar)| sidecar);
    let sidecar = sidecar.filter(|sidecar| sidecar.database == layout.spec.database && sidecar.number == number);
    let (first_offset, first_log_id, frame_bytes, generation) = match (sidecar, &file) {
        (Some(SidecarHeader { first_offset, first_log_id, frame_bytes, generation, .. }), _) => {
            (first_offset, first_log_id, frame_bytes, generation)
        }
        (None, None) => return Err(layout.corrupted(number, 0, damage)),
        (None, Some(file)) => match first_frame(&**file, &path, stored_bytes)? {
            Ok(log_id) => (end_of(layout, before, log_id)?, log_id, stored_bytes, 0),
            Err(_) => return Err(layout.corrupted(number, 0, damage)),
        },
    };
    let info = SegmentInfo {
        number,
        first_offset: Position(first_offset),
        first_log_id,
        // Not part of a header.
        last_log_id: first_log_id,
        frame_bytes,
        closed: true,
        generation,
        stored_bytes,
        hole_count: 0,
    };
    let header = match &file {
        _ if generation == 0 => layout.header_at_first(&info),
        None => return Err(layout.corrupted(number, 0, damage)),
        Some(file) => pruned::header_of_body(layout, &**file, stored_bytes, &info, generation, &path)?,
    };
    layout.suspects.lock().insert(number);
    tracing::warn!(
        segment = number,
        ?damage,
        "the header of a segment is damaged; all that it says is known otherwise"
    );
    Ok(header)
}

/// Logical offset behind a segment whose successor, which begins with `next`, does not say it. The sidecar says it even where
/// the file is gone or has the wrong length.
fn end_of(layout: &Layout, segment: Option<&SegmentHeader>, next: LogId) -> Result<u64> {
    let Some(segment) = segment else { return Ok(0) };
    if segment.generation > 0 {
        return Ok(segment.first_offset + segment.frame_bytes);
    }
    let remembered = remembered(layout, segment)?;
    if let Some(remembered) = remembered.filter(|it| it.last_log_id.index.next() == Some(next.index)) {
        return Ok(remembered.end_offset());
    }
    let Some(file) = open_file(layout, segment.number)? else {
        return Err(layout.corrupted(segment.number, 0, Damage::Missing));
    };
    let len = file.len().map_err(|e| Error::io(FileOp::Length, &layout.segment_path(segment.number), e))?;
    Ok(segment.first_offset + len.saturating_sub(SEGMENT_HEADER_BYTES))
}

/// A closed segment as its sidecar describes it; `None` when there is none of the segment that has this header.
fn remembered(layout: &Layout, header: &SegmentHeader) -> Result<Option<Segment>> {
    let sidecar = read_sidecar_header(layout, &layout.sidecar_path(header.number))?;
    Ok(sidecar.and_then(|(_, sidecar)| {
        let frame_bytes = if header.generation > 0 { header.frame_bytes } else { sidecar.frame_bytes };
        let mut segment = of_frames(header, frame_bytes);
        segment.last_log_id = sidecar.last_log_id;
        segment.digest = Some(sidecar.digest);
        describes(&sidecar, layout, &segment.info()).then_some(segment)
    }))
}

/// The log id of the first frame, or how it is damaged.
fn first_frame(file: &dyn File, path: &Path, stored_bytes: u64) -> Result<std::result::Result<LogId, Damage>> {
    let read = |len: u64| {
        let read = file.read_at(SEGMENT_HEADER_BYTES, usize::try_from(len).expect("a frame fits into memory"));
        read.map_err(|e| Error::io(FileOp::Read, path, e))
    };
    let total = match format::frame_prefix(&read(stored_bytes.min(FRAME_PREFIX_BYTES as u64))?) {
        Ok(FramePrefix::Frame(total)) if total as u64 <= stored_bytes => total as u64,
        Ok(_) => return Ok(Err(Damage::Missing)),
        Err(damage) => return Ok(Err(damage)),
    };
    Ok(format::decode_frame(&read(total)?).map(|(frame, _)| frame.log_id))
}

/// A segment starts where the one before ends.
pub(super) fn check_chain(layout: &Layout, before: Option<&Segment>, header: &SegmentHeader) -> Result<()> {
    let (number, continues) = match before {
        None => (0, header.first_offset == 0),
        Some(before) => (
            before.number + 1,
            header.first_offset == before.end_offset()
                && Some(header.first_log_id.index) == before.last_log_id.index.next()
                && header.first_log_id.term >= before.last_log_id.term,
        ),
    };
    if header.number == number && continues {
        return Ok(());
    }
    Err(layout.corrupted(number, 0, Damage::Chain))
}

fn of_frames(header: &SegmentHeader, frame_bytes: u64) -> Segment {
    Segment {
        number: header.number,
        first_offset: header.first_offset,
        first_log_id: header.first_log_id,
        last_log_id: header.first_log_id,
        frame_bytes,
        flushed_bytes: frame_bytes,
        offsets: None,
        digest: None,
        generation: header.generation,
        pruned_bytes: if header.generation > 0 { header.stored_bytes(frame_bytes) } else { 0 },
        hole_count: header.hole_count,
    }
}

/// A segment that has a successor: from its sidecar if that fits both, else from its frames. Where neither can be read it is
/// forgotten, if the ledger is to be mended.
fn closed_segment(
    layout: &Layout,
    header: &SegmentHeader,
    next: &SegmentHeader,
    report: &mut LedgerReport,
) -> Result<Segment> {
    let error = match believed_or_scanned(layout, header, next, report) {
        Err(error @ Error::Corrupted { .. }) => error,
        Err(error) if error.is_unreadable() => error,
        segment => return segment,
    };
    let frame_bytes = next.first_offset.checked_sub(header.first_offset).filter(|bytes| *bytes > 0);
    let last_index = next.first_log_id.index.0.checked_sub(1).filter(|last| *last >= header.first_log_id.index.0);
    let (Some(forgotten), Some(frame_bytes), Some(last_index)) = (&layout.forgotten, frame_bytes, last_index) else {
        return Err(error);
    };
    if header.generation > 0 && header.frame_bytes != frame_bytes {
        return Err(error);
    }
    tracing::warn!(segment = header.number, %error, "nothing is remembered of a damaged segment");
    forgotten.lock().insert(header.number);
    let mut segment = of_frames(header, frame_bytes);
    // Of which term it is stands in its last frame.
    segment.last_log_id.index = LogIndex(last_index);
    Ok(segment)
}

fn believed_or_scanned(
    layout: &Layout,
    header: &SegmentHeader,
    next: &SegmentHeader,
    report: &mut LedgerReport,
) -> Result<Segment> {
    let number = header.number;
    let path = layout.segment_path(number);
    let file = open_file(layout, number)?;
    let file_bytes = match &file {
        Some(file) => file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?,
        None => 0,
    };
    let pruned = header.generation > 0;
    if let Some(segment) = remembered(layout, header)? {
        let fits = Some(next.first_log_id.index) == segment.last_log_id.index.next()
            && next.first_offset == segment.end_offset();
        if fits {
            if file_bytes != SEGMENT_HEADER_BYTES + segment.info().stored_bytes {
                // What it should be is known: it is mended as any that has rotted.
                layout.suspects.lock().insert(number);
                tracing::warn!(segment = number, bytes = file_bytes, "the file of a segment has the wrong length");
            }
            return Ok(segment);
        }
    }
    let Some(file) = file else { return Err(layout.corrupted(number, 0, Damage::Missing)) };
    let stored_bytes = file_bytes.saturating_sub(SEGMENT_HEADER_BYTES);
    let frame_bytes = if pruned { header.frame_bytes } else { stored_bytes };
    if file_bytes < SEGMENT_HEADER_BYTES || stored_bytes != header.stored_bytes(frame_bytes) {
        return Err(layout.corrupted(number, file_bytes, Damage::Length));
    }
    let mut segment = of_frames(header, frame_bytes);
    let file = pruned::view(file, header, &path)?;
    let scan = scan::scan(&*file, &path, header.first_log_id, SEGMENT_HEADER_BYTES + frame_bytes)?;
    let (Some(last_log_id), true) = (scan.last_log_id, scan.frame_bytes == segment.frame_bytes) else {
        let damage = scan.damage.unwrap_or(Damage::Missing);
        return Err(layout.corrupted(number, SEGMENT_HEADER_BYTES + scan.frame_bytes, damage));
    };
    segment.last_log_id = last_log_id;
    let digest =
        if pruned { hash_range(&*layout.vfs, &path, SEGMENT_HEADER_BYTES, file_bytes)? } else { scan.hasher.finish() };
    segment.digest = Some(digest);
    write_sidecar(layout, &segment.info(), &scan.offsets, digest)?;
    report.sidecars_rebuilt += 1;
    Ok(segment)
}

/// The newest segment as it was found.
struct Newest {
    path: PathBuf,
    file: Box<dyn File>,
    file_bytes: u64,
    scan: Scan,
}

/// Scans the newest segment and changes nothing. Refused when a frame that the floor promises is not there.
fn read_newest(
    layout: &Layout,
    header: &SegmentHeader,
    before: Option<&Segment>,
    floor: RecoveryFloor,
) -> Result<Newest> {
    check_chain(layout, before, header)?;
    let number = header.number;
    if header.generation > 0 {
        // It was sealed before it lost values, and its seal stands in a later one.
        return Err(Error::SegmentMissing { dir: layout.dir.clone(), number: number + 1 });
    }
    let path = layout.segment_path(number);
    let file = layout.vfs.open(&path, OpenMode::ReadWrite).map_err(|e| Error::io(FileOp::Open, &path, e))?;
    let file_bytes = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
    let scan = scan::scan(&*file, &path, header.first_log_id, file_bytes)?;
    let next_index = scan.last_log_id.map_or(Some(header.first_log_id.index), |last| last.index.next());
    if floor.durable_through >= next_index && next_index.is_some() {
        let end = SEGMENT_HEADER_BYTES + scan.frame_bytes;
        return Err(layout.corrupted(number, end, scan.damage.unwrap_or(Damage::Missing)));
    }
    Ok(Newest { path, file, file_bytes, scan })
}

/// The newest segment: its torn tail zeroed, everything in it durable. `None` when it holds no frame; it is as it was then.
fn open_newest(
    layout: &Layout,
    header: &SegmentHeader,
    newest: Newest,
    floor: RecoveryFloor,
    report: &mut LedgerReport,
) -> Result<Option<(Segment, OpenSegment)>> {
    let Newest { path, file, file_bytes, scan } = newest;
    let number = header.number;
    let end = SEGMENT_HEADER_BYTES + scan.frame_bytes;
    let torn_bytes = scan::bytes_before_zeros(&*file, &path, end, file_bytes)?;
    report.cut_bytes += torn_bytes;
    let Some(last_log_id) = scan.last_log_id else { return Ok(None) };
    let info = SegmentInfo {
        number,
        first_offset: Position(header.first_offset),
        first_log_id: header.first_log_id,
        last_log_id,
        frame_bytes: scan.frame_bytes,
        closed: true,
        generation: 0,
        stored_bytes: scan.frame_bytes,
        hole_count: 0,
    };
    let sidecar = read_sidecar_header(layout, &layout.sidecar_path(number))?;
    if sidecar.is_some_and(|(_, sidecar)| describes(&sidecar, layout, &info)) {
        // It was written when the next segment had durable frames, and is removed before that one is.
        return Err(Error::SegmentMissing { dir: layout.dir.clone(), number: number + 1 });
    }
    // It takes frames again, so its sidecar, if one of other frames is left, must not come back and describe it.
    remove_sidecar(layout, number)?;
    let head = header.encode();
    if file.read_at(0, head.len()).map_err(|e| Error::io(FileOp::Read, &path, e))? != head {
        file.write_at(0, &head).map_err(|e| Error::io(FileOp::Write, &path, e))?;
        file.sync_data().map_err(|e| Error::io(FileOp::Sync, &path, e))?;
        layout.suspects.lock().remove(&number);
    }
    rewrite(&*file, &path, unproven_from(&scan, header.first_log_id.index, floor), scan.frame_bytes)?;
    let segment = Segment {
        number,
        first_offset: header.first_offset,
        first_log_id: header.first_log_id,
        last_log_id,
        frame_bytes: scan.frame_bytes,
        flushed_bytes: scan.frame_bytes,
        offsets: Some(scan.offsets),
        digest: None,
        generation: 0,
        pruned_bytes: 0,
        hole_count: 0,
    };
    let open = OpenSegment {
        number,
        path,
        file,
        frame_bytes: scan.frame_bytes,
        file_bytes,
        hasher: scan.hasher,
        unhashed: Vec::new(),
        unhashed_bytes: 0,
        remains: false,
        finished: false,
    };
    if torn_bytes > 0 {
        open.zero_from(end)?;
    } else {
        open.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &open.path, e))?;
    }
    Ok(Some((segment, open)))
}

/// Offset of the first frame of which the floor does not say that it is durable.
fn unproven_from(scan: &Scan, first: LogIndex, floor: RecoveryFloor) -> u64 {
    let proven = floor.durable_through.map_or(0, |through| (through.0 + 1).saturating_sub(first.0));
    let offset = usize::try_from(proven).ok().and_then(|proven| scan.offsets.get(proven));
    offset.map_or(scan.frame_bytes, |offset| u64::from(*offset))
}

/// Writes frames again as they were read. After a failed sync the system may hold pages that it takes for clean although
/// the disk never got them; a sync alone would then prove nothing.
fn rewrite(file: &dyn File, path: &Path, from: u64, to: u64) -> Result<()> {
    let mut at = from;
    while at < to {
        let piece = usize::try_from(REWRITE_BYTES.min(to - at)).expect("a small constant");
        let bytes = file.read_at(SEGMENT_HEADER_BYTES + at, piece).map_err(|e| Error::io(FileOp::Read, path, e))?;
        file.write_at(SEGMENT_HEADER_BYTES + at, &bytes).map_err(|e| Error::io(FileOp::Write, path, e))?;
        at += piece as u64;
    }
    Ok(())
}

/// Removes a segment, durably, so that nothing that was in it is read again. First the sidecar of the one before, which says
/// that there is a next one.
pub(super) fn remove_segment(layout: &Layout, number: u64) -> Result<()> {
    if let Some(before) = number.checked_sub(1) {
        remove_sidecar(layout, before)?;
    }
    remove_if_there(layout, &layout.sidecar_path(number))?;
    remove_if_there(layout, &layout.segment_path(number))?;
    layout.sync_dir()
}

/// Removes a segment that was being made, with and without its name.
pub(super) fn abandon_segment(layout: &Layout, number: u64) -> Result<()> {
    remove(layout, &layout.new_segment_path(number))?;
    remove_segment(layout, number)
}

/// Removes a sidecar, durably, before its segment changes.
pub(super) fn remove_sidecar(layout: &Layout, number: u64) -> Result<()> {
    if remove_if_there(layout, &layout.sidecar_path(number))? { layout.sync_dir() } else { Ok(()) }
}

fn remove_if_there(layout: &Layout, path: &Path) -> Result<bool> {
    match layout.vfs.remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(FileOp::Remove, path, e)),
    }
}

fn remove(layout: &Layout, path: &Path) -> Result<()> {
    remove_if_there(layout, path).map(|_| ())
}

/// The segment size is one that the formats can hold.
pub(super) fn check_segment_bytes(segment_bytes: u64) -> Result<()> {
    let (min, max) = (limits::SEGMENT_BYTES_MIN, limits::SEGMENT_BYTES_MAX);
    if (min..=max).contains(&segment_bytes) {
        return Ok(());
    }
    Err(Error::SegmentSizeInvalid { segment_bytes, min, max })
}
