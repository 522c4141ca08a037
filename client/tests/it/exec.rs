//! Several operations in one transaction: what is asked for is what is proven, and a server that did something else is found out.

use std::sync::Arc;

use alhambra_client::{Check, Client, Error, KeyValue, Operation, TxId, Version};
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::{Step, kv};
use alhambra_proto::code::Code;
use alhambra_proto::schema;
use bytes::Bytes;

use crate::chain::{Chain, Stored};
use crate::fake::{Cluster, Fake, Fate};

async fn scene() -> (Arc<Cluster>, Fake, Client) {
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    client.verify_state().await.unwrap();
    (cluster, fake, client)
}

fn text(bytes: &'static str) -> Bytes {
    Bytes::from_static(bytes.as_bytes())
}

fn operations() -> Vec<Operation> {
    let expiring = KvMetadata { expires_at: Some(4_000_000_000), ..KvMetadata::default() };
    let reference = |key, version| Operation::Reference { key: text(key), target: text("a"), version };
    let member = |score, version| Operation::Member { set: text("s"), score, key: text("a"), version };
    vec![
        Operation::set("a", "1"),
        Operation::Set(KeyValue { metadata: expiring, ..KeyValue::new("b", "2") }),
        reference("newest", Version::Newest),
        reference("bound", Version::At(TxId(3))),
        reference("own", Version::Own),
        member(1.5, Version::Newest),
        member(-1.5, Version::At(TxId(2))),
        member(0.0, Version::Own),
    ]
}

#[tokio::test]
async fn all_operations_are_proven_as_they_were_asked_for() {
    let (cluster, fake, client) = scene().await;
    let plain = client.exec_all(&operations()).await.unwrap();
    assert_eq!((plain.id, plain.nentries, fake.count("verifiable_tx_by_id")), (TxId(5), 8, 0));
    let proven = client.verified_exec_all(&operations()).await.unwrap();
    assert_eq!((proven.header.id, &proven.state), (TxId(6), &cluster.state()));
    assert_eq!(client.trusted_state().await.unwrap(), Some(cluster.state()));
    // What the server was told, by its own model of the transaction.
    let keys: Vec<_> = cluster.chain.lock().unwrap().tx(TxId(6)).entries.into_iter().map(|entry| entry.key).collect();
    let member = |score, at: u64| Bytes::from(kv::zadd_key(b"s", score, b"a", TxId(at)));
    let plain = |key: &str| Bytes::from(kv::set_key(key.as_bytes()));
    let names = ["a", "b", "newest", "bound", "own"].map(plain);
    assert_eq!(keys, [&names[..], &[member(1.5, 0), member(-1.5, 2), member(0.0, 6)]].concat());
}

