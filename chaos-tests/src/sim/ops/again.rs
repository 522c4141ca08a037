//! Sends a write again with the request id that it had, on any node and however much later: after another leader, a restart, files
//! that came from another node. It is carried out once, and whoever answers answers the same.

use std::time::Duration;

use alhambra_ledger::ids::LogIndex;
use alhambra_node::node::NodeHandle;
use alhambra_raft::forward::Written;
use alhambra_storage::apply::Rejection;
use alhambra_storage::command::{ProposalEntry, RequestId, TxProposal};
use futures::future::LocalBoxFuture;
use tokio::time::Instant;
use tonic::Status;

use super::super::client::DATABASE;
use super::super::shared::now;
use super::{Ctx, Done, Op, elsewhere, stored, within};
use crate::history::Ending;

/// See the module.
pub struct Again;

/// A request that may be sent again.
#[derive(Clone)]
pub struct Asked {
    proposal: TxProposal,
    value: Vec<u8>,
    /// Where it was carried out, once that is known.
    tx: Option<u64>,
}

/// How one attempt ended.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Carried out, now or before.
    Done(u64),
    /// Too long ago for anybody to remember.
    TooOld,
    /// Refused by apply, which remembers that.
    Rejected,
    /// This attempt did nothing, which says nothing about another one.
    Refused,
    /// Nobody told.
    Unknown,
}

/// A write of one key with an id of its own, as this node would make it now.
fn proposal(node: &NodeHandle, (client, sequence): (u32, u64), key: &[u8], value: &[u8]) -> Option<TxProposal> {
    let group = node.groups().group_by_name(DATABASE)?;
    let applied = group.watch_applied().borrow().log_id;
    let mut id = *b"asks again: ....";
    id[12..].copy_from_slice(&client.to_be_bytes());
    let floor = applied.map_or(LogIndex(0), |log_id| log_id.index);
    Some(TxProposal {
        request: Some(RequestId { client: id, sequence, floor }),
        metadata: bytes::Bytes::new(),
        entries: vec![ProposalEntry::plain(stored(0, key).into(), bytes::Bytes::new(), stored(0, value).into())],
        preconditions: Vec::new(),
        read_set: None,
        foreign: None,
    })
}

/// One attempt; nothing when the node has no such database, so that nothing was sent.
async fn ask(node: &NodeHandle, proposal: TxProposal) -> Option<Answer> {
    let group = node.groups().group_by_name(DATABASE)?;
    Some(match group.write(proposal, Instant::now() + Duration::from_secs(3)).await {
        Ok(Written::Committed(header)) => Answer::Done(header.id.get()),
        Ok(Written::Rejected(Rejection::RequestTooOld)) => Answer::TooOld,
        Ok(Written::Rejected(Rejection::NotInitialised)) => Answer::Refused,
        Ok(Written::Rejected(_)) => Answer::Rejected,
        Err(error) if error.may_be_applied() => Answer::Unknown,
        Err(_) => Answer::Refused,
    })
}

/// Has any node do something. Nothing when it is down, or goes down meanwhile.
async fn on<T: 'static>(
    ctx: &Ctx<'_>,
    node: usize,
    work: impl AsyncFnOnce(&NodeHandle) -> T + 'static,
) -> Result<Option<T>, Status> {
    let jobs = ctx.shared.borrow().running.get(&node).map(|node| node.jobs.clone());
    let Some(jobs) = jobs else { return Ok(None) };
    elsewhere(ctx.shared, "again", node, within(jobs, work)).await
}

impl Op for Again {
    fn name(&self) -> &'static str {
        "again"
    }

    fn weight(&self) -> u64 {
        6
    }

    fn own_draw(&self) -> Option<(&'static str, u64)> {
        Some(("requests that are sent again", 2))
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let node = ctx.rng.below(ctx.nodes as u64) as usize;
            match ctx.memory.asked.clone() {
                // Now and then another one; until then the same, so that it grows old.
                Some(asked) if ctx.rng.below(4) > 0 => once_more(ctx, node, asked).await,
                _ => for_the_first_time(ctx, node).await,
            }
        })
    }
}

async fn for_the_first_time(ctx: &mut Ctx<'_>, node: usize) -> Result<Done, Status> {
    let (key, value, invoked) = (ctx.key(), ctx.value(), now());
    let by = (ctx.client, ctx.memory.sequence);
    let (own_key, own_value) = (key.clone(), value.clone());
    let made = on(ctx, node, async move |node| proposal(node, by, &own_key, &own_value)).await?;
    let Some(proposal) = made.flatten() else { return Err(Status::unavailable("the node is down")) };
    let sent = proposal.clone();
    let answer = match on(ctx, node, async move |node| ask(node, sent).await).await {
        // Nothing was sent.
        Ok(Some(None)) => Ok(Answer::Refused),
        Ok(Some(Some(answer))) => Ok(answer),
        Ok(None) => Ok(Answer::Unknown),
        Err(overdue) => Err(overdue),
    };
    let ending = match answer.as_ref().unwrap_or(&Answer::Unknown) {
        Answer::Done(tx) => Ending::Acknowledged(*tx),
        Answer::Refused | Answer::Rejected | Answer::TooOld => Ending::Refused,
        Answer::Unknown => Ending::Unknown,
    };
    ctx.wrote(key, value.clone(), invoked, ending);
    let tx = if let Ending::Acknowledged(tx) = ending { Some(tx) } else { None };
    // What was surely not carried out stays so: its value must not stand anywhere in the end.
    ctx.memory.asked = (ending != Ending::Refused).then_some(Asked { proposal, value, tx });
    answer.map(|_| if ending == Ending::Refused { Done::Refused } else { Done::Well })
}

async fn once_more(ctx: &mut Ctx<'_>, node: usize, asked: Asked) -> Result<Done, Status> {
    let sent = asked.proposal.clone();
    let answer = on(ctx, node, async move |node| ask(node, sent).await).await?;
    let Some(Some(answer)) = answer else { return Err(Status::unavailable("the node is down")) };
    match (answer, asked.tx) {
        (Answer::Done(tx), Some(first)) if tx != first => {
            let id = asked.proposal.request;
            ctx.wrong(format!(
                "R4: request {id:?} was carried out at {first}, and sent again it is said to be at {tx}"
            ));
        }
        (Answer::Done(_), Some(_)) => {}
        (Answer::Done(tx), None) => {
            ctx.saw(tx);
            // Nobody had told until now.
            let mut shared = ctx.shared.borrow_mut();
            if let Some(write) = shared.history.writes.iter_mut().rev().find(|write| write.value == asked.value) {
                (write.ending, write.ended) = (Ending::Acknowledged(tx), now());
            }
            ctx.memory.asked = Some(Asked { tx: Some(tx), ..asked });
        }
        (Answer::Rejected, Some(first)) => {
            let id = asked.proposal.request;
            ctx.wrong(format!("R4: request {id:?} was carried out at {first}, and sent again it is refused"));
        }
        (Answer::TooOld | Answer::Rejected | Answer::Refused | Answer::Unknown, _) => return Ok(Done::Refused),
    }
    Ok(Done::Well)
}
