//! Group commit for an embedded database: many threads commit, whoever comes first writes for all who wait.
//!
//! ```text
//! caller   encode, hash ─► queue ─┐                    (each on its own thread, at the same time)
//! baton                           └► log entries ─► staged ─► flushed ─┐        (one round at a time)
//! turn                                                                 └► applied, callers woken   (one at a time, in order)
//! ```
//!
//! There are no timers: a round leaves as soon as the one before has, with whatever waits by then. While one is applied the
//! next one is flushed; a third waits in the queue and grows. Small rounds do not overlap, because there the flush is what
//! costs: whoever was answered may come again and share the next one. A round with many callers makes several log entries,
//! which share the flush: the callers of the first prepare what they do next while the second is applied. The baton and the turn
//! are handed on by the callers themselves, this module starts no thread. A caller whose proposal cannot be carried out any
//! more, because a write failed or a thread panicked, gets an error and never waits for ever: its place in the queue answers
//! when it is dropped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use alhambra_ledger::ids::{LogId, LogIndex};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::apply::Outcome;
use crate::command::{Command, TxProposal, encode_batch};
use crate::database::Database;
use crate::digested::Digested;
use crate::embedded::{TERM, flush_or_take_back};
use crate::error::{Error, Result};
use crate::limits::{
    COMMIT_BATCH_BYTES_MAX, COMMIT_ENTRY_PROPOSALS, COMMIT_QUEUE_BYTES_MAX, COMMIT_ROUND_ENTRIES, COMMIT_SMALL_BYTES,
    FRAME_PAYLOAD_BYTES_MAX, UNSYNCED_BYTES_FLUSH, UNSYNCED_BYTES_MAX,
};
use crate::segment::{Frame, FrameKind, Position};

/// What is certain when a commit returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The transaction is on disk.
    Synced,
    /// It is visible, and on disk soon: after [`Committer::sync`], a checkpoint, or a few MiB more. A crash may take the
    /// newest transactions, never one of them without those after it.
    Unsynced,
}

/// Commits from any number of threads. While it is in use nothing else may write to the database.
#[derive(Debug)]
pub struct Committer {
    db: Arc<Database>,
    durability: Durability,
    state: Mutex<State>,
    /// An entry was applied, or will not be.
    turn: Condvar,
    /// There is room in the queue.
    room: Condvar,
    /// Seals can be written.
    seals_due: AtomicBool,
    checkpoint_due: AtomicBool,
    flushing: AtomicBool,
    checkpointing: AtomicBool,
    indexing: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Of proposals that wait or are on their way, bytes.
    bytes: usize,
    /// Somebody holds the baton, or has been given it.
    writing: bool,
    /// Log entries staged.
    staged: u64,
    /// Log entries applied.
    applied: u64,
    /// Log entries whose callers are answered.
    answered: u64,
    /// Of the newest round, bytes and proposals.
    newest: (usize, usize),
    /// Bytes of log entries that may not be flushed.
    unflushed: u64,
    /// No more writes.
    failed: bool,
    /// No more applies either.
    apply_failed: bool,
}

/// A proposal in the queue. Dropped without an answer it answers [`Error::Poisoned`].
#[derive(Debug)]
struct Waiting {
    ts: i64,
    proposal: Vec<u8>,
    /// Goes to the log entry.
    digested: Option<Digested>,
    /// Until the answer.
    place: Option<Arc<Place>>,
}

/// Where a caller waits.
#[derive(Debug)]
struct Place {
    /// What is said, and who hears it next.
    call: Mutex<Option<(Call, Option<Round>)>>,
    /// Who waits. Parking is cheaper than a condition: nothing but the thread itself is looked up and locked.
    caller: Thread,
}

#[derive(Debug)]
enum Call {
    /// The baton is yours, and your proposal is the first in the queue.
    Lead,
    /// It is over.
    Answer(Result<Outcome>),
}

/// The callers of one log entry, who wake each other: waking is what a round costs most, and one thread cannot do it on all
/// processors. Caller n wakes 2n + 1 and 2n + 2, whose answers are there already.
#[derive(Clone, Debug)]
struct Round {
    places: Arc<[Arc<Place>]>,
    number: usize,
}

impl Round {
    fn wake_next(&self) {
        let first = 2 * self.number + 1;
        self.places.iter().skip(first).take(2).for_each(|place| place.caller.unpark());
    }
}

