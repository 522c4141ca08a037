//! The link between the leader and another node is slow and narrow.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, leader_or_any};
use crate::process::cluster::Cluster;
use crate::process::net::Slowness;
use crate::process::rng::Rng;

/// Both ways.
pub struct SlowLink;

impl Fault for SlowLink {
    fn name(&self) -> &'static str {
        "slow-link"
    }

    fn group(&self) -> Group {
        Group::Network
    }

    fn goes_beside_others(&self) -> bool {
        true
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        cluster.len() > 1
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.between_ms(3_000, 8_000)
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let step = 1 + rng.below(cluster.len() - 1);
            let delay = rng.between_ms(20, 300);
            let bytes_per_second = 8_000 << rng.below(6);
            let leader = leader_or_any(cluster, rng).await;
            let other = (leader + step) % cluster.len();
            cluster.net.slow(leader, other, Slowness { delay, bytes_per_second }).await?;
            let what = format!("{} ms and {} kB/s each way", delay.as_millis(), bytes_per_second / 1000);
            Ok(Hit::new(&[leader, other], what))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { cluster.net.fast(hit.nodes[0], hit.nodes[1]).await }.boxed()
    }
}
