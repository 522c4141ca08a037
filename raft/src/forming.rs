//! Forming a cluster: once, by itself, and never two of them.
//!
//! Every node is told the same list of peers and how many of them, N, form the cluster; N is more than half of the list.
//! One initiator collects **promises** from N nodes that are in no cluster. A promise names the cluster and exactly its
//! members, is durable before it is given, and excludes every other; no timeout takes it back, only an operator does. So
//! two clusters would need two promises of one node. When all members have promised, the initiator writes its identity:
//! that is the moment at which the cluster exists. It alone initialises group 0; the others learn from any member that
//! the cluster they promised to has been formed.
//!
//! Races: a node initiates only when all nodes that it needs *yield* to it, and nodes yield to the lowest listed address
//! that they have heard of. Should two nodes initiate all the same, both ask their members in descending order and
//! themselves last. Whoever meets a promise to another gives its own proposal up (it is the only one that could ever
//! use it), so there is no circle of waiting and one of them succeeds. A node that has promised to a proposal that was
//! given up stays out until an operator releases it (`alhambra cluster release-promise`).
//!
//! | module | what |
//! |---|---|
//! | `machine` | the rules, as a value: events in, effects out; no IO, no clock |
//! | `store` | the files `identity` and `promise` |
//! | `driver` | carries out the effects over gRPC and the disk |
//! | `company` | whether the peers are of the same cluster, for as long as the node lives |
//! | `wire` | messages between nodes |
//!
//! `raft/tests/it/forming.rs` crashes nodes after every effect of thousands of seeded schedules.

pub mod company;
pub mod driver;
pub mod machine;
pub mod store;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::env::Env;

/// Version of the rules; nodes of another version do not form a cluster together.
pub const FORMAT: u32 = 1;

/// The command that takes a promise back, for messages.
pub const RELEASE_COMMAND: &str = "alhambra cluster release-promise --that-cluster-was-never-formed --dir";

/// Who a node is, for ever. Stands in the file `identity` of the data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster: 20 characters, `0-9a-v`. All nodes show it to clients.
    pub cluster: String,
    /// This node, from 1; never used again.
    pub node_id: u64,
    /// Nodes that formed the cluster: id and peer address. Which nodes it has now, `systemdb` says.
    pub members: BTreeMap<u64, String>,
    /// The one node that may initialise group 0.
    pub initiator: u64,
}

/// What the operator told a node about its cluster; the same on all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    peers: Vec<String>,
    expect: usize,
}

/// Why a plan is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No nodes form no cluster.
    #[error("--bootstrap-expect must be at least 1")]
    Zero,
    /// Several nodes, but no list of them.
    #[error("--bootstrap-expect {expect} needs --peers with the addresses of all nodes, this one included")]
    NoPeers {
        /// What was asked for.
        expect: usize,
    },
    /// Fewer addresses than nodes.
    #[error("--bootstrap-expect {expect} is more than the {peers} addresses in --peers")]
    TooFewPeers {
        /// What was asked for.
        expect: usize,
        /// How many are listed.
        peers: usize,
    },
    /// Two halves of the list could form a cluster each.
    #[error(
        "--bootstrap-expect {expect} is not more than half of the {peers} addresses in --peers: two clusters could form; \
         use at least {at_least}"
    )]
    NotMoreThanHalf {
        /// What was asked for.
        expect: usize,
        /// How many are listed.
        peers: usize,
        /// The smallest number that is possible.
        at_least: usize,
    },
    /// An address is written twice.
    #[error("--peers names {addr} twice")]
    Twice {
        /// The address.
        addr: String,
    },
    /// An address without a port.
    #[error("--peers: {addr} is not host:port")]
    NotAnAddress {
        /// The text.
        addr: String,
    },
    /// More members than can vote.
    #[error("--bootstrap-expect {expect} is more than {most}, the most nodes that can form a cluster")]
    TooMany {
        /// What was asked for.
        expect: usize,
        /// What is possible.
        most: usize,
    },
    /// Several nodes without TLS.
    #[error(
        "several peers need mutual TLS, which this version does not have yet; on one machine pass --insecure-peers and use \
         loopback addresses"
    )]
    Insecure,
}

/// All nodes of a new cluster vote in `systemdb`, and more than this make it slow without making it safer.
pub const MEMBERS_MAX: usize = 5;

impl Plan {
    /// Checks what the operator said. `own` is this node's address, used when no peers are listed.
    pub fn new(expect: usize, peers: &[String], own: &str) -> Result<Self, PlanError> {
        let mut peers = peers.to_vec();
        match expect {
            0 => return Err(PlanError::Zero),
            1 if peers.is_empty() => peers.push(own.to_owned()),
            _ if peers.is_empty() => return Err(PlanError::NoPeers { expect }),
            _ if expect > MEMBERS_MAX => return Err(PlanError::TooMany { expect, most: MEMBERS_MAX }),
            _ => {}
        }
        for addr in &peers {
            let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return Err(PlanError::NotAnAddress { addr: addr.clone() });
            }
        }
        peers.sort();
        if let Some(pair) = peers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(PlanError::Twice { addr: pair[0].clone() });
        }
        if expect > peers.len() {
            return Err(PlanError::TooFewPeers { expect, peers: peers.len() });
        }
        if expect * 2 <= peers.len() {
            let at_least = peers.len() / 2 + 1;
            return Err(PlanError::NotMoreThanHalf { expect, peers: peers.len(), at_least });
        }
        Ok(Self { peers, expect })
    }

    /// Addresses of all nodes, sorted.
    pub fn peers(&self) -> &[String] {
        &self.peers
    }

    /// How many of them form the cluster.
    pub fn expect(&self) -> usize {
        self.expect
    }
}

