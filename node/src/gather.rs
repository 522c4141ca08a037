//! Bytes that would be small writes of their own travel with the next ones.
//!
//! A write costs a system call here, one segment on the wire, and wakes the client. Two kinds of frames ask for one of their own, and nobody
//! waits for them:
//! - An answer to a ping. A gRPC client measures the bandwidth of a connection with a ping behind every message that it receives (Go does).
//!   The answer waits for what is written next, for at most [`HOLD`]. RFC 9113, 6.7 wants answers to pings before other frames: they still
//!   are, what waits is the first byte of both.
//! - The message of an answer. `h2` writes a DATA frame of 256 bytes or more at once and the trailers behind it in a second write, though
//!   both are ready. So the message waits for the write or the flush that follows in the same poll of the connection. (It stands in two slices:
//!   a stream that takes only one at a time keeps its messages in writes of their own.)

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use alhambra_raft::env::BoxIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long anything waits at most: longer than a write to a cluster takes, and nothing to who looks whether a connection lives.
const HOLD: Duration = Duration::from_millis(10);
/// Bytes of answers to pings that wait at most: whoever sends many pings gets many answers.
const PONGS_MAX: usize = 4 * PONG_BYTES;
/// Bytes that wait at most when messages are among them, frames included: to copy more costs more than the write that it spares.
const MESSAGES_MAX: usize = 8 << 10;
/// Bytes of the buffer that stays with an idle connection.
const KEPT_BYTES_MAX: usize = 256;

/// A PING frame with flag ACK: its head, then eight bytes of the ping.
const PONG_HEAD: [u8; 9] = [0, 0, 8, 6, 1, 0, 0, 0, 0];
const PONG_BYTES: usize = PONG_HEAD.len() + 8;

/// A byte stream that carries HTTP/2 in plain and holds back what can travel with the next bytes. Whoever serves it always reads from it, and
/// flushes twice behind a DATA frame that was not copied. (`h2` does; what serves HTTP/1 need not.)
pub struct Gather {
    io: BoxIo,
    held: Vec<u8>,
    message: Message,
    due: Option<Pin<Box<Sleep>>>,
}

/// Whether messages are among what is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    No,
    /// It was written just now, and what is flushed next is only to make room behind it.
    Written,
    /// The next flush sends it.
    Flushed,
}

impl Gather {
    /// Of a connection that has just begun.
    pub fn new(io: BoxIo) -> Self {
        Self { io, held: Vec::new(), message: Message::No, due: None }
    }

    /// Keeps what is written in `bufs` for later if it may wait: its length in bytes.
    fn holds(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Option<usize> {
        let len = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        let together = self.held.len() + len;
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        match (filled.next()?, filled.next(), filled.next()) {
            (only, None, None) => {
                let is_pong = len == PONG_BYTES && only.starts_with(&PONG_HEAD);
                if !is_pong || self.message != Message::No || together > PONGS_MAX {
                    return None;
                }
            }
            // A DATA frame that was not copied behind its head: what fills the second slice.
            (_, Some(_), None) if together <= MESSAGES_MAX => self.message = Message::Written,
            _ => return None,
        }
        if self.held.is_empty() {
            let at = Instant::now() + HOLD;
            let due = self.due.get_or_insert_with(|| Box::pin(sleep_until(at)));
            due.as_mut().reset(at);
            // Registers the task, which then reads.
            let _not_yet = due.as_mut().poll(cx);
        }
        self.held.reserve(len);
        bufs.iter().for_each(|buf| self.held.extend_from_slice(buf));
        Some(len)
    }

    /// Writes what is held.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(self.io.as_mut().poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(written);
        }
        Poll::Ready(Ok(()))
    }

    /// The first `written` bytes of what is held are on their way.
    fn wrote(&mut self, written: usize) {
        self.held.drain(..written);
        if self.held.is_empty() {
            self.message = Message::No;
            if self.held.capacity() > KEPT_BYTES_MAX {
                self.held = Vec::new();
            }
        }
    }
}

