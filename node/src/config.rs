//! Everything that an operator can choose, in one struct: [`Config`].
//!
//! A value is looked for in this order: command-line flag, `ALHAMBRA_` environment variable, `IMMUDB_` environment
//! variable (only for settings that mean the same there), TOML file, default. Unknown keys of the file and unknown flags
//! are errors; so is a value that does not parse or is out of range, wherever it came from. Bounds that are not choices
//! stand in `storage::limits`.

mod args;
mod error;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use alhambra_raft::scrub::{SCRUB_BYTES_PER_SECOND_DEFAULT, SCRUB_INTERVAL_MS_DEFAULT};
use alhambra_storage::limits::MEMORY_BUDGET_BYTES_MIN;

pub use self::args::ServeArgs;
pub use self::error::ConfigError;
pub use self::value::{LogFormat, LogLevel, Secret};
use self::value::{Value, is_loopback};

/// Where the value of a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// The TOML file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// The command line.
    Flag,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// One line of `alhambra config --print`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Name of the setting, as in the file and, with `--` before it, on the command line.
    pub key: &'static str,
    /// Its value as it would be written; secrets are masked.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}

/// What there is to know about one setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name: the TOML key and the long flag.
    pub key: &'static str,
    /// Other accepted long flag, where the compatible server has another spelling.
    pub alias: Option<&'static str>,
    /// One-letter flag.
    pub short: Option<char>,
    /// What it is for.
    pub help: &'static str,
    /// Unit and range.
    pub expects: &'static str,
    /// Whether the `IMMUDB_` variable of the same name is read.
    pub compatible: bool,
    /// Whether it is a switch, which may stand on the command line without a value.
    pub switch: bool,
    default: fn() -> String,
}

impl Setting {
    /// The default as it would be written.
    pub fn default(&self) -> String {
        (self.default)()
    }

    /// The environment variables that set it, first wins.
    pub fn variables(&self) -> Vec<String> {
        let name = |prefix: &str, key: &str| format!("{prefix}{}", key.replace('-', "_").to_uppercase());
        let mut out = vec![name("ALHAMBRA_", self.key)];
        if self.compatible {
            out.push(name("IMMUDB_", self.alias.unwrap_or(self.key)));
        }
        out
    }
}

/// Declares the settings: a field of [`Config`], a row of [`SETTINGS`], and how the one becomes the other.
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $ty:ty = $default:expr, $key:literal, $compatible:ident, $expects:literal, $check:expr
        $(, alias $alias:literal)? $(, short $short:literal)?;
    )*) => {
        /// The configuration of a node, complete and within range.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(#[doc = $doc])+ #[doc = ""] #[doc = concat!("Expects ", $expects, ".")] pub $field: $ty,)*
            origins: Vec<Source>,
        }

        /// Every setting, in the order in which they are printed.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            alias: settings!(@option $($alias)?),
            short: settings!(@option $($short)?),
            help: concat!($($doc),+),
            expects: $expects,
            compatible: settings!(@$compatible),
            switch: <$ty as Value>::SWITCH,
            default: || { let value: $ty = $default; value.show() },
        }),*];

        impl Default for Config {
            fn default() -> Self {
                Self { $($field: $default,)* origins: vec![Source::Default; SETTINGS.len()] }
            }
        }

        impl Config {
            /// Takes the value of each setting from `pick`, or its default.
            fn build(
                mut pick: impl FnMut(&'static Setting) -> Option<(String, Source)>,
            ) -> Result<Self, ConfigError> {
                let mut config = Self::default();
                let mut settings = SETTINGS.iter().enumerate();
                $({
                    let (at, setting) = settings.next().expect("one row per field");
                    if let Some((text, source)) = pick(setting) {
                        let check: fn(&$ty) -> bool = $check;
                        config.$field = <$ty as Value>::parse(&text).filter(check).ok_or_else(|| ConfigError::Invalid {
                            key: setting.key,
                            value: if <$ty as Value>::SECRET { "***".to_owned() } else { text },
                            source_of_value: source.clone(),
                            expects: setting.expects,
                        })?;
                        config.origins[at] = source;
                    }
                })*
                config.check()?;
                Ok(config)
            }

            /// The value and the origin of every setting.
            pub fn origins(&self) -> Vec<Origin> {
                let values = [$(self.$field.show()),*];
                (SETTINGS.iter().zip(values).zip(&self.origins))
                    .map(|((setting, value), source)| Origin { key: setting.key, value, source: source.clone() })
                    .collect()
            }
        }
    };
    (@option) => { None };
    (@option $value:literal) => { Some($value) };
    (@compatible) => { true };
    (@ours) => { false };
}

const fn any<T>(_: &T) -> bool {
    true
}