/// Makes the name of a new cluster: 4 bytes of time and 8 random bytes as 20 characters of base 32 (`0-9a-v`), the form
/// that SDKs know.
pub fn new_cluster_id(env: &Env) -> String {
    let mut bytes = [0; 12];
    env.rng.fill(&mut bytes[4..]);
    let seconds = u32::try_from(env.clock.now_unix_ms() / 1000).unwrap_or(0);
    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
    cluster_id(bytes)
}

fn cluster_id(bytes: [u8; 12]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    // 96 bits and 4 zero bits make 20 digits of 5 bits.
    let number = bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte)) << 4;
    (0..20).rev().map(|digit| char::from(DIGITS[(number >> (5 * digit)) as usize & 31])).collect()
}

/// Whether this can be the UUID of a cluster, or of a server that SDKs know: 20 characters, `0-9a-v`.
pub fn is_server_uuid(uuid: &str) -> bool {
    uuid.len() == 20 && uuid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'v'))
}

/// Why forming cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The files of the data folder cannot be read or written.
    #[error("{path} cannot be read or written")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is damaged; restore it from a backup, or empty the data folder and add the node anew")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// This node is not in the list.
    #[error("none of the addresses in --peers ({peers}) leads to this node, which listens on {listen}")]
    NotListed {
        /// The list.
        peers: String,
        /// Where this node listens.
        listen: String,
    },
    /// The folder belongs to another cluster than the peers.
    #[error(
        "the data folder {dir} belongs to cluster {ours}, but the peer {addr} belongs to cluster {theirs}; start with the \
         right --dir, or with the right --peers"
    )]
    OtherCluster {
        /// The data folder.
        dir: PathBuf,
        /// Its cluster.
        ours: String,
        /// A peer.
        addr: String,
        /// Its cluster.
        theirs: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(expect: usize, peers: &[&str]) -> Result<Plan, PlanError> {
        let peers: Vec<String> = peers.iter().map(|addr| (*addr).to_owned()).collect();
        Plan::new(expect, &peers, "own:1")
    }

    #[test]
    fn plans_that_could_make_two_clusters_are_refused() {
        assert_eq!(plan(1, &[]).unwrap().peers(), ["own:1"]);
        assert_eq!(plan(2, &["b:1", "a:1"]).unwrap().peers(), ["a:1", "b:1"]);
        assert!(plan(2, &["a:1", "b:1", "c:1"]).is_ok());
        assert_eq!(plan(0, &[]), Err(PlanError::Zero));
        assert_eq!(plan(3, &[]), Err(PlanError::NoPeers { expect: 3 }));
        assert_eq!(plan(3, &["a:1", "b:1"]), Err(PlanError::TooFewPeers { expect: 3, peers: 2 }));
        assert_eq!(plan(1, &["a:1", "b:1"]), Err(PlanError::NotMoreThanHalf { expect: 1, peers: 2, at_least: 2 }));
        let four = ["a:1", "b:1", "c:1", "d:1"];
        assert_eq!(plan(2, &four), Err(PlanError::NotMoreThanHalf { expect: 2, peers: 4, at_least: 3 }));
        assert_eq!(plan(2, &["a:1", "a:1"]), Err(PlanError::Twice { addr: "a:1".into() }));
        assert_eq!(plan(2, &["a:1", "b"]), Err(PlanError::NotAnAddress { addr: "b".into() }));
        assert_eq!(plan(2, &["a:1", ":5"]), Err(PlanError::NotAnAddress { addr: ":5".into() }));
        assert_eq!(plan(6, &four), Err(PlanError::TooMany { expect: 6, most: 5 }));
    }

    #[test]
    fn cluster_ids_have_the_form_that_sdks_know() {
        assert_eq!(cluster_id([0; 12]), "00000000000000000000");
        assert_eq!(cluster_id([0xff; 12]), "vvvvvvvvvvvvvvvvvvvg");
        // The example of the xid documentation: 9m4e2mr0ui3e8a215n4g.
        let bytes = [0x4d, 0x88, 0xe1, 0x5b, 0x60, 0xf4, 0x86, 0xe4, 0x28, 0x41, 0x2d, 0xc9];
        assert_eq!(cluster_id(bytes), "9m4e2mr0ui3e8a215n4g");
        assert!(is_server_uuid(&cluster_id(bytes)));
        for none in ["", "9m4e2mr0ui3e8a215n4", "9m4e2mr0ui3e8a215n4gg", "9m4e2mr0ui3e8a215n4w", "9M4E2MR0UI3E8A215N4G"]
        {
            assert!(!is_server_uuid(none), "{none}");
        }
    }
}
