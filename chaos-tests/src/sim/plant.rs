//! Bugs that are planted to show that the judge would find them. Those of this file stand at the seams, where they look like what
//! a bug in the server would look like from outside: a disk that forgets what the server should have synced, a call that goes out
//! as a server without the check would treat it. The others stand in the server itself, see [`inside::Plant`].

use alhambra_storage::plant as inside;

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// Syncs of segments answer `Ok` and do nothing, so writes are acknowledged that a power loss takes away.
    AcknowledgeBeforeFsync,
    /// Syncs of votes answer `Ok` and do nothing, so a node forgets whom it has voted for.
    ForgetVote,
    /// Reads that should be linearizable are answered from what the node has applied.
    SkipBarrier,
    /// A write is applied twice, as it would be if request ids were forgotten.
    ApplyTwice,
    /// What should be one transaction becomes several.
    TornBatch,
    /// Conditions of writes are not looked at.
    IgnoreConditions,
    /// Read sets of transactions are not looked at.
    IgnoreReadSets,
    /// Reads of several keys come from several states.
    ManyStates,
    /// A floor of a read is not waited for.
    IgnoreFloor,
    /// The verifier accepts a consistency proof without looking at it.
    AcceptAnyConsistency,
    /// In the ledger library, which clients and nodes verify with: the same.
    LibraryAcceptsAnyConsistency,
    /// A rotted segment is not mended: no file is ever read again.
    NoScrub,
    /// The trusted state of a client goes back when it changes nodes.
    ForgetTrust,
    /// Calls on a node that has lost its leader are left waiting.
    NoDeadline,
    /// The index of a node lacks the newest version of keys; the ledger below it is whole.
    IndexLags,
    /// In the server.
    Inside(inside::Plant),
}

/// Plants a bug of the server into this thread, which runs the whole life; `false` when this build has none.
#[cfg(debug_assertions)]
pub fn plant_inside(plant: Option<Plant>) -> bool {
    alhambra_ledger::plant::accept_any_consistency(plant == Some(Plant::LibraryAcceptsAnyConsistency));
    inside::plant(match plant {
        Some(Plant::Inside(bug)) => Some(bug),
        _ => None,
    });
    true
}

/// A release build has no bugs.
#[cfg(not(debug_assertions))]
pub fn plant_inside(plant: Option<Plant>) -> bool {
    !matches!(plant, Some(Plant::Inside(_) | Plant::LibraryAcceptsAnyConsistency))
}

impl Plant {
    /// Those at the seams.
    const AT_THE_SEAMS: &[Self] = &[
        Self::AcknowledgeBeforeFsync,
        Self::ForgetVote,
        Self::SkipBarrier,
        Self::ApplyTwice,
        Self::TornBatch,
        Self::IgnoreConditions,
        Self::IgnoreReadSets,
        Self::ManyStates,
        Self::IgnoreFloor,
        Self::AcceptAnyConsistency,
        #[cfg(debug_assertions)]
        Self::LibraryAcceptsAnyConsistency,
        Self::NoScrub,
        Self::ForgetTrust,
        Self::NoDeadline,
        Self::IndexLags,
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let inside = inside::Plant::ALL.iter().map(|bug| Self::Inside(*bug));
        Self::AT_THE_SEAMS.iter().copied().chain(inside)
    }

