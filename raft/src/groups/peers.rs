//! Calls between the programs that embed the groups, over the links that there are anyway.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Groups;
use crate::forward::NodeCalls;
use crate::link::LinkError;

impl Groups {
    /// Answers calls of other nodes from now on. Only the first handler counts.
    pub fn serve_node_calls(&self, calls: Arc<dyn NodeCalls>) {
        let _ = self.server.node_calls.set(calls);
    }

    /// The other nodes of the cluster; none until it is formed.
    pub fn peers(&self) -> Vec<u64> {
        let Some(identity) = self.identity() else { return Vec::new() };
        identity.members.into_keys().filter(|node| *node != identity.node_id).collect()
    }

    /// Calls the program on another node and waits for its answer until the deadline. A node that is known to be down is an
    /// error at once.
    pub async fn node_call(&self, node: u64, body: Bytes, deadline: Instant) -> Result<Bytes, LinkError> {
        let network = self.server.network.read().clone().ok_or(LinkError::UnknownNode { node })?;
        network.node_call(node, body, deadline).await
    }
}
