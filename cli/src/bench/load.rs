//! The load: keys, values and the loop of one client.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use alhambra_client::{Client, Options};
use alhambra_proto::schema::{KeyRequest, KeyValue, SetRequest};
use tokio::time::{self, Instant};
use tonic::Status;

use crate::bench::stats::Samples;
use crate::connect::Target;
use crate::failure::{Failure, chain};
use crate::session::{Login, Session, say};

/// Length of every key.
pub const KEY_BYTES: usize = 32;
/// Length of every value.
pub const VALUE_BYTES: usize = 128;
/// How many keys `--mode get` reads from.
const POPULATION: u64 = 100_000;
const POPULATE_BATCH: u64 = 1000;
/// Longer than any server should take, so that a hanging one is seen as errors.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A failed call is not repeated faster than this.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);
/// Keys of this worker number are the population.
const POPULATION_WORKER: u64 = 0;

/// What each call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Writes keys that no other call writes.
    Set,
    /// Reads one of 100,000 keys, written before the measurement.
    Get,
}

/// What the workers of a row do.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Write or read.
    pub mode: Mode,
    /// Whether answers are proven and verified.
    pub verified: bool,
    /// Entries per transaction.
    pub batch: u32,
}

async fn open(target: &Target, endpoint: &str) -> Result<Session, String> {
    Session::open(endpoint, Login::of(target), CALL_TIMEOUT).await
}

async fn set(session: &mut Session, entries: Vec<KeyValue>) -> Result<(), Status> {
    let request = session.request(SetRequest { k_vs: entries, ..SetRequest::default() });
    session.stub().set(request).await.map(drop)
}

async fn get(session: &mut Session, key: Vec<u8>) -> Result<(), Status> {
    let request = session.request(KeyRequest { key: key.into(), ..KeyRequest::default() });
    session.stub().get(request).await.map(drop)
}

/// How one client talks to its server.
enum Line {
    /// The wire as it is.
    Plain(Box<Session>),
    /// The client library, which verifies every answer; it keeps its trusted state in memory.
    Verified(Client),
}

impl Line {
    async fn open(target: &Target, at: usize, verified: bool) -> Result<Line, String> {
        let endpoint = &target.endpoints[at];
        if !verified {
            return open(target, endpoint).await.map(|session| Line::Plain(Box::new(session)));
        }
        let options = Options {
            login: target.login,
            user: target.username.clone(),
            password: target.password.clone(),
            database: target.database.clone(),
            request_timeout: CALL_TIMEOUT,
            ..Options::default()
        };
        let client = Client::connect(vec![endpoint.clone()], options).await;
        client.map(Line::Verified).map_err(|error| format!("{endpoint}: {}", chain(&error)))
    }

    async fn set(&mut self, entries: Vec<KeyValue>) -> Result<(), String> {
        match self {
            Line::Plain(session) => set(session, entries).await.map_err(|status| say(&status)),
            Line::Verified(client) => {
                let pairs = entries.into_iter().map(|entry| alhambra_client::KeyValue::new(entry.key, entry.value));
                client.verified_set_all(pairs.collect()).await.map(drop).map_err(|error| chain(&error))
            }
        }
    }

    async fn get(&mut self, key: Vec<u8>) -> Result<(), String> {
        match self {
            Line::Plain(session) => get(session, key).await.map_err(|status| say(&status)),
            Line::Verified(client) => client.verified_get(key).await.map(drop).map_err(|error| chain(&error)),
        }
    }

    async fn close(self) {
        match self {
            Line::Plain(session) => session.close().await,
            Line::Verified(client) => client.close().await,
        }
    }
}

/// Writes the keys that [`Mode::Get`] reads.
pub async fn populate(target: &Target) -> Result<(), Failure> {
    let refused = |why| Failure::failed(format!("writing the keys to read: {why}"), "check the server, then try again");
    let mut session = open(target, &target.endpoints[0]).await.map_err(refused)?;
    let mut stream = Stream::seeded(0);
    for first in (0..POPULATION).step_by(POPULATE_BATCH as usize) {
        let entries = (first..first + POPULATE_BATCH).map(|n| entry(POPULATION_WORKER, n, &mut stream)).collect();
        set(&mut session, entries).await.map_err(|status| refused(say(&status)))?;
    }
    session.close().await;
    Ok(())
}

