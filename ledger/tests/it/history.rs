//! A history in memory, as the proof builders read one.

use std::convert::Infallible;

use alhambra_ledger::{
    Digest,
    aht::{self, NodeReader},
    digest::leaf,
    header::TxHeader,
    ids::TxId,
    proof::{self, DualProof, DualProofV2, HistoryReader},
};

/// The digests of a main tree in completion order.
#[derive(Default)]
pub struct Tree {
    pub nodes: Vec<Digest>,
    pub size: u64,
}

impl Tree {
    pub fn push(&mut self, alh: &Digest) {
        let Ok(added) = aht::append(self.size, leaf(alh), self);
        self.nodes.extend(added);
        self.size += 1;
    }

    pub fn of(alhs: &[Digest]) -> Self {
        let mut tree = Self::default();
        alhs.iter().for_each(|alh| tree.push(alh));
        tree
    }

    pub fn root(&self, n: u64) -> Digest {
        let Ok(root) = aht::root(n, self);
        root
    }
}

impl NodeReader for Tree {
    type Error = Infallible;

    fn node(&self, number: u64) -> Result<Digest, Infallible> {
        Ok(self.nodes[usize::try_from(number).unwrap()])
    }
}

/// Headers and main tree.
pub struct History {
    pub headers: Vec<TxHeader>,
    pub tree: Tree,
}

impl HistoryReader for History {
    type Error = Infallible;

    fn header(&self, tx: TxId) -> Result<TxHeader, Infallible> {
        Ok(self.get(tx.get()).clone())
    }
}

impl History {
    pub fn of(headers: Vec<TxHeader>) -> Self {
        let alhs: Vec<_> = headers.iter().map(|h| h.alh().unwrap()).collect();
        Self { tree: Tree::of(&alhs), headers }
    }

    pub fn get(&self, tx: u64) -> &TxHeader {
        &self.headers[usize::try_from(tx).unwrap() - 1]
    }

    pub fn alh(&self, tx: u64) -> Digest {
        self.get(tx).alh().unwrap()
    }

    pub fn dual(&self, s: u64, t: u64) -> DualProof {
        proof::build_dual(self.get(s), self.get(t), self, &self.tree).unwrap()
    }

    pub fn dual_v2(&self, s: u64, t: u64) -> DualProofV2 {
        proof::build_dual_v2(self.get(s), self.get(t), &self.tree).unwrap()
    }
}
