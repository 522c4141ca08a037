//! The ledger's hashes and proofs once more, written from the text of their description and from nothing else: textbook
//! recursion over whole lists, own types, only the hash function shared. Slow, and meant to be obviously right.

use sha2::{Digest as _, Sha256};

pub type Hash = [u8; 32];

pub fn hash(parts: &[&[u8]]) -> Hash {
    let mut all = Sha256::new();
    for part in parts {
        all.update(part);
    }
    all.finalize().into()
}

pub fn leaf(payload: &Hash) -> Hash {
    hash(&[&[0], payload])
}

pub fn node(left: Hash, right: Hash) -> Hash {
    hash(&[&[1], &left, &right])
}

/// Largest power of two smaller than `n`.
fn split(n: usize) -> usize {
    let mut s = 1;
    while s * 2 < n {
        s *= 2;
    }
    s
}

/// Tree hash of RFC 6962 over leaves that are hashed already.
pub fn tree(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => hash(&[]),
        [one] => *one,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node(tree(left), tree(right))
        }
    }
}

/// Audit path of leaf `m`, from 0.
pub fn path(m: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let s = split(leaves.len());
    let (left, right) = leaves.split_at(s);
    let (mut terms, sibling) = if m < s { (path(m, left), tree(right)) } else { (path(m - s, right), tree(left)) };
    terms.push(sibling);
    terms
}

/// From the first `m` leaves to all of them.
pub fn consistency(m: usize, leaves: &[Hash]) -> Vec<Hash> {
    let n = leaves.len();
    if m == n {
        if n == 1 {
            return Vec::new();
        }
        let (left, right) = leaves.split_at(split(n));
        return vec![tree(right), tree(left)];
    }
    fn inner(m: usize, leaves: &[Hash]) -> Vec<Hash> {
        if m == leaves.len() {
            return vec![tree(leaves)];
        }
        let s = split(leaves.len());
        let (left, right) = leaves.split_at(s);
        let (mut terms, sibling) =
            if m <= s { (inner(m, left), tree(right)) } else { (inner(m - s, right), tree(left)) };
        terms.push(sibling);
        terms
    }
    inner(m, leaves)
}

/// The check of an inclusion proof as described: i from 1, nothing said about its length.
pub fn check_inclusion(path: &[Hash], i: u64, j: u64, leaf: Hash, root: Hash) -> bool {
    if i == 0 || i > j || (i < j && path.is_empty()) {
        return false;
    }
    let (mut a, mut b, mut acc) = (i - 1, j - 1, leaf);
    for h in path {
        acc = if a.is_multiple_of(2) && a != b { node(acc, *h) } else { node(*h, acc) };
        a /= 2;
        b /= 2;
    }
    acc == root
}

/// The check of a consistency proof as described.
pub fn check_consistency(terms: &[Hash], i: u64, j: u64, root_i: Hash, root_j: Hash) -> bool {
    if i == 0 || i > j || (i < j && terms.is_empty()) {
        return false;
    }
    if i == j && terms.is_empty() {
        return root_i == root_j;
    }
    let (mut f, mut g) = (i - 1, j - 1);
    while f % 2 == 1 {
        f /= 2;
        g /= 2;
    }
    let (mut x, mut y) = (terms[0], terms[0]);
    for h in &terms[1..] {
        if f % 2 == 1 || f == g {
            x = node(*h, x);
            y = node(*h, y);
            while f.is_multiple_of(2) && f != 0 {
                f /= 2;
                g /= 2;
            }
        } else {
            y = node(y, *h);
        }
        f /= 2;
        g /= 2;
    }
    x == root_i && y == root_j
}

#[derive(Clone, Debug)]
pub struct Tx {
    pub id: u64,
    pub ts: i64,
    pub version: u16,
    pub truncated: Option<u64>,
    pub extra: Vec<u8>,
    pub nentries: u32,
    pub eh: Hash,
    pub bl_tx_id: u64,
    pub bl_root: Hash,
    pub prev_alh: Hash,
}

impl Tx {
    fn metadata(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(tx) = self.truncated {
            out.push(0);
            out.extend_from_slice(&tx.to_be_bytes());
        }
        if !self.extra.is_empty() {
            out.push(1);
            out.extend_from_slice(&(self.extra.len() as u16).to_be_bytes());
            out.extend_from_slice(&self.extra);
        }
        out
    }

