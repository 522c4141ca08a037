//! What an index does in the background: writes full in-memory parts out as runs, and merges runs, in steps of bounded size on
//! the thread of whoever calls.
//!
//! A run holds transactions that are flushed in the ledger only, so that the index is never ahead of what a crash leaves
//! [S1, S3]. Order of writes: the run, `sync_data`; the folder, `sync_dir`; the manifest, atomically. A crash before the manifest
//! leaves a file that nobody names and the next open removes.
//!
//! Merging keeps every version, so there is nothing to be gained but fewer places to look. Runs that lie side by side and are of
//! about the same size are merged `MERGE_RUNS` at a time, so that the number of runs grows with the logarithm of the size, and
//! each version is written about once per size class. While a merge runs its inputs and its output both take space.
//!
//! ## When the work is behind
//!
//! Jobs are a stack: writing a part out goes before merging, and merging small runs before a merge of larger ones that is under
//! way, which waits as it is. So nothing urgent ever waits for the end of something large.
//!
//! Whoever inserts pays for it a little with every transaction instead of waiting for a whole job now and then. The index counts
//! how much is *owed*: for two bytes that come in, as many bytes of work as the *pressure* says, which is 0 with up to one full
//! part waiting and fewer than 2 x `MERGE_RUNS` runs too many. Every further part makes it 1 more, every further `MERGE_RUNS` runs
//! 2 more. Work that anybody does is taken off, and some of it is remembered as paid in advance. Writing a part out, and moving it up a size class, each count for less than half
//! of what its memory took: so at a pressure of 2 parts are written as fast as they fill, which is before there are so many that
//! the inserter has to wait, and at a pressure of 8 a version is paid for through seven size classes besides, which is where
//! runs of 100 GB lie. That bounds the number of runs, whatever the load is: about 6 x `MERGE_RUNS` more than at rest.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use super::block::Cell;
use super::manifest::Manifest;
use super::memtable::{Memtable, Piece, Sorting};
use super::run::{CellWalk, Run, RunInfo};
use super::writer::RunWriter;
use super::{Index, View};
use crate::error::{Damage, Error, FileOp, Result};
use crate::limits::{INDEX_MERGE_RUNS, INDEX_SIZE_CLASS_BYTES, INDEX_WORK_BYTES};

/// Keys of an in-memory part that are written before the budget of a step is looked at again.
const KEYS_PER_LOOK: usize = 128;

/// What looking at a key while sorting counts as, in bytes written.
const SORT_KEY_BYTES: u64 = 4;

/// What ending a file counts as, and making it part of the index: they wait for the disk.
pub(super) const SYNC_STEP_BYTES: u64 = 256 << 10;

/// What removing a merged run counts as.
const REMOVE_STEP_BYTES: u64 = 32 << 10;

/// What is owed before the inserter pays: taking turns with whoever works in the background costs both of them.
pub(super) const OWED_BYTES: i64 = 256 << 10;

/// Work that may be done before it is owed.
const IN_ADVANCE_BYTES: i64 = 1 << 20;

/// Something under way: a run that is being made.
#[derive(Debug)]
pub(super) struct Job {
    input: Input,
    output: Output,
}

/// Of what.
#[derive(Debug)]
enum Input {
    /// An in-memory part is brought into order.
    Unsorted { table: Arc<Memtable>, sorting: Sorting, alh: Digest },
    /// An in-memory part becomes a run.
    Sorted { table: Arc<Memtable>, keys: Piece, next: usize, alh: Digest },
    /// Runs become one.
    Runs { inputs: Vec<Arc<Run>>, walks: Vec<Walk> },
}

#[derive(Debug)]
enum Output {
    Open(Box<RunWriter>),
    /// Its file is whole and durable, its name is not.
    Ended(RunInfo),
    /// Its name is durable too; no part of the index yet.
    Named(Arc<Run>),
    /// It is part of the index; the runs that it was made of go, one file after the other.
    Installed,
}

/// One input of a merge, and the cell that it has come to.
#[derive(Debug)]
struct Walk {
    walk: CellWalk,
    head: Option<(Bytes, Cell)>,
}

impl Walk {
    fn new(run: &Arc<Run>) -> Result<Self> {
        let mut walk = run.cells();
        let head = walk.next_cell()?;
        Ok(Self { walk, head })
    }
}

