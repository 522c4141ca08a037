//! Room on the disks of the nodes: what each says about its own, and what a leader makes of it.
//!
//! A node is low when less than the low-water mark is free, and until an eighth more than that is free again, so that it
//! does not change its mind with every write. A leader refuses user writes while fewer than a majority of its voters have
//! room; prunes, seals and administration are still taken. Who has said nothing lately counts as having room: a node that
//! is down is Raft's business.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::error::WriteLimit;

/// A report older than this counts no more.
const REPORT_LIFE: Duration = Duration::from_secs(10);

/// Low-water mark unless configured, bytes.
pub const LOW_BYTES_DEFAULT: u64 = 64 << 20;
/// Size of the reserve file unless configured, bytes.
pub const RESERVE_BYTES_DEFAULT: u64 = 16 << 20;

/// What an operator chooses about the disk of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// User writes are refused below this much free space, bytes; 0 for never.
    pub low_bytes: u64,
    /// Size of a file that is given up when the disk is full, so that what makes room can still be written, bytes; 0 for
    /// none.
    pub reserve_bytes: u64,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self { low_bytes: LOW_BYTES_DEFAULT, reserve_bytes: RESERVE_BYTES_DEFAULT }
    }
}

impl DiskLimits {
    /// Free space from which a node that was low has room again, bytes.
    pub const fn room_bytes(&self) -> u64 {
        self.low_bytes.saturating_add(self.low_bytes / 8)
    }
}

/// What a node says about its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskReport {
    /// Free space, bytes.
    pub free_bytes: u64,
    /// Its low-water mark, bytes.
    pub low_bytes: u64,
    /// Whether it is low.
    pub low: bool,
}

impl DiskReport {
    /// The report that follows `before`.
    pub fn after(before: Option<Self>, free_bytes: u64, limits: DiskLimits) -> Self {
        let mark = if before.is_some_and(|before| before.low) { limits.room_bytes() } else { limits.low_bytes };
        Self { free_bytes, low_bytes: limits.low_bytes, low: free_bytes < mark }
    }
}

/// The newest report of every node.
#[derive(Debug, Default)]
pub struct Disks(RwLock<BTreeMap<u64, (DiskReport, Instant)>>);

impl Disks {
    /// Keeps a report.
    pub fn note(&self, node: u64, report: DiskReport) {
        self.0.write().insert(node, (report, Instant::now()));
    }

    /// What a node has said lately.
    pub fn get(&self, node: u64) -> Option<DiskReport> {
        let (report, at) = *self.0.read().get(&node)?;
        (at.elapsed() < REPORT_LIFE).then_some(report)
    }
}

/// Whether a group with these voters may take user writes.
pub(crate) fn limit(voters: &[u64], report: impl Fn(u64) -> Option<DiskReport>) -> Option<WriteLimit> {
    let low: Vec<(u64, DiskReport)> = (voters.iter())
        .filter_map(|node| report(*node).filter(|report| report.low).map(|report| (*node, report)))
        .collect();
    let majority = voters.len() / 2 + 1;
    if voters.len() - low.len() >= majority {
        return None;
    }
    // The one that is worst off is the one to look after first.
    let (node, report) = low.into_iter().min_by_key(|(_, report)| report.free_bytes)?;
    Some(WriteLimit::DiskLow { node, free_bytes: report.free_bytes, low_bytes: report.low_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DiskLimits = DiskLimits { low_bytes: 800, reserve_bytes: 0 };

    #[test]
    fn a_node_is_low_below_the_mark_and_until_an_eighth_more_is_free() {
        let low = |before: Option<DiskReport>, free| DiskReport::after(before, free, LIMITS).low;
        assert!(!low(None, 800));
        assert!(low(None, 799));
        let was_low = Some(DiskReport { free_bytes: 1, low_bytes: 800, low: true });
        assert!(low(was_low, 899), "one byte short");
        assert!(!low(was_low, 900));
        let no_mark = DiskLimits { low_bytes: 0, reserve_bytes: 0 };
        assert!(!DiskReport::after(None, 0, no_mark).low, "0 switches the mark off");
    }

    #[test]
    fn a_majority_with_room_is_enough() {
        let report = |free_bytes| Some(DiskReport::after(None, free_bytes, LIMITS));
        // Free space of each voter; none: it has said nothing. Then whom the refusal names.
        let cases: [(&[Option<u64>], Option<u64>); 9] = [
            (&[Some(9000)], None),
            (&[Some(7)], Some(1)),
            (&[Some(7), Some(9000), Some(9000)], None),
            (&[Some(7), Some(6), Some(9000)], Some(2)),
            (&[Some(7), None, None], None),
            (&[Some(7), Some(5), None], Some(2)),
            (&[Some(7), Some(9000)], Some(1)),
            (&[Some(7), Some(8), Some(9000), Some(9000), Some(9000)], None),
            (&[Some(7), Some(8), Some(1), Some(9000), Some(9000)], Some(3)),
        ];
        for (free, names) in cases {
            let voters: Vec<u64> = (1..=free.len() as u64).collect();
            let found = limit(&voters, |node| free[node as usize - 1].and_then(report));
            let named = found.map(|limit| match limit {
                WriteLimit::DiskLow { node, .. } => node,
                other => panic!("{other}"),
            });
            assert_eq!(named, names, "{free:?}");
        }
    }
}
