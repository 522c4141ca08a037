//! Groups of a large record: sixteen entries each, with a directory in front that says where each one ends, its checksum,
//! and which inner nodes of the tree over the entries are kept. So one entry and its proof are read without the others, at
//! a cost that does not depend on how many there are.
//!
//! ```text
//! head | end, CRC of group 0 | ... | nodes 4 levels up | nodes 8 levels up | ... | group 0 | group 1 | ... | Alh, CRC
//!      [ directory                                                         ][ entries              ]
//! ```

use std::ops::Range;

use alhambra_ledger::htree;
use alhambra_ledger::ids::TxId;

use super::BadRecord;
use crate::format::derived::DIGEST_BYTES;
use crate::limits::{ENTRIES_PER_GROUP, KEPT_LEVELS};

/// Bytes of what the directory says of a group: end and checksum.
pub(crate) const GROUP_BYTES: usize = 8;

/// Where the parts of a large record stand, which follows from the number of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    nentries: u32,
}

impl Directory {
    /// `None` for a record that is too small to have one.
    pub(crate) fn of(nentries: u32) -> Option<Self> {
        (nentries > ENTRIES_PER_GROUP).then_some(Self { nentries })
    }

    pub(crate) fn groups(self) -> u32 {
        self.nentries.div_ceil(ENTRIES_PER_GROUP)
    }

    /// Numbers of the entries in the group of an entry.
    pub(crate) fn group_of(self, entry: u32) -> Range<u32> {
        htree::kept_group(self.nentries, entry, KEPT_LEVELS)
    }

    /// Bytes of ends and checksums.
    pub(crate) fn ends_len(self) -> usize {
        self.groups() as usize * GROUP_BYTES
    }

    /// Bytes in all.
    pub(crate) fn len(self) -> usize {
        self.ends_len() + htree::kept_len(self.nentries, KEPT_LEVELS) * DIGEST_BYTES as usize
    }

    /// Place in the directory of kept nodes with these numbers.
    pub(crate) fn nodes_at(self, nodes: &Range<usize>) -> Range<usize> {
        let at = |node| self.ends_len() + node * DIGEST_BYTES as usize;
        at(nodes.start)..at(nodes.end)
    }

    /// Checks what the directory, whose bytes begin with `ends`, says of the groups in `entries`.
    pub(crate) fn check(self, tx: TxId, ends: &[u8], entries: &[u8]) -> Result<(), BadRecord> {
        let mut from = 0;
        for (number, group) in (0u32..).zip(groups(&ends[..self.ends_len()])) {
            let bytes = entries.get(from..group.end).ok_or(BadRecord::Malformed)?;
            if group_crc(tx, number, bytes) != group.crc {
                return Err(BadRecord::Checksum);
            }
            from = group.end;
        }
        if from == entries.len() { Ok(()) } else { Err(BadRecord::Malformed) }
    }
}

/// What a directory says of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Bytes from the first entry of the record to the end of this group.
    pub end: usize,
    pub crc: u32,
}

impl Group {
    pub(crate) fn encode(self) -> [u8; GROUP_BYTES] {
        let end = u32::try_from(self.end).expect("the length of a record has 32 bits");
        let mut out = [0; GROUP_BYTES];
        out[..4].copy_from_slice(&end.to_be_bytes());
        out[4..].copy_from_slice(&self.crc.to_be_bytes());
        out
    }
}

/// Reads ends and checksums of neighbouring groups.
pub(crate) fn groups(bytes: &[u8]) -> impl Iterator<Item = Group> {
    bytes.as_chunks::<GROUP_BYTES>().0.iter().map(|&[a, b, c, d, e, f, g, h]| Group {
        end: u32::from_be_bytes([a, b, c, d]) as usize,
        crc: u32::from_be_bytes([e, f, g, h]),
    })
}

/// Transaction and number are part of the checksum, so that no group passes for another.
pub(crate) fn group_crc(tx: TxId, number: u32, group: &[u8]) -> u32 {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&tx.0.to_be_bytes());
    place[8..].copy_from_slice(&number.to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), group)
}
