//! Entries of a transaction: their metadata and the digest that stands for one entry in the tree of its transaction.
//! Keys and values are taken as stored; which prefix bytes they carry is the business of [`crate::kv`].

use alloc::vec::Vec;

use crate::{
    bytes::{Reader, len_u16},
    digest::{Digest, sha256_each, sha256_parts},
    error::FormatError,
};

const DELETED: u8 = 0;
const EXPIRES_AT: u8 = 1;
const NON_INDEXABLE: u8 = 2;

/// Longest serialised [`KvMetadata`], bytes.
pub const KV_METADATA_LEN_MAX: usize = 11;

/// Attributes of an entry. Serialised as attribute codes in ascending order, absent ones left out, so that "no
/// attribute" is no bytes and one set of attributes has one form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvMetadata {
    /// The entry says that the key is gone.
    pub deleted: bool,
    /// Unix seconds from which on the entry does not count any more.
    pub expires_at: Option<i64>,
    /// The entry is part of the ledger but not found by its key.
    pub non_indexable: bool,
}

impl KvMetadata {
    /// The canonical bytes, at most [`KV_METADATA_LEN_MAX`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.deleted {
            out.push(DELETED);
        }
        if let Some(at) = self.expires_at {
            out.push(EXPIRES_AT);
            out.extend(at.to_be_bytes());
        }
        if self.non_indexable {
            out.push(NON_INDEXABLE);
        }
        out
    }

    /// Reads canonical bytes; refuses unknown, repeated and disordered attributes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let mut out = Self::default();
        let mut codes_from = 0;
        while !reader.is_empty() {
            let code = reader.u8("attribute code")?;
            match code {
                _ if code < codes_from => return Err(FormatError::UnexpectedAttribute { code }),
                DELETED => out.deleted = true,
                EXPIRES_AT => out.expires_at = Some(reader.i64("expiry")?),
                NON_INDEXABLE => out.non_indexable = true,
                _ => return Err(FormatError::UnexpectedAttribute { code }),
            }
            codes_from = code + 1;
        }
        Ok(out)
    }

    /// Whether there is no attribute.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the entry does not count any more at `now`, Unix seconds.
    pub fn is_expired(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// Digest of an entry in a transaction with header `version`.
///
/// `key` is the stored key, `metadata` the bytes of [`KvMetadata`], `value_hash` SHA-256 of the stored value, which is
/// used as it is when the value itself is gone. Fails on an unknown version, on metadata in version 0, and on a key or
/// metadata longer than 65,535 bytes.
pub fn entry_digest(version: u16, key: &[u8], metadata: &[u8], value_hash: &Digest) -> Result<Digest, FormatError> {
    match version {
        0 if !metadata.is_empty() => Err(FormatError::MetadataInVersion0),
        0 => Ok(sha256_parts(&[key, &value_hash.0])),
        1 => {
            let metadata_len = len_u16(metadata, "entry metadata")?;
            let key_len = len_u16(key, "key")?;
            Ok(sha256_parts(&[&metadata_len, metadata, &key_len, key, &value_hash.0]))
        }
        _ => Err(FormatError::UnknownVersion { version }),
    }
}

/// [`entry_digest`] of many entries, in order; `entry` answers key, metadata and value hash of entry number n. Fails as that
/// does, with the first entry that does.
pub fn entry_digests<'a>(
    version: u16,
    count: usize,
    mut entry: impl FnMut(usize) -> (&'a [u8], &'a [u8], &'a Digest),
) -> Result<Vec<Digest>, FormatError> {
    for number in 0..count {
        let (key, metadata, _) = entry(number);
        match version {
            0 if !metadata.is_empty() => return Err(FormatError::MetadataInVersion0),
            0 => {}
            1 => _ = (len_u16(metadata, "entry metadata")?, len_u16(key, "key")?),
            _ => return Err(FormatError::UnknownVersion { version }),
        }
    }
    Ok(sha256_each(count, |number, message| {
        let (key, metadata, value_hash) = entry(number);
        if version == 1 {
            let lens = [metadata, key].map(|part| len_u16(part, "entry").expect("checked above"));
            message.extend_from_slice(&lens[0]);
            message.extend_from_slice(metadata);
            message.extend_from_slice(&lens[1]);
        }
        message.extend_from_slice(key);
        message.extend_from_slice(&value_hash.0);
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_refuses_every_other_form() {
        for bad in [&[1][..], &[1, 0, 0, 0, 0, 0, 0, 0], &[3], &[0, 0], &[2, 0], &[2, 2], &[255]] {
            assert!(KvMetadata::from_bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn expiry_includes_its_second() {
        let md = KvMetadata { expires_at: Some(10), ..KvMetadata::default() };
        assert!(!md.is_expired(9) && md.is_expired(10) && md.is_expired(11));
        assert!(!KvMetadata::default().is_expired(i64::MAX));
    }

    #[test]
    fn digests_of_many_equal_digests_of_one() {
        let all: Vec<(Vec<u8>, Vec<u8>, Digest)> = (0..40u8)
            .map(|n| {
                let metadata = if n % 3 == 0 { alloc::vec![0] } else { Vec::new() };
                (alloc::vec![n; usize::from(n) * 4], metadata, crate::digest::sha256(&[n]))
            })
            .collect();
        for version in [0, 1, 2] {
            let one = |(key, metadata, hash): &(Vec<u8>, Vec<u8>, Digest)| entry_digest(version, key, metadata, hash);
            for first in [0, 1] {
                let some: Vec<_> =
                    all[first..].iter().filter(|(_, metadata, _)| first == 0 || metadata.is_empty()).collect();
                let many = entry_digests(version, some.len(), |n| (&some[n].0, &some[n].1, &some[n].2));
                assert_eq!(many, some.iter().map(|entry| one(entry)).collect(), "version {version}");
            }
        }
    }

    #[test]
    fn digest_limits() {
        let hash = crate::digest::EMPTY;
        assert_eq!(entry_digest(0, b"k", &[0], &hash), Err(FormatError::MetadataInVersion0));
        assert_eq!(entry_digest(2, b"k", &[], &hash), Err(FormatError::UnknownVersion { version: 2 }));
        let long = alloc::vec![0; 65_536];
        assert_eq!(entry_digest(1, &long, &[], &hash), Err(FormatError::TooLong { part: "key", len: 65_536 }));
        assert!(entry_digest(1, &long[1..], &[], &hash).is_ok());
    }
}
