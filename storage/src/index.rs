//! Which transactions wrote a key: the versions of every key of one database, keys in stored order.
//!
//! ```text
//! runs      [tx 1 .. 900] [901 .. 1200] [1201 .. 1280]    immutable files, each a B-tree over its transactions
//! memory    frozen [1281 .. 1300], active [1301 .. ]      what no run has yet; frozen parts are being written out
//! newest_tx 1310                                          stored after all entries of transaction 1310 are in
//! ```
//!
//! One applier inserts, many readers read. Every part covers a contiguous range of transactions, and versions are only ever
//! added behind those that are there, so what a transaction id `at` sees never changes: a read snapshot *is* that id, costs
//! nothing to open and copies nothing. The revision of a version is its place among all versions of its key: a part knows the
//! place among its own, and a read adds what the older parts have, which their filters mostly answer without reading.
//!
//! Derived data: a run holds what the ledger holds durably [S3: never a transaction that is not committed]. What runs do not
//! have yet is inserted again at open. A run or manifest that is lost or damaged is rebuilt in the background from `tx/`;
//! meanwhile reads are answered `Error::IndexRebuilding`.
//!
//! Whether a deleted or expired version counts is for the caller to say; nothing here knows the time.

use std::cmp::Ordering as KeyOrder;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use alhambra_ledger::Digest;
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::{DatabaseId, TxId};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::error::{Error, FileOp, Result};
use crate::limits::{INDEX_CACHE_BYTES_DEFAULT, INDEX_FROZEN_MAX, INDEX_MEMTABLE_BYTES_DEFAULT};
use crate::vfs::Vfs;

mod alone;
mod block;
mod cache;
mod check;
mod compare;
#[cfg(test)]
mod fuzz;
mod manifest;
mod memtable;
mod range;
mod run;
mod version;
mod work;
mod writer;

pub use alone::Alone;
pub use cache::BlockCache;
pub(crate) use check::Place as CheckPlace;
pub(crate) use compare::{OnDisk, Verdict, differs};
pub use range::{KeyRange, ScanSpec};
pub use version::Version;

use manifest::{MANIFEST_NAME, Manifest};
use memtable::Memtable;
use run::{Run, RunCursor, number_of};
use version::{Found, Stored};
use work::Job;

/// Keys or versions visited, or entries inserted, under one hold of a lock.
const STEPS_PER_LOCK: usize = 256;

/// What an index is made of at one moment, oldest transactions first.
#[derive(Debug)]
pub(crate) struct View {
    runs: Vec<Arc<Run>>,
    frozen: Vec<Arc<Memtable>>,
    active: Arc<Memtable>,
}

/// One part of an index.
#[derive(Clone, Debug)]
enum Part {
    Run(Arc<Run>),
    Memory(Arc<Memtable>),
}

impl View {
    /// The parts that have transactions after `since` and up to `at`, newest first.
    fn parts(&self, since: TxId, at: TxId) -> impl Iterator<Item = Part> + '_ {
        let memory = std::iter::once(&self.active).chain(self.frozen.iter().rev());
        let memory = memory.filter(move |table| table.first_tx() <= at).map(|table| Part::Memory(Arc::clone(table)));
        let runs = self.runs.iter().rev();
        let runs = runs.filter(move |run| run.info.first_tx <= at && run.info.last_tx > since);
        memory.chain(runs.map(|run| Part::Run(Arc::clone(run))))
    }
}

impl Part {
    fn newest(&self, key: &[u8], at: TxId) -> Result<Option<(Stored, u64)>> {
        match self {
            Self::Run(run) => run.newest(key, at),
            Self::Memory(table) => Ok(table.newest(key, at)),
        }
    }

    fn count(&self, key: &[u8], at: TxId) -> Result<u64> {
        match self {
            Self::Run(run) => run.count(key, at),
            Self::Memory(table) => Ok(table.count(key, at)),
        }
    }

    fn versions(&self, key: &[u8], at: TxId, from: u64, len: usize, out: &mut Vec<Stored>) -> Result<()> {
        match self {
            Self::Run(run) => run.versions(key, at, from, len, out),
            Self::Memory(table) => {
                table.versions(key, at, from, len, out);
                Ok(())
            }
        }
    }

