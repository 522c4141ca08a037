//! Sends a write again with the request id that it had, on any node and however much later: after another leader, a restart, files
//! that came from another node. It is carried out once, and whoever answers answers the same. When all is healed, each is sent once more
//! through each node.

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
use super::super::setup::NAMES;
use super::super::shared::{Shared, State, now};
use super::{Ctx, Done, Op, elsewhere, stored, within};
use crate::history::Ending;

/// See the module.
pub struct Again;

/// So long are the values, bytes, that segments close and a node that was away gets files: what it then remembers of requests has come
/// with them.
const PADDING_BYTES: usize = 12 << 10;

/// A long life has more requests than this; so many of them are sent again at its end.
const ASKED_AGAIN_MAX: usize = 100;

/// A request that may be sent again.
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
    shared: &Shared,
    node: usize,
    work: impl AsyncFnOnce(&NodeHandle) -> T + 'static,
) -> Result<Option<T>, Status> {
    let jobs = shared.borrow().running.get(&node).map(|node| node.jobs.clone());
    let Some(jobs) = jobs else { return Ok(None) };
    elsewhere(shared, "again", node, within(jobs, work)).await
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
            match ctx.memory.asked {
                // Now and then another one; until then the same, so that it grows old.
                Some(asked) if ctx.rng.below(4) > 0 => {
                    let Answer::Done(tx) = once_more(ctx.shared, node, asked).await? else { return Ok(Done::Refused) };
                    ctx.saw(tx);
                    Ok(Done::Well)
                }
                _ => for_the_first_time(ctx, node).await,
            }
        })
    }
}

async fn for_the_first_time(ctx: &mut Ctx<'_>, node: usize) -> Result<Done, Status> {
    let (key, mut value, invoked) = (ctx.key(), ctx.value(), now());
    value.resize(value.len() + PADDING_BYTES, b'y');
    let by = (ctx.client, ctx.memory.sequence);
    let (own_key, own_value) = (key.clone(), value.clone());
    let made = on(ctx.shared, node, async move |node| proposal(node, by, &own_key, &own_value)).await?;
    let Some(proposal) = made.flatten() else { return Err(Status::unavailable("the node is down")) };
    let sent = proposal.clone();
    let answer = match on(ctx.shared, node, async move |node| ask(node, sent).await).await {
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
    ctx.memory.asked = (ending != Ending::Refused).then(|| {
        let asked = &mut ctx.shared.borrow_mut().asked;
        asked.push(Asked { proposal, value, tx });
        asked.len() - 1
    });
    answer.map(|_| if ending == Ending::Refused { Done::Refused } else { Done::Well })
}

/// Sends a request again that was asked before, by its place. What is wrong with the answer is written down.
async fn once_more(shared: &Shared, node: usize, place: usize) -> Result<Answer, Status> {
    let sent = shared.borrow().asked[place].proposal.clone();
    let answer = on(shared, node, async move |node| ask(node, sent).await).await?;
    let Some(Some(answer)) = answer else { return Err(Status::unavailable("the node is down")) };
    let State { asked, history, sightings, .. } = &mut *shared.borrow_mut();
    let asked = &mut asked[place];
    let request = asked.proposal.request;
    match (answer, asked.tx) {
        (Answer::Done(tx), Some(first)) if tx != first => sightings.wrong.push(format!(
            "R4: request {request:?} was carried out at {first}, and sent again it is said to be at {tx}"
        )),
        (Answer::Done(tx), None) => {
            // Nobody had told until now.
            if let Some(write) = history.writes.iter_mut().rev().find(|write| write.value == asked.value) {
                (write.ending, write.ended) = (Ending::Acknowledged(tx), now());
            }
            asked.tx = Some(tx);
        }
        // It has no condition that could fail, and no life has as many requests as are remembered.
        (Answer::Rejected | Answer::TooOld, first) => {
            sightings.wrong.push(format!("R4: request {request:?}, first at {first:?}, is refused: {answer:?}"));
        }
        (Answer::Done(_) | Answer::Refused | Answer::Unknown, _) => {}
    }
    Ok(answer)
}

/// Sends requests once more through each of these nodes, which are healed. The answer, which is the leader's, must be the one of the
/// first time; a replica that has forgotten a request carries it out again, and then is another one.
pub async fn all_again(shared: &Shared, nodes: &[usize], until: Instant) -> Result<(), String> {
    let places = shared.borrow().asked.len();
    let some = (0..places).step_by(1 + places / ASKED_AGAIN_MAX);
    for (node, place) in nodes.iter().flat_map(|node| some.clone().map(move |place| (*node, place))) {
        loop {
            let answer = once_more(shared, node, place).await;
            if let Ok(Answer::Done(_) | Answer::Rejected | Answer::TooOld) = answer {
                break;
            }
            if Instant::now() > until {
                return Err(format!(
                    "liveness: {} does not take a request that was sent before: {answer:?}",
                    NAMES[node]
                ));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    Ok(())
}
