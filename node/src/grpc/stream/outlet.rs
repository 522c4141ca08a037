//! The way out: a task makes messages, a channel of a few chunks holds it back.
//!
//! The task is apart from the connection because a client that does not read never asks for more: only a task with a clock of
//! its own can give it up and let go of what it holds.

use std::collections::HashMap;
use std::time::Duration;

use alhambra_proto::schema::Chunk;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{Chunks, framing};
use crate::context::Call;
use crate::error::Error;
use crate::grpc::read_reply;
use crate::service::App;

/// Chunks that wait for the client.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Why no more is sent.
#[derive(Debug)]
pub(super) enum Ended {
    /// The client has gone.
    Gone,
    /// The call failed; the client is told.
    Failed(Box<Status>),
}

impl<E: Into<Status>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// How long a stream may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two steps of the client.
    pub step: Duration,
    /// In all, where the client says so.
    pub until: Option<Instant>,
}

impl Pace {
    /// As the call and the node have it.
    pub(super) fn of(app: &App, call: &Call) -> Self {
        Self { step: app.request_timeout(), until: call.chosen.then_some(call.deadline) }
    }

    /// When a step that begins now has to have ended.
    pub(super) fn next(self) -> Instant {
        let step = Instant::now() + self.step;
        self.until.map_or(step, |until| until.min(step))
    }
}

/// Where messages go.
#[derive(Debug)]
pub(super) struct Outlet {
    chunks: mpsc::Sender<Chunk>,
    pace: Pace,
}

impl Outlet {
    /// Sends one message and waits until it is on its way, all but a few chunks.
    pub(super) async fn send(&self, payload: Bytes) -> Result<(), Ended> {
        self.send_with(payload, HashMap::new()).await
    }

    /// As [`Self::send`], with metadata on the first chunk.
    pub(super) async fn send_with(&self, payload: Bytes, metadata: HashMap<String, Bytes>) -> Result<(), Ended> {
        let mut metadata = Some(metadata);
        for content in framing::chunks(payload) {
            self.chunk(Chunk { content, metadata: metadata.take().unwrap_or_default() }).await?;
        }
        Ok(())
    }

    /// Ends when the client has gone.
    pub(super) async fn closed(&self) {
        self.chunks.closed().await;
    }

    async fn chunk(&self, chunk: Chunk) -> Result<(), Ended> {
        match timeout_at(self.pace.next(), self.chunks.send(chunk)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Gone),
            Err(_) => Err(Error::StreamIdle { what: "the client did not take the answer in time" }.into()),
        }
    }
}

/// A reply whose messages are made while the client takes them, and which ends when the database is closed.
pub(super) fn respond<F>(
    app: &App,
    call: &Call,
    closing: impl Future<Output = Error> + Send + 'static,
    produce: impl FnOnce(Outlet) -> F,
) -> Response<Chunks>
where
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    read_reply(call.level, stream_of(Pace::of(app, call), closing, produce))
}

