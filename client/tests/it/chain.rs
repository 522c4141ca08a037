//! A ledger in memory, built with the ledger crate: what an honest server holds.

use alhambra_ledger::aht::{self, NodeReader};
use alhambra_ledger::digest::{EMPTY, ZERO, leaf, sha256};
use alhambra_ledger::entry::{KvMetadata, entry_digest};
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{HistoryReader, build_dual};
use alhambra_ledger::state::TrustedState;
use alhambra_ledger::{Digest, htree, kv};
use alhambra_proto::convert::{Tx, TxEntry, VerifiableTx};
use alhambra_proto::schema;
use bytes::Bytes;
use std::convert::Infallible;

#[derive(Clone, Debug)]
pub struct Stored {
    pub key: Bytes,
    pub value: Bytes,
    pub metadata: KvMetadata,
}

impl Stored {
    pub fn pair(key: &[u8], value: &[u8]) -> Self {
        Self { key: kv::set_key(key).into(), value: kv::set_value(value).into(), metadata: KvMetadata::default() }
    }

    pub fn reference(key: &[u8], target: &[u8]) -> Self {
        Self::bound_reference(key, target, TxId(0))
    }

    pub fn bound_reference(key: &[u8], target: &[u8], at_tx: TxId) -> Self {
        let value = kv::reference_value(at_tx, target).into();
        Self { key: kv::set_key(key).into(), value, metadata: KvMetadata::default() }
    }
}

/// Headers, entries and main tree of one database.
#[derive(Clone)]
pub struct Chain {
    pub database: String,
    ts: i64,
    headers: Vec<TxHeader>,
    entries: Vec<Vec<Stored>>,
    nodes: Vec<Digest>,
}

struct Nodes<'a>(&'a [Digest]);

impl NodeReader for Nodes<'_> {
    type Error = Infallible;

    fn node(&self, number: u64) -> Result<Digest, Infallible> {
        Ok(self.0[number as usize])
    }
}

impl HistoryReader for Chain {
    type Error = Infallible;

    fn header(&self, tx: TxId) -> Result<TxHeader, Infallible> {
        Ok(self.headers[tx.get() as usize - 1].clone())
    }
}

impl Chain {
    /// An empty database; chains with different `ts` have nothing in common.
    pub fn new(ts: i64) -> Self {
        Self { database: "defaultdb".into(), ts, headers: Vec::new(), entries: Vec::new(), nodes: Vec::new() }
    }

    pub fn with_txs(ts: i64, count: u64) -> Self {
        let mut chain = Self::new(ts);
        (1..=count).for_each(|n| _ = chain.commit(vec![Stored::pair(format!("k{n}").as_bytes(), b"v")]));
        chain
    }

    pub fn last(&self) -> TxId {
        TxId(self.headers.len() as u64)
    }

    pub fn alh(&self, tx: TxId) -> Digest {
        if tx.get() == 0 { EMPTY } else { self.headers[tx.get() as usize - 1].alh().unwrap() }
    }

    pub fn state_at(&self, tx: TxId) -> TrustedState {
        TrustedState { database: self.database.clone(), tx, alh: self.alh(tx) }
    }

    pub fn state(&self) -> TrustedState {
        self.state_at(self.last())
    }

    fn digests(entries: &[Stored]) -> Vec<Digest> {
        let digest = |e: &Stored| entry_digest(1, &e.key, &e.metadata.to_bytes(), &sha256(&e.value)).unwrap();
        entries.iter().map(digest).collect()
    }

    pub fn commit(&mut self, entries: Vec<Stored>) -> TxId {
        let size = self.last().get();
        let bl_root = if size == 0 { ZERO } else { aht::root(size, &Nodes(&self.nodes)).unwrap() };
        let header = TxHeader {
            id: TxId(size + 1),
            ts: self.ts,
            version: 1,
            metadata: TxMetadata::default(),
            nentries: entries.len() as u32,
            eh: htree::root(&Self::digests(&entries)),
            bl_tx_id: TxId(size),
            bl_root,
            prev_alh: self.alh(TxId(size)),
        };
        let new = aht::append(size, leaf(&header.alh().unwrap()), &Nodes(&self.nodes)).unwrap();
        self.nodes.extend(new);
        self.headers.push(header);
        self.entries.push(entries);
        self.last()
    }

    pub fn header_of(&self, tx: TxId) -> &TxHeader {
        &self.headers[tx.get() as usize - 1]
    }

    /// The newest transaction (up to `at`, if given exactly there) with this stored key, and the entry's place.
    pub fn find(&self, key: &[u8], at: TxId) -> Option<(TxId, u32, &Stored)> {
        let stored_key = kv::set_key(key);
        (1..=self.last().get()).rev().filter(|tx| at.get() == 0 || *tx == at.get()).find_map(|tx| {
            let entries = &self.entries[tx as usize - 1];
            let place = entries.iter().position(|entry| entry.key == stored_key)?;
            Some((TxId(tx), place as u32, &entries[place]))
        })
    }

    pub fn inclusion(&self, tx: TxId, place: u32) -> schema::InclusionProof {
        (&htree::prove(&Self::digests(&self.entries[tx.get() as usize - 1]), place).unwrap()).into()
    }

    pub fn tx(&self, tx: TxId) -> Tx {
        let entry = |entry: &Stored| TxEntry {
            key: entry.key.clone(),
            metadata: entry.metadata,
            value_hash: sha256(&entry.value),
            value_len: entry.value.len() as u32,
            value: Bytes::new(),
        };
        let entries = self.entries[tx.get() as usize - 1].iter().map(entry).collect();
        Tx { header: self.header_of(tx).clone(), entries }
    }

    /// The transaction with the proof between it and `since` (0: itself); unsigned.
    pub fn verifiable_tx(&self, tx: TxId, since: TxId) -> VerifiableTx {
        let since = if since.get() == 0 { tx } else { since };
        let (source, target) = (self.header_of(tx.min(since)), self.header_of(tx.max(since)));
        let dual_proof = build_dual(source, target, self, &Nodes(&self.nodes)).unwrap();
        VerifiableTx { tx: self.tx(tx), dual_proof, signature: None }
    }
}
