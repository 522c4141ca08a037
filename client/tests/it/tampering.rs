//! Dishonest servers: every lie is found at the right step, evidence is kept, the trusted state does not move.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alhambra_client::{Check, Client, Error, FileStateStore, MemoryStateStore, Options, TxId};
use alhambra_ledger::Step;
use alhambra_proto::convert::{ConvertError, VerifiableTx};
use alhambra_proto::schema;
use bytes::Bytes;
use prost::Message;

use crate::chain::{Chain, Stored};
use crate::fake::{Cluster, Fake, signing_key};

fn step(error: Error) -> Check {
    match error {
        Error::Tampered { step, .. } => step,
        other => panic!("not found out: {other:?}"),
    }
}

fn flip(bytes: &mut Bytes) {
    let mut copy = bytes.to_vec();
    copy[0] ^= 1;
    *bytes = copy.into();
}

/// A server with a signing key and 9 transactions, the last with 3 entries, and a client that has verified the first 4.
async fn scene() -> (Arc<Cluster>, Fake, Client, Arc<MemoryStateStore>) {
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let (key, pem) = signing_key(7);
    *cluster.key.lock().unwrap() = Some(key);
    let fake = Fake::start(&cluster);
    let (client, store) = fake.client_with(Options { server_public_key: Some(pem), ..Options::default() }).await;
    client.verify_state().await.unwrap();
    {
        let mut chain = cluster.chain.lock().unwrap();
        (5..=8).for_each(|n| _ = chain.commit(vec![Stored::pair(format!("k{n}").as_bytes(), b"v")]));
        chain.commit(vec![Stored::pair(b"a", b"1"), Stored::pair(b"b", b"2"), Stored::pair(b"c", b"3")]);
    }
    (cluster, fake, client, store)
}

type Lie<T> = fn(&mut T);

fn tx(reply: &mut schema::VerifiableEntry) -> &mut schema::VerifiableTx {
    reply.verifiable_tx.as_mut().unwrap()
}

fn dual(reply: &mut schema::VerifiableTx) -> &mut schema::DualProof {
    reply.dual_proof.as_mut().unwrap()
}

fn header(reply: &mut schema::VerifiableTx) -> &mut schema::TxHeader {
    reply.tx.as_mut().unwrap().header.as_mut().unwrap()
}

