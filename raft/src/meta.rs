//! `systemdb`, group 0: which databases and users exist. Itself a ledger, so every administrative act is a provable
//! transaction.
//!
//! Records are JSON values under the keys `node/<id>`, `database/<name>`, `user/<name>`, `logout/<user>` and `session/<id>`;
//! `docs/format.md`, "systemdb records", gives every field. What does not belong here: secrets in clear, open sessions (only
//! that one has selected another database), and anything that apply of another database uses (that is a command in the log of
//! that database).

mod auth;
mod lifecycle;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use alhambra_ledger::ids::{DatabaseId, GroupId, TxId};
use alhambra_ledger::kv::{set_key, set_value};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Precondition, ProposalEntry, Settings, TxProposal};
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

pub use self::auth::{NodeRecord, SESSION_KEY_LEN, SessionId};
pub use self::lifecycle::TruncationOrder;
use self::record::Records;
pub use self::record::{DeletedDatabase, RecordError};
use crate::env::Env;
use crate::error::{ProposeError, ReadError};
use crate::group::{Group, Level};
use crate::hosting::Hosting;

/// Name of group 0's database.
pub const SYSTEM_DATABASE: &str = "systemdb";
/// Name of the database that every cluster has from the beginning.
pub const DEFAULT_DATABASE: &str = "defaultdb";
/// Stands for all databases in the permissions of a user.
const EVERY_DATABASE: &str = "*";
/// Name of the first administrator.
pub const ADMIN_USER: &str = "immudb";

/// A database as `systemdb` has it.
#[derive(Clone, Debug, PartialEq)]
pub struct DatabaseRecord {
    /// Lower-case name.
    pub name: String,
    /// Its group: the number of the `systemdb` transaction that created it, so never used twice, also not for the same name.
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
    /// Whether its replicas are open. Lasts until it is changed, also over restarts.
    pub loaded: bool,
    /// Unix seconds.
    pub created_at: i64,
    /// User who created it; `systemdb` for the default database.
    pub created_by: String,
}

impl DatabaseRecord {
    /// Name of its folder: no name has a dot in it, so no two databases share one.
    pub(crate) fn folder(&self) -> String {
        record::folder(&self.name, self.id)
    }
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
    /// `systemdb` refused the change for its form.
    #[error("systemdb refuses the change: {rejection:?}")]
    Rejected {
        /// Why.
        rejection: Rejection,
    },
    /// What `systemdb` has about this cannot be read now; the log says why.
    #[error("what systemdb has about {name} cannot be read now")]
    Unreadable {
        /// The name.
        name: String,
    },
    /// The change is recorded, but its transaction cannot be seen here: not by the deadline, or because this replica ends.
    #[error("the change is recorded as transaction {tx} of systemdb, but this node does not show it")]
    NotShown {
        /// The transaction.
        tx: TxId,
    },
    /// The database is recorded as closed, but not closed everywhere before the deadline. It will be when the node can.
    #[error("database {name} is recorded as closed, but node {node} has not closed it yet")]
    StillOpen {
        /// The name.
        name: String,
        /// The node.
        node: u64,
    },
    /// The database is recorded, but its group did not begin to work before the deadline. It will when its nodes can.
    #[error("database {name} is recorded but does not serve yet")]
    NotServing {
        /// The name.
        name: String,
    },
}

/// Reads and changes `systemdb`. Cheap to clone.
#[derive(Clone)]
pub struct Meta {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    /// Group 0, when it is open.
    /// Nothing here holds it: one that ended must go, so that it can be opened again.
    group: RwLock<Weak<Group>>,
    /// Nodes that hold every database, for records of new ones.
    members: RwLock<BTreeMap<u64, String>>,
    records: RwLock<Records>,
    changes: watch::Sender<TxId>,
    /// See [`Meta::is_incomplete`].
    incomplete: AtomicBool,
    hosting: Arc<Hosting>,
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meta").field("tx", &*self.inner.changes.borrow()).finish_non_exhaustive()
    }
}

fn database_key(name: &str) -> Bytes {
    set_key(format!("{}{name}", record::DATABASE).as_bytes()).into()
}

fn user_key(name: &str) -> Bytes {
    set_key(format!("{}{name}", record::USER).as_bytes()).into()
}

fn node_key(id: u64) -> Bytes {
    set_key(format!("{}{id}", record::NODE).as_bytes()).into()
}

fn entry(key: Bytes, json: &str) -> ProposalEntry {
    ProposalEntry::plain(key, Bytes::new(), set_value(json.as_bytes()).into())
}

/// What became of a proposal to `systemdb`.
enum Written {
    At(TxId),
    /// The precondition at this position does not hold.
    Refused(u32),
}

