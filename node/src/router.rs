//! From the name of a database to its replica on this node. The hop to the leader is the replica's own business.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use alhambra_raft::env::Clock;
use alhambra_raft::group::{Group, Health};
use alhambra_raft::groups::Groups;
use alhambra_raft::meta::SYSTEM_DATABASE;
use alhambra_storage::Database;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::error::{Error, Result};
use alhambra_proto::code::text;

/// What DatabaseHealth says of a database that no call was made on: the zero time of the compatible server.
const NEVER_MS: i64 = -62_135_596_800_000;

/// How long a call waits for a database that is being opened on this node. Longer, and another node would be the better choice.
const OPENING_WAIT: Duration = Duration::from_secs(2);

/// How long a call waits for what this node is about to have: with the rest of its time it may be made on another one.
pub(crate) fn part_of(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}

/// Calls on one database through this node.
#[derive(Debug)]
pub struct Load {
    /// Another database of the same name begins anew.
    group: GroupId,
    pending: AtomicU32,
    last_completed_ms: AtomicI64,
}

impl Load {
    fn new(group: GroupId) -> Self {
        Self { group, pending: AtomicU32::new(0), last_completed_ms: AtomicI64::new(NEVER_MS) }
    }

    /// Calls that run now.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// When the latest call ended, milliseconds since 1970-01-01 UTC.
    pub fn last_completed_ms(&self) -> i64 {
        self.last_completed_ms.load(Ordering::Relaxed)
    }
}

/// A call on a database, counted in its [`Load`] until dropped.
#[derive(Debug)]
pub struct Counted {
    name: Arc<str>,
    load: Arc<Load>,
    clock: Arc<dyn Clock>,
}

impl Counted {
    /// Name of the database.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Calls on it through this node, this one included.
    pub fn load(&self) -> &Load {
        &self.load
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load.last_completed_ms.store(self.clock.now_unix_ms(), Ordering::Relaxed);
        self.load.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A database that is open on this node, while a call uses it.
#[derive(Debug)]
pub struct Replica {
    group: Arc<Group>,
    counted: Counted,
}

impl Replica {
    /// Name of the database.
    pub fn name(&self) -> &Arc<str> {
        self.counted.name()
    }

    /// What is applied here.
    pub fn database(&self) -> &Arc<Database> {
        self.group.database()
    }
}

impl Deref for Replica {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

/// Finds replicas.
#[derive(Debug)]
pub struct Router {
    groups: Arc<Groups>,
    clock: Arc<dyn Clock>,
    loads: RwLock<HashMap<Arc<str>, Arc<Load>>>,
}

impl Router {
    /// Over the groups of this node.
    pub fn new(groups: Arc<Groups>, clock: Arc<dyn Clock>) -> Self {
        Self { groups, clock, loads: RwLock::default() }
    }

    /// The database of this name, if it is open here. Fails when there is none, and when it is unloaded.
    pub fn find(&self, name: &str) -> Result<Option<Replica>> {
        match self.groups.group_by_name(name) {
            Some(group) => Ok(Some(self.replica(name, group))),
            None => self.must_be_loaded(name).map(|()| None),
        }
    }

    /// The same, and waits for one that is being opened; not for another one that gets the name meanwhile. Fails when it will not be
    /// open here soon: a new one is opened in a moment, one that is brought up to date after a crash is not.
    pub async fn locate(&self, name: &str, deadline: Instant) -> Result<Replica> {
        if let Some(replica) = self.find(name)? {
            return Ok(replica);
        }
        let id = if name == SYSTEM_DATABASE { Some(GroupId(0)) } else { self.groups.meta().group_of(name) };
        let id = id.ok_or(text::DATABASE_NOT_FOUND)?;
        let until = part_of(deadline).min(Instant::now() + OPENING_WAIT);
        match self.groups.wait_open(id, until).await {
            Some(group) => Ok(self.replica(name, group)),
            None => {
                self.must_be_loaded(name)?;
                Err(Error::Starting { what: "the database" })
            }
        }
    }

    fn replica(&self, name: &str, group: Arc<Group>) -> Replica {
        let counted = self.count(name, group.id());
        Replica { group, counted }
    }

    /// Ends when the database is closed here while a call uses it, with what the call is told.
    pub fn closing(&self, replica: &Replica) -> impl Future<Output = Error> + Send + use<> {
        let (groups, group, name) = (self.groups.clone(), replica.group.clone(), replica.name().clone());
        async move {
            group.ended().await;
            match (groups.meta().is_loaded(&name), group.status().health) {
                (Some(false) | None, _) => text::ALREADY_CLOSED.into(),
                (Some(true), Health::Failed { .. }) => Error::Starting { what: "the database" },
                (Some(true), _) => Error::Stopping,
            }
        }
    }

    /// The database of this name, open here or not. Fails when there is none.
    pub fn visit(&self, name: &str) -> Result<Counted> {
        self.must_exist(name)?;
        let group = self.groups.meta().group_of(name).unwrap_or(GroupId(0));
        Ok(self.count(name, group))
    }

    fn must_be_loaded(&self, name: &str) -> Result<()> {
        self.must_exist(name)?;
        match self.groups.meta().is_loaded(name) {
            Some(false) => Err(text::ALREADY_CLOSED.into()),
            _ => Ok(()),
        }
    }

    fn must_exist(&self, name: &str) -> Result<()> {
        if self.groups.identity().is_none() {
            return Err(Error::Starting { what: "the cluster" });
        }
        if name == SYSTEM_DATABASE || self.groups.meta().is_loaded(name).is_some() {
            return Ok(());
        }
        Err(text::DATABASE_NOT_FOUND.into())
    }

    fn count(&self, name: &str, group: GroupId) -> Counted {
        let known = self.loads.read().get_key_value(name).map(|(name, load)| (name.clone(), load.clone()));
        let (name, load) = match known {
            Some((name, load)) if load.group == group => (name, load),
            _ => {
                let mut loads = self.loads.write();
                let name: Arc<str> = name.into();
                let load = loads.entry(name.clone()).or_insert_with(|| Arc::new(Load::new(group)));
                if load.group != group {
                    *load = Arc::new(Load::new(group));
                }
                (name, load.clone())
            }
        };
        load.pending.fetch_add(1, Ordering::Relaxed);
        Counted { name, load, clock: self.clock.clone() }
    }
}
