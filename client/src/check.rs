//! What a verifying client demands of an answer: pure functions of the question, the answer and the trusted state.
//!
//! The order is that of the original's SDKs; what they do not compare is compared here as well: the entries of the
//! answer hash to Eh, their number is the header's, the returned key is the requested one, the header of the transaction
//! is the one that the proof ends in. Nothing here does IO; the state moves only when every check held (V2).

use alhambra_ledger::digest::{EMPTY, sha256};
use alhambra_ledger::entry::{KvMetadata, entry_digest};
use alhambra_ledger::error::FormatError;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::htree::InclusionProof;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{verify_dual, verify_entries, verify_entry};
use alhambra_ledger::state::TrustedState;
use alhambra_ledger::{Digest, Step, VerifyError, kv};
use alhambra_proto::convert::{ConvertError, Tx, VerifiableTx, kv_metadata_from};
use alhambra_proto::schema;
use bytes::Bytes;
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey;

/// The check that failed; everything before it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Check {
    /// The answer is not what a server must send.
    #[error("malformed answer: {0}")]
    Malformed(ConvertError),
    /// A header that cannot be hashed.
    #[error("malformed header: {0}")]
    Format(FormatError),
    /// The answer is about another transaction than the one asked for.
    #[error("transaction: asked for {expected}, got {found}")]
    Transaction {
        /// As asked.
        expected: TxId,
        /// As answered.
        found: TxId,
    },
    /// The answer has another number of entries than was sent.
    #[error("entry count: {expected} sent, {found} in the transaction")]
    EntryCount {
        /// As sent.
        expected: usize,
        /// As answered.
        found: usize,
    },
    /// The answer is about another key.
    #[error("key")]
    Key,
    /// The transaction holds another value than was sent.
    #[error("value")]
    Value,
    /// The transaction holds other attributes than were sent, or a deletion where a value was answered.
    #[error("metadata")]
    Metadata,
    /// A step of the proofs.
    #[error("{0}")]
    Proof(Step),
    /// The answer is about another database.
    #[error("database name")]
    Database,
    /// The client has the server's key, and the state is not signed.
    #[error("signature is missing")]
    SignatureMissing,
    /// The client has the server's key, and the signature is not one of it over this state.
    #[error("signature")]
    Signature,
    /// The server does not have the transaction that was proven to be in its history before.
    #[error("rewound: trusted tx {trusted}, the server ends at {server}")]
    Rewound {
        /// Last transaction that the server admits.
        server: TxId,
        /// Transaction of the trusted state.
        trusted: TxId,
    },
    /// The server shows another history at the very transaction that is trusted.
    #[error("fork at tx {tx}")]
    Fork {
        /// The transaction.
        tx: TxId,
    },
}

impl From<VerifyError> for Check {
    fn from(error: VerifyError) -> Self {
        Self::Proof(error.step)
    }
}

impl From<ConvertError> for Check {
    fn from(error: ConvertError) -> Self {
        Self::Malformed(error)
    }
}

impl From<FormatError> for Check {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// `Ok` when `holds`.
fn require(holds: bool, check: Check) -> Result<(), Check> {
    if holds { Ok(()) } else { Err(check) }
}

/// One key with its value, as sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, without prefix.
    pub key: Bytes,
    /// The value, without prefix.
    pub value: Bytes,
    /// Its attributes.
    pub metadata: KvMetadata,
}

impl KeyValue {
    /// A pair without attributes.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: value.into(), metadata: KvMetadata::default() }
    }
}

/// An entry as it must stand in the transaction that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    key: Vec<u8>,
    value_hash: Digest,
    metadata: KvMetadata,
}

impl Wanted {
    /// A value.
    pub(crate) fn value(pair: &KeyValue) -> Self {
        let value_hash = sha256(&kv::set_value(&pair.value));
        Self { key: kv::set_key(&pair.key), value_hash, metadata: pair.metadata }
    }

    /// A value without attributes, of whose stored form there is the hash.
    pub(crate) fn hashed(key: &[u8], value_hash: Digest) -> Self {
        Self { key: kv::set_key(key), value_hash, metadata: KvMetadata::default() }
    }

    /// A reference; `at_tx` 0 for one that is not bound.
    pub(crate) fn reference(key: &[u8], target: &[u8], at_tx: TxId) -> Self {
        let value_hash = sha256(&kv::reference_value(at_tx, target));
        Self { key: kv::set_key(key), value_hash, metadata: KvMetadata::default() }
    }

    /// A member of a sorted set; `at_tx` 0 for one that is not bound.
    pub(crate) fn member(set: &[u8], score: f64, key: &[u8], at_tx: TxId) -> Self {
        Self { key: kv::zadd_key(set, score, key, at_tx), value_hash: EMPTY, metadata: KvMetadata::default() }
    }
}

/// The question of a verified get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GetQuestion<'a> {
    pub(crate) key: &'a [u8],
    /// 0: not given.
    pub(crate) at_tx: TxId,
}

