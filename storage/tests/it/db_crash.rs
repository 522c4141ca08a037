//! Guards against losing or inventing anything in a crash: a whole workload is cut before every write and every sync, the
//! power fails, and what comes up again must hold everything that was acknowledged, equal to the model.

use std::sync::Arc;

use alhambra_ledger::ids::{LogId, LogIndex};
use alhambra_storage::command::Command;
use alhambra_storage::segment::FrameKind;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::{Database, Error, Result};
use bytes::Bytes;

use crate::model::{Condition, Model, Proposal};
use crate::support::{self, apply_through, commit_command, compare, dir, open, put};

/// What a client could know when the machine stopped.
#[derive(Debug, Default)]
pub struct Known {
    /// Log entries that were flushed, in order, with their terms and what the model has to do.
    pub log: Vec<(u64, Bytes, Deed)>,
    /// Applied because others have it, while it may not be flushed here.
    pub ahead: Option<(u64, Bytes, Deed)>,
    /// Answered as saved; the one after it was being saved.
    pub vote: u8,
    /// Repeats a call that found no space.
    pub patient: bool,
}

#[derive(Clone, Debug)]
pub enum Deed {
    Genesis,
    Batch(i64, Vec<Proposal>),
    Other,
}

impl Known {
    fn wait<T>(&self, call: impl Fn() -> Result<T>) -> Result<T> {
        match call() {
            Err(Error::NoSpace { .. }) if self.patient => call(),
            answer => answer,
        }
    }

    fn commit(&mut self, db: &Database, term: u64, kind: FrameKind, payload: Bytes, deed: Deed) -> Result<()> {
        let log_id = support::stage(db, term, kind, payload.clone())?;
        assert_eq!(log_id.index.0, self.log.len() as u64);
        self.wait(|| db.ledger().flush())?;
        self.log.push((term, payload, deed));
        apply_through(db, log_id.index.0)?;
        // Runs of the index are written and merged in between, and cut like everything else.
        if self.log.len().is_multiple_of(3) {
            while db.index_work()? {}
        }
        Ok(())
    }

    fn batch(&mut self, db: &Database, term: u64, n: u64) -> Result<()> {
        let mut proposals =
            vec![put(&format!("k{}", n % 5), &[n as u8; 30]), put(&format!("l{n}"), &n.to_be_bytes()), put("", b"no")];
        proposals[1].conditions = vec![Condition::MustNotExist(format!("k{}", n % 7).into_bytes())];
        proposals[0].request = Some((1, n / 2, 0));
        let ts = 1000 - n as i64 % 3;
        let payload = support::batch(ts, &proposals).encode();
        self.commit(db, term, FrameKind::Command, payload, Deed::Batch(ts, proposals))
    }

    /// The group has committed an entry that this node has not flushed yet; the checkpoint must not outrun the disk.
    fn apply_before_flush(&mut self, db: &Database, term: u64) -> Result<()> {
        let proposals = vec![put("ahead", &[term as u8; 25])];
        let payload = support::batch(1, &proposals).encode();
        self.ahead = Some((term, payload.clone(), Deed::Batch(1, proposals)));
        let log_id = support::stage(db, term, FrameKind::Command, payload)?;
        apply_through(db, log_id.index.0)?;
        self.wait(|| db.save_committed(log_id))?;
        self.wait(|| db.checkpoint())?;
        self.log.extend(self.ahead.take());
        Ok(())
    }

    fn vote(&mut self, db: &Database) -> Result<()> {
        self.wait(|| db.save_vote(&[self.vote + 1; 9]))?;
        self.vote += 1;
        Ok(())
    }

    pub fn model(&self, entries: usize) -> Model {
        let mut model = Model::new();
        for (_, _, deed) in self.log.iter().chain(&self.ahead).take(entries) {
            match deed {
                Deed::Genesis => model.limits = Some(support::limits()),
                Deed::Batch(ts, proposals) => drop(model.batch(*ts, proposals)),
                Deed::Other => {}
            }
        }
        model
    }

    fn last(&self) -> LogId {
        let (term, ..) = self.log.last().expect("called behind a commit");
        LogId::new(*term, self.log.len() as u64 - 1)
    }
}

/// Two checkpoints, a cut tail, seals, votes and marks, memory given back.
fn workload(vfs: &Arc<dyn Vfs>, known: &mut Known) -> Result<()> {
    workload_on(&open(vfs, &dir())?, known)
}

