//! Getting rid of the bytes: finds the sealed segments that hold pruned values and writes them again without, one per step.

use std::collections::{BTreeMap, BTreeSet};

use alhambra_ledger::ids::{DatabaseId, LogIndex, TxId};

use super::rules::{PruneRecord, Pruned, Rules};
use crate::checkpoint;
use crate::command::{self, Located, LocatedBatch, LocatedProposal, LocatedTarget, ValueForm};
use crate::compression;
use crate::core::Core;
use crate::database::Database;
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::derived::SMALL_FILE_HEAD_BYTES;
use crate::format::{self, FRAME_HEAD_BYTES};
use crate::index::ScanSpec;
use crate::limits::REPLAY_READ_BYTES;
use crate::segment::{Frame, FrameKind, Hole, Position, SegmentInfo};
use crate::smallfile;
use crate::txlog::StoredEntry;
use crate::wire::{Malformed, Put, Reader};

const MARK_MAGIC: [u8; 8] = *b"ALHPRUNE";

/// Node-local: prunes up to the number in it are done in all segments.
pub(crate) const MARK_NAME: &str = "pruned";

/// What a step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneProgress {
    /// The segment that was written again.
    pub rewritten: Option<u64>,
    /// Segments that are still to be looked at, those included that are not sealed yet.
    pub pending: usize,
    /// A segment could be written again, were its log entries not behind the bound.
    pub needed_by_log: bool,
}

/// What of the prunes in force is still to be done here.
#[derive(Debug, Default)]
pub(crate) struct Pruner {
    /// The mark on disk; `None` before it was read.
    saved: Option<u32>,
    /// The segments of prunes up to this number are in `pending` or done.
    found: u32,
    pending: BTreeSet<u64>,
}

impl Database {
    /// Writes one sealed segment again without the values that were pruned from it, if there is one whose log entries are
    /// all at or before `through`: nobody may need those entries as they were appended any more. Bounded by the size of a
    /// segment; to be called on a thread of its own until nothing is rewritten.
    ///
    /// # Errors
    /// Damage that is found on the way, when nothing else could be done, [`Error::NoSpace`], IO. The segment is as it was
    /// then. When the new file cannot be given its name the ledger is poisoned, and each is the old or the new one.
    pub fn prune_step(&self, through: LogIndex) -> Result<PruneProgress> {
        // Neither a repair nor an install puts files where this step does.
        let _alone = self.mending.lock();
        let core = self.core();
        let mut pruner = core.pruner.lock();
        let pruner = &mut *pruner;
        let rules = core.prunes.rules();
        let saved = match pruner.saved {
            Some(saved) => saved,
            None => {
                // Whatever it says beyond what is known here is of another life; then everything is looked at again.
                pruner.found = self.load_mark()?.filter(|number| *number <= rules.newest()).unwrap_or(0);
                *pruner.saved.insert(pruner.found)
            }
        };
        if pruner.found < rules.newest() {
            let records = core.prunes.records()?;
            for record in records.iter().filter(|record| record.number > pruner.found) {
                let before = records[..record.number as usize - 1].iter().rev();
                find(&core, record, before, &mut pruner.pending)?;
            }
            pruner.found = rules.newest();
        }
        let segments = core.ledger.segments();
        let ahead = core.seals.ahead_of(&segments);
        pruner.pending.extend(ahead.keys());
        // One that is not what was sealed is for a repair first: written again it would be what no seal speaks of. Unless one
        // does: then it is a voice for what it becomes, which the others, who have got there, can be asked about. It stays
        // pending either way, for what its bytes say may not be believed.
        core.seals.compare(&core.ledger)?;
        let disputed = core.seals.mismatched();
        let ready = |info: &SegmentInfo| {
            let is_due = info.closed && info.generation <= rules.newest() && core.seals.is_sealed(info.number);
            is_due && (!disputed.contains(&info.number) || ahead.contains_key(&info.number))
        };
        let (mut rewritten, mut needed_by_log, mut rotten) = (None, false, None);
        let candidates: Vec<u64> = pruner.pending.iter().copied().collect();
        for number in candidates {
            let Some(info) = segments.get(number as usize).filter(|info| ready(info)) else { continue };
            let wanted = ahead.get(&number).copied().filter(|_| disputed.contains(&number));
            if info.last_log_id.index > through {
                needed_by_log = true;
                continue;
            }
            // That it is sealed has been applied, and stands behind it.
            checkpoint::reach_behind(self, &core, info.last_log_id)?;
            match prune_one(&core, info, &rules, wanted) {
                Ok(done) => {
                    rewritten = done.then_some(number);
                    if wanted.is_none() {
                        pruner.pending.remove(&number);
                    }
                }
                // It is for a repair; the others need not wait for that.
                Err(error @ (Error::Corrupted { .. } | Error::Command(_))) => rotten = rotten.or(Some(error)),
                Err(error) => return Err(error),
            }
            if rewritten.is_some() {
                break;
            }
        }
        if let (None, Some(error)) = (rewritten, rotten) {
            return Err(error);
        }
        // By itself: who is told that it failed must not miss that a segment was written again.
        if rewritten.is_none() && pruner.pending.is_empty() && pruner.found > saved {
            self.write_prune_mark(pruner.found)?;
            pruner.saved = Some(pruner.found);
        }
        Ok(PruneProgress { rewritten, pending: pruner.pending.len(), needed_by_log })
    }

