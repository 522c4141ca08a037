//! Where an interrupted check goes on: a small file outside the database's folder, written after each segment.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::DatabaseId;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, FileOp, Result};
use crate::smallfile;
use crate::vfs::Vfs;
use crate::wire::{Malformed, Put, Reader};

const MAGIC: [u8; 8] = *b"ALHFSCK\0";

/// How far a check came: whole segments, and the state behind the last of their frames.
#[derive(Debug)]
pub(crate) struct Position {
    /// Generations and digests of the segments done.
    pub digests: Vec<(u32, Digest)>,
    /// State and sizes of the derived logs there, which were found equal.
    pub checkpoint: Checkpoint,
}

/// The file.
#[derive(Debug)]
pub(super) struct PositionFile {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
}

impl PositionFile {
    pub(super) fn new(vfs: &Arc<dyn Vfs>, path: &Path) -> Self {
        Self { vfs: Arc::clone(vfs), path: path.to_path_buf() }
    }

    /// The position kept for this database; `None` when there is none that can be used.
    pub(super) fn read(&self, database: DatabaseId) -> Result<Option<Position>> {
        let content = match smallfile::read(&*self.vfs, &self.path, MAGIC) {
            Ok(Some(content)) => content,
            // A check from the start costs time, nothing else.
            Ok(None) | Err(Error::Corrupted { .. } | Error::UnsupportedVersion { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut reader = Reader::new(&content);
        let position = decode(&mut reader).ok();
        Ok(position.filter(|position| position.checkpoint.database == database))
    }

    pub(super) fn write(&self, database: DatabaseId, digests: &[(u32, Digest)], checkpoint: &[u8]) -> Result<()> {
        debug_assert_eq!(checkpoint[..16], database.0);
        smallfile::write_atomic(&*self.vfs, &self.path, MAGIC, &encode(digests, checkpoint))
    }

    pub(super) fn remove(&self) -> Result<()> {
        match self.vfs.remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(FileOp::Remove, &self.path, e)),
            _ => Ok(()),
        }
    }
}

pub(crate) fn encode(digests: &[(u32, Digest)], checkpoint: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_varint(digests.len() as u64);
    for (generation, digest) in digests {
        out.put_u32(*generation);
        out.put_bytes(&digest.0);
    }
    out.put_bytes(checkpoint);
    out
}

pub(crate) fn decode(reader: &mut Reader<'_>) -> std::result::Result<Position, Malformed> {
    let count = reader.count(36)?;
    let digests = (0..count).map(|_| Ok((reader.u32()?, Digest(reader.array()?))));
    let digests = digests.collect::<std::result::Result<_, Malformed>>()?;
    let checkpoint = Checkpoint::decode(reader.take(reader.left())?)?;
    Ok(Position { digests, checkpoint })
}
