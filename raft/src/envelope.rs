//! Bytes of what nodes say to each other, inside the frames of [`crate::link`].
//!
//! A body is a format byte and then bincode; nothing hashed, kept on disk or visible to clients is written this way, and
//! bincode is named nowhere else, so that it can be replaced in one place. Log entries are not written with it either:
//! they follow the envelope as frames, byte for byte as they stand in the ledger.

use alhambra_ledger::Digest;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_storage::apply::Rejection;
use alhambra_storage::command::{Command, Prune, PruneTarget, TxProposal};
use alhambra_storage::import::ImportRefusal;
use alhambra_storage::segment::{Frame, FrameKind};
use alhambra_storage::{SegmentVersion, SegmentVote};
use bincode::config::{Configuration, Limit};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::SnapshotMeta;
use openraft::vote::RaftVote as _;
use openraft::vote::leader_id_std::LeaderId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{decode_membership, encode_membership};
use crate::disk::DiskReport;
use crate::error::{ProposeError, ReadError, WriteLimit};
use crate::forward::{ReadIndex, SegmentPart, Written};
use crate::log_store::frame_of_entry;
use crate::types::{
    CommandBytes, RaftEntry, RaftLogId, RaftStoredMembership, RaftVote, TypeConfig, from_raft_log_id, to_raft_log_id,
};

/// First byte of every body.
pub const FORMAT: u8 = 1;
/// Largest body, bytes.
pub const BODY_BYTES_MAX: usize = 64 << 20;

/// Largest proposal, bytes: a log entry that holds it and a batch of small ones must fit into a message to a follower, or
/// its group would never get past it.
pub const PROPOSAL_BYTES_MAX: usize = BODY_BYTES_MAX - (2 << 20);

/// What a body is.
pub mod kind {
    /// [`super::encode_vote_request`].
    pub const VOTE: u32 = 1;
    /// The same bytes as a vote.
    pub const PRE_VOTE: u32 = 2;
    /// [`super::encode_append`], one of a replication stream.
    pub const APPEND: u32 = 3;
    /// [`super::encode_append`] without entries, on its own.
    pub const HEARTBEAT: u32 = 4;
    /// [`super::encode_transfer`].
    pub const TRANSFER: u32 = 5;
    /// [`super::Install`].
    pub const INSTALL: u32 = 6;
    /// [`super::Fetch`]; answered with plain bytes.
    pub const FETCH: u32 = 7;
    /// [`super::encode_propose`].
    pub const PROPOSE: u32 = 8;
    /// An empty body.
    pub const READ_INDEX: u32 = 9;
    /// [`super::encode_disk`].
    pub const DISK: u32 = 10;
    /// [`super::encode_segment_ask`].
    pub const SEGMENT_VOTE: u32 = 11;
    /// [`super::encode_segment_part`]; answered with plain bytes.
    pub const SEGMENT_PART: u32 = 12;
    /// What the programs above this crate say to each other; opaque here.
    pub const NODE: u32 = 13;
    /// An empty body, answered by one: the group is open. A group that is not is unknown.
    pub const HOSTS: u32 = 14;
    /// [`super::encode_truncation`]; answered as a proposal.
    pub const TRUNCATE: u32 = 15;
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// They end too early.
    #[error("the message ends too early")]
    Short,
    /// They go on after the end.
    #[error("the message goes on after its end")]
    Long,
    /// A version that this program does not know.
    #[error("unknown message format {0}")]
    Format(u8),
    /// A part does not parse.
    #[error("the message does not parse")]
    Invalid,
    /// A log entry fails its checksum.
    #[error("a log entry in the message fails its checksum")]
    Checksum,
}

type Result<T> = std::result::Result<T, EnvelopeError>;

/// Bodies up to here may claim [`SMALL_CLAIM_BYTES_MAX`] of memory while they are decoded, longer ones as much as any body: the
/// length of a text is believed before its bytes are there, and a forged one must not cost more than a few messages would.
const SMALL_BODY_BYTES_MAX: usize = 64 << 10;
/// See [`SMALL_BODY_BYTES_MAX`]. A number takes a byte or more and claims eight.
const SMALL_CLAIM_BYTES_MAX: usize = 1 << 20;

fn config<const MOST: usize>() -> Configuration<bincode::config::BigEndian, bincode::config::Varint, Limit<MOST>> {
    bincode::config::standard().with_big_endian().with_limit::<MOST>()
}