/// Makes sure that a transaction is flushed in the ledger, and answers its Alh.
pub(super) type Flushed<'a> = &'a dyn Fn(TxId) -> Result<Digest>;

/// Size class of a run: runs of one class are about as long as each other.
fn class(info: &RunInfo) -> u32 {
    (info.file_bytes / INDEX_SIZE_CLASS_BYTES).max(1).ilog(INDEX_MERGE_RUNS as u64)
}

/// Neighbours that lie in one class, newest first, as ranges of the list.
fn neighbours(runs: &[Arc<Run>]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let mut end = runs.len();
    std::iter::from_fn(move || {
        // What is newer is smaller, or it would have been merged with these.
        let class_here = class(&runs[end.checked_sub(1)?].info);
        let start = runs[..end].iter().rposition(|run| class(&run.info) > class_here).map_or(0, |before| before + 1);
        Some(start..std::mem::replace(&mut end, start))
    })
}

/// The neighbours to merge next, as a range of the list; newest classes first.
fn to_merge(runs: &[Arc<Run>]) -> Option<std::ops::Range<usize>> {
    neighbours(runs).find(|range| range.len() >= INDEX_MERGE_RUNS)
}

/// Bytes of work that an insert pays for two bytes that it brings. See the module.
pub(super) fn pressure(view: &View) -> u64 {
    let too_many: usize = neighbours(&view.runs).map(|range| range.len().saturating_sub(INDEX_MERGE_RUNS - 1)).sum();
    (view.frozen.len().saturating_sub(1)).max((too_many / INDEX_MERGE_RUNS).saturating_sub(1) * 2) as u64
}

impl Index {
    /// Whether [`Index::work`] may have something to do.
    pub(crate) fn work_due(&self) -> bool {
        self.due.load(Ordering::Acquire)
    }

    /// Does about `budget_bytes` of work; whether more is due. After an error the job is begun anew by a later call.
    pub(crate) fn work(&self, flushed: Flushed<'_>, budget_bytes: u64) -> Result<bool> {
        let mut jobs = self.jobs.lock();
        self.advance(&mut jobs, flushed, budget_bytes)?;
        // Still under the lock: whoever comes next may be between looking and finding something.
        Ok(self.work_due())
    }

    /// For whoever inserts: does what is owed for what was inserted since the last call, if nobody else has done it meanwhile.
    pub(crate) fn help(&self, flushed: Flushed<'_>) -> Result<()> {
        if !self.must_be_helped() {
            return Ok(());
        }
        loop {
            // Under the lowest pressure nobody waits for work that somebody is doing anyway.
            let waits = self.pressure.load(Ordering::Relaxed) > 1;
            let jobs = if waits { Some(self.jobs.lock()) } else { self.jobs.try_lock() };
            let Some(mut jobs) = jobs else {
                self.owed.fetch_min(OWED_BYTES, Ordering::Relaxed);
                break;
            };
            // Somebody else may have paid while this waited.
            if !self.is_asked(1) {
                break;
            }
            let budget = u64::try_from(self.owed.load(Ordering::Relaxed)).unwrap_or(0).clamp(1, INDEX_WORK_BYTES);
            if self.advance(&mut jobs, flushed, budget)? == 0 {
                self.owed.store(0, Ordering::Relaxed);
                break;
            }
        }
        Ok(())
    }

    /// Goes on with the most urgent job until `budget_bytes` are used; answers how many were, 0 when nothing is due.
    fn advance(&self, jobs: &mut Vec<Job>, flushed: Flushed<'_>, budget_bytes: u64) -> Result<u64> {
        // Before looking: whatever comes after this says so again.
        self.due.store(false, Ordering::Release);
        let urgent = self.more_urgent(jobs, flushed).inspect_err(|error| {
            self.due.store(true, Ordering::Release);
            self.note_space(!matches!(error, Error::NoSpace { .. }));
        })?;
        jobs.extend(urgent);
        let mut used = 0;
        if let Some(current) = jobs.pop() {
            self.due.store(true, Ordering::Release);
            let left = self.step(current, budget_bytes, &mut used).inspect_err(|error| {
                self.note(error);
                self.note_space(!matches!(error, Error::NoSpace { .. }));
            })?;
            self.note_space(true);
            jobs.extend(left);
            self.work_bytes.fetch_add(used, Ordering::Relaxed);
            let pay = |owed: i64| Some(owed.saturating_sub_unsigned(used).max(-IN_ADVANCE_BYTES));
            let _always_some = self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        }
        if self.is_damaged() || self.is_rebuilding() {
            self.due.store(true, Ordering::Release);
        }
        Ok(used)
    }

