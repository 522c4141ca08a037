//! Reading one entry of a large transaction, and proving it, without reading the others.
//!
//! The front of a record is read, then the one group that holds the entry. What is read is checked by what it is checked
//! for: a group by its checksum, the head by the Alh `L1`, kept nodes by the proof that they make `V1`. The checksum of the
//! record is left to whoever reads it whole. A group that was proven is remembered with its proofs, without its entries: these
//! are read again, and checked by the group's checksum and by its proof.

use std::ops::Range;

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::htree::{self, GroupProof, InclusionProof};
use alhambra_ledger::ids::TxId;
use alhambra_ledger::{Digest, digest};
use bytes::Bytes;

use crate::commitlog::CommitRecord;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::derived::DIGEST_BYTES;
use crate::limits::{GROUP_READ_BYTES_MAX, KEPT_LEVELS, RECORD_FRONT_BYTES, RECORD_WHOLE_BYTES_MAX};
use crate::prove::{self, ProvenGroup};
use crate::segment::Position;
use crate::txlog::groups::{self, Directory, GROUP_BYTES, Group};
use crate::txlog::{BadRecord, Entries, EntryRecord, Head, RECORD_TAIL_BYTES, StoredEntry, TxRecord};

/// An entry with the proof that it is in its transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenEntry {
    /// Of the transaction.
    pub header: TxHeader,
    /// The entry.
    pub entry: EntryRecord,
    /// That it is below the header's Eh; verified `V1`.
    pub inclusion: InclusionProof,
    /// The transaction with all its entries, when it is so small that it was read whole.
    pub whole: Option<TxRecord>,
}

/// A large record of which parts are read.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    core: &'a Core,
    tx: TxId,
    commit: CommitRecord,
    directory: Directory,
    /// The first bytes of the record.
    front: Bytes,
    pub head: Head,
    /// Alh of the transaction before.
    pub prev_alh: Digest,
}

/// Entries of a large record that lie together.
#[derive(Debug)]
pub(crate) struct StoredGroup {
    pub numbers: Range<u32>,
    /// Their place in the record.
    at: Range<u64>,
    crc: u32,
    pub entries: Vec<StoredEntry>,
}

impl Core {
    /// The record of a transaction that exists, where its commit record says that it is, unless it is better read whole: because it
    /// is small, or to say what is wrong with it.
    pub(crate) fn parts(&self, tx: TxId, commit: CommitRecord) -> Result<Option<Parts<'_>>> {
        let before = if tx.0 > 1 { RECORD_TAIL_BYTES } else { 0 };
        let Some(at) = commit.offset.checked_sub(before) else { return Ok(None) };
        if commit.size <= RECORD_WHOLE_BYTES_MAX {
            return Ok(None);
        }
        let front_len = commit.size.min(RECORD_FRONT_BYTES);
        let bytes = Bytes::from(self.tx.read(at, (before + u64::from(front_len)) as usize)?);
        let prev_alh = if tx.0 > 1 { Digest(bytes[..32].try_into().expect("32 bytes")) } else { digest::EMPTY };
        let front = bytes.slice(before as usize..);
        let Ok(head) = Head::read(&front) else { return Ok(None) };
        let Some(directory) = Directory::of(head.nentries) else { return Ok(None) };
        Ok(Some(Parts { core: self, tx, commit, directory, front, head, prev_alh }))
    }

    /// An entry with its transaction's header and its proof.
    pub(crate) fn prove_entry(&self, tx: TxId, number: u32) -> Result<ProvenEntry> {
        self.must_exist(tx)?;
        let (group, stored, key) = match self.remembered_group(tx, number) {
            Some(known) => {
                let (stored, key) = self.entry_of(tx, number, &known)?;
                (known, stored, key)
            }
            None => {
                let commit = self.commit_record(tx)?;
                let Some(parts) = self.parts(tx, commit)? else { return self.prove_from_whole(tx, number, &commit) };
                let (group, stored, key) = self.prove_group(&parts, number)?;
                (self.remember_group(tx, number, group), stored, key)
            }
        };
        let inclusion = group.proof.prove(number).ok_or(Error::NoSuchTxEntry { tx, entry: number })?;
        let entry = stored.named(tx, number, key);
        Ok(ProvenEntry { header: group.header.clone(), entry, inclusion, whole: None })
    }

    /// Reads an entry and its key, which hash to the leaf that was proven.
    fn entry_of(&self, tx: TxId, number: u32, group: &ProvenGroup) -> Result<(StoredEntry, Bytes)> {
        let leaf = group.proof.leaf(number).ok_or(Error::NoSuchTxEntry { tx, entry: number })?;
        let (numbers, at) = (group.proof.entries(), &group.at);
        let bytes = Bytes::from(self.tx.read(at.start, (at.end - at.start) as usize)?);
        let mut stored = self.entries_of_group(tx, &numbers, &bytes, group.crc)?;
        let stored = (stored.nth((number - numbers.start) as usize))
            .unwrap_or_else(|| Err(self.bad_record(tx, BadRecord::Malformed)))?;
        let key = self.ledger.read_bytes(stored.key_at, stored.key_len as usize)?;
        let found = digest::leaf(&self.entry_digest(tx, group.header.version, &key, &stored)?);
        if found == *leaf { Ok((stored, key)) } else { Err(self.bad_keys(tx)) }
    }

    fn prove_from_whole(&self, tx: TxId, number: u32, commit: &CommitRecord) -> Result<ProvenEntry> {
        let record = self.tx_record_at(tx, commit)?;
        let inclusion = prove::prove_entry(&record, number)?;
        let entry = record.entries[number as usize].clone();
        Ok(ProvenEntry { header: record.header.clone(), entry, inclusion, whole: Some(record) })
    }

    /// Proves the entries that lie together with one, which is read for it as well, and its key.
    fn prove_group(&self, parts: &Parts<'_>, number: u32) -> Result<(ProvenGroup, StoredEntry, Bytes)> {
        let tx = parts.tx;
        let header = self.header(tx)?;
        let StoredGroup { numbers, at, crc, entries: mut group } = parts.group(number)?;
        let mut keys = self.keys(&group)?;
        let digests: Vec<Digest> = (group.iter().zip(&keys))
            .map(|(entry, key)| self.entry_digest(tx, header.version, key, entry))
            .collect::<Result<_>>()?;
        let proof = GroupProof::new(header.nentries, number, KEPT_LEVELS, &digests, |nodes| parts.kept_nodes(nodes))?;
        let within = (number - numbers.start) as usize;
        let is_proven = |inclusion| htree::verify(&inclusion, &digests[within], &header.eh).is_ok();
        if !proof.prove(number).is_some_and(is_proven) {
            return Err(self.bad_keys(tx));
        }
        let offset = parts.commit.offset;
        let proven = ProvenGroup { header, proof, at: offset + at.start..offset + at.end, crc };
        Ok((proven, group.swap_remove(within), keys.swap_remove(within)))
    }

    /// The entries with these numbers, which are a group, from their bytes.
    fn entries_of_group<'a>(
        &'a self,
        tx: TxId,
        numbers: &Range<u32>,
        bytes: &'a Bytes,
        crc: u32,
    ) -> Result<impl Iterator<Item = Result<StoredEntry>> + 'a> {
        if groups::group_crc(tx, numbers.start >> KEPT_LEVELS, bytes) != crc {
            return Err(self.bad_record(tx, BadRecord::Checksum));
        }
        let entries = Entries::of_group(bytes, numbers.end - numbers.start);
        Ok(entries.map(move |entry| entry.map_err(|bad| self.bad_record(tx, bad))))
    }

    /// Keys of neighbouring entries, from the ledger: in one read as long as little stands between them.
    fn keys(&self, entries: &[StoredEntry]) -> Result<Vec<Bytes>> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Vec::new()) };
        let start = first.key_at.0;
        let len = last.key_at.0 + u64::from(last.key_len) - start;
        if len > GROUP_READ_BYTES_MAX {
            return entries.iter().map(|e| self.ledger.read_bytes(e.key_at, e.key_len as usize)).collect();
        }
        let bytes = self.ledger.read_bytes(Position(start), len as usize)?;
        let place = |e: &StoredEntry| (e.key_at.0 - start) as usize;
        Ok(entries.iter().map(|e| bytes.slice(place(e)..place(e) + e.key_len as usize)).collect())
    }
}

