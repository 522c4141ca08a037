//! Reads what a node has applied, which must be at least what the client has seen elsewhere.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{bounded, found};
use super::super::plant::Plant;
use super::{Ctx, Done, Op};
use crate::history::FloorRead;

/// See the module.
pub struct AtFloor;

impl Op for AtFloor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn weight(&self) -> u64 {
        8
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, floor) = (ctx.key(), ctx.memory.newest);
            let since_tx = if ctx.has(Plant::IgnoreFloor) { 0 } else { floor };
            let request = schema::KeyRequest { key: key.clone().into(), since_tx, ..Default::default() };
            let request = ctx.session.local(request);
            let value = found(bounded(ctx.session.api.get(request)).await)?;
            let value = value.map(|entry| {
                ctx.saw(entry.tx);
                entry.value.to_vec()
            });
            let read = FloorRead { node: ctx.node as u32, key, floor, value };
            let mut shared = ctx.shared.borrow_mut();
            shared.trace.add(&read);
            shared.history.floors.push(read);
            Ok(Done::Well)
        })
    }
}
