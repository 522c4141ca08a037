//! Gathers stored hashes into proofs. Every proof is verified by our own verifier before it is handed out `V1`: it costs a
//! fraction of gathering, and a damaged derived log must never become a proof that a client takes for tampering.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alhambra_ledger::error::ProveError;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::htree::{self, GroupProof, InclusionProof};
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{
    DualProof, DualProofV2, HistoryReader, build_dual, build_dual_v2, verify_dual, verify_dual_v2,
};
use alhambra_ledger::{Digest, VerifyError};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter, Weighter};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::limits::{KEPT_LEVELS, PROOF_DIGESTS_KEPT_MAX, PROOFS_KEPT};
use crate::plant::{Plant, is_planted};
use crate::txlog::TxRecord;

/// A core, counted in the process, and the two transactions that a proof ties.
type ProofKey = (u64, TxId, TxId);

/// Parts of the cache with a lock each.
const SHARDS: usize = 8;

/// Keys are numbers that nobody outside chooses, and what is thrown out must not differ from run to run.
type Hasher = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// A core, a transaction, and a group of its entries.
type GroupKey = (u64, TxId, u32);

/// Entries of a large transaction that lie together and were proven.
#[derive(Debug)]
pub(crate) struct ProvenGroup {
    pub header: TxHeader,
    /// Verified against the header `V1`.
    pub proof: GroupProof,
    /// Where the entries stand in the log of transactions. What is read there is held against their checksum and the proof.
    pub at: Range<u64>,
    pub crc: u32,
}

#[derive(Clone)]
struct GroupWeight;

impl Weighter<GroupKey, Arc<ProvenGroup>> for GroupWeight {
    fn weight(&self, _: &GroupKey, group: &Arc<ProvenGroup>) -> u64 {
        /// What the cache needs besides.
        const SLOT_BYTES: usize = 64;
        let digests = group.proof.hashes() * size_of::<Digest>();
        (SLOT_BYTES + size_of::<ProvenGroup>() + group.header.metadata.extra.len() + digests) as u64
    }
}

/// What was proven and verified a moment ago, of all databases of a process: clients that trust the same state ask for the same dual
/// proofs again and again, and what was written together is read together. A proof of what is in the history never changes.
pub(crate) struct ProofCache {
    proofs: Cache<ProofKey, Arc<DualProof>, UnitWeighter, Hasher>,
    groups: Cache<GroupKey, Arc<ProvenGroup>, GroupWeight, Hasher>,
    next_core: AtomicU64,
}

impl ProofCache {
    /// With so many bytes for proofs of entries.
    pub(crate) fn new(group_bytes: u64) -> Self {
        /// Of a group of 16 in a transaction of a thousand, about.
        const GROUP_BYTES: u64 = 1 << 10;
        // What is asked for once, as after a write, must not fill it for good; and as many parts on every machine.
        let options = |items: usize, weight: u64| {
            OptionsBuilder::new()
                .shards(SHARDS)
                .estimated_items_capacity(items)
                .weight_capacity(weight)
                .hot_allocation(0.5)
                .build()
                .expect("all is set, and within its range")
        };
        let proofs = options(PROOFS_KEPT, PROOFS_KEPT as u64);
        let groups = options(usize::try_from(group_bytes / GROUP_BYTES).unwrap_or(usize::MAX), group_bytes);
        Self {
            proofs: Cache::with_options(proofs, UnitWeighter, Hasher::default(), DefaultLifecycle::default()),
            groups: Cache::with_options(groups, GroupWeight, Hasher::default(), DefaultLifecycle::default()),
            next_core: AtomicU64::new(0),
        }
    }

    /// A number for a core that no other core of this process has: files that come from another node, or are derived again, begin
    /// without anything that was proven from those before.
    pub(crate) fn name_core(&self) -> u64 {
        self.next_core.fetch_add(1, Ordering::Relaxed)
    }

    fn keep(&self, key: ProofKey, proof: &DualProof) {
        let linear = proof.linear.terms.len() + proof.linear_advance.as_ref().map_or(0, |_| PROOF_DIGESTS_KEPT_MAX);
        let digests = proof.inclusion.len() + proof.consistency.len() + proof.last_inclusion.len() + linear;
        if digests <= PROOF_DIGESTS_KEPT_MAX {
            self.proofs.insert(key, Arc::new(proof.clone()));
        }
    }
}

