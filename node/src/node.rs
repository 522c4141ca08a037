//! Start and stop of a node, in a written order.

use alhambra_raft::env::Env;

use crate::config::Config;

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
}

impl Node {
    /// Opens the data folder, listens on all ports and begins to form or resume. Returns as soon as calls are taken; until
    /// the cluster serves they are answered as unavailable, and `/readyz` says what is missing.
    pub async fn start(config: Config, env: Env) -> Result<NodeHandle, NodeError> {
        let _ = (config, env);
        Ok(NodeHandle { grpc_addr: String::new(), peer_addr: String::new(), metrics_addr: None })
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

    /// Waits until the node has stopped: `Ok` after [`Self::shutdown`], the reason when it stopped by itself.
    pub async fn wait(&self) -> Result<(), NodeError> {
        std::future::pending().await
    }

    /// Stops in order: not ready any more, no new calls, running calls end, databases close. Idempotent.
    pub async fn shutdown(&self) {}
}
