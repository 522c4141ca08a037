//! Proofs as a client checks them, written from the description of the protocol alone. Slow and plain on purpose.

use super::chain::{Entry, Hash, Transaction, entry_digest, hash, inner};

/// The proof that a source transaction is history of a target transaction. Entries of the two headers are not used but for
/// their number, so they may be anything of the right length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dual {
    /// Header of the source.
    pub source: Header,
    /// Header of the target.
    pub target: Header,
    /// The source in the tree of the target.
    pub inclusion: Vec<Hash>,
    /// The tree of the source in that of the target.
    pub consistency: Vec<Hash>,
    /// Alh of the last leaf of the target's tree.
    pub target_bl_alh: Hash,
    /// That it is the last leaf.
    pub last_inclusion: Vec<Hash>,
    /// From the last leaf, or the source, to the target: (from, to, terms).
    pub linear: (u64, u64, Vec<Hash>),
}

impl Dual {
    /// The same without the parts that [`verify`] does not look at for these headers, whatever they are.
    pub fn looked_at(mut self) -> Self {
        let (source, target) = (&self.source.tx, &self.target.tx);
        if source.id >= target.bl_tx_id {
            self.inclusion.clear();
        }
        if source.bl_tx_id == 0 {
            self.consistency.clear();
        }
        if target.bl_tx_id == 0 {
            self.target_bl_alh = Hash::default();
            self.last_inclusion.clear();
        }
        self
    }
}

/// A header without its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// All of it but the entries.
    pub tx: Transaction,
    /// Their number.
    pub entries: u32,
}

impl Header {
    /// Its accumulated hash.
    pub fn alh(&self) -> Hash {
        hash(&[&self.tx.id.to_be_bytes(), &self.tx.prev_alh, &inner(&self.tx, self.entries)])
    }
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

fn leaf(payload: &Hash) -> Hash {
    hash(&[&[0], payload])
}

/// Whether leaf `i` (from 1) with this hash is in the tree of `j` leaves.
fn included(path: &[Hash], i: u64, j: u64, start: &Hash, root: &Hash) -> bool {
    if i == 0 || i > j || (i < j && path.is_empty()) {
        return false;
    }
    let (mut a, mut b, mut acc) = (i - 1, j - 1, *start);
    for term in path {
        acc = if a % 2 == 0 && a != b { node(&acc, term) } else { node(term, &acc) };
        (a, b) = (a / 2, b / 2);
    }
    acc == *root
}

fn consistent(terms: &[Hash], i: u64, j: u64, root_i: &Hash, root_j: &Hash) -> bool {
    if i == 0 || i > j || (i < j && terms.is_empty()) {
        return false;
    }
    let Some((first, rest)) = terms.split_first() else { return root_i == root_j };
    let (mut f, mut g) = (i - 1, j - 1);
    while f % 2 == 1 {
        (f, g) = (f / 2, g / 2);
    }
    let (mut x, mut y) = (*first, *first);
    for term in rest {
        if f % 2 == 1 || f == g {
            (x, y) = (node(term, &x), node(term, &y));
            while f % 2 == 0 && f != 0 {
                (f, g) = (f / 2, g / 2);
            }
        } else {
            y = node(&y, term);
        }
        (f, g) = (f / 2, g / 2);
    }
    x == *root_i && y == *root_j
}

fn linear(proof: &(u64, u64, Vec<Hash>), s: u64, t: u64, alh_s: &Hash, alh_t: &Hash) -> bool {
    let (from, to, terms) = proof;
    if *from != s || *to != t || s == 0 || s > t || terms.len() as u64 != t - s + 1 || terms[0] != *alh_s {
        return false;
    }
    let mut acc = terms[0];
    for (term, id) in terms[1..].iter().zip(s + 1..) {
        acc = hash(&[&id.to_be_bytes(), &acc, term]);
    }
    acc == *alh_t
}

/// Checks that `s` with `alh_s` is history of `t` with `alh_t`; the step that fails. Headers of one cluster are linked without
/// gaps (BlTxID = id - 1), so there is nothing that a linear advance proof would have to close; other links are refused.
pub fn verify(proof: &Dual, s: u64, t: u64, alh_s: &Hash, alh_t: &Hash) -> Result<(), &'static str> {
    let (source, target) = (&proof.source.tx, &proof.target.tx);
    let must = |holds: bool, step| if holds { Ok(()) } else { Err(step) };
    must(source.id == s && target.id == t && s >= 1 && s <= t, "ids")?;
    must(proof.source.alh() == *alh_s, "source header")?;
    must(proof.target.alh() == *alh_t, "target header")?;
    let (b, big) = (source.bl_tx_id, target.bl_tx_id);
    must(b + 1 == s && big + 1 == t, "link")?;
    if s < big {
        must(included(&proof.inclusion, s, big, &leaf(alh_s), &target.bl_root), "inclusion")?;
    }
    if b > 0 {
        must(consistent(&proof.consistency, b, big, &source.bl_root, &target.bl_root), "consistency")?;
    }
    if big > 0 {
        let acc = proof.last_inclusion.iter().fold(leaf(&proof.target_bl_alh), |acc, term| node(term, &acc));
        must(acc == target.bl_root, "last inclusion")?;
    }
    if s < big {
        must(linear(&proof.linear, big, t, &proof.target_bl_alh, alh_t), "linear")
    } else {
        must(linear(&proof.linear, s, t, alh_s, alh_t), "linear")
    }
}

