//! Taking over transactions that were made elsewhere: what apply checks of their headers, which are kept as they are.
//!
//! A foreign header is believed in nothing. It must continue this very history: next id, Alh of the newest transaction here
//! `L1` `L2`, Eh over the entries that came with it `L4`, and a BlRoot that is the root of the own main tree at its BlTxID
//! `L3`. Old servers recorded a tree that lagged behind, so there may be a gap between BlTxID and the id; it never moves
//! backward, which is what makes dual proofs possible, and it is bounded, because they grow with it. From all this it follows
//! that the Alh here is the one that the source has, and that nothing but the gap has to be remembered.

use alhambra_ledger::aht;
use alhambra_ledger::digest::Digest;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;

use crate::apply::{Refusal, Rejection, Tail};
use crate::command::{ForeignHeader, Settings};
use crate::core::Core;
use crate::error::{Damage, Result};
use crate::limits::LINK_GAP_MAX;

/// Why a transaction that was made elsewhere is refused. Deterministic, as every [`Rejection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImportRefusal {
    /// The database is not in replica mode.
    NotReplica,
    /// A transaction of this id exists here.
    AlreadyCommitted,
    /// Transactions before this one are missing here.
    Gap,
    /// No transaction can have this header.
    Header,
    /// Some values are gone and some are not.
    PartlyGone,
    /// The entries do not hash to Eh: what came is not what was committed.
    Entries,
    /// BlTxID is before that of the transaction before, or too far behind.
    Link,
    /// BlRoot is not the root of the main tree here: this is another history.
    BlRoot,
    /// PrevAlh is not the Alh of the newest transaction here: this is another history.
    PrevAlh,
}

impl ImportRefusal {
    /// In the order of their numbers in checkpoints.
    pub const ALL: [Self; 9] = [
        Self::NotReplica,
        Self::AlreadyCommitted,
        Self::Gap,
        Self::Header,
        Self::PartlyGone,
        Self::Entries,
        Self::Link,
        Self::BlRoot,
        Self::PrevAlh,
    ];

    /// Its place in [`ImportRefusal::ALL`].
    pub(crate) fn number(self) -> u32 {
        (0..).zip(Self::ALL).find(|(_, refusal)| *refusal == self).map_or(u32::MAX, |(number, _)| number)
    }
}

impl From<ImportRefusal> for Refusal {
    fn from(refusal: ImportRefusal) -> Self {
        Self::Rejected(Rejection::Import(refusal))
    }
}

/// Whether a proposal of this kind can be next, before anything else is looked at.
pub(crate) fn check_turn(
    settings: &Settings,
    foreign: Option<&ForeignHeader>,
    tail: TxId,
) -> std::result::Result<(), Rejection> {
    let refused = match foreign {
        None if settings.replica => return Err(Rejection::Replica),
        None => return Ok(()),
        Some(_) if !settings.replica => ImportRefusal::NotReplica,
        Some(foreign) if foreign.id <= tail => ImportRefusal::AlreadyCommitted,
        Some(foreign) if Some(foreign.id) != tail.next() => ImportRefusal::Gap,
        Some(_) => return Ok(()),
    };
    Err(Rejection::Import(refused))
}

/// Whether a header whose turn it is continues the history that ends with `tail`; `eh` is that of the entries that came with
/// it.
pub(crate) fn check_header(
    core: &Core,
    tail: &Tail,
    header: &TxHeader,
    eh: &Digest,
) -> std::result::Result<(), Refusal> {
    if header.validate().is_err() {
        return Err(ImportRefusal::Header.into());
    }
    if header.eh != *eh {
        return Err(ImportRefusal::Entries.into());
    }
    let link = header.bl_tx_id;
    if link < core.bl_tx_id(tail.tx)? || tail.tx.0 - link.0 > LINK_GAP_MAX {
        return Err(ImportRefusal::Link.into());
    }
    let root = if link == tail.tx { tail.root } else { aht::root(link.0, &core.nodes())? };
    if root != header.bl_root {
        must_be_own_root(core, link, &root, tail)?;
        return Err(ImportRefusal::BlRoot.into());
    }
    if header.prev_alh != tail.alh {
        return Err(ImportRefusal::PrevAlh.into());
    }
    Ok(())
}

/// Nodes of the tree have no checksums. A damaged one must not refuse here what other replicas take, so the root that was read
/// is shown to lead to the newest one, which is in memory.
fn must_be_own_root(core: &Core, size: TxId, root: &Digest, tail: &Tail) -> Result<()> {
    if size == tail.tx || size.0 == 0 {
        return Ok(());
    }
    let proof = aht::prove_consistency(size.0, tail.tx.0, &core.nodes());
    let holds = proof.is_ok_and(|proof| aht::verify_consistency(&proof, size.0, tail.tx.0, root, &tail.root).is_ok());
    if holds { Ok(()) } else { Err(core.aht.corrupted(0, Damage::Hash)) }
}
