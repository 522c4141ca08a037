//! Sessions that have ended, so that no node makes one of them anew: a bounded list that nodes tell each other.
//!
//! Invariant: this node knows the end of every session that was issued after [`Ended::floor_ms`], as far as the end was told
//! to it. What was issued earlier is never made anew here. Ends that there is no room for raise the floor.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use alhambra_raft::meta::SessionId;

/// Ends that are kept; about a hundred bytes each.
const ENDED_MAX: usize = 16_384;

/// One session that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// When the session was issued, milliseconds since 1970-01-01 UTC.
    pub issued_ms: i64,
    /// The session.
    pub id: SessionId,
}

/// All that are known to have ended.
#[derive(Debug)]
pub struct Ended {
    /// In the order in which they became known here, from 1.
    order: BTreeMap<u64, End>,
    numbers: HashMap<SessionId, u64>,
    by_age: BTreeSet<End>,
    next: u64,
    /// Ends before this were told to nobody who has told this node.
    since_ms: i64,
    /// Newest session whose end there was no room for.
    evicted_ms: i64,
    max: usize,
}

impl Ended {
    /// None known, from `now_ms` on.
    pub fn new(now_ms: i64) -> Self {
        Self::with_room(now_ms, ENDED_MAX)
    }

    fn with_room(now_ms: i64, max: usize) -> Self {
        Self {
            order: BTreeMap::new(),
            numbers: HashMap::new(),
            by_age: BTreeSet::new(),
            next: 1,
            since_ms: now_ms,
            evicted_ms: i64::MIN,
            max,
        }
    }

    /// Sessions that were issued by then cannot be vouched for.
    pub fn floor_ms(&self) -> i64 {
        self.since_ms.max(self.evicted_ms)
    }

    /// Whether this session has ended.
    pub fn contains(&self, id: &SessionId) -> bool {
        self.numbers.contains_key(id)
    }

    /// Notes an end.
    pub fn add(&mut self, end: End) {
        if end.issued_ms <= self.evicted_ms || self.numbers.contains_key(&end.id) {
            return;
        }
        self.order.insert(self.next, end);
        self.numbers.insert(end.id, self.next);
        self.by_age.insert(end);
        self.next += 1;
        while self.by_age.len() > self.max
            && let Some(oldest) = self.by_age.pop_first()
        {
            self.evicted_ms = self.evicted_ms.max(oldest.issued_ms);
            if let Some(number) = self.numbers.remove(&oldest.id) {
                self.order.remove(&number);
            }
        }
    }

    /// At most `most` ends behind number `after`, and the number to go on from; the number is `after` when that is all.
    pub fn behind(&self, after: u64, most: usize) -> (Vec<End>, u64) {
        let found = self.order.range(after.saturating_add(1)..).take(most);
        let mut last = after;
        let ends = found.map(|(number, end)| {
            last = *number;
            *end
        });
        (ends.collect(), last)
    }

    /// Everything that a node with this floor knows has been added.
    pub fn knows_as_much_as(&mut self, floor_ms: i64) {
        self.since_ms = self.since_ms.min(floor_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(issued_ms: i64) -> End {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&issued_ms.to_be_bytes());
        End { issued_ms, id }
    }

    #[test]
    fn ends_are_kept_and_told_in_order() {
        let mut ended = Ended::with_room(0, 10);
        for n in [5, 3, 4, 3] {
            ended.add(end(n));
        }
        assert!(ended.contains(&end(3).id) && !ended.contains(&end(6).id));
        assert_eq!(ended.behind(0, 2), (vec![end(5), end(3)], 2));
        assert_eq!(ended.behind(2, 2), (vec![end(4)], 3));
        assert_eq!(ended.behind(3, 2), (vec![], 3));
    }

    #[test]
    fn without_room_the_oldest_sessions_can_no_longer_be_vouched_for() {
        let mut ended = Ended::with_room(0, 3);
        for n in [10, 30, 20, 40, 50] {
            ended.add(end(n));
        }
        assert_eq!(ended.floor_ms(), 20);
        // Whatever was added is known to have ended or lies below the floor.
        for n in [10, 20, 30, 40, 50] {
            assert!(ended.contains(&end(n).id) || n <= ended.floor_ms(), "{n}");
        }
        ended.add(end(15));
        assert!(!ended.contains(&end(15).id), "below the floor it needs no room");
        assert_eq!((ended.order.len(), ended.numbers.len(), ended.by_age.len()), (3, 3, 3));
    }

    #[test]
    fn a_node_that_was_told_everything_vouches_as_far_back_as_the_teller() {
        let mut ended = Ended::with_room(1000, 2);
        ended.knows_as_much_as(2000);
        assert_eq!(ended.floor_ms(), 1000);
        ended.knows_as_much_as(10);
        assert_eq!(ended.floor_ms(), 10);
        for n in [100, 200, 300] {
            ended.add(end(n));
        }
        ended.knows_as_much_as(10);
        assert_eq!(ended.floor_ms(), 100, "what there was no room for stays forgotten");
    }
}
