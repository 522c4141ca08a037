//! `index/manifest`: which runs make up the index, written atomically. What it does not name is not part of it.

use std::path::Path;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{DatabaseId, TxId};

use super::run::RunInfo;
use crate::error::{Damage, Error, Result};
use crate::format::derived::SMALL_FILE_HEAD_BYTES;
use crate::smallfile;
use crate::vfs::Vfs;
use crate::wire::{Malformed, Put, Reader};

pub(crate) const MANIFEST_MAGIC: [u8; 8] = *b"ALHINMAN";
pub(super) const MANIFEST_NAME: &str = "manifest";

/// A run takes at least so many bytes in a manifest.
const RUN_BYTES: usize = 48;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Number of the next run; numbers are never used again.
    pub next_number: u64,
    /// Alh of the last transaction of the newest run, so that an index of another history is noticed.
    pub alh: Digest,
    /// Oldest transactions first; each begins where the one before ends.
    pub runs: Vec<RunInfo>,
}

impl Manifest {
    pub(super) fn last_tx(&self) -> TxId {
        self.runs.last().map_or(TxId(0), |run| run.last_tx)
    }

    pub(super) fn encode(&self, database: DatabaseId) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.runs.len() * RUN_BYTES);
        out.put_bytes(&database.0);
        out.put_u64(self.next_number);
        out.put_bytes(&self.alh.0);
        out.put_varint(self.runs.len() as u64);
        for run in &self.runs {
            for field in [run.number, run.first_tx.0, run.last_tx.0, run.file_bytes, run.keys, run.versions] {
                out.put_u64(field);
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> std::result::Result<(DatabaseId, Self), Malformed> {
        let mut reader = Reader::new(bytes);
        let database = DatabaseId(reader.array()?);
        let next_number = reader.u64()?;
        let alh = Digest(reader.array()?);
        let mut runs: Vec<RunInfo> = Vec::new();
        for _ in 0..reader.count(RUN_BYTES)? {
            let (number, first_tx, last_tx) = (reader.u64()?, TxId(reader.u64()?), TxId(reader.u64()?));
            let (file_bytes, keys, versions) = (reader.u64()?, reader.u64()?, reader.u64()?);
            let begins = runs.last().map_or(1, |run| run.last_tx.0.saturating_add(1));
            if first_tx.0 != begins || last_tx < first_tx || number >= next_number {
                return Err(Malformed);
            }
            runs.push(RunInfo { number, first_tx, last_tx, file_bytes, keys, versions });
        }
        reader.finish()?;
        Ok((database, Self { next_number, alh, runs }))
    }

    /// The manifest in `dir`; `None` when there is none.
    pub(super) fn read(vfs: &dyn Vfs, dir: &Path, expected: DatabaseId) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST_NAME);
        let Some(bytes) = smallfile::read(vfs, &path, MANIFEST_MAGIC)? else { return Ok(None) };
        match Self::decode(&bytes) {
            Ok((found, manifest)) if found == expected => Ok(Some(manifest)),
            Ok((found, _)) => Err(Error::ForeignDatabase { path, expected, found }),
            Err(Malformed) => Err(Error::Corrupted {
                path,
                segment: None,
                offset: SMALL_FILE_HEAD_BYTES as u64,
                damage: Damage::Field,
            }),
        }
    }

    pub(super) fn write(&self, vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<()> {
        smallfile::write_atomic(vfs, &dir.join(MANIFEST_NAME), MANIFEST_MAGIC, &self.encode(database))
    }
}
