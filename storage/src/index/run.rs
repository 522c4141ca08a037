//! A run: an immutable file with all versions of a contiguous range of transactions, as a B-tree by (key, transaction).
//!
//! ```text
//! header | leaf leaf ... inner leaf ... inner inner | footer        children stand before their parent
//! ```
//!
//! Reading starts at the footer, which names the root. Every block has a checksum and is checked when it is read. A point read
//! descends once; the filter beside the pointer to a leaf spares reading most leaves that do not have the key.

use std::collections::VecDeque;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alhambra_ledger::ids::{DatabaseId, TxId};
use bytes::Bytes;

use super::block::{Block, By, Cell, Child, filter};
use super::cache::BlockCache;
use super::range::KeyRange;
use super::version::{Found, Stored};
use crate::error::{Damage, Error, FileOp, Result};
use crate::vfs::{File, OpenMode, Vfs};
use crate::wire::{Malformed, Put, Reader};

/// First bytes of a run.
const MAGIC: [u8; 8] = *b"ALHINDEX";
/// Last bytes of a run.
const END_MAGIC: [u8; 8] = *b"ALHINEND";
/// Version of the runs that this release writes and reads.
pub(super) const RUN_VERSION: u16 = 1;
/// What filters are made of: 1 is XXH3 with 64 bits and seed 0.
const FILTER_HASH: u16 = 1;

pub(super) const HEADER_BYTES: u64 = 64;
pub(super) const FOOTER_BYTES: u64 = 64;

/// Levels of inner blocks that a run can have at most; more is damage.
const LEVELS_MAX: u8 = 16;

/// What the manifest says of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunInfo {
    /// Its file.
    pub number: u64,
    /// All versions from this transaction on
    pub first_tx: TxId,
    /// to this one.
    pub last_tx: TxId,
    /// Length of the file.
    pub file_bytes: u64,
    /// Keys, counted once each.
    pub keys: u64,
    /// Versions.
    pub versions: u64,
}

/// Where the tree begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub child: Child,
    /// Levels of inner blocks above the leaves.
    pub levels: u8,
}

pub(super) fn encode_header(database: DatabaseId, info: &RunInfo) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES as usize);
    out.put_bytes(&MAGIC);
    out.put_u16(RUN_VERSION);
    out.put_u16(FILTER_HASH);
    out.put_bytes(&database.0);
    out.put_u64(info.number);
    out.put_u64(info.first_tx.0);
    out.put_u64(info.last_tx.0);
    out.put_bytes(&[0; 8]);
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    out
}

pub(super) fn encode_footer(root: &Root, keys: u64, versions: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(FOOTER_BYTES as usize);
    out.put_u64(root.child.offset);
    out.put_u32(root.child.len);
    out.put_u8(root.levels);
    out.put_bytes(&[0; 3]);
    out.put_u64(root.child.newest_tx.0);
    out.put_u64(keys);
    out.put_u64(versions);
    out.put_bytes(&[0; 12]);
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    out.put_bytes(&END_MAGIC);
    out
}

fn decode_footer(bytes: &[u8]) -> std::result::Result<(Root, u64, u64), Damage> {
    let (checked, crc) = bytes.split_at(bytes.len() - 12);
    if crc[4..] != END_MAGIC {
        return Err(Damage::Magic);
    }
    if crc32c::crc32c(checked).to_be_bytes() != crc[..4] {
        return Err(Damage::Checksum);
    }
    let mut reader = Reader::new(checked);
    let mut read = || -> std::result::Result<_, Malformed> {
        let (offset, len, levels) = (reader.u64()?, reader.u32()?, reader.u8()?);
        reader.take(3)?;
        let newest_tx = TxId(reader.u64()?);
        Ok((Root { child: Child { offset, len, newest_tx }, levels }, reader.u64()?, reader.u64()?))
    };
    match read() {
        Ok(footer) if footer.0.levels <= LEVELS_MAX => Ok(footer),
        _ => Err(Damage::Field),
    }
}

/// An open run. Its file is removed when the last reader lets go of a run that was merged away.
#[derive(Debug)]
pub(super) struct Run {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    file: Box<dyn File>,
    cache: Arc<BlockCache>,
    name: u64,
    pub(super) info: RunInfo,
    root: Root,
    obsolete: AtomicBool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if *self.obsolete.get_mut()
            && let Err(error) = self.vfs.remove_file(&self.path)
        {
            // Found and removed at the next open.
            tracing::warn!(%error, path = %self.path.display(), "a merged index run cannot be removed");
        }
    }
}

pub(super) fn file_name(number: u64) -> String {
    format!("{number:010}.run")
}

