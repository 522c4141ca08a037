//! What clients did and saw: invoke, ok, fail, unknown. A call without an answer may or may not have happened.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How a write ended, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Acknowledged with this transaction id.
    Acknowledged(u64),
    /// The server says that it was surely not applied.
    Refused,
    /// Nobody told: a deadline, a lost connection, the end of the test.
    Unknown,
}

/// One write of one value to one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// One read of several keys that must come from one state, whichever it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotRead {
    /// What was called, for messages.
    pub call: &'static str,
    /// Node that answered.
    pub node: u32,
    /// Each key asked for, and what came back.
    pub pairs: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// When it was sent.
    pub invoked: Duration,
}

/// A read at whatever a node has applied, with a transaction that the client has seen as its floor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FloorRead {
    /// Node that answered.
    pub node: u32,
    /// The key.
    pub key: Vec<u8>,
    /// The state must be at least that of this transaction.
    pub floor: u64,
    /// What came back.
    pub value: Option<Vec<u8>>,
}

/// A read of the past of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PastRead {
    /// All versions, oldest first, as (transaction, value).
    History {
        /// Node that answered.
        node: u32,
        /// The key.
        key: Vec<u8>,
        /// What came back.
        versions: Vec<(u64, Vec<u8>)>,
        /// When it was sent.
        invoked: Duration,
    },
    /// The version that a transaction wrote.
    AtTx {
        /// Node that answered.
        node: u32,
        /// The key.
        key: Vec<u8>,
        /// The transaction.
        tx: u64,
        /// What came back.
        value: Option<Vec<u8>>,
    },
    /// The version of a number, from 1.
    AtRevision {
        /// Node that answered.
        node: u32,
        /// The key.
        key: Vec<u8>,
        /// The number.
        revision: u64,
        /// What came back, with its transaction.
        found: (u64, Vec<u8>),
    },
}

/// What a conditional write demanded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The key has a value.
    Exists(Vec<u8>),
    /// The key has none.
    Absent(Vec<u8>),
    /// The newest version of the key is of this transaction or an older one.
    UnchangedSince(Vec<u8>, u64),
}

/// A write under a condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConditionalWrite {
    /// Its value, which names the [`Write`].
    pub value: Vec<u8>,
    /// What it demanded.
    pub condition: Condition,
    /// Refused because the condition does not hold.
    pub unmet: bool,
    /// Newest transaction that was certainly there before it was sent.
    pub floor: u64,
    /// When the answer came.
    pub ended: Duration,
}

/// A transaction: what it read, and the value that names the [`Write`] it ended in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// Keys and the values they had.
    pub reads: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Value of its write.
    pub value: Vec<u8>,
}

/// A member of a sorted set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Name of the set.
    pub set: Vec<u8>,
    /// Bits of its score.
    pub score: u64,
    /// The key that it stands for.
    pub key: Vec<u8>,
    /// The transaction that it is bound to; 0 for the newest one.
    pub at_tx: u64,
}

impl Member {
    /// Its place among those of its set: the bits of the score, the length of the key, the key, the transaction.
    pub fn place(&self) -> (u64, usize, &[u8], u64) {
        (self.score, self.key.len(), &self.key, self.at_tx)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [set, key] = [&self.set, &self.key].map(|bytes| String::from_utf8_lossy(bytes));
        write!(f, "{key:?} at {} with score {} in {set:?}", self.at_tx, f64::from_bits(self.score))
    }
}

/// A member that was added.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemberAdd {
    /// The member.
    pub member: Member,
    /// When it was sent.
    pub invoked: Duration,
    /// When the answer came.
    pub ended: Duration,
    /// The answer.
    pub ending: Ending,
}

/// A member with the value of its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemberShown {
    /// The member.
    pub member: Member,
    /// Transaction of the value.
    pub tx: u64,
    /// The value.
    pub value: Vec<u8>,
}

