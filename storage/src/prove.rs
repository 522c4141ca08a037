//! Gathers stored hashes into proofs. Every proof is verified by our own verifier before it is handed out `V1`: it costs a
//! fraction of gathering, and a damaged derived log must never become a proof that a client takes for tampering.

use alhambra_ledger::error::ProveError;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::htree::{self, InclusionProof};
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{
    DualProof, DualProofV2, HistoryReader, build_dual, build_dual_v2, verify_dual, verify_dual_v2,
};
use alhambra_ledger::{Digest, VerifyError};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::plant::{Plant, is_planted};
use crate::txlog::TxRecord;

struct History<'a>(&'a Core);

impl HistoryReader for History<'_> {
    type Error = Error;

    fn header(&self, tx: TxId) -> Result<TxHeader> {
        self.0.header(tx)
    }

    fn alh(&self, tx: TxId) -> std::result::Result<Digest, ProveError<Error>> {
        self.0.alh(tx).map_err(ProveError::Read)
    }
}

impl Core {
    /// Proof that an entry is in its transaction.
    pub(crate) fn prove_inclusion(&self, tx: TxId, entry: u32) -> Result<InclusionProof> {
        self.prove_entry(tx, entry).map(|proven| proven.inclusion)
    }

    /// Proof that `source` is history of `target`; the two may be the same.
    pub(crate) fn dual_proof(&self, source: TxId, target: TxId) -> Result<DualProof> {
        let (from, to) = (self.header(source)?, self.header(target)?);
        let mut proof =
            build_dual(&from, &to, &History(self), &self.nodes()).map_err(|e| self.cannot_prove(target, e))?;
        if is_planted(Plant::WrongProofStep)
            && let Some(step) = proof.consistency.last_mut()
        {
            step.0[0] ^= 1;
            return Ok(proof);
        }
        let (alh_s, alh_t) = (self.alh(source)?, self.alh(target)?);
        self.verified(target, verify_dual(&proof, source, target, &alh_s, &alh_t)).map(|()| proof)
    }

    /// The compact form of [`Core::dual_proof`].
    pub(crate) fn dual_proof_v2(&self, source: TxId, target: TxId) -> Result<DualProofV2> {
        let (from, to) = (self.header(source)?, self.header(target)?);
        let proof = build_dual_v2(&from, &to, &self.nodes()).map_err(|e| self.cannot_prove(target, e))?;
        let (alh_s, alh_t) = (self.alh(source)?, self.alh(target)?);
        self.verified(target, verify_dual_v2(&proof, source, target, &alh_s, &alh_t)).map(|()| proof)
    }

    fn cannot_prove(&self, target: TxId, error: ProveError<Error>) -> Error {
        match error {
            ProveError::Read(error) => error,
            ProveError::OutOfRange { from, to } => Error::ProofOrder { source_tx: TxId(from), target_tx: TxId(to) },
            ProveError::NotLinked { tx } => Error::NoCompactProof { tx },
            // Headers are checked against their Alh when they are read.
            ProveError::Format(_) => self.bad_hash(target),
        }
    }

    fn verified(&self, target: TxId, verdict: std::result::Result<(), VerifyError>) -> Result<()> {
        verdict.map_err(|refused| {
            tracing::error!(tx = target.0, step = %refused.step, "an own proof does not verify [V1]");
            self.bad_hash(target)
        })
    }
}

/// Proof that an entry is in a transaction that was read. Building it hashes all entries of the transaction once more, so
/// whoever has the record at hand asks here.
pub fn prove_entry(record: &TxRecord, entry: u32) -> Result<InclusionProof> {
    htree::prove(&record.entry_digests(), entry).ok_or(Error::NoSuchTxEntry { tx: record.header.id, entry })
}