fn stream_of<F>(
    pace: Pace,
    closing: impl Future<Output = Error> + Send + 'static,
    produce: impl FnOnce(Outlet) -> F,
) -> Chunks
where
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    let (chunks, taken) = mpsc::channel(CHUNKS_IN_FLIGHT);
    // Apart from the chunks, so that there is always room for it.
    let (end, ended) = oneshot::channel();
    let producing = produce(Outlet { chunks, pace });
    tokio::spawn(async move {
        let outcome = tokio::select! {
            biased;
            outcome = producing => match outcome {
                Ok(()) | Err(Ended::Gone) => Ok(()),
                Err(Ended::Failed(status)) => Err(*status),
            },
            error = closing => Err(error.into()),
        };
        // Nobody listens when the client has gone meanwhile.
        let _ = end.send(outcome);
    });
    let failure = ended.into_stream().filter_map(|end| {
        // Without a word the task has died: what was sent is not all of it.
        let outcome = end.unwrap_or_else(|_| Err(Error::Internal("an answer was not made to its end").into()));
        std::future::ready(outcome.err().map(Err))
    });
    Box::pin(ReceiverStream::new(taken).map(Ok).chain(failure))
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    /// A stream of messages of 100 KB, and how many of them were made so far.
    fn endless(pace: Pace) -> (Chunks, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let count = made.clone();
        let stream = stream_of(pace, pending(), |out| async move {
            loop {
                count.fetch_add(1, Ordering::Relaxed);
                out.send(vec![0; 100_000].into()).await?;
            }
        });
        (stream, made)
    }

    async fn give_others_their_turn() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_holds_a_few_chunks_and_is_given_up() {
        let begin = Instant::now();
        let (mut stream, made) = endless(Pace { step: STEP, until: None });
        give_others_their_turn().await;
        assert_eq!(made.load(Ordering::Relaxed), 3, "two messages of two chunks wait, one is held back");
        tokio::time::sleep(STEP * 3).await;
        // Whoever begins to read after all gets what was on its way, and the reason.
        let mut got = Vec::new();
        while let Some(next) = stream.next().await {
            got.push(next);
        }
        let status = got.pop().unwrap().unwrap_err();
        assert_eq!(status.message(), "the client did not take the answer in time");
        assert!(got.len() == CHUNKS_IN_FLIGHT && got.iter().all(Result::is_ok));
        assert_eq!(made.load(Ordering::Relaxed), 3);
        assert_eq!(begin.elapsed(), STEP * 3, "reading the rest takes no time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_served_as_long_as_it_takes_chunks_and_until_its_own_deadline() {
        let begin = Instant::now();
        let until = begin + STEP * 20;
        let (mut stream, _) = endless(Pace { step: STEP, until: Some(until) });
        let mut chunks = 0;
        let status = loop {
            match stream.next().await.unwrap() {
                Ok(_) => chunks += 1,
                Err(status) => break status,
            }
            tokio::time::sleep(STEP - Duration::from_secs(1)).await;
        };
        assert!(chunks > 20, "{chunks}");
        assert!(begin.elapsed() > STEP * 20);
        assert_eq!(status.code(), tonic::Code::Cancelled);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_gone_ends_the_work() {
        let (mut stream, made) = endless(Pace { step: STEP, until: None });
        stream.next().await.unwrap().unwrap();
        drop(stream);
        give_others_their_turn().await;
        assert_eq!(Arc::strong_count(&made), 1, "the task has let go");
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_that_is_closed_ends_the_answer_and_lets_go_of_it() {
        let (close, closed) = oneshot::channel::<()>();
        let closing = async move {
            let _ = closed.await;
            alhambra_proto::code::text::ALREADY_CLOSED.into()
        };
        let held = Arc::new(());
        let holds = held.clone();
        let mut stream = stream_of(Pace { step: STEP, until: None }, closing, |out| async move {
            let _holds = holds;
            loop {
                out.send(vec![0; 100_000].into()).await?;
            }
        });
        stream.next().await.unwrap().unwrap();
        close.send(()).unwrap();
        give_others_their_turn().await;
        assert_eq!(Arc::strong_count(&held), 1, "also when the client does not read on");
        let rest: Vec<_> = stream.collect().await;
        assert_eq!(rest.last().unwrap().as_ref().unwrap_err().message(), "already closed");
    }

    #[tokio::test]
    async fn an_error_comes_after_what_was_sent() {
        let stream = stream_of(Pace { step: STEP, until: None }, pending(), |out| async move {
            out.send(Bytes::from_static(b"first")).await?;
            Err(Status::data_loss("broken").into())
        });
        let got: Vec<_> = stream.collect().await;
        assert_eq!(got[0].as_ref().unwrap().content, &b"\0\0\0\0\0\0\0\x05first"[..]);
        assert_eq!(got[1].as_ref().unwrap_err().message(), "broken");
        assert_eq!(got.len(), 2);
    }

    #[tokio::test]
    async fn an_answer_whose_maker_dies_does_not_look_whole() {
        let stream = stream_of(Pace { step: STEP, until: None }, pending(), |out| async move {
            out.send(Bytes::from_static(b"first of many")).await?;
            panic!("the next one cannot be made");
        });
        let found: Vec<_> = stream.collect().await;
        assert!(matches!(&found[..], [Ok(_), Err(status)] if status.code() == tonic::Code::Internal), "{found:?}");
    }
}
