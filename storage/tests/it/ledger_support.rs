//! Frames and ledgers for the tests of the log layer.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex};
use alhambra_storage::Result;
use alhambra_storage::segment::{
    Frame, FrameKind, Ledger, LedgerOptions, LedgerReport, LedgerSpec, Position, RecoveryFloor,
};
use alhambra_storage::vfs::Vfs;

/// Folder of every ledger here.
pub const DIR: &str = "db/ledger";

/// Whose ledgers they are.
pub const DATABASE: DatabaseId = DatabaseId(*b"\x01\x02\x03\x04\x05\x06\x07\x08test db!");

/// Bytes of a frame besides its payload, stated here on its own.
pub const FRAME_OVERHEAD_BYTES: u64 = 25;

/// Bytes of a segment file's header, stated here on its own.
pub const HEADER_BYTES: u64 = 256;

pub fn spec(segment_bytes: u64) -> LedgerSpec {
    LedgerSpec { database: DATABASE, segment_bytes }
}

pub fn floor(durable_through: Option<u64>) -> RecoveryFloor {
    RecoveryFloor { durable_through: durable_through.map(LogIndex) }
}

pub fn open_with(
    vfs: &Arc<dyn Vfs>,
    segment_bytes: u64,
    durable_through: Option<u64>,
    tail_cache_bytes: usize,
) -> Result<(Ledger, LedgerReport)> {
    let options = LedgerOptions { tail_cache_bytes };
    Ledger::open(Arc::clone(vfs), Path::new(DIR), spec(segment_bytes), floor(durable_through), options)
}

pub fn open(vfs: &Arc<dyn Vfs>, segment_bytes: u64, durable_through: Option<u64>) -> Result<(Ledger, LedgerReport)> {
    open_with(vfs, segment_bytes, durable_through, 0)
}

/// A frame whose payload depends on its log id, so that frames are told apart.
pub fn frame(term: u64, index: u64, payload_bytes: usize) -> Frame {
    let kind = match index % 3 {
        0 => FrameKind::Membership,
        1 => FrameKind::Command,
        _ => FrameKind::Blank,
    };
    let seed = (term as u8).wrapping_mul(31).wrapping_add(index as u8).wrapping_add(1);
    let payload: Vec<u8> = (0..payload_bytes).map(|at| seed.wrapping_add((at as u8).wrapping_mul(7))).collect();
    Frame { log_id: LogId::new(term, index), kind, payload: payload.into() }
}

pub fn frames(term: u64, indexes: std::ops::Range<u64>, payload_bytes: usize) -> Vec<Frame> {
    indexes.map(|index| frame(term, index, payload_bytes)).collect()
}

/// Everything that the ledger returns, read in steps.
pub fn read_all(ledger: &Ledger, bytes_max: usize) -> Result<Vec<(Position, Frame)>> {
    let Some(mut next) = ledger.first_index() else { return Ok(Vec::new()) };
    let mut all: Vec<(Position, Frame)> = Vec::new();
    loop {
        let step = ledger.read(next, LogIndex(u64::MAX), bytes_max)?;
        let Some((_, last)) = step.last() else { return Ok(all) };
        next = LogIndex(last.log_id.index.0 + 1);
        all.extend(step);
    }
}

/// The frames with the positions they must have, by counting bytes.
pub fn with_positions(frames: &[Frame]) -> Vec<(Position, Frame)> {
    let mut end = 0;
    let place = |frame: &Frame| {
        let position = Position(end);
        end += FRAME_OVERHEAD_BYTES + frame.payload.len() as u64;
        (position, frame.clone())
    };
    frames.iter().map(place).collect()
}

/// Frame bytes of each segment, by the rule of the plan: a frame goes to a new one when the current one holds something
/// and would grow beyond `segment_bytes`.
pub fn segment_sizes(frames: &[Frame], segment_bytes: u64) -> Vec<u64> {
    let mut sizes: Vec<u64> = Vec::new();
    for frame in frames {
        let bytes = FRAME_OVERHEAD_BYTES + frame.payload.len() as u64;
        match sizes.last_mut() {
            Some(size) if *size + bytes <= segment_bytes => *size += bytes,
            _ => sizes.push(bytes),
        }
    }
    sizes
}
