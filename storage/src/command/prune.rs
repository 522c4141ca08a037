//! The order to forget values, and its bytes. Keys, hashes, headers and proofs stay.

use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use super::{ProposalEntry, RequestId, TxProposal};
use crate::wire::{Malformed, Put, Reader};

const BEFORE: u8 = 1;
const VERSIONS: u8 = 2;
const VALUE: u8 = 3;

/// The `systemdb` transaction that ordered a prune: who did it and when can be proven from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Citation {
    /// Its id in `systemdb`.
    pub tx: TxId,
    /// Its Alh.
    pub alh: [u8; 32],
}

/// Which values go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PruneTarget {
    /// Retention: those of all transactions before `tx`, rejected proposals included. Writes the truncation marker, a
    /// transaction whose metadata says `truncated up to tx`.
    Before {
        /// The oldest transaction that keeps its values.
        tx: TxId,
        /// Unix seconds, stamped as for a batch.
        ts: i64,
        /// The marker: see [`PruneTarget::marker`].
        marker: TxProposal,
    },
    /// History limit: of each key with this prefix those of all versions but the `keep` newest, as they are now.
    /// Deletions count as versions; entries that are not indexed have none.
    Versions {
        /// Of stored keys; empty for all.
        prefix: Bytes,
        /// At least 1.
        keep: u32,
    },
    /// Erasure of one value.
    Value {
        /// Its transaction.
        tx: TxId,
        /// 0-based entry of it.
        entry: u32,
    },
}

/// Replicated order to forget values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prune {
    /// Set in a cluster; the embedded library may cite nobody.
    pub order: Option<Citation>,
    /// What goes.
    pub target: PruneTarget,
}

impl PruneTarget {
    /// The marker transaction of a truncation before `tx`: what must outlive the truncation (catalogs) as `entries`.
    pub fn marker(request: Option<RequestId>, tx: TxId, entries: Vec<ProposalEntry>) -> TxProposal {
        let mut metadata = vec![0];
        metadata.put_u64(tx.0);
        TxProposal { request, metadata: metadata.into(), entries, ..TxProposal::default() }
    }
}

/// A decoded target; the marker is read as a batch of one proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocatedTarget<'a> {
    /// See [`PruneTarget::Before`].
    Before {
        /// The oldest transaction that keeps its values.
        tx: TxId,
        /// The marker.
        batch: super::LocatedBatch<'a>,
    },
    /// See [`PruneTarget::Versions`].
    Versions {
        /// Of stored keys.
        prefix: &'a [u8],
        /// At least 1.
        keep: u32,
    },
    /// See [`PruneTarget::Value`].
    Value {
        /// Its transaction.
        tx: TxId,
        /// Entry of it.
        entry: u32,
    },
}

impl Citation {
    pub(crate) fn encode_optional(order: Option<&Self>, out: &mut Vec<u8>) {
        out.put_u8(u8::from(order.is_some()));
        if let Some(order) = order {
            out.put_u64(order.tx.0);
            out.put_bytes(&order.alh);
        }
    }

    pub(crate) fn read_optional(reader: &mut Reader<'_>) -> Result<Option<Self>, Malformed> {
        match reader.u8()? {
            0 => Ok(None),
            1 => Ok(Some(Self { tx: TxId(reader.u64()?), alh: reader.array()? })),
            _ => Err(Malformed),
        }
    }
}

impl Prune {
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        Citation::encode_optional(self.order.as_ref(), out);
        match &self.target {
            PruneTarget::Before { tx, ts, marker } => {
                out.put_u8(BEFORE);
                out.put_u64(tx.0);
                super::codec::put_batch(*ts, std::slice::from_ref(marker), out);
            }
            PruneTarget::Versions { prefix, keep } => {
                out.put_u8(VERSIONS);
                out.put_prefixed(prefix);
                out.put_u32(*keep);
            }
            PruneTarget::Value { tx, entry } => {
                out.put_u8(VALUE);
                out.put_u64(tx.0);
                out.put_u32(*entry);
            }
        }
    }
}

pub(super) fn read<'a>(reader: &mut Reader<'a>) -> Result<(Option<Citation>, LocatedTarget<'a>), Malformed> {
    let order = Citation::read_optional(reader)?;
    let target = match reader.u8()? {
        BEFORE => {
            let tx = TxId(reader.u64()?);
            let batch = super::codec::read_batch(reader)?;
            if batch.proposals.len() != 1 {
                return Err(Malformed);
            }
            LocatedTarget::Before { tx, batch }
        }
        VERSIONS => {
            let prefix = reader.prefixed()?;
            let keep = reader.u32()?;
            if keep == 0 {
                return Err(Malformed);
            }
            LocatedTarget::Versions { prefix, keep }
        }
        VALUE => LocatedTarget::Value { tx: TxId(reader.u64()?), entry: reader.u32()? },
        _ => return Err(Malformed),
    };
    Ok((order, target))
}
