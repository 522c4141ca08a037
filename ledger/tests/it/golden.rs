//! Reading the golden files.

use alhambra_ledger::{
    Digest,
    header::{TxHeader, TxMetadata},
    ids::TxId,
    proof::{DualProof, LinearAdvanceProof, LinearProof},
};
use serde_json::Value;

pub fn vectors() -> Value {
    serde_json::from_str(include_str!("../../testdata/vectors.json")).unwrap()
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

pub fn tx(value: &Value) -> TxId {
    TxId(number(value))
}

pub fn unhex(value: &Value) -> Vec<u8> {
    let digits = text(value).as_bytes();
    assert_eq!(digits.len() % 2, 0);
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

pub fn digest(value: &Value) -> Digest {
    text(value).parse().unwrap()
}

pub fn digests(value: &Value) -> Vec<Digest> {
    list(value).iter().map(digest).collect()
}

pub fn header(value: &Value) -> TxHeader {
    TxHeader {
        id: tx(&value["id"]),
        ts: value["ts"].as_i64().unwrap(),
        version: number(&value["version"]).try_into().unwrap(),
        metadata: TxMetadata::from_bytes(&unhex(&value["metadata"])).unwrap(),
        nentries: number(&value["nentries"]).try_into().unwrap(),
        eh: digest(&value["eh"]),
        bl_tx_id: tx(&value["bl_tx_id"]),
        bl_root: digest(&value["bl_root"]),
        prev_alh: digest(&value["prev_alh"]),
    }
}

/// Headers of a chain of the vectors, in order.
pub fn chain(all: &Value, name: &str) -> Vec<TxHeader> {
    list(&all[name]["txs"]).iter().map(header).collect()
}

pub fn dual(value: &Value, source: TxHeader, target: TxHeader) -> DualProof {
    let linear = &value["linear"];
    let advance = &value["linear_advance"];
    DualProof {
        source,
        target,
        inclusion: digests(&value["inclusion"]),
        consistency: digests(&value["consistency"]),
        target_bl_tx_alh: digest(&value["target_bl_tx_alh"]),
        last_inclusion: digests(&value["last_inclusion"]),
        linear: LinearProof {
            source: tx(&linear["source_tx_id"]),
            target: tx(&linear["target_tx_id"]),
            terms: digests(&linear["terms"]),
        },
        linear_advance: (!advance.is_null()).then(|| LinearAdvanceProof {
            linear_terms: digests(&advance["terms"]),
            inclusions: list(&advance["inclusions"]).iter().map(digests).collect(),
        }),
    }
}
