//! The one table of errors: what went wrong, as gRPC code and as SQLSTATE, and what the caller may do about it.
//!
//! Two kinds of errors leave a server. Outcomes that only a cluster has ([`Code`]: no leader, outcome unknown,
//! overloaded, corrupted, ...) and our own interfaces use the table here. What the original server has an error for gets
//! exactly its code, text and details on the compatible faces: those are the [`WireError`]s in [`text`].
//!
//! What does not belong here: mapping a crate's error enum to a code; that is the node's `error.rs`.

use bytes::Bytes;
use prost::Message;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};

use crate::schema;

pub mod text;

/// Response metadata key that carries [`Code::name`], so that a client can tell outcomes apart that share a gRPC code.
pub const CODE_KEY: &str = "alhambra-code";
/// Response metadata key that carries the endpoint of the leader, where one is known ([`Code::NotLeader`]).
pub const LEADER_KEY: &str = "alhambra-leader";

/// Whether the effect of a refused call may be in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Surely not applied: trying again, here or elsewhere, cannot do anything twice.
    No,
    /// May have been applied, or may still be: only asking with the same request id or reading decides.
    Unknown,
}

/// What went wrong, by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The call itself is wrong; fix it.
    InvalidArgument,
    /// A statement that does not parse; fix it.
    Syntax,
    /// No such database; create it.
    DatabaseNotFound,
    /// No such table; create it.
    TableNotFound,
    /// No such key; accept the absence.
    KeyNotFound,
    /// A database of that name exists; choose another name.
    DatabaseExists,
    /// A table of that name exists; choose another name.
    TableExists,
    /// A row with that key exists; choose another key.
    RowExists,
    /// What the transaction read has changed; run it again.
    Conflict,
    /// A stated condition does not hold; look, then decide.
    PreconditionFailed,
    /// This node does not lead and could not forward; try the leader.
    NotLeader,
    /// The node or the database is still starting; try again.
    Starting,
    /// No quorum could be reached before anything was proposed; try again.
    NoQuorum,
    /// The write was proposed and its outcome is not known; ask again with the same request id, or read.
    OutcomeUnknown,
    /// The caller went away before anything was proposed; try again.
    Canceled,
    /// A queue is full; back off.
    Overloaded,
    /// A limit or quota is exceeded; send less.
    LimitExceeded,
    /// Nobody is logged in; log in.
    Unauthenticated,
    /// Not allowed; ask an administrator.
    Denied,
    /// Not built, or not meant to be.
    Unsupported,
    /// Stored data is not what was written; stop and call a human.
    Corrupted,
    /// A defect of ours; report it.
    Internal,
}

/// One row of the table.
struct Row {
    name: &'static str,
    grpc: tonic::Code,
    sqlstate: Option<&'static str>,
    applied: Applied,
}

const fn row(name: &'static str, grpc: tonic::Code, sqlstate: &'static str) -> Row {
    Row { name, grpc, sqlstate: Some(sqlstate), applied: Applied::No }
}

impl Code {
    /// Every code, in the order of the table.
    pub const ALL: [Self; 22] = [
        Self::InvalidArgument,
        Self::Syntax,
        Self::DatabaseNotFound,
        Self::TableNotFound,
        Self::KeyNotFound,
        Self::DatabaseExists,
        Self::TableExists,
        Self::RowExists,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::NotLeader,
        Self::Starting,
        Self::NoQuorum,
        Self::OutcomeUnknown,
        Self::Canceled,
        Self::Overloaded,
        Self::LimitExceeded,
        Self::Unauthenticated,
        Self::Denied,
        Self::Unsupported,
        Self::Corrupted,
        Self::Internal,
    ];

