//! The network of one node goes down: peers and clients alike.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, leader_or_any};
use crate::process::cluster::Cluster;
use crate::process::rng::Rng;

/// Its link is down; on loopback its peer links only.
pub struct Unplug;

impl Fault for Unplug {
    fn name(&self) -> &'static str {
        "unplug"
    }

    fn group(&self) -> Group {
        Group::Network
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let (of_leader, any) = (rng.chance(50), rng.below(cluster.len()));
            let node = if of_leader { leader_or_any(cluster, rng).await } else { any };
            cluster.net.unplug(node)?;
            Ok(Hit::new(&[node], if of_leader { "the leader's link is down" } else { "its link is down" }))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes.iter().try_for_each(|node| cluster.net.plug(*node)) }.boxed()
    }
}