/// Number of the run with this file name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".run")?.parse().ok()
}

impl Run {
    /// Opens the file of a run that the manifest names.
    pub(super) fn open(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        database: DatabaseId,
        info: RunInfo,
        cache: &Arc<BlockCache>,
    ) -> Result<Self> {
        let path = dir.join(file_name(info.number));
        let corrupted = |offset, damage| Error::Corrupted { path: path.clone(), segment: None, offset, damage };
        let file = match vfs.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(corrupted(0, Damage::Missing)),
            Err(e) => return Err(Error::io(FileOp::Open, &path, e)),
        };
        let len = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        if len != info.file_bytes || len < HEADER_BYTES + FOOTER_BYTES {
            return Err(corrupted(len, Damage::Length));
        }
        let header = file.read_at(0, HEADER_BYTES as usize).map_err(|e| Error::io(FileOp::Read, &path, e))?;
        check_header(&header, database, &info, &path)?;
        let footer =
            file.read_at(len - FOOTER_BYTES, FOOTER_BYTES as usize).map_err(|e| Error::io(FileOp::Read, &path, e))?;
        let (root, keys, versions) = decode_footer(&footer).map_err(|damage| corrupted(len - FOOTER_BYTES, damage))?;
        if (keys, versions) != (info.keys, info.versions) {
            return Err(corrupted(len - FOOTER_BYTES, Damage::Field));
        }
        let name = cache.name_run();
        Ok(Self {
            vfs: Arc::clone(vfs),
            path,
            file,
            cache: Arc::clone(cache),
            name,
            info,
            root,
            obsolete: AtomicBool::new(false),
        })
    }

    /// The file goes away with the last reader.
    pub(super) fn retire(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    pub(super) fn corrupted(&self, offset: u64, damage: Damage) -> Error {
        Error::Corrupted { path: self.path.clone(), segment: None, offset, damage }
    }

    /// A block; `cached` false for whoever walks everything once: then it is read from the disk.
    fn block(&self, child: &Child, cached: bool) -> Result<Block> {
        if cached && let Some(block) = self.cache.get(self.name, child.offset) {
            return Ok(block);
        }
        let end = child.offset.checked_add(u64::from(child.len));
        if end.is_none_or(|end| end > self.info.file_bytes - FOOTER_BYTES) {
            return Err(self.corrupted(child.offset, Damage::Length));
        }
        let bytes =
            self.file.read_at(child.offset, child.len as usize).map_err(|e| Error::io(FileOp::Read, &self.path, e))?;
        let block = Block::open(bytes).map_err(|Malformed| self.corrupted(child.offset, Damage::Checksum))?;
        if cached {
            self.cache.put(self.name, child.offset, &block);
        }
        Ok(block)
    }

    /// The last cell of `key` that does not begin behind `by`.
    fn cell(&self, key: &[u8], by: By) -> Result<Option<Cell>> {
        let mut child = self.root.child;
        let hash = filter::hash(key);
        for level in 0..=self.root.levels {
            let block = self.block(&child, true)?;
            let read = || -> std::result::Result<_, Malformed> {
                if block.is_leaf() {
                    return if level == self.root.levels {
                        block.cell(self.info.first_tx, key, by).map(Err)
                    } else {
                        Err(Malformed)
                    };
                }
                let Some(number) = block.last_restart(self.info.first_tx, key, by)? else { return Ok(Err(None)) };
                let (next, filter) = block.child(number, self.info.first_tx)?;
                let absent = block.has_filters() && !filter::may_contain(filter, hash);
                Ok(if absent { Err(None) } else { Ok(next) })
            };
            match read().map_err(|Malformed| self.corrupted(child.offset, Damage::Field))? {
                Ok(next) => child = next,
                Err(cell) => return Ok(cell),
            }
        }
        Err(self.corrupted(child.offset, Damage::Field))
    }

    pub(super) fn bad_cell(&self) -> Error {
        self.corrupted(self.root.child.offset, Damage::Field)
    }

    /// The newest version of `key` up to `at`, and how many there are here.
    pub(super) fn newest(&self, key: &[u8], at: TxId) -> Result<Option<(Stored, u64)>> {
        match self.cell(key, By::Tx(at))? {
            None => Ok(None),
            Some(cell) => cell.newest(at).map_err(|Malformed| self.bad_cell()),
        }
    }

    /// How many versions of `key` there are up to `at`.
    pub(super) fn count(&self, key: &[u8], at: TxId) -> Result<u64> {
        Ok(self.newest(key, at)?.map_or(0, |(_, count)| count))
    }

    /// Versions `from..from + len` of `key`, counted from 0 from the oldest here, as far as they are from up to `at`.
    pub(super) fn versions(&self, key: &[u8], at: TxId, from: u64, len: usize, out: &mut Vec<Stored>) -> Result<()> {
        let end = out.len().saturating_add(len);
        let mut next = from;
        while out.len() < end {
            let Some(cell) = self.cell(key, By::Count(next))? else { return Ok(()) };
            let versions = cell.versions().map_err(|Malformed| self.bad_cell())?;
            let skip = usize::try_from(next - cell.before).map_err(|_| self.bad_cell())?;
            let rest = versions.get(skip..).unwrap_or(&[]);
            let seen = rest.partition_point(|version| version.tx <= at);
            let take = seen.min(end - out.len());
            out.extend_from_slice(&rest[..take]);
            if take < rest.len() || take == 0 {
                return Ok(());
            }
            next += take as u64;
        }
        Ok(())
    }

    /// Walks over the keys of a range that have a version after `since` and up to `at`; leaves and whole subtrees in which
    /// nothing is newer than `since` are not read.
    pub(super) fn cursor(self: &Arc<Self>, range: KeyRange, since: TxId, at: TxId, desc: bool) -> RunCursor {
        let leaves = LeafWalk::new(Arc::clone(self), range, since, desc, true);
        RunCursor { leaves, at, found: VecDeque::new(), last_key: None, done: false }
    }

    /// Walks over all cells in order; blocks pass by the cache.
    pub(super) fn cells(self: &Arc<Self>) -> CellWalk {
        let leaves = LeafWalk::new(Arc::clone(self), KeyRange::all(), TxId(0), false, false);
        CellWalk { leaves, cells: Vec::new().into_iter() }
    }
}

