//! The sessions that this node holds, in memory: its own, and those that it has made anew because their owner is down.
//!
//! A session has exactly one selected database and ends when it is idle or too old. Its id is a signed claim
//! ([`crate::claim`]) that any node takes; [`crate::service::resolve`] says what a node does with one that it does not hold.
//! Sessions hold the user's record as it was at login; when `systemdb` shows another record, they are ended
//! ([`Sessions::user_changed`]).
//!
//! Idle times and ages here are `tokio::time`, virtual in a simulation; what a claim says is wall-clock time. No lock is held
//! across an await.

pub mod ended;
pub mod token;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_raft::env::Env;
use alhambra_raft::meta::{SessionId, User};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use self::ended::{End, Ended};
use self::token::{Token, Tokens};
use crate::auth::random;
use crate::claim::{Claim, Kind, Slot, slot, slot_of};
use crate::error::Result;
use crate::keys::NodeKey;

/// Bounds of sessions and tokens. A duration of zero means no limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open sessions.
    pub sessions_max: usize,
    /// Idle time after which a session ends.
    pub idle_max: Duration,
    /// Age at which a session ends.
    pub age_max: Duration,
    /// Life of a token.
    pub token_life: Duration,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    text: Box<str>,
    end: End,
    owner: u64,
    /// Whether its owner holds it; others hold copies, and only for as long as the owner is down.
    is_copy: bool,
    user: Arc<User>,
    epoch: TxId,
    /// The selected database, and the `systemdb` transaction that says so; 0 while it is the first.
    selected: RwLock<(TxId, Arc<str>)>,
    opened: Instant,
    ends: Option<Instant>,
    /// Milliseconds from `opened` to the latest call.
    used_after_ms: AtomicU64,
}

impl Session {
    fn new(text: &str, claim: Claim, user: Arc<User>, selected: (TxId, Arc<str>), is_copy: bool, now_ms: i64) -> Self {
        let opened = Instant::now();
        let left = |ends_ms: i64| Duration::from_millis(u64::try_from(ends_ms - now_ms).unwrap_or(0));
        Self {
            text: text.into(),
            end: End { issued_ms: claim.issued_ms, id: claim.id },
            owner: claim.owner,
            is_copy,
            user,
            epoch: claim.epoch,
            selected: RwLock::new(selected),
            opened,
            ends: (claim.expires_ms != 0).then(|| opened + left(claim.expires_ms)),
            used_after_ms: AtomicU64::new(0),
        }
    }

    /// A session that another node holds, as it is for one call.
    pub fn elsewhere(text: &str, claim: Claim, user: Arc<User>, selected: (TxId, Arc<str>)) -> Arc<Self> {
        Arc::new(Self::new(text, claim, user, selected, true, 0))
    }

    /// Its id, as clients send it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its random id and when it was issued.
    pub fn end(&self) -> End {
        self.end
    }

    /// The node that made it.
    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// Its user, as it was at login.
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// The selected database.
    pub fn database(&self) -> Arc<str> {
        self.selected.read().1.clone()
    }

    /// The selected database and the transaction that says so.
    pub fn selected(&self) -> (TxId, Arc<str>) {
        self.selected.read().clone()
    }

    /// Selects a database as `systemdb` transaction `tx` says, unless a later one has spoken.
    pub fn select(&self, tx: TxId, database: Arc<str>) {
        let mut selected = self.selected.write();
        if tx > selected.0 {
            *selected = (tx, database);
        }
    }

    /// It counts as used now.
    pub(crate) fn touch(&self) {
        let ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_after_ms.fetch_max(ms, Ordering::Relaxed);
    }

    fn is_over(&self, limits: &Limits, now: Instant) -> bool {
        let used = self.opened + Duration::from_millis(self.used_after_ms.load(Ordering::Relaxed));
        let idle = !limits.idle_max.is_zero() && now.saturating_duration_since(used) >= limits.idle_max;
        idle || self.ends.is_some_and(|ends| now >= ends)
    }
}

