//! One bit of a closed segment of one node flips, while the node is stopped or while it runs.
//!
//! At most one node has rot at a time: with rot of one segment on a majority there would be nobody to mend it from. What was
//! there before is kept, so that the judge can say that it was mended and not only that it is hidden.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Fault, Group, Hit};
use crate::process::cluster::Cluster;
use crate::process::net::NodeIndex;
use crate::process::rng::Rng;

/// Rot that is there, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// Whose.
    pub node: NodeIndex,
    /// Which file.
    pub path: PathBuf,
    /// Its right bytes.
    pub right: Vec<u8>,
}

impl Rot {
    /// Whether the file has its right bytes again.
    pub fn is_mended(&self) -> bool {
        fs::read(&self.path).is_ok_and(|bytes| bytes == self.right)
    }
}

/// Closed segments below a data folder, of all databases and of `systemdb`: those that have a file of marks beside them.
pub fn closed_segments(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut databases = vec![dir.join("systemdb")];
    for database in fs::read_dir(dir.join("databases"))? {
        databases.push(database?.path());
    }
    let mut found = Vec::new();
    for database in databases {
        let Ok(files) = fs::read_dir(database.join("ledger")) else { continue };
        for file in files {
            let path = file?.path();
            if path.extension().is_some_and(|ending| ending == "seg") && path.with_extension("idx").exists() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Flips a bit of a closed segment of the node; nothing when it has none.
fn flip(cluster: &mut Cluster, node: NodeIndex, rng: &mut Rng) -> Result<Hit, String> {
    let (place, bit) = (rng.draw(), rng.below(8));
    let segments = closed_segments(&cluster.members[node].dir).map_err(|error| format!("segments: {error}"))?;
    let Some(path) = rng.pick(&segments).cloned() else {
        return Ok(Hit::new(&[node], "no closed segment yet: nothing was flipped"));
    };
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let now = fs::read(&path).map_err(failed)?;
    let at = (place % now.len().max(1) as u64) as usize;
    let file = fs::OpenOptions::new().write(true).open(&path).map_err(failed)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &[now[at] ^ 1 << bit], at as u64).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    cluster.flips += 1;
    // A file that is rotten already has been right before that.
    if !cluster.rot.iter().any(|rot| rot.path == path) {
        cluster.rot.push(Rot { node, path: path.clone(), right: now });
    }
    Ok(Hit::new(&[node], format!("bit {bit} of byte {at} of {name}")))
}

/// The node that may have rot now: the one that has some, or any.
fn victim(cluster: &mut Cluster, rng: &mut Rng) -> NodeIndex {
    let any = rng.below(cluster.len());
    cluster.rot.retain(|rot| !rot.is_mended());
    cluster.rot.first().map_or(any, |rot| rot.node)
}

/// While the node is stopped.
pub struct Stopped;

impl Fault for Stopped {
    fn name(&self) -> &'static str {
        "rot-stopped"
    }

    fn group(&self) -> Group {
        Group::Disk
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        cluster.len() > 2
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = victim(cluster, rng);
            cluster.stop(node).await?;
            flip(cluster, node, rng)
        }
        .boxed()
    }

    fn heal<'a>(&'a self, cluster: &'a mut Cluster, hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        async move { hit.nodes.iter().try_for_each(|node| cluster.start(*node)) }.boxed()
    }
}

/// While it runs.
pub struct Running;

impl Fault for Running {
    fn name(&self) -> &'static str {
        "rot-running"
    }

    fn group(&self) -> Group {
        Group::Disk
    }

    fn goes_beside_others(&self) -> bool {
        true
    }

    fn possible(&self, cluster: &Cluster) -> bool {
        Stopped.possible(cluster)
    }

    fn inject<'a>(&'a self, cluster: &'a mut Cluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<Hit, String>> {
        async move {
            let node = victim(cluster, rng);
            flip(cluster, node, rng)
        }
        .boxed()
    }

    fn heal<'a>(&'a self, _cluster: &'a mut Cluster, _hit: &'a Hit) -> BoxFuture<'a, Result<(), String>> {
        // The cluster mends it; the judge waits for that.
        async { Ok(()) }.boxed()
    }
}
