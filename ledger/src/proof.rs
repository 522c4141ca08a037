//! Proofs between two transactions: that the source is history of the target. Types and verification here, construction
//! in [`build`]. Every `verify_*` returns the first [`Step`] that failed, never a bool.
//!
//! A dual proof joins two structures. Trees show in O(log n) hashes that the source's Alh is a leaf of the target's
//! main tree and that the source's own main tree is its beginning; the linear chain covers the few transactions that a
//! tree does not cover yet:
//!
//! ```text
//! tx        1 ...... b ........ s ........ B ........ t
//! tree of s [========]                      |          b = BlTxID of the source header
//! tree of t [===============================]          B = BlTxID of the target header
//! linear                                    [-------->]    from max(s, B), usually one step
//! advance            [-------->]                           from b to min(s, B): accepted linearly once, now leaves
//! ```
//!
//! Without the advance part, a server could show one transaction between b and s in the chain and another in the tree.
//! Headers with `bl_tx_id = id - 1` (L3) leave no room for that and the part is absent.
//!
//! Verification is strict: a part that is not called for must be absent, every list has exactly its length.

use alloc::vec::Vec;

use crate::{
    aht,
    digest::{self, Digest, ZERO},
    error::{Step, VerifyError, require},
    header::{TxHeader, chain},
    htree::{self, InclusionProof},
    ids::TxId,
    plant,
};

pub mod build;

pub use build::{HistoryReader, build_dual, build_dual_v2};

/// The chain of hashes from one transaction to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearProof {
    /// Where the chain starts.
    pub source: TxId,
    /// Where it ends; not before `source`.
    pub target: TxId,
    /// Alh of the source, then the inner hash of each later transaction up to the target.
    pub terms: Vec<Digest>,
}

/// Shows that transactions which were linked linearly are the leaves of a later tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearAdvanceProof {
    /// Alh of the first transaction after the start, then the inner hash of each later one up to the end.
    pub linear_terms: Vec<Digest>,
    /// For each of these transactions but the last its audit path in the tree.
    pub inclusions: Vec<Vec<Digest>>,
}

/// Shows that `source` is history of `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DualProof {
    /// Header of the earlier transaction.
    pub source: TxHeader,
    /// Header of the later transaction; the two may be the same.
    pub target: TxHeader,
    /// Audit path of the source in the target's tree; empty when the tree does not reach it.
    pub inclusion: Vec<Digest>,
    /// From the source's tree to the target's; empty when the source has none.
    pub consistency: Vec<Digest>,
    /// Alh of the last transaction in the target's tree; zero bytes when there is no tree.
    pub target_bl_tx_alh: Digest,
    /// Audit path of that transaction; empty when there is no tree.
    pub last_inclusion: Vec<Digest>,
    /// From the source, or the last transaction in the target's tree if later, to the target.
    pub linear: LinearProof,
    /// Only when transactions lie strictly between the source's tree and the source.
    pub linear_advance: Option<LinearAdvanceProof>,
}

/// The compact form of [`DualProof`] for headers without gap: the trees alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DualProofV2 {
    /// Header of the earlier transaction.
    pub source: TxHeader,
    /// Header of the later transaction; the two may be the same.
    pub target: TxHeader,
    /// Audit path of the source in the target's tree; empty when source and target are the same.
    pub inclusion: Vec<Digest>,
    /// From the source's tree (of the source itself, when it is the first) to the target's; empty when they are the
    /// same.
    pub consistency: Vec<Digest>,
}

/// Checks that entry `digest` is in the transaction of `header`, at the place that the proof names.
///
/// Besides the path this compares the width with the header, which the hashes alone do not.
pub fn verify_entry(proof: &InclusionProof, digest: &Digest, header: &TxHeader) -> Result<(), VerifyError> {
    require(proof.width == header.nentries, Step::EntryCount)?;
    htree::verify(proof, digest, &header.eh)
}

/// Checks that `digests` are all entries of the transaction of `header`, in order (L4).
pub fn verify_entries(digests: &[Digest], header: &TxHeader) -> Result<(), VerifyError> {
    require(u32::try_from(digests.len()) == Ok(header.nentries), Step::EntryCount)?;
    require(htree::root(digests) == header.eh, Step::Entries)
}

