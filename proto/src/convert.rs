//! The only conversions between protobuf messages and the ledger's own types.
//!
//! To the wire nothing can fail, and what SDKs depend on is kept here: digests are always 32 bytes, a transaction's
//! metadata is always set (empty means none), an entry's metadata is unset when it has no attribute, a linear advance
//! proof is unset when it is not needed. From the wire everything is doubted: absent messages, digests of another
//! length and numbers out of range are [`ConvertError`]s that name the field. Whether the content is true is not decided
//! here but by `alhambra_ledger::proof`.

use alhambra_ledger::digest::{Digest, sha256};
use alhambra_ledger::entry::{KvMetadata, entry_digest};
use alhambra_ledger::error::FormatError;
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::htree::InclusionProof;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{DualProof, DualProofV2, LinearAdvanceProof, LinearProof};
use alhambra_ledger::state::TrustedState;
use bytes::{Bytes, BytesMut};

use crate::schema;

/// Why a message is not what its sender must send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A part that every sender must set is absent.
    #[error("{field} is missing")]
    Missing {
        /// The field, as the protocol names it.
        field: &'static str,
    },
    /// A digest that does not have 32 bytes.
    #[error("{field} has {len} bytes instead of 32")]
    DigestLength {
        /// The field, as the protocol names it.
        field: &'static str,
        /// Its length, bytes.
        len: usize,
    },
    /// A number that the field's meaning does not allow.
    #[error("{field} is {value}, which is out of range")]
    OutOfRange {
        /// The field, as the protocol names it.
        field: &'static str,
        /// The number found.
        value: i64,
    },
}

/// An entry of a transaction as it travels: key and value in stored form, with all prefix bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxEntry {
    /// The stored key.
    pub key: Bytes,
    /// The entry's attributes.
    pub metadata: KvMetadata,
    /// SHA-256 of the stored value.
    pub value_hash: Digest,
    /// Length of the stored value, bytes.
    pub value_len: u32,
    /// The stored value; empty where only digests were asked for.
    pub value: Bytes,
}

impl TxEntry {
    /// The digest that stands for this entry in the tree of its transaction.
    pub fn digest(&self, version: u16) -> Result<Digest, FormatError> {
        entry_digest(version, &self.key, &self.metadata.to_bytes(), &self.value_hash)
    }

    /// True when a value is there and hashes to [`Self::value_hash`].
    pub fn value_matches(&self) -> bool {
        sha256(&self.value) == self.value_hash
    }
}

/// A transaction as it travels: header and entries in stored order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tx {
    /// The header.
    pub header: TxHeader,
    /// All entries, or those that were asked for.
    pub entries: Vec<TxEntry>,
}

/// A transaction with the proof that ties it to an earlier or later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiableTx {
    /// The transaction.
    pub tx: Tx,
    /// From the smaller to the larger of the two transactions.
    pub dual_proof: DualProof,
    /// Signature over the state of the proof's target, where the server has a key.
    pub signature: Option<schema::Signature>,
}

fn to_bytes(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

/// Digests with one allocation for all. One of its own for each would be two: `Bytes` that own a vector make another when they are cloned,
/// and encoding clones them.
fn pieces<'a>(digests: impl ExactSizeIterator<Item = &'a Digest>) -> impl Iterator<Item = Bytes> {
    let count = digests.len();
    let mut all = BytesMut::with_capacity(count * size_of::<Digest>());
    digests.for_each(|digest| all.extend_from_slice(digest.as_bytes()));
    let mut all = all.freeze();
    (0..count).map(move |_| all.split_to(size_of::<Digest>()))
}

fn to_terms(digests: &[Digest]) -> Vec<Bytes> {
    pieces(digests.iter()).collect()
}

/// Reads a 32-byte digest; `field` names it in the error.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, ConvertError> {
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| ConvertError::DigestLength { field, len: bytes.len() })?;
    Ok(Digest(bytes))
}

