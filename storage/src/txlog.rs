//! `tx/`: one record per transaction: what the header needs, Eh unless there is one entry, and the entry table.
//!
//! Keys and values are not copied here: the record says where in the ledger they stand. Everything that can be computed
//! is left out: id and offset are in the commit log, PrevAlh is the Alh at the end of the record before, BlTxID is id - 1
//! `L3`, BlRoot comes from the hash tree, Eh of a single entry from that entry.

use std::ops::Range;

use alhambra_ledger::Digest;
use alhambra_ledger::entry::{self, KvMetadata};
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::{LogIndex, TxId};
use bytes::Bytes;

use crate::command::ValueForm;
use crate::segment::Position;
use crate::wire::{Malformed, Put, Reader};

/// Form of the records that this release writes and reads.
pub const RECORD_VERSION: u8 = 1;

const HAS_METADATA: u8 = 1;
const HAS_EH: u8 = 2;
const HEADER_VERSION_1: u8 = 4;
const FLAGS: u8 = HAS_METADATA | HAS_EH | HEADER_VERSION_1;

const ENTRY_HAS_METADATA: u8 = 1;
const ENTRY_IS_COMPRESSED: u8 = 2;
const ENTRY_FLAGS: u8 = ENTRY_HAS_METADATA | ENTRY_IS_COMPRESSED;

/// Bytes at the end of a record: Alh and checksum.
pub(crate) const RECORD_TAIL_BYTES: u64 = 36;

/// A committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxRecord {
    /// Its header, checked against the stored Alh [L1, L4].
    pub header: TxHeader,
    /// In the order in which they are hashed.
    pub entries: Vec<EntryRecord>,
}

impl TxRecord {
    /// Digests of the entries, in order: the leaves below Eh.
    pub fn entry_digests(&self) -> Vec<Digest> {
        self.entries.iter().map(|entry| entry.digest(self.header.version)).collect()
    }
}

/// One entry of a committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRecord {
    /// Stored key.
    pub key: Bytes,
    /// Serialised entry metadata, empty for none; [`EntryRecord::kv_metadata`] reads it.
    pub metadata: Bytes,
    /// Bytes of the value in plain; what is shown and proven.
    pub value_len: u32,
    /// SHA-256 of the value in plain.
    pub value_hash: Digest,
    /// Where in the ledger the stored value stands.
    pub value_at: Position,
    /// Bytes that it takes there.
    pub stored_len: u32,
    /// How it stands there.
    pub form: ValueForm,
}

impl EntryRecord {
    /// The metadata, read.
    pub fn kv_metadata(&self) -> KvMetadata {
        KvMetadata::from_bytes(&self.metadata).expect("metadata is checked before it is applied, records by checksum")
    }

    /// What is hashed into Eh for this entry.
    pub fn digest(&self, header_version: u16) -> Digest {
        entry::entry_digest(header_version, &self.key, &self.metadata, &self.value_hash)
            .expect("key and metadata are within the limits of the header version when applied")
    }
}

/// One entry as it goes into a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryToStore<'a> {
    pub key_at: u64,
    pub key_len: u32,
    pub metadata: &'a [u8],
    pub value_at: u64,
    /// As it stands in the ledger.
    pub value_len: u32,
    pub form: ValueForm,
    pub value_hash: Digest,
}

/// Appends the record of `header`, which came with a log entry, to `out`.
pub(crate) fn encode_record<'a>(
    out: &mut Vec<u8>,
    header: &TxHeader,
    log_index: LogIndex,
    entries: impl Iterator<Item = EntryToStore<'a>>,
    alh: &Digest,
) {
    let start = out.len();
    let metadata = header.metadata.to_bytes().expect("metadata is read from its bytes");
    let mut flags = 0;
    if !metadata.is_empty() {
        flags |= HAS_METADATA;
    }
    if header.nentries > 1 {
        flags |= HAS_EH;
    }
    if header.version == 1 {
        flags |= HEADER_VERSION_1;
    }
    out.put_u8(RECORD_VERSION);
    out.put_u8(flags);
    out.put_i64(header.ts);
    if !metadata.is_empty() {
        out.put_prefixed(&metadata);
    }
    out.put_varint(u64::from(header.nentries));
    if header.nentries > 1 {
        out.put_bytes(&header.eh.0);
    }
    // Where the entry before ended; entries of a transaction stand in order in one frame, so that gaps are small.
    let mut end = None;
    for entry in entries {
        match end {
            None => out.put_varint(entry.key_at),
            Some(end) => out.put_varint(entry.key_at - end),
        }
        let mut flags = if entry.metadata.is_empty() { 0 } else { ENTRY_HAS_METADATA };
        if entry.form != ValueForm::Plain {
            flags |= ENTRY_IS_COMPRESSED;
        }
        out.put_u8(flags);
        out.put_varint(u64::from(entry.key_len));
        if !entry.metadata.is_empty() {
            out.put_prefixed(entry.metadata);
        }
        out.put_varint(entry.value_at - (entry.key_at + u64::from(entry.key_len)));
        out.put_varint(u64::from(entry.value_len));
        if entry.form != ValueForm::Plain {
            entry.form.encode_into(out);
        }
        out.put_bytes(&entry.value_hash.0);
        end = Some(entry.value_at + u64::from(entry.value_len));
    }
    out.put_bytes(&alh.0);
    let crc = record_crc(header.id, log_index, &out[start..]);
    out.put_u32(crc);
}