/// See [`workload`].
pub fn workload_on(db: &Database, known: &mut Known) -> Result<()> {
    known.vote(db)?;
    known.commit(db, 1, FrameKind::Command, support::genesis().encode(), Deed::Genesis)?;
    for n in 0..5 {
        known.batch(db, 1, n)?;
    }
    known.commit(db, 1, FrameKind::Membership, Bytes::from_static(b"three nodes"), Deed::Other)?;
    known.wait(|| db.checkpoint())?;
    for n in 5..9 {
        known.batch(db, 1, n)?;
    }
    known.wait(|| db.save_committed(known.last()))?;
    known.apply_before_flush(db, 1)?;
    // A tail that is flushed, and marked as such, but loses against the next leader.
    for n in 100..103 {
        let payload = support::batch(7, &[put("tail", &[n; 40])]).encode();
        support::stage(db, 1, FrameKind::Command, payload)?;
    }
    known.wait(|| db.ledger().flush())?;
    known.wait(|| db.checkpoint())?;
    known.wait(|| db.truncate_after(Some(known.last())))?;
    known.vote(db)?;
    known.commit(db, 2, FrameKind::Blank, Bytes::new(), Deed::Other)?;
    for n in 9..14 {
        known.batch(db, 2, n)?;
    }
    db.ledger().settle()?;
    for seal in db.pending_seals()? {
        known.commit(db, 2, FrameKind::Command, Command::Seal(seal).encode(), Deed::Other)?;
    }
    known.wait(|| db.checkpoint())?;
    known.wait(|| db.set_purge_mark(known.last()))?;
    for n in 14..17 {
        known.batch(db, 2, n)?;
    }
    known.wait(|| db.release_memory())?;
    for n in 17..19 {
        known.batch(db, 2, n)?;
    }
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_fails() {
    let steps = {
        let faulty = Arc::new(FaultyVfs::new(Arc::new(MemVfs::new())));
        let vfs: Arc<dyn Vfs> = faulty.clone();
        let mut known = Known::default();
        workload(&vfs, &mut known).expect("no fault planned");
        assert!(known.log.len() > 20);
        faulty.step_count()
    };
    assert!(steps > 60, "{steps} steps");
    for step in 0..steps {
        for (fault, crash) in [
            (Fault::Crash, Crash::PowerLoss),
            (Fault::CrashShort, Crash::Process),
            (Fault::CrashShort, Crash::PowerLossTorn { seed: step }),
        ] {
            let disk = MemVfs::new();
            let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
            faulty.fail_at(step, fault);
            let vfs: Arc<dyn Vfs> = faulty;
            let mut known = Known::default();
            workload(&vfs, &mut known).expect_err("the machine stopped");
            disk.crash(crash);
            let vfs: Arc<dyn Vfs> = Arc::new(disk);
            drop(come_up(&vfs, &mut known, &format!("step {step}, {fault:?}, {crash:?}")));
        }
    }
}

/// Compares what opens with what was known, goes on with it, opens it again; answers what it holds then.
pub fn come_up(vfs: &Arc<dyn Vfs>, known: &mut Known, place: &str) -> Model {
    let db = open(vfs, &dir()).unwrap_or_else(|e| panic!("{place}: does not open: {e}"));
    if db.applied().log_id.is_some_and(|id| id.index.0 == known.log.len() as u64) {
        // The checkpoint that was being taken has it: then the ledger has it too.
        known.log.extend(known.ahead.take());
    }
    let vote = db.load_vote().unwrap_or_else(|e| panic!("{place}: vote: {e}"));
    let votes = [Some(vec![known.vote; 9]), Some(vec![known.vote + 1; 9])];
    assert!(votes.contains(&vote) || (known.vote == 0 && vote.is_none()), "{place}: vote {vote:?}");
    let acknowledged = known.log.len();
    let on_disk = db.ledger().last_log_id().map_or(0, |id| id.index.0 + 1);
    assert!(on_disk >= acknowledged as u64, "{place}: {on_disk} log entries of {acknowledged}");
    let applied = db.applied().log_id.map_or(0, |id| id.index.0 as usize + 1);
    assert!(applied <= acknowledged, "{place}: S1: applied {applied} of {acknowledged}");
    for (index, (term, payload, _)) in known.log.iter().enumerate() {
        let index = LogIndex(index as u64);
        let frames = db.ledger().read(index, LogIndex(index.0 + 1), 0).unwrap_or_else(|e| panic!("{place}: {e}"));
        assert_eq!((frames[0].1.log_id.term.0, &frames[0].1.payload), (*term, payload), "{place}: {index}");
    }
    // What was being committed may be there as well, but not behind the end of the log.
    let committed = db.load_committed();
    assert!(
        committed.is_none_or(|id| (id.index.0 as usize) <= acknowledged && id.index.0 < on_disk),
        "{place}: committed {committed:?}"
    );
    if acknowledged > 0 {
        apply_through(&db, acknowledged as u64 - 1).unwrap_or_else(|e| panic!("{place}: {e}"));
    }
    compare(&db, &known.model(acknowledged));
    // What was never acknowledged may go; then life goes on.
    let kept = if acknowledged == 0 { None } else { Some(known.last()) };
    db.truncate_after(kept).unwrap_or_else(|e| panic!("{place}: {e}"));
    let mut model = known.model(acknowledged);
    for _ in 0..2 {
        let proposals = [put("after", place.as_bytes().get(..10).expect("long"))];
        let payload = support::batch(5000, &proposals).encode();
        let log_id = support::stage(&db, 9, FrameKind::Command, payload).unwrap_or_else(|e| panic!("{place}: {e}"));
        db.ledger().flush().unwrap_or_else(|e| panic!("{place}: {e}"));
        apply_through(&db, log_id.index.0).unwrap_or_else(|e| panic!("{place}: {e}"));
        model.batch(5000, &proposals);
    }
    db.checkpoint().unwrap_or_else(|e| panic!("{place}: {e}"));
    let applied = db.applied();
    drop(db);
    let db = open(vfs, &dir()).unwrap_or_else(|e| panic!("{place}: does not open again: {e}"));
    assert_eq!(db.applied(), applied, "{place}");
    compare(&db, &model);
    model
}

#[test]
fn a_failed_sync_poisons_and_a_reopened_database_goes_on() {
    let faulty = Arc::new(FaultyVfs::new(Arc::new(MemVfs::new())));
    let vfs: Arc<dyn Vfs> = faulty.clone();
    let db = open(&vfs, &dir()).expect("empty disk");
    commit_command(&db, &support::genesis()).expect("healthy");
    commit_command(&db, &support::batch(1, &[put("k", b"v")])).expect("healthy");
    faulty.fail_after(1, Fault::Error(std::io::ErrorKind::Other));
    db.checkpoint().expect_err("a sync or write fails");
    db.checkpoint().expect_err("nobody knows what is on disk");
    let refused = commit_command(&db, &support::batch(1, &[put("l", b"w")]));
    assert!(matches!(refused, Err(Error::Poisoned)), "{refused:?}");
    drop(db);
    let db = open(&vfs, &dir()).expect("reopens");
    let last = support::next_index(&db) - 1;
    apply_through(&db, last).expect("applies");
    assert!(db.snapshot().get(b"k").unwrap().is_some() && db.snapshot().get(b"l").unwrap().is_some());
    db.checkpoint().expect("healthy again");
}

/// The first vote and the first checkpoint of a new database get their names beside `marks`, which has just got its own; a crash that
/// keeps the later name only leaves a database without its marks, which nobody may open.
#[test]
fn the_marks_of_a_new_database_are_there_whichever_names_a_crash_keeps() {
    type Deed = fn(&Database) -> Result<()>;
    let deeds: [Deed; 2] = [|db| db.save_vote(b"for me"), |db| db.checkpoint()];
    for deed in deeds {
        // A process that was killed while it opened the database first; the last of these came to its end.
        for killed in 0.. {
            let mut opened = false;
            for step in 0.. {
                let mut done = false;
                for seed in 0..6 {
                    let disk = MemVfs::new();
                    let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
                    faulty.fail_at(killed, Fault::Crash);
                    let vfs: Arc<dyn Vfs> = faulty;
                    let first = open(&vfs, &dir());
                    opened = first.is_ok();
                    drop((first, vfs));
                    disk.crash(Crash::Process);
                    let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
                    let vfs: Arc<dyn Vfs> = faulty.clone();
                    let db = open(&vfs, &dir()).unwrap_or_else(|e| panic!("killed at {killed}: {e}"));
                    faulty.fail_after(step, Fault::Crash);
                    done = deed(&db).is_ok();
                    drop((db, vfs));
                    disk.crash(Crash::PowerLossTorn { seed });
                    let vfs: Arc<dyn Vfs> = Arc::new(disk);
                    let again = open(&vfs, &dir());
                    drop(again.unwrap_or_else(|e| panic!("killed at {killed}, step {step}, seed {seed}: {e}")));
                }
                if done {
                    assert!(step > 1, "{step} steps");
                    break;
                }
            }
            if opened {
                assert!(killed > 2, "{killed} steps");
                break;
            }
        }
    }
}