    /// A job that goes before those that are under way.
    fn more_urgent(&self, jobs: &[Job], flushed: Flushed<'_>) -> Result<Option<Job>> {
        let view = self.view();
        let newer_than = match jobs.last() {
            None => 0,
            Some(Job { input: Input::Unsorted { .. } | Input::Sorted { .. }, .. }) => return Ok(None),
            // What a merge has not taken is newer than what it has, or too large for it.
            Some(Job { input: Input::Runs { inputs, .. }, .. }) => {
                let last = view.runs.iter().position(|run| Arc::ptr_eq(run, &inputs[inputs.len() - 1]));
                last.map_or(view.runs.len(), |last| last + 1)
            }
        };
        if let Some(table) = view.frozen.first() {
            let after = view.frozen.get(1).unwrap_or(&view.active);
            let last_tx = TxId(after.first_tx().0 - 1);
            let alh = flushed(last_tx)?;
            let writer = self.new_writer(table.first_tx(), last_tx)?;
            let input = Input::Unsorted { table: Arc::clone(table), sorting: Sorting::default(), alh };
            return Ok(Some(Job { input, output: Output::Open(Box::new(writer)) }));
        }
        let Some(range) = to_merge(&view.runs[newer_than..]) else { return Ok(None) };
        let inputs = view.runs[newer_than..][range].to_vec();
        let walks = inputs.iter().map(Walk::new).collect::<Result<_>>().inspect_err(|error| self.note(error))?;
        let writer = self.new_writer(inputs[0].info.first_tx, inputs[inputs.len() - 1].info.last_tx)?;
        Ok(Some(Job { input: Input::Runs { inputs, walks }, output: Output::Open(Box::new(writer)) }))
    }

    fn new_writer(&self, first_tx: TxId, last_tx: TxId) -> Result<RunWriter> {
        self.vfs.create_dir_all(&self.dir).map_err(|e| Error::io(FileOp::CreateDir, &self.dir, e))?;
        let number = {
            let mut manifest = self.manifest.lock();
            manifest.next_number += 1;
            manifest.next_number - 1
        };
        RunWriter::create(&self.vfs, &self.dir, self.database, number, first_tx, last_tx)
    }

    /// Goes on with a job until `used` is about `budget_bytes`; answers what is left of it.
    fn step(&self, job: Job, budget_bytes: u64, used: &mut u64) -> Result<Option<Job>> {
        let Job { mut input, output } = job;
        // What waits for the disk is in steps of its own: whoever waits for the next step waits for one of them.
        let mut writer = match output {
            Output::Open(writer) => writer,
            Output::Ended(info) => {
                *used += SYNC_STEP_BYTES;
                let synced = self.vfs.sync_dir(&self.dir).map_err(|e| Error::io(FileOp::SyncDir, &self.dir, e));
                let opened = synced.and_then(|()| Run::open(&self.vfs, &self.dir, self.database, info, &self.cache));
                let run = opened.inspect_err(|_| self.give_up(info.number))?;
                return Ok(Some(Job { input, output: Output::Named(Arc::new(run)) }));
            }
            Output::Named(run) => {
                *used += SYNC_STEP_BYTES;
                self.install(&run, &input).inspect_err(|error| {
                    let unchanged = matches!(error, Error::NoSpace { op, .. } | Error::Io { op, .. }
                        if !matches!(op, FileOp::Rename | FileOp::SyncDir));
                    // Otherwise the manifest on disk may name it; the next open knows.
                    if unchanged {
                        self.give_up(run.info.number);
                    }
                })?;
                let merged = matches!(input, Input::Runs { .. });
                return Ok(merged.then_some(Job { input, output: Output::Installed }));
            }
            Output::Installed => {
                *used += REMOVE_STEP_BYTES;
                return Ok(match &mut input {
                    Input::Runs { inputs, walks } if inputs.len() > 1 => {
                        // Each holds the run as well.
                        walks.pop();
                        inputs.pop();
                        Some(Job { input, output: Output::Installed })
                    }
                    _ => None,
                });
            }
        };
        loop {
            if *used >= budget_bytes {
                return Ok(Some(Job { input, output: Output::Open(writer) }));
            }
            let before = writer.bytes();
            let more = match &mut input {
                Input::Unsorted { table, sorting, alh } => {
                    let (looked_at, sorted) = table.sort_on(sorting);
                    *used += looked_at as u64 * SORT_KEY_BYTES;
                    if let Some(keys) = sorted {
                        input = Input::Sorted { table: Arc::clone(table), keys, next: 0, alh: *alh };
                    }
                    true
                }
                Input::Sorted { table, keys, next, .. } => {
                    let some = &keys[*next..keys.len().min(*next + KEYS_PER_LOOK)];
                    table.drain(some, |key, versions| writer.add(key, versions))?;
                    *next += some.len();
                    *next < keys.len()
                }
                Input::Runs { inputs, walks } => self.merge_cell(inputs, walks, &mut writer)?,
            };
            *used += writer.bytes() - before;
            if !more {
                *used += SYNC_STEP_BYTES;
                return Ok(Some(Job { input, output: Output::Ended(writer.finish()?) }));
            }
        }
    }