#[tokio::test]
async fn lies_about_an_entry() {
    let (cluster, _fake, client, store) = scene().await;
    let before = client.trusted_state().await.unwrap();
    let malformed = |field| Check::Malformed(ConvertError::Missing { field });
    let other_tx = Check::Transaction { expected: TxId(9), found: TxId(8) };
    let lies: Vec<(Lie<schema::VerifiableEntry>, Check)> = vec![
        (|r| flip(&mut r.entry.as_mut().unwrap().value), Check::Proof(Step::EntryInclusion)),
        (|r| r.entry.as_mut().unwrap().value = Bytes::new(), Check::Proof(Step::EntryInclusion)),
        (|r| flip(&mut r.entry.as_mut().unwrap().key), Check::Key),
        (|r| r.entry.as_mut().unwrap().tx = 8, Check::Transaction { expected: TxId(8), found: TxId(9) }),
        (|r| header(tx(r)).id = 8, other_tx),
        (|r| flip(&mut header(tx(r)).e_h), Check::Proof(Step::EntryInclusion)),
        (|r| header(tx(r)).ts += 1, Check::Proof(Step::TargetAlh)),
        (|r| flip(&mut header(tx(r)).prev_alh), Check::Proof(Step::TargetAlh)),
        (|r| header(tx(r)).nentries = 2, Check::Proof(Step::EntryCount)),
        (
            |r| {
                let metadata = schema::KvMetadata { deleted: true, ..Default::default() };
                r.entry.as_mut().unwrap().metadata = Some(metadata);
            },
            Check::Metadata,
        ),
        (
            |r| {
                let metadata = schema::KvMetadata { non_indexable: true, ..Default::default() };
                r.entry.as_mut().unwrap().metadata = Some(metadata);
            },
            Check::Proof(Step::EntryInclusion),
        ),
        (|r| r.inclusion_proof.as_mut().unwrap().leaf = 0, Check::Proof(Step::EntryInclusion)),
        (|r| r.inclusion_proof.as_mut().unwrap().width = 4, Check::Proof(Step::EntryCount)),
        (|r| flip(&mut r.inclusion_proof.as_mut().unwrap().terms[0]), Check::Proof(Step::EntryInclusion)),
        (|r| flip(&mut tx(r).tx.as_mut().unwrap().entries[0].h_value), Check::Proof(Step::Entries)),
        (|r| _ = tx(r).tx.as_mut().unwrap().entries.pop(), Check::Proof(Step::EntryCount)),
        (|r| tx(r).tx.as_mut().unwrap().entries.swap(0, 2), Check::Proof(Step::Entries)),
        // One entry, but not the one that is proven, or not quite.
        (|r| tx(r).tx.as_mut().unwrap().entries.truncate(1), Check::Proof(Step::EntryCount)),
        (
            |r| {
                let entries = &mut tx(r).tx.as_mut().unwrap().entries;
                *entries = vec![entries[1].clone()];
                flip(&mut entries[0].h_value);
            },
            Check::Proof(Step::EntryCount),
        ),
        (|r| dual(tx(r)).source_tx_header.as_mut().unwrap().id = 3, Check::Proof(Step::SourceId)),
        (|r| dual(tx(r)).source_tx_header.as_mut().unwrap().ts += 1, Check::Proof(Step::SourceAlh)),
        (|r| dual(tx(r)).target_tx_header.as_mut().unwrap().ts += 1, Check::Proof(Step::TargetAlh)),
        (|r| flip(&mut dual(tx(r)).inclusion_proof[0]), Check::Proof(Step::Inclusion)),
        (|r| flip(&mut dual(tx(r)).consistency_proof[0]), Check::Proof(Step::Consistency)),
        (|r| flip(&mut dual(tx(r)).last_inclusion_proof[0]), Check::Proof(Step::LastInclusion)),
        (|r| flip(&mut dual(tx(r)).target_bl_tx_alh), Check::Proof(Step::LastInclusion)),
        (|r| flip(&mut dual(tx(r)).linear_proof.as_mut().unwrap().terms[1]), Check::Proof(Step::Linear)),
        (|r| tx(r).signature = None, Check::SignatureMissing),
        (|r| flip(&mut tx(r).signature.as_mut().unwrap().signature), Check::Signature),
        (|r| r.entry = None, malformed("VerifiableEntry.entry")),
        (|r| r.inclusion_proof = None, malformed("VerifiableEntry.inclusionProof")),
        (|r| tx(r).dual_proof = None, malformed("VerifiableTx.dualProof")),
        (
            |r| header(tx(r)).e_h.truncate(31),
            Check::Malformed(ConvertError::DigestLength { field: "TxHeader.eH", len: 31 }),
        ),
    ];
    for (index, (lie, expected)) in lies.iter().enumerate() {
        let lie = *lie;
        *cluster.on_entry.lock().unwrap() = Some(Box::new(lie));
        assert_eq!(step(client.verified_get("b").await.unwrap_err()), *expected, "lie {index}");
        assert_eq!(client.trusted_state().await.unwrap(), before, "lie {index} moved the state");
        let evidence = store.evidence();
        assert_eq!(evidence.len(), index + 1);
        assert_eq!((evidence[index].step.clone(), evidence[index].trusted_tx), (expected.to_string(), 4));
        assert!(!evidence[index].reply.is_empty());
    }
    // The proven entry alone is what nodes tell of a large transaction.
    let tells: [Lie<schema::VerifiableEntry>; 2] = [
        |r| {
            let entries = &mut tx(r).tx.as_mut().unwrap().entries;
            *entries = vec![entries[1].clone()];
        },
        |_| (),
    ];
    for tell in tells {
        *cluster.on_entry.lock().unwrap() = Some(Box::new(tell));
        assert_eq!(client.verified_get("b").await.unwrap().value.value.as_ref(), b"2");
    }
}

