//! The main tree: append-only, leaf n is the Alh of transaction n, shape of RFC 6962. This module is arithmetic alone;
//! digests are read through [`NodeReader`] and written by the caller.
//!
//! Only perfect subtrees are kept, in the order in which they complete: appending leaf n completes one node per level
//! up to the number of trailing zero bits of n, and every other root or proof is folded from those when it is asked
//! for.
//!
//! ```text
//! level 2             6                  leaf      1  2     3  4
//! level 1        2         5             numbers   0  1,2   3  4,5,6
//! level 0     0    1    3    4    7      ...and leaf 5 is number 7; 2n - popcount(n) numbers after n leaves
//! leaf        1    2    3    4    5
//! ```
//!
//! Leaves are given as tree leaves, [`crate::digest::leaf`] of the Alh. Sizes are at most [`SIZE_MAX`].

use alloc::vec::Vec;

use crate::{
    digest::{self, Digest, ZERO, node},
    error::{ProveError, Step, VerifyError, require},
    path,
};

/// Most leaves for which node numbers fit a u64.
pub const SIZE_MAX: u64 = 1 << 62;

/// Access to the digests that [`append`] returned, kept one after the other.
pub trait NodeReader {
    /// Why a read failed.
    type Error;

    /// The digest with this number, from 0, in completion order.
    fn node(&self, number: u64) -> Result<Digest, Self::Error>;
}

impl<R: NodeReader + ?Sized> NodeReader for &R {
    type Error = R::Error;

    fn node(&self, number: u64) -> Result<Digest, Self::Error> {
        (**self).node(number)
    }
}

/// How many digests there are after `n` leaves: `2n - popcount(n)`.
///
/// # Panics
/// When `n` exceeds [`SIZE_MAX`]: no ledger gets there, so the number is corrupt.
pub fn node_count(n: u64) -> u64 {
    assert!(n <= SIZE_MAX, "tree of {n} leaves");
    2 * n - u64::from(n.count_ones())
}

/// Number of the `k`-th (from 0) perfect subtree with 2^`level` leaves.
///
/// # Panics
/// As [`node_count`], when the subtree ends after leaf [`SIZE_MAX`].
pub fn node_number(level: u32, k: u64) -> u64 {
    assert!(level <= 62 && k < SIZE_MAX >> level, "subtree {k} of level {level}");
    node_count(((k + 1) << level) - 1) + u64::from(level)
}

/// Digests to append, in order, when `leaf` follows `n_before` leaves: `1 + trailing_zeros(n_before + 1)` of them.
pub fn append<R: NodeReader>(n_before: u64, leaf: Digest, reader: &R) -> Result<Vec<Digest>, R::Error> {
    let mut out = alloc::vec![leaf];
    let mut acc = leaf;
    for level in 0..n_before.trailing_ones() {
        let left = reader.node(node_number(level, (n_before >> level) - 1))?;
        acc = node(&left, &acc);
        out.push(acc);
    }
    Ok(out)
}

/// As [`append`] for many leaves at once: the same digests, hashed level by level in batches.
pub fn append_all<R: NodeReader>(n_before: u64, leaves: &[Digest], reader: &R) -> Result<Vec<Digest>, R::Error> {
    let n_after = n_before + leaves.len() as u64;
    let first = node_count(n_before);
    let place = |level, k| usize::try_from(node_number(level, k) - first).expect("digests of this batch fit in memory");
    let total = usize::try_from(node_count(n_after) - first).expect("digests of this batch fit in memory");
    let mut out = alloc::vec![ZERO; total];
    let mut nodes = leaves.to_vec();
    let mut level = 0;
    // `nodes` are those of `level` which this batch completes, from number `n_before >> level` on.
    while !nodes.is_empty() {
        let from = n_before >> level;
        for (k, digest) in (from..).zip(&nodes) {
            out[place(level, k)] = *digest;
        }
        if from % 2 == 1 {
            nodes.insert(0, reader.node(node_number(level, from - 1))?);
        }
        nodes = digest::nodes(&nodes);
        level += 1;
    }
    Ok(out)
}

