//! The walk from a leaf to the root, shared by both trees. Both have the shape of RFC 6962: a level pairs neighbours
//! and carries a last one without neighbour up unchanged.

use crate::digest::{Digest, node};

/// Root that an audit path leads to from leaf `index` (from 0) of a tree whose last leaf is `last`.
///
/// `None` when the path does not have exactly one digest per level at which the walk has a sibling, or `index > last`.
pub(crate) fn root(mut index: u64, mut last: u64, leaf: &Digest, path: &[Digest]) -> Option<Digest> {
    if index > last {
        return None;
    }
    let mut acc = *leaf;
    let mut siblings = path.iter();
    while last > 0 {
        if index % 2 == 1 {
            acc = node(siblings.next()?, &acc);
        } else if index < last {
            acc = node(&acc, siblings.next()?);
        }
        index /= 2;
        last /= 2;
    }
    siblings.next().is_none().then_some(acc)
}
