//! The index: its files whole, and in them what was derived on the way, nothing missing and nothing besides.

use alhambra_ledger::ids::{DatabaseId, TxId};

use super::super::replay::Replay;
use super::{PROGRESS_BYTES, Walker, damage_or};
use crate::error::{Error, Result};
use crate::fsck::{Finding, Progress};
use crate::index::{OnDisk, Verdict, differs};

impl Walker {
    /// Finds out what there is to read.
    pub(super) fn open_index(&mut self, id: DatabaseId) -> Result<()> {
        match OnDisk::open(&self.vfs, &self.dir.join("index"), id) {
            Ok(index) => {
                self.progress.bytes_total = self.progress.bytes_total.saturating_add(index.bytes());
                self.index = Some(index);
            }
            Err(error) => self.found(damage_or(error)?),
        }
        Ok(())
    }

    /// False when the caller wants no more. What was not derived, behind damage or the checkpoint, is read and not compared.
    pub(super) fn check_index(&mut self, progress: &mut dyn FnMut(Progress) -> bool) -> Result<bool> {
        let Some(index) = self.index.take() else { return Ok(true) };
        self.report.unfinished.extend(index.strangers()?);
        // Headers and free room at the ends of segments are behind us too.
        self.progress.bytes_done = self.progress.bytes_total - index.bytes();
        let replay = self.replay.take();
        let derived = replay.as_ref().map(|replay| (replay.index(), replay.state().tx));
        for n in 0..index.runs() {
            let verdict = index.check_run(n, derived, &mut |bytes| {
                self.progress.bytes_done += bytes;
                if self.progress.bytes_done - self.reported_bytes < PROGRESS_BYTES {
                    return true;
                }
                self.reported_bytes = self.progress.bytes_done;
                progress(self.progress)
            });
            match verdict {
                Ok(Verdict::Sound) => self.report.index_runs += 1,
                Ok(Verdict::Differs(tx)) => self.in_index(Some(tx), replay.as_ref(), differs(index.path(n))),
                Ok(Verdict::Stopped) => return Ok(false),
                Err(error) => self.in_index(None, None, damage_or(error)?),
            }
        }
        let (newest, alh) = index.newest();
        if let Some(replay) = &replay
            && (1..=replay.state().tx.0).contains(&newest.0)
            && replay.alh(newest)? != alh
        {
            self.in_index(Some(newest), Some(replay), differs(index.manifest_path()));
        }
        self.replay = replay;
        Ok(progress(self.progress))
    }

    fn in_index(&mut self, tx: Option<TxId>, replay: Option<&Replay>, error: Error) {
        let log_index = tx.and_then(|tx| replay?.log_index(tx).ok());
        self.report.findings.push(Finding { tx, log_index, derived_from: None, error });
    }
}
