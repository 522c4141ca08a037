//! Reads the past of a key: its history, the version of a transaction, the version of a number.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{bounded, found};
use super::super::shared::now;
use super::{Ctx, Done, Op};
use crate::history::PastRead;

/// Most versions of one answer.
const LIMIT: i32 = 1000;

/// All versions.
pub struct History;
/// The version that a transaction wrote.
pub struct AtTx;
/// The version of a number.
pub struct AtRevision;

fn note(ctx: &Ctx<'_>, read: PastRead) {
    let mut shared = ctx.shared.borrow_mut();
    shared.trace.add(&read);
    shared.history.pasts.push(read);
}

impl Op for History {
    fn name(&self) -> &'static str {
        "history"
    }

    fn weight(&self) -> u64 {
        4
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, invoked) = (ctx.key(), now());
            let request = schema::HistoryRequest { key: key.clone().into(), limit: LIMIT, ..Default::default() };
            let request = ctx.session.request(request);
            let answer = found(bounded(ctx.session.api.history(request)).await)?;
            let entries = answer.map(|answer| answer.entries).unwrap_or_default();
            if entries.len() < LIMIT as usize {
                let versions = entries.into_iter().map(|entry| (entry.tx, entry.value.to_vec())).collect();
                note(ctx, PastRead::History { node: ctx.node as u32, key, versions, invoked });
            }
            Ok(Done::Well)
        })
    }
}

impl Op for AtTx {
    fn name(&self) -> &'static str {
        "at-tx"
    }

    fn weight(&self) -> u64 {
        4
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            if ctx.memory.newest == 0 {
                return Ok(Done::Refused);
            }
            let (key, tx) = (ctx.key(), 1 + ctx.rng.below(ctx.memory.newest));
            let request = schema::KeyRequest { key: key.clone().into(), at_tx: tx, ..Default::default() };
            let request = ctx.session.request(request);
            let value = found(bounded(ctx.session.api.get(request)).await)?.map(|entry| entry.value.to_vec());
            note(ctx, PastRead::AtTx { node: ctx.node as u32, key, tx, value });
            Ok(Done::Well)
        })
    }
}

impl Op for AtRevision {
    fn name(&self) -> &'static str {
        "at-revision"
    }

    fn weight(&self) -> u64 {
        4
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, revision) = (ctx.key(), 1 + ctx.rng.below(20));
            let request =
                schema::KeyRequest { key: key.clone().into(), at_revision: revision as i64, ..Default::default() };
            let request = ctx.session.request(request);
            match found(bounded(ctx.session.api.get(request)).await) {
                Ok(Some(entry)) => {
                    let found = (entry.tx, entry.value.to_vec());
                    note(ctx, PastRead::AtRevision { node: ctx.node as u32, key, revision, found });
                    Ok(Done::Well)
                }
                Ok(None) => Ok(Done::Refused),
                Err(status) if status.message().contains("invalid key revision number") => Ok(Done::Refused),
                Err(status) => Err(status),
            }
        })
    }
}