/// Reads a public key in PEM. Tools break the lines at different widths, the parser knows one; so they are broken anew.
pub(crate) fn public_key(pem: &str) -> Result<VerifyingKey, p256::pkcs8::spki::Error> {
    let is_frame = |line: &str| line.starts_with("-----");
    let body: String = pem.lines().map(str::trim).filter(|line| !is_frame(line)).collect();
    let mut text = String::with_capacity(pem.len() + 8);
    for line in pem.lines().map(str::trim).filter(|line| is_frame(line)).take(1) {
        text.push_str(line);
        text.push('\n');
    }
    for (place, character) in body.chars().enumerate() {
        if place > 0 && place % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push('\n');
    text.extend(pem.lines().map(str::trim).filter(|line| is_frame(line)).skip(1));
    text.push('\n');
    VerifyingKey::from_public_key_pem(&text)
}

/// Checks the signature over `state`, where a key is known.
pub(crate) fn signature(
    state: &TrustedState,
    signature: Option<&schema::Signature>,
    key: Option<&VerifyingKey>,
) -> Result<(), Check> {
    let Some(key) = key else { return Ok(()) };
    let signature = signature.ok_or(Check::SignatureMissing)?;
    let signature = Signature::from_der(&signature.signature).map_err(|_| Check::Signature)?;
    key.verify(&state.signed_bytes()?, &signature).map_err(|_| Check::Signature)
}

/// Checks that all entries of `tx` are there, in order, and hash to the Eh of its header.
fn complete(tx: &Tx) -> Result<(), Check> {
    let digests: Vec<_> = tx.entries.iter().map(|entry| entry.digest(tx.header.version)).collect::<Result<_, _>>()?;
    Ok(verify_entries(&digests, &tx.header)?)
}

/// Checks that transaction and trusted state are of one history and gives the state to trust from now on: the later of
/// the two.
fn dual(tx: &VerifiableTx, trusted: &TrustedState, key: Option<&VerifyingKey>) -> Result<TrustedState, Check> {
    let (id, alh) = (tx.tx.header.id, tx.tx.header.alh()?);
    let known = (trusted.tx, trusted.alh);
    let this = (id, alh);
    let (source, target) = match trusted.tx {
        // Nothing is known yet: the server proves the transaction against itself.
        TxId(0) => (this, this),
        trusted if trusted <= id => (known, this),
        _ => (this, known),
    };
    verify_dual(&tx.dual_proof, source.0, target.0, &source.1, &target.1)?;
    let mut next = trusted.clone();
    next.advance(target.0, target.1)?;
    signature(&next, tx.signature.as_ref(), key)?;
    Ok(next)
}

/// Checks the answer to a verified write of exactly these entries and gives the header of the new transaction and the state
/// to trust.
pub(crate) fn written(
    tx: Option<TxId>,
    wanted: &[Wanted],
    reply: &schema::VerifiableTx,
    trusted: &TrustedState,
    key: Option<&VerifyingKey>,
) -> Result<(TxHeader, TrustedState), Check> {
    let reply = VerifiableTx::try_from(reply)?;
    let (header, entries) = (&reply.tx.header, &reply.tx.entries);
    let count = |found| Check::EntryCount { expected: wanted.len(), found };
    require(entries.len() == wanted.len(), count(entries.len()))?;
    require(usize::try_from(header.nentries) == Ok(wanted.len()), count(header.nentries as usize))?;
    // What was asked for may depend on the id that was told before.
    let told = tx.unwrap_or(header.id);
    require(header.id == told, Check::Transaction { expected: told, found: header.id })?;
    require(header.id > trusted.tx, Check::Transaction { expected: TxId(trusted.tx.get() + 1), found: header.id })?;
    for (wanted, entry) in wanted.iter().zip(entries) {
        require(entry.key == wanted.key, Check::Key)?;
        require(entry.value_hash == wanted.value_hash, Check::Value)?;
        require(entry.metadata == wanted.metadata, Check::Metadata)?;
    }
    complete(&reply.tx)?;
    let next = dual(&reply, trusted, key)?;
    Ok((reply.tx.header, next))
}

/// Checks the answer to a verified get and gives the header of the transaction that holds the entry and the state to
/// trust. Of a value that came apart from the entry there is the hash of its stored form.
///
/// Of a reference only the reference itself is proven, as in the original.
pub(crate) fn get(
    question: &GetQuestion<'_>,
    reply: &schema::VerifiableEntry,
    value_hash: Option<Digest>,
    trusted: &TrustedState,
    key: Option<&VerifyingKey>,
) -> Result<(TxHeader, TrustedState), Check> {
    let missing = |field| Check::Malformed(ConvertError::Missing { field });
    let entry = reply.entry.as_ref().ok_or(missing("VerifiableEntry.entry"))?;
    let tx = reply.verifiable_tx.as_ref().ok_or(missing("VerifiableEntry.verifiableTx"))?;
    let tx = VerifiableTx::try_from(tx)?;
    let inclusion = reply.inclusion_proof.as_ref().ok_or(missing("VerifiableEntry.inclusionProof"))?;
    let inclusion = InclusionProof::try_from(inclusion)?;

    let (found_key, found_tx, metadata, value_hash) = match &entry.referenced_by {
        None => {
            let hash = value_hash.unwrap_or_else(|| sha256(&kv::set_value(&entry.value)));
            (&entry.key, entry.tx, &entry.metadata, hash)
        }
        Some(by) => (&by.key, by.tx, &by.metadata, sha256(&kv::reference_value(TxId(by.at_tx), &entry.key))),
    };
    require(found_key == question.key, Check::Key)?;
    let metadata = kv_metadata_from(metadata.as_ref());
    require(!metadata.deleted, Check::Metadata)?;
    let expected = if question.at_tx.get() > 0 { question.at_tx } else { TxId(found_tx) };
    for found in [TxId(found_tx), tx.tx.header.id] {
        require(found == expected, Check::Transaction { expected, found })?;
    }

    let header = &tx.tx.header;
    let stored_key = kv::set_key(question.key);
    let digest = entry_digest(header.version, &stored_key, &metadata.to_bytes(), &value_hash)?;
    verify_entry(&inclusion, &digest, header)?;
    // Of a large transaction only the entry that is proven is told; the proof ties it to all the others.
    let alone = matches!(&tx.tx.entries[..], [told] if header.nentries > 1
        && told.key == stored_key && told.metadata == metadata && told.value_hash == value_hash);
    if !alone {
        complete(&tx.tx)?;
    }
    let next = dual(&tx, trusted, key)?;
    Ok((tx.tx.header, next))
}

/// Checks the answer to a verified read of transaction `id` and gives it and the state to trust.
pub(crate) fn tx_by_id(
    id: TxId,
    reply: &schema::VerifiableTx,
    trusted: &TrustedState,
    key: Option<&VerifyingKey>,
) -> Result<(Tx, TrustedState), Check> {
    let reply = VerifiableTx::try_from(reply)?;
    let found = reply.tx.header.id;
    require(found == id, Check::Transaction { expected: id, found })?;
    complete(&reply.tx)?;
    let next = dual(&reply, trusted, key)?;
    Ok((reply.tx, next))
}

/// Checks a reply of CurrentState by itself: database and signature.
pub(crate) fn current_state(
    database: &str,
    reply: &schema::ImmutableState,
    key: Option<&VerifyingKey>,
) -> Result<TrustedState, Check> {
    let state = TrustedState::try_from(reply)?;
    require(state.database == database, Check::Database)?;
    let is_empty = state.tx.get() == 0;
    require(!is_empty || state.alh == EMPTY, Check::Fork { tx: state.tx })?;
    signature(&state, reply.signature.as_ref(), key)?;
    Ok(state)
}

/// Checks that transaction `tx` of the answer is the one with this Alh.
pub(crate) fn same_alh(tx: &Tx, alh: &Digest) -> Result<(), Check> {
    require(tx.header.alh()? == *alh, Check::Fork { tx: tx.header.id })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Signatures of another program over the published states.
    #[test]
    fn published_signatures_are_accepted_and_changed_ones_refused() {
        let vectors: Value = serde_json::from_str(include_str!("../../ledger/testdata/vectors.json")).unwrap();
        let vectors = &vectors["state_signature"];
        let key = public_key(vectors["public_key_pem"].as_str().unwrap()).unwrap();
        let states = vectors["states"].as_array().unwrap();
        assert_eq!(states.len(), 3);
        for published in states {
            let hex = published["signature"].as_str().unwrap();
            let der: Vec<u8> =
                (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
            let state = TrustedState {
                database: published["db"].as_str().unwrap().into(),
                tx: TxId(published["tx_id"].as_u64().unwrap()),
                alh: published["tx_hash"].as_str().unwrap().parse().unwrap(),
            };
            let signed = |der: &[u8]| schema::Signature { public_key: Bytes::new(), signature: der.to_vec().into() };
            assert_eq!(signature(&state, Some(&signed(&der)), Some(&key)), Ok(()));
            assert_eq!(signature(&state, None, Some(&key)), Err(Check::SignatureMissing));
            assert_eq!(signature(&state, None, None), Ok(()));
            let older = TrustedState { tx: TxId(state.tx.get() + 1), ..state.clone() };
            assert_eq!(signature(&older, Some(&signed(&der)), Some(&key)), Err(Check::Signature));
            for index in 0..der.len() {
                let mut changed = der.clone();
                changed[index] ^= 1;
                assert_eq!(signature(&state, Some(&signed(&changed)), Some(&key)), Err(Check::Signature), "{index}");
            }
        }
    }
}
