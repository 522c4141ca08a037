//! Real exports of four databases: every byte is understood, and every hash in them follows from the rest.

use std::collections::BTreeMap;

use alhambra_ledger::{
    digest::EMPTY,
    error::FormatError,
    export::{self, ExportedTx, ExportedValue},
    ids::TxId,
    proof,
};
use serde_json::Value;

use crate::{
    golden::{digest, number, text, unhex},
    history::{History, Tree},
};

const SAMPLE: &str = include_str!("../../testdata/export-sample.jsonl");

/// The bytes of each transaction, without the eight-byte length of the stream's framing.
fn sample() -> Vec<(Value, Vec<u8>)> {
    let line = |line| {
        let value: Value = serde_json::from_str(line).unwrap();
        let chunk = unhex(&value["chunk_content_hex"]);
        let (len, bytes) = chunk.split_first_chunk().unwrap();
        assert_eq!(u64::from_be_bytes(*len), bytes.len() as u64);
        let bytes = bytes.to_vec();
        (value, bytes)
    };
    SAMPLE.lines().map(line).collect()
}

#[test]
fn every_transaction_decodes_and_encodes_to_the_same_bytes() {
    let all = sample();
    assert_eq!(all.len(), 61);
    for (value, bytes) in all {
        let tx = export::decode(&bytes).unwrap();
        assert_eq!(tx.header.id, TxId(number(&value["tx"])));
        assert_eq!(u64::from(tx.header.version), number(&value["header_version"]));
        assert_eq!(tx.entries.len() as u64, number(&value["entries"]));
        assert_eq!(export::encode(&tx).unwrap(), bytes);
    }
}

#[test]
fn every_chain_of_hashes_holds() {
    let mut databases: BTreeMap<String, Vec<ExportedTx>> = BTreeMap::new();
    for (value, bytes) in sample() {
        let tx = export::decode(&bytes).unwrap();
        assert_eq!(tx.header.alh(), Ok(digest(&value["alh_hex"])));
        databases.entry(text(&value["database"]).into()).or_default().push(tx);
    }
    let counts: Vec<_> = databases.iter().map(|(name, txs)| (name.as_str(), txs.len())).collect();
    assert_eq!(counts, [("kvone", 31), ("notime", 11), ("oldheaders", 11), ("sql", 8)]);
    for (name, txs) in &databases {
        let mut tree = Tree::default();
        let mut prev_alh = EMPTY;
        for (n, tx) in (1..).zip(txs) {
            let h = &tx.header;
            assert_eq!(h.id, TxId(n), "{name} is complete");
            assert_eq!(tx.eh(), Ok(h.eh), "eh of {name} tx {n}");
            assert_eq!(h.prev_alh, prev_alh, "prev alh of {name} tx {n}");
            assert!(h.is_linked(), "{name} tx {n}");
            assert_eq!(tree.root(n - 1), h.bl_root, "bl root of {name} tx {n}");
            assert_eq!(h.ts == 0, name == "notime", "{name} tx {n}");
            assert_eq!(h.version == 0, name == "oldheaders", "{name} tx {n}");
            prev_alh = h.alh().unwrap();
            tree.push(&prev_alh);
        }
        let history = History::of(txs.iter().map(|tx| tx.header.clone()).collect());
        let last = txs.len() as u64;
        for s in 1..=last {
            let proof = history.dual(s, last);
            let got = proof::verify_dual(&proof, TxId(s), TxId(last), &history.alh(s), &history.alh(last));
            assert_eq!(got, Ok(()), "{name} {s} to {last}");
        }
    }
}

#[test]
fn closing_flag_may_be_absent_and_nothing_else() {
    let (_, bytes) = sample().remove(0);
    let whole = export::decode(&bytes).unwrap();
    assert_eq!(export::decode(&bytes[..bytes.len() - 3]), Ok(whole));
    for len in (0..bytes.len()).filter(|len| *len != bytes.len() - 3) {
        assert!(export::decode(&bytes[..len]).is_err(), "cut at {len}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(export::decode(&longer), Err(FormatError::TrailingBytes { count: 1 }));
    let mut odd = bytes;
    *odd.last_mut().unwrap() = 2;
    assert_eq!(export::decode(&odd), Err(FormatError::UnexpectedByte { part: "closing flag", byte: 2 }));
}

#[test]
fn gone_values_change_no_hash_and_cannot_be_mixed() {
    let mut tx = export::decode(&sample()[27].1).unwrap();
    assert_eq!(tx.entries.len(), 3);
    let eh = tx.eh();
    tx.entries[0].value = ExportedValue::Gone(tx.entries[0].value.hash());
    assert_eq!(export::encode(&tx), Err(FormatError::PartlyGone));
    for entry in &mut tx.entries {
        entry.value = ExportedValue::Gone(entry.value.hash());
    }
    assert_eq!(export::encode(&tx), Err(FormatError::PartlyGone), "the flag says they are there");
    tx.values_gone = true;
    assert_eq!(export::decode(&export::encode(&tx).unwrap()), Ok(tx.clone()));
    assert_eq!(tx.eh(), eh);
    tx.entries.pop();
    assert_eq!(export::encode(&tx), Err(FormatError::EntryCount { header: 3, found: 2 }));
}
