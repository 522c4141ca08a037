//! Calls whose answers the caller checks: each comes with the proof that ties it to the state the caller already trusts.
//!
//! The caller's state is a floor: this node waits until it has applied it and never proves less history. That the state
//! does not exist is answered only when a quorum confirms it.

use alhambra_ledger::digest::{Digest, EMPTY};
use alhambra_ledger::htree::InclusionProof;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::DualProof;
use alhambra_ledger::state::TrustedState;
use alhambra_proto::code::{WireError, text};
use alhambra_proto::schema::Signature;
use alhambra_storage::ProvenEntry;
use alhambra_storage::limits::ENTRIES_PER_GROUP;
use alhambra_storage::plant::{Plant, is_planted};

use super::App;
use super::exec::{self, NewMember, NewReference};
use super::kv::{self, Entry, Get, NewValue, Precondition, Reader, stored_key};
use super::transaction::{self, TxById, TxView};
use crate::context::Context;
use crate::error::{Error, Result};

/// A transaction with its proof.
#[derive(Clone, Debug)]
pub struct Verifiable {
    /// The transaction.
    pub tx: TxView,
    /// From the smaller to the larger of the trusted transaction and this one.
    pub proof: DualProof,
    /// Over the state of the proof's target, when the node has a key.
    pub signature: Option<Signature>,
}

/// A value with its proof.
#[derive(Clone, Debug)]
pub struct VerifiableEntry {
    /// The value.
    pub entry: Entry,
    /// The transaction that wrote it, or the reference that led to it.
    pub tx: Verifiable,
    /// That it, or the reference, is in that transaction.
    pub inclusion: InclusionProof,
}

/// The newest state, and its signature when the node has a key.
pub async fn current_state(app: &App, cx: &Context) -> Result<(TrustedState, Option<Signature>)> {
    let view = cx.view(TxId(0)).await?;
    let database = cx.replica.database();
    let alh = if view.tx().get() == 0 { EMPTY } else { database.alh(view.tx())? };
    Ok(signed(app, cx, view.tx(), alh))
}

fn signed(app: &App, cx: &Context, tx: TxId, alh: Digest) -> (TrustedState, Option<Signature>) {
    let state = TrustedState { database: cx.replica.name().to_string(), tx, alh };
    let signature = app.signer.as_ref().map(|signer| signer.sign(&state));
    (state, signature)
}

/// Ties a transaction to the trusted one; 0 trusts nothing and gets the transaction tied to itself.
fn prove(app: &App, cx: &Context, tx: TxView, trusted: TxId) -> Result<Verifiable> {
    let id = tx.header.id;
    let trusted = if trusted.get() == 0 { id } else { trusted };
    let proof = cx.replica.database().dual_proof(trusted.min(id), trusted.max(id))?;
    let signature = match &app.signer {
        Some(_) => signed(app, cx, proof.target.id, proof.target.alh()?).1,
        None => None,
    };
    Ok(Verifiable { tx, proof, signature })
}

/// Writes values and proves the new transaction.
pub async fn set(
    app: &App,
    cx: &Context,
    values: Vec<NewValue>,
    preconditions: Vec<Precondition>,
    trusted: TxId,
) -> Result<Verifiable> {
    must_exist(cx, trusted, text::ILLEGAL_STATE).await?;
    let header = kv::set(cx, values, preconditions).await?;
    prove_new(app, cx, header.id, trusted).await
}

/// Writes a reference and proves its transaction.
pub async fn set_reference(
    app: &App,
    cx: &Context,
    reference: NewReference,
    preconditions: Vec<Precondition>,
    trusted: TxId,
) -> Result<Verifiable> {
    must_exist(cx, trusted, text::ILLEGAL_ARGUMENTS).await?;
    let header = exec::set_reference(app, cx, reference, preconditions).await?;
    prove_new(app, cx, header.id, trusted).await
}

/// Adds a member to a sorted set and proves its transaction.
pub async fn add_member(app: &App, cx: &Context, member: NewMember, trusted: TxId) -> Result<Verifiable> {
    must_exist(cx, trusted, text::ILLEGAL_ARGUMENTS).await?;
    let header = exec::add_member(app, cx, member).await?;
    prove_new(app, cx, header.id, trusted).await
}

/// The state that the caller trusts exists, which is asked before anything is written.
async fn must_exist(cx: &Context, trusted: TxId, refusal: WireError) -> Result<()> {
    if trusted.get() > 0 {
        cx.view_of(trusted).await.map_err(|error| error.beyond_is(refusal))?;
    }
    Ok(())
}

/// The proof of a transaction that was just committed, made from what is applied here.
async fn prove_new(app: &App, cx: &Context, tx: TxId, trusted: TxId) -> Result<Verifiable> {
    kv::until_applied(cx, tx).await?;
    if is_planted(Plant::DenyAfterCommit) && tx.get().is_multiple_of(8) {
        return Err(Error::Stopping);
    }
    let proven = || prove(app, cx, transaction::raw(cx.replica.database().tx(tx)?), trusted);
    proven().map_err(|error| error.after_commit(tx))
}

/// Transactions of up to so many entries are told whole with a value that is read and proven.
const ENTRIES_TOLD_MAX: u32 = 16;
// Transactions of no more than a group are read whole.
const _: () = assert!(ENTRIES_TOLD_MAX <= ENTRIES_PER_GROUP);

/// Reads a value and proves it. Of the entries of a large transaction only the one that is proven is told: the header and the
/// proof tie it to the others, and to send these would make the answer as large as the transaction.
pub async fn get(app: &App, cx: &Context, request: Get, trusted: TxId) -> Result<VerifiableEntry> {
    must_exist(cx, trusted, text::ILLEGAL_STATE).await?;
    let view = kv::view(cx, &request).await?;
    let reader = Reader { context: cx, view: &view, now: app.now() };
    let key = stored_key(&request.key);
    let place = reader.place(&request, &key)?;
    let database = cx.replica.database();
    let mut proven = database.prove_entry(place.tx, place.entry)?;
    // Value and metadata that are told are those of the entry that is proven.
    let found = place.holding(&proven.entry, database.value(&proven.entry)?);
    let entry = reader.resolve(request.key, found)?;
    if is_planted(Plant::ProofOfAnotherRevision)
        && let Some(before) = database.snapshot().history(&key, 1, 1, true)?.first()
    {
        proven = database.prove_entry(before.tx, before.entry)?;
    }
    let ProvenEntry { header, entry: one, inclusion, whole } = proven;
    let tx = match whole {
        Some(whole) if header.nentries <= ENTRIES_TOLD_MAX => transaction::raw(whole),
        _ => transaction::of_one(header, one),
    };
    let tx = prove(app, cx, tx, trusted)?;
    Ok(VerifiableEntry { entry, tx, inclusion })
}

/// Reads a transaction and proves it.
pub async fn tx_by_id(app: &App, cx: &Context, request: TxById, trusted: TxId) -> Result<Verifiable> {
    if request.tx.get() == 0 {
        return Err(text::ILLEGAL_ARGUMENTS.into());
    }
    if trusted.get() > 0 {
        let beyond = |asked, latest| Error::IllegalState { asked, latest };
        cx.view_of(trusted).await.map_err(|error| error.beyond(beyond))?;
    }
    let view = transaction::view_with(cx, request.tx, request.spec, request.since_tx).await?;
    let reader = Reader { context: cx, view: &view, now: app.now() };
    let tx = transaction::shape(&reader, request.tx, request.spec, request.keep_references).await?;
    prove(app, cx, tx, trusted)
}