/// Checks the chain from (`s`, `alh_s`) to (`t`, `alh_t`).
pub fn verify_linear(proof: &LinearProof, s: TxId, t: TxId, alh_s: &Digest, alh_t: &Digest) -> Result<(), VerifyError> {
    const STEP: Step = Step::Linear;
    require(proof.source == s && proof.target == t && s.get() >= 1, STEP)?;
    let steps = t.get().checked_sub(s.get()).ok_or(VerifyError { step: STEP })?;
    let (first, inner_hashes) = proof.terms.split_first().ok_or(VerifyError { step: STEP })?;
    require(inner_hashes.len() as u64 == steps && first == alh_s, STEP)?;
    let end = inner_hashes.iter().zip(1..).fold(*first, |alh, (inner, n)| chain(TxId(s.get() + n), &alh, inner));
    require(end == *alh_t, STEP)
}

/// Checks that the transactions between `start` and `end`, chained up to `alh_end`, are leaves of the tree of `size`
/// transactions with this `root`. When there are none in between, no proof must be there.
pub fn verify_linear_advance(
    proof: Option<&LinearAdvanceProof>,
    start: TxId,
    end: TxId,
    alh_end: &Digest,
    root: &Digest,
    size: TxId,
) -> Result<(), VerifyError> {
    const REFUSED: VerifyError = VerifyError { step: Step::LinearAdvance };
    let steps = end.get().checked_sub(start.get()).ok_or(REFUSED)?;
    if steps <= 1 {
        return require(proof.is_none(), Step::LinearAdvance);
    }
    let proof = proof.ok_or(REFUSED)?;
    let (first, inner_hashes) = proof.linear_terms.split_first().ok_or(REFUSED)?;
    require(inner_hashes.len() as u64 == steps - 1 && proof.inclusions.len() == inner_hashes.len(), REFUSED.step)?;
    let mut alh = *first;
    for ((inner, path), n) in inner_hashes.iter().zip(&proof.inclusions).zip(1..) {
        let id = start.get() + n;
        aht::verify_inclusion(path, id, size.get(), &digest::leaf(&alh), root).map_err(|_| REFUSED)?;
        alh = chain(TxId(id + 1), &alh, inner);
    }
    require(alh == *alh_end, REFUSED.step)
}

/// Checks that transaction `s` with `alh_s` is history of transaction `t` with `alh_t`.
///
/// The Alhs are those that the caller knows or has recomputed, not taken from the proof. On success both headers of the
/// proof are those of the two transactions.
pub fn verify_dual(proof: &DualProof, s: TxId, t: TxId, alh_s: &Digest, alh_t: &Digest) -> Result<(), VerifyError> {
    verify_ends(&proof.source, &proof.target, s, t, alh_s, alh_t)?;
    let (source, target) = (&proof.source, &proof.target);
    let (source_tree, target_tree) = (source.bl_tx_id, target.bl_tx_id);
    let source_in_tree = s < target_tree;

    if source_in_tree {
        let leaf = digest::leaf(alh_s);
        aht::verify_inclusion(&proof.inclusion, s.get(), target_tree.get(), &leaf, &target.bl_root)?;
    } else {
        require(proof.inclusion.is_empty(), Step::Inclusion)?;
    }

    if plant::is_any_consistency_accepted() {
        // A bug, for tests.
    } else if source_tree.get() > 0 {
        let (i, j) = (source_tree.get(), target_tree.get());
        aht::verify_consistency(&proof.consistency, i, j, &source.bl_root, &target.bl_root)?;
    } else {
        require(proof.consistency.is_empty(), Step::Consistency)?;
    }

    if target_tree.get() > 0 {
        let leaf = digest::leaf(&proof.target_bl_tx_alh);
        aht::verify_last_inclusion(&proof.last_inclusion, target_tree.get(), &leaf, &target.bl_root)?;
    } else {
        let absent = proof.last_inclusion.is_empty() && proof.target_bl_tx_alh == ZERO;
        require(absent, Step::LastInclusion)?;
    }

    let (linear_from, linear_alh) = if source_in_tree { (target_tree, &proof.target_bl_tx_alh) } else { (s, alh_s) };
    verify_linear(&proof.linear, linear_from, t, linear_alh, alh_t)?;

    let (end, alh_end) = if source_in_tree { (s, alh_s) } else { (target_tree, &proof.target_bl_tx_alh) };
    verify_linear_advance(proof.linear_advance.as_ref(), source_tree, end, alh_end, &target.bl_root, target_tree)
}