#[tokio::test]
async fn a_transaction_of_something_else_is_found_out() {
    let (cluster, _fake, client) = scene().await;
    let before = client.trusted_state().await.unwrap();
    let header = |reply: &mut schema::VerifiableTx, change: fn(&mut schema::TxHeader)| {
        change(reply.tx.as_mut().unwrap().header.as_mut().unwrap());
    };
    type Lie = Box<dyn FnMut(&mut schema::VerifiableTx) + Send>;
    let entry = |n: usize, change: fn(&mut schema::TxEntry)| -> Lie {
        Box::new(move |reply| change(&mut reply.tx.as_mut().unwrap().entries[n]))
    };
    let key_of = |n: usize| entry(n, |entry| entry.key = kv::set_key(b"another").into());
    let hash_of = |n: usize| entry(n, |entry| entry.h_value = vec![7; 32].into());
    let lies: Vec<(Lie, Check)> = vec![
        (key_of(0), Check::Key),
        (key_of(4), Check::Key),
        (key_of(7), Check::Key),
        (hash_of(0), Check::Value),
        (hash_of(3), Check::Value),
        (entry(1, |entry| entry.metadata = None), Check::Metadata),
        (Box::new(|reply| _ = reply.tx.as_mut().unwrap().entries.pop()), Check::EntryCount { expected: 8, found: 7 }),
        (Box::new(|reply| reply.tx.as_mut().unwrap().entries.swap(0, 1)), Check::Key),
        (Box::new(move |reply| header(reply, |h| h.e_h = vec![7; 32].into())), Check::Proof(Step::Entries)),
        (Box::new(move |reply| header(reply, |h| h.ts += 1)), Check::Proof(Step::TargetAlh)),
        // Each of these calls writes a transaction, the first one transaction 5.
        (Box::new(move |reply| header(reply, |h| h.id = 3)), Check::Transaction { expected: TxId(15), found: TxId(3) }),
        // What is bound to its own transaction follows from the id that was told, so that is the one to be proven.
        (Box::new(move |reply| header(reply, |h| h.id = 9)), Check::Transaction { expected: TxId(16), found: TxId(9) }),
    ];
    for (index, (lie, expected)) in lies.into_iter().enumerate() {
        *cluster.on_tx.lock().unwrap() = Some(lie);
        match client.verified_exec_all(&operations()).await {
            Err(Error::Tampered { step, .. }) => assert_eq!(step, expected, "lie {index}"),
            other => panic!("lie {index} is not found out: {other:?}"),
        }
        assert_eq!(client.trusted_state().await.unwrap(), before, "lie {index} moved the state");
    }

    // An honest proof of another transaction: an old one, or one of the same keys.
    let mut others = operations();
    others[0] = Operation::set("a", "another value");
    *cluster.on_tx.lock().unwrap() = None;
    for (shown, expected) in [(2, Check::EntryCount { expected: 8, found: 1 }), (5, Check::Value)] {
        *cluster.on_header.lock().unwrap() = Some(Box::new(move |header| header.id = shown));
        match client.verified_exec_all(&others).await {
            Err(Error::Tampered { step, .. }) => assert_eq!(step, expected, "tx {shown}"),
            other => panic!("tx {shown} is not found out: {other:?}"),
        }
    }
    assert_eq!(client.trusted_state().await.unwrap(), before);
    *cluster.on_header.lock().unwrap() = None;
    client.verified_exec_all(&operations()).await.unwrap();
}

#[tokio::test]
async fn without_a_proof_the_outcome_is_unknown() {
    let (cluster, fake, client) = scene().await;
    let before = client.trusted_state().await.unwrap();
    // The write goes through, and what should prove it is refused.
    let node = fake.node.clone();
    *cluster.on_header.lock().unwrap() = Some(Box::new(move |_| {
        node.refusals.lock().unwrap().push_back(Code::KeyNotFound.status("no such transaction"));
    }));
    let failed = client.verified_exec_all(&operations()).await.unwrap_err();
    assert!(matches!(failed, Error::OutcomeUnknown { .. }), "{failed:?}");
    assert_eq!(cluster.state().tx, TxId(5), "it was written");
    *cluster.on_header.lock().unwrap() = None;
    *fake.node.fate.lock().unwrap() = Some(Fate::AppliedThen(tonic::Code::Unavailable));
    let failed = client.verified_exec_all(&operations()).await.unwrap_err();
    assert!(matches!(failed, Error::OutcomeUnknown { .. }), "{failed:?}");
    assert_eq!((cluster.state().tx, fake.count("exec_all")), (TxId(6), 2), "it was sent once");
    assert_eq!(client.trusted_state().await.unwrap(), before);
    // Transaction 0 never exists; on the wire it would mean the transaction that is being made.
    let nothing = Operation::Reference { key: "r".into(), target: "a".into(), version: Version::At(TxId(0)) };
    let refused = client.verified_exec_all(&[nothing]).await.unwrap_err();
    assert!(matches!(refused, Error::NoSuchVersion { .. }), "{refused:?}");
    assert_eq!(fake.count("exec_all"), 2, "it was not sent");
    // A refusal of the write itself is one.
    fake.refuse(Code::InvalidArgument.status("empty set"));
    let refused = client.exec_all(&[]).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    cluster.chain.lock().unwrap().commit(vec![Stored::pair(b"other", b"x")]);
    assert_eq!(client.verified_exec_all(&operations()).await.unwrap().state, cluster.state());
}
