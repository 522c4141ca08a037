//! Writes a run: cells in order, blocks as they fill up, one pass, memory for one open block per level.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, TxId};

use super::block::{BlockWriter, CELL_VERSIONS_MAX, Child, filter};
use super::run::{Root, RunInfo, encode_footer, encode_header, file_name};
use super::version::Stored;
use crate::error::{Error, FileOp, Result};
use crate::limits::{INDEX_BLOCK_BYTES, INDEX_INNER_BLOCK_BYTES, INDEX_SYNC_BYTES};
use crate::vfs::{File, OpenMode, Vfs};

/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// An inner block that is filling up.
#[derive(Debug)]
struct Level {
    block: BlockWriter,
    first: Option<First>,
    newest_tx: TxId,
}

/// The first cell below a block.
#[derive(Clone, Debug)]
struct First {
    key: Vec<u8>,
    tx: TxId,
    before: u64,
}

/// A run that is being written. Dropped unfinished, it takes its file with it, as far as it can: the disk may be full of such
/// files. What a crash leaves behind is removed at the next open.
#[derive(Debug)]
pub(super) struct RunWriter {
    vfs: Arc<dyn Vfs>,
    finished: bool,
    path: PathBuf,
    file: Box<dyn File>,
    buffer: Vec<u8>,
    written: u64,
    synced: u64,
    info: RunInfo,
    leaf: BlockWriter,
    leaf_first: Option<First>,
    leaf_newest: TxId,
    hashes: Vec<u64>,
    levels: Vec<Level>,
    /// The key that is being added, its versions that are not in a cell yet, and how many are.
    key: Vec<u8>,
    waiting: Vec<Stored>,
    before: u64,
}

