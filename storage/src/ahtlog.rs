//! `aht/`: the inner nodes of perfect subtrees of the main tree, 32 bytes each, in the order in which they complete.
//!
//! Leaves are not kept: leaf n is one hash away from the Alh of transaction n, which the tx log has. After n leaves there
//! are n - popcount(n) inner nodes, so the log costs less than 32 bytes per transaction. The arithmetic is
//! `alhambra_ledger::aht`'s, whose numbers count the leaves too; [`locate`] translates.

use alhambra_ledger::aht::{self, NodeReader};
use alhambra_ledger::digest::{self, Digest};
use alhambra_ledger::ids::TxId;

use crate::chunklog::ChunkLog;
use crate::error::{Error, Result};
use crate::format::derived::DIGEST_BYTES;

/// Inner nodes of perfect subtrees after `n` leaves.
pub(crate) const fn inner_count(n: u64) -> u64 {
    n - n.count_ones() as u64
}

/// The node with this number completes with leaf `before + 1`, at this level.
fn locate(number: u64) -> (u64, u32) {
    // node_count(m) = 2m - popcount(m), so m is at least half the number and at most 32 more.
    let mut before = number / 2;
    while aht::node_count(before + 1) <= number {
        before += 1;
    }
    let level = number - aht::node_count(before);
    (before, u32::try_from(level).expect("a leaf completes at most 64 nodes"))
}

/// Answers node reads from the log; leaves through `alh`.
pub(crate) struct StoredNodes<'a, F> {
    pub log: &'a ChunkLog,
    pub alh: F,
}

impl<F: Fn(TxId) -> Result<Digest>> NodeReader for StoredNodes<'_, F> {
    type Error = Error;

    fn node(&self, number: u64) -> Result<Digest> {
        let (before, level) = locate(number);
        if level == 0 {
            return Ok(digest::leaf(&(self.alh)(TxId(before + 1))?));
        }
        let mut node = Digest([0; 32]);
        self.log.read_into((inner_count(before) + u64::from(level) - 1) * DIGEST_BYTES, &mut node.0)?;
        Ok(node)
    }
}

/// The peaks of the tree: all that is needed to append to it and to know its root, 32 bytes per set bit of its size.
#[derive(Clone, Debug)]
pub(crate) struct Frontier {
    size: u64,
    /// The peak of level l where bit l of `size` is set; stale elsewhere.
    peaks: [Digest; 64],
}

impl NodeReader for Frontier {
    type Error = std::convert::Infallible;

    fn node(&self, number: u64) -> std::result::Result<Digest, Self::Error> {
        let (before, level) = locate(number);
        debug_assert!(self.size >> level & 1 == 1, "appending and the root read nothing but peaks");
        debug_assert!(before < self.size);
        Ok(self.peaks[level as usize])
    }
}

impl Frontier {
    /// Of the empty tree.
    pub(crate) fn empty() -> Self {
        Self { size: 0, peaks: [digest::ZERO; 64] }
    }

    /// Reads the peaks of the tree of `size` leaves.
    pub(crate) fn load(size: u64, nodes: &impl NodeReader<Error = Error>) -> Result<Self> {
        let mut frontier = Self { size, ..Self::empty() };
        for level in (0..64).filter(|level| size >> level & 1 == 1) {
            frontier.peaks[level as usize] = nodes.node(aht::node_number(level, (size >> level) - 1))?;
        }
        Ok(frontier)
    }

    /// Root over all leaves; zero bytes when there are none.
    pub(crate) fn root(&self) -> Digest {
        let Ok(root) = aht::root(self.size, self);
        root
    }

    /// Adds the leaf of `alh` and appends to `out` the inner nodes that this completes.
    pub(crate) fn append(&mut self, alh: &Digest, out: &mut Vec<u8>) {
        let Ok(completed) = aht::append(self.size, digest::leaf(alh), self);
        for node in &completed[1..] {
            out.extend_from_slice(&node.0);
        }
        self.peaks[completed.len() - 1] = completed[completed.len() - 1];
        self.size += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_located() {
        let mut number = 0;
        let mut inner = 0;
        for before in 0..5000u64 {
            for level in 0..=before.trailing_ones() {
                assert_eq!(locate(number), (before, level));
                if level > 0 {
                    assert_eq!(inner, inner_count(before) + u64::from(level) - 1);
                    inner += 1;
                }
                number += 1;
            }
        }
        assert_eq!(locate(aht::node_count(1 << 40)), (1 << 40, 0));
    }
}
