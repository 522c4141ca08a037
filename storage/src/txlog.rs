//! `tx/`: one record per transaction: what the header needs, Eh unless there is one entry, and the entry table.
//!
//! Keys and values are not copied here: the record says where in the ledger they stand. Everything that can be computed
//! is left out: id and offset are in the commit log, PrevAlh is the Alh at the end of the record before, BlTxID is id - 1
//! `L3` unless an imported header has a gap, BlRoot comes from the hash tree, Eh of a single entry from that entry. A record of many entries is made of groups
//! that are read one by one, see `groups`.

pub(crate) mod groups;

use std::ops::Range;

use alhambra_ledger::Digest;
use alhambra_ledger::entry::{self, KvMetadata};
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::{LogIndex, TxId};
use bytes::Bytes;

use self::groups::{Directory, GROUP_BYTES, Group, group_crc};
use crate::command::ValueForm;
use crate::limits::ENTRIES_PER_GROUP;
use crate::segment::Position;
use crate::wire::{Malformed, Put, Reader};

/// Form of the records that this release writes and reads.
pub const RECORD_VERSION: u8 = 1;

const HAS_METADATA: u8 = 1;
const HAS_EH: u8 = 2;
const HEADER_VERSION_1: u8 = 4;
const HAS_LINK_GAP: u8 = 8;
const FLAGS: u8 = HAS_METADATA | HAS_EH | HEADER_VERSION_1 | HAS_LINK_GAP;

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
    /// Its transaction.
    pub tx: TxId,
    /// 0-based place in it.
    pub number: u32,
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

/// Appends the record of `header`, which came with a log entry, to `out`. `kept` are the kept nodes of the tree over the
/// entries, see `groups`.
pub(crate) fn encode_record<'a>(
    out: &mut Vec<u8>,
    header: &TxHeader,
    log_index: LogIndex,
    entries: impl Iterator<Item = EntryToStore<'a>>,
    kept: &[Digest],
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
    let link_gap = header.id.0 - 1 - header.bl_tx_id.0;
    if link_gap > 0 {
        flags |= HAS_LINK_GAP;
    }
    out.put_u8(RECORD_VERSION);
    out.put_u8(flags);
    out.put_i64(header.ts);
    if link_gap > 0 {
        out.put_varint(link_gap);
    }
    if !metadata.is_empty() {
        out.put_prefixed(&metadata);
    }
    out.put_varint(u64::from(header.nentries));
    if header.nentries > 1 {
        out.put_bytes(&header.eh.0);
    }
    let directory_at = out.len();
    let directory = Directory::of(header.nentries);
    if let Some(directory) = directory {
        out.resize(directory_at + directory.ends_len(), 0);
        kept.iter().for_each(|node| out.put_bytes(&node.0));
        debug_assert_eq!(out.len(), directory_at + directory.len(), "the kept nodes are those of this tree");
    }
    let entries_at = out.len();
    let mut group_at = entries_at;
    // Where the entry before ended; entries of a transaction stand in order in one frame, so that gaps are small.
    let mut end = None;
    for (number, entry) in (1u32..).zip(entries) {
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
        if directory.is_some() && (number == header.nentries || number % ENTRIES_PER_GROUP == 0) {
            let group = (number - 1) / ENTRIES_PER_GROUP;
            let crc = group_crc(header.id, group, &out[group_at..]);
            group_at = out.len();
            let at = directory_at + group as usize * GROUP_BYTES;
            out[at..at + GROUP_BYTES].copy_from_slice(&Group { end: group_at - entries_at, crc }.encode());
            end = None;
        }
    }
    // The directory has the checksums of its entries.
    let checked_to = if directory.is_some() { entries_at } else { out.len() };
    let crc = record_crc(header.id, log_index, &out[start..checked_to], alh);
    out.put_bytes(&alh.0);
    out.put_u32(crc);
}

/// Id and log index are part of the checksum, so that a wrong commit record cannot make one transaction pass for another,
/// nor name another log entry for it: commit records have no checksum of their own.
pub(crate) fn record_crc(tx: TxId, log_index: LogIndex, record: &[u8], alh: &Digest) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&tx.0.to_be_bytes());
    place[8..].copy_from_slice(&log_index.0.to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&place), record), &alh.0)
}

/// The fields of a record before its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub ts: i64,
    pub version: u16,
    pub metadata: TxMetadata,
    pub nentries: u32,
    /// Transactions between the one of BlTxID and this one: none but in imported headers.
    pub link_gap: u64,
    /// `None` when the transaction has one entry.
    pub eh: Option<Digest>,
    /// Bytes of these fields.
    pub len: usize,
}

impl Head {
    /// Reads the front of a record; what follows is left alone.
    pub(crate) fn read(record: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(record);
        let (version, flags) = (reader.u8()?, reader.u8()?);
        if version != RECORD_VERSION || flags & !FLAGS != 0 {
            return Err(Malformed);
        }
        let ts = reader.i64()?;
        let link_gap = if flags & HAS_LINK_GAP != 0 { reader.varint()? } else { 0 };
        if (link_gap > 0) != (flags & HAS_LINK_GAP != 0) {
            return Err(Malformed);
        }
        let metadata = if flags & HAS_METADATA != 0 {
            TxMetadata::from_bytes(reader.some_prefixed()?).map_err(|_| Malformed)?
        } else {
            TxMetadata::default()
        };
        let nentries = reader.varint_u32()?;
        let eh = if flags & HAS_EH != 0 { Some(Digest(reader.array()?)) } else { None };
        if eh.is_some() != (nentries > 1) {
            return Err(Malformed);
        }
        let eh = if nentries == 0 { Some(alhambra_ledger::digest::EMPTY) } else { eh };
        let version = u16::from(flags & HEADER_VERSION_1 != 0);
        Ok(Self { ts, version, metadata, nentries, link_gap, eh, len: reader.at() })
    }

