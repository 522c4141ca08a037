//! Calls in chunks: what goes in comes out, whatever the chunk borders; limits, errors, and clients that fall silent.

use std::time::Duration;

use alhambra_ledger::entry::entry_digest;
use alhambra_ledger::proof::verify_entry;
use alhambra_proto::convert::{self, kv_metadata_from};
use alhambra_proto::schema;
use alhambra_proto::schema::Chunk;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::support::*;

/// Messages as a byte stream.
pub fn framed<M: AsRef<[u8]>>(messages: &[M]) -> Vec<u8> {
    (messages.iter().map(AsRef::as_ref))
        .flat_map(|message| [&(message.len() as u64).to_be_bytes()[..], message].concat())
        .collect()
}

pub fn chunk(content: impl Into<Bytes>) -> Chunk {
    Chunk { content: content.into(), ..Default::default() }
}

/// A byte stream in chunks of these lengths, over and over.
pub fn cut(stream: &[u8], lens: &[usize]) -> Vec<Chunk> {
    let mut rest = stream;
    let mut chunks = Vec::new();
    for len in lens.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*len).min(rest.len()));
        chunks.push(chunk(now.to_vec()));
        rest = later;
    }
    chunks
}

/// The messages of a reply, whose chunks must be as long as they have to be.
pub async fn messages(reply: Result<Response<Streaming<Chunk>>, Status>) -> Result<Vec<Bytes>, Status> {
    let mut chunks = reply?.into_inner();
    let mut found = Vec::new();
    while let Some(first) = chunks.message().await? {
        assert!(first.metadata.is_empty());
        let (length, beginning) = first.content.split_first_chunk::<8>().expect("a message begins with its length");
        let length = u64::from_be_bytes(*length) as usize;
        assert_eq!(beginning.len(), length.min(65_528), "the first chunk is full or the only one");
        let mut message = beginning.to_vec();
        while message.len() < length {
            let next = chunks.message().await?.expect("the rest of a message").content;
            assert_eq!(next.len(), (length - message.len()).min(65_536), "a chunk is full or ends the message");
            message.extend(next);
        }
        found.push(message.into());
    }
    Ok(found)
}

impl Client {
    async fn stream_set(&self, chunks: Vec<Chunk>) -> Result<schema::TxHeader, Status> {
        self.stream_set_of(stream::iter(chunks)).await
    }

    async fn stream_set_of(
        &self,
        chunks: impl Stream<Item = Chunk> + Send + 'static,
    ) -> Result<schema::TxHeader, Status> {
        self.inner.clone().stream_set(self.request(chunks)).await.map(Response::into_inner)
    }

    async fn stream_verifiable_set(&self, chunks: Vec<Chunk>) -> Result<schema::VerifiableTx, Status> {
        self.inner.clone().stream_verifiable_set(self.request(stream::iter(chunks))).await.map(Response::into_inner)
    }

    async fn stream_get(&self, request: schema::KeyRequest) -> Result<Vec<Bytes>, Status> {
        messages(self.inner.clone().stream_get(self.request(request)).await).await
    }

    async fn stream_scan(&self, request: schema::ScanRequest) -> Result<Vec<Bytes>, Status> {
        messages(self.inner.clone().stream_scan(self.request(request)).await).await
    }

    async fn stream_history(&self, request: schema::HistoryRequest) -> Result<Vec<Bytes>, Status> {
        messages(self.inner.clone().stream_history(self.request(request)).await).await
    }

    async fn stream_verifiable_get(&self, request: schema::VerifiableGetRequest) -> Result<Vec<Bytes>, Status> {
        messages(self.inner.clone().stream_verifiable_get(self.request(request)).await).await
    }
}

