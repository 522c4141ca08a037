//! What a node says about itself and its cluster.

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_raft::forming::is_server_uuid;
use alhambra_raft::meta::{MetaError, SYSTEM_DATABASE};

use super::App;
use crate::auth;
use crate::context::{Call, Visit};
use crate::error::{Error, Result};

/// Totals of a node.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// When this node started, Unix seconds.
    pub started_at: i64,
    /// Sum of the newest transactions of all databases but `systemdb`.
    pub transactions: u64,
    /// Number of databases but `systemdb`.
    pub databases: usize,
    /// Their size on the disk of this node, bytes.
    pub disk_bytes: u64,
}

/// Calls on one database through this node.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseHealth {
    /// Other calls that run now.
    pub pending: u32,
    /// When the latest call ended, milliseconds since 1970-01-01 UTC.
    pub last_completed_ms: i64,
}

impl App {
    /// Totals of the loaded databases; sizes and transactions of those that are open here.
    pub fn server_info(&self) -> Result<ServerInfo> {
        self.require_formed()?;
        let mut info = ServerInfo { started_at: self.started_at, transactions: 0, databases: 0, disk_bytes: 0 };
        for record in self.groups.meta().databases() {
            debug_assert_ne!(record.name, SYSTEM_DATABASE);
            if !record.loaded {
                continue;
            }
            info.databases += 1;
            if let Some(group) = self.groups.group_by_name(&record.name) {
                info.transactions += group.database().applied().tx.get();
                info.disk_bytes += group.database().size_bytes();
            }
        }
        Ok(info)
    }
}

impl App {
    /// UUID of the cluster, as SDKs see it: that of the server whose place it has taken, if it has. None until `systemdb` is open.
    pub fn uuid(&self) -> Option<String> {
        let meta = self.groups.meta();
        if !meta.bootstrapped() {
            return None;
        }
        meta.server_uuid().or_else(|| self.own_uuid())
    }

    fn own_uuid(&self) -> Option<String> {
        if let Some(uuid) = self.own_uuid.get() {
            return Some(uuid.clone());
        }
        let uuid = self.groups.identity()?.cluster;
        Some(self.own_uuid.get_or_init(|| uuid).clone())
    }

    /// Lets all nodes show this UUID to clients, so that those of another server find their states here.
    pub async fn take_server_uuid(&self, call: &Call, uuid: &str) -> Result<TxId> {
        loop {
            let caller = self.current_caller(call).await?;
            if !auth::is_sysadmin(&caller.user) {
                return Err(text::NO_OPERATION_PERMISSION.into());
            }
            if !is_server_uuid(uuid) {
                return Err(Error::InvalidUuid { uuid: uuid.to_owned() });
            }
            match self.groups.meta().take_server_uuid(uuid, &caller.user, call.deadline).await {
                // The caller was changed: may it still?
                Err(MetaError::Conflict { .. } | MetaError::NotFound { .. }) => {}
                done => return Ok(done?),
            }
        }
    }
}

/// How busy a database is. The call itself does not count.
pub fn database_health(visit: &Visit) -> DatabaseHealth {
    let load = visit.database.load();
    DatabaseHealth { pending: load.pending().saturating_sub(1), last_completed_ms: load.last_completed_ms() }
}