    const fn row(self) -> Row {
        use tonic::Code as Grpc;
        match self {
            Self::InvalidArgument => row("invalid_argument", Grpc::InvalidArgument, "22023"),
            Self::Syntax => row("syntax", Grpc::InvalidArgument, "42601"),
            Self::DatabaseNotFound => row("database_not_found", Grpc::NotFound, "3D000"),
            Self::TableNotFound => row("table_not_found", Grpc::NotFound, "42P01"),
            Self::KeyNotFound => {
                Row { name: "key_not_found", grpc: Grpc::NotFound, sqlstate: None, applied: Applied::No }
            }
            Self::DatabaseExists => row("database_exists", Grpc::AlreadyExists, "42P04"),
            Self::TableExists => row("table_exists", Grpc::AlreadyExists, "42P07"),
            Self::RowExists => row("row_exists", Grpc::AlreadyExists, "23505"),
            Self::Conflict => row("conflict", Grpc::Aborted, "40001"),
            Self::PreconditionFailed => row("precondition_failed", Grpc::FailedPrecondition, "55000"),
            Self::NotLeader => row("not_leader", Grpc::Unavailable, "57P03"),
            Self::Starting => row("starting", Grpc::Unavailable, "57P03"),
            Self::NoQuorum => row("no_quorum", Grpc::Unavailable, "57P03"),
            Self::OutcomeUnknown => {
                let applied = Applied::Unknown;
                Row { name: "outcome_unknown", grpc: Grpc::DeadlineExceeded, sqlstate: Some("40003"), applied }
            }
            Self::Canceled => row("canceled", Grpc::Cancelled, "57014"),
            Self::Overloaded => row("overloaded", Grpc::ResourceExhausted, "53000"),
            Self::LimitExceeded => row("limit_exceeded", Grpc::ResourceExhausted, "54000"),
            Self::Unauthenticated => row("unauthenticated", Grpc::Unauthenticated, "28P01"),
            Self::Denied => row("denied", Grpc::PermissionDenied, "42501"),
            Self::Unsupported => row("unsupported", Grpc::Unimplemented, "0A000"),
            Self::Corrupted => row("corrupted", Grpc::DataLoss, "XX001"),
            Self::Internal => {
                // A defect may strike after the proposal as well as before it.
                Row { name: "internal", grpc: Grpc::Internal, sqlstate: Some("XX000"), applied: Applied::Unknown }
            }
        }
    }

    /// The code's name on the wire ([`CODE_KEY`]) and in logs, snake case.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The gRPC status code.
    pub const fn grpc(self) -> tonic::Code {
        self.row().grpc
    }

    /// The SQLSTATE, five characters; `None` where SQL has no such error.
    pub const fn sqlstate(self) -> Option<&'static str> {
        self.row().sqlstate
    }

    /// Whether a write that was answered so may be in the ledger.
    pub const fn applied(self) -> Applied {
        self.row().applied
    }

    /// True when the same call may succeed later or on another node without anybody changing it.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::NotLeader | Self::Starting | Self::NoQuorum | Self::Canceled | Self::Overloaded => true,
            Self::InvalidArgument
            | Self::Syntax
            | Self::DatabaseNotFound
            | Self::TableNotFound
            | Self::KeyNotFound
            | Self::DatabaseExists
            | Self::TableExists
            | Self::RowExists
            | Self::Conflict
            | Self::PreconditionFailed
            | Self::OutcomeUnknown
            | Self::LimitExceeded
            | Self::Unauthenticated
            | Self::Denied
            | Self::Unsupported
            | Self::Corrupted
            | Self::Internal => false,
        }
    }

    /// The code with that [`Self::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// The gRPC status of this code: message, and the code's name in the metadata under [`CODE_KEY`].
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut status = Status::new(self.grpc(), message);
        status
            .metadata_mut()
            .insert(MetadataKey::<Ascii>::from_static(CODE_KEY), MetadataValue::from_static(self.name()));
        status
    }

    /// As [`Self::status`], with the leader's endpoint as a hint. An endpoint that is no header text is left out.
    pub fn status_with_leader(self, message: impl Into<String>, leader: &str) -> Status {
        let mut status = self.status(message);
        if let Ok(value) = leader.parse() {
            status.metadata_mut().insert(MetadataKey::<Ascii>::from_static(LEADER_KEY), value);
        }
        status
    }

    /// The code that a server of ours put into `status`; `None` for statuses of the transport and of other servers.
    pub fn of(status: &Status) -> Option<Self> {
        Self::from_name(status.metadata().get(CODE_KEY)?.to_str().ok()?)
    }
}