    fn cursor(&self, range: &KeyRange, since: TxId, at: TxId, desc: bool) -> Cursor {
        match self {
            Self::Run(run) => Cursor::Run(Box::new(run.cursor(range.clone(), since, at, desc))),
            Self::Memory(table) => Cursor::Memory(MemoryCursor {
                table: Arc::clone(table),
                range: range.clone(),
                since,
                at,
                desc,
                found: Vec::new().into_iter(),
                done: false,
            }),
        }
    }
}

/// The keys of one part, in order.
#[derive(Debug)]
enum Cursor {
    Run(Box<RunCursor>),
    Memory(MemoryCursor),
}

#[derive(Debug)]
struct MemoryCursor {
    table: Arc<Memtable>,
    range: KeyRange,
    since: TxId,
    at: TxId,
    desc: bool,
    found: std::vec::IntoIter<Found>,
    done: bool,
}

impl Cursor {
    fn next_key(&mut self) -> Result<Option<Found>> {
        match self {
            Self::Run(cursor) => cursor.next_key(),
            Self::Memory(cursor) => Ok(cursor.next_key()),
        }
    }
}

impl MemoryCursor {
    fn next_key(&mut self) -> Option<Found> {
        loop {
            if let Some(found) = self.found.next() {
                return Some(found);
            }
            if self.done {
                return None;
            }
            let mut found = Vec::new();
            let n = self.table.steps_per_lock();
            self.done = !self.table.visit(&mut self.range, self.since, self.at, self.desc, n, &mut found);
            self.found = found.into_iter();
        }
    }
}

/// The keys of all parts, in order, each once.
#[derive(Debug)]
struct Merged {
    /// Newest part first, with the key that it has come to.
    cursors: Vec<(Cursor, Option<Found>)>,
    desc: bool,
}

impl Merged {
    fn new(view: &View, range: &KeyRange, since: TxId, at: TxId, desc: bool) -> Result<Self> {
        let cursors = view.parts(since, at).map(|part| {
            let mut cursor = part.cursor(range, since, at, desc);
            let head = cursor.next_key()?;
            Ok((cursor, head))
        });
        Ok(Self { cursors: cursors.collect::<Result<_>>()?, desc })
    }

    /// The next key with its newest version and how many versions the parts have together.
    fn next_key(&mut self) -> Result<Option<Found>> {
        let heads = self.cursors.iter().enumerate().filter_map(|(n, (_, head))| Some((n, &head.as_ref()?.key)));
        let desc = self.desc;
        let by_key = |a: &(usize, &Bytes), b: &(usize, &Bytes)| match a.1.cmp(b.1) {
            KeyOrder::Equal => KeyOrder::Equal,
            order if desc => order.reverse(),
            order => order,
        };
        // Of equal keys the first: the newest part.
        let Some((first, _)) = heads.min_by(by_key) else { return Ok(None) };
        let Some(mut found) = self.cursors[first].1.take() else { return Ok(None) };
        self.cursors[first].1 = self.cursors[first].0.next_key()?;
        for (cursor, head) in &mut self.cursors[first + 1..] {
            if let Some(older) = head.take_if(|older| older.key == found.key) {
                found.count += older.count;
                *head = cursor.next_key()?;
            }
        }
        Ok(Some(found))
    }
}

/// A key that changed between two transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The stored key.
    pub key: Bytes,
    /// Its newest version up to the later transaction.
    pub version: Version,
}

/// The versioned index of one database: one writer, any number of readers.
///
/// `at` is the transaction up to which a read sees; one that is not published yet reads as [`newest_tx`] of that call,
/// so no read sees a part of a transaction. For a stable view over several calls take `at` from [`newest_tx`] once.
///
/// [`newest_tx`]: Self::newest_tx
#[derive(Debug)]
pub struct Index {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    database: DatabaseId,
    cache: Arc<BlockCache>,
    /// An in-memory part is full at about so many bytes.
    memtable_bytes: usize,
    /// [`STEPS_PER_LOCK`]; tests take less to cross the seams more often.
    steps_per_lock: usize,
    view: RwLock<Arc<View>>,
    newest_tx: AtomicU64,
    inserting: Mutex<()>,
    manifest: Mutex<Manifest>,
    /// Under way; the last one goes on first.
    jobs: Mutex<Vec<Job>>,
    /// Bytes of work per two inserted bytes, see [`work`].
    pressure: AtomicU64,
    /// Bytes of work that inserts have not paid for yet; less than 0 when more was done than they owe.
    owed: AtomicI64,
    /// Bytes of work done since this was opened.
    work_bytes: AtomicU64,
    damaged: AtomicBool,
    rebuilding: AtomicBool,
    /// The segment whose rot the rebuilding has met, and one more; 0 for none.
    awaited: AtomicU64,
    /// Whether [`Index::work`] may have something to do; looked at after every applied log entry.
    due: AtomicBool,
    /// Full parts from which on whoever inserts helps: more than usual while the disk is full.
    help_from: AtomicUsize,
}