impl RunWriter {
    pub(super) fn create(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        database: DatabaseId,
        number: u64,
        first_tx: TxId,
        last_tx: TxId,
    ) -> Result<Self> {
        let path = dir.join(file_name(number));
        let file = vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
        let info = RunInfo { number, first_tx, last_tx, file_bytes: 0, keys: 0, versions: 0 };
        let writer = Self {
            vfs: Arc::clone(vfs),
            finished: false,
            path,
            file,
            buffer: encode_header(database, &info),
            written: 0,
            synced: 0,
            info,
            leaf: BlockWriter::leaf(),
            leaf_first: None,
            leaf_newest: TxId(0),
            hashes: Vec::new(),
            levels: Vec::new(),
            key: Vec::new(),
            waiting: Vec::new(),
            before: 0,
        };
        writer.file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, &writer.path, e))?;
        Ok(writer)
    }

    /// Adds versions of a key, oldest first. Keys come in order; versions of one key may come in several calls.
    pub(super) fn add(&mut self, key: &[u8], versions: &[Stored]) -> Result<()> {
        if versions.is_empty() {
            return Ok(());
        }
        if self.key != key || self.info.keys == 0 {
            debug_assert!(self.info.keys == 0 || self.key[..] < *key, "keys come in order");
            self.end_key()?;
            self.key.clear();
            self.key.extend_from_slice(key);
            self.before = 0;
            self.info.keys += 1;
        }
        self.info.versions += versions.len() as u64;
        for version in versions {
            if self.waiting.len() == CELL_VERSIONS_MAX {
                self.end_cell()?;
            }
            self.waiting.push(*version);
        }
        Ok(())
    }

    fn end_key(&mut self) -> Result<()> {
        if self.waiting.is_empty() { Ok(()) } else { self.end_cell() }
    }

    fn end_cell(&mut self) -> Result<()> {
        if self.leaf.len() >= INDEX_BLOCK_BYTES {
            self.end_leaf()?;
        }
        let (first, last) = (self.waiting[0].tx, self.waiting[self.waiting.len() - 1].tx);
        if self.leaf_first.is_none() {
            self.leaf_first = Some(First { key: self.key.clone(), tx: first, before: self.before });
        }
        let hash = filter::hash(&self.key);
        if self.hashes.last() != Some(&hash) {
            self.hashes.push(hash);
        }
        self.leaf.put_cell(self.info.first_tx, &self.key, self.before, &self.waiting);
        self.leaf_newest = self.leaf_newest.max(last);
        self.before += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    fn put_block(&mut self, bytes: &[u8], newest_tx: TxId) -> Result<Child> {
        let offset = self.written + self.buffer.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES {
            self.write_out()?;
        }
        Ok(Child { offset, len: u32::try_from(bytes.len()).expect("blocks are small"), newest_tx })
    }

    fn write_out(&mut self) -> Result<()> {
        self.file.write_at(self.written, &self.buffer).map_err(|e| Error::io(FileOp::Write, &self.path, e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        if self.written - self.synced >= INDEX_SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(FileOp::Sync, &self.path, e))?;
        self.synced = self.written;
        Ok(())
    }

    fn end_leaf(&mut self) -> Result<()> {
        let Some(first) = self.leaf_first.take() else { return Ok(()) };
        let filter = filter::build(&self.hashes);
        self.hashes.clear();
        let bytes = self.leaf.finish();
        let newest = std::mem::replace(&mut self.leaf_newest, TxId(0));
        let child = self.put_block(&bytes, newest)?;
        self.put_child(0, &first, child, Some(&filter))
    }

    fn put_child(&mut self, level: usize, first: &First, child: Child, filter: Option<&[u8]>) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Level { block: BlockWriter::inner(level == 0), first: None, newest_tx: TxId(0) });
        }
        if self.levels[level].block.len() >= INDEX_INNER_BLOCK_BYTES {
            self.end_inner(level)?;
        }
        let base = self.info.first_tx;
        let inner = &mut self.levels[level];
        inner.first.get_or_insert_with(|| first.clone());
        inner.block.put_child(base, &first.key, first.tx, first.before, child, filter);
        inner.newest_tx = inner.newest_tx.max(child.newest_tx);
        Ok(())
    }

    fn end_inner(&mut self, level: usize) -> Result<()> {
        let inner = &mut self.levels[level];
        let Some(first) = inner.first.take() else { return Ok(()) };
        let bytes = inner.block.finish();
        let newest = std::mem::replace(&mut inner.newest_tx, TxId(0));
        let child = self.put_block(&bytes, newest)?;
        self.put_child(level + 1, &first, child, None)
    }

    /// Bytes that the run takes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Ends the file and makes it durable; its name is not yet. There is no run without keys.
    pub(super) fn finish(mut self) -> Result<RunInfo> {
        assert!(self.info.keys > 0, "an in-memory part is written when it is full");
        self.end_key()?;
        // The topmost block so far, which is the root when nothing above it has begun.
        let first = self.leaf_first.take().map(|first| (first, std::mem::take(&mut self.hashes)));
        let mut root = None;
        if let Some((first, hashes)) = first {
            let bytes = self.leaf.finish();
            let child = self.put_block(&bytes, self.leaf_newest)?;
            if self.levels.is_empty() {
                root = Some(Root { child, levels: 0 });
            } else {
                self.put_child(0, &first, child, Some(&filter::build(&hashes)))?;
            }
        }
        let mut level = 0;
        while root.is_none() {
            let top = level + 1 == self.levels.len();
            let inner = &mut self.levels[level];
            let first = inner.first.take().expect("a block that ends is followed by the entry that ended it");
            let bytes = inner.block.finish();
            let newest = inner.newest_tx;
            let child = self.put_block(&bytes, newest)?;
            level += 1;
            if top {
                root = Some(Root { child, levels: u8::try_from(level).expect("few levels hold everything") });
            } else {
                self.put_child(level, &first, child, None)?;
            }
        }
        let root = root.expect("found above");
        let footer = encode_footer(&root, self.info.keys, self.info.versions);
        self.buffer.extend_from_slice(&footer);
        self.write_out()?;
        if self.synced < self.written {
            self.sync()?;
        }
        self.info.file_bytes = self.written;
        self.finished = true;
        Ok(self.info)
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.vfs.remove_file(&self.path);
        }
    }
}
