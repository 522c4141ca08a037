//! Every alteration of a dual proof is refused, at the step that the altered part belongs to. All pairs of histories of
//! 16 transactions, with and without gaps: each byte of each field flipped, terms dropped, repeated, swapped and added.

use alhambra_ledger::{
    Digest,
    digest::ZERO,
    error::{Step, VerifyError},
    header::{TxHeader, TxMetadata},
    ids::TxId,
    proof::{self, DualProof, DualProofV2, LinearAdvanceProof},
};

use crate::{
    history::History,
    model::Ledger,
    model_proofs::{LAGS, history, shape},
};

const TXS: u64 = 16;

/// Calls `check` with every alteration of a list of digests and a word on what was done.
pub fn alter_list(good: &[Digest], mut check: impl FnMut(Vec<Digest>, &str)) {
    for at in 0..good.len() {
        for byte in 0..32 {
            let mut bad = good.to_vec();
            bad[at].0[byte] ^= 1 << (byte % 8);
            check(bad, &format!("{at} byte {byte} flipped"));
        }
        let mut bad = good.to_vec();
        bad.remove(at);
        check(bad, &format!("{at} dropped"));
        let mut bad = good.to_vec();
        bad.insert(at, good[at]);
        check(bad, &format!("{at} repeated"));
        for other in at + 1..good.len() {
            assert_ne!(good[at], good[other], "a swap would change nothing");
            let mut bad = good.to_vec();
            bad.swap(at, other);
            check(bad, &format!("{at} and {other} swapped"));
        }
    }
    check([good, &[ZERO]].concat(), "one added");
    if good.len() > 1 {
        check(Vec::new(), "all dropped");
    }
}

/// Calls `check` with every number that differs from `good` in one byte.
fn alter_id(good: TxId, mut check: impl FnMut(TxId, &str)) {
    for byte in 0..8 {
        check(TxId(good.get() ^ 1 << (8 * byte + byte % 8)), &format!("id byte {byte} flipped"));
    }
}

/// Calls `check` with every alteration of a header, but of its id.
fn alter_header(good: &TxHeader, mut check: impl FnMut(TxHeader, &str)) {
    for byte in 0..8 {
        check(TxHeader { ts: good.ts ^ 1 << (8 * byte), ..good.clone() }, "ts");
        let mark = good.metadata.truncated_up_to.map(|tx| TxId(tx.get() ^ 1 << (8 * byte)));
        if mark.is_some() {
            let metadata = TxMetadata { truncated_up_to: mark, ..good.metadata.clone() };
            check(TxHeader { metadata, ..good.clone() }, "truncation mark");
        }
    }
    alter_id(good.bl_tx_id, |bl_tx_id, what| check(TxHeader { bl_tx_id, ..good.clone() }, &format!("bl {what}")));
    for bit in 0..16 {
        check(TxHeader { version: good.version ^ 1 << bit, ..good.clone() }, "version");
    }
    for bit in 0..32 {
        check(TxHeader { nentries: good.nentries ^ 1 << bit, ..good.clone() }, "nentries");
    }
    for byte in 0..32 {
        let flipped = |digest: Digest| {
            let mut digest = digest;
            digest.0[byte] ^= 1 << (byte % 8);
            digest
        };
        check(TxHeader { eh: flipped(good.eh), ..good.clone() }, "eh");
        check(TxHeader { bl_root: flipped(good.bl_root), ..good.clone() }, "bl root");
        check(TxHeader { prev_alh: flipped(good.prev_alh), ..good.clone() }, "prev alh");
    }
    for at in 0..good.metadata.extra.len() {
        let mut bad = good.clone();
        bad.metadata.extra[at] ^= 1;
        check(bad, "extra");
    }
    let mut bad = good.clone();
    bad.metadata.extra.push(0);
    check(bad, "longer extra");
    let mut bad = good.clone();
    bad.metadata.truncated_up_to = if good.metadata.truncated_up_to.is_some() { None } else { Some(TxId(0)) };
    check(bad, "truncation mark added or dropped");
}

/// A proof of one pair, what is known of the pair, and how altered ones fare.
struct Case<P> {
    name: String,
    good: P,
    ends: (TxId, TxId),
    alhs: (Digest, Digest),
    verify: fn(&P, TxId, TxId, &Digest, &Digest) -> Result<(), VerifyError>,
}

