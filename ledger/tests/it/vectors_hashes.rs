//! Golden vectors of everything below a proof: metadata, entries, trees of one transaction, headers, export, keys,
//! state.

use alhambra_ledger::{
    digest::{EMPTY, ZERO, sha256},
    entry::{KvMetadata, entry_digest},
    export,
    header::{TxHeader, TxMetadata},
    htree,
    ids::TxId,
    kv,
    state::TrustedState,
};

use crate::golden::{chain, digest, digests, header, list, number, text, tx, unhex, vectors};

#[test]
fn constants() {
    let c = &vectors()["constants"];
    assert_eq!(digest(&c["sha256_empty"]), EMPTY);
    assert_eq!(digest(&c["zero32"]), ZERO);
    assert_eq!(digest(&c["first_prev_alh"]), EMPTY);
    assert_eq!(digest(&c["first_bl_root"]), ZERO);
    assert_eq!(digest(&c["htree_empty_root"]), htree::root(&[]));
}

#[test]
fn metadata_bytes() {
    let all = vectors();
    for case in list(&all["kv_metadata"]) {
        let md = KvMetadata {
            deleted: case["deleted"].as_bool().unwrap(),
            expires_at: case["expires_at"].as_i64(),
            non_indexable: case["non_indexable"].as_bool().unwrap(),
        };
        assert_eq!(md.to_bytes(), unhex(&case["hex"]));
        assert_eq!(KvMetadata::from_bytes(&md.to_bytes()), Ok(md));
        assert_eq!(md.is_empty(), text(&case["hex"]).is_empty());
    }
    for case in list(&all["tx_metadata"]) {
        let md = TxMetadata {
            truncated_up_to: case["truncated_upto"].as_u64().map(TxId),
            extra: if case["extra"].is_null() { Vec::new() } else { unhex(&case["extra"]) },
        };
        let bytes = md.to_bytes().unwrap();
        assert_eq!(bytes, unhex(&case["hex"]));
        assert_eq!(md.is_empty(), bytes.is_empty());
        assert_eq!(TxMetadata::from_bytes(&bytes), Ok(md));
    }
}

#[test]
fn entry_digests() {
    for case in list(&vectors()["entry_digests"]) {
        let hash = digest(&case["hvalue"]);
        if !case["value"].is_null() {
            assert_eq!(sha256(&unhex(&case["value"])), hash);
        }
        let version = number(&case["version"]).try_into().unwrap();
        let got = entry_digest(version, &unhex(&case["key"]), &unhex(&case["metadata"]), &hash);
        assert_eq!(got, Ok(digest(&case["digest"])), "{}", case["name"]);
    }
}

#[test]
fn trees_of_one_transaction() {
    let all = vectors();
    assert_eq!(list(&all["htree"]).len(), 9);
    for case in list(&all["htree"]) {
        let (leaves, root) = (digests(&case["digests"]), digest(&case["root"]));
        assert_eq!(htree::root(&leaves), root);
        let proofs = list(&case["proofs"]);
        assert_eq!(proofs.len(), leaves.len());
        for expected in proofs {
            let leaf = u32::try_from(number(&expected["leaf"])).unwrap();
            let proof = htree::prove(&leaves, leaf).unwrap();
            assert_eq!(proof.terms, digests(&expected["terms"]));
            assert_eq!(u64::from(proof.width), number(&case["width"]));
            assert_eq!(htree::verify(&proof, &leaves[leaf as usize], &root), Ok(()));
        }
    }
}

