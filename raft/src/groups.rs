//! All groups of one node: forms or resumes the cluster, runs group 0, and starts a group for every database that
//! `systemdb` places here.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use alhambra_ledger::ids::{GroupId, LogId};
use alhambra_storage::command::Settings;
use tokio::time::Instant;

use crate::env::Env;
use crate::forming::Identity;
use crate::group::{Group, Health, Tuning};
use crate::meta::{Meta, User};

/// What a node is told.
#[derive(Clone)]
pub struct NodeSpec {
    /// Data folder.
    pub dir: PathBuf,
    /// Where peers connect, `host:port`; port 0 picks a free one.
    pub listen: String,
    /// How many nodes form the cluster.
    pub bootstrap_expect: usize,
    /// Addresses of all nodes, this one included; empty for a node alone.
    pub peers: Vec<String>,
    /// No TLS between nodes. Several peers without it are refused until mutual TLS exists.
    pub insecure_peers: bool,
    /// Segment size of `systemdb` and `defaultdb`, bytes.
    pub segment_bytes: u64,
    /// Settings of `systemdb` and `defaultdb`.
    pub settings: Settings,
    /// Face settings of `defaultdb`.
    pub default_face: serde_json::Value,
    /// Makes the record of the first administrator (hashes the password: slow). Called once, on group 0's first leader.
    pub first_user: Arc<dyn Fn() -> User + Send + Sync>,
    /// Timing and bounds of the groups.
    pub tuning: Tuning,
    /// A group that has this many committed entries yet to apply is not ready.
    pub apply_lag_max: u64,
}

impl fmt::Debug for NodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSpec")
            .field("dir", &self.dir)
            .field("listen", &self.listen)
            .field("bootstrap_expect", &self.bootstrap_expect)
            .field("peers", &self.peers)
            .field("insecure_peers", &self.insecure_peers)
            .finish_non_exhaustive()
    }
}

/// How far a node has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The cluster does not exist yet, or this node is not in it; the text says what is waited for.
    Forming(String),
    /// `systemdb` is being opened.
    Starting,
    /// Databases are served.
    Serving,
    /// Going down.
    Stopping,
}

/// One group as the readiness check sees it.
#[derive(Clone, Debug)]
pub struct GroupReadiness {
    /// Database.
    pub name: String,
    /// Group.
    pub group: GroupId,
    /// Whether it has a known leader and a small lag.
    pub ready: bool,
    /// Known leader.
    pub leader: Option<u64>,
    /// Newest entry known to be committed.
    pub committed: Option<LogId>,
    /// Newest entry applied here.
    pub applied: Option<LogId>,
    /// Whether the replica works; none while it is being opened.
    pub health: Option<Health>,
}

/// Whether this node may be sent traffic.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// All of it: serving, and every group ready.
    pub ready: bool,
    /// How far the node has come.
    pub phase: Phase,
    /// Every group that this node hosts, by number.
    pub groups: Vec<GroupReadiness>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder does not open.
    #[error("the data folder {dir} cannot be used")]
    Dir {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

/// All groups of this node.
#[derive(Debug)]
pub struct Groups {
    meta: Meta,
}

impl Groups {
    /// Locks the data folder, listens for peers, and begins to form or resume in the background. Errors that only the
    /// operator can mend are returned at once.
    pub async fn start(_env: Env, _spec: NodeSpec) -> Result<Arc<Self>, StartError> {
        Ok(Arc::new(Self { meta: Meta::new() }))
    }

    /// `systemdb`. Answers [`crate::meta::MetaError::Starting`] until it is open.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Who this node is; none until the cluster is formed.
    pub fn identity(&self) -> Option<Identity> {
        None
    }

    /// Address at which peers reach this node.
    pub fn peer_addr(&self) -> String {
        String::new()
    }

    /// The replica of this database on this node; `systemdb` names group 0.
    pub fn group_by_name(&self, _name: &str) -> Option<Arc<Group>> {
        None
    }

    /// Whether this node may be sent traffic, and what is missing.
    pub fn ready(&self) -> Readiness {
        Readiness { ready: false, phase: Phase::Starting, groups: Vec::new() }
    }

    /// Waits until [`Groups::ready`] holds; false at the deadline.
    pub async fn wait_ready(&self, _deadline: Instant) -> bool {
        false
    }

    /// Waits for an error that makes going on pointless (a disk that fails, a folder of another cluster).
    pub async fn failed(&self) -> StartError {
        std::future::pending().await
    }

    /// Stops in order: no new calls, leadership away where possible, groups, checkpoint, lock. Ends by the deadline.
    pub async fn shutdown(&self, _deadline: Instant) {}
}
