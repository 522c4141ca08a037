//! The production side of the seams: the operating system's clock, randomness, threads and TCP.

use std::io;

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use super::{BoxIo, Clock, Executor, Listener, Net, Rng};

/// Threads of [`super::Env::production`]. Most of their time is spent waiting for `fdatasync`, so more than there are cores.
pub(super) const THREADS_DEFAULT: usize = 8;

/// The system's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // This is the one place that stands behind the seam.
    fn now_unix_ms(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        }
    }
}

/// The system's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRng;

impl Rng for OsRng {
    fn fill(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the operating system provides randomness");
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A fixed set of threads; every strand belongs to one of them for ever, which keeps its jobs in order.
///
/// Dropping the pool runs the jobs that were submitted before and then joins the threads.
#[derive(Debug)]
pub struct StrandPool {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    /// `None` only while the pool is being dropped.
    jobs: Mutex<Option<Sender<Job>>>,
    handle: Option<JoinHandle<()>>,
}

impl StrandPool {
    /// Starts `count` threads (at least one).
    ///
    /// # Panics
    /// When the system cannot start a thread, which happens only while the process starts.
    pub fn new(count: usize) -> Self {
        let threads = (0..count.max(1))
            .map(|n| {
                let (tx, rx) = channel::<Job>();
                let handle = std::thread::Builder::new()
                    .name(format!("strand-{n}"))
                    .spawn(move || {
                        for job in rx {
                            // A job that panics must not take the other strands of its thread with it.
                            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                                tracing::error!(thread = n, "a disk job panicked");
                            }
                        }
                    })
                    .expect("a thread can be started while the process starts");
                Thread { jobs: Mutex::new(Some(tx)), handle: Some(handle) }
            })
            .collect();
        Self { threads }
    }
}

impl Executor for StrandPool {
    fn submit(&self, strand: u64, job: Job) {
        let count = self.threads.len() as u64;
        let thread = &self.threads[usize::try_from(strand % count).expect("less than the number of threads")];
        if let Some(jobs) = &*thread.jobs.lock() {
            // The thread ends only after the sender is gone, so this cannot fail.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for StrandPool {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.jobs.lock().take();
        }
        let this = std::thread::current().id();
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take()
                // The last owner of the pool may be a job of its own.
                && handle.thread().id() != this
            {
                let _ = handle.join();
            }
        }
    }
}

/// TCP without Nagle's delay.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNet;

struct TcpAccept(TcpListener);

impl Listener for TcpAccept {
    fn local_addr(&self) -> io::Result<String> {
        Ok(self.0.local_addr()?.to_string())
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxIo, String)>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::pin(stream) as BoxIo, peer.to_string()))
        })
    }
}

impl Net for TcpNet {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move { Ok(Box::new(TcpAccept(TcpListener::bind(addr).await?)) as Box<dyn Listener>) })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::pin(stream) as BoxIo)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn jobs_of_a_strand_keep_their_order_and_a_panic_stops_nothing() {
        let seen = Arc::new(Mutex::new(vec![Vec::new(); 5]));
        let pool = StrandPool::new(2);
        for n in 0..100_u64 {
            let seen = seen.clone();
            let strand = n % 5;
            if n == 50 {
                pool.submit(strand, Box::new(|| panic!("planted")));
            }
            pool.submit(strand, Box::new(move || seen.lock()[strand as usize].push(n)));
        }
        drop(pool);
        for (strand, numbers) in seen.lock().iter().enumerate() {
            let expected: Vec<u64> = (0..100).filter(|n| n % 5 == strand as u64).collect();
            assert_eq!(*numbers, expected);
        }
    }

    #[test]
    fn randomness_differs_and_the_clock_is_past_2026() {
        let (mut a, mut b) = ([0; 16], [0; 16]);
        OsRng.fill(&mut a);
        OsRng.fill(&mut b);
        assert_ne!(a, b);
        assert!(SystemClock.now_unix_ms() > 1_767_225_600_000);
    }

    #[tokio::test]
    async fn tcp_carries_bytes_both_ways_and_tells_its_port() {
        let listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpNet.connect(&addr), listener.accept());
        let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
        client.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        server.read_exact(&mut got).await.unwrap();
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"pong");
    }
}