/// A linearizable scan of a whole set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SetScan {
    /// Node that answered.
    pub node: u32,
    /// Name of the set.
    pub set: Vec<u8>,
    /// What came back, in that order.
    pub shown: Vec<MemberShown>,
    /// When it was sent.
    pub invoked: Duration,
}

/// A state that a client has verified and trusts from then on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trusted {
    /// Client number.
    pub client: u32,
    /// Transaction.
    pub tx: u64,
    /// Its Alh.
    pub alh: Vec<u8>,
}

/// How an order to forget ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TruncationEnding {
    /// Acknowledged.
    Done,
    /// There is nothing that is old enough and not forgotten yet.
    NothingOld,
    /// Nobody told.
    Unknown,
}

/// An order to forget all values that were written before the beginning of the day, by the clock of the node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Truncation {
    /// Node that was asked.
    pub node: u32,
    /// When it was sent.
    pub invoked: Duration,
    /// When the answer came.
    pub ended: Duration,
    /// The answer.
    pub ending: TruncationEnding,
}

/// What a read showed of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Showed {
    /// A version with its value.
    Value(u64, Vec<u8>),
    /// That the value of this version is forgotten.
    Gone(u64),
    /// No version that has a value.
    Nothing,
}

/// One key in a read of a database in which values are forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForgetfulRead {
    /// What was called, for messages.
    pub call: &'static str,
    /// Node that answered.
    pub node: u32,
    /// The key.
    pub key: Vec<u8>,
    /// What came back.
    pub showed: Showed,
    /// The read has to see everything that was acknowledged before this time; none when it may be of an older state.
    pub sees: Option<Duration>,
    /// When the answer came.
    pub ended: Duration,
}

/// What one client did with a database of its own, in which values are forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Forgetful {
    /// Writes, in the order of the client.
    pub writes: Vec<Write>,
    /// Orders to forget.
    pub truncations: Vec<Truncation>,
    /// Reads.
    pub reads: Vec<ForgetfulRead>,
    /// Trusted states in the order in which the client came to them.
    pub trusted: Vec<Trusted>,
}

/// A call that a living node did not answer by its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Overdue {
    /// What was called.
    pub call: &'static str,
    /// On which node.
    pub node: u32,
    /// When it was sent.
    pub invoked: Duration,
    /// How long the client waited.
    pub waited: Duration,
}

/// All that happened, in the order in which the calls ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// Writes.
    pub writes: Vec<Write>,
    /// Successful linearizable reads.
    pub reads: Vec<Read>,
    /// Values that were written together, in one transaction.
    pub batches: Vec<Vec<Vec<u8>>>,
    /// Reads of several keys.
    pub snapshots: Vec<SnapshotRead>,
    /// Reads at a floor.
    pub floors: Vec<FloorRead>,
    /// Reads of the past.
    pub pasts: Vec<PastRead>,
    /// Conditional writes.
    pub conditionals: Vec<ConditionalWrite>,
    /// Transactions with what they have read.
    pub transactions: Vec<Transaction>,
    /// Trusted states in the order in which each client came to them.
    pub trusted: Vec<Trusted>,
    /// Calls that did not end by their deadline.
    pub overdue: Vec<Overdue>,
    /// Members that were added to sorted sets.
    pub additions: Vec<MemberAdd>,
    /// Scans of sorted sets.
    pub set_scans: Vec<SetScan>,
    /// Databases in which values are forgotten, by name.
    pub forgetful: BTreeMap<String, Forgetful>,
    /// Databases that clients made, by name.
    pub databases: BTreeMap<String, Database>,
    /// How many transactions of the first database stand in its copies, by name, as far as that was acknowledged.
    pub copied: BTreeMap<String, u64>,
}

/// A database that a client made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Database {
    /// Its creation was acknowledged.
    pub created: bool,
    /// How its deletion ended, if anybody asked for that.
    pub deleted: Option<Ending>,
    /// Acknowledged writes: transaction, key and value.
    pub wrote: Vec<(u64, Vec<u8>, Vec<u8>)>,
}
