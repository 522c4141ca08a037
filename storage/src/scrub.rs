//! Scrubbing: reading every file of an open database again, a little at a time, to find rot before a reader does.
//!
//! A pass goes over the small files, each segment (header, frames, digest against the seal, sidecar, zeros behind the
//! frames), each transaction (record, commit record, hash tree, Alh `L1`), the seals and the headers of all chunk files.
//! [`Database::scrub_step`] does a bounded part of it and remembers where it is, in memory: how fast a pass goes is the
//! caller's choice. Nothing waits for it but a flush, for the time in which some MiB of zeros are read.
//!
//! What it finds, and what readers stumbled over, is kept until [`Database::mend`] has repaired it.

mod derived;
mod segments;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Weak};

use crate::checkpoint::{self, CHECKPOINT_NAME};
use crate::core::Core;
use crate::database::Database;
use crate::error::{Damage, Error, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::index::CheckPlace;
use crate::plant::{Plant, is_planted};

/// A part of a database that is damaged, by how it is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damaged {
    /// A segment: the only thing that must come from elsewhere.
    Segment(u64),
    /// The zeros behind the frames of the open segment: written again.
    Padding(u64),
    /// A sidecar: made again from its segment.
    Sidecar(u64),
    /// `tx/`, `commit/`, `aht/`, `seal/` or `prune/`: derived again from the segments.
    Derived,
    /// The index: rebuilt from the derived logs and the segments.
    Index,
    /// The checkpoint: a new one is taken.
    Checkpoint,
    /// The marks: written again from memory.
    Marks,
    /// The vote: written again from memory.
    Vote,
    /// The mark of prunes that are done: written again from memory.
    PruneMark,
}

/// One piece of damage that a scrub came upon.
#[derive(Debug)]
pub struct Found {
    /// What is damaged.
    pub what: Damaged,
    /// How and where.
    pub error: Error,
}

impl Found {
    /// The file, when it is one.
    pub fn path(&self) -> Option<&Path> {
        self.error.damaged_path()
    }

    /// First byte of the damaged structure in the file.
    pub fn offset(&self) -> Option<u64> {
        self.error.damaged_offset()
    }
}

/// What one step did.
#[derive(Debug, Default)]
pub struct ScrubStep {
    /// Bytes read.
    pub bytes: u64,
    /// Damage, each piece once per pass.
    pub found: Vec<Found>,
    /// The step ended a pass over everything; the next one begins anew.
    pub pass_completed: bool,
    /// How far the pass is.
    pub progress: Progress,
}

/// How far a pass is. What is written meanwhile is not part of the total, so it is an estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read in this pass.
    pub done_bytes: u64,
    /// Bytes of all files when the pass began.
    pub total_bytes: u64,
}

/// Where the scrub of a database is.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    /// What the pass looks at; an install replaces it, and the pass begins anew.
    core: Weak<Core>,
    stage: Stage,
    /// A segment is rotten, so this pass cannot judge what is derived: keys are hashed from the segments.
    rotten: bool,
    progress: Progress,
    damaged: BTreeSet<Damaged>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Small,
    Segments(Box<segments::Place>),
    Derived(Box<derived::Place>),
    Seals(u64),
    Chunks,
    Index(Box<CheckPlace>),
}

