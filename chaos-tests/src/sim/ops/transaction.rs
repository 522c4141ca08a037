//! A transaction with a read set, made on the node as its own code makes one: reads some keys, writes another one, and is refused
//! when what it has read has changed by the time it is applied.

use std::time::Duration;

use alhambra_node::node::NodeHandle;
use alhambra_raft::group::Level;
use alhambra_storage::apply::Outcome;
use futures::future::LocalBoxFuture;
use tokio::time::Instant;
use tonic::Status;

use super::super::client::DATABASE;
use super::super::plant::Plant;
use super::super::shared::now;
use super::{Ctx, Done, Op, stored, within};
use crate::history::{Ending, Transaction};

/// See the module.
pub struct ReadWrite;

/// What was read, and how it ended.
type Committed = (Vec<(Vec<u8>, Option<Vec<u8>>)>, Ending);

async fn commit(
    node: &NodeHandle,
    reads: Vec<Vec<u8>>,
    key: &[u8],
    value: &[u8],
    think: Duration,
    checked: bool,
) -> Option<Committed> {
    let group = node.groups().group_by_name(DATABASE)?;
    let deadline = Instant::now() + Duration::from_secs(3);
    group.barrier(Level::Linearizable, deadline).await.ok()?;
    let mut transaction = group.database().begin(0).ok()?;
    let mut seen = Vec::new();
    for read in reads {
        let found = transaction.get(&stored(0, &read)).ok()?;
        let value = found.map(|found| transaction.value(&found)).transpose().ok()?;
        seen.push((read, value.map(|value| value.get(1..).unwrap_or_default().to_vec())));
    }
    // Others write meanwhile.
    tokio::time::sleep(think).await;
    transaction.set(stored(0, key).into(), stored(0, value).into()).ok()?;
    let mut proposal = transaction.into_proposal();
    if !checked {
        proposal.read_set = None;
    }
    let ending = match group.propose(proposal, deadline).await {
        Ok(Outcome::Committed { tx, .. }) => Ending::Acknowledged(tx.0),
        Ok(_) => Ending::Refused,
        Err(_) => Ending::Unknown,
    };
    Some((seen, ending))
}

impl Op for ReadWrite {
    fn name(&self) -> &'static str {
        "transaction"
    }

    fn weight(&self) -> u64 {
        10
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, value, invoked) = (ctx.key(), ctx.value(), now());
            let reads: Vec<_> = (0..1 + ctx.rng.below(2)).map(|_| ctx.key()).collect();
            let think = Duration::from_millis(ctx.rng.below(100));
            let Some(jobs) = ctx.shared.borrow().running.get(&ctx.node).map(|node| node.jobs.clone()) else {
                return Err(Status::unavailable("the node is down"));
            };
            let checked = !ctx.has(Plant::IgnoreReadSets);
            let (own_key, own_value) = (key.clone(), value.clone());
            let done = within(jobs, async move |node| commit(node, reads, &own_key, &own_value, think, checked).await);
            let done = match done.await {
                Ok(done) => done,
                Err(overdue) => {
                    ctx.wrote(key, value, invoked, Ending::Unknown);
                    return Err(overdue);
                }
            };
            match done {
                Some(Some((reads, ending))) => {
                    ctx.shared.borrow_mut().history.transactions.push(Transaction { reads, value: value.clone() });
                    ctx.wrote(key, value, invoked, ending);
                    Ok(if ending == Ending::Refused { Done::Refused } else { Done::Well })
                }
                // Nothing was proposed.
                Some(None) => Err(Status::unavailable("the node cannot read")),
                // The node went down in between.
                None => {
                    ctx.wrote(key, value, invoked, Ending::Unknown);
                    Err(Status::unavailable("the node went down"))
                }
            }
        })
    }
}
