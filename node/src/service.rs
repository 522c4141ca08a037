//! The use cases, without protobuf and without sockets. Handlers in [`crate::grpc`] decode, call one function from here, and
//! encode.

pub mod database;
pub mod exec;
pub mod export;
pub mod import;
pub mod kv;
pub mod lifecycle;
pub mod password;
pub mod peers;
pub mod resolve;
pub mod retention;
pub mod server;
pub mod session;
pub mod settings;
pub mod transaction;
pub mod truncation;
pub mod user;
pub mod verified;
pub mod walk;
pub mod zset;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::{GroupId, TxId};
use alhambra_proto::code::{WireError, text};
use alhambra_raft::env::Env;
use alhambra_raft::group::Level;
use alhambra_raft::groups::Groups;
use alhambra_raft::meta::SYSTEM_DATABASE;
use alhambra_storage::plant::{Plant, is_planted};
use alhambra_storage::read::ReadSnapshot;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::access::Access;
use crate::auth::{self, HashCost, Proven};
use crate::context::{Call, Caller, Context, ReadLevel, SessionHeader, TokenHeader, Visit};
use crate::error::{Error, Result};
use crate::method::{Method, Need};
use crate::metrics::Metrics;
use crate::router::Router;
use crate::session::Sessions;
use crate::signer::Signer;
use crate::throttle::Throttle;
use crate::uploads::Uploads;

/// Most entries of any result list, and the default where none is asked for.
pub const RESULTS_MAX: u64 = 2500;

/// Entries read between two moments in which other calls get their turn.
pub(crate) const ENTRIES_PER_TURN: usize = 64;

/// Choices that use cases need.
#[derive(Clone, Debug)]
pub struct Choices {
    /// Longest time of a call without a deadline of its own.
    pub request_timeout: Duration,
    /// Largest message of a client, bytes.
    pub message_bytes_max: usize,
    /// Cost of new password hashes.
    pub hash_cost: HashCost,
    /// Segment size of new databases, bytes.
    pub segment_bytes: u64,
    /// Time after which clients are told that a session counts as inactive; 0 for never.
    pub session_inactivity: Duration,
    /// Age at which a session ends; 0 for never.
    pub session_age: Duration,
    /// Who is served without a login.
    pub access: Arc<Access>,
}

/// Everything that calls on a node work with.
#[derive(Debug)]
pub struct App {
    env: Env,
    choices: Choices,
    groups: Arc<Groups>,
    router: Router,
    sessions: Arc<Sessions>,
    signer: Option<Signer>,
    metrics: Arc<Metrics>,
    started_at: i64,
    /// Whether there were other databases or users when the node began to serve; then fresh tokens select nothing.
    had_others: std::sync::OnceLock<bool>,
    /// What an unknown user's password is compared with, so that the time tells nobody which users exist.
    nobody: String,
    proven: Arc<Proven>,
    throttle: Throttle,
    hashing: password::Turns,
    uploads: Arc<Uploads>,
    /// Held while an index is flushed by order.
    flushing: Arc<tokio::sync::Mutex<()>>,
    /// The number of this node, once it has one.
    me: std::sync::OnceLock<u64>,
    /// The cluster's own UUID, once it is formed: every answer says a UUID.
    own_uuid: std::sync::OnceLock<String>,
    /// Where looking for old data stopped, of databases that have more of it than one order came to.
    searches: Mutex<HashMap<GroupId, truncation::Search>>,
    /// Random number of this process: other nodes see by it that it has forgotten.
    process: u64,
    /// How far other nodes were heard about sessions that have ended.
    heard: Mutex<HashMap<u64, peers::Heard>>,
    /// Up to which transaction of `systemdb` sessions follow it.
    followed: Mutex<TxId>,
    /// When the latest look at the newest records for an unknown key began.
    looked_for_key: tokio::sync::Mutex<Option<tokio::time::Instant>>,
    /// Whether the other nodes can know the key of this node.
    key_is_known: watch::Sender<bool>,
}

