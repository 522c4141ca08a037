//! Bytes of what nodes say to each other: fixed, read back, and refused when cut, prolonged or of another version.

use std::collections::BTreeMap;

use alhambra_ledger::Digest;
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_raft::codec::encode_membership;
use alhambra_raft::disk::DiskReport;
use alhambra_raft::envelope::*;
use alhambra_raft::error::{ProposeError, ReadError, WriteLimit};
use alhambra_raft::forward::{ReadIndex, SegmentPart, Written};
use alhambra_raft::types::{
    CommandBytes, RaftEntry, RaftMembership, RaftStoredMembership, RaftVote, TypeConfig, to_raft_log_id,
};
use alhambra_storage::apply::Rejection;
use alhambra_storage::command::{
    Citation, Command, Precondition, ProposalEntry, Prune, PruneTarget, RequestId, TxProposal,
};
use alhambra_storage::import::ImportRefusal;
use alhambra_storage::reads::Reads;
use alhambra_storage::{SegmentVersion, SegmentVote};
use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, TransferLeaderError, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use openraft::storage::SnapshotMeta;
use openraft::vote::RaftVote as _;
use openraft::vote::leader_id_std::LeaderId;
use openraft::{BasicNode, EntryPayload};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn vote(term: u64, node: u64, committed: bool) -> RaftVote {
    RaftVote::from_leader_id(LeaderId { term, voted_for: node }, committed)
}

pub fn members() -> RaftMembership {
    let nodes: BTreeMap<u64, BasicNode> = [(1, BasicNode::new("a:1")), (2, BasicNode::new("b:1"))].into();
    RaftMembership::new(vec![[1, 2].into()], nodes).unwrap()
}

pub fn append() -> AppendEntriesRequest<TypeConfig> {
    let entry = |index, payload| RaftEntry { log_id: to_raft_log_id(LogId::new(3, index)), payload };
    AppendEntriesRequest {
        vote: vote(3, 2, true),
        prev_log_id: Some(to_raft_log_id(LogId::new(2, 6))),
        entries: vec![
            entry(7, EntryPayload::Blank),
            entry(8, EntryPayload::Normal(CommandBytes(Bytes::from_static(b"command")))),
            entry(9, EntryPayload::Membership(members())),
        ],
        leader_commit: Some(to_raft_log_id(LogId::new(2, 5))),
    }
}

pub fn install() -> Install {
    Install {
        vote: vote(300, 2, true),
        meta: SnapshotMeta {
            last_log_id: Some(to_raft_log_id(LogId::new(3, 70_000))),
            last_membership: RaftStoredMembership::new(Some(to_raft_log_id(LogId::new(1, 0))), members()),
        },
        transfer: 9,
        manifest: Bytes::from_static(b"manifest"),
    }
}

pub fn proposal() -> TxProposal {
    let mut reads = Reads::new(TxId(2));
    reads.key(b"\0k");
    reads.prefix(b"\x02R.");
    TxProposal {
        request: Some(RequestId { client: [7; 16], sequence: 3, floor: LogIndex(2) }),
        metadata: Bytes::new(),
        entries: vec![ProposalEntry::plain(Bytes::from_static(b"\0k"), Bytes::new(), Bytes::from_static(b"\0v"))],
        preconditions: vec![Precondition::MustNotExist(Bytes::from_static(b"\0k"))],
        read_set: reads.finish(),
        foreign: None,
    }
}

/// Every cut is refused, so is every byte more, so is another version.
fn refuses_damage<T>(bytes: &Bytes, decode: impl Fn(&Bytes) -> Result<T, EnvelopeError>) {
    for len in 0..bytes.len() {
        assert!(decode(&bytes.slice(..len)).is_err(), "cut at {len} of {}", bytes.len());
    }
    assert!(decode(&[bytes, &b"\0"[..]].concat().into()).is_err(), "a byte more");
    let mut other = bytes.to_vec();
    other[0] = 2;
    assert!(matches!(decode(&other.into()), Err(EnvelopeError::Format(2))));
}

