//! Failure guarded against: a crash at any moment loses what was flushed, brings back what was cut, or leaves frames that
//! nobody wrote. The machine stops before or in the middle of every single step of a workload that stages, flushes, rolls
//! and cuts; the disk is rebuilt in every way a crash may leave it; the ledger is opened from that.

use std::sync::Arc;

use alhambra_ledger::ids::LogIndex;
use alhambra_storage::segment::{Frame, Ledger};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs, StepKind};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::{Error, Result};

use crate::ledger_support::*;

pub const SEGMENT_BYTES: u64 = 1500;

#[derive(Clone, Debug)]
pub enum Op {
    /// So many frames of this payload length, in the next term if the last was cut.
    Stage(u64, usize),
    Flush,
    /// Keeps so many frames.
    Cut(usize),
}

/// Rolls by one frame and by many, cuts within the open segment, at a boundary, into a closed one, and everything; cuts
/// frames that are staged only; has a frame larger than a segment, and one that is written over several sectors.
pub fn workload() -> Vec<Op> {
    use Op::{Cut, Flush, Stage};
    vec![
        Stage(3, 100),
        Flush,
        Stage(2, 700),
        Stage(1, 10),
        Flush,
        Stage(9, 400),
        Flush,
        Cut(12),
        Stage(2, 900),
        Flush,
        Cut(4),
        Stage(1, 4000),
        Stage(3, 30),
        Flush,
        Stage(2, 60),
        Cut(8),
        Flush,
        Cut(5),
        Stage(3, 600),
        Flush,
        Stage(2, 5),
    ]
}

/// What the workload got through, as seen by the caller.
pub struct Told {
    /// The frames as the caller believes them to be in the ledger.
    pub frames: Vec<Frame>,
    /// How many of them must be there: flushed, and not in doubt by an unfinished cut.
    pub durable: usize,
    /// While an operation is unfinished, the frames before it: a cut may or may not have happened.
    pub before: Vec<Frame>,
    /// Frames that a finished cut has removed.
    pub gone: Vec<Frame>,
}

impl Told {
    pub fn new() -> Self {
        Self { frames: Vec::new(), durable: 0, before: Vec::new(), gone: Vec::new() }
    }
}

/// Runs operations until one fails; `told` is what a caller may rely on after that.
pub fn run(ledger: &Ledger, ops: &[Op], told: &mut Told) -> Result<()> {
    let mut term = told.frames.last().map_or(1, |frame| frame.log_id.term.0);
    for op in ops {
        told.before = told.frames.clone();
        match op {
            Op::Stage(count, payload_bytes) => {
                let next = told.frames.len() as u64;
                let staged = frames(term, next..next + count, *payload_bytes);
                ledger.stage(&staged)?;
                told.frames.extend(staged);
            }
            Op::Flush => {
                ledger.flush()?;
                told.durable = told.frames.len();
            }
            Op::Cut(keep) => {
                // The floor comes down before the cut: what is above it may be lost from now on.
                told.durable = told.durable.min(*keep);
                ledger.truncate_after(told.frames[..*keep].last().map(|frame| frame.log_id.index))?;
                told.gone.extend(told.frames.drain(*keep..));
                term += 1;
            }
        }
    }
    told.before = told.frames.clone();
    Ok(())
}