impl<P: Clone> Case<P> {
    fn new(
        name: &str,
        history: &History,
        (s, t): (u64, u64),
        good: P,
        verify: fn(&P, TxId, TxId, &Digest, &Digest) -> Result<(), VerifyError>,
    ) -> Self {
        let (ends, alhs) = ((TxId(s), TxId(t)), (history.alh(s), history.alh(t)));
        assert_eq!(verify(&good, ends.0, ends.1, &alhs.0, &alhs.1), Ok(()), "{name}: {s} to {t}");
        Self { name: format!("{name}: {s} to {t}"), good, ends, alhs, verify }
    }

    fn refused(&self, what: &str, steps: &[Step], change: impl FnOnce(&mut P)) {
        let mut bad = self.good.clone();
        change(&mut bad);
        let got = (self.verify)(&bad, self.ends.0, self.ends.1, &self.alhs.0, &self.alhs.1);
        let step = got.expect_err(&format!("accepted: {}, {what}", self.name)).step;
        assert!(steps.contains(&step), "{}, {what}: refused at {step}", self.name);
    }

    fn refused_list(&self, what: &str, step: Step, list: fn(&mut P) -> &mut Vec<Digest>) {
        let good = list(&mut self.good.clone()).clone();
        alter_list(&good, |bad, how| self.refused(&format!("{what} {how}"), &[step], |p| *list(p) = bad));
    }

    fn refused_headers(&self, source: fn(&mut P) -> &mut TxHeader, target: fn(&mut P) -> &mut TxHeader) {
        let ends = [
            (source, [Step::SourceId, Step::SourceHeader, Step::SourceAlh], "source"),
            (target, [Step::TargetId, Step::TargetHeader, Step::TargetAlh], "target"),
        ];
        for (header, [id_step, header_step, alh_step], end) in ends {
            let good = header(&mut self.good.clone()).clone();
            alter_id(good.id, |id, how| {
                self.refused(&format!("{end} {how}"), &[id_step], |p| header(p).id = id);
            });
            alter_header(&good, |bad, how| {
                self.refused(&format!("{end} {how}"), &[header_step, alh_step], |p| *header(p) = bad);
            });
        }
    }

    /// The proof is right, but not for what the verifier knows.
    fn refused_for_other_knowledge(&self) {
        let verify = |s, t, alh_s: &Digest, alh_t: &Digest| (self.verify)(&self.good, s, t, alh_s, alh_t);
        let refused = |step| Err(VerifyError { step });
        let ((s, t), (alh_s, alh_t)) = (self.ends, self.alhs);
        alter_id(s, |bad, how| {
            assert_eq!(verify(bad, t, &alh_s, &alh_t), refused(Step::SourceId), "{} {how}", self.name);
        });
        alter_id(t, |bad, how| {
            assert_eq!(verify(s, bad, &alh_s, &alh_t), refused(Step::TargetId), "{} {how}", self.name);
        });
        for byte in 0..32 {
            let (mut bad_s, mut bad_t) = self.alhs;
            bad_s.0[byte] ^= 0x80;
            bad_t.0[byte] ^= 0x80;
            assert_eq!(verify(s, t, &bad_s, &alh_t), refused(Step::SourceAlh), "{}", self.name);
            assert_eq!(verify(s, t, &alh_s, &bad_t), refused(Step::TargetAlh), "{}", self.name);
        }
    }
}

fn alter_advance(case: &Case<DualProof>, good: &LinearAdvanceProof) {
    let step = &[Step::LinearAdvance];
    let with = |bad: LinearAdvanceProof, what: &str| {
        case.refused(&format!("advance {what}"), step, |p| p.linear_advance = Some(bad));
    };
    alter_list(&good.linear_terms, |terms, how| {
        with(LinearAdvanceProof { linear_terms: terms, ..good.clone() }, &format!("terms {how}"));
    });
    for at in 0..good.inclusions.len() {
        alter_list(&good.inclusions[at], |path, how| {
            let mut bad = good.clone();
            bad.inclusions[at] = path;
            with(bad, &format!("inclusion {at} {how}"));
        });
        let mut bad = good.clone();
        bad.inclusions.remove(at);
        with(bad, &format!("inclusion {at} dropped"));
        let mut bad = good.clone();
        bad.inclusions.insert(at, good.inclusions[at].clone());
        with(bad, &format!("inclusion {at} repeated"));
        for other in at + 1..good.inclusions.len() {
            let mut bad = good.clone();
            bad.inclusions.swap(at, other);
            with(bad, &format!("inclusions {at} and {other} swapped"));
        }
    }
    case.refused("advance dropped", step, |p| p.linear_advance = None);
}