/// A format byte and the value.
fn put<T: Serialize>(value: &T) -> BytesMut {
    let mut out = BytesMut::with_capacity(64).writer();
    out.get_mut().put_u8(FORMAT);
    bincode::serde::encode_into_std_write(value, &mut out, config::<BODY_BYTES_MAX>())
        .expect("plain values are written to memory");
    out.into_inner()
}

/// The value after the format byte, and what follows it.
fn take<T: DeserializeOwned>(body: &Bytes) -> Result<(T, Bytes)> {
    match body.first() {
        None => return Err(EnvelopeError::Short),
        Some(&FORMAT) => {}
        Some(&other) => return Err(EnvelopeError::Format(other)),
    }
    let decoded = if body.len() <= SMALL_BODY_BYTES_MAX {
        bincode::serde::decode_from_slice(&body[1..], config::<SMALL_CLAIM_BYTES_MAX>())
    } else {
        bincode::serde::decode_from_slice(&body[1..], config::<BODY_BYTES_MAX>())
    };
    let (value, len) = decoded.map_err(|error| match error {
        bincode::error::DecodeError::UnexpectedEnd { .. } => EnvelopeError::Short,
        _ => EnvelopeError::Invalid,
    })?;
    Ok((value, body.slice(1 + len..)))
}

fn take_all<T: DeserializeOwned>(body: &Bytes) -> Result<T> {
    let (value, rest) = take(body)?;
    if rest.is_empty() { Ok(value) } else { Err(EnvelopeError::Long) }
}

#[derive(Serialize, Deserialize)]
struct WireLogId {
    term: u64,
    index: u64,
}

fn log_id(id: &RaftLogId) -> WireLogId {
    let id = from_raft_log_id(id);
    WireLogId { term: id.term.get(), index: id.index.get() }
}

fn raft_log_id(id: &WireLogId) -> RaftLogId {
    to_raft_log_id(LogId::new(id.term, id.index))
}

#[derive(Serialize, Deserialize)]
struct WireVote {
    term: u64,
    node: u64,
    committed: bool,
}

fn vote(vote: &RaftVote) -> WireVote {
    WireVote { term: vote.leader_id().term, node: vote.leader_id().voted_for, committed: vote.is_committed() }
}

fn raft_vote(vote: &WireVote) -> RaftVote {
    RaftVote::from_leader_id(LeaderId { term: vote.term, voted_for: vote.node }, vote.committed)
}

#[derive(Serialize, Deserialize)]
struct WireVoteRequest {
    vote: WireVote,
    last: Option<WireLogId>,
    transfer: bool,
}

/// A request for a vote, or for a pre-vote.
pub fn encode_vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let last = request.last_log_id.as_ref().map(log_id);
    put(&WireVoteRequest { vote: vote(&request.vote), last, transfer: request.leadership_transfer }).freeze()
}

/// See [`encode_vote_request`].
pub fn decode_vote_request(body: &Bytes) -> Result<VoteRequest<TypeConfig>> {
    let wire: WireVoteRequest = take_all(body)?;
    Ok(VoteRequest {
        vote: raft_vote(&wire.vote),
        last_log_id: wire.last.as_ref().map(raft_log_id),
        leadership_transfer: wire.transfer,
    })
}

#[derive(Serialize, Deserialize)]
struct WireVoteReply {
    vote: WireVote,
    granted: bool,
    last: Option<WireLogId>,
}

/// The answer to a request for a vote.
pub fn encode_vote_reply(reply: &VoteResponse<TypeConfig>) -> Bytes {
    let last = reply.last_log_id.as_ref().map(log_id);
    put(&WireVoteReply { vote: vote(&reply.vote), granted: reply.vote_granted, last }).freeze()
}

/// See [`encode_vote_reply`].
pub fn decode_vote_reply(body: &Bytes) -> Result<VoteResponse<TypeConfig>> {
    let wire: WireVoteReply = take_all(body)?;
    Ok(VoteResponse::new(raft_vote(&wire.vote), wire.last.as_ref().map(raft_log_id), wire.granted))
}

#[derive(Serialize, Deserialize)]
struct WireAppend {
    vote: WireVote,
    prev: Option<WireLogId>,
    commit: Option<WireLogId>,
    entries: u32,
}

