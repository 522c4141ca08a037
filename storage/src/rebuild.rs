//! Deriving again, in a running database, what has rotted of the derived logs.
//!
//! Derived logs are a function of the segments, so a file that is derived again equals the damaged one but for the damage.
//! Therefore each file can be swapped alone, atomically, while the database goes on: everything is derived into a folder
//! of its own, file by file compared, and those that differ are renamed into place. Only what was applied meanwhile is
//! derived while the applier waits.

use std::path::Path;
use std::sync::Arc;

use crate::ahtlog::Frontier;
use crate::apply::Applier;
use crate::checkpoint::{Applied, CHECKPOINT_NAME, Checkpoint, LogSizes, State};
use crate::core::Core;
use crate::database::Database;
use crate::error::{Damage, Error, FileOp, Result};
use crate::recover;
use crate::repair;
use crate::requests::Requests;
use crate::vfs::Vfs;

/// Folder below the database's own; what a crash leaves of it is removed at open.
pub(crate) const REBUILD_NAME: &str = "rebuild";

/// As [`REBUILD_NAME`], for the outcomes of requests alone.
const OUTCOMES_NAME: &str = "rebuild-outcomes";

/// Removes what an interrupted rebuild has left.
pub(crate) fn remove(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    remove_dir(vfs, &dir.join(REBUILD_NAME))?;
    remove_dir(vfs, &dir.join(OUTCOMES_NAME))
}

fn remove_dir(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    if vfs.exists(dir).map_err(|e| Error::io(FileOp::Open, dir, e))? {
        vfs.remove_dir_all(dir).map_err(|e| Error::io(FileOp::Remove, dir, e))?;
    }
    Ok(())
}

/// Derives the outcomes of requests again, as they were at `applied`. The caller holds the applier's lock.
pub(crate) fn outcomes(db: &Database, applied: &Applied) -> Result<Requests> {
    let dir = db.dir.join(OUTCOMES_NAME);
    remove_dir(&*db.vfs, &dir)?;
    let (_, applier) = derive(db, &db.core(), &dir, applied)?;
    remove_dir(&*db.vfs, &dir)?;
    Ok(applier.state.requests)
}

/// Applies the log up to `applied` into an empty folder. What comes out has its Alh.
fn derive(db: &Database, live: &Core, dir: &Path, applied: &Applied) -> Result<(Core, Applier)> {
    if let Some(applied) = applied.log_id {
        let agreed = |segment, generation| live.seals.digest(segment, generation);
        repair::must_be_agreed(&*db.vfs, &live.ledger, applied.index, agreed)?;
    }
    let (state, ledger) = (State::empty(), Arc::clone(&live.ledger));
    let again = Core::open(&db.vfs, dir, db.spec, &db.options, ledger, LogSizes::default(), &state)?;
    let mut applier = Applier::new(state, Frontier::empty(), db.spec.segment_bytes);
    if let Some(applied) = applied.log_id {
        recover::replay(&again, &mut applier, applied.index)?;
    }
    if (applier.state.tx, applier.state.alh) != (applied.tx, applied.alh) {
        return Err(differs(db));
    }
    Ok((again, applier))
}

/// What this process has in memory is not what its log gives: no file can mend that.
fn differs(db: &Database) -> Error {
    let path = db.dir.join(CHECKPOINT_NAME);
    Error::Corrupted { path, segment: None, offset: 0, damage: Damage::Differs }
}

/// Derives everything again; answers how many files were replaced. The caller sees to it that there is one at a time.
pub(crate) fn derived(db: &Database) -> Result<u64> {
    let dir = db.dir.join(REBUILD_NAME);
    remove_dir(&*db.vfs, &dir)?;
    let rebuilt = rebuild(db, &db.core(), &dir);
    remove_dir(&*db.vfs, &dir)?;
    // Of what was swapped they may be of the damage.
    db.digests.clear();
    rebuilt
}

fn rebuild(db: &Database, live: &Arc<Core>, dir: &Path) -> Result<u64> {
    let (again, mut applier) = derive(db, live, dir, &live.applied())?;
    let pairs = || live.derived_logs().into_iter().zip(again.derived_logs());
    // Files that are full do not change any more, so they need no lock.
    let mut full = Vec::new();
    let mut replaced = 0;
    for (live, again) in pairs() {
        again.sync()?;
        let chunks = live.written().min(again.written()) / live.chunk_bytes();
        replaced += live.adopt(again, 0..chunks)?;
        full.push(chunks);
    }
    let _no_checkpoint = db.exclusive.lock();
    let mut own = db.applier.lock();
    own.must_be_sound()?;
    if !Arc::ptr_eq(&db.core(), live) {
        // An install came in between: all files are new.
        return Ok(replaced);
    }
    if let Some(applied) = own.state.applied {
        recover::replay(&again, &mut applier, applied.index)?;
    }
    own.unpark_as(applier.state.requests.clone());
    db.note_memory(own.state_bytes());
    let encode = |state, sizes| Checkpoint::encode(db.spec.id, state, &sizes);
    if encode(&own.state, live.sizes()) != encode(&applier.state, again.sizes()) {
        return Err(differs(db));
    }
    for ((live, again), full) in pairs().zip(full) {
        again.sync()?;
        let chunks = live.written().div_ceil(live.chunk_bytes());
        replaced += live.adopt(again, full..chunks)?;
    }
    Ok(replaced)
}