impl Meta {
    /// All databases but `systemdb`, by name.
    pub fn databases(&self) -> Vec<DatabaseRecord> {
        self.inner.records.read().databases().cloned().collect()
    }

    /// One database.
    pub fn database(&self, name: &str) -> Option<DatabaseRecord> {
        self.inner.records.read().database(name).map(|(record, _)| record.clone())
    }

    /// Whether the replicas of a database are meant to be open; nothing when there is no such database.
    pub fn is_loaded(&self, name: &str) -> Option<bool> {
        self.inner.records.read().database(name).map(|(record, _)| record.loaded)
    }

    /// The group of a database; nothing when there is no such database.
    pub fn group_of(&self, name: &str) -> Option<GroupId> {
        self.inner.records.read().database(name).map(|(record, _)| record.group)
    }

    /// All users, by name.
    pub fn users(&self) -> Vec<User> {
        self.inner.records.read().users().cloned().collect()
    }

    /// One user.
    pub fn user(&self, name: &str) -> Option<User> {
        self.inner.records.read().user(name).map(|(user, _)| user.clone())
    }

    /// Whether the record of the user here is this one.
    pub fn is_user(&self, user: &User) -> bool {
        self.inner.records.read().user(&user.name).is_some_and(|(there, _)| there == user)
    }

    /// The UUID of the server whose place the cluster has taken, as far as this node knows; none when it shows its own.
    pub fn server_uuid(&self) -> Option<String> {
        self.inner.records.read().server_uuid().map(str::to_owned)
    }

    /// Records that the cluster takes the place of the server with this UUID. `by` is the record of who wants that; it must
    /// not be another by now. Answers the transaction.
    pub async fn take_server_uuid(&self, uuid: &str, by: &User, deadline: Instant) -> Result<TxId, MetaError> {
        let json = record::server_uuid_json(uuid, self.inner.env.clock.now_unix_ms().div_euclid(1000), &by.name);
        let key = set_key(format!("{}{}", record::CLUSTER, record::SERVER_UUID).as_bytes()).into();
        match self.write(vec![entry(key, &json)], vec![self.unchanged(by)?], deadline).await? {
            Written::At(tx) => Ok(tx),
            Written::Refused(_) => Err(MetaError::Conflict { name: by.name.clone() }),
        }
    }

    /// Whether there are more databases or users than every cluster has, as far as this node knows; those that it cannot read count.
    pub fn has_others(&self) -> bool {
        self.inner.records.read().has_others()
    }

    /// Waits until this node has applied everything that `systemdb` had acknowledged before the call.
    pub async fn barrier(&self, deadline: Instant) -> Result<(), MetaError> {
        let read = self.group()?.barrier(Level::Linearizable, deadline).await?;
        self.applied(read.tx, deadline).await
    }

    /// Records a database, starts its group, and waits until it has a leader and its first command is applied here.
    /// The flag tells whether it existed before; without `if_not_exists` that is [`MetaError::Exists`].
    pub async fn create_database(
        &self,
        new: NewDatabase,
        if_not_exists: bool,
        deadline: Instant,
    ) -> Result<(DatabaseRecord, bool), MetaError> {
        let name = new.name.clone();
        self.barrier(deadline).await?;
        let made = if name == SYSTEM_DATABASE {
            return Err(MetaError::Exists { name });
        } else if self.database(&name).is_some() {
            None
        } else {
            let json = self.database_json(new);
            let key = database_key(&name);
            let preconditions = vec![Precondition::MustNotExist(key.clone())];
            match self.write(vec![entry(key, &json)], preconditions, deadline).await? {
                Written::At(tx) => Some(tx),
                // Another call was faster.
                Written::Refused(_) => {
                    self.barrier(deadline).await?;
                    None
                }
            }
        };
        if made.is_none() && !if_not_exists {
            return Err(MetaError::Exists { name });
        }
        let record = match (self.database(&name), made) {
            (Some(record), Some(tx)) if record.group.get() == tx.get() => record,
            // Made, and by now deleted by somebody else, who may have made another one.
            (_, Some(tx)) => return Err(MetaError::NotShown { tx }),
            (Some(record), None) => record,
            (None, None) => return Err(MetaError::NotFound { name }),
        };
        // One that exists may be closed, which is nobody's to wait for.
        if record.loaded {
            self.wait_serving(&name, deadline).await?;
        }
        Ok((record, made.is_none()))
    }

