//! Blocks of a run: the bytes of a node of the B-tree, and how a key is found in them (`docs/format.md`, "Index runs").
//!
//! ```text
//! leaf    cells: key, some of its versions          ordered by (key, transaction)
//! inner   children: first cell, place, newest transaction below, and in the lowest level a filter over the child's keys
//! ```
//!
//! Keys are stored as the difference to the key before, whole at every restart; restarts are searched first. A block ends
//! with the offsets of its restarts, their number and a checksum.

use std::cmp::Ordering;

use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use super::version::Stored;
use crate::wire::{Malformed, Put, Reader};

/// First byte of a leaf.
const LEAF: u8 = 1;
/// First byte of an inner block whose children are leaves; its entries have filters.
const INNER_LOWEST: u8 = 2;
/// First byte of an inner block whose children are inner blocks.
const INNER: u8 = 3;

/// Cells between two restarts of a leaf.
const LEAF_RESTART: usize = 16;
/// Children between two restarts of an inner block: they are searched more often than they are stored.
const INNER_RESTART: usize = 1;

/// Versions of one cell, at most; a key with more has several cells.
pub(super) const CELL_VERSIONS_MAX: usize = 128;

const DELETED: u64 = 1;
const EXPIRES: u64 = 2;

/// Bytes behind the cells: number of restarts and checksum.
const TAIL_BYTES: usize = 8;

/// What a child of an inner block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub offset: u64,
    pub len: u32,
    pub newest_tx: TxId,
}

/// How cells of one key are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Their first transaction.
    Tx(TxId),
    /// The number of versions of the key before them in the run.
    Count(u64),
}

impl By {
    /// How a cell that begins with `tx`, `before` versions after the first, lies to this.
    fn cmp_cell(self, tx: TxId, before: u64) -> Ordering {
        match self {
            Self::Tx(wanted) => tx.cmp(&wanted),
            Self::Count(wanted) => before.cmp(&wanted),
        }
    }
}

/// Builds a block.
#[derive(Debug)]
pub(super) struct BlockWriter {
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    entries: usize,
    interval: usize,
    last_key: Vec<u8>,
    body: Vec<u8>,
}

impl BlockWriter {
    pub(super) fn leaf() -> Self {
        Self::new(LEAF, LEAF_RESTART)
    }

    pub(super) fn inner(lowest: bool) -> Self {
        Self::new(if lowest { INNER_LOWEST } else { INNER }, INNER_RESTART)
    }

    fn new(kind: u8, interval: usize) -> Self {
        Self { bytes: vec![kind], restarts: Vec::new(), entries: 0, interval, last_key: Vec::new(), body: Vec::new() }
    }

    /// Bytes so far, without the end.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn put_key(&mut self, key: &[u8]) {
        let shared = if self.entries.is_multiple_of(self.interval) {
            self.restarts.push(u32::try_from(self.bytes.len()).expect("blocks are small"));
            0
        } else {
            self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count()
        };
        self.bytes.put_varint(shared as u64);
        self.bytes.put_prefixed(&key[shared..]);
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.entries += 1;
    }

    /// Adds a cell: versions oldest first, of which `before` others of this key are in the run before.
    pub(super) fn put_cell(&mut self, base_tx: TxId, key: &[u8], before: u64, versions: &[Stored]) {
        self.put_key(key);
        let mut last = base_tx.0;
        self.bytes.put_varint(versions[0].tx.0 - last);
        self.bytes.put_varint(before);
        self.bytes.put_varint(versions.len() as u64);
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        for (number, version) in versions.iter().enumerate() {
            if number > 0 {
                body.put_varint(version.tx.0 - last);
            }
            last = version.tx.0;
            let flags = if version.deleted { DELETED } else { 0 } | version.expires_at.map_or(0, |_| EXPIRES);
            body.put_varint(u64::from(version.entry) << 2 | flags);
            if let Some(expires_at) = version.expires_at {
                body.put_i64(expires_at);
            }
        }
        self.bytes.put_prefixed(&body);
        self.body = body;
    }

    /// Adds a child.
    pub(super) fn put_child(
        &mut self,
        base_tx: TxId,
        key: &[u8],
        tx: TxId,
        before: u64,
        child: Child,
        filter: Option<&[u8]>,
    ) {
        self.put_key(key);
        self.bytes.put_varint(tx.0 - base_tx.0);
        self.bytes.put_varint(before);
        self.bytes.put_varint(child.offset);
        self.bytes.put_varint(u64::from(child.len));
        self.bytes.put_varint(child.newest_tx.0 - base_tx.0);
        if let Some(filter) = filter {
            self.bytes.put_prefixed(filter);
        }
    }

    /// The bytes of the block; the writer begins anew.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let kind = self.bytes[0];
        let mut bytes = std::mem::replace(&mut self.bytes, vec![kind]);
        for restart in self.restarts.drain(..) {
            bytes.put_u32(restart);
        }
        bytes.put_u32(u32::try_from(self.entries.div_ceil(self.interval)).expect("blocks are small"));
        let crc = crc32c::crc32c(&bytes);
        bytes.put_u32(crc);
        self.entries = 0;
        self.last_key.clear();
        bytes
    }
}

