//! Gives the memory of a database back: everything that is in memory only goes to its files, and everything that can be read
//! from files is forgotten. Nothing of it changes an answer.

use crate::checkpoint;
use crate::database::Database;
use crate::error::Result;
use crate::memory::Release;

/// See [`Database::release_memory`].
pub(crate) fn run(db: &Database, release: Release) -> Result<()> {
    if !db.core().index.can_shrink() {
        db.core().index.freeze_now();
    }
    while db.core().index.can_shrink() {
        db.index_work()?;
    }
    if db.checkpoint_position() < db.applied().log_id {
        checkpoint::write(db)?;
    }
    db.core().forget();
    let mut applier = db.applier.lock();
    // An entry that was applied since needs the outcomes again at once.
    if release == Release::All && applier.is_parkable() && *db.core().checkpointed.read() == applier.state.applied {
        applier.park();
    }
    // Under the lock, so that nobody's newer figure is overwritten.
    db.note_memory(applier.state_bytes());
    Ok(())
}
