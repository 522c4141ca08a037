//! Logging in and out, and choosing a database.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_raft::meta::{ADMIN_USER, DEFAULT_DATABASE, MetaError, SYSTEM_DATABASE, User};
use tokio::time::{Instant, timeout_at};

use super::App;
use crate::auth;
use crate::claim::Kind;
use crate::context::{Call, Caller, TokenHeader};
use crate::error::{Error, Result};
use crate::limits::OWNER_ANSWERS;
use crate::peer::{Answer, Ask};
use crate::session::Session;
use crate::session::ended::End as SessionEnd;
use crate::session::token::epoch_of;
use crate::throttle::Source;

/// What the first administrator with the password that everybody knows is told.
pub const DEFAULT_PASSWORD_WARNING: &str =
    "immudb user has the default password: please change it to ensure proper security";
const WRONG_CREDENTIALS: &str = "no user has this name and this password";
const DEFAULT_PASSWORD: &[u8] = b"immudb";

impl App {
    /// The user with this name and password.
    ///
    /// The record that this node has applied decides when it lets the caller in. Before anybody is turned away, the newest
    /// record is fetched: a user may have been created a moment ago through another node.
    async fn login_user(&self, name: &[u8], password: &[u8], source: Source, deadline: Instant) -> Result<LoggedIn> {
        self.require_formed()?;
        let name = std::str::from_utf8(name).unwrap_or_default();
        self.may_try(name, source)?;
        if self.groups.meta().user_epochs(ADMIN_USER).is_none() {
            // Before the first records are here nobody can log in, and nobody is to blame.
            self.groups.meta().barrier(deadline).await?;
            self.groups.meta().user_epochs(ADMIN_USER).ok_or(Error::Starting { what: "systemdb" })?;
        }
        let seen = self.groups.meta().user_epochs(name);
        let user = match self.check_password(name, password, source).await? {
            Some(user) => user,
            None => {
                // Now, so that tries at the same time see it.
                self.throttle.failed(name, source);
                if let Err(error) = self.groups.meta().barrier(deadline).await {
                    // The record here may be an old one, so nobody can tell.
                    self.throttle.forgive(name, source);
                    return Err(error.into());
                }
                // The same record would refuse again, and take as long.
                let again = if self.groups.meta().user_epochs(name) == seen {
                    None
                } else {
                    self.check_password(name, password, source).await?
                };
                // In the same words, whether there is such a user or not.
                again.ok_or(Error::WireCause { error: text::INVALID_CREDENTIALS, cause: WRONG_CREDENTIALS })?
            }
        };
        self.throttle.succeeded(name, source);
        if !user.user.active {
            return Err(text::USER_NOT_ACTIVE.into());
        }
        self.await_key(deadline).await?;
        Ok(user)
    }

    async fn check_password(&self, name: &str, password: &[u8], source: Source) -> Result<Option<LoggedIn>> {
        let user = self.logged_in(name);
        let hash = user.as_ref().map_or(&self.nobody, |user| &user.user.password);
        let matches = self.matches(name, source, password, hash).await?;
        Ok(user.filter(|_| matches))
    }

    /// The user as the records here have it.
    fn logged_in(&self, name: &str) -> Option<LoggedIn> {
        let (user, epoch, logout) = self.groups.meta().user_at(name)?;
        Some(LoggedIn { user: Arc::new(user), epoch, token_epoch: epoch_of((epoch, logout)) })
    }

