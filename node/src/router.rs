//! From the name of a database to its replica on this node. The hop to the leader is the replica's own business.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use alhambra_raft::env::Clock;
use alhambra_raft::group::Group;
use alhambra_raft::groups::Groups;
use alhambra_raft::meta::SYSTEM_DATABASE;
use alhambra_storage::Database;
use parking_lot::RwLock;

use crate::error::{Error, Result};
use alhambra_proto::code::text;

/// What DatabaseHealth says of a database that no call was made on: the zero time of the compatible server.
const NEVER_MS: i64 = -62_135_596_800_000;

/// Calls on one database through this node.
#[derive(Debug)]
pub struct Load {
    pending: AtomicU32,
    last_completed_ms: AtomicI64,
}

impl Load {
    fn new() -> Self {
        Self { pending: AtomicU32::new(0), last_completed_ms: AtomicI64::new(NEVER_MS) }
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

/// A database on this node while a call uses it; counted in its [`Load`] until dropped.
#[derive(Debug)]
pub struct Replica {
    group: Arc<Group>,
    name: Arc<str>,
    load: Arc<Load>,
    clock: Arc<dyn Clock>,
}

impl Replica {
    /// Name of the database.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Calls on it through this node, this one included.
    pub fn load(&self) -> &Load {
        &self.load
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

impl Drop for Replica {
    fn drop(&mut self) {
        self.load.last_completed_ms.store(self.clock.now_unix_ms(), Ordering::Relaxed);
        self.load.pending.fetch_sub(1, Ordering::Relaxed);
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

    /// The database of this name. Fails when there is none, or when it is not open here yet.
    pub fn locate(&self, name: &str) -> Result<Replica> {
        let Some(group) = self.groups.group_by_name(name) else {
            let exists = name == SYSTEM_DATABASE || self.groups.meta().database(name).is_some();
            return Err(match (self.groups.identity(), exists) {
                (None, _) => Error::Starting { what: "the cluster" },
                (Some(_), true) => Error::Starting { what: "the database" },
                (Some(_), false) => text::DATABASE_NOT_FOUND.into(),
            });
        };
        let known = self.loads.read().get_key_value(name).map(|(name, load)| (name.clone(), load.clone()));
        let (name, load) = known.unwrap_or_else(|| {
            let mut loads = self.loads.write();
            let name: Arc<str> = name.into();
            let load = loads.entry(name.clone()).or_insert_with(|| Arc::new(Load::new())).clone();
            (name, load)
        });
        load.pending.fetch_add(1, Ordering::Relaxed);
        Ok(Replica { group, name, load, clock: self.clock.clone() })
    }
}
