//! What a transaction has read, in the form that travels with its proposal: one snapshot, the ranges of keys that were looked
//! at in it, and the times between which what had expired there, and what had not, is the same.
//!
//! One set of keys has one form: ranges are sorted, do not touch, and each is written in the shortest of four ways. Bytes are
//! specified in `docs/format.md`. [`crate::reads::Reads`] makes these.

use std::borrow::Cow;
use std::ops::Bound;

use alhambra_ledger::ids::TxId;
use bytes::Bytes;

use crate::index::KeyRange;
use crate::limits::READ_SET_BYTES_MAX;
use crate::wire::{Malformed, Put, Reader, varint_len};

const HAS_VALID_FROM: u8 = 1;
const HAS_VALID_UNTIL: u8 = 2;
const FLAGS: u8 = HAS_VALID_FROM | HAS_VALID_UNTIL;

const KEY: u8 = 1;
const PREFIX: u8 = 2;
const BETWEEN: u8 = 3;
const FROM: u8 = 4;

/// Bytes of a read set besides its ranges, at most: flags, snapshot, two times, count.
pub(crate) const READ_SET_HEAD_BYTES_MAX: usize = 1 + 8 + 8 + 8 + 4;

/// Some keys that were read. `T` is [`Bytes`] where it is kept and `&[u8]` where it is borrowed from a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRange<T = Bytes> {
    /// This key.
    Key(T),
    /// All keys that begin so; not empty and not only bytes 0xff, because these have no end.
    Prefix(T),
    /// From the first key on, below the second.
    Between(T, T),
    /// From this key on.
    From(T),
}

impl<T: AsRef<[u8]>> ReadRange<T> {
    /// The smallest key inside.
    pub fn start(&self) -> &[u8] {
        match self {
            Self::Key(start) | Self::Prefix(start) | Self::Between(start, _) | Self::From(start) => start.as_ref(),
        }
    }

    /// The smallest key behind all that are inside; `None` when there is none.
    pub fn end(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Key(key) => Some(Cow::Owned(behind(key.as_ref()))),
            Self::Prefix(prefix) => behind_prefix(prefix.as_ref()).map(Cow::Owned),
            Self::Between(_, end) => Some(Cow::Borrowed(end.as_ref())),
            Self::From(_) => None,
        }
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(only) => only.as_ref() == key,
            Self::Prefix(prefix) => key.starts_with(prefix.as_ref()),
            Self::Between(start, end) => start.as_ref() <= key && key < end.as_ref(),
            Self::From(start) => start.as_ref() <= key,
        }
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_u8(match self {
            Self::Key(_) => KEY,
            Self::Prefix(_) => PREFIX,
            Self::Between(..) => BETWEEN,
            Self::From(_) => FROM,
        });
        out.put_prefixed(self.start());
        if let Self::Between(_, end) = self {
            out.put_prefixed(end.as_ref());
        }
    }

    /// Bytes that the range takes in a read set.
    pub(crate) fn encoded_len(&self) -> usize {
        let prefixed = |bytes: &[u8]| varint_len(bytes.len() as u64) + bytes.len();
        1 + prefixed(self.start()) + if let Self::Between(_, end) = self { prefixed(end.as_ref()) } else { 0 }
    }
}

impl ReadRange<Bytes> {
    /// The range from `start` on and below `end`, which is greater, in the one form that it has.
    pub(crate) fn new(start: Bytes, end: Option<Bytes>) -> Self {
        match end {
            None => Self::From(start),
            Some(end) if is_behind(&end, &start) => Self::Key(start),
            Some(end) if behind_prefix(&start).is_some_and(|behind| behind == end) => Self::Prefix(start),
            Some(end) => Self::Between(start, end),
        }
    }
}

impl<'a> ReadRange<&'a [u8]> {
    /// Reads a range; one that has a shorter form, or holds no key, is malformed.
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let (kind, start) = (reader.u8()?, reader.prefixed()?);
        match kind {
            KEY => Ok(Self::Key(start)),
            PREFIX if behind_prefix(start).is_some() => Ok(Self::Prefix(start)),
            BETWEEN => {
                let end = reader.prefixed()?;
                let shorter = is_behind(end, start) || behind_prefix(start).is_some_and(|behind| behind == end);
                if start < end && !shorter { Ok(Self::Between(start, end)) } else { Err(Malformed) }
            }
            FROM => Ok(Self::From(start)),
            _ => Err(Malformed),
        }
    }

    /// The range, with keys shared with `payload`, in which it stands.
    pub(crate) fn within(&self, payload: &Bytes) -> ReadRange<Bytes> {
        let own = |key: &[u8]| payload.slice_ref(key);
        match *self {
            Self::Key(key) => ReadRange::Key(own(key)),
            Self::Prefix(prefix) => ReadRange::Prefix(own(prefix)),
            Self::Between(start, end) => ReadRange::Between(own(start), own(end)),
            Self::From(start) => ReadRange::From(own(start)),
        }
    }
}

