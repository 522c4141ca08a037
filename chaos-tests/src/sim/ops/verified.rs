//! Verified calls, judged by a verifier that shares no code with the server or with our client. Every answer is also changed in one
//! bit, and must then be refused.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use prost::Message;
use tonic::Status;

use super::super::client::{bounded, dual, ending_of, found, header, set_request, to_hash};
use super::super::shared::now;
use super::{Ctx, Op};
use crate::history::{Ending, Trusted};
use crate::model::chain::{Entry, Hash, hash};
use crate::model::proof;

/// Writes and verifies.
pub struct Set;
/// Reads and verifies.
pub struct Get;

fn stored(prefix: u8, bytes: &[u8]) -> Vec<u8> {
    [&[prefix], bytes].concat()
}

/// Verifies that the transaction belongs to what is trusted; answers the state that is trusted from then on.
fn advance(trusted: Option<(u64, Hash)>, tx: &schema::VerifiableTx) -> Result<(u64, Hash), String> {
    let text = |status: Status| status.message().to_owned();
    let shown = header(tx.tx.as_ref().and_then(|tx| tx.header.as_ref())).map_err(text)?;
    let dual = dual(tx.dual_proof.as_ref()).map_err(text)?;
    let (id, alh) = (shown.tx.id, shown.alh());
    let Some((known, known_alh)) = trusted else {
        // The first contact believes what it is shown, as every SDK does.
        proof::verify(&dual, dual.source.tx.id, dual.target.tx.id, &dual.source.alh(), &dual.target.alh())?;
        return Ok((id, alh));
    };
    let (source, target) = if known <= id { ((known, known_alh), (id, alh)) } else { ((id, alh), (known, known_alh)) };
    proof::verify(&dual, source.0, target.0, &source.1, &target.1)?;
    Ok(target)
}

/// Verifies an entry and its transaction.
fn check_entry(
    trusted: Option<(u64, Hash)>,
    key: &[u8],
    answer: &schema::VerifiableEntry,
) -> Result<((u64, Hash), Vec<u8>), String> {
    let entry = answer.entry.as_ref().ok_or("no entry")?;
    let tx = answer.verifiable_tx.as_ref().ok_or("no transaction")?;
    let inclusion = answer.inclusion_proof.as_ref().ok_or("no inclusion proof")?;
    let text = |status: Status| status.message().to_owned();
    let shown = header(tx.tx.as_ref().and_then(|tx| tx.header.as_ref())).map_err(text)?;
    if entry.key != key || entry.tx != shown.tx.id || entry.metadata.is_some() {
        return Err("another entry".into());
    }
    let terms: Result<Vec<Hash>, Status> = inclusion.terms.iter().map(|term| to_hash(term)).collect();
    let value_hash = hash(&[&stored(0, &entry.value)]);
    let stood = Entry { key: stored(0, key), metadata: vec![], value_hash };
    let place = (u64::try_from(inclusion.leaf), u64::try_from(inclusion.width));
    let (Ok(at), Ok(width)) = place else { return Err("place".into()) };
    if width != u64::from(shown.entries)
        || !proof::entry_included(&stood, at, width, &terms.map_err(text)?, &shown.tx.eh)
    {
        return Err("inclusion in the transaction".into());
    }
    Ok((advance(trusted, tx)?, entry.value.to_vec()))
}

/// The same message with one bit changed, where that is still a message of the kind and another one.
fn bent<M: Message + Default + PartialEq>(ctx: &Ctx<'_>, message: &M) -> Option<M> {
    let mut bytes = message.encode_to_vec();
    let at = ctx.rng.below(bytes.len().max(1) as u64) as usize;
    *bytes.get_mut(at)? ^= 1 << ctx.rng.below(8);
    M::decode(bytes.as_slice()).ok().filter(|bent| bent != message)
}

fn trust(ctx: &mut Ctx<'_>, state: (u64, Hash)) {
    ctx.memory.trusted = Some(state);
    ctx.saw(state.0);
    let trusted = Trusted { client: ctx.client, tx: state.0, alh: state.1.to_vec() };
    ctx.shared.borrow_mut().history.trusted.push(trusted);
}

fn since(ctx: &Ctx<'_>) -> u64 {
    ctx.memory.trusted.map_or(0, |(tx, _)| tx)
}

impl Op for Set {
    fn name(&self) -> &'static str {
        "verified-set"
    }

    fn weight(&self) -> u64 {
        8
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let (key, value, invoked, before) = (ctx.key(), ctx.value(), now(), ctx.memory.trusted);
            let set_request = Some(set_request(&key, &value, vec![]));
            let request = ctx.session.request(schema::VerifiableSetRequest { set_request, prove_since_tx: since(ctx) });
            let answer = bounded(ctx.session.api.verifiable_set(request)).await;
            let id = |tx: &schema::VerifiableTx| tx.tx.as_ref().and_then(|tx| tx.header.as_ref()).map_or(0, |h| h.id);
            let ending = answer.as_ref().map_or_else(ending_of, |tx| Ending::Acknowledged(id(tx)));
            ctx.wrote(key, value.clone(), invoked, ending);
            let tx = answer?;
            match advance(before, &tx) {
                Ok(state) => {
                    if before.is_some()
                        && let Some(bent) = bent(ctx, &tx)
                        && let Ok(other) = advance(before, &bent)
                        && other != state
                    {
                        ctx.wrong(format!("P1: a changed proof verifies: {bent:?}"));
                    }
                    trust(ctx, state);
                }
                Err(step) => {
                    ctx.wrong(format!("P1: node {}: proof of a write since {before:?}: {step}: {tx:?}", ctx.node))
                }
            }
            Ok(())
        })
    }
}

impl Op for Get {
    fn name(&self) -> &'static str {
        "verified-get"
    }

    fn weight(&self) -> u64 {
        10
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let (key, before) = (ctx.key(), ctx.memory.trusted);
            let key_request = Some(schema::KeyRequest { key: key.clone().into(), ..Default::default() });
            let request = ctx.session.request(schema::VerifiableGetRequest { key_request, prove_since_tx: since(ctx) });
            let Some(answer) = found(bounded(ctx.session.api.verifiable_get(request)).await)? else { return Ok(()) };
            match check_entry(before, &key, &answer) {
                Ok((state, value)) => {
                    if before.is_some()
                        && let Some(bent) = bent(ctx, &answer)
                        && let Ok(other) = check_entry(before, &key, &bent)
                        && other != (state, value)
                    {
                        ctx.wrong(format!("P1: a changed answer verifies: {bent:?}"));
                    }
                    trust(ctx, state);
                }
                Err(step) => {
                    ctx.wrong(format!("P1: node {}: proof of {key:?} since {before:?}: {step}: {answer:?}", ctx.node))
                }
            }
            Ok(())
        })
    }
}
