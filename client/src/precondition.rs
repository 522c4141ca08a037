//! Conditions of writes: a transaction is made only if all of them hold, which is judged where it is made, so that nobody comes in
//! between.

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_proto::schema;
use alhambra_proto::schema::precondition::{
    KeyMustExistPrecondition, KeyMustNotExistPrecondition, KeyNotModifiedAfterTxPrecondition, Precondition as Wire,
};
use bytes::Bytes;

use crate::check::KeyValue;
use crate::client::{Client, reference_request, set_request, written};
use crate::error::Error;
use crate::retry::Kind;

/// What must be so for a write to be done. About a key itself: what a reference leads to does not matter. When it is not so, nothing is
/// written and the error is one of [`Error::is_precondition_failed`]; a write may have 1024 of them, and of several that do not hold
/// the first is told. A key that is empty or too long, or transaction 0, is refused as a wrong argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key is there: neither deleted nor expired.
    KeyMustExist(Bytes),
    /// The key is not there: never written, deleted or expired.
    KeyMustNotExist(Bytes),
    /// Nobody has written the key, or deleted it, after a transaction. Holds for a key that was never written.
    KeyNotModifiedAfter {
        /// The key.
        key: Bytes,
        /// The last transaction that may have written it, from 1.
        tx: TxId,
    },
}

impl Precondition {
    /// The key is there: neither deleted nor expired.
    pub fn key_must_exist(key: impl Into<Bytes>) -> Self {
        Self::KeyMustExist(key.into())
    }

    /// The key is not there: never written, deleted or expired.
    pub fn key_must_not_exist(key: impl Into<Bytes>) -> Self {
        Self::KeyMustNotExist(key.into())
    }

    /// Nobody has written the key, or deleted it, after transaction `tx`, which is at least 1: that of the entry that was read.
    pub fn key_not_modified_after(key: impl Into<Bytes>, tx: TxId) -> Self {
        Self::KeyNotModifiedAfter { key: key.into(), tx }
    }

    fn request(&self) -> schema::Precondition {
        let precondition = match self {
            Self::KeyMustExist(key) => Wire::KeyMustExist(KeyMustExistPrecondition { key: key.clone() }),
            Self::KeyMustNotExist(key) => Wire::KeyMustNotExist(KeyMustNotExistPrecondition { key: key.clone() }),
            Self::KeyNotModifiedAfter { key, tx } => {
                Wire::KeyNotModifiedAfterTx(KeyNotModifiedAfterTxPrecondition { key: key.clone(), tx_id: tx.get() })
            }
        };
        schema::Precondition { precondition: Some(precondition) }
    }
}

/// As they travel.
pub(crate) fn requests(preconditions: &[Precondition]) -> Vec<schema::Precondition> {
    preconditions.iter().map(Precondition::request).collect()
}

impl Client {
    /// Writes one pair as one transaction, if all preconditions hold.
    pub async fn set_if(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        preconditions: &[Precondition],
    ) -> Result<TxHeader, Error> {
        self.set_all_if(vec![KeyValue::new(key, value)], preconditions).await
    }

    /// Writes all pairs as one transaction, in this order, if all preconditions hold.
    pub async fn set_all_if(&self, pairs: Vec<KeyValue>, preconditions: &[Precondition]) -> Result<TxHeader, Error> {
        let connection = &self.inner.connection;
        let request = set_request(&pairs, preconditions);
        let reply = connection
            .call("set", Kind::Write, connection.deadline(), request, async |mut c, r| c.set(r).await)
            .await?;
        written("set", &reply)
    }

    /// As [`Self::set_reference`], if all preconditions hold.
    pub async fn set_reference_if(
        &self,
        key: impl Into<Bytes>,
        target: impl Into<Bytes>,
        at_tx: TxId,
        preconditions: &[Precondition],
    ) -> Result<TxHeader, Error> {
        let connection = &self.inner.connection;
        let request = reference_request(key.into(), target.into(), at_tx, preconditions);
        let reply = connection
            .call("set_reference", Kind::Write, connection.deadline(), request, async |mut c, r| {
                c.set_reference(r).await
            })
            .await?;
        written("set_reference", &reply)
    }
}