    /// Its name, for the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcknowledgeBeforeFsync => "ack-before-fsync",
            Self::ForgetVote => "forget-vote",
            Self::SkipBarrier => "skip-barrier",
            Self::ApplyTwice => "apply-twice",
            Self::TornBatch => "torn-batch",
            Self::IgnoreConditions => "ignore-conditions",
            Self::IgnoreReadSets => "ignore-read-sets",
            Self::ManyStates => "many-states",
            Self::IgnoreFloor => "ignore-floor",
            Self::AcceptAnyConsistency => "accept-any-consistency",
            Self::LibraryAcceptsAnyConsistency => "library-accept-any-consistency",
            Self::NoScrub => "no-scrub",
            Self::ForgetTrust => "forget-trust",
            Self::NoDeadline => "no-deadline",
            Self::IndexLags => "index-lags",
            Self::Inside(bug) => match bug {
                inside::Plant::SkipReadBarrier => "server-skip-read-barrier",
                inside::Plant::UnconfirmedReadIndex => "server-unconfirmed-read-index",
                inside::Plant::ServeBeforeCaughtUp => "server-serve-before-caught-up",
                inside::Plant::IgnoreReadFloor => "server-ignore-read-floor",
                inside::Plant::DropPreVote => "server-drop-pre-vote",
                inside::Plant::AcknowledgeBeforeSync => "server-ack-before-sync",
                inside::Plant::ForgetVote => "server-forget-vote",
                inside::Plant::ApplyTwiceAfterRestart => "server-apply-twice-after-restart",
                inside::Plant::ForgetRequests => "server-forget-requests",
                inside::Plant::ForgetRequestsOnInstall => "server-forget-requests-on-install",
                inside::Plant::ForgetParkedRequests => "server-forget-parked-requests",
                inside::Plant::LocalSettingInApply => "server-local-setting-in-apply",
                inside::Plant::IgnorePreconditions => "server-ignore-preconditions",
                inside::Plant::IgnoreReadSets => "server-ignore-read-sets",
                inside::Plant::StaleFrameAfterCut => "server-stale-frame-after-cut",
                inside::Plant::IgnoreSealMismatch => "server-ignore-seal-mismatch",
                inside::Plant::OverwriteOnDispute => "server-overwrite-on-dispute",
                inside::Plant::StaleSnapshotRead => "server-stale-snapshot-read",
                inside::Plant::IndexLags => "server-index-lags",
                inside::Plant::HistoryForgets => "server-history-forgets",
                inside::Plant::ForgetTooMuch => "server-forget-too-much",
                inside::Plant::ShowForgotten => "server-show-forgotten",
                inside::Plant::WrongProofStep => "server-wrong-proof-step",
                inside::Plant::FollowBoundMembers => "server-follow-bound-members",
                inside::Plant::ProofOfAnotherRevision => "server-proof-of-another-revision",
                inside::Plant::LocalVerifiedReads => "server-local-verified-reads",
                inside::Plant::DenyAfterCommit => "server-deny-after-commit",
            },
        }
    }

    /// The faults that bring it to light, so that nobody waits for luck; none for those that need none.
    pub const fn faults(self) -> &'static [&'static str] {
        match self {
            // Only this shows the bug as what it is; with other faults consensus itself stumbles over it first.
            Self::AcknowledgeBeforeFsync | Self::Inside(inside::Plant::AcknowledgeBeforeSync) => &["power-loss"],
            Self::Inside(inside::Plant::IgnoreSealMismatch) => &["rot"],
            Self::Inside(inside::Plant::OverwriteOnDispute) => &["rot-unnoticed", "restart"],
            Self::Inside(inside::Plant::ApplyTwiceAfterRestart | inside::Plant::LocalSettingInApply) => {
                &["restart", "crash", "power-loss"]
            }
            Self::Inside(inside::Plant::ServeBeforeCaughtUp) => &["restart", "latency", "long-absence"],
            Self::Inside(inside::Plant::ForgetRequestsOnInstall) => &["long-absence"],
            Self::Inside(inside::Plant::ForgetParkedRequests) => &["memory-pressure"],
            Self::Inside(inside::Plant::DropPreVote) => &["partition"],
            Self::Inside(inside::Plant::StaleFrameAfterCut) => &["halves", "partition"],
            Self::Inside(
                inside::Plant::SkipReadBarrier | inside::Plant::UnconfirmedReadIndex | inside::Plant::IgnoreReadFloor,
            ) => &["partition", "one-way", "hold", "latency"],
            Self::Inside(inside::Plant::ForgetVote) | Self::ForgetVote => {
                &["power-loss", "restart", "crash-leader", "partition"]
            }
            Self::NoScrub => &["rot"],
            Self::SkipBarrier | Self::IgnoreFloor | Self::NoDeadline => &["partition", "one-way", "hold", "latency"],
            _ => &["partition", "crash-leader"],
        }
    }
}
