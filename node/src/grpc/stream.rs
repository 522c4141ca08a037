//! Calls whose messages travel in chunks. The framing is [`framing`]'s; here is which messages a call has, what limits them,
//! and how a stream ends.
//!
//! What goes out is made as it is taken: one entry at a time goes through a channel of a few chunks, so that a client that does
//! not read holds these and that entry, and it is given up when it has taken nothing for the time that a call may take. What comes in
//! has to be there when the call is due ([`crate::uploads::Due`]). Nothing is written before the client has ended its stream, and only if it
//! still may write then.

mod exec;
mod export;
mod framing;
mod import;
mod incoming;
mod outlet;

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_proto::{convert, schema};
use bytes::Bytes;
use prost::Message as _;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

pub(super) use self::exec::all as exec_all;
pub(super) use self::export::{many as export_many, one as export_one};
pub(super) use self::import::one as import_one;
use self::incoming::{Incoming, Message};
use self::outlet::{Ended, Outlet, respond};
use super::exec::z_scan_of;
use super::kv::{get_of, history_of, reference, scan_of};
use super::verified::verifiable;
use super::{Reply, open, open_upload};
use crate::error::Error;
use crate::method;
use crate::service::App;
use crate::service::walk::{HistoryWalk, ScanWalk};
use crate::service::zset::ZScanWalk;
use crate::service::{kv, verified};

type Chunks = BoxStream<schema::Chunk>;
type Incomes = Request<Streaming<schema::Chunk>>;

/// Key and value, a message each.
async fn pair(out: &Outlet, entry: kv::Entry) -> Result<(), Ended> {
    out.send(entry.key).await?;
    out.send(entry.value).await
}

pub(super) async fn get(app: &Arc<App>, request: Request<schema::KeyRequest>) -> Reply<Chunks> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::STREAM_GET).await?;
    let entry = kv::get(app, &cx, get_of(request)).await?;
    Ok(respond(app, &call, app.closing(&cx), |out| async move { pair(&out, entry).await }))
}

pub(super) async fn scan(app: &Arc<App>, request: Request<schema::ScanRequest>) -> Reply<Chunks> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::STREAM_SCAN).await?;
    let mut walk = ScanWalk::begin(app, &cx, &scan_of(request)).await?;
    Ok(respond(app, &call, app.closing(&cx), |out| async move {
        while let Some(entry) = walk.next(&cx).await? {
            pair(&out, entry).await?;
        }
        Ok(())
    }))
}

pub(super) async fn z_scan(app: &Arc<App>, request: Request<schema::ZScanRequest>) -> Reply<Chunks> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::STREAM_ZSCAN).await?;
    let mut walk = ZScanWalk::begin(app, &cx, z_scan_of(request)).await?;
    Ok(respond(app, &call, app.closing(&cx), |out| async move {
        while let Some(member) = walk.next(&cx).await? {
            out.send(member.set).await?;
            out.send(member.key).await?;
            out.send(Bytes::copy_from_slice(&member.score.to_bits().to_be_bytes())).await?;
            out.send(Bytes::copy_from_slice(&member.at_tx.get().to_be_bytes())).await?;
            out.send(member.entry.map(|entry| entry.value).unwrap_or_default()).await?;
        }
        Ok(())
    }))
}

pub(super) async fn history(app: &Arc<App>, request: Request<schema::HistoryRequest>) -> Reply<Chunks> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::STREAM_HISTORY).await?;
    let mut walk = HistoryWalk::begin(app, &cx, history_of(request)).await?;
    Ok(respond(app, &call, app.closing(&cx), |out| async move {
        while let Some(entry) = walk.next(&cx).await? {
            pair(&out, entry).await?;
        }
        Ok(())
    }))
}

pub(super) async fn verifiable_get(app: &Arc<App>, request: Request<schema::VerifiableGetRequest>) -> Reply<Chunks> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::STREAM_VERIFIABLE_GET).await?;
    let key = request.key_request.ok_or(Error::from(text::EMPTY_REQUEST))?;
    let found = verified::get(app, &cx, get_of(key), TxId(request.prove_since_tx)).await?;
    let value = found.entry.value;
    // With its metadata, which the digest of the entry covers.
    let entry = schema::Entry {
        tx: found.entry.tx.get(),
        key: found.entry.key,
        referenced_by: found.entry.referenced_by.map(reference),
        metadata: convert::kv_metadata(&found.entry.metadata),
        ..Default::default()
    };
    let inclusion = schema::InclusionProof::from(&found.inclusion);
    let parts = [entry.encode_to_vec(), verifiable(found.tx).encode_to_vec(), inclusion.encode_to_vec()];
    Ok(respond(app, &call, app.closing(&cx), |out| async move {
        for part in parts {
            out.send(part.into()).await?;
        }
        out.send(value).await
    }))
}

/// What a failed write says in a stream: errors of the compatible server behind the words of the call.
fn refusal(error: Error, wrapped: fn(&str) -> Status) -> Status {
    match error {
        Error::Wire(error) => wrapped(&error.inside()),
        other => other.into(),
    }
}

pub(super) async fn set(app: &App, request: Incomes) -> Reply<schema::TxHeader> {
    let (call, due, chunks) = open_upload(request)?;
    let mut cx = app.enter(&call, &method::STREAM_SET).await?;
    let settings = kv::settings(&cx).await?;
    let mut incoming = Incoming::new(chunks, due, app.closing(&cx));
    let values = incoming.values(&settings, text::stream_set).await?;
    incoming.complete(app, &call, &mut cx)?;
    let written = kv::set(&cx, values, Vec::new()).await.map_err(|error| refusal(error, text::stream_set))?;
    Ok(Response::new((&written).into()))
}

pub(super) async fn verifiable_set(app: &App, request: Incomes) -> Reply<schema::VerifiableTx> {
    let (call, due, chunks) = open_upload(request)?;
    let mut cx = app.enter(&call, &method::STREAM_VERIFIABLE_SET).await?;
    let settings = kv::settings(&cx).await?;
    let mut incoming = Incoming::new(chunks, due, app.closing(&cx));
    let trusted = trusted(&mut incoming).await?;
    let wrapped = text::stream_verifiable_set;
    let values = incoming.values(&settings, wrapped).await?;
    incoming.complete(app, &call, &mut cx)?;
    let written =
        verified::set(app, &cx, values, Vec::new(), trusted).await.map_err(|error| refusal(error, wrapped))?;
    Ok(Response::new(verifiable(written)))
}

/// The transaction that the client trusts: the first message.
async fn trusted(incoming: &mut Incoming<Streaming<schema::Chunk>>) -> Result<TxId, Status> {
    let number = |len| if len > 8 { Err(text::ILLEGAL_ARGUMENTS.into()) } else { Ok(()) };
    match incoming.message(number).await? {
        Message::Whole(bytes) => match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(bytes) => Ok(TxId(u64::from_be_bytes(bytes))),
            Err(_) => Err(text::STREAM_UNEXPECTED_EOF.into()),
        },
        Message::Cut => Err(text::STREAM_UNEXPECTED_EOF.into()),
        Message::None => Err(text::STREAM_EOF.into()),
    }
}
