//! The ledger against a `Vec` of frames: any order of staging, flushing, cutting, reopening and power failures.

use std::sync::Arc;

use alhambra_ledger::digest::sha256;
use alhambra_ledger::ids::{LogId, LogIndex};
use alhambra_storage::Error;
use alhambra_storage::format;
use alhambra_storage::limits;
use alhambra_storage::segment::{Frame, Ledger, LedgerOptions, LedgerReport, Position};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use proptest::prelude::*;

use crate::ledger_support::*;

#[derive(Clone, Debug)]
enum Op {
    /// So many frames of these payload lengths, the term raised first by so much.
    Stage {
        term_step: u64,
        payload_bytes: Vec<usize>,
    },
    Flush,
    /// A flush while the disk has so many bytes left; then there is room again.
    FlushInto(u64),
    /// Keeps this share of what is there, of 256.
    Cut(u8),
    CutAll,
    Settle,
    Reopen,
    PowerLoss,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 0usize..60, 2 => 60usize..300, 1 => 300usize..1500];
    prop_oneof![
        6 => (0u64..2, prop::collection::vec(len, 0..6))
            .prop_map(|(term_step, payload_bytes)| Op::Stage { term_step, payload_bytes }),
        5 => Just(Op::Flush),
        3 => prop_oneof![0u64..400, 400u64..5000, 60_000u64..75_000].prop_map(Op::FlushInto),
        2 => any::<u8>().prop_map(Op::Cut),
        1 => Just(Op::CutAll),
        1 => Just(Op::Settle),
        2 => Just(Op::Reopen),
        1 => Just(Op::PowerLoss),
    ]
}

/// What must be there.
struct Model {
    frames: Vec<Frame>,
    flushed: usize,
    term: u64,
    /// The last flush found no space: it may have got through in part, in whole segments.
    half_flushed: bool,
}

impl Model {
    /// The ledger says how far it got: no less than before, and a prefix of what was staged.
    fn take_flushed(&mut self, ledger: &Ledger) {
        let flushed = ledger.flushed();
        let count = flushed.map_or(0, |flushed| {
            let at = self.frames.iter().position(|frame| frame.log_id == flushed);
            at.expect("only what was staged is flushed") + 1
        });
        assert!(count >= self.flushed, "{count} of {} flushed frames", self.flushed);
        self.flushed = count;
    }
}

fn check(ledger: &Ledger, model: &Model, segment_bytes: u64, read_bytes_max: usize) {
    let expected = with_positions(&model.frames);
    assert_eq!(read_all(ledger, read_bytes_max).unwrap(), expected);
    assert_eq!(ledger.last_log_id(), model.frames.last().map(|frame| frame.log_id));
    assert_eq!(ledger.first_index(), model.frames.first().map(|frame| frame.log_id.index));
    assert_eq!(ledger.flushed(), model.frames[..model.flushed].last().map(|frame| frame.log_id));
    let end = expected.last().map_or(0, |(at, frame)| at.0 + FRAME_OVERHEAD_BYTES + frame.payload.len() as u64);
    assert_eq!(ledger.end(), Position(end));

    let sizes = segment_sizes(&model.frames, segment_bytes);
    let segments = ledger.segments();
    assert_eq!(segments.iter().map(|segment| segment.frame_bytes).collect::<Vec<_>>(), sizes);
    for (position, frame) in &expected {
        let index = frame.log_id.index;
        assert_eq!(ledger.log_id(index).unwrap(), Some(frame.log_id));
        assert_eq!(ledger.position(index).unwrap(), Some(*position));
        let payload_at = Position(position.0 + FRAME_OVERHEAD_BYTES);
        assert_eq!(ledger.read_bytes(payload_at, frame.payload.len()).unwrap(), frame.payload);
    }
    let behind = LogIndex(model.frames.last().map_or(0, |frame| frame.log_id.index.0 + 1));
    assert_eq!(ledger.log_id(behind).unwrap(), None);
    assert_eq!(ledger.position(behind).unwrap(), None);
    assert!(matches!(ledger.read_bytes(Position(end), 1), Err(Error::NoSuchBytes { .. })));

    // Digests: of the flushed frames of each segment, hashed here from frames encoded one by one.
    let flushed_segments = segment_sizes(&model.frames[..model.flushed], segment_bytes).len();
    let mut rest = &model.frames[..model.flushed];
    for segment in &segments[..flushed_segments] {
        let count = rest.iter().take_while(|frame| frame.log_id.index <= segment.last_log_id.index).count();
        let mut bytes = Vec::new();
        rest[..count].iter().for_each(|frame| format::encode_frame(frame, &mut bytes));
        rest = &rest[count..];
        assert_eq!(ledger.digest(segment.number).unwrap(), sha256(&bytes));
        assert_eq!(ledger.recompute_digest(segment.number).unwrap(), sha256(&bytes));
        if !model.half_flushed {
            assert_eq!(segment.closed, segment.number + 1 < flushed_segments as u64);
        }
    }
    if model.half_flushed {
        return;
    }
    let unwritten = flushed_segments as u64;
    assert!(matches!(ledger.digest(unwritten), Err(Error::NoSuchSegment { .. })));
    assert!(matches!(ledger.recompute_digest(unwritten), Err(Error::NoSuchSegment { .. })));
}

