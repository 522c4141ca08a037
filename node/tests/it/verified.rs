//! Verified calls, checked with nothing but the ledger's rules and what the client remembers.

use alhambra_ledger::digest::{EMPTY, sha256};
use alhambra_ledger::entry::entry_digest;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{verify_dual, verify_entries, verify_entry};
use alhambra_ledger::state::TrustedState;
use alhambra_ledger::{htree, kv as stored};
use alhambra_proto::convert::{self, kv_metadata_from};
use alhambra_proto::schema::{self, op};
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{DerSignature, VerifyingKey};
use tonic::{Code, Response};

use crate::support::*;

/// What an SDK does with a transaction: rebuild, compare, move its state forward.
pub fn check(state: &mut TrustedState, verifiable: &schema::VerifiableTx) -> convert::VerifiableTx {
    let verifiable = convert::VerifiableTx::try_from(verifiable).unwrap();
    let header = &verifiable.tx.header;
    let digests: Vec<_> = verifiable.tx.entries.iter().map(|entry| entry.digest(header.version).unwrap()).collect();
    assert_eq!(digests.len(), header.nentries as usize);
    verify_entries(&digests, header).unwrap();
    let (id, alh) = (header.id, header.alh().unwrap());
    if state.tx.get() == 0 {
        state.advance(id, alh).unwrap();
    } else if id >= state.tx {
        verify_dual(&verifiable.dual_proof, state.tx, id, &state.alh, &alh).unwrap();
        state.advance(id, alh).unwrap();
    } else {
        verify_dual(&verifiable.dual_proof, id, state.tx, &alh, &state.alh).unwrap();
    }
    verifiable
}

fn set_request(values: Vec<schema::KeyValue>, prove_since_tx: u64) -> schema::VerifiableSetRequest {
    let set_request = Some(schema::SetRequest { k_vs: values, ..Default::default() });
    schema::VerifiableSetRequest { set_request, prove_since_tx }
}

