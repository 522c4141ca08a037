//! Values that go over in parts, so that nobody holds one as a whole.
//!
//! A stream is messages, each behind its length in eight bytes, big endian; chunk borders mean nothing. A value is written by a
//! streamExecAll of this one operation, and not by a streamSet: a server takes what is missing at the end of that one for an empty
//! value, so an upload that is given up would write one, while of operations it refuses what has no end.
//!
//! A source is read once. What was read is kept up to [`KEPT_PARTS_MAX`], so that a write that was surely not applied can be sent
//! again like any other; beyond that its caller has to.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use alhambra_ledger::Digest;
use alhambra_ledger::digest::Hasher;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv;
use alhambra_proto::convert::ConvertError;
use alhambra_proto::schema;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::codegen::tokio_stream::Stream;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::check::{GetQuestion, Wanted};
use crate::client::{Client, Entry, written};
use crate::connect::{REPLY_BYTES_MAX, Service};
use crate::error::Error;
use crate::retry::{Kind, Verdict, judge};
use crate::verified::Verified;

const SET: &str = "set_stream";
const VERIFIED_SET: &str = "verified_set_stream";
const GET: &str = "get_stream";
const VERIFIED_GET: &str = "verified_get_stream";

/// Bytes of a length.
const LENGTH_BYTES: usize = 8;
/// Bytes of a value that are read and sent at once.
const PART_BYTES_MAX: usize = 64 << 10;
/// Parts of a value that are kept to be sent again: 1 MiB.
const KEPT_PARTS_MAX: usize = 16;
/// The kind of an operation that writes a value.
const VALUE: u8 = 1;

/// Why a value did not go over.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The call failed as any other can.
    #[error(transparent)]
    Call(#[from] Error),
    /// The value cannot be read from its source, or ends early; nothing was written.
    #[error("{call}: the value cannot be read")]
    Source {
        /// The call.
        call: &'static str,
        /// Why; [`io::ErrorKind::UnexpectedEof`] when it is shorter than was said.
        #[source]
        source: io::Error,
    },
    /// What the value was to be written into does not take it.
    #[error("{call}: the value cannot be passed on")]
    Sink {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The call ended amid the value: nothing was written, and of a value that was asked for there is a beginning only. Not tried
    /// again by the client, which does not have the value; call again, with its source at the beginning.
    #[error("{call}: ended before the whole value had gone over")]
    Interrupted {
        /// The call.
        call: &'static str,
        /// What ended it; `None` when its deadline did.
        #[source]
        source: Option<Box<Status>>,
    },
}

/// A value on its way to us; see [`Client::get_stream`]. Also a [`Stream`] of its parts. Ends with its first error.
#[derive(Debug)]
pub struct ValueStream {
    key: Bytes,
    value_len: u64,
    incoming: Incoming,
    /// Bytes that have not come.
    left: u64,
    deadline: Pin<Box<Sleep>>,
    is_over: bool,
}

impl ValueStream {
    /// The key; of a reference the key it leads to.
    pub const fn key(&self) -> &Bytes {
        &self.key
    }

    /// Length of the whole value, bytes, as the server says.
    pub const fn value_len(&self) -> u64 {
        self.value_len
    }

    /// The next bytes of the value, at least one; `None` when it is whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await.transpose()
    }
}

impl Stream for ValueStream {
    type Item = Result<Bytes, StreamError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        let next = if this.deadline.as_mut().poll(cx).is_ready() {
            Err(StreamError::Interrupted { call: GET, source: None })
        } else {
            ready!(this.incoming.poll_value(cx, &mut this.left)).map_err(|broken| broken.error(GET))
        };
        this.is_over = !matches!(next, Ok(Some(_)));
        Poll::Ready(next.transpose())
    }
}

