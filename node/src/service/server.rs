//! What a node says about itself.

use alhambra_raft::meta::SYSTEM_DATABASE;

use super::App;
use crate::context::Visit;
use crate::error::Result;

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

/// How busy a database is. The call itself does not count.
pub fn database_health(visit: &Visit) -> DatabaseHealth {
    let load = visit.database.load();
    DatabaseHealth { pending: load.pending().saturating_sub(1), last_completed_ms: load.last_completed_ms() }
}
