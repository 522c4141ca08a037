//! Every property finds the violation that it is there for, and lets a good history pass.

use std::time::Duration;

use super::index::KeyShown;
use super::*;
use crate::history::{
    Condition, ConditionalWrite, Ending, FloorRead, Member, MemberShown, Overdue, PastRead, SnapshotRead, Transaction,
    Trusted, Write,
};

/// Two keys: `a` has versions of transactions 1 and 3, `b` of 2.
fn ledger() -> Ledger {
    [(1, "a", "a1"), (2, "b", "b2"), (3, "a", "a3")].map(|(tx, k, v)| (tx, k.into(), v.into())).into()
}

fn write(key: &str, value: &str, ended: u64, ending: Ending) -> Write {
    let ended = Duration::from_secs(ended);
    Write { client: 0, key: key.into(), value: value.into(), invoked: Duration::ZERO, ended, ending }
}

/// What the checks say about a history.
fn judge(history: &History, sightings: &Sightings) -> Result<(), String> {
    let ledger = ledger();
    let alhs = vec![[1; 32], [2; 32], [3; 32]];
    let replica = Replica { name: "n1".into(), alhs, segments: BTreeMap::new() };
    let versions = Versions::of(&ledger);
    let indexes = [indexed("defaultdb", vec![index()])];
    all(&Evidence { history, ledger: &ledger, versions: &versions, replicas: &[replica], indexes: &indexes, sightings })
}

fn indexed(database: &str, shown: Vec<index::Shown>) -> Indexed {
    Indexed { database: database.into(), ledger: ledger(), shown, ..Indexed::default() }
}

/// What a good index says of the ledger above.
fn index() -> index::Shown {
    let key = |key: &str, past: &[(u64, &str)]| {
        let past: Vec<(u64, Vec<u8>)> = past.iter().map(|(tx, value)| (*tx, (*value).into())).collect();
        let revision = past.len() as u64;
        KeyShown { key: key.into(), newest: past.last().cloned(), gone: None, revision, past }
    };
    let scan = [("a", 3, "a3"), ("b", 2, "b2")].map(|(key, tx, value)| (key.into(), tx, value.into())).into();
    let sets = BTreeMap::new();
    index::Shown {
        node: "n1".into(),
        sets,
        keys: vec![key("a", &[(1, "a1"), (3, "a3")]), key("b", &[(2, "b2")])],
        scan,
    }
}

/// The good history, changed.
fn with(change: impl FnOnce(&mut History)) -> Result<(), String> {
    let mut history = History {
        writes: vec![
            write("a", "a1", 1, Ending::Acknowledged(1)),
            write("b", "b2", 2, Ending::Unknown),
            write("a", "a3", 5, Ending::Acknowledged(3)),
        ],
        ..History::default()
    };
    change(&mut history);
    judge(&history, &Sightings::default())
}

fn seen(change: impl FnOnce(&mut Sightings)) -> Result<(), String> {
    let mut sightings = Sightings::default();
    change(&mut sightings);
    judge(&History { writes: ["a1", "b2", "a3"].map(unknown).into(), ..History::default() }, &sightings)
}

fn unknown(value: &str) -> Write {
    write(&value[..1], value, 9, Ending::Unknown)
}

fn is(verdict: Result<(), String>, id: &str) {
    let what = verdict.expect_err("a violation");
    assert!(what.starts_with(&format!("{id}: ")), "{id} was expected: {what}");
}

#[test]
fn a_good_history_passes() {
    assert_eq!(with(|_| ()), Ok(()));
    assert_eq!(seen(|_| ()), Ok(()));
}

#[test]
fn a_torn_batch_is_found() {
    assert_eq!(with(|h| h.batches.push(vec!["a1".into()])), Ok(()));
    is(with(|h| h.batches.push(vec!["a1".into(), "b2".into()])), "A1");
    is(with(|h| h.batches.push(vec!["a1".into(), "lost".into()])), "A1");
}