/// Opens the disk as the crash left it and compares with what the caller was told; then goes on working with it.
pub fn judge(mem: &MemVfs, told: &Told, context: &str) {
    let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
    let durable_through = told.durable.checked_sub(1).map(|last| last as u64);
    let opened = open(&vfs, SEGMENT_BYTES, durable_through);
    let (ledger, _) = opened.unwrap_or_else(|error| panic!("{context}: refused: {error}"));
    let found: Vec<Frame> = read_all(&ledger, 2000).unwrap().into_iter().map(|(_, frame)| frame).collect();
    assert!(found.len() >= told.durable, "{context}: {} of {} durable frames", found.len(), told.durable);
    let prefix = told.before.starts_with(&found) || told.frames.starts_with(&found);
    assert!(prefix, "{context}: frames that were not staged, or in another order");
    assert!(found.iter().all(|frame| !told.gone.contains(frame)), "{context}: cut frames came back");
    assert_eq!(ledger.flushed(), found.last().map(|frame| frame.log_id), "{context}");
    let sizes: Vec<u64> = ledger.segments().iter().map(|segment| segment.frame_bytes).collect();
    assert_eq!(sizes, segment_sizes(&found, SEGMENT_BYTES), "{context}");

    // All that was found is durable now, and the ledger works: a cut into the middle and new frames over it.
    mem.crash(Crash::PowerLoss);
    let (ledger, report) = open(&vfs, SEGMENT_BYTES, found.last().map(|frame| frame.log_id.index.0)).unwrap();
    assert_eq!(report.cut_bytes, 0, "{context}: what the first open found torn was cleaned for good");
    let keep = found.len() / 2;
    ledger.truncate_after(found[..keep].last().map(|frame| frame.log_id.index)).unwrap();
    let new = frames(99, keep as u64..keep as u64 + 5, 333);
    ledger.stage(&new).unwrap();
    ledger.flush().unwrap();
    mem.crash(Crash::PowerLoss);
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, Some(keep as u64 + 4)).unwrap();
    let expected: Vec<Frame> = found[..keep].iter().chain(&new).cloned().collect();
    assert_eq!(read_all(&ledger, 0).unwrap(), with_positions(&expected), "{context}");
    for segment in ledger.segments() {
        let (kept, disk) = (ledger.digest(segment.number), ledger.recompute_digest(segment.number));
        assert_eq!(kept.unwrap(), disk.unwrap(), "{context}");
    }
}

/// Runs the workload on a fresh disk with a fault at a step, opening included.
fn until(step: u64, fault: Fault) -> (MemVfs, FaultyVfs, Told) {
    let mem = MemVfs::new();
    let faulty = FaultyVfs::new(Arc::new(mem.clone()));
    faulty.fail_at(step, fault);
    let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
    let mut told = Told::new();
    if let Ok((ledger, _)) = open(&vfs, SEGMENT_BYTES, None) {
        run(&ledger, &workload(), &mut told).expect_err("the fault must end the workload");
    }
    (mem, faulty, told)
}

pub fn step_count() -> u64 {
    let faulty = FaultyVfs::new(Arc::new(MemVfs::new()));
    faulty.record();
    let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
    run(&ledger, &workload(), &mut Told::new()).unwrap();
    let kinds: Vec<StepKind> = faulty.steps().into_iter().map(|step| step.kind).collect();
    for kind in [StepKind::Sync, StepKind::SyncDir, StepKind::Rename, StepKind::Remove] {
        assert!(kinds.iter().filter(|other| **other == kind).count() >= 3, "the workload must have {kind:?}");
    }
    faulty.step_count()
}

#[test]
fn a_crash_at_every_step_keeps_what_was_flushed_and_nothing_that_was_cut() {
    let steps = step_count();
    assert!(steps > 60, "{steps} steps are no workload");
    for step in 0..steps {
        for fault in [Fault::Crash, Fault::CrashShort] {
            let crashes = [Crash::Process, Crash::PowerLoss]
                .into_iter()
                .chain((0..24).map(|seed| Crash::PowerLossTorn { seed: seed * 1000 + step }));
            for crash in crashes {
                let (mem, faulty, told) = until(step, fault);
                assert!(faulty.is_stopped());
                mem.crash(crash);
                judge(&mem, &told, &format!("{fault:?} at step {step} of {steps}, {crash:?}"));
            }
        }
    }
}

#[test]
fn a_crash_at_every_step_of_recovery_loses_nothing_either() {
    // The disk of a crash in the middle of a flush that rolls twice, with a torn tail.
    let torn = |seed: u64| {
        let mem = MemVfs::new();
        let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
        let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
        let mut told = Told::new();
        run(&ledger, &[Op::Stage(4, 600), Op::Flush], &mut told).unwrap();
        let faulty = FaultyVfs::new(Arc::new(mem.clone()));
        drop(ledger);
        let slow: Arc<dyn Vfs> = Arc::new(faulty.clone());
        let (ledger, _) = open(&slow, SEGMENT_BYTES, Some(3)).unwrap();
        faulty.fail_after(1, Fault::Crash);
        run(&ledger, &[Op::Stage(1, 200), Op::Stage(1, 500), Op::Flush], &mut told).unwrap_err();
        mem.crash(Crash::PowerLossTorn { seed });
        (mem, told)
    };
    let mut tails = 0;
    for seed in 0..40 {
        for step in 0.. {
            let (mem, told) = torn(seed);
            let faulty = FaultyVfs::new(Arc::new(mem.clone()));
            faulty.fail_at(step, Fault::CrashShort);
            let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
            let opened = open(&vfs, SEGMENT_BYTES, told.durable.checked_sub(1).map(|last| last as u64));
            let finished = opened.is_ok();
            if let Ok((_, report)) = opened {
                tails += u64::from(report.cut_bytes > 0);
            }
            mem.crash(Crash::PowerLossTorn { seed: seed + step * 7919 });
            judge(&mem, &told, &format!("seed {seed}, recovery stopped at step {step}"));
            if finished {
                break;
            }
        }
    }
    assert!(tails >= 5, "only {tails} disks had a torn tail");
}

