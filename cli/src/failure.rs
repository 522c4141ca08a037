//! What a command says when it cannot do its work: what went wrong, what to do about it, and the exit code.

use std::fmt::{self, Display};
use std::process::ExitCode;

use tonic::Status;

/// Why a command ended; each kind is one exit code, listed by `alhambra --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command could not do its work, or what it checked is wrong.
    Failed,
    /// The call itself has to be changed.
    Usage,
    /// The key, the database or the file is not there.
    NotFound,
    /// A proof did not hold.
    Tampered,
    /// Nobody could take the call; it was surely not applied.
    Unavailable,
    /// The write may have been applied or not.
    OutcomeUnknown,
}

impl Kind {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Tampered => 4,
            Kind::Unavailable => 5,
            Kind::OutcomeUnknown => 6,
        }
    }
}

/// The table of exit codes at the end of `alhambra --help`.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed, or the check found something wrong
  2  the command line is wrong
  3  not found: key, database, file
  4  a proof did not hold: the answer is not part of the history this client trusts
  5  unavailable: nobody could take the call, it was surely not applied
  6  outcome unknown: the write may have been applied; read before writing again";

/// An error for the person at the terminal.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    what: String,
    advice: String,
    /// What would help is a login, for which the advice names the flags.
    wants_login: bool,
}

impl Failure {
    /// `what` went wrong (lower case, no full stop), and what to do: `advice`.
    pub fn new(kind: Kind, what: impl Into<String>, advice: impl Into<String>) -> Failure {
        Failure { kind, what: what.into(), advice: advice.into(), wants_login: false }
    }

    /// The same for the common case: the command failed.
    pub fn failed(what: impl Into<String>, advice: impl Into<String>) -> Failure {
        Failure::new(Kind::Failed, what, advice)
    }

    /// The same where what would help is a login.
    #[must_use]
    pub fn for_want_of_login(self) -> Failure {
        Failure { wants_login: true, ..self }
    }

    /// As the prompt says it, where a login is a word and not a flag.
    #[must_use]
    pub fn at_prompt(self) -> Failure {
        if self.wants_login { Failure { advice: "login USER".to_owned(), ..self } } else { self }
    }

    /// The exit code for `main`.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.exit_code())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  what to do: {}", self.what, self.advice)
    }
}

impl std::error::Error for Failure {}

/// Adds what was being done and what to do to an error from elsewhere.
pub trait OrFail<T> {
    /// `Err(e)` becomes a [`Failure`] that reads "`doing`: `e`".
    fn or_fail(self, doing: impl Display, advice: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: std::error::Error> OrFail<T> for Result<T, E> {
    fn or_fail(self, doing: impl Display, advice: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(format!("{doing}: {}", chain(&error)), advice))
    }
}

/// The error and its sources in one line, outermost first; a source whose text the error already shows is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        // Shown whole, a status is a page.
        let status =
            source.downcast_ref::<Status>().or_else(|| source.downcast_ref::<Box<Status>>().map(|status| &**status));
        let inner = status.map_or_else(|| source.to_string(), |status| status.message().to_owned());
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_code_and_a_line_in_the_help() {
        let kinds =
            [Kind::Failed, Kind::Usage, Kind::NotFound, Kind::Tampered, Kind::Unavailable, Kind::OutcomeUnknown];
        for (position, kind) in kinds.into_iter().enumerate() {
            assert_eq!(usize::from(kind.exit_code()), position + 1);
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", kind.exit_code())), "{kind:?} is not in the help");
        }
    }

    #[test]
    fn sources_are_shown_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "outer: disk on fire");
        let said: Result<(), Outer> = Err(error);
        let failure = said.or_fail("opening", "call the fire brigade").unwrap_err();
        assert_eq!(failure.to_string(), "error: opening: outer: disk on fire\n  what to do: call the fire brigade");
    }
}
