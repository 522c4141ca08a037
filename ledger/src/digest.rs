//! SHA-256 and the two prefixes that keep leaves and inner nodes of a Merkle tree apart (RFC 6962, section 2.1). The
//! only module that calls the hash function.

use alloc::vec::Vec;
use core::{fmt, str::FromStr};

use sha2::Digest as _;

use crate::error::FormatError;

#[cfg(all(feature = "std", target_arch = "x86_64"))]
mod lanes;

/// A SHA-256 digest.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// SHA-256 of nothing: Alh before the first transaction, and Eh of a transaction without entries.
pub const EMPTY: Digest = Digest([
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
]);

/// 32 zero bytes: the root of a main tree without leaves.
pub const ZERO: Digest = Digest([0; 32]);

const LEAF: u8 = 0;
const NODE: u8 = 1;

impl Digest {
    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Accepts exactly 32 bytes.
impl TryFrom<&[u8]> for Digest {
    type Error = FormatError;

    fn try_from(bytes: &[u8]) -> Result<Self, FormatError> {
        match bytes.len().checked_sub(32) {
            None => Err(FormatError::Truncated { part: "digest" }),
            Some(0) => bytes.try_into().map(Self).map_err(|_| FormatError::Truncated { part: "digest" }),
            Some(count) => Err(FormatError::TrailingBytes { count }),
        }
    }
}

/// Reads 64 hexadecimal digits of either case.
impl FromStr for Digest {
    type Err = FormatError;

    fn from_str(hex: &str) -> Result<Self, FormatError> {
        let mut out = [0; 32];
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        if pairs.len() != out.len() || !rest.is_empty() {
            return Err(FormatError::NotHex);
        }
        let nibble = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(FormatError::NotHex);
        for (byte, &[high, low]) in out.iter_mut().zip(pairs) {
            *byte = nibble(high)? << 4 | nibble(low)?;
        }
        Ok(Self(out))
    }
}

/// SHA-256 over bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Continues with `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Digest of all bytes so far. To go on afterwards, clone first.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> Digest {
    sha256_parts(&[bytes])
}

/// SHA-256 of the concatenation of `parts`.
pub fn sha256_parts(parts: &[&[u8]]) -> Digest {
    let mut hasher = Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finish()
}

/// SHA-256 of each of `count` messages, in order, faster than one by one where the processor allows. `write` appends message
/// number n to an empty buffer. Messages of more than a few hundred bytes gain nothing.
pub fn sha256_each(count: usize, mut write: impl FnMut(usize, &mut Vec<u8>)) -> Vec<Digest> {
    let mut out = alloc::vec![ZERO; count];
    if !fast::each(&mut out, &mut write) {
        let mut message = Vec::new();
        for (number, digest) in out.iter_mut().enumerate() {
            message.clear();
            write(number, &mut message);
            *digest = sha256(&message);
        }
    }
    out
}

/// Tree leaf with payload `digest`.
pub fn leaf(digest: &Digest) -> Digest {
    sha256_parts(&[&[LEAF], &digest.0])
}

/// Tree node over its two children.
pub fn node(left: &Digest, right: &Digest) -> Digest {
    sha256_parts(&[&[NODE], &left.0, &right.0])
}

/// Tree leaves of many payloads, in order: equal to [`leaf`] of each, faster where the processor allows.
pub fn leaves(payloads: &[Digest]) -> Vec<Digest> {
    let mut out = Vec::with_capacity(payloads.len());
    let rest = fast::leaves(payloads, &mut out);
    out.extend(rest.iter().map(leaf));
    out
}

/// Nodes over neighbouring pairs of `children`, in order: equal to [`node`] of each pair, faster where the processor
/// allows. A last child without neighbour is left out.
pub fn nodes(children: &[Digest]) -> Vec<Digest> {
    let (pairs, _) = children.as_chunks::<2>();
    let mut out = Vec::with_capacity(pairs.len() + 1);
    let rest = fast::nodes(pairs, &mut out);
    out.extend(rest.iter().map(|[left, right]| node(left, right)));
    out
}

