//! Start and stop of a node, in a written order.
//!
//! Start: signing key, certificate, ports, groups (which lock the data folder and form or resume in the background), services, guards.
//! Stop: the client ports take nothing new and running calls end, groups close, metrics and health last. What cannot work
//! is found before anything is changed on disk.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use alhambra_raft::disk::DiskLimits;
use alhambra_raft::env::{BoxIo, Env, Listener};
use alhambra_raft::group::{Group, Tuning};
use alhambra_raft::groups::{Groups, NodeSpec, StartError};
use alhambra_raft::meta::{ADMIN_USER, DEFAULT_DATABASE, DatabaseRecord, User};
use alhambra_raft::scrub::ScrubPace;
use alhambra_storage::memory::MemoryBudget;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tonic::transport::server::Connected;

use crate::access::Access;
use crate::auth::{self, HashCost};
use crate::config::{Config, Secret};
use crate::gather::Gather;
use crate::grpc;
use crate::health::{self, HttpListener, Pages};
use crate::keys::{KeyError, NodeKey};
use crate::metrics::Metrics;
use crate::service::password::AdminPassword;
use crate::service::peers::{self, Peers};
use crate::service::retention;
use crate::service::settings::DatabaseSettings;
use crate::service::{App, Choices};
use crate::session::{Limits, Sessions};
use crate::signer::{Signer, SignerError};
use crate::throttle::Source;
use crate::tls::{Tls, TlsError};
use crate::uploads::Uploads;
use crate::{resources, rest};

