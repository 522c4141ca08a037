//! Requests that come slowly: they may take longer than `--request-timeout` as long as something comes, by every way in.

use std::time::Duration;

use alhambra_proto::schema;
use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tonic::Code;
use tower::Service;

use crate::streams::{chunk, cut, framed};
use crate::support::*;

/// A call without a deadline of its own ends so long after the newest bytes.
const PATIENCE_OF_NODE: Duration = Duration::from_secs(1);
/// A part comes in each of these.
const PACE: Duration = Duration::from_millis(250);
/// So many are longer than the node waits.
const PARTS: usize = 7;

async fn node() -> alhambra_node::NodeHandle {
    let mut config = config();
    config.request_timeout = PATIENCE_OF_NODE;
    single_with(config).await
}

fn slowly<T: Send + 'static>(parts: Vec<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::iter(parts).then(|part| async {
        sleep(PACE).await;
        part
    })
}

/// A byte stream in [`PARTS`] parts.
fn parts(bytes: &[u8]) -> Vec<Bytes> {
    bytes.chunks(bytes.len().div_ceil(PARTS)).map(Bytes::copy_from_slice).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_take_longer_than_the_timeout_of_requests_and_the_write_has_its_own() {
    let node = node().await;
    let client = Client::on(&node, "defaultdb").await;
    let all = framed(&["key", &"v".repeat(7_000)]);
    let chunks = cut(&all, &[all.len().div_ceil(PARTS)]);
    let begin = Instant::now();
    let request = client.request(slowly(chunks.clone()));
    let written = client.inner.clone().stream_set(request).await.unwrap().into_inner();
    assert!(begin.elapsed() > PATIENCE_OF_NODE, "{:?}", begin.elapsed());
    assert_eq!((written.id, client.get("key").await.unwrap().value.len()), (1, 7_000));

    // Bytes that stop coming are waited for so long and no longer.
    let stops = slowly(chunks[..PARTS - 1].to_vec()).chain(stream::pending());
    let begin = Instant::now();
    let status = client.inner.clone().stream_set(client.request(stops)).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled, "{status:?}");
    assert!(begin.elapsed() > PACE * (PARTS as u32 - 1) + PATIENCE_OF_NODE / 2, "{:?}", begin.elapsed());

    // A deadline of the client's own holds, whatever comes.
    let mut request = client.request(slowly(vec![chunk(&b"\0"[..]); 40]));
    request.set_timeout(PATIENCE_OF_NODE);
    let begin = Instant::now();
    let status = client.inner.clone().stream_set(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
    assert!(begin.elapsed() < PACE * 40, "{:?}", begin.elapsed());
    assert_eq!(client.state().await.unwrap().tx_id, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_may_a_large_message() {
    let node = node().await;
    let client = Client::on(&node, "defaultdb").await;
    let kvs = vec![schema::KeyValue { key: bytes("k"), value: bytes(&"v".repeat(7_000)), ..Default::default() }];
    let message = schema::SetRequest { k_vs: kvs, ..Default::default() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let frame = [&[0][..], &length, &message].concat();
    let body = Body::from_stream(slowly(parts(&frame)).map(Ok::<_, std::convert::Infallible>));
    let (_, session) = client.headers.iter().find(|(name, _)| *name == "sessionid").unwrap();
    let request = Request::post("/immudb.schema.ImmuService/Set")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("sessionid", session)
        .body(tonic::body::Body::new(body))
        .unwrap();
    let begin = Instant::now();
    let mut channel = channel(&node).await;
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let answer = channel.call(request).await.unwrap();
    assert!(begin.elapsed() > PATIENCE_OF_NODE, "{:?}", begin.elapsed());
    let refused = answer.headers().get("grpc-status").cloned();
    assert!(refused.is_none(), "{:?}", answer.headers());
    assert_eq!(client.get("k").await.unwrap().value.len(), 7_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_may_a_body_of_rest() {
    let node = node().await;
    let body = json!({ "username": "immudb", "password": PASSWORD, "database": "defaultdb" }).to_string();
    let mut stream = TcpStream::connect(node.web_addr().unwrap()).await.unwrap();
    let head = format!(
        "POST /api/v2/authorization/session/open HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let begin = Instant::now();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut rest = std::pin::pin!(slowly(parts(body.as_bytes())));
    while let Some(part) = rest.next().await {
        stream.write_all(&part).await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(begin.elapsed() > PATIENCE_OF_NODE, "{:?}", begin.elapsed());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("sessionID"), "{answer}");
}