    /// Records other settings for a database. `expected` is the record that the caller has read; [`MetaError::Conflict`] tells
    /// that it is another by now. What apply uses of them comes into force when the leader of the database has put them into
    /// its log. Answers the new record.
    pub async fn update_database(
        &self,
        expected: &DatabaseRecord,
        settings: Settings,
        face: serde_json::Value,
        deadline: Instant,
    ) -> Result<DatabaseRecord, MetaError> {
        self.replace(expected, DatabaseRecord { settings, face, ..expected.clone() }, deadline).await
    }

    /// Writes a user. `expected` is the record that the caller has read: with none the user must not exist yet, and
    /// [`MetaError::Conflict`] tells that the record is another by now. `by`, if given, is the record of who writes, as
    /// it was when their rights were looked at; it too must not be another by now. Databases in which the user is given a right
    /// must exist. What is refused changes nothing. Answers the transaction.
    pub async fn put_user(
        &self,
        user: User,
        expected: Option<&User>,
        by: Option<&User>,
        deadline: Instant,
    ) -> Result<TxId, MetaError> {
        let key = user_key(&user.name);
        let mut preconditions = vec![match expected {
            None => Precondition::MustNotExist(key.clone()),
            Some(expected) => self.unchanged(expected)?,
        }];
        if let Some(by) = by {
            preconditions.push(self.unchanged(by)?);
        }
        // In one that is deleted meanwhile the right would wait for whoever creates a database of that name.
        let names =
            |user: &User| user.permissions.keys().chain(user.sql_privileges.keys()).cloned().collect::<BTreeSet<_>>();
        let had = expected.map(names).unwrap_or_default();
        let given = names(&user).into_iter().filter(|name| name != EVERY_DATABASE && !had.contains(name));
        preconditions.extend(given.map(|name| Precondition::MustExist(database_key(&name))));
        match self.write(vec![entry(key, &record::user_json(&user))], preconditions, deadline).await? {
            Written::At(tx) => Ok(tx),
            Written::Refused(0) if expected.is_none() => Err(MetaError::Exists { name: user.name }),
            Written::Refused(0) => Err(MetaError::Conflict { name: user.name }),
            Written::Refused(_) => Err(MetaError::Conflict { name: by.map_or(user.name, |by| by.name.clone()) }),
        }
    }

    /// The condition that a user's record is still what the caller has read.
    fn unchanged(&self, user: &User) -> Result<Precondition, MetaError> {
        let name = &user.name;
        match self.inner.records.read().user(name) {
            None => Err(MetaError::NotFound { name: name.clone() }),
            Some((now, _)) if now != user => Err(MetaError::Conflict { name: name.clone() }),
            Some((_, tx)) => Ok(Precondition::NotModifiedAfter { key: user_key(name), tx }),
        }
    }

    /// Wakes after each applied transaction of `systemdb`; the value is its number.
    pub fn watch(&self) -> watch::Receiver<TxId> {
        self.inner.changes.subscribe()
    }

    pub(crate) fn new(env: Env, hosting: Arc<Hosting>) -> Self {
        Self {
            inner: Arc::new(Inner {
                env,
                group: RwLock::default(),
                members: RwLock::default(),
                records: RwLock::default(),
                changes: watch::Sender::new(TxId(0)),
                incomplete: AtomicBool::new(false),
                hosting,
            }),
        }
    }

    /// Group 0 is open: reads what it holds, and calls find it here until it ends. Who opened it says when it holds more.
    pub(crate) fn attach(&self, group: &Arc<Group>, members: BTreeMap<u64, String>) {
        *self.inner.members.write() = members;
        *self.inner.group.write() = Arc::downgrade(group);
        self.refresh();
    }

    /// Group 0 stops.
    pub(crate) fn detach(&self) {
        *self.inner.group.write() = Weak::new();
    }