impl Parts<'_> {
    /// The Alh at the end of the record.
    pub(crate) fn alh(&self) -> Result<Digest> {
        let size = u64::from(self.commit.size);
        let at = (size - RECORD_TAIL_BYTES)..(size - RECORD_TAIL_BYTES + DIGEST_BYTES);
        Ok(Digest(self.bytes(&at)?[..].try_into().expect("32 bytes")))
    }

    /// The group that holds an entry.
    pub(crate) fn group(&self, entry: u32) -> Result<StoredGroup> {
        if entry >= self.head.nentries {
            return Err(Error::NoSuchTxEntry { tx: self.tx, entry });
        }
        let bad = |bad| self.core.bad_record(self.tx, bad);
        let numbers = self.directory.group_of(entry);
        let group = numbers.start >> KEPT_LEVELS;
        let entries_at = (self.head.len + self.directory.len()) as u64;
        let last = self.group_end(self.directory.groups() - 1)?;
        if entries_at + last.end as u64 + RECORD_TAIL_BYTES != u64::from(self.commit.size) {
            return Err(bad(BadRecord::Malformed));
        }
        let from = if group == 0 { 0 } else { self.group_end(group - 1)?.end as u64 };
        let Group { end, crc } = self.group_end(group)?;
        let end = end as u64;
        if from > end || end > last.end as u64 {
            return Err(bad(BadRecord::Malformed));
        }
        let at = entries_at + from..entries_at + end;
        let entries = self.core.entries_of_group(self.tx, &numbers, &self.bytes(&at)?, crc)?.collect::<Result<_>>()?;
        Ok(StoredGroup { numbers, at, crc, entries })
    }

    fn group_end(&self, group: u32) -> Result<Group> {
        let at = (self.head.len + group as usize * GROUP_BYTES) as u64;
        let bytes = self.bytes(&(at..at + GROUP_BYTES as u64))?;
        Ok(groups::groups(&bytes).next().expect("bytes of a group"))
    }

    /// Kept nodes of the tree over the entries, not checked.
    fn kept_nodes(&self, nodes: Range<usize>) -> Result<Vec<Digest>> {
        let place = self.directory.nodes_at(&nodes);
        let bytes = self.bytes(&((self.head.len + place.start) as u64..(self.head.len + place.end) as u64))?;
        Ok(bytes.as_chunks::<{ DIGEST_BYTES as usize }>().0.iter().copied().map(Digest).collect())
    }

    /// Bytes at a place in the record.
    fn bytes(&self, at: &Range<u64>) -> Result<Bytes> {
        if at.end > u64::from(self.commit.size) {
            return Err(self.core.bad_record(self.tx, BadRecord::Malformed));
        }
        if at.end <= self.front.len() as u64 {
            return Ok(self.front.slice(at.start as usize..at.end as usize));
        }
        self.core.tx.read(self.commit.offset + at.start, (at.end - at.start) as usize).map(Bytes::from)
    }
}
