//! The groups that live on this node, by name and by number.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::group::{Group, Health};

/// How often a wait looks at what nothing wakes it for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One group of this node.
#[derive(Clone)]
pub(crate) struct Hosted {
    pub(crate) name: String,
    pub(crate) id: GroupId,
    /// None while it is being opened, and when it does not open.
    pub(crate) group: Option<Arc<Group>>,
    /// Why it does not open, or was closed.
    pub(crate) trouble: Option<Arc<str>>,
    /// How often it was opened again after its disk had failed.
    pub(crate) reopened: u64,
    /// True when it is not wanted here any more: nobody finds it, and who holds it closes it.
    unwanted: watch::Sender<bool>,
}

impl Hosted {
    /// Whether it is being closed for good.
    pub(crate) fn is_unwanted(&self) -> bool {
        *self.unwanted.borrow()
    }

    /// What callers find.
    fn found(&self) -> Option<Arc<Group>> {
        if self.is_unwanted() { None } else { self.group.clone() }
    }
}

/// See the module.
pub(crate) struct Hosting {
    groups: RwLock<BTreeMap<GroupId, Hosted>>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Hosting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.groups.read().values().map(|hosted| &hosted.name)).finish()
    }
}

impl Default for Hosting {
    fn default() -> Self {
        Self { groups: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl Hosting {
    /// Reserves a place, and answers what tells that it is not wanted any more; nothing when there is one already.
    pub(crate) fn reserve(&self, id: GroupId, name: &str) -> Option<watch::Receiver<bool>> {
        let mut groups = self.groups.write();
        if groups.contains_key(&id) {
            return None;
        }
        let (unwanted, told) = watch::channel(false);
        groups.insert(id, Hosted { name: name.to_owned(), id, group: None, trouble: None, reopened: 0, unwanted });
        drop(groups);
        self.changed();
        Some(told)
    }

    /// From here on nobody finds the group; who holds it is told to close it.
    pub(crate) fn retire(&self, id: GroupId) {
        let told = self.groups.read().get(&id).is_some_and(|hosted| !hosted.unwanted.send_replace(true));
        if told {
            self.changed();
        }
    }

    /// Whether the group has a place here, open or not.
    pub(crate) fn is_taken(&self, id: GroupId) -> bool {
        self.groups.read().contains_key(&id)
    }

    /// A retired group is closed; its place stays taken until its files are not used any more.
    pub(crate) fn release(&self, id: GroupId) {
        let group = self.groups.write().get_mut(&id).and_then(|hosted| hosted.group.take());
        drop(group);
    }

    /// The group is closed, and its place is free.
    pub(crate) fn remove(&self, id: GroupId) {
        drop(self.groups.write().remove(&id));
        self.changed();
    }

    /// The group is open, or does not open.
    pub(crate) fn settle(&self, id: GroupId, group: Result<Arc<Group>, Arc<str>>) {
        if let Some(hosted) = self.groups.write().get_mut(&id) {
            match group {
                Ok(group) => (hosted.group, hosted.trouble) = (Some(group), None),
                Err(trouble) => hosted.trouble = Some(trouble),
            }
        }
        self.changed();
    }

    /// The group is closed because its disk failed; callers find none until it is open again.
    pub(crate) fn close(&self, id: GroupId, trouble: Arc<str>) {
        if let Some(hosted) = self.groups.write().get_mut(&id) {
            (hosted.group, hosted.trouble) = (None, Some(trouble));
            hosted.reopened += 1;
        }
        self.changed();
    }

    /// Waits until the group is open.
    pub(crate) async fn wait_open(&self, id: GroupId) -> Arc<Group> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if let Some(group) = self.get(id) {
                return group;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    pub(crate) fn get(&self, id: GroupId) -> Option<Arc<Group>> {
        self.groups.read().get(&id)?.found()
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<Group>> {
        self.newest(name, |hosted| hosted?.found())
    }

    /// Looks at the newest of this name: an older one is a deleted database's.
    fn newest<T>(&self, name: &str, look: impl FnOnce(Option<&Hosted>) -> T) -> T {
        look(self.groups.read().values().rev().find(|hosted| hosted.name == name))
    }

    /// Waits until this group is open. None at the deadline, and when it has trouble or is being closed.
    pub(crate) async fn wait_found(&self, id: GroupId, deadline: Instant) -> Option<Arc<Group>> {
        let mut changes = self.changes.subscribe();
        let found = async {
            loop {
                changes.mark_unchanged();
                // One that nobody has begun to open here yet is waited for too.
                let (found, is_hopeless) =
                    self.groups.read().get(&id).map_or((None, false), |hosted| {
                        (hosted.found(), hosted.trouble.is_some() || hosted.is_unwanted())
                    });
                if found.is_some() || is_hopeless {
                    return found;
                }
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
        };
        timeout_at(deadline, found).await.ok().flatten()
    }

    /// Waits until nobody finds this group any more; false at the deadline.
    pub(crate) async fn wait_retired(&self, id: GroupId, deadline: Instant) -> bool {
        let mut changes = self.changes.subscribe();
        let retired = async {
            loop {
                changes.mark_unchanged();
                if self.groups.read().get(&id).is_none_or(Hosted::is_unwanted) {
                    return;
                }
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
        };
        timeout_at(deadline, retired).await.is_ok()
    }

    /// All of them, by number.
    pub(crate) fn all(&self) -> Vec<Hosted> {
        self.groups.read().values().cloned().collect()
    }

    /// Forgets all of them; peers then find none.
    pub(crate) fn clear(&self) -> Vec<Arc<Group>> {
        let groups = std::mem::take(&mut *self.groups.write());
        self.changed();
        groups.into_values().filter_map(|hosted| hosted.group).collect()
    }

    /// Waits until the group of this name has a leader and its first command is applied here; false at the deadline.
    pub(crate) async fn wait_serving(&self, name: &str, deadline: Instant) -> bool {
        let mut changes = self.changes.subscribe();
        let serving = async {
            loop {
                changes.mark_unchanged();
                let Some(group) = self.by_name(name) else {
                    if changes.changed().await.is_err() {
                        return;
                    }
                    continue;
                };
                let mut applied = group.watch_applied();
                loop {
                    applied.mark_unchanged();
                    if serves(&group) {
                        return;
                    }
                    // The leader may become known without anything being applied.
                    tokio::select! {
                        biased;
                        changed = applied.changed() => if changed.is_err() { break },
                        () = sleep(LOOK_AGAIN) => {}
                    }
                    if group.status().health != Health::Running {
                        break;
                    }
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout_at(deadline, serving).await.is_ok()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Waits until a group is not wanted any more; false when nobody will ever say so, because the node stops.
pub(crate) async fn until_unwanted(unwanted: &mut watch::Receiver<bool>) -> bool {
    unwanted.wait_for(|unwanted| *unwanted).await.is_ok()
}

fn serves(group: &Group) -> bool {
    group.database().settings().is_some() && group.leader().is_some()
}