fn get_request(key: &str, prove_since_tx: u64) -> schema::VerifiableGetRequest {
    let key_request = Some(schema::KeyRequest { key: bytes(key), ..Default::default() });
    schema::VerifiableGetRequest { key_request, prove_since_tx }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_continues_the_state_that_the_client_trusts() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let mut inner = client.inner.clone();
    let first = client.state().await.unwrap();
    assert_eq!((first.tx_id, &first.tx_hash[..], first.db.as_str()), (0, &EMPTY.0[..], "defaultdb"));
    assert!(first.signature.is_none() && first.precommitted_tx_hash.is_empty());

    let mut state = TrustedState::empty("defaultdb".into());
    for n in 0..12 {
        let values = (0..=n % 3).map(|m| kv(&format!("k{n}-{m}"), &format!("v{n}"))).collect();
        let request = set_request(values, state.tx.get());
        let written = inner.verifiable_set(client.request(request)).await.unwrap().into_inner();
        check(&mut state, &written);
        assert_eq!(state.tx, TxId(n + 1));
    }
    // Entries that are older and entries that are newer than what the client trusts.
    client.set("newest", "value").await.unwrap();
    let mut halfway = TrustedState::empty("defaultdb".into());
    let request = schema::VerifiableTxRequest { tx: 6, ..Default::default() };
    check(&mut halfway, &inner.verifiable_tx_by_id(client.request(request)).await.unwrap().into_inner());
    for (key, value, tx) in [("k2-1", "v2", 3), ("k5-0", "v5", 6), ("k11-2", "v11", 12), ("newest", "value", 13)] {
        for trusted in [&mut TrustedState::empty("defaultdb".into()), &mut halfway.clone(), &mut state] {
            let request = get_request(key, trusted.tx.get());
            let found = inner.verifiable_get(client.request(request)).await.unwrap().into_inner();
            let entry = found.entry.unwrap();
            assert_eq!((&entry.value[..], entry.tx), (value.as_bytes(), tx));
            let verifiable = check(trusted, &found.verifiable_tx.unwrap());
            let proof = htree::InclusionProof::try_from(&found.inclusion_proof.unwrap()).unwrap();
            let metadata = kv_metadata_from(entry.metadata.as_ref()).to_bytes();
            let hash = sha256(&stored::set_value(value.as_bytes()));
            let digest = entry_digest(1, &stored::set_key(key.as_bytes()), &metadata, &hash).unwrap();
            verify_entry(&proof, &digest, &verifiable.tx.header).unwrap();
        }
    }
    let current = TrustedState::try_from(&client.state().await.unwrap()).unwrap();
    assert_eq!(current, state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_the_ledger_does_not_have_is_refused_in_the_words_of_each_call() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let mut inner = client.inner.clone();
    client.set("k", "v").await.unwrap();
    let state = |result: Result<(), tonic::Status>| refused(result, Code::InvalidArgument, "illegal state", "");
    state(inner.verifiable_set(client.request(set_request(vec![kv("k", "w")], 2))).await.map(drop));
    state(inner.verifiable_get(client.request(get_request("k", 2))).await.map(drop));
    let by_id = |tx, prove_since_tx| schema::VerifiableTxRequest { tx, prove_since_tx, ..Default::default() };
    let text = "illegal state: latest txID=1 is lower than specified as initial tx=2";
    refused(inner.verifiable_tx_by_id(client.request(by_id(1, 2))).await, Code::Unknown, text, "");
    refused(inner.verifiable_tx_by_id(client.request(by_id(2, 1))).await, Code::Unknown, "tx not found", "");
    refused(
        inner.verifiable_tx_by_id(client.request(by_id(0, 0))).await,
        Code::InvalidArgument,
        "illegal arguments",
        "",
    );
    let empty = schema::VerifiableSetRequest::default();
    refused(inner.verifiable_set(client.request(empty)).await, Code::InvalidArgument, "illegal arguments", "");
    let empty = schema::VerifiableGetRequest::default();
    let text = "illegal arguments: empty request";
    refused(inner.verifiable_get(client.request(empty)).await, Code::Unknown, text, "");
    refused(
        inner.verifiable_get(client.request(get_request("nothing", 1))).await,
        Code::Unknown,
        "tbtree: key not found",
        "",
    );
    assert_eq!(client.state().await.unwrap().tx_id, 1, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_every_state_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    std::fs::write(&path, include_str!("../../testdata/signing_key.pem")).unwrap();
    let mut config = config();
    config.signing_key = Some(path);
    let node = single_with(config).await;
    let client = Client::on(&node, "defaultdb").await;
    let mut inner = client.inner.clone();
    let holds = |state: &TrustedState, signature: &schema::Signature| {
        let key = VerifyingKey::from_sec1_bytes(&signature.public_key).unwrap();
        let signature = DerSignature::try_from(&signature.signature[..]).unwrap();
        key.verify(&state.signed_bytes().unwrap(), &signature).unwrap();
    };
    let mut state = TrustedState::empty("defaultdb".into());
    for n in 0..3 {
        let request = set_request(vec![kv("k", &n.to_string())], state.tx.get());
        let written = inner.verifiable_set(client.request(request)).await.unwrap().into_inner();
        check(&mut state, &written);
        holds(&state, &written.signature.unwrap());
    }
    // The signature of a read is over the target of its proof, here the client's own state.
    let request = schema::VerifiableTxRequest { tx: 1, prove_since_tx: 3, ..Default::default() };
    let found = inner.verifiable_tx_by_id(client.request(request)).await.map(Response::into_inner).unwrap();
    holds(&state, &found.signature.unwrap());
    let current = client.state().await.unwrap();
    holds(&TrustedState::try_from(&current).unwrap(), &current.signature.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn references_and_members_of_sets_are_proven_as_an_sdk_rebuilds_them() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let mut inner = client.inner.clone();
    let mut state = TrustedState::empty("defaultdb".into());
    let request = set_request(vec![kv("target", "value")], 0);
    check(&mut state, &inner.verifiable_set(client.request(request)).await.unwrap().into_inner());
    for (key, at_tx) in [("free", 0), ("tied", 1)] {
        let reference = schema::ReferenceRequest {
            key: bytes(key),
            referenced_key: bytes("target"),
            at_tx,
            bound_ref: at_tx > 0,
            ..Default::default()
        };
        let reference_request = Some(reference);
        let prove_since_tx = state.tx.get();
        let request = schema::VerifiableReferenceRequest { reference_request, prove_since_tx };
        let written = inner.verifiable_set_reference(client.request(request)).await.unwrap().into_inner();
        let written = check(&mut state, &written);
        let hash = sha256(&stored::reference_value(TxId(at_tx), b"target"));
        let entry = &written.tx.entries[0];
        assert_eq!((&entry.key[..], entry.value_hash), (&stored::set_key(key.as_bytes())[..], hash));

        // Read, the proof is that of the reference.
        let found = inner.verifiable_get(client.request(get_request(key, state.tx.get()))).await.unwrap().into_inner();
        let entry = found.entry.unwrap();
        let by = entry.referenced_by.unwrap();
        assert_eq!((&entry.value[..], by.tx, by.at_tx), (&b"value"[..], state.tx.get(), at_tx));
        let verifiable = check(&mut state, &found.verifiable_tx.unwrap());
        assert_eq!(verifiable.tx.header.id, TxId(by.tx), "the transaction of the reference");
        let proof = htree::InclusionProof::try_from(&found.inclusion_proof.unwrap()).unwrap();
        let digest = entry_digest(1, &stored::set_key(&by.key), &[], &hash).unwrap();
        verify_entry(&proof, &digest, &verifiable.tx.header).unwrap();
    }
    let member = schema::ZAddRequest { set: bytes("set"), score: -2.5, key: bytes("target"), ..Default::default() };
    let request = schema::VerifiableZAddRequest { z_add_request: Some(member.clone()), prove_since_tx: state.tx.get() };
    let written = check(&mut state, &inner.verifiable_z_add(client.request(request)).await.unwrap().into_inner());
    assert_eq!(&written.tx.entries[0].key[..], stored::zadd_key(b"set", -2.5, b"target", TxId(0)));
    assert_eq!(written.tx.entries[0].value_hash, EMPTY, "a member has no value");

    let illegal = "illegal arguments";
    let beyond = state.tx.get() + 1;
    let request = schema::VerifiableZAddRequest { z_add_request: Some(member), prove_since_tx: beyond };
    refused(inner.verifiable_z_add(client.request(request)).await, Code::InvalidArgument, illegal, "");
    let request = schema::VerifiableZAddRequest::default();
    refused(inner.verifiable_z_add(client.request(request)).await, Code::InvalidArgument, illegal, "");
    let reference =
        schema::ReferenceRequest { key: bytes("other"), referenced_key: bytes("target"), ..Default::default() };
    let request = schema::VerifiableReferenceRequest { reference_request: Some(reference), prove_since_tx: beyond };
    refused(inner.verifiable_set_reference(client.request(request)).await, Code::InvalidArgument, illegal, "");
    let request = schema::VerifiableReferenceRequest::default();
    refused(inner.verifiable_set_reference(client.request(request)).await, Code::InvalidArgument, illegal, "");
    assert_eq!(client.state().await.unwrap().tx_id, state.tx.get(), "nothing was written");
}

/// A database may be made to write headers of the first version, which carry no attributes; a proof over them verifies as well.
#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_first_version_are_written_and_proven_where_a_database_wants_them() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    let settings = schema::DatabaseNullableSettings {
        write_tx_header_version: Some(schema::NullableUint32 { value: 0 }),
        ..Default::default()
    };
    let create = schema::CreateDatabaseRequest { name: "old".into(), settings: Some(settings), if_not_exists: false };
    admin.inner.clone().create_database_v2(admin.request(create)).await.unwrap();
    let client = Client::on(&node, "old").await;
    let mut state = TrustedState::empty("old".into());
    for n in 1..=5 {
        let request = set_request(vec![kv("k", &n.to_string())], state.tx.get());
        let written = client.inner.clone().verifiable_set(client.request(request)).await.unwrap().into_inner();
        let header = written.tx.as_ref().unwrap().header.as_ref().unwrap();
        assert_eq!((header.id, header.version), (n, 0));
        check(&mut state, &written);
    }
    // Attributes of entries need a header that can hash them.
    let status = client.set_all(vec![expiring("gone", "v", i64::MAX)]).await.unwrap_err();
    assert!(status.message().contains("metadata is unsupported"), "{status:?}");
    assert_eq!(client.state().await.unwrap().tx_id, 5, "nothing was written");
    node.shutdown().await;
}

/// Which entry of its transaction is proven: of a value, however it is asked for, its own; of a reference that of the reference.
#[tokio::test(flavor = "multi_thread")]
async fn the_entry_that_was_found_is_the_one_that_is_proven() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let mut inner = client.inner.clone();
    let mut state = TrustedState::empty("defaultdb".into());
    let hidden = schema::KeyValue {
        metadata: Some(schema::KvMetadata { non_indexable: true, ..Default::default() }),
        ..kv("hidden", "unseen")
    };
    let request = set_request(vec![kv("a", "1"), hidden, kv("b", "2"), kv("c", "3")], 0);
    check(&mut state, &inner.verifiable_set(client.request(request)).await.unwrap().into_inner());
    let request = set_request(vec![kv("x", "0"), kv("c", "4")], state.tx.get());
    check(&mut state, &inner.verifiable_set(client.request(request)).await.unwrap().into_inner());
    let reference = schema::ReferenceRequest { key: bytes("r"), referenced_key: bytes("b"), ..Default::default() };
    let operations = [op::Operation::Kv(kv("y", "0")), op::Operation::Kv(kv("z", "0")), op::Operation::Ref(reference)];
    let operations = operations.map(|operation| schema::Op { operation: Some(operation) }).to_vec();
    let exec = schema::ExecAllRequest { operations, ..Default::default() };
    inner.exec_all(client.request(exec)).await.unwrap();

    // Key, atTx, atRevision; value, transaction and number of the entry that is proven.
    let cases = [
        (("c", 0, 0), ("4", 2, 1)),
        (("c", 1, 0), ("3", 1, 3)),
        (("c", 0, 1), ("3", 1, 3)),
        (("c", 0, -1), ("3", 1, 3)),
        (("hidden", 1, 0), ("unseen", 1, 1)),
        (("b", 0, 0), ("2", 1, 2)),
        (("r", 0, 0), ("2", 3, 2)),
    ];
    for ((key, at_tx, at_revision), (value, tx, number)) in cases {
        let asked = format!("{key} at {at_tx}, {at_revision}");
        let key_request = Some(schema::KeyRequest { key: bytes(key), at_tx, at_revision, ..Default::default() });
        let request = schema::VerifiableGetRequest { key_request, prove_since_tx: state.tx.get() };
        let found = inner.verifiable_get(client.request(request)).await.unwrap().into_inner();
        assert_eq!(&found.entry.unwrap().value[..], value.as_bytes(), "{asked}");
        let verifiable = check(&mut state, &found.verifiable_tx.unwrap());
        assert_eq!(verifiable.tx.header.id, TxId(tx), "{asked}");
        let proof = htree::InclusionProof::try_from(&found.inclusion_proof.unwrap()).unwrap();
        assert_eq!(proof.leaf, number, "{asked}");
        let proven = &verifiable.tx.entries[number as usize];
        assert_eq!(&proven.key[..], stored::set_key(key.as_bytes()), "{asked}");
        verify_entry(&proof, &proven.digest(1).unwrap(), &verifiable.tx.header).unwrap();
    }
}

