//! From what a call says about itself to a session or a token, when this node alone cannot tell.
//!
//! The node that made a session, its owner, knows its database and when it was used last, and is asked with each call. When it
//! is down, the session is made anew from its claim, and again looked at with each call: at the newest records of `systemdb`,
//! where every change of a session's database is before it is answered. So no node ever answers from a database that the
//! session has left.
//!
//! A session is made anew only by a node that would know if it had ended ([`crate::session::ended`]), and only as long as its
//! user's record is the one that it was opened with.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_raft::error::ReadError;
use alhambra_raft::meta::User;
use tokio::time::{Instant, timeout_at};

use super::App;
use crate::claim::{Claim, Kind, Unverified};
use crate::context::{SessionHeader, TokenHeader};
use crate::error::{Error, Result};
use crate::keys::key_id;
use crate::limits::{KEY_LOOKS_APART, OWNER_ANSWERS};
use crate::peer::{Answer, Ask};
use crate::session::Session;
use crate::session::token::{Token, epoch_of};

impl App {
    /// This node; none until the cluster is formed.
    pub(crate) fn me(&self) -> Option<u64> {
        if let Some(me) = self.me.get() {
            return Some(*me);
        }
        let me = self.groups.identity()?.node_id;
        Some(*self.me.get_or_init(|| me))
    }

    /// The session of a call, as far as this node can tell by itself: none when others have to be asked. Counts as used.
    pub(crate) fn own_session(&self, text: &str) -> Option<SessionHeader> {
        let session = self.sessions.find(text)?;
        // One that was made anew is its owner's again as soon as that is back.
        (Some(session.owner()) == self.me()).then(|| {
            session.touch();
            SessionHeader::Known(session)
        })
    }

    /// The session of a call. Fails when that cannot be told now.
    pub(crate) async fn session(&self, text: &str, deadline: Instant) -> Result<SessionHeader> {
        let Some(read) = Claim::read(text) else { return Ok(SessionHeader::Unknown) };
        let found = if Some(read.claim.owner) == self.me() {
            self.returned(text, read, deadline).await?
        } else {
            self.foreign(text, read, deadline).await?
        };
        Ok(found.map_or(SessionHeader::Unknown, SessionHeader::Known))
    }

    /// A session of this node that it does not hold (any more). It may have been opened before the process was started.
    pub(super) async fn returned(
        &self,
        text: &str,
        read: Unverified,
        deadline: Instant,
    ) -> Result<Option<Arc<Session>>> {
        if self.sessions.remembers(read.claim.issued_ms) {
            return Ok(None);
        }
        self.anew(text, read, deadline).await
    }

    /// A session of another node.
    async fn foreign(&self, text: &str, read: Unverified, deadline: Instant) -> Result<Option<Arc<Session>>> {
        let claim = &read.claim;
        if claim.kind != Kind::Session || !self.groups.peers().contains(&claim.owner) {
            return Ok(None);
        }
        // Nobody is asked about what anybody may have made up.
        if self.sessions.find(text).is_none() && !self.is_signed(&read, deadline).await? {
            return Ok(None);
        }
        let ask = Ask::Touch { text: text.to_owned() };
        match self.ask(claim.owner, &ask, deadline.min(Instant::now() + OWNER_ANSWERS)).await {
            // The owner has compared every character.
            Some(Answer::Lives { tx, database }) => {
                let user = self.user_of(claim, deadline).await?;
                let Some(user) = user else { return Ok(None) };
                let session = Session::elsewhere(text, read.claim, user, (tx, database.into()));
                // The owner may have missed a change that was acknowledged: the latest counts, whoever knows it.
                if let Some((database, tx)) = self.groups.meta().session_database(&session.end().id)? {
                    session.select(tx, database.into());
                }
                if let Some(copy) = self.sessions.by_id(&session.end().id) {
                    let (known, database) = copy.selected();
                    session.select(known, database);
                    if known <= tx {
                        self.sessions.forget(&copy);
                    }
                }
                Ok(Some(session))
            }
            Some(Answer::IsOver) => {
                if let Some(copy) = self.sessions.by_id(&claim.id) {
                    self.sessions.end(copy.end());
                }
                Ok(None)
            }
            Some(_) => Err(Error::Starting { what: "the session" }),
            None => self.anew(text, read, deadline).await,
        }
    }

