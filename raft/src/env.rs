//! The seams to the outside world. Production and simulation differ in what stands behind these traits and in nothing else.
//!
//! Monotonic time is `tokio::time` everywhere (virtual in a simulation); `std::time` clocks and thread-local randomness
//! are used nowhere else in the server.

mod system;

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use alhambra_storage::vfs::Vfs;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::system::{OsRng, StrandPool, SystemClock, TcpNet};

/// Wall clock.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since 1970-01-01 UTC.
    fn now_unix_ms(&self) -> i64;
}

/// Source of randomness for ids, session names and seeds.
pub trait Rng: Send + Sync + Debug {
    /// Fills `out` with random bytes.
    fn fill(&self, out: &mut [u8]);
}

/// Runs blocking work (disk writes and syncs, password hashing) off the async threads.
///
/// Contract: jobs of one strand run in the order of submission, one at a time; jobs of different strands may run in
/// parallel. The simulation runs a job inside `submit`.
pub trait Executor: Send + Sync + Debug {
    /// Queues `job` behind all earlier jobs of the same strand.
    fn submit(&self, strand: u64, job: Box<dyn FnOnce() + Send>);
}

/// A two-way byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An owned byte stream.
pub type BoxIo = Pin<Box<dyn Io>>;

/// Accepts byte streams.
pub trait Listener: Send + Sync {
    /// The bound address, `host:port`.
    fn local_addr(&self) -> io::Result<String>;
    /// Waits for the next connection; answers it with the peer's address.
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxIo, String)>>;
}

/// Opens and accepts connections: TCP in production, turmoil's TCP in a simulation.
pub trait Net: Send + Sync + Debug {
    /// Binds `addr` (`host:port`; port 0 picks a free one).
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
    /// Connects to `addr` (`host:port`).
    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxIo>>;
}

/// Everything a node takes from outside.
#[derive(Clone, Debug)]
pub struct Env {
    /// Files.
    pub vfs: Arc<dyn Vfs>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
    /// Blocking work.
    pub executor: Arc<dyn Executor>,
    /// Connections.
    pub net: Arc<dyn Net>,
}

impl Env {
    /// The production environment: system clock, system randomness, a pool of threads for disk work, TCP.
    pub fn production(vfs: Arc<dyn Vfs>) -> Self {
        Self {
            vfs,
            clock: Arc::new(SystemClock),
            rng: Arc::new(OsRng),
            executor: Arc::new(StrandPool::new(system::THREADS_DEFAULT)),
            net: Arc::new(TcpNet),
        }
    }

    /// Runs blocking `work` on the executor and waits for its result; `None` when the executor has been stopped.
    pub async fn blocking<T, F>(&self, strand: u64, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.executor.submit(
            strand,
            Box::new(move || {
                // The receiver is gone when the caller was cancelled; the work has been done all the same.
                let _ = tx.send(work());
            }),
        );
        rx.await.ok()
    }
}
