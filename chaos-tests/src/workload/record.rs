//! What all clients saw, together.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::history::{Ending, History, Read, Trusted, Write};

/// How a call ended, for the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged or read.
    Done,
    /// Surely not done.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// One call, for the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Kind of client.
    pub kind: &'static str,
    /// Client number.
    pub client: u32,
    /// A write, or a read.
    pub write: bool,
    /// With proof.
    pub verified: bool,
    /// When it was sent, since the run began.
    pub invoked: Duration,
    /// When its answer came.
    pub ended: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

#[derive(Debug, Default)]
struct Kept {
    history: History,
    calls: Vec<Call>,
    wrong: Vec<String>,
    hung: Vec<String>,
    /// Acknowledged writes by kind of client: how many, when the last.
    done: BTreeMap<&'static str, (usize, Duration)>,
}

/// The record of a run.
#[derive(Debug, Default)]
pub struct Record(Mutex<Kept>);

impl Record {
    /// A write is about to be sent; its number.
    pub fn begin_write(&self, write: Write) -> usize {
        let mut kept = self.0.lock();
        kept.history.writes.push(write);
        kept.history.writes.len() - 1
    }

    /// A write has ended.
    pub fn end_write(&self, number: usize, ended: Duration, ending: Ending) {
        let write = &mut self.0.lock().history.writes[number];
        (write.ended, write.ending) = (ended, ending);
    }

    /// A read has worked.
    pub fn read(&self, read: Read) {
        self.0.lock().history.reads.push(read);
    }

    /// A client trusts this state now; what it has trusted before is not written down again.
    pub fn trusts(&self, state: Trusted) {
        let trusted = &mut self.0.lock().history.trusted;
        if trusted.iter().rev().find(|before| before.client == state.client) != Some(&state) {
            trusted.push(state);
        }
    }

    /// A call has ended.
    pub fn call(&self, call: Call) {
        let mut kept = self.0.lock();
        if call.write && call.outcome == Outcome::Done {
            let (count, last) = kept.done.entry(call.kind).or_default();
            (*count, *last) = (*count + 1, call.ended);
        }
        kept.calls.push(call);
    }

    /// Something that must never happen has.
    pub fn wrong(&self, text: String) {
        self.0.lock().wrong.push(text);
    }

    /// A call did not end.
    pub fn hung(&self, text: String) {
        self.0.lock().hung.push(text);
    }

    /// Kinds of clients that have a write acknowledged after `since`.
    pub fn wrote_since(&self, since: Duration) -> Vec<&'static str> {
        self.0.lock().done.iter().filter(|(_, (_, last))| *last > since).map(|(kind, _)| *kind).collect()
    }

    /// What clients did and saw.
    pub fn history(&self) -> History {
        self.0.lock().history.clone()
    }

    /// Every call.
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().calls.clone()
    }

    /// Answers that must never have come.
    pub fn wrongs(&self) -> Vec<String> {
        self.0.lock().wrong.clone()
    }

    /// Calls that did not end.
    pub fn hangs(&self) -> Vec<String> {
        self.0.lock().hung.clone()
    }
}