#[test]
fn a_condition_that_was_ignored_is_found() {
    let conditional = |value: &str, condition, unmet, floor| {
        let ended = Duration::from_secs(9);
        with(|h| h.conditionals.push(ConditionalWrite { value: value.into(), condition, unmet, floor, ended }))
    };
    assert_eq!(conditional("b2", Condition::Absent("b".into()), false, 0), Ok(()));
    is(conditional("a3", Condition::Absent("a".into()), false, 0), "A2");
    is(conditional("a3", Condition::UnchangedSince("a".into(), 0), false, 0), "A2");
    assert_eq!(conditional("a3", Condition::UnchangedSince("a".into(), 1), false, 0), Ok(()));
    assert_eq!(conditional("x", Condition::Absent("a".into()), true, 0), Ok(()));
    is(conditional("x", Condition::Exists("a".into()), true, 1), "A2");
    assert_eq!(conditional("x", Condition::Exists("a".into()), true, 0), Ok(()), "it did not exist in state 0");
    is(conditional("a3", Condition::Exists("b".into()), true, 0), "A2");
}

#[test]
fn a_refusal_for_what_was_only_written_later_is_found() {
    let refused = |key: &str, answered: u64| {
        with(|h| {
            h.writes[2].invoked = Duration::from_secs(4);
            let condition = Condition::UnchangedSince(key.into(), 1);
            let ended = Duration::from_secs(answered);
            h.conditionals.push(ConditionalWrite { value: "x".into(), condition, unmet: true, floor: 1, ended });
        })
    };
    is(refused("a", 3), "A2");
    assert_eq!(refused("a", 4), Ok(()), "it may have been there by then");
    is(refused("c", 9), "A2");
    assert_eq!(refused("b", 3), Ok(()));
}

#[test]
fn a_transaction_on_a_stale_state_is_found() {
    let reads = |seen: Option<&str>| {
        let reads = vec![(b"a".to_vec(), seen.map(Into::into))];
        with(|h| h.transactions.push(Transaction { reads, value: "a3".into() }))
    };
    assert_eq!(reads(Some("a1")), Ok(()));
    is(reads(None), "A3");
    is(reads(Some("a3")), "A3");
}

#[test]
fn a_read_of_two_states_is_found() {
    let snapshot = |a: Option<&str>, b: Option<&str>, invoked| {
        let pairs = [("a", a), ("b", b)].map(|(k, v)| (k.into(), v.map(Into::into))).into();
        with(|h| h.snapshots.push(SnapshotRead { call: "Scan", node: 0, pairs, invoked: Duration::from_secs(invoked) }))
    };
    assert_eq!(snapshot(Some("a1"), None, 1), Ok(()));
    assert_eq!(snapshot(Some("a1"), Some("b2"), 1), Ok(()));
    is(snapshot(Some("a3"), None, 1), "R6");
    is(snapshot(None, None, 4), "R6");
    is(snapshot(Some("a1"), Some("b2"), 6), "R6");
}

#[test]
fn a_read_below_its_floor_is_found() {
    let floor = |floor, value: Option<&str>| {
        with(|h| h.floors.push(FloorRead { node: 0, key: "a".into(), floor, value: value.map(Into::into) }))
    };
    assert_eq!(floor(2, Some("a1")), Ok(()));
    assert_eq!(floor(1, Some("a3")), Ok(()), "newer is fine");
    is(floor(3, Some("a1")), "R7");
    is(floor(1, None), "R7");
}

