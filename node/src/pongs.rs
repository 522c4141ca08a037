//! Answers to pings travel with the next bytes.
//!
//! A gRPC client measures the bandwidth of a connection with a ping behind every message that it receives (Go does). An answer of
//! its own costs a system call here, and wakes the client for nothing, with every call. So it waits for what is written next, for
//! at most [`HOLD`]. RFC 9113, 6.7 wants answers to pings before other frames: they still are, what waits is the first byte of both.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use alhambra_raft::env::BoxIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long an answer waits at most: longer than a write to a cluster takes, and nothing to who looks whether a connection lives.
const HOLD: Duration = Duration::from_millis(10);
/// Bytes that wait at most: whoever sends many pings gets many answers.
const HELD_BYTES_MAX: usize = 4 * PONG_BYTES;

/// A PING frame with flag ACK: its head, then eight bytes of the ping.
const PONG_HEAD: [u8; 9] = [0, 0, 8, 6, 1, 0, 0, 0, 0];
const PONG_BYTES: usize = PONG_HEAD.len() + 8;

/// A byte stream that carries HTTP/2 in plain and holds answers to pings back. Whoever serves it always reads from it.
pub struct Pongs {
    io: BoxIo,
    held: Vec<u8>,
    due: Option<Pin<Box<Sleep>>>,
}

impl Pongs {
    /// Of a connection that has just begun.
    pub fn new(io: BoxIo) -> Self {
        Self { io, held: Vec::new(), due: None }
    }

    /// Keeps `frame` for later if it is an answer to a ping.
    fn holds(&mut self, cx: &mut Context<'_>, frame: &[u8]) -> bool {
        let is_pong = frame.len() == PONG_BYTES && frame.starts_with(&PONG_HEAD);
        if !is_pong || self.held.len() + PONG_BYTES > HELD_BYTES_MAX {
            return false;
        }
        if self.held.is_empty() {
            let at = Instant::now() + HOLD;
            let due = self.due.get_or_insert_with(|| Box::pin(sleep_until(at)));
            due.as_mut().reset(at);
            // Registers the task, which then reads.
            let _not_yet = due.as_mut().poll(cx);
        }
        self.held.extend_from_slice(frame);
        true
    }

    /// Writes what is held.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(self.io.as_mut().poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Pongs {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let is_due = !this.held.is_empty() && this.due.as_mut().is_some_and(|due| due.as_mut().poll(cx).is_ready());
        if is_due && let Poll::Ready(Err(error)) = this.poll_release(cx) {
            return Poll::Ready(Err(error));
        }
        this.io.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Pongs {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next())
            && this.holds(cx, only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        if this.held.is_empty() {
            return this.io.as_mut().poll_write_vectored(cx, bufs);
        }
        if this.io.is_write_vectored() {
            let held = [IoSlice::new(&this.held)];
            let all: Vec<_> = held.into_iter().chain(bufs.iter().map(|buf| IoSlice::new(buf))).collect();
            let written = ready!(this.io.as_mut().poll_write_vectored(cx, &all))?;
            let of_held = written.min(this.held.len());
            this.held.drain(..of_held);
            if written > of_held {
                return Poll::Ready(Ok(written - of_held));
            }
        }
        ready!(this.poll_release(cx))?;
        this.io.as_mut().poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is held is not written for whoever has just written it.
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

    fn pongs(most: usize, vectored: bool) -> (Pongs, Arc<Mutex<Vec<Vec<u8>>>>) {
        let written: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        (Pongs::new(Box::pin(Wire { written: written.clone(), most, vectored })), written)
    }

    fn pong(number: u8) -> Vec<u8> {
        [&PONG_HEAD[..], &[number; 8]].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_goes_with_what_is_written_next() {
        let (mut io, written) = pongs(1 << 20, true);
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
        let (mut io, written) = pongs(5, true);
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
        let (mut io, written) = pongs(1 << 20, true);
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

    #[tokio::test(start_paused = true)]
    async fn bytes_keep_their_order_whatever_a_write_takes() {
        for (most, vectored) in [(1, true), (3, false), (16, true), (17, true), (18, false), (40, true), (40, false)] {
            let (mut io, written) = pongs(most, vectored);
            let mut sent = Vec::new();
            for number in 0..200u8 {
                let frame = if number % 3 == 0 { vec![number; 1 + usize::from(number % 37)] } else { pong(number) };
                io.write_all(&frame).await.unwrap();
                sent.extend(frame);
            }
            io.shutdown().await.unwrap();
            assert_eq!(written.lock().concat(), sent, "{most} bytes per write");
        }
    }
}