#[test]
fn votes() {
    let request = VoteRequest::<TypeConfig> {
        vote: vote(3, 2, false),
        last_log_id: Some(to_raft_log_id(LogId::new(2, 300))),
        leadership_transfer: true,
    };
    let bytes = encode_vote_request(&request);
    assert_eq!(hex(&bytes), "0103020001".to_owned() + "02fb012c" + "01");
    assert_eq!(decode_vote_request(&bytes).unwrap(), request);
    refuses_damage(&bytes, decode_vote_request);
    let reply = VoteResponse::<TypeConfig>::new(vote(4, 1, true), None, false);
    let bytes = encode_vote_reply(&reply);
    assert_eq!(hex(&bytes), "010401010000");
    assert_eq!(decode_vote_reply(&bytes).unwrap(), reply);
    refuses_damage(&bytes, decode_vote_reply);
}

#[test]
fn appends_carry_frames_as_they_stand_in_the_ledger() {
    let bytes = encode_append(append());
    let head = concat!("01", "030201", "010206", "010205", "03");
    let blank = concat!("00000011", "0afd13b1", "0000000000000003", "0000000000000007", "01");
    let command = concat!("00000018", "909a346a", "0000000000000003", "0000000000000008", "02", "636f6d6d616e64");
    let member_frame = concat!("00000045", "86aff7eb", "0000000000000003", "0000000000000009", "03");
    let members = hex(&encode_membership(&members()));
    assert_eq!(hex(&bytes), [head, blank, command, member_frame, &members].concat());
    let read = decode_append(&bytes).unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", append()));
    refuses_damage(&bytes, decode_append);
    // Any flipped bit within the frames is noticed.
    for at in head.len() / 2..bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1;
        assert!(decode_append(&flipped.into()).is_err(), "byte {at}");
    }
}

#[test]
fn answers_to_appends() {
    let at = to_raft_log_id(LogId::new(3, 9));
    for (reply, golden) in [
        (Ok(None), "010000"),
        (Ok(Some(at)), "0100010309"),
        (Err(StreamAppendError::Conflict(at)), "01010309"),
        (Err(StreamAppendError::HigherVote(vote(5, 3, true))), "0102050301"),
    ] {
        let bytes = encode_append_reply(&reply);
        assert_eq!(hex(&bytes), golden);
        assert_eq!(decode_append_reply(&bytes).unwrap(), reply);
        refuses_damage(&bytes, decode_append_reply);
    }
}

#[test]
fn transfers_of_leadership() {
    let request = TransferLeaderRequest::<TypeConfig>::new(vote(3, 2, true), 1, Some(to_raft_log_id(LogId::new(3, 9))));
    let bytes = encode_transfer(&request);
    assert_eq!(hex(&bytes), "0103020101010309");
    assert_eq!(decode_transfer(&bytes).unwrap(), request);
    refuses_damage(&bytes, decode_transfer);
    let (expected, actual) = (vote(3, 2, true), vote(4, 1, false));
    let not_flushed = TransferLeaderError::LogNotFlushed { expected: None, actual: None };
    for (reply, golden) in [
        (Ok(()), "0100"),
        (Err(TransferLeaderError::VoteChanged { expected, actual }), "0101030201040100"),
        (Err(not_flushed), "01020000"),
    ] {
        let bytes = encode_transfer_reply(&reply);
        assert_eq!(hex(&bytes), golden);
        assert_eq!(decode_transfer_reply(&bytes).unwrap(), reply);
        refuses_damage(&bytes, decode_transfer_reply);
    }
}