    /// What the mark says; a damaged one says nothing.
    fn load_mark(&self) -> Result<Option<u32>> {
        match self.check_prune_mark() {
            Err(error @ Error::Corrupted { .. }) => {
                tracing::warn!(%error, "the mark of prunes that are done is damaged, looking at all segments again");
                Ok(None)
            }
            read => read,
        }
    }

    /// Reads the mark of prunes that are done.
    pub(crate) fn check_prune_mark(&self) -> Result<Option<u32>> {
        let path = self.dir.join(MARK_NAME);
        let Some(bytes) = smallfile::read(&*self.vfs, &path, MARK_MAGIC)? else { return Ok(None) };
        match decode_mark(&bytes) {
            Ok((found, number)) if found == self.spec.id => Ok(Some(number)),
            Ok((found, _)) => Err(Error::ForeignDatabase { path, expected: self.spec.id, found }),
            Err(Malformed) => Err(Error::Corrupted {
                path,
                segment: None,
                offset: SMALL_FILE_HEAD_BYTES as u64,
                damage: Damage::Field,
            }),
        }
    }

    /// Writes the mark again from memory, or removes one that says nothing.
    pub(crate) fn rewrite_prune_mark(&self) -> Result<()> {
        let core = self.core();
        let pruner = core.pruner.lock();
        match pruner.saved {
            Some(done) if done > 0 => self.write_prune_mark(done),
            _ => {
                let path = self.dir.join(MARK_NAME);
                self.vfs.remove_file(&path).map_err(|e| Error::io(FileOp::Remove, &path, e))
            }
        }
    }

    fn write_prune_mark(&self, done: u32) -> Result<()> {
        let content = encode_mark(self.spec.id, done);
        smallfile::write_atomic(&*self.vfs, &self.dir.join(MARK_NAME), MARK_MAGIC, &content)
    }

    /// Whether a [`Database::prune_step`] could find something, now or when more segments are sealed.
    pub fn has_pruning_to_do(&self) -> bool {
        let core = self.core();
        let newest = core.prunes.rules().newest();
        // A step that is running will be asked again.
        newest > 0 && core.pruner.try_lock().is_none_or(|pruner| pruner.saved != Some(newest))
    }

    /// The prunes in force, in the order of the log.
    pub fn prunes(&self) -> Result<Vec<PruneRecord>> {
        self.core().prunes.records()
    }

    /// Transactions before this one have lost all their values; 0 when none has.
    pub fn truncated_before(&self) -> TxId {
        self.core().prunes.rules().truncated()
    }
}

pub(crate) fn encode_mark(database: DatabaseId, done: u32) -> Vec<u8> {
    let mut content = database.0.to_vec();
    content.put_u32(done);
    content
}

pub(crate) fn decode_mark(bytes: &[u8]) -> std::result::Result<(DatabaseId, u32), Malformed> {
    let mut reader = Reader::new(bytes);
    let mark = (DatabaseId(reader.array()?), reader.u32()?);
    reader.finish()?;
    Ok(mark)
}

/// Number of the segment that holds a log entry; that of the newest for later ones.
fn segment_of(segments: &[SegmentInfo], index: LogIndex) -> u64 {
    segments.partition_point(|segment| segment.first_log_id.index <= index).saturating_sub(1) as u64
}

/// Transactions whose segment is kept in memory.
const TXS_KNOWN: usize = 1 << 16;

