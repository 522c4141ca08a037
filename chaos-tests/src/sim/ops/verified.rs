//! Verified calls, judged by a verifier that shares no code with the server or with our client. Every answer is also changed in one
//! bit, and must then be refused.

use alhambra_ledger::Digest;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{DualProof, verify_dual};
use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use prost::Message;
use tonic::Status;

use super::super::client::{bounded, dual, ending_of, found, header, set_request, to_hash};
use super::super::plant::Plant;
use super::super::shared::now;
use super::{Ctx, Done, Op, stored};
use crate::history::{Ending, Trusted};
use crate::model::chain::{Entry, Hash, hash};
use crate::model::proof::{self, Dual, Header};

/// Writes and verifies.
pub struct Set;
/// Reads and verifies.
pub struct Get;

/// So begins a refusal of the independent verifier where ours refuses nothing.
const BELIEVED: &str = "our own verifier believes what the independent one refuses: ";

/// The state that a client trusts.
pub(super) type State = (u64, Hash);

fn text(status: Status) -> String {
    status.message().to_owned()
}

/// The steps that a client takes.
#[derive(Clone, Copy)]
pub(super) struct Verifier {
    /// What is trusted; the first contact believes what it is shown, as every SDK does.
    pub trusted: Option<State>,
    /// The planted bug.
    pub lax: bool,
}

/// What a verifier has looked at: when any of it changes, the answer must be refused.
#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    pub header: Header,
    dual: Dual,
    entry: Option<SeenEntry>,
}

#[derive(Debug, PartialEq)]
struct SeenEntry {
    key: Vec<u8>,
    value: Vec<u8>,
    /// Its place in the transaction.
    at: u64,
    terms: Vec<Hash>,
}

impl Verifier {
    fn dual(self, (proof, wire): (&Dual, &schema::DualProof), source: State, target: State) -> Result<(), String> {
        let verdict = match proof::verify(proof, source.0, target.0, &source.1, &target.1) {
            Err("consistency") if self.lax => return Ok(()),
            verdict => verdict,
        };
        // What our clients make of the same.
        let end = |state: State| (TxId(state.0), Digest(state.1));
        let ((s, alh_s), (t, alh_t)) = (end(source), end(target));
        let ours = DualProof::try_from(wire).is_ok_and(|proof| verify_dual(&proof, s, t, &alh_s, &alh_t).is_ok());
        match (verdict, ours) {
            (Ok(()), true) => Ok(()),
            (Ok(()), false) => Err("our own verifier refuses it".to_owned()),
            (Err(step), true) => Err(format!("{BELIEVED}{step}")),
            (Err(step), false) => Err(step.to_owned()),
        }
    }

    /// Verifies that a transaction belongs to what is trusted; answers the state that is trusted from then on.
    pub fn transaction(self, tx: &schema::VerifiableTx) -> Result<(State, Seen), String> {
        let header = header(tx.tx.as_ref().and_then(|tx| tx.header.as_ref())).map_err(text)?;
        let dual = dual(tx.dual_proof.as_ref()).map_err(text)?;
        let wire = tx.dual_proof.as_ref().ok_or("no dual proof")?;
        let shown = (header.tx.id, header.alh());
        let target = match self.trusted {
            None => {
                let end = |header: &Header| (header.tx.id, header.alh());
                self.dual((&dual, wire), end(&dual.source), end(&dual.target))?;
                shown
            }
            Some(known) => {
                let (source, target) = if known.0 <= shown.0 { (known, shown) } else { (shown, known) };
                self.dual((&dual, wire), source, target)?;
                target
            }
        };
        Ok((target, Seen { header, dual: dual.looked_at(), entry: None }))
    }

    /// Verifies an entry and its transaction.
    pub fn entry(self, key: &[u8], answer: &schema::VerifiableEntry) -> Result<(State, Seen), String> {
        let entry = answer.entry.as_ref().ok_or("no entry")?;
        let tx = answer.verifiable_tx.as_ref().ok_or("no transaction")?;
        let inclusion = answer.inclusion_proof.as_ref().ok_or("no inclusion proof")?;
        let (state, mut seen) = self.transaction(tx)?;
        if entry.key != key || entry.tx != seen.header.tx.id || entry.metadata.is_some() {
            return Err("another entry".into());
        }
        let terms = inclusion.terms.iter().map(|term| to_hash(term)).collect::<Result<Vec<_>, _>>().map_err(text)?;
        let value_hash = hash(&[&stored(0, &entry.value)]);
        let stood = Entry { key: stored(0, key), metadata: vec![], value_hash };
        let (Ok(at), Ok(width)) = (u64::try_from(inclusion.leaf), u64::try_from(inclusion.width)) else {
            return Err("place".into());
        };
        let entries = u64::from(seen.header.entries);
        if width != entries || !proof::entry_included(&stood, at, width, &terms, &seen.header.tx.eh) {
            return Err("inclusion in the transaction".into());
        }
        seen.entry = Some(SeenEntry { key: entry.key.to_vec(), value: entry.value.to_vec(), at, terms });
        Ok((state, seen))
    }
}