#[test]
fn snapshots() {
    let bytes = encode_install(&install());
    let members = "0101000000020000000000000001000000000000000200000002\
                   00000000000000010003613a3100000000000000020003623a31";
    assert_eq!(
        hex(&bytes),
        ["01fb012c020101", "03fc00011170", "010100", "34", "09", members, &hex(b"manifest")].concat()
    );
    assert_eq!(decode_install(&bytes).unwrap(), install());
    // The manifest takes what is left, and has checks of its own.
    for len in 0..bytes.len() - 8 {
        assert!(decode_install(&bytes.slice(..len)).is_err(), "cut at {len}");
    }
    let reply = SnapshotResponse::<TypeConfig>::new(vote(3, 2, true));
    let bytes = encode_install_reply(&reply);
    assert_eq!(hex(&bytes), "01030201");
    assert_eq!(decode_install_reply(&bytes).unwrap(), reply);
    let fetch = Fetch { transfer: 9, name: "tx/0".into(), offset: 1 << 20, len: 5 };
    let bytes = encode_fetch(&fetch);
    assert_eq!(hex(&bytes), "010904".to_owned() + &hex(b"tx/0") + "fc00100000" + "05");
    assert_eq!(decode_fetch(&bytes).unwrap(), fetch);
    refuses_damage(&bytes, decode_fetch);
}

#[test]
fn segments() {
    let bytes = encode_segment_ask(7);
    assert_eq!(hex(&bytes), "0107");
    assert_eq!(decode_segment_ask(&bytes).unwrap(), 7);
    refuses_damage(&bytes, decode_segment_ask);
    let version = SegmentVersion { generation: 3, digest: Digest([0xab; 32]) };
    let vote = SegmentVote { version, bytes: 1 << 20, whole: true };
    let bytes = encode_segment_vote(Some(&vote));
    assert_eq!(hex(&bytes), "010103".to_owned() + &"ab".repeat(32) + "fc0010000001");
    assert_eq!(decode_segment_vote(&bytes).unwrap(), Some(vote));
    refuses_damage(&bytes, decode_segment_vote);
    assert_eq!(decode_segment_vote(&encode_segment_vote(None)).unwrap(), None);
    let part = SegmentPart { segment: 9, generation: 3, offset: 1 << 20, len: 5 };
    let bytes = encode_segment_part(&part);
    assert_eq!(hex(&bytes), "010903fc0010000005");
    assert_eq!(decode_segment_part(&bytes).unwrap(), part);
    refuses_damage(&bytes, decode_segment_part);
}

pub fn truncation() -> Prune {
    let marker = PruneTarget::marker(proposal().request, TxId(7), proposal().entries);
    let order = Some(Citation { tx: TxId(5), alh: [0xab; 32] });
    Prune { order, target: PruneTarget::Before { tx: TxId(7), ts: 9, marker } }
}

#[test]
fn truncations() {
    let bytes = encode_truncation(truncation());
    assert_eq!(bytes[1..], Command::Prune(truncation()).encode()[..], "the command of the log, behind the format byte");
    assert_eq!(decode_truncation(&bytes).unwrap(), truncation());
    refuses_damage(&bytes, decode_truncation);
    // Nothing else is forwarded this way.
    let target = PruneTarget::Value { tx: TxId(7), entry: 0 };
    let other = encode_truncation(Prune { order: None, target });
    assert_eq!(decode_truncation(&other), Err(EnvelopeError::Invalid));
    assert_eq!(decode_truncation(&encode_propose(proposal())), Err(EnvelopeError::Invalid));
}