impl fmt::Debug for ProofCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (proofs, groups) = (self.proofs.len(), self.groups.len());
        f.debug_struct("ProofCache").field("proofs", &proofs).field("groups", &groups).finish_non_exhaustive()
    }
}

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
    /// The group of an entry, when it was proven a moment ago.
    pub(crate) fn remembered_group(&self, tx: TxId, number: u32) -> Option<Arc<ProvenGroup>> {
        self.proofs.groups.get(&(self.number, tx, number >> KEPT_LEVELS))
    }

    /// Remembers the group of an entry.
    pub(crate) fn remember_group(&self, tx: TxId, number: u32, group: ProvenGroup) -> Arc<ProvenGroup> {
        let group = Arc::new(group);
        self.proofs.groups.insert((self.number, tx, number >> KEPT_LEVELS), Arc::clone(&group));
        group
    }

    /// Proof that an entry is in its transaction.
    pub(crate) fn prove_inclusion(&self, tx: TxId, entry: u32) -> Result<InclusionProof> {
        self.prove_entry(tx, entry).map(|proven| proven.inclusion)
    }

    /// Proof that `source` is history of `target`; the two may be the same.
    pub(crate) fn dual_proof(&self, source: TxId, target: TxId) -> Result<DualProof> {
        let key = (self.number, source, target);
        if let Some(known) = self.proofs.proofs.get(&key) {
            return Ok(DualProof::clone(&known));
        }
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
        self.verified(target, verify_dual(&proof, source, target, &alh_s, &alh_t))?;
        self.proofs.keep(key, &proof);
        Ok(proof)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use alhambra_ledger::ids::DatabaseId;
    use bytes::Bytes;

    use super::*;
    use crate::command::{ProposalEntry, Settings, TxProposal};
    use crate::database::{Database, DatabaseSpec, Options};
    use crate::limits::GROUP_PROOFS_OF_BUDGET;
    use crate::memory::MemoryBudget;
    use crate::vfs::Vfs;
    use crate::vfs::mem::MemVfs;

    const WRITES: u64 = 30;

    /// One of several databases of a process.
    fn open(vfs: &Arc<dyn Vfs>, options: &Options, number: u8) -> Database {
        let spec = DatabaseSpec { id: DatabaseId([number; 16]), segment_bytes: 1 << 20 };
        let dir = Path::new("/data").join(format!("db{number}"));
        Database::open_embedded(Arc::clone(vfs), &dir, spec, options.clone(), Settings::DEFAULT).unwrap()
    }

    fn write(database: &Database, n: u64) {
        let entry = ProposalEntry::plain(Bytes::from(format!("k{n}")), Bytes::new(), Bytes::from_static(b"v"));
        let proposal = TxProposal { entries: vec![entry], ..TxProposal::default() };
        database.commit(1, vec![proposal]).unwrap();
    }

    /// Every proof between two transactions verifies with this database's own Alh.
    fn all_hold(database: &Database) {
        for target in 1..=database.applied().tx.0 {
            for source in 1..=target {
                let (s, t) = (TxId(source), TxId(target));
                let proof = database.dual_proof(s, t).unwrap();
                verify_dual(&proof, s, t, &database.alh(s).unwrap(), &database.alh(t).unwrap()).unwrap();
            }
        }
    }

    /// More proofs than are remembered, of databases whose transactions have the same numbers, with one budget, asked for again and
    /// again, also of a database that was opened anew: each gets its own.
    #[test]
    fn what_is_remembered_is_of_this_database() {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let options = Options::new(Arc::new(MemoryBudget::default()));
        let open = |number| open(&vfs, &options, number);
        let (one, other) = (open(1), open(2));
        for n in 0..WRITES {
            write(&one, n);
            write(&other, n + 1);
        }
        const { assert!(WRITES * WRITES / 2 > PROOFS_KEPT as u64) };
        for _ in 0..2 {
            all_hold(&one);
            all_hold(&other);
        }
        let (s, t, before) = (TxId(1), TxId(WRITES), other.core().number);
        drop(other);
        let other = open(2);
        write(&other, 0);
        all_hold(&other);
        let numbers = [before, one.core().number, other.core().number];
        assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2] && numbers[0] != numbers[2], "{numbers:?}");
        // What is remembered is what is answered: here, of another pair.
        let (known, wrong) = (options.memory.proofs(), one.dual_proof(s, TxId(2)).unwrap());
        known.keep((one.core().number, s, t), &wrong);
        assert_eq!(one.dual_proof(s, t).unwrap(), wrong);
        assert_ne!(other.dual_proof(s, t).unwrap(), wrong);
        let kept = options.memory.proofs().proofs.len();
        assert!((1..=PROOFS_KEPT).contains(&kept), "{kept}");
    }

    /// The same of entries, of transactions with the same number and of different size; and with a budget that holds few of them.
    #[test]
    fn groups_that_are_remembered_are_of_this_database() {
        for budget in [0, 16 << 10, 1 << 20, 64 << 20] {
            let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
            let options = Options::new(Arc::new(MemoryBudget::exactly(budget)));
            let open = |number| open(&vfs, &options, number);
            let all_hold = |database: &Database| {
                let whole = database.tx(TxId(1)).unwrap();
                for _ in 0..2 {
                    for (number, entry) in (0u32..).zip(&whole.entries) {
                        let proven = database.prove_entry(TxId(1), number).unwrap();
                        assert_eq!((&proven.header, &proven.entry), (&whole.header, entry));
                        assert_eq!(proven.inclusion, prove_entry(&whole, number).unwrap());
                    }
                    for number in [whole.header.nentries, whole.header.nentries | 15, u32::MAX] {
                        let refused = database.prove_entry(TxId(1), number);
                        assert!(matches!(refused, Err(Error::NoSuchTxEntry { .. })), "{number}: {refused:?}");
                    }
                }
            };
            let (one, other) = (open(1), open(2));
            for (database, count, what) in [(&one, 1000, "a"), (&other, 57, "b")] {
                let entry =
                    |n| ProposalEntry::plain(Bytes::from(format!("{what}{n}")), Bytes::new(), Bytes::from_static(b"v"));
                let proposal = TxProposal { entries: (0..count).map(entry).collect(), ..TxProposal::default() };
                database.commit(1, vec![proposal]).unwrap();
            }
            all_hold(&one);
            all_hold(&other);
            drop(other);
            all_hold(&open(2));
            let groups = &options.memory.proofs().groups;
            let share = budget / GROUP_PROOFS_OF_BUDGET;
            assert!(groups.weight() <= share, "{} of {share} bytes", groups.weight());
            assert_eq!(groups.is_empty(), budget < 1 << 20, "{budget}: {}", groups.len());
            assert!(budget < 64 << 20 || groups.len() == 63 + 4 + 4, "{}", groups.len());
        }
    }
}