fn check_header(found: &[u8], database: DatabaseId, info: &RunInfo, path: &Path) -> Result<()> {
    let corrupted = |damage| Error::Corrupted { path: path.into(), segment: None, offset: 0, damage };
    let (checked, crc) = found.split_at(found.len() - 4);
    if checked[..8] != MAGIC {
        return Err(corrupted(Damage::Magic));
    }
    if crc32c::crc32c(checked).to_be_bytes() != crc {
        return Err(corrupted(Damage::Checksum));
    }
    let version = u16::from_be_bytes([checked[8], checked[9]]);
    if version > RUN_VERSION {
        return Err(Error::UnsupportedVersion { path: path.into(), found: version, supported: RUN_VERSION });
    }
    let theirs = DatabaseId(checked[12..28].try_into().expect("16 bytes"));
    if theirs != database {
        return Err(Error::ForeignDatabase { path: path.into(), expected: database, found: theirs });
    }
    if found != encode_header(database, info) {
        return Err(corrupted(Damage::Field));
    }
    Ok(())
}

/// An inner block on the way down, and the child to take next: with `desc` the one before `next`.
#[derive(Debug)]
struct Step {
    block: Block,
    next: usize,
}

/// The leaves that may have keys of a range, in order; subtrees in which nothing is newer than `since` are passed over.
#[derive(Debug)]
struct LeafWalk {
    run: Arc<Run>,
    range: KeyRange,
    since: TxId,
    desc: bool,
    cached: bool,
    path: Vec<Step>,
    /// Not entered yet.
    root: Option<Child>,
    /// Bytes of the blocks that were entered.
    bytes: u64,
}

impl LeafWalk {
    fn new(run: Arc<Run>, range: KeyRange, since: TxId, desc: bool, cached: bool) -> Self {
        let root = (!range.is_empty() && run.root.child.newest_tx > since).then_some(run.root.child);
        Self { run, range, since, desc, cached, path: Vec::new(), root, bytes: 0 }
    }

    fn next_leaf(&mut self) -> Result<Option<Block>> {
        if let Some(root) = self.root.take()
            && let Some(leaf) = self.enter(root)?
        {
            return Ok(Some(leaf));
        }
        while let Some(step) = self.path.last_mut() {
            let number = if self.desc { step.next.checked_sub(1) } else { Some(step.next) };
            let Some(number) = number.filter(|number| *number < step.block.restarts()) else {
                self.path.pop();
                continue;
            };
            step.next = if self.desc { number } else { number + 1 };
            let (child, _) =
                step.block.child(number, self.run.info.first_tx).map_err(|Malformed| self.run.bad_cell())?;
            if child.newest_tx > self.since
                && let Some(leaf) = self.enter(child)?
            {
                return Ok(Some(leaf));
            }
        }
        Ok(None)
    }