/// Longest time that an operator may set for a call, an idle session or an election.
const DAY: Duration = Duration::from_secs(86_400);

settings! {
    /// Data folder. Everything that this node keeps is in it.
    dir: PathBuf = PathBuf::from("./data"), "dir", compatible, "a path", |dir| !dir.as_os_str().is_empty();

    /// Address on which all listeners bind.
    address: String = "0.0.0.0".to_owned(), "address", compatible, "a host name or address without port",
        |address| !address.is_empty(), short 'a';

    /// Port of the SDKs (gRPC); 0 picks a free one.
    port: u16 = 3322, "port", compatible, "a port, 0 to 65535", any, short 'p';

    /// Port of the links between the nodes of a cluster; 0 picks a free one.
    peer_port: u16 = 3323, "peer-port", ours, "a port, 0 to 65535", any;

    /// Whether metrics and health are served.
    metrics_server: bool = true, "metrics-server", compatible, "true or false", any;

    /// Port of metrics and health (HTTP); 0 picks a free one.
    metrics_server_port: u16 = 9497, "metrics-server-port", compatible, "a port, 0 to 65535", any;

    /// Whether REST and its documentation are served.
    web_server: bool = true, "web-server", compatible, "true or false", any;

    /// Port of REST and its documentation (HTTP); 0 picks a free one.
    web_server_port: u16 = 8080, "web-server-port", compatible, "a port, 0 to 65535", any;

    /// How many nodes form the cluster. It forms by itself, once, when so many of the peers are there.
    bootstrap_expect: u32 = 1, "bootstrap-expect", ours, "a number from 1 to 9", |count| (1..=9).contains(count);

    /// Peer addresses of all nodes that form the cluster, this one included; none for a node alone.
    peers: Vec<String> = Vec::new(), "peers", ours, "host:port[,host:port...]", any;

    /// Runs without TLS between the nodes, which is allowed only while every peer address is loopback.
    insecure_peers: bool = false, "insecure-peers", ours, "true or false", any;

    /// Password of the first administrator, used when the cluster forms; without it one is made up and printed once.
    admin_password: Option<Secret> = None, "admin-password", compatible,
        "1 to 72 bytes, plain or enc: and base64", |password| password.as_ref().is_none_or(Secret::is_usable);

    /// Whether the first administrator gets `admin-password` again when a node starts and it is another one by now. Where a password is
    /// lost, on one node for one start.
    force_admin_password: bool = false, "force-admin-password", compatible, "true or false", any;

    /// Whether callers have to log in. Off, whoever calls from this machine may use the default database; possible only while there are no
    /// other databases and users. The same on every node.
    auth: bool = true, "auth", compatible, "true or false", any, short 's';

    /// Whether callers on other machines are served as well when authentication is off.
    devmode: bool = false, "devmode", compatible, "true or false", any;

    /// Maintenance mode, only with `auth` off: nobody logs in, and whoever calls from this machine may read every database, replicate into
    /// it and keep its index in order.
    maintenance: bool = false, "maintenance", compatible, "true or false", any;

    /// Longest time that a call without a deadline of its own may take, once its request has come, and that a request may stand still.
    request_timeout: Duration = Duration::from_secs(10), "request-timeout", ours, "a time from 100ms to 10m",
        |time| (Duration::from_millis(100)..=Duration::from_mins(10)).contains(time);

    /// Sessions that may be open at once on this node.
    max_sessions: u32 = 1000, "max-sessions", compatible, "a number from 1 to 1000000",
        |count| (1..=1_000_000).contains(count);

    /// A session that is not used for this long is closed; 0s for never.
    session_timeout: Duration = Duration::from_mins(2), "session-timeout", compatible, "a time up to 24h, 0s for no limit",
        |time| *time <= DAY;

    /// A session that is not used for this long counts as inactive, which only OpenSession of the authorization service
    /// tells; 0s for never.
    max_session_inactivity_time: Duration = Duration::from_mins(3), "max-session-inactivity-time", compatible,
        "a time up to 24h, 0s for no limit", |time| *time <= DAY;

    /// A session that is this old is closed; 0s for never.
    max_session_age_time: Duration = Duration::ZERO, "max-session-age-time", compatible, "a time, 0s for no limit", any;

    /// How often sessions are looked through for those that have to be closed.
    sessions_guard_check_interval: Duration = Duration::from_mins(1), "sessions-guard-check-interval", compatible,
        "a time from 100ms to 24h", |time| (Duration::from_millis(100)..=DAY).contains(time);

    /// Lifetime of the tokens of Login and UseDatabase, minutes.
    token_expiry_time: u32 = 1440, "token-expiry-time", compatible, "minutes, 1 to 5256000",
        |minutes| (1..=5_256_000).contains(minutes);

    /// File with the ECDSA P-256 private key (PEM) that signs states; none for no signatures. The same on every node.
    signing_key: Option<PathBuf> = None, "signingKey", compatible, "a path", any;

    /// File with the certificate (PEM, then those of its issuers) that encrypts what clients reach: gRPC, REST, metrics. A
    /// changed file is taken over while the node runs.
    certificate: Option<PathBuf> = None, "certificate", compatible, "a path", any;

    /// File with the private key (PEM) of the certificate.
    pkey: Option<PathBuf> = None, "pkey", compatible, "a path", any;

    /// Whether certificates of clients are verified: one that is shown must come from `clientcas`. None is let in as well.
    mtls: bool = false, "mtls", compatible, "true or false", any, short 'm';

    /// File with the certificates (PEM) of those who vouch for clients.
    clientcas: Option<PathBuf> = None, "clientcas", compatible, "a path", any;

    /// Makes and keeps a certificate that vouches for itself, when none is given: `tls` in the data folder.
    auto_cert: bool = false, "auto-cert", compatible, "true or false", any;

    /// How often the files of certificates are looked at for changes.
    certificate_check_interval: Duration = Duration::from_mins(1), "certificate-check-interval", ours,
        "a time from 100ms to 24h", |time| (Duration::from_millis(100)..=DAY).contains(time);

    /// Threads that answer calls and replicate; 0 for one per processor. Nodes that share a machine should share its
    /// processors too: each wakes the other ones' threads less.
    worker_threads: u32 = 0, "worker-threads", ours, "a number up to 1024", |count| *count <= 1024;

    /// Largest message taken from a client, bytes.
    max_recv_msg_size: u32 = 32 << 20, "max-recv-msg-size", compatible, "bytes, 65536 to 1073741824",
        |bytes| (1 << 16..=1 << 30).contains(bytes);

    /// Whether the gRPC reflection service is offered.
    grpc_reflection: bool = true, "grpc-reflection", compatible, "true or false", any;

    /// Form of the log on standard error.
    log_format: LogFormat = LogFormat::Text, "log-format", compatible, "text or json", any, alias "logformat";

    /// Least severity that is logged.
    log_level: LogLevel = LogLevel::Info, "log-level", ours, "error, warn, info, debug or trace", any;

    /// Size at which a ledger segment of a new database is closed, bytes. Kept with the database.
    segment_size: u64 = 64 << 20, "segment-size", ours, "bytes, 65536 to 1073741824",
        |bytes| (1 << 16..=1 << 30).contains(bytes);

    /// User writes are refused while fewer than a majority of the nodes have this much free space on the disk of their data
    /// folder, bytes; 0 for never.
    disk_low_water: u64 = 64 << 20, "disk-low-water", ours, "bytes, up to 1 TiB", |bytes| *bytes <= 1 << 40;

    /// Size of a file in the data folder that is given up when the disk is full, so that prunes, seals and administration
    /// still find space, bytes; 0 for none.
    disk_reserve: u64 = 16 << 20, "disk-reserve", ours, "bytes, up to 1 GiB", |bytes| *bytes <= 1 << 30;

    /// Memory that all databases of this node share: blocks of indexes, in-memory parts, buffers, queues; bytes. 0 for a quarter of
    /// the machine's memory or of the limit of this process's cgroup, whichever is less.
    memory_budget: u64 = 0, "memory-budget", ours, "bytes, 0 or at least 67108864",
        |bytes| *bytes == 0 || *bytes >= MEMORY_BUDGET_BYTES_MIN;

    /// Files of databases that this node keeps open at once; 0 for half of what the system lets it open.
    open_files_max: u32 = 0, "open-files-max", ours, "a number, 0 or at least 64", |count| *count == 0 || *count >= 64;

    /// From the end of one pass over all files of a database, to find rot before a reader does, to the beginning of the next.
    scrub_interval: Duration = Duration::from_millis(SCRUB_INTERVAL_MS_DEFAULT), "scrub-interval", ours,
        "a time from 1s to 720h", |time| (Duration::from_secs(1)..=DAY * 30).contains(time);

    /// Read again for that at most, all databases of this node together, bytes per second; 0: only what readers come upon is
    /// mended.
    scrub_bytes_per_second: u64 = SCRUB_BYTES_PER_SECOND_DEFAULT, "scrub-bytes-per-second", ours, "bytes, up to 1 TiB",
        |bytes| *bytes <= 1 << 40;

    /// How often a leader shows its followers that it lives.
    raft_heartbeat: Duration = Duration::from_millis(150), "raft-heartbeat", ours, "a time from 10ms to 10s",
        |time| (Duration::from_millis(10)..=Duration::from_secs(10)).contains(time);

    /// A follower that hears nothing from its leader for this long, at least, stands for election.
    raft_election_min: Duration = Duration::from_millis(600), "raft-election-min", ours, "a time from 30ms to 60s",
        |time| (Duration::from_millis(30)..=Duration::from_mins(1)).contains(time);

    /// A follower that hears nothing from its leader for this long, at most, stands for election.
    raft_election_max: Duration = Duration::from_millis(1200), "raft-election-max", ours, "a time from 30ms to 60s",
        |time| (Duration::from_millis(30)..=Duration::from_mins(1)).contains(time);

    /// A node that has this many committed log entries of a database yet to apply is not ready.
    ready_lag_max: u64 = 1000, "ready-lag-max", ours, "log entries, 1 or more", |entries| *entries > 0;

    /// Memory of one password hash (Argon2id), KiB. Kept with each hash, so it may change.
    password_hash_memory: u32 = 19_456, "password-hash-memory", ours, "KiB, 8 to 1048576",
        |kib| (8..=1 << 20).contains(kib);

    /// Passes of one password hash (Argon2id).
    password_hash_passes: u32 = 2, "password-hash-passes", ours, "a number from 1 to 100",
        |passes| (1..=100).contains(passes);
}