    /// The user of a session, if the record is still the one that the session was opened with.
    async fn user_of(&self, claim: &Claim, deadline: Instant) -> Result<Option<Arc<User>>> {
        let known = || self.groups.meta().user_at(&claim.user);
        let found = match known() {
            Some(found) if found.1 >= claim.epoch => Some(found),
            // This node lags behind the one that opened the session.
            _ => {
                self.groups.meta().barrier(deadline).await?;
                known()
            }
        };
        Ok(found.filter(|(_, epoch, _)| *epoch == claim.epoch).map(|(user, ..)| Arc::new(user)))
    }

    /// Makes a session anew whose owner is down or has forgotten it, or looks again at one that was made so.
    pub(super) async fn anew(&self, text: &str, read: Unverified, deadline: Instant) -> Result<Option<Arc<Session>>> {
        let claim = &read.claim;
        let held = self.sessions.find(text);
        if held.is_none() {
            if claim.kind != Kind::Session || claim.is_over(self.env.clock.now_unix_ms()) {
                return Ok(None);
            }
            if !self.is_signed(&read, deadline).await? || !self.may_live(claim, deadline).await {
                return Ok(None);
            }
        }
        self.groups.meta().barrier(deadline).await?;
        let Some(user) = self.user_of(claim, deadline).await? else { return Ok(None) };
        let Some(first) = claim.database.clone() else { return Ok(None) };
        let now = || -> Result<(TxId, Arc<str>)> {
            let selected = self.groups.meta().session_database(&claim.id)?;
            Ok(selected.map_or_else(|| (TxId(0), first.clone()), |(database, tx)| (tx, database.into())))
        };
        let me = self.me().ok_or(Error::Starting { what: "the cluster" })?;
        let Some(session) = self.sessions.adopt(me, text, claim.clone(), user, now()?)? else { return Ok(None) };
        // A node that changes the database tells those that hold the session. It may have told us just before we did.
        let (tx, database) = now()?;
        session.select(tx, database);
        Ok(Some(session))
    }

    /// Whether this node would know if the session had ended, and it has not.
    async fn may_live(&self, claim: &Claim, deadline: Instant) -> bool {
        let judge = || {
            let ended = self.sessions.ended().lock();
            (ended.contains(&claim.id), claim.issued_ms > ended.floor_ms())
        };
        let (mut has_ended, mut vouched) = judge();
        if !has_ended && !vouched {
            self.ask_for_ends(deadline.min(Instant::now() + OWNER_ANSWERS)).await;
            (has_ended, vouched) = judge();
        }
        vouched && !has_ended
    }

    /// Whether the claim's owner has signed it. The owner's key may be newer than what is known here.
    async fn is_signed(&self, read: &Unverified, deadline: Instant) -> Result<bool> {
        let judge = || {
            let key = self.groups.meta().node(read.claim.owner)?.session_key?;
            (key_id(&key) == read.claim.key).then(|| read.is_signed_by(&key))
        };
        if let Some(judged) = judge() {
            return Ok(judged);
        }
        self.look_for_key(deadline).await?;
        Ok(judge().unwrap_or(false))
    }

    /// Fetches the newest records, for a claim whose key is not known here. Anybody can write such a claim: those that come at a
    /// time share one look, and looks are [`KEY_LOOKS_APART`].
    async fn look_for_key(&self, deadline: Instant) -> Result<()> {
        let came = Instant::now();
        let turn = timeout_at(deadline, self.looked_for_key.lock()).await;
        let mut latest = turn.map_err(|_| Error::from(ReadError::NoQuorum))?;
        if let Some(began) = *latest {
            if began > came {
                return Ok(());
            }
            tokio::time::sleep_until(deadline.min(began + KEY_LOOKS_APART)).await;
        }
        let began = Instant::now();
        self.groups.meta().barrier(deadline).await?;
        *latest = Some(began);
        Ok(())
    }

    /// The token of a call, as far as this node can tell without asking others; none when the newest records are needed.
    pub(crate) fn own_token(&self, text: &str) -> Option<TokenHeader> {
        if text.is_empty() {
            return Some(TokenHeader::Absent);
        }
        let token = self.sessions.tokens().verified(text)?;
        let over = token.claim().is_over(self.env.clock.now_unix_ms());
        Some(if over { TokenHeader::Refused(TokenRefusal::Expired) } else { TokenHeader::Known(token) })
    }

