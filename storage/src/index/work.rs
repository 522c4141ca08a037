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

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use super::block::Cell;
use super::manifest::Manifest;
use super::memtable::{Memtable, Piece};
use super::run::{CellWalk, Run, RunInfo};
use super::writer::RunWriter;
use super::{Index, View};
use crate::error::{Damage, Error, FileOp, Result};
use crate::limits::{INDEX_MERGE_RUNS, INDEX_SIZE_CLASS_BYTES};

/// Keys of an in-memory part that are written before the budget of a step is looked at again.
const KEYS_PER_LOOK: usize = 512;

/// What is under way.
#[derive(Debug)]
pub(super) enum Job {
    /// An in-memory part becomes a run.
    Write { table: Arc<Memtable>, keys: Piece, next: usize, alh: Digest, writer: RunWriter },
    /// Runs become one.
    Merge { inputs: Vec<Arc<Run>>, walks: Vec<Walk>, writer: RunWriter },
}

/// One input of a merge, and the cell that it has come to.
#[derive(Debug)]
pub(super) struct Walk {
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

/// The neighbours to merge next, as a range of the list; newest classes first.
fn to_merge(runs: &[Arc<Run>]) -> Option<std::ops::Range<usize>> {
    let mut end = runs.len();
    while end > 0 {
        // What is newer is smaller, or it would have been merged with these.
        let class_here = class(&runs[end - 1].info);
        let start = runs[..end].iter().rposition(|run| class(&run.info) > class_here).map_or(0, |before| before + 1);
        if end - start >= INDEX_MERGE_RUNS {
            return Some(start..end);
        }
        end = start;
    }
    None
}

impl Index {
    /// Whether [`Index::work`] may have something to do.
    pub(crate) fn work_due(&self) -> bool {
        self.due.load(Ordering::Acquire)
    }

    /// Does about `budget_bytes` of work; whether more is due. After an error the step is begun anew by the next call.
    pub(crate) fn work(&self, flushed: Flushed<'_>, budget_bytes: u64) -> Result<bool> {
        let mut job = self.job.lock();
        // Before looking: whatever comes after this says so again.
        self.due.store(false, Ordering::Release);
        let current = match job.take() {
            Some(current) => Some(current),
            None => self.next_job(flushed).inspect_err(|error| {
                self.due.store(true, Ordering::Release);
                self.note_space(!matches!(error, Error::NoSpace { .. }));
            })?,
        };
        if let Some(current) = current {
            self.due.store(true, Ordering::Release);
            *job = self.step(current, budget_bytes).inspect_err(|error| {
                self.note(error);
                self.note_space(!matches!(error, Error::NoSpace { .. }));
            })?;
            self.note_space(true);
        }
        if self.is_damaged() || self.is_rebuilding() {
            self.due.store(true, Ordering::Release);
        }
        Ok(self.work_due())
    }

    fn next_job(&self, flushed: Flushed<'_>) -> Result<Option<Job>> {
        let view = self.view();
        if let Some(table) = view.frozen.first() {
            let after = view.frozen.get(1).unwrap_or(&view.active);
            let last_tx = TxId(after.first_tx().0 - 1);
            let alh = flushed(last_tx)?;
            let writer = self.new_writer(table.first_tx(), last_tx)?;
            let keys = table.sort();
            return Ok(Some(Job::Write { table: Arc::clone(table), keys, next: 0, alh, writer }));
        }
        let Some(range) = to_merge(&view.runs) else { return Ok(None) };
        let inputs = view.runs[range].to_vec();
        let walks = inputs.iter().map(Walk::new).collect::<Result<_>>().inspect_err(|error| self.note(error))?;
        let writer = self.new_writer(inputs[0].info.first_tx, inputs[inputs.len() - 1].info.last_tx)?;
        Ok(Some(Job::Merge { inputs, walks, writer }))
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

    /// Goes on with a job for about `budget_bytes`; answers what is left of it.
    fn step(&self, job: Job, budget_bytes: u64) -> Result<Option<Job>> {
        match job {
            Job::Write { table, keys, mut next, alh, mut writer } => {
                let until = writer.bytes() + budget_bytes;
                while next < keys.len() {
                    if writer.bytes() >= until {
                        return Ok(Some(Job::Write { table, keys, next, alh, writer }));
                    }
                    let some = &keys[next..keys.len().min(next + KEYS_PER_LOOK)];
                    table.drain(some, |key, versions| writer.add(key, versions))?;
                    next += some.len();
                }
                let info = writer.finish()?;
                self.install(info, alh, |view, run| {
                    debug_assert!(Arc::ptr_eq(&view.frozen[0], &table), "in-memory parts are written oldest first");
                    let runs = view.runs.iter().cloned().chain([run]).collect();
                    View { runs, frozen: view.frozen[1..].to_vec(), active: Arc::clone(&view.active) }
                })?;
                Ok(None)
            }
            Job::Merge { inputs, mut walks, mut writer } => {
                let until = writer.bytes() + budget_bytes;
                // Equal keys: the oldest transactions first, which are in the first input.
                while let Some(smallest) = (0..walks.len())
                    .filter(|number| walks[*number].head.is_some())
                    .min_by(|a, b| walks[*a].head.as_ref().map(|h| &h.0).cmp(&walks[*b].head.as_ref().map(|h| &h.0)))
                {
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
                    if writer.bytes() >= until {
                        return Ok(Some(Job::Merge { inputs, walks, writer }));
                    }
                }
                let info = writer.finish()?;
                let alh = self.manifest.lock().alh;
                self.install(info, alh, |view, run| {
                    let first = view.runs.iter().position(|run| Arc::ptr_eq(run, &inputs[0]));
                    let first = first.expect("only this job takes runs out of the view");
                    let mut runs = view.runs.clone();
                    runs.splice(first..first + inputs.len(), [run]);
                    View { runs, frozen: view.frozen.clone(), active: Arc::clone(&view.active) }
                })?;
                for run in &inputs {
                    run.retire();
                }
                Ok(None)
            }
        }
    }

    /// Opens a finished run and makes it part of the index: on disk first, then for readers.
    fn install(&self, info: RunInfo, alh: Digest, change: impl Fn(&View, Arc<Run>) -> View) -> Result<()> {
        let path = self.dir.join(super::run::file_name(info.number));
        let synced = self.vfs.sync_dir(&self.dir).map_err(|e| Error::io(FileOp::SyncDir, &self.dir, e));
        let opened = synced.and_then(|()| Run::open(&self.vfs, &self.dir, self.database, info, &self.cache));
        let run = Arc::new(opened.inspect_err(|_| self.give_up(&path))?);
        // Only a job changes the list of runs, and there is one job at a time; nobody waits for the disk under a lock.
        let runs = change(&self.view(), Arc::clone(&run)).runs.iter().map(|run| run.info).collect();
        let next_number = self.manifest.lock().next_number;
        let new = Manifest { next_number, alh, runs };
        new.write(&*self.vfs, &self.dir, self.database).inspect_err(|error| {
            let unchanged = matches!(error, Error::NoSpace { op, .. } | Error::Io { op, .. }
                if !matches!(op, FileOp::Rename | FileOp::SyncDir));
            // Otherwise the manifest on disk may name it; the next open knows.
            if unchanged {
                self.give_up(&path);
            }
        })?;
        *self.manifest.lock() = new;
        let mut view = self.view.write();
        let next = change(&view, run);
        *view = Arc::new(next);
        Ok(())
    }

    /// Removes a run that nothing names, as far as it can: the disk may be full of such files.
    fn give_up(&self, path: &Path) {
        let _ = self.vfs.remove_file(path);
    }
}
