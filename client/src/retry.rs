//! What to do after a call failed: the only place that decides whether a call may be sent again.
//!
//! A read may always be sent again. A write may only when it was surely not applied: the connection was never made, the
//! session was unknown (sessions are checked before anything else), or a server of ours says so with a code whose row in
//! the error table does. Everything else is an unknown outcome, and stays one.

use std::error::Error as StdError;
use std::time::Duration;

use alhambra_proto::code::{Applied, Code, text};
use tonic::{ConnectError, Status};

/// Whether a call changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// May be sent as often as one likes.
    Read,
    /// Must not be applied twice.
    Write,
}

/// What follows from a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the answer.
    Answer,
    /// The session is gone: log in again, here or elsewhere, and send again.
    LogInAgain,
    /// This endpoint cannot serve now: send again, to another one.
    Elsewhere,
    /// The server is well but has too much to do: send again after a pause.
    Later,
    /// Nobody knows whether the write was applied.
    Unknown,
}

/// Decides about one failed attempt.
pub(crate) fn judge(kind: Kind, status: &Status) -> Verdict {
    if let Some(code) = Code::of(status) {
        return match (code.applied(), kind) {
            (Applied::No, _) if code == Code::Overloaded => Verdict::Later,
            (Applied::No, _) if code.is_retryable() => Verdict::Elsewhere,
            (Applied::No, _) => Verdict::Answer,
            (Applied::Unknown, Kind::Write) => Verdict::Unknown,
            (Applied::Unknown, Kind::Read) if code == Code::OutcomeUnknown => Verdict::Elsewhere,
            (Applied::Unknown, Kind::Read) => Verdict::Answer,
        };
    }
    if is_session_lost(status) {
        return Verdict::LogInAgain;
    }
    if was_never_sent(status) {
        return Verdict::Elsewhere;
    }
    if kind == Kind::Write && was_made_on_the_way(status) {
        return Verdict::Unknown;
    }
    let from_transport = status.source().is_some()
        || matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::DeadlineExceeded);
    match (from_transport, kind) {
        (false, _) => Verdict::Answer,
        (true, Kind::Read) => Verdict::Elsewhere,
        (true, Kind::Write) => Verdict::Unknown,
    }
}

/// The server does not know the session, so it has not looked at the call.
fn is_session_lost(status: &Status) -> bool {
    let lost = [
        text::SESSION_NOT_FOUND,
        text::NO_SESSION_FOUND,
        text::NOT_LOGGED_IN,
        text::NO_SESSION_AUTH_DATA,
        // The token of maintenance mode.
        text::TOKEN_EXPIRED,
        text::INVALID_TOKEN,
    ];
    lost.iter().any(|error| error.is(status))
}

/// Begins what tonic says of an answer whose status has not come.
const WITHOUT_STATUS: [&str; 2] = ["grpc-status header missing", "protocol error: "];

/// Whether nobody has answered: the status was made where an answer could not be read, or did not come whole. Servers give
/// details with the codes that tonic uses for that.
fn was_made_on_the_way(status: &Status) -> bool {
    let is_code_of_tonic =
        matches!(status.code(), tonic::Code::Internal | tonic::Code::OutOfRange | tonic::Code::DataLoss);
    let has_not_come = WITHOUT_STATUS.iter().any(|begin| status.message().starts_with(begin));
    has_not_come || (is_code_of_tonic && status.details().is_empty())
}

/// The connection could not be made.
fn was_never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What is wrong with the certificate of the server, if that is why there is no connection. Trying again does not help.
pub(crate) fn distrust(status: &Status) -> Option<rustls::Error> {
    let mut source = status.source();
    while let Some(error) = source {
        // An I/O error shows what it wraps in its own way only.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.map_or_else(|| error.downcast_ref(), |inner| inner.downcast_ref::<rustls::Error>());
        if let Some(found @ rustls::Error::InvalidCertificate(_)) = tls {
            return Some(found.clone());
        }
        source = error.source();
    }
    None
}

/// Pause between two rounds over all endpoints: 25 ms, doubling up to 400 ms.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(25);
    const MAX: Duration = Duration::from_millis(400);

    pub(crate) fn new() -> Self {
        Self { next: Self::FIRST }
    }

    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(Self::MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_error() -> Status {
        let error = ConnectError("connection refused".into());
        Status::from_error(Box::new(error))
    }

    #[test]
    fn a_write_is_sent_again_only_when_surely_not_applied() {
        for code in Code::ALL {
            let verdict = judge(Kind::Write, &code.status("x"));
            let expected = match code {
                Code::NotLeader | Code::Starting | Code::NoQuorum | Code::Canceled => Verdict::Elsewhere,
                Code::Overloaded => Verdict::Later,
                Code::OutcomeUnknown | Code::Internal => Verdict::Unknown,
                _ => Verdict::Answer,
            };
            assert_eq!(verdict, expected, "{code:?}");
        }
        assert_eq!(judge(Kind::Write, &connect_error()), Verdict::Elsewhere);
        assert_eq!(judge(Kind::Write, &text::SESSION_NOT_FOUND.status()), Verdict::LogInAgain);
        for status in [
            Status::unavailable("the proxy says"),
            Status::deadline_exceeded("too late"),
            Status::cancelled("Timeout expired"),
            Status::from_error("broken pipe".into()),
        ] {
            assert_eq!(judge(Kind::Write, &status), Verdict::Unknown, "{status:?}");
            assert_eq!(judge(Kind::Read, &status), Verdict::Elsewhere, "{status:?}");
        }
    }

    #[test]
    fn an_answer_that_did_not_come_whole_says_nothing_about_a_write() {
        for status in [
            Status::unknown("protocol error: received message with invalid compression flag"),
            Status::unknown("grpc-status header missing, mapped from HTTP status code 500"),
            Status::internal("Missing response message."),
            Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 1 bytes"),
            Status::data_loss("half of it"),
        ] {
            assert_eq!(judge(Kind::Write, &status), Verdict::Unknown, "{status:?}");
            assert_eq!(judge(Kind::Read, &status), Verdict::Answer, "{status:?}");
        }
    }

    #[test]
    fn what_the_original_refuses_is_an_answer() {
        for kind in [Kind::Read, Kind::Write] {
            for status in [
                text::KEY_NOT_FOUND.status(),
                text::ILLEGAL_STATE.status(),
                text::INVALID_CREDENTIALS.status(),
                text::KEY_MUST_EXIST.status(),
                text::PERMISSION_DENIED.status(),
            ] {
                assert_eq!(judge(kind, &status), Verdict::Answer, "{status:?}");
            }
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [25, 50, 100, 200, 400, 400, 400, 400]);
    }
}