impl Config {
    /// Finds every value: from the parsed command line, the process environment and the file it names.
    pub fn load(args: &ServeArgs) -> Result<Self, ConfigError> {
        Self::resolve(args, |name| std::env::var(name).ok(), |path| std::fs::read_to_string(path))
    }

    /// As [`Self::load`] with another environment and file system.
    pub fn resolve(
        args: &ServeArgs,
        environment: impl Fn(&str) -> Option<String>,
        read_file: impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Self, ConfigError> {
        let path = (args.config_file().map(Path::to_owned))
            .or_else(|| environment("ALHAMBRA_CONFIG").map(PathBuf::from))
            .or_else(|| environment("IMMUDB_CONFIG").map(PathBuf::from));
        let file = match &path {
            Some(path) => {
                let unreadable = |source| ConfigError::FileUnreadable { path: path.clone(), source };
                parse_file(path, &read_file(path).map_err(unreadable)?)?
            }
            None => toml::Table::new(),
        };
        Self::build(|setting| {
            if let Some(text) = args.value(setting.key) {
                return Some((text.to_owned(), Source::Flag));
            }
            for name in setting.variables() {
                if let Some(text) = environment(&name) {
                    return Some((text, Source::Environment(name)));
                }
            }
            let value = file.get(setting.key).or_else(|| file.get(setting.alias?))?;
            let path = path.as_ref().expect("a table with values came from a file");
            Some((written(value), Source::File(path.clone())))
        })
    }

    /// What depends on more than one setting.
    fn check(&self) -> Result<(), ConfigError> {
        let expect = usize::try_from(self.bootstrap_expect).expect("checked to be small");
        if self.peers.is_empty() {
            if expect > 1 {
                return Err(ConfigError::PeersMissing { expect });
            }
        } else if expect > self.peers.len() || expect * 2 <= self.peers.len() {
            return Err(ConfigError::BootstrapExpect { expect, peers: self.peers.len() });
        }
        if self.certificate.is_some() != self.pkey.is_some() {
            return Err(ConfigError::HalfCertificate);
        }
        if self.mtls && (self.clientcas.is_none() || !(self.certificate.is_some() || self.auto_cert)) {
            return Err(ConfigError::MtlsIncomplete);
        }
        if self.force_admin_password && self.admin_password.is_none() {
            return Err(ConfigError::NoPasswordToForce);
        }
        if self.maintenance && self.auth {
            return Err(ConfigError::MaintenanceWithAuth);
        }
        if self.insecure_peers {
            if let Some(peer) = self.peers.iter().find(|peer| !is_loopback(peer)) {
                return Err(ConfigError::InsecurePeer { peer: peer.clone() });
            }
        } else if self.peers.len() > 1 {
            return Err(ConfigError::PeerTlsMissing);
        }
        if self.raft_election_min < self.raft_heartbeat * 2 || self.raft_election_max <= self.raft_election_min {
            return Err(ConfigError::RaftTiming);
        }
        Ok(())
    }
}

/// Reads the file and refuses keys that are no settings.
fn parse_file(path: &Path, text: &str) -> Result<toml::Table, ConfigError> {
    let table: toml::Table = text
        .parse()
        .map_err(|source| ConfigError::FileMalformed { path: path.to_owned(), source: Box::new(source) })?;
    let known = |key: &str| SETTINGS.iter().any(|setting| setting.key == key || setting.alias == Some(key));
    match table.keys().find(|key| !known(key)) {
        Some(key) => Err(ConfigError::UnknownKey { path: path.to_owned(), key: key.clone() }),
        None => Ok(table),
    }
}

/// A TOML value as it would be written after a flag.
fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(written).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
