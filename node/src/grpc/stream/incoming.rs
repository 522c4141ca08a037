//! Messages that a client sends.

use std::time::Duration;

use alhambra_proto::code::text;
use alhambra_proto::schema::Chunk;
use alhambra_storage::command::Settings;
use bytes::Bytes;
use futures::future::{BoxFuture, Fuse};
use futures::{FutureExt, Stream, StreamExt};
use tonic::Status;

use super::framing::Decoder;
use crate::context::{Call, Context};
use crate::error::Error;
use crate::service::App;
use crate::service::kv::NewValue;
use crate::uploads::Due;

/// Most bytes of all values of one transaction that comes in a stream; so many still pass.
pub(super) const VALUES_BYTES_MAX: u64 = 32 << 20;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A message.
    Whole(Bytes),
    /// A length, and fewer bytes than it says before the stream ended.
    Cut,
    /// The end, without a length before it.
    None,
}

/// A client's stream.
pub(super) struct Incoming<S> {
    chunks: S,
    decoder: Decoder,
    due: Due,
    /// Ready, with the reason, when the database takes nothing any more.
    closing: Fuse<BoxFuture<'static, Error>>,
}

impl<S: Stream<Item = Result<Chunk, Status>> + Unpin> Incoming<S> {
    /// A stream that has to end before it is `due`, and before `closing`.
    pub(super) fn new(chunks: S, due: Due, closing: impl Future<Output = Error> + Send + 'static) -> Self {
        Self { chunks, decoder: Decoder::default(), due, closing: closing.boxed().fuse() }
    }

    /// The stream has come as far as it is read: what is done with it has a time of its own, and the caller may have lost its session or
    /// its rights meanwhile.
    ///
    /// # Errors
    /// That it has.
    pub(super) fn complete(&self, app: &App, call: &Call, cx: &mut Context) -> Result<(), Error> {
        app.must_still_be(call)?;
        self.due.restart();
        cx.deadline = self.due.instant();
        Ok(())
    }

    /// The next message. Its length is judged by `accept` before any byte of it is waited for.
    ///
    /// # Errors
    /// What `accept` says; the stream's own error; [`Error::StreamIdle`] at the deadline.
    pub(super) async fn message(
        &mut self,
        mut accept: impl FnMut(u64) -> Result<(), Status>,
    ) -> Result<Message, Status> {
        let mut accepted = false;
        loop {
            if let Some(len) = self.decoder.announced().filter(|_| !accepted) {
                accept(len)?;
                accepted = true;
            }
            if let Some(message) = self.decoder.message() {
                return Ok(Message::Whole(message));
            }
            let next = tokio::select! {
                next = self.due.outlast(Duration::ZERO, self.chunks.next()) => next,
                error = &mut self.closing => return Err(error.into()),
            };
            match next.ok_or(Error::StreamIdle {
                what: "the client did not end its stream by the deadline; surely not applied",
            })? {
                Some(chunk) => self.decoder.push(chunk?.content),
                None if self.decoder.has_length() => return Ok(Message::Cut),
                None => return Ok(Message::None),
            }
        }
    }

