//! ExecAll: several keys in one transaction.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{bounded, ending_of};
use super::super::plant::Plant;
use super::super::shared::now;
use super::{Ctx, Done, Op};
use crate::history::Ending;

/// See the module.
pub struct Batch;

impl Op for Batch {
    fn name(&self) -> &'static str {
        "exec-all"
    }

    fn weight(&self) -> u64 {
        8
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (first, invoked) = (ctx.rng.below(ctx.keys), now());
            let count = 1 + ctx.rng.below(ctx.keys.min(4));
            let mut pairs = Vec::new();
            for i in 0..count {
                let value = ctx.value();
                pairs.push((format!("key-{}", (first + i) % ctx.keys).into_bytes(), value));
            }
            if ctx.has(Plant::TornBatch) {
                // The rest is not sent either when one was refused.
                for (key, value) in &pairs {
                    if ctx.session.set(key, value).await.is_err() {
                        break;
                    }
                }
                let values = pairs.iter().map(|(_, value)| value.clone()).collect();
                ctx.shared.borrow_mut().history.batches.push(values);
                for (key, value) in pairs {
                    ctx.wrote(key, value, invoked, Ending::Unknown);
                }
                return Ok(Done::Well);
            }
            let operation = |(key, value): &(Vec<u8>, Vec<u8>)| {
                let kv = schema::KeyValue { key: key.clone().into(), value: value.clone().into(), metadata: None };
                schema::Op { operation: Some(schema::op::Operation::Kv(kv)) }
            };
            let request =
                schema::ExecAllRequest { operations: pairs.iter().map(operation).collect(), ..Default::default() };
            let request = ctx.session.request(request);
            let answer = bounded(ctx.session.api.exec_all(request)).await;
            let ending = answer.as_ref().map_or_else(ending_of, |header| Ending::Acknowledged(header.id));
            let values = pairs.iter().map(|(_, value)| value.clone()).collect();
            ctx.shared.borrow_mut().history.batches.push(values);
            for (key, value) in pairs {
                ctx.wrote(key, value, invoked, ending);
            }
            answer.map(|_| Done::Well)
        })
    }
}