fn run(ops: Vec<Op>, segment_bytes: u64, tail_cache_bytes: usize, read_bytes_max: usize) {
    let mem = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
    let mut ledger = open_with(&vfs, segment_bytes, None, tail_cache_bytes).unwrap().0;
    let mut model = Model { frames: Vec::new(), flushed: 0, term: 1, half_flushed: false };
    for op in ops {
        match op {
            Op::Stage { term_step, payload_bytes } => {
                model.term += term_step;
                let next = model.frames.last().map_or(0, |frame| frame.log_id.index.0 + 1);
                let new: Vec<Frame> =
                    (next..).zip(&payload_bytes).map(|(index, bytes)| frame(model.term, index, *bytes)).collect();
                let positions = ledger.stage(&new).unwrap();
                model.frames.extend(new);
                let expected: Vec<Position> = with_positions(&model.frames).into_iter().map(|(at, _)| at).collect();
                assert_eq!(positions, expected[expected.len() - positions.len()..]);
            }
            Op::Flush => {
                model.flushed = model.frames.len();
                assert_eq!(ledger.flush().unwrap(), model.frames.last().map(|frame| frame.log_id));
                model.half_flushed = false;
            }
            Op::FlushInto(room) => {
                mem.set_capacity(Some(mem.size_bytes() + room));
                match ledger.flush() {
                    Ok(flushed) => {
                        model.flushed = model.frames.len();
                        model.half_flushed = false;
                        assert_eq!(flushed, model.frames.last().map(|frame| frame.log_id));
                    }
                    Err(Error::NoSpace { .. }) => {
                        model.take_flushed(&ledger);
                        model.half_flushed = true;
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(!ledger.is_poisoned());
                mem.set_capacity(None);
            }
            Op::Cut(share) => {
                let keep = model.frames.len() * usize::from(share) / 256;
                let last_kept = model.frames[..keep].last().map(|frame| frame.log_id.index);
                ledger.truncate_after(last_kept).unwrap();
                model.frames.truncate(keep);
                model.flushed = model.flushed.min(keep);
                model.half_flushed &= model.flushed < keep;
                model.term += 1;
            }
            Op::CutAll => {
                ledger.truncate_after(None).unwrap();
                model.frames.clear();
                model.flushed = 0;
                model.half_flushed = false;
            }
            Op::Settle => ledger.settle().unwrap(),
            Op::Reopen | Op::PowerLoss => {
                drop(ledger);
                if matches!(op, Op::PowerLoss) {
                    mem.crash(Crash::PowerLoss);
                }
                let durable_through = model.frames[..model.flushed].last().map(|frame| frame.log_id.index.0);
                let (reopened, report) = open_with(&vfs, segment_bytes, durable_through, tail_cache_bytes).unwrap();
                if model.half_flushed {
                    // Whole frames at the start of what was written in part are as good as any.
                    model.take_flushed(&reopened);
                } else {
                    assert_eq!(report.cut_bytes, 0);
                    assert_eq!(reopened.flushed(), model.frames[..model.flushed].last().map(|frame| frame.log_id));
                }
                model.frames.truncate(model.flushed);
                model.half_flushed = false;
                ledger = reopened;
            }
        }
        check(&ledger, &model, segment_bytes, read_bytes_max);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn the_ledger_is_a_vec_of_frames(
        ops in prop::collection::vec(op(), 1..40),
        segment_bytes in 256u64..3000,
        tail_cache_bytes in prop_oneof![Just(0usize), 0usize..2000, Just(1 << 20)],
        read_bytes_max in prop_oneof![Just(0usize), 0usize..1000, Just(1 << 20)],
    ) {
        run(ops, segment_bytes, tail_cache_bytes, read_bytes_max);
    }
}

#[test]
fn frames_that_do_not_follow_are_refused_and_none_is_added() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let (ledger, _) = open(&vfs, 1024, None).unwrap();
    ledger.stage(&frames(3, 0..4, 10)).unwrap();
    let gap = [frame(3, 4, 1), frame(3, 6, 1)];
    let same = [frame(3, 3, 1)];
    let earlier_term = [frame(3, 4, 1), frame(2, 5, 1)];
    for (bad, last) in [(&gap[..], 4), (&same[..], 3), (&earlier_term[..], 4)] {
        let refused = ledger.stage(bad).unwrap_err();
        assert!(matches!(refused, Error::NotNext { last: Some(at), .. } if at == LogId::new(3, last)), "{refused}");
        assert_eq!(ledger.last_log_id(), Some(LogId::new(3, 3)));
    }
    assert_eq!(ledger.stage(&[frame(4, 4, 1)]).unwrap(), [Position(4 * 35)]);
}

#[test]
fn a_ledger_may_start_at_any_log_id() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let (ledger, _) = open(&vfs, 1024, None).unwrap();
    ledger.stage(&frames(7, 100..103, 10)).unwrap();
    ledger.flush().unwrap();
    drop(ledger);
    let (ledger, _) = open(&vfs, 1024, Some(102)).unwrap();
    assert_eq!(ledger.first_index(), Some(LogIndex(100)));
    assert!(ledger.read(LogIndex(99), LogIndex(103), 1000).unwrap().is_empty());
    ledger.truncate_after(Some(LogIndex(99))).unwrap();
    assert_eq!(ledger.last_log_id(), None);
    assert_eq!(ledger.stage(&frames(8, 0..1, 10)).unwrap(), [Position(0)]);
}

#[test]
fn a_flush_of_any_size_is_one_write_and_one_sync_within_a_segment() {
    let mem = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
    let (ledger, _) = open(&vfs, limits::SEGMENT_BYTES_DEFAULT, None).unwrap();
    ledger.stage(&frames(1, 0..1, 10)).unwrap();
    ledger.flush().unwrap();
    // The second runs beyond the zeroed space, so it brings zeros along.
    for indexes in [1..200, 200..5000] {
        ledger.stage(&frames(1, indexes, 100)).unwrap();
        let before = mem.counts();
        ledger.flush().unwrap();
        let after = mem.counts();
        assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
        assert_eq!(after.dir_syncs, before.dir_syncs);
    }
    let before = mem.counts();
    ledger.flush().unwrap();
    assert_eq!(mem.counts(), before, "nothing to flush is no work");
}

#[test]
fn files_grow_in_steps_that_double_and_closed_ones_end_with_their_last_frame() {
    let mem = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
    let (ledger, _) = open(&vfs, 10 << 20, None).unwrap();
    assert_eq!(mem.size_bytes(), 0, "an empty ledger has no file");
    let mut lengths = Vec::new();
    for index in 0..1100 {
        ledger.stage(&[frame(1, index, 10_000)]).unwrap();
        ledger.flush().unwrap();
        let file = vfs.open(&ledger.segment_path(0), OpenMode::Read).unwrap();
        lengths.push(file.len().unwrap());
    }
    assert!(lengths[0] <= limits::EMPTY_DATABASE_BYTES_MAX);
    let closed = HEADER_BYTES + ledger.segments()[0].frame_bytes;
    lengths.dedup();
    let kib = 1 << 10;
    let steps = [64, 128, 256, 512, 1024, 2048, 4096, 8192].map(|n| n * kib);
    assert_eq!(lengths, [&steps[..], &[HEADER_BYTES + (10 << 20), closed]].concat());
    assert!(closed < HEADER_BYTES + (10 << 20));
}

#[test]
fn a_frame_larger_than_a_segment_gets_its_own() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let (ledger, _) = open(&vfs, 512, None).unwrap();
    let all = [frame(1, 0, 40), frame(1, 1, 5000), frame(1, 2, 40), frame(1, 3, 487), frame(1, 4, 486), frame(1, 5, 0)];
    ledger.stage(&all).unwrap();
    ledger.flush().unwrap();
    let sizes: Vec<u64> = ledger.segments().iter().map(|segment| segment.frame_bytes).collect();
    assert_eq!(sizes, [65, 5025, 65, 512, 511, 25]);
    drop(ledger);
    let (ledger, report) = open(&vfs, 512, Some(5)).unwrap();
    assert_eq!(report, LedgerReport::default());
    assert_eq!(read_all(&ledger, 100).unwrap(), with_positions(&all));
}