impl Place {
    /// Where the calling thread will wait.
    fn new() -> Self {
        Self { call: Mutex::new(None), caller: thread::current() }
    }

    fn answer(&self, answer: Result<Outcome>) {
        *self.call.lock() = Some((Call::Answer(answer), None));
        self.caller.unpark();
    }

    /// Answers all callers of a log entry; `leads` says that this is called by the first of them, who need not be woken.
    fn answer_all(proposals: &mut [Waiting], outcomes: Vec<Outcome>, leads: bool) {
        let places: Arc<[Arc<Place>]> = proposals.iter_mut().filter_map(|waiting| waiting.place.take()).collect();
        for (number, (place, outcome)) in places.iter().zip(outcomes).enumerate() {
            let round = Round { places: Arc::clone(&places), number };
            *place.call.lock() = Some((Call::Answer(Ok(outcome)), Some(round)));
        }
        match places.first() {
            Some(first) if !leads => first.caller.unpark(),
            _ => Round { places, number: 0 }.wake_next(),
        }
    }

    /// Gives the baton to whoever waits here, unless there is an answer already.
    fn lead(&self) {
        self.call.lock().get_or_insert((Call::Lead, None));
        self.caller.unpark();
    }

    fn wait(&self) -> Call {
        loop {
            let said = self.call.lock().take();
            match said {
                // Whoever speaks does so first and unparks then; the token of somebody else only makes another round.
                None => thread::park(),
                Some((said, round)) => {
                    if let Some(round) = round {
                        round.wake_next();
                    }
                    return said;
                }
            }
        }
    }
}

impl Waiting {
    fn answer(mut self, answer: Result<Outcome>) {
        if let Some(place) = self.place.take() {
            place.answer(answer);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            place.answer(Err(Error::Poisoned));
        }
    }
}

/// Proposals that were taken from the queue for one log entry.
#[derive(Debug, Default)]
struct Taken {
    proposals: Vec<Waiting>,
    bytes: usize,
}

impl Taken {
    fn push(&mut self, next: Waiting) {
        self.bytes += next.proposal.len();
        self.proposals.push(next);
    }

    fn payload(&self) -> Bytes {
        let ts = self.proposals.iter().map(|waiting| waiting.ts).max().unwrap_or_default();
        encode_batch(ts, &self.proposals.iter().map(|waiting| &waiting.proposal[..]).collect::<Vec<_>>())
    }
}

/// One log entry on its way.
#[derive(Debug)]
struct Entry {
    number: u64,
    log_id: LogId,
    position: Position,
    payload: Bytes,
    digested: Vec<Digested>,
    proposals: Vec<Waiting>,
    bytes: usize,
}

impl Committer {
    /// For a database from [`Database::open_embedded`].
    pub fn new(db: Arc<Database>, durability: Durability) -> Self {
        Self {
            db,
            durability,
            state: Mutex::default(),
            turn: Condvar::new(),
            room: Condvar::new(),
            seals_due: AtomicBool::new(false),
            checkpoint_due: AtomicBool::new(false),
            flushing: AtomicBool::new(false),
            checkpointing: AtomicBool::new(false),
            indexing: AtomicBool::new(false),
        }
    }

    /// The database.
    pub fn database(&self) -> &Arc<Database> {
        &self.db
    }

    /// Commits a transaction; visible when this returns, and durable as was chosen. `ts` is Unix seconds. Waits while the
    /// queue is full.
    ///
    /// # Errors
    /// [`Error::FrameTooLong`]: never. [`Error::NoSpace`]: surely not committed, try again. [`Error::Poisoned`] and IO:
    /// perhaps committed, open anew to see.
    pub fn commit(&self, ts: i64, mut proposal: TxProposal) -> Result<Outcome> {
        let settings = self.db.settings().ok_or(Error::Poisoned)?;
        proposal.compress(&settings);
        let digested = Digested::of_proposal(&settings, &proposal);
        let proposal = proposal.encode();
        if proposal.len() > FRAME_PAYLOAD_BYTES_MAX - encode_batch(ts, &[]).len() {
            return Err(Error::FrameTooLong { len: proposal.len(), max: FRAME_PAYLOAD_BYTES_MAX });
        }
        let place = Arc::new(Place::new());
        let waiting = Waiting { ts, proposal, digested: Some(digested), place: Some(Arc::clone(&place)) };
        if !self.queue(waiting)? {
            match place.wait() {
                Call::Lead => {}
                Call::Answer(answer) => return answer,
            }
        }
        self.lead();
        match place.wait() {
            Call::Answer(answer) => answer,
            Call::Lead => unreachable!("a proposal leads once, and is in the log entry that it leads"),
        }
    }

