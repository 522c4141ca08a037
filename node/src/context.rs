//! What a call brings with it besides its message, and what follows from that: who calls, on which database, until when,
//! and how new the data has to be.

use std::sync::Arc;

use alhambra_raft::meta::User;
use tokio::time::Instant;

use crate::router::{Counted, Replica};
use crate::service::resolve::TokenRefusal;
use crate::session::Session;
use crate::session::token::Token;
use crate::throttle::Source;

/// How new the data of a read has to be, as the caller asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadLevel {
    /// Everything that was acknowledged before the call.
    #[default]
    Linearizable,
    /// Whatever this node has applied.
    Local,
}

impl ReadLevel {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Local => "local",
        }
    }

    /// The level with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Linearizable, Self::Local].into_iter().find(|level| level.name() == name)
    }
}

/// What a call says about its session.
#[derive(Clone, Debug)]
pub enum SessionHeader {
    /// Nothing.
    Absent,
    /// A session, which counts as used now.
    Known(Arc<Session>),
    /// A session that does not exist (any more).
    Unknown,
}

/// What a call says about its token.
#[derive(Clone, Debug)]
pub enum TokenHeader {
    /// Nothing, or nothing that counts beside a session.
    Absent,
    /// A valid one.
    Known(Arc<Token>),
    /// One that is not valid (any more).
    Refused(TokenRefusal),
}

/// The headers of a call, as the gate has read them.
#[derive(Clone, Debug)]
pub struct Call {
    /// The session.
    pub session: SessionHeader,
    /// The token.
    pub token: TokenHeader,
    /// Where it comes from.
    pub source: Source,
    /// When the call has to have an answer.
    pub deadline: Instant,
    /// Whether the client chose the deadline.
    pub chosen: bool,
    /// How new the data of reads has to be.
    pub level: ReadLevel,
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user, as it was at login.
    pub user: Arc<User>,
    /// The selected database; none with a token that selects none.
    pub database: Option<Arc<str>>,
    /// The session; none with a token.
    pub session: Option<Arc<Session>>,
}

/// A call about a database that its caller may make, whether the database is open or not.
#[derive(Debug)]
pub struct Visit {
    /// The database.
    pub database: Counted,
    /// When the call has to have an answer.
    pub deadline: Instant,
    /// How new the data of reads has to be.
    pub level: ReadLevel,
}

/// A call on a database that its caller may make.
#[derive(Debug)]
pub struct Context {
    /// The database here.
    pub replica: Replica,
    /// When the call has to have an answer.
    pub deadline: Instant,
    /// How new the data of reads has to be.
    pub level: ReadLevel,
}