impl App {
    /// Brings the parts together.
    pub fn new(
        env: Env,
        choices: Choices,
        groups: Arc<Groups>,
        sessions: Arc<Sessions>,
        signer: Option<Signer>,
        metrics: Arc<Metrics>,
        uploads: Arc<Uploads>,
    ) -> Self {
        // A password that nobody can send: one that was right would be remembered, and fast from then on.
        let nobody = auth::hash_password(&auth::random::<32>(&env), choices.hash_cost, auth::random(&env));
        Self {
            proven: Arc::new(Proven::new(auth::random(&env))),
            throttle: Throttle::default(),
            hashing: password::Turns::default(),
            uploads,
            flushing: Arc::default(),
            router: Router::new(groups.clone(), env.clock.clone()),
            process: u64::from_be_bytes(auth::random(&env)),
            started_at: env.clock.now_unix_ms() / 1000,
            env,
            choices,
            groups,
            sessions,
            signer,
            metrics,
            had_others: std::sync::OnceLock::new(),
            me: std::sync::OnceLock::new(),
            own_uuid: std::sync::OnceLock::new(),
            heard: Mutex::default(),
            searches: Mutex::default(),
            followed: Mutex::new(TxId(0)),
            looked_for_key: tokio::sync::Mutex::default(),
            key_is_known: watch::Sender::new(false),
            nobody,
        }
    }

    /// Sessions and tokens of this node.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Metrics of this node.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Longest time of a call without a deadline of its own.
    pub fn request_timeout(&self) -> Duration {
        self.choices.request_timeout
    }

    /// Who is served without a login.
    pub fn access(&self) -> &Access {
        &self.choices.access
    }

    /// Memory of messages that are arriving.
    pub fn uploads(&self) -> &Arc<Uploads> {
        &self.uploads
    }

    /// Largest message of a client, bytes.
    pub fn message_bytes_max(&self) -> usize {
        self.choices.message_bytes_max
    }

    /// Age at which a session ends, and time after which it counts as inactive; 0 for never.
    pub(crate) fn session_life(&self) -> (Duration, Duration) {
        (self.choices.session_age, self.choices.session_inactivity)
    }

    /// Unix seconds now.
    pub(crate) fn now(&self) -> i64 {
        self.env.clock.now_unix_ms().div_euclid(1000)
    }

    /// Remembers whether this node began to serve with nothing but what every cluster has. Called once `systemdb` is open.
    pub(crate) fn note_beginning(&self) {
        self.had_others.get_or_init(|| self.groups.meta().has_others());
    }

    /// Looks whether there is by now more than what every cluster has, if that decides who is served.
    pub(crate) fn note_others(&self) {
        if self.access().minds_others() && self.access().is_confirmed() {
            self.access().note_others(self.groups.meta().has_others());
        }
    }

    /// Refuses calls that are not made without authentication, if it is off, and in maintenance mode.
    pub(crate) fn allows(&self, method: &Method) -> Result<()> {
        self.note_others();
        self.access().allows(method)
    }

    /// Who calls; in the words for `nobody` when nobody is logged in. That it cannot be told for now is not that.
    pub(crate) fn caller_or(&self, call: &Call, nobody: WireError) -> Result<Caller> {
        self.authenticate(call).map_err(|error| if error.is_unavailable() { error } else { nobody.into() })
    }

    /// Who calls; fails when nobody is logged in.
    pub fn authenticate(&self, call: &Call) -> Result<Caller> {
        match &call.session {
            SessionHeader::Known(session) => Ok(Caller {
                user: session.user().clone(),
                database: Some(session.database()),
                session: Some(session.clone()),
            }),
            SessionHeader::Unknown => Err(text::NO_SESSION_FOUND.into()),
            SessionHeader::Absent => match &call.token {
                TokenHeader::Known(token) => {
                    Ok(Caller { user: token.user().clone(), database: token.database(), session: None })
                }
                TokenHeader::Refused(refusal) => Err((*refusal).into()),
                TokenHeader::Absent => self.access().stranger(),
            },
        }
    }

    /// The session of a call that needs one.
    pub fn session_of(&self, call: &Call) -> Result<Arc<crate::session::Session>> {
        match &call.session {
            SessionHeader::Known(session) => Ok(session.clone()),
            SessionHeader::Unknown => Err(text::NO_SESSION_FOUND.into()),
            SessionHeader::Absent => Err(text::NO_SESSION_AUTH_DATA.into()),
        }
    }