/// What an index is opened with.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// Bytes at which an in-memory part is full.
    pub memtable_bytes: usize,
    /// Where blocks of runs are kept.
    pub cache: Arc<BlockCache>,
    /// Keys or versions looked at under one hold of a lock.
    pub steps_per_lock: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self::new(Arc::new(BlockCache::new(INDEX_CACHE_BYTES_DEFAULT)))
    }
}

impl IndexOptions {
    /// With the usual bounds.
    pub fn new(cache: Arc<BlockCache>) -> Self {
        Self { memtable_bytes: INDEX_MEMTABLE_BYTES_DEFAULT, cache, steps_per_lock: STEPS_PER_LOCK }
    }
}

impl Index {
    /// The index in `dir` as its manifest has it; empty when there is none. Files that the manifest does not name are removed.
    ///
    /// `Corrupted` when the manifest or a run is damaged or missing: [`Index::open_empty`] makes a new one.
    pub(crate) fn open(vfs: &Arc<dyn Vfs>, dir: &Path, database: DatabaseId, options: &IndexOptions) -> Result<Self> {
        let manifest = Manifest::read(&**vfs, dir, database)?.unwrap_or_default();
        let runs = manifest.runs.iter().map(|info| Run::open(vfs, dir, database, *info, &options.cache).map(Arc::new));
        let runs: Vec<_> = runs.collect::<Result<_>>()?;
        let index = Self::with(vfs, dir, database, options, manifest, runs);
        index.remove_strangers()?;
        Ok(index)
    }

    /// An index without keys, whatever stands in `dir`: what does is removed.
    pub(crate) fn open_empty(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        database: DatabaseId,
        options: &IndexOptions,
    ) -> Result<Self> {
        let index = Self::with(vfs, dir, database, options, Manifest::default(), Vec::new());
        index.remove_manifest()?;
        index.remove_strangers()?;
        Ok(index)
    }

    fn with(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        database: DatabaseId,
        options: &IndexOptions,
        manifest: Manifest,
        runs: Vec<Arc<Run>>,
    ) -> Self {
        let newest = manifest.last_tx();
        let IndexOptions { memtable_bytes, ref cache, steps_per_lock } = *options;
        assert!(steps_per_lock > 0, "a hold of the lock makes progress");
        let index = Self {
            vfs: Arc::clone(vfs),
            dir: dir.into(),
            database,
            cache: Arc::clone(cache),
            memtable_bytes,
            steps_per_lock,
            view: RwLock::new(Arc::new(View {
                runs,
                frozen: Vec::new(),
                active: Arc::new(Memtable::new(TxId(0), 0, 1)),
            })),
            newest_tx: AtomicU64::new(newest.0),
            inserting: Mutex::new(()),
            manifest: Mutex::new(manifest),
            jobs: Mutex::new(Vec::new()),
            pressure: AtomicU64::new(0),
            owed: AtomicI64::new(0),
            work_bytes: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
            rebuilding: AtomicBool::new(false),
            awaited: AtomicU64::new(0),
            due: AtomicBool::new(true),
            help_from: AtomicUsize::new(INDEX_FROZEN_MAX),
        };
        {
            let mut view = index.view.write();
            let runs = view.runs.clone();
            let active = index.new_memtable(TxId(newest.0 + 1));
            index.set_view(&mut view, View { runs, frozen: Vec::new(), active });
        }
        index
    }

    fn new_memtable(&self, first_tx: TxId) -> Arc<Memtable> {
        let seed = u64::from_be_bytes(self.database.0[8..].try_into().expect("8 bytes")) ^ first_tx.0;
        Arc::new(Memtable::new(first_tx, seed, self.steps_per_lock))
    }

