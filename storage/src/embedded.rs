//! The database without Raft: this process is the whole group, what is flushed is committed.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::{LogId, LogIndex, Term};
use bytes::Bytes;

use crate::apply::Outcome;
use crate::command::{Citation, Command, Prune, PruneTarget, Settings, TxProposal};
use crate::database::{Database, DatabaseSpec, Options};
use crate::error::{Error, Result};
use crate::recover;
use crate::segment::{Frame, FrameKind, Ledger};
use crate::vfs::Vfs;

/// Term of all log entries of an embedded database.
pub(crate) const TERM: Term = Term(1);

impl Database {
    /// Opens a database for use without Raft: everything in its ledger is applied when this returns. A new one gets
    /// `settings`; those of an existing one stay.
    pub fn open_embedded(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        spec: DatabaseSpec,
        options: Options,
        settings: Settings,
    ) -> Result<Self> {
        let db = Self::open(vfs, dir, spec, options)?;
        if let Some(last) = db.ledger().last_log_id() {
            recover::replay(&db.core(), &mut db.applier.lock(), last.index)?;
        }
        if db.settings().is_none() {
            let genesis = Command::Genesis { database: spec.id, segment_bytes: spec.segment_bytes, settings };
            db.commit_command(&genesis)?;
        }
        Ok(db)
    }

    /// Commits transactions: durable and visible when this returns, one outcome per proposal. `ts` is Unix seconds. One
    /// call costs one sync, so many transactions per call are cheap. One caller at a time; for many, and for transactions
    /// that need not be durable at once, there is [`Committer`](crate::Committer).
    ///
    /// # Errors
    /// [`Error::NoSpace`] from the log: surely not committed, and the next call may succeed. Any other error of a write or
    /// sync: perhaps committed, open anew to see.
    pub fn commit(&self, ts: i64, mut proposals: Vec<TxProposal>) -> Result<Vec<Outcome>> {
        if let Some(settings) = self.settings() {
            proposals.iter_mut().for_each(|proposal| proposal.compress(&settings));
        }
        let outcomes = self.commit_command(&Command::Batch { ts, proposals })?;
        match self.follow_up() {
            // The transactions are committed all the same; the next call tries again.
            Err(Error::NoSpace { .. }) | Ok(()) => Ok(outcomes),
            Err(error) => Err(error),
        }
    }

    /// Seals and checkpoints that are due.
    fn follow_up(&self) -> Result<()> {
        self.seal_closed()?;
        if self.checkpoint_due() {
            self.checkpoint()?;
        }
        // A step at a time; whoever has a thread to spare calls `index_work` there and leaves nothing to do here.
        if self.index_work_due() {
            self.index_work()?;
        }
        Ok(())
    }

    /// Orders values to be forgotten: in force when this returns. [`Database::prune_step`] gets rid of the bytes; nobody but
    /// this process needs log entries as they were appended, so every sealed segment may go (`LogIndex(u64::MAX)`).
    pub fn prune(&self, order: Option<Citation>, target: PruneTarget) -> Result<Outcome> {
        Ok(self.commit_command(&Command::Prune(Prune { order, target }))?.remove(0))
    }

    /// Seals the segments that are closed, those included that were pruned. [`Database::commit`] does so as well.
    pub fn seal_closed(&self) -> Result<()> {
        self.ledger().settle()?;
        self.pending_seals()?.into_iter().try_for_each(|seal| self.commit_command(&Command::Seal(seal)).map(drop))
    }

    fn commit_command(&self, command: &Command) -> Result<Vec<Outcome>> {
        let ledger = self.ledger();
        let index = ledger.last_log_id().map_or(0, |last| last.index.0 + 1);
        let payload: Bytes = command.encode();
        let log_id = LogId { term: TERM, index: LogIndex(index) };
        let frame = Frame { log_id, kind: FrameKind::Command, payload };
        let positions = ledger.stage(std::slice::from_ref(&frame))?;
        match flush_or_take_back(&ledger, log_id.index, 1)? {
            (_, None) => self.apply(log_id, positions[0], frame.kind, &frame.payload),
            (_, Some(error)) => Err(error),
        }
    }
}

/// Makes the newest log entries durable, `count` from `first` on, and answers how many are. When there is no space for all, the
/// others are taken back, and the error says why: surely not committed, they must not come with the next one. Another thread
/// (a checkpoint, a sync, whoever gives memory back) may have found space for them meanwhile; then they are committed all the same.
///
/// # Errors
/// Nobody knows what is committed.
pub(crate) fn flush_or_take_back(ledger: &Ledger, first: LogIndex, count: usize) -> Result<(usize, Option<Error>)> {
    match ledger.flush() {
        Ok(_) => Ok((count, None)),
        Err(error @ Error::NoSpace { .. }) => take_back(ledger, first, count, error),
        Err(error) => Err(error),
    }
}