#[tokio::test]
async fn lies_about_a_write() {
    let (cluster, _fake, client, _) = scene().await;
    let before = client.trusted_state().await.unwrap();
    let lies: Vec<(Lie<schema::VerifiableTx>, Check)> = vec![
        (|r| r.tx.as_mut().unwrap().entries.clear(), Check::EntryCount { expected: 1, found: 0 }),
        (|r| header(r).nentries = 2, Check::EntryCount { expected: 1, found: 2 }),
        (|r| header(r).id = 2, Check::Transaction { expected: TxId(5), found: TxId(2) }),
        (|r| flip(&mut r.tx.as_mut().unwrap().entries[0].key), Check::Key),
        (|r| flip(&mut r.tx.as_mut().unwrap().entries[0].h_value), Check::Value),
        (
            |r| {
                let metadata = schema::KvMetadata { deleted: true, ..Default::default() };
                r.tx.as_mut().unwrap().entries[0].metadata = Some(metadata);
            },
            Check::Metadata,
        ),
        (|r| flip(&mut header(r).e_h), Check::Proof(Step::Entries)),
        (|r| header(r).ts += 1, Check::Proof(Step::TargetAlh)),
        (|r| dual(r).source_tx_header.as_mut().unwrap().ts += 1, Check::Proof(Step::SourceAlh)),
        (|r| r.signature = None, Check::SignatureMissing),
    ];
    for (index, (lie, expected)) in lies.iter().enumerate() {
        let lie = *lie;
        *cluster.on_tx.lock().unwrap() = Some(Box::new(lie));
        assert_eq!(step(client.verified_set("x", "y").await.unwrap_err()), *expected, "lie {index}");
        assert_eq!(client.trusted_state().await.unwrap(), before, "lie {index} moved the state");
    }
}

/// Each byte of an answer: whatever still parses and says something else is refused.
#[tokio::test]
async fn no_byte_of_a_proof_can_be_changed() {
    // Without signatures, which have their own tests: checking them costs more than all the rest.
    let (cluster, fake, ..) = scene().await;
    *cluster.key.lock().unwrap() = None;
    let (client, _) = fake.client().await;
    client.verified_tx_by_id(TxId(9)).await.unwrap();
    let at = Arc::new(AtomicUsize::new(0));
    let told = Arc::new(std::sync::Mutex::new(None));
    let (at_too, told_too) = (Arc::clone(&at), Arc::clone(&told));
    *cluster.on_tx.lock().unwrap() = Some(Box::new(move |reply| {
        let mut bytes = reply.encode_to_vec();
        let index = at_too.load(Ordering::SeqCst);
        let changed = bytes.get_mut(index).map(|byte| *byte ^= 0x11).and_then(|()| {
            let lie = schema::VerifiableTx::decode(bytes.as_slice()).ok()?;
            (said(&lie) != said(reply)).then_some(lie)
        });
        *told_too.lock().unwrap() = Some((index < bytes.len(), changed.is_some()));
        if let Some(lie) = changed {
            *reply = lie;
        }
    }));
    let (mut bytes, mut lies) = (0, 0);
    loop {
        let result = client.verified_tx_by_id(TxId(7)).await;
        let (within, lied) = told.lock().unwrap().take().unwrap();
        if !within {
            break;
        }
        match result {
            Ok(_) => assert!(!lied, "byte {bytes} was changed unnoticed"),
            Err(error) => assert!(lied, "byte {bytes}: an unchanged answer was refused: {error:?}"),
        }
        bytes += 1;
        lies += usize::from(lied);
        at.fetch_add(1, Ordering::SeqCst);
    }
    assert!(bytes > 700 && lies > 600, "{bytes} bytes, {lies} lies");
}

/// What an answer says, without the two fields that no hash covers and nobody relies on.
fn said(reply: &schema::VerifiableTx) -> Result<VerifiableTx, ConvertError> {
    let mut said = VerifiableTx { signature: None, ..VerifiableTx::try_from(reply)? };
    said.tx.entries.iter_mut().for_each(|entry| {
        entry.value_len = 0;
        entry.value = Bytes::new();
    });
    Ok(said)
}

