//! Errors of the use cases, and how each becomes a gRPC status: one `From` per crate below. Texts and codes stand in
//! `proto::code`; nothing is decided here but which of them it is.

mod user;

use alhambra_ledger::error::FormatError;
use alhambra_ledger::ids::TxId;
use alhambra_proto::code::{self, Code, WireError, text};
use alhambra_raft::error::{ProposeError, ReadError};
use alhambra_raft::meta::MetaError;
use tonic::Status;

pub use self::user::UserRefusal;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compatible server has this error: exactly its code, text and details.
    #[error("{}", .0.text())]
    Wire(WireError),
    /// As [`Self::Wire`], with another cause in the details.
    #[error("{}: {cause}", .error.text())]
    WireCause {
        /// The error.
        error: WireError,
        /// The inner message.
        cause: &'static str,
    },
    /// UseDatabase names a database that does not exist.
    #[error("database {name} does not exist")]
    DatabaseNotFound {
        /// The name.
        name: String,
    },
    /// ExecAll writes a key twice.
    #[error("the key {} is written twice", String::from_utf8_lossy(.key))]
    DuplicatedKey {
        /// The key.
        key: bytes::Bytes,
    },
    /// Administration of a database by somebody who may not, whether it exists or not.
    #[error("the database {name} does not exist, or the caller does not administrate it")]
    NotYourDatabase {
        /// The name.
        name: String,
    },
    /// A user is not created or changed.
    #[error(transparent)]
    User(#[from] UserRefusal),
    /// A list limit beyond the maximum.
    #[error("the limit {limit} is larger than {limit_max}")]
    LimitTooLarge {
        /// What was asked for.
        limit: u64,
        /// Largest limit.
        limit_max: u64,
    },
    /// VerifiableTxById from a state that this ledger does not have.
    #[error("the client's state {asked} is beyond the last transaction {latest}")]
    IllegalState {
        /// Transaction of the client's state.
        asked: TxId,
        /// Newest transaction, confirmed by a quorum.
        latest: TxId,
    },
    /// A period for which no database keeps its values.
    #[error("values of database {name} are kept for at least a day")]
    RetentionPeriod {
        /// The database.
        name: String,
    },
    /// Settings of a database that are not possible.
    #[error("the settings are not possible: {reason}")]
    InvalidSettings {
        /// In the words of the compatible server.
        reason: String,
    },
    /// A transaction that does not exist, confirmed by a quorum. Calls that have another text for it replace this.
    #[error("transaction {asked} does not exist: the newest is {latest}")]
    BeyondLedger {
        /// What was asked for.
        asked: TxId,
        /// Newest transaction of the confirmed leader.
        latest: TxId,
    },
    /// The call is not built yet.
    #[error("{name} is not built yet")]
    Unimplemented {
        /// The call.
        name: &'static str,
    },
    /// The value of our own request header is not one of the possible ones.
    #[error("the header {header} must be {expects}")]
    Header {
        /// The header.
        header: &'static str,
        /// Possible values.
        expects: &'static str,
    },
    /// Not the UUID of any server.
    #[error("a server's UUID has 20 characters, 0-9 and a-v; this is none: {uuid:?}")]
    InvalidUuid {
        /// What was sent.
        uuid: String,
    },
    /// The node is not part of a formed cluster yet, or this database is still being opened here.
    #[error("the node is starting: {what} is not open yet; surely not applied")]
    Starting {
        /// What is waited for.
        what: &'static str,
    },
    /// Upkeep that takes longer than the call's deadline.
    #[error("{what} takes longer than the deadline of the call, and goes on")]
    GoesOn {
        /// What takes long.
        what: &'static str,
    },
    /// Something long of which each call does a part.
    #[error(
        "{what} takes longer than the deadline of the call; what was done stays, and the next call goes on from there"
    )]
    Unfinished {
        /// What takes long.
        what: &'static str,
    },
    /// Nothing is tried for a while after too many wrong passwords.
    #[error("too many wrong passwords: no login is tried for the next {} s, also with the right one", .wait.as_secs() + 1)]
    TooManyFailures {
        /// How long.
        wait: std::time::Duration,
    },
    /// The node has enough passwords to hash.
    #[error("too many logins at once; surely not applied, try again")]
    TooManyLogins,
    /// Authentication is off, but there is something that it protects.
    #[error(
        "authentication is off on this node, which allows only {} and no other user, but the cluster has others: start the node with \
         authentication",
        alhambra_raft::meta::DEFAULT_DATABASE
    )]
    AuthNeeded,
    /// The node is stopping.
    #[error("the node is stopping; surely not applied, try another node")]
    Stopping,
    /// The other end of a stream was silent for too long.
    #[error("{what}")]
    StreamIdle {
        /// What did not happen.
        what: &'static str,
    },
    /// The write is committed, but this node cannot show it: it has not applied it by the deadline, stops, or cannot read it.
    #[error("the write is committed as transaction {tx}, but this node cannot show it")]
    CommittedNotShown {
        /// The transaction.
        tx: TxId,
    },
    /// A write has no outcome.
    #[error("{error}{}", if error.may_be_applied() { "" } else { "; surely not applied" })]
    Propose {
        /// Why.
        error: ProposeError,
    },
    /// A read may not begin.
    #[error(transparent)]
    Read(ReadError),
    /// Administration failed.
    #[error("{0}")]
    Meta(MetaError),
    /// Stored bytes are not what was written.
    #[error("stored data of this replica is corrupted and is not served; its log names the file")]
    Corrupted(#[source] alhambra_storage::Error),
    /// The value was pruned by retention, a history limit or an erasure.
    #[error("the value of entry {entry} of transaction {tx} was pruned; its hash and proofs are still there")]
    ValuePruned {
        /// The transaction.
        tx: TxId,
        /// 0-based entry of it.
        entry: u32,
    },
    /// The disk of this node failed.
    #[error("the storage of this node failed and is opened again when it answers; its log says how; try another node")]
    Storage(#[source] alhambra_storage::Error),
    /// Stored bytes of a transaction do not have the form of their kind.
    #[error("a stored entry does not have the form of its kind")]
    Format(FormatError),
    /// A defect of ours.
    #[error("internal: {0}")]
    Internal(&'static str),
}

/// Result of a use case.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Replaces [`Self::BeyondLedger`] by what the call has for it.
    #[must_use]
    pub fn beyond(self, error: impl FnOnce(TxId, TxId) -> Self) -> Self {
        match self {
            Self::BeyondLedger { asked, latest } => error(asked, latest),
            other => other,
        }
    }

    /// Whether what was asked for may have been done all the same.
    pub fn may_be_applied(&self) -> bool {
        match self {
            Self::Propose { error } => error.may_be_applied(),
            Self::CommittedNotShown { .. } | Self::GoesOn { .. } | Self::Unfinished { .. } => true,
            Self::Meta(error) => code_of_meta(error) == Code::OutcomeUnknown,
            _ => false,
        }
    }

    /// What is answered when this stands in the way after the write was committed. Nothing may then say that it was not applied:
    /// whoever reads that writes again (R4).
    #[must_use]
    pub fn after_commit(self, tx: TxId) -> Self {
        if !matches!(self, Self::CommittedNotShown { .. }) {
            tracing::warn!(tx = tx.get(), error = %self, "a committed write cannot be shown");
        }
        Self::CommittedNotShown { tx }
    }

    /// Whether the node cannot tell for now.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Starting { .. } | Self::Stopping)
    }

    /// Replaces [`Self::BeyondLedger`] by an error of the compatible server.
    #[must_use]
    pub fn beyond_is(self, error: WireError) -> Self {
        self.beyond(|_, _| error.into())
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Self {
        Self::Propose { error }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::BeyondLedger { asked, latest } => Self::BeyondLedger { asked, latest },
            other => Self::Read(other),
        }
    }
}