/// How long running calls have to end when the node stops.
const CALLS_END: Duration = Duration::from_secs(3);
/// How long databases have to close after that.
const GROUPS_END: Duration = Duration::from_secs(10);
/// How often recorded times are moved into their buckets.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How often the leader of a database compares the settings in force with those in `systemdb`, when nothing has changed there.
const SETTINGS_LOOK: Duration = Duration::from_secs(5);
/// After a failure to read what `systemdb` says about sessions, before it is read again.
const FOLLOW_AGAIN: Duration = Duration::from_millis(200);
/// Databases whose settings are put into their logs at the same time.
const SETTINGS_AT_ONCE: usize = 8;
/// How long it tries to put new ones into the log before it looks again.
const SETTINGS_WAIT: Duration = Duration::from_secs(10);

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A port cannot be opened.
    #[error("cannot listen on {address} for {purpose}; choose another port, or stop what uses it")]
    Listen {
        /// The address.
        address: String,
        /// What it was for.
        purpose: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The signing key cannot be used.
    #[error(transparent)]
    SigningKey(#[from] SignerError),
    /// The certificate cannot be used, or none could be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key of sessions and tokens cannot be kept.
    #[error(transparent)]
    SessionKey(#[from] KeyError),
    /// Authentication is off where it protects something.
    #[error(
        "authentication may be off only while there is nothing but {DEFAULT_DATABASE} and user {ADMIN_USER}, but there are other \
         databases or users: start without --auth=false, or with --maintenance to read and mend"
    )]
    AuthMustBeOn,
    /// The data folder, the peers or a database.
    #[error(transparent)]
    Groups(#[from] StartError),
}

/// Starts nodes.
#[derive(Debug)]
pub struct Node;

/// A running node. Dropping it without [`NodeHandle::shutdown`] stops it without order, as a crash would.
#[derive(Debug)]
pub struct NodeHandle {
    grpc_addr: String,
    peer_addr: String,
    metrics_addr: Option<String>,
    web_addr: Option<String>,
    groups: Arc<Groups>,
    access: Arc<Access>,
    /// True once the node stops; the client ports watch it.
    stopping: watch::Sender<bool>,
    /// True once it has stopped.
    stopped: watch::Sender<bool>,
    clients: Mutex<Option<JoinHandle<()>>>,
    /// Everything that ends with the node and has nothing to finish.
    others: Vec<AbortHandle>,
}

impl Node {
    /// Opens the data folder, listens on all ports and begins to form or resume. Returns as soon as calls are taken; until
    /// the cluster serves they are answered as unavailable, and `/readyz` says what is missing.
    pub async fn start(config: Config, env: Env) -> Result<NodeHandle, NodeError> {
        let signer = config.signing_key.as_deref().map(Signer::open).transpose()?;
        let tls = Tls::open(&config, &env)?;
        let encrypt = |plain| match &tls {
            Some(tls) => tls.wrap(plain),
            None => plain,
        };
        let client_port = encrypt(listen(&env, &config.address, config.port, "clients (gRPC)").await?);
        let http = [
            (config.metrics_server, config.metrics_server_port, "metrics and health"),
            (config.web_server, config.web_server_port, "REST"),
        ];
        let mut http_ports = [None, None];
        for ((served, port, purpose), listener) in http.into_iter().zip(&mut http_ports) {
            if served {
                let opened = encrypt(listen(&env, &config.address, port, purpose).await?);
                *listener = Some((address_of(&*opened, &config.address, port), opened));
            }
        }
        let grpc_addr = address_of(&*client_port, &config.address, config.port);
        let [metrics_addr, web_addr] =
            http_ports.each_ref().map(|port| port.as_ref().map(|(address, _)| address.clone()));
        let [metrics_port, web_port] = http_ports.map(|port| port.map(|(_, listener)| HttpListener(listener)));

        let admin = Arc::new(FirstAdmin::new(&config, &env));
        let groups = Groups::start(env.clone(), node_spec(&config, admin.clone())).await?;
        let peer_addr = groups.peer_addr();

        let uploads = Uploads::new(groups.memory().bytes());
        let metrics = Arc::new(Metrics::new(tls.clone(), uploads.clone()));
        let limits = Limits {
            sessions_max: config.max_sessions as usize,
            idle_max: config.session_timeout,
            age_max: config.max_session_age_time,
            token_life: Duration::from_secs(60 * u64::from(config.token_expiry_time)),
        };
        let key = NodeKey::open(&env, &config.dir).inspect_err(|_| groups.abandon())?;
        let sessions = Arc::new(Sessions::new(env.clone(), key, limits));
        let access = Arc::new(Access::new(&config));
        access.warn();
        let choices = Choices {
            request_timeout: config.request_timeout,
            message_bytes_max: config.max_recv_msg_size as usize,
            hash_cost: hash_cost(&config),
            segment_bytes: config.segment_size,
            session_inactivity: config.max_session_inactivity_time,
            session_age: config.max_session_age_time,
            access: access.clone(),
        };
        let app = Arc::new(App::new(
            env.clone(),
            choices,
            groups.clone(),
            sessions.clone(),
            signer,
            metrics.clone(),
            uploads,
        ));
        groups.serve_node_calls(Arc::new(Peers(Arc::downgrade(&app))));

        let (stopping, stops) = watch::channel(false);
        let mut others = Vec::new();
        if let Some(port) = metrics_port {
            let pages = Pages { groups: groups.clone(), sessions: sessions.clone(), metrics: metrics.clone() };
            others.push(spawn(async move {
                if let Err(error) = axum::serve(port, pages.routes()).await {
                    tracing::error!(%error, "metrics and health are not served any more");
                }
            }));
        }
        others.push(spawn(every(METRICS_UPKEEP, move || metrics.upkeep())));
        others.push(spawn(every(config.sessions_guard_check_interval, {
            let sessions = sessions.clone();
            move || sessions.sweep()
        })));
        others.push(spawn(keep_settings(groups.clone())));
        others.push(spawn(retention::keep_retention(app.clone())));
        if let Some(tls) = tls {
            let clock = env.clock.clone();
            others.push(spawn(every(config.certificate_check_interval, move || {
                tls.look(clock.now_unix_ms().div_euclid(1000));
            })));
        }
        others.push(spawn(peers::publish_key(app.clone())));
        others.push(spawn(peers::keep_ends(app.clone())));
        if app.access().minds_others() {
            others.push(spawn(confirm_others(groups.clone(), app.clone())));
        }
        others.push(spawn(follow_users(groups.clone(), app.clone(), admin)));
        if let Some(given) = config.admin_password.clone() {
            others.push(spawn(look_at_admin_password(app.clone(), given, config.force_admin_password)));
        }
        let rest = serve_rest(app.clone(), web_port, stops.clone());
        let grpc = serve_clients(app, config.grpc_reflection, client_port, stops);
        let clients = tokio::spawn(async move { _ = tokio::join!(grpc, rest) });
        Ok(NodeHandle {
            grpc_addr,
            peer_addr,
            metrics_addr,
            web_addr,
            groups,
            access,
            stopping,
            stopped: watch::Sender::new(false),
            clients: Mutex::new(Some(clients)),
            others,
        })
    }
}

impl NodeHandle {
    /// Where SDKs connect, `host:port`.
    pub fn grpc_addr(&self) -> &str {
        &self.grpc_addr
    }

    /// Where the other nodes connect, `host:port`.
    pub fn peer_addr(&self) -> &str {
        &self.peer_addr
    }

    /// Where metrics and health are, `host:port`; none when they are turned off.
    pub fn metrics_addr(&self) -> Option<&str> {
        self.metrics_addr.as_deref()
    }

    /// Where REST is, `host:port`; none when it is turned off.
    pub fn web_addr(&self) -> Option<&str> {
        self.web_addr.as_deref()
    }

    /// The groups of this node, for tests and simulations that look inside.
    pub fn groups(&self) -> Arc<Groups> {
        self.groups.clone()
    }

    /// Waits until every database of this node has a leader and is caught up, and until it is known who is served; false at
    /// the deadline.
    pub async fn wait_ready(&self, deadline: Instant) -> bool {
        self.groups.wait_ready(deadline).await && tokio::time::timeout_at(deadline, self.access.known()).await.is_ok()
    }

    /// Waits until the node has stopped: `Ok` after [`Self::shutdown`], the reason when it stopped by itself.
    pub async fn wait(&self) -> Result<(), NodeError> {
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            // The sender lives as long as this borrow.
            _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
            error = self.groups.failed() => Err(error.into()),
            () = self.access.found_others() => Err(NodeError::AuthMustBeOn),
        }
    }

    /// Stops in order: no new calls, running calls end, databases close, metrics last. Later calls wait for the first, and it goes on when
    /// its caller goes away.
    pub async fn shutdown(&self) {
        self.stopping.send_replace(true);
        let clients = self.clients.lock().take();
        if let Some(mut clients) = clients {
            let (groups, others, stopped) = (self.groups.clone(), self.others.clone(), Stopped(self.stopped.clone()));
            tokio::spawn(async move {
                let _stopped = stopped;
                if tokio::time::timeout(CALLS_END, &mut clients).await.is_err() {
                    tracing::warn!("some calls did not end in time; their connections end with the process");
                    clients.abort();
                }
                groups.shutdown(Instant::now() + GROUPS_END).await;
                others.iter().for_each(AbortHandle::abort);
            });
        }
        // The sender lives as long as this borrow.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.others.iter().for_each(AbortHandle::abort);
        if let Some(clients) = self.clients.lock().take() {
            clients.abort();
            self.groups.abandon();
        }
    }
}