/// Why there is no next part.
enum Broken {
    /// The stream ended with it.
    Status(Box<Status>),
    /// It is not what a server must send.
    Malformed(ConvertError),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl From<ConvertError> for Broken {
    fn from(error: ConvertError) -> Self {
        Self::Malformed(error)
    }
}

impl Broken {
    /// What is said of a call that it ends.
    fn error(self, call: &'static str) -> StreamError {
        match self {
            Self::Malformed(source) => Error::Malformed { call, source }.into(),
            Self::Status(status) if judge(Kind::Read, &status) == Verdict::Answer => {
                Error::Refused { call, status }.into()
            }
            Self::Status(status) => StreamError::Interrupted { call, source: Some(status) },
        }
    }
}

/// A stream of chunks, read as bytes. Holds what is left of one chunk, whatever lengths are claimed.
#[derive(Debug)]
struct Incoming {
    chunks: Streaming<schema::Chunk>,
    /// What came and was not asked for yet.
    rest: Bytes,
}

impl Incoming {
    fn new(chunks: Response<Streaming<schema::Chunk>>) -> Self {
        Self { chunks: chunks.into_inner(), rest: Bytes::new() }
    }

    /// Some of the next bytes, no more than `max` of them; `None` at the end of the stream.
    fn poll_part(&mut self, cx: &mut Context<'_>, max: u64) -> Poll<Result<Option<Bytes>, Status>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.chunks).poll_next(cx)) {
                // Others get their turn, and the deadline: an endless row of these would never wait.
                Some(Ok(chunk)) if chunk.content.is_empty() => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Ok(chunk)) => self.rest = chunk.content,
                Some(Err(status)) => return Poll::Ready(Err(status)),
                None => return Poll::Ready(Ok(None)),
            }
        }
        let len = usize::try_from(max).map_or(self.rest.len(), |max| max.min(self.rest.len()));
        Poll::Ready(Ok(Some(self.rest.split_to(len))))
    }

    /// The next bytes of the last message, of which `left` are to come; `None` when it is whole and the stream has ended.
    fn poll_value(&mut self, cx: &mut Context<'_>, left: &mut u64) -> Poll<Result<Option<Bytes>, Broken>> {
        let part = match ready!(self.poll_part(cx, (*left).max(1))) {
            Ok(part) => part,
            Err(status) => return Poll::Ready(Err(status.into())),
        };
        Poll::Ready(match part {
            Some(part) if *left > 0 => {
                *left -= part.len() as u64;
                Ok(Some(part))
            }
            Some(_) => Err(ConvertError::OutOfRange { field: "number of bytes behind the value", value: 1 }.into()),
            None if *left > 0 => Err(ConvertError::Missing { field: "rest of the value" }.into()),
            None => Ok(None),
        })
    }

    /// The next `len` bytes, gathered as they come.
    async fn bytes(&mut self, field: &'static str, len: usize) -> Result<Bytes, Broken> {
        let mut found = BytesMut::new();
        while found.len() < len {
            let missing = (len - found.len()) as u64;
            let part = poll_fn(|cx| self.poll_part(cx, missing)).await?;
            found.extend_from_slice(&part.ok_or(ConvertError::Missing { field })?);
        }
        Ok(found.freeze())
    }

    /// The length of the next message.
    async fn length(&mut self, field: &'static str) -> Result<u64, Broken> {
        Ok(self.bytes(field, LENGTH_BYTES).await?.get_u64())
    }

    /// The next message, which must be one that can be held.
    async fn message(&mut self, field: &'static str) -> Result<Bytes, Broken> {
        let len = self.length(field).await?;
        match usize::try_from(len) {
            Ok(len) if len <= REPLY_BYTES_MAX => self.bytes(field, len).await,
            _ => Err(ConvertError::OutOfRange { field, value: i64::try_from(len).unwrap_or(i64::MAX) }.into()),
        }
    }

    /// The next message, which must be of this type.
    async fn decoded<M: Message + Default>(&mut self, field: &'static str) -> Result<M, Broken> {
        let message = self.message(field).await?;
        M::decode(message).map_err(|_| ConvertError::Missing { field }.into())
    }

    /// What streamGet begins with: the key, and the length of the value.
    async fn value_head(&mut self) -> Result<(Bytes, u64), Broken> {
        Ok((self.message("key").await?, self.length("value").await?))
    }

    /// What streamVerifiableGet begins with: the entry and its proof, and the length of the value.
    async fn entry_head(&mut self) -> Result<(schema::VerifiableEntry, u64), Broken> {
        let reply = schema::VerifiableEntry {
            entry: Some(self.decoded("VerifiableEntry.entry").await?),
            verifiable_tx: Some(self.decoded("VerifiableEntry.verifiableTx").await?),
            inclusion_proof: Some(self.decoded("VerifiableEntry.inclusionProof").await?),
        };
        if reply.entry.as_ref().is_some_and(|entry: &schema::Entry| !entry.value.is_empty()) {
            // Nothing would prove it beside the one that follows.
            return Err(ConvertError::OutOfRange { field: "value within VerifiableEntry.entry", value: 1 }.into());
        }
        Ok((reply, self.length("value").await?))
    }
}

