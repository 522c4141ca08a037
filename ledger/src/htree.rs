//! The Merkle tree over the entries of one transaction; its root is Eh (L4). Shape of RFC 6962, leaves in the order of
//! the entries, so that one entry can be proven with a handful of hashes.

use alloc::vec::Vec;

use crate::{
    digest::{self, Digest},
    error::{Step, VerifyError, require},
    path,
};

/// Shows that an entry digest stands at a place of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// Place of the entry, from 0.
    pub leaf: u32,
    /// Number of entries of the transaction.
    pub width: u32,
    /// Sibling hashes from the leaf up; levels without sibling have none.
    pub terms: Vec<Digest>,
}

/// Root of the tree over `digests`; SHA-256 of nothing when there are none.
pub fn root(digests: &[Digest]) -> Digest {
    let mut level = digest::leaves(digests);
    while level.len() > 1 {
        level = next_level(&level);
    }
    level.first().copied().unwrap_or(digest::EMPTY)
}

/// Proof of entry `leaf` (from 0) among `digests`; `None` when there is no such entry.
pub fn prove(digests: &[Digest], leaf: u32) -> Option<InclusionProof> {
    let width = u32::try_from(digests.len()).ok()?;
    if leaf >= width {
        return None;
    }
    let mut level = digest::leaves(digests);
    let mut index = usize::try_from(leaf).ok()?;
    let mut terms = Vec::new();
    while level.len() > 1 {
        terms.extend(level.get(index ^ 1));
        level = next_level(&level);
        index /= 2;
    }
    Some(InclusionProof { leaf, width, terms })
}

/// Checks that `digest` is entry `proof.leaf` of the `proof.width` entries below `eh`.
///
/// Whether the transaction has that many entries is told by its header: [`crate::proof::verify_entry`] compares.
pub fn verify(proof: &InclusionProof, digest: &Digest, eh: &Digest) -> Result<(), VerifyError> {
    let last = proof.width.checked_sub(1).ok_or(VerifyError { step: Step::EntryInclusion })?;
    let found = path::root(proof.leaf.into(), last.into(), &digest::leaf(digest), &proof.terms);
    require(found == Some(*eh), Step::EntryInclusion)
}

/// Pairs neighbours; a last one without neighbour goes up unchanged.
fn next_level(level: &[Digest]) -> Vec<Digest> {
    let mut next = digest::nodes(level);
    if level.len() % 2 == 1 {
        next.extend(level.last());
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{leaf, node, sha256};

    #[test]
    fn small_trees_by_hand() {
        let d: Vec<_> = (0..3u8).map(|n| sha256(&[n])).collect();
        assert_eq!(root(&[]), digest::EMPTY);
        assert_eq!(root(&d[..1]), leaf(&d[0]));
        assert_eq!(root(&d), node(&node(&leaf(&d[0]), &leaf(&d[1])), &leaf(&d[2])));
        assert_eq!(prove(&d, 3), None);
        assert_eq!(prove(&[], 0), None);
        let last = prove(&d, 2).unwrap();
        assert_eq!(last.terms, [node(&leaf(&d[0]), &leaf(&d[1]))]);
    }

    #[test]
    fn width_zero_and_leaf_outside_are_refused() {
        let d = sha256(b"x");
        for (leaf, width) in [(0, 0), (1, 1), (u32::MAX, 1)] {
            let proof = InclusionProof { leaf, width, terms: Vec::new() };
            assert_eq!(verify(&proof, &d, &digest::leaf(&d)), Err(VerifyError { step: Step::EntryInclusion }));
        }
    }
}
