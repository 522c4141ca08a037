//! The disk of a steered node: full, failing, unreadable, read-only or slow, while the node runs.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit, steered};
use crate::process::cluster::Cluster;
use crate::process::control::Disk;
use crate::process::rng::Rng;

/// A way in which a disk is bad.
pub struct Bad {
    name: &'static str,
    what: &'static str,
    disk: Disk,
}

const GOOD: Disk = Disk { full: false, read_errors: false, write_errors: false, read_only: false, slow_ms: 0 };

/// Nothing may grow.
pub static FULL: Bad = Bad { name: "full-disk", what: "no space left", disk: Disk { full: true, ..GOOD } };
/// Writes and syncs fail, reads as well.
pub static FAILING: Bad = Bad {
    name: "failing-disk",
    what: "reads and writes answer EIO",
    disk: Disk { read_errors: true, write_errors: true, ..GOOD },
};
/// Reads fail.
pub static UNREADABLE: Bad =
    Bad { name: "unreadable-disk", what: "reads answer EIO", disk: Disk { read_errors: true, ..GOOD } };
/// As after a remount.
pub static READ_ONLY: Bad =
    Bad { name: "read-only-disk", what: "nothing may be changed", disk: Disk { read_only: true, ..GOOD } };
/// Syncs take long.
pub static SLOW: Bad =
    Bad { name: "slow-disk", what: "each sync takes 150 ms more", disk: Disk { slow_ms: 150, ..GOOD } };

impl Fault for Bad {
    fn name(&self) -> &'static str {
        self.name
    }

    fn group(&self) -> Group {
        Group::Disk
    }

    fn goes_beside_others(&self) -> bool {
        // Slow is not broken.
        self.disk.slow_ms > 0
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        !cluster.steered().is_empty()
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.between_ms(1_500, 6_000)
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = steered(cluster, rng)?;
            cluster.control(node, |control| control.disk.begin(self.disk))?;
            Ok(Hit::new(&[node], self.what))
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move {
            hit.nodes.iter().try_for_each(|node| cluster.control(*node, |control| control.disk.end(self.disk)))
        }
        .boxed()
    }
}
