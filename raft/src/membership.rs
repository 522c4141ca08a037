//! Who belongs to the group: first members, learners, voters.

use std::collections::{BTreeMap, BTreeSet};

use openraft::BasicNode;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use tokio::time::{Instant, timeout_at};

use crate::error::MembershipError;
use crate::group::Replica;
use crate::types::TypeConfig;

impl Replica {
    /// See [`crate::group::Group::initialize`].
    pub(crate) async fn initialize(&self, members: BTreeMap<u64, BasicNode>) -> Result<(), MembershipError> {
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Err(MembershipError::AlreadyInitialised),
            Err(RaftError::APIError(error @ InitializeError::NotInMembers(_))) => {
                Err(MembershipError::Refused(Box::new(error)))
            }
            Err(RaftError::Fatal(_)) => Err(MembershipError::Stopped),
        }
    }

    /// See [`crate::group::Group::add_learner`].
    pub(crate) async fn add_learner(&self, id: u64, node: BasicNode, deadline: Instant) -> Result<(), MembershipError> {
        if !self.is_leader() {
            return Err(MembershipError::NotLeader { leader: self.leader() });
        }
        // A new member has nothing: closed segments go to it as files.
        let seeded = timeout_at(deadline, self.move_purge_mark()).await;
        if seeded.is_err() {
            return Err(MembershipError::OutcomeUnknown);
        }
        let added = match timeout_at(deadline, self.raft.add_learner(id, node, false)).await {
            Ok(Ok(added)) => added.log_id,
            Ok(Err(error)) => return Err(refused(error)),
            Err(_) => return Err(MembershipError::OutcomeUnknown),
        };
        // openraft's own waiting is content with a lag of some thousand entries.
        let mut metrics = self.raft.metrics();
        let caught_up = async {
            loop {
                let matched = metrics.borrow_and_update().replication.as_ref().map(|all| all.get(&id).cloned());
                match matched {
                    None => return Err(MembershipError::OutcomeUnknown),
                    Some(Some(Some(matched))) if matched >= added => return Ok(()),
                    Some(_) => {}
                }
                if metrics.changed().await.is_err() {
                    return Err(MembershipError::Stopped);
                }
            }
        };
        timeout_at(deadline, caught_up).await.unwrap_or(Err(MembershipError::OutcomeUnknown))
    }

    /// See [`crate::group::Group::change_voters`].
    pub(crate) async fn change_voters(&self, voters: BTreeSet<u64>, deadline: Instant) -> Result<(), MembershipError> {
        match timeout_at(deadline, self.raft.change_membership(voters, true)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(MembershipError::OutcomeUnknown),
        }
    }
}

fn refused(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MembershipError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MembershipError::NotLeader { leader: to.leader_id }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => MembershipError::OutcomeUnknown,
        RaftError::APIError(
            error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
        ) => MembershipError::Refused(Box::new(error)),
        RaftError::Fatal(_) => MembershipError::Stopped,
    }
}
