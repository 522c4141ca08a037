//! Loading, unloading and deleting databases. Their records in `systemdb` say which are open; all nodes follow them.

use alhambra_proto::code::text;
use alhambra_raft::meta::{DatabaseRecord, MetaError};

use super::App;
use crate::context::Call;
use crate::error::Result;

impl App {
    /// Opens a database that was unloaded, on all nodes. Its sessions work again.
    pub async fn load_database(&self, call: &Call, name: &str) -> Result<()> {
        loop {
            let record = self.administrated(call, name).await?;
            if record.loaded {
                return Err(text::DATABASE_LOADED.into());
            }
            match self.groups.load_database(&record, call.deadline).await {
                // Somebody else changes it as well: look again.
                Err(MetaError::Conflict { .. }) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Closes a database on all nodes; it stays listed. What is under way in it ends with an error, nothing that was
    /// acknowledged is lost.
    pub async fn unload_database(&self, call: &Call, name: &str) -> Result<()> {
        loop {
            let record = self.administrated(call, name).await?;
            if !record.loaded {
                return Err(text::ALREADY_CLOSED.into());
            }
            match self.groups.unload_database(&record, call.deadline).await {
                Err(MetaError::Conflict { .. }) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Deletes a database that is not loaded, with its data and everybody's rights in it, on all nodes and for good. The name is free
    /// from then on.
    pub async fn delete_database(&self, call: &Call, name: &str) -> Result<()> {
        loop {
            let record = self.administrated(call, name).await?;
            if record.loaded {
                return Err(text::DATABASE_OPEN.into());
            }
            let by = self.authenticate(call)?.user;
            match self.groups.delete_database(&record, &by.name, call.deadline).await {
                Err(MetaError::Conflict { .. }) => {}
                done => {
                    // Who had rights in it has others now.
                    self.end_changed_users();
                    return Ok(done?);
                }
            }
        }
    }

    /// The newest record of a database that the caller administrates.
    pub(super) async fn administrated(&self, call: &Call, name: &str) -> Result<DatabaseRecord> {
        self.still_administrates(call, name).await?;
        Ok(self.groups.meta().database(name).ok_or(text::DATABASE_NOT_FOUND)?)
    }
}