    /// Writes the smallest cell that the inputs have come to; false when they have come to the end.
    fn merge_cell(&self, inputs: &[Arc<Run>], walks: &mut [Walk], writer: &mut RunWriter) -> Result<bool> {
        // Equal keys: the oldest transactions first, which are in the first input.
        let smallest = (0..walks.len())
            .filter(|number| walks[*number].head.is_some())
            .min_by(|a, b| walks[*a].head.as_ref().map(|h| &h.0).cmp(&walks[*b].head.as_ref().map(|h| &h.0)));
        let Some(smallest) = smallest else { return Ok(false) };
        let input = &mut walks[smallest];
        if let Some((key, cell)) = input.head.take() {
            let versions = cell.versions().map_err(|_| Error::Corrupted {
                path: self.dir.join(super::run::file_name(inputs[smallest].info.number)),
                segment: None,
                offset: 0,
                damage: Damage::Field,
            })?;
            writer.add(&key, &versions)?;
            input.head = input.walk.next_cell()?;
        }
        Ok(true)
    }

    /// Makes a run part of the index in place of what it was made of.
    fn install(&self, run: &Arc<Run>, input: &Input) -> Result<()> {
        match input {
            Input::Unsorted { table, alh, .. } | Input::Sorted { table, alh, .. } => self.replace_view(*alh, |view| {
                debug_assert!(Arc::ptr_eq(&view.frozen[0], table), "in-memory parts are written oldest first");
                let runs = view.runs.iter().chain([run]).cloned().collect();
                View { runs, frozen: view.frozen[1..].to_vec(), active: Arc::clone(&view.active) }
            }),
            Input::Runs { inputs, .. } => {
                let alh = self.manifest.lock().alh;
                self.replace_view(alh, |view| {
                    let first = view.runs.iter().position(|run| Arc::ptr_eq(run, &inputs[0]));
                    let first = first.expect("only this job takes these runs out of the view");
                    let mut runs = view.runs.clone();
                    runs.splice(first..first + inputs.len(), [Arc::clone(run)]);
                    View { runs, frozen: view.frozen.clone(), active: Arc::clone(&view.active) }
                })?;
                inputs.iter().for_each(|run| run.retire());
                Ok(())
            }
        }
    }

    /// Changes what the index is made of: on disk first, then for readers.
    fn replace_view(&self, alh: Digest, change: impl Fn(&View) -> View) -> Result<()> {
        // Only a job changes the list of runs, and one job at a time goes on; nobody waits for the disk under a lock.
        let runs = change(&self.view()).runs.iter().map(|run| run.info).collect();
        let next_number = self.manifest.lock().next_number;
        let new = Manifest { next_number, alh, runs };
        new.write(&*self.vfs, &self.dir, self.database)?;
        *self.manifest.lock() = new;
        let mut view = self.view.write();
        let next = change(&view);
        self.set_view(&mut view, next);
        Ok(())
    }

    /// Removes a run that nothing names, as far as it can: the disk may be full of such files.
    fn give_up(&self, number: u64) {
        let _ = self.vfs.remove_file(&self.dir.join(super::run::file_name(number)));
    }
}
