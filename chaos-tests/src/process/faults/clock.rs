//! The wall clock of a steered node jumps, or goes too fast or too slow. Made good, it jumps back.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, steered};
use crate::process::cluster::Cluster;
use crate::process::control::Clock;
use crate::process::rng::Rng;

/// What the other fault has done to the clock stays.
fn set(cluster: &mut Cluster, node: usize, change: impl FnOnce(&mut Clock)) -> Result<(), String> {
    cluster.control(node, |control| change(&mut control.clock))
}

/// Minutes to days, either way.
pub struct Jump;

impl Fault for Jump {
    fn name(&self) -> &'static str {
        "clock-jump"
    }

    fn group(&self) -> Group {
        Group::Clock
    }

    fn goes_beside_others(&self) -> bool {
        true
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        !cluster.steered().is_empty()
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = steered(cluster, rng)?;
            let most_ms = 60_000_i64 << rng.below(13);
            let size = rng.below(usize::try_from(most_ms).unwrap_or(usize::MAX)) as i64;
            let offset_ms = if rng.chance(50) { size } else { -size };
            set(cluster, node, |clock| clock.offset_ms = offset_ms)?;
            Ok(Hit::new(&[node], format!("{:+} s", offset_ms / 1000)))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes.iter().try_for_each(|node| set(cluster, *node, |clock| clock.offset_ms = 0)) }.boxed()
    }
}

/// Up to half as fast again, or half as fast.
pub struct Drift;

impl Fault for Drift {
    fn name(&self) -> &'static str {
        "clock-drift"
    }

    fn group(&self) -> Group {
        Group::Clock
    }

    fn goes_beside_others(&self) -> bool {
        true
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        Jump.possible(cluster)
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.between_ms(4_000, 9_000)
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = steered(cluster, rng)?;
            let drift_ppm = rng.below(1_000_000) as i64 - 500_000;
            set(cluster, node, |clock| clock.drift_ppm = drift_ppm)?;
            Ok(Hit::new(&[node], format!("{:+} %", drift_ppm / 10_000)))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes.iter().try_for_each(|node| set(cluster, *node, |clock| clock.drift_ppm = 0)) }.boxed()
    }
}