/// Id and log index are part of the checksum, so that a wrong commit record cannot make one transaction pass for another,
/// nor name another log entry for it: commit records have no checksum of their own.
fn record_crc(tx: TxId, log_index: LogIndex, record: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&tx.0.to_be_bytes());
    place[8..].copy_from_slice(&log_index.0.to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), record)
}

/// A record read back, without what stands in other places.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub ts: i64,
    pub version: u16,
    pub metadata: TxMetadata,
    pub nentries: u32,
    /// `None` when the transaction has one entry.
    pub eh: Option<Digest>,
    pub alh: Digest,
    bytes: Bytes,
    entries: Range<usize>,
}

/// One entry of a record. Key and value are in the ledger.
#[derive(Clone, Debug)]
pub(crate) struct StoredEntry {
    pub key_at: Position,
    pub key_len: u32,
    pub metadata: Bytes,
    pub value_at: Position,
    /// As it stands in the ledger.
    pub value_len: u32,
    pub form: ValueForm,
    pub value_hash: Digest,
}

impl StoredEntry {
    pub(crate) fn with_key(self, key: Bytes) -> EntryRecord {
        EntryRecord {
            key,
            metadata: self.metadata,
            value_len: self.form.plain_len(self.value_len),
            value_hash: self.value_hash,
            value_at: self.value_at,
            stored_len: self.value_len,
            form: self.form,
        }
    }
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadRecord {
    Checksum,
    Malformed,
}

impl From<Malformed> for BadRecord {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

impl Record {
    /// Reads the record of `tx`, which came with the log entry `log_index`; checks its checksum.
    pub(crate) fn decode(tx: TxId, log_index: LogIndex, bytes: Bytes) -> Result<Self, BadRecord> {
        let Some(body_len) = bytes.len().checked_sub(RECORD_TAIL_BYTES as usize) else {
            return Err(BadRecord::Malformed);
        };
        let (checked, crc) = bytes.split_at(body_len + 32);
        if record_crc(tx, log_index, checked).to_be_bytes() != crc {
            return Err(BadRecord::Checksum);
        }
        let mut reader = Reader::new(&checked[..body_len]);
        let (version, flags) = (reader.u8()?, reader.u8()?);
        if version != RECORD_VERSION || flags & !FLAGS != 0 {
            return Err(BadRecord::Malformed);
        }
        let ts = reader.i64()?;
        let metadata = if flags & HAS_METADATA != 0 {
            TxMetadata::from_bytes(reader.some_prefixed()?).map_err(|_| BadRecord::Malformed)?
        } else {
            TxMetadata::default()
        };
        let nentries = reader.varint_u32()?;
        let eh = if flags & HAS_EH != 0 { Some(Digest(reader.array()?)) } else { None };
        let entries = reader.at()..body_len;
        let mut alh = Digest([0; 32]);
        alh.0.copy_from_slice(&checked[body_len..]);
        let eh = if nentries == 0 { Some(alhambra_ledger::digest::EMPTY) } else { eh };
        Ok(Self { ts, version: u16::from(flags & HEADER_VERSION_1 != 0), metadata, nentries, eh, alh, bytes, entries })
    }

    /// The entries in order.
    pub(crate) fn entries(&self) -> Entries<'_> {
        Entries { record: self, reader: Reader::new(&self.bytes[self.entries.clone()]), end: None, left: self.nentries }
    }
}

/// Iterates over the entries of a record.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    record: &'a Record,
    reader: Reader<'a>,
    end: Option<u64>,
    left: u32,
}