/// Log entries for a follower: the envelope, then the frames.
pub fn encode_append(request: AppendEntriesRequest<TypeConfig>) -> Bytes {
    let head = WireAppend {
        vote: vote(&request.vote),
        prev: request.prev_log_id.as_ref().map(log_id),
        commit: request.leader_commit.as_ref().map(log_id),
        entries: u32::try_from(request.entries.len()).expect("a message has fewer than 2^32 entries"),
    };
    let mut out = put(&head);
    for entry in request.entries {
        put_frame(&mut out, &frame_of_entry(entry));
    }
    out.freeze()
}

/// See [`encode_append`]. Entries are slices of the body.
pub fn decode_append(body: &Bytes) -> Result<AppendEntriesRequest<TypeConfig>> {
    let (head, mut rest): (WireAppend, Bytes) = take(body)?;
    let mut entries = Vec::new();
    for _ in 0..head.entries {
        entries.push(entry_of_frame(take_frame(&mut rest)?)?);
    }
    if !rest.is_empty() {
        return Err(EnvelopeError::Long);
    }
    Ok(AppendEntriesRequest {
        vote: raft_vote(&head.vote),
        prev_log_id: head.prev.as_ref().map(raft_log_id),
        entries,
        leader_commit: head.commit.as_ref().map(raft_log_id),
    })
}

fn entry_of_frame(frame: Frame) -> Result<RaftEntry> {
    let payload = match frame.kind {
        FrameKind::Blank => EntryPayload::Blank,
        FrameKind::Command => EntryPayload::Normal(CommandBytes(frame.payload)),
        FrameKind::Membership => {
            EntryPayload::Membership(decode_membership(&frame.payload).map_err(|_| EnvelopeError::Invalid)?)
        }
    };
    Ok(RaftEntry { log_id: to_raft_log_id(frame.log_id), payload })
}

/// Bytes of a frame that its length field does not count: itself and the checksum.
const FRAME_PREFIX_BYTES: usize = 8;
/// Term, index and kind.
const FRAME_BODY_HEAD_BYTES: usize = 17;

/// A frame as it stands in the ledger (`docs/format.md`, "frames").
fn put_frame(out: &mut BytesMut, frame: &Frame) {
    let mut head = [0; FRAME_BODY_HEAD_BYTES];
    head[..8].copy_from_slice(&frame.log_id.term.get().to_be_bytes());
    head[8..16].copy_from_slice(&frame.log_id.index.get().to_be_bytes());
    head[16] = match frame.kind {
        FrameKind::Blank => 1,
        FrameKind::Command => 2,
        FrameKind::Membership => 3,
    };
    let len = FRAME_BODY_HEAD_BYTES + frame.payload.len();
    out.reserve(FRAME_PREFIX_BYTES + len);
    out.put_u32(u32::try_from(len).expect("a frame is shorter than 4 GiB"));
    out.put_u32(crc32c::crc32c_append(crc32c::crc32c(&head), &frame.payload));
    out.put_slice(&head);
    out.put_slice(&frame.payload);
}

fn take_frame(rest: &mut Bytes) -> Result<Frame> {
    if rest.len() < FRAME_PREFIX_BYTES {
        return Err(EnvelopeError::Short);
    }
    let len = rest.get_u32() as usize;
    let sum = rest.get_u32();
    if len < FRAME_BODY_HEAD_BYTES {
        return Err(EnvelopeError::Invalid);
    }
    if rest.len() < len {
        return Err(EnvelopeError::Short);
    }
    let mut body = rest.split_to(len);
    if crc32c::crc32c(&body) != sum {
        return Err(EnvelopeError::Checksum);
    }
    let (term, index) = (body.get_u64(), body.get_u64());
    let kind = match body.get_u8() {
        1 => FrameKind::Blank,
        2 => FrameKind::Command,
        3 => FrameKind::Membership,
        _ => return Err(EnvelopeError::Invalid),
    };
    Ok(Frame { log_id: LogId::new(term, index), kind, payload: body })
}

#[derive(Serialize, Deserialize)]
enum WireAppendReply {
    Matching(Option<WireLogId>),
    Conflict(WireLogId),
    HigherVote(WireVote),
}

/// What became of an append.
pub fn encode_append_reply(reply: &StreamAppendResult<TypeConfig>) -> Bytes {
    let wire = match reply {
        Ok(matching) => WireAppendReply::Matching(matching.as_ref().map(log_id)),
        Err(StreamAppendError::Conflict(at)) => WireAppendReply::Conflict(log_id(at)),
        Err(StreamAppendError::HigherVote(higher)) => WireAppendReply::HigherVote(vote(higher)),
    };
    put(&wire).freeze()
}

