//! An independent model of a database: transactions hashed straight from the text of the specification with `sha2`, and a
//! map of histories. Imports none of the judged code; everything is plain bytes and numbers.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

pub type Hash = [u8; 32];

pub fn h(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// Merkle tree hash of RFC 6962 over payloads; the empty one is given.
pub fn tree(payloads: &[Hash], empty: Hash) -> Hash {
    match payloads {
        [] => empty,
        [one] => h(&[&[0], one]),
        _ => {
            let split = payloads.len().next_power_of_two() / 2;
            h(&[&[1], &tree(&payloads[..split], empty), &tree(&payloads[split..], empty)])
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pub deleted: bool,
    pub expires_at: Option<i64>,
    pub non_indexable: bool,
}

impl Metadata {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.deleted {
            out.push(0);
        }
        if let Some(at) = self.expires_at {
            out.push(1);
            out.extend(at.to_be_bytes());
        }
        if self.non_indexable {
            out.push(2);
        }
        out
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Vec<u8>,
    pub metadata: Metadata,
    pub value: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Condition {
    MustExist(Vec<u8>),
    MustNotExist(Vec<u8>),
    NotModifiedAfter(Vec<u8>, u64),
    Becomes(u64),
}

#[derive(Clone, Debug)]
pub struct Proposal {
    /// Client, sequence, floor.
    pub request: Option<(u8, u64, u64)>,
    pub entries: Vec<Entry>,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Condition(u32),
    NotInitialised,
    NoEntries,
    NullKey,
    KeyTooLong,
    ValueTooLong,
    TooManyEntries,
    DuplicateKey,
    NothingToPrune,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed(u64, Hash),
    Refused(Refusal),
}

#[derive(Clone, Debug)]
pub struct Limits {
    pub key_len_max: usize,
    pub value_len_max: usize,
    pub entries_max: usize,
}

#[derive(Clone, Debug)]
pub struct Tx {
    pub ts: i64,
    pub entries: Vec<Entry>,
    pub eh: Hash,
    pub bl_root: Hash,
    pub prev_alh: Hash,
    pub alh: Hash,
}

/// One version of a key: transaction, entry, metadata.
pub type Version = (u64, u32, Metadata);

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub limits: Option<Limits>,
    pub txs: Vec<Tx>,
    pub histories: BTreeMap<Vec<u8>, Vec<Version>>,
    requests: HashMap<(u8, u64), Outcome>,
    clock: i64,
}

impl Model {
    pub fn new() -> Self {
        Self { clock: i64::MIN, ..Self::default() }
    }

    pub fn batch(&mut self, ts: i64, proposals: &[Proposal]) -> Vec<Outcome> {
        self.clock = self.clock.max(ts);
        proposals.iter().map(|proposal| self.proposal(proposal)).collect()
    }

    fn proposal(&mut self, proposal: &Proposal) -> Outcome {
        let Some(limits) = self.limits.clone() else { return Outcome::Refused(Refusal::NotInitialised) };
        let name = proposal.request.map(|(client, sequence, _)| (client, sequence));
        if let Some(first) = name.and_then(|name| self.requests.get(&name)) {
            return first.clone();
        }
        let outcome = match self.refusal(&limits, proposal) {
            Some(refusal) => Outcome::Refused(refusal),
            None => self.commit(&[], &proposal.entries),
        };
        if let Some(name) = name {
            self.requests.insert(name, outcome.clone());
        }
        outcome
    }

    fn refusal(&self, limits: &Limits, proposal: &Proposal) -> Option<Refusal> {
        let entries = &proposal.entries;
        if entries.is_empty() {
            return Some(Refusal::NoEntries);
        }
        if entries.len() > limits.entries_max {
            return Some(Refusal::TooManyEntries);
        }
        for entry in entries {
            if entry.key.is_empty() {
                return Some(Refusal::NullKey);
            }
            if entry.key.len() > limits.key_len_max {
                return Some(Refusal::KeyTooLong);
            }
            if entry.value.len() > limits.value_len_max {
                return Some(Refusal::ValueTooLong);
            }
        }
        for (n, entry) in entries.iter().enumerate() {
            if entries[..n].iter().any(|before| before.key == entry.key) {
                return Some(Refusal::DuplicateKey);
            }
        }
        for (n, condition) in proposal.conditions.iter().enumerate() {
            let newest = |key: &Vec<u8>| self.histories.get(key).and_then(|versions| versions.last());
            let live = |key: &Vec<u8>| {
                newest(key).is_some_and(|(_, _, md)| !md.deleted && md.expires_at.is_none_or(|at| at > self.clock))
            };
            let holds = match condition {
                Condition::MustExist(key) => live(key),
                Condition::MustNotExist(key) => !live(key),
                Condition::NotModifiedAfter(key, tx) => newest(key).is_none_or(|(at, ..)| at <= tx),
                Condition::Becomes(tx) => self.txs.len() as u64 + 1 == *tx,
            };
            if !holds {
                return Some(Refusal::Condition(n as u32));
            }
        }
        None
    }

    /// A command with this time was applied and did nothing else.
    pub fn tick(&mut self, ts: i64) {
        self.clock = self.clock.max(ts);
    }

    /// The marker of a truncation: a transaction with metadata, entries or none.
    pub fn marker(&mut self, ts: i64, up_to: u64, entries: &[Entry]) -> Outcome {
        self.clock = self.clock.max(ts);
        self.commit(&[&[0][..], &up_to.to_be_bytes()].concat(), entries)
    }

    fn commit(&mut self, metadata: &[u8], entries: &[Entry]) -> Outcome {
        let id = self.txs.len() as u64 + 1;
        let digests: Vec<Hash> = entries
            .iter()
            .map(|entry| {
                let md = entry.metadata.bytes();
                let md_len = (md.len() as u16).to_be_bytes();
                let key_len = (entry.key.len() as u16).to_be_bytes();
                h(&[&md_len, &md, &key_len, &entry.key, &h(&[&entry.value])])
            })
            .collect();
        let eh = tree(&digests, h(&[]));
        let alhs: Vec<Hash> = self.txs.iter().map(|tx| tx.alh).collect();
        let bl_root = tree(&alhs, [0; 32]);
        let prev_alh = alhs.last().copied().unwrap_or(h(&[]));
        let inner = h(&[
            &self.clock.to_be_bytes(),
            &1u16.to_be_bytes(),
            &(metadata.len() as u16).to_be_bytes(),
            metadata,
            &(entries.len() as u32).to_be_bytes(),
            &eh,
            &(id - 1).to_be_bytes(),
            &bl_root,
        ]);
        let alh = h(&[&id.to_be_bytes(), &prev_alh, &inner]);
        for (n, entry) in entries.iter().enumerate().filter(|(_, entry)| !entry.metadata.non_indexable) {
            let version = (id, n as u32, entry.metadata.clone());
            self.histories.entry(entry.key.clone()).or_default().push(version);
        }
        self.txs.push(Tx { ts: self.clock, entries: entries.to_vec(), eh, bl_root, prev_alh, alh });
        Outcome::Committed(id, alh)
    }

    /// Versions of a key that a reader at `tx` sees.
    pub fn history(&self, key: &[u8], tx: u64) -> Vec<Version> {
        let all = self.histories.get(key).map_or(&[][..], Vec::as_slice);
        all.iter().filter(|(at, ..)| *at <= tx).cloned().collect()
    }

    /// Keys that a reader at `tx` sees, in order.
    pub fn keys(&self, tx: u64) -> Vec<Vec<u8>> {
        self.histories.iter().filter(|(_, versions)| versions[0].0 <= tx).map(|(key, _)| key.clone()).collect()
    }
}