    /// Makes everything durable that was committed before the call.
    pub fn sync(&self) -> Result<()> {
        let bytes = self.state.lock().unflushed;
        self.db.ledger().flush()?;
        let mut state = self.state.lock();
        state.unflushed = state.unflushed.saturating_sub(bytes);
        Ok(())
    }

    /// Puts a proposal into the queue; `true` when the baton comes with it.
    fn queue(&self, waiting: Waiting) -> Result<bool> {
        let mut state = self.state.lock();
        let len = waiting.proposal.len();
        while !state.failed && state.bytes > 0 && state.bytes + len > COMMIT_QUEUE_BYTES_MAX {
            self.room.wait(&mut state);
        }
        if state.failed {
            return Err(Error::Poisoned);
        }
        state.bytes += len;
        state.waiting.push_back(waiting);
        Ok(!std::mem::replace(&mut state.writing, true))
    }

    /// Holds the baton: takes what waits, writes it, hands the baton on, applies what was written.
    fn lead(&self) {
        let baton = Baton { committer: self, handed_on: false };
        let sealed = if self.seals_due.load(Ordering::Acquire) { self.seal() } else { Ok(()) };
        match sealed.and_then(|()| self.write()) {
            Ok(entries) => {
                baton.hand_on();
                entries.into_iter().enumerate().for_each(|(n, entry)| self.apply(entry, n == 0));
            }
            // Dropped, and with it everybody who waits.
            Err(Failed) => drop(baton),
        }
        self.follow_up();
    }

    /// Writes what waits and flushes it once; answers the log entries, without those that there was no space for, which
    /// their callers have been told.
    fn write(&self) -> std::result::Result<Vec<Entry>, Failed> {
        let taken = self.take();
        if taken.is_empty() {
            return Ok(Vec::new());
        }
        let payloads: Vec<_> = taken.iter().map(Taken::payload).collect();
        let (written, error) = self.append(&payloads).unwrap_or_else(|error| (Vec::new(), Some(error)));
        let first = {
            let mut state = self.state.lock();
            let first = state.staged;
            state.staged += written.len() as u64;
            if !written.is_empty() {
                state.newest =
                    (taken.iter().map(|one| one.bytes).sum(), taken.iter().map(|one| one.proposals.len()).sum());
            }
            if self.durability == Durability::Unsynced {
                state.unflushed += payloads.iter().take(written.len()).map(|payload| payload.len() as u64).sum::<u64>();
            }
            first
        };
        let mut taken = taken.into_iter();
        let entries = (first..).zip(written).zip(payloads).zip(taken.by_ref());
        let entries = entries.map(|(((number, (log_id, position)), payload), Taken { mut proposals, bytes })| {
            let digested = proposals.iter_mut().filter_map(|waiting| waiting.digested.take()).collect();
            Entry { number, log_id, position, payload, digested, proposals, bytes }
        });
        let entries = entries.collect();
        match error {
            None => Ok(entries),
            Some(error) => {
                let is_space = matches!(error, Error::NoSpace { .. });
                self.refuse(taken, error);
                if is_space { Ok(entries) } else { Err(Failed) }
            }
        }
    }

    /// Tells the callers of what was not written. The error goes to one of them; errors of the system have no copies.
    fn refuse(&self, taken: impl Iterator<Item = Taken>, error: Error) {
        let mut error = Some(error);
        for Taken { proposals, bytes } in taken {
            self.leave(bytes);
            for waiting in proposals {
                let again = match &error {
                    Some(Error::NoSpace { op, path, source }) => {
                        Some(Error::NoSpace { op: *op, path: path.clone(), source: source.kind().into() })
                    }
                    _ => None,
                };
                let told = std::mem::replace(&mut error, again).unwrap_or(Error::Poisoned);
                waiting.answer(Err(told));
            }
        }
    }

