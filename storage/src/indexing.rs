//! Keeps the index and the transaction log together: what runs do not have is inserted again at open, and an index that was lost
//! or is damaged is rebuilt while the database serves what does not need it.
//!
//! The applier inserts what it commits. While the index is rebuilt it leaves that to the rebuilding, which reads records from
//! `tx/` and keys from the ledger, up to the newest commit record; from there on the applier inserts again.

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::{LogIndex, TxId};
use bytes::Bytes;

use crate::commitlog::CommitRecord;
use crate::core::Core;
use crate::error::{Damage, Error, Result};
use crate::format::FRAME_HEAD_BYTES;
use crate::format::derived::COMMIT_RECORD_BYTES;
use crate::index::Index;
use crate::limits::{INDEX_OPEN_INSERT_BYTES, INDEX_REBUILD_TXS, INDEX_WORK_BYTES, REPLAY_READ_BYTES};
use crate::segment::{Frame, Position};
use crate::txlog::Record;

/// Brings the index of a database that is being opened up to transaction `last`; what would take long is left to
/// [`work`].
pub(crate) fn catch_up_at_open(core: &Core, last: TxId) -> Result<()> {
    let (on_disk, alh) = core.index.on_disk();
    if (1..=last.0).contains(&on_disk.0) && core.alh(on_disk)? != alh {
        tracing::error!(tx = on_disk.0, "the index is of another history, it is rebuilt from the transaction log");
        core.index.start_over()?;
    }
    let next = core.index.newest_tx().0 + 1;
    if next > last.0 {
        return Ok(());
    }
    core.index.begin_rebuild();
    if core.tx.end() - core.commit_record(TxId(next))?.offset > INDEX_OPEN_INSERT_BYTES {
        return Ok(());
    }
    loop {
        match rebuild_step(core, last, Memory::Bounded) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // Only a database that is open gets its segments mended, so it opens, and the rest is done in the background.
            Err(error) => return wait_for_repair(core, error),
        }
        help(core)?;
        if core.index.is_behind() {
            // The disk has no room for runs: opening does not wait for it, the rest is done in the background.
            return Ok(());
        }
    }
}

/// Puts the rebuilding off when it has met a rotten segment; any other error is the caller's.
fn wait_for_repair(core: &Core, error: Error) -> Result<()> {
    match error {
        Error::Corrupted { segment: Some(segment), .. } => {
            tracing::error!(%error, "keys cannot be read, the index waits until the segment is mended");
            core.ledger.suspect(segment);
            core.index.wait_for_segment(segment);
            Ok(())
        }
        other => Err(other),
    }
}

/// Whether the rebuilding is put off until a segment is mended.
pub(crate) fn waits_for_repair(core: &Core) -> bool {
    core.index.is_rebuilding()
        && core.index.awaited_segment().is_some_and(|segment| core.ledger.suspects().contains(&segment))
}

/// What becomes of a rebuilding that meets full in-memory parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// It stops until they are written out.
    Bounded,
    /// It goes on in memory.
    Unbounded,
}

/// Whether [`work`] has something to do.
pub(crate) fn is_due(core: &Core) -> bool {
    core.index.work_due() && !waits_for_repair(core)
}

/// Does a bounded piece of what the index has to do besides taking transactions in: rebuilding, writing runs, merging. Whether
/// more is due.
pub(crate) fn work(core: &Core) -> Result<bool> {
    if core.index.is_damaged() {
        core.index.start_over()?;
    }
    if waits_for_repair(core) {
        return Ok(false);
    }
    if core.index.is_rebuilding() {
        let last = newest_recorded(core);
        let upto = TxId(last.0.min(core.index.newest_tx().0.saturating_add(INDEX_REBUILD_TXS)));
        if let Err(error) = rebuild_step(core, upto, Memory::Bounded) {
            return wait_for_repair(core, error).map(|()| false);
        }
    }
    match core.index.work(&|tx| flushed(core, tx), INDEX_WORK_BYTES) {
        // It is noted, and the next call begins anew.
        Err(Error::Corrupted { .. }) if core.index.is_damaged() => Ok(true),
        other => other,
    }
}

/// For the applier: conditions can be evaluated after this, whatever state the index was in. Takes as long as it takes, because
/// the outcome must be that of every other replica.
pub(crate) fn complete(core: &Core) -> Result<()> {
    let mut memory = Memory::Bounded;
    while core.index.is_damaged() || core.index.is_rebuilding() {
        if core.index.is_damaged() {
            core.index.start_over()?;
        }
        rebuild_step(core, newest_recorded(core), memory)?;
        help(core)?;
        if core.index.is_behind() {
            // A disk without room must not hold up what is committed.
            memory = Memory::Unbounded;
        }
    }
    Ok(())
}