    pub fn inner(&self) -> Hash {
        let (ts, bl) = (self.ts.to_be_bytes(), self.bl_tx_id.to_be_bytes());
        if self.version == 0 {
            let n = (self.nentries as u16).to_be_bytes();
            return hash(&[&ts, &[0, 0], &n, &self.eh, &bl, &self.bl_root]);
        }
        let md = self.metadata();
        let md_len = (md.len() as u16).to_be_bytes();
        hash(&[&ts, &[0, 1], &md_len, &md, &self.nentries.to_be_bytes(), &self.eh, &bl, &self.bl_root])
    }

    pub fn alh(&self) -> Hash {
        hash(&[&self.id.to_be_bytes(), &self.prev_alh, &self.inner()])
    }
}

pub fn entry_digest(version: u16, key: &[u8], md: &[u8], hval: &Hash) -> Hash {
    if version == 0 {
        return hash(&[key, hval]);
    }
    let lens = [(md.len() as u16).to_be_bytes(), (key.len() as u16).to_be_bytes()];
    hash(&[&lens[0], md, &lens[1], key, hval])
}

/// What varies between the transactions of a made-up ledger.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub ts: i64,
    pub version: u16,
    pub truncated: Option<u64>,
    pub extra: Vec<u8>,
    /// How far `bl_tx_id` stays behind id - 1; it never goes back, whatever this says.
    pub lag: u64,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub txs: Vec<Tx>,
}

#[derive(Debug, PartialEq)]
pub struct Dual {
    pub inclusion: Vec<Hash>,
    pub consistency: Vec<Hash>,
    pub target_bl_tx_alh: Hash,
    pub last_inclusion: Vec<Hash>,
    pub linear_from: u64,
    pub linear: Vec<Hash>,
    pub advance: Option<(Vec<Hash>, Vec<Vec<Hash>>)>,
}

impl Ledger {
    pub fn of(shapes: &[Shape]) -> Self {
        let mut ledger = Self::default();
        for (n, shape) in shapes.iter().enumerate() {
            let id = n as u64 + 1;
            let bl_before = ledger.txs.last().map_or(0, |tx| tx.bl_tx_id);
            let bl_tx_id = (id - 1).saturating_sub(shape.lag).max(bl_before);
            let v1 = shape.version == 1;
            ledger.txs.push(Tx {
                id,
                ts: shape.ts,
                version: shape.version,
                truncated: shape.truncated.filter(|_| v1),
                extra: if v1 { shape.extra.clone() } else { Vec::new() },
                nentries: 1 + id as u32 % 3,
                eh: hash(&[b"entries of", &id.to_be_bytes()]),
                bl_tx_id,
                bl_root: if bl_tx_id == 0 { [0; 32] } else { tree(&ledger.leaves(bl_tx_id)) },
                prev_alh: ledger.txs.last().map_or(hash(&[]), Tx::alh),
            });
        }
        ledger
    }

    fn tx(&self, id: u64) -> &Tx {
        &self.txs[id as usize - 1]
    }

    /// Leaves of the main tree of this size.
    pub fn leaves(&self, size: u64) -> Vec<Hash> {
        (1..=size).map(|id| leaf(&self.tx(id).alh())).collect()
    }

    fn chain(&self, from: u64, to: u64) -> Vec<Hash> {
        let mut terms = vec![self.tx(from).alh()];
        terms.extend((from + 1..=to).map(|id| self.tx(id).inner()));
        terms
    }

    pub fn dual(&self, s: u64, t: u64) -> Dual {
        let (b, big) = (self.tx(s).bl_tx_id, self.tx(t).bl_tx_id);
        let leaves = self.leaves(big);
        let end = s.min(big);
        let from = s.max(big);
        Dual {
            inclusion: if s < big { path(s as usize - 1, &leaves) } else { vec![] },
            consistency: if b > 0 { consistency(b as usize, &leaves) } else { vec![] },
            target_bl_tx_alh: if big > 0 { self.tx(big).alh() } else { [0; 32] },
            last_inclusion: if big > 0 { path(big as usize - 1, &leaves) } else { vec![] },
            linear_from: from,
            linear: self.chain(from, t),
            advance: (end > b + 1)
                .then(|| (self.chain(b + 1, end), (b + 1..end).map(|x| path(x as usize - 1, &leaves)).collect())),
        }
    }

    /// Inclusion and consistency of the compact form.
    pub fn dual_v2(&self, s: u64, t: u64) -> (Vec<Hash>, Vec<Hash>) {
        if s == t {
            return (vec![], vec![]);
        }
        let leaves = self.leaves(t - 1);
        (path(s as usize - 1, &leaves), consistency((s as usize - 1).max(1), &leaves))
    }
}
