//! Histories that other servers made: real exports, and chains of the vectors. Bytes are put together here by hand, from the
//! text of the specification.

use alhambra_ledger::export;
use alhambra_storage::command::{Command, Settings, TxProposal};
use serde_json::Value;

use crate::model::{Hash, h, tree};

/// One history.
#[derive(Debug)]
pub struct Source {
    pub name: String,
    /// In order: the exported bytes and the Alh that the source has.
    pub txs: Vec<(Vec<u8>, Hash)>,
}

fn unhex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn hash(value: &Value) -> Hash {
    unhex(value).try_into().unwrap()
}

fn framed(header: &[u8], entries: &[(Vec<u8>, Vec<u8>, Vec<u8>)], gone: bool) -> Vec<u8> {
    let mut out = (header.len() as u32).to_be_bytes().to_vec();
    out.extend(header);
    for (key, metadata, value) in entries {
        out.extend((key.len() as u16).to_be_bytes());
        out.extend(key);
        out.extend((metadata.len() as u16).to_be_bytes());
        out.extend(metadata);
        out.extend((value.len() as u32).to_be_bytes());
        out.extend(value);
    }
    out.extend([0, 1, u8::from(gone)]);
    out
}

/// The exports of the sample, by database.
pub fn sample() -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for line in include_str!("../../../ledger/testdata/export-sample.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = line["database"].as_str().unwrap();
        if sources.last().is_none_or(|source| source.name != name) {
            assert!(sources.iter().all(|source| source.name != name));
            sources.push(Source { name: name.into(), txs: Vec::new() });
        }
        let tx = (unhex(&line["chunk_content_hex"])[8..].to_vec(), hash(&line["alh_hex"]));
        sources.last_mut().unwrap().txs.push(tx);
    }
    assert_eq!(sources.iter().map(|source| source.txs.len()).sum::<usize>(), 61);
    sources
}

/// A chain of the vectors: `chain_v1`, `chain_v0` or `chain_lagging`.
pub fn chain(name: &str) -> Source {
    let vectors: Value = serde_json::from_str(include_str!("../../../ledger/testdata/vectors.json")).unwrap();
    let tx = |tx: &Value| {
        let entries: Vec<_> = (tx["entries"].as_array().unwrap().iter())
            .map(|entry| (unhex(&entry["key"]), unhex(&entry["metadata"]), unhex(&entry["value"])))
            .collect();
        (framed(&unhex(&tx["header_bytes"]), &entries, false), hash(&tx["alh"]))
    };
    Source { name: name.into(), txs: vectors[name]["txs"].as_array().unwrap().iter().map(tx).collect() }
}

/// All of them.
pub fn all() -> Vec<Source> {
    let mut sources = sample();
    sources.extend(["chain_v1", "chain_v0", "chain_lagging"].map(chain));
    sources
}

/// A history whose headers lag: `lags` has, per transaction, how many the tree is behind. Hashed here.
pub fn lagging(lags: &[u64]) -> Source {
    let mut alhs: Vec<Hash> = Vec::new();
    let mut txs = Vec::new();
    for (id, lag) in (1u64..).zip(lags) {
        let (key, value) = (format!("\0k{}", id % 5).into_bytes(), id.to_be_bytes().to_vec());
        let version = (id % 3 != 0) as u16;
        let (digest, count) = match version {
            0 => (h(&[&key, &h(&[&value])]), vec![0, 1]),
            _ => (h(&[&[0, 0], &(key.len() as u16).to_be_bytes(), &key, &h(&[&value])]), vec![0, 0, 0, 0, 0, 1]),
        };
        let eh = h(&[&[0], &digest]);
        let bl = id - 1 - lag;
        let bl_root = tree(&alhs[..bl as usize], [0; 32]);
        let prev = alhs.last().copied().unwrap_or(h(&[]));
        let (ts, version) = ((50 - id as i64).to_be_bytes(), version.to_be_bytes());
        let inner = h(&[&ts, &version, &count, &eh, &bl.to_be_bytes(), &bl_root]);
        let alh = h(&[&id.to_be_bytes(), &prev, &inner]);
        let header = [&id.to_be_bytes()[..], &prev, &ts, &version, &count, &eh, &bl.to_be_bytes(), &bl_root].concat();
        txs.push((framed(&header, &[(key, Vec::new(), value)], false), alh));
        alhs.push(alh);
    }
    Source { name: format!("lagging {lags:?}"), txs }
}

/// The same transaction after retention: hashes in the place of values.
pub fn without_values(exported: &[u8]) -> Vec<u8> {
    let u16_at = |at: usize| usize::from(u16::from_be_bytes(exported[at..at + 2].try_into().unwrap()));
    let u32_at = |at: usize| u32::from_be_bytes(exported[at..at + 4].try_into().unwrap()) as usize;
    let header = &exported[4..4 + u32_at(0)];
    let mut entries = Vec::new();
    let mut at = 4 + header.len();
    while at < exported.len() - 3 {
        let key = exported[at + 2..at + 2 + u16_at(at)].to_vec();
        at += 2 + key.len();
        let metadata = exported[at + 2..at + 2 + u16_at(at)].to_vec();
        at += 2 + metadata.len();
        let value = &exported[at + 4..at + 4 + u32_at(at)];
        at += 4 + value.len();
        entries.push((key, metadata, h(&[value]).to_vec()));
    }
    framed(header, &entries, true)
}

/// What takes over an exported transaction.
pub fn proposal(exported: &[u8]) -> TxProposal {
    TxProposal::imported(export::decode(exported).unwrap()).unwrap()
}

pub fn batch(exported: &[Vec<u8>]) -> Command {
    Command::Batch { ts: 2_000_000_000, proposals: exported.iter().map(|bytes| proposal(bytes)).collect() }
}

pub fn replica() -> Settings {
    Settings { replica: true, ..Settings::DEFAULT }
}