    /// Removes runs that the manifest does not name: what a crash left of work that had not ended.
    fn remove_strangers(&self) -> Result<()> {
        if !self.vfs.exists(&self.dir).map_err(|e| Error::io(FileOp::Open, &self.dir, e))? {
            return Ok(());
        }
        let named: Vec<u64> = self.manifest.lock().runs.iter().map(|run| run.number).collect();
        for (name, _) in self.vfs.read_dir(&self.dir).map_err(|e| Error::io(FileOp::ReadDir, &self.dir, e))? {
            let stranger = number_of(&name).is_some_and(|number| !named.contains(&number));
            if stranger || name.ends_with(".tmp") {
                let path = self.dir.join(&name);
                self.vfs.remove_file(&path).map_err(|e| Error::io(FileOp::Remove, &path, e))?;
            }
        }
        Ok(())
    }

    fn remove_manifest(&self) -> Result<()> {
        let path = self.dir.join(MANIFEST_NAME);
        if self.vfs.exists(&path).map_err(|e| Error::io(FileOp::Open, &path, e))? {
            self.vfs.remove_file(&path).map_err(|e| Error::io(FileOp::Remove, &path, e))?;
            self.vfs.sync_dir(&self.dir).map_err(|e| Error::io(FileOp::SyncDir, &self.dir, e))?;
        }
        Ok(())
    }

