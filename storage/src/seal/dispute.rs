//! Seals that a majority does not agree with. Who proposes a seal may have rotted before it hashed, so a replica that differs
//! keeps its bytes until somebody has asked all replicas. When a majority holds another digest than the seal, that digest
//! is what counts here from then on, and a leader that knows it proposes a corrected seal.

use alhambra_ledger::Digest;

use super::{Inner, SealLog};
use crate::command::Seal;
use crate::error::Result;

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
    /// A later generation is another matter.
    generation: u32,
    digest: Digest,
}

impl Inner {
    /// The digest that counts of a generation: what a majority holds, else what is sealed; `None` when another generation
    /// is sealed.
    pub(super) fn agreed(&self, segment: u64, generation: u32) -> Option<Digest> {
        let applied = self.applied.get(&segment).filter(|applied| applied.generation == generation)?;
        let settled = self.settled.get(&segment).filter(|settled| settled.generation == generation);
        Some(settled.map_or(applied.digest, |settled| settled.digest))
    }
}

impl SealLog {
    /// The digest that counts of a segment in this generation; `None` when that is not the one that was sealed last.
    pub(crate) fn digest(&self, segment: u64, generation: u32) -> Option<Digest> {
        self.inner.lock().agreed(segment, generation)
    }

    /// Segments of which the own digest is known not to be the one that counts.
    pub(crate) fn mismatched(&self) -> Vec<u64> {
        self.inner.lock().mismatched.iter().copied().collect()
    }

    /// A majority holds this version. Nothing happens when the segment is not sealed. What is sealed of another generation
    /// is not touched by that: a later one is sealed as any that was written again.
    pub(crate) fn settle(&self, segment: u64, version: SegmentVersion) {
        let mut inner = self.inner.lock();
        let Some(applied) = inner.applied.get(&segment).copied() else { return };
        let SegmentVersion { generation, digest } = version;
        if applied.generation == generation && applied.digest != digest {
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
            match self.digest(segment, sealed.generation) {
                Some(agreed) if sealed.digest != agreed.0 => seals.push(Seal { digest: agreed.0, ..sealed }),
                _ => {
                    self.inner.lock().settled.remove(&segment);
                }
            }
        }
        Ok(seals)
    }
}
