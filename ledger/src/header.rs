//! The header of a transaction: the summary that is hashed into the chain, in its two versions.
//!
//! Invariants: (L1) a header carries the Alh of its predecessor, (L2) ids count from 1, (L3) `bl_root` is the root of
//! the main tree over the first `bl_tx_id` transactions; new headers have `bl_tx_id` = `id` - 1, old ones may lag
//! behind.

use alloc::vec::Vec;

use crate::{
    bytes::{Reader, len_u16},
    digest::{Digest, EMPTY, Hasher, ZERO, sha256_parts},
    error::FormatError,
    ids::TxId,
};

const TRUNCATED_UP_TO: u8 = 0;
const EXTRA: u8 = 1;

/// Longest "extra" attribute, bytes.
pub const EXTRA_LEN_MAX: usize = 256;
/// Longest serialised [`TxMetadata`], bytes.
pub const TX_METADATA_LEN_MAX: usize = 268;

/// Attributes of a transaction, serialised like those of an entry: ascending codes, absent ones left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxMetadata {
    /// Marks that the values of all transactions before this one may be gone.
    pub truncated_up_to: Option<TxId>,
    /// Free bytes, at most [`EXTRA_LEN_MAX`]; none means that the attribute is absent.
    pub extra: Vec<u8>,
}

impl TxMetadata {
    /// The canonical bytes, at most [`TX_METADATA_LEN_MAX`]. Fails when `extra` is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let mut out = Vec::new();
        if let Some(tx) = self.truncated_up_to {
            out.push(TRUNCATED_UP_TO);
            out.extend(tx.get().to_be_bytes());
        }
        if !self.extra.is_empty() {
            if self.extra.len() > EXTRA_LEN_MAX {
                return Err(FormatError::ExtraLength { len: self.extra.len() });
            }
            out.push(EXTRA);
            out.extend(len_u16(&self.extra, "extra")?);
            out.extend(&self.extra);
        }
        Ok(out)
    }

    /// Reads canonical bytes; refuses unknown, repeated and disordered attributes and an "extra" without bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let mut out = Self::default();
        let mut codes_from = 0;
        while !reader.is_empty() {
            let code = reader.u8("attribute code")?;
            match code {
                _ if code < codes_from => return Err(FormatError::UnexpectedAttribute { code }),
                TRUNCATED_UP_TO => out.truncated_up_to = Some(TxId(reader.u64("truncation mark")?)),
                EXTRA => {
                    let len = usize::from(reader.u16("extra length")?);
                    if len == 0 || len > EXTRA_LEN_MAX {
                        return Err(FormatError::ExtraLength { len });
                    }
                    out.extra = reader.take(len, "extra")?.to_vec();
                }
                _ => return Err(FormatError::UnexpectedAttribute { code }),
            }
            codes_from = code + 1;
        }
        Ok(out)
    }

    /// Whether there is no attribute.
    pub fn is_empty(&self) -> bool {
        self.truncated_up_to.is_none() && self.extra.is_empty()
    }
}

/// Summary of one transaction. [`Self::alh`] commits to every field and, through `prev_alh`, to all history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxHeader {
    /// Position in the ledger.
    pub id: TxId,
    /// Unix seconds; 0 in databases without commit time. Orders nothing.
    pub ts: i64,
    /// 0 or 1.
    pub version: u16,
    /// None in version 0.
    pub metadata: TxMetadata,
    /// Number of entries; 0 only with a truncation mark.
    pub nentries: u32,
    /// Root of the tree over the entry digests.
    pub eh: Digest,
    /// Leaves of the main tree that `bl_root` covers; 0 = none.
    pub bl_tx_id: TxId,
    /// Root of the main tree over the Alh of transactions 1 to `bl_tx_id`; zero bytes when there is none.
    pub bl_root: Digest,
    /// Alh of the transaction before; SHA-256 of nothing for the first.
    pub prev_alh: Digest,
}