/// One client: a connection and a session of its own.
pub struct Worker {
    target: Target,
    workload: Workload,
    number: u64,
    at: usize,
    line: Option<Line>,
    stream: Stream,
    written: u64,
}

impl Worker {
    /// Connects client `number` (from 0) to its endpoint.
    pub async fn connect(target: &Target, workload: Workload, number: u32) -> Result<Worker, Failure> {
        let at = number as usize % target.endpoints.len();
        let line = Line::open(target, at, workload.verified).await.map_err(|why| {
            Failure::failed(
                format!("client {number} cannot connect: {why}"),
                "check endpoint, user and password; a server may also limit its sessions",
            )
        })?;
        let seed = RandomState::new().build_hasher().finish();
        Ok(Worker {
            target: target.clone(),
            workload,
            number: u64::from(number),
            at,
            line: Some(line),
            stream: Stream::seeded(seed),
            written: 0,
        })
    }

    /// Calls until `end`; a call that is under way then is counted.
    pub async fn run(mut self, start: Instant, end: Instant) -> Samples {
        let mut samples = Samples::default();
        // Unique per run, so that no run meets the keys of an earlier one.
        let space = self.stream.next() | 1;
        while Instant::now() < end {
            let began = Instant::now();
            match self.call(space).await {
                Ok(entries) => {
                    let now = Instant::now();
                    samples.done.push((now - start, now - began));
                    samples.entries += entries;
                }
                Err(text) => {
                    samples.fail(text);
                    time::sleep(PAUSE_AFTER_ERROR).await;
                    self.reconnect().await;
                }
            }
        }
        if let Some(line) = self.line.take() {
            line.close().await;
        }
        samples
    }

    async fn call(&mut self, space: u64) -> Result<u64, String> {
        let Some(line) = &mut self.line else { return Err("no connection".to_owned()) };
        match self.workload.mode {
            Mode::Set => {
                let batch = u64::from(self.workload.batch);
                let first = self.number << 40 | self.written;
                self.written += batch;
                let entries = (first..first + batch).map(|n| entry(space, n, &mut self.stream)).collect();
                line.set(entries).await?;
                Ok(batch)
            }
            Mode::Get => {
                let n = self.stream.next() % POPULATION;
                line.get(key(POPULATION_WORKER, n)).await?;
                Ok(1)
            }
        }
    }

    /// Goes on with the next endpoint, so that a dead server shows as a gap and not as the end of the run.
    async fn reconnect(&mut self) {
        self.at = (self.at + 1) % self.target.endpoints.len();
        self.line = Line::open(&self.target, self.at, self.workload.verified).await.ok();
    }
}

/// A cheap stream of bits (splitmix64), so that the load generator costs next to nothing.
#[derive(Debug)]
struct Stream(u64);

impl Stream {
    fn seeded(seed: u64) -> Stream {
        Stream(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count + 7);
        while out.len() < count {
            out.extend_from_slice(&self.next().to_be_bytes());
        }
        out.truncate(count);
        out
    }
}

/// Random-looking and unique per (`space`, `n`): the last 16 bytes are both numbers.
fn key(space: u64, n: u64) -> Vec<u8> {
    let mut key = Stream::seeded(space ^ n.rotate_left(32)).bytes(KEY_BYTES - 16);
    key.extend_from_slice(&space.to_be_bytes());
    key.extend_from_slice(&n.to_be_bytes());
    key
}

fn entry(space: u64, n: u64, values: &mut Stream) -> KeyValue {
    KeyValue { key: key(space, n).into(), value: values.bytes(VALUE_BYTES).into(), metadata: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_and_values_have_their_lengths_and_keys_are_unique() {
        let keys: BTreeSet<_> = (0..4).flat_map(|space| (0..1000).map(move |n| key(space, n))).collect();
        assert_eq!(keys.len(), 4000);
        assert!(keys.iter().all(|key| key.len() == KEY_BYTES));
        let mut values = Stream::seeded(1);
        let (a, b) = (entry(1, 1, &mut values), entry(1, 2, &mut values));
        assert_eq!((a.value.len(), b.value.len()), (VALUE_BYTES, VALUE_BYTES));
        assert_ne!(a.value, b.value);
    }
}