fn key_request(key: &str) -> schema::KeyRequest {
    schema::KeyRequest { key: bytes(key), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_replies_are_aligned_and_requests_are_cut_anywhere() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let borders: [&[usize]; 6] =
        [&[65_544], &[1 << 20], &[65_536], &[7, 1, 4096, 0, 65_000], &[8, 65_537], &[100_000, 3]];
    for (n, len) in [0, 1, 65_527, 65_528, 65_529, 131_064, 131_065, 1 << 20].into_iter().enumerate() {
        let value: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
        let key = format!("key-{len}");
        let sent = framed(&[key.as_bytes(), &value, b"second", b"2"]);
        let written = client.stream_set(cut(&sent, borders[n % borders.len()])).await.unwrap();
        assert_eq!((written.id, written.nentries), (n as u64 + 1, 2), "one stream is one transaction");
        let got = client.stream_get(key_request(&key)).await.unwrap();
        assert_eq!(got.len(), 2);
        assert_eq!(got[0], bytes(&key));
        assert!(got[1] == value, "a value of {len} bytes comes back");
        assert!(client.get(&key).await.unwrap().value == value);
    }
    // Small values byte by byte.
    let sent = framed(&["a", "1", "b", "", "c", "3"]);
    assert_eq!(client.stream_set(cut(&sent, &[1])).await.unwrap().nentries, 3);
    assert_eq!(client.stream_get(key_request("b")).await.unwrap(), [bytes("b"), bytes("")]);
    assert_eq!(client.stream_get(key_request("c")).await.unwrap(), [bytes("c"), bytes("3")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_last_value_is_empty_and_a_cut_key_is_dropped() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    // One SDK sends no chunk at all for an empty value.
    assert_eq!(client.stream_set(vec![chunk(framed(&["java"]))]).await.unwrap().nentries, 1);
    assert_eq!(client.get("java").await.unwrap().value, "");
    let mut cut_value = framed(&["a", "1", "b"]);
    cut_value.extend(framed(&["long value"])[..12].to_vec());
    assert_eq!(client.stream_set(vec![chunk(cut_value)]).await.unwrap().nentries, 2);
    assert_eq!(client.get("b").await.unwrap().value, "");
    let mut cut_key = framed(&["a", "2"]);
    cut_key.extend(&framed(&["lost"])[..10]);
    assert_eq!(client.stream_set(vec![chunk(cut_key)]).await.unwrap().nentries, 1);
    assert_eq!(client.get("a").await.unwrap().value, "2");
    let missing = "tbtree: key not found";
    refused(client.stream_get(key_request("lost")).await, Code::Unknown, missing, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_streamed_values_hold_at_the_edge() {
    let mut config = config();
    // Megabytes on a busy machine.
    config.request_timeout = PATIENCE;
    let node = single_with(config).await;
    let client = Client::on(&node, "defaultdb").await;
    let set = |messages: Vec<Vec<u8>>| client.stream_set(cut(&framed(&messages), &[1 << 20]));
    let of = |key: &str, len: usize| [key.as_bytes().to_vec(), vec![b'x'; len]];
    let too_long = "internal store max value length exceeded";
    let together = "max transaction values length exceeded";
    const MAX: usize = 32 << 20;
    refused(set(of("k", MAX).into()).await, Code::FailedPrecondition, too_long, "22000");
    let status = set(of("k", MAX).into()).await.unwrap_err();
    let details = alhambra_proto::code::Details::of(&status).unwrap();
    assert_eq!(details.cause, "max value length exceeded");
    let over = [of("a", MAX / 2), of("b", MAX / 2 + 1)].concat();
    refused(set(over).await, Code::FailedPrecondition, together, "22000");
    // A length that no memory holds.
    for len in [u64::MAX, 1 << 40] {
        let forged = [framed(&["k"]), len.to_be_bytes().to_vec()].concat();
        refused(client.stream_set(vec![chunk(forged)]).await, Code::FailedPrecondition, too_long, "22000");
    }
    assert_eq!(client.state().await.unwrap().tx_id, 0, "nothing was written");

    let both = [of("a", MAX / 2), of("b", MAX / 2)].concat();
    assert_eq!(set(both).await.unwrap().nentries, 2);
    let longest = set(of("longest", MAX - 1).into()).await.unwrap();
    assert_eq!((longest.id, longest.nentries), (2, 1));
    let got = client.stream_get(key_request("longest")).await.unwrap();
    assert!(got[1].len() == MAX - 1 && got[1].iter().all(|byte| *byte == b'x'));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_streams_say_why_and_write_nothing() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let set = |messages: Vec<&str>| client.stream_set(vec![chunk(framed(&messages))]);
    let told = |text: &str| format!("StreamSet receives following error: {text}");
    let illegal = "rpc error: code = InvalidArgument desc = illegal arguments";
    let twice =
        "rpc error: code = InvalidArgument desc = duplicated keys are not supported in single batch transaction";
    refused(client.stream_set(vec![]).await, Code::Unknown, &told("no entries provided"), "");
    refused(client.stream_set(vec![chunk("")]).await, Code::Unknown, &told("no entries provided"), "");
    refused(set(vec!["", "value"]).await, Code::Unknown, &told(illegal), "");
    refused(set(vec!["k", "1", "k", "2"]).await, Code::Unknown, &told(twice), "");
    let too_long = "k".repeat(1024);
    refused(set(vec![&too_long, "v"]).await, Code::Unknown, &told("max key length exceeded"), "");
    let many: Vec<String> = (0..1025).flat_map(|n| [format!("key{n}"), "v".to_owned()]).collect();
    let many_of = |count: usize| client.stream_set(cut(&framed(&many[..2 * count]), &[1000]));
    refused(many_of(1025).await, Code::Unknown, &told("max number of entries per tx exceeded"), "");

    let verifiable = |messages: Vec<&[u8]>| client.stream_verifiable_set(vec![chunk(framed(&messages))]);
    let told = |text: &str| format!("StreamVerifiableSet received the following error: {text}");
    refused(client.stream_verifiable_set(vec![]).await, Code::Unknown, "EOF", "");
    refused(client.stream_verifiable_set(vec![chunk(vec![0; 7])]).await, Code::Unknown, "EOF", "");
    refused(verifiable(vec![b"short"]).await, Code::Unknown, "unexpected EOF", "");
    refused(
        client.stream_verifiable_set(vec![chunk(framed(&["12345678"])[..12].to_vec())]).await,
        Code::Unknown,
        "unexpected EOF",
        "",
    );
    refused(verifiable(vec![b"123456789"]).await, Code::InvalidArgument, "illegal arguments", "");
    let zero = 0_u64.to_be_bytes();
    refused(verifiable(vec![&zero]).await, Code::Unknown, &told("no entries provided"), "");
    let stale = "rpc error: code = InvalidArgument desc = illegal state";
    refused(verifiable(vec![&1_u64.to_be_bytes(), b"k", b"v"]).await, Code::Unknown, &told(stale), "");
    assert_eq!(client.state().await.unwrap().tx_id, 0, "nothing was written");

    let longest = "k".repeat(1023);
    assert_eq!(set(vec![&longest, "v"]).await.unwrap().nentries, 1);
    assert_eq!(many_of(1024).await.unwrap().nentries, 1024);

    let missing = "tbtree: key not found";
    refused(client.stream_get(key_request("")).await, Code::Unknown, "illegal arguments: empty key", "");
    refused(client.stream_get(key_request("none")).await, Code::Unknown, missing, "");
    refused(client.stream_history(schema::HistoryRequest::default()).await, Code::Unknown, missing, "");
    let limit = "result size limit exceeded: the specified limit (2501) is larger than the maximum allowed one (2500)";
    let scan = schema::ScanRequest { limit: 2501, ..Default::default() };
    refused(client.stream_scan(scan).await, Code::Unknown, limit, "");
    let scan = schema::ScanRequest { since_tx: 99, ..Default::default() };
    refused(client.stream_scan(scan).await, Code::InvalidArgument, "illegal arguments", "");
    let get = schema::VerifiableGetRequest::default();
    refused(client.stream_verifiable_get(get).await, Code::Unknown, "illegal arguments: empty request", "");
    let get = schema::VerifiableGetRequest { key_request: Some(key_request("key1")), prove_since_tx: 99 };
    refused(client.stream_verifiable_get(get).await, Code::InvalidArgument, "illegal state", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_find_out_about_sessions_themselves() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("k", "v").await.unwrap();
    let anonymous = Client::anonymous(&node).await;
    let (code, text, details) = (Code::InvalidArgument, "no session found", "22023");
    let unknown = anonymous.with("sessionid", "unknown");
    refused(unknown.stream_get(key_request("k")).await, code, text, details);
    refused(unknown.stream_scan(schema::ScanRequest::default()).await, code, text, details);
    refused(unknown.stream_set(vec![chunk(framed(&["k", "w"]))]).await, code, text, details);
    let empty = anonymous.with("sessionid", "");
    refused(empty.stream_get(key_request("k")).await, Code::Unknown, "no sessionID provided", "28000");
    refused(anonymous.stream_get(key_request("k")).await, Code::Unknown, "not logged in", "28000");
    let wrong = anonymous.with("authorization", "Bearer wrong");
    let status = wrong.stream_set(vec![]).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "invalid token"));
    let reply = client.inner.clone().stream_get(client.request(key_request("k"))).await.unwrap();
    assert_eq!(reply.metadata().get("immudb-uuid").unwrap().len(), 20);
    assert_eq!(reply.metadata().get("alhambra-read-level").unwrap(), "linearizable");
    assert_eq!(client.get("k").await.unwrap().value, "v");

    let system = Client::on(&node, "systemdb").await;
    let denied = system.stream_set(vec![chunk(framed(&["k", "w"]))]).await;
    refused(denied, Code::Internal, "permission denied", "XX000");
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_lists_are_the_lists_of_the_other_calls() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for batch in 0..3 {
        let values = (0..900).map(|n| kv(&format!("k{batch}-{n:03}"), &format!("v{n}"))).collect();
        client.set_all(values).await.unwrap();
    }
    client.delete(&["k0-005"]).await.unwrap();
    client.set_all(vec![expiring("k0-006", "old", 1)]).await.unwrap();
    client.set("k0-007", "new").await.unwrap();
    let flat = |entries: Vec<schema::Entry>| -> Vec<Bytes> {
        entries.into_iter().flat_map(|entry| [entry.key, entry.value]).collect()
    };
    for request in [
        schema::ScanRequest::default(),
        schema::ScanRequest { prefix: bytes("k1"), desc: true, limit: 700, offset: 3, ..Default::default() },
        schema::ScanRequest { seek_key: bytes("k0-003"), end_key: bytes("k0-010"), ..Default::default() },
        schema::ScanRequest { prefix: bytes("none"), ..Default::default() },
        schema::ScanRequest { seek_key: bytes("z"), end_key: bytes("a"), ..Default::default() },
        schema::ScanRequest { offset: 2690, since_tx: 2, ..Default::default() },
    ] {
        let expected = flat(client.scan(request.clone()).await.unwrap());
        assert_eq!(client.stream_scan(request.clone()).await.unwrap(), expected, "{request:?}");
    }
    assert_eq!(client.stream_scan(schema::ScanRequest::default()).await.unwrap().len(), 2 * 2500, "the result limit");

    for key in ["k0-005", "k0-006", "k0-007"] {
        for (offset, limit, desc) in [(0, 0, false), (0, 0, true), (1, 1, false), (5, 0, false)] {
            let request = schema::HistoryRequest { key: bytes(key), offset, limit, desc, ..Default::default() };
            let expected = flat(client.history(request.clone()).await.unwrap());
            assert_eq!(client.stream_history(request).await.unwrap(), expected, "{key} {offset} {limit} {desc}");
        }
        let request = schema::HistoryRequest { key: bytes(key), offset: 2, ..Default::default() };
        refused(client.stream_history(request).await, Code::Unknown, "tbtree: no more entries", "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_values_are_verified_like_others() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let first = client.set("before", "1").await.unwrap();
    let sent = framed(&[&first.id.to_be_bytes()[..], b"z", &vec![5; 100_000], b"a", b""]);
    let written = client.stream_verifiable_set(cut(&sent, &[65_544])).await.unwrap();
    let written = convert::VerifiableTx::try_from(&written).unwrap();
    assert_eq!(written.dual_proof.source.id.get(), first.id);
    let keys: Vec<&[u8]> = written.tx.entries.iter().map(|entry| &entry.key[1..]).collect();
    assert_eq!(keys, [b"z", b"a"], "in the order sent");
    client.set_all(vec![expiring("meta", "data", i64::MAX)]).await.unwrap();

    for key in ["z", "a", "meta"] {
        let request = schema::VerifiableGetRequest { key_request: Some(key_request(key)), prove_since_tx: first.id };
        let plain = client.inner.clone().verifiable_get(client.request(request.clone())).await.unwrap().into_inner();
        let parts = client.stream_verifiable_get(request).await.unwrap();
        assert_eq!(parts.len(), 4);
        let entry = schema::Entry::decode(parts[0].clone()).unwrap();
        let tx = schema::VerifiableTx::decode(parts[1].clone()).unwrap();
        let inclusion = schema::InclusionProof::decode(parts[2].clone()).unwrap();
        let whole = plain.entry.unwrap();
        assert_eq!((entry.tx, &entry.key, &parts[3]), (whole.tx, &whole.key, &whole.value));
        assert!(entry.value.is_empty() && entry.revision == 0 && entry.metadata == whole.metadata);
        assert_eq!((Some(tx.clone()), Some(inclusion.clone())), (plain.verifiable_tx, plain.inclusion_proof));

        let header = convert::VerifiableTx::try_from(&tx).unwrap().tx.header;
        let metadata = kv_metadata_from(entry.metadata.as_ref()).to_bytes();
        let stored = [&[0], &parts[3][..]].concat();
        let hash = alhambra_ledger::digest::sha256(&stored);
        let digest = entry_digest(1, &[&[0], &entry.key[..]].concat(), &metadata, &hash).unwrap();
        verify_entry(&(&inclusion).try_into().unwrap(), &digest, &header).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_falls_silent_is_told_at_the_deadline() {
    let mut config = config();
    config.request_timeout = Duration::from_millis(500);
    let node = single_with(config).await;
    let client = Client::on(&node, "defaultdb").await;
    let silent = || stream::iter([chunk(framed(&["k", "v"]))]).chain(stream::pending());
    let begin = Instant::now();
    let status = client.stream_set_of(silent()).await.unwrap_err();
    assert!(begin.elapsed() >= Duration::from_millis(400), "not before the deadline");
    assert_eq!(status.code(), Code::Cancelled);
    assert_eq!(status.message(), "the client did not end its stream by the deadline; surely not applied");
    // With a deadline of its own.
    let mut request = client.request(silent());
    request.set_timeout(Duration::from_millis(200));
    let status = client.inner.clone().stream_set(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
    assert_eq!(client.state().await.unwrap().tx_id, 0, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_given_up() {
    let mut config = config();
    config.request_timeout = Duration::from_secs(2);
    let node = single_with(config).await;
    let client = Client::on(&node, "defaultdb").await;
    for n in 0..20 {
        client.set(&format!("k{n:02}"), &"x".repeat(1 << 20)).await.unwrap();
    }
    let request: Request<_> = client.request(schema::ScanRequest::default());
    let mut reply = client.inner.clone().stream_scan(request).await.unwrap().into_inner();
    assert_eq!(reply.message().await.unwrap().unwrap().content.len(), 11);
    // The call counts as running until it is given up.
    let pending = || async {
        let health = client.inner.clone().database_health(client.request(())).await;
        health.is_ok_and(|health| health.into_inner().pending_requests == 0)
    };
    assert!(!pending().await, "it waits for its reader");
    eventually("the stream is given up", pending).await;
    let mut bytes = 0;
    let status = loop {
        match reply.message().await {
            Ok(Some(chunk)) => bytes += chunk.content.len(),
            Ok(None) => panic!("the reply is not whole"),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), status.message()), (Code::Cancelled, "the client did not take the answer in time"));
    assert!(bytes < 15 << 20, "{bytes} bytes were on their way");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_of_all_clients_have_one_bound_and_small_ones_go_on() {
    let mut small = config();
    small.memory_budget = 64 << 20;
    let node = single_with(small).await;
    let client = Client::on(&node, "defaultdb").await;
    // Two streams that have sent 31 MiB each, and wait.
    let chunk = |content: Vec<u8>| schema::Chunk { content: content.into(), ..Default::default() };
    let mut waiting = Vec::new();
    for at in 0..2_u8 {
        let (tx, rx) = tokio::sync::mpsc::channel(1);
        let request = client.request(tokio_stream::wrappers::ReceiverStream::new(rx));
        let mut inner = client.inner.clone();
        let call = tokio::spawn(async move { inner.stream_set(request).await });
        let head = [&1_u64.to_be_bytes()[..], &[at], &(31_u64 << 20).to_be_bytes()].concat();
        tx.send(chunk(head)).await.unwrap();
        for _ in 0..30 {
            tx.send(chunk(vec![at; 1 << 20])).await.unwrap();
        }
        waiting.push((tx, call));
    }
    let held = async || {
        let metrics = page(&node, "/metrics").await.1;
        let line = metrics.lines().find(|line| line.starts_with("alhambra_memory_used_bytes{part=\"uploads\"}"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    eventually("60 MiB to arrive", async || held().await >= f64::from(59 << 20)).await;

    let third = kv("third", &"x".repeat(8 << 20));
    let refused = client.set_all(vec![third.clone()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("large requests of all clients hold"), "{refused:?}");
    client.set("small", "goes on").await.unwrap();
    assert_eq!(&*client.get("small").await.unwrap().value, b"goes on");

    for (at, (tx, call)) in waiting.into_iter().enumerate() {
        tx.send(chunk(vec![at as u8; 1 << 20])).await.unwrap();
        drop(tx);
        call.await.unwrap().unwrap();
    }
    eventually("it to be given back", async || held().await == 0.0).await;
    client.set_all(vec![third]).await.unwrap();
    node.shutdown().await;
}

/// A stream that its client cancels has not come to its end, whatever came of it before: what is complete in it is not written, and what
/// is not complete is no empty value.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cancelled_is_no_stream_that_has_ended() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for n in 0..200 {
        let key = format!("cancelled-{n}");
        let mut begun = framed(&[key.as_bytes(), b"a value that is not all there"]);
        begun.truncate(begun.len() - 4 * (n % 2));
        let (sent, came) = tokio::sync::oneshot::channel();
        let begun = stream::iter([chunk(begun)]);
        let rest = stream::once(async move {
            let _ = sent.send(());
            std::future::pending().await
        });
        let call = tokio::spawn({
            let client = client.clone();
            async move { client.stream_set_of(begun.chain(rest)).await }
        });
        came.await.unwrap();
        // Whatever the server has seen of it by now.
        for _ in 0..n % 5 {
            tokio::task::yield_now().await;
        }
        call.abort();
        // Of too many that are cancelled before it has seen them a server thinks ill.
        client.state().await.unwrap();
    }
    client.set("k", "v").await.unwrap();
    let scan = schema::ScanRequest { prefix: bytes("cancelled-"), ..Default::default() };
    let found: Vec<_> = client.scan(scan).await.unwrap().into_iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(found, [], "calls that were cancelled have written");
    assert_eq!(client.state().await.unwrap().tx_id, 1);
}