/// See [`encode_append_reply`].
pub fn decode_append_reply(body: &Bytes) -> Result<StreamAppendResult<TypeConfig>> {
    Ok(match take_all(body)? {
        WireAppendReply::Matching(matching) => Ok(matching.as_ref().map(raft_log_id)),
        WireAppendReply::Conflict(at) => Err(StreamAppendError::Conflict(raft_log_id(&at))),
        WireAppendReply::HigherVote(higher) => Err(StreamAppendError::HigherVote(raft_vote(&higher))),
    })
}

#[derive(Serialize, Deserialize)]
struct WireTransfer {
    from: WireVote,
    to: u64,
    last: Option<WireLogId>,
}

/// The wish of a leader that another node leads.
pub fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let last = request.last_log_id().map(log_id);
    put(&WireTransfer { from: vote(request.from_leader()), to: *request.to_node_id(), last }).freeze()
}

/// See [`encode_transfer`].
pub fn decode_transfer(body: &Bytes) -> Result<TransferLeaderRequest<TypeConfig>> {
    let wire: WireTransfer = take_all(body)?;
    Ok(TransferLeaderRequest::new(raft_vote(&wire.from), wire.to, wire.last.as_ref().map(raft_log_id)))
}

#[derive(Serialize, Deserialize)]
enum WireTransferReply {
    Accepted,
    VoteChanged { expected: WireVote, actual: WireVote },
    LogNotFlushed { expected: Option<WireLogId>, actual: Option<WireLogId> },
}

/// The answer to [`encode_transfer`].
pub fn encode_transfer_reply(reply: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let wire = match reply {
        Ok(()) => WireTransferReply::Accepted,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            WireTransferReply::VoteChanged { expected: vote(expected), actual: vote(actual) }
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => WireTransferReply::LogNotFlushed {
            expected: expected.as_ref().map(log_id),
            actual: actual.as_ref().map(log_id),
        },
    };
    put(&wire).freeze()
}

/// See [`encode_transfer_reply`].
pub fn decode_transfer_reply(body: &Bytes) -> Result<TransferLeaderResponse<TypeConfig>> {
    Ok(match take_all(body)? {
        WireTransferReply::Accepted => Ok(()),
        WireTransferReply::VoteChanged { expected, actual } => {
            Err(TransferLeaderError::VoteChanged { expected: raft_vote(&expected), actual: raft_vote(&actual) })
        }
        WireTransferReply::LogNotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
            expected: expected.as_ref().map(raft_log_id),
            actual: actual.as_ref().map(raft_log_id),
        }),
    })
}

/// What a raft snapshot stands for.
pub type RaftSnapshotMeta =
    SnapshotMeta<openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>, u64, openraft::BasicNode>;

/// Asks a node to pull the files of a snapshot and to install it.
#[derive(Clone, Debug, PartialEq)]
pub struct Install {
    /// The leader's vote.
    pub vote: RaftVote,
    /// What the snapshot stands for.
    pub meta: RaftSnapshotMeta,
    /// Names the files at the sender for as long as the call is under way.
    pub transfer: u64,
    /// The encoded manifest.
    pub manifest: Bytes,
}

#[derive(Serialize, Deserialize)]
struct WireInstall {
    vote: WireVote,
    last: Option<WireLogId>,
    members_at: Option<WireLogId>,
    members_len: u32,
    transfer: u64,
}

/// The envelope, then members, then manifest, both in their own forms.
pub fn encode_install(install: &Install) -> Bytes {
    let members = encode_membership(install.meta.last_membership.membership());
    let head = WireInstall {
        vote: vote(&install.vote),
        last: install.meta.last_log_id.as_ref().map(log_id),
        members_at: install.meta.last_membership.log_id().as_ref().map(log_id),
        members_len: u32::try_from(members.len()).expect("a member list is short"),
        transfer: install.transfer,
    };
    let mut out = put(&head);
    out.put_slice(&members);
    out.put_slice(&install.manifest);
    out.freeze()
}

