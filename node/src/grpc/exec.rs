//! References, sorted sets, and several operations in one transaction.

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_proto::schema;
use alhambra_proto::schema::op::Operation as Wire;
use tonic::{Request, Response};

use super::kv::{header, new_value, preconditions, z_entry};
use super::verified::verifiable;
use super::{Reply, open, read_reply};
use crate::error::Error;
use crate::method;
use crate::service::App;
use crate::service::exec::{self, NewMember, NewReference, Operation, Target};
use crate::service::verified;
use crate::service::zset::{self, ZScan};

fn new_reference(request: schema::ReferenceRequest) -> NewReference {
    let target = Target { key: request.referenced_key, at_tx: TxId(request.at_tx), bound: request.bound_ref };
    NewReference { key: request.key, target }
}

pub(super) fn new_member(request: schema::ZAddRequest) -> NewMember {
    let target = Target { key: request.key, at_tx: TxId(request.at_tx), bound: request.bound_ref };
    NewMember { set: request.set, score: request.score, target }
}

fn operation(op: schema::Op) -> Option<Operation> {
    op.operation.map(|operation| match operation {
        Wire::Kv(kv) => Operation::Value(new_value(kv)),
        Wire::ZAdd(request) => Operation::Member(new_member(request)),
        Wire::Ref(request) => Operation::Reference(new_reference(request)),
    })
}

pub(super) async fn exec_all(app: &App, request: Request<schema::ExecAllRequest>) -> Reply<schema::TxHeader> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::EXEC_ALL).await?;
    let operations = request.operations.into_iter().map(operation).collect();
    let written = exec::exec_all(app, &cx, operations, preconditions(request.preconditions), request.no_wait).await?;
    Ok(header(&written))
}

pub(super) async fn set_reference(app: &App, request: Request<schema::ReferenceRequest>) -> Reply<schema::TxHeader> {
    let (call, mut request) = open(request)?;
    let cx = app.enter(&call, &method::SET_REFERENCE).await?;
    let conditions = preconditions(std::mem::take(&mut request.preconditions));
    let written = exec::set_reference(app, &cx, new_reference(request), conditions).await?;
    Ok(header(&written))
}

pub(super) async fn verifiable_set_reference(
    app: &App,
    request: Request<schema::VerifiableReferenceRequest>,
) -> Reply<schema::VerifiableTx> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::VERIFIABLE_SET_REFERENCE).await?;
    let mut reference = request.reference_request.ok_or(Error::from(text::ILLEGAL_ARGUMENTS))?;
    let conditions = preconditions(std::mem::take(&mut reference.preconditions));
    let trusted = TxId(request.prove_since_tx);
    let written = verified::set_reference(app, &cx, new_reference(reference), conditions, trusted).await?;
    Ok(Response::new(verifiable(written)))
}

pub(super) async fn z_add(app: &App, request: Request<schema::ZAddRequest>) -> Reply<schema::TxHeader> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::ZADD).await?;
    Ok(header(&exec::add_member(app, &cx, new_member(request)).await?))
}

pub(super) async fn verifiable_z_add(
    app: &App,
    request: Request<schema::VerifiableZAddRequest>,
) -> Reply<schema::VerifiableTx> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::VERIFIABLE_ZADD).await?;
    let member = request.z_add_request.ok_or(Error::from(text::ILLEGAL_ARGUMENTS))?;
    let written = verified::add_member(app, &cx, new_member(member), TxId(request.prove_since_tx)).await?;
    Ok(Response::new(verifiable(written)))
}

/// The members that are asked for.
pub(super) fn z_scan_of(request: schema::ZScanRequest) -> ZScan {
    ZScan {
        set: request.set,
        seek_key: request.seek_key,
        seek_score: request.seek_score,
        seek_at_tx: TxId(request.seek_at_tx),
        inclusive_seek: request.inclusive_seek,
        limit: request.limit,
        desc: request.desc,
        min_score: request.min_score.map(|min| min.score),
        max_score: request.max_score.map(|max| max.score),
        since_tx: TxId(request.since_tx),
        offset: request.offset,
    }
}

pub(super) async fn z_scan(app: &App, request: Request<schema::ZScanRequest>) -> Reply<schema::ZEntries> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::ZSCAN).await?;
    let found = zset::scan(app, &cx, z_scan_of(request)).await?;
    Ok(read_reply(cx.level, schema::ZEntries { entries: found.into_iter().map(z_entry).collect() }))
}
