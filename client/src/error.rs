//! What a call can end with, by what the caller can do about it.

use std::path::PathBuf;

use alhambra_proto::code::{Code, Details, text};
use alhambra_proto::convert::ConvertError;
use tonic::Status;

use crate::check::Check;
use crate::state_store::StateError;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No endpoint was given.
    #[error("no endpoint given")]
    NoEndpoint,
    /// An endpoint that is no `host:port` or URL; fix it.
    #[error("endpoint {endpoint:?} is not a host:port")]
    BadEndpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What the parser said.
        #[source]
        source: tonic::transport::Error,
    },
    /// The certificates or the key for encrypted connections cannot be used; fix the files.
    #[error("the certificates or the key for encrypted connections cannot be used")]
    BadTls {
        /// What the parser said.
        #[source]
        source: tonic::transport::Error,
    },
    /// Nobody trusted vouches for the server, or not under this name; it was told nothing.
    #[error("the certificate of {endpoint} is not trusted")]
    Untrusted {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The server's public key cannot be read; fix the file.
    #[error("server public key is not a PEM public key on P-256")]
    BadPublicKey {
        /// What the parser said.
        #[source]
        source: p256::pkcs8::Error,
    },
    /// A text that cannot travel in a header (session id from the server).
    #[error("the server's session id is not header text")]
    BadSessionId,
    /// No endpoint took the call before its deadline; surely not applied, try again later.
    #[error("{call}: no endpoint took the call before the deadline")]
    Unavailable {
        /// The call.
        call: &'static str,
        /// The last refusal, where there was an answer at all.
        #[source]
        last: Option<Box<Status>>,
    },
    /// The write was sent and no answer tells whether it was applied; read, then decide. Never retried by the client.
    #[error("{call}: outcome unknown, it may have been applied")]
    OutcomeUnknown {
        /// The call.
        call: &'static str,
        /// What came instead of an answer; `None` when nothing came before the deadline.
        #[source]
        source: Option<Box<Status>>,
    },
    /// The write is done, but what is trusted from now on cannot be kept; do not repeat it.
    #[error("{call}: written, but the trusted state cannot be kept")]
    NotKept {
        /// The call.
        call: &'static str,
        /// What stood in the way.
        #[source]
        source: StateError,
    },
    /// A reference or member was to be bound to transaction 0, which never exists; nothing was sent.
    #[error("{call}: transaction 0 has no versions to bind to")]
    NoSuchVersion {
        /// The call.
        call: &'static str,
    },
    /// The server refused the call; see [`Self::code`] and [`Error::details`].
    #[error("{call}: {}", status.message())]
    Refused {
        /// The call.
        call: &'static str,
        /// Its answer. The boxed status is not a source: its message is this error's.
        status: Box<Status>,
    },
    /// An endpoint shows another server identity than the one this client began with, so its history is another.
    #[error("endpoint {endpoint} belongs to server {found}, not to {expected}")]
    OtherServer {
        /// The endpoint.
        endpoint: String,
        /// Identity this client began with.
        expected: String,
        /// Identity that the endpoint shows.
        found: String,
    },
    /// An answer to a call without verification that is not what a server must send.
    #[error("{call}: malformed answer")]
    Malformed {
        /// The call.
        call: &'static str,
        /// What is wrong with it.
        #[source]
        source: ConvertError,
    },
    /// What the server answered does not follow from what is known. Never retried away; the trusted state has not moved.
    #[error("{call}: TAMPERED, {step}{}", evidence_text(evidence))]
    Tampered {
        /// The call.
        call: &'static str,
        /// The first check that failed.
        step: Check,
        /// Where request, answer and states are kept; `None` when the state store keeps no files.
        evidence: Option<PathBuf>,
    },
    /// The trusted state cannot be read or written, so nothing can be called verified.
    #[error("trusted state cannot be kept")]
    State(#[from] StateError),
}

fn evidence_text(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(String::new, |path| format!("; evidence in {}", path.display()))
}

impl Error {
    /// The server's answer, where there is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused { status, .. } => Some(status),
            Self::Unavailable { last, .. } => last.as_deref(),
            Self::OutcomeUnknown { source, .. } => source.as_deref(),
            Self::NoEndpoint
            | Self::BadEndpoint { .. }
            | Self::BadTls { .. }
            | Self::Untrusted { .. }
            | Self::BadPublicKey { .. }
            | Self::BadSessionId
            | Self::NoSuchVersion { .. }
            | Self::OtherServer { .. }
            | Self::Malformed { .. }
            | Self::Tampered { .. }
            | Self::State(_)
            | Self::NotKept { .. } => None,
        }
    }

    /// The outcome as a server of ours names it; `None` for the errors that the original has, too.
    pub fn code(&self) -> Option<Code> {
        self.status().and_then(Code::of)
    }

    /// The coded details that the original attaches to some errors.
    pub fn details(&self) -> Option<Details> {
        self.status().and_then(Details::of)
    }

    /// True when the answer was that the key does not exist, is deleted or has expired.
    pub fn is_key_not_found(&self) -> bool {
        match self {
            Self::Refused { status, .. } => text::KEY_NOT_FOUND.is(status) || text::EXPIRED_ENTRY.is(status),
            _ => false,
        }
    }

    /// True when the answer was that the transaction does not exist.
    pub fn is_tx_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if text::TX_NOT_FOUND.is(status))
    }

    /// True when a [`Precondition`](crate::Precondition) of the write did not hold, so that nothing was written.
    pub fn is_precondition_failed(&self) -> bool {
        let failures = [text::KEY_MUST_EXIST, text::KEY_MUST_NOT_EXIST, text::KEY_MODIFIED];
        matches!(self, Self::Refused { status, .. } if failures.iter().any(|failure| failure.is(status)))
    }

    /// True when the database named does not exist.
    pub fn is_database_not_found(&self) -> bool {
        match self {
            Self::Refused { status, .. } => {
                text::DATABASE_NOT_FOUND.is(status) || status.code() == tonic::Code::NotFound
            }
            _ => false,
        }
    }

    /// True when user or password was refused.
    pub fn is_login_refused(&self) -> bool {
        match self {
            Self::Refused { status, .. } => text::INVALID_CREDENTIALS.is(status) || text::USER_NOT_ACTIVE.is(status),
            _ => false,
        }
    }

    /// What is answered when this stands in the way after something was written: never that it was not.
    pub(crate) fn after_writing(self, call: &'static str) -> Self {
        match self {
            error @ (Self::Tampered { .. } | Self::OutcomeUnknown { .. } | Self::NotKept { .. }) => error,
            Self::State(source) => Self::NotKept { call, source },
            Self::Unavailable { last, .. } => Self::OutcomeUnknown { call, source: last },
            Self::Refused { status, .. } => Self::OutcomeUnknown { call, source: Some(status) },
            _ => Self::OutcomeUnknown { call, source: None },
        }
    }

    /// True when the server says that the client's state is beyond its history. References and sorted sets have only one text for
    /// that and for wrong arguments, so of them it may be those.
    pub(crate) fn is_illegal_state(&self) -> bool {
        match self {
            Self::Refused { call, status } => {
                let has_one_text = matches!(*call, "verified_set_reference" | "verified_z_add");
                text::ILLEGAL_STATE.is(status)
                    || (has_one_text && text::ILLEGAL_ARGUMENTS.is(status))
                    || status.message().starts_with("illegal state: latest txID=")
            }
            _ => false,
        }
    }
}
