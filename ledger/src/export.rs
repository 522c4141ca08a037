//! One transaction as a byte string, as replication streams and exports carry it: header, entries with their values,
//! and a closing flag which tells whether the values are gone. Values are gone when retention has removed them; their
//! hashes stand in their place, and every digest stays what it was.

use alloc::vec::Vec;

use crate::{
    bytes::{Reader, len_u16},
    digest::{Digest, sha256},
    entry::{KvMetadata, entry_digest},
    error::FormatError,
    header::TxHeader,
    htree,
};

/// A transaction with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedTx {
    /// Its header.
    pub header: TxHeader,
    /// In the order in which they are hashed; as many as the header counts.
    pub entries: Vec<ExportedEntry>,
    /// Whether the values of all entries are gone. Kept apart from the entries because a transaction without entries
    /// has the flag too.
    pub values_gone: bool,
}

/// An entry with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedEntry {
    /// Stored key.
    pub key: Vec<u8>,
    /// Attributes.
    pub metadata: KvMetadata,
    /// Stored value, or what is left of it.
    pub value: ExportedValue,
}

/// A stored value, or its hash when it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportedValue {
    /// The value.
    Present(Vec<u8>),
    /// SHA-256 of the value that was.
    Gone(Digest),
}

impl ExportedValue {
    /// SHA-256 of the stored value.
    pub fn hash(&self) -> Digest {
        match self {
            Self::Present(value) => sha256(value),
            Self::Gone(hash) => *hash,
        }
    }
}

impl ExportedTx {
    /// Root over the digests of the entries, to be compared with the header's by whoever imports the transaction.
    pub fn eh(&self) -> Result<Digest, FormatError> {
        let digest = |entry: &ExportedEntry| {
            entry_digest(self.header.version, &entry.key, &entry.metadata.to_bytes(), &entry.value.hash())
        };
        Ok(htree::root(&self.entries.iter().map(digest).collect::<Result<Vec<_>, _>>()?))
    }
}

/// The bytes of a transaction. Fails on a header that cannot be expressed, on a different count of entries, on lengths
/// beyond their fields and when not all values agree with `values_gone`.
pub fn encode(tx: &ExportedTx) -> Result<Vec<u8>, FormatError> {
    let header = tx.header.to_bytes()?;
    check_count(&tx.header, tx.entries.len())?;
    let mut out = Vec::new();
    out.extend(len_u32(&header, "header")?);
    out.extend(header);
    for entry in &tx.entries {
        let metadata = entry.metadata.to_bytes();
        let value = match &entry.value {
            ExportedValue::Present(value) if !tx.values_gone => value.as_slice(),
            ExportedValue::Gone(hash) if tx.values_gone => hash.as_ref(),
            _ => return Err(FormatError::PartlyGone),
        };
        out.extend(len_u16(&entry.key, "key")?);
        out.extend(&entry.key);
        out.extend(len_u16(&metadata, "entry metadata")?);
        out.extend(metadata);
        out.extend(len_u32(value, "value")?);
        out.extend(value);
    }
    out.extend([0, 1, u8::from(tx.values_gone)]);
    Ok(out)
}

/// Reads the bytes of one transaction. A missing closing flag, as old senders leave it, means that the values are
/// there.
///
/// The header it returns is [valid](TxHeader::validate); that the entries hash to its Eh is for the caller to check
/// with [`ExportedTx::eh`].
pub fn decode(bytes: &[u8]) -> Result<ExportedTx, FormatError> {
    let mut reader = Reader::new(bytes);
    let header = header(&mut reader)?;
    let mut parts = Vec::new();
    for _ in 0..header.nentries {
        let key_len = reader.u16("key length")?;
        let key = reader.take(key_len.into(), "key")?;
        let metadata_len = reader.u16("entry metadata length")?;
        let metadata = KvMetadata::from_bytes(reader.take(metadata_len.into(), "entry metadata")?)?;
        let value_len =
            usize::try_from(reader.u32("value length")?).map_err(|_| FormatError::Truncated { part: "value" })?;
        parts.push((key, metadata, reader.take(value_len, "value")?));
    }
    let values_gone = closing_flag(&mut reader)?;
    reader.finish()?;
    if header.version == 0 && parts.iter().any(|(_, metadata, _)| !metadata.is_empty()) {
        return Err(FormatError::MetadataInVersion0);
    }
    let entry = |(key, metadata, content): (&[u8], KvMetadata, &[u8])| {
        let value = if values_gone {
            ExportedValue::Gone(Digest::try_from(content)?)
        } else {
            ExportedValue::Present(content.to_vec())
        };
        Ok(ExportedEntry { key: key.to_vec(), metadata, value })
    };
    let entries = parts.into_iter().map(entry).collect::<Result<_, FormatError>>()?;
    Ok(ExportedTx { header, entries, values_gone })
}

/// Only the header of the transaction in these bytes, whatever follows it: for who has to know how much that is before reading it.
pub fn decode_header(bytes: &[u8]) -> Result<TxHeader, FormatError> {
    header(&mut Reader::new(bytes))
}

fn header(reader: &mut Reader<'_>) -> Result<TxHeader, FormatError> {
    let len = usize::try_from(reader.u32("header length")?).map_err(|_| FormatError::Truncated { part: "header" })?;
    TxHeader::from_bytes(reader.take(len, "header")?)
}

/// Length 1 and the flag, or nothing.
fn closing_flag(reader: &mut Reader<'_>) -> Result<bool, FormatError> {
    if reader.is_empty() {
        return Ok(false);
    }
    match reader.u16("length of the closing flag")?.to_be_bytes() {
        [0, 1] => {}
        [high, low] => {
            let byte = if high != 0 { high } else { low };
            return Err(FormatError::UnexpectedByte { part: "length of the closing flag", byte });
        }
    }
    match reader.u8("closing flag")? {
        0 => Ok(false),
        1 => Ok(true),
        byte => Err(FormatError::UnexpectedByte { part: "closing flag", byte }),
    }
}

fn check_count(header: &TxHeader, found: usize) -> Result<(), FormatError> {
    if u32::try_from(found) == Ok(header.nentries) {
        Ok(())
    } else {
        Err(FormatError::EntryCount { header: header.nentries, found })
    }
}

fn len_u32(bytes: &[u8], part: &'static str) -> Result<[u8; 4], FormatError> {
    let len = bytes.len();
    u32::try_from(len).map(u32::to_be_bytes).map_err(|_| FormatError::TooLong { part, len })
}
