//! Forming a cluster once, by promises (`docs/format.md`, "identity").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