/// Error codes that the original puts into the details of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImmuCode {
    /// `08001`: the session does not exist.
    SessionNotFound,
    /// `08004`: refused credentials, inactive user.
    ServerRejected,
    /// `08P01`: authentication is disabled.
    ProtocolViolation,
    /// `0B000`: a transaction cannot be started.
    InvalidTransactionInitiation,
    /// `22000`: a streamed value is too long.
    DataException,
    /// `22023`: an unknown session or transaction was named.
    InvalidParameter,
    /// `23000`: a precondition failed.
    IntegrityViolation,
    /// `25P02`: the transaction conflicts with another one.
    InFailedTransaction,
    /// `28000`: not logged in.
    InvalidAuthorization,
    /// `3F000`: the database does not exist.
    InvalidDatabaseName,
    /// `42883`: the operation does not exist in a stream.
    UndefinedFunction,
    /// `XX000`: any coded error without a code of its own.
    InternalError,
}

impl ImmuCode {
    /// Every code.
    pub const ALL: [Self; 12] = [
        Self::SessionNotFound,
        Self::ServerRejected,
        Self::ProtocolViolation,
        Self::InvalidTransactionInitiation,
        Self::DataException,
        Self::InvalidParameter,
        Self::IntegrityViolation,
        Self::InFailedTransaction,
        Self::InvalidAuthorization,
        Self::InvalidDatabaseName,
        Self::UndefinedFunction,
        Self::InternalError,
    ];

    /// The five characters that travel in `ErrorInfo.code`.
    pub const fn text(self) -> &'static str {
        match self {
            Self::SessionNotFound => "08001",
            Self::ServerRejected => "08004",
            Self::ProtocolViolation => "08P01",
            Self::InvalidTransactionInitiation => "0B000",
            Self::DataException => "22000",
            Self::InvalidParameter => "22023",
            Self::IntegrityViolation => "23000",
            Self::InFailedTransaction => "25P02",
            Self::InvalidAuthorization => "28000",
            Self::InvalidDatabaseName => "3F000",
            Self::UndefinedFunction => "42883",
            Self::InternalError => "XX000",
        }
    }

    /// The gRPC code that goes with it; `Unknown` where the original has no mapping.
    pub const fn grpc(self) -> tonic::Code {
        match self {
            Self::SessionNotFound => tonic::Code::PermissionDenied,
            Self::DataException | Self::IntegrityViolation => tonic::Code::FailedPrecondition,
            Self::InvalidParameter => tonic::Code::InvalidArgument,
            Self::InvalidDatabaseName => tonic::Code::NotFound,
            Self::UndefinedFunction => tonic::Code::Unimplemented,
            Self::InternalError => tonic::Code::Internal,
            Self::ServerRejected
            | Self::ProtocolViolation
            | Self::InvalidTransactionInitiation
            | Self::InFailedTransaction
            | Self::InvalidAuthorization => tonic::Code::Unknown,
        }
    }
}

/// `google.rpc.Status`: what `grpc-status-details-bin` holds.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

const ERROR_INFO_URL: &str = "type.googleapis.com/immudb.schema.ErrorInfo";
const RETRY_INFO_URL: &str = "type.googleapis.com/immudb.schema.RetryInfo";

/// The details of a coded error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Five characters, see [`ImmuCode::text`].
    pub code: String,
    /// The inner message.
    pub cause: String,
    /// When to try again, in milliseconds; 0 means not.
    pub retry_delay_ms: i32,
}

