//! Transactions that were made elsewhere: their headers travel with them and are taken over as they are, or not at all.

use alhambra_ledger::Digest;
use alhambra_ledger::export::{ExportedTx, ExportedValue};
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use super::{ProposalEntry, TxProposal, ValueForm};
use crate::wire::{Malformed, Put, Reader};

/// The fields of a header that the rest of a proposal does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignHeader {
    /// The id that it has, and must become here.
    pub id: TxId,
    /// Unix seconds; kept whatever the settings say.
    pub ts: i64,
    /// 0 or 1; kept whatever the settings say.
    pub version: u16,
    /// Root over the entries.
    pub eh: Digest,
    /// Leaves of the main tree that `bl_root` covers.
    pub bl_tx_id: TxId,
    /// Root of the main tree of that size.
    pub bl_root: Digest,
    /// Alh of the transaction before.
    pub prev_alh: Digest,
}

impl ForeignHeader {
    /// The whole header, with what the proposal has of it.
    pub(crate) fn with(&self, metadata: TxMetadata, nentries: u32) -> TxHeader {
        let Self { id, ts, version, eh, bl_tx_id, bl_root, prev_alh } = self.clone();
        TxHeader { id, ts, version, metadata, nentries, eh, bl_tx_id, bl_root, prev_alh }
    }

    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id.0);
        out.put_i64(self.ts);
        out.put_u16(self.version);
        out.put_bytes(&self.eh.0);
        out.put_u64(self.bl_tx_id.0);
        out.put_bytes(&self.bl_root.0);
        out.put_bytes(&self.prev_alh.0);
    }

    /// Says nothing about the fields: whether they can be those of a header is for apply to judge, like all content.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: TxId(reader.u64()?),
            ts: reader.i64()?,
            version: reader.u16()?,
            eh: Digest(reader.array()?),
            bl_tx_id: TxId(reader.u64()?),
            bl_root: Digest(reader.array()?),
            prev_alh: Digest(reader.array()?),
        })
    }
}

impl TxProposal {
    /// The proposal to take over an exported transaction, header and all. Where values are gone their hashes stand for them.
    ///
    /// # Errors
    /// When the metadata has no bytes, which that of a decoded transaction always has.
    pub fn imported(tx: ExportedTx) -> Result<Self, alhambra_ledger::error::FormatError> {
        let ExportedTx { header, entries, .. } = tx;
        let entries = (entries.into_iter())
            .map(|entry| {
                let (value, form) = match entry.value {
                    ExportedValue::Present(value) => (Bytes::from(value), ValueForm::Plain),
                    ExportedValue::Gone(hash) => (Bytes::copy_from_slice(&hash.0), ValueForm::Gone),
                };
                ProposalEntry { key: entry.key.into(), metadata: entry.metadata.to_bytes().into(), value, form }
            })
            .collect();
        let TxHeader { id, ts, version, metadata, nentries: _, eh, bl_tx_id, bl_root, prev_alh } = header;
        Ok(Self {
            metadata: metadata.to_bytes()?.into(),
            entries,
            foreign: Some(Box::new(ForeignHeader { id, ts, version, eh, bl_tx_id, bl_root, prev_alh })),
            ..Self::default()
        })
    }
}
