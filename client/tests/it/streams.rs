//! Values in parts: what goes in comes out, what is cut is found out, and nothing is written twice or by half.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use alhambra_client::{Check, Error, Options, StreamError, TxId, ValueStream};
use alhambra_ledger::Step;
use alhambra_proto::code::Code;
use alhambra_proto::convert::ConvertError;
use alhambra_proto::schema::{self, Chunk};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::BoxStream;
use tonic::codegen::tokio_stream::{self, StreamExt};

use crate::chain::{Chain, Stored};
use crate::failover::{two, txs};
use crate::fake::{Cluster, Fake, Fate};

fn value(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

async fn whole(mut stream: ValueStream) -> Result<Vec<u8>, StreamError> {
    let mut found = Vec::new();
    while let Some(part) = stream.next().await? {
        assert!(!part.is_empty());
        found.extend_from_slice(&part);
    }
    Ok(found)
}

/// Has the chunks of answers changed.
fn change_chunks(cluster: &Cluster, change: impl Fn(BoxStream<Chunk>) -> BoxStream<Chunk> + Send + 'static) {
    *cluster.on_chunks.lock().unwrap() = Some(Box::new(move |chunks: &mut BoxStream<Chunk>| {
        let sent = std::mem::replace(chunks, Box::pin(tokio_stream::empty()));
        *chunks = change(sent);
    }));
}

/// A source that breaks.
struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other("the disk is gone")))
    }
}

#[tokio::test]
async fn values_of_any_length_come_back_as_they_were() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    for (n, len) in [0, 1, 65_535, 65_536, 65_537, 3 << 20].into_iter().enumerate() {
        let sent = value(len);
        let written = client.set_stream("k", len as u64, &sent[..]).await.unwrap();
        assert_eq!((written.id, written.nentries), (TxId(n as u64 + 1), 1));
        let stream = client.get_stream("k").await.unwrap();
        assert_eq!((stream.key(), stream.value_len()), (&Bytes::from_static(b"k"), len as u64));
        assert!(whole(stream).await.unwrap() == sent, "{len} bytes, in parts");
        assert!(client.get("k").await.unwrap().value == sent, "{len} bytes, at once");
    }
    // A source that gives a few bytes at a time, and has more than are wanted.
    let (mut into, from) = tokio::io::duplex(7);
    let sent = value(1000);
    let (_, written) = tokio::join!(into.write_all(&sent), client.set_stream("slow", 990, from));
    assert_eq!(written.unwrap().nentries, 1);
    assert!(whole(client.get_stream("slow").await.unwrap()).await.unwrap() == sent[..990]);
    let missing = client.get_stream("never").await.unwrap_err();
    assert!(matches!(&missing, StreamError::Call(error) if error.is_key_not_found()), "{missing:?}");
    // Also as a stream.
    let parts: Vec<_> = client.get_stream("slow").await.unwrap().collect().await;
    assert!(parts.into_iter().flat_map(Result::unwrap).eq(sent[..990].iter().copied()));
}

#[tokio::test]
async fn a_value_that_cannot_be_read_to_its_end_is_not_written() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    let beginning = value(199_999);
    for len in [1, 10, 70_000] {
        let short = client.set_stream("k", 199_999 + len, &beginning[..]).await.unwrap_err();
        let StreamError::Source { call: "set_stream", source } = &short else { panic!("{len}: {short:?}") };
        assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof);
    }
    let source = AsyncReadExt::chain(&beginning[..], Broken);
    let broken = client.verified_set_stream("k", 200_000, source).await.unwrap_err();
    assert!(matches!(broken, StreamError::Source { call: "verified_set_stream", .. }), "{broken:?}");
    client.set("after", "v").await.unwrap();
    assert!(client.get("k").await.unwrap_err().is_key_not_found());
    assert_eq!(txs(&cluster), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_writes_nothing() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    let (mut into, from) = tokio::io::duplex(1 << 20);
    let uploading = tokio::spawn({
        let client = client.clone();
        async move { client.set_stream("k", 1 << 20, from).await }
    });
    into.write_all(&value(100_000)).await.unwrap();
    while fake.count("stream_exec_all") == 0 {
        tokio::task::yield_now().await;
    }
    uploading.abort();
    assert!(uploading.await.unwrap_err().is_cancelled());
    client.set("after", "v").await.unwrap();
    assert!(client.get("k").await.unwrap_err().is_key_not_found());
    assert_eq!(txs(&cluster), 1);
}

