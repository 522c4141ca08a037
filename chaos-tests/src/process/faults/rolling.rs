//! One node after the other is stopped in order and started again, as for an upgrade.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit};
use crate::process::cluster::Cluster;
use crate::process::rng::Rng;

/// A node that is started has to be ready within this before the next one is stopped.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// SIGTERM, start, ready; the next.
pub struct Rolling;

impl Fault for Rolling {
    fn name(&self) -> &'static str {
        "rolling-restart"
    }

    fn group(&self) -> Group {
        Group::Process
    }

    fn hold(&self, _rng: &mut Rng) -> Duration {
        Duration::ZERO
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let mut order: Vec<usize> = (0..cluster.len()).collect();
            rng.shuffle(&mut order);
            for node in &order {
                cluster.stop(*node).await?;
                cluster.start(*node)?;
                cluster.wait_ready(READY_WITHIN).await?;
            }
            Ok(Hit::new(&order, "SIGTERM, one after the other"))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, _cluster: &'a mut Cluster, _hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async { Ok(()) }.boxed()
    }
}
