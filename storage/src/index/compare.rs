//! Compares what an index has on disk with what the ledger gives, for a check that has derived an index of its own: both are
//! walked in the order of keys, side by side, so neither is ever held whole beside what it is.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{DatabaseId, TxId};
use bytes::Bytes;

use super::check::RunCheck;
use super::manifest::{MANIFEST_NAME, Manifest};
use super::run::{Run, file_name, number_of};
use super::version::Stored;
use super::{BlockCache, Index, KeyRange};
use crate::error::{Damage, Error, FileOp, Result};
use crate::vfs::Vfs;

/// Keys that are asked of the derived index at once.
const KEYS_TOGETHER: usize = 256;

/// The files of an index that nobody has open.
#[derive(Debug)]
pub(crate) struct OnDisk {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    database: DatabaseId,
    cache: Arc<BlockCache>,
    manifest: Manifest,
}

/// What was found about a run whose structure is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sound,
    /// This is the first transaction that the ledger gives otherwise.
    Differs(TxId),
    /// The caller wants no more.
    Stopped,
}

impl OnDisk {
    /// What the manifest in `dir` names; without one that is nothing.
    pub(crate) fn open(vfs: &Arc<dyn Vfs>, dir: &Path, database: DatabaseId) -> Result<Self> {
        let manifest = Manifest::read(&**vfs, dir, database)?.unwrap_or_default();
        // Nothing is read twice.
        let cache = Arc::new(BlockCache::new(0));
        Ok(Self { vfs: Arc::clone(vfs), dir: dir.into(), database, cache, manifest })
    }

    pub(crate) fn manifest_path(&self) -> PathBuf {
        self.dir.join(MANIFEST_NAME)
    }

    /// The newest transaction that a run has, and the Alh that it had then.
    pub(crate) fn newest(&self) -> (TxId, Digest) {
        (self.manifest.last_tx(), self.manifest.alh)
    }

    /// How many runs there are.
    pub(crate) fn runs(&self) -> usize {
        self.manifest.runs.len()
    }

    /// Bytes of all runs.
    pub(crate) fn bytes(&self) -> u64 {
        self.manifest.runs.iter().fold(0, |sum, run| sum.saturating_add(run.file_bytes))
    }

    /// The file of run `n`.
    pub(crate) fn path(&self, n: usize) -> PathBuf {
        self.dir.join(file_name(self.manifest.runs[n].number))
    }

    /// Runs and temporary files that the manifest does not name: what a crash leaves and the next open removes.
    pub(crate) fn strangers(&self) -> Result<Vec<PathBuf>> {
        if !self.vfs.exists(&self.dir).map_err(|e| Error::io(FileOp::Open, &self.dir, e))? {
            return Ok(Vec::new());
        }
        let names = self.vfs.read_dir(&self.dir).map_err(|e| Error::io(FileOp::ReadDir, &self.dir, e))?;
        let named = |number| self.manifest.runs.iter().any(|run| run.number == number);
        let stranger = |name: &str| number_of(name).is_some_and(|number| !named(number)) || name.ends_with(".tmp");
        Ok(names.iter().filter(|(name, _)| stranger(name)).map(|(name, _)| self.dir.join(name)).collect())
    }

