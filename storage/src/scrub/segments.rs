//! Segments: header, frames, digest, sidecar, and the zeros behind the frames of the open one.

use std::sync::Arc;

use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::LogId;

use super::{Damaged, ScrubStep, note};
use crate::core::Core;
use crate::database::Database;
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::segment::walk::{Step, Walk};
use crate::vfs::OpenMode;

/// How far the scrub is in a segment.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    at: u64,
    first: Option<LogId>,
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
        Self { number, at: SEGMENT_HEADER_BYTES, first: None, last: None, hasher: Hasher::new() }
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
    let end = SEGMENT_HEADER_BYTES + view.flushed_bytes;
    // A cut took away what was read.
    let cut = place.first.is_some_and(|first| first != info.first_log_id) || place.at > end;
    if cut {
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
    place.first = Some(info.first_log_id);
    let mut walk = Walk::new(&*file, &path, info.first_log_id, end).go_on(place.at, place.last);
    let damage = loop {
        if step.bytes >= budget.max(1) {
            (place.at, place.last) = (walk.at(), walk.last());
            return Ok(Some(place));
        }
        match walk.next() {
            Ok(Step::Frame { bytes, .. }) => {
                place.hasher.update(&bytes);
                step.bytes += bytes.len() as u64;
            }
            Ok(Step::End) => break (walk.at() != end).then_some(Damage::Missing),
            Ok(Step::Bad(damage)) => break Some(damage),
            // Files shrink only by a cut.
            Err(_) if !unchanged() => return Ok(Some(Place::segment(info.number))),
            Err(error) => return Err(error),
        }
    };
    if damage.is_some() && !unchanged() {
        return Ok(Some(Place::segment(info.number)));
    }
    if let Some(damage) = damage {
        note(step, Damaged::Segment(info.number), Err(corrupted(walk.at(), damage)))?;
        return Ok(Some(next));
    }
    // A segment that was closed since the view was taken is looked at as a closed one in the next pass.
    if let Some(own) = view.digest {
        let found = place.hasher.finish();
        let sealed = core.seals.digest(info.number);
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
