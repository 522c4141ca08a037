//! `systemdb`, group 0: which databases and users exist. Itself a ledger, so every administrative act is a provable
//! transaction.
//!
//! Records are JSON values under the keys `node/<id>`, `database/<name>` and `user/<name>`; `docs/format.md`, "systemdb
//! records", gives every field. What does not belong here: passwords in clear, sessions, and anything that apply of
//! another database uses (that is a command in the log of that database).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, GroupId, TxId};
use alhambra_storage::command::Settings;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{ProposeError, ReadError};

/// Name of group 0's database.
pub const SYSTEM_DATABASE: &str = "systemdb";
/// Name of the database that every cluster has from the beginning.
pub const DEFAULT_DATABASE: &str = "defaultdb";
/// Name of the first administrator.
pub const ADMIN_USER: &str = "immudb";

/// A database as `systemdb` has it.
#[derive(Clone, Debug, PartialEq)]
pub struct DatabaseRecord {
    /// Lower-case name.
    pub name: String,
    /// Its group: the number of the `systemdb` transaction that created it, so never used twice.
    pub group: GroupId,
    /// Its permanent id, random.
    pub id: DatabaseId,
    /// First voters: node id and peer address.
    pub members: BTreeMap<u64, String>,
    /// Size at which its segments are closed, bytes.
    pub segment_bytes: u64,
    /// Settings that apply uses, as intended; its own log says which are in force.
    pub settings: Settings,
    /// Settings that only faces show; opaque here.
    pub face: serde_json::Value,
    /// Unix seconds.
    pub created_at: i64,
    /// User who created it; `systemdb` for the default database.
    pub created_by: String,
}

/// A user as `systemdb` has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// Password hash in the form of the node that made it; opaque here.
    pub password: String,
    /// Permission per database, in the numbers of the protocol. The key `*` stands for all of them.
    pub permissions: BTreeMap<String, u32>,
    /// SQL privileges per database.
    #[serde(default)]
    pub sql_privileges: BTreeMap<String, BTreeSet<String>>,
    /// Inactive users cannot log in.
    pub active: bool,
    /// User who changed this record last.
    pub created_by: String,
    /// When it was changed last, milliseconds since 1970-01-01 UTC.
    pub created_at_ms: i64,
}

/// What is needed to create a database.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDatabase {
    /// Lower-case name.
    pub name: String,
    /// Settings that apply uses.
    pub settings: Settings,
    /// Size at which segments are closed, bytes.
    pub segment_bytes: u64,
    /// Settings that only faces show.
    pub face: serde_json::Value,
    /// User who creates it.
    pub created_by: String,
}

/// Why an administrative call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The cluster has not been formed, or `systemdb` is not open yet.
    #[error("the node is starting")]
    Starting,
    /// There is a record of this name.
    #[error("{name} exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is no record of this name.
    #[error("{name} does not exist")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The record was changed by another call in the meantime.
    #[error("{name} was changed at the same time")]
    Conflict {
        /// The name.
        name: String,
    },
    /// `systemdb` refused or did not take the change.
    #[error("systemdb did not take the change")]
    Propose(#[from] ProposeError),
    /// `systemdb` cannot be read at this level.
    #[error("systemdb cannot be read")]
    Read(#[from] ReadError),
    /// The database is recorded, but its group did not begin to work before the deadline. It will when its nodes can.
    #[error("database {name} is recorded but does not serve yet")]
    NotServing {
        /// The name.
        name: String,
    },
}

/// Reads and changes `systemdb`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Meta {
    changes: Arc<watch::Sender<TxId>>,
}

impl Meta {
    /// All databases but `systemdb`, by name.
    pub fn databases(&self) -> Vec<DatabaseRecord> {
        Vec::new()
    }

    /// One database.
    pub fn database(&self, _name: &str) -> Option<DatabaseRecord> {
        None
    }

    /// All users, by name.
    pub fn users(&self) -> Vec<User> {
        Vec::new()
    }

    /// One user.
    pub fn user(&self, _name: &str) -> Option<User> {
        None
    }

    /// Waits until this node has applied everything that `systemdb` had acknowledged before the call.
    pub async fn barrier(&self, _deadline: Instant) -> Result<(), MetaError> {
        Err(MetaError::Starting)
    }

    /// Records a database, starts its group, and waits until it has a leader and its first command is applied here.
    /// The flag tells whether it existed before; without `if_not_exists` that is [`MetaError::Exists`].
    pub async fn create_database(
        &self,
        _new: NewDatabase,
        _if_not_exists: bool,
        _deadline: Instant,
    ) -> Result<(DatabaseRecord, bool), MetaError> {
        Err(MetaError::Starting)
    }

    /// Writes a user. `expected` is the record that the caller has read: with none the user must not exist yet, and
    /// [`MetaError::Conflict`] tells that the record is another by now.
    pub async fn put_user(&self, _user: User, _expected: Option<&User>, _deadline: Instant) -> Result<(), MetaError> {
        Err(MetaError::Starting)
    }

    /// Wakes after each applied transaction of `systemdb`; the value is its number.
    pub fn watch(&self) -> watch::Receiver<TxId> {
        self.changes.subscribe()
    }

    pub(crate) fn new() -> Self {
        Self { changes: Arc::new(watch::Sender::new(TxId(0))) }
    }
}
