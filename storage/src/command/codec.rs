//! Bytes of commands, as `docs/format.md` gives them: big endian, versioned, read without copying.
//!
//! Apply reads a command through [`decode_located`], which borrows from the payload and says where in it each key and value
//! stands: these offsets become their positions in the ledger.

use std::ops::Range;

use alhambra_ledger::ids::{DatabaseId, LogIndex, TxId};
use bytes::Bytes;

use super::prune::{self, Citation, LocatedTarget};
use super::value_form::{COMPRESSION_LZ4, COMPRESSION_NONE};
use super::{
    Command, Compression, ForeignHeader, LocatedReadSet, Precondition, ProposalEntry, Prune, PruneTarget, ReadSet,
    RequestId, Seal, Settings, TxProposal, ValueForm,
};
use crate::wire::{Malformed, Put, Reader};

/// Version of the command codec that this build writes; it reads this one only.
pub const COMMAND_VERSION: u8 = 1;

const KIND_GENESIS: u8 = 1;
const KIND_CONFIGURE: u8 = 2;
const KIND_BATCH: u8 = 3;
const KIND_SEAL: u8 = 4;
const KIND_PRUNE: u8 = 5;

const PROPOSAL_HAS_REQUEST: u8 = 1;
const PROPOSAL_HAS_METADATA: u8 = 2;
const PROPOSAL_HAS_PRECONDITIONS: u8 = 4;
const PROPOSAL_HAS_READ_SET: u8 = 8;
const PROPOSAL_IS_FOREIGN: u8 = 16;
const PROPOSAL_FLAGS: u8 = PROPOSAL_HAS_REQUEST
    | PROPOSAL_HAS_METADATA
    | PROPOSAL_HAS_PRECONDITIONS
    | PROPOSAL_HAS_READ_SET
    | PROPOSAL_IS_FOREIGN;

const ENTRY_HAS_METADATA: u8 = 1;

const MUST_EXIST: u8 = 1;
const MUST_NOT_EXIST: u8 = 2;
const NOT_MODIFIED_AFTER: u8 = 3;
const BECOMES: u8 = 4;

const SETTINGS_EXCLUDE_COMMIT_TIME: u8 = 1;
const SETTINGS_REPLICA: u8 = 2;

/// Why bytes are not a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer release. Fatal for a replica: it must not guess.
    #[error("command format version {version} is newer than this release knows (up to {COMMAND_VERSION})")]
    UnsupportedVersion {
        /// As found.
        version: u8,
    },
    /// Not the form that `docs/format.md` gives.
    #[error("malformed command at byte {at}")]
    Malformed {
        /// Offset up to which the bytes made sense.
        at: usize,
    },
}

/// One entry of a decoded proposal, borrowed from the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatedEntry<'a> {
    /// Stored key.
    pub key: &'a [u8],
    /// Offset of the key's first byte within the payload.
    pub key_at: u32,
    /// Serialised entry metadata.
    pub metadata: &'a [u8],
    /// Stored value, in the form that `form` names.
    pub value: &'a [u8],
    /// How the value's bytes stand here.
    pub form: ValueForm,
    /// The bytes are gone: `value` is zeros.
    pub pruned: bool,
    /// Offset of the value's first byte within the payload.
    pub value_at: u32,
}

/// A precondition borrowed from the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocatedPrecondition<'a> {
    /// See [`Precondition::MustExist`].
    MustExist(&'a [u8]),
    /// See [`Precondition::MustNotExist`].
    MustNotExist(&'a [u8]),
    /// See [`Precondition::NotModifiedAfter`].
    NotModifiedAfter {
        /// Stored key.
        key: &'a [u8],
        /// Newest transaction that may have written the key.
        tx: TxId,
    },
    /// See [`Precondition::Becomes`].
    Becomes(TxId),
}

/// One proposal of a [`LocatedBatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedProposal<'a> {
    /// See [`TxProposal::request`].
    pub request: Option<RequestId>,
    /// Serialised transaction metadata.
    pub metadata: &'a [u8],
    /// Where its entries stand in [`LocatedBatch::entries`].
    pub entries: Range<usize>,
    /// Where its preconditions stand in [`LocatedBatch::preconditions`].
    pub preconditions: Range<usize>,
    /// See [`TxProposal::read_set`].
    pub read_set: Option<LocatedReadSet<'a>>,
    /// See [`TxProposal::foreign`].
    pub foreign: Option<Box<ForeignHeader>>,
}