#[tokio::test]
async fn an_upload_surely_not_applied_goes_elsewhere_as_long_as_its_beginning_is_held() {
    let (cluster, one, two, client) = two().await;
    let refuse = |fake: &Fake, at: usize, status: Status| {
        fake.node.upload_refusals.lock().unwrap().push_back((at, status));
    };
    let small = value(200_000);
    refuse(&one, 100_000, Code::NotLeader.status("not here"));
    let written = client.set_stream("k", 200_000, &small[..]).await.unwrap();
    assert_eq!((written.id, client.endpoint()), (TxId(1), &*two.endpoint));
    assert!(client.get("k").await.unwrap().value == small);
    assert_eq!((one.count("stream_exec_all"), two.count("stream_exec_all")), (1, 1));

    let large = value(8 << 20);
    refuse(&two, 2 << 20, Code::NotLeader.status("not here"));
    let error = client.set_stream("k", 8 << 20, &large[..]).await.unwrap_err();
    let StreamError::Interrupted { source: Some(status), .. } = &error else { panic!("{error:?}") };
    assert_eq!(Code::of(status), Some(Code::NotLeader));
    assert_eq!((one.count("stream_exec_all"), two.count("stream_exec_all")), (1, 2), "it was not begun in the middle");
    // With the source at its beginning.
    client.set_stream("k", 8 << 20, &large[..]).await.unwrap();
    assert!(client.get("k").await.unwrap().value == large);
    assert_eq!((txs(&cluster), client.endpoint()), (2, &*one.endpoint));

    // Whatever happens on the way, what has not been sent to its end is not written.
    refuse(&one, 100_000, Status::unavailable("the proxy says"));
    let error = client.set_stream("k", 8 << 20, &large[..]).await.unwrap_err();
    assert!(matches!(error, StreamError::Interrupted { .. }), "{error:?}");
    // And a refusal is one, before the end as well.
    refuse(&two, 100_000, Code::LimitExceeded.status("too long"));
    let error = client.set_stream("k", 8 << 20, &large[..]).await.unwrap_err();
    assert!(matches!(&error, StreamError::Call(Error::Refused { .. })), "{error:?}");
    assert_eq!(txs(&cluster), 2);
}

#[tokio::test]
async fn an_upload_of_unknown_outcome_is_told_and_never_sent_again() {
    let (cluster, one, two, client) = two().await;
    for fake in [&one, &two] {
        *fake.node.fate.lock().unwrap() = Some(Fate::AppliedThen(tonic::Code::Unavailable));
    }
    let error = client.set_stream("k", 3, &b"abc"[..]).await.unwrap_err();
    assert!(matches!(error, StreamError::Call(Error::OutcomeUnknown { call: "set_stream", .. })), "{error:?}");
    assert_eq!((txs(&cluster), one.count("stream_exec_all"), two.count("stream_exec_all")), (1, 1, 0));
    let error = client.verified_set_stream("k", 3, &b"abc"[..]).await.unwrap_err();
    assert!(matches!(error, StreamError::Call(Error::OutcomeUnknown { call: "verified_set_stream", .. })), "{error:?}");
    assert_eq!((txs(&cluster), one.count("stream_exec_all"), two.count("stream_exec_all")), (2, 1, 1));
}

#[tokio::test]
async fn a_lost_session_is_found_out_before_the_value_is_read() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    fake.forget_sessions();
    let large = value(8 << 20);
    client.set_stream("k", 8 << 20, &large[..]).await.unwrap();
    assert_eq!((txs(&cluster), fake.count("open_session"), fake.count("stream_exec_all")), (1, 2, 1));
    fake.forget_sessions();
    assert!(whole(client.get_stream("k").await.unwrap()).await.unwrap() == large);
}