    /// Reads what `systemdb` has by now.
    pub(crate) fn refresh(&self) {
        let Ok(group) = self.group() else { return };
        // Nobody may come between the snapshot and the records with a newer one, or with the number of one.
        let mut records = self.inner.records.write();
        let snapshot = group.database().snapshot();
        let tx = snapshot.tx();
        let known = *self.inner.changes.borrow();
        let is_new = tx > known;
        // What a replica that was opened again has not applied yet was known here already.
        if tx < known || !is_new && !self.is_incomplete() {
            return;
        }
        let refused = match records.refresh(&snapshot) {
            Ok(refused) => refused,
            Err(error) => {
                tracing::warn!(%error, "the records of systemdb cannot be read now");
                self.inner.incomplete.store(true, Ordering::Release);
                return;
            }
        };
        self.inner.incomplete.store(refused.iter().any(RecordError::may_pass), Ordering::Release);
        if is_new {
            for error in refused {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "a record of systemdb is ignored");
            }
        }
        self.inner.changes.send_replace(tx);
    }

    /// Whether some record could not be read that may be readable later: it is read again then.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.inner.incomplete.load(Ordering::Acquire)
    }

    /// What the first leader writes: the nodes, the first user, the default database. Answers whether it is there.
    pub(crate) async fn bootstrap(
        &self,
        first_user: impl Fn() -> User + Send + 'static,
        database: NewDatabase,
        deadline: Instant,
    ) -> Result<(), MetaError> {
        self.barrier(deadline).await?;
        if self.bootstrapped() {
            return Ok(());
        }
        // Hashing a password takes long on purpose.
        let user = self.inner.env.blocking(u64::MAX, first_user).await.ok_or(MetaError::Starting)?;
        let mut entries: Vec<ProposalEntry> = Vec::new();
        for (id, addr) in &*self.inner.members.read() {
            entries
                .push(entry(node_key(*id), &record::node_json(&NodeRecord { addr: addr.clone(), session_key: None })));
        }
        let (user_key, database_key) = (user_key(&user.name), database_key(&database.name));
        entries.push(entry(user_key.clone(), &record::user_json(&user)));
        entries.push(entry(database_key.clone(), &self.database_json(database)));
        let preconditions = vec![Precondition::MustNotExist(user_key), Precondition::MustNotExist(database_key)];
        match self.write(entries, preconditions, deadline).await? {
            Written::At(tx) => tracing::info!(%tx, "systemdb has its first records"),
            Written::Refused(_) => self.barrier(deadline).await?,
        }
        Ok(())
    }

    /// Whether the first records are there.
    pub fn bootstrapped(&self) -> bool {
        self.inner.records.read().database(DEFAULT_DATABASE).is_some()
    }

    fn database_json(&self, new: NewDatabase) -> String {
        let NewDatabase { name, settings, segment_bytes, face, created_by } = new;
        let mut id = [0; 16];
        self.inner.env.rng.fill(&mut id);
        record::database_json(&DatabaseRecord {
            name,
            // Not known before it is recorded.
            group: GroupId(0),
            id: DatabaseId(id),
            members: self.inner.members.read().clone(),
            segment_bytes,
            settings,
            face,
            loaded: true,
            created_at: self.inner.env.clock.now_unix_ms().div_euclid(1000),
            created_by,
        })
    }

    fn group(&self) -> Result<Arc<Group>, MetaError> {
        self.inner.group.read().upgrade().ok_or(MetaError::Starting)
    }

    async fn write(
        &self,
        entries: Vec<ProposalEntry>,
        preconditions: Vec<Precondition>,
        deadline: Instant,
    ) -> Result<Written, MetaError> {
        self.write_proposal(TxProposal { entries, preconditions, ..TxProposal::default() }, deadline).await
    }

    /// Holds the replica no longer than this takes: one that fails meanwhile is opened again only when nobody holds it, and only then
    /// are its records seen here.
    async fn propose(&self, proposal: TxProposal, deadline: Instant) -> Result<Outcome, MetaError> {
        Ok(self.group()?.propose(proposal, deadline).await?)
    }

    async fn write_proposal(&self, proposal: TxProposal, deadline: Instant) -> Result<Written, MetaError> {
        let outcome = self.propose(proposal, deadline).await?;
        match outcome {
            Outcome::Committed { tx, .. } => {
                // Behind the commit nothing says that it was not done: whoever reads that does it again (R4).
                self.applied(tx, deadline).await.map_err(|error| {
                    tracing::warn!(%tx, %error, "a change of systemdb that is recorded cannot be seen");
                    MetaError::NotShown { tx }
                })?;
                Ok(Written::At(tx))
            }
            Outcome::Rejected(Rejection::Precondition { index }) => Ok(Written::Refused(index)),
            Outcome::Rejected(rejection) => Err(MetaError::Rejected { rejection }),
            Outcome::Pruned { .. } => Err(MetaError::Rejected { rejection: Rejection::NothingToPrune }),
        }
    }

    /// Waits until the records here are those of transaction `tx` or later.
    pub async fn applied(&self, tx: TxId, deadline: Instant) -> Result<(), MetaError> {
        self.refresh();
        let mut changes = self.watch();
        let reached = timeout_at(deadline, changes.wait_for(|now| *now >= tx)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(MetaError::Starting),
            Err(_) => Err(MetaError::Read(ReadError::Lagging)),
        }
    }

    async fn wait_serving(&self, name: &str, deadline: Instant) -> Result<(), MetaError> {
        if self.inner.hosting.wait_serving(name, deadline).await {
            Ok(())
        } else {
            Err(MetaError::NotServing { name: name.to_owned() })
        }
    }
}