/// Of a transaction of more entries than are told, the one that is proven is told alone, indexed or not.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_transaction_the_entry_that_is_proven_is_told_alone() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let hidden = |n: u32| Some(schema::KvMetadata { non_indexable: n.is_multiple_of(5), ..Default::default() });
    for count in [16, 17, 23, 40] {
        let entry = |n| schema::KeyValue { metadata: hidden(n), ..kv(&format!("{count}-{n}"), &format!("v{n}")) };
        let tx = client.set_all((0..count).map(entry).collect()).await.unwrap().id;
        // Twice: proven, and remembered.
        for n in (0..count).chain(0..count) {
            let key = format!("{count}-{n}");
            let at_tx = if n.is_multiple_of(5) || n.is_multiple_of(2) { tx } else { 0 };
            let key_request = Some(schema::KeyRequest { key: bytes(&key), at_tx, ..Default::default() });
            let request = schema::VerifiableGetRequest { key_request, prove_since_tx: 0 };
            let found = client.inner.clone().verifiable_get(client.request(request)).await.unwrap().into_inner();
            let told = found.entry.unwrap();
            assert_eq!((told.tx, &told.value[..]), (tx, format!("v{n}").as_bytes()), "{key}");
            assert_eq!(told.metadata.unwrap_or_default().non_indexable, n.is_multiple_of(5), "{key}");
            let verifiable = convert::VerifiableTx::try_from(&found.verifiable_tx.unwrap()).unwrap();
            let proof = htree::InclusionProof::try_from(&found.inclusion_proof.unwrap()).unwrap();
            assert_eq!((proof.leaf, proof.width), (n, count), "{key}");
            let entries = &verifiable.tx.entries;
            assert_eq!(entries.len(), if count > 16 { 1 } else { 16 }, "{key}");
            let proven = if count > 16 { &entries[0] } else { &entries[n as usize] };
            assert_eq!(&proven.key[..], stored::set_key(key.as_bytes()), "{key}");
            verify_entry(&proof, &proven.digest(1).unwrap(), &verifiable.tx.header).unwrap();
        }
    }
}

