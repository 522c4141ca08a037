//! Sorted sets that all clients share: members with few different scores and keys, some of them bound to a version, and scans.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{bounded, ending_of, found};
use super::super::shared::now;
use super::{Ctx, Done, Op};
use crate::history::{Ending, Member, MemberAdd, SetScan};
use crate::reader::members;

/// Adds a member.
pub struct Add;
/// Scans a set.
pub struct ScanSet;

/// Either of them is nothing without the other.
const DRAW: (&str, u64) = ("sorted sets", 2);
/// How many sets there are.
const SETS: u64 = 2;
/// Scores that come often, so that keys have equal ones; negative ones stand behind all others.
const SCORES: [f64; 6] = [0.0, 0.5, 1.0, 1e9, -0.5, -1.0];

fn set(ctx: &Ctx<'_>) -> Vec<u8> {
    format!("set-{}", ctx.rng.below(SETS)).into_bytes()
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "zadd"
    }

    fn weight(&self) -> u64 {
        6
    }

    fn own_draw(&self) -> Option<(&'static str, u64)> {
        Some(DRAW)
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (set, key) = (set(ctx), ctx.key());
            let score = match ctx.rng.below(12) {
                common if common < 6 => SCORES[common as usize],
                _ => ctx.rng.below(10_000) as f64 / 8.0,
            };
            let mut at_tx = 0;
            if ctx.rng.below(3) == 0 {
                // Bound to the version that is the newest now.
                let message = schema::KeyRequest { key: key.clone().into(), ..Default::default() };
                let request = ctx.session.request(message);
                match found(bounded(ctx.session.api.get(request)).await)? {
                    Some(entry) => at_tx = entry.tx,
                    None => return Ok(Done::Refused),
                }
            }
            let invoked = now();
            let request = ctx.session.request(schema::ZAddRequest {
                set: set.clone().into(),
                score,
                key: key.clone().into(),
                at_tx,
                bound_ref: at_tx > 0,
                no_wait: false,
            });
            let answer = found(bounded(ctx.session.api.z_add(request)).await);
            let ending = match &answer {
                Ok(Some(header)) => Ending::Acknowledged(header.id),
                // There is no such key.
                Ok(None) => Ending::Refused,
                Err(status) => ending_of(status),
            };
            if let Ending::Acknowledged(tx) = ending {
                ctx.saw(tx);
            }
            let member = Member { set, score: score.to_bits(), key, at_tx };
            let addition = MemberAdd { member, invoked, ended: now(), ending };
            let mut shared = ctx.shared.borrow_mut();
            shared.trace.add(&addition);
            shared.history.additions.push(addition);
            answer.map(|header| if header.is_some() { Done::Well } else { Done::Refused })
        })
    }
}

impl Op for ScanSet {
    fn name(&self) -> &'static str {
        "zscan"
    }

    fn weight(&self) -> u64 {
        4
    }

    fn own_draw(&self) -> Option<(&'static str, u64)> {
        Some(DRAW)
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (set, invoked) = (set(ctx), now());
            let message = schema::ZScanRequest { set: set.clone().into(), ..Default::default() };
            let request = ctx.session.request(message);
            let shown = members(bounded(ctx.session.api.z_scan(request)).await?)?;
            let done = if shown.is_empty() { Done::Refused } else { Done::Well };
            let scan = SetScan { node: ctx.node as u32, set, shown, invoked };
            let mut shared = ctx.shared.borrow_mut();
            shared.trace.add(&scan);
            shared.history.set_scans.push(scan);
            Ok(done)
        })
    }
}