#[test]
fn headers_of_all_chains() {
    let all = vectors();
    for name in ["chain_v1", "chain_v0", "chain_lagging"] {
        let mut prev_alh = EMPTY;
        for case in list(&all[name]["txs"]) {
            let h = header(case);
            let digests: Vec<_> = list(&case["entries"])
                .iter()
                .map(|e| {
                    let hash = digest(&e["hvalue"]);
                    let got = entry_digest(h.version, &unhex(&e["key"]), &unhex(&e["metadata"]), &hash).unwrap();
                    assert_eq!(got, digest(&e["digest"]), "{name} tx {}", h.id);
                    got
                })
                .collect();
            assert_eq!(htree::root(&digests), h.eh, "{name} tx {}", h.id);
            assert_eq!(h.prev_alh, prev_alh, "{name} tx {}", h.id);
            assert_eq!(h.validate(), Ok(()), "{name} tx {}", h.id);
            assert_eq!(h.inner_hash(), Ok(digest(&case["inner_hash"])), "{name} tx {}", h.id);
            prev_alh = h.alh().unwrap();
            assert_eq!(prev_alh, digest(&case["alh"]), "{name} tx {}", h.id);
            let bytes = unhex(&case["header_bytes"]);
            assert_eq!(h.to_bytes().unwrap(), bytes, "{name} tx {}", h.id);
            assert_eq!(TxHeader::from_bytes(&bytes), Ok(h));
        }
    }
}

#[test]
fn exports() {
    let all = vectors();
    let mut gone = 0;
    for case in list(&all["export"]) {
        let bytes = unhex(&case["hex"]);
        let decoded = export::decode(&bytes).unwrap();
        let expected = &chain(&all, text(&case["chain"]))[usize::try_from(number(&case["tx"])).unwrap() - 1];
        assert_eq!(decoded.header, *expected);
        assert_eq!(decoded.eh(), Ok(expected.eh));
        assert_eq!(Some(decoded.values_gone), case["truncated"].as_bool());
        assert_eq!(export::encode(&decoded).unwrap(), bytes);
        gone += u32::from(decoded.values_gone);
    }
    assert_eq!(gone, 1);
}

#[test]
fn stored_keys_and_values() {
    let all = vectors();
    let layer = &all["kv_layer"];
    for case in list(&layer["set"]) {
        let (key, value) = (unhex(&case["key"]), unhex(&case["value"]));
        assert_eq!(kv::set_key(&key), unhex(&case["stored_key"]));
        assert_eq!(kv::set_value(&value), unhex(&case["stored_value"]));
        assert_eq!(kv::parse_set_key(&unhex(&case["stored_key"])), Ok(&key[..]));
        assert_eq!(kv::parse_value(&unhex(&case["stored_value"])), Ok(kv::StoredValue::Plain(&value)));
    }
    for case in list(&layer["reference"]) {
        let (target, at_tx) = (unhex(&case["target"]), tx(&case["at_tx"]));
        let stored = kv::reference_value(at_tx, &target);
        assert_eq!(stored, unhex(&case["stored_value"]));
        assert_eq!(kv::set_key(&unhex(&case["key"])), unhex(&case["stored_key"]));
        assert_eq!(kv::parse_value(&stored), Ok(kv::StoredValue::Reference { at_tx, key: &target }));
    }
    for case in list(&layer["zadd"]) {
        let (set, key, at_tx) = (unhex(&case["set"]), unhex(&case["key"]), tx(&case["at_tx"]));
        let score = f64::from_bits(u64::from_str_radix(text(&case["score_bits"]), 16).unwrap());
        assert_eq!(case["score"].as_f64(), Some(score));
        let stored = kv::zadd_key(&set, score, &key, at_tx);
        assert_eq!(stored, unhex(&case["stored_key"]));
        assert_eq!(kv::parse_zadd_key(&stored), Ok(kv::SortedSetMember { set: &set, score, key: &key, at_tx }));
    }
    for case in list(&layer["zset_scan_prefix"]) {
        assert_eq!(kv::zset_prefix(&unhex(&case["set"])), unhex(&case["prefix"]));
    }
}

#[test]
fn signed_bytes_of_states() {
    for case in list(&vectors()["state_signature"]["states"]) {
        let state =
            TrustedState { database: text(&case["db"]).into(), tx: tx(&case["tx_id"]), alh: digest(&case["tx_hash"]) };
        let bytes = state.signed_bytes().unwrap();
        assert_eq!(bytes, unhex(&case["payload"]));
        assert_eq!(sha256(&bytes), digest(&case["payload_sha256"]));
    }
}
