//! Seals: the digest of each closed segment, agreed through the log. What a replica needs to propose one, to remember those
//! applied (`seal/`), and to compare them with its own bytes `R2`.
//!
//! Which segment a frame stands in is a function of frame lengths, so the applier follows it by itself (`Trail`) and all
//! replicas list the same transactions and rejected proposals for a segment. Comparing digests has no part in apply: it
//! changes the health of this replica, never the replicated state.

mod dispute;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{LogIndex, TxId};
use parking_lot::Mutex;

use crate::checkpoint::Checkpoint;
use crate::chunklog::ChunkLog;
use crate::command::Seal;
use crate::database::{Database, DatabaseSpec};
use crate::error::{Damage, Error, Result};
use crate::format::derived::LogKind;
use crate::segment::{Ledger, SegmentInfo};
use crate::vfs::Vfs;
use crate::wire::{Malformed, Put, Reader};

pub use dispute::SegmentVersion;
use dispute::Settled;

/// Whether this replica's bytes are what the group agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Nothing is known to be wrong.
    #[default]
    Sound,
    /// The digest of an own segment is not the one that was sealed.
    SealMismatch {
        /// The first such segment.
        segment: u64,
    },
}

/// A closed segment whose frames are all applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub segment: u64,
    pub last_tx: TxId,
    pub alh: Digest,
    pub rejected: Vec<(u64, u32)>,
}

/// Where in the segments the applier is, and what it saw in those not sealed yet. Replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    /// Segment of the newest applied frame.
    segment: u64,
    /// Bytes of applied frames in it.
    frame_bytes: u64,
    rejected: Vec<(u64, u32)>,
    /// Closed and not sealed, by segment.
    closed: BTreeMap<u64, Closed>,
}

impl Trail {
    /// The next frame is about to be applied; `tx` and `alh` are the newest transaction before it.
    pub(crate) fn frame(&mut self, len: u64, segment_bytes: u64, tx: TxId, alh: Digest) {
        if self.frame_bytes > 0 && self.frame_bytes + len > segment_bytes {
            let rejected = std::mem::take(&mut self.rejected);
            let closed = Closed { segment: self.segment, last_tx: tx, alh, rejected };
            self.closed.insert(self.segment, closed);
            self.segment += 1;
            self.frame_bytes = 0;
        }
        self.frame_bytes += len;
    }

    /// A proposal of the newest frame was rejected.
    pub(crate) fn rejected(&mut self, index: LogIndex, number: u32) {
        self.rejected.push((index.0, number));
    }

    /// Segment of the newest applied frame, and the bytes of applied frames in it.
    pub(crate) fn open_segment(&self) -> (u64, u64) {
        (self.segment, self.frame_bytes)
    }

    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_u64(self.segment);
        out.put_u64(self.frame_bytes);
        put_rejected(out, &self.rejected);
        out.put_varint(self.closed.len() as u64);
        for closed in self.closed.values() {
            out.put_u64(closed.segment);
            out.put_u64(closed.last_tx.0);
            out.put_bytes(&closed.alh.0);
            put_rejected(out, &closed.rejected);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> std::result::Result<Self, Malformed> {
        let (segment, frame_bytes) = (reader.u64()?, reader.u64()?);
        let rejected = read_rejected(reader)?;
        let mut closed = BTreeMap::new();
        for _ in 0..reader.count(49)? {
            let segment = reader.u64()?;
            let last_tx = TxId(reader.u64()?);
            let alh = Digest(reader.array()?);
            let rejected = read_rejected(reader)?;
            if closed.last_key_value().is_some_and(|(before, _)| *before >= segment) {
                return Err(Malformed);
            }
            closed.insert(segment, Closed { segment, last_tx, alh, rejected });
        }
        Ok(Self { segment, frame_bytes, rejected, closed })
    }
}

fn put_rejected(out: &mut Vec<u8>, rejected: &[(u64, u32)]) {
    out.put_varint(rejected.len() as u64);
    for &(index, number) in rejected {
        out.put_varint(index);
        out.put_varint(u64::from(number));
    }
}

fn read_rejected(reader: &mut Reader<'_>) -> std::result::Result<Vec<(u64, u32)>, Malformed> {
    let count = reader.count(2)?;
    (0..count).map(|_| Ok((reader.varint()?, reader.varint_u32()?))).collect()
}

/// What is kept in memory of an applied seal; the rest is in the log.
#[derive(Clone, Copy, Debug)]
struct Applied {
    generation: u32,
    at: u64,
    len: usize,
}

/// Sealed digests by segment and generation.
pub(crate) type Sealed = BTreeMap<(u64, u32), Digest>;

/// The seals applied so far.
#[derive(Debug)]
pub(crate) struct SealLog {
    pub log: ChunkLog,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    applied: BTreeMap<u64, Applied>,
    /// What was sealed last of each generation, those included that others have left behind.
    sealed: Sealed,
    /// Applied and not compared with the own digest yet.
    uncompared: Vec<u64>,
    /// The own digest is not what was sealed.
    mismatched: BTreeSet<u64>,
    /// What a majority holds of segments whose seal says something else: the seal is to be corrected.
    settled: BTreeMap<u64, Settled>,
    /// Of another generation here than what may be sealed.
    rewritten: BTreeSet<u64>,
}

impl Inner {
    /// A seal is in the log at `at`.
    fn remember(&mut self, seal: &Seal, at: u64, len: usize) {
        let Seal { segment, generation, digest, .. } = *seal;
        self.applied.insert(segment, Applied { generation, at, len });
        self.sealed.insert((segment, generation), Digest(digest));
        self.uncompared.push(segment);
        // What a majority holds is sealed, and nobody has to be told.
        if self.settled.get(&segment).is_some_and(|settled| settled.is(generation, &Digest(digest))) {
            self.settled.remove(&segment);
        }
    }