/// The same message with one bit changed, where that is still a message of the kind and another one.
fn bent<M: Message + Default + PartialEq>(ctx: &Ctx<'_>, message: &M) -> Option<M> {
    let mut bytes = message.encode_to_vec();
    let at = ctx.rng.below(bytes.len().max(1) as u64) as usize;
    *bytes.get_mut(at)? ^= 1 << ctx.rng.below(8);
    M::decode(bytes.as_slice()).ok().filter(|bent| bent != message)
}

/// The verifier of this client, as it is now.
fn verifier(ctx: &Ctx<'_>) -> Verifier {
    Verifier { trusted: ctx.memory.trusted, lax: ctx.has(Plant::AcceptAnyConsistency) }
}

/// Takes an answer for what it is worth: one that verifies is trusted, and a changed copy of it must not verify.
fn judge<M: Message + Default + PartialEq + std::fmt::Debug>(
    ctx: &mut Ctx<'_>,
    answer: &M,
    verify: impl Fn(Verifier, &M) -> Result<(State, Seen), String>,
) {
    let verifier = verifier(ctx);
    match verify(verifier, answer) {
        Ok((state, seen)) => {
            // On the first contact there is nothing yet that a changed answer would have to fit.
            if verifier.trusted.is_some()
                && let Some(bent) = bent(ctx, answer)
            {
                match verify(verifier, &bent) {
                    Ok((_, other)) if other != seen => ctx.wrong(format!("P1: a changed answer verifies: {bent:?}")),
                    Err(step) if step.starts_with(BELIEVED) => ctx.wrong(format!("P1: {step}: {bent:?}")),
                    _ => {}
                }
            }
            trust(ctx, state);
        }
        Err(step) => {
            let (node, since) = (ctx.node, verifier.trusted);
            ctx.wrong(format!("P1: an answer of node {node} does not verify since {since:?}: {step}: {answer:?}"));
        }
    }
}

fn trust(ctx: &mut Ctx<'_>, state: State) {
    // With the bug, the first state stays, and the next proof starts from it.
    if ctx.memory.trusted.is_none() || !ctx.has(Plant::ForgetTrust) {
        ctx.memory.trusted = Some(state);
    }
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

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, value, invoked) = (ctx.key(), ctx.value(), now());
            let set_request = Some(set_request(&key, &value, vec![]));
            let request = ctx.session.request(schema::VerifiableSetRequest { set_request, prove_since_tx: since(ctx) });
            let answer = bounded(ctx.session.api.verifiable_set(request)).await;
            let id = |tx: &schema::VerifiableTx| tx.tx.as_ref().and_then(|tx| tx.header.as_ref()).map_or(0, |h| h.id);
            let ending = answer.as_ref().map_or_else(ending_of, |tx| Ending::Acknowledged(id(tx)));
            ctx.wrote(key.clone(), value.clone(), invoked, ending);
            let tx = answer?;
            judge(ctx, &tx, |verifier, tx| {
                let (state, seen) = verifier.transaction(tx)?;
                let stood = Entry { key: stored(0, &key), metadata: vec![], value_hash: hash(&[&stored(0, &value)]) };
                // One entry: its leaf is the root.
                let is_ours = seen.header.entries == 1 && proof::entry_included(&stood, 0, 1, &[], &seen.header.tx.eh);
                if is_ours { Ok((state, seen)) } else { Err("the entry".into()) }
            });
            Ok(Done::Well)
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

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let (key, invoked) = (ctx.key(), now());
            let key_request = Some(schema::KeyRequest { key: key.clone().into(), ..Default::default() });
            let request = ctx.session.request(schema::VerifiableGetRequest { key_request, prove_since_tx: since(ctx) });
            let answer = found(bounded(ctx.session.api.verifiable_get(request)).await)?;
            // A proof does not show that it is the newest version: that is another property.
            let entry = answer.as_ref().and_then(|answer| answer.entry.as_ref());
            ctx.read(key.clone(), entry.map(|entry| entry.value.to_vec()), invoked);
            let Some(answer) = answer else { return Ok(Done::Refused) };
            judge(ctx, &answer, |verifier, answer| verifier.entry(&key, answer));
            Ok(Done::Well)
        })
    }
}
