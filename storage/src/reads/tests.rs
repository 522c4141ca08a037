use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::command::LocatedReadSet;
use crate::wire::Reader;

/// All keys over three bytes up to length 3: closed enough that every bound of [`bounds`] lies between two of them.
fn universe() -> Vec<Vec<u8>> {
    let mut out = vec![vec![]];
    for len in 0..3 {
        let longer: Vec<Vec<u8>> = (out.iter().filter(|key| key.len() == len))
            .flat_map(|key| [0, 1, 0xff].map(|byte| [&key[..], &[byte]].concat()))
            .collect();
        out.extend(longer);
    }
    out
}

#[derive(Clone, Debug)]
enum Read {
    Key(Vec<u8>),
    Prefix(Vec<u8>),
    Between(Vec<u8>, Option<Vec<u8>>),
    Range(Bound<Vec<u8>>, Bound<Vec<u8>>),
}

impl Read {
    /// Judged by the words, without half-open bounds.
    fn holds(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(only) => key == only,
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Between(start, end) => key >= &start[..] && end.as_ref().is_none_or(|end| key < &end[..]),
            Self::Range(low, high) => {
                (match low {
                    Bound::Unbounded => true,
                    Bound::Included(low) => key >= &low[..],
                    Bound::Excluded(low) => key > &low[..],
                }) && (match high {
                    Bound::Unbounded => true,
                    Bound::Included(high) => key <= &high[..],
                    Bound::Excluded(high) => key < &high[..],
                })
            }
        }
    }

    fn add_to(&self, reads: &mut Reads) {
        match self {
            Self::Key(key) => reads.key(key),
            Self::Prefix(prefix) => reads.prefix(prefix),
            Self::Between(start, end) => reads.between(start, end.as_deref()),
            Self::Range(low, high) => {
                let own = |bound: &Bound<Vec<u8>>| bound.clone().map(Bytes::from);
                reads.range(&KeyRange::between(own(low), own(high)));
            }
        }
    }
}

fn bounds() -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(vec![0x00, 0x01, 0xff]), 0..3)
}

fn a_read() -> impl Strategy<Value = Read> {
    let bound =
        || prop_oneof![Just(Bound::Unbounded), bounds().prop_map(Bound::Included), bounds().prop_map(Bound::Excluded)];
    prop_oneof![
        4 => bounds().prop_map(Read::Key),
        1 => bounds().prop_map(Read::Prefix),
        1 => (bounds(), prop::option::of(bounds())).prop_map(|(start, end)| Read::Between(start, end)),
        1 => (bound(), bound()).prop_map(|(low, high)| Read::Range(low, high)),
    ]
}

fn holds(set: &Option<ReadSet>, key: &[u8]) -> bool {
    set.iter().flat_map(ReadSet::ranges).any(|range| range.contains(key))
}

/// The bytes of a set, which are those of what they decode to.
fn bytes_of(set: &ReadSet) -> Vec<u8> {
    let mut out = Vec::new();
    set.encode_into(&mut out);
    assert!(out.len() <= set.encoded_len_max());
    let payload = Bytes::from(out.clone());
    let mut reader = Reader::new(&payload);
    let read = LocatedReadSet::read(&mut reader).expect("own bytes");
    assert_eq!(reader.finish(), Ok(()));
    assert_eq!(read.within(&payload), *set);
    out
}

proptest! {
    #[test]
    fn a_set_holds_what_was_read_and_nothing_else_in_one_form(reads in vec(a_read(), 0..12), times in any::<(u8, u8)>()) {
        let mut forward = Reads::new(TxId(7));
        let mut backward = forward.clone();
        reads.iter().for_each(|read| read.add_to(&mut forward));
        reads.iter().rev().for_each(|read| read.add_to(&mut backward));
        for reads in [&mut forward, &mut backward] {
            for at in [times.0, times.1] {
                reads.is_live(&KvMetadata { expires_at: Some(at.into()), ..KvMetadata::default() }, 100);
            }
        }
        prop_assert!(!forward.is_coarsened());
        let encoded = forward.encoded_bytes;
        let (one, other) = (forward.finish(), backward.finish());
        prop_assert_eq!(&one, &other, "the order of reads does not matter");
        for key in universe() {
            prop_assert_eq!(holds(&one, &key), reads.iter().any(|read| read.holds(&key)), "{:?}", key);
        }
        let one = one.expect("times are there");
        prop_assert_eq!(one.ranges().iter().map(ReadRange::encoded_len).sum::<usize>(), encoded);
        bytes_of(&one);
    }

    #[test]
    fn a_set_that_gets_too_long_holds_more_but_nothing_less(
        reads in vec(vec(any::<u8>(), 0..40), 1..120),
        wide in vec(a_read(), 0..3),
        limit in 300..2000usize,
    ) {
        let mut set = Reads::with_limit(TxId(7), limit);
        let mut again = set.clone();
        let all: Vec<Read> = reads.iter().cloned().map(Read::Key).chain(wide).collect();
        for read in &all {
            read.add_to(&mut set);
            prop_assert!(set.encoded_bytes <= limit - READ_SET_HEAD_BYTES_MAX);
        }
        all.iter().for_each(|read| read.add_to(&mut again));
        let coarsened = set.is_coarsened();
        let set = set.finish();
        prop_assert_eq!(&set, &again.finish(), "the same reads become the same set");
        for read in &all {
            let kept: Vec<u8> = match read {
                Read::Key(key) => key.clone(),
                Read::Prefix(start) | Read::Between(start, _) => start.clone(),
                Read::Range(..) => continue,
            };
            prop_assert!(!read.holds(&kept) || holds(&set, &kept), "{:?}", read);
        }
        for key in universe().iter().filter(|key| all.iter().any(|read| read.holds(key))) {
            prop_assert!(holds(&set, key), "{:?}", key);
        }
        let set = set.expect("something was read");
        prop_assert!(bytes_of(&set).len() <= limit);
        if !coarsened {
            for key in universe().iter().chain(&reads) {
                prop_assert_eq!(holds(&Some(set.clone()), key), all.iter().any(|read| read.holds(key)), "{:?}", key);
            }
        }
    }

    #[test]
    fn whatever_decodes_has_one_form(bytes in vec(prop::sample::select(vec![0, 1, 2, 3, 4, 0xff]), 0..40), times in 0..4u8) {
        let head = [&[times][..], &[0; 8], &[0; 8][..if times & 1 == 0 { 0 } else { 8 }]].concat();
        let bytes = [&head[..], &[0; 8][..if times & 2 == 0 { 0 } else { 8 }], &bytes].concat();
        let payload = Bytes::from(bytes);
        let mut reader = Reader::new(&payload);
        if let Ok(read) = LocatedReadSet::read(&mut reader) {
            let set = read.within(&payload);
            prop_assert_eq!(&bytes_of(&set)[..], &payload[..reader.at()]);
            let mut again = Reads::new(set.snapshot);
            set.ranges().iter().for_each(|range| again.range(&KeyRange::from(range.clone())));
            prop_assert_eq!(again.finish().map(|set| set.ranges).unwrap_or_default(), set.ranges);
        }
    }
}

