//! What clients did and saw: invoke, ok, fail, unknown. A call without an answer may or may not have happened.

use std::time::Duration;

/// How a write ended, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Acknowledged with this transaction id.
    Acknowledged(u64),
    /// The server says that it was surely not applied.
    Refused,
    /// Nobody told: a deadline, a lost connection, the end of the test.
    Unknown,
}

/// One write of one value to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Client number.
    pub client: u32,
    /// The key.
    pub key: Vec<u8>,
    /// The value; unique over the whole history.
    pub value: Vec<u8>,
    /// When it was sent, virtual time.
    pub invoked: Duration,
    /// When the answer came; the end of the test when none came.
    pub ended: Duration,
    /// The answer.
    pub ending: Ending,
}

/// One linearizable read of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Client number.
    pub client: u32,
    /// Node that answered.
    pub node: u32,
    /// The key.
    pub key: Vec<u8>,
    /// What came back; `None` when the key was not found.
    pub value: Option<Vec<u8>>,
    /// When it was sent.
    pub invoked: Duration,
    /// When the answer came.
    pub ended: Duration,
}

/// All that happened, in the order in which the calls ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Writes.
    pub writes: Vec<Write>,
    /// Successful reads.
    pub reads: Vec<Read>,
}
