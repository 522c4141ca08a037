//! Writes one key.

use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::ending_of;
use super::super::plant::Plant;
use super::super::shared::now;
use super::{Ctx, Done, Op};
use crate::history::Ending;

/// See the module.
pub struct Set;

impl Op for Set {
    fn name(&self) -> &'static str {
        "set"
    }

    fn weight(&self) -> u64 {
        40
    }

    fn is_always(&self) -> bool {
        true
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, value, invoked) = (ctx.key(), ctx.value(), now());
            let answer = ctx.session.set(&key, &value).await;
            if ctx.has(Plant::ApplyTwice) && ctx.rng.below(20) == 0 {
                // Nobody remembers that it was applied.
                ctx.session.set(&key, &value).await?;
            }
            let ending = answer.as_ref().map_or_else(ending_of, |tx| Ending::Acknowledged(*tx));
            ctx.wrote(key, value, invoked, ending);
            answer.map(|_| Done::Well)
        })
    }
}
