//! All nodes are killed at once, and come back.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit};
use crate::process::cluster::Cluster;
use crate::process::rng::Rng;

/// SIGKILL of all of them.
pub struct RestartAll;

impl Fault for RestartAll {
    fn name(&self) -> &'static str {
        "restart-all"
    }

    fn group(&self) -> Group {
        Group::Process
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.between_ms(200, 1_500)
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, _rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            cluster.kill_all().await?;
            let all: Vec<usize> = (0..cluster.len()).collect();
            Ok(Hit::new(&all, "SIGKILL of all at once"))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes.iter().try_for_each(|node| cluster.start(*node)) }.boxed()
    }
}
