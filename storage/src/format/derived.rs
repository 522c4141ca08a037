//! Bytes of the derived logs' chunk files, and of the small files written atomically beside them.

use std::path::Path;

use alhambra_ledger::ids::DatabaseId;

use crate::error::{Damage, Error, Result};
use crate::wire::{Put, Reader};

/// Bytes of the header of a chunk file; offset 0 of the log is behind the first one.
pub const CHUNK_HEADER_BYTES: u64 = 64;

/// Bytes of a derived log that one chunk file holds, unless a test asks for fewer. Equal on all replicas.
pub const CHUNK_BYTES_DEFAULT: u64 = 64 << 20;

/// Version of the chunk files that this release writes and reads.
pub const CHUNK_VERSION: u16 = 1;

const CHUNK_MAGIC: [u8; 8] = *b"ALHCHUNK";

/// Bytes of a commit record.
pub const COMMIT_RECORD_BYTES: u64 = 20;

/// Bytes of a digest in the hash tree's log.
pub const DIGEST_BYTES: u64 = 32;

/// Version of the files in a frame of magic, version, length and checksum: checkpoint, vote, marks, manifest, install.
pub const SMALL_FILE_VERSION: u16 = 1;

/// Bytes before the content of a small file.
pub const SMALL_FILE_HEAD_BYTES: usize = 16;

/// Which derived log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// `tx/`
    Tx = 1,
    /// `commit/`
    Commit = 2,
    /// `aht/`
    Aht = 3,
    /// `seal/`
    Seal = 4,
    /// `prune/`
    Prune = 5,
}

/// First bytes of a chunk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The log.
    pub kind: LogKind,
    /// The database.
    pub database: DatabaseId,
    /// Number of the chunk, from 0.
    pub number: u64,
    /// Bytes of the log per chunk.
    pub chunk_bytes: u64,
}

impl ChunkHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CHUNK_HEADER_BYTES as usize);
        out.put_bytes(&CHUNK_MAGIC);
        out.put_u16(CHUNK_VERSION);
        out.put_u8(self.kind as u8);
        out.put_bytes(&[0; 5]);
        out.put_bytes(&self.database.0);
        out.put_u64(self.number);
        out.put_u64(self.chunk_bytes);
        out.put_bytes(&[0; 12]);
        out.put_u32(crc32c::crc32c(&out));
        out
    }

    /// Compares what was found in the file at `path` with this header.
    pub fn check(&self, found: &[u8], path: &Path) -> Result<()> {
        let want = self.encode();
        let corrupted = |damage| Error::Corrupted { path: path.to_path_buf(), segment: None, offset: 0, damage };
        if found.len() != want.len() {
            return Err(corrupted(Damage::Missing));
        }
        if found[..8] != CHUNK_MAGIC {
            return Err(corrupted(Damage::Magic));
        }
        if crc32c::crc32c(&found[..60]).to_be_bytes() != found[60..64] {
            return Err(corrupted(Damage::Checksum));
        }
        let version = u16::from_be_bytes([found[8], found[9]]);
        if version != CHUNK_VERSION {
            return Err(Error::UnsupportedVersion {
                path: path.to_path_buf(),
                found: version,
                supported: CHUNK_VERSION,
            });
        }
        if found[16..32] != want[16..32] {
            let mut id = [0; 16];
            id.copy_from_slice(&found[16..32]);
            let (expected, found) = (self.database, DatabaseId(id));
            return Err(Error::ForeignDatabase { path: path.to_path_buf(), expected, found });
        }
        if found == want { Ok(()) } else { Err(corrupted(Damage::Field)) }
    }
}

/// Name of a chunk file.
pub fn chunk_name(number: u64) -> String {
    format!("{number:010}.log")
}

/// Number of the chunk that a file holds; `None` when it is no chunk file.
pub fn chunk_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (chunk_name(number) == name).then_some(number)
}

/// Puts content of a small file into its frame: magic, version, two zero bytes, length, then content, then checksum.
pub fn seal_small(magic: [u8; 8], content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SMALL_FILE_HEAD_BYTES + content.len() + 4);
    out.put_bytes(&magic);
    out.put_u16(SMALL_FILE_VERSION);
    out.put_u16(0);
    out.put_u32(u32::try_from(content.len()).expect("small files are below 4 GiB"));
    out.put_bytes(content);
    out.put_u32(crc32c::crc32c(&out));
    out
}

/// The content of a small file; anything behind the frame is damage as well.
pub fn open_small<'a>(magic: [u8; 8], bytes: &'a [u8], path: &Path) -> Result<&'a [u8]> {
    let corrupted = |offset, damage| Error::Corrupted { path: path.to_path_buf(), segment: None, offset, damage };
    let mut reader = Reader::new(bytes);
    let mut head = || {
        let found = (reader.array::<8>()?, reader.u16()?, reader.u16()?, reader.u32()?);
        Ok::<_, crate::wire::Malformed>(found)
    };
    let (found_magic, version, zero, len) = head().map_err(|_| corrupted(0, Damage::Missing))?;
    if found_magic != magic {
        return Err(corrupted(0, Damage::Magic));
    }
    let len = len as usize;
    if bytes.len() != SMALL_FILE_HEAD_BYTES + len + 4 {
        return Err(corrupted(12, Damage::Length));
    }
    let (checked, crc) = bytes.split_at(SMALL_FILE_HEAD_BYTES + len);
    if crc32c::crc32c(checked).to_be_bytes() != crc {
        return Err(corrupted(0, Damage::Checksum));
    }
    if version != SMALL_FILE_VERSION {
        return Err(Error::UnsupportedVersion {
            path: path.to_path_buf(),
            found: version,
            supported: SMALL_FILE_VERSION,
        });
    }
    if zero != 0 {
        return Err(corrupted(10, Damage::Field));
    }
    Ok(&checked[SMALL_FILE_HEAD_BYTES..])
}
