//! Gives the memory of a database back: everything that is in memory only goes to its files, and everything that can be read
//! from files is forgotten. Nothing of it changes an answer.

use crate::checkpoint;
use crate::database::Database;
use crate::error::{Error, Result};
use crate::memory::Release;

/// See [`Database::release_memory`].
pub(crate) fn run(db: &Database, release: Release) -> Result<()> {
    shrink_index(db)?;
    forget(db, release)
}

/// As [`run`], for the applier: what finds no space is put off, because what is committed is applied on a full disk as well.
///
/// # Errors
/// Only those after which nobody knows what the derived logs have on disk, and IO other than a full disk.
pub(crate) fn help(db: &Database) -> Result<()> {
    match shrink_index(db) {
        Ok(()) => {}
        // A run that is not finished is nothing: it is written anew from memory.
        Err(Error::NoSpace { .. }) => return Ok(()),
        Err(error) => return Err(error),
    }
    match forget(db, Release::All) {
        Err(error) if error.waits_for_space() => Ok(()),
        done => done,
    }
}

/// Writes what the index has in memory only out.
fn shrink_index(db: &Database) -> Result<()> {
    if !db.core().index.can_shrink() {
        db.core().index.freeze_now();
    }
    while db.core().index.can_shrink() {
        db.index_work()?;
    }
    Ok(())
}

/// Takes a checkpoint of the rest and forgets what can be read again.
fn forget(db: &Database, release: Release) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::path::Path;
    use std::sync::Arc;

    use alhambra_ledger::ids::{DatabaseId, TxId};
    use bytes::Bytes;

    use super::*;
    use crate::command::{ProposalEntry, Settings, TxProposal};
    use crate::database::{DatabaseSpec, Options};
    use crate::memory::MemoryBudget;
    use crate::vfs::Vfs;
    use crate::vfs::faulty::{Fault, FaultyVfs};
    use crate::vfs::mem::MemVfs;

    const WRITES: u64 = 40;

    /// A database that has to give memory back every few writes.
    fn open(vfs: &Arc<dyn Vfs>) -> Result<Database> {
        let spec = DatabaseSpec { id: DatabaseId([7; 16]), segment_bytes: 1 << 20 };
        let options = Options::new(Arc::new(MemoryBudget::exactly(24 << 10)));
        Database::open_embedded(Arc::clone(vfs), Path::new("/db"), spec, options, Settings::DEFAULT)
    }

    fn key(n: u64) -> Bytes {
        Bytes::from(format!("k{n}"))
    }

    fn write(db: &Database, n: u64) -> Result<()> {
        let entry = ProposalEntry::plain(key(n), Bytes::new(), Bytes::from(vec![n as u8; 500]));
        let proposal = TxProposal { entries: vec![entry], ..TxProposal::default() };
        db.commit(1, vec![proposal]).map(drop)
    }

    /// Numbers of the steps of the workload below these folders, and the number of the first one.
    fn steps_below(folders: &[&str]) -> Vec<u64> {
        let faulty = FaultyVfs::on_memory(MemVfs::new());
        let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
        let db = open(&vfs).unwrap();
        let before = faulty.step_count();
        faulty.record();
        (0..WRITES).for_each(|n| write(&db, n).unwrap());
        let below = |path: &Path| folders.iter().any(|folder| path.starts_with(Path::new("/db").join(folder)));
        (before..).zip(faulty.steps()).filter(|(_, step)| below(&step.path)).map(|(at, _)| at).collect()
    }

    #[test]
    fn an_applier_that_gives_memory_back_to_a_full_disk_puts_the_index_off() {
        let steps = steps_below(&["index"]);
        assert!(steps.len() > 10, "the index was never written: {steps:?}");
        for step in steps {
            for fault in [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(ErrorKind::StorageFull)) {
                let place = format!("{fault:?} at step {step}");
                let faulty = FaultyVfs::on_memory(MemVfs::new());
                let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
                let db = open(&vfs).unwrap();
                faulty.fail_at(step, fault);
                (0..WRITES).for_each(|n| write(&db, n).unwrap_or_else(|e| panic!("{place}: {e}")));
                assert!(faulty.step_count() > step, "{place}");
                db.release_memory().unwrap_or_else(|e| panic!("{place}: {e}"));
                drop(db);
                let db = open(&vfs).unwrap();
                assert_eq!(db.applied().tx, TxId(WRITES), "{place}");
                let snapshot = db.snapshot();
                (0..WRITES).for_each(|n| assert!(snapshot.get(&key(n)).unwrap().is_some(), "{place}: key {n}"));
            }
        }
    }
}
