//! Opening, closing and deleting databases by order. The order stands in `systemdb`; every node follows it by itself, and who
//! gave it waits until all nodes that can be reached have.
//!
//! A deleted database leaves a record under its id. Each node looks through its folders for those that are of such databases,
//! when it starts and whenever there are more of these records, and removes them; a node that was away does so when it is back.
//! A folder of which `systemdb` does not say that its database was deleted is never touched.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::{GroupId, TxId};
use alhambra_storage::error::Error as StorageError;
use alhambra_storage::removal;
use alhambra_storage::vfs::FileKind;
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Groups, LOOK_AGAIN};
use crate::meta::{DatabaseRecord, DeletedDatabase, MetaError};
use crate::strand::of_node;

/// Pause before files that could not be removed are tried again.
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);

/// A node that does not answer for this long is not waited for: it follows when it is back.
const PEER_WAIT: Duration = Duration::from_secs(3);

impl Groups {
    /// Has the replicas of a database opened, and waits until it serves here and is open on all nodes that can be reached.
    /// `expected` is the record that the caller has read.
    ///
    /// # Errors
    /// [`MetaError::Conflict`] when the record is another by now; [`MetaError::NotServing`] when it is recorded, but not in
    /// force everywhere by the deadline.
    pub async fn load_database(&self, expected: &DatabaseRecord, deadline: Instant) -> Result<(), MetaError> {
        let record = self.meta.set_loaded(expected, true, deadline).await?;
        let name = record.name.clone();
        if !self.hosting.wait_serving(&name, deadline).await {
            return Err(MetaError::NotServing { name });
        }
        self.everywhere(&record, true, deadline).await.map_err(|_| MetaError::NotServing { name })
    }

    /// Has the replicas of a database closed, and waits until nobody finds it here and on all nodes that can be reached.
    /// Calls that are under way end; what they have been acknowledged stays. `expected` is the record that the caller has read.
    ///
    /// # Errors
    /// [`MetaError::Conflict`] when the record is another by now; [`MetaError::StillOpen`] when it is recorded, but not in
    /// force everywhere by the deadline.
    pub async fn unload_database(&self, expected: &DatabaseRecord, deadline: Instant) -> Result<(), MetaError> {
        let record = self.meta.set_loaded(expected, false, deadline).await?;
        let still_open = |node: u64| MetaError::StillOpen { name: record.name.clone(), node };
        if !self.hosting.wait_retired(record.group, deadline).await {
            return Err(still_open(self.own_id()));
        }
        self.everywhere(&record, false, deadline).await.map_err(still_open)
    }

    /// Deletes a database that is not loaded, with the rights of all users in it, and waits until its files are gone from this
    /// node, or the deadline: they go all the same. `expected` is the record that the caller has read, `by` the user who orders it.
    ///
    /// # Errors
    /// [`MetaError::Conflict`] when the record is another by now. After the others of it nothing is deleted.
    pub async fn delete_database(
        &self,
        expected: &DatabaseRecord,
        by: &str,
        deadline: Instant,
    ) -> Result<(), MetaError> {
        self.meta.record_deletion(expected, by, deadline).await?;
        let dir = self.dir_of(expected);
        let gone = async {
            loop {
                let (vfs, dir) = (self.env.vfs.clone(), dir.clone());
                match self.env.blocking(of_node::REMOVAL, move || vfs.exists(&dir)).await {
                    Some(Ok(true)) => sleep(LOOK_AGAIN).await,
                    // Whoever removes it says what is wrong with the disk.
                    Some(Ok(false) | Err(_)) | None => return,
                }
            }
        };
        if timeout_at(deadline, gone).await.is_err() {
            tracing::info!(name = expected.name, "the database is deleted; its files are still being removed");
        }
        Ok(())
    }

    /// Removes what is left here of deleted databases. Runs for as long as the node.
    pub(super) async fn remove_leftovers(self: Arc<Self>) {
        let mut changes = self.meta.watch();
        // What was looked through last, as far as everything found then is gone.
        let mut seen: Option<TxId> = None;
        loop {
            let tx = *changes.borrow_and_update();
            if seen.is_none_or(|seen| self.meta.has_deleted_since(seen)) {
                seen = self.look_through_folders().await.then_some(tx);
            }
            if seen.is_some() {
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            } else {
                sleep(REMOVAL_PAUSE).await;
            }
        }
    }

    /// Whether nothing of a deleted database is left.
    async fn look_through_folders(&self) -> bool {
        let (vfs, dir) = (self.env.vfs.clone(), self.databases_dir());
        let listed = move || match vfs.read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed,
        };
        let Some(Ok(listed)) = self.env.blocking(of_node::REMOVAL, listed).await else { return false };
        let mut clean = true;
        for (folder, _) in listed.into_iter().filter(|(_, kind)| *kind == FileKind::Dir) {
            clean &= match self.meta.deleted_of_folder(&folder) {
                Ok(Some(deleted)) => self.remove_leftover(&folder, &deleted).await,
                Ok(None) => true,
                Err(error) => {
                    tracing::warn!(%error, folder, "it cannot be read whether this database was deleted");
                    false
                }
            };
        }
        clean
    }

    /// Whether it is gone.
    async fn remove_leftover(&self, folder: &str, deleted: &DeletedDatabase) -> bool {
        if self.hosting.is_taken(deleted.group) {
            // It was opened before this node knew, and is being closed.
            self.hosting.retire(deleted.group);
            return false;
        }
        let (vfs, dir, id) = (self.env.vfs.clone(), self.databases_dir().join(folder), deleted.id);
        match self.env.blocking(of_node::REMOVAL, move || removal::remove(&*vfs, &dir, id)).await {
            Some(Ok(_)) => {
                tracing::info!(folder, "the files of a deleted database are removed");
                true
            }
            Some(Err(error @ (StorageError::ForeignDatabase { .. } | StorageError::NobodysDatabase { .. }))) => {
                tracing::error!(%error, folder, "a folder with the name of a deleted database is not touched");
                true
            }
            Some(Err(error)) => {
                tracing::warn!(%error, source = ?std::error::Error::source(&error), folder,
                    "the files of a deleted database cannot be removed now");
                false
            }
            None => false,
        }
    }

    fn own_id(&self) -> u64 {
        self.identity().map_or(0, |identity| identity.node_id)
    }

    /// Waits until the group is open, or closed, on all members of it that can be reached. The error names one on which it is
    /// not by the deadline.
    async fn everywhere(&self, record: &DatabaseRecord, open: bool, deadline: Instant) -> Result<(), u64> {
        let own = self.own_id();
        let others = record.members.keys().copied().filter(|node| *node != own);
        let waits = join_all(others.map(|node| self.wait_hosts(node, record.group, open, deadline))).await;
        waits.into_iter().collect()
    }

    async fn wait_hosts(&self, node: u64, group: GroupId, open: bool, deadline: Instant) -> Result<(), u64> {
        let Some(network) = self.server.network.read().clone() else { return Ok(()) };
        loop {
            match network.hosts(node, group, deadline.min(Instant::now() + PEER_WAIT)).await {
                Some(hosts) if hosts == open => return Ok(()),
                _ if Instant::now() >= deadline => return Err(node),
                // It follows the records when it is back.
                None => return Ok(()),
                Some(_) => sleep(LOOK_AGAIN).await,
            }
        }
    }
}