/// A block as it is kept in memory: checked when it was read.
#[derive(Clone, Debug)]
pub(super) struct Block {
    bytes: Bytes,
    cells_end: usize,
    restarts: usize,
}

/// A cell of a leaf, without its key.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub before: u64,
    pub count: u64,
    pub first_tx: TxId,
    body: Bytes,
}

impl Block {
    /// Checks the checksum and the frame of a block.
    pub(super) fn open(bytes: Bytes) -> Result<Self, Malformed> {
        let body = bytes.len().checked_sub(TAIL_BYTES).filter(|len| *len > 0).ok_or(Malformed)?;
        let (checked, crc) = bytes.split_at(body + 4);
        if crc32c::crc32c(checked).to_be_bytes() != crc {
            return Err(Malformed);
        }
        let restarts = u32::from_be_bytes(checked[body..].try_into().expect("4 bytes")) as usize;
        let cells_end = restarts.checked_mul(4).and_then(|len| body.checked_sub(len)).ok_or(Malformed)?;
        if restarts == 0 || cells_end == 0 || !(LEAF..=INNER).contains(&bytes[0]) {
            return Err(Malformed);
        }
        Ok(Self { bytes, cells_end, restarts })
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.bytes[0] == LEAF
    }

    pub(super) fn has_filters(&self) -> bool {
        self.bytes[0] == INNER_LOWEST
    }

    /// Bytes that it takes in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.bytes.len() as u64 + size_of::<Self>() as u64
    }

    /// Number of restarts; of an inner block, of its children.
    pub(super) fn restarts(&self) -> usize {
        self.restarts
    }

    fn restart(&self, number: usize) -> Result<usize, Malformed> {
        let at = self.cells_end + number * 4;
        let offset = self.bytes.get(at..at + 4).ok_or(Malformed)?;
        let offset = u32::from_be_bytes(offset.try_into().expect("4 bytes")) as usize;
        if (1..self.cells_end).contains(&offset) { Ok(offset) } else { Err(Malformed) }
    }

    fn reader_at(&self, offset: usize) -> Reader<'_> {
        Reader::new(&self.bytes[offset..self.cells_end])
    }

    /// Key, first transaction and count before it of the entry at a restart.
    fn head_at(&self, number: usize, base_tx: TxId) -> Result<(&[u8], TxId, u64), Malformed> {
        let mut reader = self.reader_at(self.restart(number)?);
        if reader.varint()? != 0 {
            return Err(Malformed);
        }
        let key = reader.prefixed()?;
        Ok((key, tx_after(base_tx, reader.varint()?)?, reader.varint()?))
    }

    /// The last restart that does not begin behind `(key, by)`; `None` when all do.
    pub(super) fn last_restart(&self, base_tx: TxId, key: &[u8], by: By) -> Result<Option<usize>, Malformed> {
        let (mut low, mut high) = (0, self.restarts);
        while low < high {
            let mid = (low + high) / 2;
            let (mid_key, tx, before) = self.head_at(mid, base_tx)?;
            if mid_key.cmp(key).then_with(|| by.cmp_cell(tx, before)).is_le() {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        Ok(low.checked_sub(1))
    }

    /// The first restart whose key is not below `key` (or, with `after`, is above it).
    pub(super) fn first_restart(&self, base_tx: TxId, key: &[u8], after: bool) -> Result<usize, Malformed> {
        let (mut low, mut high) = (0, self.restarts);
        while low < high {
            let mid = (low + high) / 2;
            let (mid_key, ..) = self.head_at(mid, base_tx)?;
            if mid_key < key || (after && mid_key == key) { low = mid + 1 } else { high = mid }
        }
        Ok(low)
    }

    /// Child number `number` of an inner block, with its filter.
    pub(super) fn child(&self, number: usize, base_tx: TxId) -> Result<(Child, &[u8]), Malformed> {
        let mut reader = self.reader_at(self.restart(number)?);
        reader.varint()?;
        reader.prefixed()?;
        reader.varint()?;
        reader.varint()?;
        let (offset, len, newest) = (reader.varint()?, reader.varint_u32()?, reader.varint()?);
        let filter = if self.has_filters() { reader.prefixed()? } else { &[] };
        Ok((Child { offset, len, newest_tx: tx_after(base_tx, newest)? }, filter))
    }

    /// The last cell of a leaf that does not begin behind `(key, by)`, if it is one of `key`.
    pub(super) fn cell(&self, base_tx: TxId, key: &[u8], by: By) -> Result<Option<Cell>, Malformed> {
        let Some(restart) = self.last_restart(base_tx, key, by)? else { return Ok(None) };
        let mut cells = self.cells_from(restart, base_tx)?;
        let mut found = None;
        while cells.advance()? {
            match cells.key[..].cmp(key) {
                Ordering::Less => {}
                Ordering::Equal if by.cmp_cell(cells.first_tx, cells.before).is_le() => found = Some(cells.cell()),
                Ordering::Equal | Ordering::Greater => break,
            }
        }
        Ok(found)
    }

    /// Walks the cells of a leaf from a restart on.
    pub(super) fn cells_from(&self, restart: usize, base_tx: TxId) -> Result<Cells<'_>, Malformed> {
        let from = self.restart(restart)?;
        Ok(Cells {
            block: self,
            reader: self.reader_at(from),
            from,
            base_tx,
            key: Vec::new(),
            first_tx: TxId(0),
            before: 0,
            count: 0,
            body: (0, 0),
        })
    }
}