    /// Answers a leaf; puts an inner block on the path.
    fn enter(&mut self, child: Child) -> Result<Option<Block>> {
        let block = self.run.block(&child, self.cached)?;
        self.bytes += u64::from(child.len);
        if block.is_leaf() != (self.path.len() == usize::from(self.run.root.levels)) {
            return Err(self.run.corrupted(child.offset, Damage::Field));
        }
        if block.is_leaf() {
            return Ok(Some(block));
        }
        let base_tx = self.run.info.first_tx;
        let next = match (self.desc, self.range.low(), self.range.high()) {
            (false, Bound::Unbounded, _) => Ok(0),
            // The child before may end with the key.
            (false, Bound::Included(low) | Bound::Excluded(low), _) => {
                block.first_restart(base_tx, low, false).map(|first| first.saturating_sub(1))
            }
            (true, _, Bound::Unbounded) => Ok(block.restarts()),
            (true, _, Bound::Included(high)) => block.first_restart(base_tx, high, true),
            (true, _, Bound::Excluded(high)) => block.first_restart(base_tx, high, false),
        };
        let next = next.map_err(|Malformed| self.run.corrupted(child.offset, Damage::Field))?;
        self.path.push(Step { block, next });
        Ok(None)
    }

    /// All cells of a leaf.
    fn cells_of(&self, leaf: &Block) -> Result<Vec<(Bytes, Cell)>> {
        let bad = |Malformed| self.run.bad_cell();
        let mut walk = leaf.cells_from(0, self.run.info.first_tx).map_err(bad)?;
        let mut cells: Vec<(Bytes, Cell)> = Vec::new();
        while walk.advance().map_err(bad)? {
            let key = match cells.last() {
                Some((last, _)) if last[..] == walk.key[..] => last.clone(),
                _ => Bytes::copy_from_slice(&walk.key),
            };
            cells.push((key, walk.cell()));
        }
        Ok(cells)
    }
}

/// See [`Run::cells`].
#[derive(Debug)]
pub(super) struct CellWalk {
    leaves: LeafWalk,
    cells: std::vec::IntoIter<(Bytes, Cell)>,
}

impl CellWalk {
    /// Bytes of the blocks that were read.
    pub(super) fn bytes(&self) -> u64 {
        self.leaves.bytes
    }

    /// The next cell with its key; `None` behind the last.
    pub(super) fn next_cell(&mut self) -> Result<Option<(Bytes, Cell)>> {
        loop {
            if let Some(cell) = self.cells.next() {
                return Ok(Some(cell));
            }
            let Some(leaf) = self.leaves.next_leaf()? else { return Ok(None) };
            self.cells = self.leaves.cells_of(&leaf)?.into_iter();
        }
    }
}

/// See [`Run::cursor`].
#[derive(Debug)]
pub(super) struct RunCursor {
    leaves: LeafWalk,
    at: TxId,
    found: VecDeque<Found>,
    /// The key that was looked at last: its cells may go on in the next leaf.
    last_key: Option<Bytes>,
    done: bool,
}

impl RunCursor {
    /// The next key; `None` behind the last.
    pub(super) fn next_key(&mut self) -> Result<Option<Found>> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Ok(Some(found));
            }
            if self.done {
                return Ok(None);
            }
            match self.leaves.next_leaf()? {
                None => self.done = true,
                Some(leaf) => self.read_leaf(&leaf)?,
            }
        }
    }

    fn read_leaf(&mut self, leaf: &Block) -> Result<()> {
        let cells = self.leaves.cells_of(leaf)?;
        let desc = self.leaves.desc;
        let mut groups: Vec<&[(Bytes, Cell)]> = cells.chunk_by(|a, b| a.0 == b.0).collect();
        if desc {
            groups.reverse();
        }
        let last = groups.len() - 1;
        for (number, group) in groups.into_iter().enumerate() {
            let key = &group[0].0;
            let (below, above) = (self.leaves.range.is_below(key), self.leaves.range.is_above(key));
            if if desc { below } else { above } {
                self.done = true;
                return Ok(());
            }
            if below || above || self.last_key.as_ref() == Some(key) {
                continue;
            }
            let here = group.iter().rev().find(|(_, cell)| cell.first_tx <= self.at);
            // What the walk comes to last may go on in the leaf after it.
            let found = match here {
                Some((_, cell)) if number < last || desc => {
                    cell.newest(self.at).map_err(|Malformed| self.leaves.run.bad_cell())?
                }
                None if number < last => None,
                _ => self.leaves.run.newest(key, self.at)?,
            };
            if let Some((newest, count)) = found.filter(|(newest, _)| newest.tx > self.leaves.since) {
                self.found.push_back(Found { key: key.clone(), newest, count });
            }
            self.last_key = Some(key.clone());
        }
        Ok(())
    }
}