#[test]
fn another_past_is_found() {
    let history = |versions: &[(u64, &str)], invoked| {
        let versions = versions.iter().map(|(tx, v)| (*tx, (*v).into())).collect();
        let invoked = Duration::from_secs(invoked);
        with(|h| h.pasts.push(PastRead::History { node: 0, key: "a".into(), versions, invoked }))
    };
    assert_eq!(history(&[(1, "a1")], 2), Ok(()));
    assert_eq!(history(&[(1, "a1"), (3, "a3")], 9), Ok(()));
    is(history(&[(1, "a1")], 9), "R8");
    is(history(&[(2, "a1")], 0), "R8");
    is(history(&[(3, "a3")], 0), "R8");
    let at = |tx, value: Option<&str>| {
        with(|h| h.pasts.push(PastRead::AtTx { node: 0, key: "a".into(), tx, value: value.map(Into::into) }))
    };
    assert_eq!(at(1, Some("a1")), Ok(()));
    assert_eq!(at(2, None), Ok(()));
    is(at(2, Some("a1")), "R8");
    is(at(3, None), "R8");
    let revision = |revision, tx, v: &str| {
        let found = (tx, v.into());
        with(|h| h.pasts.push(PastRead::AtRevision { node: 0, key: "a".into(), revision, found }))
    };
    assert_eq!(revision(2, 3, "a3"), Ok(()));
    is(revision(1, 3, "a3"), "R8");
    is(revision(3, 3, "a3"), "R8");
}

#[test]
fn a_trusted_state_that_goes_back_or_is_another_one_is_found() {
    let trust = |states: &[(u64, u8)]| {
        with(|h| h.trusted = states.iter().map(|(tx, b)| Trusted { client: 1, tx: *tx, alh: vec![*b; 32] }).collect())
    };
    assert_eq!(trust(&[(1, 1), (3, 3), (3, 3)]), Ok(()));
    is(trust(&[(3, 3), (1, 1)]), "V2");
    is(trust(&[(2, 1)]), "V2");
    is(trust(&[(4, 4)]), "V2");
}

#[test]
fn what_is_seen_of_the_nodes_counts() {
    is(seen(|s| s.clusters = ["x", "y"].map(|c| (c.to_string(), vec![])).into()), "M2");
    let leaders = |nodes: &[&str]| {
        let nodes = nodes.iter().map(|n| n.to_string()).collect();
        seen(|s| drop(s.leaders.insert(("defaultdb".into(), 3), nodes)))
    };
    assert_eq!(leaders(&["n1"]), Ok(()));
    is(leaders(&["n1", "n2"]), "M3");
    is(seen(|s| s.deposed.push("n1".into())), "M3");
    let memory = |change: fn(&mut MemorySeen)| {
        let mut memory =
            MemorySeen { budget: 8 << 20, most: 8 << 20, cached: 2 << 20, waiting: 1 << 20, left: Some(0) };
        change(&mut memory);
        seen(|s| s.memory = [("n1".to_string(), memory)].into())
    };
    assert_eq!(memory(|_| ()), Ok(()));
    is(memory(|m| m.most += 1), "B1");
    is(memory(|m| m.cached += 1), "B1");
    is(memory(|m| m.waiting += (64 << 10) + 1), "B1");
    is(memory(|m| m.left = Some(1)), "B1");
    is(seen(|s| s.wrong.push("something".into())), "W1");
    let overdue = Overdue { call: "set", node: 0, invoked: Duration::ZERO, waited: Duration::from_secs(9) };
    is(with(|h| h.overdue.push(overdue)), "T1");
}

fn through_index(indexes: &[Indexed]) -> Result<(), String> {
    let (history, sightings) = (History::default(), Sightings::default());
    let (ledger, versions, replicas) = (&vec![], &Versions::default(), &[]);
    index::check(&Evidence { history: &history, ledger, versions, replicas, indexes, sightings: &sightings })
}

#[test]
fn an_index_that_says_something_else_is_found() {
    let judge = |change: fn(&mut index::Shown)| {
        let mut second = index::Shown { node: "n2".into(), ..index() };
        change(&mut second);
        // The first node is good, and so is the first database.
        through_index(&[indexed("defaultdb", vec![index()]), indexed("made", vec![index(), second])])
    };
    assert_eq!(judge(|_| ()), Ok(()));
    let found = |change| assert!(judge(change).expect_err("a violation").starts_with("made of n2: "));
    found(|shown| shown.keys[0].newest = Some((1, "a1".into())));
    found(|shown| shown.keys[0].newest = None);
    found(|shown| shown.keys[0].revision = 3);
    found(|shown| drop(shown.keys[0].past.remove(0)));
    found(|shown| shown.keys[0].past[0].0 = 2);
    found(|shown| shown.keys[1].past[0].1 = "b3".into());
    found(|shown| drop(shown.keys.pop()));
    found(|shown| drop(shown.scan.pop()));
    found(|shown| shown.scan[0].1 = 1);
    found(|shown| shown.scan.push(("c".into(), 3, "c3".into())));
}