/// See [`encode_install`].
pub fn decode_install(body: &Bytes) -> Result<Install> {
    let (head, mut rest): (WireInstall, Bytes) = take(body)?;
    let members_len = head.members_len as usize;
    if rest.len() < members_len {
        return Err(EnvelopeError::Short);
    }
    let members = decode_membership(&rest.split_to(members_len)).map_err(|_| EnvelopeError::Invalid)?;
    let last_membership = RaftStoredMembership::new(head.members_at.as_ref().map(raft_log_id), members);
    Ok(Install {
        vote: raft_vote(&head.vote),
        meta: SnapshotMeta { last_log_id: head.last.as_ref().map(raft_log_id), last_membership },
        transfer: head.transfer,
        manifest: rest,
    })
}

/// The answer to [`Install`]: the receiver's vote.
pub fn encode_install_reply(reply: &SnapshotResponse<TypeConfig>) -> Bytes {
    put(&vote(&reply.vote)).freeze()
}

/// See [`encode_install_reply`].
pub fn decode_install_reply(body: &Bytes) -> Result<SnapshotResponse<TypeConfig>> {
    Ok(SnapshotResponse::new(raft_vote(&take_all(body)?)))
}

/// Asks for a part of a file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// See [`Install::transfer`].
    pub transfer: u64,
    /// The file, as the manifest names it.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub len: u32,
}

/// Encodes a request for a part of a file.
pub fn encode_fetch(fetch: &Fetch) -> Bytes {
    put(fetch).freeze()
}

/// See [`encode_fetch`].
pub fn decode_fetch(body: &Bytes) -> Result<Fetch> {
    take_all(body)
}

/// Asks what a node holds of a closed segment.
pub fn encode_segment_ask(segment: u64) -> Bytes {
    put(&segment).freeze()
}

/// See [`encode_segment_ask`].
pub fn decode_segment_ask(body: &Bytes) -> Result<u64> {
    take_all(body)
}

#[derive(Serialize, Deserialize)]
struct WireSegmentVote {
    generation: u32,
    digest: [u8; 32],
    bytes: u64,
    whole: bool,
}

/// What a node holds of a segment.
pub fn encode_segment_vote(vote: Option<&SegmentVote>) -> Bytes {
    let wire = |&SegmentVote { version: SegmentVersion { generation, digest }, bytes, whole }: &SegmentVote| {
        WireSegmentVote { generation, digest: digest.0, bytes, whole }
    };
    put(&vote.map(wire)).freeze()
}

/// See [`encode_segment_vote`].
pub fn decode_segment_vote(body: &Bytes) -> Result<Option<SegmentVote>> {
    let vote: Option<WireSegmentVote> = take_all(body)?;
    Ok(vote.map(|WireSegmentVote { generation, digest, bytes, whole }| SegmentVote {
        version: SegmentVersion { generation, digest: Digest(digest) },
        bytes,
        whole,
    }))
}

/// Asks for bytes of a closed segment.
pub fn encode_segment_part(part: &SegmentPart) -> Bytes {
    put(part).freeze()
}

/// See [`encode_segment_part`].
pub fn decode_segment_part(body: &Bytes) -> Result<SegmentPart> {
    take_all(body)
}

/// A proposal on its way to the leader: the format byte, then a command of this one proposal.
pub fn encode_propose(proposal: TxProposal) -> Bytes {
    let command = Command::Batch { ts: 0, proposals: vec![proposal] }.encode();
    let mut out = BytesMut::with_capacity(1 + command.len());
    out.put_u8(FORMAT);
    out.put_slice(&command);
    out.freeze()
}

/// See [`encode_propose`].
pub fn decode_propose(body: &Bytes) -> Result<TxProposal> {
    match body.first() {
        None => return Err(EnvelopeError::Short),
        Some(&FORMAT) => {}
        Some(&other) => return Err(EnvelopeError::Format(other)),
    }
    match Command::decode(&body.slice(1..)) {
        Ok(Command::Batch { mut proposals, .. }) if proposals.len() == 1 => {
            proposals.pop().ok_or(EnvelopeError::Invalid)
        }
        Ok(_) | Err(_) => Err(EnvelopeError::Invalid),
    }
}

/// A truncation on its way to the leader: the format byte, then the command.
pub fn encode_truncation(prune: Prune) -> Bytes {
    let command = Command::Prune(prune).encode();
    let mut out = BytesMut::with_capacity(1 + command.len());
    out.put_u8(FORMAT);
    out.put_slice(&command);
    out.freeze()
}

