//! Both trees, entries and headers against the model. Small sizes are enumerated, larger ones sampled.

use alhambra_ledger::{
    Digest, aht,
    digest::{self, leaf, sha256},
    entry::{KvMetadata, entry_digest},
    header::{TxHeader, TxMetadata},
    htree,
    ids::TxId,
};
use proptest::prelude::*;

use crate::{
    history::Tree,
    model::{self, Hash},
};

fn payloads(count: u64) -> Vec<Digest> {
    (0..count).map(|n| sha256(&n.to_be_bytes())).collect()
}

fn model_leaves(payloads: &[Digest]) -> Vec<Hash> {
    payloads.iter().map(|p| model::leaf(&p.0)).collect()
}

pub fn plain(digests: &[Digest]) -> Vec<Hash> {
    digests.iter().map(|d| d.0).collect()
}

fn check_entry_tree(width: u64, places: impl Iterator<Item = u32>) {
    let digests = payloads(width);
    let leaves = model_leaves(&digests);
    let root = htree::root(&digests);
    assert_eq!(root.0, model::tree(&leaves), "width {width}");
    for place in places {
        let proof = htree::prove(&digests, place).unwrap();
        assert_eq!(plain(&proof.terms), model::path(place as usize, &leaves), "{place} of {width}");
        assert_eq!((u64::from(proof.width), proof.leaf), (width, place));
        assert_eq!(htree::verify(&proof, &digests[place as usize], &root), Ok(()), "{place} of {width}");
    }
}

fn check_main_tree_pair(tree: &Tree, leaves: &[Hash], i: u64, j: u64) {
    let upto = |n: u64| &leaves[..usize::try_from(n).unwrap()];
    let (root_i, root_j) = (tree.root(i), tree.root(j));
    assert_eq!(root_j.0, model::tree(upto(j)), "root of {j}");
    let inclusion = aht::prove_inclusion(i, j, tree).unwrap();
    assert_eq!(plain(&inclusion), model::path(usize::try_from(i).unwrap() - 1, upto(j)), "{i} in {j}");
    let consistency = aht::prove_consistency(i, j, tree).unwrap();
    assert_eq!(plain(&consistency), model::consistency(usize::try_from(i).unwrap(), upto(j)), "{i} to {j}");
    let leaf = Digest(leaves[usize::try_from(i).unwrap() - 1]);
    assert_eq!(aht::verify_inclusion(&inclusion, i, j, &leaf, &root_j), Ok(()), "{i} in {j}");
    assert_eq!(aht::verify_consistency(&consistency, i, j, &root_i, &root_j), Ok(()), "{i} to {j}");
    assert!(model::check_inclusion(&plain(&inclusion), i, j, leaf.0, root_j.0));
    assert!(model::check_consistency(&plain(&consistency), i, j, root_i.0, root_j.0));
}

#[test]
fn entry_trees_of_all_small_widths() {
    for width in 1..=40u32 {
        check_entry_tree(width.into(), 0..width);
    }
}

#[test]
fn main_trees_of_all_small_pairs() {
    let all = payloads(40);
    let (tree, leaves) = (Tree::of(&all), model_leaves(&all));
    for j in 1..=40 {
        for i in 1..=j {
            check_main_tree_pair(&tree, &leaves, i, j);
        }
    }
}

#[test]
fn proofs_outside_the_tree_are_not_made() {
    let tree = Tree::of(&payloads(5));
    for (i, j) in [(0, 0), (0, 5), (4, 3), (1, aht::SIZE_MAX + 1)] {
        let refused = Err(alhambra_ledger::ProveError::OutOfRange { from: i, to: j });
        assert_eq!(aht::prove_inclusion(i, j, &tree), refused);
        assert_eq!(aht::prove_consistency(i, j, &tree), refused);
    }
}

#[test]
fn appending_in_batches_equals_one_by_one() {
    let all = payloads(70);
    let whole = Tree::of(&all);
    let leaves = digest::leaves(&all);
    for before in 0..70usize {
        for after in before..=70 {
            let Ok(added) = aht::append_all(before as u64, &leaves[before..after], &whole);
            let number = |n: usize| usize::try_from(aht::node_count(n as u64)).unwrap();
            assert_eq!(added, whole.nodes[number(before)..number(after)], "{before} to {after}");
        }
    }
}

#[test]
fn roots_at_every_size_and_of_nothing() {
    let all = payloads(200);
    let (tree, leaves) = (Tree::of(&all), model_leaves(&all));
    assert_eq!(tree.root(0), digest::ZERO);
    for n in 1..=200usize {
        assert_eq!(tree.root(n as u64).0, model::tree(&leaves[..n]), "size {n}");
    }
}

/// Sizes that the proof is not for, and one digest more or less: refused, although the published check overlooks some.
#[test]
fn proofs_for_other_places_are_refused() {
    let all = payloads(24);
    let (tree, leaves) = (Tree::of(&all), model_leaves(&all));
    for j in 1..=24u64 {
        for i in 1..=j {
            let leaf = Digest(leaves[usize::try_from(i).unwrap() - 1]);
            let inclusion = aht::prove_inclusion(i, j, &tree).unwrap();
            for other in (0..=25).filter(|other| *other != i) {
                assert!(aht::verify_inclusion(&inclusion, other, j, &leaf, &tree.root(j)).is_err(), "{i} as {other}");
            }
            if i < j {
                let consistency = aht::prove_consistency(i, j, &tree).unwrap();
                for other in (0..=j).filter(|other| *other != i) {
                    let got = aht::verify_consistency(&consistency, other, j, &tree.root(i), &tree.root(j));
                    assert!(got.is_err(), "{i} as {other} to {j}");
                }
            }
        }
    }
}

