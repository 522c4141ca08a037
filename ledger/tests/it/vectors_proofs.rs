//! Golden vectors of the main tree and of the proofs between transactions, valid and invalid.

use alhambra_ledger::{
    aht,
    digest::leaf,
    error::{ProveError, Step, VerifyError},
    ids::TxId,
    proof::{self, DualProofV2},
};

use crate::{
    golden::{chain, digest, digests, dual, header, list, number, text, tx, vectors},
    history::{History, Tree},
};

#[test]
fn main_tree_all_pairs() {
    let all = vectors();
    let v = &all["aht"];
    let (payloads, roots) = (digests(&v["payloads"]), digests(&v["roots"]));
    let leaves: Vec<_> = payloads.iter().map(leaf).collect();
    assert_eq!(leaves, digests(&v["leaves"]));
    let tree = Tree::of(&payloads);
    for (size, root) in (1..).zip(&roots) {
        assert_eq!(tree.root(size), *root, "size {size}");
    }
    assert_eq!(list(&v["proofs"]).len(), 136);
    for case in list(&v["proofs"]) {
        let (i, j) = (number(&case["i"]), number(&case["j"]));
        let root = |n: u64| &roots[usize::try_from(n).unwrap() - 1];
        let leaf = &leaves[usize::try_from(i).unwrap() - 1];
        let (inclusion, consistency) = (digests(&case["inclusion"]), digests(&case["consistency"]));
        assert_eq!(aht::prove_inclusion(i, j, &tree), Ok(inclusion.clone()), "{i} in {j}");
        assert_eq!(aht::prove_consistency(i, j, &tree), Ok(consistency.clone()), "{i} to {j}");
        assert_eq!(aht::verify_inclusion(&inclusion, i, j, leaf, root(j)), Ok(()), "{i} in {j}");
        assert_eq!(aht::verify_consistency(&consistency, i, j, root(i), root(j)), Ok(()), "{i} to {j}");
        if i == j {
            assert_eq!(aht::verify_last_inclusion(&inclusion, j, leaf, root(j)), Ok(()), "last of {j}");
            assert_eq!(aht::verify_consistency(&[], i, j, root(i), root(j)), Ok(()), "{i} to itself without terms");
        }
    }
}

#[test]
fn dual_proofs_of_all_chains() {
    let all = vectors();
    for (name, count) in [("chain_v1", 25), ("chain_v0", 4), ("chain_lagging", 16)] {
        let history = History::of(chain(&all, name));
        assert_eq!(list(&all[name]["dual_proofs"]).len(), count);
        for case in list(&all[name]["dual_proofs"]) {
            let (s, t) = (tx(&case["source"]), tx(&case["target"]));
            let expected = dual(case, history.get(s.get()).clone(), history.get(t.get()).clone());
            assert_eq!(history.dual(s.get(), t.get()), expected, "{name} {s} to {t}");
            let (alh_s, alh_t) = (digest(&case["source_alh"]), digest(&case["target_alh"]));
            assert_eq!(proof::verify_dual(&expected, s, t, &alh_s, &alh_t), Ok(()), "{name} {s} to {t}");
        }
    }
}

#[test]
fn compact_dual_proofs() {
    let all = vectors();
    let history = History::of(chain(&all, "chain_v1"));
    for case in list(&all["chain_v1"]["dual_proofs_v2"]) {
        let (s, t) = (number(&case["source"]), number(&case["target"]));
        let expected = DualProofV2 {
            source: history.get(s).clone(),
            target: history.get(t).clone(),
            inclusion: digests(&case["inclusion"]),
            consistency: digests(&case["consistency"]),
        };
        assert_eq!(history.dual_v2(s, t), expected, "{s} to {t}");
        let (alh_s, alh_t) = (history.alh(s), history.alh(t));
        assert_eq!(proof::verify_dual_v2(&expected, TxId(s), TxId(t), &alh_s, &alh_t), Ok(()), "{s} to {t}");
    }
}

#[test]
fn compact_form_needs_headers_without_gap() {
    let history = History::of(chain(&vectors(), "chain_lagging"));
    let built = proof::build_dual_v2(history.get(2), history.get(3), &history.tree);
    assert_eq!(built, Err(ProveError::NotLinked { tx: TxId(3) }));
    let forged = DualProofV2 {
        source: history.get(2).clone(),
        target: history.get(3).clone(),
        inclusion: aht::prove_inclusion(2, 2, &history.tree).unwrap(),
        consistency: aht::prove_consistency(1, 2, &history.tree).unwrap(),
    };
    let got = proof::verify_dual_v2(&forged, TxId(2), TxId(3), &history.alh(2), &history.alh(3));
    assert_eq!(got, Err(VerifyError { step: Step::Linking }));
}

#[test]
fn invalid_dual_proofs_are_refused_at_the_altered_step() {
    let all = vectors();
    let expected = [
        ("inclusion term changed", Step::Inclusion),
        ("inclusion proof missing", Step::Inclusion),
        ("consistency term changed", Step::Consistency),
        ("consistency proof missing", Step::Consistency),
        ("last-inclusion term changed", Step::LastInclusion),
        ("alh of the last tree leaf changed", Step::LastInclusion),
        ("linear proof: last term changed", Step::Linear),
        ("linear proof: one term too many", Step::Linear),
        ("linear proof: one term too few", Step::Linear),
        ("linear proof: wrong source id", Step::Linear),
        ("linear proof: no terms", Step::Linear),
        ("known source hash differs from the header", Step::SourceAlh),
        ("expected target hash differs from the header", Step::TargetAlh),
        ("source id differs from the header", Step::SourceId),
        ("target id differs from the header", Step::TargetId),
        ("advance proof missing where it is needed", Step::LinearAdvance),
        ("advance proof: linear term changed", Step::LinearAdvance),
        ("advance proof: inclusion term changed", Step::LinearAdvance),
        ("advance proof: one inclusion proof too few", Step::LinearAdvance),
    ];
    let cases = list(&all["invalid_dual_proofs"]);
    assert_eq!(cases.len(), expected.len());
    for (case, (name, step)) in cases.iter().zip(expected) {
        assert_eq!(text(&case["name"]), name);
        let headers = chain(&all, text(&case["chain"]));
        let at = |n: &str| headers[usize::try_from(number(&case[n])).unwrap() - 1].clone();
        let proof = dual(case, at("source"), at("target"));
        let (s, t) = (tx(&case["check_source"]), tx(&case["check_target"]));
        let (alh_s, alh_t) = (digest(&case["check_source_alh"]), digest(&case["check_target_alh"]));
        assert_eq!(proof::verify_dual(&proof, s, t, &alh_s, &alh_t), Err(VerifyError { step }), "{name}");
    }
}

/// A server shows its client transaction 2 in the chain and another transaction 2 in the tree. Only the advance part of
/// the proof tells.
#[test]
fn linear_fake_is_refused() {
    let all = vectors();
    let mut refused = 0;
    for case in list(&all["linear_fake"]["steps"]) {
        let proof = dual(case, header(&case["source_header"]), header(&case["target_header"]));
        let (s, t) = (tx(&case["source"]), tx(&case["target"]));
        let (alh_s, alh_t) = (digest(&case["source_alh"]), digest(&case["target_alh"]));
        let got = proof::verify_dual(&proof, s, t, &alh_s, &alh_t);
        let valid = case["valid"].as_bool().unwrap();
        let expected = if valid { Ok(()) } else { Err(VerifyError { step: Step::LinearAdvance }) };
        assert_eq!(got, expected, "{}", case["name"]);
        refused += u32::from(!valid);
    }
    assert_eq!(refused, 2);
}
