//! A write that is to happen only under a condition.

use alhambra_proto::schema;
use alhambra_proto::schema::precondition::{
    KeyMustExistPrecondition, KeyMustNotExistPrecondition, KeyNotModifiedAfterTxPrecondition, Precondition as Kind,
};
use futures::future::LocalBoxFuture;
use tonic::{Code, Status};

use super::super::client::{bounded, ending_of, set_request};
use super::super::plant::Plant;
use super::super::shared::now;
use super::{Ctx, Done, Op};
use crate::history::{Condition, ConditionalWrite, Ending};

/// See the module.
pub struct Conditional;

fn wire(condition: &Condition) -> schema::Precondition {
    let kind = match condition.clone() {
        Condition::Exists(key) => Kind::KeyMustExist(KeyMustExistPrecondition { key: key.into() }),
        Condition::Absent(key) => Kind::KeyMustNotExist(KeyMustNotExistPrecondition { key: key.into() }),
        Condition::UnchangedSince(key, tx) => {
            Kind::KeyNotModifiedAfterTx(KeyNotModifiedAfterTxPrecondition { key: key.into(), tx_id: tx })
        }
    };
    schema::Precondition { precondition: Some(kind) }
}

impl Op for Conditional {
    fn name(&self) -> &'static str {
        "conditional"
    }

    fn weight(&self) -> u64 {
        10
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, value, invoked) = (ctx.key(), ctx.value(), now());
            let floor = ctx.memory.newest;
            let condition = match ctx.rng.below(4) {
                0 => Condition::Exists(ctx.key()),
                1 => Condition::Absent(ctx.key()),
                _ if floor > 0 => Condition::UnchangedSince(key.clone(), floor - ctx.rng.below(floor.min(20))),
                _ => Condition::Absent(key.clone()),
            };
            let ignored = ctx.has(Plant::IgnoreConditions);
            let conditions = if ignored { vec![] } else { vec![wire(&condition)] };
            let request = ctx.session.request(set_request(&key, &value, conditions));
            let answer = bounded(ctx.session.api.set(request)).await;
            let unmet = answer
                .as_ref()
                .is_err_and(|e| e.code() == Code::FailedPrecondition && e.message().contains("precondition"));
            let ending = answer.as_ref().map_or_else(ending_of, |header| Ending::Acknowledged(header.id));
            ctx.shared.borrow_mut().history.conditionals.push(ConditionalWrite {
                value: value.clone(),
                condition,
                unmet,
                floor,
                ended: now(),
            });
            ctx.wrote(key, value, invoked, ending);
            if unmet { Ok(Done::Refused) } else { answer.map(|_| Done::Well) }
        })
    }
}
