//! Construction of proofs from stored history. What comes out verifies, provided that the history is sound (V1).

use alloc::vec::Vec;

use super::{DualProof, DualProofV2, LinearAdvanceProof, LinearProof};
use crate::{
    aht::{self, NodeReader},
    digest::{Digest, ZERO},
    error::{FormatError, ProveError},
    header::TxHeader,
    ids::TxId,
};

/// Access to the headers of committed transactions.
pub trait HistoryReader {
    /// Why a read failed.
    type Error;

    /// Header of a transaction from 1 to the newest.
    fn header(&self, tx: TxId) -> Result<TxHeader, Self::Error>;

    /// Alh of a transaction. To be overridden where it is kept and need not be hashed again.
    fn alh(&self, tx: TxId) -> Result<Digest, ProveError<Self::Error>> {
        Ok(self.header(tx).map_err(ProveError::Read)?.alh()?)
    }
}

impl<R: HistoryReader + ?Sized> HistoryReader for &R {
    type Error = R::Error;

    fn header(&self, tx: TxId) -> Result<TxHeader, Self::Error> {
        (**self).header(tx)
    }

    fn alh(&self, tx: TxId) -> Result<Digest, ProveError<Self::Error>> {
        (**self).alh(tx)
    }
}

/// Builds the proof that `source` is history of `target`. Fails when `source` is the later one or has the larger tree.
///
/// `history` reads headers, `tree` the digests of the main tree. Without gaps in the headers this reads O(log n)
/// digests and no header.
pub fn build_dual<E>(
    source: &TxHeader,
    target: &TxHeader,
    history: &impl HistoryReader<Error = E>,
    tree: &impl NodeReader<Error = E>,
) -> Result<DualProof, ProveError<E>> {
    let (s, t) = ordered(source, target)?;
    let (source_tree, target_tree) = (source.bl_tx_id, target.bl_tx_id);
    if source_tree > target_tree {
        return Err(ProveError::OutOfRange { from: source_tree.get(), to: target_tree.get() });
    }
    // The headers at hand know the Alh of three transactions; others are read.
    let alh = |tx: TxId| match tx {
        _ if tx == t => Ok(target.alh()?),
        _ if tx.next() == Some(t) => Ok(target.prev_alh),
        _ if tx == s => Ok(source.alh()?),
        _ => history.alh(tx),
    };
    let inclusion = if s < target_tree { aht::prove_inclusion(s.get(), target_tree.get(), tree)? } else { Vec::new() };
    let consistency = if source_tree.get() > 0 {
        aht::prove_consistency(source_tree.get(), target_tree.get(), tree)?
    } else {
        Vec::new()
    };
    let (target_bl_tx_alh, last_inclusion) = if target_tree.get() > 0 {
        (alh(target_tree)?, aht::prove_inclusion(target_tree.get(), target_tree.get(), tree)?)
    } else {
        (ZERO, Vec::new())
    };
    let linear_from = s.max(target_tree);
    let linear_terms = linear_terms(linear_from, alh(linear_from)?, target, history)?;
    Ok(DualProof {
        source: source.clone(),
        target: target.clone(),
        inclusion,
        consistency,
        target_bl_tx_alh,
        last_inclusion,
        linear: LinearProof { source: linear_from, target: t, terms: linear_terms },
        linear_advance: build_linear_advance(source_tree, s.min(target_tree), target_tree, history, tree)?,
    })
}

/// Builds the compact proof. Fails as [`build_dual`], and when a header has a gap.
pub fn build_dual_v2<E>(
    source: &TxHeader,
    target: &TxHeader,
    tree: &impl NodeReader<Error = E>,
) -> Result<DualProofV2, ProveError<E>> {
    let (s, t) = ordered(source, target)?;
    if let Some(gap) = [source, target].into_iter().find(|header| !header.is_linked()) {
        return Err(ProveError::NotLinked { tx: gap.id });
    }
    let (inclusion, consistency) = if s == t {
        (Vec::new(), Vec::new())
    } else {
        let size = target.bl_tx_id.get();
        (aht::prove_inclusion(s.get(), size, tree)?, aht::prove_consistency(source.bl_tx_id.get().max(1), size, tree)?)
    };
    Ok(DualProofV2 { source: source.clone(), target: target.clone(), inclusion, consistency })
}

/// The part that shows transactions after `start` and before `end` as leaves of the tree of `size` transactions; `None`
/// when there are none.
fn build_linear_advance<E>(
    start: TxId,
    end: TxId,
    size: TxId,
    history: &impl HistoryReader<Error = E>,
    tree: &impl NodeReader<Error = E>,
) -> Result<Option<LinearAdvanceProof>, ProveError<E>> {
    let first = start.get() + 1;
    if end.get() <= first {
        return Ok(None);
    }
    let last = history.header(end).map_err(ProveError::Read)?;
    let linear_terms = linear_terms(TxId(first), history.alh(TxId(first))?, &last, history)?;
    let inclusions = (first..end.get()).map(|x| aht::prove_inclusion(x, size.get(), tree)).collect::<Result<_, _>>()?;
    Ok(Some(LinearAdvanceProof { linear_terms, inclusions }))
}

/// `alh_from` and the inner hashes of the transactions after `from` up to `target`.
fn linear_terms<E>(
    from: TxId,
    alh_from: Digest,
    target: &TxHeader,
    history: &impl HistoryReader<Error = E>,
) -> Result<Vec<Digest>, ProveError<E>> {
    let mut terms = alloc::vec![alh_from];
    for tx in (from.get()..target.id.get()).skip(1) {
        terms.push(history.header(TxId(tx)).map_err(ProveError::Read)?.inner_hash()?);
    }
    if from < target.id {
        terms.push(target.inner_hash()?);
    }
    Ok(terms)
}

/// The ids, when both headers are possible and `source` is not after `target`.
fn ordered<E>(source: &TxHeader, target: &TxHeader) -> Result<(TxId, TxId), ProveError<E>> {
    source.validate().and_then(|()| target.validate()).map_err(|e: FormatError| ProveError::Format(e))?;
    if source.id > target.id {
        return Err(ProveError::OutOfRange { from: source.id.get(), to: target.id.get() });
    }
    Ok((source.id, target.id))
}