/// Adds the segments that may hold a value which `record` names.
fn find<'a>(
    core: &Core,
    record: &PruneRecord,
    mut earlier: impl Iterator<Item = &'a PruneRecord>,
    pending: &mut BTreeSet<u64>,
) -> Result<()> {
    let segments = core.ledger.segments();
    // Many versions come with one transaction.
    let mut known = BTreeMap::new();
    let mut segment_of_tx = |tx| {
        if let Some(segment) = known.get(&tx) {
            return Ok(*segment);
        }
        if known.len() >= TXS_KNOWN {
            known.clear();
        }
        let segment = segment_of(&segments, core.log_index_of(tx)?);
        known.insert(tx, segment);
        Ok::<_, Error>(segment)
    };
    match &record.pruned {
        Pruned::Before(tx) => {
            let done = earlier.find_map(|record| match record.pruned {
                // Rejected proposals behind the transaction before would have become this one, which was kept.
                Pruned::Before(tx) => Some(TxId(tx.0 - 1)),
                _ => None,
            });
            let first = done.filter(|tx| tx.0 > 0).map_or(Ok(0), &mut segment_of_tx)?;
            pending.extend(first..=segment_of_tx(*tx)?);
        }
        Pruned::Value { tx, .. } => {
            pending.insert(segment_of_tx(*tx)?);
        }
        Pruned::Versions { prefix, keep } => {
            /// Keys, and versions of one, that are looked at together.
            const CHUNK: usize = 256;
            let spec = ScanSpec::prefix(prefix.clone());
            let mut last = None;
            loop {
                let keys = core.index.scan_chunk(&spec, record.as_of, last.as_deref(), CHUNK)?;
                for (key, _) in &keys {
                    let too_many = core.index.revisions(key, record.as_of)?.saturating_sub(u64::from(*keep));
                    let mut offset = 0;
                    while offset < too_many {
                        let limit = CHUNK.min((too_many - offset) as usize);
                        for version in core.index.history(key, record.as_of, offset, limit, false)? {
                            pending.insert(segment_of_tx(version.tx)?);
                        }
                        offset += limit as u64;
                    }
                }
                if keys.len() < CHUNK {
                    break;
                }
                last = keys.last().map(|(key, _)| key.clone());
            }
        }
    }
    Ok(())
}

/// All values that a segment has lost or is to lose, by offset.
struct Plan {
    generation: u32,
    holes: Vec<Hole>,
}

/// Frames of a segment, in order.
fn each_frame(core: &Core, info: &SegmentInfo, mut f: impl FnMut(Position, &Frame) -> Result<()>) -> Result<()> {
    let mut next = info.first_log_id.index;
    while next <= info.last_log_id.index {
        let end = LogIndex(info.last_log_id.index.0 + 1);
        for (position, frame) in core.ledger.read(next, end, REPLAY_READ_BYTES)? {
            f(position, &frame)?;
            next = LogIndex(frame.log_id.index.0 + 1);
        }
    }
    Ok(())
}

fn plan(core: &Core, info: &SegmentInfo, rules: &Rules) -> Result<Plan> {
    let mut walk = Walk {
        core,
        rules,
        next: first_tx(core, info)?,
        next_at: None,
        start: info.first_offset.0,
        plan: Plan::empty(),
    };
    each_frame(core, info, |position, frame| {
        if frame.kind != FrameKind::Command {
            return Ok(());
        }
        match command::decode_located(&frame.payload)? {
            Located::Batch(batch) | Located::Prune(_, LocatedTarget::Before { batch, .. }) => {
                let payload_at = position.0 + FRAME_HEAD_BYTES as u64;
                batch.proposals.iter().try_for_each(|p| walk.proposal(frame.log_id.index, payload_at, &batch, p))
            }
            _ => Ok(()),
        }
    })?;
    Ok(walk.plan)
}

