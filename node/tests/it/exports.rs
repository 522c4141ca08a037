//! Streams of sorted sets and operations, and transactions as bytes.

use std::time::Duration;

use alhambra_ledger::digest::sha256;
use alhambra_ledger::export::{self, ExportedValue};
use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv::set_value;
use alhambra_proto::convert;
use alhambra_proto::schema;
use alhambra_proto::schema::Chunk;
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{Citation, Prune, PruneTarget};
use bytes::Bytes;
use futures::{StreamExt, stream};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Response, Status, Streaming};

use crate::streams::{chunk, cut, framed, messages};
use crate::support::*;

impl Client {
    async fn stream_exec_all(&self, chunks: Vec<Chunk>) -> Result<schema::TxHeader, Status> {
        self.inner.clone().stream_exec_all(self.request(stream::iter(chunks))).await.map(Response::into_inner)
    }

    async fn stream_z_scan(&self, request: schema::ZScanRequest) -> Result<Vec<Bytes>, Status> {
        messages(self.inner.clone().stream_z_scan(self.request(request)).await).await
    }

    async fn export(&self, request: schema::ExportTxRequest) -> Result<(Bytes, u64), Status> {
        let mut chunks = self.inner.clone().export_tx(self.request(request)).await?.into_inner();
        let found = exported(&mut chunks).await?;
        assert!(chunks.message().await?.is_none(), "one message");
        Ok(found)
    }
}

/// One exported transaction, and the newest one at that time.
async fn exported(chunks: &mut Streaming<Chunk>) -> Result<(Bytes, u64), Status> {
    let first = chunks.message().await?.expect("a message");
    assert_eq!(first.metadata.keys().collect::<Vec<_>>(), ["committed-txid-bin"]);
    let newest = u64::from_be_bytes(first.metadata["committed-txid-bin"][..].try_into().unwrap());
    let (length, beginning) = first.content.split_first_chunk::<8>().unwrap();
    let mut message = beginning.to_vec();
    while (message.len() as u64) < u64::from_be_bytes(*length) {
        let next = chunks.message().await?.expect("the rest");
        assert!(next.metadata.is_empty(), "metadata only in the first chunk");
        message.extend(next.content);
    }
    assert_eq!(message.len() as u64, u64::from_be_bytes(*length));
    Ok((message.into(), newest))
}

fn z_add(set: &str, score: f64, key: &str) -> schema::ZAddRequest {
    schema::ZAddRequest { set: bytes(set), score, key: bytes(key), ..Default::default() }
}

