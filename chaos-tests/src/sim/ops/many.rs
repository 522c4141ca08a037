//! Reads of all keys at once, by name or by scan.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::bounded;
use super::super::plant::Plant;
use super::super::shared::now;
use super::{Ctx, Done, Op};
use crate::history::SnapshotRead;

/// GetAll.
pub struct GetAll;
/// Scan over everything.
pub struct ScanAll;

fn note(
    ctx: &Ctx<'_>,
    call: &'static str,
    keys: Vec<Vec<u8>>,
    entries: &[schema::Entry],
    invoked: std::time::Duration,
) {
    let value =
        |key: &Vec<u8>| entries.iter().find(|entry| entry.key == key.as_slice()).map(|entry| entry.value.to_vec());
    let pairs = keys
        .into_iter()
        .map(|key| {
            let value = value(&key);
            (key, value)
        })
        .collect();
    let read = SnapshotRead { call, node: ctx.node as u32, pairs, invoked };
    let mut shared = ctx.shared.borrow_mut();
    shared.trace.add(&read);
    shared.history.snapshots.push(read);
}

fn all_keys(ctx: &Ctx<'_>) -> Vec<Vec<u8>> {
    (0..ctx.keys).map(|i| format!("key-{i}").into_bytes()).collect()
}

impl Op for GetAll {
    fn name(&self) -> &'static str {
        "get-all"
    }

    fn weight(&self) -> u64 {
        6
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (keys, invoked) = (all_keys(ctx), now());
            let list = keys.iter().map(|key| key.clone().into()).collect();
            let request = ctx.session.request(schema::KeyListRequest { keys: list, ..Default::default() });
            let mut answer = bounded(ctx.session.api.get_all(request)).await?;
            if ctx.has(Plant::ManyStates) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                for entry in answer.entries.iter_mut().skip(1) {
                    entry.value = ctx.session.get(&entry.key).await?.unwrap_or_default().into();
                }
            }
            note(ctx, "GetAll", keys, &answer.entries, invoked);
            Ok(Done::Well)
        })
    }
}

impl Op for ScanAll {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn weight(&self) -> u64 {
        6
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (keys, invoked) = (all_keys(ctx), now());
            let scan = schema::ScanRequest { prefix: b"key-".to_vec().into(), ..Default::default() };
            let request = ctx.session.request(scan);
            let answer = bounded(ctx.session.api.scan(request)).await?;
            note(ctx, "Scan", keys, &answer.entries, invoked);
            Ok(Done::Well)
        })
    }
}
