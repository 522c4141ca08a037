//! Both properties find what they are there for, and let good stories pass.

use std::collections::BTreeMap;

use super::super::Sightings;
use super::super::index::Gone;
use super::super::versions::Versions;
use super::*;
use crate::model::chain;
use crate::wall::{MIDNIGHT_MS, Wall};

const DATABASE: &str = "own";
/// The clock of node 0 shows midnight at second 10.
const MIDNIGHT: u64 = 10;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn write(tx: u64, from: u64) -> Write {
    let (key, value) = (b"k".to_vec(), format!("v{tx}").into_bytes());
    Write { client: 0, key, value, invoked: s(from), ended: s(from + 1), ending: Ending::Acknowledged(tx) }
}

fn order(from: u64, ending: TruncationEnding) -> Truncation {
    Truncation { node: 0, invoked: s(from), ended: s(from + 1), ending }
}

fn read(showed: Showed, from: u64) -> ForgetfulRead {
    ForgetfulRead { call: "Get", node: 0, key: b"k".into(), showed, sees: Some(s(from)), ended: s(from + 1) }
}

fn value(tx: u64) -> Showed {
    Showed::Value(tx, format!("v{tx}").into_bytes())
}

/// Transactions 1 to 3 are of before midnight, 4 and 5 of after it; 6 is the order that forgot 1 and 2.
struct Told {
    own: Forgetful,
    indexed: Indexed,
    clock: Wall,
}

fn told() -> Told {
    let writes: Vec<Write> = [(1, 1), (2, 3), (3, 5), (4, 12), (5, 14)].map(|(tx, from)| write(tx, from)).into();
    let own = Forgetful { writes, truncations: vec![order(16, TruncationEnding::Done)], ..Forgetful::default() };
    let mut indexed = Indexed { database: DATABASE.into(), ..Indexed::default() };
    for write in &own.writes {
        let Ending::Acknowledged(tx) = write.ending else { continue };
        let (key, value_hash) = (write.key.clone(), stored(write));
        let ts = (MIDNIGHT_MS / 1000) + write.invoked.as_secs() as i64 - MIDNIGHT as i64;
        let entry = chain::Entry { key: [&[0], &key[..]].concat(), metadata: vec![], value_hash };
        indexed.chain.push(Transaction { id: tx, ts, entries: vec![entry], ..Transaction::default() });
        if tx < 3 {
            indexed.gone.push(Gone { tx, key, value_hash });
        } else {
            indexed.ledger.push((tx, key, write.value.clone()));
        }
    }
    let ts = MIDNIGHT_MS / 1000 + 6;
    indexed.chain.push(Transaction { id: 6, ts, metadata: truncated_up_to(3), ..Transaction::default() });
    Told { own, indexed, clock: Wall::new(-(MIDNIGHT as i64) * 1000) }
}