fn alter_dual(case: &Case<DualProof>) {
    case.refused_headers(|p| &mut p.source, |p| &mut p.target);
    case.refused_for_other_knowledge();
    case.refused_list("inclusion", Step::Inclusion, |p| &mut p.inclusion);
    case.refused_list("last inclusion", Step::LastInclusion, |p| &mut p.last_inclusion);
    case.refused_list("linear terms", Step::Linear, |p| &mut p.linear.terms);
    for byte in 0..32 {
        case.refused("target bl tx alh", &[Step::LastInclusion], |p| p.target_bl_tx_alh.0[byte] ^= 0x10);
    }
    alter_id(case.good.linear.source, |id, how| {
        case.refused(&format!("linear source {how}"), &[Step::Linear], |p| p.linear.source = id);
    });
    alter_id(case.good.linear.target, |id, how| {
        case.refused(&format!("linear target {how}"), &[Step::Linear], |p| p.linear.target = id);
    });
    match &case.good.linear_advance {
        Some(good) => alter_advance(case, good),
        None => {
            let uncalled = LinearAdvanceProof { linear_terms: Vec::new(), inclusions: Vec::new() };
            case.refused("advance added", &[Step::LinearAdvance], |p| p.linear_advance = Some(uncalled));
        }
    }
    // From a tree to itself no terms say the same as two: both forms are in use and both are accepted.
    let same_tree = case.good.source.bl_tx_id == case.good.target.bl_tx_id;
    let good = case.good.consistency.clone();
    alter_list(&good, |bad, how| {
        if !(same_tree && bad.is_empty()) {
            case.refused(&format!("consistency {how}"), &[Step::Consistency], |p| p.consistency = bad);
        }
    });
}

fn small_history(lag: fn(u64) -> u64) -> History {
    history(&Ledger::of(&(1..=TXS).map(|id| shape(id, lag(id))).collect::<Vec<_>>()))
}

#[test]
fn every_alteration_of_every_dual_proof_is_refused() {
    let mut advances = 0;
    for (name, lag) in LAGS {
        let history = small_history(lag);
        for t in 1..=TXS {
            for s in 1..=t {
                let good = history.dual(s, t);
                advances += u32::from(good.linear_advance.is_some());
                alter_dual(&Case::new(name, &history, (s, t), good, proof::verify_dual));
            }
        }
    }
    assert!(advances > 50, "advance proofs were among them, {advances} times");
}

#[test]
fn every_alteration_of_every_compact_proof_is_refused() {
    let history = small_history(|_| 0);
    for t in 1..=TXS {
        for s in 1..=t {
            let good: DualProofV2 = history.dual_v2(s, t);
            let case = Case::new("compact", &history, (s, t), good, proof::verify_dual_v2);
            case.refused_headers(|p| &mut p.source, |p| &mut p.target);
            case.refused_for_other_knowledge();
            case.refused_list("inclusion", Step::Inclusion, |p| &mut p.inclusion);
            let good = case.good.consistency.clone();
            // As in the long form: the tree of one transaction to itself.
            let same_tree = s.max(2) == t;
            alter_list(&good, |bad, how| {
                if !(same_tree && bad.is_empty() && s < t) {
                    case.refused(&format!("consistency {how}"), &[Step::Consistency], |p| p.consistency = bad);
                }
            });
        }
    }
}

#[test]
fn ends_in_the_wrong_order_are_refused() {
    let history = small_history(|_| 0);
    let refused = Err(VerifyError { step: Step::Order });
    let mut proof = history.dual(3, 7);
    std::mem::swap(&mut proof.source, &mut proof.target);
    assert_eq!(proof::verify_dual(&proof, TxId(7), TxId(3), &history.alh(7), &history.alh(3)), refused);
    let mut proof = history.dual(1, 7);
    proof.source.id = TxId(0);
    assert_eq!(proof::verify_dual(&proof, TxId(0), TxId(7), &history.alh(1), &history.alh(7)), refused);
    let backward = proof::build_dual(history.get(7), history.get(3), &history, &history.tree);
    assert_eq!(backward, Err(alhambra_ledger::ProveError::OutOfRange { from: 7, to: 3 }));
}