impl Entries<'_> {
    fn read(&mut self) -> Result<StoredEntry, Malformed> {
        let first_or_gap = self.reader.varint()?;
        let key_at = self.end.unwrap_or(0).checked_add(first_or_gap).ok_or(Malformed)?;
        let flags = self.reader.u8()?;
        let key_len = self.reader.varint_u32()?;
        if flags & !ENTRY_FLAGS != 0 {
            return Err(Malformed);
        }
        let metadata = match flags & ENTRY_HAS_METADATA {
            0 => Bytes::new(),
            _ => self.record.bytes.slice_ref(self.reader.some_prefixed()?),
        };
        let gap = self.reader.varint()?;
        let value_at = key_at.checked_add(u64::from(key_len)).and_then(|at| at.checked_add(gap)).ok_or(Malformed)?;
        let value_len = self.reader.varint_u32()?;
        let form = match flags & ENTRY_IS_COMPRESSED {
            0 => ValueForm::Plain,
            _ => ValueForm::read(&mut self.reader)?,
        };
        let value_hash = Digest(self.reader.array()?);
        self.end = Some(value_at.checked_add(u64::from(value_len)).ok_or(Malformed)?);
        let (key_at, value_at) = (Position(key_at), Position(value_at));
        Ok(StoredEntry { key_at, key_len, metadata, value_at, value_len, form, value_hash })
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<StoredEntry, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            // Said once: `reader` is emptied.
            let trailing = std::mem::replace(&mut self.reader, Reader::new(&[])).left() != 0;
            return trailing.then_some(Err(BadRecord::Malformed));
        }
        self.left -= 1;
        let entry = self.read();
        if entry.is_err() {
            self.left = 0;
            self.reader = Reader::new(&[]);
        }
        Some(entry.map_err(BadRecord::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(nentries: u32) -> TxHeader {
        TxHeader {
            id: TxId(7),
            ts: 1_700_000_000,
            version: 1,
            metadata: TxMetadata::default(),
            nentries,
            eh: Digest([5; 32]),
            bl_tx_id: TxId(6),
            bl_root: Digest([6; 32]),
            prev_alh: Digest([7; 32]),
        }
    }

    fn entry(at: u64) -> EntryToStore<'static> {
        let value_hash = Digest([9; 32]);
        let form = if at < 1200 { ValueForm::Plain } else { ValueForm::Lz4 { plain_len: 700 } };
        EntryToStore { key_at: at, key_len: 3, metadata: &[0], value_at: at + 5, value_len: 100, form, value_hash }
    }

    #[test]
    fn records_round_trip_and_every_flip_is_noticed() {
        for count in [1, 3] {
            let mut out = Vec::new();
            let entries = (0..count).map(|i| entry(1000 + 200 * u64::from(i)));
            encode_record(&mut out, &header(count), LogIndex(3), entries, &Digest([1; 32]));
            let bytes = Bytes::from(out.clone());
            let record = Record::decode(TxId(7), LogIndex(3), bytes.clone()).expect("whole");
            assert_eq!((record.ts, record.version, record.nentries), (1_700_000_000, 1, count));
            assert_eq!(record.eh, (count > 1).then_some(Digest([5; 32])));
            assert_eq!(record.alh, Digest([1; 32]));
            let read: Vec<_> = record.entries().map(|e| e.expect("whole")).collect();
            assert_eq!(read.len(), count as usize);
            for (i, e) in read.iter().enumerate() {
                let at = 1000 + 200 * i as u64;
                assert_eq!((e.key_at, e.key_len, e.value_at, e.value_len), (Position(at), 3, Position(at + 5), 100));
                assert_eq!(e.form.plain_len(e.value_len), if i == 0 { 100 } else { 700 });
                assert_eq!((&e.metadata[..], e.value_hash), (&[0][..], Digest([9; 32])));
            }
            for (tx, index) in [(8, 3), (7, 2)] {
                let read = Record::decode(TxId(tx), LogIndex(index), bytes.clone());
                assert_eq!(
                    read.err(),
                    Some(BadRecord::Checksum),
                    "another transaction's record, or another log entry's"
                );
            }
            for at in 0..out.len() {
                let mut bad = out.clone();
                bad[at] ^= 0x10;
                assert!(Record::decode(TxId(7), LogIndex(3), Bytes::from(bad)).is_err());
            }
        }
    }
}