/// See [`encode_truncation`].
pub fn decode_truncation(body: &Bytes) -> Result<Prune> {
    match body.first() {
        None => return Err(EnvelopeError::Short),
        Some(&FORMAT) => {}
        Some(&other) => return Err(EnvelopeError::Format(other)),
    }
    match Command::decode(&body.slice(1..)) {
        Ok(Command::Prune(prune)) if matches!(prune.target, PruneTarget::Before { .. }) => Ok(prune),
        Ok(_) | Err(_) => Err(EnvelopeError::Invalid),
    }
}

#[derive(Serialize, Deserialize)]
enum WireOutcome {
    /// The header in its own form.
    Committed(Vec<u8>),
    Rejected(WireRejection),
}

#[derive(Serialize, Deserialize)]
enum WireRejection {
    Precondition { index: u32 },
    NotInitialised,
    NoEntries,
    NullKey,
    KeyTooLong,
    ValueTooLong,
    TooManyEntries,
    DuplicateKey,
    MetadataUnsupported,
    MetadataInvalid,
    RequestTooOld,
    ValueForm,
    Conflict { range: Option<u32> },
    SnapshotAhead,
    NothingToPrune,
    Replica,
    Import(WireImportRefusal),
}

#[derive(Serialize, Deserialize)]
enum WireImportRefusal {
    NotReplica,
    AlreadyCommitted,
    Gap,
    Header,
    PartlyGone,
    Entries,
    Link,
    BlRoot,
    PrevAlh,
}

#[derive(Serialize, Deserialize)]
enum WireProposeError {
    NotLeader { leader: Option<u64> },
    NoQuorum,
    Unavailable { leader: u64 },
    OutcomeUnknown,
    Overloaded { queued_bytes: u64, queued_bytes_max: u64 },
    TooLarge { len_bytes: u64, len_bytes_max: u64 },
    Stopped,
    DiskLow { node: u64, free_bytes: u64, low_bytes: u64 },
    QuotaBytes { used_bytes: u64, needed_bytes: u64, quota_bytes: u64 },
    QuotaTransactions { per_second: u64 },
}

/// What became of a forwarded proposal.
pub fn encode_propose_reply(reply: &std::result::Result<Written, ProposeError>) -> Bytes {
    let wire: std::result::Result<WireOutcome, WireProposeError> = match reply {
        Ok(Written::Committed(header)) => {
            Ok(WireOutcome::Committed(header.to_bytes().expect("a header that was applied is valid")))
        }
        Ok(Written::Rejected(rejection)) => Ok(WireOutcome::Rejected(match rejection {
            Rejection::Precondition { index } => WireRejection::Precondition { index: *index },
            Rejection::NotInitialised => WireRejection::NotInitialised,
            Rejection::NoEntries => WireRejection::NoEntries,
            Rejection::NullKey => WireRejection::NullKey,
            Rejection::KeyTooLong => WireRejection::KeyTooLong,
            Rejection::ValueTooLong => WireRejection::ValueTooLong,
            Rejection::TooManyEntries => WireRejection::TooManyEntries,
            Rejection::DuplicateKey => WireRejection::DuplicateKey,
            Rejection::MetadataUnsupported => WireRejection::MetadataUnsupported,
            Rejection::MetadataInvalid => WireRejection::MetadataInvalid,
            Rejection::RequestTooOld => WireRejection::RequestTooOld,
            Rejection::ValueForm => WireRejection::ValueForm,
            Rejection::Conflict { range } => WireRejection::Conflict { range: *range },
            Rejection::SnapshotAhead => WireRejection::SnapshotAhead,
            Rejection::NothingToPrune => WireRejection::NothingToPrune,
            Rejection::Replica => WireRejection::Replica,
            Rejection::Import(refusal) => WireRejection::Import(match refusal {
                ImportRefusal::NotReplica => WireImportRefusal::NotReplica,
                ImportRefusal::AlreadyCommitted => WireImportRefusal::AlreadyCommitted,
                ImportRefusal::Gap => WireImportRefusal::Gap,
                ImportRefusal::Header => WireImportRefusal::Header,
                ImportRefusal::PartlyGone => WireImportRefusal::PartlyGone,
                ImportRefusal::Entries => WireImportRefusal::Entries,
                ImportRefusal::Link => WireImportRefusal::Link,
                ImportRefusal::BlRoot => WireImportRefusal::BlRoot,
                ImportRefusal::PrevAlh => WireImportRefusal::PrevAlh,
            }),
        })),
        Err(error) => Err(match error {
            ProposeError::NotLeader { leader } => WireProposeError::NotLeader { leader: *leader },
            ProposeError::NoQuorum => WireProposeError::NoQuorum,
            ProposeError::Unavailable { leader } => WireProposeError::Unavailable { leader: *leader },
            ProposeError::OutcomeUnknown => WireProposeError::OutcomeUnknown,
            ProposeError::Overloaded { queued_bytes, queued_bytes_max } => {
                WireProposeError::Overloaded { queued_bytes: *queued_bytes, queued_bytes_max: *queued_bytes_max }
            }
            ProposeError::TooLarge { len_bytes, len_bytes_max } => {
                WireProposeError::TooLarge { len_bytes: *len_bytes, len_bytes_max: *len_bytes_max }
            }
            ProposeError::Stopped => WireProposeError::Stopped,
            ProposeError::LimitExceeded(limit) => match *limit {
                WriteLimit::DiskLow { node, free_bytes, low_bytes } => {
                    WireProposeError::DiskLow { node, free_bytes, low_bytes }
                }
                WriteLimit::QuotaBytes { used_bytes, needed_bytes, quota_bytes } => {
                    WireProposeError::QuotaBytes { used_bytes, needed_bytes, quota_bytes }
                }
                WriteLimit::QuotaTransactions { per_second } => WireProposeError::QuotaTransactions { per_second },
            },
        }),
    };
    put(&wire).freeze()
}

