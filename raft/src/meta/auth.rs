//! What `systemdb` keeps so that every node can judge what another one has signed: keys of nodes, when a user was changed or
//! logged out last, and which sessions have selected another database.

use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv::set_key;
use alhambra_storage::command::Precondition;
use alhambra_storage::index::KeyRange;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Meta, MetaError, User, Written, entry, node_key, record};
use crate::error::ReadError;

/// Bytes of the public key with which a node signs sessions and tokens: a point of P-256, compressed.
pub const SESSION_KEY_LEN: usize = 33;

/// Records that are looked through at a time.
const SESSIONS_AT_ONCE: usize = 1024;

/// The random id of a session.
pub type SessionId = [u8; 16];

/// A node as `systemdb` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Peer address.
    pub addr: String,
    /// Public key of what it signs; none until it has told one.
    pub session_key: Option<[u8; SESSION_KEY_LEN]>,
}

fn logout_key(user: &str) -> Bytes {
    set_key(format!("{}{user}", record::LOGOUT).as_bytes()).into()
}

fn session_key(id: &SessionId) -> Bytes {
    set_key(format!("{}{}", record::SESSION, record::session_name(id)).as_bytes()).into()
}

fn records_of(kind: &str) -> KeyRange {
    KeyRange::prefix(set_key(kind.as_bytes()).into())
}

fn unreadable(error: alhambra_storage::error::Error) -> MetaError {
    tracing::warn!(%error, "a session's record cannot be read now");
    MetaError::Read(ReadError::Stopped)
}

impl Meta {
    /// The newest transaction that the records here include.
    pub fn tx(&self) -> TxId {
        *self.inner.changes.borrow()
    }

    /// One node.
    pub fn node(&self, id: u64) -> Option<NodeRecord> {
        self.inner.records.read().node(id).map(|(node, _)| node.clone())
    }

    /// One user, the transaction that wrote the record, and the one that ended all tokens of the user last.
    pub fn user_at(&self, name: &str) -> Option<(User, TxId, Option<TxId>)> {
        let records = self.inner.records.read();
        let (user, tx) = records.user(name)?;
        Some((user.clone(), tx, records.logout(name)))
    }

    /// The transaction that wrote a user's record, and the one that ended all tokens of the user last.
    pub fn user_epochs(&self, name: &str) -> Option<(TxId, Option<TxId>)> {
        let records = self.inner.records.read();
        records.user(name).map(|(_, tx)| (tx, records.logout(name)))
    }

    /// Records the public key of node `id`, unless it is there. [`MetaError::Conflict`] when another call was faster.
    pub async fn put_session_key(
        &self,
        id: u64,
        key: [u8; SESSION_KEY_LEN],
        deadline: Instant,
    ) -> Result<(), MetaError> {
        let name = || format!("node {id}");
        let (node, tx) = match self.inner.records.read().node(id) {
            None => return Err(MetaError::NotFound { name: name() }),
            Some((node, _)) if node.session_key == Some(key) => return Ok(()),
            Some((node, tx)) => (node.clone(), tx),
        };
        let node = NodeRecord { session_key: Some(key), ..node };
        let unchanged = Precondition::NotModifiedAfter { key: node_key(id), tx };
        match self.write(vec![entry(node_key(id), &record::node_json(&node))], vec![unchanged], deadline).await? {
            Written::At(_) => Ok(()),
            Written::Refused(_) => Err(MetaError::Conflict { name: name() }),
        }
    }

    /// Ends all tokens of a user that were made before.
    pub async fn put_logout(&self, user: &str, deadline: Instant) -> Result<TxId, MetaError> {
        match self.write(vec![entry(logout_key(user), &record::logout_json(user))], Vec::new(), deadline).await? {
            Written::At(tx) => Ok(tx),
            Written::Refused(_) => Err(MetaError::Conflict { name: user.to_owned() }),
        }
    }

    /// Records that a session has selected another database.
    pub async fn put_session(&self, id: &SessionId, database: &str, deadline: Instant) -> Result<TxId, MetaError> {
        let entries = vec![entry(session_key(id), &record::session_json(database))];
        match self.write(entries, Vec::new(), deadline).await? {
            Written::At(tx) => Ok(tx),
            Written::Refused(_) => Err(MetaError::Conflict { name: database.to_owned() }),
        }
    }

    /// The database that a session has selected last and the transaction that says so, as far as this node has applied
    /// `systemdb`; none when it never selected another than its first.
    pub fn session_database(&self, id: &SessionId) -> Result<Option<(String, TxId)>, MetaError> {
        let snapshot = self.group()?.database().snapshot();
        let key = session_key(id);
        let Some(version) = snapshot.get(&key).map_err(unreadable)? else { return Ok(None) };
        let value = snapshot.value(&key, &version).map_err(unreadable)?;
        let database = record::read_session(&value).ok_or(MetaError::Read(ReadError::Stopped))?;
        Ok(Some((database, version.tx)))
    }

    /// The sessions whose database was recorded after transaction `since`, as far as this node has applied `systemdb`.
    pub fn sessions_since(&self, since: TxId) -> Result<Vec<SessionId>, MetaError> {
        let snapshot = self.group()?.database().snapshot();
        let range = records_of(record::SESSION);
        let mut sessions = Vec::new();
        let mut after: Option<Bytes> = None;
        loop {
            let chunk = snapshot.diff(&range, since, after.as_deref(), SESSIONS_AT_ONCE).map_err(unreadable)?;
            let Some(last) = chunk.last() else { return Ok(sessions) };
            after = Some(last.key.clone());
            // What is no session's name is nobody's.
            sessions.extend(chunk.iter().filter_map(|change| record::session_of_key(&change.key)));
        }
    }

    /// Whether the record of a user, or the end of a user's tokens, was written after transaction `since`. A yes when that
    /// cannot be told.
    pub fn users_changed_since(&self, since: TxId) -> bool {
        let Ok(group) = self.group() else { return true };
        let snapshot = group.database().snapshot();
        let changed = |kind| snapshot.changed_since(&records_of(kind), since).unwrap_or(true);
        changed(record::USER) || changed(record::LOGOUT)
    }
}
