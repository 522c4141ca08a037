//! Several operations in one transaction. The protocol has no verified form of it, so the verified call is two: the write, then
//! the proof of the transaction that it made.

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_proto::schema::{self, op};
use bytes::Bytes;

use crate::check::{KeyValue, Wanted};
use crate::client::{Client, key_value, reference_request, written, z_add_request};
use crate::error::Error;
use crate::precondition::{Precondition, requests};
use crate::retry::Kind;
use crate::verified::Verified;

const CALL: &str = "exec_all";
const VERIFIED_CALL: &str = "verified_exec_all";

/// Which version of its target a reference or a member of a sorted set leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The newest, whichever that is when it is read.
    #[default]
    Newest,
    /// What this transaction wrote, for ever.
    At(TxId),
    /// What the transaction that is being made writes, for ever.
    Own,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Writes a value.
    Set(KeyValue),
    /// Writes a reference to `target` under `key`; an earlier operation of the same transaction may have made the target.
    Reference {
        /// Its key.
        key: Bytes,
        /// What it leads to.
        target: Bytes,
        /// Which version of it.
        version: Version,
    },
    /// Adds a key to a sorted set; an earlier operation of the same transaction may have made the key.
    Member {
        /// The set.
        set: Bytes,
        /// Its score.
        score: f64,
        /// What it leads to.
        key: Bytes,
        /// Which version of it.
        version: Version,
    },
}

impl Operation {
    /// Writes a value without attributes.
    pub fn set(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Set(KeyValue::new(key, value))
    }

    fn request(&self) -> schema::Op {
        let operation = match self {
            Self::Set(pair) => op::Operation::Kv(key_value(pair)),
            Self::Reference { key, target, version } => {
                let mut request = reference_request(key.clone(), target.clone(), version.number(TxId(0)), &[]);
                request.bound_ref = *version != Version::Newest;
                op::Operation::Ref(request)
            }
            Self::Member { set, score, key, version } => {
                let mut request = z_add_request(set.clone(), *score, key.clone(), version.number(TxId(0)));
                request.bound_ref = *version != Version::Newest;
                op::Operation::ZAdd(request)
            }
        };
        schema::Op { operation: Some(operation) }
    }

    /// Whether it points at transaction 0, which never exists; on the wire that would be the transaction that is being made.
    fn is_bound_to_nothing(&self) -> bool {
        match self {
            Self::Set(_) => false,
            Self::Reference { version, .. } | Self::Member { version, .. } => *version == Version::At(TxId(0)),
        }
    }

    /// The entry that it makes in transaction `own`.
    fn wanted(&self, own: TxId) -> Wanted {
        match self {
            Self::Set(pair) => Wanted::value(pair),
            Self::Reference { key, target, version } => Wanted::reference(key, target, version.number(own)),
            Self::Member { set, score, key, version } => Wanted::member(set, *score, key, version.number(own)),
        }
    }
}

impl Version {
    /// As it is stored; `own` is the transaction that is being made.
    const fn number(self, own: TxId) -> TxId {
        match self {
            Self::Newest => TxId(0),
            Self::At(tx) => tx,
            Self::Own => own,
        }
    }
}

impl Client {
    /// Carries all operations out as one transaction, in this order.
    pub async fn exec_all(&self, operations: &[Operation]) -> Result<TxHeader, Error> {
        self.exec_all_if(operations, &[]).await
    }

    /// Carries all operations out as one transaction, in this order, if all preconditions hold.
    pub async fn exec_all_if(
        &self,
        operations: &[Operation],
        preconditions: &[Precondition],
    ) -> Result<TxHeader, Error> {
        self.exec(CALL, operations, preconditions, self.inner.connection.deadline()).await
    }

    async fn exec(
        &self,
        call: &'static str,
        operations: &[Operation],
        preconditions: &[Precondition],
        deadline: tokio::time::Instant,
    ) -> Result<TxHeader, Error> {
        if operations.iter().any(Operation::is_bound_to_nothing) {
            return Err(Error::NoSuchVersion { call });
        }
        let operations = operations.iter().map(Operation::request).collect();
        let request = schema::ExecAllRequest { operations, no_wait: false, preconditions: requests(preconditions) };
        let connection = &self.inner.connection;
        let reply = connection.call(call, Kind::Write, deadline, request, async |mut c, r| c.exec_all(r).await).await?;
        // It has been written, whatever else is wrong with the answer.
        written(call, &reply)
    }

    /// Carries all operations out as one transaction, in this order, and verifies that a transaction of exactly these entries is in the
    /// history, behind what was trusted before.
    ///
    /// The protocol has no call for that: the transaction is written with ExecAll, whose answer proves nothing, and then proven with
    /// VerifiableTxById against the trusted state. Both share one deadline. When the proof does not come, the error is
    /// [`Error::OutcomeUnknown`], although the server said that it has written: nobody has proven that.
    pub async fn verified_exec_all(&self, operations: &[Operation]) -> Result<Verified<()>, Error> {
        self.verified_exec_all_if(operations, &[]).await
    }

    /// As [`Self::verified_exec_all`], if all preconditions hold. That they held is not proven.
    pub async fn verified_exec_all_if(
        &self,
        operations: &[Operation],
        preconditions: &[Precondition],
    ) -> Result<Verified<()>, Error> {
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin(VERIFIED_CALL).await?;
        let header = self.exec(VERIFIED_CALL, operations, preconditions, round.deadline()).await?;
        let wanted: Vec<_> = operations.iter().map(|operation| operation.wanted(header.id)).collect();
        self.proven(round, header.id, &wanted).await.map_err(|error| error.after_writing(VERIFIED_CALL))
    }
}
