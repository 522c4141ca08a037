//! Bugs that can be planted into the server, to show that those who judge it would find them (`docs/adr/0035-planted-bugs.md`).
//!
//! Each stands at the place in the code where somebody could make it. In a build without debug assertions there are none:
//! [`is_planted`] is the constant `false`, and nothing can plant one. In others a bug is planted by a call, in the thread that
//! calls; no setting, no variable of the environment and no request leads to it.

#[cfg(debug_assertions)]
use std::cell::Cell;

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// `raft`, barrier: a linearizable read begins at once, from whatever is applied.
    SkipReadBarrier,
    /// `raft`, read index: a leader names what it has applied, and asks no quorum whether it still leads.
    UnconfirmedReadIndex,
    /// `raft`, barrier: a node that knows how far it has to be for a read answers with whatever it has applied.
    ServeBeforeCaughtUp,
    /// `node`, views: a read with a floor begins below it.
    IgnoreReadFloor,
    /// `raft`, timing: a node that returns asks for votes in a new term without asking first whether it would get them.
    DropPreVote,
    /// `raft`, log store: appends are answered before they are synced.
    AcknowledgeBeforeSync,
    /// `raft`, log store: a vote is answered and not saved.
    ForgetVote,
    /// `storage`, apply: what comes first after a restart from a checkpoint is applied twice.
    ApplyTwiceAfterRestart,
    /// `storage`, apply: a request that comes again is carried out again.
    ForgetRequests,
    /// `storage`, install: the outcomes of requests do not come with the files of another node.
    ForgetRequestsOnInstall,
    /// `storage`, apply: nor do they come back where memory was short and they were left to the checkpoint.
    ForgetParkedRequests,
    /// `storage`, apply: a limit depends on something that is this replica's own, as it would if apply read a setting from
    /// `systemdb`, of which another replica may have applied more.
    LocalSettingInApply,
    /// `storage`, apply: preconditions hold, whatever they say.
    IgnorePreconditions,
    /// `storage`, apply: what a transaction has read is not looked at.
    IgnoreReadSets,
    /// `storage`, log: a cut leaves frames in memory, which are read in the place of those that come after it.
    StaleFrameAfterCut,
    /// `storage`, scrub: a segment that is not what was sealed is seen, and left as it is.
    IgnoreSealMismatch,
    /// `raft`, scrub: in a dispute about a segment the first member is believed, and good bytes are overwritten by its.
    OverwriteOnDispute,
    /// `node`, views: a read is of the state before the one that it waited for.
    StaleSnapshotRead,
    /// `storage`, reads: the index that answers a get has not caught up.
    IndexLags,
    /// `storage`, reads: the oldest version of a key is not told, though nobody has pruned it.
    HistoryForgets,
    /// `storage`, prunes: a truncation takes the value of the transaction that it is to keep, too.
    ForgetTooMuch,
    /// `storage`, reads: a value that a prune names is told for as long as its bytes are on the disk.
    ShowForgotten,
    /// `storage`, proofs: one hash of a dual proof is another.
    WrongProofStep,
    /// `node`, sorted sets: a member that is bound to a version is shown with the newest one.
    FollowBoundMembers,
    /// `node`, verified get: the proof is of the version before.
    ProofOfAnotherRevision,
    /// `node`, verified get: of what this replica has, without asking a quorum.
    LocalVerifiedReads,
    /// `node`, verified writes: now and then it is denied that a committed one was applied.
    DenyAfterCommit,
}

impl Plant {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::SkipReadBarrier,
        Self::UnconfirmedReadIndex,
        Self::ServeBeforeCaughtUp,
        Self::IgnoreReadFloor,
        Self::DropPreVote,
        Self::AcknowledgeBeforeSync,
        Self::ForgetVote,
        Self::ApplyTwiceAfterRestart,
        Self::ForgetRequests,
        Self::ForgetRequestsOnInstall,
        Self::ForgetParkedRequests,
        Self::LocalSettingInApply,
        Self::IgnorePreconditions,
        Self::IgnoreReadSets,
        Self::StaleFrameAfterCut,
        Self::IgnoreSealMismatch,
        Self::OverwriteOnDispute,
        Self::StaleSnapshotRead,
        Self::IndexLags,
        Self::HistoryForgets,
        Self::ForgetTooMuch,
        Self::ShowForgotten,
        Self::WrongProofStep,
        Self::FollowBoundMembers,
        Self::ProofOfAnotherRevision,
        Self::LocalVerifiedReads,
        Self::DenyAfterCommit,
    ];
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
}

/// Plants a bug into everything that this thread runs from now on, or takes it out again.
#[cfg(debug_assertions)]
pub fn plant(bug: Option<Plant>) {
    PLANTED.set(bug);
}

/// Whether the bug is planted here.
#[cfg(debug_assertions)]
pub fn is_planted(bug: Plant) -> bool {
    PLANTED.get() == Some(bug)
}

/// Never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn is_planted(_: Plant) -> bool {
    false
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_planted_in_one_thread_until_it_is_taken_out() {
        assert!(Plant::ALL.iter().all(|bug| !is_planted(*bug)));
        plant(Some(Plant::ForgetVote));
        assert!(is_planted(Plant::ForgetVote) && !is_planted(Plant::IndexLags));
        std::thread::scope(|scope| scope.spawn(|| assert!(!is_planted(Plant::ForgetVote))).join().expect("no panic"));
        plant(None);
        assert!(!is_planted(Plant::ForgetVote));
    }
}
