//! What a simulated node takes from outside: turmoil's network, a clock that follows virtual time, randomness from the
//! seed, and disk jobs that run where they are submitted.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use alhambra_raft::env::{BoxIo, Clock, Env, Executor, Listener, Net, Rng};
use alhambra_storage::vfs::Vfs;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use turmoil::net::{TcpListener, TcpStream};

use crate::rng::SplitMix64;
use crate::wall::Wall;

/// Wall clock of a host: follows virtual time, is off, jumps and drifts.
#[derive(Debug)]
pub struct SimClock(Mutex<Wall>);

impl SimClock {
    /// A clock that shows the midnight of the simulation and so many milliseconds more at the beginning.
    pub fn new(offset_ms: i64) -> Self {
        Self(Mutex::new(Wall::new(offset_ms)))
    }

    /// The clock jumps at virtual time `now`, milliseconds.
    pub fn jump(&self, now: Duration, ms: i64) {
        self.0.lock().jump(now, ms);
    }

    /// From virtual time `now` on the clock runs so many parts in a thousand fast; 0 ends the drift, not what it has come to.
    pub fn drift(&self, now: Duration, drift: i64) {
        self.0.lock().drift(now, drift);
    }

    /// All that it showed until now.
    pub fn past(&self) -> Wall {
        self.0.lock().clone()
    }
}

impl Clock for SimClock {
    fn now_unix_ms(&self) -> i64 {
        self.0.lock().at(turmoil::sim_elapsed().unwrap_or_default())
    }
}

/// Randomness from a seed; good enough to name sessions and databases in a simulation, and repeatable.
#[derive(Debug)]
pub struct SimRng(Mutex<SplitMix64>);

impl SimRng {
    /// A generator whose whole output follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(SplitMix64::new(seed)))
    }

    /// One that does not disturb the others: what is drawn from it may be changed without changing what they draw.
    pub fn of(seed: u64, purpose: &str) -> Self {
        Self(Mutex::new(SplitMix64::of(seed, purpose)))
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        self.0.lock().draw()
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

/// Runs a job at once, on the caller: the one thread of the simulation is every thread of the node. While the disk is slow, a
/// job waits first, in virtual time, behind the earlier ones of its strand.
#[derive(Debug, Default)]
pub struct SimExecutor {
    delay: Mutex<Duration>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that wait, by strand; a strand with an entry has a task that works it off.
#[derive(Default)]
struct Waiting(BTreeMap<u64, VecDeque<Job>>);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(strand, jobs)| (strand, jobs.len()))).finish()
    }
}

impl SimExecutor {
    /// Every job waits so long from now on.
    pub fn slow_down(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }
}

/// An executor of one life of a host. Jobs that wait when the host crashes are lost with it.
#[derive(Debug)]
pub struct Strands(pub Arc<SimExecutor>, Arc<Mutex<Waiting>>);

impl Strands {
    /// For a host that starts; the slowness of the disk stays.
    pub fn of(executor: &Arc<SimExecutor>) -> Self {
        Self(Arc::clone(executor), Arc::default())
    }
}

impl Executor for Strands {
    fn submit(&self, strand: u64, job: Job) {
        let delay = *self.0.delay.lock();
        let mut mine = self.1.lock();
        if let Some(waiting) = mine.0.get_mut(&strand) {
            waiting.push_back(job);
        } else if delay.is_zero() {
            drop(mine);
            job();
        } else {
            mine.0.insert(strand, VecDeque::from([job]));
            let (slow, queue) = (Arc::clone(&self.0), Arc::clone(&self.1));
            tokio::spawn(async move {
                loop {
                    let delay = *slow.delay.lock();
                    tokio::time::sleep(delay).await;
                    let job = {
                        let mut queue = queue.lock();
                        match queue.0.get_mut(&strand).and_then(VecDeque::pop_front) {
                            Some(job) => job,
                            None => {
                                queue.0.remove(&strand);
                                return;
                            }
                        }
                    };
                    job();
                }
            });
        }
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
pub fn env(vfs: Arc<dyn Vfs>, seed: u64, clock: Arc<SimClock>, executor: &Arc<SimExecutor>) -> Env {
    Env {
        vfs,
        clock,
        rng: Arc::new(SimRng::new(seed)),
        executor: Arc::new(Strands::of(executor)),
        net: Arc::new(SimNet),
    }
}
