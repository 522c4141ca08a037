//! P2: no proof verifies for a history that was changed, however well it is made. At the end of a life a liar takes its ledgers,
//! changes one transaction, makes everything behind it fit again, and proves it with all that an honest server has. Neither our
//! verifier nor the independent one may believe that to somebody who trusts the true history.

use std::convert::Infallible;

use alhambra_ledger::Digest;
use alhambra_ledger::aht::{self, NodeReader};
use alhambra_ledger::digest::leaf;
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::build::{HistoryReader, build_dual};
use alhambra_ledger::proof::{DualProof, verify_dual};

use super::Evidence;
use super::index::Indexed;
use crate::model::chain::{Hash, Transaction};
use crate::model::proof::{self, Dual, Header};
use crate::rng::SplitMix64;

/// Lies about each ledger.
const LIES: u64 = 3;
/// The fewest transactions with which every kind of lie can be told.
const TRANSACTIONS_MIN: u64 = 4;

/// Whether a client that trusts or has computed both ends believes the proof between them.
type Believes = fn(&DualProof, End, End) -> bool;
/// A transaction with its Alh.
type End = (TxId, Digest);

/// Both verifiers.
const VERIFIERS: [(&str, Believes); 2] = [("our verifier", ours), ("the independent verifier", independent)];

/// Lies about every ledger of the life.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    evidence.indexes.iter().try_for_each(|indexed| {
        let lied = lie_about(indexed, &VERIFIERS);
        lied.map(drop).map_err(|what| format!("{}: {what}", indexed.database))
    })
}

/// Lies, and counts the lies.
fn lie_about(indexed: &Indexed, verifiers: &[(&str, Believes)]) -> Result<u64, String> {
    let last = indexed.chain.len() as u64;
    if last < TRANSACTIONS_MIN {
        return Ok(0);
    }
    let headers = indexed.chain.iter().map(header).collect::<Result<Vec<_>, _>>()?;
    let honest = Server::of(headers);
    let mut rng =
        SplitMix64::new(honest.alhs.last().map_or(0, |alh| u64::from_le_bytes(std::array::from_fn(|i| alh.0[i]))));
    let mut told = 0;
    for lie in 0..LIES {
        // Somebody trusts `known`, and has a tree of its own; now and then it is the last one in the tree, or the changed one.
        let known = if lie == 1 { last - 1 } else { 2 + rng.draw() % (last - 3) };
        let changed = if lie == 0 { known } else { 1 + rng.draw() % known };
        for story in stories(&honest, known, changed, last) {
            let proof = story.proof()?;
            for (name, believes) in verifiers {
                match (believes(&proof, story.source, story.target), story.is_true) {
                    (true, false) => {
                        return Err(format!(
                            "{name} believes that {} (transaction {changed} of {last} was changed, {known} is trusted)",
                            story.tells
                        ));
                    }
                    (false, true) => return Err(format!("{name} does not believe that {}", story.tells)),
                    _ => {}
                }
            }
            told += u64::from(!story.is_true);
        }
    }
    Ok(told)
}

/// What is shown to a client.
struct Story {
    tells: &'static str,
    is_true: bool,
    /// What the client trusts, or computes from what it was shown.
    source: End,
    target: End,
    /// What the server shows.
    shown: (TxHeader, TxHeader),
    server: Server,
    /// What it shows as the last leaf of the tree, where that is not the transaction before the target.
    last_leaf: Option<Digest>,
}

impl Story {
    fn proof(&self) -> Result<DualProof, String> {
        let proof = build_dual(&self.shown.0, &self.shown.1, &self.server, &self.server);
        let mut proof = proof.map_err(|error| format!("no proof: {error}"))?;
        if let Some(leaf) = self.last_leaf {
            proof.target_bl_tx_alh = leaf;
            let begins_there = proof.linear.source == proof.target.bl_tx_id;
            proof.linear.terms.first_mut().filter(|_| begins_there).into_iter().for_each(|first| *first = leaf);
        }
        Ok(proof)
    }
}

