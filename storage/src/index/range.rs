//! Which stored keys a read is about.

use std::ops::Bound;

use bytes::Bytes;

/// Which keys a scan answers and in which order. The default is all keys, upward.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanSpec {
    /// Only stored keys that begin so.
    pub prefix: Bytes,
    /// Where the scan starts: the smallest key, or with `desc` the greatest.
    pub start: Option<Bytes>,
    /// Whether `start` itself is in the range.
    pub start_inclusive: bool,
    /// Where the scan ends: the greatest key, or with `desc` the smallest.
    pub end: Option<Bytes>,
    /// Whether `end` itself is in the range.
    pub end_inclusive: bool,
    /// From the greatest key down.
    pub desc: bool,
}

impl ScanSpec {
    /// All keys that begin with `prefix`, upward.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }
}

/// An interval of stored keys. Conditions are only ever added: each makes it smaller or leaves it as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    low: Bound<Bytes>,
    high: Bound<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub const fn all() -> Self {
        Self { low: Bound::Unbounded, high: Bound::Unbounded }
    }

    /// This key alone.
    pub fn key(key: Bytes) -> Self {
        Self { low: Bound::Included(key.clone()), high: Bound::Included(key) }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: Bytes) -> Self {
        let high = successor_of_prefix(&prefix).map_or(Bound::Unbounded, |key| Bound::Excluded(Bytes::from(key)));
        Self { low: Bound::Included(prefix), high }
    }

    /// The keys between two bounds.
    pub const fn between(low: Bound<Bytes>, high: Bound<Bytes>) -> Self {
        Self { low, high }
    }

    /// The keys that a scan answers.
    pub fn of(spec: &ScanSpec) -> Self {
        let mut range = Self::prefix(spec.prefix.clone());
        let bound = |key: &Option<Bytes>, inclusive| match key {
            None => Bound::Unbounded,
            Some(key) if inclusive => Bound::Included(key.clone()),
            Some(key) => Bound::Excluded(key.clone()),
        };
        let (start, end) = (bound(&spec.start, spec.start_inclusive), bound(&spec.end, spec.end_inclusive));
        let (low, high) = if spec.desc { (end, start) } else { (start, end) };
        range.raise_low(low);
        range.reduce_high(high);
        range
    }

    /// The smallest key that may be inside.
    pub fn low(&self) -> Bound<&[u8]> {
        self.low.as_ref().map(|key| &key[..])
    }

    /// The greatest key that may be inside.
    pub fn high(&self) -> Bound<&[u8]> {
        self.high.as_ref().map(|key| &key[..])
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        !self.is_below(key) && !self.is_above(key)
    }

    /// Whether `key` is smaller than every key inside.
    pub(super) fn is_below(&self, key: &[u8]) -> bool {
        match &self.low {
            Bound::Unbounded => false,
            Bound::Included(low) => key < &low[..],
            Bound::Excluded(low) => key <= &low[..],
        }
    }

    /// Whether `key` is greater than every key inside.
    pub(super) fn is_above(&self, key: &[u8]) -> bool {
        match &self.high {
            Bound::Unbounded => false,
            Bound::Included(high) => key > &high[..],
            Bound::Excluded(high) => key >= &high[..],
        }
    }

    /// Leaves what a scan meets strictly behind `key`.
    pub fn continue_behind(&mut self, key: Bytes, desc: bool) {
        if desc {
            self.reduce_high(Bound::Excluded(key));
        } else {
            self.raise_low(Bound::Excluded(key));
        }
    }

    /// Leaves what a scan meets from `key` on.
    pub(super) fn begin_at(&mut self, key: Bytes, desc: bool) {
        if desc {
            self.reduce_high(Bound::Included(key));
        } else {
            self.raise_low(Bound::Included(key));
        }
    }

    /// The key, when there can be only one inside.
    pub(super) fn only_key(&self) -> Option<&Bytes> {
        match (&self.low, &self.high) {
            (Bound::Included(low), Bound::Included(high)) if low == high => Some(low),
            _ => None,
        }
    }

    fn raise_low(&mut self, low: Bound<Bytes>) {
        let tighter = match (&low, &self.low) {
            (Bound::Unbounded, _) => false,
            (_, Bound::Unbounded) => true,
            (Bound::Excluded(new), Bound::Included(old)) => new >= old,
            (Bound::Included(new) | Bound::Excluded(new), Bound::Included(old) | Bound::Excluded(old)) => new > old,
        };
        if tighter {
            self.low = low;
        }
    }

    fn reduce_high(&mut self, high: Bound<Bytes>) {
        let tighter = match (&high, &self.high) {
            (Bound::Unbounded, _) => false,
            (_, Bound::Unbounded) => true,
            (Bound::Excluded(new), Bound::Included(old)) => new <= old,
            (Bound::Included(new) | Bound::Excluded(new), Bound::Included(old) | Bound::Excluded(old)) => new < old,
        };
        if tighter {
            self.high = high;
        }
    }

    /// Whether no key at all can be inside.
    pub fn is_empty(&self) -> bool {
        match (&self.low, &self.high) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(low), Bound::Included(high)) => low > high,
            (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        }
    }
}

/// The smallest key that is greater than all keys with `prefix`; `None` when none is: 0xff cannot be counted up.
fn successor_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < 0xff)?;
    let mut key = prefix[..=last].to_vec();
    key[last] += 1;
    Some(key)
}
