//! A disk that runs full in the middle of anything is no failure of the ledger: the call says so, nothing flushed is lost,
//! nothing is half done, and the same call, or another, works as soon as there is room. Generated: every step of the
//! workload of the crash tests finds no space, in each way in which that may happen.

use std::io::ErrorKind;
use std::sync::Arc;

use alhambra_ledger::ids::LogIndex;
use alhambra_storage::Error;
use alhambra_storage::segment::{Frame, Ledger};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};

use crate::ledger_crash::{Op, SEGMENT_BYTES, Told, judge, run, step_count, workload};
use crate::ledger_support::*;

const FAULTS: [Fault; 3] = [
    Fault::Error(ErrorKind::StorageFull),
    Fault::Short(ErrorKind::StorageFull),
    Fault::LostSync(ErrorKind::StorageFull),
];

/// The workload up to the call that found no space in `fault`'s way; `None` when that call cannot wait for space.
fn run_until_full(step: u64, fault: Fault) -> Option<(MemVfs, FaultyVfs, Ledger, Told, Vec<Op>)> {
    let mem = MemVfs::new();
    let faulty = FaultyVfs::on_memory(mem.clone());
    faulty.fail_at(step, fault);
    let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
    let mut told = Told::new();
    let context = format!("{fault:?} at step {step}");
    let ledger = match open(&vfs, SEGMENT_BYTES, None) {
        Ok((ledger, _)) => ledger,
        Err(error) => {
            assert!(matches!(error, Error::NoSpace { .. }), "{context}: {error}");
            judge(&mem, &told, &context);
            return None;
        }
    };
    let ops = workload();
    let failed = (0..ops.len()).find_map(|at| run(&ledger, &ops[at..=at], &mut told).err().map(|error| (at, error)));
    let Some((at, error)) = failed else {
        // A sidecar is not waited for: it is made again later.
        judge(&mem, &told, &context);
        return None;
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{context}: {error}");
    if ledger.is_poisoned() {
        // A cut needs no space on most disks; where it does, the ledger is opened anew.
        assert!(matches!(ops[at], Op::Cut(_)), "{context}: {:?}", ops[at]);
        judge(&mem, &told, &context);
        return None;
    }
    assert!(matches!(ops[at], Op::Flush), "{context}: {:?}", ops[at]);
    let read: Vec<Frame> = read_all(&ledger, 500).unwrap().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(read, told.frames, "{context}: what is staged stays readable");
    Some((mem, faulty, ledger, told, ops[at..].to_vec()))
}

#[test]
fn a_flush_that_finds_no_space_is_repeated_until_it_does() {
    let steps = step_count();
    let mut waited = 0;
    for step in 0..steps {
        for fault in FAULTS {
            for more in 0..4 {
                let Some((mem, faulty, ledger, mut told, rest)) = run_until_full(step, fault) else { break };
                let context = format!("{fault:?} at step {step} of {steps}, then {more} steps later");
                // The room is gone again a little later.
                faulty.fail_after(more, fault);
                if let Err(error) = ledger.flush() {
                    assert!(matches!(error, Error::NoSpace { .. }), "{context}: {error}");
                    ledger.flush().unwrap_or_else(|error| panic!("{context}: {error}"));
                }
                // A fault that still waits is not part of this case.
                faulty.fail_at(0, fault);
                run(&ledger, &rest, &mut told).unwrap_or_else(|error| panic!("{context}: {error}"));
                mem.crash(Crash::PowerLoss);
                judge(&mem, &told, &context);
                waited += 1;
            }
        }
    }
    assert!(waited > 100, "only {waited} flushes waited");
}

#[test]
fn what_found_no_space_may_be_cut_and_never_comes_back() {
    let steps = step_count();
    let mut cut = 0;
    for step in 0..steps {
        for fault in FAULTS {
            // Kept of what was not flushed: nothing, one frame; then frames of other lengths in its place.
            for (kept, payload_bytes) in [(0, 7), (0, 400), (0, 1200), (1, 60)] {
                for crash in [Crash::Process, Crash::PowerLoss, Crash::PowerLossTorn { seed: step }] {
                    let Some((mem, _, ledger, mut told, _)) = run_until_full(step, fault) else { break };
                    let context = format!("{fault:?} at step {step} of {steps}, kept {kept}, {crash:?}");
                    let flushed = ledger.flushed().map_or(0, |last| last.index.0 as usize + 1);
                    assert!(flushed >= told.durable, "{context}");
                    let keep = (flushed + kept).min(told.frames.len());
                    ledger.truncate_after(told.frames[..keep].last().map(|frame| frame.log_id.index)).unwrap();
                    told.gone.extend(told.frames.drain(keep..));
                    let next = told.frames.len() as u64;
                    let new = frames(50, next..next + 3, payload_bytes);
                    ledger.stage(&new).unwrap_or_else(|error| panic!("{context}: {error}"));
                    told.frames.extend(new);
                    told.before = told.frames.clone();
                    if crash != Crash::Process {
                        ledger.flush().unwrap_or_else(|error| panic!("{context}: {error}"));
                        told.durable = told.frames.len();
                    }
                    drop(ledger);
                    mem.crash(crash);
                    judge(&mem, &told, &context);
                    cut += 1;
                }
            }
        }
    }
    assert!(cut > 300, "only {cut} flushes were given up");
}

#[test]
fn a_disk_of_any_size_fills_up_and_the_log_goes_on_when_it_grows() {
    let (mut last, mut fills) = (0, 0);
    let full = {
        let mem = MemVfs::new();
        let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
        let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
        run(&ledger, &workload(), &mut Told::new()).unwrap();
        mem.size_bytes()
    };
    for capacity in (0..full + 2000).step_by(61) {
        let mem = MemVfs::new();
        let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
        let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
        mem.set_capacity(Some(capacity));
        let mut told = Told::new();
        let ops = workload();
        let stopped = (0..ops.len()).find(|at| run(&ledger, &ops[*at..=*at], &mut told).is_err());
        let Some(at) = stopped else { continue };
        fills += 1;
        assert!(at >= last, "a larger disk takes no less");
        last = at;
        assert!(!ledger.is_poisoned(), "{capacity} bytes");
        // Nobody frees anything: it waits and says so.
        assert!(matches!(ledger.flush(), Err(Error::NoSpace { .. })), "{capacity} bytes");
        mem.set_capacity(None);
        run(&ledger, &ops[at..], &mut told).unwrap();
        mem.crash(Crash::PowerLoss);
        judge(&mem, &told, &format!("{capacity} bytes"));
    }
    assert!(fills > 20, "only {fills} disks were too small");
}

#[test]
fn a_first_segment_that_found_no_space_leaves_nothing() {
    let mem = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(mem.clone());
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
    mem.set_capacity(Some(100));
    ledger.stage(&frames(3, 7..9, 10)).unwrap();
    assert!(matches!(ledger.flush(), Err(Error::NoSpace { .. })));
    assert_eq!(mem.size_bytes(), 0, "the file that could not be made is gone");
    ledger.truncate_after(None).unwrap();
    mem.set_capacity(None);
    ledger.stage(&frames(4, 0..2, 10)).unwrap();
    assert_eq!(ledger.flush().unwrap().map(|last| last.index), Some(LogIndex(1)));
    mem.crash(Crash::PowerLoss);
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, Some(1)).unwrap();
    assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&frames(4, 0..2, 10)));
}