impl AsyncRead for Gather {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let is_due = this.message == Message::Flushed
            || !this.held.is_empty() && this.due.as_mut().is_some_and(|due| due.as_mut().poll(cx).is_ready());
        if is_due && let Poll::Ready(Err(error)) = this.poll_release(cx) {
            return Poll::Ready(Err(error));
        }
        this.io.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Gather {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(held) = this.holds(cx, bufs) {
            return Poll::Ready(Ok(held));
        }
        if this.held.is_empty() {
            return this.io.as_mut().poll_write_vectored(cx, bufs);
        }
        if this.io.is_write_vectored() {
            let held = [IoSlice::new(&this.held)];
            let all: Vec<_> = held.into_iter().chain(bufs.iter().map(|buf| IoSlice::new(buf))).collect();
            let written = ready!(this.io.as_mut().poll_write_vectored(cx, &all))?;
            let of_held = written.min(this.held.len());
            this.wrote(of_held);
            if written > of_held {
                return Poll::Ready(Ok(written - of_held));
            }
        }
        ready!(this.poll_release(cx))?;
        this.io.as_mut().poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.message {
            // Answers to pings are not written for whoever has just written them.
            Message::No => {}
            Message::Written => {
                self.message = Message::Flushed;
                return Poll::Ready(Ok(()));
            }
            Message::Flushed => ready!(self.poll_release(cx))?,
        }
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        self.io.as_mut().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Takes at most so many bytes per write, and remembers what came with each.
    struct Wire {
        written: Arc<Mutex<Vec<Vec<u8>>>>,
        most: usize,
        vectored: bool,
    }

    impl AsyncRead for Wire {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let len = buf.len().min(self.most);
            self.written.lock().push(buf[..len].to_vec());
            Poll::Ready(Ok(len))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            let buf = if self.vectored { &all[..] } else { first };
            self.poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn is_write_vectored(&self) -> bool {
            self.vectored
        }
    }

    fn gather(most: usize, vectored: bool) -> (Gather, Arc<Mutex<Vec<Vec<u8>>>>) {
        let written: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        (Gather::new(Box::pin(Wire { written: written.clone(), most, vectored })), written)
    }

    fn pong(number: u8) -> Vec<u8> {
        [&PONG_HEAD[..], &[number; 8]].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_goes_with_what_is_written_next() {
        let (mut io, written) = gather(1 << 20, true);
        io.write_all(&pong(1)).await.unwrap();
        io.write_all(&pong(2)).await.unwrap();
        io.flush().await.unwrap();
        assert!(written.lock().is_empty());
        io.write_all(b"data").await.unwrap();
        assert_eq!(*written.lock(), [[pong(1), pong(2), b"data".to_vec()].concat()]);
        io.write_all(b"more").await.unwrap();
        assert_eq!(written.lock().len(), 2, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_no_longer_than_it_may() {
        let (mut io, written) = gather(5, true);
        for round in 0..3u8 {
            io.write_all(&pong(round)).await.unwrap();
            let began = Instant::now();
            let mut nothing = [0; 1];
            let longer = tokio::time::timeout(HOLD * 3, async {
                tokio::select! {
                    _ = io.read(&mut nothing) => {}
                    () = tokio::time::sleep(HOLD + Duration::from_millis(2)) => {}
                }
            });
            longer.await.unwrap();
            assert_eq!(std::mem::take(&mut *written.lock()).concat(), pong(round), "{:?}", began.elapsed());
        }
        io.write_all(&pong(9)).await.unwrap();
        io.shutdown().await.unwrap();
        assert_eq!(written.lock().concat(), pong(9), "nothing is lost at the end");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_else_waits_and_not_too_much() {
        let (mut io, written) = gather(1 << 20, true);
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
        let with_more = [&pong(1)[..], b"x"].concat();
        for frame in [&ping[..], &with_more, b"17 bytes of data!", &pong(1)[..16]] {
            io.write_all(frame).await.unwrap();
            assert_eq!(written.lock().pop().as_deref(), Some(frame));
        }
        for number in 0..5 {
            io.write_all(&pong(number)).await.unwrap();
        }
        assert_eq!(written.lock().concat(), (0..5).flat_map(pong).collect::<Vec<_>>(), "four wait, the fifth does not");
    }

    /// Writes the head and the bytes of a DATA frame as `h2` does that copies only the head.
    async fn write_message(io: &mut Gather, head: &[u8], message: &[u8]) {
        let written = io.write_vectored(&[IoSlice::new(head), IoSlice::new(message)]).await.unwrap();
        assert_eq!(written, head.len() + message.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_goes_with_the_trailers() {
        let (mut io, written) = gather(1 << 20, true);
        io.write_all(&pong(1)).await.unwrap();
        for round in 0..3 {
            write_message(&mut io, b"head", b"message").await;
            io.flush().await.unwrap();
            assert_eq!(written.lock().len(), round, "the flush that makes room for the trailers sends nothing");
            io.write_all(b"trailers").await.unwrap();
            io.flush().await.unwrap();
        }
        let of_one = b"headmessagetrailers".to_vec();
        assert_eq!(*written.lock(), [[pong(1), of_one.clone()].concat(), of_one.clone(), of_one]);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_of_several_calls_go_together() {
        let (mut io, written) = gather(1 << 20, true);
        for _ in 0..3 {
            write_message(&mut io, b"head", b"message").await;
            io.flush().await.unwrap();
        }
        assert!(written.lock().is_empty());
        io.flush().await.unwrap();
        assert_eq!(*written.lock(), [b"headmessageheadmessageheadmessage"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_trailers_goes_with_the_second_flush_or_when_it_is_due() {
        let (mut io, written) = gather(5, true);
        write_message(&mut io, b"head", b"message").await;
        io.flush().await.unwrap();
        io.flush().await.unwrap();
        assert_eq!(std::mem::take(&mut *written.lock()).concat(), b"headmessage");
        // A flush of nothing sends nothing, and the next message waits like the first.
        io.flush().await.unwrap();
        write_message(&mut io, b"head", b"other").await;
        io.flush().await.unwrap();
        assert!(written.lock().is_empty());
        // The next poll sends it, and the timer if there is none.
        let mut nothing = [0; 1];
        assert!(futures::poll!(Box::pin(io.read(&mut nothing))).is_pending());
        assert_eq!(std::mem::take(&mut *written.lock()).concat(), b"headother");
        write_message(&mut io, b"head", b"third").await;
        let began = Instant::now();
        tokio::select! {
            _ = io.read(&mut nothing) => {}
            () = tokio::time::sleep(HOLD + Duration::from_millis(2)) => {}
        }
        assert_eq!(std::mem::take(&mut *written.lock()).concat(), b"headthird", "{:?}", began.elapsed());
        write_message(&mut io, b"head", b"last").await;
        io.shutdown().await.unwrap();
        assert_eq!(written.lock().concat(), b"headlast", "nothing is lost at the end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_waits_up_to_the_longest_and_holds_no_memory_behind() {
        let (mut io, written) = gather(1 << 20, true);
        let longest = vec![7; MESSAGES_MAX - 4];
        write_message(&mut io, b"head", &longest).await;
        assert!(written.lock().is_empty());
        io.write_all(b"x").await.unwrap();
        assert_eq!(written.lock().len(), 1);
        assert_eq!(io.held.capacity(), 0);
        write_message(&mut io, b"heads", &longest).await;
        assert_eq!(written.lock().len(), 2, "one byte more does not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_keep_their_order_whatever_a_write_takes() {
        for (most, vectored) in [(1, true), (3, false), (16, true), (17, true), (18, false), (40, true), (40, false)] {
            let (mut io, written) = gather(most, vectored);
            let mut sent = Vec::new();
            for number in 0..200u8 {
                let frame = if number % 3 == 0 { vec![number; 1 + usize::from(number % 37)] } else { pong(number) };
                if number % 7 == 0 {
                    let (head, message) = frame.split_at(frame.len() / 2);
                    let mut left = &mut [IoSlice::new(head), IoSlice::new(message)][..];
                    while !left.is_empty() {
                        let written = io.write_vectored(left).await.unwrap();
                        IoSlice::advance_slices(&mut left, written);
                    }
                } else {
                    io.write_all(&frame).await.unwrap();
                }
                if number % 5 == 0 {
                    io.flush().await.unwrap();
                }
                sent.extend(frame);
            }
            io.shutdown().await.unwrap();
            assert_eq!(written.lock().concat(), sent, "{most} bytes per write");
        }
    }

    mod below_h2 {
        //! What `h2` really does above: it decides when it flushes.

        use std::collections::VecDeque;
        use std::convert::Infallible;

        use bytes::Bytes;
        use http_body::{Body as _, Frame};
        use hyper_util::rt::TokioIo;
        use tokio::io::DuplexStream;
        use tokio::sync::mpsc;
        use tonic::body::Body;
        use tonic::codegen::http;
        use tonic::transport::{Channel, Endpoint, Server};
        use tower::{Service as _, ServiceExt as _};

        use super::*;
        use crate::node::Connection;

        /// The server's end of a connection, which counts writes.
        struct Counted {
            io: DuplexStream,
            writes: Arc<Mutex<usize>>,
        }

        impl AsyncRead for Counted {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.io).poll_read(cx, buf)
            }
        }

        impl AsyncWrite for Counted {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
                *self.writes.lock() += 1;
                Poll::Ready(written)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
                self.poll_write(cx, &all)
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.io).poll_shutdown(cx)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }
        }

        /// A body of the frames that a test sends.
        struct Frames(mpsc::UnboundedReceiver<Frame<Bytes>>);

        impl http_body::Body for Frames {
            type Data = Bytes;
            type Error = Infallible;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                self.0.poll_recv(cx).map(|frame| frame.map(Ok))
            }
        }

        /// A client of a server whose answers are the bodies in `answers`, in turn, and the number of the server's writes.
        async fn connect(answers: Vec<Frames>) -> (Channel, Arc<Mutex<usize>>) {
            let (near, far) = tokio::io::duplex(1 << 20);
            let writes: Arc<Mutex<usize>> = Arc::default();
            let io = Box::pin(Counted { io: far, writes: writes.clone() });
            let incoming = tokio_stream::once(Ok::<_, io::Error>(Connection::new(io, "nowhere")));
            let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
            let service = tower::service_fn(move |_: axum::extract::Request| {
                let body = answers.lock().pop_front().expect("as many calls as answers");
                std::future::ready(Ok::<_, Infallible>(http::Response::new(Body::new(body))))
            });
            let routes = tonic::service::Routes::from(axum::Router::new().fallback_service(service));
            tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(incoming));
            let mut near = Some(TokioIo::new(near));
            let connector = tower::service_fn(move |_| std::future::ready(near.take().ok_or("one connection")));
            let channel = Endpoint::from_static("http://node").connect_with_connector(connector).await.unwrap();
            (channel, writes)
        }

        async fn call(channel: &mut Channel) -> Body {
            let request = http::Request::post("http://node/call").body(Body::empty()).unwrap();
            channel.ready().await.unwrap().call(request).await.unwrap().into_body()
        }

        async fn next(body: &mut Body) -> Option<Frame<Bytes>> {
            std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.map(Result::unwrap)
        }

        #[tokio::test(start_paused = true)]
        async fn an_answer_is_one_write() {
            const CALLS: usize = 20;
            let sizes = || [300, 2_500, 8_000].into_iter().cycle().take(CALLS);
            let answers = sizes().map(|bytes| {
                let (frames, answer) = mpsc::unbounded_channel();
                frames.send(Frame::data(Bytes::from(vec![1; bytes]))).unwrap();
                frames.send(Frame::trailers(http::HeaderMap::new())).unwrap();
                Frames(answer)
            });
            let (mut channel, writes) = connect(answers.collect()).await;
            let began = Instant::now();
            for bytes in sizes() {
                let before = *writes.lock();
                let mut body = call(&mut channel).await;
                let mut read = 0;
                while let Some(frame) = next(&mut body).await {
                    read += frame.data_ref().map_or(0, Bytes::len);
                }
                assert_eq!(read, bytes);
                // The first answers of a connection come with its settings.
                if before > 3 {
                    assert_eq!(*writes.lock() - before, 1, "an answer of {bytes} bytes");
                }
            }
            assert!(*writes.lock() > 3);
            assert_eq!(began.elapsed(), Duration::ZERO, "nothing waited for a timer");
        }

        #[tokio::test(start_paused = true)]
        async fn a_message_of_a_stream_does_not_wait_for_the_next() {
            let (frames, answer) = mpsc::unbounded_channel();
            let (mut channel, _) = connect(vec![Frames(answer)]).await;
            let began = Instant::now();
            let mut body = call(&mut channel).await;
            // The last one is cut into frames of 16 KiB.
            for bytes in [300, 2_500, 8_000, 100, 16 << 10, 40_000] {
                frames.send(Frame::data(Bytes::from(vec![1; bytes]))).unwrap();
                let mut read = 0;
                while read < bytes {
                    read += next(&mut body).await.unwrap().data_ref().unwrap().len();
                }
                assert_eq!(read, bytes);
            }
            assert_eq!(began.elapsed(), Duration::ZERO, "nothing waited for a timer");
        }
    }
}