/// A decoded batch: all entries of all proposals in two flat lists, so that decoding allocates per batch, not per proposal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocatedBatch<'a> {
    /// Unix seconds.
    pub ts: i64,
    /// In order.
    pub proposals: Vec<LocatedProposal<'a>>,
    /// Entries of all proposals, in order.
    pub entries: Vec<LocatedEntry<'a>>,
    /// Preconditions of all proposals, in order.
    pub preconditions: Vec<LocatedPrecondition<'a>>,
}

impl<'a> LocatedBatch<'a> {
    /// Entries of one of this batch's proposals.
    pub fn entries_of(&self, proposal: &LocatedProposal<'a>) -> &[LocatedEntry<'a>] {
        &self.entries[proposal.entries.clone()]
    }

    /// Preconditions of one of this batch's proposals.
    pub fn preconditions_of(&self, proposal: &LocatedProposal<'a>) -> &[LocatedPrecondition<'a>] {
        &self.preconditions[proposal.preconditions.clone()]
    }
}

/// A decoded command with the offset of each key and value within the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located<'a> {
    /// See [`Command::Genesis`].
    Genesis {
        /// Database id.
        database: DatabaseId,
        /// Bytes after which a segment is closed.
        segment_bytes: u64,
        /// First settings.
        settings: Settings,
    },
    /// See [`Command::Configure`].
    Configure(Settings),
    /// See [`Command::Batch`].
    Batch(LocatedBatch<'a>),
    /// See [`Command::Seal`].
    Seal(Seal),
    /// See [`Command::Prune`].
    Prune(Option<Citation>, LocatedTarget<'a>),
}

impl Command {
    /// The command's bytes, current version. `Command::decode(&c.encode()) == Ok(c)`.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_len_estimate());
        out.put_u8(COMMAND_VERSION);
        match self {
            Self::Genesis { database, segment_bytes, settings } => {
                out.put_u8(KIND_GENESIS);
                out.put_bytes(&database.0);
                out.put_u64(*segment_bytes);
                settings.encode_into(&mut out);
            }
            Self::Configure(settings) => {
                out.put_u8(KIND_CONFIGURE);
                settings.encode_into(&mut out);
            }
            Self::Batch { ts, proposals } => {
                out.put_u8(KIND_BATCH);
                put_batch(*ts, proposals, &mut out);
            }
            Self::Seal(seal) => {
                out.put_u8(KIND_SEAL);
                seal.encode_into(&mut out);
            }
            Self::Prune(prune) => {
                out.put_u8(KIND_PRUNE);
                prune.encode_into(&mut out);
            }
        }
        Bytes::from(out)
    }

    /// Reads a command; keys, metadata and values are slices of `payload`, not copies. A command that has lost values to
    /// a prune is not one that anybody could propose, so it is malformed here.
    pub fn decode(payload: &Bytes) -> Result<Self, DecodeError> {
        let malformed = DecodeError::Malformed { at: payload.len() };
        Ok(match decode_located(payload)? {
            Located::Genesis { database, segment_bytes, settings } => {
                Self::Genesis { database, segment_bytes, settings }
            }
            Located::Configure(settings) => Self::Configure(settings),
            Located::Seal(seal) => Self::Seal(seal),
            Located::Batch(batch) => {
                Self::Batch { ts: batch.ts, proposals: own_proposals(payload, &batch).ok_or(malformed)? }
            }
            Located::Prune(order, target) => {
                let target = match target {
                    LocatedTarget::Before { tx, batch } => {
                        let marker = own_proposals(payload, &batch).ok_or(malformed)?.remove(0);
                        PruneTarget::Before { tx, ts: batch.ts, marker }
                    }
                    LocatedTarget::Versions { prefix, keep } => {
                        PruneTarget::Versions { prefix: own(payload, prefix), keep }
                    }
                    LocatedTarget::Value { tx, entry } => PruneTarget::Value { tx, entry },
                };
                Self::Prune(Prune { order, target })
            }
        })
    }

    /// Bytes that [`Command::encode`] will need at most.
    fn encoded_len_estimate(&self) -> usize {
        match self {
            Self::Genesis { .. } | Self::Configure(_) => 64,
            Self::Batch { proposals, .. } => 18 + proposals.iter().map(TxProposal::encoded_len_max).sum::<usize>(),
            Self::Seal(seal) => 128 + 16 * seal.rejected.len(),
            Self::Prune(prune) => match &prune.target {
                PruneTarget::Before { marker, .. } => 80 + marker.encoded_len_max(),
                PruneTarget::Versions { prefix, .. } => 64 + prefix.len(),
                PruneTarget::Value { .. } => 64,
            },
        }
    }
}

