//! Bytes of what this crate keeps on disk for ever: membership frames and the vote. `docs/format.md` specifies them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::BasicNode;
use openraft::vote::RaftVote as _;

use crate::types::{RaftMembership, RaftVote};

const MEMBERSHIP_VERSION: u8 = 1;
const VOTE_VERSION: u8 = 1;

/// Why bytes are not a membership or a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("the bytes end too early")]
    Short,
    /// They go on after the end.
    #[error("the bytes go on after the end")]
    Long,
    /// A version that this program does not know.
    #[error("unknown version {0}")]
    Version(u8),
    /// Numbers out of order, a voter that is no member, or an address that is not text.
    #[error("the content is not valid")]
    Invalid,
}

/// Encodes the members of a group. Equal members have equal bytes.
///
/// # Panics
///
/// Never: addresses are names and ports, far below 64 KiB.
pub fn encode_membership(membership: &RaftMembership) -> Bytes {
    let mut out = vec![MEMBERSHIP_VERSION];
    let configs = membership.get_joint_config();
    out.push(u8::try_from(configs.len()).expect("a joint configuration has two parts"));
    for config in configs {
        put_count(&mut out, config.len());
        for id in config {
            out.extend_from_slice(&id.to_be_bytes());
        }
    }
    put_count(&mut out, membership.nodes().count());
    for (id, node) in membership.nodes() {
        out.extend_from_slice(&id.to_be_bytes());
        let len = u16::try_from(node.addr.len()).expect("an address is shorter than 64 KiB");
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(node.addr.as_bytes());
    }
    out.into()
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("a group has fewer than 2^32 members");
    out.extend_from_slice(&count.to_be_bytes());
}

/// Decodes the members of a group.
pub fn decode_membership(bytes: &[u8]) -> Result<RaftMembership, CodecError> {
    let mut input = Input(bytes);
    let version = input.u8()?;
    if version != MEMBERSHIP_VERSION {
        return Err(CodecError::Version(version));
    }
    let mut configs = Vec::new();
    for _ in 0..input.u8()? {
        let mut config = BTreeSet::new();
        for _ in 0..input.u32()? {
            let id = input.u64()?;
            if config.last().is_some_and(|last| *last >= id) {
                return Err(CodecError::Invalid);
            }
            config.insert(id);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..input.u32()? {
        let id = input.u64()?;
        if nodes.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(CodecError::Invalid);
        }
        let len = usize::from(input.u16()?);
        let addr = std::str::from_utf8(input.take(len)?).map_err(|_| CodecError::Invalid)?;
        nodes.insert(id, BasicNode::new(addr));
    }
    input.end()?;
    if configs.is_empty() && nodes.is_empty() {
        return Ok(RaftMembership::default());
    }
    RaftMembership::new(configs, nodes).map_err(|_| CodecError::Invalid)
}

/// Encodes a vote.
pub fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut out = Vec::with_capacity(18);
    out.push(VOTE_VERSION);
    out.extend_from_slice(&vote.leader_id().term.to_be_bytes());
    out.extend_from_slice(&vote.leader_id().voted_for.to_be_bytes());
    out.push(u8::from(vote.is_committed()));
    out.into()
}

/// Decodes a vote.
pub fn decode_vote(bytes: &[u8]) -> Result<RaftVote, CodecError> {
    let mut input = Input(bytes);
    let version = input.u8()?;
    if version != VOTE_VERSION {
        return Err(CodecError::Version(version));
    }
    let (term, node) = (input.u64()?, input.u64()?);
    let committed = match input.u8()? {
        0 => false,
        1 => true,
        _ => return Err(CodecError::Invalid),
    };
    input.end()?;
    let leader_id = openraft::impls::leader_id_std::LeaderId { term, voted_for: node };
    Ok(RaftVote::from_leader_id(leader_id, committed))
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(CodecError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_be_bytes)
    }

    fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Long) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> RaftMembership {
        let nodes: BTreeMap<u64, BasicNode> =
            [(1, BasicNode::new("a:1")), (2, BasicNode::new("b:22")), (9, BasicNode::new(""))].into();
        RaftMembership::new(vec![[1, 2].into(), [2].into()], nodes).unwrap()
    }

    /// The golden bytes of `docs/format.md`.
    #[test]
    fn membership_bytes_are_fixed() {
        let hex: String = encode_membership(&members()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "01",
                "02", // version, two configurations (joint)
                "00000002",
                "0000000000000001",
                "0000000000000002", //
                "00000001",
                "0000000000000002", //
                "00000003",         // nodes
                "0000000000000001",
                "0003",
                "613a31", //
                "0000000000000002",
                "0004",
                "623a3232", //
                "0000000000000009",
                "0000",
            )
        );
    }

    #[test]
    fn membership_round_trips_and_refuses_every_cut() {
        let bytes = encode_membership(&members());
        assert_eq!(decode_membership(&bytes).unwrap(), members());
        for len in 0..bytes.len() {
            assert_eq!(decode_membership(&bytes[..len]), Err(CodecError::Short), "cut at {len}");
        }
        assert_eq!(decode_membership(&[&bytes[..], &[0]].concat()), Err(CodecError::Long));
        assert_eq!(decode_membership(&[2]), Err(CodecError::Version(2)));
        let empty = RaftMembership::default();
        assert_eq!(decode_membership(&encode_membership(&empty)).unwrap(), empty);
    }

    #[test]
    fn a_voter_that_is_no_member_is_refused() {
        let mut bytes = encode_membership(&members()).to_vec();
        let second_config = 2 + 4 + 16 + 4;
        bytes[second_config + 7] = 5;
        assert_eq!(decode_membership(&bytes), Err(CodecError::Invalid));
    }

    #[test]
    fn vote_round_trips_and_its_bytes_are_fixed() {
        let leader_id = openraft::impls::leader_id_std::LeaderId { term: 3, voted_for: 2 };
        let vote = RaftVote::from_leader_id(leader_id, true);
        let bytes = encode_vote(&vote);
        assert_eq!(bytes.as_ref(), [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        assert_eq!(decode_vote(&bytes).unwrap(), vote);
        for len in 0..bytes.len() {
            assert_eq!(decode_vote(&bytes[..len]), Err(CodecError::Short));
        }
        assert_eq!(decode_vote(&[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 2]), Err(CodecError::Invalid));
    }
}
