//! R10: a scan of a sorted set shows exactly the members of one state, in their order, each with the value of its key in that
//! state; not of a state older than what was acknowledged before it began. Every member that was acknowledged stands where it was
//! said to, and nobody adds any by himself.

use std::collections::BTreeMap;

use super::Evidence;
use super::versions::name;
use crate::history::{Ending, Member, MemberAdd, SetScan};

/// Where each member was added, oldest first.
type Places<'a> = BTreeMap<&'a Member, Vec<u64>>;

/// Compares additions and scans with the ledger.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    let mut places = Places::new();
    for (tx, member) in evidence.indexes.first().into_iter().flat_map(|indexed| &indexed.members) {
        places.entry(member).or_default().push(*tx);
    }
    additions(&evidence.history.additions, &places)?;
    for scan in &evidence.history.set_scans {
        let who = || format!("ZScan of {:?} on node {} at {:?}", name(&scan.set), scan.node, scan.invoked);
        one_state(evidence, scan, &places).map_err(|what| format!("{}: {what}", who()))?;
    }
    Ok(())
}

fn additions(additions: &[MemberAdd], places: &Places<'_>) -> Result<(), String> {
    let mut by_member: BTreeMap<&Member, Vec<&MemberAdd>> = BTreeMap::new();
    for addition in additions {
        by_member.entry(&addition.member).or_default().push(addition);
    }
    for (member, additions) in &by_member {
        let stands = places.get(member).map_or(&[][..], Vec::as_slice);
        let acknowledged = additions.iter().filter_map(|addition| match addition.ending {
            Ending::Acknowledged(tx) => Some(tx),
            Ending::Refused | Ending::Unknown => None,
        });
        let acknowledged: Vec<u64> = acknowledged.collect();
        if let Some(lost) = acknowledged.iter().find(|tx| !stands.contains(tx)) {
            return Err(format!("{member} was acknowledged at {lost} and stands at {stands:?}"));
        }
        let unknown = additions.iter().filter(|addition| addition.ending == Ending::Unknown).count();
        if stands.len() > acknowledged.len() + unknown {
            return Err(format!("{member} stands at {stands:?}; acknowledged at {acknowledged:?}, {unknown} unknown"));
        }
    }
    match places.keys().find(|member| !by_member.contains_key(*member)) {
        Some(member) => Err(format!("nobody added {member}")),
        None => Ok(()),
    }
}