    /// Takes a round from the queue when at most one log entry is still to be applied, and none if that is of a small one: until then
    /// what waits may grow.
    fn take(&self) -> Vec<Taken> {
        let mut state = self.state.lock();
        let is_small = state.newest.0 <= COMMIT_SMALL_BYTES;
        while !state.apply_failed
            && if is_small { state.staged > state.answered } else { state.staged > state.applied + 1 }
        {
            self.turn.wait(&mut state);
        }
        // Lets those who were just answered come, while they do.
        while is_small && state.waiting.len() < state.newest.1 {
            let came = state.waiting.len();
            MutexGuard::unlocked(&mut state, thread::yield_now);
            if state.waiting.len() <= came {
                break;
            }
        }
        if state.apply_failed {
            return Vec::new();
        }
        let entries = (state.waiting.len() / COMMIT_ENTRY_PROPOSALS).clamp(1, COMMIT_ROUND_ENTRIES);
        let share = state.waiting.len().div_ceil(entries);
        let mut taken: Vec<Taken> = Vec::with_capacity(entries);
        let mut bytes = 0;
        while let Some(next) =
            state.waiting.pop_front_if(|next| bytes == 0 || bytes + next.proposal.len() <= COMMIT_BATCH_BYTES_MAX)
        {
            bytes += next.proposal.len();
            match taken.last_mut().filter(|last| last.proposals.len() < share) {
                Some(last) => last.push(next),
                None => {
                    let mut one = Taken::default();
                    one.push(next);
                    taken.push(one);
                }
            }
        }
        taken
    }

    /// Stages commands behind all others, and flushes them if that was chosen. When there is no space for all of them, those
    /// are answered that are durable, and why the others are not.
    fn append(&self, payloads: &[Bytes]) -> Result<Appended> {
        let ledger = self.db.ledger();
        let flushes = match self.durability {
            Durability::Synced => true,
            Durability::Unsynced if self.state.lock().unflushed < UNSYNCED_BYTES_MAX => false,
            // The one who flushes does not keep up, or there is no space: before there is more to lose.
            Durability::Unsynced => {
                self.sync()?;
                false
            }
        };
        let first = ledger.last_log_id().map_or(0, |last| last.index.0 + 1);
        let frames = (first..).zip(payloads).map(|(index, payload)| {
            let log_id = LogId { term: TERM, index: LogIndex(index) };
            Frame { log_id, kind: FrameKind::Command, payload: payload.clone() }
        });
        let frames: Vec<_> = frames.collect();
        let positions = ledger.stage(&frames)?;
        let mut staged: Vec<_> = frames.iter().map(|frame| frame.log_id).zip(positions).collect();
        if !flushes {
            return Ok((staged, None));
        }
        let (durable, error) = flush_or_take_back(&ledger, LogIndex(first), staged.len())?;
        staged.truncate(durable);
        Ok((staged, error))
    }

    /// Applies a log entry when its turn has come, and answers its callers, the first of whom is who calls this if it `leads`.
    fn apply(&self, entry: Entry, leads: bool) {
        let Entry { number, log_id, position, payload, digested, mut proposals, bytes } = entry;
        {
            let mut state = self.state.lock();
            while state.applied < number && !state.apply_failed {
                self.turn.wait(&mut state);
            }
            if state.apply_failed {
                return;
            }
        }
        let turn = Turn { committer: self, done: false };
        let applied = self.db.apply_digested(log_id, position, &payload, &digested).and_then(|outcomes| {
            if self.db.checkpoint_due() {
                self.checkpoint_due.store(true, Ordering::Release);
            }
            if !self.db.pending_seals()?.is_empty() {
                self.seals_due.store(true, Ordering::Release);
            }
            Ok(outcomes)
        });
        match applied {
            Ok(outcomes) => {
                turn.done();
                self.leave(bytes);
                Place::answer_all(&mut proposals, outcomes, leads);
                self.state.lock().answered += 1;
                self.turn.notify_all();
            }
            Err(error) => {
                drop(turn);
                if let Some(first) = proposals.into_iter().next() {
                    first.answer(Err(error));
                }
            }
        }
    }

    /// These bytes have left the queue.
    fn leave(&self, bytes: usize) {
        let mut state = self.state.lock();
        // Nothing is counted any more after a failure.
        state.bytes = state.bytes.saturating_sub(bytes);
        drop(state);
        self.room.notify_all();
    }