/// The beginning of an answer and what follows, or what is wrong with it.
type Begun<T> = Result<(T, Incoming), ConvertError>;

/// The answer of an attempt. Without a beginning the call may go elsewhere.
fn begun<T>(head: Result<T, Broken>, incoming: Incoming) -> Result<Response<Begun<T>>, Status> {
    match head {
        Ok(head) => Ok(Response::new(Ok((head, incoming)))),
        Err(Broken::Malformed(error)) => Ok(Response::new(Err(error))),
        Err(Broken::Status(status)) => Err(*status),
    }
}

/// Lets an answer take until `deadline`, where its beginning has to come earlier.
fn until<T>(deadline: Instant, request: &mut Request<T>) {
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// Hashes the stored form of a value.
fn value_hasher() -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(&kv::set_value(&[]));
    hasher
}

/// Passes a value of which `left` bytes are to come on to `into`. Gives the hash of its stored form, or what is wrong with the answer.
async fn pass_on(
    mut incoming: Incoming,
    mut left: u64,
    mut into: impl AsyncWrite + Unpin,
) -> Result<Result<Digest, ConvertError>, StreamError> {
    let sink = |source| StreamError::Sink { call: VERIFIED_GET, source };
    let mut hasher = value_hasher();
    loop {
        match poll_fn(|cx| incoming.poll_value(cx, &mut left)).await {
            Ok(Some(part)) => {
                hasher.update(&part);
                into.write_all(&part).await.map_err(sink)?;
                // Neither need ever wait: the deadline gets its turn.
                tokio::task::coop::consume_budget().await;
            }
            Ok(None) => break,
            Err(Broken::Malformed(error)) => return Ok(Err(error)),
            Err(broken) => return Err(broken.error(VERIFIED_GET)),
        }
    }
    into.flush().await.map_err(sink)?;
    Ok(Ok(hasher.finish()))
}

/// A value on its way from us.
struct Source<R> {
    reader: R,
    /// Bytes that are not in a part yet. While there are any, nothing can be written anywhere.
    left: u64,
    /// The part that is being read.
    begun: BytesMut,
    /// All parts so far; `None` once there are more than [`KEPT_PARTS_MAX`].
    kept: Option<Vec<Bytes>>,
    /// Of the stored form of what was read.
    hasher: Hasher,
    /// The last refusal.
    last: Option<Box<Status>>,
    /// Why the value cannot be sent at all.
    failure: Option<StreamError>,
}

impl<R: AsyncRead + Unpin> Source<R> {
    fn new(reader: R, len: u64) -> Self {
        Self {
            reader,
            left: len,
            begun: BytesMut::new(),
            kept: Some(Vec::new()),
            hasher: value_hasher(),
            last: None,
            failure: None,
        }
    }

    /// A part, from 0, each time in order; `None` behind the last. May be given up without loss.
    async fn part(&mut self, number: usize) -> io::Result<Option<Bytes>> {
        if let Some(part) = self.kept.as_ref().and_then(|kept| kept.get(number)) {
            return Ok(Some(part.clone()));
        }
        let len = usize::try_from(self.left).map_or(PART_BYTES_MAX, |left| left.min(PART_BYTES_MAX));
        if len == 0 {
            return Ok(None);
        }
        self.begun.reserve(len - self.begun.len());
        while self.begun.len() < len {
            let missing = (len - self.begun.len()) as u64;
            let mut rest = AsyncReadExt::take(&mut self.reader, missing);
            if rest.read_buf(&mut self.begun).await? == 0 {
                let missing = self.left - self.begun.len() as u64;
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends {missing} bytes early")));
            }
        }
        let part = self.begun.split().freeze();
        self.left -= len as u64;
        self.hasher.update(&part);
        if let Some(kept) = &mut self.kept {
            kept.push(part.clone());
        }
        if number >= KEPT_PARTS_MAX {
            self.kept = None;
        }
        Ok(Some(part))
    }

