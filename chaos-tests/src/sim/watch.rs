//! What is seen of the nodes from outside while they run: who leads, which cluster they belong to, how much memory they hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use alhambra_raft::group::Group;

use super::setup::NAMES;
use super::world::World;

/// How often somebody looks; leaders are looked for at every step.
const LOOK: Duration = Duration::from_millis(100);

/// A leader that must stay in office, because nothing happened that would be a reason to elect another one.
#[derive(Debug)]
pub struct Steady {
    /// Who led, in which term, when the other node came back.
    leader: (usize, u64),
    /// Who came back.
    back: usize,
    /// Until when it must lead.
    pub until: Duration,
    /// Its replica: one whose disk fails is opened anew, and then somebody else may lead.
    replica: Weak<Group>,
}

/// Raft snapshots whose files came to nodes. A node counts them from its start on.
#[derive(Debug, Default)]
pub struct Snapshots {
    seen: BTreeMap<usize, u64>,
    /// Of all nodes and all their starts.
    pub total: u64,
}

impl Snapshots {
    /// How many have come since the last look.
    fn see(&mut self, node: usize, count: u64) -> u64 {
        let before = self.seen.insert(node, count).unwrap_or(0);
        let new = if count < before { count } else { count - before };
        self.total += new;
        new
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Watch {
    last: Duration,
    steady: Option<Steady>,
}

pub(super) fn leader_with_term(world: &World<'_>) -> Option<(usize, u64)> {
    let shared = world.shared.borrow();
    // One that was cut off may still believe that it leads; the newest term counts.
    let leaders = shared.running.iter().filter_map(|(i, node)| {
        let group = node.handle.groups().group_by_name(super::client::DATABASE)?;
        group.is_leader().then(|| (*i, group.status().term))
    });
    leaders.max_by_key(|(_, term)| *term)
}

fn replica(world: &World<'_>, node: usize) -> Option<Weak<Group>> {
    let shared = world.shared.borrow();
    let groups = shared.running.get(&node)?.handle.groups();
    groups.group_by_name(super::client::DATABASE).map(|group| Arc::downgrade(&group))
}

/// Notes who leads in which term; answers what is new.
fn look_for_leaders(world: &World<'_>) -> Vec<String> {
    let mut news = Vec::new();
    let mut shared = world.shared.borrow_mut();
    let super::shared::State { running, sightings, .. } = &mut *shared;
    for (i, node) in running.iter() {
        let (name, groups) = (NAMES[*i], node.handle.groups());
        for database in [super::client::DATABASE, "systemdb"] {
            if let Some(group) = groups.group_by_name(database)
                && group.is_leader()
            {
                let term = group.status().term;
                let nodes = sightings.leaders.entry((database.to_string(), term)).or_default();
                if !nodes.iter().any(|there| there == name) {
                    nodes.push(name.to_string());
                    news.push(format!("{name} leads {database} in term {term}"));
                }
            }
        }
    }
    news
}

impl Watch {
    /// One step of the world has passed. Answers what is worth telling.
    pub fn look(&mut self, world: &World<'_>, now: Duration) -> Vec<String> {
        let mut news = look_for_leaders(world);
        if now < self.last + LOOK {
            return news;
        }
        self.last = now;
        self.judge_steady(world, now);
        let mut shared = world.shared.borrow_mut();
        let quiet = shared.load_over && shared.clients_done == world.setup.clients;
        let super::shared::State { running, sightings, snapshots, .. } = &mut *shared;
        for (i, node) in running.iter() {
            let (name, groups) = (NAMES[*i], node.handle.groups());
            let files = snapshots.see(*i, groups.traffic().map_or(0, |traffic| traffic.snapshots_received));
            if files > 0 {
                news.push(format!("{name} got the files of {files} databases that it was too far behind in"));
            }
            if let Some(identity) = groups.identity() {
                let nodes = sightings.clusters.entry(identity.cluster).or_default();
                if !nodes.iter().any(|there| there == name) {
                    nodes.push(name.to_string());
                    news.push(format!("{name} belongs to a cluster"));
                }
            }
            let memory = groups.memory();
            let (cached, waiting) = (memory.cache().used_bytes(), memory.waiting_bytes());
            let seen = sightings.memory.entry(name.to_string()).or_default();
            seen.budget = memory.bytes();
            seen.most = seen.most.max(memory.held_bytes() + cached + waiting);
            seen.cached = seen.cached.max(cached);
            seen.waiting = seen.waiting.max(waiting);
            if quiet {
                // What the node proposes by itself waits now and then, but not always.
                seen.left = Some(seen.left.map_or(waiting, |left| left.min(waiting)));
            }
        }
        news
    }

    /// Whether the leader that had to stay in office has, when the time is over. Also before something else happens, which may be
    /// at that very moment.
    pub fn judge_steady(&mut self, world: &World<'_>, now: Duration) {
        if let Some(steady) = self.steady.take_if(|steady| now >= steady.until) {
            let there = leader_with_term(world);
            let is_same = replica(world, steady.leader.0).is_some_and(|now| Weak::ptr_eq(&now, &steady.replica));
            if there != Some(steady.leader) && is_same {
                let (who, term) = steady.leader;
                let what = format!(
                    "{} came back from a partition at {:?} and {} no longer leads in term {term}: {there:?}",
                    NAMES[steady.back], steady.until, NAMES[who]
                );
                world.shared.borrow_mut().sightings.deposed.push(what);
            }
        }
    }

    /// A node has come back and nothing else is wrong: whoever leads now, and had a majority without it, must still lead at `until`.
    pub fn expect_steady(&mut self, world: &World<'_>, back: usize, until: Duration) {
        let outside = world.shared.borrow().outside.clone();
        let others = (0..world.setup.nodes).filter(|i| *i != back && world.hosts[*i].up && !outside.contains(i));
        let had_majority = 2 * others.count() > world.setup.nodes;
        let leader = leader_with_term(world).filter(|_| had_majority);
        self.steady = leader.and_then(|leader| {
            let replica = replica(world, leader.0)?;
            Some(Steady { leader, back, until, replica })
        });
    }

    /// Something else has happened on purpose, so nothing is expected any more.
    pub fn expect_nothing(&mut self) {
        self.steady = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_all_starts_of_all_nodes_are_counted() {
        let mut snapshots = Snapshots::default();
        for (node, count) in [(0, 0), (1, 2), (0, 1), (1, 2), (1, 0), (1, 1), (0, 1)] {
            snapshots.see(node, count);
        }
        assert_eq!(snapshots.total, 4);
    }
}