/// All sessions that this node holds, what it knows of those that have ended, and its tokens.
#[derive(Debug)]
pub struct Sessions {
    env: Env,
    key: NodeKey,
    limits: Limits,
    /// When this process began, milliseconds since 1970-01-01 UTC.
    began_ms: i64,
    sessions: RwLock<HashMap<Slot, Arc<Session>>>,
    ended: Mutex<Ended>,
    tokens: Tokens,
}

impl Sessions {
    /// None yet.
    pub fn new(env: Env, key: NodeKey, limits: Limits) -> Self {
        let began_ms = env.clock.now_unix_ms();
        Self {
            env,
            key,
            limits,
            began_ms,
            sessions: RwLock::default(),
            ended: Mutex::new(Ended::new(began_ms)),
            tokens: Tokens::default(),
        }
    }

    /// Bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The key of this node.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// What is known of sessions that have ended.
    pub fn ended(&self) -> &Mutex<Ended> {
        &self.ended
    }

    /// Tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Number of sessions that this node holds.
    pub fn count(&self) -> usize {
        self.sessions.read().len()
    }

    /// Whether this process holds, or has held, a session of this node that was issued then.
    pub fn remembers(&self, issued_ms: i64) -> bool {
        issued_ms >= self.began_ms
    }

    fn life(life: Duration) -> i64 {
        i64::try_from(life.as_millis()).unwrap_or(i64::MAX)
    }

    fn claim(
        &self,
        kind: Kind,
        owner: u64,
        user: &User,
        epoch: TxId,
        database: Option<Arc<str>>,
        life: Duration,
    ) -> Claim {
        let issued_ms = self.env.clock.now_unix_ms();
        Claim {
            kind,
            id: random(&self.env),
            owner,
            key: self.key.id(),
            issued_ms,
            expires_ms: if life.is_zero() { 0 } else { issued_ms.saturating_add(Self::life(life)) },
            epoch,
            user: user.name.clone(),
            database,
        }
    }

    /// Opens a session of node `owner`, which is this one, that rests on a user's record of transaction `epoch`. Fails when
    /// there are too many, counting those that are over but were not looked at yet.
    pub fn open(&self, owner: u64, user: Arc<User>, epoch: TxId, database: Arc<str>) -> Result<Arc<Session>> {
        if self.count() >= self.limits.sessions_max {
            return Err(text::MAX_SESSIONS.into());
        }
        let claim = self.claim(Kind::Session, owner, &user, epoch, Some(database.clone()), self.limits.age_max);
        let text = claim.sign(&self.key);
        let now_ms = claim.issued_ms;
        self.insert(Session::new(&text, claim, user, (TxId(0), database), false, now_ms))
    }

    /// Makes a session anew on node `me` from its verified claim, or finds the one that was made before. The time that it may be
    /// idle begins when it is made. Fails when there are too many; none when it has ended.
    pub fn adopt(
        &self,
        me: u64,
        text: &str,
        claim: Claim,
        user: Arc<User>,
        selected: (TxId, Arc<str>),
    ) -> Result<Option<Arc<Session>>> {
        let now_ms = self.env.clock.now_unix_ms();
        if claim.is_over(now_ms) {
            return Ok(None);
        }
        let mut held = self.by_id(&claim.id);
        if let Some(over) = held.take_if(|held| held.is_over(&self.limits, Instant::now())) {
            self.is_over(&over);
            if !over.is_copy {
                return Ok(None);
            }
        }
        let session = match held {
            Some(held) => {
                held.select(selected.0, selected.1);
                held.touch();
                held
            }
            None => {
                let is_copy = claim.owner != me;
                self.insert(Session::new(text, claim, user, selected, is_copy, now_ms))?
            }
        };
        // Whoever ends it notes that first and then looks for it here, so one of us sees the other.
        if self.ended.lock().contains(&session.end.id) {
            self.forget(&session);
            return Ok(None);
        }
        Ok(Some(session))
    }