/// See [`encode_propose_reply`].
pub fn decode_propose_reply(body: &Bytes) -> Result<std::result::Result<Written, ProposeError>> {
    let wire: std::result::Result<WireOutcome, WireProposeError> = take_all(body)?;
    Ok(match wire {
        Ok(WireOutcome::Committed(header)) => {
            Ok(Written::Committed(TxHeader::from_bytes(&header).map_err(|_| EnvelopeError::Invalid)?))
        }
        Ok(WireOutcome::Rejected(rejection)) => Ok(Written::Rejected(match rejection {
            WireRejection::Precondition { index } => Rejection::Precondition { index },
            WireRejection::NotInitialised => Rejection::NotInitialised,
            WireRejection::NoEntries => Rejection::NoEntries,
            WireRejection::NullKey => Rejection::NullKey,
            WireRejection::KeyTooLong => Rejection::KeyTooLong,
            WireRejection::ValueTooLong => Rejection::ValueTooLong,
            WireRejection::TooManyEntries => Rejection::TooManyEntries,
            WireRejection::DuplicateKey => Rejection::DuplicateKey,
            WireRejection::MetadataUnsupported => Rejection::MetadataUnsupported,
            WireRejection::MetadataInvalid => Rejection::MetadataInvalid,
            WireRejection::RequestTooOld => Rejection::RequestTooOld,
            WireRejection::ValueForm => Rejection::ValueForm,
            WireRejection::Conflict { range } => Rejection::Conflict { range },
            WireRejection::SnapshotAhead => Rejection::SnapshotAhead,
            WireRejection::NothingToPrune => Rejection::NothingToPrune,
            WireRejection::Replica => Rejection::Replica,
            WireRejection::Import(refusal) => Rejection::Import(match refusal {
                WireImportRefusal::NotReplica => ImportRefusal::NotReplica,
                WireImportRefusal::AlreadyCommitted => ImportRefusal::AlreadyCommitted,
                WireImportRefusal::Gap => ImportRefusal::Gap,
                WireImportRefusal::Header => ImportRefusal::Header,
                WireImportRefusal::PartlyGone => ImportRefusal::PartlyGone,
                WireImportRefusal::Entries => ImportRefusal::Entries,
                WireImportRefusal::Link => ImportRefusal::Link,
                WireImportRefusal::BlRoot => ImportRefusal::BlRoot,
                WireImportRefusal::PrevAlh => ImportRefusal::PrevAlh,
            }),
        })),
        Err(error) => Err(match error {
            WireProposeError::NotLeader { leader } => ProposeError::NotLeader { leader },
            WireProposeError::NoQuorum => ProposeError::NoQuorum,
            WireProposeError::Unavailable { leader } => ProposeError::Unavailable { leader },
            WireProposeError::OutcomeUnknown => ProposeError::OutcomeUnknown,
            WireProposeError::Overloaded { queued_bytes, queued_bytes_max } => {
                ProposeError::Overloaded { queued_bytes, queued_bytes_max }
            }
            WireProposeError::TooLarge { len_bytes, len_bytes_max } => {
                ProposeError::TooLarge { len_bytes, len_bytes_max }
            }
            WireProposeError::Stopped => ProposeError::Stopped,
            WireProposeError::DiskLow { node, free_bytes, low_bytes } => {
                ProposeError::LimitExceeded(WriteLimit::DiskLow { node, free_bytes, low_bytes })
            }
            WireProposeError::QuotaBytes { used_bytes, needed_bytes, quota_bytes } => {
                ProposeError::LimitExceeded(WriteLimit::QuotaBytes { used_bytes, needed_bytes, quota_bytes })
            }
            WireProposeError::QuotaTransactions { per_second } => {
                ProposeError::LimitExceeded(WriteLimit::QuotaTransactions { per_second })
            }
        }),
    })
}