/// As [`verify_dual`] for the compact form, which demands headers without gap.
pub fn verify_dual_v2(
    proof: &DualProofV2,
    s: TxId,
    t: TxId,
    alh_s: &Digest,
    alh_t: &Digest,
) -> Result<(), VerifyError> {
    verify_ends(&proof.source, &proof.target, s, t, alh_s, alh_t)?;
    let (source, target) = (&proof.source, &proof.target);
    require(source.is_linked() && target.is_linked(), Step::Linking)?;
    if s == t {
        require(proof.inclusion.is_empty(), Step::Inclusion)?;
        return require(proof.consistency.is_empty(), Step::Consistency);
    }
    let size = target.bl_tx_id.get();
    let leaf = digest::leaf(alh_s);
    aht::verify_inclusion(&proof.inclusion, s.get(), size, &leaf, &target.bl_root)?;
    // The first transaction has no tree before it; the tree of that transaction alone takes its place.
    let (old_size, old_root) = if s.get() == 1 { (1, &leaf) } else { (source.bl_tx_id.get(), &source.bl_root) };
    aht::verify_consistency(&proof.consistency, old_size, size, old_root, &target.bl_root)
}

/// The headers are those of `s` and `t`, and these are in order.
fn verify_ends(
    source: &TxHeader,
    target: &TxHeader,
    s: TxId,
    t: TxId,
    alh_s: &Digest,
    alh_t: &Digest,
) -> Result<(), VerifyError> {
    require(source.id == s, Step::SourceId)?;
    require(target.id == t, Step::TargetId)?;
    require(1 <= s.get() && s <= t, Step::Order)?;
    require(source.validate().is_ok(), Step::SourceHeader)?;
    require(target.validate().is_ok(), Step::TargetHeader)?;
    require(source.alh().as_ref() == Ok(alh_s), Step::SourceAlh)?;
    require(target.alh().as_ref() == Ok(alh_t), Step::TargetAlh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::EMPTY, header::TxMetadata};

    /// Ids come from whoever answers; the largest must not overflow anything on the way to the verdict.
    #[test]
    fn largest_ids_are_judged_like_others() {
        let (max, before) = (TxId(u64::MAX), TxId(u64::MAX - 1));
        let header = TxHeader {
            id: max,
            ts: 0,
            version: 1,
            metadata: TxMetadata::default(),
            nentries: 1,
            eh: EMPTY,
            bl_tx_id: TxId(0),
            bl_root: ZERO,
            prev_alh: EMPTY,
        };
        let alh = header.alh().expect("version 1 without metadata");
        let mut linear = LinearProof { source: max, target: max, terms: alloc::vec![alh] };
        assert_eq!(verify_linear(&linear, max, max, &alh, &alh), Ok(()));
        let proof = DualProof {
            source: header.clone(),
            target: header.clone(),
            inclusion: Vec::new(),
            consistency: Vec::new(),
            target_bl_tx_alh: ZERO,
            last_inclusion: Vec::new(),
            linear: linear.clone(),
            linear_advance: None,
        };
        assert_eq!(verify_dual(&proof, max, max, &alh, &alh), Ok(()));
        linear = LinearProof {
            source: before,
            target: max,
            terms: alloc::vec![header.prev_alh, header.inner_hash().expect("version 1 without metadata")],
        };
        assert_eq!(verify_linear(&linear, before, max, &header.prev_alh, &alh), Ok(()));
        let advance = LinearAdvanceProof { linear_terms: alloc::vec![alh; 2], inclusions: alloc::vec![Vec::new()] };
        let start = TxId(u64::MAX - 2);
        let got = verify_linear_advance(Some(&advance), start, max, &alh, &alh, max);
        assert_eq!(got, Err(VerifyError { step: Step::LinearAdvance }));
    }
}
