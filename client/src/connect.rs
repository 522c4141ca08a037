//! Endpoints, login, and the loop that carries one call to an endpoint that can serve it.
//!
//! A client stays with the endpoint that served it last. When that one cannot, the next in the list is tried, after
//! logging in there; sessions at endpoints left behind are kept for the way back. All endpoints must show the same server
//! identity, because trusted states belong to it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alhambra_proto::code::text;
use alhambra_proto::header;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use alhambra_proto::schema::{Database, OpenSessionRequest};
use tokio::sync::{Mutex, RwLock};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::retry::{Backoff, Kind, Verdict, distrust, judge};
use crate::tls::Tls;

/// Connections that cannot be made within this time are given up, so that a dead machine costs little.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection is probed this often while a call waits on it, so that a vanished machine is noticed.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// The least time that an attempt of a read gets before the next endpoint is tried.
const ATTEMPT_TIME_MIN: Duration = Duration::from_millis(500);
/// Replies larger than this are refused: the largest value (32 MiB) with room for keys and proofs.
pub(crate) const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The database that is served when authentication is off.
const DEFAULT_DATABASE: &str = "defaultdb";

pub(crate) type Service = ImmuServiceClient<Channel>;

/// Who logs in.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// One server process that may serve calls.
struct Target {
    name: String,
    service: Service,
}

/// Key and value of the metadata that lets a call in.
type Pass = (&'static str, MetadataValue<Ascii>);

/// A login at one endpoint, or what stands for it where nobody logs in.
pub(crate) struct Session {
    target: usize,
    service: Service,
    /// What each call shows; nothing when authentication is off.
    pass: Option<Pass>,
}

impl Session {
    /// Whether the server holds it.
    fn is_of_user(&self) -> bool {
        self.pass.as_ref().is_some_and(|(key, _)| *key == header::SESSION)
    }

    fn admit<T>(&self, request: &mut Request<T>) {
        if let Some((key, value)) = &self.pass {
            request.metadata_mut().insert(*key, value.clone());
        }
    }
}

/// Endpoints, credentials and the current session.
pub(crate) struct Connection {
    targets: Vec<Target>,
    /// Nobody logs in without.
    credentials: Option<Credentials>,
    request_timeout: Duration,
    /// Database to select when logging in.
    database: RwLock<String>,
    /// Per target. The lock is held while logging in, so that many waiting calls log in once.
    sessions: Mutex<Vec<Option<Arc<Session>>>>,
    /// Target of the next attempt: the last one that worked.
    preferred: AtomicUsize,
    /// Identity of the server, fixed by the first login.
    server_uuid: RwLock<Option<String>>,
}

/// Why there is no session.
enum LoginFailure {
    /// This endpoint cannot now; another one may.
    Elsewhere(Option<Box<Status>>),
    /// The answer to the login.
    Final(Error),
}

/// Turns `host:port` into an endpoint with the timeouts of this client; a URL is taken as it is.
pub fn endpoint(text: &str, tls: Option<&Tls>) -> Result<Endpoint, Error> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
    let bad = |source| Error::BadEndpoint { endpoint: text.to_owned(), source };
    let mut endpoint = Endpoint::from_shared(url).map_err(bad)?;
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.config()).map_err(|source| Error::BadTls { source })?;
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PROBE_INTERVAL)
        .keep_alive_timeout(PROBE_INTERVAL)
        .tcp_nodelay(true))
}

impl Connection {
    pub(crate) fn new(
        channels: Vec<(String, Channel)>,
        credentials: Option<Credentials>,
        database: String,
        request_timeout: Duration,
    ) -> Result<Self, Error> {
        if channels.is_empty() {
            return Err(Error::NoEndpoint);
        }
        let target = |(name, channel)| Target {
            name,
            service: ImmuServiceClient::new(channel)
                .max_decoding_message_size(REPLY_BYTES_MAX)
                .max_encoding_message_size(REPLY_BYTES_MAX),
        };
        let targets: Vec<_> = channels.into_iter().map(target).collect();
        Ok(Self {
            sessions: Mutex::new(targets.iter().map(|_| None).collect()),
            targets,
            credentials,
            request_timeout,
            database: RwLock::new(database),
            preferred: AtomicUsize::new(0),
            server_uuid: RwLock::new(None),
        })
    }

