//! Wrong requests: every message type with random content and flipped bytes, to every call, as every kind of user. No call
//! panics or hangs, and nobody sees what is not theirs.
//!
//! Runs for `ALHAMBRA_FUZZ_SECONDS` (a few seconds otherwise) from a seed that is printed; `ALHAMBRA_FUZZ_SEED` repeats it.

use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use alhambra_node::NodeHandle;
use alhambra_node::method::{ALL, Kind as CallKind};
use alhambra_node::rest::binding::POOL;
use alhambra_proto::schema;
use bytes::Bytes;
use prost::Message;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, Value};
use tokio::time::Instant;
use tonic::Code;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::access::{maintenance, nobody_on, off, populated_disk, start};
use crate::permissions::{ELSEWHERE, Login, populated, raw};
use crate::support::*;

/// A small generator (xorshift64*), so that a seed repeats a run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = self.one_of(&[0, 1, 3, 8, 31, 32, 63, 1023, 1024, 1025, 5000]);
        match self.below(4) {
            0 => b"key".to_vec(),
            1 => vec![self.next() as u8; len],
            _ => (0..len).map(|_| self.next() as u8).collect(),
        }
    }

    fn text(&mut self) -> String {
        let names =
            ["alpha", "beta", "gamma", "systemdb", "defaultdb", "immudb", "reader", "Alpha", "../alpha", "ä/%00", ""];
        if self.below(3) > 0 {
            return self.one_of(&names).to_owned();
        }
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn number(&mut self) -> u64 {
        let edges =
            [0, 1, 2, 3, 255, 1000, 2500, 2501, u64::from(u32::MAX), i64::MAX as u64, i64::MIN as u64, u64::MAX];
        if self.below(4) == 0 { self.next() } else { self.one_of(&edges) }
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Value {
        let number = self.number();
        match kind {
            Kind::Double => {
                Value::F64(f64::from_bits(self.one_of(&[number, 0, f64::NAN.to_bits(), (-0.0_f64).to_bits()])))
            }
            Kind::Float => Value::F32(f32::from_bits(number as u32)),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number as i64),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(number as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(number),
            Kind::Bool => Value::Bool(number & 1 == 1),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.bytes().into()),
            Kind::Message(message) => Value::Message(self.message(message, depth + 1)),
            Kind::Enum(_) => Value::EnumNumber(self.one_of(&[0, 1, 2, 3, -1, i32::MAX])),
        }
    }

    /// A message of the type in which each field is set or not.
    fn message(&mut self, of: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        for field in of.fields() {
            if depth > 5 || field.is_map() || self.below(3) == 0 {
                continue;
            }
            let value = if field.is_list() {
                let len = self.one_of(&[0, 1, 1, 2, 5]);
                Value::List((0..len).map(|_| self.value(&field.kind(), depth)).collect())
            } else {
                self.value(&field.kind(), depth)
            };
            message.set_field(&field, value);
        }
        message
    }

    /// What a client streams to a call: parts behind their lengths, cut anywhere, and mostly such as the call wants.
    fn parts(&mut self, method: &str) -> Vec<Bytes> {
        let mut stream = Vec::new();
        for number in 0..self.below(9) {
            let part = match (method, self.below(4)) {
                ("streamExecAll", 0) => vec![self.one_of(&[1, 1, 2, 2, 3, 4, 0, 255])],
                ("streamExecAll", 1) => {
                    let zadd = POOL.get_message_by_name("immudb.schema.ZAddRequest").expect("it is in the schema");
                    self.message(&zadd, 0).encode_to_vec()
                }
                ("streamVerifiableSet", _) if number == 0 => self.number().to_be_bytes().to_vec(),
                _ => self.bytes(),
            };
            let len = if self.below(30) == 0 { self.number() } else { part.len() as u64 };
            stream.extend(len.to_be_bytes());
            stream.extend(part);
        }
        if self.below(4) == 0 {
            self.damage(&mut stream);
        }
        let mut chunks = Vec::new();
        while !stream.is_empty() {
            let rest = stream.split_off(1 + self.below(stream.len()));
            let chunk =
                schema::Chunk { content: std::mem::replace(&mut stream, rest).into(), metadata: Default::default() };
            chunks.push(chunk.encode_to_vec().into());
        }
        chunks
    }

    /// Flips, drops, repeats and inserts some bytes.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(4) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 => bytes.truncate(at),
                2 => bytes.insert(at, self.next() as u8),
                _ => bytes.extend_from_within(at..),
            }
        }
    }
}