#[test]
fn batches_do_not_show_in_the_files() {
    let all: Vec<Frame> = (0..200).map(|index| frame(1 + index / 50, index, (index * 37 % 211) as usize)).collect();
    let files = |batch: usize| {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let (ledger, _) = open(&vfs, 1500, None).unwrap();
        for frames in all.chunks(batch) {
            ledger.stage(frames).unwrap();
            ledger.flush().unwrap();
        }
        let closed = ledger.segments().into_iter().filter(|segment| segment.closed);
        let read = |path: &std::path::Path| {
            let file = vfs.open(path, OpenMode::Read).unwrap();
            file.read_at(0, file.len().unwrap() as usize).unwrap()
        };
        closed
            .flat_map(|segment| [ledger.segment_path(segment.number), ledger.sidecar_path(segment.number)])
            .map(|path| read(&path))
            .collect::<Vec<_>>()
    };
    let one_by_one = files(1);
    assert!(one_by_one.len() > 10);
    assert_eq!(one_by_one, files(7));
    assert_eq!(one_by_one, files(200));
}

#[test]
fn the_tail_cache_keeps_what_is_not_flushed_and_no_more_than_its_budget() {
    let mem = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
    let (ledger, _) = open_with(&vfs, 1 << 20, None, 350).unwrap();
    let all = frames(1, 0..40, 10);
    ledger.stage(&all).unwrap();
    let reads = mem.counts().reads;
    assert_eq!(read_all(&ledger, 1 << 20).unwrap(), with_positions(&all));
    assert_eq!(mem.counts().reads, reads, "nothing is on disk yet");
    ledger.flush().unwrap();
    // Ten frames of 35 bytes fit.
    ledger.read(LogIndex(30), LogIndex(40), 1 << 20).unwrap();
    assert_eq!(mem.counts().reads, reads);
    ledger.read(LogIndex(29), LogIndex(40), 1 << 20).unwrap();
    assert_eq!(mem.counts().reads, reads + 2, "the segment's header when it is opened, and the frames");
}

