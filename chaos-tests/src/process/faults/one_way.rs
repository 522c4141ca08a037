//! What one node sends to another is lost; the way back works.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, leader_or_any};
use crate::process::cluster::Cluster;
use crate::process::rng::Rng;

/// From or to the leader, or from it to all.
pub struct OneWay;

impl Fault for OneWay {
    fn name(&self) -> &'static str {
        "one-way"
    }

    fn group(&self) -> Group {
        Group::Network
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        cluster.len() > 1
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let (direction, step) = (rng.below(3), 1 + rng.below(cluster.len() - 1));
            let leader = leader_or_any(cluster, rng).await;
            let other = (leader + step) % cluster.len();
            let hit = match direction {
                0 => Hit::new(&[leader, other], format!("node {} does not hear the leader", other + 1)),
                1 => Hit::new(&[other, leader], format!("the leader does not hear node {}", other + 1)),
                _ => {
                    let all: Vec<usize> = (0..cluster.len()).map(|step| (leader + step) % cluster.len()).collect();
                    Hit::new(&all, "nobody hears the leader, which hears all")
                }
            };
            for to in &hit.nodes[1..] {
                cluster.net.cut(hit.nodes[0], *to)?;
            }
            Ok(hit)
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes[1..].iter().try_for_each(|to| cluster.net.mend(hit.nodes[0], *to)) }.boxed()
    }
}