/// What has no value has none with a proof either, in the same words.
#[tokio::test(flavor = "multi_thread")]
async fn a_verified_get_refuses_what_a_get_refuses() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let written = client.set_all(vec![kv("gone", "1"), expiring("past", "2", 1), kv("there", "3")]).await.unwrap().id;
    let deleted = client.delete(&["gone"]).await.unwrap().id;
    let reference = |key: &str, referenced: &str| schema::ReferenceRequest {
        key: bytes(key),
        referenced_key: bytes(referenced),
        ..Default::default()
    };
    for (key, referenced) in [("to-there", "there"), ("to-last", "last")] {
        client.set("last", "4").await.unwrap();
        client.inner.clone().set_reference(client.request(reference(key, referenced))).await.unwrap();
    }
    client.delete(&["last"]).await.unwrap();
    let cases = [
        ("never", 0, 0),
        ("gone", 0, 0),
        ("gone", deleted, 0),
        ("gone", 0, 2),
        ("gone", 0, 3),
        ("gone", 0, -2),
        ("past", 0, 0),
        ("past", written, 0),
        ("past", 0, 1),
        ("there", deleted, 0),
        ("there", 999, 0),
        ("there", written, 1),
        ("to-last", 0, 0),
        ("", 0, 0),
    ];
    for (key, at_tx, at_revision) in cases {
        let asked = format!("{key:?} at {at_tx}, {at_revision}");
        let request = schema::KeyRequest { key: bytes(key), at_tx, at_revision, ..Default::default() };
        let plain = client.get_of(request.clone()).await.expect_err(&asked);
        let request = schema::VerifiableGetRequest { key_request: Some(request), prove_since_tx: 0 };
        let verified = client.inner.clone().verifiable_get(client.request(request)).await.expect_err(&asked);
        assert_eq!(told(&verified), told(&plain), "{asked}");
    }
    let request = schema::VerifiableGetRequest {
        key_request: Some(schema::KeyRequest { key: bytes("gone"), at_tx: written, ..Default::default() }),
        prove_since_tx: 0,
    };
    let before = client.inner.clone().verifiable_get(client.request(request)).await.unwrap().into_inner();
    assert_eq!(before.entry.unwrap().value, "1", "before it was deleted it was there");
}
