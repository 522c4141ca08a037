//! Refusals of calls on users that name somebody.

use alhambra_proto::code::text;
use tonic::Status;

/// Why a user is not created or changed, where the text names the user or the database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserRefusal {
    /// CreateUser names a database that does not exist.
    #[error("database {database} does not exist")]
    NoDatabase {
        /// The database.
        database: String,
    },
    /// No such user, told with a code of its own.
    #[error("user {user} does not exist")]
    NotFound {
        /// The user.
        user: String,
    },
    /// No such user, told without a code of its own.
    #[error("user {user} does not exist")]
    NotFoundPlain {
        /// The user.
        user: String,
    },
    /// No such user, or another one has changed it last.
    #[error("user {user} does not exist or is another's")]
    NotFoundOrNotYours {
        /// The user.
        user: String,
    },
    /// Another one has changed the user last.
    #[error("user {user} is another's")]
    NotYours {
        /// The user.
        user: String,
    },
    /// The user is not active.
    #[error("user {user} is not active")]
    NotActive {
        /// The user.
        user: String,
    },
    /// The user has no permission on the database.
    #[error("user {user} has no permission on database {database}")]
    WithoutPermission {
        /// The user.
        user: String,
        /// The database.
        database: String,
    },
}

impl UserRefusal {
    /// In the words of the compatible server.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::NoDatabase { database } => text::database_of_user_not_found(database),
            Self::NotFound { user } => text::user_not_found_coded(user),
            Self::NotFoundPlain { user } => text::user_not_found(user),
            Self::NotFoundOrNotYours { user } => text::user_not_found_or_yours(user),
            Self::NotYours { user } => text::user_not_yours(user),
            Self::NotActive { user } => text::user_not_active(user),
            Self::WithoutPermission { user, database } => text::user_without_permission(user, database),
        }
    }
}
