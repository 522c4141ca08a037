//! The Merkle tree over the entries of one transaction; its root is Eh (L4). Shape of RFC 6962, leaves in the order of
//! the entries, so that one entry can be proven with a handful of hashes.

use alloc::vec::Vec;
use core::ops::Range;

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

/// As [`root`], and appends the levels that lie `every`, 2 `every`, ... above the leaves to `kept`, lowest first, without the
/// root: what a [`GroupProof`] needs besides a few leaves. `every` is at least 1.
pub fn root_keeping(digests: &[Digest], every: u32, kept: &mut Vec<Digest>) -> Digest {
    let mut level = digest::leaves(digests);
    let mut height = 0;
    while level.len() > 1 {
        level = next_level(&level);
        height += 1;
        if height % every == 0 && level.len() > 1 {
            kept.extend(&level);
        }
    }
    level.first().copied().unwrap_or(digest::EMPTY)
}

/// Number of nodes that [`root_keeping`] keeps of a tree of `width` leaves.
pub fn kept_len(width: u32, every: u32) -> usize {
    let mut level = u64::from(width).div_ceil(1 << every);
    let mut kept = 0;
    while level > 1 {
        kept += level;
        level = level.div_ceil(1 << every);
    }
    usize::try_from(kept).expect("fewer nodes than leaves")
}

/// Places of the leaves below the same kept node as leaf `leaf`, in a tree of `width` leaves.
pub fn kept_group(width: u32, leaf: u32, every: u32) -> Range<u32> {
    let first = leaf >> every << every;
    first..first.saturating_add(1 << every).min(width)
}

/// What proves each of the entries at one [`kept_group`]: the tree over them, and the way from it up to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupProof {
    width: u32,
    entries: Range<u32>,
    /// The leaves, then each level above them but for the group's own node.
    nodes: Vec<Digest>,
    /// Siblings on the way from the group's node to the root.
    above: Vec<Digest>,
}

impl GroupProof {
    /// From the digests of the entries at the [`kept_group`] of `leaf` and from what [`root_keeping`] kept: `kept` answers parts
    /// of that, at most 2^`every` nodes at a time. Cost does not depend on the width but for its logarithm. `leaf` is less than
    /// `width`. When what it is given is wrong, so are the proofs; [`verify`] one of them, and all are verified.
    pub fn new<E>(
        width: u32,
        leaf: u32,
        every: u32,
        group: &[Digest],
        mut kept: impl FnMut(Range<usize>) -> Result<Vec<Digest>, E>,
    ) -> Result<Self, E> {
        let place = |n: u32| usize::try_from(n).expect("a tree is in memory when it is made");
        let mut nodes = Vec::new();
        let mut level = digest::leaves(group);
        for _ in 0..every {
            nodes.extend_from_slice(&level);
            level = next_level(&level);
        }
        let (mut nodes_left, mut index) = (width.div_ceil(1 << every), leaf >> every);
        let mut kept_before = 0;
        let mut above = Vec::new();
        while nodes_left > 1 {
            let siblings = kept_group(nodes_left, index, every);
            let mut level = kept(kept_before + place(siblings.start)..kept_before + place(siblings.end))?;
            let mut within = place(index % (1 << every));
            for _ in 0..every {
                above.extend(level.get(within ^ 1));
                level = next_level(&level);
                within /= 2;
            }
            kept_before += place(nodes_left);
            (nodes_left, index) = (nodes_left.div_ceil(1 << every), index >> every);
        }
        // It is made to be kept.
        nodes.shrink_to_fit();
        above.shrink_to_fit();
        Ok(Self { width, entries: kept_group(width, leaf, every), nodes, above })
    }

    /// Places of the entries.
    pub fn entries(&self) -> Range<u32> {
        self.entries.clone()
    }

    /// Number of hashes that it consists of.
    pub fn hashes(&self) -> usize {
        self.nodes.len() + self.above.len()
    }

    fn within(&self, leaf: u32) -> Option<usize> {
        self.entries.contains(&leaf).then(|| (leaf - self.entries.start) as usize)
    }

    /// The leaf of an entry: [`digest::leaf`] of its digest. `None` when the group does not have the entry.
    pub fn leaf(&self, leaf: u32) -> Option<&Digest> {
        self.nodes.get(self.within(leaf)?)
    }

    /// The proof of an entry, as [`prove`] makes it. `None` when the group does not have the entry.
    pub fn prove(&self, leaf: u32) -> Option<InclusionProof> {
        let (mut within, mut len) = (self.within(leaf)?, self.entries.len());
        let mut terms = Vec::new();
        let mut rest = &self.nodes[..];
        while let Some((level, higher)) = rest.split_at_checked(len).filter(|(level, _)| !level.is_empty()) {
            terms.extend(level.get(within ^ 1));
            (within, len, rest) = (within / 2, len.div_ceil(2), higher);
        }
        terms.extend_from_slice(&self.above);
        Some(InclusionProof { leaf, width: self.width, terms })
    }
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
    fn proofs_from_kept_levels_equal_those_from_all_leaves() {
        let all: Vec<_> = (0..300u32).map(|n| sha256(&n.to_be_bytes())).collect();
        for every in [1, 2, 4] {
            for width in (1..40).chain([63, 64, 65, 255, 256, 257, 272, 273, 300]) {
                let digests = &all[..width];
                let mut kept = Vec::new();
                assert_eq!(root_keeping(digests, every, &mut kept), root(digests));
                let count = u32::try_from(width).unwrap();
                let proofs: Vec<_> = (0..=count).map(|n| prove(digests, n)).collect();
                assert_eq!(kept.len(), kept_len(count, every), "{width} leaves");
                for leaf in 0..count {
                    let group = kept_group(count, leaf, every);
                    let group = &digests[group.start as usize..group.end as usize];
                    let read = |range: Range<usize>| {
                        assert!(range.len() <= 1 << every);
                        kept.get(range).map(<[Digest]>::to_vec).ok_or(())
                    };
                    let proof = GroupProof::new(count, leaf, every, group, read).unwrap();
                    for n in 0..=count {
                        let is_in = kept_group(count, leaf, every).contains(&n);
                        let of_all = proofs[n as usize].clone().filter(|_| is_in);
                        assert_eq!(proof.prove(n), of_all, "leaf {n} of {width} in the group of {leaf}, every {every}");
                        let digest = is_in.then(|| digest::leaf(&digests[n as usize]));
                        assert_eq!(
                            proof.leaf(n),
                            digest.as_ref(),
                            "leaf {n} of {width} in the group of {leaf}, every {every}"
                        );
                    }
                }
            }
        }
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
