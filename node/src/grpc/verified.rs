//! Verified calls and the state that they start from.

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_proto::{convert, schema};
use alhambra_storage::plant::{Plant, is_planted};
use tonic::{Request, Response};

use super::kv::{entries_spec, entry, get_of, new_values, preconditions, tx};
use super::{Reply, open, read_reply};
use crate::context::ReadLevel;
use crate::error::Error;
use crate::method;
use crate::service::App;
use crate::service::transaction::TxById;
use crate::service::verified::{self, Verifiable};

pub(super) fn verifiable(found: Verifiable) -> schema::VerifiableTx {
    schema::VerifiableTx { tx: Some(tx(found.tx)), dual_proof: Some((&found.proof).into()), signature: found.signature }
}

pub(super) async fn current_state(app: &App, request: Request<()>) -> Reply<schema::ImmutableState> {
    let (call, ()) = open(request)?;
    let cx = app.enter(&call, &method::CURRENT_STATE).await?;
    let (state, signature) = verified::current_state(app, &cx).await?;
    Ok(read_reply(cx.level, convert::immutable_state(&state, signature)))
}

pub(super) async fn set(app: &App, request: Request<schema::VerifiableSetRequest>) -> Reply<schema::VerifiableTx> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::VERIFIABLE_SET).await?;
    let set = request.set_request.ok_or(Error::from(text::ILLEGAL_ARGUMENTS))?;
    let trusted = TxId(request.prove_since_tx);
    let written = verified::set(app, &cx, new_values(set.k_vs), preconditions(set.preconditions), trusted).await?;
    Ok(Response::new(verifiable(written)))
}

pub(super) async fn get(app: &App, request: Request<schema::VerifiableGetRequest>) -> Reply<schema::VerifiableEntry> {
    let (call, request) = open(request)?;
    let mut cx = app.enter(&call, &method::VERIFIABLE_GET).await?;
    if is_planted(Plant::LocalVerifiedReads) {
        cx.level = ReadLevel::Local;
    }
    let key = request.key_request.ok_or(Error::from(text::EMPTY_REQUEST))?;
    let found = verified::get(app, &cx, get_of(key), TxId(request.prove_since_tx)).await?;
    let reply = schema::VerifiableEntry {
        entry: Some(entry(found.entry)),
        verifiable_tx: Some(verifiable(found.tx)),
        inclusion_proof: Some((&found.inclusion).into()),
    };
    Ok(read_reply(cx.level, reply))
}

pub(super) async fn tx_by_id(app: &App, request: Request<schema::VerifiableTxRequest>) -> Reply<schema::VerifiableTx> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::VERIFIABLE_TX_BY_ID).await?;
    let by_id = TxById {
        tx: TxId(request.tx),
        spec: entries_spec(request.entries_spec),
        since_tx: TxId(request.since_tx),
        keep_references: request.keep_references_unresolved,
    };
    let found = verified::tx_by_id(app, &cx, by_id, TxId(request.prove_since_tx)).await?;
    Ok(read_reply(cx.level, verifiable(found)))
}