#[test]
fn ranges_have_their_shortest_form() {
    let forms = |add: &dyn Fn(&mut Reads)| {
        let mut reads = Reads::new(TxId(1));
        add(&mut reads);
        reads.finish().map(|set| set.ranges).unwrap_or_default()
    };
    let bytes = |key: &'static [u8]| Bytes::from_static(key);
    assert_eq!(forms(&|reads| reads.key(b"")), [ReadRange::Key(bytes(b""))]);
    assert_eq!(forms(&|reads| reads.prefix(b"")), [ReadRange::From(bytes(b""))]);
    assert_eq!(forms(&|reads| reads.prefix(b"a\xff")), [ReadRange::Prefix(bytes(b"a\xff"))]);
    assert_eq!(forms(&|reads| reads.prefix(b"\xff")), [ReadRange::From(bytes(b"\xff"))]);
    assert_eq!(forms(&|reads| reads.between(b"a", Some(b"b"))), [ReadRange::Prefix(bytes(b"a"))]);
    assert_eq!(forms(&|reads| reads.between(b"a", Some(b"a\0"))), [ReadRange::Key(bytes(b"a"))]);
    assert_eq!(forms(&|reads| reads.between(b"b", Some(b"b"))), []);
    // Nothing fits between these two keys.
    let two = |reads: &mut Reads| [&b"a\0"[..], b"a"].iter().for_each(|key| reads.key(key));
    assert_eq!(forms(&two), [ReadRange::Between(bytes(b"a"), bytes(b"a\0\0"))]);
}

#[test]
fn keys_with_most_in_common_are_joined_first() {
    let mut reads = Reads::with_limit(TxId(1), 1000);
    // A lone key between two tables, which share one byte with it.
    reads.key(b"b");
    let key = |table: char, n: u32| format!("{table}/{n:010}").into_bytes();
    for n in 0..50 {
        reads.key(&key('a', n));
        reads.key(&key('c', n));
    }
    assert!(reads.is_coarsened());
    let set = reads.finish();
    assert!(holds(&set, b"b"));
    for other in ["a", "b/", "c", "az", "ca"] {
        assert!(!holds(&set, other.as_bytes()), "{other} was joined to a stranger");
    }
}

#[test]
fn the_longest_keys_fit_in() {
    let mut reads = Reads::new(TxId(1));
    for byte in [0x00, 0x61, 0xff] {
        for len in [16_000, 17_000, 65_535] {
            let key = vec![byte; len];
            reads.key(&key);
            assert!(holds(&reads.clone().finish(), &key), "{len} times {byte}");
        }
    }
    let set = reads.finish().expect("something was read");
    assert!(bytes_of(&set).len() <= READ_SET_BYTES_MAX);
}

#[test]
fn a_read_set_that_is_too_long_or_disordered_is_malformed() {
    let set = |ranges: Vec<ReadRange>| ReadSet { snapshot: TxId(1), valid_from: None, valid_until: None, ranges };
    let refused = |set: &ReadSet| {
        let mut out = Vec::new();
        set.encode_into(&mut out);
        LocatedReadSet::read(&mut Reader::new(&out)).is_err()
    };
    let key = |key: &'static [u8]| ReadRange::Key(Bytes::from_static(key));
    assert!(!refused(&set(vec![key(b"a"), key(b"b")])));
    assert!(refused(&set(vec![key(b"b"), key(b"a")])));
    assert!(refused(&set(vec![key(b"a"), key(b"a")])));
    assert!(refused(&set(vec![key(b"a"), key(b"a\0")])), "these are one range");
    assert!(refused(&set(vec![ReadRange::From(Bytes::new()), key(b"a")])));
    let long = |len: usize| set(vec![ReadRange::Key(vec![1; len].into())]);
    // Flags, snapshot, count, kind, and four bytes of length.
    assert!(!refused(&long(READ_SET_BYTES_MAX - 15)));
    assert!(refused(&long(READ_SET_BYTES_MAX - 14)));
}