    /// Hands everything over; no more than that, when nobody takes it any more.
    async fn feed(&mut self, head: Bytes, chunks: mpsc::Sender<schema::Chunk>) -> io::Result<()> {
        let mut next = Some(head);
        let mut number = 0;
        while let Some(content) = next {
            if chunks.send(schema::Chunk { content, ..Default::default() }).await.is_err() {
                break;
            }
            next = self.part(number).await?;
            number += 1;
        }
        Ok(())
    }
}

/// What comes before the bytes of a value.
fn head(key: &[u8], value_len: u64) -> Bytes {
    let mut head = BytesMut::with_capacity(3 * LENGTH_BYTES + 1 + key.len());
    head.put_u64(1);
    head.put_u8(VALUE);
    head.put_u64(key.len() as u64);
    head.put_slice(key);
    head.put_u64(value_len);
    head.freeze()
}

/// Sends the value to one endpoint. Where it cannot be, the answer means nothing: the source holds the failure.
async fn attempt<R: AsyncRead + Unpin>(
    call: &'static str,
    source: &Mutex<Source<R>>,
    head: Bytes,
    mut service: Service,
    request: Request<()>,
) -> Result<Response<schema::TxHeader>, Status> {
    let mut held = source.lock().await;
    let source = &mut *held;
    if source.kept.is_none() {
        source.failure = Some(StreamError::Interrupted { call, source: source.last.take() });
        return Err(Status::aborted("the beginning of the value is gone"));
    }
    let (chunks, taken) = mpsc::channel(1);
    let (metadata, extensions, ()) = request.into_parts();
    let request = Request::from_parts(metadata, extensions, ReceiverStream::new(taken));
    let mut sending = pin!(service.stream_exec_all(request));
    let answer = tokio::select! {
        biased;
        // Before all was sent, so it is a refusal, or wrong.
        answer = &mut sending => answer,
        fed = source.feed(head, chunks) => match fed {
            Ok(()) => sending.await,
            Err(error) => {
                source.failure = Some(StreamError::Source { call, source: error });
                return Err(Status::aborted("the value cannot be read"));
            }
        },
    };
    if let Err(status) = &answer {
        source.last = Some(Box::new(status.clone()));
    }
    answer
}

impl Client {
    /// Writes a value of `len` bytes, up to 33,554,431 by default, as one transaction. Exactly so many are read of `value` (of a stream
    /// of bytes through `tokio_util::io::StreamReader`), and no more than about 1 MiB of them is held.
    ///
    /// Ends within the time of a call, reading included. Sent again where any write is; when more has been read by then than is held,
    /// the error is [`StreamError::Interrupted`].
    pub async fn set_stream(
        &self,
        key: impl Into<Bytes>,
        len: u64,
        value: impl AsyncRead + Unpin,
    ) -> Result<TxHeader, StreamError> {
        let key = key.into();
        // In a stream, a server may take an empty value for one that is missing.
        if len == 0 {
            return Ok(self.set(key, Bytes::new()).await?);
        }
        let deadline = self.inner.connection.deadline();
        Ok(self.upload(SET, &key, len, value, deadline).await?.0)
    }

    /// As [`Self::set_stream`], and verifies that a transaction of exactly this entry is in the history, behind what was trusted
    /// before. Two calls in one deadline, as in [`Self::verified_exec_all`]: when the proof does not come after the write, the error is
    /// [`Error::OutcomeUnknown`]. Other verified calls of this client wait meanwhile.
    pub async fn verified_set_stream(
        &self,
        key: impl Into<Bytes>,
        len: u64,
        value: impl AsyncRead + Unpin,
    ) -> Result<Verified<()>, StreamError> {
        let key = key.into();
        if len == 0 {
            return Ok(self.verified_set(key, Bytes::new()).await?);
        }
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin(VERIFIED_SET).await?;
        let (header, value_hash) = self.upload(VERIFIED_SET, &key, len, value, round.deadline()).await?;
        let proven = self.proven(round, header.id, &[Wanted::hashed(&key, value_hash)]).await;
        Ok(proven.map_err(|error| error.after_writing(VERIFIED_SET))?)
    }

