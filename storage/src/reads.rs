//! Collects what a transaction reads, in bounded memory.
//!
//! Reads that touch become one range. When the encoded set would be longer than [`READ_SET_BYTES_MAX`], neighbours whose keys
//! have most in common are joined, with everything between them, until a quarter is free again. So a set only ever grows:
//! a conflict may be seen where there is none, and never missed. What becomes of a sequence of reads depends on that sequence
//! alone.

use std::collections::BTreeMap;
use std::ops::Bound;

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use crate::command::read_set::{READ_SET_HEAD_BYTES_MAX, behind, behind_prefix};
use crate::command::{ReadRange, ReadSet};
use crate::index::KeyRange;
use crate::limits::READ_SET_BYTES_MAX;

/// See the module.
#[derive(Clone, Debug)]
pub struct Reads {
    snapshot: TxId,
    valid_from: Option<i64>,
    valid_until: Option<i64>,
    /// Start to end (not inside; none: without end). They do not touch.
    ranges: BTreeMap<Bytes, Option<Bytes>>,
    /// Sum of what the ranges take encoded.
    encoded_bytes: usize,
    encoded_bytes_max: usize,
    coarsened: bool,
}

impl Reads {
    /// Nothing read yet in a snapshot that sees transactions up to `snapshot`.
    pub fn new(snapshot: TxId) -> Self {
        Self::with_limit(snapshot, READ_SET_BYTES_MAX)
    }

    fn with_limit(snapshot: TxId, limit: usize) -> Self {
        Self {
            snapshot,
            valid_from: None,
            valid_until: None,
            ranges: BTreeMap::new(),
            encoded_bytes: 0,
            encoded_bytes_max: limit - READ_SET_HEAD_BYTES_MAX,
            coarsened: false,
        }
    }

    /// One key was looked up, found or not.
    pub fn key(&mut self, key: &[u8]) {
        self.add(Bytes::copy_from_slice(key), Some(behind(key).into()));
    }

    /// All keys that begin with `prefix` were looked at, or the lack of them.
    pub fn prefix(&mut self, prefix: &[u8]) {
        self.add(Bytes::copy_from_slice(prefix), behind_prefix(prefix).map(Bytes::from));
    }

    /// All keys of a range were looked at, or the lack of them.
    pub fn range(&mut self, range: &KeyRange) {
        let (start, end) = half_open(range);
        self.add(start, end);
    }

