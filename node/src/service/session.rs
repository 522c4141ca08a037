//! Logging in and out, and choosing a database.

use std::sync::Arc;

use alhambra_proto::code::text;
use alhambra_raft::meta::{ADMIN_USER, DEFAULT_DATABASE, MetaError, SYSTEM_DATABASE, User};
use alhambra_raft::strand::of_node;
use tokio::time::Instant;

use super::App;
use crate::auth;
use crate::context::{Call, Caller};
use crate::error::{Error, Result};
use crate::session::Session;

/// What the first administrator with the password that everybody knows is told.
pub const DEFAULT_PASSWORD_WARNING: &str =
    "immudb user has the default password: please change it to ensure proper security";
const DEFAULT_PASSWORD: &[u8] = b"immudb";

impl App {
    /// The user with this name and password.
    ///
    /// The record that this node has applied decides when it lets the caller in. Before anybody is turned away, the newest
    /// record is fetched: a user may have been created a moment ago through another node.
    async fn login_user(&self, name: &[u8], password: &[u8], deadline: Instant) -> Result<Arc<User>> {
        self.require_formed()?;
        let name = std::str::from_utf8(name).unwrap_or_default();
        let user = match self.check_password(name, password).await? {
            Some(user) => user,
            None => {
                self.groups.meta().barrier(deadline).await?;
                self.check_password(name, password).await?.ok_or_else(|| {
                    let known = self.groups.meta().user(name).is_some();
                    let cause = if known { "the password is wrong" } else { text::KEY_NOT_FOUND.text() };
                    Error::WireCause { error: text::INVALID_CREDENTIALS, cause }
                })?
            }
        };
        if user.active { Ok(Arc::new(user)) } else { Err(text::USER_NOT_ACTIVE.into()) }
    }

    async fn check_password(&self, name: &str, password: &[u8]) -> Result<Option<User>> {
        let user = self.groups.meta().user(name);
        let hash = user.as_ref().map_or(&self.nobody, |user| &user.password);
        let matches = self.matches(password, hash).await;
        Ok(user.filter(|_| matches))
    }

    /// Whether this is the user's password.
    pub(super) async fn has_password(&self, user: &User, password: &[u8]) -> bool {
        self.matches(password, &user.password).await
    }

    async fn matches(&self, password: &[u8], hash: &str) -> bool {
        if self.proven.knows(password, hash) {
            return true;
        }
        let (password, hash, proven) = (password.to_vec(), hash.to_owned(), self.proven.clone());
        self.env.blocking(of_node::HASHING, move || proven.verify(&password, &hash)).await.unwrap_or(false)
    }

    /// Holds a new session or token of the user to the record as it is now. Whoever changes the record ends what there is
    /// of the user by then; a login that was on its way would outlive that.
    fn still(&self, user: &User) -> Result<()> {
        if self.is_current(user) {
            return Ok(());
        }
        self.end_changed_users();
        Err(MetaError::Conflict { name: user.name.clone() }.into())
    }

    pub(crate) fn require_formed(&self) -> Result<()> {
        match self.groups.identity() {
            Some(_) => Ok(()),
            None => Err(Error::Starting { what: "the cluster" }),
        }
    }

    /// Whether a database of this name exists, looked up at the newest state before the answer is no.
    pub(crate) async fn database_exists(&self, name: &str, deadline: Instant) -> Result<bool> {
        let exists = || name == SYSTEM_DATABASE || self.groups.meta().database(name).is_some();
        if !exists() {
            self.groups.meta().barrier(deadline).await?;
        }
        Ok(exists())
    }

    fn may_select(user: &User, database: &str) -> Result<()> {
        let may =
            if database == SYSTEM_DATABASE { auth::is_sysadmin(user) } else { auth::permission_in(user, database) > 0 };
        if may { Ok(()) } else { Err(text::NO_DATABASE_PERMISSION.into()) }
    }

    /// Opens a session on a database, whose name is lower-cased.
    pub async fn open_session(
        &self,
        name: &[u8],
        password: &[u8],
        database: &str,
        deadline: Instant,
    ) -> Result<Arc<Session>> {
        let user = self.login_user(name, password, deadline).await?;
        let database = database.to_lowercase();
        if database.is_empty() || !self.database_exists(&database, deadline).await? {
            return Err(text::DATABASE_NOT_FOUND.into());
        }
        Self::may_select(&user, &database)?;
        let session = self.sessions.open(user.clone(), database.into())?;
        self.still(&user)?;
        Ok(session)
    }

    /// Ends the session of the call.
    pub fn close_session(&self, call: &Call) -> Result<()> {
        self.sessions.close(self.session_of(call)?.id());
        Ok(())
    }

    /// Makes a token. Also tells the warning, empty for none.
    pub async fn login(&self, name: &[u8], password: &[u8], deadline: Instant) -> Result<(String, &'static str)> {
        let user = self.login_user(name, password, deadline).await?;
        let warning =
            if user.name == ADMIN_USER && password == DEFAULT_PASSWORD { DEFAULT_PASSWORD_WARNING } else { "" };
        let token = self.sessions.login(user.clone(), self.first_database())?;
        self.still(&user)?;
        Ok((token, warning))
    }

    /// What a fresh token selects: the default database while there is nothing else.
    pub(super) fn first_database(&self) -> Option<Arc<str>> {
        self.note_beginning();
        let alone = !self.had_others.get().copied().unwrap_or(true) && self.groups.meta().databases().len() == 1;
        alone.then(|| DEFAULT_DATABASE.into())
    }

    /// Takes back one login of the caller.
    pub fn logout(&self, call: &Call) -> Result<()> {
        self.sessions.logout(&self.user_call(call)?.user.name)
    }

    /// Selects a database: in the session, if there is one, and in a new token.
    pub async fn use_database(&self, call: &Call, name: &str) -> Result<String> {
        let Caller { user, session, .. } = self.authenticate(call).map_err(|error| match error {
            Error::Wire(wire) if wire == text::TOKEN_EXPIRED => Error::Wire(wire),
            _ => Error::from(text::PLEASE_LOGIN),
        })?;
        if !self.database_exists(name, call.deadline).await? {
            return Err(Error::DatabaseNotFound { name: name.to_owned() });
        }
        Self::may_select(&user, name)?;
        let database: Arc<str> = name.into();
        let token = self.sessions.issue(user.clone(), Some(database.clone()))?;
        self.still(&user)?;
        if let Some(session) = session {
            session.select(database);
        }
        Ok(token)
    }
}
