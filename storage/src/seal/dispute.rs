//! Seals that a majority does not agree with. Who proposes a seal may have rotted before it hashed, so a replica that differs
//! keeps its bytes until somebody has asked all replicas. When a majority holds another digest than the seal, that digest
//! is what counts here from then on, and a leader that knows it proposes a corrected seal.

use std::collections::BTreeMap;

use alhambra_ledger::Digest;

use super::{Inner, SealLog, read_record};
use crate::command::Seal;
use crate::error::{Error, Result};

/// A closed segment as somebody holds it: there may be several, of which the later ones have lost more values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentVersion {
    /// 0 as written; else the number of the newest prune of which it has lost a value.
    pub generation: u32,
    /// SHA-256 of what stands behind the header of its file.
    pub digest: Digest,
}

/// What a majority holds of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    /// Another generation is another matter.
    pub(super) generation: u32,
    digest: Digest,
}

/// The digests that count of all generations of which one is known, by segment and generation. Made from the whole log of
/// seals, for whoever asks about many segments; not kept.
#[derive(Debug, Default)]
pub(crate) struct Known {
    digests: BTreeMap<(u64, u32), Digest>,
    /// The log could not be read to its end.
    pub(super) is_partial: bool,
}

impl Known {
    pub(crate) fn get(&self, segment: u64, generation: u32) -> Option<Digest> {
        self.digests.get(&(segment, generation)).copied()
    }

    /// A majority holds this version, whatever its seal says.
    pub(crate) fn settle(&mut self, segment: u64, version: SegmentVersion) {
        self.digests.insert((segment, version.generation), version.digest);
    }
}

impl Inner {
    /// The digest that counts of a generation, as far as memory tells: what a majority holds, else what was sealed last.
    pub(super) fn agreed(&self, segment: u64, generation: u32) -> Option<Digest> {
        let settled = self.settled.get(&segment).filter(|settled| settled.generation == generation);
        let applied = self.applied.get(&segment).filter(|applied| applied.generation == generation);
        settled.map(|settled| settled.digest).or(applied.map(|applied| applied.digest))
    }
}

impl SealLog {
    /// The digest that counts of a segment in this generation, also when a later one is sealed: that is no licence to be another
    /// one until it is reached. `None` when the generation was never sealed, or its seal cannot be read, which only takes a
    /// witness away: the log says itself that it is damaged.
    ///
    /// # Errors
    /// IO.
    pub(crate) fn digest(&self, segment: u64, generation: u32) -> Result<Option<Digest>> {
        if let Some(digest) = self.inner.lock().agreed(segment, generation) {
            return Ok(Some(digest));
        }
        match self.sealed_as(segment, generation) {
            Err(error) if matches!(error, Error::Corrupted { .. }) || error.is_unreadable() => Ok(None),
            sealed => sealed,
        }
    }

    /// The same for whoever asks about many segments, and has asked for what was sealed [before](Self::known_before).
    pub(crate) fn digest_known(&self, segment: u64, generation: u32, before: &Known) -> Option<Digest> {
        self.inner.lock().agreed(segment, generation).or_else(|| before.get(segment, generation))
    }

    /// The same of all segments and generations. When the log cannot be read all of it is that of what was sealed last.
    ///
    /// # Errors
    /// IO.
    pub(crate) fn known(&self) -> Result<Known> {
        let mut known = Known::default();
        let mut at = 0;
        while at < self.log.end() {
            match read_record(&self.log, at) {
                Ok((seal, len)) => {
                    known.digests.insert((seal.segment, seal.generation), Digest(seal.digest));
                    at += len as u64;
                }
                Err(error) if matches!(error, Error::Corrupted { .. }) || error.is_unreadable() => {
                    known.is_partial = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let inner = self.inner.lock();
        for (segment, applied) in &inner.applied {
            known.digests.insert((*segment, applied.generation), applied.digest);
        }
        for (segment, settled) in &inner.settled {
            known.digests.insert((*segment, settled.generation), settled.digest);
        }
        Ok(known)
    }

    /// Segments of which the own digest is known not to be the one that counts.
    pub(crate) fn mismatched(&self) -> Vec<u64> {
        self.inner.lock().mismatched.iter().copied().collect()
    }

    /// A majority holds this version. Nothing happens when the segment is not sealed. What is sealed of another generation
    /// is not touched by that: a later one is sealed as any that was written again, an earlier one never more.
    pub(crate) fn settle(&self, segment: u64, version: SegmentVersion) {
        let mut inner = self.inner.lock();
        let Some(applied) = inner.applied.get(&segment).copied() else { return };
        let SegmentVersion { generation, digest } = version;
        let is_sealed_so = applied.generation == generation && applied.digest == digest;
        if applied.generation >= generation && !is_sealed_so {
            inner.settled.insert(segment, Settled { generation, digest });
        } else {
            inner.settled.remove(&segment);
        }
        // Compared with the own digest once more.
        inner.uncompared.push(segment);
    }

    /// Seals to propose in the place of those with which a majority does not agree; what they say besides the digest is what
    /// was sealed before.
    pub(super) fn corrections(&self) -> Result<Vec<Seal>> {
        let settled: Vec<u64> = self.inner.lock().settled.keys().copied().collect();
        let mut seals = Vec::new();
        for segment in settled {
            let Some(sealed) = self.get(segment)? else { continue };
            let mut inner = self.inner.lock();
            let Some(settled) = inner.settled.get(&segment).copied() else { continue };
            // What a majority holds of an earlier generation counts here until that is reached; nobody seals it any more.
            if settled.generation < sealed.generation {
                continue;
            }
            if settled.generation == sealed.generation && settled.digest.0 != sealed.digest {
                seals.push(Seal { digest: settled.digest.0, ..sealed });
            } else {
                inner.settled.remove(&segment);
            }
        }
        Ok(seals)
    }
}