impl From<MetaError> for Error {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::Starting => Self::Starting { what: "systemdb" },
            MetaError::Propose(error) => error.into(),
            MetaError::Read(error) => error.into(),
            other => Self::Meta(other),
        }
    }
}

impl From<alhambra_storage::Error> for Error {
    fn from(error: alhambra_storage::Error) -> Self {
        use alhambra_storage::Error as Storage;
        match error {
            Storage::NoSuchTx { tx, last } => Self::BeyondLedger { asked: tx, latest: last },
            Storage::Corrupted { .. } | Storage::SegmentMissing { .. } => Self::Corrupted(error),
            Storage::IndexRebuilding { .. } => Self::Starting { what: "the index of the database" },
            Storage::ValuePruned { tx, entry } => Self::ValuePruned { tx, entry },
            other => Self::Storage(other),
        }
    }
}

const fn code_of_propose(error: &ProposeError) -> Code {
    match error {
        ProposeError::NotLeader { .. } => Code::NotLeader,
        ProposeError::NoQuorum | ProposeError::Unavailable { .. } => Code::NoQuorum,
        ProposeError::OutcomeUnknown => Code::OutcomeUnknown,
        ProposeError::Overloaded { .. } => Code::Overloaded,
        ProposeError::TooLarge { .. } | ProposeError::LimitExceeded(_) => Code::LimitExceeded,
        ProposeError::Stopped => Code::Starting,
    }
}

