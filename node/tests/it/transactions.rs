//! Whole transactions by number; references and sorted sets as they are stored, written past the interface that does not
//! have them yet.

use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv;
use alhambra_node::NodeHandle;
use alhambra_proto::schema;
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{ProposalEntry, TxProposal};
use bytes::Bytes;
use tokio::time::Instant;
use tonic::{Code, Response};

use crate::support::*;

/// Commits entries in stored form.
async fn store(node: &NodeHandle, entries: Vec<(Vec<u8>, Vec<u8>)>) -> u64 {
    let group = node.groups().group_by_name("defaultdb").unwrap();
    let entry =
        |(key, value): (Vec<u8>, Vec<u8>)| ProposalEntry::plain(Bytes::from(key), Bytes::new(), Bytes::from(value));
    let proposal = TxProposal { entries: entries.into_iter().map(entry).collect(), ..TxProposal::default() };
    match group.propose(proposal, Instant::now() + PATIENCE).await.unwrap() {
        Outcome::Committed { tx, .. } => tx.get(),
        other => panic!("{other:?}"),
    }
}

fn reference(key: &str, at_tx: u64, target: &str) -> (Vec<u8>, Vec<u8>) {
    (kv::set_key(key.as_bytes()), kv::reference_value(TxId(at_tx), target.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn references_are_followed_one_level() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("target", "old").await.unwrap();
    client.set("target", "new").await.unwrap();
    let tx = store(
        &node,
        vec![reference("free", 0, "target"), reference("bound", 1, "target"), reference("dangling", 0, "nothing")],
    )
    .await;
    assert_eq!(tx, 3);

    let free = client.get("free").await.unwrap();
    assert_eq!((&free.key[..], &free.value[..], free.tx, free.revision), (&b"target"[..], &b"new"[..], 2, 2));
    let by = free.referenced_by.unwrap();
    assert_eq!((by.tx, &by.key[..], by.at_tx, by.revision), (3, &b"free"[..], 0, 1));
    let bound = client.get("bound").await.unwrap();
    assert_eq!((&bound.value[..], bound.tx, bound.revision), (&b"old"[..], 1, 0));
    assert_eq!(bound.referenced_by.unwrap().at_tx, 1);
    refused(client.get("dangling").await, Code::Unknown, "tbtree: key not found", "");
    let at = client.get_of(schema::KeyRequest { key: bytes("free"), at_tx: 3, ..Default::default() }).await.unwrap();
    assert_eq!((&at.value[..], at.referenced_by.unwrap().revision), (&b"new"[..], 0));

    // Entry.key is the target; a dropped reference uses up the limit.
    let scan = schema::ScanRequest { limit: 3, ..Default::default() };
    assert_eq!(
        pairs(&client.scan(scan).await.unwrap()),
        [("target".into(), "old".into()), ("target".into(), "new".into())]
    );
    let history = schema::HistoryRequest { key: bytes("bound"), ..Default::default() };
    let raw = &client.history(history).await.unwrap()[0];
    assert_eq!(raw.value, [&1_u64.to_be_bytes()[..], &[0], b"target"].concat());

    // Bound references survive the deletion of their target.
    client.delete(&["target"]).await.unwrap();
    refused(client.get("free").await, Code::Unknown, "tbtree: key not found", "");
    assert_eq!(client.get("bound").await.unwrap().value, "old");
    client.delete(&["bound"]).await.unwrap();
    refused(client.get("bound").await, Code::Unknown, "tbtree: key not found", "");

    store(&node, vec![reference("chain", 0, "free")]).await;
    let chain = "key resolution limit reached. It may be due to cyclic references";
    refused(client.get("chain").await, Code::Unknown, chain, "");
    refused(
        client.scan(schema::ScanRequest { prefix: bytes("chain"), ..Default::default() }).await,
        Code::Unknown,
        chain,
        "",
    );
    client.set("chain", "plain").await.unwrap();
    assert_eq!(client.get("chain").await.unwrap().value, "plain", "a plain value replaces a reference");
}

fn spec(
    kv: schema::EntryTypeAction,
    z: schema::EntryTypeAction,
    sql: schema::EntryTypeAction,
) -> Option<schema::EntriesSpec> {
    let of = |action: schema::EntryTypeAction| Some(schema::EntryTypeSpec { action: action.into() });
    Some(schema::EntriesSpec { kv_entries_spec: of(kv), z_entries_spec: of(z), sql_entries_spec: of(sql) })
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_have_the_form_that_is_asked_for() {
    use schema::EntryTypeAction::{Exclude, OnlyDigest, RawValue, Resolve};
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("target", "value").await.unwrap();
    let member = kv::zadd_key(b"set", 1.5, b"target", TxId(0));
    let row = [&[2][..], b"R.row"].concat();
    let tx = store(
        &node,
        vec![
            (kv::set_key(b"plain"), kv::set_value(b"p")),
            reference("ref", 0, "target"),
            reference("dangling", 0, "nothing"),
            (member.clone(), vec![]),
            (row.clone(), b"row".to_vec()),
        ],
    )
    .await;
    let by_id = |entries_spec| {
        let (mut inner, request) =
            (client.inner.clone(), client.request(schema::TxRequest { tx, entries_spec, ..Default::default() }));
        async move { inner.tx_by_id(request).await.map(Response::into_inner) }
    };
    let raw = by_id(None).await.unwrap();
    assert_eq!((raw.entries.len(), raw.header.as_ref().unwrap().nentries), (5, 5));
    assert!(raw.entries.iter().all(|entry| entry.value.is_empty() && entry.h_value.len() == 32));
    assert_eq!((&raw.entries[0].key[..], raw.entries[0].v_len), (&b"\0plain"[..], 2));

    let digests = by_id(spec(OnlyDigest, Exclude, Exclude)).await.unwrap();
    assert_eq!((digests.entries.len(), digests.kv_entries.len()), (3, 0));
    let values = by_id(spec(RawValue, RawValue, RawValue)).await.unwrap();
    assert_eq!(
        (values.entries.len(), &values.entries[0].value[..], &values.entries[4].value[..]),
        (5, &b"\0p"[..], &b"row"[..])
    );
    let nothing = by_id(Some(schema::EntriesSpec::default())).await.unwrap();
    assert!(nothing.entries.is_empty() && nothing.kv_entries.is_empty() && nothing.z_entries.is_empty());

    let resolved = by_id(spec(Resolve, Resolve, Exclude)).await.unwrap();
    assert_eq!(pairs(&resolved.kv_entries), [("plain".into(), "p".into()), ("target".into(), "value".into())]);
    assert_eq!((resolved.kv_entries[0].tx, resolved.kv_entries[0].revision), (tx, 0));
    let by = resolved.kv_entries[1].referenced_by.clone().unwrap();
    assert_eq!((by.tx, &by.key[..], by.revision), (tx, &b"ref"[..], 0));
    let member = &resolved.z_entries[0];
    assert_eq!((&member.set[..], &member.key[..], member.score, member.at_tx), (&b"set"[..], &b"target"[..], 1.5, 0));
    assert_eq!(member.entry.as_ref().unwrap().value, "value");
    let sql = "illegal arguments: sql entry resolution is not supported";
    refused(by_id(spec(Exclude, Exclude, Resolve)).await, Code::Unknown, sql, "");

    let unresolved = schema::TxRequest {
        tx,
        entries_spec: spec(Resolve, Resolve, Exclude),
        keep_references_unresolved: true,
        ..Default::default()
    };
    let kept = client.inner.clone().tx_by_id(client.request(unresolved)).await.unwrap().into_inner();
    assert_eq!(pairs(&kept.kv_entries)[1..], [("target".into(), String::new()), ("nothing".into(), String::new())]);
    assert!(kept.kv_entries[1].referenced_by.is_some() && kept.z_entries[0].entry.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_one_by_one_and_in_a_row() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for n in 1..=4 {
        client.set("k", &n.to_string()).await.unwrap();
    }
    let by_id = |tx, since_tx| {
        let (mut inner, request) =
            (client.inner.clone(), client.request(schema::TxRequest { tx, since_tx, ..Default::default() }));
        async move { inner.tx_by_id(request).await.map(Response::into_inner) }
    };
    assert_eq!(by_id(4, 0).await.unwrap().header.unwrap().id, 4);
    refused(by_id(0, 0).await, Code::InvalidArgument, "illegal arguments", "");
    refused(by_id(5, 0).await, Code::Unknown, "tx not found", "");
    refused(by_id(1, 5).await, Code::InvalidArgument, "illegal arguments", "");

    let row = |initial_tx, limit, desc| {
        let request = schema::TxScanRequest { initial_tx, limit, desc, ..Default::default() };
        let (mut inner, request) = (client.inner.clone(), client.request(request));
        async move {
            let list = inner.tx_scan(request).await?.into_inner();
            Ok(list.txs.iter().map(|tx| tx.header.as_ref().unwrap().id).collect::<Vec<_>>())
        }
    };
    for (initial, limit, desc, expected) in [
        (1, 0, false, vec![1, 2, 3, 4]),
        (2, 2, false, vec![2, 3]),
        (3, 0, true, vec![3, 2, 1]),
        (3, 2, true, vec![3, 2]),
        (5, 0, false, vec![]),
        (5, 0, true, vec![]),
    ] {
        assert_eq!(row(initial, limit, desc).await.unwrap(), expected, "{initial} {limit} {desc}");
    }
    refused(row(0, 0, false).await, Code::InvalidArgument, "illegal arguments", "");
    let beyond = "result size limit exceeded: the specified limit (2501) is larger than the maximum allowed one (2500)";
    refused(row(1, 2501, false).await, Code::Unknown, beyond, "");
}