    /// The token of a call.
    pub(crate) async fn token(&self, text: &str, deadline: Instant) -> TokenHeader {
        let refused = TokenHeader::Refused;
        let Some(read) = Claim::read(text).filter(|read| read.claim.kind != Kind::Session) else {
            return refused(TokenRefusal::Malformed);
        };
        let claim = &read.claim;
        if !self.access().takes(claim.kind) {
            return refused(TokenRefusal::NotLoggedIn);
        }
        if claim.kind == Kind::Anonymous {
            return self.anonymous_token(text, read, deadline).await;
        }
        let meta = self.groups.meta();
        let known = || {
            let key = meta.node(claim.owner).and_then(|node| node.session_key);
            (key.filter(|key| key_id(key) == claim.key), meta.user_at(&claim.user))
        };
        let (mut key, mut user) = known();
        let lags = |user: &Option<(User, TxId, Option<TxId>)>| {
            user.as_ref().is_none_or(|(_, tx, logout)| epoch_of((*tx, *logout)) < claim.epoch)
        };
        // Whoever has made it up is not worth a look at the newest records.
        if key.is_some_and(|key| !read.is_signed_by(&key)) {
            return refused(TokenRefusal::Forged);
        }
        if key.is_none() {
            if self.look_for_key(deadline).await.is_err() {
                return refused(TokenRefusal::Unsure);
            }
            (key, user) = known();
        } else if lags(&user) {
            if meta.barrier(deadline).await.is_err() {
                return refused(TokenRefusal::Unsure);
            }
            (key, user) = known();
        }
        let Some(key) = key else { return refused(TokenRefusal::NotLoggedIn) };
        if !read.is_signed_by(&key) {
            return refused(TokenRefusal::Forged);
        }
        let user = user.filter(|(_, tx, logout)| epoch_of((*tx, *logout)) == claim.epoch);
        let Some((user, ..)) = user else {
            let has_login = self.sessions.tokens().logins(&claim.user) > 0;
            return refused(if has_login { TokenRefusal::Ended } else { TokenRefusal::NotLoggedIn });
        };
        if claim.is_over(self.env.clock.now_unix_ms()) {
            return refused(TokenRefusal::Expired);
        }
        let token = Arc::new(Token::new(text, read.claim.clone(), Arc::new(user)));
        self.sessions.tokens().remember(token.clone());
        // It may have been ended between the look at the records and now; whoever ends tokens forgets those from before.
        if self.is_current(token.user()) { TokenHeader::Known(token) } else { refused(TokenRefusal::NotLoggedIn) }
    }

    /// A token that rests on no user's record.
    async fn anonymous_token(&self, text: &str, read: Unverified, deadline: Instant) -> TokenHeader {
        let judged = match (self.access().nobody(), self.is_signed(&read, deadline).await) {
            (_, Err(_)) => Err(TokenRefusal::Unsure),
            (None, _) => Err(TokenRefusal::NotLoggedIn),
            (_, Ok(false)) => Err(TokenRefusal::Forged),
            _ if read.claim.is_over(self.env.clock.now_unix_ms()) => Err(TokenRefusal::Expired),
            (Some(nobody), Ok(true)) => Ok(Arc::new(Token::new(text, read.claim, nobody.clone()))),
        };
        match judged {
            Ok(token) => {
                self.sessions.tokens().remember(token.clone());
                TokenHeader::Known(token)
            }
            Err(refusal) => TokenHeader::Refused(refusal),
        }
    }
}

/// Why a token is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// Made by a node that is no more, ended while its user has no login, or of a kind that this node does not take.
    NotLoggedIn,
    /// It has not the form of a token.
    Malformed,
    /// Its signature is not its owner's.
    Forged,
    /// Ended while its user has another login.
    Ended,
    /// Its time is over.
    Expired,
    /// The records here are too old to judge it, and newer ones are not to be had.
    Unsure,
}

impl From<TokenRefusal> for Error {
    fn from(refusal: TokenRefusal) -> Self {
        let invalid = |cause| Self::WireCause { error: text::INVALID_TOKEN, cause };
        match refusal {
            TokenRefusal::NotLoggedIn => text::NOT_LOGGED_IN.into(),
            TokenRefusal::Malformed => invalid("token has a wrong form"),
            TokenRefusal::Forged => invalid("token has a wrong signature"),
            TokenRefusal::Ended => invalid("token was ended"),
            TokenRefusal::Expired => text::TOKEN_EXPIRED.into(),
            TokenRefusal::Unsure => ReadError::NoQuorum.into(),
        }
    }
}
