//! The order of the keys of an in-memory part: made when somebody asks for it, a bounded piece at a time.

use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLockReadGuard;

use super::super::range::KeyRange;
use super::{Memtable, State, head};

/// Keys sorted, or numbers merged, under one hold of the lock.
const SORT_KEYS: usize = 4096;

/// Keys that a step of writing a part out sorts or merges.
const SORT_TOGETHER_KEYS: usize = 32 << 10;

/// Numbers of keys in the order of the keys.
pub(in crate::index) type Piece = Arc<[u32]>;

/// What is sorted so far.
#[derive(Debug, Default)]
pub(super) struct Order {
    pieces: Vec<Piece>,
    /// Keys up to here are in a piece.
    pub(super) sorted: usize,
}

/// A key with its first bytes beside its number, so that comparing mostly does not leave the list.
type Headed = (u128, u32);

/// Sorts all keys of a part that takes no more, for [`Memtable::drain`]: bounded steps, each the sorting of a piece or a part of a
/// merge of two.
#[derive(Debug, Default)]
pub(in crate::index) struct Sorting {
    /// Longer ones first.
    pieces: Vec<Vec<Headed>>,
    merging: Option<Merging>,
    /// Keys up to here are in a piece.
    sorted: usize,
}

#[derive(Debug)]
struct Merging {
    inputs: [Vec<Headed>; 2],
    /// How much of them is in the output.
    taken: [usize; 2],
    output: Vec<Headed>,
}

impl Sorting {
    /// Goes on for a step; answers how many keys were looked at, 0 when everything is in one piece.
    fn step(&mut self, state: &State) -> usize {
        let unsorted = state.keys.len() - self.sorted;
        if self.merging.is_none()
            && let [.., a, b] = &self.pieces[..]
            && (a.len() < b.len() * 2 || unsorted == 0)
        {
            let output = Vec::with_capacity(a.len() + b.len());
            let (b, a) = (self.pieces.pop().unwrap_or_default(), self.pieces.pop().unwrap_or_default());
            self.merging = Some(Merging { inputs: [a, b], taken: [0, 0], output });
        }
        if let Some(mut merging) = self.merging.take() {
            let before = merging.output.len();
            let more = merging.step(state);
            let looked_at = merging.output.len() - before;
            if more {
                self.merging = Some(merging);
            } else {
                self.pieces.push(merging.output);
            }
            return looked_at;
        }
        let some = unsorted.min(SORT_TOGETHER_KEYS);
        if some > 0 {
            let numbered = (self.sorted as u32..).zip(&state.keys[self.sorted..self.sorted + some]);
            let mut keys: Vec<Headed> = numbered.map(|(number, key)| (key.head, number)).collect();
            keys.sort_unstable_by(|a, b| state.cmp_headed(a, b));
            self.pieces.push(keys);
            self.sorted += some;
        }
        some
    }
}

impl Merging {
    /// Goes on for a bounded number of keys, both inputs having some; false at the end of both.
    fn step(&mut self, state: &State) -> bool {
        let [a, b] = &self.inputs;
        let [mut from_a, mut from_b] = self.taken;
        for _ in 0..SORT_TOGETHER_KEYS {
            let (Some(next_a), Some(next_b)) = (a.get(from_a), b.get(from_b)) else {
                self.output.extend_from_slice(&a[from_a..]);
                self.output.extend_from_slice(&b[from_b..]);
                return false;
            };
            let a_is_first = state.cmp_headed(next_a, next_b).is_lt();
            self.output.push(if a_is_first { *next_a } else { *next_b });
            from_a += usize::from(a_is_first);
            from_b += usize::from(!a_is_first);
        }
        self.taken = [from_a, from_b];
        true
    }
}

impl Memtable {
    /// Goes on with sorting a part that takes no more, for a bounded number of keys. Answers how many were looked at, and all numbers in the order of the keys when that was the last step.
    pub(in crate::index) fn sort_on(&self, sorting: &mut Sorting) -> (usize, Option<Piece>) {
        let looked_at = sorting.step(&self.read());
        if looked_at > 0 {
            return (looked_at, None);
        }
        let all = sorting.pieces.pop().unwrap_or_default();
        let sorted: Piece = all.into_iter().map(|(_, number)| number).collect();
        *self.order.lock() = Order { pieces: vec![Arc::clone(&sorted)], sorted: sorted.len() };
        (sorted.len(), Some(sorted))
    }