impl TxHeader {
    /// Hash of all fields but `id` and `prev_alh`. Fails on a header that no version can express.
    pub fn inner_hash(&self) -> Result<Digest, FormatError> {
        let mut hasher = Hasher::new();
        hasher.update(&self.ts.to_be_bytes());
        hasher.update(&self.version.to_be_bytes());
        self.versioned_part(|bytes| hasher.update(bytes))?;
        hasher.update(&self.eh.0);
        hasher.update(&self.bl_tx_id.get().to_be_bytes());
        hasher.update(&self.bl_root.0);
        Ok(hasher.finish())
    }

    /// Accumulative linear hash: over id, Alh before, inner hash. Fails as [`Self::inner_hash`].
    pub fn alh(&self) -> Result<Digest, FormatError> {
        Ok(chain(self.id, &self.prev_alh, &self.inner_hash()?))
    }

    /// Whether this can be the header of a transaction: see the fields. Says nothing about the hashes in it.
    pub fn validate(&self) -> Result<(), FormatError> {
        if self.id.get() == 0 {
            return Err(FormatError::ZeroTxId);
        }
        if self.id.get() == 1 && self.prev_alh != EMPTY {
            return Err(FormatError::FirstPrevAlh);
        }
        if self.bl_tx_id >= self.id {
            return Err(FormatError::LinkNotEarlier { tx: self.id, bl_tx_id: self.bl_tx_id });
        }
        if self.bl_tx_id.get() == 0 && self.bl_root != ZERO {
            return Err(FormatError::RootOfNoTree);
        }
        if self.nentries == 0 && self.metadata.truncated_up_to.is_none() {
            return Err(FormatError::NoEntries);
        }
        self.versioned_part(|_| ())
    }

    /// Whether the header records the main tree of all transactions before it, as every new header does (L3).
    pub fn is_linked(&self) -> bool {
        self.bl_tx_id.next() == Some(self.id)
    }

    /// The bytes that replication streams carry. They are never hashed. Fails as [`Self::inner_hash`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let mut out = Vec::with_capacity(128);
        out.extend(self.id.get().to_be_bytes());
        out.extend(self.prev_alh.0);
        out.extend(self.ts.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        self.versioned_part(|bytes| out.extend_from_slice(bytes))?;
        out.extend(self.eh.0);
        out.extend(self.bl_tx_id.get().to_be_bytes());
        out.extend(self.bl_root.0);
        Ok(out)
    }

    /// Reads the bytes of [`Self::to_bytes`]; the header it returns is [valid](Self::validate).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let id = TxId(reader.u64("tx id")?);
        let prev_alh = reader.digest("prev alh")?;
        let ts = reader.i64("ts")?;
        let version = reader.u16("header version")?;
        let (metadata, nentries) = match version {
            0 => (TxMetadata::default(), u32::from(reader.u16("entry count")?)),
            1 => {
                let len = usize::from(reader.u16("tx metadata length")?);
                let metadata = TxMetadata::from_bytes(reader.take(len, "tx metadata")?)?;
                (metadata, reader.u32("entry count")?)
            }
            _ => return Err(FormatError::UnknownVersion { version }),
        };
        let eh = reader.digest("eh")?;
        let bl_tx_id = TxId(reader.u64("bl tx id")?);
        let bl_root = reader.digest("bl root")?;
        reader.finish()?;
        let header = Self { id, ts, version, metadata, nentries, eh, bl_tx_id, bl_root, prev_alh };
        header.validate()?;
        Ok(header)
    }

    /// Metadata and entry count as the version writes them, handed to `write` piece by piece.
    fn versioned_part(&self, mut write: impl FnMut(&[u8])) -> Result<(), FormatError> {
        match self.version {
            0 => {
                if !self.metadata.is_empty() {
                    return Err(FormatError::MetadataInVersion0);
                }
                let count =
                    u16::try_from(self.nentries).map_err(|_| FormatError::TooManyEntries { count: self.nentries })?;
                write(&count.to_be_bytes());
            }
            1 => {
                let metadata = self.metadata.to_bytes()?;
                write(&len_u16(&metadata, "tx metadata")?);
                write(&metadata);
                write(&self.nentries.to_be_bytes());
            }
            version => return Err(FormatError::UnknownVersion { version }),
        }
        Ok(())
    }
}