fn tx_after(base: TxId, delta: u64) -> Result<TxId, Malformed> {
    base.0.checked_add(delta).map(TxId).ok_or(Malformed)
}

/// Walks over the cells of a leaf. After [`Cells::advance`] the fields describe the cell it has come to.
#[derive(Debug)]
pub(super) struct Cells<'a> {
    block: &'a Block,
    reader: Reader<'a>,
    from: usize,
    base_tx: TxId,
    pub key: Vec<u8>,
    pub first_tx: TxId,
    pub before: u64,
    pub count: u64,
    body: (usize, usize),
}

impl Cells<'_> {
    /// Goes on to the next cell; false behind the last one.
    pub(super) fn advance(&mut self) -> Result<bool, Malformed> {
        if self.reader.left() == 0 {
            return Ok(false);
        }
        let shared = usize::try_from(self.reader.varint()?).map_err(|_| Malformed)?;
        let rest = self.reader.prefixed()?;
        if shared > self.key.len() {
            return Err(Malformed);
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(rest);
        self.first_tx = tx_after(self.base_tx, self.reader.varint()?)?;
        self.before = self.reader.varint()?;
        self.count = self.reader.varint()?;
        let body = self.reader.prefixed()?;
        if self.count == 0 || self.count > CELL_VERSIONS_MAX as u64 || body.len() < self.count as usize {
            return Err(Malformed);
        }
        let end = self.from + self.reader.at();
        self.body = (end - body.len(), end);
        Ok(true)
    }

    pub(super) fn cell(&self) -> Cell {
        Cell {
            before: self.before,
            count: self.count,
            first_tx: self.first_tx,
            body: self.block.bytes.slice(self.body.0..self.body.1),
        }
    }
}

impl Cell {
    /// The versions, oldest first.
    pub(super) fn versions(&self) -> Result<Vec<Stored>, Malformed> {
        let mut reader = Reader::new(&self.body);
        let mut out = Vec::with_capacity(self.count as usize);
        let mut tx = self.first_tx;
        for number in 0..self.count {
            if number > 0 {
                tx = tx_after(tx, reader.varint()?)?;
            }
            let word = reader.varint()?;
            let expires_at = if word & EXPIRES != 0 { Some(reader.i64()?) } else { None };
            let entry = u32::try_from(word >> 2).map_err(|_| Malformed)?;
            out.push(Stored { tx, entry, deleted: word & DELETED != 0, expires_at });
        }
        reader.finish()?;
        Ok(out)
    }