/// Panics of this process that no test has caused by a wrong assumption of its own.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn watch_panics() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.location().is_none_or(|at| !at.file().contains("tests/")) {
                PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
            }
            before(panic);
        }));
    });
}

/// Throws wrong calls at a node until its time is over.
struct Thrower {
    random: Random,
    seed: u64,
    channel: Channel,
    until: Instant,
    number: u64,
    counts: std::collections::BTreeMap<i32, u64>,
}

impl Thrower {
    async fn at(node: &NodeHandle) -> Self {
        watch_panics();
        let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = setting("ALHAMBRA_FUZZ_SEED")
            .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.subsec_nanos().into()) | 1);
        let seconds = setting("ALHAMBRA_FUZZ_SECONDS").unwrap_or(3);
        println!("ALHAMBRA_FUZZ_SEED={seed}");
        Self {
            random: Random(seed | 1),
            seed,
            channel: channel(node).await,
            until: Instant::now() + Duration::from_secs(seconds),
            number: 0,
            counts: Default::default(),
        }
    }

    /// Whether there is time for another one.
    fn goes_on(&mut self) -> bool {
        self.number += 1;
        Instant::now() < self.until
    }

    /// One wrong call. It is answered, and neither the answer nor the details of an error are such that `sees_wrongly` says so.
    async fn throw(&mut self, headers: &MetadataMap, who: &str, sees_wrongly: impl Fn(&[u8]) -> bool) {
        let random = &mut self.random;
        let method = &ALL[random.below(ALL.len())];
        let described = |method: &alhambra_node::method::Method| {
            let service = POOL.get_service_by_name(method.service).unwrap();
            service.methods().find(|one| one.name() == method.name).unwrap()
        };
        let descriptor = described(method);
        let mut message = if random.below(20) == 0 {
            // Of another call altogether.
            let other = described(&ALL[random.below(ALL.len())]);
            random.message(&other.input(), 0).encode_to_vec()
        } else {
            random.message(&descriptor.input(), 0).encode_to_vec()
        };
        if random.below(3) == 0 {
            random.damage(&mut message);
        }
        // What is looked for has to stay there.
        let removes = matches!(method.name, "UnloadDatabase" | "DeleteDatabase" | "TruncateDatabase");
        if removes && message.windows(5).any(|window| window == b"alpha") {
            return;
        }
        let mut headers = headers.clone();
        // Quick answers from calls that wait for what never comes.
        headers.insert("grpc-timeout", "2S".parse().unwrap());
        let messages = match descriptor.is_client_streaming() {
            true if descriptor.input().name() == "Chunk" && random.below(4) > 0 => random.parts(method.name),
            true => vec![Bytes::from(message); random.below(4)],
            false => vec![Bytes::from(message)],
        };
        let many = messages.len();
        let (seed, number) = (self.seed, self.number);
        let what = || format!("seed {seed}, call {number}: {}/{} as {who}", method.service, method.name);
        match raw(&self.channel, &headers, method.path, messages).await {
            Ok(reply) => {
                assert!(!sees_wrongly(&reply), "{} saw what is not theirs", what());
                *self.counts.entry(0).or_default() += 1;
            }
            Err(status) => {
                // A handler that panics takes its connection with it.
                let broken = status.message().contains("h2 protocol error")
                    || status.message().contains("transport error")
                    || matches!(status.code(), Code::DataLoss);
                assert!(!broken && !status.message().contains("panic"), "{}: {status:?}", what());
                assert!(!sees_wrongly(status.details()), "{}", what());
                *self.counts.entry(status.code() as i32).or_default() += 1;
            }
        }
        // One that makes an answer, or works for a call on another thread, is told to the caller as an error like others.
        let panics = std::mem::take(&mut *PANICS.lock().unwrap());
        assert!(panics.is_empty(), "{}: {panics:?}", what());
        assert!(method.kind == CallKind::Stream || many == 1);
    }

    /// The calls were not too wrong to reach anything.
    fn has_reached(&self, codes_min: usize) {
        println!("{} calls, by code: {:?}", self.number, self.counts);
        let counts = &self.counts;
        assert!(
            counts[&0] > 0 && counts.len() >= codes_min,
            "the requests were too wrong to reach anything: {counts:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_neither_stop_a_node_nor_show_what_is_not_theirs() {
    let node = populated().await;
    let mut thrower = Thrower::at(&node).await;
    let mut logins: Vec<Option<(Login, MetadataMap)>> = Login::all().into_iter().map(|_| None).collect();
    while thrower.goes_on() {
        let place = thrower.random.below(logins.len());
        // Calls end sessions, change passwords and permissions: one that does not work any more is made anew, if it can be.
        if logins[place].is_none() || thrower.number.is_multiple_of(64) {
            let login = Login::all()[place];
            logins[place] = login.try_on(&node).await.map(|headers| (login, headers));
        }
        let Some((login, headers)) = &logins[place] else { continue };
        thrower.throw(headers, &format!("{login:?}"), |reply| login.sees_wrongly(reply)).await;
    }
    thrower.has_reached(4);
    // It still serves, and what was there is there. The password of the administrator cannot have been changed.
    let root = Client::on(&node, "alpha").await;
    let key = schema::KeyRequest { key: bytes("key"), at_revision: 1, ..Default::default() };
    assert_eq!(&*root.get_of(key).await.unwrap().value, crate::permissions::SECRET);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_without_authentication_stop_no_node_and_make_no_users() {
    let disk = alhambra_storage::vfs::mem::MemVfs::new();
    let node = start(off(), &disk).await;
    let nobody = Client::anonymous(&node).await;
    nobody.set("key", "first").await.unwrap();
    let mut thrower = Thrower::at(&node).await;
    let headers = nobody.request(()).metadata().clone();
    while thrower.goes_on() {
        thrower.throw(&headers, "nobody", |_| false).await;
    }
    thrower.has_reached(4);
    let key = schema::KeyRequest { key: bytes("key"), at_revision: 1, ..Default::default() };
    assert_eq!(nobody.get_of(key).await.unwrap().value, "first");
    // Had one of them made a database or a user, the node would not start without authentication any more.
    node.shutdown().await;
    start(off(), &disk).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_in_maintenance_mode_stop_no_node_and_show_no_other_database() {
    let disk = populated_disk().await;
    let node = start(maintenance(), &disk).await;
    let nobody = nobody_on(&node, ELSEWHERE).await;
    let mut thrower = Thrower::at(&node).await;
    let headers = nobody.request(()).metadata().clone();
    while thrower.goes_on() {
        // The token names the database, whatever the request says.
        thrower.throw(&headers, "nobody", crate::permissions::has_secret).await;
    }
    thrower.has_reached(3);
    assert_eq!(nobody.get("key").await.unwrap().value, "nothing special");
    node.shutdown().await;
    // Whoever logs in finds what was there.
    let node = start(config(), &disk).await;
    let root = Client::on(&node, "alpha").await;
    assert_eq!(root.get("key").await.unwrap().value, crate::permissions::SECRET);
    assert_eq!(root.state().await.unwrap().tx_id, 1);
    node.shutdown().await;
}