/// Root over the first `n` leaves; zero bytes when `n` is 0. Reads one digest per set bit of `n`.
///
/// # Panics
/// As [`node_count`].
pub fn root<R: NodeReader>(n: u64, reader: &R) -> Result<Digest, R::Error> {
    if n == 0 { Ok(ZERO) } else { range(0, n, reader) }
}

/// Audit path of leaf `i` in the tree of size `j`, from the leaf up. Needs `1 <= i <= j`.
pub fn prove_inclusion<R: NodeReader>(i: u64, j: u64, reader: &R) -> Result<Vec<Digest>, ProveError<R::Error>> {
    in_range(i, j)?;
    let (mut lo, mut hi) = (0, j);
    let mut terms = Vec::new();
    while hi - lo > 1 {
        let mid = lo + split(hi - lo);
        let sibling = if i <= mid { (mid, hi) } else { (lo, mid) };
        terms.push(range(sibling.0, sibling.1, reader).map_err(ProveError::Read)?);
        (lo, hi) = if i <= mid { (lo, mid) } else { (mid, hi) };
    }
    terms.reverse();
    Ok(terms)
}

/// Shows that the tree of size `i` is the beginning of the tree of size `j`. Needs `1 <= i <= j`.
///
/// Unlike in RFC 6962 the first term is always there: the largest perfect subtree that ends at leaf `i`. For `i = j >
/// 1` the terms are the two children of the root, right one first, as published clients and servers have it.
pub fn prove_consistency<R: NodeReader>(i: u64, j: u64, reader: &R) -> Result<Vec<Digest>, ProveError<R::Error>> {
    in_range(i, j)?;
    let read = |lo, hi| range(lo, hi, reader).map_err(ProveError::Read);
    if i == j {
        if j == 1 {
            return Ok(Vec::new());
        }
        let mid = split(j);
        return Ok(alloc::vec![read(mid, j)?, read(0, mid)?]);
    }
    let (mut lo, mut hi) = (0, j);
    let mut terms = Vec::new();
    while hi > i {
        let mid = lo + split(hi - lo);
        let sibling = if i <= mid { (mid, hi) } else { (lo, mid) };
        terms.push(read(sibling.0, sibling.1)?);
        (lo, hi) = if i <= mid { (lo, mid) } else { (mid, hi) };
    }
    terms.push(read(lo, hi)?);
    terms.reverse();
    Ok(terms)
}

/// Checks that `leaf` is leaf `i` of the tree of size `j` with this `root`. The path must have exactly its length.
pub fn verify_inclusion(path: &[Digest], i: u64, j: u64, leaf: &Digest, root: &Digest) -> Result<(), VerifyError> {
    require(1 <= i && i <= j, Step::Inclusion)?;
    require(path::root(i - 1, j - 1, leaf, path) == Some(*root), Step::Inclusion)
}

/// Checks that `leaf` is the last leaf of the tree of size `j` with this `root`.
pub fn verify_last_inclusion(path: &[Digest], j: u64, leaf: &Digest, root: &Digest) -> Result<(), VerifyError> {
    verify_inclusion(path, j, j, leaf, root).map_err(|_| VerifyError { step: Step::LastInclusion })
}

/// Checks that the tree of size `i` with `root_i` is the beginning of the tree of size `j` with `root_j`. The terms
/// must be exactly as many as the two sizes call for; for `i = j` both no terms and two are accepted.
pub fn verify_consistency(
    terms: &[Digest],
    i: u64,
    j: u64,
    root_i: &Digest,
    root_j: &Digest,
) -> Result<(), VerifyError> {
    let holds = match terms {
        _ if i == 0 || i > j => false,
        [] => i == j && root_i == root_j,
        [right, left] if i == j => j > 1 && root_i == root_j && node(left, right) == *root_j,
        _ if i == j => false,
        [anchor, rest @ ..] => consistency_roots(anchor, rest, i, j) == Some((*root_i, *root_j)),
    };
    require(holds, Step::Consistency)
}