/// A [`Command::Batch`] of proposals from [`TxProposal::encode`].
pub(crate) fn encode_batch(ts: i64, proposals: &[&[u8]]) -> Bytes {
    let mut out = Vec::with_capacity(19 + proposals.iter().map(|proposal| proposal.len()).sum::<usize>());
    out.put_u8(COMMAND_VERSION);
    out.put_u8(KIND_BATCH);
    put_batch_head(&mut out, ts, proposals.len());
    proposals.iter().for_each(|proposal| out.put_bytes(proposal));
    Bytes::from(out)
}

/// A part of `payload` that shares its memory.
fn own(payload: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() { Bytes::new() } else { payload.slice_ref(part) }
}

/// The proposals of a batch; `None` when one has lost a value.
fn own_proposals(payload: &Bytes, batch: &LocatedBatch<'_>) -> Option<Vec<TxProposal>> {
    if batch.entries.iter().any(|entry| entry.pruned) {
        return None;
    }
    let own = |part: &[u8]| own(payload, part);
    let proposals = batch.proposals.iter().map(|proposal| TxProposal {
        request: proposal.request,
        metadata: own(proposal.metadata),
        entries: (batch.entries_of(proposal).iter())
            .map(|e| ProposalEntry { key: own(e.key), metadata: own(e.metadata), value: own(e.value), form: e.form })
            .collect(),
        preconditions: (batch.preconditions_of(proposal).iter())
            .map(|condition| match *condition {
                LocatedPrecondition::MustExist(key) => Precondition::MustExist(own(key)),
                LocatedPrecondition::MustNotExist(key) => Precondition::MustNotExist(own(key)),
                LocatedPrecondition::NotModifiedAfter { key, tx } => {
                    Precondition::NotModifiedAfter { key: own(key), tx }
                }
                LocatedPrecondition::Becomes(tx) => Precondition::Becomes(tx),
            })
            .collect(),
        read_set: proposal.read_set.as_ref().map(|reads| reads.within(payload)),
        foreign: proposal.foreign.clone(),
    });
    Some(proposals.collect())
}

/// Reads a command and tells where in `payload` each key and value stands.
pub fn decode_located(payload: &[u8]) -> Result<Located<'_>, DecodeError> {
    if let Some(&version) = payload.first()
        && version != COMMAND_VERSION
    {
        return Err(DecodeError::UnsupportedVersion { version });
    }
    let mut reader = Reader::new(payload);
    read_command(&mut reader)
        .and_then(|command| if reader.left() == 0 { Ok(command) } else { Err(Malformed) })
        .map_err(|Malformed| DecodeError::Malformed { at: reader.at() })
}

