//! What can be wrong with a configuration, and what to do about it.

use std::path::PathBuf;

use super::Source;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value does not parse or is out of range.
    #[error("{key} = {value:?} (from {source_of_value}) is not possible: expected {expects}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// What was given; secrets are masked.
        value: String,
        /// Where it was given.
        source_of_value: Source,
        /// Unit and range.
        expects: &'static str,
    },
    /// The file that was named cannot be read.
    #[error("the configuration file {} cannot be read; name another with --config", path.display())]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not TOML", path.display())]
    FileMalformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The file has a key that is no setting.
    #[error("{key:?} in {} is not a setting; `alhambra config --print` shows all of them", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// Several nodes are expected, but nobody said where they are.
    #[error("--bootstrap-expect {expect} needs --peers with the addresses of all nodes, this one included")]
    PeersMissing {
        /// Number of nodes that was asked for.
        expect: usize,
    },
    /// The number of nodes to wait for could form two clusters, or none.
    #[error(
        "--bootstrap-expect {expect} does not fit {peers} peers: more than half of them, and no more than there are, \
         must take part in forming the cluster"
    )]
    BootstrapExpect {
        /// Number of nodes that was asked for.
        expect: usize,
        /// Number of peers.
        peers: usize,
    },
    /// Either file is of no use without the other.
    #[error("--certificate and --pkey belong together: give both, or neither")]
    HalfCertificate,
    /// Client certificates cannot be verified with nothing to verify them by.
    #[error("--mtls needs --clientcas, and --certificate with --pkey (or --auto-cert)")]
    MtlsIncomplete,
    /// Nothing to force.
    #[error("--force-admin-password needs the password: add --admin-password")]
    NoPasswordToForce,
    /// Maintenance mode knows no users.
    #[error("--maintenance is possible only without authentication: add --auth=false")]
    MaintenanceWithAuth,
    /// Without TLS only this machine is safe.
    #[error("--insecure-peers is only for nodes on one machine, but the peer {peer} is not a loopback address")]
    InsecurePeer {
        /// The peer.
        peer: String,
    },
    /// Several nodes need to trust each other.
    #[error(
        "several peers need mutual TLS between the nodes, which comes with a later release; until then a cluster runs on \
         one machine only, with loopback addresses and --insecure-peers"
    )]
    PeerTlsMissing,
    /// Elections would not end, or happen without reason.
    #[error(
        "raft-election-min must be at least twice raft-heartbeat, and raft-election-max larger than raft-election-min"
    )]
    RaftTiming,
}
