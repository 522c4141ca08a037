//! Looks after the disk of this node: measures its free space, keeps the reserve file, tells the peers and listens to them.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alhambra_storage::vfs::{OpenMode, Vfs};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::Groups;
use crate::disk::{DiskLimits, DiskReport};
use crate::forming::Identity;
use crate::network::Network;
use crate::strand::of_node;

/// How often the disk is looked at and the peers are told.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The reserve is written in pieces of this size, bytes.
const PIECE_BYTES: u64 = 64 << 10;
/// Name of the reserve file in the data folder.
const RESERVE_NAME: &str = "reserve";

impl Groups {
    /// What this node knows about its disk.
    pub(super) fn own_disk(&self) -> Option<DiskReport> {
        let network = self.server.network.read().clone()?;
        network.disks().get(self.identity()?.node_id)
    }

    /// Runs for as long as the node.
    pub(super) async fn watch_disk(self: Arc<Self>, identity: Identity, network: Arc<Network>) {
        let mut last: Option<DiskReport> = None;
        loop {
            let (vfs, dir, limits) = (self.env.vfs.clone(), self.spec.dir.clone(), self.spec.disk);
            let look = move || -> io::Result<u64> {
                let free_bytes = vfs.free_space(&dir)?;
                let changed = tend_reserve(&*vfs, &dir, free_bytes, limits);
                if let Err(error) = &changed {
                    tracing::debug!(%error, "the reserve file was not changed");
                }
                if changed.unwrap_or(false) { vfs.free_space(&dir) } else { Ok(free_bytes) }
            };
            match self.env.blocking(of_node::DISK, look).await {
                Some(Ok(free_bytes)) => {
                    let report = DiskReport::after(last, free_bytes, limits);
                    if report.low != last.is_some_and(|last| last.low) {
                        tell(&self.spec.dir, report);
                    }
                    last = Some(report);
                    network.disks().note(identity.node_id, report);
                }
                // Whoever writes or reads finds out as well, and says so.
                Some(Err(error)) => tracing::debug!(%error, "free space cannot be measured"),
                None => return,
            }
            if let Some(report) = last {
                let peers = identity.members.keys().filter(|node| **node != identity.node_id);
                join_all(peers.map(|node| network.exchange_disk(*node, report, Instant::now() + LOOK_INTERVAL))).await;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Said once for each change.
fn tell(dir: &Path, report: DiskReport) {
    let (dir, free_bytes, low_bytes) = (dir.display(), report.free_bytes, report.low_bytes);
    if report.low {
        tracing::warn!(%dir, free_bytes, low_bytes, "the disk is low: free space or prune; without a majority of nodes that \
            have room, user writes are refused until then");
    } else {
        tracing::info!(%dir, free_bytes, low_bytes, "the disk has room again");
    }
}

/// Gives the reserve up when the disk is as good as full, and makes it again when there is room for it above the mark;
/// whether it did either.
fn tend_reserve(vfs: &dyn Vfs, dir: &Path, free_bytes: u64, limits: DiskLimits) -> io::Result<bool> {
    if limits.reserve_bytes == 0 {
        return Ok(false);
    }
    let path = dir.join(RESERVE_NAME);
    let exists = vfs.exists(&path)? && {
        // A crash may have left a part of one.
        let whole = vfs.open(&path, OpenMode::Read)?.len()? >= limits.reserve_bytes;
        if !whole {
            vfs.remove_file(&path)?;
        }
        whole
    };
    if exists && free_bytes < limits.reserve_bytes / 2 {
        vfs.remove_file(&path)?;
        vfs.sync_dir(dir)?;
        tracing::warn!(dir = %dir.display(), reserve_bytes = limits.reserve_bytes,
            "the disk is full: the reserve is given up, for prunes, seals and administration");
        return Ok(true);
    }
    if exists || free_bytes < limits.room_bytes().saturating_add(limits.reserve_bytes) {
        return Ok(false);
    }
    let written = write_reserve(vfs, &path, limits.reserve_bytes).and_then(|()| vfs.sync_dir(dir));
    if written.is_err() {
        // A part of a reserve would be taken for one.
        vfs.remove_file(&path)?;
    }
    written.map(|()| true)
}

/// Real bytes: a hole reserves nothing.
fn write_reserve(vfs: &dyn Vfs, path: &Path, reserve_bytes: u64) -> io::Result<()> {
    let piece = vec![0x5a; usize::try_from(PIECE_BYTES.min(reserve_bytes)).expect("a piece is small")];
    let file = vfs.open(path, OpenMode::CreateNew)?;
    let mut at = 0;
    while at < reserve_bytes {
        let len = (reserve_bytes - at).min(piece.len() as u64);
        file.write_at(at, &piece[..usize::try_from(len).expect("a piece is small")])?;
        at += len;
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use alhambra_storage::vfs::mem::MemVfs;

    use super::*;

    #[test]
    fn the_reserve_is_given_up_on_a_full_disk_and_made_again_when_there_is_room() {
        let limits = DiskLimits { low_bytes: 80_000, reserve_bytes: 100_000 };
        let disk = MemVfs::new();
        let dir = Path::new("/data");
        disk.create_dir_all(dir).unwrap();
        let tend = |disk: &MemVfs| tend_reserve(disk, dir, disk.free_space(dir).unwrap(), limits).unwrap();
        disk.set_capacity(Some(189_999));
        assert!(!tend(&disk), "one byte short of mark, margin and reserve");
        disk.set_capacity(Some(190_000));
        assert!(tend(&disk));
        assert!(!tend(&disk));
        assert_eq!(disk.size_bytes(), 100_000);
        disk.set_capacity(Some(150_000));
        assert!(!tend(&disk), "half of a reserve is free");
        disk.set_capacity(Some(149_999));
        assert!(tend(&disk));
        assert_eq!(disk.size_bytes(), 0);
        assert!(!tend(&disk), "no reserve while the disk is low");
        disk.set_capacity(None);
        assert!(tend(&disk));
        assert_eq!(disk.size_bytes(), 100_000);
        assert!(!tend_reserve(&disk, dir, 0, DiskLimits { reserve_bytes: 0, ..limits }).unwrap());
        disk.open(&dir.join(RESERVE_NAME), OpenMode::ReadWrite).unwrap().set_len(99_999).unwrap();
        assert!(tend(&disk), "a part of a reserve is none");
        assert_eq!(disk.size_bytes(), 100_000);
    }
}
