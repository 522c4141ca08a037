//! SIGKILL of one node. On a steered node it takes away what was not synced, as a power failure would.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, leader_or_any};
use crate::process::cluster::Cluster;
use crate::process::rng::Rng;

/// The one that leads.
pub struct Leader;

impl Fault for Leader {
    fn name(&self) -> &'static str {
        "kill-leader"
    }

    fn group(&self) -> Group {
        Group::Process
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = leader_or_any(cluster, rng).await;
            cluster.kill(node).await?;
            Ok(Hit::new(&[node], "SIGKILL of the leader"))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes.iter().try_for_each(|node| cluster.start(*node)) }.boxed()
    }
}

/// Any.
pub struct Any;

impl Fault for Any {
    fn name(&self) -> &'static str {
        "kill-any"
    }

    fn group(&self) -> Group {
        Group::Process
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = rng.below(cluster.len());
            cluster.kill(node).await?;
            Ok(Hit::new(&[node], "SIGKILL"))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        Leader.heal(cluster, hit)
    }
}
