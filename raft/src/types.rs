//! Type configuration of openraft: what a log entry carries, how nodes are named, which runtime runs the groups.
//!
//! Log entries carry encoded commands that this crate never looks into.

use std::fmt;

use alhambra_ledger::ids::LogId;
use alhambra_storage::apply::Outcome;
use bytes::Bytes;
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftTypeConfig};
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;

/// An encoded `alhambra_storage::command::Command`, carried as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandBytes(pub Bytes);

impl fmt::Debug for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What apply answers for one log entry: one outcome per proposal, in order; empty for other commands.
pub type Outcomes = Vec<Outcome>;

/// Standard Raft ids (one leader per term); randomness from the task, so that a seed decides everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = CommandBytes;
    type R = Outcomes;
    type NodeId = u64;
    type Node = openraft::BasicNode;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = DeterministicRng<TokioRuntime>;
    type Responder<T>
        = Completion<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// Takes the result of a write where apply produces it, without a task or a channel in between.
pub struct Completion<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Completion<T> {
    /// Calls `then` with the result. Dropped uncalled when the core stops first.
    pub fn new(then: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(then))
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for Completion<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// A log id as openraft writes it.
pub type RaftLogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A log entry as openraft writes it.
pub type RaftEntry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A vote as openraft writes it.
pub type RaftVote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// Members as openraft writes them.
pub type RaftMembership = openraft::Membership<u64, openraft::BasicNode>;
/// Members and the log entry that made them so.
pub type RaftStoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;

/// Our log id for openraft.
pub fn to_raft_log_id(id: LogId) -> RaftLogId {
    let leader = openraft::impls::leader_id_std::LeaderId::new(id.term.get(), 0).to_committed();
    RaftLogId { leader_id: leader, index: id.index.get() }
}

/// openraft's log id for us.
pub fn from_raft_log_id(id: &RaftLogId) -> LogId {
    LogId::new(*id.leader_id, id.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_ids_convert_both_ways() {
        for id in [LogId::new(0, 0), LogId::new(7, 9), LogId::new(u64::MAX, u64::MAX)] {
            assert_eq!(from_raft_log_id(&to_raft_log_id(id)), id);
        }
    }
}
