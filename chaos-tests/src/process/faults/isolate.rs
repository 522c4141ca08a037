//! Some nodes and the others do not hear each other; clients reach all of them.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, leader_or_any};
use crate::process::cluster::Cluster;
use crate::process::net::NodeIndex;
use crate::process::rng::Rng;

/// Every link between a node of `side` and one that is not, both ways.
fn between(cluster: &Cluster, side: &[NodeIndex]) -> Vec<(NodeIndex, NodeIndex)> {
    let others = || (0..cluster.len()).filter(|node| !side.contains(node));
    side.iter().flat_map(|inside| others().flat_map(move |outside| [(*inside, outside), (outside, *inside)])).collect()
}

fn part(cluster: &Cluster, side: &[NodeIndex]) -> Result<(), String> {
    between(cluster, side).into_iter().try_for_each(|(from, to)| cluster.net.cut(from, to))
}

fn join(cluster: &Cluster, side: &[NodeIndex]) -> Result<(), String> {
    between(cluster, side).into_iter().try_for_each(|(from, to)| cluster.net.mend(from, to))
}

/// One node alone.
pub struct Isolate;

impl Fault for Isolate {
    fn name(&self) -> &'static str {
        "isolate"
    }

    fn group(&self) -> Group {
        Group::Network
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        cluster.len() > 1
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = rng.below(cluster.len());
            part(cluster, &[node])?;
            Ok(Hit::new(&[node], "no peer is reached, nor reaches it"))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { join(cluster, &hit.nodes) }.boxed()
    }
}

/// Two halves, the leader in the smaller one.
pub struct LeaderInMinority;

impl Fault for LeaderInMinority {
    fn name(&self) -> &'static str {
        "halves"
    }

    fn group(&self) -> Group {
        Group::Network
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        cluster.len() > 2
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let leader = leader_or_any(cluster, rng).await;
            let minority = (cluster.len() - 1) / 2;
            let side: Vec<NodeIndex> = (0..minority).map(|step| (leader + step) % cluster.len()).collect();
            part(cluster, &side)?;
            Ok(Hit::new(&side, "the leader is on the side of the few"))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        Isolate.heal(cluster, hit)
    }
}