    /// Sends a value. Gives the header in the answer, and the hash of the stored form of what was sent.
    async fn upload(
        &self,
        call: &'static str,
        key: &[u8],
        len: u64,
        value: impl AsyncRead + Unpin,
        deadline: Instant,
    ) -> Result<(TxHeader, Digest), StreamError> {
        let connection = &self.inner.connection;
        // A lost session or a dead endpoint is found out before the value is read, which can be done once only.
        if connection.logs_in() {
            connection.call(call, Kind::Read, deadline, (), async |mut c, r| c.keep_alive(r).await).await?;
        }
        let (source, head) = (Mutex::new(Source::new(value, len)), head(key, len));
        let send = |service: Service, request: Request<()>| attempt(call, &source, head.clone(), service, request);
        let answer = connection.call(call, Kind::Write, deadline, (), send).await;
        let source = source.into_inner();
        match (source.failure, answer) {
            (Some(failure), _) => Err(failure),
            // An answer that did not wait for the value is about something else than it.
            (None, Ok(_)) if source.left > 0 => Err(Error::OutcomeUnknown { call, source: None }.into()),
            (None, Ok(reply)) => Ok((written(call, &reply)?, source.hasher.finish())),
            (None, Err(Error::OutcomeUnknown { source: status, .. })) if source.left > 0 => {
                Err(StreamError::Interrupted { call, source: status })
            }
            (None, Err(error)) => Err(error.into()),
        }
    }

    /// The newest value of a key, in parts as they come; not verified, for which see [`Self::verified_get_stream`]. Reading it all has
    /// to end within the time of a call. May go to several endpoints until the value begins, and not after that.
    pub async fn get_stream(&self, key: impl Into<Bytes>) -> Result<ValueStream, StreamError> {
        let connection = &self.inner.connection;
        let deadline = connection.deadline();
        let request = schema::KeyRequest { key: key.into(), ..Default::default() };
        let send = move |mut service: Service, mut request: Request<schema::KeyRequest>| async move {
            until(deadline, &mut request);
            let mut incoming = Incoming::new(service.stream_get(request).await?);
            begun(incoming.value_head().await, incoming)
        };
        let begun = connection.call(GET, Kind::Read, deadline, request, send).await?;
        let ((key, value_len), incoming) = begun.map_err(|source| Error::Malformed { call: GET, source })?;
        let deadline = Box::pin(sleep_until(deadline));
        Ok(ValueStream { key, value_len, incoming, left: value_len, deadline, is_over: false })
    }

    /// Writes the newest value of a key into `into` as it comes, and then verifies that it is in the history; that it is the newest is
    /// not proven, nor is the value when the entry is found through a reference (`referenced_by`): of that the reference is proven alone.
    /// What was written must not be used before this has succeeded. The entry that is answered has no value.
    ///
    /// Ends within the time of a call, writing included; other verified calls of this client wait meanwhile.
    pub async fn verified_get_stream(
        &self,
        key: impl Into<Bytes>,
        into: impl AsyncWrite + Unpin,
    ) -> Result<Verified<Entry>, StreamError> {
        let key = key.into();
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin(VERIFIED_GET).await?;
        let deadline = round.deadline();
        let request = schema::VerifiableGetRequest {
            key_request: Some(schema::KeyRequest { key: key.clone(), ..Default::default() }),
            prove_since_tx: round.trusted_tx().get(),
        };
        let send = move |mut service: Service, mut request: Request<schema::VerifiableGetRequest>| async move {
            until(deadline, &mut request);
            let mut incoming = Incoming::new(service.stream_verifiable_get(request).await?);
            begun(incoming.entry_head().await, incoming)
        };
        let answer = self.inner.connection.call(VERIFIED_GET, Kind::Read, deadline, request.clone(), send).await;
        let (reply, value_hash) = match self.answered(&round, &request, answer).await? {
            Ok(((reply, left), incoming)) => {
                let passed_on = timeout_at(deadline, pass_on(incoming, left, into)).await;
                let late = StreamError::Interrupted { call: VERIFIED_GET, source: None };
                (reply, passed_on.map_err(|_| late)??)
            }
            Err(malformed) => (schema::VerifiableEntry::default(), Err(malformed)),
        };
        let question = GetQuestion { key: &key, at_tx: TxId(0) };
        Ok(self.got(round, &request, &question, reply, value_hash.map(Some)).await?)
    }
}