/// Tells that a node has stopped, also when stopping it ends in a panic.
struct Stopped(watch::Sender<bool>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    tokio::spawn(task).abort_handle()
}

/// Does something at each tick, never twice for ticks that were missed.
async fn every(period: Duration, mut act: impl FnMut() + Send) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        act();
    }
}

/// `host:port`, with brackets around an IPv6 host.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn listen(env: &Env, host: &str, port: u16, purpose: &'static str) -> Result<Box<dyn Listener>, NodeError> {
    let address = join(host, port);
    env.net.listen(&address).await.map_err(|source| NodeError::Listen { address, purpose, source })
}

/// Where a listener can be reached: as it says, or as it was told where it cannot say.
fn address_of(listener: &dyn Listener, host: &str, port: u16) -> String {
    listener.local_addr().unwrap_or_else(|_| join(host, port))
}

fn hash_cost(config: &Config) -> HashCost {
    HashCost { memory_kib: config.password_hash_memory, passes: config.password_hash_passes }
}

fn node_spec(config: &Config, admin: Arc<FirstAdmin>) -> NodeSpec {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let settings = DatabaseSettings::default();
    NodeSpec {
        dir: config.dir.clone(),
        listen: join(&config.address, config.peer_port),
        bootstrap_expect: config.bootstrap_expect as usize,
        peers: config.peers.clone(),
        insecure_peers: config.insecure_peers,
        segment_bytes: config.segment_size,
        settings: settings.to_apply(),
        default_face: settings.to_face(),
        first_user: Arc::new(move || admin.make()),
        tuning: Tuning {
            heartbeat_ms: ms(config.raft_heartbeat),
            election_min_ms: ms(config.raft_election_min),
            election_max_ms: ms(config.raft_election_max),
            memory: Arc::new(MemoryBudget::new(resources::memory_budget_bytes(config.memory_budget, 1))),
            scrub_pace: Arc::new(ScrubPace::new(config.scrub_bytes_per_second)),
            scrub_interval_ms: ms(config.scrub_interval),
            ..Tuning::default()
        },
        disk: DiskLimits { low_bytes: config.disk_low_water, reserve_bytes: config.disk_reserve },
        apply_lag_max: config.ready_lag_max,
    }
}