/// The Alh of transaction `id` from the Alh before it and its inner hash: one step of the linear chain.
pub fn chain(id: TxId, prev_alh: &Digest, inner_hash: &Digest) -> Digest {
    sha256_parts(&[&id.get().to_be_bytes(), &prev_alh.0, &inner_hash.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> TxHeader {
        TxHeader {
            id: TxId(1),
            ts: -5,
            version: 1,
            metadata: TxMetadata::default(),
            nentries: 1,
            eh: Digest([7; 32]),
            bl_tx_id: TxId(0),
            bl_root: ZERO,
            prev_alh: EMPTY,
        }
    }

    #[test]
    fn validate_names_each_fault() {
        type Change = fn(&mut TxHeader);
        let cases: [(Change, FormatError); 9] = [
            (|h| h.id = TxId(0), FormatError::ZeroTxId),
            (|h| h.prev_alh = ZERO, FormatError::FirstPrevAlh),
            (|h| h.bl_tx_id = TxId(1), FormatError::LinkNotEarlier { tx: TxId(1), bl_tx_id: TxId(1) }),
            (|h| h.bl_root = EMPTY, FormatError::RootOfNoTree),
            (|h| h.nentries = 0, FormatError::NoEntries),
            (|h| h.version = 2, FormatError::UnknownVersion { version: 2 }),
            (|h| h.metadata.extra = alloc::vec![0; 257], FormatError::ExtraLength { len: 257 }),
            (
                |h| {
                    h.version = 0;
                    h.metadata.extra.push(1);
                },
                FormatError::MetadataInVersion0,
            ),
            (
                |h| {
                    h.version = 0;
                    h.nentries = 65_536;
                },
                FormatError::TooManyEntries { count: 65_536 },
            ),
        ];
        assert_eq!(header().validate(), Ok(()));
        for (change, expected) in cases {
            let mut changed = header();
            change(&mut changed);
            assert_eq!(changed.validate(), Err(expected));
        }
    }

    #[test]
    fn bytes_round_trip_and_every_cut_is_refused() {
        let mut marked = header();
        marked.nentries = 0;
        marked.metadata = TxMetadata { truncated_up_to: Some(TxId(9)), extra: b"who".to_vec() };
        for h in [header(), TxHeader { version: 0, ..header() }, marked] {
            let bytes = h.to_bytes().unwrap();
            assert_eq!(TxHeader::from_bytes(&bytes), Ok(h));
            for len in 0..bytes.len() {
                assert!(TxHeader::from_bytes(&bytes[..len]).is_err(), "cut at {len}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(TxHeader::from_bytes(&longer), Err(FormatError::TrailingBytes { count: 1 }));
        }
    }

    #[test]
    fn metadata_refuses_every_other_form() {
        for bad in [&[1, 0, 0][..], &[1, 0, 2, 7], &[0, 1], &[2], &[1, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1]] {
            assert!(TxMetadata::from_bytes(bad).is_err(), "{bad:?}");
        }
        let mut long = alloc::vec![1, 1, 1];
        long.extend([0; 257]);
        assert_eq!(TxMetadata::from_bytes(&long), Err(FormatError::ExtraLength { len: 257 }));
    }

    #[test]
    fn linked_means_no_gap() {
        assert!(header().is_linked());
        assert!(TxHeader { id: TxId(5), bl_tx_id: TxId(4), ..header() }.is_linked());
        assert!(!TxHeader { id: TxId(5), bl_tx_id: TxId(3), ..header() }.is_linked());
    }
}