fn read_command<'a>(reader: &mut Reader<'a>) -> Result<Located<'a>, Malformed> {
    let _version = reader.u8()?;
    Ok(match reader.u8()? {
        KIND_GENESIS => Located::Genesis {
            database: DatabaseId(reader.array()?),
            segment_bytes: reader.u64()?,
            settings: Settings::read(reader)?,
        },
        KIND_CONFIGURE => Located::Configure(Settings::read(reader)?),
        KIND_BATCH => Located::Batch(read_batch(reader)?),
        KIND_SEAL => Located::Seal(Seal::read(reader)?),
        KIND_PRUNE => {
            let (order, target) = prune::read(reader)?;
            Located::Prune(order, target)
        }
        _ => return Err(Malformed),
    })
}

pub(super) fn read_batch<'a>(reader: &mut Reader<'a>) -> Result<LocatedBatch<'a>, Malformed> {
    /// Smallest proposal: flags and a count of entries.
    const PROPOSAL_BYTES_MIN: usize = 2;
    /// Smallest entry: flags, key length, compression, value length.
    const ENTRY_BYTES_MIN: usize = 4;
    /// Smallest precondition: kind and key length.
    const PRECONDITION_BYTES_MIN: usize = 2;

    let ts = reader.i64()?;
    let count = reader.count(PROPOSAL_BYTES_MIN)?;
    let mut batch = LocatedBatch {
        ts,
        proposals: Vec::with_capacity(count),
        entries: Vec::with_capacity(count),
        ..Default::default()
    };
    for _ in 0..count {
        let flags = reader.u8()?;
        if flags & !PROPOSAL_FLAGS != 0 {
            return Err(Malformed);
        }
        let request = if flags & PROPOSAL_HAS_REQUEST != 0 {
            Some(RequestId { client: reader.array()?, sequence: reader.u64()?, floor: LogIndex(reader.u64()?) })
        } else {
            None
        };
        let metadata = if flags & PROPOSAL_HAS_METADATA != 0 { reader.some_prefixed()? } else { &[] };
        let foreign =
            if flags & PROPOSAL_IS_FOREIGN != 0 { Some(Box::new(ForeignHeader::read(reader)?)) } else { None };
        let first_entry = batch.entries.len();
        for _ in 0..reader.count(ENTRY_BYTES_MIN)? {
            let flags = reader.u8()?;
            if flags & !ENTRY_HAS_METADATA != 0 {
                return Err(Malformed);
            }
            let key = reader.prefixed()?;
            let key_at = position(reader.at() - key.len())?;
            let metadata = if flags & ENTRY_HAS_METADATA != 0 { reader.some_prefixed()? } else { &[] };
            let (form, pruned) = ValueForm::read_or_pruned(reader)?;
            let value = reader.prefixed()?;
            let value_at = position(reader.at() - value.len())?;
            batch.entries.push(LocatedEntry { key, key_at, metadata, value, form, pruned, value_at });
        }
        let first_precondition = batch.preconditions.len();
        if flags & PROPOSAL_HAS_PRECONDITIONS != 0 {
            let count = reader.count(PRECONDITION_BYTES_MIN)?;
            if count == 0 {
                return Err(Malformed);
            }
            for _ in 0..count {
                batch.preconditions.push(match reader.u8()? {
                    MUST_EXIST => LocatedPrecondition::MustExist(reader.prefixed()?),
                    MUST_NOT_EXIST => LocatedPrecondition::MustNotExist(reader.prefixed()?),
                    NOT_MODIFIED_AFTER => {
                        let key = reader.prefixed()?;
                        LocatedPrecondition::NotModifiedAfter { key, tx: TxId(reader.u64()?) }
                    }
                    BECOMES => LocatedPrecondition::Becomes(TxId(reader.u64()?)),
                    _ => return Err(Malformed),
                });
            }
        }
        let read_set = if flags & PROPOSAL_HAS_READ_SET != 0 { Some(LocatedReadSet::read(reader)?) } else { None };
        batch.proposals.push(LocatedProposal {
            request,
            metadata,
            entries: first_entry..batch.entries.len(),
            preconditions: first_precondition..batch.preconditions.len(),
            read_set,
            foreign,
        });
    }
    Ok(batch)
}