    /// Lets a call on the selected database in, when its caller may make it.
    pub async fn enter(&self, call: &Call, method: &Method) -> Result<Context> {
        let (caller, database) = self.selected(call)?;
        let found = self.router.find(&database)?;
        must_be_granted(&caller, &database, method)?;
        let replica = match found {
            Some(replica) => replica,
            None => self.router.locate(&database, call.deadline).await?,
        };
        // Rights may have gone while it was waited for, or while the message came.
        self.must_be_current(&caller, text::INVALID_TOKEN)?;
        Ok(Context { replica, deadline: call.deadline, level: call.level })
    }

    /// Refuses a call whose session has ended, or whose caller has other rights, since it was let in. So it is asked before a write
    /// whose client has taken its time.
    pub fn must_still_be(&self, call: &Call) -> Result<()> {
        let caller = self.authenticate(call)?;
        if let Some(session) = &caller.session
            && self.sessions.by_id(&session.end().id).is_none()
        {
            return Err(text::SESSION_NOT_FOUND.into());
        }
        self.must_be_current(&caller, text::INVALID_TOKEN)
    }

    /// Lets a call in that is about the selected database and not on its data, so that it need not be open.
    pub fn visit(&self, call: &Call, method: &Method) -> Result<Visit> {
        let (caller, database) = self.selected(call)?;
        let visited = self.router.visit(&database)?;
        must_be_granted(&caller, &database, method)?;
        Ok(Visit { database: visited, deadline: call.deadline, level: call.level })
    }

    /// Ends when the database of a call is closed here, with what the call is told.
    pub(crate) fn closing(&self, cx: &Context) -> impl Future<Output = Error> + Send + use<> {
        self.router.closing(&cx.replica)
    }

    /// Who calls, and which database is selected.
    fn selected(&self, call: &Call) -> Result<(Caller, Arc<str>)> {
        let caller = self.authenticate(call)?;
        let database = caller.database.clone().ok_or(text::NO_DATABASE_SELECTED)?;
        Ok((caller, database))
    }
}

/// Refuses callers who may not make this call on the database.
fn must_be_granted(caller: &Caller, database: &str, method: &Method) -> Result<()> {
    let Need::Database(right) = method.need else {
        return Err(Error::Internal("only calls on a database enter one"));
    };
    let granted = auth::includes(auth::permission_in(&caller.user, database), right);
    if !granted || (database == SYSTEM_DATABASE && !method.maintenance) {
        return Err(text::PERMISSION_DENIED.into());
    }
    Ok(())
}

impl Context {
    /// A view of the database that is as new as the call asks for and includes transaction `floor`.
    /// [`Error::BeyondLedger`] only when a quorum confirms that `floor` does not exist.
    pub(crate) async fn view(&self, floor: TxId) -> Result<ReadSnapshot> {
        let floor = if is_planted(Plant::IgnoreReadFloor) { TxId(0) } else { floor };
        let level = match self.level {
            ReadLevel::Linearizable => Level::Linearizable,
            ReadLevel::Local if floor.get() > 0 => Level::AtLeast(floor),
            ReadLevel::Local => Level::Local,
        };
        let point = self.replica.barrier(level, self.deadline).await?;
        if floor > point.tx {
            return Err(Error::BeyondLedger { asked: floor, latest: point.tx });
        }
        if is_planted(Plant::StaleSnapshotRead) {
            return Ok(self.replica.database().snapshot_at(TxId(point.tx.get().saturating_sub(1))));
        }
        Ok(self.replica.database().snapshot())
    }

    /// As [`Self::view`] for a read of transactions that never change: they only have to be there.
    pub(crate) async fn view_of(&self, tx: TxId) -> Result<ReadSnapshot> {
        self.replica.barrier(Level::AtLeast(tx), self.deadline).await?;
        Ok(self.replica.database().snapshot())
    }
}

/// A limit of a result list: 0 means the maximum, more than that is an error.
pub(crate) fn result_limit(limit: u64) -> Result<usize> {
    match limit {
        0 => Ok(usize::try_from(RESULTS_MAX).expect("small")),
        1..=RESULTS_MAX => Ok(usize::try_from(limit).expect("small")),
        _ => Err(Error::LimitTooLarge { limit, limit_max: RESULTS_MAX }),
    }
}