#[derive(Serialize, Deserialize)]
struct WireDisk {
    free_bytes: u64,
    low_bytes: u64,
    low: bool,
}

fn disk(report: &DiskReport) -> WireDisk {
    WireDisk { free_bytes: report.free_bytes, low_bytes: report.low_bytes, low: report.low }
}

fn disk_report(wire: &WireDisk) -> DiskReport {
    DiskReport { free_bytes: wire.free_bytes, low_bytes: wire.low_bytes, low: wire.low }
}

/// What the asking node says about its disk.
pub fn encode_disk(report: &DiskReport) -> Bytes {
    put(&disk(report)).freeze()
}

/// See [`encode_disk`].
pub fn decode_disk(body: &Bytes) -> Result<DiskReport> {
    take_all(body).map(|wire| disk_report(&wire))
}

/// What the answering node says about its disk; nothing when it has not looked yet.
pub fn encode_disk_reply(report: Option<&DiskReport>) -> Bytes {
    put(&report.map(disk)).freeze()
}

/// See [`encode_disk_reply`].
pub fn decode_disk_reply(body: &Bytes) -> Result<Option<DiskReport>> {
    let wire: Option<WireDisk> = take_all(body)?;
    Ok(wire.as_ref().map(disk_report))
}

#[derive(Serialize, Deserialize)]
enum WireReadError {
    NotLeader { leader: Option<u64> },
    NoQuorum,
    Lagging,
    Unavailable { leader: u64 },
    BeyondLedger { asked: u64, latest: u64 },
    Stopped,
}

/// The answer to the question for the read index: position and newest transaction.
pub fn encode_read_index_reply(reply: &std::result::Result<ReadIndex, ReadError>) -> Bytes {
    let wire: std::result::Result<(u64, u64), WireReadError> = match reply {
        Ok(read) => Ok((read.index.get(), read.tx.get())),
        Err(error) => Err(match error {
            ReadError::NotLeader { leader } => WireReadError::NotLeader { leader: *leader },
            ReadError::NoQuorum => WireReadError::NoQuorum,
            ReadError::Lagging => WireReadError::Lagging,
            ReadError::Unavailable { leader } => WireReadError::Unavailable { leader: *leader },
            ReadError::BeyondLedger { asked, latest } => {
                WireReadError::BeyondLedger { asked: asked.get(), latest: latest.get() }
            }
            ReadError::Stopped => WireReadError::Stopped,
        }),
    };
    put(&wire).freeze()
}

/// See [`encode_read_index_reply`].
pub fn decode_read_index_reply(body: &Bytes) -> Result<std::result::Result<ReadIndex, ReadError>> {
    let wire: std::result::Result<(u64, u64), WireReadError> = take_all(body)?;
    Ok(match wire {
        Ok((index, tx)) => Ok(ReadIndex { index: LogIndex(index), tx: TxId(tx) }),
        Err(error) => Err(match error {
            WireReadError::NotLeader { leader } => ReadError::NotLeader { leader },
            WireReadError::NoQuorum => ReadError::NoQuorum,
            WireReadError::Lagging => ReadError::Lagging,
            WireReadError::Unavailable { leader } => ReadError::Unavailable { leader },
            WireReadError::BeyondLedger { asked, latest } => {
                ReadError::BeyondLedger { asked: TxId(asked), latest: TxId(latest) }
            }
            WireReadError::Stopped => ReadError::Stopped,
        }),
    })
}