/// Makes the first administrator when a cluster forms, with the given password or one that is made up and printed once.
struct FirstAdmin {
    env: Env,
    cost: HashCost,
    given: Option<String>,
    /// A made-up password that nobody has been told yet, and its hash.
    made_up: Mutex<Option<(String, String)>>,
}

impl FirstAdmin {
    fn new(config: &Config, env: &Env) -> Self {
        let given = config.admin_password.as_ref().map(|password| password.reveal().to_owned());
        Self { env: env.clone(), cost: hash_cost(config), given, made_up: Mutex::new(None) }
    }

    fn make(&self) -> User {
        let password = self.given.clone().unwrap_or_else(|| auth::generate_password(&self.env));
        let hash = auth::hash_password(password.as_bytes(), self.cost, auth::random(&self.env));
        if self.given.is_none() {
            *self.made_up.lock() = Some((password, hash.clone()));
        }
        auth::first_user(hash, self.env.clock.now_unix_ms())
    }

    /// Prints the made-up password once its hash is what the cluster has. Another node may have been faster with its own.
    fn tell(&self, current: Option<User>) {
        let Some(user) = current else { return };
        if let Some((password, hash)) = self.made_up.lock().take()
            && user.password == hash
        {
            println!("The password of user {ADMIN_USER} is {password} (shown only this once)");
        }
    }
}

/// Without authentication: what there is to protect is known only when a quorum has told, because another node may have made it
/// while this one was down.
async fn confirm_others(groups: Arc<Groups>, app: Arc<App>) {
    while groups.meta().barrier(Instant::now() + SETTINGS_WAIT).await.is_err() {
        tokio::time::sleep(FOLLOW_AGAIN).await;
    }
    app.access().confirm();
    app.note_others();
}

/// A password that was given for the first administrator and is not theirs is told of, or forced on them.
async fn look_at_admin_password(app: Arc<App>, given: Secret, force: bool) {
    let (mut told, mut may_be_forced) = (String::new(), false);
    let compared = loop {
        let deadline = Instant::now() + SETTINGS_WAIT;
        match app.compare_admin_password(given.reveal().as_bytes(), force, deadline).await {
            Ok(AdminPassword::Same) if may_be_forced => break AdminPassword::Forced,
            Ok(compared) => break compared,
            // No quorum yet, or somebody changes it at this moment.
            Err(error) => {
                may_be_forced |= error.may_be_applied();
                let why = error.to_string();
                if force && why != told {
                    tracing::warn!(%error, "the password of user {ADMIN_USER} is not forced yet; it is tried again");
                    told = why;
                }
                tokio::time::sleep(FOLLOW_AGAIN).await;
            }
        }
    };
    match compared {
        AdminPassword::Same => {}
        AdminPassword::Forced => tracing::warn!("user {ADMIN_USER} has got the password of --admin-password"),
        AdminPassword::Other => tracing::warn!(
            "--admin-password is not the password of user {ADMIN_USER}, which stays as it is; --force-admin-password changes it"
        ),
    }
}