    /// What was sealed last of this generation.
    fn sealed(&self, segment: u64, generation: u32) -> Option<Digest> {
        self.sealed.get(&(segment, generation)).copied()
    }
}

impl SealLog {
    /// Reads all seals of the log.
    pub(crate) fn open(log: ChunkLog) -> Result<Self> {
        let mut inner = Inner::default();
        let mut at = 0;
        while at < log.end() {
            let (seal, len) = read_record(&log, at)?;
            inner.remember(&seal, at, len);
            at += len as u64;
        }
        Ok(Self { log, inner: Mutex::new(inner) })
    }

    /// Takes a seal from the log. Ignored when the segment is not closed here at this log position (no honest leader
    /// proposes that), or when this generation is sealed already with this digest. Another digest of the same generation
    /// corrects the seal: a leader proposes that when a majority holds it.
    pub(crate) fn apply(&self, seal: Seal, trail: &mut Trail) {
        let mut inner = self.inner.lock();
        let known = inner.applied.get(&seal.segment);
        let newer = known.is_none_or(|known| match known.generation.cmp(&seal.generation) {
            Ordering::Less => true,
            Ordering::Equal => inner.sealed(seal.segment, seal.generation) != Some(Digest(seal.digest)),
            Ordering::Greater => false,
        });
        if seal.segment >= trail.segment || !newer {
            return;
        }
        let own = trail.closed.remove(&seal.segment);
        let mut content = Vec::new();
        seal.encode_into(&mut content);
        let (at, len) = self.log.append_record(&content);
        inner.remember(&seal, at, len);
        let same_content =
            own.is_none_or(|own| own.last_tx == seal.last_tx && own.alh.0 == seal.alh && own.rejected == seal.rejected);
        if !same_content {
            tracing::error!(seal.segment, "what was applied up to the end of a segment is not what its seal says");
        }
    }

    /// Compares seals applied since the last call with the digests that the ledger kept as it wrote. A segment whose last
    /// frames are not flushed here yet waits for the next call.
    pub(crate) fn compare(&self, ledger: &Ledger) -> Result<()> {
        let uncompared = std::mem::take(&mut self.inner.lock().uncompared);
        let mut rest = uncompared.into_iter();
        let compared = rest.try_for_each(|segment| self.compare_one(ledger, segment));
        // After an error the rest, and the one that failed, are tried again.
        self.inner.lock().uncompared.extend(rest);
        compared
    }