#[tokio::test]
async fn a_stream_that_stands_still_costs_its_deadline_and_no_more() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let options = Options { request_timeout: Duration::from_millis(800), ..Options::default() };
    let (client, _) = fake.client_with(options).await;
    let (mut silent, from) = tokio::io::duplex(16);
    silent.write_all(b"begun").await.unwrap();
    let begin = Instant::now();
    let error = client.set_stream("k", 10, from).await.unwrap_err();
    assert!(matches!(error, StreamError::Interrupted { .. }), "{error:?}");
    assert!((700..5_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    assert_eq!(txs(&cluster), 0);

    client.set("k", value(5000)).await.unwrap();
    change_chunks(&cluster, |sent| Box::pin(sent.take(2).chain(tokio_stream::pending())));
    let begin = Instant::now();
    let mut stream = client.get_stream("k").await.unwrap();
    for len in [1000 - 17, 1000] {
        assert_eq!(stream.next().await.unwrap().unwrap().len(), len);
    }
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, StreamError::Interrupted { source: None, .. }), "{error:?}");
    assert!(stream.next().await.unwrap().is_none(), "that was the end");
    let error = client.verified_get_stream("k", tokio::io::sink()).await.unwrap_err();
    assert!(
        matches!(error, StreamError::Call(Error::Unavailable { .. }) | StreamError::Interrupted { .. }),
        "{error:?}"
    );
    assert!((1_500..10_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_answer_that_is_not_whole_is_not_taken_for_the_value() {
    let (cluster, one, two, client) = two().await;
    client.set("k", value(2500)).await.unwrap();
    let read = async || match client.get_stream("k").await {
        Ok(stream) => whole(stream).await,
        Err(error) => Err(error),
    };
    let malformed = |error: StreamError| match error {
        StreamError::Call(Error::Malformed { call: "get_stream", source }) => source,
        other => panic!("{other:?}"),
    };
    change_chunks(&cluster, |sent| Box::pin(sent.take(2)));
    assert_eq!(malformed(read().await.unwrap_err()), ConvertError::Missing { field: "rest of the value" });
    change_chunks(&cluster, |sent| Box::pin(sent.take(0)));
    assert_eq!(malformed(read().await.unwrap_err()), ConvertError::Missing { field: "key" });
    let chunk = |content| -> Result<Chunk, Status> { Ok(Chunk { content, ..Default::default() }) };
    let more = chunk(Bytes::from_static(b"more"));
    change_chunks(&cluster, move |sent| Box::pin(sent.chain(tokio_stream::once(more.clone()))));
    let field = "number of bytes behind the value";
    assert_eq!(malformed(read().await.unwrap_err()), ConvertError::OutOfRange { field, value: 1 });
    // A length that no memory holds.
    let forged = chunk(Bytes::from_static(&[0xff; 8]));
    change_chunks(&cluster, move |_| Box::pin(tokio_stream::once(forged.clone())));
    assert_eq!(malformed(read().await.unwrap_err()), ConvertError::OutOfRange { field: "key", value: i64::MAX });

    let ended = |status: Status| {
        move |sent: BoxStream<Chunk>| -> BoxStream<Chunk> {
            Box::pin(sent.take(2).chain(tokio_stream::once(Err(status.clone()))))
        }
    };
    change_chunks(&cluster, ended(Status::unavailable("gone")));
    let error = read().await.unwrap_err();
    assert!(matches!(error, StreamError::Interrupted { source: Some(_), .. }), "{error:?}");
    change_chunks(&cluster, ended(Code::Corrupted.status("not what was written")));
    let error = read().await.unwrap_err();
    assert!(matches!(&error, StreamError::Call(error) if error.code() == Some(Code::Corrupted)), "{error:?}");

    // Before the value begins, another endpoint may have it.
    *cluster.on_chunks.lock().unwrap() = None;
    let at = if client.endpoint() == one.endpoint { &one } else { &two };
    at.refuse(Code::NotLeader.status("not here"));
    assert!(read().await.unwrap() == value(2500));
    assert_ne!(client.endpoint(), at.endpoint);
}

#[tokio::test]
async fn streamed_values_are_proven() {
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    for (n, len) in [0, 1, 200_000, 3 << 20].into_iter().enumerate() {
        let sent = value(len);
        let proven = client.verified_set_stream("k", len as u64, &sent[..]).await.unwrap();
        assert_eq!((proven.header.id, &proven.state), (TxId(n as u64 + 5), &cluster.state()));
        let mut found = Vec::new();
        let got = client.verified_get_stream("k", &mut found).await.unwrap();
        assert!(found == sent, "{len} bytes");
        assert_eq!((got.value.tx, &got.value.key[..], got.value.value.len()), (proven.header.id, &b"k"[..], 0));
        assert_eq!((got.header, got.state), (proven.header, cluster.state()));
        assert_eq!(client.trusted_state().await.unwrap(), Some(cluster.state()));
    }
    cluster.chain.lock().unwrap().commit(vec![Stored::reference(b"r", b"k")]);
    let mut found = Vec::new();
    let got = client.verified_get_stream("r", &mut found).await.unwrap();
    assert_eq!((found.len(), got.value.referenced_by.unwrap().key), (3 << 20, Bytes::from_static(b"r")));
    let missing = client.verified_get_stream("never", &mut found).await.unwrap_err();
    assert!(matches!(&missing, StreamError::Call(error) if error.is_key_not_found()), "{missing:?}");
}

#[tokio::test]
async fn lies_about_streamed_values_are_found_out() {
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    let sent = value(200_000);
    client.verified_set_stream("k", 200_000, &sent[..]).await.unwrap();
    let before = client.trusted_state().await.unwrap();
    let step = |error: StreamError| match error {
        StreamError::Call(Error::Tampered { step, .. }) => step,
        other => panic!("not found out: {other:?}"),
    };
    let read = async || client.verified_get_stream("k", tokio::io::sink()).await.map(drop);
    type Lie = fn(&mut schema::Entry);
    let lies: Vec<(Lie, Check)> = vec![
        (|entry| entry.value = value(199_999).into(), Check::Proof(Step::EntryInclusion)),
        (|entry| entry.value = [&value(199_999)[..], b"x"].concat().into(), Check::Proof(Step::EntryInclusion)),
        (|entry| entry.value = Bytes::new(), Check::Proof(Step::EntryInclusion)),
        (|entry| entry.key = Bytes::from_static(b"k1"), Check::Key),
    ];
    for (index, (lie, expected)) in lies.into_iter().enumerate() {
        *cluster.on_entry.lock().unwrap() =
            Some(Box::new(move |reply: &mut schema::VerifiableEntry| lie(reply.entry.as_mut().unwrap())));
        assert_eq!(step(read().await.unwrap_err()), expected, "lie {index}");
    }
    *cluster.on_entry.lock().unwrap() = None;
    for (chunks, field) in [(0, "VerifiableEntry.entry"), (100, "rest of the value")] {
        change_chunks(&cluster, move |sent| Box::pin(sent.take(chunks)));
        assert_eq!(step(read().await.unwrap_err()), Check::Malformed(ConvertError::Missing { field }));
    }
    // A second value, within what is proven about the first.
    *cluster.on_chunks.lock().unwrap() = None;
    *fake.node.value_beside.lock().unwrap() = Bytes::from_static(b"forged");
    let field = "value within VerifiableEntry.entry";
    assert_eq!(step(read().await.unwrap_err()), Check::Malformed(ConvertError::OutOfRange { field, value: 1 }));
    fake.node.value_beside.lock().unwrap().clear();
    assert_eq!(client.trusted_state().await.unwrap(), before, "the state has not moved");
    read().await.unwrap();

    // Of a write: another value stands in the transaction.
    *cluster.on_tx.lock().unwrap() = Some(Box::new(|reply: &mut schema::VerifiableTx| {
        reply.tx.as_mut().unwrap().entries[0].h_value = vec![7; 32].into();
    }));
    let error = client.verified_set_stream("k", 200_000, &sent[..]).await.unwrap_err();
    assert_eq!(step(error), Check::Value);
    assert_eq!(client.trusted_state().await.unwrap(), before);
}

/// A source that gives nothing more, and does not end.
struct Stalled;

impl AsyncRead for Stalled {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// Who writes the beginning of a value and says that it is done can prove that the beginning is there.
#[tokio::test]
async fn an_answer_that_did_not_wait_for_the_value_proves_nothing() {
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    let before = client.trusted_state().await.unwrap();
    let sent = value(128 << 10);
    for verified in [false, true] {
        fake.node.upload_refusals.lock().unwrap().push_back((sent.len(), tonic::Status::ok("")));
        let source = AsyncReadExt::chain(&sent[..], Stalled);
        let answer = match verified {
            true => client.verified_set_stream("k", 1 << 20, source).await.map(drop),
            false => client.set_stream("k", 1 << 20, source).await.map(drop),
        };
        assert!(matches!(answer, Err(StreamError::Call(Error::OutcomeUnknown { .. }))), "{answer:?}");
    }
    assert_eq!(client.trusted_state().await.unwrap(), before, "the state has not moved");
}