/// The truth, and lies: for each step of a verifier one that it alone refuses.
fn stories(honest: &Server, known: u64, changed: u64, last: u64) -> Vec<Story> {
    let trusted = honest.end(known);
    let rewritten = honest.rewritten(changed);
    let story = |tells, is_true, source, shown: &TxHeader, target: TxHeader, server: Server| {
        let end = (target.id, alh(&target));
        Story { tells, is_true, source, target: end, shown: (shown.clone(), target), server, last_leaf: None }
    };
    // A tree with one leaf changed, or all from there on, that still has the trusted transaction in it.
    let spliced = |mut alhs: Vec<Digest>| {
        alhs[known as usize - 1] = trusted.1;
        let server = Server { headers: honest.headers.clone(), nodes: nodes(&alhs[..last as usize - 1]), alhs };
        let target = server.remade(last);
        (server, target)
    };
    let one_leaf = {
        let mut alhs = honest.alhs.clone();
        alhs[changed as usize - 1] = rewritten.alhs[changed as usize - 1];
        spliced(alhs)
    };
    let all_leaves = spliced(rewritten.alhs.clone());
    let mut all = vec![
        story(
            "the true history is true",
            true,
            trusted,
            honest.header(known),
            honest.header(last).clone(),
            honest.clone(),
        ),
        story(
            "a history written anew is the one trusted",
            false,
            trusted,
            // The header of the trusted transaction can be shown as it was; everything else is new.
            honest.header(known),
            rewritten.header(last).clone(),
            rewritten.clone(),
        ),
    ];
    // An old transaction is another one, to somebody who trusts the newest.
    let old = &rewritten.headers[changed as usize - 1];
    if changed < last - 1 {
        all.push(Story {
            source: (old.id, alh(old)),
            target: honest.end(last),
            ..story(
                "a changed transaction is history of the newest",
                false,
                trusted,
                old,
                honest.header(last).clone(),
                honest.clone(),
            )
        });
    }
    // The chain is written anew and the tree is not, whichever of the two is shown as its last leaf.
    let split = TxHeader { prev_alh: rewritten.end(last - 1).1, ..honest.header(last).clone() };
    for last_leaf in [rewritten.end(last - 1).1, honest.end(last - 1).1] {
        let tells = "a chain written anew beside the true tree continues it";
        let told = story(tells, false, trusted, honest.header(known), split.clone(), honest.clone());
        all.push(Story { last_leaf: Some(last_leaf), ..told });
    }
    if changed < known {
        let (server, target) = one_leaf;
        all.push(story(
            "a tree with one leaf changed continues it",
            false,
            trusted,
            honest.header(known),
            target,
            server,
        ));
        let (server, target) = all_leaves;
        all.push(story(
            "a tree written anew around it continues it",
            false,
            trusted,
            honest.header(known),
            target,
            server,
        ));
    }
    all
}

/// A server with a history, true or not.
#[derive(Clone)]
struct Server {
    headers: Vec<TxHeader>,
    alhs: Vec<Digest>,
    /// Of the tree over the Alhs.
    nodes: Vec<Digest>,
}

impl Server {
    fn of(headers: Vec<TxHeader>) -> Self {
        let alhs: Vec<Digest> = headers.iter().map(alh).collect();
        let nodes = nodes(&alhs);
        Self { headers, alhs, nodes }
    }

    fn header(&self, tx: u64) -> &TxHeader {
        &self.headers[tx as usize - 1]
    }

    fn end(&self, tx: u64) -> End {
        (TxId(tx), self.alhs[tx as usize - 1])
    }

    /// The same history with other entries in one transaction, and all behind it made to fit.
    fn rewritten(&self, tx: u64) -> Self {
        let at = tx as usize - 1;
        let mut headers = self.headers[..=at].to_vec();
        headers[at].eh.0[0] ^= 1;
        let mut new = Self::of(headers);
        for later in &self.headers[at + 1..] {
            let last = new.alhs.len() as u64;
            let header = TxHeader { prev_alh: new.end(last).1, bl_root: root(last, &new), ..later.clone() };
            let alh = alh(&header);
            let added = aht::append(last, leaf(&alh), &new).unwrap_or_else(|never| match never {});
            new.nodes.extend(added);
            new.headers.push(header);
            new.alhs.push(alh);
        }
        new
    }

    /// The header of a transaction as it has to be behind the tree of this server.
    fn remade(&self, tx: u64) -> TxHeader {
        TxHeader { prev_alh: self.end(tx - 1).1, bl_root: root(tx - 1, self), ..self.header(tx).clone() }
    }
}

impl NodeReader for Server {
    type Error = Infallible;

    fn node(&self, number: u64) -> Result<Digest, Infallible> {
        Ok(self.nodes[number as usize])
    }
}

impl HistoryReader for Server {
    type Error = Infallible;

    fn header(&self, tx: TxId) -> Result<TxHeader, Infallible> {
        Ok(self.headers[tx.get() as usize - 1].clone())
    }
}

fn root(n: u64, tree: &Server) -> Digest {
    aht::root(n, tree).unwrap_or_else(|never| match never {})
}

fn nodes(alhs: &[Digest]) -> Vec<Digest> {
    let leaves: Vec<Digest> = alhs.iter().map(leaf).collect();
    let empty = Server { headers: Vec::new(), alhs: Vec::new(), nodes: Vec::new() };
    aht::append_all(0, &leaves, &empty).unwrap_or_else(|never| match never {})
}