/// Takes over what `systemdb` says about users and sessions, whoever wrote it.
async fn follow_users(groups: Arc<Groups>, app: Arc<App>, admin: Arc<FirstAdmin>) {
    let mut changes = groups.meta().watch();
    loop {
        let meta = groups.meta();
        let first = meta.user(ADMIN_USER);
        let mut followed = true;
        if first.is_some() {
            app.note_beginning();
            app.note_others();
            admin.tell(first);
            followed = app.follow();
        }
        let look = async {
            if !followed {
                tokio::time::sleep(FOLLOW_AGAIN).await;
                return true;
            }
            changes.changed().await.is_ok()
        };
        if !look.await {
            return;
        }
    }
}

/// Puts the settings that `systemdb` has for the databases that this node leads into their logs, where they come into force.
/// Looked at when `systemdb` changes, and now and then because leaders change. One database waits for no other.
async fn keep_settings(groups: Arc<Groups>) {
    let mut changes = groups.meta().watch();
    loop {
        let databases = futures::stream::iter(groups.meta().databases());
        databases.for_each_concurrent(SETTINGS_AT_ONCE, |record| put_in_force(&groups, record)).await;
        match tokio::time::timeout(SETTINGS_LOOK, changes.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return,
        }
    }
}

/// Puts the settings of one database into its log, if this node leads it and they differ from those in force.
async fn put_in_force(groups: &Groups, record: DatabaseRecord) {
    let Some(group) = groups.group_by_name(&record.name).filter(|group| group.is_leader()) else { return };
    // Without any the database is not begun yet, and begins with these.
    let differ =
        |group: &Group, record: &DatabaseRecord| group.database().settings().is_some_and(|now| now != record.settings);
    if !differ(&group, &record) {
        return;
    }
    let deadline = Instant::now() + SETTINGS_WAIT;
    // This node may know older ones than those in force.
    drop(group);
    let newest = groups.meta().barrier(deadline).await.ok().and_then(|()| groups.meta().database(&record.name));
    let Some(group) = groups.group_by_name(&record.name).filter(|group| group.is_leader()) else { return };
    let Some(record) = newest.filter(|record| record.group == group.id() && differ(&group, record)) else { return };
    if !record.settings.is_valid() {
        tracing::error!(database = record.name, "systemdb has settings that no replica could apply; ignored");
        return;
    }
    match group.configure(record.settings, deadline).await {
        Ok(()) => tracing::info!(database = record.name, "new settings are in force"),
        // The next leader, or the next look.
        Err(error) => tracing::warn!(database = record.name, %error, "new settings are not in force yet"),
    }
}

/// Serves clients until the node stops and their calls have ended.
async fn serve_clients(app: Arc<App>, reflection: bool, port: Box<dyn Listener>, mut stops: watch::Receiver<bool>) {
    let connections = futures::stream::unfold(port, |port| async move {
        let (io, peer) = health::accept(&*port, "gRPC").await;
        tracing::trace!(peer, "a client connected");
        Some((Ok::<_, std::io::Error>(Connection::new(io, &peer)), port))
    });
    let stop = async move {
        let _ = stops.wait_for(|stop| *stop).await;
    };
    if let Err(error) = grpc::server(app, reflection).serve_with_incoming_shutdown(connections, stop).await {
        tracing::error!(%error, "clients are not served any more");
    }
}

/// Serves REST, if at all, until the node stops and its calls have ended.
async fn serve_rest(app: Arc<App>, port: Option<HttpListener>, mut stops: watch::Receiver<bool>) {
    let Some(port) = port else { return };
    let stop = async move {
        let _ = stops.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(port, rest::service(&app)).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "REST is not served any more");
    }
}

/// A client's byte stream.
pub(crate) struct Connection {
    io: Gather,
    source: Source,
}

impl Connection {
    /// Of a client on this address, `host:port`, that has just connected.
    pub(crate) fn new(io: BoxIo, peer: &str) -> Self {
        Self { io: Gather::new(io), source: Source::of(peer) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Source;

    fn connect_info(&self) -> Source {
        self.source
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