impl Told {
    fn judge(&self, check: fn(&Evidence<'_>) -> Result<(), String>) -> Result<(), String> {
        let history = History { forgetful: [(DATABASE.into(), self.own.clone())].into(), ..History::default() };
        let clocks = BTreeMap::from([(0, self.clock.clone())]);
        let sightings = Sightings { clocks, until: s(100), ..Sightings::default() };
        check(&Evidence {
            history: &history,
            ledger: &vec![],
            versions: &Versions::default(),
            replicas: &[],
            indexes: std::slice::from_ref(&self.indexed),
            sightings: &sightings,
        })
    }

    /// What both properties say after a change: S5, S6.
    fn with(change: impl FnOnce(&mut Self)) -> [bool; 2] {
        let mut told = told();
        change(&mut told);
        [told.judge(forgotten).is_ok(), told.judge(kept).is_ok()]
    }

    /// As if the value of a transaction were there in the end.
    fn bring_back(&mut self, tx: u64) {
        self.indexed.gone.retain(|gone| gone.tx != tx);
        self.indexed.ledger.push((tx, b"k".into(), format!("v{tx}").into_bytes()));
        self.indexed.ledger.sort();
    }

    /// As if it were not.
    fn take(&mut self, tx: u64) {
        self.indexed.ledger.retain(|(at, ..)| *at != tx);
        let value_hash = stored(&write(tx, 0));
        self.indexed.gone.push(Gone { tx, key: b"k".into(), value_hash });
    }

    /// As if nothing had been forgotten.
    fn forget_nothing(&mut self) {
        self.bring_back(1);
        self.bring_back(2);
        self.indexed.chain.pop();
    }
}

#[test]
fn a_good_story_passes() {
    assert_eq!(told().judge(forgotten), Ok(()));
    assert_eq!(told().judge(kept), Ok(()));
    let reads = |told: &mut Told| {
        told.own.reads = vec![read(value(1), 8), read(value(2), 15), read(Showed::Gone(2), 16), read(value(5), 20)];
    };
    assert_eq!(Told::with(reads), [true, true]);
}

#[test]
fn what_is_shown_after_it_was_forgotten_is_found() {
    assert_eq!(Told::with(|told| told.own.reads.push(read(value(2), 17))), [false, true]);
    assert_eq!(Told::with(|told| told.own.reads.push(read(value(2), 16))), [true, true], "not acknowledged yet");
    assert_eq!(Told::with(|told| told.own.reads.push(read(value(3), 17))), [true, true], "the newest of them stays");
    let of_an_old_state = |told: &mut Told| told.own.reads.push(ForgetfulRead { sees: None, ..read(value(2), 17) });
    assert_eq!(Told::with(of_an_old_state), [true, true]);
    let back_again = |told: &mut Told| {
        told.own.truncations[0].ending = TruncationEnding::Unknown;
        told.own.reads = vec![read(Showed::Gone(2), 17), read(value(1), 19)];
    };
    assert_eq!(Told::with(back_again), [false, true], "what is gone stays gone");
    assert_eq!(Told::with(|told| told.bring_back(2)), [false, true], "it is there in the end");
    let though_a_transaction_says_so = |told: &mut Told| {
        told.own.truncations[0].ending = TruncationEnding::Unknown;
        told.bring_back(2);
    };
    assert_eq!(Told::with(though_a_transaction_says_so), [false, true]);
}

#[test]
fn an_order_that_finds_nothing_left_to_forget_says_that_all_is_forgotten() {
    let nothing_old = |told: &mut Told| {
        told.forget_nothing();
        told.own.truncations[0].ending = TruncationEnding::NothingOld;
    };
    assert_eq!(Told::with(nothing_old), [false, true]);
    let before_midnight = |told: &mut Told| {
        told.forget_nothing();
        told.own.truncations = vec![order(7, TruncationEnding::NothingOld)];
    };
    assert_eq!(Told::with(before_midnight), [true, true]);
}

#[test]
fn what_is_forgotten_though_it_must_not_be_is_found() {
    assert_eq!(Told::with(|told| told.take(3)), [true, false], "the newest of the old ones");
    assert_eq!(Told::with(|told| told.take(4)), [true, false], "too young");
    assert_eq!(Told::with(|told| told.own.reads.push(read(Showed::Gone(2), 12))), [true, false], "before the order");
    assert_eq!(Told::with(|told| told.own.reads.push(read(Showed::Gone(3), 17))), [false, false]);
    assert_eq!(Told::with(|told| told.own.reads.push(read(Showed::Nothing, 17))), [true, false]);
    assert_eq!(Told::with(|told| told.own.reads.push(read(Showed::Nothing, 1))), [true, true], "nothing yet");
    assert_eq!(Told::with(|told| told.own.truncations.clear()), [true, false], "nobody ordered anything");
    let order_before_midnight = |told: &mut Told| told.own.truncations = vec![order(7, TruncationEnding::Done)];
    assert_eq!(Told::with(order_before_midnight), [true, false]);
    let of_a_clock_that_jumps = |told: &mut Told| {
        order_before_midnight(told);
        // Within the call, so it may be that the server saw it.
        told.clock = Wall::new(-(MIDNIGHT as i64) * 1000);
        told.clock.jump(Duration::from_millis(7_500), 60_000);
        told.clock.jump(Duration::from_millis(7_600), -60_000);
    };
    assert_eq!(Told::with(of_a_clock_that_jumps), [true, true]);
}

#[test]
fn what_was_acknowledged_is_there_with_its_value_or_its_hash() {
    assert_eq!(Told::with(|told| drop(told.indexed.ledger.pop())), [true, false], "lost");
    assert_eq!(Told::with(|told| drop(told.indexed.gone.pop())), [true, false], "lost, and its hash too");
    assert_eq!(Told::with(|told| told.indexed.gone[0].value_hash[0] ^= 1), [true, false], "another hash");
    assert_eq!(Told::with(|told| told.indexed.ledger[0].2.push(0)), [true, false], "another value");
    assert_eq!(Told::with(|told| told.own.reads.push(read(Showed::Value(4, b"x".into()), 17))), [true, false]);
    assert_eq!(Told::with(|told| told.indexed.database = "another".into()), [true, false], "all of it");
}

#[test]
fn an_order_leaves_one_transaction_that_says_so() {
    assert_eq!(Told::with(|told| told.indexed.chain[5].metadata = truncated_up_to(2)), [true, false]);
    assert_eq!(Told::with(|told| told.indexed.chain[5].metadata = truncated_up_to(6)), [true, false]);
    let twice = |told: &mut Told| {
        let marker = told.indexed.chain[5].clone();
        told.indexed.chain.push(Transaction { id: 7, ..marker });
    };
    assert_eq!(Told::with(twice), [true, false]);
    let lost = |told: &mut Told| told.forget_nothing();
    assert_eq!(Told::with(lost), [false, false], "acknowledged, and nothing came of it");
}