/// `each` does all or, where it cannot, nothing. The others append the digests of a front part of their input to `out` and
/// return what is left to do.
#[cfg(all(feature = "std", target_arch = "x86_64"))]
use lanes as fast;

#[cfg(not(all(feature = "std", target_arch = "x86_64")))]
mod fast {
    use super::{Digest, Vec};

    pub(super) fn each(_: &mut [Digest], _: impl FnMut(usize, &mut Vec<u8>)) -> bool {
        false
    }

    pub(super) fn leaves<'a>(payloads: &'a [Digest], _: &mut Vec<Digest>) -> &'a [Digest] {
        payloads
    }

    pub(super) fn nodes<'a>(pairs: &'a [[Digest; 2]], _: &mut Vec<Digest>) -> &'a [[Digest; 2]] {
        pairs
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};

    use super::*;

    fn payloads(count: u32) -> Vec<Digest> {
        (0..count).map(|n| sha256(&n.to_be_bytes())).collect()
    }

    #[test]
    fn empty_is_the_hash_of_nothing() {
        assert_eq!(sha256(b""), EMPTY);
        assert_eq!(sha256_parts(&[]), EMPTY);
    }

    #[test]
    fn batches_equal_single_hashes() {
        for count in 0..20 {
            let all = payloads(count);
            assert_eq!(leaves(&all), all.iter().map(leaf).collect::<Vec<_>>(), "{count} leaves");
            let pairs = all.chunks_exact(2).map(|p| node(&p[0], &p[1])).collect::<Vec<_>>();
            assert_eq!(nodes(&all), pairs, "nodes over {count} children");
        }
    }

    #[test]
    fn messages_of_any_lengths_are_hashed_in_order() {
        // Every number of blocks up to well above what lanes take, odd and even counts of each, mixed.
        let lengths = (0..300).chain([447, 448, 500, 1014, 1015, 1016, 1080, 5000]);
        let messages: Vec<Vec<u8>> = lengths.map(|len| (0..len).map(|n| (n * 7 + len) as u8).collect()).collect();
        for step in [1, 2, 3, 64, 65] {
            let some: Vec<_> = messages.iter().step_by(step).collect();
            let found = sha256_each(some.len(), |n, out| out.extend_from_slice(some[n]));
            assert_eq!(found, some.iter().map(|message| sha256(message)).collect::<Vec<_>>());
        }
        assert_eq!(sha256_each(0, |_, _| ()), []);
        assert_eq!(sha256_each(3, |_, _| ()), [EMPTY; 3]);
    }

    #[test]
    fn leaf_and_node_are_told_apart_by_their_prefix() {
        let d = payloads(2);
        assert_eq!(leaf(&d[0]), sha256(&[&[0], &d[0].0[..]].concat()));
        assert_eq!(node(&d[0], &d[1]), sha256(&[&[1], &d[0].0[..], &d[1].0[..]].concat()));
    }

    #[test]
    fn hex_round_trip_and_rejects() {
        let text = EMPTY.to_string();
        assert_eq!(text.parse(), Ok(EMPTY));
        assert_eq!(text.to_uppercase().parse(), Ok(EMPTY));
        assert_eq!(format!("{EMPTY:?}"), text);
        for bad in [&text[1..], "", &format!("{text}0"), &format!("{text}00"), &format!("g{}", &text[1..])] {
            assert_eq!(bad.parse::<Digest>(), Err(FormatError::NotHex), "{bad}");
        }
        assert_eq!(Digest::try_from(&EMPTY.0[..]), Ok(EMPTY));
        assert_eq!(Digest::try_from(&[0; 31][..]), Err(FormatError::Truncated { part: "digest" }));
        assert_eq!(Digest::try_from(&[0; 33][..]), Err(FormatError::TrailingBytes { count: 1 }));
    }
}
