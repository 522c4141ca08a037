//! The one internal hop: a follower hands a proposal or a question for the read index to the leader.

use std::fmt::Debug;

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::{GroupId, LogIndex, TxId};
use alhambra_storage::SegmentVote;
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Prune, TxProposal};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::disk::DiskReport;
use crate::error::{ProposeError, ReadError};

/// Where a follower's reads may begin, as the leader says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    /// Log position that has to be applied first.
    pub index: LogIndex,
    /// Newest transaction that the leader had applied when a quorum had confirmed it and it had reached `index`.
    pub tx: TxId,
}

/// What became of a proposal, as the leader has applied it. The node that took the call answers with the header of the
/// leader and need not wait until it has applied the transaction itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The transaction exists.
    Committed(TxHeader),
    /// Nothing was written.
    Rejected(Rejection),
}

impl From<Written> for Outcome {
    fn from(written: Written) -> Self {
        match written {
            Written::Committed(header) => {
                let alh = header.alh().expect("a header that was applied or read from a message is valid");
                Self::Committed { tx: header.id, alh: alh.0 }
            }
            Written::Rejected(rejection) => Self::Rejected(rejection),
        }
    }
}

/// Why a forwarded call has no answer of the other side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError<E> {
    /// The call surely did not reach the other side.
    #[error("the call did not reach the other node")]
    NotSent,
    /// The call was sent; no answer came before the deadline or before the connection broke.
    #[error("the other node did not answer")]
    AnswerLost,
    /// The other side's answer.
    #[error(transparent)]
    Remote(E),
}

/// Bytes of a segment, without its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentPart {
    /// Number of the segment.
    pub segment: u64,
    /// Of which generation: one that has lost more values since is another file.
    pub generation: u32,
    /// First byte, counted from behind the header.
    pub offset: u64,
    /// How many; at most [`SEGMENT_PART_BYTES_MAX`]. Fewer come where the segment ends.
    pub len: u32,
}

/// Bytes of a segment that are asked for at once, at most.
pub const SEGMENT_PART_BYTES_MAX: u32 = 1 << 20;

/// Carries calls to the leader's [`crate::group::Group::serve_propose`] and [`crate::group::Group::serve_read_index`].
///
/// Contract: ends by the deadline; answers [`ForwardError::NotSent`] only when no byte of the call can have been acted on.
pub trait Forward: Send + Sync + Debug {
    /// Hands one proposal to the node `leader`.
    fn forward_propose(
        &self,
        group: GroupId,
        leader: u64,
        proposal: TxProposal,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Written, ForwardError<ProposeError>>>;

    /// Asks the node `leader` for a read index that is newer than this call.
    fn forward_read_index(
        &self,
        group: GroupId,
        leader: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<ReadIndex, ForwardError<ReadError>>>;

    /// Hands a truncation to the node `leader`.
    fn forward_truncation(
        &self,
        _group: GroupId,
        _leader: u64,
        _prune: Prune,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Written, ForwardError<ProposeError>>> {
        Box::pin(std::future::ready(Err(ForwardError::NotSent)))
    }

    /// Asks a node what it holds of a closed segment; none when it has none, or does not answer by the deadline.
    fn segment_vote(
        &self,
        _group: GroupId,
        _node: u64,
        _segment: u64,
        _deadline: Instant,
    ) -> BoxFuture<'_, Option<SegmentVote>> {
        Box::pin(std::future::ready(None))
    }

    /// Asks a node for bytes of a segment; none when it does not answer by the deadline. They are not believed before it is
    /// known that they are what has to stand there.
    fn segment_part(
        &self,
        _group: GroupId,
        _node: u64,
        _part: SegmentPart,
        _deadline: Instant,
    ) -> BoxFuture<'_, Option<Bytes>> {
        Box::pin(std::future::ready(None))
    }

    /// What a node, this one included, has said about its disk lately. Nothing where nodes do not tell each other.
    fn disk(&self, _node: u64) -> Option<DiskReport> {
        None
    }
}

/// Answers what the program above this crate says to itself on other nodes: sessions, revocations.
pub trait NodeCalls: Send + Sync + Debug {
    /// Answers one call of node `from`; none when it does not parse. Dropped at the deadline.
    fn call(&self, from: u64, body: Bytes, deadline: Instant) -> BoxFuture<'static, Option<Bytes>>;
}