fn of_tx(tx: u64) -> schema::ExportTxRequest {
    schema::ExportTxRequest { tx, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_operations_are_one_transaction() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let big = vec![7; 200_000];
    let add = |score, key| z_add("set", score, key).encode_to_vec();
    let sent = framed(&[
        &[1][..],
        b"a",
        b"1",
        &[1],
        b"big",
        &big,
        &[1],
        b"empty",
        b"",
        &[2],
        &add(2.0, "a"),
        &[2],
        &add(-1.0, "big"),
    ]);
    for (n, lens) in [&[65_544][..], &[1000, 1, 0], &[1 << 20]].into_iter().enumerate() {
        let written = client.stream_exec_all(cut(&sent, lens)).await.unwrap();
        assert_eq!((written.id, written.nentries), (n as u64 + 1, 5));
    }
    assert!(client.get("big").await.unwrap().value == big);
    assert_eq!(client.get("empty").await.unwrap().value, "");

    let request = schema::ZScanRequest { set: bytes("set"), ..Default::default() };
    let expected = client.inner.clone().z_scan(client.request(request.clone())).await.unwrap().into_inner().entries;
    assert_eq!(expected.len(), 2);
    let expected: Vec<Bytes> = (expected.into_iter())
        .flat_map(|member| {
            let score = Bytes::copy_from_slice(&member.score.to_be_bytes());
            let at_tx = Bytes::copy_from_slice(&member.at_tx.to_be_bytes());
            [member.set, member.key, score, at_tx, member.entry.unwrap().value]
        })
        .collect();
    assert!(client.stream_z_scan(request.clone()).await.unwrap() == expected);
    let one = schema::ZScanRequest { limit: 1, offset: 1, ..request };
    assert!(client.stream_z_scan(one).await.unwrap() == expected[5..]);
    let nowhere = client.stream_z_scan(schema::ZScanRequest::default()).await;
    refused(nowhere, Code::InvalidArgument, "illegal arguments", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_operations_that_are_refused_write_nothing() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let exec = |messages: Vec<&[u8]>| client.stream_exec_all(vec![chunk(framed(&messages))]);
    let value: [&[u8]; 3] = [&[1], b"k", b"v"];
    let with = |more: &[&'static [u8]]| [&value[..], more].concat();
    refused(client.stream_exec_all(vec![]).await, Code::InvalidArgument, "empty set", "");
    refused(exec(vec![&[3], b"k", b"v"]).await, Code::InvalidArgument, "empty set", "");
    refused(exec(with(&[&[1], b"missing value"])).await, Code::Unknown, "EOF", "");
    refused(exec(with(&[&[1]])).await, Code::Unknown, "EOF", "");
    refused(exec(with(&[&[2]])).await, Code::Unknown, "EOF", "");
    let unreadable = "unable to reassemble ZAdd message on a streamExecAll";
    refused(exec(with(&[&[2], b"\xff\xff"])).await, Code::Internal, unreadable, "");
    let reference = "reference operation is not implemented";
    refused(exec(with(&[&[4], b"anything"])).await, Code::Unimplemented, reference, "42883");
    refused(exec(with(&[b"long"])).await, Code::InvalidArgument, "illegal arguments", "");
    refused(exec(with(&[&[1], b"", b"v"])).await, Code::InvalidArgument, "illegal arguments", "");
    let twice = "rpc error: code = InvalidArgument desc = duplicated keys are not supported in single batch transaction: \
                 key/reference 'k'";
    refused(exec(with(&value)).await, Code::InvalidArgument, twice, "");
    let dangling = z_add("set", 1.0, "nothing").encode_to_vec();
    refused(exec(vec![&[2], &dangling]).await, Code::Unknown, "tbtree: key not found", "");
    let long = vec![b'k'; 1024];
    refused(exec(vec![&[1], &long, b"v"]).await, Code::Unknown, "max key length exceeded", "");
    for len in [32 << 20, u64::MAX] {
        let forged = [framed(&[&[1][..], b"k"]), len.to_be_bytes().to_vec()].concat();
        let refusal = client.stream_exec_all(vec![chunk(forged)]).await;
        refused(refusal, Code::Unknown, "max value length exceeded", "");
    }
    let many: Vec<u8> = (0..1025).flat_map(|n| framed(&[&[1][..], format!("key{n}").as_bytes(), b"v"])).collect();
    let too_many = client.stream_exec_all(cut(&many, &[5000])).await;
    refused(too_many, Code::Unknown, "max number of entries per tx exceeded", "");
    assert_eq!(client.state().await.unwrap().tx_id, 0, "nothing was written");
    // What follows an unknown kind is not read.
    assert_eq!(exec(with(&[&[9], b"x", b"y"])).await.unwrap().nentries, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_transactions_are_the_ledgers_own() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("a", "1").await.unwrap();
    let big = "x".repeat(300_000);
    client.set_all(vec![kv("b", &big), expiring("c", "old", 1), kv("d", "")]).await.unwrap();
    client.delete(&["a"]).await.unwrap();
    client.stream_exec_all(vec![chunk(framed(&[&[2][..], &z_add("s", 1.5, "b").encode_to_vec()]))]).await.unwrap();
    for id in 1..=4 {
        let (payload, newest) = client.export(of_tx(id)).await.unwrap();
        assert_eq!(newest, 4);
        assert_eq!(payload[payload.len() - 3..], [0, 1, 0], "values included");
        let tx = export::decode(&payload).unwrap();
        assert_eq!(tx.eh().unwrap(), tx.header.eh);
        let request = schema::TxRequest { tx: id, ..Default::default() };
        let plain = client.inner.clone().tx_by_id(client.request(request)).await.unwrap().into_inner();
        let plain = convert::Tx::try_from(&plain).unwrap();
        assert_eq!(plain.header, tx.header);
        for (entry, plain) in tx.entries.iter().zip(&plain.entries) {
            assert_eq!((&entry.key[..], entry.metadata), (&plain.key[..], plain.metadata));
            assert!(matches!(&entry.value, ExportedValue::Present(value) if value.len() == plain.value_len as usize));
            assert_eq!(entry.value.hash(), plain.value_hash);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_stand_for_all_values_when_one_is_pruned() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set_all(vec![kv("erased", "secret"), kv("kept", "value")]).await.unwrap();
    let order = Some(Citation { tx: TxId(7), alh: [7; 32] });
    let target = PruneTarget::Value { tx: TxId(1), entry: 0 };
    let group = node.groups().group_by_name("defaultdb").unwrap();
    let outcome = group.prune(Prune { order, target }, Instant::now() + PATIENCE).await.unwrap();
    assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
    let (payload, _) = client.export(of_tx(1)).await.unwrap();
    assert_eq!(payload[payload.len() - 3..], [0, 1, 1], "truncated");
    assert!(!payload.windows(6).any(|bytes| bytes == b"secret"));
    let tx = export::decode(&payload).unwrap();
    assert_eq!(tx.eh().unwrap(), tx.header.eh);
    let hashes: Vec<_> = ["secret", "value"].map(|value| sha256(&set_value(value.as_bytes()))).into();
    assert_eq!(tx.entries.iter().map(|entry| entry.value.hash()).collect::<Vec<_>>(), hashes);
    assert!(tx.entries.iter().all(|entry| matches!(entry.value, ExportedValue::Gone(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_that_are_refused_say_why() {
    let mut config = config();
    config.request_timeout = Duration::from_millis(500);
    let node = single_with(config).await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("a", "1").await.unwrap();
    refused(client.export(of_tx(0)).await, Code::InvalidArgument, "illegal arguments", "");
    refused(client.export(of_tx(2)).await, Code::Unknown, "no new transactions", "");
    let replica_state = Some(schema::ReplicaState::default());
    let with_state = schema::ExportTxRequest { replica_state, ..of_tx(1) };
    refused(client.export(with_state).await, Code::Unknown, "illegal state: replica state was NOT expected", "");
    // One that is waited for comes, or the time is over.
    let waited = schema::ExportTxRequest { allow_pre_committed: true, ..of_tx(2) };
    let begin = Instant::now();
    refused(client.export(waited.clone()).await, Code::Unknown, "no new transactions", "");
    assert!(begin.elapsed() >= Duration::from_millis(400));
    let (exported, written) = tokio::join!(client.export(waited), client.set("b", "2"));
    written.unwrap();
    assert_eq!(export::decode(&exported.unwrap().0).unwrap().header.id.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_go_in_lock_step_until_the_client_closes() {
    let mut config = config();
    config.request_timeout = Duration::from_secs(1);
    let node = single_with(config).await;
    let client = Client::on(&node, "defaultdb").await;
    for n in 0..3 {
        client.set(&format!("k{n}"), &"v".repeat(100_000 * n)).await.unwrap();
    }
    let call = |requests| {
        let mut inner = client.inner.clone();
        let request = client.request(requests);
        async move { inner.stream_export_tx(request).await.map(Response::into_inner) }
    };
    let mut replies = call(stream::iter([1, 2, 3, 1].map(of_tx)).boxed()).await.unwrap();
    for id in [1, 2, 3, 1] {
        let (payload, newest) = exported(&mut replies).await.unwrap();
        assert_eq!((export::decode(&payload).unwrap().header.id.get(), newest), (id, 3));
    }
    refused(replies.message().await, Code::Unknown, "EOF", "");
    // An error ends it, also when the client would go on.
    let mut replies = call(stream::iter([1, 9, 2].map(of_tx)).boxed()).await.unwrap();
    exported(&mut replies).await.unwrap();
    refused(replies.message().await, Code::Unknown, "no new transactions", "");
    // So does silence.
    let mut replies = call(stream::iter([of_tx(1)]).chain(stream::pending()).boxed()).await.unwrap();
    exported(&mut replies).await.unwrap();
    refused(replies.message().await, Code::Cancelled, "the client did not ask for more in time", "");
}