    /// Keys and values up to the end of the stream. A key without a value has an empty one, a cut key does not count. One more
    /// than a transaction may have ends the reading: the write then refuses them all.
    ///
    /// # Errors
    /// As [`Self::message`]; values that are too long, alone or together; a key that is too long, in the words of `wrapped`.
    pub(super) async fn values(
        &mut self,
        settings: &Settings,
        wrapped: fn(&str) -> Status,
    ) -> Result<Vec<NewValue>, Status> {
        let mut values = Vec::new();
        let mut bytes = 0_u64;
        // Both limits of the settings count the first byte of the stored form.
        let key_fits = |len| {
            if len < u64::from(settings.key_len_max) { Ok(()) } else { Err(wrapped(&text::MAX_KEY_LENGTH.inside())) }
        };
        while let Message::Whole(key) = self.message(key_fits).await? {
            let value_fits = |len| {
                if len >= u64::from(settings.value_len_max) {
                    return Err(text::STREAM_VALUE_TOO_LONG.into());
                }
                bytes += len;
                if bytes > VALUES_BYTES_MAX { Err(text::STREAM_VALUES_TOO_LONG.into()) } else { Ok(()) }
            };
            let value = self.message(value_fits).await?;
            let is_last = !matches!(value, Message::Whole(_));
            let value = if let Message::Whole(value) = value { value } else { Bytes::new() };
            values.push(NewValue { key, value, metadata: Default::default() });
            if is_last || values.len() > settings.tx_entries_max as usize {
                break;
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::pending;
    use futures::stream;
    use tokio::time::Instant;

    use super::*;

    fn chunk(content: &[u8]) -> Result<Chunk, Status> {
        Ok(Chunk { content: Bytes::copy_from_slice(content), ..Default::default() })
    }

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        messages.iter().flat_map(|message| [&(message.len() as u64).to_be_bytes()[..], message].concat()).collect()
    }

    fn settings() -> Settings {
        Settings { key_len_max: 10, value_len_max: 100, tx_entries_max: 3, ..Settings::DEFAULT }
    }

    /// The pairs in these bytes, by byte and at once: both must be the same.
    async fn read(stream: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, (tonic::Code, String)> {
        let mut found = Vec::new();
        for step in [1, 7, stream.len().max(1)] {
            let chunks: Vec<_> = stream.chunks(step).map(chunk).collect();
            let deadline = Instant::now() + Duration::from_secs(1);
            let mut incoming = Incoming::new(stream::iter(chunks), Due::At(deadline), pending());
            let values = incoming.values(&settings(), text::stream_set).await;
            found.push(match values {
                Ok(values) => Ok(values.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect()),
                Err(status) => Err((status.code(), status.message().to_owned())),
            });
        }
        assert!(found.iter().all(|one| *one == found[0]), "chunk borders mean something: {found:?}");
        found.remove(0)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    }

    #[tokio::test]
    async fn what_is_missing_at_the_end_is_an_empty_value_or_no_entry() {
        let whole = framed(&[b"key", b"value", b"other", b"more"]);
        assert_eq!(read(&whole).await.unwrap(), pairs(&[("key", "value"), ("other", "more")]));
        let first = framed(&[b"key", b"value"]).len();
        let second = framed(&[b"key", b"value", b"other"]).len();
        for len in 0..whole.len() {
            let expected = match len {
                _ if len < 11 => pairs(&[]),
                _ if len < first => pairs(&[("key", "")]),
                _ if len < second => pairs(&[("key", "value")]),
                _ => pairs(&[("key", "value"), ("other", "")]),
            };
            assert_eq!(read(&whole[..len]).await.unwrap(), expected, "{len} bytes");
        }
    }

    #[tokio::test]
    async fn lengths_are_refused_before_their_bytes() {
        let key = |len: u64| [&len.to_be_bytes()[..]].concat();
        let value = |len: u64| [&framed(&[b"k"])[..], &len.to_be_bytes()].concat();
        let text_of = |refused: Result<_, (_, String)>| refused.unwrap_err().1;
        assert_eq!(read(&key(9)).await.unwrap(), pairs(&[]));
        for len in [10, 1 << 40, u64::MAX] {
            assert_eq!(
                text_of(read(&key(len)).await),
                "StreamSet receives following error: max key length exceeded",
                "{len}"
            );
        }
        assert_eq!(read(&value(99)).await.unwrap(), pairs(&[("k", "")]));
        for len in [100, 1 << 40, u64::MAX] {
            let refused = read(&value(len)).await.unwrap_err();
            assert_eq!(
                refused,
                (tonic::Code::FailedPrecondition, "internal store max value length exceeded".into()),
                "{len}"
            );
        }
    }

    #[tokio::test]
    async fn one_entry_more_than_there_may_be_is_the_last_that_is_read() {
        let all = framed(&[b"a", b"1", b"b", b"2", b"c", b"3", b"d", b"4", b"e", b"5"]);
        assert_eq!(read(&all).await.unwrap().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_gets_an_error_at_the_deadline() {
        let begin = Instant::now();
        let sent = stream::iter([chunk(&framed(&[b"key"])), chunk(b"")]).chain(stream::pending());
        let mut incoming = Incoming::new(sent, Due::At(begin + Duration::from_secs(3)), pending());
        let status = incoming.values(&settings(), text::stream_set).await.unwrap_err();
        assert_eq!(begin.elapsed(), Duration::from_secs(3));
        assert_eq!(status.code(), tonic::Code::Cancelled);
        assert_eq!(status.message(), "the client did not end its stream by the deadline; surely not applied");
    }

    #[tokio::test]
    async fn an_error_of_the_stream_is_no_end_of_it() {
        let sent = stream::iter([chunk(&framed(&[b"key", b"value"])), Err(Status::cancelled("gone"))]);
        let mut incoming = Incoming::new(sent, Due::At(Instant::now() + Duration::from_secs(3)), pending());
        assert_eq!(incoming.values(&settings(), text::stream_set).await.unwrap_err().message(), "gone");
    }

    #[tokio::test]
    async fn a_database_that_closes_ends_what_comes_in_with_the_reason() {
        let sent = stream::iter([chunk(&framed(&[b"key"]))]).chain(stream::pending());
        let closing = async { Error::from(text::ALREADY_CLOSED) };
        let mut incoming = Incoming::new(sent, Due::At(Instant::now() + Duration::from_secs(3600)), closing);
        assert_eq!(incoming.values(&settings(), text::stream_set).await.unwrap_err().message(), "already closed");
    }
}