    /// When a call that starts now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.request_timeout
    }

    pub(crate) async fn database(&self) -> String {
        self.database.read().await.clone()
    }

    /// Selects another database once an endpoint serves it; until then, and if none does, the selection stays. Sessions and tokens are
    /// made anew: those of other endpoints have the old one selected.
    pub(crate) async fn reselect(&self, name: &str) -> Result<(), Error> {
        let deadline = self.deadline();
        let mut backoff = Backoff::new();
        let mut last = None;
        loop {
            for left in (1..=self.targets.len()).rev() {
                let index = self.preferred.load(Ordering::Relaxed);
                match self.log_in(index, name, share(deadline, left)).await {
                    Ok(session) => {
                        // Both or neither, also for whoever calls meanwhile.
                        let mut sessions = self.sessions.lock().await;
                        let mut database = self.database.write().await;
                        name.clone_into(&mut database);
                        let left: Vec<_> = sessions.iter_mut().filter_map(Option::take).collect();
                        sessions[index] = Some(Arc::new(session));
                        // An endpoint that is gone holds nobody up.
                        tokio::spawn(end(left, deadline));
                        return Ok(());
                    }
                    // Whatever was called for it.
                    Err(LoginFailure::Final(Error::Refused { status, .. })) => {
                        return Err(Error::Refused { call: "use_database", status });
                    }
                    Err(LoginFailure::Final(error)) => return Err(error),
                    Err(LoginFailure::Elsewhere(status)) => {
                        last = status.or(last);
                        self.leave(index);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable { call: "use_database", last });
            }
            sleep_until((Instant::now() + backoff.pause()).min(deadline)).await;
        }
    }

    /// Identity of the server; a login must have happened.
    pub(crate) async fn server_uuid(&self) -> Option<String> {
        self.server_uuid.read().await.clone()
    }

    /// Name of the endpoint that served last.
    pub(crate) fn endpoint(&self) -> &str {
        &self.targets[self.preferred.load(Ordering::Relaxed)].name
    }

    /// Sends `request` until it is answered, may not be sent again, or `deadline` passes.
    pub(crate) async fn call<Req, Res, F, Fut>(
        &self,
        call: &'static str,
        kind: Kind,
        deadline: Instant,
        request: Req,
        send: F,
    ) -> Result<Res, Error>
    where
        Req: Clone,
        F: Fn(Service, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        let mut backoff = Backoff::new();
        let mut last = None;
        // Endpoints that failed since the last pause.
        let mut failed = 0;
        loop {
            let left = self.targets.len().saturating_sub(failed).max(1);
            let session = match self.session(share(deadline, left)).await {
                Ok(session) => Some(session),
                Err(LoginFailure::Final(error)) => return Err(error),
                Err(LoginFailure::Elsewhere(status)) => {
                    last = status.or(last);
                    None
                }
            };
            if let Some(session) = session {
                // A write that ends without an answer has an unknown outcome, so its one attempt may take all the time.
                let attempt_end = if kind == Kind::Write { deadline } else { share(deadline, left) };
                let mut message = Request::new(request.clone());
                session.admit(&mut message);
                message.set_timeout(attempt_end.saturating_duration_since(Instant::now()));
                let status = match timeout_at(attempt_end, send(session.service.clone(), message)).await {
                    Ok(Ok(reply)) => return Ok(reply.into_inner()),
                    Ok(Err(status)) => Some(Box::new(status)),
                    Err(_) => None,
                };
                let verdict = match (&status, kind) {
                    (Some(status), _) => judge(kind, status),
                    (None, Kind::Write) => Verdict::Unknown,
                    (None, Kind::Read) => Verdict::Elsewhere,
                };
                match (verdict, status) {
                    (Verdict::Answer, Some(status)) => return Err(Error::Refused { call, status }),
                    (Verdict::Answer | Verdict::Unknown, source) => {
                        self.leave(session.target);
                        return Err(Error::OutcomeUnknown { call, source });
                    }
                    (Verdict::LogInAgain, status) => {
                        self.forget(&session).await;
                        last = status.or(last);
                    }
                    (Verdict::Elsewhere, status) => {
                        self.leave(session.target);
                        last = status.or(last);
                    }
                    (Verdict::Later, status) => {
                        last = status.or(last);
                        failed = self.targets.len();
                    }
                }
            }
            failed += 1;
            if Instant::now() >= deadline {
                return Err(Error::Unavailable { call, last });
            }
            if failed >= self.targets.len() {
                failed = 0;
                sleep_until((Instant::now() + backoff.pause()).min(deadline)).await;
            }
        }
    }

    /// A session at the preferred endpoint, new if there is none.
    async fn session(&self, deadline: Instant) -> Result<Arc<Session>, LoginFailure> {
        let Ok(mut sessions) = timeout_at(deadline, self.sessions.lock()).await else {
            return Err(LoginFailure::Elsewhere(None));
        };
        let index = self.preferred.load(Ordering::Relaxed);
        if let Some(session) = &sessions[index] {
            return Ok(Arc::clone(session));
        }
        let database = self.database().await;
        let session = match self.log_in(index, &database, deadline).await {
            Ok(session) => Arc::new(session),
            Err(failure) => {
                if matches!(failure, LoginFailure::Elsewhere(_)) {
                    self.leave(index);
                }
                return Err(failure);
            }
        };
        sessions[index] = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Whether calls are made in the name of a user.
    pub(crate) const fn logs_in(&self) -> bool {
        self.credentials.is_some()
    }

    async fn log_in(&self, index: usize, database: &str, deadline: Instant) -> Result<Session, LoginFailure> {
        let target = &self.targets[index];
        let (server_uuid, pass) = match &self.credentials {
            Some(credentials) => open_session(target, credentials, database, deadline).await?,
            None => look_around(target, database, deadline).await?,
        };
        let mut known = self.server_uuid.write().await;
        match &*known {
            Some(expected) if *expected != server_uuid => {
                return Err(LoginFailure::Final(Error::OtherServer {
                    endpoint: target.name.clone(),
                    expected: expected.clone(),
                    found: server_uuid,
                }));
            }
            Some(_) => {}
            None => *known = Some(server_uuid),
        }
        Ok(Session { target: index, service: target.service.clone(), pass })
    }

    /// The session is not known to the server any more.
    async fn forget(&self, session: &Arc<Session>) {
        let mut sessions = self.sessions.lock().await;
        let current = &mut sessions[session.target];
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            *current = None;
        }
    }

    /// The next attempt begins at the endpoint after `target`, unless somebody else has moved on already.
    fn leave(&self, target: usize) {
        let next = (target + 1) % self.targets.len();
        let _ = self.preferred.compare_exchange(target, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Ends all sessions.
    pub(crate) async fn close(&self) {
        let sessions = self.sessions.lock().await.iter_mut().filter_map(Option::take).collect();
        end(sessions, self.deadline()).await;
    }
}

/// Answers are waited for, no longer than to `deadline`, but not needed: sessions expire.
async fn end(sessions: Vec<Arc<Session>>, deadline: Instant) {
    let deadline = (Instant::now() + CONNECT_TIMEOUT).min(deadline);
    let mut ending = JoinSet::new();
    for session in sessions.into_iter().filter(|session| session.is_of_user()) {
        ending.spawn(async move {
            let mut request = Request::new(());
            session.admit(&mut request);
            let _ = timeout_at(deadline, session.service.clone().close_session(request)).await;
        });
    }
    ending.join_all().await;
}

async fn open_session(
    target: &Target,
    credentials: &Credentials,
    database: &str,
    deadline: Instant,
) -> Result<(String, Option<Pass>), LoginFailure> {
    let request = OpenSessionRequest {
        username: credentials.user.clone().into(),
        password: credentials.password.clone().into(),
        database_name: database.to_owned(),
    };
    let mut service = target.service.clone();
    let opened = async |request| service.open_session(request).await;
    let opened = attempt(target, "open_session", request, deadline, opened).await?.into_inner();
    let id = opened.session_id.parse().map_err(|_| LoginFailure::Final(Error::BadSessionId))?;
    Ok((opened.server_uuid, Some((header::SESSION, id))))
}

/// Finds out which server it is, and how a database is reached where nobody logs in: without anything when authentication is off,
/// with a token in maintenance mode.
async fn look_around(
    target: &Target,
    database: &str,
    deadline: Instant,
) -> Result<(String, Option<Pass>), LoginFailure> {
    let mut service = target.service.clone();
    let health = async |request| service.health(request).await;
    let reply = attempt(target, "health", (), deadline, health).await?;
    let uuid = reply.metadata().get(header::UUID).and_then(|uuid| uuid.to_str().ok()).unwrap_or_default().to_owned();
    if uuid.is_empty() {
        // A node that is of no cluster yet. What is trusted is kept under the identity, so it is not guessed.
        let status = Status::unavailable("the node does not know yet of which cluster it is");
        return Err(LoginFailure::Elsewhere(Some(Box::new(status))));
    }
    let request = Database { database_name: database.to_owned() };
    let mut service = target.service.clone();
    let select = async |request| service.use_database(request).await;
    match attempt(target, "use_database", request, deadline, select).await {
        Ok(reply) => {
            let token = reply.into_inner().token.parse();
            Ok((uuid, Some((header::TOKEN, token.map_err(|_| LoginFailure::Final(Error::BadSessionId))?))))
        }
        Err(LoginFailure::Final(Error::Refused { status, .. }))
            if database == DEFAULT_DATABASE && text::ONLY_WITH_AUTH.is(&status) =>
        {
            Ok((uuid, None))
        }
        Err(failure) => Err(failure),
    }
}

/// One call of a login.
async fn attempt<Req, Res>(
    target: &Target,
    call: &'static str,
    request: Req,
    deadline: Instant,
    send: impl AsyncFnOnce(Request<Req>) -> Result<Response<Res>, Status>,
) -> Result<Response<Res>, LoginFailure> {
    let mut request = Request::new(request);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    match timeout_at(deadline, send(request)).await {
        Err(_) => Err(LoginFailure::Elsewhere(None)),
        Ok(Err(status)) => {
            if let Some(source) = distrust(&status) {
                return Err(LoginFailure::Final(Error::Untrusted { endpoint: target.name.clone(), source }));
            }
            Err(match judge(Kind::Read, &status) {
                Verdict::Answer => LoginFailure::Final(Error::Refused { call, status: Box::new(status) }),
                Verdict::LogInAgain | Verdict::Elsewhere | Verdict::Later | Verdict::Unknown => {
                    LoginFailure::Elsewhere(Some(Box::new(status)))
                }
            })
        }
        Ok(Ok(reply)) => Ok(reply),
    }
}

/// The time until `deadline`, shared among the endpoints that are left; never less than [`ATTEMPT_TIME_MIN`] of it.
fn share(deadline: Instant, endpoints_left: usize) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now) / u32::try_from(endpoints_left).unwrap_or(u32::MAX);
    (now + left.max(ATTEMPT_TIME_MIN)).min(deadline)
}