fn digests(field: &'static str, terms: &[Bytes]) -> Result<Vec<Digest>, ConvertError> {
    terms.iter().map(|term| digest(field, term)).collect()
}

fn required<'a, T>(field: &'static str, part: &'a Option<T>) -> Result<&'a T, ConvertError> {
    part.as_ref().ok_or(ConvertError::Missing { field })
}

fn in_range<T: TryFrom<i32>>(field: &'static str, value: i32) -> Result<T, ConvertError> {
    T::try_from(value).map_err(|_| ConvertError::OutOfRange { field, value: value.into() })
}

/// Counts that the wire carries as int32 are bounded far below it (entries per transaction, bytes per value); what is not
/// is a broken invariant of the sender.
fn to_i32(count: u32) -> i32 {
    i32::try_from(count).expect("a count of entries or value bytes is far below 2^31")
}

/// The wire form of an entry's metadata; `None` when there is no attribute, because SDKs hash a set message.
pub fn kv_metadata(metadata: &KvMetadata) -> Option<schema::KvMetadata> {
    (!metadata.is_empty()).then(|| schema::KvMetadata {
        deleted: metadata.deleted,
        expiration: metadata.expires_at.map(|expires_at| schema::Expiration { expires_at }),
        non_indexable: metadata.non_indexable,
    })
}

/// An entry's metadata; absent and empty both mean no attribute.
pub fn kv_metadata_from(metadata: Option<&schema::KvMetadata>) -> KvMetadata {
    metadata.map_or_else(KvMetadata::default, |metadata| KvMetadata {
        deleted: metadata.deleted,
        expires_at: metadata.expiration.map(|expiration| expiration.expires_at),
        non_indexable: metadata.non_indexable,
    })
}

/// A transaction's metadata; absent and empty both mean none.
pub fn tx_metadata_from(metadata: Option<&schema::TxMetadata>) -> TxMetadata {
    metadata.map_or_else(TxMetadata::default, |metadata| TxMetadata {
        truncated_up_to: (metadata.truncated_tx_id != 0).then_some(TxId(metadata.truncated_tx_id)),
        extra: metadata.extra.to_vec(),
    })
}

impl From<&TxMetadata> for schema::TxMetadata {
    fn from(metadata: &TxMetadata) -> Self {
        Self {
            truncated_tx_id: metadata.truncated_up_to.map_or(0, TxId::get),
            extra: Bytes::copy_from_slice(&metadata.extra),
        }
    }
}

impl From<&TxHeader> for schema::TxHeader {
    fn from(header: &TxHeader) -> Self {
        let mut digests = pieces([&header.prev_alh, &header.eh, &header.bl_root].into_iter());
        let mut next = || digests.next().expect("three of three");
        let (prev_alh, e_h, bl_root) = (next(), next(), next());
        Self {
            id: header.id.get(),
            prev_alh,
            ts: header.ts,
            nentries: to_i32(header.nentries),
            e_h,
            bl_tx_id: header.bl_tx_id.get(),
            bl_root,
            version: header.version.into(),
            metadata: Some((&header.metadata).into()),
        }
    }
}

impl TryFrom<&schema::TxHeader> for TxHeader {
    type Error = ConvertError;

    fn try_from(header: &schema::TxHeader) -> Result<Self, ConvertError> {
        Ok(Self {
            id: TxId(header.id),
            ts: header.ts,
            version: in_range("TxHeader.version", header.version)?,
            metadata: tx_metadata_from(header.metadata.as_ref()),
            nentries: in_range("TxHeader.nentries", header.nentries)?,
            eh: digest("TxHeader.eH", &header.e_h)?,
            bl_tx_id: TxId(header.bl_tx_id),
            bl_root: digest("TxHeader.blRoot", &header.bl_root)?,
            prev_alh: digest("TxHeader.prevAlh", &header.prev_alh)?,
        })
    }
}

impl From<&TxEntry> for schema::TxEntry {
    fn from(entry: &TxEntry) -> Self {
        Self {
            key: entry.key.clone(),
            h_value: to_bytes(&entry.value_hash),
            v_len: to_i32(entry.value_len),
            metadata: kv_metadata(&entry.metadata),
            value: entry.value.clone(),
        }
    }
}