    /// All keys from `start` on and below `end`, or all with `None`, were looked at, or the lack of them.
    pub fn between(&mut self, start: &[u8], end: Option<&[u8]>) {
        self.add(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
    }

    /// Whether a version with this metadata counts at `now`, Unix seconds; remembers until when, or since when, that is so.
    pub fn is_live(&mut self, metadata: &KvMetadata, now: i64) -> bool {
        match metadata.expires_at {
            _ if metadata.deleted => false,
            None => true,
            Some(at) if metadata.is_expired(now) => {
                self.valid_from = self.valid_from.max(Some(at));
                false
            }
            Some(at) => {
                self.valid_until = Some(self.valid_until.map_or(at, |until| until.min(at)));
                true
            }
        }
    }

    /// Whether keys were added that were not read, for want of space.
    pub fn is_coarsened(&self) -> bool {
        self.coarsened
    }

    /// The set, or `None` when nothing was read.
    pub fn finish(self) -> Option<ReadSet> {
        let Self { snapshot, valid_from, valid_until, ranges, .. } = self;
        if ranges.is_empty() && valid_from.is_none() && valid_until.is_none() {
            return None;
        }
        let ranges = ranges.into_iter().map(|(start, end)| ReadRange::new(start, end)).collect();
        Some(ReadSet { snapshot, valid_from, valid_until, ranges })
    }

    fn add(&mut self, start: Bytes, end: Option<Bytes>) {
        if end.as_ref().is_some_and(|end| *end <= start) {
            return;
        }
        let (mut start, mut end) = self.shortened(start, end);
        let before = self.ranges.range::<[u8], _>((Bound::Unbounded, Bound::Included(&start[..]))).next_back();
        if let Some((first, last)) = before
            && last.as_ref().is_none_or(|last| *last >= start)
        {
            if covers(last.as_ref(), end.as_ref()) {
                return;
            }
            // Takes part in what follows, as the first of those that touch.
            start = first.clone();
        }
        while let Some((next, last)) =
            self.ranges.range::<[u8], _>((Bound::Included(&start[..]), Bound::Unbounded)).next()
            && end.as_ref().is_none_or(|end| next <= end)
        {
            let (next, last) = (next.clone(), last.clone());
            self.ranges.remove(&next);
            self.encoded_bytes -= encoded_len(&next, last.as_ref());
            if covers(last.as_ref(), end.as_ref()) {
                end = last;
            }
        }
        self.encoded_bytes += encoded_len(&start, end.as_ref());
        self.ranges.insert(start, end);
        if self.encoded_bytes > self.encoded_bytes_max {
            self.coarsen();
        }
    }

    /// The range with bounds that fit in, whatever happens: four of them fill the set.
    fn shortened(&mut self, mut start: Bytes, mut end: Option<Bytes>) -> (Bytes, Option<Bytes>) {
        let len_max = self.encoded_bytes_max / 4;
        if start.len() > len_max {
            self.coarsened = true;
            start.truncate(len_max);
        }
        // The end of a single key is a byte longer than the key.
        if let Some(long) = end.as_ref().filter(|end| end.len() > len_max + 1) {
            self.coarsened = true;
            end = behind_prefix(&long[..len_max]).map(Bytes::from);
        }
        (start, end)
    }

    /// Joins neighbours until a quarter of the space is free, or one range is left.
    fn coarsen(&mut self) {
        let target = self.encoded_bytes_max / 4 * 3;
        let ranges: Vec<(Bytes, Option<Bytes>)> = std::mem::take(&mut self.ranges).into_iter().collect();
        // A gap has the number of the range before it. Those with most in common come first, of equals the lowest.
        let in_common = |gap: usize| {
            let end = ranges[gap].1.as_deref().expect("only the last range has no end");
            end.iter().zip(&ranges[gap + 1].0).take_while(|(a, b)| a == b).count()
        };
        let mut gaps: Vec<(usize, usize)> = (0..ranges.len() - 1).map(|gap| (in_common(gap), gap)).collect();
        gaps.sort_unstable_by(|(a, x), (b, y)| b.cmp(a).then(x.cmp(y)));
        // Ranges joined so far, as (first, last): each end knows the other.
        let mut first_of: Vec<usize> = (0..ranges.len()).collect();
        let mut last_of = first_of.clone();
        let len_of = |first: usize, last: usize| encoded_len(&ranges[first].0, ranges[last].1.as_ref());
        for (_, gap) in gaps {
            if self.encoded_bytes <= target {
                break;
            }
            let (first, last) = (first_of[gap], last_of[gap + 1]);
            let apart = len_of(first, gap) + len_of(gap + 1, last);
            self.encoded_bytes = self.encoded_bytes - apart + len_of(first, last);
            (last_of[first], first_of[last]) = (last, first);
            self.coarsened = true;
        }
        let mut first = 0;
        while first < ranges.len() {
            let last = last_of[first];
            self.ranges.insert(ranges[first].0.clone(), ranges[last].1.clone());
            first = last + 1;
        }
    }
}

/// Whether a range with end `this` reaches at least as far as one with end `other`.
fn covers(this: Option<&Bytes>, other: Option<&Bytes>) -> bool {
    this.is_none_or(|this| other.is_some_and(|other| this >= other))
}

fn encoded_len(start: &Bytes, end: Option<&Bytes>) -> usize {
    ReadRange::new(start.clone(), end.cloned()).encoded_len()
}

/// The range as first key inside and first key behind, with `None` for the end of all keys.
pub(crate) fn half_open(range: &KeyRange) -> (Bytes, Option<Bytes>) {
    let start = match range.low() {
        Bound::Unbounded => Bytes::new(),
        Bound::Included(key) => Bytes::copy_from_slice(key),
        Bound::Excluded(key) => behind(key).into(),
    };
    let end = match range.high() {
        Bound::Unbounded => None,
        Bound::Included(key) => Some(behind(key).into()),
        Bound::Excluded(key) => Some(Bytes::copy_from_slice(key)),
    };
    (start, end)
}

#[cfg(test)]
mod tests;