/// Whether an entry is number `at` (from 0) of `width` below this root.
pub fn entry_included(entry: &Entry, at: u64, width: u64, terms: &[Hash], eh: &Hash) -> bool {
    // The walk alone takes the last entry for one behind the end, too (seed 7007032).
    if at >= width {
        return false;
    }
    let (mut i, mut r, mut acc) = (at, width - 1, leaf(&entry_digest(entry)));
    for term in terms {
        acc = if i % 2 == 0 && i != r { node(&acc, term) } else { node(term, &acc) };
        (i, r) = (i / 2, r / 2);
    }
    i == r && acc == *eh
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_behind_the_end_is_in_no_tree() {
        let entry = Entry { key: b"key".to_vec(), metadata: vec![], value_hash: hash(&[b"value"]) };
        let before = [5; 32];
        let eh = node(&before, &leaf(&entry_digest(&entry)));
        assert!(entry_included(&entry, 2, 3, &[before], &eh));
        for (at, width) in [(3, 3), (1, 3), (0, 3), (2, 2), (0, 0), (1, 1)] {
            assert!(!entry_included(&entry, at, width, &[before], &eh), "{at} of {width}");
        }
    }

    #[test]
    fn what_no_step_looks_at_is_left_out_and_nothing_else() {
        let tx = Transaction { id: 1, prev_alh: hash(&[]), ..Transaction::default() };
        let header = Header { tx, entries: 1 };
        let alh = header.alh();
        let linear = (1, 1, vec![alh]);
        let dual = Dual { source: header.clone(), target: header, linear, ..Dual::default() };
        assert_eq!(verify(&dual, 1, 1, &alh, &alh), Ok(()));
        // Before the first transaction there is no tree, so whatever is said of its last leaf shows nothing.
        let unused = Dual { target_bl_alh: [7; 32], last_inclusion: vec![[8; 32]], ..dual.clone() };
        assert_eq!(verify(&unused, 1, 1, &alh, &alh), Ok(()));
        assert_eq!(unused.looked_at(), dual.clone().looked_at());
        let mut changed = dual.clone();
        changed.linear.2[0][0] ^= 1;
        assert_eq!(verify(&changed, 1, 1, &alh, &alh), Err("linear"));
        assert_ne!(changed.looked_at(), dual.clone().looked_at());
        let mut later = Dual {
            inclusion: vec![[1; 32]],
            consistency: vec![[2; 32]],
            target_bl_alh: [3; 32],
            last_inclusion: vec![[4; 32]],
            ..dual
        };
        (later.source.tx.id, later.source.tx.bl_tx_id, later.target.tx.bl_tx_id) = (2, 1, 5);
        assert_eq!(later.clone().looked_at(), later, "here every part counts");
    }
}
