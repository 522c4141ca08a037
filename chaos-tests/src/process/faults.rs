//! The faults, one file per kind. Adding one is a file and a line of [`TABLE`].

mod clock;
mod disk;
mod isolate;
mod kill;
mod one_way;
mod pause;
mod restart_all;
mod rolling;
pub mod rot;
mod slow_link;
mod unplug;

use std::time::Duration;

use futures::future::BoxFuture;

use super::cluster::Cluster;
use super::net::NodeIndex;
use super::rng::Rng;

/// What a fault is of; its colour in the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Processes end or stand still.
    Process,
    /// Messages do not arrive, or late.
    Network,
    /// Files.
    Disk,
    /// Wall clocks.
    Clock,
}

/// What a fault has hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// The nodes, in the order in which the fault knows them.
    pub nodes: Vec<NodeIndex>,
    /// In words.
    pub what: String,
}

impl Hit {
    /// Of these nodes, as `what` says.
    pub fn new(nodes: &[NodeIndex], what: impl Into<String>) -> Self {
        Self { nodes: nodes.to_vec(), what: what.into() }
    }
}

/// Something that goes wrong and can be made good.
pub trait Fault: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// What it is of.
    fn group(&self) -> Group;
    /// Whether this cluster can have it.
    fn possible(&self, cluster: &Cluster) -> bool {
        !cluster.is_empty()
    }
    /// Whether it may happen while another one lasts: it takes no node away by itself.
    fn goes_beside_others(&self) -> bool {
        false
    }
    /// How long it lasts.
    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.between_ms(1_000, 6_000)
    }
    /// Makes it happen.
    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>>;
    /// Makes it good. A run that ends calls this early.
    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>>;
}

/// Every fault. An emptied disk is not among them: a member never comes back under its old name with nothing
/// (`docs/operating/disk.md`, "Broken"), because it would have forgotten its vote.
pub static TABLE: &[&dyn Fault] = &[
    &kill::Leader,
    &kill::Any,
    &restart_all::RestartAll,
    &rolling::Rolling,
    &pause::SHORT,
    &pause::LONG,
    &isolate::Isolate,
    &isolate::LeaderInMinority,
    &unplug::Unplug,
    &one_way::OneWay,
    &slow_link::SlowLink,
    &disk::FULL,
    &disk::FAILING,
    &disk::UNREADABLE,
    &disk::READ_ONLY,
    &disk::SLOW,
    &clock::Jump,
    &clock::Drift,
    &rot::Stopped,
    &rot::Running,
];

/// The faults of these names, all for none; the name that is not known otherwise.
pub fn chosen(names: &[String]) -> Result<Vec<&'static dyn Fault>, String> {
    if names.is_empty() {
        return Ok(TABLE.to_vec());
    }
    let find = |name: &String| {
        let known = || TABLE.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(", ");
        TABLE
            .iter()
            .copied()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| format!("no fault {name}; there are: {}", known()))
    };
    names.iter().map(find).collect()
}

/// The leader, or any node when there is none for a while.
async fn leader_or_any(cluster: &Cluster, rng: &mut Rng) -> NodeIndex {
    // Drawn in both cases, so that the rest of the schedule does not depend on it.
    let any = rng.below(cluster.len());
    cluster.wait_leader(Duration::from_secs(5)).await.unwrap_or(any)
}

/// A node of those whose disk and clock can be steered.
fn steered(cluster: &Cluster, rng: &mut Rng) -> Result<NodeIndex, String> {
    rng.pick(&cluster.steered()).copied().ok_or_else(|| "no node is steered".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_different_and_found() {
        let names: BTreeSet<&str> = TABLE.iter().map(|fault| fault.name()).collect();
        assert_eq!(names.len(), TABLE.len());
        assert_eq!(chosen(&[]).unwrap().len(), TABLE.len());
        assert_eq!(chosen(&["kill-any".to_owned()]).unwrap().len(), 1);
        assert!(chosen(&["flood".to_owned()]).is_err());
    }
}