    /// What is due now and then; only the caller that comes across it waits for it. What cannot be done for lack of space is
    /// tried again later; any other failure has poisoned the database, which the next commit says.
    fn follow_up(&self) {
        let done = || -> Result<()> {
            if self.state.lock().unflushed >= UNSYNCED_BYTES_FLUSH {
                alone(&self.flushing, || self.sync())?;
            }
            if self.seals_due.load(Ordering::Acquire) && self.take_idle_baton() {
                let baton = Baton { committer: self, handed_on: false };
                match self.seal() {
                    Ok(()) => baton.hand_on(),
                    Err(Failed) => drop(baton),
                }
            }
            if self.checkpoint_due.load(Ordering::Acquire) {
                alone(&self.checkpointing, || {
                    self.checkpoint_due.store(false, Ordering::Release);
                    self.db.checkpoint()
                })?;
            }
            if self.db.index_work_due() {
                alone(&self.indexing, || self.db.index_work().map(drop))?;
            }
            Ok(())
        };
        if let Err(error) = done() {
            tracing::warn!(%error, "flush, checkpoint or index work put off");
        }
    }

    /// Takes the baton when nobody has it.
    fn take_idle_baton(&self) -> bool {
        let mut state = self.state.lock();
        !state.failed && !std::mem::replace(&mut state.writing, true)
    }

    /// Writes the seals that are due. The caller holds the baton.
    fn seal(&self) -> std::result::Result<(), Failed> {
        self.seals_due.store(false, Ordering::Release);
        {
            let mut state = self.state.lock();
            while state.staged > state.applied && !state.apply_failed {
                self.turn.wait(&mut state);
            }
            if state.apply_failed {
                return Err(Failed);
            }
        }
        let written = self.db.pending_seals().and_then(|seals| {
            seals.into_iter().try_for_each(|seal| {
                let payload = Command::Seal(seal).encode();
                match self.append(std::slice::from_ref(&payload))? {
                    (written, None) => written.into_iter().try_for_each(|(log_id, position)| {
                        self.db.apply(log_id, position, FrameKind::Command, &payload).map(drop)
                    }),
                    (_, Some(error)) => Err(error),
                }
            })
        });
        match written {
            // Due again after the next apply.
            Ok(()) | Err(Error::NoSpace { .. }) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "a seal cannot be written");
                Err(Failed)
            }
        }
    }

    fn fail(&self, state: &mut State) {
        state.failed = true;
        state.writing = false;
        state.bytes = 0;
        // Answers who waits.
        state.waiting.clear();
        self.room.notify_all();
    }
}

/// Log entries that were written, and why the others were not.
type Appended = (Vec<(LogId, Position)>, Option<Error>);

/// A write or an apply has failed, and whoever asked for it was told.
struct Failed;

/// Runs `f` unless somebody is at it.
fn alone(busy: &AtomicBool, f: impl FnOnce() -> Result<()>) -> Result<()> {
    struct Busy<'a>(&'a AtomicBool);
    impl Drop for Busy<'_> {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Release);
        }
    }
    if busy.swap(true, Ordering::Acquire) {
        return Ok(());
    }
    let _busy = Busy(busy);
    f()
}

/// The right to write. Dropped instead of handed on, there are no more writes.
struct Baton<'a> {
    committer: &'a Committer,
    handed_on: bool,
}

impl Baton<'_> {
    fn hand_on(mut self) {
        self.handed_on = true;
        let mut state = self.committer.state.lock();
        match state.waiting.front().and_then(|next| next.place.as_ref()) {
            Some(place) => place.lead(),
            None => state.writing = false,
        }
    }
}

impl Drop for Baton<'_> {
    fn drop(&mut self) {
        if !self.handed_on {
            self.committer.fail(&mut self.committer.state.lock());
        }
    }
}

/// The right to apply. Dropped before it is done, there are no more applies.
struct Turn<'a> {
    committer: &'a Committer,
    done: bool,
}