    /// The newest version up to `at`, and how many of the key there are up to it in the run.
    pub(super) fn newest(&self, at: TxId) -> Result<Option<(Stored, u64)>, Malformed> {
        let versions = self.versions()?;
        let seen = versions.partition_point(|version| version.tx <= at);
        Ok(seen.checked_sub(1).map(|last| (versions[last], self.before + seen as u64)))
    }
}

/// Point filters: a Bloom filter over the keys of one leaf.
pub(super) mod filter {
    /// Bits per key and positions per key: about 0.8 % of the keys that are not there seem to be.
    const BITS_PER_KEY: usize = 10;
    const POSITIONS: u64 = 7;

    /// What the filter is made of; the same on every machine and in every release.
    pub(crate) fn hash(key: &[u8]) -> u64 {
        xxhash_rust::xxh3::xxh3_64(key)
    }

    fn positions(hash: u64, bits: u64) -> impl Iterator<Item = u64> {
        let step = (hash >> 32) | 1;
        (0..POSITIONS).map(move |number| hash.wrapping_add(number.wrapping_mul(step)) % bits)
    }

    pub(crate) fn build(hashes: &[u64]) -> Vec<u8> {
        let mut filter = vec![0; (hashes.len() * BITS_PER_KEY).div_ceil(8).max(1)];
        let bits = filter.len() as u64 * 8;
        for at in hashes.iter().flat_map(|hash| positions(*hash, bits)) {
            filter[(at / 8) as usize] |= 1 << (at % 8);
        }
        filter
    }

    pub(crate) fn may_contain(filter: &[u8], hash: u64) -> bool {
        let bits = filter.len() as u64 * 8;
        bits == 0 || positions(hash, bits).all(|at| filter[(at / 8) as usize] & (1 << (at % 8)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(tx: u64) -> Stored {
        let expires_at = tx.is_multiple_of(3).then_some(tx as i64 - 5);
        Stored { tx: TxId(tx), entry: tx as u32 % 7, deleted: tx.is_multiple_of(2), expires_at }
    }

    type Model = Vec<(Vec<u8>, Vec<Stored>)>;

    fn leaf() -> (Vec<u8>, Model) {
        let mut writer = BlockWriter::leaf();
        let mut model = Vec::new();
        for n in 0..50u64 {
            let key = format!("key-{:03}", n * 2).into_bytes();
            let versions: Vec<Stored> = (0..n % 4 + 1).map(|v| stored(10 + n + v * 5)).collect();
            writer.put_cell(TxId(10), &key, n % 3, &versions);
            model.push((key, versions));
        }
        (writer.finish(), model)
    }

    #[test]
    fn cells_are_found_and_absent_keys_are_not() {
        let (bytes, model) = leaf();
        let block = Block::open(bytes.into()).unwrap();
        assert!(block.is_leaf());
        for (n, (key, versions)) in (0u64..).zip(&model) {
            let cell = block.cell(TxId(10), key, By::Tx(TxId(u64::MAX))).unwrap().unwrap();
            assert_eq!((cell.versions().unwrap(), cell.before), (versions.clone(), n % 3));
            assert!(block.cell(TxId(10), key, By::Tx(TxId(versions[0].tx.0 - 1))).unwrap().is_none());
            let absent = format!("key-{:03}", n * 2 + 1).into_bytes();
            assert!(block.cell(TxId(10), &absent, By::Tx(TxId(u64::MAX))).unwrap().is_none());
        }
        let mut cells = block.cells_from(0, TxId(10)).unwrap();
        let mut walked = Vec::new();
        while cells.advance().unwrap() {
            walked.push((cells.key.clone(), cells.cell().versions().unwrap()));
        }
        assert_eq!(walked, model);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (bytes, _) = leaf();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::open(bad.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_filter_has_all_its_keys_and_few_others() {
        let hashes: Vec<u64> = (0..1000u32).map(|n| filter::hash(&n.to_be_bytes())).collect();
        let built = filter::build(&hashes);
        assert!(hashes.iter().all(|hash| filter::may_contain(&built, *hash)));
        let wrong = (1000..11_000u32).filter(|n| filter::may_contain(&built, filter::hash(&n.to_be_bytes()))).count();
        assert!(wrong < 200, "{wrong} of 10,000");
    }
}