    /// Waits until other nodes can know the key with which this one signs: they must take what it makes.
    async fn await_key(&self, deadline: Instant) -> Result<()> {
        let mut known = self.key_is_known.subscribe();
        match timeout_at(deadline, known.wait_for(|known| *known)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::Starting { what: "the key of this node" }),
        }
    }

    fn own_number(&self) -> Result<u64> {
        self.me().ok_or(Error::Starting { what: "the cluster" })
    }

    /// Holds a new session or token of the user to the record as it is now. Whoever changes the record ends what there is
    /// of the user by then; a login that was on its way would outlive that.
    fn still(&self, user: &User) -> Result<()> {
        if self.is_current(user) { Ok(()) } else { Err(self.changed(user)) }
    }

    /// What the records here say now of a user who was let in.
    fn current(&self, user: &User) -> Result<LoggedIn> {
        self.logged_in(&user.name).filter(|current| *current.user == *user).ok_or_else(|| self.changed(user))
    }

    fn changed(&self, user: &User) -> Error {
        self.end_changed_users();
        MetaError::Conflict { name: user.name.clone() }.into()
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
        (source, deadline): (Source, Instant),
    ) -> Result<Arc<Session>> {
        let LoggedIn { user, epoch, .. } = self.login_user(name, password, source, deadline).await?;
        let database = database.to_lowercase();
        if database.is_empty() || !self.database_exists(&database, deadline).await? {
            return Err(text::DATABASE_NOT_FOUND.into());
        }
        Self::may_select(&user, &database)?;
        let session = self.sessions.open(self.own_number()?, user.clone(), epoch, database.into())?;
        self.still(&user)?;
        Ok(session)
    }

    /// Ends the session of the call, on every node.
    pub async fn close_session(&self, call: &Call) -> Result<()> {
        let end = self.session_of(call)?.end();
        self.end_everywhere(end, call.deadline).await;
        Ok(())
    }

    /// Makes a token. Also tells the warning, empty for none.
    pub async fn login(
        &self,
        name: &[u8],
        password: &[u8],
        (source, deadline): (Source, Instant),
    ) -> Result<(String, &'static str)> {
        let LoggedIn { user, .. } = self.login_user(name, password, source, deadline).await?;
        // As it is now: a Logout while the password was hashed has ended only what there was before.
        let token_epoch = self.current(&user)?.token_epoch;
        let warning =
            if user.name == ADMIN_USER && password == DEFAULT_PASSWORD { DEFAULT_PASSWORD_WARNING } else { "" };
        let token =
            self.sessions.issue(Kind::Token, self.own_number()?, user.clone(), token_epoch, self.first_database());
        self.sessions.tokens().count_login(&user.name, token_epoch);
        self.still(&user)?;
        Ok((token, warning))
    }

    /// What a fresh token selects: the default database while there is nothing else.
    pub(super) fn first_database(&self) -> Option<Arc<str>> {
        self.note_beginning();
        let alone = !self.had_others.get().copied().unwrap_or(true) && self.groups.meta().databases().len() == 1;
        alone.then(|| DEFAULT_DATABASE.into())
    }

    /// Takes back one login of the caller; the last one ends all tokens of the user on all nodes.
    ///
    /// Each node counts the logins through it, for as long as its process lives; those of nodes that are down do not count.
    /// A token that nobody has counted, because its node was started again, ends all of them.
    pub async fn logout(&self, call: &Call) -> Result<()> {
        let user = self.user_call(call)?.user;
        let me = self.own_number()?;
        let issuer = match &call.token {
            TokenHeader::Known(token) => token.claim().owner,
            TokenHeader::Absent | TokenHeader::Refused(_) => me,
        };
        let mut nodes: Vec<u64> = [me].into_iter().chain(self.groups.peers()).collect();
        nodes.sort_by_key(|node| (*node != issuer, *node != me));
        let mut taken = false;
        let mut left = 0;
        for node in nodes {
            let ask = Ask::Logins { user: user.name.clone(), take: !taken };
            let answer = if node == me {
                self.answer(ask, call.deadline).await
            } else {
                // So that nodes that do not answer leave enough time for the record.
                let patience = call.deadline.saturating_duration_since(Instant::now()) / 4;
                self.ask(node, &ask, Instant::now() + patience.min(OWNER_ANSWERS)).await
            };
            if let Some(Answer::Logins { taken: one, left: more }) = answer {
                taken |= one;
                left += more;
            }
        }
        if !taken && !matches!(call.token, TokenHeader::Known(_)) {
            return Err(text::NOT_LOGGED_IN.into());
        }
        if left == 0 {
            let tx = self.groups.meta().put_logout(&user.name, call.deadline).await?;
            self.settle(tx, None, call.deadline).await;
        }
        Ok(())
    }

    /// Selects a database: in the session, if there is one, and in a new token.
    ///
    /// That a session selects another database is in `systemdb` before it is answered, and known to whoever holds the session.
    pub async fn use_database(&self, call: &Call, name: &str) -> Result<String> {
        let Caller { user, session, .. } = self.who_selects(call)?;
        if !self.database_exists(name, call.deadline).await? {
            return Err(Error::DatabaseNotFound { name: name.to_owned() });
        }
        if self.groups.meta().is_loaded(name) == Some(false) {
            return Err(text::ALREADY_CLOSED.into());
        }
        Self::may_select(&user, name)?;
        self.await_key(call.deadline).await?;
        let database: Arc<str> = name.into();
        if self.access().is_nobody(&user) {
            return Ok(self.sessions.issue(Kind::Anonymous, self.own_number()?, user, TxId(0), Some(database)));
        }
        self.current(&user)?;
        if let Some(session) = &session
            && *session.database() == *database
        {
            // Only the newest record tells that there is nothing to change.
            self.groups.meta().barrier(call.deadline).await?;
            if let Some((newest, tx)) = self.groups.meta().session_database(&session.end().id)? {
                session.select(tx, newest.into());
            }
        }
        if let Some(session) = session.filter(|session| *session.database() != *database) {
            self.select(&session, database.clone(), call.deadline).await?;
        }
        let token_epoch = self.current(&user)?.token_epoch;
        let token = self.sessions.issue(Kind::Token, self.own_number()?, user.clone(), token_epoch, Some(database));
        self.still(&user)?;
        Ok(token)
    }

    fn who_selects(&self, call: &Call) -> Result<Caller> {
        if let Some(nobody) = self.access().nobody() {
            return Ok(Caller { user: nobody.clone(), database: None, session: None });
        }
        self.authenticate(call).map_err(|error| match error {
            Error::Wire(wire) if wire == text::TOKEN_EXPIRED => Error::Wire(wire),
            other if other.is_unavailable() => other,
            _ => Error::from(text::PLEASE_LOGIN),
        })
    }

    async fn select(&self, session: &Session, database: Arc<str>, deadline: Instant) -> Result<()> {
        let SessionEnd { id, .. } = session.end();
        let tx = match self.groups.meta().put_session(&id, &database, deadline).await {
            Ok(tx) => tx,
            Err(error) => {
                let error = Error::from(error);
                if error.may_be_applied() {
                    // Nobody can tell which database it is on, so it must not be used any more.
                    self.end_everywhere(session.end(), deadline).await;
                }
                return Err(error);
            }
        };
        session.select(tx, database);
        // Other nodes ask this one before they use the session, if it is this one's.
        if Some(session.owner()) != self.me() {
            self.settle(tx, Some(id), deadline).await;
        }
        Ok(())
    }
}

/// A user whose password was right.
#[derive(Debug)]
struct LoggedIn {
    user: Arc<User>,
    /// The transaction of the record.
    epoch: TxId,
    /// What a token of the user rests on.
    token_epoch: TxId,
}