impl Turn<'_> {
    fn done(mut self) {
        self.done = true;
        self.committer.state.lock().applied += 1;
        self.committer.turn.notify_all();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.done {
            let mut state = self.committer.state.lock();
            state.apply_failed = true;
            self.committer.fail(&mut state);
            drop(state);
            self.committer.turn.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use alhambra_ledger::ids::DatabaseId;

    use super::*;
    use crate::command::{ProposalEntry, Settings};
    use crate::database::{DatabaseSpec, Options};
    use crate::vfs::Vfs;
    use crate::vfs::faulty::{Fault, FaultyVfs};
    use crate::vfs::mem::{Crash, MemVfs};

    const CALLERS: usize = 4 * COMMIT_ENTRY_PROPOSALS;

    fn open(vfs: &Arc<dyn Vfs>) -> Arc<Database> {
        // A round is in several segments.
        let spec = DatabaseSpec { id: DatabaseId([7; 16]), segment_bytes: 700 };
        let db =
            Database::open_embedded(Arc::clone(vfs), Path::new("/db"), spec, Options::default(), Settings::DEFAULT);
        Arc::new(db.expect("a sound disk"))
    }

    fn proposal(n: usize) -> TxProposal {
        let entry = ProposalEntry::plain(Bytes::from(format!("k{n}")), Bytes::new(), Bytes::from(vec![n as u8; 30]));
        TxProposal { entries: vec![entry], ..TxProposal::default() }
    }

    /// Commits of many callers who all wait before the first of them leads, on a disk that has a fault at this step of what
    /// follows; what each was told, the disk, how many steps there were, and how many log entries.
    fn round(fault: Option<(u64, Fault)>) -> (Vec<Result<Outcome>>, MemVfs, u64, u64) {
        let disk = MemVfs::new();
        let faulty = FaultyVfs::on_memory(disk.clone());
        let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
        let db = open(&vfs);
        let committer = Committer::new(Arc::clone(&db), Durability::Synced);
        let entries = || db.ledger().last_log_id().map_or(0, |last| last.index.0);
        let before = entries();
        // Somebody has the baton until all are there.
        assert!(committer.take_idle_baton());
        let baton = Baton { committer: &committer, handed_on: false };
        let (told, steps) = thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|n| {
                    scope.spawn({
                        let committer = &committer;
                        move || committer.commit(1, proposal(n))
                    })
                })
                .collect();
            #[expect(clippy::disallowed_methods, reason = "a test gives up in real time")]
            let deadline = Instant::now() + Duration::from_secs(60);
            while committer.state.lock().waiting.len() < CALLERS {
                #[expect(clippy::disallowed_methods, reason = "a test gives up in real time")]
                let now = Instant::now();
                assert!(now < deadline, "the callers do not come");
                thread::yield_now();
            }
            let from = faulty.step_count();
            if let Some((step, fault)) = fault {
                faulty.fail_after(step, fault);
            }
            baton.hand_on();
            let told: Vec<_> = callers.into_iter().map(|caller| caller.join().expect("no panic")).collect();
            (told, faulty.step_count() - from)
        });
        let made = entries() - before;
        drop((committer, db, vfs));
        (told, disk, steps, made)
    }

    #[test]
    fn callers_who_wait_are_several_log_entries_and_a_lack_of_space_anywhere_is_told_to_the_right_ones() {
        let (told, _, steps, made) = round(None);
        assert!(told.iter().all(|told| matches!(told, Ok(Outcome::Committed { .. }))), "{told:?}");
        assert!(made >= COMMIT_ROUND_ENTRIES as u64, "{made} log entries");
        let (mut refused, mut partly) = (0, 0);
        for step in 0..steps {
            for fault in [Fault::Error, Fault::Short, Fault::LostSync].map(|fault| fault(ErrorKind::StorageFull)) {
                let place = format!("{fault:?} at step {step}");
                let (told, disk, ..) = round(Some((step, fault)));
                disk.crash(Crash::PowerLoss);
                let vfs: Arc<dyn Vfs> = Arc::new(disk);
                let snapshot = open(&vfs).snapshot();
                let mut committed = 0;
                for (n, told) in told.iter().enumerate() {
                    let is_there = snapshot.get(format!("k{n}").as_bytes()).expect("readable").is_some();
                    match told {
                        Ok(Outcome::Committed { .. }) => assert!(is_there, "{place}: told {n} and lost"),
                        Err(Error::NoSpace { .. }) => assert!(!is_there, "{place}: refused {n} and there"),
                        other => panic!("{place}: {n}: {other:?}"),
                    }
                    committed += usize::from(is_there);
                }
                refused += usize::from(committed < CALLERS);
                partly += usize::from(0 < committed && committed < CALLERS);
            }
        }
        assert!(refused > partly && partly > 0, "{refused} refused, {partly} of them partly");
    }
}
