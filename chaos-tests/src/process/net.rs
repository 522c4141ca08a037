//! Who reaches whom. A network namespace per node where that is permitted, else loopback with a proxy in every peer link.
//!
//! [`spaces`] has the kernel's own network between the nodes: what is cut is lost silently on the way, one way where wanted.
//! [`loopback`] has only proxies: what is cut is held back, and delivered after healing if the connection still stands.

pub mod loopback;
pub mod spaces;

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use self::loopback::Loopback;
use self::spaces::Spaces;

/// A node, counted from 0.
pub type NodeIndex = usize;

/// How a slow link is slow, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slowness {
    /// Each byte arrives this much later.
    pub delay: Duration,
    /// Bytes per second.
    pub bytes_per_second: u64,
}

/// Addresses of one node.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// What it binds its listeners to, without port.
    pub bind: String,
    /// How this program and the clients reach it, without port.
    pub host: String,
    /// Port of the SDKs.
    pub port: u16,
    /// Port that it binds for its peers.
    pub peer_port: u16,
    /// Port of metrics and health.
    pub metrics_port: u16,
    /// How its peers reach it, `host:port`. A loopback address in both kinds of network, because nodes without TLS between
    /// them take no other.
    pub peer: String,
}

/// The network of a run. Dropping it removes whatever it made.
#[derive(Debug)]
pub enum Net {
    /// A namespace per node.
    Spaces(Spaces),
    /// One namespace for all, and proxies.
    Loopback(Loopback),
}

impl Net {
    /// Makes the network of `nodes` nodes, in namespaces unless that is not wanted or not permitted; says which and why.
    pub async fn make(nodes: usize, only_loopback: bool) -> Result<(Self, String), String> {
        let why = if only_loopback {
            "as asked".to_owned()
        } else {
            match Spaces::make(nodes) {
                Ok(spaces) => {
                    let said = format!("a network namespace per node, {}", spaces.subnet());
                    return Ok((Self::Spaces(spaces), said));
                }
                Err(error) => format!("because network namespaces are not possible here: {error}"),
            }
        };
        let said = format!("LOOPBACK, every peer link through a proxy, {why}");
        Ok((Self::Loopback(Loopback::make(nodes).await?), said))
    }

    /// Addresses of a node.
    pub fn addresses(&self, node: NodeIndex) -> &Addresses {
        match self {
            Self::Spaces(net) => net.addresses(node),
            Self::Loopback(net) => net.addresses(node),
        }
    }

    /// A command that runs `program` where the node lives.
    pub fn command(&self, node: NodeIndex, program: &Path) -> Command {
        match self {
            Self::Spaces(net) => net.command(node, program),
            Self::Loopback(_) => Command::new(program),
        }
    }

    /// Tells whose connections come from this process.
    pub fn node_runs_as(&self, node: NodeIndex, process_id: Option<u32>) {
        match self {
            Self::Spaces(_) => {}
            Self::Loopback(net) => net.node_runs_as(node, process_id),
        }
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: NodeIndex, to: NodeIndex) -> Result<(), String> {
        match self {
            Self::Spaces(net) => net.cut(from, to),
            Self::Loopback(net) => {
                net.change(from, to, |shape| shape.silent = true);
                Ok(())
            }
        }
    }

    /// Ends [`Self::cut`].
    pub fn mend(&self, from: NodeIndex, to: NodeIndex) -> Result<(), String> {
        match self {
            Self::Spaces(net) => net.mend(from, to),
            Self::Loopback(net) => {
                net.change(from, to, |shape| shape.silent = false);
                Ok(())
            }
        }
    }

    /// Takes the node off the network: from its peers and, in a namespace of its own, from its clients.
    pub fn unplug(&self, node: NodeIndex) -> Result<(), String> {
        match self {
            Self::Spaces(net) => net.set_plugged(node, false),
            Self::Loopback(net) => {
                net.change_all(node, |shape| {
                    shape.silent = true;
                    shape.cuts += 1;
                });
                Ok(())
            }
        }
    }

    /// Ends [`Self::unplug`].
    pub fn plug(&self, node: NodeIndex) -> Result<(), String> {
        match self {
            Self::Spaces(net) => net.set_plugged(node, true),
            Self::Loopback(net) => {
                net.change_all(node, |shape| shape.silent = false);
                Ok(())
            }
        }
    }

    /// Makes the link between two nodes slow, both ways.
    pub async fn slow(&mut self, a: NodeIndex, b: NodeIndex, slowness: Slowness) -> Result<(), String> {
        match self {
            Self::Spaces(net) => net.slow(a, b, slowness).await,
            Self::Loopback(net) => {
                for (from, to) in [(a, b), (b, a)] {
                    net.change(from, to, |shape| {
                        shape.delay = slowness.delay;
                        shape.bytes_per_second = slowness.bytes_per_second;
                    });
                }
                Ok(())
            }
        }
    }

    /// Ends [`Self::slow`].
    pub async fn fast(&mut self, a: NodeIndex, b: NodeIndex) -> Result<(), String> {
        match self {
            Self::Spaces(net) => net.fast(a, b).await,
            Self::Loopback(net) => {
                for (from, to) in [(a, b), (b, a)] {
                    net.change(from, to, |shape| {
                        shape.delay = Duration::ZERO;
                        shape.bytes_per_second = 0;
                    });
                }
                Ok(())
            }
        }
    }
}
