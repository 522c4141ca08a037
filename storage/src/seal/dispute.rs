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
    /// Another generation is another matter.
    generation: u32,
    digest: Digest,
}

impl Settled {
    pub(super) fn is(&self, generation: u32, digest: &Digest) -> bool {
        self.generation == generation && self.digest == *digest
    }
}

impl Inner {
    /// The digest that counts of a generation, also when a later one is sealed: what a majority holds, else what was sealed
    /// last; `None` when it never was.
    pub(super) fn agreed(&self, segment: u64, generation: u32) -> Option<Digest> {
        let sealed = self.sealed(segment, generation)?;
        let settled = self.settled.get(&segment).filter(|settled| settled.generation == generation);
        Some(settled.map_or(sealed, |settled| settled.digest))
    }
}

impl SealLog {
    /// The digest that counts of a segment in this generation, also when a later one is sealed: until that is reached it is no
    /// licence to be another one. `None` when this one never was sealed.
    pub(crate) fn digest(&self, segment: u64, generation: u32) -> Option<Digest> {
        self.inner.lock().agreed(segment, generation)
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
        if generation <= applied.generation && inner.sealed(segment, generation) != Some(digest) {
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
        // What a majority holds of an earlier generation counts here until that is left; nobody seals it any more.
        let due: Vec<(u64, Settled)> = {
            let inner = self.inner.lock();
            let generation = |segment| inner.applied.get(segment).map(|applied| applied.generation);
            let due = inner.settled.iter().filter(|(segment, settled)| generation(segment) == Some(settled.generation));
            due.map(|(segment, settled)| (*segment, *settled)).collect()
        };
        let mut seals = Vec::new();
        for (segment, Settled { generation, digest }) in due {
            if let Some(sealed) = self.get(segment)?.filter(|sealed| sealed.generation == generation) {
                seals.push(Seal { digest: digest.0, ..sealed });
            }
        }
        Ok(seals)
    }
}