/// See [`flush_or_take_back`], for a flush that has ended with `error`.
fn take_back(ledger: &Ledger, first: LogIndex, count: usize, error: Error) -> Result<(usize, Option<Error>)> {
    // They are flushed in order, so the newest goes first.
    for before in (0..count).rev() {
        match ledger.take_back(LogIndex(first.0 + before as u64)) {
            Ok(true) => {}
            Ok(false) => return Ok((before + 1, (before + 1 < count).then_some(error))),
            // What found no space now has left nobody knows what: the ledger takes no writes any more.
            Err(Error::NoSpace { .. }) => return Err(Error::Poisoned),
            Err(error) => return Err(error),
        }
    }
    Ok((0, Some(error)))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use alhambra_ledger::ids::{DatabaseId, TxId};

    use super::*;
    use crate::command::ProposalEntry;
    use crate::vfs::faulty::{Fault, FaultyVfs};
    use crate::vfs::mem::{Crash, MemVfs};

    /// Full after a few entries, so that taking one back also meets the end of a segment.
    const SEGMENT_BYTES: u64 = 700;
    const BEFORE: u64 = 7;

    fn open(vfs: &Arc<dyn Vfs>) -> Result<Database> {
        let spec = DatabaseSpec { id: DatabaseId([7; 16]), segment_bytes: SEGMENT_BYTES };
        Database::open_embedded(Arc::clone(vfs), Path::new("/db"), spec, Options::default(), Settings::DEFAULT)
    }

    fn batch(n: u64) -> Command {
        let entry = ProposalEntry::plain(Bytes::from(format!("k{n}")), Bytes::new(), Bytes::from(vec![n as u8; 60]));
        Command::Batch { ts: 1, proposals: vec![TxProposal { entries: vec![entry], ..TxProposal::default() }] }
    }

    /// A disk with a database of `BEFORE` transactions, all acknowledged.
    fn filled() -> (MemVfs, FaultyVfs, Arc<dyn Vfs>, Database) {
        let disk = MemVfs::new();
        let faulty = FaultyVfs::on_memory(disk.clone());
        let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
        let db = open(&vfs).unwrap();
        (0..BEFORE).for_each(|n| drop(db.commit_command(&batch(n)).unwrap()));
        (disk, faulty, vfs, db)
    }

    /// How a commit that found no space goes on.
    #[derive(Clone, Copy, Debug)]
    enum Meanwhile {
        Nothing,
        /// Another thread has found space for the entry.
        Flush,
        /// And has promised in the marks that it is there.
        Checkpoint,
    }

    /// The steps of `commit_command` whose flush finds no space, with what another thread does before the entry is taken back;
    /// `Ok` when it is committed. Then two more commits.
    fn commit_without_space(db: &Database, faulty: &FaultyVfs, meanwhile: Meanwhile) -> (Result<()>, Result<()>) {
        let ledger = db.ledger();
        let log_id = LogId { term: TERM, index: LogIndex(ledger.last_log_id().unwrap().index.0 + 1) };
        let frame = Frame { log_id, kind: FrameKind::Command, payload: batch(BEFORE).encode() };
        let positions = ledger.stage(std::slice::from_ref(&frame)).unwrap();
        faulty.set_full_below(Some(Path::new("/db/ledger")));
        let error = ledger.flush().expect_err("there is no space");
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        faulty.set_full_below(None);
        let others = || -> Result<()> {
            match meanwhile {
                Meanwhile::Nothing => Ok(()),
                Meanwhile::Flush => ledger.flush().map(drop),
                Meanwhile::Checkpoint => ledger.flush().and_then(|_| db.checkpoint()),
            }
        };
        let answer = others().and_then(|()| take_back(&ledger, log_id.index, 1, error));
        let answer = answer.and_then(|(_, error)| error.map_or(Ok(()), Err));
        let answer = answer.and_then(|()| db.apply(log_id, positions[0], frame.kind, &frame.payload).map(drop));
        let later = (BEFORE + 1..BEFORE + 3).try_for_each(|n| db.commit_command(&batch(n)).map(drop));
        (answer, later)
    }

    fn has(db: &Database, n: u64) -> bool {
        db.snapshot().get(format!("k{n}").as_bytes()).unwrap().is_some()
    }

    #[test]
    fn what_found_no_space_is_committed_or_gone_and_no_crash_in_between_damages_anything() {
        for meanwhile in [Meanwhile::Nothing, Meanwhile::Flush, Meanwhile::Checkpoint] {
            let (from, to) = {
                let (_disk, faulty, _vfs, db) = filled();
                let from = faulty.step_count();
                let (answer, later) = commit_without_space(&db, &faulty, meanwhile);
                let taken_back = matches!(meanwhile, Meanwhile::Nothing);
                assert_eq!(matches!(answer, Err(Error::NoSpace { .. })), taken_back, "{meanwhile:?}: {answer:?}");
                assert!(answer.is_ok() != taken_back);
                later.unwrap();
                assert_eq!(has(&db, BEFORE), !taken_back);
                assert_eq!(db.applied().tx, TxId(BEFORE + 2 + u64::from(!taken_back)));
                (from, faulty.step_count())
            };
            // The first one is the flush that finds no space.
            for step in from + 1..=to {
                let place = format!("{meanwhile:?}, crash at step {step} of {from}..{to}");
                let (disk, faulty, vfs, db) = filled();
                faulty.fail_at(step, Fault::Crash);
                let (answer, later) = commit_without_space(&db, &faulty, meanwhile);
                drop((db, vfs));
                disk.crash(Crash::PowerLoss);
                let vfs: Arc<dyn Vfs> = Arc::new(disk);
                let db = open(&vfs).unwrap_or_else(|e| panic!("{place}: {e}"));
                (0..BEFORE).for_each(|n| assert!(has(&db, n), "{place}: acknowledged and lost: {n}"));
                match answer {
                    Ok(()) => assert!(has(&db, BEFORE), "{place}: acknowledged and lost"),
                    Err(Error::NoSpace { .. }) => assert!(!has(&db, BEFORE), "{place}: refused and there"),
                    // Nobody knows.
                    Err(_) => {}
                }
                if later.is_ok() {
                    assert!(has(&db, BEFORE + 1) && has(&db, BEFORE + 2), "{place}: acknowledged and lost");
                }
                db.commit_command(&batch(BEFORE + 3)).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert!(has(&db, BEFORE + 3));
            }
        }
    }

    #[test]
    fn a_commit_finds_no_space_at_any_step_and_the_next_one_is_alone() {
        let steps = {
            let (_disk, faulty, _vfs, db) = filled();
            let from = faulty.step_count();
            db.commit_command(&batch(BEFORE)).unwrap();
            faulty.step_count() - from
        };
        assert!(steps > 1);
        for step in 0..steps {
            for fault in [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(ErrorKind::StorageFull)) {
                let place = format!("{fault:?} at step {step}");
                let (disk, faulty, vfs, db) = filled();
                faulty.fail_after(step, fault);
                let refused = db.commit_command(&batch(BEFORE));
                assert!(matches!(refused, Err(Error::NoSpace { .. })), "{place}: {refused:?}");
                db.commit_command(&batch(BEFORE + 1)).unwrap_or_else(|e| panic!("{place}: {e}"));
                drop((db, vfs));
                disk.crash(Crash::PowerLoss);
                let vfs: Arc<dyn Vfs> = Arc::new(disk);
                let db = open(&vfs).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert!(!has(&db, BEFORE) && has(&db, BEFORE + 1), "{place}");
            }
        }
    }

    /// Several log entries share a flush, which finds no space at any step of it: those that are told to be durable are, the
    /// others are gone.
    #[test]
    fn a_round_finds_no_space_at_any_step_and_what_is_durable_stays() {
        const ROUND: u64 = 9;
        let write = |db: &Database| {
            let ledger = db.ledger();
            let first = ledger.last_log_id().unwrap().index.0 + 1;
            let frames: Vec<_> = (0..ROUND)
                .map(|n| Frame {
                    log_id: LogId { term: TERM, index: LogIndex(first + n) },
                    kind: FrameKind::Command,
                    payload: batch(BEFORE + n).encode(),
                })
                .collect();
            let positions = ledger.stage(&frames).unwrap();
            let (durable, error) = flush_or_take_back(&ledger, LogIndex(first), frames.len()).unwrap();
            for (frame, position) in frames.iter().zip(positions).take(durable) {
                db.apply(frame.log_id, position, frame.kind, &frame.payload).unwrap();
            }
            assert_eq!(error.is_none(), durable == frames.len(), "{error:?}");
            assert!(matches!(error, None | Some(Error::NoSpace { .. })), "{error:?}");
            durable as u64
        };
        let steps = {
            let (_disk, faulty, _vfs, db) = filled();
            let from = faulty.step_count();
            assert_eq!(write(&db), ROUND);
            faulty.step_count() - from
        };
        let (mut none, mut partly) = (0, 0);
        for step in 0..steps {
            for fault in [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(ErrorKind::StorageFull)) {
                let place = format!("{fault:?} at step {step}");
                let (disk, faulty, vfs, db) = filled();
                faulty.fail_after(step, fault);
                let durable = write(&db);
                // Some steps can wait for space.
                none += u64::from(durable == 0);
                partly += u64::from(durable > 0 && durable < ROUND);
                db.commit_command(&batch(BEFORE + ROUND)).unwrap_or_else(|e| panic!("{place}: {e}"));
                drop((db, vfs));
                disk.crash(Crash::PowerLoss);
                let vfs: Arc<dyn Vfs> = Arc::new(disk);
                let db = open(&vfs).unwrap_or_else(|e| panic!("{place}: {e}"));
                for n in 0..ROUND {
                    assert_eq!(has(&db, BEFORE + n), n < durable, "{place}: {n} of {durable}");
                }
                assert!(has(&db, BEFORE + ROUND), "{place}");
            }
        }
        assert!(none > 0 && partly > 0, "the round is in several segments");
    }
}