impl From<ReadRange> for KeyRange {
    fn from(range: ReadRange) -> Self {
        match range {
            ReadRange::Key(key) => Self::key(key),
            ReadRange::Prefix(prefix) => Self::prefix(prefix),
            ReadRange::Between(start, end) => Self::between(Bound::Included(start), Bound::Excluded(end)),
            ReadRange::From(start) => Self::between(Bound::Included(start), Bound::Unbounded),
        }
    }
}

/// The smallest key that is greater than `key`.
pub(crate) fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

fn is_behind(end: &[u8], key: &[u8]) -> bool {
    end.strip_suffix(&[0]) == Some(key)
}

/// The smallest key that is greater than all that begin with `prefix`; none is when there are only bytes 0xff.
pub(crate) fn behind_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < 0xff)?;
    let mut key = prefix[..=last].to_vec();
    key[last] += 1;
    Some(key)
}

/// Everything that a transaction has read and that may be different when it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSet {
    pub(crate) snapshot: TxId,
    pub(crate) valid_from: Option<i64>,
    pub(crate) valid_until: Option<i64>,
    pub(crate) ranges: Vec<ReadRange>,
}

impl ReadSet {
    /// The newest transaction that the reads have seen.
    pub fn snapshot(&self) -> TxId {
        self.snapshot
    }

    /// Before this time, Unix seconds, something that was read as expired is not.
    pub fn valid_from(&self) -> Option<i64> {
        self.valid_from
    }

    /// From this time on, Unix seconds, something that was read as not expired is.
    pub fn valid_until(&self) -> Option<i64> {
        self.valid_until
    }

    /// What was read: sorted, no two of them touch.
    pub fn ranges(&self) -> &[ReadRange] {
        &self.ranges
    }

    /// Bytes in an encoded proposal, at most.
    pub(crate) fn encoded_len_max(&self) -> usize {
        READ_SET_HEAD_BYTES_MAX + self.ranges.iter().map(ReadRange::encoded_len).sum::<usize>()
    }

    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        let flag = |time: Option<i64>, flag| if time.is_some() { flag } else { 0 };
        out.put_u8(flag(self.valid_from, HAS_VALID_FROM) | flag(self.valid_until, HAS_VALID_UNTIL));
        out.put_u64(self.snapshot.0);
        [self.valid_from, self.valid_until].into_iter().flatten().for_each(|time| out.put_i64(time));
        out.put_varint(self.ranges.len() as u64);
        self.ranges.iter().for_each(|range| range.encode_into(out));
    }
}

/// A read set borrowed from the payload of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedReadSet<'a> {
    /// See [`ReadSet::snapshot`].
    pub snapshot: TxId,
    /// See [`ReadSet::valid_from`].
    pub valid_from: Option<i64>,
    /// See [`ReadSet::valid_until`].
    pub valid_until: Option<i64>,
    /// See [`ReadSet::ranges`].
    pub ranges: Vec<ReadRange<&'a [u8]>>,
}

impl<'a> LocatedReadSet<'a> {
    /// Reads a read set; one that is too long, or has ranges out of order, is malformed.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        /// Smallest range: kind and length of a key.
        const RANGE_BYTES_MIN: usize = 2;

        let begin = reader.at();
        let flags = reader.u8()?;
        if flags & !FLAGS != 0 {
            return Err(Malformed);
        }
        let snapshot = TxId(reader.u64()?);
        let mut time = |flag| if flags & flag != 0 { reader.i64().map(Some) } else { Ok(None) };
        let (valid_from, valid_until) = (time(HAS_VALID_FROM)?, time(HAS_VALID_UNTIL)?);
        let count = reader.count(RANGE_BYTES_MIN)?;
        if count > READ_SET_BYTES_MAX / RANGE_BYTES_MIN {
            return Err(Malformed);
        }
        let mut ranges: Vec<ReadRange<&[u8]>> = Vec::with_capacity(count);
        for _ in 0..count {
            let range = ReadRange::read(reader)?;
            // What touches is one range.
            if let Some(before) = ranges.last()
                && before.end().is_none_or(|end| *end >= *range.start())
            {
                return Err(Malformed);
            }
            ranges.push(range);
        }
        if reader.at() - begin > READ_SET_BYTES_MAX {
            return Err(Malformed);
        }
        Ok(Self { snapshot, valid_from, valid_until, ranges })
    }

    /// The read set, with keys shared with `payload`, in which it stands.
    pub(crate) fn within(&self, payload: &Bytes) -> ReadSet {
        let Self { snapshot, valid_from, valid_until, ref ranges } = *self;
        let ranges = ranges.iter().map(|range| range.within(payload)).collect();
        ReadSet { snapshot, valid_from, valid_until, ranges }
    }
}