    /// Reads all of run `n`: checksums, the order of keys, counts, and with `derived`, an index and the transaction that it
    /// goes up to, whether it has what the ledger gives and nothing besides. `read` hears how many bytes were read now and
    /// then, and says whether to go on.
    pub(crate) fn check_run(
        &self,
        n: usize,
        derived: Option<(&Index, TxId)>,
        read: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Verdict> {
        let info = self.manifest.runs[n];
        let run = Arc::new(Run::open(&self.vfs, &self.dir, self.database, info, &self.cache)?);
        let mut check = RunCheck::new(run);
        let mut expected = derived
            .filter(|(_, last)| *last >= info.first_tx)
            .map(|(derived, last)| Expected::new(derived, info.first_tx, info.last_tx.min(last)));
        let mut told = 0;
        let mut more = true;
        while more {
            more = check.advance(&mut |key, before, versions| match &mut expected {
                Some(expected) => expected.cell(key, before, versions),
                None => Ok(()),
            })?;
            // With the header and footer at the end.
            let bytes = if more { check.bytes().min(info.file_bytes) } else { info.file_bytes };
            let news = bytes.saturating_sub(told);
            told += news;
            if news > 0 && !read(news) {
                return Ok(Verdict::Stopped);
            }
        }
        let first_bad = expected.map(Expected::end).transpose()?.flatten();
        Ok(first_bad.map_or(Verdict::Sound, Verdict::Differs))
    }
}

/// A key that the derived index has in the range of a run.
#[derive(Debug)]
struct ExpectedKey {
    key: Bytes,
    /// Versions before the run.
    before: u64,
    /// Versions in it.
    count: u64,
    /// How many of them the run was found to have.
    seen: u64,
}

/// What a run must hold, walked beside it.
#[derive(Debug)]
struct Expected<'a> {
    derived: &'a Index,
    first: TxId,
    last: TxId,
    keys: VecDeque<ExpectedKey>,
    /// The last key that was asked for; `None` before the first.
    after: Option<Bytes>,
    exhausted: bool,
    first_bad: Option<TxId>,
}

impl<'a> Expected<'a> {
    fn new(derived: &'a Index, first: TxId, last: TxId) -> Self {
        Self { derived, first, last, keys: VecDeque::new(), after: None, exhausted: false, first_bad: None }
    }

    fn bad(&mut self, tx: TxId) {
        self.first_bad = Some(self.first_bad.map_or(tx, |first| first.min(tx)));
    }

    fn peek(&mut self) -> Result<Option<&mut ExpectedKey>> {
        if self.keys.is_empty() && !self.exhausted {
            let since = TxId(self.first.0.saturating_sub(1));
            let all = KeyRange::all();
            let found = self.derived.diff_chunk(&all, since, self.last, self.after.as_deref(), KEYS_TOGETHER)?;
            self.exhausted = found.len() < KEYS_TOGETHER;
            self.after = found.last().map(|change| change.key.clone());
            for change in found {
                let before = self.derived.revisions(&change.key, since)?;
                let count = change.version.revision.0 - before;
                self.keys.push_back(ExpectedKey { key: change.key, before, count, seen: 0 });
            }
        }
        Ok(self.keys.front_mut())
    }

    /// Leaves the key in front; what the run does not have of it is missing.
    fn leave(&mut self) -> Result<()> {
        let Some(ExpectedKey { key, before, count, seen }) = self.keys.pop_front() else { return Ok(()) };
        if seen < count {
            let missing = self.derived.history(&key, self.last, before + seen, 1, false)?;
            missing.first().into_iter().for_each(|version| self.bad(version.tx));
        }
        Ok(())
    }

    /// The run has these versions of a key, behind `before` others. Keys and versions come in order.
    fn cell(&mut self, key: &Bytes, before: u64, versions: &[Stored]) -> Result<()> {
        // What is newer was not derived.
        let versions = &versions[..versions.partition_point(|version| version.tx <= self.last)];
        let Some(oldest) = versions.first() else { return Ok(()) };
        let offset = loop {
            match self.peek()? {
                Some(expected) if expected.key < key => self.leave()?,
                Some(expected) if expected.key == key => {
                    expected.seen = before + versions.len() as u64;
                    break expected.before + before;
                }
                _ => {
                    self.bad(oldest.tx);
                    return Ok(());
                }
            }
        };
        let expected = self.derived.history(key, self.last, offset, versions.len(), false)?;
        for (number, version) in versions.iter().enumerate() {
            match expected.get(number) {
                Some(right) if version.with_revision(right.revision.0) == *right => {}
                Some(right) => self.bad(right.tx.min(version.tx)),
                None => self.bad(version.tx),
            }
        }
        Ok(())
    }

    /// The run has no more; answers the first transaction in which it differs.
    fn end(mut self) -> Result<Option<TxId>> {
        while self.peek()?.is_some() {
            self.leave()?;
        }
        Ok(self.first_bad)
    }
}

/// The damage of a run that differs.
pub(crate) fn differs(path: PathBuf) -> Error {
    Error::Corrupted { path, segment: None, offset: 0, damage: Damage::Differs }
}
