//! A group whose disk failed is closed and opened again, with pauses that grow, for as long as the node runs. The process
//! goes on, and so do the other groups; callers find no group meanwhile and try another node or again later.
//!
//! Opening is what finds out what the disk holds: nothing of the failed incarnation is believed. What a disk holds wrongly
//! is not opened again and again; only what a disk refuses is.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alhambra_storage::error::Error as StorageError;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep};

use super::{Groups, LOOK_AGAIN, with_sources};
use crate::error::GroupError;
use crate::group::{Group, GroupSpec, Health};
use crate::network::Network;

/// Pause before a group is opened again; doubles with each attempt.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: so late is it noticed that a disk answers again.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A group that worked for so long is opened again without delay.
const WORKED: Duration = Duration::from_secs(60);
/// How long the last calls of a failed group are waited for; opening refuses while one still holds the folder.
const DRAIN_WAIT: Duration = Duration::from_secs(10);

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSE_MAX)
}

impl Groups {
    /// Opens a group; for as long as the disk refuses, again and again, without the permit.
    pub(super) async fn open_patiently(
        &self,
        spec: &GroupSpec,
        network: &Arc<Network>,
        mut permit: Option<SemaphorePermit<'_>>,
    ) -> Result<Arc<Group>, GroupError> {
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.open(spec.clone(), network).await {
                Err(error) if is_of_the_disk(&error) => error,
                answer => return answer,
            };
            let reason: Arc<str> = with_sources(&error).into();
            // Said once; the readiness page keeps saying it.
            if pause == PAUSE_MIN {
                tracing::error!(group = %spec.group, name = spec.name, %reason, "the disk does not let the database open");
            } else {
                tracing::debug!(group = %spec.group, name = spec.name, %reason, "the database still does not open");
            }
            self.hosting.settle(spec.group, Err(reason));
            permit.take();
            sleep(pause).await;
            pause = longer(pause);
        }
    }

    /// Opens the group again whenever it has stopped itself. Ends when it was stopped, or when what its disk holds is
    /// wrong.
    pub(super) async fn keep_open(self: Arc<Self>, group: Arc<Group>, spec: GroupSpec, network: Arc<Network>) {
        let mut current = Some(group);
        let mut pause = PAUSE_MIN;
        while let Some(group) = current.take() {
            let began = Instant::now();
            group.ended().await;
            let Health::Failed { reason } = group.status().health else { return };
            self.close_failed(group, &spec, reason).await;
            pause = if began.elapsed() > WORKED { PAUSE_MIN } else { longer(pause) };
            sleep(pause).await;
            match self.open_patiently(&spec, &network, None).await {
                Ok(group) => {
                    tracing::info!(group = %spec.group, name = spec.name, "the database is open again");
                    self.hosting.settle(spec.group, Ok(group.clone()));
                    current = Some(group);
                }
                Err(error) => {
                    tracing::error!(group = %spec.group, name = spec.name, %error, source = ?error.source(),
                        "the database does not open again");
                    self.hosting.settle(spec.group, Err(with_sources(&error).into()));
                }
            }
        }
    }

    async fn close_failed(&self, group: Arc<Group>, spec: &GroupSpec, reason: Arc<str>) {
        tracing::warn!(group = %spec.group, name = spec.name, "closing the database, to open it again when its disk answers");
        self.hosting.close(spec.group, reason);
        if spec.group.get() == 0 {
            self.meta.detach();
        }
        group.shutdown().await;
        let database = Arc::downgrade(group.database());
        drop(group);
        let until = Instant::now() + DRAIN_WAIT;
        while database.strong_count() > 0 && Instant::now() < until {
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// Whether the disk refused, so that the same call may succeed later.
fn is_of_the_disk(error: &GroupError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = match error {
        GroupError::Storage { source, .. } => Some(&**source),
        // The core starts by reading what was opened just before.
        GroupError::Raft(_) => return true,
        GroupError::Tuning(_) => None,
    };
    while let Some(error) = cause {
        if let Some(storage) = error.downcast_ref::<StorageError>() {
            return matches!(storage, StorageError::Io { .. } | StorageError::NoSpace { .. } | StorageError::Poisoned);
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use alhambra_storage::error::{Damage, FileOp};

    use super::*;

    #[test]
    fn only_what_a_disk_refuses_is_tried_again() {
        let storage = |source: Box<dyn Error + Send + Sync>| GroupError::Storage { dir: "d".into(), source };
        let refused = || StorageError::io(FileOp::Read, &PathBuf::from("f"), io::ErrorKind::Other.into());
        let rotten =
            || StorageError::Corrupted { path: "f".into(), segment: None, offset: 0, damage: Damage::Checksum };
        assert!(is_of_the_disk(&storage(refused().into())));
        assert!(is_of_the_disk(&storage(io::Error::other(refused()).into())));
        assert!(!is_of_the_disk(&storage(rotten().into())));
        assert!(!is_of_the_disk(&storage(io::Error::other(rotten()).into())));
        assert!(!is_of_the_disk(&storage(io::Error::other("something else").into())));
    }
}