const fn code_of_read(error: &ReadError) -> Code {
    match error {
        ReadError::NotLeader { .. } => Code::NotLeader,
        ReadError::NoQuorum | ReadError::Lagging | ReadError::Unavailable { .. } => Code::NoQuorum,
        // Replaced on the way; what is left is a transaction that does not exist.
        ReadError::BeyondLedger { .. } => Code::InvalidArgument,
        ReadError::Stopped => Code::Starting,
    }
}

const fn code_of_meta(error: &MetaError) -> Code {
    match error {
        MetaError::Exists { .. } => Code::DatabaseExists,
        MetaError::NotFound { .. } => Code::DatabaseNotFound,
        MetaError::Conflict { .. } => Code::Conflict,
        MetaError::Propose(error) => code_of_propose(error),
        MetaError::Read(error) => code_of_read(error),
        // Recorded, hence not "surely not applied".
        MetaError::NotShown { .. } | MetaError::NotServing { .. } | MetaError::StillOpen { .. } => Code::OutcomeUnknown,
        MetaError::Rejected { .. } => Code::InvalidArgument,
        MetaError::Starting | MetaError::Unreadable { .. } => Code::Starting,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Wire(error) => return error.status(),
            Error::WireCause { error, cause } => return error.status_with_cause(*cause),
            Error::DatabaseNotFound { name } => return text::database_not_found(name),
            Error::DuplicatedKey { key } => return text::duplicated_key(key),
            Error::NotYourDatabase { name } => return text::not_your_database(name),
            Error::User(refusal) => return refusal.status(),
            Error::LimitTooLarge { limit, limit_max } => return text::limit_too_large(*limit, *limit_max),
            Error::IllegalState { asked, latest } => return text::illegal_state(latest.get(), asked.get()),
            Error::RetentionPeriod { name } => return text::retention_period(name),
            Error::InvalidSettings { reason } => return text::invalid_settings(reason),
            Error::BeyondLedger { .. } => return text::TX_NOT_FOUND.status(),
            Error::Unimplemented { .. } => Code::Unsupported,
            Error::Header { .. } | Error::InvalidUuid { .. } => Code::InvalidArgument,
            Error::Starting { .. } | Error::Stopping => Code::Starting,
            Error::TooManyFailures { .. } => Code::LimitExceeded,
            Error::TooManyLogins => Code::Overloaded,
            Error::AuthNeeded => Code::Denied,
            Error::StreamIdle { .. } => Code::Canceled,
            Error::CommittedNotShown { .. } | Error::GoesOn { .. } | Error::Unfinished { .. } => Code::OutcomeUnknown,
            Error::Propose { error } => code_of_propose(error),
            Error::Read(error) => code_of_read(error),
            Error::Meta(error) => code_of_meta(error),
            Error::ValuePruned { .. } => Code::KeyNotFound,
            Error::Corrupted(_) | Error::Format(_) => Code::Corrupted,
            Error::Storage(_) | Error::Internal(_) => Code::Internal,
        };
        if matches!(code, Code::Corrupted | Code::Internal) {
            tracing::error!(?error, "a call failed");
        }
        code::Code::status(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use alhambra_proto::code::Applied;
    use alhambra_raft::error::WriteLimit;

    use super::*;

    #[test]
    fn what_may_be_applied_says_so_in_its_code() {
        let (name, tx) = ("name".to_owned(), TxId(7));
        let errors = [
            Error::Stopping,
            Error::Starting { what: "the database" },
            Error::Read(ReadError::Lagging),
            Error::Read(ReadError::Stopped),
            Error::Stopping.after_commit(tx),
            Error::Read(ReadError::NoQuorum).after_commit(tx),
            Error::GoesOn { what: "x" },
            Error::Unfinished { what: "x" },
            MetaError::Starting.into(),
            MetaError::Read(ReadError::NoQuorum).into(),
            MetaError::Propose(ProposeError::OutcomeUnknown).into(),
            MetaError::Propose(ProposeError::NoQuorum).into(),
            MetaError::Unreadable { name: name.clone() }.into(),
            MetaError::Conflict { name: name.clone() }.into(),
            MetaError::NotShown { tx }.into(),
            MetaError::NotServing { name: name.clone() }.into(),
            MetaError::StillOpen { name, node: 2 }.into(),
        ];
        for error in errors {
            let (told, may_be_applied) = (error.to_string(), error.may_be_applied());
            let applied = Code::of(&Status::from(error)).unwrap().applied();
            assert_eq!(applied == Applied::Unknown, may_be_applied, "{told}");
        }
    }

    #[test]
    fn only_an_unknown_outcome_says_that_it_may_have_been_applied() {
        let errors = [
            ProposeError::NotLeader { leader: None },
            ProposeError::NoQuorum,
            ProposeError::Unavailable { leader: 2 },
            ProposeError::OutcomeUnknown,
            ProposeError::Overloaded { queued_bytes: 2, queued_bytes_max: 1 },
            ProposeError::TooLarge { len_bytes: 2, len_bytes_max: 1 },
            ProposeError::LimitExceeded(WriteLimit::DiskLow { node: 2, free_bytes: 1, low_bytes: 9 }),
            ProposeError::LimitExceeded(WriteLimit::QuotaBytes { used_bytes: 5, needed_bytes: 6, quota_bytes: 10 }),
            ProposeError::LimitExceeded(WriteLimit::QuotaTransactions { per_second: 3 }),
            ProposeError::Stopped,
        ];
        for error in errors {
            let unknown = error == ProposeError::OutcomeUnknown;
            let status = Status::from(Error::from(error));
            let applied = Code::of(&status).unwrap().applied();
            assert_eq!(applied == Applied::Unknown, unknown, "{status:?}");
            assert_eq!(status.message().ends_with("surely not applied"), !unknown, "{status:?}");
            assert_eq!(status.code() == tonic::Code::DeadlineExceeded, unknown, "{status:?}");
        }
    }

    #[test]
    fn a_refusal_for_want_of_room_says_what_to_do() {
        let limit = WriteLimit::DiskLow { node: 2, free_bytes: 12 << 20, low_bytes: 64 << 20 };
        let status = Status::from(Error::from(ProposeError::LimitExceeded(limit)));
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "the disk of node 2 has 12 MiB left, below the low-water mark of 64 MiB: free space or prune; writes resume by \
             themselves; surely not applied"
        );
    }

    #[test]
    fn texts_of_the_compatible_server_pass_unchanged() {
        let status = Status::from(Error::from(text::ILLEGAL_STATE));
        assert_eq!((status.code(), status.message()), (tonic::Code::InvalidArgument, "illegal state"));
        assert!(status.details().is_empty());
        let beyond = Error::from(ReadError::BeyondLedger { asked: TxId(9), latest: TxId(3) });
        assert_eq!(Status::from(beyond.beyond_is(text::ILLEGAL_STATE)).message(), "illegal state");
        let beyond = Error::from(ReadError::BeyondLedger { asked: TxId(9), latest: TxId(3) });
        assert_eq!(Status::from(beyond).message(), "tx not found");
    }
}