    /// Last transaction that a run has, and the Alh that it had when the run was written.
    pub(crate) fn on_disk(&self) -> (TxId, Digest) {
        let manifest = self.manifest.lock();
        (manifest.last_tx(), manifest.alh)
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read())
    }

    fn set_view(&self, view: &mut Arc<View>, new: View) {
        let pressure = work::pressure(&new);
        self.pressure.store(pressure, Ordering::Relaxed);
        if pressure == 0 {
            self.owed.store(0, Ordering::Relaxed);
        }
        *view = Arc::new(new);
    }

    /// Adds the entries of one transaction, as (stored key, 0-based place in the transaction, metadata), each key at
    /// most once, then publishes the transaction. Entries that are not indexable are left out and make no revision.
    ///
    /// Transactions come from one thread at a time and in order. One that is in already changes nothing: after a crash the
    /// ledger is applied again from a checkpoint that may be older than the newest run. While the index is rebuilt, those
    /// that do not continue it are left to the rebuilding, which reads them from `tx/`.
    pub fn insert_tx<K: AsRef<[u8]>>(&self, tx: TxId, entries: impl Iterator<Item = (K, u32, KvMetadata)>) {
        let _one_at_a_time = self.inserting.lock();
        let newest = self.newest_tx();
        if tx <= newest || (self.is_rebuilding() && tx.0 != newest.0 + 1) {
            return;
        }
        self.insert_next(tx, entries);
    }

    fn insert_next<K: AsRef<[u8]>>(&self, tx: TxId, entries: impl Iterator<Item = (K, u32, KvMetadata)>) {
        let active = Arc::clone(&self.view.read().active);
        let mut entries = entries
            .filter(|(_, _, metadata)| !metadata.non_indexable)
            .map(|(key, entry, metadata)| active.prepare(tx, key, entry, &metadata));
        let mut batch = Vec::new();
        let (mut memory_bytes, mut brought) = (0, 0);
        loop {
            // The iterator may decode or read, so it runs without the lock.
            batch.extend(entries.by_ref().take(self.steps_per_lock));
            if batch.is_empty() {
                break;
            }
            memory_bytes = active.insert(tx, &batch);
            brought += batch.iter().map(|insert| insert.bytes()).sum::<u64>();
            batch.clear();
        }
        self.newest_tx.store(tx.0, Ordering::Release);
        let pressure = self.pressure.load(Ordering::Relaxed);
        // Rebuilding stops by itself when it is ahead of the work.
        if pressure > 0 && !self.is_rebuilding() {
            self.owed.fetch_add((brought * pressure / 2).cast_signed(), Ordering::Relaxed);
        }
        if memory_bytes >= self.memtable_bytes {
            self.freeze();
        }
    }

    /// The active part takes no more; the next transaction begins a new one. Nothing when it has no keys.
    fn freeze(&self) {
        let mut view = self.view.write();
        if view.active.is_empty() {
            return;
        }
        let mut frozen = view.frozen.clone();
        frozen.push(Arc::clone(&view.active));
        let active = self.new_memtable(TxId(self.newest_tx().0 + 1));
        let runs = view.runs.clone();
        self.set_view(&mut view, View { runs, frozen, active });
        drop(view);
        self.due.store(true, Ordering::Release);
    }

    /// Whether so many full parts wait to be written that whoever inserts has to wait for one.
    pub(crate) fn is_behind(&self) -> bool {
        self.view.read().frozen.len() >= INDEX_FROZEN_MAX
    }

    /// Whether the applier has to help: it owes enough, or as [`Index::is_behind`]. After a full disk not before another part is
    /// full, so that what is committed is not held up by attempts that cannot succeed.
    pub(crate) fn must_be_helped(&self) -> bool {
        self.is_asked(work::OWED_BYTES)
    }

    /// Whether so much is owed, on a disk that had room when it was last tried, or too many parts are full.
    fn is_asked(&self, owed_from: i64) -> bool {
        let help_from = self.help_from.load(Ordering::Relaxed);
        let owes = help_from == INDEX_FROZEN_MAX && self.owed.load(Ordering::Relaxed) >= owed_from;
        owes || self.view.read().frozen.len() >= help_from
    }

    /// Helping has found no space, or has done something.
    fn note_space(&self, found: bool) {
        let from = if found { INDEX_FROZEN_MAX } else { INDEX_FROZEN_MAX.max(self.view().frozen.len() + 1) };
        self.help_from.store(from, Ordering::Relaxed);
    }

    /// Whether parts wait to be written, and nothing else comes first.
    pub(crate) fn can_shrink(&self) -> bool {
        !self.view.read().frozen.is_empty() && !self.is_damaged() && !self.is_rebuilding()
    }

    /// The in-memory part takes no more and will be written, however small it is.
    pub(crate) fn freeze_now(&self) {
        let _nobody_inserts = self.inserting.lock();
        self.freeze();
    }

    /// The newest transaction of which all entries are in; 0 when there is none.
    pub fn newest_tx(&self) -> TxId {
        TxId(self.newest_tx.load(Ordering::Acquire))
    }

    /// The newest version of `key` up to `at`, also when it is deleted or expired.
    pub fn get(&self, key: &[u8], at: TxId) -> Result<Option<Version>> {
        self.read(at, |view, at| {
            let mut newest: Option<(Stored, u64)> = None;
            for part in view.parts(TxId(0), at) {
                match &mut newest {
                    None => newest = part.newest(key, at)?,
                    Some((_, count)) => *count += part.count(key, at)?,
                }
            }
            Ok(newest.map(|(stored, count)| stored.with_revision(count)))
        })
    }

    /// The version of `key` that `tx` itself wrote.
    pub fn get_exact(&self, key: &[u8], tx: TxId) -> Result<Option<Version>> {
        Ok(self.get(key, tx)?.filter(|version| version.tx == tx))
    }

    /// How many versions of `key` there are up to `at`, deletions included.
    pub fn revisions(&self, key: &[u8], at: TxId) -> Result<u64> {
        self.read(at, |view, at| view.parts(TxId(0), at).try_fold(0, |sum, part| Ok(sum + part.count(key, at)?)))
    }

    /// Version number `n` of `key`, from 1, if it is not from after `at`.
    pub fn revision(&self, key: &[u8], n: u64, at: TxId) -> Result<Option<Version>> {
        let Some(offset) = n.checked_sub(1) else { return Ok(None) };
        Ok(self.history(key, at, offset, 1, false)?.pop())
    }

    /// The versions of `key` up to `at`, oldest first or with `desc` newest first: at most `limit` of them behind the
    /// first `offset`. Parts and blocks that have none of them are not read.
    pub fn history(&self, key: &[u8], at: TxId, offset: u64, limit: usize, desc: bool) -> Result<Vec<Version>> {
        self.read(at, |view, at| {
            let mut parts: Vec<(Part, u64)> = Vec::new();
            for part in view.parts(TxId(0), at) {
                let count = part.count(key, at)?;
                if count > 0 {
                    parts.push((part, count));
                }
            }
            let total: u64 = parts.iter().map(|(_, count)| count).sum();
            let left = total.saturating_sub(offset);
            let wanted = left.min(limit as u64);
            // The interval of revisions, counted from 0.
            let from = if desc { left - wanted } else { total - left };
            let mut out = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
            let mut before = 0;
            for (part, count) in parts.iter().rev() {
                let (low, high) = (from.max(before), (from + wanted).min(before + count));
                if low < high {
                    let mut stored = Vec::new();
                    part.versions(key, at, low - before, (high - low) as usize, &mut stored)?;
                    out.extend((low + 1..).zip(stored).map(|(revision, stored)| stored.with_revision(revision)));
                }
                before += count;
            }
            if desc {
                out.reverse();
            }
            Ok(out)
        })
    }

    /// The next keys of a scan, each with its newest version up to `at`, also when that is deleted or expired; keys
    /// first written after `at` are passed over.
    ///
    /// The answer has at most `n` keys, in the order of the scan, strictly behind `after`; fewer than `n` mean that the
    /// range is exhausted. Calls that pass the last key on as `after`, with one published `at`, answer every key once,
    /// whatever is inserted meanwhile.
    pub fn scan_chunk(
        &self,
        spec: &ScanSpec,
        at: TxId,
        after: Option<&[u8]>,
        n: usize,
    ) -> Result<Vec<(Bytes, Version)>> {
        let mut range = KeyRange::of(spec);
        if let Some(after) = after {
            range.continue_behind(Bytes::copy_from_slice(after), spec.desc);
        }
        if n == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        self.read(at, |view, at| {
            let mut keys = Merged::new(view, &range, TxId(0), at, spec.desc)?;
            let mut out = Vec::new();
            while out.len() < n
                && let Some(found) = keys.next_key()?
            {
                out.push((found.key, found.newest.with_revision(found.count)));
            }
            Ok(out)
        })
    }

    /// How many keys that begin with `prefix` have a version up to `at`, those whose newest is deleted or expired
    /// included. Cost is linear in the answer.
    pub fn count(&self, prefix: &[u8], at: TxId) -> Result<u64> {
        self.read(at, |view, at| {
            let range = KeyRange::prefix(Bytes::copy_from_slice(prefix));
            let mut keys = Merged::new(view, &range, TxId(0), at, false)?;
            let mut count = 0;
            while keys.next_key()?.is_some() {
                count += 1;
            }
            Ok(count)
        })
    }

    /// Whether a key of `range` has a version after `since` and up to `at`. Runs that end by `since` are not looked at; in the
    /// others what is not newer is passed over by whole subtrees.
    pub fn changed_since(&self, range: &KeyRange, since: TxId, at: TxId) -> Result<bool> {
        if range.is_empty() || at <= since {
            return Ok(false);
        }
        self.read(at, |view, at| {
            for part in view.parts(since, at) {
                let changed = match &part {
                    Part::Memory(table) => table.changed_since(range, since, at),
                    Part::Run(run) => match range.only_key() {
                        Some(key) => run.newest(key, at)?.is_some_and(|(newest, _)| newest.tx > since),
                        None => run.cursor(range.clone(), since, at, false).next_key()?.is_some(),
                    },
                };
                if changed {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// The keys of `range` that have a version after `from` and up to `to`, in order, strictly behind `after`, at most `n`:
    /// fewer mean that the range is exhausted. What did not change is not read, but for the leaves that it shares.
    pub fn diff_chunk(
        &self,
        range: &KeyRange,
        from: TxId,
        to: TxId,
        after: Option<&[u8]>,
        n: usize,
    ) -> Result<Vec<Change>> {
        let mut range = range.clone();
        if let Some(after) = after {
            range.continue_behind(Bytes::copy_from_slice(after), false);
        }
        if n == 0 || range.is_empty() || to <= from {
            return Ok(Vec::new());
        }
        self.read(to, |view, to| {
            let mut keys = Merged::new(view, &range, from, to, false)?;
            let mut out = Vec::new();
            while out.len() < n
                && let Some(found) = keys.next_key()?
            {
                // Parts without a change of the key have versions of it too.
                let mut revision = 0;
                for part in view.parts(TxId(0), to) {
                    revision += part.count(&found.key, to)?;
                }
                out.push(Change { key: found.key, version: found.newest.with_revision(revision) });
            }
            Ok(out)
        })
    }

    /// Memory in use, bytes, without the blocks in the cache, which belong to the process.
    pub fn memory_bytes(&self) -> u64 {
        let view = self.view();
        view.frozen.iter().chain([&view.active]).map(|table| table.memory_bytes() as u64).sum()
    }

    /// Bytes of its files.
    pub fn disk_bytes(&self) -> u64 {
        self.view().runs.iter().map(|run| run.info.file_bytes).sum()
    }

    /// How many runs there are, which bounds what a read of one key looks at.
    pub fn run_count(&self) -> usize {
        self.view().runs.len()
    }

    /// Readers never look beyond what is published: a transaction after it may be in by half.
    fn read<T>(&self, at: TxId, read: impl FnOnce(&View, TxId) -> Result<T>) -> Result<T> {
        let newest = self.newest_tx();
        if at > newest && self.is_rebuilding() {
            return Err(Error::IndexRebuilding { through: newest, asked: at });
        }
        read(&self.view(), at.min(newest)).inspect_err(|error| self.note(error))
    }

    /// Whether transactions are missing that the ledger has.
    pub(crate) fn is_rebuilding(&self) -> bool {
        self.rebuilding.load(Ordering::Acquire)
    }

    /// Whether a file turned out damaged: the index has to be made anew.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    fn note(&self, error: &Error) {
        let damage = matches!(error, Error::Corrupted { .. }) || error.is_unreadable();
        if damage && !self.damaged.swap(true, Ordering::AcqRel) {
            self.due.store(true, Ordering::Release);
            tracing::error!(%error, "a file of the index is damaged, the index is rebuilt from the transaction log");
        }
    }

    /// Forgets everything, also on disk, and begins to rebuild. Reads after transaction 0 fail until it has ended.
    pub(crate) fn start_over(&self) -> Result<()> {
        // In this order: no run is written any more, nothing is inserted, readers are told, and only then files go.
        let mut jobs = self.jobs.lock();
        let _nothing_inserted = self.inserting.lock();
        self.begin_rebuild();
        jobs.clear();
        match self.remove_manifest() {
            Ok(()) => {}
            // A full disk holds up nothing that is committed. The old manifest may come back after a crash: with its files it
            // is the index as it was, whose damage is noticed again; without them it is noticed at open.
            Err(error @ Error::NoSpace { .. }) => tracing::warn!(%error, "the manifest of the index was not removed"),
            Err(error) => return Err(error),
        }
        let next_number = self.manifest.lock().next_number;
        *self.manifest.lock() = Manifest { next_number, ..Manifest::default() };
        let old = {
            let mut view = self.view.write();
            self.newest_tx.store(0, Ordering::Release);
            let empty = View { runs: Vec::new(), frozen: Vec::new(), active: self.new_memtable(TxId(1)) };
            let old = Arc::clone(&view);
            self.set_view(&mut view, empty);
            old
        };
        old.runs.iter().for_each(|run| run.retire());
        self.damaged.store(false, Ordering::Release);
        Ok(())
    }

    /// Transactions are missing; from now on [`Index::insert_tx`] takes only the one after the newest.
    pub(crate) fn begin_rebuild(&self) {
        self.rebuilding.store(true, Ordering::Release);
        self.due.store(true, Ordering::Release);
    }

    /// The rebuilding does not get past this segment as it is.
    pub(crate) fn wait_for_segment(&self, segment: u64) {
        self.awaited.store(segment + 1, Ordering::Release);
        self.due.store(true, Ordering::Release);
    }

    /// The segment that the rebuilding did not get past.
    pub(crate) fn awaited_segment(&self) -> Option<u64> {
        self.awaited.load(Ordering::Acquire).checked_sub(1)
    }

    /// Ends the rebuilding if everything up to `recorded` is in; whether it has ended. The applier records a transaction before
    /// it inserts it, so none is missed in between.
    pub(crate) fn end_rebuild(&self, recorded: impl FnOnce() -> TxId) -> bool {
        let _nothing_inserted = self.inserting.lock();
        let complete = self.newest_tx() >= recorded();
        if complete {
            self.rebuilding.store(false, Ordering::Release);
        }
        complete
    }
}

#[cfg(test)]
mod tests;