impl TryFrom<&schema::TxEntry> for TxEntry {
    type Error = ConvertError;

    fn try_from(entry: &schema::TxEntry) -> Result<Self, ConvertError> {
        Ok(Self {
            key: entry.key.clone(),
            metadata: kv_metadata_from(entry.metadata.as_ref()),
            value_hash: digest("TxEntry.hValue", &entry.h_value)?,
            value_len: in_range("TxEntry.vLen", entry.v_len)?,
            value: entry.value.clone(),
        })
    }
}

/// Only header and raw entries: entries resolved on request are views for readers, not part of what is proven.
impl From<&Tx> for schema::Tx {
    fn from(tx: &Tx) -> Self {
        Self {
            header: Some((&tx.header).into()),
            entries: tx.entries.iter().map(Into::into).collect(),
            kv_entries: Vec::new(),
            z_entries: Vec::new(),
        }
    }
}

impl TryFrom<&schema::Tx> for Tx {
    type Error = ConvertError;

    fn try_from(tx: &schema::Tx) -> Result<Self, ConvertError> {
        Ok(Self {
            header: required("Tx.header", &tx.header)?.try_into()?,
            entries: tx.entries.iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&InclusionProof> for schema::InclusionProof {
    fn from(proof: &InclusionProof) -> Self {
        Self { leaf: to_i32(proof.leaf), width: to_i32(proof.width), terms: to_terms(&proof.terms) }
    }
}

impl TryFrom<&schema::InclusionProof> for InclusionProof {
    type Error = ConvertError;

    fn try_from(proof: &schema::InclusionProof) -> Result<Self, ConvertError> {
        Ok(Self {
            leaf: in_range("InclusionProof.leaf", proof.leaf)?,
            width: in_range("InclusionProof.width", proof.width)?,
            terms: digests("InclusionProof.terms", &proof.terms)?,
        })
    }
}

impl From<&LinearProof> for schema::LinearProof {
    fn from(proof: &LinearProof) -> Self {
        Self { source_tx_id: proof.source.get(), target_tx_id: proof.target.get(), terms: to_terms(&proof.terms) }
    }
}

impl TryFrom<&schema::LinearProof> for LinearProof {
    type Error = ConvertError;

    fn try_from(proof: &schema::LinearProof) -> Result<Self, ConvertError> {
        Ok(Self {
            source: TxId(proof.source_tx_id),
            target: TxId(proof.target_tx_id),
            terms: digests("LinearProof.terms", &proof.terms)?,
        })
    }
}

/// Of the inclusion proofs only the terms are filled: places and sizes follow from the transactions.
impl From<&LinearAdvanceProof> for schema::LinearAdvanceProof {
    fn from(proof: &LinearAdvanceProof) -> Self {
        let inclusion = |terms: &Vec<Digest>| schema::InclusionProof { leaf: 0, width: 0, terms: to_terms(terms) };
        Self {
            linear_proof_terms: to_terms(&proof.linear_terms),
            inclusion_proofs: proof.inclusions.iter().map(inclusion).collect(),
        }
    }
}

impl TryFrom<&schema::LinearAdvanceProof> for LinearAdvanceProof {
    type Error = ConvertError;

    fn try_from(proof: &schema::LinearAdvanceProof) -> Result<Self, ConvertError> {
        let inclusion =
            |inclusion: &schema::InclusionProof| digests("LinearAdvanceProof.inclusionProofs.terms", &inclusion.terms);
        Ok(Self {
            linear_terms: digests("LinearAdvanceProof.linearProofTerms", &proof.linear_proof_terms)?,
            inclusions: proof.inclusion_proofs.iter().map(inclusion).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&DualProof> for schema::DualProof {
    fn from(proof: &DualProof) -> Self {
        Self {
            source_tx_header: Some((&proof.source).into()),
            target_tx_header: Some((&proof.target).into()),
            inclusion_proof: to_terms(&proof.inclusion),
            consistency_proof: to_terms(&proof.consistency),
            target_bl_tx_alh: to_bytes(&proof.target_bl_tx_alh),
            last_inclusion_proof: to_terms(&proof.last_inclusion),
            linear_proof: Some((&proof.linear).into()),
            linear_advance_proof: proof.linear_advance.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<&schema::DualProof> for DualProof {
    type Error = ConvertError;

    fn try_from(proof: &schema::DualProof) -> Result<Self, ConvertError> {
        Ok(Self {
            source: required("DualProof.sourceTxHeader", &proof.source_tx_header)?.try_into()?,
            target: required("DualProof.targetTxHeader", &proof.target_tx_header)?.try_into()?,
            inclusion: digests("DualProof.inclusionProof", &proof.inclusion_proof)?,
            consistency: digests("DualProof.consistencyProof", &proof.consistency_proof)?,
            target_bl_tx_alh: digest("DualProof.targetBlTxAlh", &proof.target_bl_tx_alh)?,
            last_inclusion: digests("DualProof.lastInclusionProof", &proof.last_inclusion_proof)?,
            linear: required("DualProof.linearProof", &proof.linear_proof)?.try_into()?,
            linear_advance: proof.linear_advance_proof.as_ref().map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&DualProofV2> for schema::DualProofV2 {
    fn from(proof: &DualProofV2) -> Self {
        Self {
            source_tx_header: Some((&proof.source).into()),
            target_tx_header: Some((&proof.target).into()),
            inclusion_proof: to_terms(&proof.inclusion),
            consistency_proof: to_terms(&proof.consistency),
        }
    }
}

impl TryFrom<&schema::DualProofV2> for DualProofV2 {
    type Error = ConvertError;

    fn try_from(proof: &schema::DualProofV2) -> Result<Self, ConvertError> {
        Ok(Self {
            source: required("DualProofV2.sourceTxHeader", &proof.source_tx_header)?.try_into()?,
            target: required("DualProofV2.targetTxHeader", &proof.target_tx_header)?.try_into()?,
            inclusion: digests("DualProofV2.inclusionProof", &proof.inclusion_proof)?,
            consistency: digests("DualProofV2.consistencyProof", &proof.consistency_proof)?,
        })
    }
}

impl From<&VerifiableTx> for schema::VerifiableTx {
    fn from(tx: &VerifiableTx) -> Self {
        Self { tx: Some((&tx.tx).into()), dual_proof: Some((&tx.dual_proof).into()), signature: tx.signature.clone() }
    }
}

impl TryFrom<&schema::VerifiableTx> for VerifiableTx {
    type Error = ConvertError;

    fn try_from(tx: &schema::VerifiableTx) -> Result<Self, ConvertError> {
        Ok(Self {
            tx: required("VerifiableTx.tx", &tx.tx)?.try_into()?,
            dual_proof: required("VerifiableTx.dualProof", &tx.dual_proof)?.try_into()?,
            signature: tx.signature.clone(),
        })
    }
}

/// The reply of CurrentState. The fields about precommitted transactions stay empty: here a transaction is committed or
/// it is not there.
pub fn immutable_state(state: &TrustedState, signature: Option<schema::Signature>) -> schema::ImmutableState {
    schema::ImmutableState {
        db: state.database.clone(),
        tx_id: state.tx.get(),
        tx_hash: to_bytes(&state.alh),
        signature,
        precommitted_tx_id: 0,
        precommitted_tx_hash: Bytes::new(),
    }
}

impl TryFrom<&schema::ImmutableState> for TrustedState {
    type Error = ConvertError;

    fn try_from(state: &schema::ImmutableState) -> Result<Self, ConvertError> {
        let alh = digest("ImmutableState.txHash", &state.tx_hash)?;
        Ok(Self { database: state.db.clone(), tx: TxId(state.tx_id), alh })
    }
}

#[cfg(test)]
mod tests;
