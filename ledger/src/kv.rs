//! Stored keys and values of the key-value operations. What is hashed is always the stored form, so a verifier rebuilds
//! it from what it asked for. The first byte of a stored key says to which layer it belongs.

use alloc::vec::Vec;

use crate::{bytes::Reader, error::FormatError, ids::TxId};

/// First byte of stored keys of plain values and references.
pub const PLAIN_KEY: u8 = 0;
/// First byte of stored keys of sorted-set members.
pub const SORTED_SET_KEY: u8 = 1;
/// First byte of stored keys of SQL.
pub const SQL_KEY: u8 = 2;
/// First byte of stored keys of documents.
pub const DOCUMENT_KEY: u8 = 3;

const PLAIN_VALUE: u8 = 0;
const REFERENCE_VALUE: u8 = 1;

/// A stored value, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredValue<'a> {
    /// No bytes at all: what a deletion stores.
    Deletion,
    /// A plain value.
    Plain(&'a [u8]),
    /// Points to another key.
    Reference {
        /// Transaction that the reference is bound to; 0 means the newest version.
        at_tx: TxId,
        /// The key pointed to, without prefix byte.
        key: &'a [u8],
    },
}

/// A stored sorted-set key, taken apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SortedSetMember<'a> {
    /// Name of the set.
    pub set: &'a [u8],
    /// Score; its bits are stored as they are.
    pub score: f64,
    /// Key of the member, without prefix byte.
    pub key: &'a [u8],
    /// Transaction that the member is bound to; 0 means the newest version.
    pub at_tx: TxId,
}

/// Stored key of a plain value or reference.
pub fn set_key(key: &[u8]) -> Vec<u8> {
    prefixed(PLAIN_KEY, key)
}

/// Stored value of a plain value. A deletion stores no bytes instead.
pub fn set_value(value: &[u8]) -> Vec<u8> {
    prefixed(PLAIN_VALUE, value)
}

/// Stored value of a reference to `key` (without prefix byte), bound to `at_tx` or, with 0, to the newest version.
pub fn reference_value(at_tx: TxId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(10 + key.len());
    out.push(REFERENCE_VALUE);
    out.extend(at_tx.get().to_be_bytes());
    out.push(PLAIN_KEY);
    out.extend(key);
    out
}

/// Prefix of the stored keys of all members of `set`.
pub fn zset_prefix(set: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + set.len());
    out.push(SORTED_SET_KEY);
    out.extend(len_u64(set.len()));
    out.extend(set);
    out
}

/// Stored key of member `key` of `set`; the stored value is empty.
///
/// The bits of `score` are not adjusted: in byte order negative scores follow all others, the most negative last.
pub fn zadd_key(set: &[u8], score: f64, key: &[u8], at_tx: TxId) -> Vec<u8> {
    let mut out = zset_prefix(set);
    out.extend(score.to_bits().to_be_bytes());
    out.extend(len_u64(key.len() + 1));
    out.push(PLAIN_KEY);
    out.extend(key);
    out.extend(at_tx.get().to_be_bytes());
    out
}

/// The key within a stored key of [`set_key`].
pub fn parse_set_key(stored: &[u8]) -> Result<&[u8], FormatError> {
    let mut reader = Reader::new(stored);
    expect(&mut reader, PLAIN_KEY, "key prefix")?;
    Ok(reader.rest())
}

/// A stored value under a key of [`set_key`].
pub fn parse_value(stored: &[u8]) -> Result<StoredValue<'_>, FormatError> {
    let mut reader = Reader::new(stored);
    if reader.is_empty() {
        return Ok(StoredValue::Deletion);
    }
    match reader.u8("value prefix")? {
        PLAIN_VALUE => Ok(StoredValue::Plain(reader.rest())),
        REFERENCE_VALUE => {
            let at_tx = TxId(reader.u64("bound tx")?);
            expect(&mut reader, PLAIN_KEY, "prefix of the referenced key")?;
            Ok(StoredValue::Reference { at_tx, key: reader.rest() })
        }
        byte => Err(FormatError::UnexpectedByte { part: "value prefix", byte }),
    }
}

/// The parts of a stored key of [`zadd_key`].
pub fn parse_zadd_key(stored: &[u8]) -> Result<SortedSetMember<'_>, FormatError> {
    let mut reader = Reader::new(stored);
    expect(&mut reader, SORTED_SET_KEY, "key prefix")?;
    let set = reader.long("set name")?;
    let score = f64::from_bits(reader.u64("score")?);
    let key = parse_set_key(reader.long("member key")?)?;
    let at_tx = TxId(reader.u64("bound tx")?);
    reader.finish()?;
    Ok(SortedSetMember { set, score, key, at_tx })
}

fn prefixed(prefix: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + bytes.len());
    out.push(prefix);
    out.extend(bytes);
    out
}

/// `usize` has at most 64 bits on every platform that Rust knows.
fn len_u64(len: usize) -> [u8; 8] {
    (len as u64).to_be_bytes()
}

fn expect(reader: &mut Reader<'_>, byte: u8, part: &'static str) -> Result<(), FormatError> {
    match reader.u8(part)? {
        found if found == byte => Ok(()),
        found => Err(FormatError::UnexpectedByte { part, byte: found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletion_plain_and_reference_are_told_apart() {
        assert_eq!(parse_value(b""), Ok(StoredValue::Deletion));
        assert_eq!(parse_value(&set_value(b"")), Ok(StoredValue::Plain(b"")));
        let reference = reference_value(TxId(7), b"k");
        assert_eq!(parse_value(&reference), Ok(StoredValue::Reference { at_tx: TxId(7), key: b"k" }));
        for len in 1..10 {
            assert!(parse_value(&reference[..len]).is_err(), "cut at {len}");
        }
        assert_eq!(parse_value(&[2]), Err(FormatError::UnexpectedByte { part: "value prefix", byte: 2 }));
    }

    #[test]
    fn sorted_set_key_round_trip_and_cuts() {
        let stored = zadd_key(b"set", -1.5, b"key", TxId(3));
        let member = SortedSetMember { set: b"set", score: -1.5, key: b"key", at_tx: TxId(3) };
        assert_eq!(parse_zadd_key(&stored), Ok(member));
        assert!(stored.starts_with(&zset_prefix(b"set")));
        for len in 0..stored.len() {
            assert!(parse_zadd_key(&stored[..len]).is_err(), "cut at {len}");
        }
        let mut huge = stored;
        huge[1] = 255;
        assert_eq!(parse_zadd_key(&huge), Err(FormatError::Truncated { part: "set name" }));
    }
}
