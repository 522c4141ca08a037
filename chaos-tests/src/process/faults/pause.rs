//! SIGSTOP and SIGCONT: a node that stands still and does not know it.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, leader_or_any};
use crate::process::cluster::Cluster;
use crate::process::rng::Rng;

/// A pause.
pub struct Pause {
    name: &'static str,
    least_ms: u64,
    most_ms: u64,
}

/// Shorter than any election timeout.
pub static SHORT: Pause = Pause { name: "pause-short", least_ms: 100, most_ms: 500 };
/// Longer than every election timeout: others have elected a new leader when it goes on.
pub static LONG: Pause = Pause { name: "pause-long", least_ms: 3_000, most_ms: 7_000 };

impl Fault for Pause {
    fn name(&self) -> &'static str {
        self.name
    }

    fn group(&self) -> Group {
        Group::Process
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.between_ms(self.least_ms, self.most_ms)
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let (of_leader, any) = (rng.chance(70), rng.below(cluster.len()));
            let node = if of_leader { leader_or_any(cluster, rng).await } else { any };
            cluster.pause(node)?;
            Ok(Hit::new(&[node], if of_leader { "SIGSTOP of the leader" } else { "SIGSTOP" }))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes.iter().try_for_each(|node| cluster.resume(*node)) }.boxed()
    }
}