#[test]
fn forwards() {
    let bytes = encode_propose(proposal());
    assert_eq!(decode_propose(&bytes).unwrap(), proposal());
    refuses_damage(&bytes, decode_propose);
    let header = TxHeader {
        id: TxId(300),
        ts: 1_700_000_000,
        version: 1,
        metadata: TxMetadata::default(),
        nentries: 2,
        eh: Digest([0xcd; 32]),
        bl_tx_id: TxId(299),
        bl_root: Digest([0xef; 32]),
        prev_alh: Digest([0xab; 32]),
    };
    let header_bytes = header.to_bytes().unwrap();
    let committed = Ok(Written::Committed(header));
    let bytes = encode_propose_reply(&committed);
    assert_eq!(hex(&bytes), format!("010000{:02x}", header_bytes.len()) + &hex(&header_bytes));
    let rejections = [
        Rejection::Precondition { index: 4 },
        Rejection::NotInitialised,
        Rejection::NoEntries,
        Rejection::NullKey,
        Rejection::KeyTooLong,
        Rejection::ValueTooLong,
        Rejection::TooManyEntries,
        Rejection::DuplicateKey,
        Rejection::MetadataUnsupported,
        Rejection::MetadataInvalid,
        Rejection::RequestTooOld,
        Rejection::ValueForm,
        Rejection::Conflict { range: Some(3) },
        Rejection::SnapshotAhead,
        Rejection::NothingToPrune,
        Rejection::Conflict { range: None },
        Rejection::Replica,
    ];
    let imports = ImportRefusal::ALL.map(Rejection::Import);
    let errors = [
        ProposeError::NotLeader { leader: Some(2) },
        ProposeError::NoQuorum,
        ProposeError::Unavailable { leader: 3 },
        ProposeError::OutcomeUnknown,
        ProposeError::Overloaded { queued_bytes: 5, queued_bytes_max: 4 },
        ProposeError::TooLarge { len_bytes: 5, len_bytes_max: 4 },
        ProposeError::Stopped,
        ProposeError::LimitExceeded(WriteLimit::DiskLow { node: 2, free_bytes: 7, low_bytes: 300 }),
        ProposeError::LimitExceeded(WriteLimit::QuotaBytes { used_bytes: 9, needed_bytes: 8, quota_bytes: 10 }),
        ProposeError::LimitExceeded(WriteLimit::QuotaTransactions { per_second: 70_000 }),
    ];
    let rejected = rejections.into_iter().chain(imports).map(|rejection| Ok(Written::Rejected(rejection)));
    for (n, reply) in rejected.chain(errors.into_iter().map(Err)).chain([committed]).enumerate() {
        let bytes = encode_propose_reply(&reply);
        assert_eq!(decode_propose_reply(&bytes).unwrap(), reply);
        refuses_damage(&bytes, decode_propose_reply);
        // The number of a variant never changes.
        match n {
            0..15 => assert_eq!(hex(&bytes[..4]), format!("010001{n:02x}")),
            15 => assert_eq!(hex(&bytes), "0100010c00", "a conflict without range"),
            16 => assert_eq!(hex(&bytes), "0100010f", "a replica"),
            17..26 => assert_eq!(hex(&bytes), format!("01000110{:02x}", n - 17)),
            26..36 => assert_eq!(hex(&bytes[..3]), format!("0101{:02x}", n - 26)),
            _ => {}
        }
    }
    let disk = DiskReport { free_bytes: 300, low_bytes: 7, low: false };
    assert_eq!(hex(&encode_disk(&disk)), "01fb012c0700");
    assert_eq!(decode_disk(&encode_disk(&disk)).unwrap(), disk);
    refuses_damage(&encode_disk(&disk), decode_disk);
    for reply in [None, Some(disk)] {
        let bytes = encode_disk_reply(reply.as_ref());
        assert_eq!(decode_disk_reply(&bytes).unwrap(), reply);
        refuses_damage(&bytes, decode_disk_reply);
    }
    for reply in [
        Ok(ReadIndex { index: LogIndex(9), tx: TxId(4) }),
        Err(ReadError::NotLeader { leader: None }),
        Err(ReadError::NoQuorum),
        Err(ReadError::Lagging),
        Err(ReadError::Unavailable { leader: 1 }),
        Err(ReadError::BeyondLedger { asked: TxId(9), latest: TxId(4) }),
        Err(ReadError::Stopped),
    ] {
        let bytes = encode_read_index_reply(&reply);
        assert_eq!(decode_read_index_reply(&bytes).unwrap(), reply);
        refuses_damage(&bytes, decode_read_index_reply);
    }
    let index = encode_read_index_reply(&Ok(ReadIndex { index: LogIndex(9), tx: TxId(4) }));
    assert_eq!(hex(&index), "01000904");
}
