//! A TCP link that can be made slow, narrow or silent while connections are open.
//!
//! Bytes are never changed, left out or reordered: what a silent direction holds back is delivered when it may speak again, as
//! TCP would after a partition, and it can be cut instead.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes under way in one direction of one connection: this many pieces of at most [`PIECE_BYTES`].
const PIECES_MAX: usize = 64;
const PIECE_BYTES: usize = 16 << 10;
/// A connection to the far end has to be made within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// How one direction of a link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Each byte arrives this much later.
    pub delay: Duration,
    /// Bytes per second; 0 for no bound.
    pub bytes_per_second: u64,
    /// Nothing passes.
    pub silent: bool,
    /// Rises when the connections that are open now shall break.
    pub cuts: u64,
}

/// The two directions of a link: towards the far end and back.
#[derive(Clone, Debug)]
pub struct Shapes {
    /// From the one who connected.
    pub there: watch::Receiver<Shape>,
    /// To the one who connected.
    pub back: watch::Receiver<Shape>,
}

/// Decides about an accepted connection, whose far end is the given stream: which shapes hold for it, or nothing to refuse it.
pub type Admit = Arc<dyn Fn(&TcpStream) -> Option<Shapes> + Send + Sync>;

/// Accepts connections until it is dropped and passes each on to `to`.
#[derive(Debug)]
pub struct Proxy(JoinHandle<()>);

impl Proxy {
    /// Serves a bound listener.
    pub fn start(listener: TcpListener, to: String, admit: Admit) -> Self {
        Self(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((near, _)) => {
                        if let Some(shapes) = admit(&near) {
                            tokio::spawn(pass(near, to.clone(), shapes));
                        }
                    }
                    // Want of open files, for one, passes.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One connection, until either end closes it or it is cut.
async fn pass(near: TcpStream, to: String, mut shapes: Shapes) {
    // A connection through a silent link is not made; neither is one whose answers would not come.
    let speaks = async {
        shapes.there.wait_for(|shape| !shape.silent).await?;
        shapes.back.wait_for(|shape| !shape.silent).await
    };
    if !matches!(tokio::time::timeout(CONNECT_WITHIN, speaks).await, Ok(Ok(_))) {
        return;
    }
    let Ok(Ok(far)) = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(&to)).await else { return };
    // Small messages must not wait for each other, as they do not between the nodes themselves.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // When one direction has ended, so has the connection: nodes do not use half-open ones.
    tokio::select! {
        _ = one_way(near_in, far_out, shapes.there) => {}
        _ = one_way(far_in, near_out, shapes.back) => {}
    }
}

/// Carries bytes one way, each as late as the shape says.
async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut shape: watch::Receiver<Shape>) -> io::Result<()> {
    let cuts = shape.borrow().cuts;
    let delay = shape.clone();
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let read = async move {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let len = from.read(&mut piece).await?;
            if len == 0 {
                return Ok(());
            }
            piece.truncate(len);
            let due = Instant::now() + delay.borrow().delay;
            if send.send((due, piece)).await.is_err() {
                return Ok(());
            }
        }
    };
    let mut watched = shape.clone();
    let write = async move {
        while let Some((due, piece)) = receive.recv().await {
            tokio::time::sleep_until(due).await;
            let rate = {
                let spoken = shape.wait_for(|shape| !shape.silent).await;
                spoken.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?.bytes_per_second
            };
            to.write_all(&piece).await?;
            if rate > 0 {
                tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
            }
        }
        // What was read before the end has been delivered.
        Ok(())
    };
    let cut = async move {
        let _ = watched.wait_for(|shape| shape.cuts != cuts).await;
        Ok(())
    };
    tokio::select! {
        // The reader drops the sender when it ends, which lets the writer come to its end.
        done = async { tokio::try_join!(read, write).map(|_| ()) } => done,
        done = cut => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo behind a proxy, and the switches of both directions.
    async fn echo() -> (TcpStream, watch::Sender<Shape>, watch::Sender<Shape>, Proxy) {
        let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to, at) = (far.local_addr().unwrap().to_string(), near.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = far.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let (there, back) = (watch::Sender::new(Shape::default()), watch::Sender::new(Shape::default()));
        let shapes = Shapes { there: there.subscribe(), back: back.subscribe() };
        let proxy = Proxy::start(near, to, Arc::new(move |_: &TcpStream| Some(shapes.clone())));
        (TcpStream::connect(at).await.unwrap(), there, back, proxy)
    }

    async fn say(stream: &mut TcpStream, within: Duration) -> Option<Duration> {
        let begin = Instant::now();
        stream.write_all(b"hello").await.ok()?;
        let mut answer = [0; 5];
        let read = tokio::time::timeout(within, stream.read_exact(&mut answer)).await.ok()?;
        read.ok().filter(|_| &answer == b"hello").map(|_| begin.elapsed())
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn delays_hold_both_ways_and_end() {
        let (mut stream, there, back, _proxy) = echo().await;
        say(&mut stream, SOON).await.unwrap();
        let slow = Shape { delay: Duration::from_millis(80), ..Shape::default() };
        there.send_replace(slow);
        back.send_replace(slow);
        assert!(say(&mut stream, SOON).await.unwrap() >= Duration::from_millis(160));
    }

    #[tokio::test]
    async fn a_narrow_link_takes_its_time() {
        let (mut stream, there, _back, _proxy) = echo().await;
        there.send_replace(Shape { bytes_per_second: 100_000, ..Shape::default() });
        let begin = Instant::now();
        stream.write_all(&vec![7; 64 << 10]).await.unwrap();
        let mut all = vec![0; 64 << 10];
        stream.read_exact(&mut all).await.unwrap();
        assert!(all.iter().all(|byte| *byte == 7));
        // The pause after the last piece is not seen from here.
        assert!(begin.elapsed() >= Duration::from_millis(450), "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn one_silent_direction_holds_back_and_delivers_later() {
        let (mut stream, _there, back, _proxy) = echo().await;
        say(&mut stream, SOON).await.unwrap();
        back.send_modify(|shape| shape.silent = true);
        assert_eq!(say(&mut stream, Duration::from_millis(300)).await, None);
        back.send_modify(|shape| shape.silent = false);
        let mut answer = [0; 5];
        tokio::time::timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"hello", "nothing was lost");
    }

    #[tokio::test]
    async fn a_cut_breaks_what_is_open_and_nothing_else() {
        let (mut stream, there, _back, proxy) = echo().await;
        say(&mut stream, SOON).await.unwrap();
        there.send_modify(|shape| shape.cuts += 1);
        let mut answer = [0; 1];
        let ended = tokio::time::timeout(SOON, stream.read(&mut answer)).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let again = stream.peer_addr().unwrap();
        let mut stream = TcpStream::connect(again).await.unwrap();
        say(&mut stream, SOON).await.unwrap();
        drop(proxy);
    }
}