#[tokio::test]
async fn a_signature_of_another_key_is_refused() {
    let (cluster, _fake, client, _) = scene().await;
    *cluster.key.lock().unwrap() = Some(signing_key(8).0);
    assert_eq!(step(client.verified_get("b").await.unwrap_err()), Check::Signature);
    assert_eq!(step(client.verify_state().await.unwrap_err()), Check::Signature);
}

#[tokio::test]
async fn a_rewound_server_is_found_out_by_every_call() {
    let (cluster, _fake, client, store) = scene().await;
    let trusted = client.verify_state().await.unwrap().now;
    let shorter = Chain::with_txs(1, 4);
    *cluster.chain.lock().unwrap() = shorter;
    let rewound = Check::Rewound { server: TxId(4), trusted: TxId(9) };
    assert_eq!(step(client.verify_state().await.unwrap_err()), rewound);
    assert_eq!(step(client.verified_get("k2").await.unwrap_err()), rewound);
    assert_eq!(step(client.verified_set("k2", "v").await.unwrap_err()), rewound);
    assert_eq!(step(client.verified_tx_by_id(TxId(2)).await.unwrap_err()), rewound);
    assert_eq!(client.trusted_state().await.unwrap(), Some(trusted));
    assert!(!store.evidence()[1].claimed_state.is_empty());
    assert_eq!(cluster.state().tx, TxId(4), "nothing was written");
}

#[tokio::test]
async fn a_server_that_lags_behind_is_no_liar() {
    let (cluster, _fake, client, _) = scene().await;
    let before = client.verify_state().await.unwrap().now;
    let old = cluster.chain.lock().unwrap().state_at(TxId(6));
    let (key, _) = signing_key(7);
    *cluster.on_state.lock().unwrap() = Some(Box::new(move |reply| {
        use p256::ecdsa::signature::Signer;
        let signature: p256::ecdsa::Signature = key.sign(&old.signed_bytes().unwrap());
        let signature =
            schema::Signature { public_key: Bytes::new(), signature: signature.to_der().as_bytes().to_vec().into() };
        *reply = alhambra_proto::convert::immutable_state(&old, Some(signature));
    }));
    assert_eq!(client.verify_state().await.unwrap().now, before);
}

#[tokio::test]
async fn another_history_is_found_out_by_every_call() {
    for length in [9, 30] {
        let (cluster, _fake, client, _) = scene().await;
        let trusted = client.verify_state().await.unwrap().now;
        let mut foreign = Chain::with_txs(2, length - 1);
        foreign.commit(vec![Stored::pair(b"b", b"2")]);
        *cluster.chain.lock().unwrap() = foreign;
        let expected = if length == 9 { Check::Fork { tx: TxId(9) } } else { Check::Proof(Step::SourceAlh) };
        assert_eq!(step(client.verify_state().await.unwrap_err()), expected);
        let expected = Check::Proof(Step::SourceAlh);
        assert_eq!(step(client.verified_get("b").await.unwrap_err()), expected);
        assert_eq!(step(client.verified_set("b", "3").await.unwrap_err()), expected);
        assert_eq!(step(client.verified_get("k3").await.unwrap_err()), Check::Proof(Step::TargetAlh));
        assert_eq!(client.trusted_state().await.unwrap(), Some(trusted));
    }
}

#[tokio::test]
async fn the_state_of_another_database_is_refused() {
    let (cluster, _fake, client, _) = scene().await;
    *cluster.key.lock().unwrap() = None;
    *cluster.on_state.lock().unwrap() = Some(Box::new(|reply| reply.db = "otherdb".into()));
    assert_eq!(step(client.verify_state().await.unwrap_err()), Check::Database);
}

