//! Reads one key at the default level.

use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::shared::now;
use super::{Ctx, Op};
use crate::history::Read;

/// See the module.
pub struct Get;

impl Op for Get {
    fn name(&self) -> &'static str {
        "get"
    }

    fn weight(&self) -> u64 {
        30
    }

    fn is_always(&self) -> bool {
        true
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let (key, invoked) = (ctx.key(), now());
            let value = ctx.session.get(&key).await?;
            let read = Read { client: ctx.client, node: ctx.node as u32, key, value, invoked, ended: now() };
            let mut shared = ctx.shared.borrow_mut();
            shared.trace.add(format!("{read:?}").as_bytes());
            shared.history.reads.push(read);
            Ok(())
        })
    }
}