fn put_batch_head(out: &mut Vec<u8>, ts: i64, proposals: usize) {
    out.put_i64(ts);
    out.put_varint(proposals as u64);
}

/// Time and proposals of a batch.
pub(super) fn put_batch(ts: i64, proposals: &[TxProposal], out: &mut Vec<u8>) {
    put_batch_head(out, ts, proposals.len());
    for proposal in proposals {
        proposal.encode_into(out);
    }
}

/// Offsets within a payload fit 32 bits: a frame's length does.
fn position(at: usize) -> Result<u32, Malformed> {
    u32::try_from(at).map_err(|_| Malformed)
}

impl TxProposal {
    /// Its bytes in a batch.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len_max());
        self.encode_into(&mut out);
        out
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        if self.request.is_some() {
            flags |= PROPOSAL_HAS_REQUEST;
        }
        if !self.metadata.is_empty() {
            flags |= PROPOSAL_HAS_METADATA;
        }
        if !self.preconditions.is_empty() {
            flags |= PROPOSAL_HAS_PRECONDITIONS;
        }
        if self.read_set.is_some() {
            flags |= PROPOSAL_HAS_READ_SET;
        }
        if self.foreign.is_some() {
            flags |= PROPOSAL_IS_FOREIGN;
        }
        out.put_u8(flags);
        if let Some(request) = &self.request {
            out.put_bytes(&request.client);
            out.put_u64(request.sequence);
            out.put_u64(request.floor.0);
        }
        if !self.metadata.is_empty() {
            out.put_prefixed(&self.metadata);
        }
        if let Some(foreign) = &self.foreign {
            foreign.encode_into(out);
        }
        out.put_varint(self.entries.len() as u64);
        for entry in &self.entries {
            out.put_u8(if entry.metadata.is_empty() { 0 } else { ENTRY_HAS_METADATA });
            out.put_prefixed(&entry.key);
            if !entry.metadata.is_empty() {
                out.put_prefixed(&entry.metadata);
            }
            entry.form.encode_into(out);
            out.put_prefixed(&entry.value);
        }
        if !self.preconditions.is_empty() {
            out.put_varint(self.preconditions.len() as u64);
            for precondition in &self.preconditions {
                match precondition {
                    Precondition::MustExist(key) => {
                        out.put_u8(MUST_EXIST);
                        out.put_prefixed(key);
                    }
                    Precondition::MustNotExist(key) => {
                        out.put_u8(MUST_NOT_EXIST);
                        out.put_prefixed(key);
                    }
                    Precondition::NotModifiedAfter { key, tx } => {
                        out.put_u8(NOT_MODIFIED_AFTER);
                        out.put_prefixed(key);
                        out.put_u64(tx.0);
                    }
                    Precondition::Becomes(tx) => {
                        out.put_u8(BECOMES);
                        out.put_u64(tx.0);
                    }
                }
            }
        }
        if let Some(read_set) = &self.read_set {
            read_set.encode_into(out);
        }
    }

    /// Bytes that this proposal takes in an encoded command, at most. What a queue bounded in bytes counts.
    pub fn encoded_len_max(&self) -> usize {
        let entries = self.entries.iter().map(|e| 18 + e.key.len() + e.metadata.len() + e.value.len()).sum::<usize>();
        let preconditions = (self.preconditions.iter())
            .map(|condition| match condition {
                Precondition::MustExist(key) | Precondition::MustNotExist(key) => 9 + key.len(),
                Precondition::NotModifiedAfter { key, .. } => 17 + key.len(),
                Precondition::Becomes(_) => 9,
            })
            .sum::<usize>();
        let reads = self.read_set.as_ref().map_or(0, ReadSet::encoded_len_max);
        let foreign = if self.foreign.is_some() { 122 } else { 0 };
        57 + foreign + self.metadata.len() + entries + preconditions + reads
    }
}

