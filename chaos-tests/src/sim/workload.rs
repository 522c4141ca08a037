//! A client: picks operations until the load is over, and goes to another node whenever one does not work.

use std::time::Duration;

use alhambra_proto::code::CODE_KEY;

use super::client::{DATABASE, Session, ending_of, is_overdue};
use super::env::SimRng;
use super::ops::{Ctx, Done, Memory, Op};
use super::plant::Plant;
use super::setup::NAMES;
use super::shared::{Shared, now};
use crate::history::{Ending, Overdue};
use tonic::Code;

/// What a client is told.
pub struct Client {
    /// Its number.
    pub number: u32,
    /// Decides.
    pub rng: SimRng,
    /// The deadline of the calls of its session; nothing for the node's own.
    pub patience: Option<Duration>,
    /// Whether disks of this life rot, so that a node may say of what it reads that it is damaged.
    pub rots: bool,
    /// The bug that this life has.
    pub plant: Option<Plant>,
    /// Nodes that there are.
    pub nodes: usize,
    /// Keys that there are.
    pub keys: u64,
    /// Most milliseconds between two calls.
    pub rest_ms: u64,
    /// What it does.
    pub ops: Vec<&'static dyn Op>,
}

impl Client {
    fn pick(&self) -> &'static dyn Op {
        let mut at = self.rng.below(self.ops.iter().map(|op| op.weight()).sum());
        for op in &self.ops {
            match at.checked_sub(op.weight()) {
                Some(left) => at = left,
                None => return *op,
            }
        }
        self.ops[0]
    }

    /// Works until the load is over.
    pub async fn run(self, shared: &Shared) {
        let mut memory = Memory::default();
        let mut session: Option<(usize, Session)> = None;
        while !shared.borrow().load_over {
            let Some((node, open)) = &mut session else {
                let node = self.rng.below(self.nodes as u64) as usize;
                let life = life(shared, node);
                let invoked = now();
                match Session::open(NAMES[node], DATABASE).await {
                    Ok(open) => session = Some((node, open.with_patience(self.patience))),
                    Err(status) => {
                        note_overdue(shared, &status, "OpenSession", node, life, invoked);
                        tokio::time::sleep(Duration::from_millis(100 + self.rng.below(200))).await;
                    }
                }
                continue;
            };
            let (op, node, life, invoked) = (self.pick(), *node, life(shared, *node), now());
            let mut ctx = Ctx {
                client: self.number,
                rng: &self.rng,
                plant: self.plant,
                shared,
                keys: self.keys,
                node,
                nodes: self.nodes,
                session: open,
                memory: &mut memory,
            };
            let done = op.run(&mut ctx).await;
            {
                let mut shared = shared.borrow_mut();
                let tally = shared.done.entry(op.name()).or_default();
                match &done {
                    Ok(Done::Well) => tally.done += 1,
                    Ok(Done::Refused) => tally.refused += 1,
                    Err(status) if ending_of(status) == Ending::Refused => tally.refused += 1,
                    Err(_) => tally.unknown += 1,
                }
            }
            if let Err(status) = done {
                let never = match status.code() {
                    Code::Unimplemented | Code::InvalidArgument | Code::Unauthenticated => {
                        !status.message().contains("session")
                    }
                    // The transport says these too, of a connection that broke.
                    Code::Internal | Code::Unknown => status.metadata().contains_key(CODE_KEY),
                    Code::DataLoss => !self.rots,
                    _ => false,
                };
                if never {
                    // No fault is a reason for these.
                    let what = format!("{} on node {node} at {invoked:?}: {status:?}", op.name());
                    shared.borrow_mut().sightings.wrong.push(what);
                }
                note_overdue(shared, &status, op.name(), node, life, invoked);
                // Who gives up early does not open a new session for each call: a node has only so many.
                let gave_up =
                    self.patience.is_some() && matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
                if !gave_up || self.rng.below(8) == 0 {
                    session = None;
                }
                tokio::time::sleep(Duration::from_millis(20 + self.rng.below(80))).await;
            } else {
                tokio::time::sleep(Duration::from_millis(self.rng.below(self.rest_ms))).await;
            }
        }
    }
}

/// Which life of the node this is; `None` while it is down.
pub(super) fn life(shared: &Shared, node: usize) -> Option<u64> {
    let shared = shared.borrow();
    shared.running.get(&node).and_then(|_| shared.lives.get(&node).copied())
}

/// Writes down that a call was left waiting, if its node has been up all the time.
pub(super) fn note_overdue(
    shared: &Shared,
    status: &tonic::Status,
    call: &'static str,
    node: usize,
    before: Option<u64>,
    invoked: Duration,
) {
    // A machine that lost power answers nothing, and the simulated network does not say so either.
    if is_overdue(status) && before.is_some() && before == life(shared, node) {
        let overdue = Overdue { call, node: node as u32, invoked, waited: now() - invoked };
        shared.borrow_mut().history.overdue.push(overdue);
    }
}
