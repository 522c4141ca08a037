//! Sessions and tokens of this node, in memory: they end with the process.
//!
//! A session has exactly one selected database and ends when it is idle or too old. A token of Login or UseDatabase is
//! bound to one database. Both hold the user's record as it was at login; when `systemdb` shows another record, they are
//! ended ([`Sessions::user_changed`]).
//!
//! All times are `tokio::time`, virtual in a simulation. No lock is held across an await.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_proto::code::text;
use alhambra_raft::env::Env;
use alhambra_raft::meta::User;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::auth::random;
use crate::error::{Error, Result};

/// Random bytes of a session id and of a token.
const SECRET_LEN: usize = 32;
/// Most tokens that a node keeps; far more than there are logins within a token's life.
const TOKENS_MAX: usize = 100_000;
/// For how long an expired token is remembered, so that its holder is told that it expired.
const EXPIRED_KEPT: Duration = Duration::from_secs(86_400);

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
    id: Box<str>,
    user: Arc<User>,
    database: RwLock<Arc<str>>,
    opened: Instant,
    /// Milliseconds from `opened` to the latest call.
    used_after_ms: AtomicU64,
}

impl Session {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its user, as it was at login.
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// The selected database.
    pub fn database(&self) -> Arc<str> {
        self.database.read().clone()
    }

    /// Selects another database.
    pub fn select(&self, database: Arc<str>) {
        *self.database.write() = database;
    }

    fn touch(&self) {
        let ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_after_ms.fetch_max(ms, Ordering::Relaxed);
    }

    fn is_over(&self, limits: &Limits, now: Instant) -> bool {
        let used = self.opened + Duration::from_millis(self.used_after_ms.load(Ordering::Relaxed));
        let over = |since: Instant, max: Duration| !max.is_zero() && now.saturating_duration_since(since) >= max;
        over(used, limits.idle_max) || over(self.opened, limits.age_max)
    }
}

/// What a token stands for.
#[derive(Clone, Debug)]
pub struct Token {
    user: Arc<User>,
    database: Option<Arc<str>>,
    expires: Instant,
}

impl Token {
    /// Its user, as it was at login.
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// The selected database; none until UseDatabase.
    pub fn database(&self) -> Option<Arc<str>> {
        self.database.clone()
    }
}

#[derive(Debug, Default)]
struct Tokens {
    by_secret: HashMap<[u8; SECRET_LEN], Token>,
    /// Logins of each user that no Logout has ended.
    logins: HashMap<String, u64>,
}

/// All sessions and tokens of this node.
#[derive(Debug)]
pub struct Sessions {
    env: Env,
    limits: Limits,
    sessions: RwLock<HashMap<Box<str>, Arc<Session>>>,
    tokens: Mutex<Tokens>,
}

impl Sessions {
    /// None yet.
    pub fn new(env: Env, limits: Limits) -> Self {
        Self { env, limits, sessions: RwLock::default(), tokens: Mutex::default() }
    }

    /// Bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Number of open sessions.
    pub fn count(&self) -> usize {
        self.sessions.read().len()
    }

    /// Opens a session. Fails when there are too many, counting those that are over but were not looked at yet.
    pub fn open(&self, user: Arc<User>, database: Arc<str>) -> Result<Arc<Session>> {
        let id = URL_SAFE.encode(random::<SECRET_LEN>(&self.env)).into_boxed_str();
        let session = Arc::new(Session {
            id: id.clone(),
            user,
            database: RwLock::new(database),
            opened: Instant::now(),
            used_after_ms: AtomicU64::new(0),
        });
        let mut sessions = self.sessions.write();
        if sessions.len() >= self.limits.sessions_max {
            return Err(text::MAX_SESSIONS.into());
        }
        sessions.insert(id, session.clone());
        Ok(session)
    }

    /// The session with this id, which counts as used now; none when it does not exist or is over.
    pub fn refresh(&self, id: &str) -> Option<Arc<Session>> {
        let session = self.sessions.read().get(id)?.clone();
        if session.is_over(&self.limits, Instant::now()) {
            self.close(id);
            return None;
        }
        session.touch();
        Some(session)
    }

    /// Ends a session.
    pub fn close(&self, id: &str) {
        self.sessions.write().remove(id);
    }