/// The first transaction that came with a log entry of the segment or a later one.
fn first_tx(core: &Core, info: &SegmentInfo) -> Result<TxId> {
    let (mut low, mut high) = (1, core.last_tx().0 + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if core.log_index_of(TxId(middle))? < info.first_log_id.index {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(TxId(low))
}

impl Plan {
    const fn empty() -> Self {
        Self { generation: 0, holes: Vec::new() }
    }
}

struct Walk<'a> {
    core: &'a Core,
    rules: &'a Rules,
    /// The transaction that the next committed proposal became, and a rejected one would have.
    next: TxId,
    /// The log entry that carried it, once that is read.
    next_at: Option<LogIndex>,
    /// Logical offset of the segment.
    start: u64,
    plan: Plan,
}

impl Walk<'_> {
    fn proposal(
        &mut self,
        index: LogIndex,
        payload_at: u64,
        batch: &LocatedBatch<'_>,
        proposal: &LocatedProposal<'_>,
    ) -> Result<()> {
        let entries = batch.entries_of(proposal);
        let tx = self.next;
        let first_key = entries.first().map(|entry| payload_at + u64::from(entry.key_at));
        let stored = self.stored(index, first_key)?;
        if stored.is_some() {
            (self.next, self.next_at) = (TxId(tx.0 + 1), None);
        }
        for (number, entry) in (0u32..).zip(entries) {
            let len = entry.value.len() as u32;
            // A hash that stands for a value that was gone before is nothing that could be got rid of.
            if len == 0 || entry.form == ValueForm::Gone {
                continue;
            }
            let position = payload_at + u64::from(entry.value_at);
            let (first, hash) = match &stored {
                Some(stored) => {
                    let Some(stored) = stored.get(number as usize).filter(|stored| stored.value_at.0 == position)
                    else {
                        return Err(self.core.bad_hash(tx));
                    };
                    (self.rules.first(tx, number, entry.key, &self.core.index)?, Some(stored.value_hash))
                }
                // Of a proposal that was rejected, or was a retry: nobody can read it, but it is old all the same.
                None => (self.rules.first_before(tx), None),
            };
            let Some(first) = first else {
                if entry.pruned {
                    return Err(self.core.bad_hash(tx));
                }
                continue;
            };
            let hash = match hash {
                Some(hash) => hash,
                None if entry.pruned => match self.core.ledger.pruned_hash(Position(position))? {
                    Some(hash) => hash,
                    // Proposed as pruned and refused for that: there never was a value.
                    None => continue,
                },
                // What does not decompress was refused for that, and must be refused again when the ledger is replayed.
                None => match compression::hash_of(entry) {
                    Some(hash) => hash,
                    None => continue,
                },
            };
            let offset = (position - self.start) as u32;
            let tag_at = offset - entry.form.code_to_value(len);
            self.plan.holes.push(Hole { offset, len, hash, tag_at });
            self.plan.generation = self.plan.generation.max(first);
        }
        Ok(())
    }

    /// The stored entries of the next transaction, if this proposal became it.
    fn stored(&mut self, index: LogIndex, first_key: Option<u64>) -> Result<Option<Vec<StoredEntry>>> {
        // What is taken for a rejected proposal loses its values.
        if self.next > self.core.last_tx() {
            return Ok(None);
        }
        let next_at = match self.next_at {
            Some(next_at) => next_at,
            None => *self.next_at.insert(self.core.log_index_of(self.next)?),
        };
        if next_at != index {
            return Ok(None);
        }
        let (record, _) = self.core.record(self.next)?;
        let entries = record.entries().collect::<std::result::Result<Vec<_>, _>>();
        let entries = entries.map_err(|bad| self.core.bad_record(self.next, bad))?;
        let same = entries.first().map(|entry| entry.key_at.0) == first_key;
        Ok(same.then_some(entries))
    }
}

/// Whether the segment had to be written again, and was: as the generation that is `wanted`, if one is.
fn prune_one(core: &Core, info: &SegmentInfo, rules: &Rules, wanted: Option<u32>) -> Result<bool> {
    let plan = match plan(core, info, rules) {
        // A checksum that fits rot: it is for a repair, unless this is what was written here.
        Err(error @ Error::Command(_)) => {
            core.ledger.check_bytes(info.number)?;
            return Err(error);
        }
        planned => planned?,
    };
    if plan.generation <= info.generation || wanted.is_some_and(|wanted| plan.generation != wanted) {
        return Ok(false);
    }
    // Rot must not be written again under a digest of its own.
    core.ledger.check_bytes(info.number)?;
    rewrite(core, info, &plan)?;
    core.seals.rewritten(info.number);
    Ok(true)
}

fn rewrite(core: &Core, info: &SegmentInfo, plan: &Plan) -> Result<()> {
    let mut rewrite = core.ledger.rewrite(info.number, plan.generation)?;
    let mut holes = &plan.holes[..];
    each_frame(core, info, |position, frame| {
        let mut bytes = Vec::with_capacity(FRAME_HEAD_BYTES + frame.payload.len());
        format::encode_frame(frame, &mut bytes);
        let end = position.0 - info.first_offset.0 + bytes.len() as u64;
        let (here, later) = holes.split_at(holes.partition_point(|hole| u64::from(hole.offset) < end));
        holes = later;
        rewrite.push(bytes, here)
    })?;
    rewrite.finish()
}