/// Walks from the anchor to both roots at once; `i < j`.
fn consistency_roots(anchor: &Digest, siblings: &[Digest], i: u64, j: u64) -> Option<(Digest, Digest)> {
    let level = (i - 1).trailing_ones();
    let (mut index, mut last) = ((i - 1) >> level, (j - 1) >> level);
    let (mut old, mut new) = (*anchor, *anchor);
    let mut siblings = siblings.iter();
    while last > 0 {
        if index % 2 == 1 {
            let left = siblings.next()?;
            old = node(left, &old);
            new = node(left, &new);
        } else if index < last {
            new = node(&new, siblings.next()?);
        }
        index /= 2;
        last /= 2;
    }
    siblings.next().is_none().then_some((old, new))
}

/// Hash of leaves `lo + 1` to `hi`, where `lo` is a multiple of the smallest power of two that is not below the length.
fn range<R: NodeReader>(lo: u64, hi: u64, reader: &R) -> Result<Digest, R::Error> {
    let len = hi - lo;
    if len.is_power_of_two() {
        let level = len.trailing_zeros();
        return reader.node(node_number(level, lo >> level));
    }
    let mid = lo + split(len);
    Ok(node(&range(lo, mid, reader)?, &range(mid, hi, reader)?))
}

/// Largest power of two below `len`, which is at least 2.
fn split(len: u64) -> u64 {
    1 << (len - 1).ilog2()
}

fn in_range<E>(i: u64, j: u64) -> Result<(), ProveError<E>> {
    if 1 <= i && i <= j && j <= SIZE_MAX { Ok(()) } else { Err(ProveError::OutOfRange { from: i, to: j }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_run_without_gap_in_completion_order() {
        let mut expected = 0;
        for n in 1..=300u64 {
            for level in 0..=n.trailing_zeros() {
                assert_eq!(node_number(level, (n >> level) - 1), expected, "leaf {n} level {level}");
                expected += 1;
            }
            assert_eq!(node_count(n), expected);
        }
        assert_eq!(node_number(62, 0) + 1, node_count(SIZE_MAX));
    }

    #[test]
    #[should_panic(expected = "subtree 1 of level 62")]
    fn numbers_end_at_the_largest_tree() {
        node_number(62, 1);
    }

    #[test]
    fn huge_sizes_in_proofs_are_refused_not_overflown() {
        let d = ZERO;
        for (i, j) in [(0, 0), (0, 1), (2, 1), (u64::MAX, u64::MAX), (1, u64::MAX)] {
            assert!(verify_inclusion(&[], i, j, &d, &d).is_err(), "{i} {j}");
            assert!(verify_consistency(&[d], i, j, &d, &d).is_err(), "{i} {j}");
        }
        assert!(verify_last_inclusion(&[], 0, &d, &d).is_err());
    }

    #[test]
    fn a_tree_is_consistent_with_itself_only() {
        let leaves = [digest::sha256(b"1"), digest::sha256(b"2")];
        let (root, other) = (node(&leaves[0], &leaves[1]), node(&leaves[1], &leaves[0]));
        let terms = [leaves[1], leaves[0]];
        let refused = Err(VerifyError { step: Step::Consistency });
        for terms in [&[][..], &terms] {
            assert_eq!(verify_consistency(terms, 2, 2, &root, &root), Ok(()));
            assert_eq!(verify_consistency(terms, 2, 2, &other, &root), refused);
            assert_eq!(verify_consistency(terms, 2, 2, &root, &other), refused);
        }
        assert_eq!(verify_consistency(&terms, 1, 1, &root, &root), refused);
        assert_eq!(verify_consistency(&terms[..1], 2, 2, &root, &root), refused);
        assert_eq!(verify_consistency(&[], 1, 2, &root, &root), refused);
    }
}
