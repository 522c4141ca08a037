//! Proofs between transactions against the model, over histories of many shapes.

use alhambra_ledger::{
    Digest,
    header::{TxHeader, TxMetadata},
    ids::TxId,
    proof::{self, DualProof},
};
use proptest::prelude::*;

use crate::{
    history::History,
    model::{Dual, Ledger, Shape, Tx},
    model_trees::plain,
};

pub fn header(tx: &Tx) -> TxHeader {
    TxHeader {
        id: TxId(tx.id),
        ts: tx.ts,
        version: tx.version,
        metadata: TxMetadata { truncated_up_to: tx.truncated.map(TxId), extra: tx.extra.clone() },
        nentries: tx.nentries,
        eh: Digest(tx.eh),
        bl_tx_id: TxId(tx.bl_tx_id),
        bl_root: Digest(tx.bl_root),
        prev_alh: Digest(tx.prev_alh),
    }
}

/// The ledger as the crate sees it.
pub fn history(ledger: &Ledger) -> History {
    History::of(ledger.txs.iter().map(header).collect())
}

/// A transaction of a ledger that has a bit of everything.
pub fn shape(id: u64, lag: u64) -> Shape {
    Shape {
        ts: i64::try_from(1_700_000_000 + id / 3).unwrap() * i64::from(id != 7),
        version: u16::from(id != 2),
        truncated: (id == 10).then_some(4),
        extra: if id.is_multiple_of(5) { b"somebody".to_vec() } else { Vec::new() },
        lag,
    }
}

/// How far the header of a transaction lags behind.
pub type Lag = fn(u64) -> u64;

/// How far headers may lag behind: not at all (the rule), by a constant, in bursts, once and long, never a tree.
pub const LAGS: [(&str, Lag); 5] = [
    ("no gap", |_| 0),
    ("always 3 behind", |_| 3),
    ("tree moves every fourth tx", |id| (id - 1) % 4),
    ("tree stands from 5 to 12", |id| if (6..=12).contains(&id) { id - 6 } else { 0 }),
    ("no tree at all", |id| id),
];

fn plain_dual(proof: &DualProof) -> Dual {
    assert_eq!(proof.linear.target, proof.target.id);
    Dual {
        inclusion: plain(&proof.inclusion),
        consistency: plain(&proof.consistency),
        target_bl_tx_alh: proof.target_bl_tx_alh.0,
        last_inclusion: plain(&proof.last_inclusion),
        linear_from: proof.linear.source.get(),
        linear: plain(&proof.linear.terms),
        advance: proof
            .linear_advance
            .as_ref()
            .map(|advance| (plain(&advance.linear_terms), advance.inclusions.iter().map(|p| plain(p)).collect())),
    }
}

fn check_pair(name: &str, ledger: &Ledger, history: &History, s: u64, t: u64) {
    let at = |id: u64| &ledger.txs[usize::try_from(id).unwrap() - 1];
    let (alh_s, alh_t) = (Digest(at(s).alh()), Digest(at(t).alh()));
    let proof = history.dual(s, t);
    assert_eq!(plain_dual(&proof), ledger.dual(s, t), "{name}: {s} to {t}");
    assert_eq!(proof::verify_dual(&proof, TxId(s), TxId(t), &alh_s, &alh_t), Ok(()), "{name}: {s} to {t}");
    if at(s).bl_tx_id + 1 == s && at(t).bl_tx_id + 1 == t {
        let proof = history.dual_v2(s, t);
        assert_eq!((plain(&proof.inclusion), plain(&proof.consistency)), ledger.dual_v2(s, t), "{name}: {s} to {t}");
        assert_eq!(proof::verify_dual_v2(&proof, TxId(s), TxId(t), &alh_s, &alh_t), Ok(()), "{name}: {s} to {t}");
    }
}

#[test]
fn all_pairs_of_small_histories() {
    let mut advances = 0;
    for (name, lag) in LAGS {
        let ledger = Ledger::of(&(1..=20).map(|id| shape(id, lag(id))).collect::<Vec<_>>());
        let history = history(&ledger);
        for t in 1..=20 {
            for s in 1..=t {
                check_pair(name, &ledger, &history, s, t);
                advances += u32::from(ledger.dual(s, t).advance.is_some());
            }
        }
    }
    assert!(advances > 100, "gaps that call for advance proofs were covered, {advances} times");
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let extra = proptest::collection::vec(any::<u8>(), 0..20);
    let lag = prop_oneof![3 => Just(0), 2 => 0u64..6, 1 => 0u64..60];
    let one = (any::<i64>(), 0u16..=1, proptest::option::of(1u64..99), extra, lag)
        .prop_map(|(ts, version, truncated, extra, lag)| Shape { ts, version, truncated, extra, lag });
    proptest::collection::vec(one, 1..=90)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn random_pairs_of_random_histories(shapes in shapes(), pairs in any::<[(u64, u64); 6]>()) {
        let ledger = Ledger::of(&shapes);
        let history = history(&ledger);
        let last = shapes.len() as u64;
        for (a, b) in pairs {
            let (a, b) = (1 + a % last, 1 + b % last);
            check_pair("random", &ledger, &history, a.min(b), a.max(b));
        }
    }
}
