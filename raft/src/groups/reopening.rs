//! A group whose disk failed is closed and opened again, with pauses that grow, for as long as the node runs. The process
//! goes on, and so do the other groups; callers find no group meanwhile and try another node or again later.
//!
//! Opening is what finds out what the disk holds: nothing of the failed incarnation is believed. What a disk refuses is opened
//! again and again; a segment that has rotted is fetched from the other members first ([`crate::mending`]), however long it takes
//! until enough of them are there; what else a disk holds wrongly is not opened again.

use std::collections::BTreeSet;
use std::error::Error;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alhambra_storage::error::Error as StorageError;
use futures::FutureExt as _;
use tokio::sync::{SemaphorePermit, watch};
use tokio::time::{Instant, sleep, timeout};

use super::{Groups, LOOK_AGAIN, begin, with_sources};
use crate::error::GroupError;
use crate::group::{Group, GroupSpec, Health, first_rotten};
use crate::hosting::until_unwanted;
use crate::mending::{Mending, mend};
use crate::network::Network;
use crate::strand::Chain;

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
    /// Opens a group; for as long as the disk refuses, or a rotten segment is to be had from nobody, again and again, without the
    /// permit. Nothing when it is not open by the time at which it is not wanted any more.
    pub(super) async fn open_patiently(
        &self,
        spec: &GroupSpec,
        network: &Arc<Network>,
        mut permit: Option<SemaphorePermit<'_>>,
        unwanted: &mut watch::Receiver<bool>,
    ) -> Option<Result<Arc<Group>, GroupError>> {
        let mut pause = PAUSE_MIN;
        let mut said: Option<Arc<str>> = None;
        let mut mended = BTreeSet::new();
        let mut spec = spec.clone();
        loop {
            let error = match self.open(spec.clone(), network).await {
                Err(error) => error,
                answer => return Some(answer),
            };
            let reason: Arc<str> = match error {
                GroupError::Rotten { dir, segment, source } => {
                    permit.take();
                    match self.mend_unopened(&spec, segment, network, unwanted).await? {
                        // Which may be another segment than the one that opening names.
                        Mending::Mended { segment, offset } if mended.insert((segment, offset)) => {
                            pause = PAUSE_MIN;
                            continue;
                        }
                        Mending::Agreed { segment, version }
                            if spec.settled.insert(segment, version) != Some(version) =>
                        {
                            pause = PAUSE_MIN;
                            continue;
                        }
                        // It is what the group agrees on, and does not open with it.
                        Mending::Mended { .. } | Mending::Agreed { .. } => {
                            return Some(Err(GroupError::Rotten { dir, segment, source }));
                        }
                        Mending::Waits(why) => why.into(),
                        Mending::Hopeless(why) => {
                            let source = format!("{why} ({})", Chain(&*source)).into();
                            return Some(Err(GroupError::Rotten { dir, segment, source }));
                        }
                    }
                }
                error if is_of_the_disk(&error) => {
                    format!("{}; opened again when the disk answers", with_sources(&error)).into()
                }
                error => return Some(Err(error)),
            };
            // Said once; the readiness page keeps saying it.
            if said.as_ref() != Some(&reason) {
                tracing::error!(group = %spec.group, name = spec.name, %reason, "the database does not open yet");
                said = Some(reason.clone());
            }
            self.hosting.settle(spec.group, Err(reason));
            permit.take();
            if pass(pause, unwanted).await {
                return None;
            }
            pause = longer(pause);
        }
    }

    /// Fetches a segment of a database that is not open from its other members; nothing when it is not wanted any more.
    async fn mend_unopened(
        &self,
        spec: &GroupSpec,
        segment: u64,
        network: &Arc<Network>,
        unwanted: &mut watch::Receiver<bool>,
    ) -> Option<Mending> {
        let text = format!("segment {segment} of {} has rotted; it is fetched from other members", spec.name);
        self.hosting.settle(spec.group, Err(text.into()));
        let members = self.members_of(spec);
        tokio::select! {
            biased;
            // False when nobody can say so any more, because the node stops.
            _ = until_unwanted(unwanted) => None,
            mending = mend(&self.env, spec, segment, &members, &**network) => Some(mending),
        }
    }

    /// Where the database is, as far as this node knows without opening it: all are on all nodes, `systemdb` first.
    fn members_of(&self, spec: &GroupSpec) -> BTreeSet<u64> {
        let record = self.meta.databases().into_iter().find(|record| record.group == spec.group);
        let members = record.map(|record| record.members);
        let members = members.or_else(|| self.identity().map(|identity| identity.members));
        members.into_iter().flatten().map(|(node, _)| node).collect()
    }

    /// Begins the group if that is due, and opens it again whenever it has stopped itself. Ends when it is closed because it is not wanted any more, when
    /// it was stopped, or when what its disk holds is wrong.
    pub(super) async fn keep_open(
        &self,
        group: Arc<Group>,
        spec: GroupSpec,
        network: &Arc<Network>,
        mut unwanted: watch::Receiver<bool>,
    ) {
        let mut current = Some(group);
        let mut pause = PAUSE_MIN;
        while let Some(group) = current.take() {
            let began = Instant::now();
            tokio::select! {
                biased;
                _ = until_unwanted(&mut unwanted) => return self.close_for_good(group).await,
                () = group.ended() => {}
                () = begin(&group, &spec).then(|()| pending()) => {}
            }
            let Health::Failed { reason } = group.status().health else { return };
            // What stopped it may be rot that it had no time to mend, and that would stop it again.
            let rotten = first_rotten(group.database());
            self.close_failed(group, &spec, reason).await;
            pause = if began.elapsed() > WORKED { PAUSE_MIN } else { longer(pause) };
            if pass(pause, &mut unwanted).await {
                return;
            }
            if let Some(segment) = rotten
                && self.mend_unopened(&spec, segment, network, &mut unwanted).await.is_none()
            {
                return;
            }
            match self.open_patiently(&spec, network, None, &mut unwanted).await {
                None => return,
                Some(Ok(group)) => {
                    tracing::info!(group = %spec.group, name = spec.name, "the database is open again");
                    self.hosting.settle(spec.group, Ok(group.clone()));
                    current = Some(group);
                }
                Some(Err(error)) => {
                    tracing::error!(group = %spec.group, name = spec.name, %error, source = ?error.source(),
                        "the database does not open again");
                    self.hosting.settle(spec.group, Err(with_sources(&error).into()));
                }
            }
        }
    }

    /// Ends the group in order and waits until nobody reads its files any more.
    async fn close_for_good(&self, group: Arc<Group>) {
        let (id, name) = (group.id(), group.name().to_owned());
        group.shutdown().await;
        let database = Arc::downgrade(group.database());
        drop(group);
        self.hosting.release(id);
        let began = Instant::now();
        let mut told = false;
        while database.strong_count() > 0 {
            if began.elapsed() > DRAIN_WAIT && !std::mem::replace(&mut told, true) {
                tracing::warn!(group = %id, name, "calls that began before the database was closed still read its files");
            }
            sleep(LOOK_AGAIN).await;
        }
        tracing::info!(group = %id, name, "the database is closed");
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

/// Lets time pass; true as soon as the group is not wanted any more.
async fn pass(pause: Duration, unwanted: &mut watch::Receiver<bool>) -> bool {
    timeout(pause, until_unwanted(unwanted)).await == Ok(true)
}

/// Whether the disk refused, so that the same call may succeed later.
fn is_of_the_disk(error: &GroupError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = match error {
        GroupError::Storage { source, .. } | GroupError::Rotten { source, .. } => Some(&**source),
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