    fn compare_one(&self, ledger: &Ledger, segment: u64) -> Result<()> {
        let own = own_digest(ledger, segment);
        let mut inner = self.inner.lock();
        let Some(sealed) = inner.applied.get(&segment).copied() else { return Ok(()) };
        match own {
            Ok(None) => inner.uncompared.push(segment),
            // Written again already: compared with the seal of that generation, when it comes.
            Ok(Some((generation, _))) if generation > sealed.generation => {
                inner.mismatched.remove(&segment);
                inner.rewritten.insert(segment);
            }
            // Also while it is not written again yet: what was sealed of it before holds until then, for it could neither be read
            // nor written again were it another one.
            Ok(Some((generation, own))) if inner.agreed(segment, generation).is_some_and(|agreed| agreed.0 != own) => {
                tracing::error!(segment, "digest of an own segment is not the sealed one");
                inner.mismatched.insert(segment);
            }
            Ok(Some(_)) => {
                inner.mismatched.remove(&segment);
            }
            Err(error) => {
                inner.uncompared.push(segment);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether a seal of the segment is applied.
    pub(crate) fn is_sealed(&self, segment: u64) -> bool {
        self.inner.lock().applied.contains_key(&segment)
    }

    /// The segment has another generation than before; its digest is to be sealed and compared.
    pub(crate) fn rewritten(&self, segment: u64) {
        let mut inner = self.inner.lock();
        inner.rewritten.insert(segment);
        inner.uncompared.push(segment);
        // Of a generation that was left here.
        inner.settled.remove(&segment);
    }

    /// Segments of which a later generation is sealed than the one here, and which.
    pub(crate) fn ahead_of(&self, segments: &[SegmentInfo]) -> BTreeMap<u64, u32> {
        let inner = self.inner.lock();
        let own = |segment: &u64| segments.get(*segment as usize).map_or(0, |info| info.generation);
        let ahead = inner.applied.iter().filter(|(segment, applied)| own(segment) < applied.generation);
        ahead.map(|(segment, applied)| (*segment, applied.generation)).collect()
    }

    /// Seals to propose of segments that were written again here; what they say besides the digest is what was sealed before.
    fn pending_rewritten(&self, ledger: &Ledger) -> Result<Vec<Seal>> {
        let rewritten: Vec<u64> = self.inner.lock().rewritten.iter().copied().collect();
        let mut seals = Vec::new();
        for segment in rewritten {
            let (Some(sealed), Some((generation, digest))) = (self.get(segment)?, own_digest(ledger, segment)?) else {
                continue;
            };
            if generation > sealed.generation {
                seals.push(Seal { generation, digest, ..sealed });
            } else {
                self.inner.lock().rewritten.remove(&segment);
            }
        }
        Ok(seals)
    }

    pub(crate) fn health(&self) -> Health {
        match self.inner.lock().mismatched.first() {
            None => Health::Sound,
            Some(segment) => Health::SealMismatch { segment: *segment },
        }
    }

    /// Sealed generations and digests by segment.
    pub(crate) fn digests(&self) -> BTreeMap<u64, (u32, Digest)> {
        let inner = self.inner.lock();
        let last = inner.applied.iter().map(|(segment, applied)| (*segment, applied.generation));
        last.filter_map(|(segment, of)| Some((segment, (of, inner.sealed(segment, of)?)))).collect()
    }

    /// What was sealed last of each generation.
    fn into_sealed(self) -> Sealed {
        self.inner.into_inner().sealed
    }

    /// Reads the record at `at` again; answers where the next one stands, `None` at the end.
    pub(crate) fn check(&self, at: u64) -> Result<Option<u64>> {
        if at >= self.log.end() {
            return Ok(None);
        }
        let (_, len) = read_record(&self.log, at)?;
        Ok(Some(at + len as u64))
    }

    pub(crate) fn get(&self, segment: u64) -> Result<Option<Seal>> {
        let Some(applied) = self.inner.lock().applied.get(&segment).copied() else { return Ok(None) };
        let (seal, len) = read_record(&self.log, applied.at)?;
        debug_assert_eq!(len, applied.len);
        Ok(Some(seal))
    }
}

/// The digest that the ledger kept of a segment, and of which generation it is; `None` while not all of its frames are
/// flushed.
fn own_digest(ledger: &Ledger, segment: u64) -> Result<Option<(u32, [u8; 32])>> {
    let segments = ledger.segments();
    let flushed = ledger.flushed();
    let whole = (segments.iter().find(|info| info.number == segment))
        .is_some_and(|info| info.closed && Some(info.last_log_id) <= flushed);
    if whole {
        ledger.generation_and_digest(segment).map(|(generation, digest)| Some((generation, digest.0)))
    } else {
        Ok(None)
    }
}

/// What was sealed as of a checkpoint; nothing when the log of it is damaged too, which only takes a witness away.
pub(crate) fn sealed_at(vfs: &Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec, checkpoint: &Checkpoint) -> Result<Sealed> {
    let (chunk, len) = (checkpoint.sizes.chunk, checkpoint.sizes.seal);
    let log = ChunkLog::open_read_only(vfs, dir.join("seal"), LogKind::Seal, spec.id, chunk, len);
    match SealLog::open(log) {
        Ok(seals) => Ok(seals.into_sealed()),
        Err(error) if matches!(error, Error::Corrupted { .. }) || error.is_unreadable() => Ok(Sealed::new()),
        Err(error) => Err(error),
    }
}

/// See [`Database::pending_seals`].
pub(crate) fn pending(db: &Database) -> Result<Vec<Seal>> {
    let (core, unsealed) = {
        let applier = db.applier.lock();
        (db.core(), applier.state.trail.closed.values().cloned().collect::<Vec<_>>())
    };
    let mut seals = Vec::with_capacity(unsealed.len());
    for closed in unsealed {
        // Only sealed segments are written again.
        let Some((0, digest)) = own_digest(&core.ledger, closed.segment)? else { continue };
        let Closed { segment, last_tx, alh, rejected } = closed;
        seals.push(Seal { segment, generation: 0, digest, last_tx, alh: alh.0, rejected });
    }
    seals.extend(core.seals.pending_rewritten(&core.ledger)?);
    seals.extend(core.seals.corrections()?);
    Ok(seals)
}

/// The seal whose record stands at `at`, and the length of the record.
fn read_record(log: &ChunkLog, at: u64) -> Result<(Seal, usize)> {
    let (content, len) = log.read_record(at)?;
    let mut reader = Reader::new(&content);
    let seal = Seal::read(&mut reader).and_then(|seal| reader.finish().map(|()| seal));
    seal.map(|seal| (seal, len)).map_err(|Malformed| log.corrupted(at, Damage::Field))
}
