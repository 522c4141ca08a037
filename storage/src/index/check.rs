//! Checks what the index has on disk, a bounded part per call: the manifest against memory, and of each run every byte: header,
//! footer, the checksum of each block, the order of its keys, its counts, and that blocks are all there is between header and
//! footer. Nothing comes from the block cache, and each run is opened again by its name.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use super::Index;
use super::manifest::{MANIFEST_NAME, Manifest};
use super::run::{CellWalk, FOOTER_BYTES, HEADER_BYTES, Run};
use super::version::Stored;
use crate::error::{Damage, Error, Result};
use crate::format::derived::SMALL_FILE_HEAD_BYTES;
use crate::wire::Malformed;

/// Cells that are looked at before the budget is looked at again.
const CELLS_PER_LOOK: usize = 64;

/// What is done with each cell besides.
type EachCell<'a> = &'a mut dyn FnMut(&Bytes, u64, &[Stored]) -> Result<()>;

/// How far a check of the index is.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// The runs that are looked at hold transactions up to this one; those written meanwhile are left to the next check.
    through: TxId,
    /// Everything up to here is checked.
    done: TxId,
    run: Option<RunCheck>,
    /// The manifest is checked.
    begun: bool,
}

/// One run, opened by its name again.
#[derive(Debug)]
pub(super) struct RunCheck {
    run: Arc<Run>,
    walk: CellWalk,
    keys: u64,
    versions: u64,
    /// Key of the last cell, its newest transaction, and how many versions of the key there were.
    last: Option<(Bytes, TxId, u64)>,
}

impl Index {
    /// Reads and checks everything on disk.
    pub(crate) fn verify(&self) -> Result<()> {
        let (mut place, mut bytes) = (Place::default(), 0);
        while self.check(&mut place, u64::MAX, &mut bytes)? {}
        Ok(())
    }

    /// Goes on with a check until `bytes` is at least `budget`; false when nothing is left. After damage, which is noted so
    /// that the index is rebuilt, there is nothing to go on with.
    pub(crate) fn check(&self, place: &mut Place, budget: u64, bytes: &mut u64) -> Result<bool> {
        self.check_on(place, budget, bytes).inspect_err(|error| self.note(error))
    }

    fn check_on(&self, place: &mut Place, budget: u64, bytes: &mut u64) -> Result<bool> {
        if !place.begun {
            *bytes += self.check_manifest()?;
            place.begun = true;
            place.through = self.view().runs.last().map_or(TxId(0), |run| run.info.last_tx);
        }
        while *bytes < budget {
            // A run may have been merged away, or all of them when the index began anew.
            let view = self.view();
            let Some(run) = view.runs.iter().find(|run| run.info.last_tx > place.done) else { return Ok(false) };
            if run.info.last_tx > place.through && run.info.first_tx > place.through {
                return Ok(false);
            }
            let info = run.info;
            let mut check = match place.run.take().filter(|check| check.run.info == info) {
                Some(check) => check,
                None => match Run::open(&self.vfs, &self.dir, self.database, info, &self.cache) {
                    Ok(run) => {
                        *bytes += HEADER_BYTES + FOOTER_BYTES;
                        RunCheck::new(Arc::new(run))
                    }
                    Err(error) if self.has(info.number) => return Err(error),
                    Err(_) => continue,
                },
            };
            drop(view);
            let before = check.walk.bytes();
            let mut more = true;
            while more && *bytes + (check.walk.bytes() - before) < budget {
                more = match check.advance(&mut |_, _, _| Ok(())) {
                    Ok(more) => more,
                    // Its file is gone for good reason.
                    Err(_) if !self.has(info.number) => break,
                    Err(error) => return Err(error),
                };
            }
            *bytes += check.walk.bytes() - before;
            if more {
                place.run = Some(check);
            } else {
                place.done = info.last_tx;
            }
        }
        Ok(true)
    }

    fn has(&self, number: u64) -> bool {
        self.view().runs.iter().any(|run| run.info.number == number)
    }

    /// Compares the manifest with what is in memory; answers its length in bytes.
    fn check_manifest(&self) -> Result<u64> {
        // Only a job writes it.
        let _no_job = self.jobs.lock();
        let known = self.manifest.lock().clone();
        let corrupted =
            |damage| Error::Corrupted { path: self.dir.join(MANIFEST_NAME), segment: None, offset: 0, damage };
        match Manifest::read(&*self.vfs, &self.dir, self.database)? {
            None if known.runs.is_empty() => Ok(0),
            None => Err(corrupted(Damage::Missing)),
            // Numbers are given out before the manifest is written.
            Some(found) if found.next_number > known.next_number => Err(corrupted(Damage::Changed)),
            Some(found) if (&found.runs, found.alh) != (&known.runs, known.alh) => Err(corrupted(Damage::Changed)),
            Some(found) => Ok((SMALL_FILE_HEAD_BYTES + found.encode(self.database).len() + 4) as u64),
        }
    }
}

impl RunCheck {
    pub(super) fn new(run: Arc<Run>) -> Self {
        let walk = run.cells();
        Self { run, walk, keys: 0, versions: 0, last: None }
    }

    /// Bytes of the blocks that were read.
    pub(super) fn bytes(&self) -> u64 {
        self.walk.bytes()
    }

    /// Looks at some cells and hands each to `each`: key, versions before it, versions. False behind the last.
    pub(super) fn advance(&mut self, each: EachCell<'_>) -> Result<bool> {
        let info = &self.run.info;
        for _ in 0..CELLS_PER_LOOK {
            let Some((key, cell)) = self.walk.next_cell()? else {
                let whole = HEADER_BYTES + self.walk.bytes() + FOOTER_BYTES == info.file_bytes;
                let counted = (self.keys, self.versions) == (info.keys, info.versions);
                return if whole && counted { Ok(false) } else { Err(self.run.bad_cell()) };
            };
            let listed = cell.versions().map_err(|Malformed| self.run.bad_cell())?;
            let same = self.last.as_ref().is_some_and(|(last, ..)| *last == key);
            let follows = match &self.last {
                Some((last, tx, count)) if *last == key => *tx < cell.first_tx && *count == cell.before,
                Some((last, ..)) => *last < key && cell.before == 0,
                None => cell.before == 0,
            };
            let newest = listed.last().map_or(TxId(0), |version| version.tx);
            let within =
                info.first_tx <= cell.first_tx && newest <= info.last_tx && listed.is_sorted_by(|a, b| a.tx < b.tx);
            if !follows || !within {
                return Err(self.run.bad_cell());
            }
            each(&key, cell.before, &listed)?;
            self.keys += u64::from(!same);
            self.versions += cell.count;
            self.last = Some((key, newest, cell.before + cell.count));
        }
        Ok(true)
    }
}