/// Sorts what a read said: damage is kept, what cannot be read included, everything else stops the step.
fn note(step: &mut ScrubStep, what: Damaged, read: Result<()>) -> Result<()> {
    match read {
        Ok(()) => Ok(()),
        Err(error) if is_damage(&error) => {
            step.found.push(Found { what, error });
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn is_damage(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupted { .. }
            | Error::ForeignDatabase { .. }
            | Error::UnsupportedVersion { .. }
            | Error::SegmentSizeMismatch { .. }
            | Error::SegmentMissing { .. }
    ) || error.is_unreadable()
}

/// See [`Database::scrub_step`].
pub(crate) fn step(db: &Database, budget_bytes: u64) -> Result<ScrubStep> {
    let mut scrubber = db.scrubber.lock();
    let core = db.core();
    if !std::ptr::eq(scrubber.core.as_ptr(), Arc::as_ptr(&core)) {
        scrubber.core = Arc::downgrade(&core);
        (scrubber.stage, scrubber.rotten) = (Stage::Small, false);
    }
    let mut step = ScrubStep::default();
    if matches!(scrubber.stage, Stage::Small) {
        scrubber.progress = Progress { done_bytes: 0, total_bytes: total_bytes(&core) };
    }
    while step.bytes < budget_bytes.max(1) && !step.pass_completed {
        let stage = std::mem::take(&mut scrubber.stage);
        // After an error the pass begins anew.
        let stage = advance(db, &core, stage, budget_bytes, &mut step)?;
        scrubber.rotten |= step.found.iter().any(|found| matches!(found.what, Damaged::Segment(_)));
        scrubber.stage = match stage {
            Stage::Derived(_) if scrubber.rotten => Stage::Seals(0),
            stage => stage,
        };
    }
    scrubber.rotten &= !step.pass_completed;
    scrubber.progress.done_bytes += step.bytes;
    step.progress = scrubber.progress;
    scrubber.damaged.extend(step.found.iter().map(|found| found.what));
    for found in &step.found {
        tracing::error!(error = %found.error, what = ?found.what, "scrubbing found damage");
    }
    Ok(step)
}

fn advance(db: &Database, core: &Arc<Core>, stage: Stage, budget: u64, step: &mut ScrubStep) -> Result<Stage> {
    Ok(match stage {
        Stage::Small => {
            small_files(db, core, step)?;
            Stage::Segments(Box::default())
        }
        Stage::Segments(place) => match segments::advance(db, core, *place, budget, step)? {
            Some(place) => Stage::Segments(Box::new(place)),
            None => Stage::Derived(Box::new(derived::Place::start(core))),
        },
        Stage::Derived(mut place) => match place.advance(core, budget, &mut step.bytes) {
            Ok(true) => Stage::Derived(place),
            Ok(false) => Stage::Seals(0),
            // One finding is enough: all of it is derived again.
            error => {
                note(step, Damaged::Derived, error.map(drop))?;
                Stage::Seals(0)
            }
        },
        Stage::Seals(at) => match core.seals.check(at) {
            Ok(Some(next)) => {
                step.bytes += next - at;
                Stage::Seals(next)
            }
            end => {
                note(step, Damaged::Derived, end.map(drop))?;
                let prunes = core.prunes.check().map(|bytes| step.bytes += bytes);
                note(step, Damaged::Derived, prunes)?;
                Stage::Chunks
            }
        },
        Stage::Chunks => {
            for log in core.derived_logs() {
                let checked = log.check_files().map(|bytes| step.bytes += bytes);
                note(step, Damaged::Derived, checked)?;
            }
            Stage::Index(Box::default())
        }
        Stage::Index(mut place) => match core.index.check(&mut place, budget, &mut step.bytes) {
            Ok(true) => Stage::Index(place),
            end => {
                note(step, Damaged::Index, end.map(drop))?;
                step.pass_completed = true;
                Stage::Small
            }
        },
    })
}

/// What a pass over everything reads, about.
fn total_bytes(core: &Core) -> u64 {
    let segments = core.ledger.segments();
    let ledger: u64 = segments.iter().map(|segment| SEGMENT_HEADER_BYTES + segment.frame_bytes).sum();
    let derived: u64 = core.derived_logs().iter().map(|log| log.written()).sum();
    ledger + derived + core.index.disk_bytes()
}

fn small_files(db: &Database, core: &Core, step: &mut ScrubStep) -> Result<()> {
    let taken = core.checkpointed.read().is_some();
    let checkpoint = match checkpoint::read(&*db.vfs, &db.dir, Some(db.spec.id)) {
        Ok(None) if taken => {
            let path = db.dir.join(CHECKPOINT_NAME);
            Err(Error::Corrupted { path, segment: None, offset: 0, damage: Damage::Missing })
        }
        read => read.map(drop),
    };
    note(step, Damaged::Checkpoint, checkpoint)?;
    let marks = db.marks.lock().check(&*db.vfs).map(|bytes| step.bytes += bytes);
    note(step, Damaged::Marks, marks)?;
    note(step, Damaged::Vote, db.vote.check(&db.vfs))?;
    note(step, Damaged::PruneMark, db.check_prune_mark().map(drop))?;
    // A pass over nothing else still takes a step.
    step.bytes += 1;
    Ok(())
}

/// See [`Database::damaged`].
pub(crate) fn damaged(db: &Database) -> Vec<Damaged> {
    let core = db.core();
    let mut damaged = db.scrubber.lock().damaged.clone();
    damaged.extend(core.ledger.suspects().into_iter().map(Damaged::Segment));
    damaged.extend(core.seals.mismatched().into_iter().map(Damaged::Segment));
    if is_planted(Plant::IgnoreSealMismatch) {
        damaged.retain(|what| !matches!(what, Damaged::Segment(_)));
    }
    if core.derived_logs().iter().any(|log| log.is_suspect()) {
        damaged.insert(Damaged::Derived);
    }
    if core.index.is_damaged() {
        damaged.insert(Damaged::Index);
    }
    damaged.into_iter().collect()
}

/// `what` is whole again.
pub(crate) fn mended(db: &Database, what: Damaged) {
    db.scrubber.lock().damaged.remove(&what);
    let core = db.core();
    match what {
        Damaged::Segment(number) => core.ledger.clear_suspect(number),
        Damaged::Derived => core.derived_logs().iter().for_each(|log| log.clear_suspect()),
        Damaged::Padding(_)
        | Damaged::Index
        | Damaged::Sidecar(_)
        | Damaged::Checkpoint
        | Damaged::Marks
        | Damaged::Vote
        | Damaged::PruneMark => {}
    }
}