/// Intersects the spans of transactions in which each member was there or not, and had the value that was shown.
fn one_state(evidence: &Evidence<'_>, scan: &SetScan, places: &Places<'_>) -> Result<(), String> {
    if let Some(pair) = scan.shown.windows(2).find(|pair| pair[0].member.place() >= pair[1].member.place()) {
        return Err(format!("{} stands before {}", pair[0].member, pair[1].member));
    }
    let acknowledged = |ending, ended| match ending {
        Ending::Acknowledged(tx) if ended < scan.invoked => Some(tx),
        _ => None,
    };
    let writes = evidence.history.writes.iter().filter_map(|write| acknowledged(write.ending, write.ended));
    let additions = evidence.history.additions.iter().filter_map(|add| acknowledged(add.ending, add.ended));
    let floor = writes.chain(additions).max().unwrap_or(0);
    let (mut from, mut to) = (floor, u64::MAX);
    for shown in &scan.shown {
        let member = &shown.member;
        let Some(first) = places.get(member).and_then(|places| places.first()) else {
            return Err(format!("shows {member}, which is not in the ledger"));
        };
        let (since, until) = if member.at_tx == 0 {
            evidence.versions.span(&member.key, Some(&shown.value))?
        } else {
            let there = evidence.versions.at(&member.key, member.at_tx);
            if there != Some(&(member.at_tx, shown.value.clone())) {
                return Err(format!("shows {member} with {:?}, which it is not bound to", name(&shown.value)));
            }
            (member.at_tx, u64::MAX)
        };
        if shown.tx != since {
            return Err(format!("shows {member} as of transaction {}, its value is of {since}", shown.tx));
        }
        (from, to) = (from.max(*first).max(since), to.min(until));
    }
    for (member, places) in places.iter().filter(|(member, _)| member.set == scan.set) {
        if let Some(first) = places.first()
            && !scan.shown.iter().any(|shown| shown.member == **member)
        {
            to = to.min(first - 1);
        }
    }
    if from > to {
        return Err(format!("no state from {floor} on has all that it returned and nothing else ({from} > {to})"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Sightings;
    use super::super::index::Indexed;
    use super::super::versions::Versions;
    use super::*;
    use crate::history::{History, MemberShown, Write};

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn member(score: f64, key: &str, at_tx: u64) -> Member {
        Member { set: b"s".into(), score: score.to_bits(), key: key.into(), at_tx }
    }

    /// Key `a` has the values of transactions 1 and 4; members are added in 2 (the newest of `a`), 3 (`a` as of 1) and 5.
    fn members() -> [(u64, Member); 3] {
        [(2, member(1.0, "a", 0)), (3, member(1.0, "a", 1)), (5, member(-1.0, "a", 0))]
    }

    fn shown(member: Member, tx: u64) -> MemberShown {
        MemberShown { member, tx, value: format!("a{tx}").into_bytes() }
    }

    fn with(change: impl FnOnce(&mut History, &mut Indexed)) -> Result<(), String> {
        let write = |tx, from| Write {
            client: 0,
            key: b"a".into(),
            value: format!("a{tx}").into_bytes(),
            invoked: s(from),
            ended: s(from + 1),
            ending: Ending::Acknowledged(tx),
        };
        let add = |(tx, member): (u64, Member)| MemberAdd {
            member,
            invoked: s(10 * tx),
            ended: s(10 * tx + 1),
            ending: Ending::Acknowledged(tx),
        };
        let additions = members().map(add).into();
        let mut history = History { writes: vec![write(1, 10), write(4, 40)], additions, ..History::default() };
        let ledger: Vec<_> = [1, 4].map(|tx| (tx, b"a".to_vec(), format!("a{tx}").into_bytes())).into();
        let mut indexed = Indexed { ledger: ledger.clone(), members: members().into(), ..Indexed::default() };
        change(&mut history, &mut indexed);
        check(&Evidence {
            history: &history,
            ledger: &ledger,
            versions: &Versions::of(&ledger),
            replicas: &[],
            indexes: &[indexed],
            sightings: &Sightings::default(),
        })
    }

    fn scan(invoked: u64, shown: Vec<MemberShown>) -> Result<(), String> {
        with(|history, _| history.set_scans.push(SetScan { node: 0, set: b"s".into(), shown, invoked: s(invoked) }))
    }

    #[test]
    fn a_scan_of_one_state_passes() {
        let [(_, newest), (_, bound), (_, below)] = members();
        assert_eq!(scan(5, vec![]), Ok(()));
        assert_eq!(scan(25, vec![shown(newest.clone(), 1)]), Ok(()));
        assert_eq!(scan(25, vec![shown(newest.clone(), 1), shown(bound.clone(), 1)]), Ok(()), "newer is fine");
        assert_eq!(scan(99, vec![shown(newest, 4), shown(bound, 1), shown(below, 4)]), Ok(()));
    }

    #[test]
    fn another_scan_is_found() {
        let [(_, newest), (_, bound), (_, below)] = members();
        let found = |invoked, shown| assert!(scan(invoked, shown).is_err());
        found(35, vec![shown(newest.clone(), 1)]);
        found(25, vec![shown(bound.clone(), 1)]);
        found(99, vec![shown(newest.clone(), 4), shown(bound.clone(), 1)]);
        found(5, vec![shown(newest.clone(), 4), shown(below.clone(), 4)]);
        found(5, vec![shown(below.clone(), 4), shown(newest.clone(), 4), shown(bound.clone(), 1)]);
        found(5, vec![shown(newest.clone(), 1), shown(bound.clone(), 1), shown(below, 1)]);
        found(5, vec![shown(newest.clone(), 1), shown(newest.clone(), 1), shown(bound.clone(), 1)]);
        found(5, vec![shown(newest.clone(), 1), shown(bound, 4)]);
        found(5, vec![MemberShown { tx: 2, ..shown(newest, 1) }]);
        found(5, vec![shown(member(2.0, "a", 0), 1)]);
    }

    #[test]
    fn a_member_that_is_lost_doubled_or_uninvited_is_found() {
        assert_eq!(with(|_, _| ()), Ok(()));
        assert!(with(|_, indexed| drop(indexed.members.pop())).is_err(), "lost");
        assert!(with(|_, indexed| indexed.members[0].0 = 4).is_err(), "elsewhere");
        assert!(with(|_, indexed| indexed.members.push((6, member(1.0, "a", 0)))).is_err(), "twice");
        assert!(with(|history, _| drop(history.additions.pop())).is_err(), "uninvited");
        assert!(with(|history, _| history.additions[0].ending = Ending::Refused).is_err(), "refused");
        assert_eq!(with(|history, _| history.additions[0].ending = Ending::Unknown), Ok(()));
        let nobody_knows = |history: &mut History, indexed: &mut Indexed| {
            history.additions[0].ending = Ending::Unknown;
            indexed.members.remove(0);
        };
        assert_eq!(with(nobody_knows), Ok(()));
    }
}
