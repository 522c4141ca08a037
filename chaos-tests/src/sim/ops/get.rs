//! Reads one key at the default level.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{bounded, found};
use super::super::plant::Plant;
use super::super::shared::now;
use super::{Ctx, Done, Op};

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

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, invoked) = (ctx.key(), now());
            let message = schema::KeyRequest { key: key.clone().into(), ..Default::default() };
            let stale = ctx.has(Plant::SkipBarrier);
            let request = if stale { ctx.session.local(message) } else { ctx.session.request(message) };
            let value = found(bounded(ctx.session.api.get(request)).await)?;
            let value = value.map(|entry| {
                ctx.saw(entry.tx);
                entry.value.to_vec()
            });
            ctx.read(key, value, invoked);
            Ok(Done::Well)
        })
    }
}
