//! Type configuration of openraft: what a log entry carries, how nodes are named, which runtime runs the groups.
//!
//! Log entries carry encoded commands that this crate never looks into.

use std::fmt;

use alhambra_storage::apply::Outcome;
use bytes::Bytes;
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

openraft::declare_raft_types!(
    /// Standard Raft ids (one leader per term); randomness from the task, so that a seed decides everything.
    pub TypeConfig:
        D = CommandBytes,
        R = Outcomes,
        NodeId = u64,
        Node = openraft::BasicNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = DeterministicRng<TokioRuntime>,
);