impl Settings {
    /// Settings of a new database unless told otherwise: what the compatible server has by default.
    pub const DEFAULT: Self = Self {
        key_len_max: 1024,
        value_len_max: 32 << 20,
        tx_entries_max: 1024,
        header_version: 1,
        exclude_commit_time: false,
        quota_bytes: 0,
        quota_tx_per_second: 0,
        compression: Compression::None,
        replica: false,
    };

    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_u32(self.key_len_max);
        out.put_u32(self.value_len_max);
        out.put_u32(self.tx_entries_max);
        out.put_u16(self.header_version);
        let mut flags = 0;
        if self.exclude_commit_time {
            flags |= SETTINGS_EXCLUDE_COMMIT_TIME;
        }
        if self.replica {
            flags |= SETTINGS_REPLICA;
        }
        out.put_u8(flags);
        out.put_u64(self.quota_bytes);
        out.put_u64(self.quota_tx_per_second);
        out.put_u8(match self.compression {
            Compression::None => COMPRESSION_NONE,
            Compression::Lz4 => COMPRESSION_LZ4,
        });
    }

    /// Reads settings; those that could not be obeyed (a key longer than the hashed length field, an unknown header
    /// version) are malformed, so that no replica ever holds them.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (key_len_max, value_len_max, tx_entries_max) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let (header_version, flags) = (reader.u16()?, reader.u8()?);
        if flags & !(SETTINGS_EXCLUDE_COMMIT_TIME | SETTINGS_REPLICA) != 0 {
            return Err(Malformed);
        }
        let settings = Self {
            key_len_max,
            value_len_max,
            tx_entries_max,
            header_version,
            exclude_commit_time: flags & SETTINGS_EXCLUDE_COMMIT_TIME != 0,
            quota_bytes: reader.u64()?,
            quota_tx_per_second: reader.u64()?,
            compression: match reader.u8()? {
                COMPRESSION_NONE => Compression::None,
                COMPRESSION_LZ4 => Compression::Lz4,
                _ => return Err(Malformed),
            },
            replica: flags & SETTINGS_REPLICA != 0,
        };
        if settings.is_valid() { Ok(settings) } else { Err(Malformed) }
    }

    /// Whether a database can have these settings: header version 0 or 1, at least one byte of key, one entry per
    /// transaction, key and entry counts within what headers and digests can express.
    pub fn is_valid(&self) -> bool {
        let entries_max = if self.header_version == 0 { u32::from(u16::MAX) } else { u32::MAX };
        self.header_version <= 1
            && (1..=u32::from(u16::MAX)).contains(&self.key_len_max)
            && (1..=entries_max).contains(&self.tx_entries_max)
    }
}

impl Seal {
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_u64(self.segment);
        out.put_u32(self.generation);
        out.put_bytes(&self.digest);
        out.put_u64(self.last_tx.0);
        out.put_bytes(&self.alh);
        out.put_u8(0); // no map root
        out.put_varint(self.rejected.len() as u64);
        let mut previous = 0;
        for &(index, number) in &self.rejected {
            debug_assert!(index >= previous, "rejected proposals are listed in log order");
            out.put_varint(index - previous);
            out.put_varint(u64::from(number));
            previous = index;
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let segment = reader.u64()?;
        let generation = reader.u32()?;
        let digest = reader.array()?;
        let last_tx = TxId(reader.u64()?);
        let alh = reader.array()?;
        if reader.u8()? != 0 {
            return Err(Malformed);
        }
        let count = reader.count(2)?;
        let mut rejected = Vec::with_capacity(count);
        let mut index = 0u64;
        for _ in 0..count {
            index = index.checked_add(reader.varint()?).ok_or(Malformed)?;
            rejected.push((index, reader.varint_u32()?));
        }
        Ok(Self { segment, generation, digest, last_tx, alh, rejected })
    }
}