    /// Ends what is over. The guard calls it from time to time.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.sessions.write().retain(|_, session| !session.is_over(&self.limits, now));
        self.tokens.lock().by_secret.retain(|_, token| now < token.expires + EXPIRED_KEPT);
    }

    /// Makes a token and counts a login.
    pub fn login(&self, user: Arc<User>, database: Option<Arc<str>>) -> Result<String> {
        let token = self.issue(user.clone(), database)?;
        *self.tokens.lock().logins.entry(user.name.clone()).or_default() += 1;
        Ok(token)
    }

    /// Makes a token without counting a login, as UseDatabase does. The token is valid by itself.
    pub fn issue(&self, user: Arc<User>, database: Option<Arc<str>>) -> Result<String> {
        let secret = random::<SECRET_LEN>(&self.env);
        let mut encoded = Vec::with_capacity(SECRET_LEN + user.name.len());
        encoded.extend(secret);
        encoded.extend(user.name.as_bytes());
        let expires = Instant::now() + self.limits.token_life;
        let mut tokens = self.tokens.lock();
        if tokens.by_secret.len() >= TOKENS_MAX {
            let now = Instant::now();
            tokens.by_secret.retain(|_, token| now < token.expires);
            if tokens.by_secret.len() >= TOKENS_MAX {
                return Err(text::MAX_SESSIONS.into());
            }
        }
        tokens.by_secret.insert(secret, Token { user, database, expires });
        Ok(URL_SAFE.encode(encoded))
    }

    /// What a token stands for. Empty, or unknown while its user has no login, means not logged in; unknown while its user
    /// has one, or of another form, means invalid.
    pub fn token(&self, token: &str) -> Result<Token> {
        if token.is_empty() {
            return Err(text::NOT_LOGGED_IN.into());
        }
        let malformed = || Error::WireCause { error: text::INVALID_TOKEN, cause: "token has a wrong form" };
        let decoded = URL_SAFE.decode(token).map_err(|_| malformed())?;
        let (secret, name) = decoded.split_first_chunk::<SECRET_LEN>().ok_or_else(malformed)?;
        let tokens = self.tokens.lock();
        match tokens.by_secret.get(secret) {
            Some(found) if Instant::now() < found.expires => Ok(found.clone()),
            Some(_) => Err(text::TOKEN_EXPIRED.into()),
            None if std::str::from_utf8(name).is_ok_and(|name| tokens.logins.contains_key(name)) => {
                Err(Error::WireCause { error: text::INVALID_TOKEN, cause: "token was ended" })
            }
            None => Err(text::NOT_LOGGED_IN.into()),
        }
    }

    /// Takes back one login of the user; the last one ends all tokens of the user.
    pub fn logout(&self, name: &str) -> Result<()> {
        let mut tokens = self.tokens.lock();
        let count = tokens.logins.get_mut(name).ok_or(text::NOT_LOGGED_IN)?;
        *count -= 1;
        if *count == 0 {
            tokens.logins.remove(name);
            tokens.by_secret.retain(|_, token| token.user.name != name);
        }
        Ok(())
    }

    /// Ends everything of users whose record is another now, or gone.
    pub fn user_changed(&self, current: impl Fn(&str) -> Option<User>) {
        // Every modification sets by whom and when, so one that sets what was there before counts as well.
        let changed = |user: &User| current(&user.name).is_none_or(|now| now != *user);
        self.sessions.write().retain(|_, session| !changed(&session.user));
        let mut tokens = self.tokens.lock();
        tokens.by_secret.retain(|_, token| !changed(&token.user));
        let with_tokens: std::collections::HashSet<String> =
            tokens.by_secret.values().map(|token| token.user.name.clone()).collect();
        tokens.logins.retain(|name, _| with_tokens.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use alhambra_storage::vfs::Vfs;

    use super::*;
    use crate::auth::first_user;

    const LIMITS: Limits = Limits {
        sessions_max: 2,
        idle_max: Duration::from_secs(120),
        age_max: Duration::from_secs(600),
        token_life: Duration::from_secs(60),
    };

    fn sessions() -> Sessions {
        let vfs: Arc<dyn Vfs> = Arc::new(alhambra_storage::vfs::os::OsVfs);
        Sessions::new(Env::production(vfs), LIMITS)
    }

    fn user(name: &str) -> Arc<User> {
        Arc::new(User { name: name.to_owned(), ..first_user("hash".to_owned(), 0) })
    }

    fn text_of<T: std::fmt::Debug>(result: Result<T>) -> String {
        tonic::Status::from(result.unwrap_err()).message().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_used_session_lives_and_an_idle_one_ends() {
        let sessions = sessions();
        let session = sessions.open(user("u"), "defaultdb".into()).unwrap();
        assert_eq!(session.id().len(), 44);
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(119)).await;
            assert!(sessions.refresh(session.id()).is_some());
        }
        tokio::time::advance(Duration::from_secs(120)).await;
        assert!(sessions.refresh(session.id()).is_none());
        assert_eq!(sessions.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_at_its_age_however_busy() {
        let sessions = sessions();
        let session = sessions.open(user("u"), "defaultdb".into()).unwrap();
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(100)).await;
            assert!(sessions.refresh(session.id()).is_some());
        }
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(sessions.refresh(session.id()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_sessions_is_bounded_and_the_guard_makes_room() {
        let sessions = sessions();
        for _ in 0..2 {
            sessions.open(user("u"), "defaultdb".into()).unwrap();
        }
        let error = sessions.open(user("u"), "defaultdb".into());
        assert_eq!(text_of(error), "can not create new session: max sessions number reached");
        tokio::time::advance(Duration::from_secs(121)).await;
        sessions.sweep();
        assert!(sessions.open(user("u"), "defaultdb".into()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_expire_and_say_so() {
        let sessions = sessions();
        let token = sessions.login(user("u"), None).unwrap();
        assert!(sessions.token(&token).unwrap().database().is_none());
        tokio::time::advance(Duration::from_secs(60)).await;
        sessions.sweep();
        assert_eq!(text_of(sessions.token(&token)), "token has expired: token validation error");
        tokio::time::advance(EXPIRED_KEPT).await;
        sessions.sweep();
        assert_eq!(text_of(sessions.token(&token)), "invalid token", "the user still has a login");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_logout_ends_all_tokens_of_the_user() {
        let sessions = sessions();
        let (first, second) = (sessions.login(user("u"), None).unwrap(), sessions.login(user("u"), None).unwrap());
        let bound = sessions.issue(user("u"), Some("db".into())).unwrap();
        let other = sessions.login(user("v"), None).unwrap();
        sessions.logout("u").unwrap();
        assert!(sessions.token(&first).is_ok() && sessions.token(&bound).is_ok());
        sessions.logout("u").unwrap();
        for token in [&first, &second, &bound] {
            assert_eq!(text_of(sessions.token(token)), "not logged in");
        }
        assert!(sessions.token(&other).is_ok());
        assert_eq!(text_of(sessions.logout("u")), "not logged in");
        sessions.login(user("u"), None).unwrap();
        assert_eq!(text_of(sessions.token(&first)), "invalid token");
    }

    #[test]
    fn tokens_of_another_form_are_invalid_and_empty_ones_nobody() {
        let sessions = sessions();
        assert_eq!(text_of(sessions.token("")), "not logged in");
        for token in ["x", "bearer abc", &URL_SAFE.encode([0; 31])] {
            assert_eq!(text_of(sessions.token(token)), "invalid token", "{token}");
        }
        assert_eq!(text_of(sessions.token(&URL_SAFE.encode([0; 40]))), "not logged in");
    }

    #[tokio::test]
    async fn a_changed_user_loses_sessions_and_tokens() {
        type Change = fn(&mut User);
        let changes: [(&str, Change); 6] = [
            ("password", |user| user.password = "another".into()),
            ("permission", |user| _ = user.permissions.insert("d".into(), 1)),
            ("privileges", |user| _ = user.sql_privileges.insert("d".into(), ["SELECT".into()].into())),
            ("activity", |user| user.active = false),
            ("the same again by another", |user| user.created_by = "admin".into()),
            ("the same again later", |user| user.created_at_ms += 1),
        ];
        for (what, change) in changes {
            let sessions = sessions();
            let (kept, changed) = (user("kept"), user("changed"));
            let a = sessions.open(kept.clone(), "defaultdb".into()).unwrap();
            let b = sessions.open(changed.clone(), "defaultdb".into()).unwrap();
            let (t, u) = (sessions.login(kept.clone(), None).unwrap(), sessions.login(changed.clone(), None).unwrap());
            let now = |name: &str| Some((*user(name)).clone());
            sessions.user_changed(now);
            assert!(sessions.refresh(b.id()).is_some() && sessions.token(&u).is_ok(), "nothing has changed");
            sessions.user_changed(|name| {
                let mut user = now(name)?;
                if name == "changed" {
                    change(&mut user);
                }
                Some(user)
            });
            assert!(sessions.refresh(a.id()).is_some() && sessions.refresh(b.id()).is_none(), "{what}");
            assert!(sessions.token(&t).is_ok(), "{what}");
            assert_eq!(text_of(sessions.token(&u)), "not logged in", "{what}");
        }
    }
}