/// For the applier: memory and the number of runs stay bounded even when nobody does the work in the background. What a
/// transaction pays is in proportion to what it inserts.
pub(crate) fn help(core: &Core) -> Result<()> {
    match core.index.help(&|tx| flushed(core, tx)) {
        // It is noted: the index is made anew, and its memory is given back with it.
        Err(Error::Corrupted { .. }) if core.index.is_damaged() => Ok(()),
        // A full disk is waited for; what is committed is applied all the same, and stays in memory meanwhile.
        Err(Error::NoSpace { .. }) => Ok(()),
        other => other,
    }
}

/// The newest transaction that has a commit record, published or not.
fn newest_recorded(core: &Core) -> TxId {
    TxId(core.commit.end() / COMMIT_RECORD_BYTES)
}

/// Inserts up to `last`; whether more is missing.
fn rebuild_step(core: &Core, last: TxId, memory: Memory) -> Result<bool> {
    insert_up_to(core, last, memory)?;
    Ok(!core.index.end_rebuild(|| newest_recorded(core)))
}

/// Makes the log entry of a transaction durable, so that a run may hold it [S1]; answers its Alh.
fn flushed(core: &Core, tx: TxId) -> Result<alhambra_ledger::Digest> {
    let index = core.commit_record(tx)?.log_index;
    if core.ledger.flushed().is_none_or(|flushed| flushed.index < index) {
        core.ledger.flush()?;
    }
    core.alh(tx)
}

/// Opens the index of a database, or begins a new one when it is damaged.
pub(crate) fn open(
    vfs: &std::sync::Arc<dyn crate::vfs::Vfs>,
    dir: &std::path::Path,
    database: alhambra_ledger::ids::DatabaseId,
    options: &crate::index::IndexOptions,
) -> Result<Index> {
    match Index::open(vfs, dir, database, options) {
        Err(error @ Error::Corrupted { .. }) => {
            tracing::error!(%error, "the index is damaged, it is rebuilt from the transaction log");
            Index::open_empty(vfs, dir, database, options)
        }
        other => other,
    }
}

/// An index for the time of a check: its runs are in memory.
pub(crate) fn in_memory(database: alhambra_ledger::ids::DatabaseId) -> Result<Index> {
    let disk: std::sync::Arc<dyn crate::vfs::Vfs> = std::sync::Arc::new(crate::vfs::mem::MemVfs::new());
    let dir = std::path::Path::new("index");
    disk.create_dir_all(dir).map_err(|e| Error::io(crate::error::FileOp::CreateDir, dir, e))?;
    Index::open_empty(&disk, dir, database, &crate::index::IndexOptions::default())
}