fn tx_metadata() -> impl Strategy<Value = TxMetadata> {
    let extra = proptest::collection::vec(any::<u8>(), 0..=256);
    (any::<Option<u64>>(), extra).prop_map(|(tx, extra)| TxMetadata { truncated_up_to: tx.map(TxId), extra })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn entry_trees_of_larger_widths(width in 41u32..=200, seed in any::<u32>()) {
        check_entry_tree(width.into(), [0, seed % width, width - 1].into_iter());
    }

    #[test]
    fn main_trees_of_larger_pairs(j in 41u64..=200, seed in any::<u64>()) {
        let all = payloads(j);
        let (tree, leaves) = (Tree::of(&all), model_leaves(&all));
        for i in [1, 1 + seed % j, j - 1, j] {
            check_main_tree_pair(&tree, &leaves, i, j);
        }
    }

    /// Whatever is presented, nothing is accepted that the published check refuses.
    #[test]
    fn strict_checks_accept_no_more_than_published_ones(
        i in 0u64..12, j in 0u64..12, place in 1u64..12, size in 1u64..12, drop in 0usize..6, change in any::<bool>(),
    ) {
        let all = payloads(12);
        let (tree, leaves) = (Tree::of(&all), model_leaves(&all));
        let place = place.min(size);
        let leaf = leaves[usize::try_from(place).unwrap() - 1];
        let (root_i, root_j) = (tree.root(place), tree.root(size));
        let mut terms = [
            aht::prove_inclusion(place, size, &tree).unwrap(),
            aht::prove_consistency(place, size, &tree).unwrap(),
        ];
        if change {
            terms.iter_mut().for_each(|t| if drop < t.len() { t.remove(drop); });
        }
        let [inclusion, consistency] = terms;
        if aht::verify_inclusion(&inclusion, i, j, &Digest(leaf), &root_j).is_ok() {
            prop_assert!(model::check_inclusion(&plain(&inclusion), i, j, leaf, root_j.0));
        }
        if aht::verify_consistency(&consistency, i, j, &root_i, &root_j).is_ok() {
            prop_assert!(model::check_consistency(&plain(&consistency), i, j, root_i.0, root_j.0));
        }
    }

    #[test]
    fn entry_digests(
        key in proptest::collection::vec(any::<u8>(), 0..300), value in any::<[u8; 32]>(),
        deleted in any::<bool>(), expires_at in any::<Option<i64>>(), non_indexable in any::<bool>(),
    ) {
        let md = KvMetadata { deleted, expires_at, non_indexable };
        let bytes = md.to_bytes();
        prop_assert_eq!(KvMetadata::from_bytes(&bytes), Ok(md));
        let got = entry_digest(1, &key, &bytes, &Digest(value)).unwrap();
        prop_assert_eq!(got.0, model::entry_digest(1, &key, &bytes, &value));
        let got = entry_digest(0, &key, &[], &Digest(value)).unwrap();
        prop_assert_eq!(got.0, model::entry_digest(0, &key, &[], &value));
    }

    #[test]
    fn headers(
        id in 2u64.., back in 1u64.., ts in any::<i64>(), metadata in tx_metadata(), nentries in 1u32..,
        hashes in any::<[[u8; 32]; 3]>(), version in 0u16..=1,
    ) {
        let v1 = version == 1;
        let [eh, bl_root, prev_alh] = hashes;
        let bl_tx_id = id - 1 - back % id.min(1000);
        let tx = model::Tx {
            id, ts, version, eh, prev_alh, bl_tx_id,
            truncated: metadata.truncated_up_to.filter(|_| v1).map(TxId::get),
            extra: if v1 { metadata.extra.clone() } else { Vec::new() },
            nentries: if v1 { nentries } else { nentries % 65_535 + 1 },
            bl_root: if bl_tx_id == 0 { [0; 32] } else { bl_root },
        };
        let header = crate::model_proofs::header(&tx);
        prop_assert_eq!(header.inner_hash().unwrap().0, tx.inner());
        prop_assert_eq!(header.alh().unwrap().0, tx.alh());
        prop_assert_eq!(TxHeader::from_bytes(&header.to_bytes().unwrap()), Ok(header));
    }

    /// Bytes from anywhere are refused or have exactly the one meaning that encodes to them; nothing panics.
    #[test]
    fn decoders_accept_canonical_bytes_only(bytes in proptest::collection::vec(0u8..4, 0..40)) {
        if let Ok(md) = KvMetadata::from_bytes(&bytes) {
            prop_assert_eq!(md.to_bytes(), bytes.clone());
        }
        if let Ok(md) = TxMetadata::from_bytes(&bytes) {
            prop_assert_eq!(md.to_bytes().unwrap(), bytes.clone());
        }
        if let Ok(tx) = alhambra_ledger::export::decode(&bytes) {
            prop_assert!(alhambra_ledger::export::encode(&tx).is_ok());
        }
        prop_assert!(leaf(&sha256(&bytes)) != sha256(&bytes));
    }
}
