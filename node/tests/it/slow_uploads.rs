//! Requests that come slowly: they may take longer than `--request-timeout` if they come steadily, by every way in.

use std::time::Duration;

use alhambra_node::NodeHandle;
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
use tower::Service;

use crate::streams::{chunk, cut, framed};
use crate::support::*;

/// So long a request may stand still.
const PATIENCE_OF_NODE: Duration = Duration::from_secs(2);
/// A part comes in each of these.
const PACE: Duration = Duration::from_millis(400);
/// So many take longer than that.
const PARTS: usize = 7;
/// In parts that buy four times the time that they take.
const BYTES: usize = PARTS * (26 << 10);

async fn node() -> NodeHandle {
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
    let all = framed(&["key", &"v".repeat(BYTES)]);
    let chunks = cut(&all, &[all.len().div_ceil(PARTS)]);
    let begin = Instant::now();
    let request = client.request(slowly(chunks.clone()));
    let written = client.inner.clone().stream_set(request).await.unwrap().into_inner();
    assert!(begin.elapsed() > PATIENCE_OF_NODE, "{:?}", begin.elapsed());
    assert_eq!((written.id, client.get("key").await.unwrap().value.len()), (1, BYTES));

    // Drops are no stream.
    let begin = Instant::now();
    let drops = client.request(slowly(vec![chunk(&b"\0"[..]); 100]));
    let status = client.inner.clone().stream_set(drops).await.unwrap_err();
    assert_eq!(status.message(), "the client did not end its stream by the deadline; surely not applied");
    assert!((PATIENCE_OF_NODE..PACE * 100).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert_eq!(client.state().await.unwrap().tx_id, 1);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_of_the_client_s_own_holds_over_rest_whatever_comes() {
    let mut config = config();
    config.request_timeout = Duration::from_secs(60);
    let node = single_with(config).await;
    let body = vec![b' '; 100 << 10];
    let head = "POST /api/db/set HTTP/1.1\r\nHost: test\r\nConnection: close\r\ngrpc-timeout: 1S\r\n";
    let begin = Instant::now();
    let answer = trickle(&node, head, &body, 60).await;
    assert!(begin.elapsed() < PACE * 50, "{:?}", begin.elapsed());
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("did not arrive in time"), "{answer}");
    node.shutdown().await;
}

/// Rights that are lost while a stream comes are not used at its end.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_any_more_when_a_stream_ends_has_not_written() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    let user = schema::CreateUserRequest {
        user: bytes("ada"),
        password: bytes(PASSWORD),
        permission: 2,
        database: "defaultdb".into(),
    };
    admin.inner.clone().create_user(admin.request(user)).await.unwrap();
    let client = Client::session(&node, "ada", PASSWORD, "defaultdb").await.unwrap();
    let (sent, chunks) = tokio::sync::mpsc::channel(1);
    let request = client.request(tokio_stream::wrappers::ReceiverStream::new(chunks));
    let mut inner = client.inner.clone();
    let call = tokio::spawn(async move { inner.stream_set(request).await });
    let all = framed(&["key", "value"]);
    sent.send(chunk(all[..9].to_vec())).await.unwrap();
    // It has come, or the call would not be there to be let in.
    let pending = async || {
        let health = admin.inner.clone().database_health(admin.request(())).await.unwrap().into_inner();
        health.pending_requests > 0
    };
    eventually("the call to be let in", pending).await;
    let off = schema::SetActiveUserRequest { username: "ada".into(), active: false };
    admin.inner.clone().set_active_user(admin.request(off)).await.unwrap();
    sent.send(chunk(all[9..].to_vec())).await.unwrap();
    drop(sent);
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(status.message(), "session not found", "{status:?}");
    assert_eq!(admin.state().await.unwrap().tx_id, 0);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_may_a_large_message() {
    let node = node().await;
    let client = Client::on(&node, "defaultdb").await;
    let kvs = vec![schema::KeyValue { key: bytes("k"), value: bytes(&"v".repeat(BYTES)), ..Default::default() }];
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
    assert_eq!(client.get("k").await.unwrap().value.len(), BYTES);
    node.shutdown().await;
}

/// Sends a request of REST whose body comes in so many parts, and gives the answer.
async fn trickle(node: &NodeHandle, head: &str, body: &[u8], parts: usize) -> String {
    let mut stream = TcpStream::connect(node.web_addr().unwrap()).await.unwrap();
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.split();
    let body = body.chunks(body.len().div_ceil(parts)).map(Bytes::copy_from_slice).collect();
    let send = async {
        let mut body = std::pin::pin!(slowly::<Bytes>(body));
        while let Some(part) = body.next().await {
            // A body that is refused is not read to its end.
            if to.write_all(&part).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = String::new();
    tokio::select! {
        () = send => {}
        // A connection that is closed while parts are on their way ends with an error behind the answer.
        _ = from.read_to_string(&mut answer) => {}
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn so_may_a_body_of_rest() {
    let node = node().await;
    let body = json!({ "username": "immudb", "password": PASSWORD, "database": "defaultdb" }).to_string();
    // Blanks between the words.
    let body = body.replace(',', &format!("{},", " ".repeat(BYTES / 2)));
    let head = "POST /api/v2/authorization/session/open HTTP/1.1\r\nHost: test\r\nConnection: close\r\n";
    let begin = Instant::now();
    let answer = trickle(&node, head, body.as_bytes(), PARTS).await;
    assert!(begin.elapsed() > PATIENCE_OF_NODE, "{:?}", begin.elapsed());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("sessionID"), "{answer}");
    node.shutdown().await;
}