    /// The keys that are here by now, in sorted pieces.
    pub(super) fn pieces(&self) -> Vec<Piece> {
        let mut order = self.order.lock();
        loop {
            let state = self.read();
            let to = state.keys.len().min(order.sorted + SORT_KEYS);
            if to == order.sorted {
                break;
            }
            let mut numbers: Vec<u32> = (order.sorted as u32..to as u32).collect();
            numbers.sort_unstable_by(|a, b| state.cmp(*a, *b));
            drop(state);
            order.sorted = to;
            order.pieces.push(numbers.into());
            while let [.., a, b] = &order.pieces[..]
                && a.len() < b.len() * 2
            {
                let merged = self.merge(a, b);
                let kept = order.pieces.len() - 2;
                order.pieces.truncate(kept);
                order.pieces.push(merged);
            }
        }
        order.pieces.clone()
    }

    fn merge(&self, a: &[u32], b: &[u32]) -> Piece {
        let mut out = Vec::with_capacity(a.len() + b.len());
        let (mut a, mut b) = (a, b);
        let mut state = self.read();
        while let ([first_a, rest_a @ ..], [first_b, rest_b @ ..]) = (a, b) {
            if state.cmp(*first_a, *first_b).is_lt() {
                out.push(*first_a);
                a = rest_a;
            } else {
                out.push(*first_b);
                b = rest_b;
            }
            if out.len().is_multiple_of(SORT_KEYS) {
                RwLockReadGuard::bump(&mut state);
            }
        }
        out.extend_from_slice(a);
        out.extend_from_slice(b);
        out.into()
    }
}

impl State {
    fn cmp_headed(&self, a: &Headed, b: &Headed) -> std::cmp::Ordering {
        a.0.cmp(&b.0).then_with(|| self.cmp(a.1, b.1))
    }

    /// The part of a piece that lies within a range.
    pub(super) fn within<'a>(&self, piece: &'a [u32], range: &KeyRange) -> &'a [u32] {
        let from = match range.low() {
            Bound::Unbounded => 0,
            Bound::Included(low) => {
                let head = head(low);
                piece.partition_point(|number| self.cmp_to(*number, head, low).is_lt())
            }
            Bound::Excluded(low) => {
                let head = head(low);
                piece.partition_point(|number| self.cmp_to(*number, head, low).is_le())
            }
        };
        let piece = &piece[from..];
        let to = match range.high() {
            Bound::Unbounded => piece.len(),
            Bound::Included(high) => {
                let head = head(high);
                piece.partition_point(|number| self.cmp_to(*number, head, high).is_le())
            }
            Bound::Excluded(high) => {
                let head = head(high);
                piece.partition_point(|number| self.cmp_to(*number, head, high).is_lt())
            }
        };
        &piece[..to]
    }
}

/// Which cursor has the next key. A key is in one piece only.
fn nearest(state: &State, cursors: &[&[u32]], desc: bool) -> Option<usize> {
    let end = |cursor: &&[u32]| if desc { *cursor.last().expect("not empty") } else { cursor[0] };
    let by_key = |a: &usize, b: &usize| state.cmp(end(&cursors[*a]), end(&cursors[*b]));
    if desc { (0..cursors.len()).max_by(by_key) } else { (0..cursors.len()).min_by(by_key) }
}

pub(super) fn peek(state: &State, cursors: &[&[u32]], desc: bool) -> Option<u32> {
    let cursor = cursors[nearest(state, cursors, desc)?];
    if desc { cursor.last().copied() } else { cursor.first().copied() }
}

/// Takes the next key out of the cursors.
pub(super) fn next(state: &State, cursors: &mut Vec<&[u32]>, desc: bool) -> Option<u32> {
    let at = nearest(state, cursors, desc)?;
    let cursor = &mut cursors[at];
    let number = if desc { cursor.split_off_last() } else { cursor.split_off_first() }.copied();
    if cursor.is_empty() {
        cursors.swap_remove(at);
    }
    number
}