    /// BlTxID of transaction `tx`, whose record this is; `None` when it cannot be.
    pub(crate) fn bl_tx_id(&self, tx: TxId) -> Option<TxId> {
        tx.0.checked_sub(1)?.checked_sub(self.link_gap).map(TxId)
    }
}

/// A record read back, without what stands in other places.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub head: Head,
    pub alh: Digest,
    bytes: Bytes,
    /// Place of the entries in `bytes`.
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
    pub(crate) fn named(self, tx: TxId, number: u32, key: Bytes) -> EntryRecord {
        EntryRecord {
            tx,
            number,
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
    /// Reads the record of `tx`, which came with the log entry `log_index`; checks its checksums.
    pub(crate) fn decode(tx: TxId, log_index: LogIndex, bytes: Bytes) -> Result<Self, BadRecord> {
        let Some(body_len) = bytes.len().checked_sub(RECORD_TAIL_BYTES as usize) else {
            return Err(BadRecord::Malformed);
        };
        let (body, tail) = bytes.split_at(body_len);
        let (alh, crc) = tail.split_at(32);
        let alh = Digest(alh.try_into().expect("32 bytes"));
        let is_whole = |checked: &[u8]| record_crc(tx, log_index, checked, &alh).to_be_bytes() == crc;
        // How far the checksum reaches depends on what it covers: nothing is believed before it holds.
        let head = Head::read(body);
        let directory = head.as_ref().ok().and_then(|head| Directory::of(head.nentries));
        let entries_at = match (&head, directory) {
            (Ok(head), Some(directory)) => {
                let at = head.len + directory.len();
                if !body.get(..at).is_some_and(is_whole) {
                    return Err(BadRecord::Checksum);
                }
                directory.check(tx, &body[head.len..], &body[at..])?;
                at
            }
            _ if !is_whole(body) => return Err(BadRecord::Checksum),
            (Ok(head), None) => head.len,
            (Err(_), _) => return Err(BadRecord::Malformed),
        };
        let head = head?;
        Ok(Self { head, alh, entries: entries_at..body_len, bytes })
    }

    /// The entries in order.
    pub(crate) fn entries(&self) -> Entries<'_> {
        let directory = Directory::of(self.head.nentries);
        let ends = directory.map_or(0..0, |directory| self.head.len..self.head.len + directory.ends_len());
        Entries {
            source: &self.bytes,
            reader: Reader::new(&self.bytes[self.entries.clone()]),
            ends: &self.bytes[ends],
            end: None,
            in_group: 0,
            left: self.head.nentries,
        }
    }
}

/// Iterates over entries.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    source: &'a Bytes,
    reader: Reader<'a>,
    /// Of the directory, what is said of this group and the ones behind it; empty without a directory.
    ends: &'a [u8],
    /// Where the entry before ended, in the same group.
    end: Option<u64>,
    /// Entries of this group so far.
    in_group: u32,
    left: u32,
}

impl<'a> Entries<'a> {
    /// The entries of one group, or of a record without groups.
    pub(crate) fn of_group(group: &'a Bytes, count: u32) -> Self {
        Entries { source: group, reader: Reader::new(group), ends: &[], end: None, in_group: 0, left: count }
    }

    fn read(&mut self) -> Result<StoredEntry, Malformed> {
        if self.in_group == ENTRIES_PER_GROUP
            && let Some(group) = groups::groups(self.ends).next()
        {
            if self.reader.at() != group.end {
                return Err(Malformed);
            }
            self.ends = &self.ends[GROUP_BYTES..];
            self.end = None;
            self.in_group = 0;
        }
        self.in_group = self.in_group.saturating_add(1);
        let first_or_gap = self.reader.varint()?;
        let key_at = self.end.unwrap_or(0).checked_add(first_or_gap).ok_or(Malformed)?;
        let flags = self.reader.u8()?;
        let key_len = self.reader.varint_u32()?;
        if flags & !ENTRY_FLAGS != 0 {
            return Err(Malformed);
        }
        let metadata = match flags & ENTRY_HAS_METADATA {
            0 => Bytes::new(),
            _ => self.source.slice_ref(self.reader.some_prefixed()?),
        };
        let gap = self.reader.varint()?;
        let value_at = key_at.checked_add(u64::from(key_len)).and_then(|at| at.checked_add(gap)).ok_or(Malformed)?;
        let value_len = self.reader.varint_u32()?;
        let form = match flags & ENTRY_IS_COMPRESSED {
            0 => ValueForm::Plain,
            _ => match ValueForm::read(&mut self.reader)? {
                ValueForm::Plain => return Err(Malformed),
                form => form,
            },
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
        for count in [1, 3, 16, 17, 32, 33, 40] {
            let mut out = Vec::new();
            let entries = (0..count).map(|i| entry(1000 + 200 * u64::from(i)));
            let kept = vec![Digest([4; 32]); alhambra_ledger::htree::kept_len(count, crate::limits::KEPT_LEVELS)];
            encode_record(&mut out, &header(count), LogIndex(3), entries, &kept, &Digest([1; 32]));
            let bytes = Bytes::from(out.clone());
            let record = Record::decode(TxId(7), LogIndex(3), bytes.clone()).expect("whole");
            let head = &record.head;
            assert_eq!((head.ts, head.version, head.nentries), (1_700_000_000, 1, count));
            assert_eq!(head.eh, (count > 1).then_some(Digest([5; 32])));
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