#[test]
fn a_version_that_is_forgotten_counts_and_is_not_shown() {
    let judge = |forgotten: &[(u64, &str)], change: fn(&mut index::Shown)| {
        let (mut shown, mut made) = (index(), indexed("made", vec![]));
        for (tx, key) in forgotten {
            made.ledger.retain(|(at, ..)| at != tx);
            made.gone.push(index::Gone { tx: *tx, key: (*key).into(), value_hash: [0; 32] });
        }
        change(&mut shown);
        through_index(&[Indexed { shown: vec![shown], ..made }])
    };
    fn oldest(shown: &mut index::Shown) {
        shown.keys[0].past.remove(0);
    }
    assert_eq!(judge(&[(1, "a")], oldest), Ok(()));
    assert!(judge(&[(1, "a")], |_| ()).is_err(), "its history shows it");
    let count = |shown: &mut index::Shown| {
        oldest(shown);
        shown.keys[0].revision = 1;
    };
    assert!(judge(&[(1, "a")], count).is_err(), "it does not count");
    fn newest(shown: &mut index::Shown) {
        shown.keys[0] = KeyShown {
            newest: None,
            gone: Some(3),
            revision: 0,
            past: vec![(1, "a1".into())],
            ..shown.keys[0].clone()
        };
        shown.scan.remove(0);
    }
    assert_eq!(judge(&[(3, "a")], newest), Ok(()));
    let older = |shown: &mut index::Shown| {
        newest(shown);
        shown.keys[0].newest = Some((1, "a1".into()));
    };
    assert!(judge(&[(3, "a")], older).is_err(), "the one before is not the newest");
    let nothing = |shown: &mut index::Shown| {
        newest(shown);
        shown.keys[0].gone = None;
    };
    assert!(judge(&[(3, "a")], nothing).is_err(), "as if there had never been one");
    let scanned = |shown: &mut index::Shown| {
        newest(shown);
        shown.scan.insert(0, ("a".into(), 1, "a1".into()));
    };
    assert!(judge(&[(3, "a")], scanned).is_err(), "a scan shows the one before");
}

#[test]
fn a_sorted_set_that_is_shown_otherwise_is_found() {
    let member =
        |score: f64, key: &str, at_tx| Member { set: "s".into(), score: score.to_bits(), key: key.into(), at_tx };
    let shown = |member, tx, value: &str| MemberShown { member, tx, value: value.into() };
    let judge = |change: fn(&mut Vec<MemberShown>)| {
        let mut made = indexed("made", vec![index()]);
        // Twice the same is one member.
        let added = [member(-1.0, "a", 0), member(1.0, "b", 0), member(1.0, "a", 1), member(1.0, "b", 0)];
        made.members = (4..).zip(added).collect();
        let mut set = vec![
            shown(member(1.0, "a", 1), 1, "a1"),
            shown(member(1.0, "b", 0), 2, "b2"),
            shown(member(-1.0, "a", 0), 3, "a3"),
        ];
        change(&mut set);
        made.shown[0].sets.insert("s".into(), set);
        through_index(&[made])
    };
    assert_eq!(judge(|_| ()), Ok(()));
    let found = |change| assert!(judge(change).expect_err("a violation").starts_with("made of n1: the set"));
    found(|set| drop(set.pop()));
    found(|set| set.swap(0, 1));
    found(|set| set[0].tx = 3);
    found(|set| set[2].value = "a1".into());
    found(|set| set.push(set[0].clone()));
    found(|set| set.clear());
}