    fn insert(&self, session: Session) -> Result<Arc<Session>> {
        let session = Arc::new(session);
        let slot = slot_of(&session.end.id);
        let mut sessions = self.sessions.write();
        if sessions.len() >= self.limits.sessions_max && !sessions.contains_key(&slot) {
            return Err(text::MAX_SESSIONS.into());
        }
        // Two calls may make the same session anew.
        Ok(sessions.entry(slot).or_insert(session).clone())
    }

    /// The session with this id, if it is held here, which counts as used now; none when it is over.
    pub fn refresh(&self, text: &str) -> Option<Arc<Session>> {
        let session = self.find(text)?;
        session.touch();
        Some(session)
    }

    /// As [`Self::refresh`], but it does not count as used.
    pub fn find(&self, text: &str) -> Option<Arc<Session>> {
        let session = self.sessions.read().get(&slot(text)?)?.clone();
        if *session.text != *text {
            return None;
        }
        if session.is_over(&self.limits, Instant::now()) {
            self.is_over(&session);
            return None;
        }
        Some(session)
    }

    /// A session was idle for too long, or is too old. A copy may be idle because others are used, here nobody can tell; what is
    /// too old says so itself. So only the owner's ends the session.
    fn is_over(&self, session: &Session) {
        if session.is_copy { self.forget(session) } else { self.end(session.end) }
    }

    /// All that are held here.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.read().values().cloned().collect()
    }

    /// The session with this random id, if it is held here.
    pub fn by_id(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.sessions.read().get(&slot_of(id)).cloned()
    }

    /// Does not hold a session any more, because its owner does.
    pub fn forget(&self, session: &Session) {
        self.sessions.write().remove(&slot_of(&session.end.id));
    }

    /// Ends a session: it is held here no more, and never made anew.
    pub fn end(&self, end: End) {
        self.ended.lock().add(end);
        self.sessions.write().remove(&slot_of(&end.id));
    }

    /// Ends what is over, and forgets copies that are. The guard calls it from time to time.
    pub fn sweep(&self) {
        let now = Instant::now();
        let is_over = |session: &Arc<Session>| session.is_over(&self.limits, now);
        let over: Vec<End> = (self.sessions.read().values().filter(|session| !session.is_copy && is_over(session)))
            .map(|session| session.end)
            .collect();
        let mut ended = self.ended.lock();
        for end in over {
            ended.add(end);
        }
        drop(ended);
        self.sessions.write().retain(|_, session| !is_over(session));
    }

    /// Makes a token. It is valid by itself, on every node that takes its kind, until it expires or its user changes.
    pub fn issue(&self, kind: Kind, owner: u64, user: Arc<User>, epoch: TxId, database: Option<Arc<str>>) -> String {
        let claim = self.claim(kind, owner, &user, epoch, database, self.limits.token_life);
        let text = claim.sign(&self.key);
        self.tokens.remember(Arc::new(Token::new(&text, claim, user)));
        text
    }

    /// Ends everything of users whose record is another now, or gone, and all tokens of users that have logged out. `current`
    /// tells the transactions that wrote a user's record and that ended all of its tokens.
    pub fn user_changed(&self, current: impl Fn(&str) -> Option<(TxId, Option<TxId>)>) {
        // A record that says what it said before counts as another: every modification sets by whom and when.
        let unchanged =
            |session: &Session| current(&session.user.name).is_some_and(|(epoch, _)| epoch == session.epoch);
        // Their claims rest on a record that is no more, so nobody makes them anew.
        self.sessions.write().retain(|_, session| unchanged(session));
        self.tokens.keep_current(&current, self.env.clock.now_unix_ms());
    }
}

#[cfg(test)]
mod tests;
