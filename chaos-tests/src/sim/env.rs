//! What a simulated node takes from outside: turmoil's network, a clock that follows virtual time, randomness from the
//! seed, and disk jobs that run where they are submitted.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use alhambra_raft::env::{BoxIo, Clock, Env, Executor, Listener, Net, Rng};
use alhambra_storage::vfs::Vfs;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use turmoil::net::{TcpListener, TcpStream};

/// Wall clock of a host: virtual time after a fixed date, plus the host's own offset.
#[derive(Debug)]
pub struct SimClock {
    /// How far this host's clock is off, milliseconds.
    pub offset_ms: i64,
}

/// 2026-01-01 00:00:00 UTC, where every simulation begins.
const EPOCH_MS: i64 = 1_767_225_600_000;

impl Clock for SimClock {
    fn now_unix_ms(&self) -> i64 {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        EPOCH_MS + i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX / 2) + self.offset_ms
    }
}

/// SplitMix64 from a seed; good enough to name sessions and databases in a simulation, and repeatable.
#[derive(Debug)]
pub struct SimRng(Mutex<u64>);

impl SimRng {
    /// A generator whose whole output follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl Rng for SimRng {
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.next().to_be_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Runs a job at once, on the caller: the one thread of the simulation is every thread of the node.
#[derive(Debug)]
pub struct InlineExecutor;

impl Executor for InlineExecutor {
    fn submit(&self, _strand: u64, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}

/// turmoil's TCP.
#[derive(Debug)]
pub struct SimNet;

struct SimListener(TcpListener);

impl Listener for SimListener {
    fn local_addr(&self) -> io::Result<String> {
        Ok(self.0.local_addr()?.to_string())
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxIo, String)>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            Ok((Box::pin(stream) as BoxIo, peer.to_string()))
        })
    }
}

/// Splits `host:port`; turmoil names hosts, so the host part may be a name.
fn split(addr: &str) -> io::Result<(&str, u16)> {
    addr.rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{addr} is not host:port")))
}

impl Net for SimNet {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (_, port) = split(addr)?;
            // A simulated host has one interface, so every listener binds to all of it.
            let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).await?;
            Ok(Box::new(SimListener(listener)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            let (host, port) = split(addr)?;
            let stream = TcpStream::connect((host.to_string(), port)).await?;
            Ok(Box::pin(stream) as BoxIo)
        })
    }
}

/// Everything one simulated node needs. `seed` must differ between the starts of a node, or two lives of it would choose
/// the same random names.
pub fn env(vfs: Arc<dyn Vfs>, seed: u64, clock_offset_ms: i64) -> Env {
    Env {
        vfs,
        clock: Arc::new(SimClock { offset_ms: clock_offset_ms }),
        rng: Arc::new(SimRng::new(seed)),
        executor: Arc::new(InlineExecutor),
        net: Arc::new(SimNet),
    }
}