impl Details {
    /// Reads the details of a status; `None` when it carries none that can be read.
    pub fn of(status: &Status) -> Option<Self> {
        let rpc = RpcStatus::decode(status.details()).ok()?;
        let find = |url: &str| rpc.details.iter().find(|any| any.type_url == url);
        let info = schema::ErrorInfo::decode(find(ERROR_INFO_URL)?.value.as_slice()).ok()?;
        let retry = find(RETRY_INFO_URL).and_then(|any| schema::RetryInfo::decode(any.value.as_slice()).ok());
        Some(Self { code: info.code, cause: info.cause, retry_delay_ms: retry.map_or(0, |retry| retry.retry_delay) })
    }
}

/// A coded error: the gRPC code of `code`, the text, and the details `ErrorInfo`, `RetryInfo` in this order, as SDKs
/// read them.
pub fn coded(code: ImmuCode, text: impl Into<String>, cause: impl Into<String>) -> Status {
    let any = |url: &str, value: Vec<u8>| prost_types::Any { type_url: url.to_owned(), value };
    let info = schema::ErrorInfo { code: code.text().to_owned(), cause: cause.into() };
    let retry = schema::RetryInfo { retry_delay: 0 };
    let message = text.into();
    let rpc = RpcStatus {
        code: code.grpc() as i32,
        message: message.clone(),
        details: vec![any(ERROR_INFO_URL, info.encode_to_vec()), any(RETRY_INFO_URL, retry.encode_to_vec())],
    };
    Status::with_details(code.grpc(), message, Bytes::from(rpc.encode_to_vec()))
}

/// A plain-text error: `Unknown`, no details. Most errors of the original are of this kind.
pub fn plain_text(text: impl Into<String>) -> Status {
    Status::unknown(text)
}

/// An error of the original whose text does not vary: code, exact text and details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    grpc: tonic::Code,
    text: &'static str,
    coded: Option<(ImmuCode, &'static str)>,
}

impl WireError {
    /// `Unknown` with a text and no details.
    pub const fn plain_text(text: &'static str) -> Self {
        Self { grpc: tonic::Code::Unknown, text, coded: None }
    }

    /// A gRPC code with a text and no details.
    pub const fn plain(grpc: tonic::Code, text: &'static str) -> Self {
        Self { grpc, text, coded: None }
    }

    /// A coded error whose cause is its text.
    pub const fn coded(code: ImmuCode, text: &'static str) -> Self {
        Self { grpc: code.grpc(), text, coded: Some((code, text)) }
    }

    /// A coded error with another cause than its text.
    pub const fn caused(code: ImmuCode, text: &'static str, cause: &'static str) -> Self {
        Self { grpc: code.grpc(), text, coded: Some((code, cause)) }
    }

    /// The exact text.
    pub const fn text(&self) -> &'static str {
        self.text
    }

    /// The gRPC code.
    pub const fn grpc(&self) -> tonic::Code {
        self.grpc
    }

    /// Its text inside the text of another error: a plain status shows its code, as Go renders it.
    pub fn inside(&self) -> String {
        match self.coded {
            None if self.grpc != tonic::Code::Unknown => {
                format!("rpc error: code = {:?} desc = {}", self.grpc, self.text)
            }
            _ => self.text.to_owned(),
        }
    }

    /// The status to answer with.
    pub fn status(&self) -> Status {
        match self.coded {
            Some((code, cause)) => coded(code, self.text, cause),
            None => Status::new(self.grpc, self.text),
        }
    }

    /// As [`Self::status`] with another cause in the details; errors without details stay without.
    pub fn status_with_cause(&self, cause: impl Into<String>) -> Status {
        match self.coded {
            Some((code, _)) => coded(code, self.text, cause),
            None => self.status(),
        }
    }

    /// True when `status` is this error: same code and text.
    pub fn is(&self, status: &Status) -> bool {
        status.code() == self.grpc && status.message() == self.text
    }
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        error.status()
    }
}

#[cfg(test)]
mod tests;