/// Inserts the transactions after the newest one of the index up to `last`, or with bounded memory fewer when it is full. Keys are read from the
/// frames, whose checksums are checked on the way.
fn insert_up_to(core: &Core, last: TxId, memory: Memory) -> Result<()> {
    let first = TxId(core.index.newest_tx().0 + 1);
    if first > last {
        return Ok(());
    }
    let mut records = Records { core, last, next: first, window: Window::default() };
    let mut index = match records.peek()? {
        Some((_, first)) => first.log_index,
        None => return Ok(()),
    };
    let through = core.commit_record(last)?.log_index;
    // Damage lies somewhere in what would be read at once, so it is gone up to one by one.
    let mut careful = false;
    while index <= through {
        let (to, bytes) = if careful { (index.0 + 1, 0) } else { (through.0 + 1, REPLAY_READ_BYTES) };
        let frames = match core.ledger.read(index, LogIndex(to), bytes) {
            Ok(frames) => frames,
            Err(Error::Corrupted { .. }) if !careful => {
                careful = true;
                continue;
            }
            Err(error @ Error::Corrupted { .. }) => {
                tracing::error!(%error, index = index.0, "a log entry is damaged, its keys are checked by their hashes");
                while let Some((tx, commit)) = records.peek()?
                    && commit.log_index == index
                {
                    insert_proven(core, tx)?;
                    records.skip();
                }
                index = LogIndex(index.0 + 1);
                careful = false;
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some((_, Frame { log_id, .. })) = frames.last() else { break };
        index = LogIndex(log_id.index.0 + 1);
        for (position, frame) in &frames {
            if memory == Memory::Bounded && core.index.is_behind() {
                return Ok(());
            }
            while let Some((tx, commit)) = records.peek()?
                && commit.log_index == frame.log_id.index
            {
                let record = records.take()?;
                insert(core, tx, &record, *position, &frame.payload)?;
            }
        }
    }
    match records.peek()? {
        None => Ok(()),
        Some((tx, _)) => Err(core.commit.corrupted((tx.0 - 1) * COMMIT_RECORD_BYTES, Damage::Field)),
    }
}

/// Adds the keys of a transaction whose log entry carries `payload`.
pub(crate) fn insert(core: &Core, tx: TxId, record: &Record, position: Position, payload: &Bytes) -> Result<()> {
    let payload_at = position.0 + FRAME_HEAD_BYTES as u64;
    let mut entries = Vec::with_capacity(record.head.nentries as usize);
    for (number, entry) in (0u32..).zip(record.entries()) {
        let entry = entry.map_err(|bad| core.bad_record(tx, bad))?;
        let key = (entry.key_at.0.checked_sub(payload_at))
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| payload.get(at..at.checked_add(entry.key_len as usize)?));
        let metadata = KvMetadata::from_bytes(&entry.metadata).ok();
        let (Some(key), Some(metadata)) = (key, metadata) else {
            return Err(core.bad_hash(tx));
        };
        entries.push((key, number, metadata));
    }
    core.index.insert_tx(tx, entries.into_iter());
    Ok(())
}

/// For a frame whose checksum does not hold: when the keys still hash to the Alh of the transaction, the damage is
/// elsewhere in the frame, and reads of the damaged value will say so. Otherwise the segment is named as damaged.
fn insert_proven(core: &Core, tx: TxId) -> Result<()> {
    let record = core.tx_record(tx)?;
    core.index.insert_tx(
        tx,
        (0u32..).zip(&record.entries).map(|(number, entry)| (entry.key.clone(), number, entry.kv_metadata())),
    );
    Ok(())
}

/// Transaction records in order, read in large pieces.
struct Records<'a> {
    core: &'a Core,
    last: TxId,
    next: TxId,
    window: Window,
}

/// Commit records of transactions from `first`, and the bytes of the tx log that they name, from `at`.
#[derive(Default)]
struct Window {
    first: TxId,
    commits: Vec<CommitRecord>,
    at: u64,
    records: Bytes,
}

impl Records<'_> {
    /// Transactions per window, at most; their records take at most `REPLAY_READ_BYTES`.
    const WINDOW_TXS: u64 = 4096;

    /// Id and commit record of the next transaction.
    fn peek(&mut self) -> Result<Option<(TxId, CommitRecord)>> {
        if self.next > self.last {
            return Ok(None);
        }
        let within = self.next.0 - self.window.first.0;
        if let Some(commit) = self.window.commits.get(within as usize) {
            return Ok(Some((self.next, *commit)));
        }
        self.window = self.load()?;
        Ok(self.window.commits.first().map(|commit| (self.next, *commit)))
    }

    fn load(&self) -> Result<Window> {
        let count = (self.last.0 - self.next.0 + 1).min(Self::WINDOW_TXS);
        let from = (self.next.0 - 1) * COMMIT_RECORD_BYTES;
        let bytes = self.core.commit.read(from, (count * COMMIT_RECORD_BYTES) as usize)?;
        let (records, _) = bytes.as_chunks::<{ COMMIT_RECORD_BYTES as usize }>();
        let mut commits: Vec<_> = records.iter().map(CommitRecord::decode).collect();
        let at = commits[0].offset;
        let mut end = at;
        let mut taken = 0;
        // As many as fit, at least one: a record may be large.
        for (number, commit) in (0u64..).zip(&commits) {
            if commit.offset != end {
                return Err(self.core.commit.corrupted(from + number * COMMIT_RECORD_BYTES, Damage::Field));
            }
            if taken > 0 && end + u64::from(commit.size) - at > REPLAY_READ_BYTES as u64 {
                break;
            }
            end += u64::from(commit.size);
            taken += 1;
        }
        commits.truncate(taken);
        let records = Bytes::from(self.core.tx.read(at, (end - at) as usize)?);
        Ok(Window { first: self.next, commits, at, records })
    }

    fn take(&mut self) -> Result<Record> {
        let (tx, commit) = self.peek()?.expect("called behind a peek");
        let from = (commit.offset - self.window.at) as usize;
        let bytes = self.window.records.slice(from..from + commit.size as usize);
        self.skip();
        Record::decode(tx, commit.log_index, bytes).map_err(|bad| self.core.bad_record(tx, bad))
    }

    fn skip(&mut self) {
        self.next = TxId(self.next.0 + 1);
    }
}
