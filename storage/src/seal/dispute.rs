//! Seals that a majority does not agree with. Who proposes a seal may have rotted before it hashed, so a replica that differs
//! keeps its bytes until somebody has asked all replicas. When a majority holds another digest than the seal, that digest
//! is what counts here from then on, and a leader that knows it proposes a corrected seal.

use alhambra_ledger::Digest;

use super::{Inner, SealLog};
use crate::command::Seal;
use crate::error::Result;

/// What a majority holds of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    /// A later generation is another matter.
    generation: u32,
    digest: Digest,
}

impl Inner {
    /// The digest that counts: what a majority holds, else what is sealed.
    pub(super) fn agreed(&self, segment: u64) -> Option<Digest> {
        let applied = self.applied.get(&segment)?;
        let settled = self.settled.get(&segment).filter(|settled| settled.generation == applied.generation);
        Some(settled.map_or(applied.digest, |settled| settled.digest))
    }
}

impl SealLog {
    /// The digest that counts of a segment; `None` when it is not sealed.
    pub(crate) fn digest(&self, segment: u64) -> Option<Digest> {
        self.inner.lock().agreed(segment)
    }

    /// Segments of which the own digest is known not to be the one that counts.
    pub(crate) fn mismatched(&self) -> Vec<u64> {
        self.inner.lock().mismatched.iter().copied().collect()
    }

    /// A majority holds `digest`. Nothing happens when the segment is not sealed.
    pub(crate) fn settle(&self, segment: u64, digest: Digest) {
        let mut inner = self.inner.lock();
        let Some(applied) = inner.applied.get(&segment).copied() else { return };
        if applied.digest == digest {
            inner.settled.remove(&segment);
        } else {
            inner.settled.insert(segment, Settled { generation: applied.generation, digest });
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
            if let (Some(sealed), Some(agreed)) = (self.get(segment)?, self.digest(segment)) {
                if sealed.digest == agreed.0 {
                    self.inner.lock().settled.remove(&segment);
                } else {
                    seals.push(Seal { digest: agreed.0, ..sealed });
                }
            }
        }
        Ok(seals)
    }
}
