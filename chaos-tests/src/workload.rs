//! What clients do, and the record of what they saw.
//!
//! Every client, whatever its language, does what this program tells it, one call at a time: so all times are of one clock, and
//! a call whose client died is known to have been made. The time before a call is taken before the client is told, the time
//! after it when its answer has arrived, which makes intervals longer than they were and never shorter.

pub mod ours;
pub mod record;
pub mod sdk;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use self::record::{Call, Outcome, Record};
use crate::history::{Ending, Read, Trusted, Write};
use crate::process::rng::Rng;

/// Keys that all clients write; few, so that reads meet writes.
const KEYS: usize = 24;
/// Some values are longer, so that segments fill.
const PADDING_MAX: usize = 600;
/// Pause of a client after a call that brought nothing.
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// Every call has to end within this. The longest that any client waits is 8 s; the rest is for a machine under load.
pub const CALL_ENDS_WITHIN: Duration = Duration::from_secs(15);

/// How a client's call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A write.
    Written(Ending),
    /// A read that worked.
    Found(Option<Vec<u8>>),
    /// A read that brought nothing.
    NotRead,
    /// What must never happen, in words: a proof that failed, a state that moved backward, an answer that makes no sense.
    Wrong(String),
}

/// Some client.
pub trait Client: Send {
    /// Writes a pair, verified or not.
    fn set<'a>(&'a mut self, key: &'a str, value: &'a str, verified: bool) -> BoxFuture<'a, Answer>;
    /// Reads a key, verified or not.
    fn get<'a>(&'a mut self, key: &'a str, verified: bool) -> BoxFuture<'a, Answer>;
    /// Which node answered last, where that is known.
    fn node(&self) -> u32;
    /// The state that it trusts, as transaction and Alh, where that is known.
    fn trusted(&self) -> Option<(u64, Vec<u8>)> {
        None
    }
    /// Ends it.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// One client's part in a run.
pub struct Part {
    /// Client number.
    pub number: u32,
    /// Kind of client.
    pub kind: &'static str,
    /// The client.
    pub client: Box<dyn Client>,
    /// Decides what it does.
    pub seed: u64,
    /// Pause after a call that was answered.
    pub pace: Duration,
    /// When the run began.
    pub begin: Instant,
    /// Where it is written down.
    pub record: Arc<Record>,
    /// True when it shall end.
    pub stop: watch::Receiver<bool>,
}

/// What the next call is.
struct Next {
    key: String,
    value: String,
    reads: bool,
    verified: bool,
}

impl Part {
    /// Calls the client again and again until it is told to stop; then closes it.
    pub async fn play(mut self) {
        let mut rng = Rng::new(self.seed, &format!("client {}", self.number));
        let mut sequence = 0_u64;
        while !*self.stop.borrow() {
            let next = self.next(&mut rng, sequence);
            sequence += 1;
            let Some(outcome) = self.call(next).await else { break };
            let pause = if outcome == Outcome::Done { self.pace } else { AFTER_FAILURE };
            // Woken when it shall end.
            let _ = tokio::time::timeout(pause, self.stop.wait_for(|stop| *stop)).await;
        }
        self.client.close().await;
    }

    fn next(&self, rng: &mut Rng, sequence: u64) -> Next {
        let key = format!("key-{}", rng.below(KEYS));
        let (verified, reads) = (rng.chance(50), rng.chance(45));
        let mut value = format!("{}-{}-{sequence}-", self.kind, self.number);
        if rng.chance(30) {
            let padding = rng.below(PADDING_MAX);
            value.extend((0..padding).map(|_| char::from(b'a' + (rng.below(26) as u8))));
        }
        Next { key, value, reads, verified }
    }

    /// Makes one call and writes it down; nothing when it did not end.
    async fn call(&mut self, next: Next) -> Option<Outcome> {
        let Next { key, value, reads, verified } = next;
        let (number, kind, invoked) = (self.number, self.kind, self.begin.elapsed());
        // Known from now on, so that a write without any answer is one of unknown outcome.
        let id = (!reads).then(|| {
            self.record.begin_write(Write {
                client: number,
                key: key.clone().into_bytes(),
                value: value.clone().into_bytes(),
                invoked,
                ended: Duration::MAX,
                ending: Ending::Unknown,
            })
        });
        let client = &mut self.client;
        let call =
            async { if reads { client.get(&key, verified).await } else { client.set(&key, &value, verified).await } };
        let answer = tokio::time::timeout(CALL_ENDS_WITHIN, call).await;
        let ended = self.begin.elapsed();
        let outcome = match answer {
            Err(_) => {
                self.record
                    .hung(format!("a call of client {number} ({kind}) had no answer after {CALL_ENDS_WITHIN:?}"));
                None
            }
            Ok(Answer::Written(ending)) => {
                if let Some(id) = id {
                    self.record.end_write(id, ended, ending);
                }
                Some(match ending {
                    Ending::Acknowledged(_) => Outcome::Done,
                    Ending::Refused => Outcome::Refused,
                    Ending::Unknown => Outcome::Unknown,
                })
            }
            Ok(Answer::Found(value)) => {
                let (key, node) = (key.into_bytes(), self.client.node());
                self.record.read(Read { client: number, node, key, value, invoked, ended });
                Some(Outcome::Done)
            }
            Ok(Answer::NotRead) => Some(Outcome::Refused),
            Ok(Answer::Wrong(text)) => {
                self.record.wrong(format!("client {number} ({kind}) at {:.1} s: {text}", ended.as_secs_f64()));
                Some(Outcome::Unknown)
            }
        };
        if let Some((tx, alh)) = self.client.trusted() {
            self.record.trusts(Trusted { client: number, tx, alh });
        }
        let told = outcome.unwrap_or(Outcome::Unknown);
        self.record.call(Call { kind, client: number, write: !reads, verified, invoked, ended, outcome: told });
        outcome
    }
}
