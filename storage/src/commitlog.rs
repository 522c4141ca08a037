//! `commit/`: a fixed-size record per transaction, that of transaction n at n - 1: where its tx record stands and which
//! log entry it came with `S2`.

use alhambra_ledger::ids::{LogIndex, TxId};

use crate::chunklog::ChunkLog;
use crate::error::Result;
use crate::format::derived::COMMIT_RECORD_BYTES;
use crate::wire::Put;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitRecord {
    /// Of the tx record in the tx log.
    pub offset: u64,
    /// Of the tx record, bytes.
    pub size: u32,
    /// Log entry that carried the proposal.
    pub log_index: LogIndex,
}

impl CommitRecord {
    pub(crate) fn encode(&self) -> [u8; COMMIT_RECORD_BYTES as usize] {
        let mut out = Vec::with_capacity(COMMIT_RECORD_BYTES as usize);
        out.put_u64(self.offset);
        out.put_u32(self.size);
        out.put_u64(self.log_index.0);
        out.try_into().expect("8 + 4 + 8 bytes")
    }

    /// The record of transaction `tx`, which must exist.
    pub(crate) fn read(log: &ChunkLog, tx: TxId) -> Result<Self> {
        let mut bytes = [0; COMMIT_RECORD_BYTES as usize];
        log.read_into((tx.0 - 1) * COMMIT_RECORD_BYTES, &mut bytes)?;
        Ok(Self::decode(&bytes))
    }

    pub(crate) fn decode(bytes: &[u8; COMMIT_RECORD_BYTES as usize]) -> Self {
        let (offset, rest) = bytes.split_at(8);
        let (size, index) = rest.split_at(4);
        Self {
            offset: u64::from_be_bytes(offset.try_into().expect("8 bytes")),
            size: u32::from_be_bytes(size.try_into().expect("4 bytes")),
            log_index: LogIndex(u64::from_be_bytes(index.try_into().expect("8 bytes"))),
        }
    }
}
