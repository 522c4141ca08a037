//! Segments: header, frames, digest, sidecar, and the zeros behind the frames of the open one.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::LogId;

use super::{Damaged, ScrubStep, note};
use crate::core::Core;
use crate::database::Database;
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::segment::upkeep::View;
use crate::segment::walk::{CHUNK_BYTES, Step, Walk};
use crate::vfs::{File, OpenMode};

/// How far the scrub is in a segment.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    at: u64,
    /// Log id of the first frame and generation.
    began: Option<(LogId, u32)>,
    last: Option<LogId>,
    hasher: Hasher,
}

impl Default for Place {
    fn default() -> Self {
        Self::segment(0)
    }
}

impl Place {
    fn segment(number: u64) -> Self {
        Self { number, at: SEGMENT_HEADER_BYTES, began: None, last: None, hasher: Hasher::new() }
    }
}

/// Reads about `budget` bytes on from `place`; `None` when there is no segment left.
pub(super) fn advance(
    db: &Database,
    core: &Arc<Core>,
    mut place: Place,
    budget: u64,
    step: &mut ScrubStep,
) -> Result<Option<Place>> {
    let Some(view) = core.ledger.view(place.number) else { return Ok(None) };
    let info = view.info;
    let end = view.end();
    // A cut took away what was read, or the file is another one.
    let began = (info.first_log_id, info.generation);
    if place.began.is_some_and(|then| then != began) || place.at > end {
        place = Place::segment(place.number);
    }
    let path = core.ledger.segment_path(info.number);
    let corrupted =
        |offset, damage| Error::Corrupted { path: path.clone(), segment: Some(info.number), offset, damage };
    let opened = match db.vfs.open(&path, OpenMode::Read) {
        Ok(file) => core.ledger.check_head(&info, &*file, end).map(|()| file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(corrupted(0, Damage::Missing)),
        Err(e) => Err(Error::io(FileOp::Open, &path, e)),
    };
    let unchanged = || core.ledger.view(info.number).is_some_and(|now| now.epoch == view.epoch);
    let next = Place::segment(info.number + 1);
    let file = match opened {
        Ok(file) => file,
        Err(_) if !unchanged() => return Ok(Some(Place::segment(info.number))),
        Err(error) => {
            note(step, Damaged::Segment(info.number), Err(error))?;
            return Ok(Some(next));
        }
    };
    place.began = Some(began);
    let read = if info.generation == 0 {
        frames(&mut place, &view, &*file, &path, budget, step)
    } else {
        bytes(&mut place, &view, &*file, &path, budget, step)
    };
    let read = match read {
        // It was cut or written again.
        _ if !unchanged() => return Ok(Some(Place::segment(info.number))),
        Err(error) => {
            note(step, Damaged::Segment(info.number), Err(error))?;
            return Ok(Some(next));
        }
        Ok(read) => read,
    };
    match read {
        Reached::Budget => return Ok(Some(place)),
        Reached::End => {}
        Reached::Damage(damage) => {
            note(step, Damaged::Segment(info.number), Err(corrupted(place.at, damage)))?;
            return Ok(Some(next));
        }
    }
    // A segment that was closed since the view was taken is looked at as a closed one in the next pass.
    if let Some(own) = view.digest {
        let found = place.hasher.finish();
        let sealed = core.seals.digest(info.number, info.generation);
        if found != own || sealed.is_some_and(|sealed| sealed != found) {
            let error = corrupted(SEGMENT_HEADER_BYTES, Damage::Hash);
            note(step, Damaged::Segment(info.number), Err(error))?;
        }
        let sidecar = core.ledger.check_sidecar(info.number).map(|bytes| step.bytes += bytes);
        if unchanged() {
            note(step, Damaged::Sidecar(info.number), sidecar)?;
        }
    } else {
        let zeros = core.ledger.check_zeros(info.number).map(|bytes| step.bytes += bytes);
        note(step, Damaged::Padding(info.number), zeros)?;
    }
    Ok(Some(next))
}

/// Where reading a segment has come to.
enum Reached {
    Budget,
    End,
    Damage(Damage),
}

/// Reads frames on from `place`.
fn frames(
    place: &mut Place,
    view: &View,
    file: &dyn File,
    path: &Path,
    budget: u64,
    step: &mut ScrubStep,
) -> Result<Reached> {
    let mut walk = Walk::new(file, path, view.info.first_log_id, view.end()).go_on(place.at, place.last);
    let reached = loop {
        if step.bytes >= budget.max(1) {
            break Reached::Budget;
        }
        match walk.next()? {
            Step::Frame { bytes, .. } => {
                place.hasher.update(&bytes);
                step.bytes += bytes.len() as u64;
            }
            Step::End if walk.at() == view.end() => break Reached::End,
            Step::End => break Reached::Damage(Damage::Missing),
            Step::Bad(damage) => break Reached::Damage(damage),
        }
    };
    (place.at, place.last) = (walk.at(), walk.last());
    Ok(reached)
}

/// Reads on in a pruned segment, of which the digest covers everything, frames and table.
fn bytes(
    place: &mut Place,
    view: &View,
    file: &dyn File,
    path: &Path,
    budget: u64,
    step: &mut ScrubStep,
) -> Result<Reached> {
    while place.at < view.end() {
        if step.bytes >= budget.max(1) {
            return Ok(Reached::Budget);
        }
        let piece = CHUNK_BYTES.min(view.end() - place.at);
        let read = file.read_at(place.at, usize::try_from(piece).expect("a small constant"));
        place.hasher.update(&read.map_err(|e| Error::io(FileOp::Read, path, e))?);
        place.at += piece;
        step.bytes += piece;
    }
    Ok(Reached::End)
}