#[test]
fn reads_stop_at_their_budget_but_return_one_frame() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    // Frames of 35 bytes, seven to a segment; the last five in the tail.
    let (ledger, _) = open_with(&vfs, 256, None, 0).unwrap();
    ledger.stage(&frames(1, 0..20, 10)).unwrap();
    ledger.flush().unwrap();
    ledger.stage(&frames(1, 20..25, 10)).unwrap();
    let count =
        |from: u64, to: u64, bytes_max: usize| ledger.read(LogIndex(from), LogIndex(to), bytes_max).unwrap().len();
    for (from, to, bytes_max, expected) in [
        (0, 25, 0, 1),
        (0, 25, 69, 1),
        (0, 25, 70, 2),
        (0, 25, 7 * 35, 7),
        (0, 25, 8 * 35 - 1, 7),
        (0, 25, 8 * 35, 8),
        (3, 25, 15 * 35, 15),
        (0, 25, 25 * 35, 25),
        (18, 25, 5 * 35, 5),
        (19, 25, 34, 1),
        (0, 3, 1000, 3),
        (6, 8, 1000, 2),
        (4, 4, 1000, 0),
        (25, 30, 1000, 0),
        (22, 24, 1000, 2),
    ] {
        assert_eq!(count(from, to, bytes_max), expected, "{from}..{to} within {bytes_max}");
    }
}

#[test]
fn the_ledger_works_on_the_disk_of_the_operating_system() {
    let dir = tempfile::tempdir().unwrap();
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
    let open = |durable_through| {
        let (dir, options) = (dir.path().join("a/b"), LedgerOptions { tail_cache_bytes: 0 });
        Ledger::open(Arc::clone(&vfs), &dir, spec(1000), floor(durable_through), options).unwrap()
    };
    let (ledger, _) = open(None);
    let kept = frames(1, 0..17, 90);
    ledger.stage(&kept).unwrap();
    ledger.flush().unwrap();
    ledger.stage(&frames(2, 17..40, 200)).unwrap();
    ledger.flush().unwrap();
    ledger.truncate_after(Some(LogIndex(16))).unwrap();
    let new = frames(3, 17..30, 300);
    ledger.stage(&new).unwrap();
    ledger.flush().unwrap();
    let expected = [kept, new].concat();
    for _ in 0..2 {
        let (ledger, report) = open(Some(29));
        assert_eq!(report, LedgerReport::default());
        assert_eq!(read_all(&ledger, 700).unwrap(), with_positions(&expected));
        let sizes: Vec<u64> = ledger.segments().iter().map(|segment| segment.frame_bytes).collect();
        assert_eq!(sizes, segment_sizes(&expected, 1000));
        for segment in ledger.segments() {
            assert_eq!(ledger.digest(segment.number).unwrap(), ledger.recompute_digest(segment.number).unwrap());
        }
    }
}