#[test]
fn a_failed_step_poisons_and_reopening_goes_on() {
    let steps = step_count();
    for step in 0..steps {
        for fault in [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(std::io::ErrorKind::Other)) {
            let mem = MemVfs::new();
            let faulty = FaultyVfs::on_memory(mem.clone());
            faulty.fail_at(step, fault);
            let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
            let mut told = Told::new();
            let context = format!("{fault:?} at step {step} of {steps}");
            if let Ok((ledger, _)) = open(&vfs, SEGMENT_BYTES, None) {
                let error = run(&ledger, &workload(), &mut told).unwrap_err();
                assert!(matches!(error, Error::Io { .. }), "{context}: {error}");
                assert!(!error.is_deterministic());
                assert!(ledger.is_poisoned(), "{context}");
                // Nothing is accepted and nothing reaches the disk any more, but what was flushed can be read.
                let done = faulty.step_count();
                let next = ledger.last_log_id().map_or(0, |last| last.index.0 + 1);
                assert!(matches!(ledger.stage(&[frame(99, next, 1)]), Err(Error::Poisoned)), "{context}");
                assert!(matches!(ledger.flush(), Err(Error::Poisoned)), "{context}");
                assert!(matches!(ledger.truncate_after(None), Err(Error::Poisoned)), "{context}");
                assert_eq!(faulty.step_count(), done, "{context}");
                let read: Vec<Frame> = read_all(&ledger, 500).unwrap().into_iter().map(|(_, frame)| frame).collect();
                assert_eq!(read[..told.durable], told.before[..told.durable], "{context}");
            }
            // The same machine goes on: the system may have kept unsynced pages.
            judge(&mem, &told, &context);
        }
    }
}

#[test]
fn frames_that_a_killed_process_left_unsynced_are_durable_after_open() {
    let mem = MemVfs::new();
    let faulty = FaultyVfs::new(Arc::new(mem.clone()));
    let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
    ledger.stage(&frames(1, 0..2, 50)).unwrap();
    ledger.flush().unwrap();
    // The system says it has synced and throws its pages' dirty bits away.
    faulty.set_syncs_lie(true);
    ledger.stage(&frames(1, 2..4, 50)).unwrap();
    ledger.flush().unwrap();
    faulty.set_syncs_lie(false);
    mem.crash(Crash::Process);
    let before = mem.counts();
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, Some(1)).unwrap();
    assert_eq!(ledger.flushed().map(|last| last.index), Some(LogIndex(3)));
    let after = mem.counts();
    assert_eq!(after.bytes_written - before.bytes_written, 2 * 75, "what the floor does not cover is written again");
    mem.crash(Crash::PowerLoss);
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, Some(3)).unwrap();
    assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&frames(1, 0..4, 50)));
}

#[test]
fn a_disk_that_lies_about_syncs_is_noticed_at_open() {
    // The planted fault of the simulations must be one that the judge of this file can see.
    let mem = MemVfs::new();
    let faulty = FaultyVfs::new(Arc::new(mem.clone()));
    let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
    ledger.stage(&frames(1, 0..2, 50)).unwrap();
    ledger.flush().unwrap();
    faulty.set_syncs_lie(true);
    ledger.stage(&frames(1, 2..4, 50)).unwrap();
    assert_eq!(ledger.flush().unwrap().map(|last| last.index), Some(LogIndex(3)));
    mem.crash(Crash::PowerLoss);
    assert!(matches!(open(&vfs, SEGMENT_BYTES, Some(3)), Err(Error::Corrupted { .. })));
    assert_eq!(open(&vfs, SEGMENT_BYTES, Some(1)).unwrap().0.flushed().map(|last| last.index), Some(LogIndex(1)));
}