fn alh(header: &TxHeader) -> Digest {
    header.alh().expect("a header that was in a ledger can be hashed")
}

fn header(tx: &Transaction) -> Result<TxHeader, String> {
    Ok(TxHeader {
        id: TxId(tx.id),
        ts: tx.ts,
        version: 1,
        metadata: TxMetadata::from_bytes(&tx.metadata).map_err(|error| format!("transaction {}: {error}", tx.id))?,
        nentries: tx.entries.len() as u32,
        eh: Digest(tx.eh),
        bl_tx_id: TxId(tx.bl_tx_id),
        bl_root: Digest(tx.bl_root),
        prev_alh: Digest(tx.prev_alh),
    })
}

fn ours(proof: &DualProof, source: End, target: End) -> bool {
    verify_dual(proof, source.0, target.0, &source.1, &target.1).is_ok()
}

fn independent(proof: &DualProof, source: End, target: End) -> bool {
    proof::verify(&plain(proof), source.0.get(), target.0.get(), &source.1.0, &target.1.0).is_ok()
}

/// A proof in the words of the independent verifier.
fn plain(proof: &DualProof) -> Dual {
    let hashes = |digests: &[Digest]| -> Vec<Hash> { digests.iter().map(|digest| digest.0).collect() };
    let header = |header: &TxHeader| Header {
        tx: Transaction {
            id: header.id.get(),
            ts: header.ts,
            metadata: header.metadata.to_bytes().unwrap_or_default(),
            prev_alh: header.prev_alh.0,
            eh: header.eh.0,
            bl_tx_id: header.bl_tx_id.get(),
            bl_root: header.bl_root.0,
            entries: Vec::new(),
        },
        entries: header.nentries,
    };
    Dual {
        source: header(&proof.source),
        target: header(&proof.target),
        inclusion: hashes(&proof.inclusion),
        consistency: hashes(&proof.consistency),
        target_bl_alh: proof.target_bl_tx_alh.0,
        last_inclusion: hashes(&proof.last_inclusion),
        linear: (proof.linear.source.get(), proof.linear.target.get(), hashes(&proof.linear.terms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chain;

    /// A ledger of `n` transactions.
    fn ledger(n: u64) -> Indexed {
        let mut chain: Vec<Transaction> = Vec::new();
        let mut server = Server::of(Vec::new());
        for id in 1..=n {
            let entry = chain::Entry { key: vec![0, id as u8], metadata: vec![], value_hash: [id as u8; 32] };
            let entries = vec![entry];
            let prev_alh = server.alhs.last().map_or(chain::hash(&[]), |alh| alh.0);
            let bl_root = root(id - 1, &server).0;
            let tx = Transaction {
                id,
                ts: id as i64,
                prev_alh,
                eh: chain::eh(&entries),
                bl_tx_id: id - 1,
                bl_root,
                entries,
                ..Transaction::default()
            };
            let mut headers = server.headers;
            headers.push(header(&tx).unwrap());
            server = Server::of(headers);
            chain.push(tx);
        }
        assert!(chain::check(&chain).is_ok());
        Indexed { database: "d".into(), chain, ..Indexed::default() }
    }

    #[test]
    fn both_verifiers_believe_the_truth_and_no_lie() {
        for n in 0..40 {
            let told = lie_about(&ledger(n), &VERIFIERS).unwrap_or_else(|what| panic!("{n} transactions: {what}"));
            assert_eq!(told > 0, n >= TRANSACTIONS_MIN, "{n} transactions");
        }
    }

    #[test]
    fn a_verifier_that_leaves_a_step_out_is_found() {
        fn but(step: &str, proof: &DualProof, source: End, target: End) -> bool {
            let verdict = proof::verify(&plain(proof), source.0.get(), target.0.get(), &source.1.0, &target.1.0);
            verdict.is_ok() || verdict == Err(step)
        }
        let lax: [(&str, Believes); 6] = [
            ("everything", |_, _, _| true),
            ("nothing", |_, _, _| false),
            ("without inclusion", |p, s, t| but("inclusion", p, s, t)),
            ("without consistency", |p, s, t| but("consistency", p, s, t)),
            ("without last inclusion", |p, s, t| but("last inclusion", p, s, t)),
            ("without linear", |p, s, t| but("linear", p, s, t)),
        ];
        for one in lax {
            let found = (4..40).filter(|n| lie_about(&ledger(*n), &[one]).is_err()).count();
            assert!(found > 20, "{}: found in {found} ledgers", one.0);
        }
    }
}