#[tokio::test]
async fn evidence_is_a_file_that_names_states_and_answer() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let fake = Fake::start(&cluster);
    let options = Options { state_dir: Some(dir.path().to_owned()), ..Options::default() };
    let client = Client::connect(vec![fake.endpoint.clone()], options.clone()).await.unwrap();
    client.verified_get("k2").await.unwrap();
    *cluster.on_entry.lock().unwrap() = Some(Box::new(|reply| flip(&mut reply.entry.as_mut().unwrap().value)));
    let Error::Tampered { evidence: Some(path), .. } = client.verified_get("k2").await.unwrap_err() else { panic!() };
    let evidence: alhambra_client::Evidence = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((evidence.call.as_str(), evidence.step.as_str()), ("verified_get", "entry inclusion"));
    assert_eq!(evidence.endpoint, fake.endpoint);
    let reply: Vec<u8> = (0..evidence.reply.len() / 2)
        .map(|i| u8::from_str_radix(&evidence.reply[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let reply = schema::VerifiableEntry::decode(reply.as_slice()).unwrap();
    assert_ne!(reply.entry.unwrap().value, "v");

    // Another client of the same folder goes on from the same state.
    *cluster.on_entry.lock().unwrap() = None;
    *cluster.chain.lock().unwrap() = Chain::with_txs(2, 4);
    let client = Client::connect(vec![fake.endpoint.clone()], options).await.unwrap();
    assert_eq!(step(client.verify_state().await.unwrap_err()), Check::Fork { tx: TxId(4) });
    drop(FileStateStore::open(dir.path()).unwrap());
}

#[tokio::test]
async fn lies_about_a_reference_and_a_member_of_a_set() {
    let (cluster, _fake, client, store) = scene().await;
    let refer = async |at_tx: u64| client.verified_set_reference("ref", "a", TxId(at_tx)).await;
    let add = async |score: f64, at_tx: u64| client.verified_z_add("set", score, "a", TxId(at_tx)).await;
    refer(0).await.unwrap();
    refer(9).await.unwrap();
    add(-2.5, 0).await.unwrap();
    add(f64::INFINITY, 9).await.unwrap();
    let before = client.trusted_state().await.unwrap();
    let entry = |reply: &mut schema::VerifiableTx| reply.tx.as_mut().unwrap().entries.remove(0);
    // What was written instead hashes as it should, and is not what was asked for.
    for (stored, step_of_reference, step_of_member) in [
        (Stored::bound_reference(b"ref", b"a", TxId(8)), Check::Value, Check::Key),
        (Stored::reference(b"ref", b"b"), Check::Value, Check::Key),
        (Stored::reference(b"other", b"a"), Check::Key, Check::Key),
        (Stored::pair(b"ref", b"a"), Check::Value, Check::Key),
    ] {
        let lie = {
            let cluster = cluster.clone();
            move |reply: &mut schema::VerifiableTx| {
                let since = TxId(reply.dual_proof.as_ref().unwrap().source_tx_header.as_ref().unwrap().id);
                let mut chain = cluster.chain.lock().unwrap();
                let tx = chain.commit(vec![stored.clone()]);
                let signature = reply.signature.take();
                *reply = (&chain.verifiable_tx(tx, since)).into();
                reply.signature = signature;
            }
        };
        *cluster.on_tx.lock().unwrap() = Some(Box::new(lie));
        assert_eq!(step(refer(0).await.unwrap_err()), step_of_reference);
        assert_eq!(step(add(1.0, 0).await.unwrap_err()), step_of_member);
    }
    *cluster.on_tx.lock().unwrap() = Some(Box::new(move |reply| drop(entry(reply))));
    let nothing = Check::EntryCount { expected: 1, found: 0 };
    assert_eq!(step(refer(0).await.unwrap_err()), nothing);
    assert_eq!(step(add(1.0, 0).await.unwrap_err()), nothing);
    assert_eq!(client.trusted_state().await.unwrap(), before, "the trusted state does not move");
    assert_eq!(store.evidence().len(), 10);

    // A server that was set back has only "illegal arguments" for it.
    *cluster.on_tx.lock().unwrap() = None;
    *cluster.chain.lock().unwrap() = Chain::with_txs(1, 4);
    let trusted = before.unwrap().tx;
    let rewound = Check::Rewound { server: TxId(4), trusted };
    assert_eq!(step(refer(0).await.unwrap_err()), rewound);
    assert_eq!(step(add(1.0, 0).await.unwrap_err()), rewound);
}
