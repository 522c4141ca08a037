//! Who reaches whom. A network namespace per node where that is permitted, else loopback with a proxy in every peer link.
//!
//! [`spaces`] has the kernel's own network between the nodes: what is cut is lost silently on the way, one way where wanted.
//! [`loopback`] has only proxies: what is cut is held back, and delivered after healing if the connection still stands.
//!
//! Faults may overlap: what several of them have cut is whole again when the last one ends.

pub mod loopback;
pub mod spaces;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
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

/// How many faults want something of each thing.
#[derive(Debug)]
struct Counts<K>(BTreeMap<K, u32>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Counts<K> {
    /// One more; whether it is the first.
    fn begin(&mut self, of: K) -> bool {
        let count = self.0.entry(of).or_default();
        *count += 1;
        *count == 1
    }

    /// One less; whether it was the last.
    fn end(&mut self, of: K) -> bool {
        let Some(count) = self.0.get_mut(&of) else { return false };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.0.remove(&of);
        }
        is_last
    }
}

/// What faults want of the network now.
#[derive(Debug, Default)]
struct Wanted {
    /// Nothing passes, this way.
    cut: Counts<(NodeIndex, NodeIndex)>,
    unplugged: Counts<NodeIndex>,
    /// Slow both ways, as the first of them said; the smaller number first.
    slow: Counts<(NodeIndex, NodeIndex)>,
}

#[derive(Debug)]
enum Kind {
    /// A namespace per node.
    Spaces(Spaces),
    /// One namespace for all, and proxies.
    Loopback(Loopback),
}

/// The network of a run. Dropping it removes whatever it made.
#[derive(Debug)]
pub struct Net {
    kind: Kind,
    wanted: Mutex<Wanted>,
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
                    return Ok((Self { kind: Kind::Spaces(spaces), wanted: Mutex::default() }, said));
                }
                Err(error) => format!("because network namespaces are not possible here: {error}"),
            }
        };
        let said = format!("LOOPBACK, every peer link through a proxy, {why}");
        Ok((Self { kind: Kind::Loopback(Loopback::make(nodes).await?), wanted: Mutex::default() }, said))
    }

    /// Addresses of a node.
    pub fn addresses(&self, node: NodeIndex) -> &Addresses {
        match &self.kind {
            Kind::Spaces(net) => net.addresses(node),
            Kind::Loopback(net) => net.addresses(node),
        }
    }

    /// A command that runs `program` where the node lives.
    pub fn command(&self, node: NodeIndex, program: &Path) -> Command {
        match &self.kind {
            Kind::Spaces(net) => net.command(node, program),
            Kind::Loopback(_) => Command::new(program),
        }
    }

    /// Tells whose connections come from this process.
    pub fn node_runs_as(&self, node: NodeIndex, process_id: Option<u32>) {
        match &self.kind {
            Kind::Spaces(_) => {}
            Kind::Loopback(net) => net.node_runs_as(node, process_id),
        }
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: NodeIndex, to: NodeIndex) -> Result<(), String> {
        if !self.wanted.lock().cut.begin((from, to)) {
            return Ok(());
        }
        match &self.kind {
            Kind::Spaces(net) => net.cut(from, to),
            Kind::Loopback(net) => {
                net.change(from, to, |shape| shape.silent = true);
                Ok(())
            }
        }
    }

    /// The end of one [`Self::cut`].
    pub fn mend(&self, from: NodeIndex, to: NodeIndex) -> Result<(), String> {
        if !self.wanted.lock().cut.end((from, to)) {
            return Ok(());
        }
        match &self.kind {
            Kind::Spaces(net) => net.mend(from, to),
            Kind::Loopback(net) => {
                net.change(from, to, |shape| shape.silent = false);
                Ok(())
            }
        }
    }

    /// Takes the node off the network: from its peers and, in a namespace of its own, from its clients.
    pub fn unplug(&self, node: NodeIndex) -> Result<(), String> {
        match &self.kind {
            Kind::Spaces(net) if self.wanted.lock().unplugged.begin(node) => net.set_plugged(node, false),
            Kind::Spaces(_) => Ok(()),
            Kind::Loopback(net) => {
                for (from, to) in net.ways(node) {
                    self.cut(from, to)?;
                    net.change(from, to, |shape| shape.cuts += 1);
                }
                Ok(())
            }
        }
    }

    /// The end of one [`Self::unplug`].
    pub fn plug(&self, node: NodeIndex) -> Result<(), String> {
        match &self.kind {
            Kind::Spaces(net) if self.wanted.lock().unplugged.end(node) => net.set_plugged(node, true),
            Kind::Spaces(_) => Ok(()),
            Kind::Loopback(net) => net.ways(node).into_iter().try_for_each(|(from, to)| self.mend(from, to)),
        }
    }

    /// Makes the link between two nodes slow, both ways.
    pub async fn slow(&mut self, a: NodeIndex, b: NodeIndex, slowness: Slowness) -> Result<(), String> {
        if !self.wanted.get_mut().slow.begin((a.min(b), a.max(b))) {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Spaces(net) => net.slow(a, b, slowness).await,
            Kind::Loopback(net) => {
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

    /// The end of one [`Self::slow`].
    pub async fn fast(&mut self, a: NodeIndex, b: NodeIndex) -> Result<(), String> {
        if !self.wanted.get_mut().slow.end((a.min(b), a.max(b))) {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Spaces(net) => net.fast(a, b).await,
            Kind::Loopback(net) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_two_faults_have_cut_is_whole_when_both_have_ended() {
        let (net, _) = Net::make(3, true).await.unwrap();
        let silent = |from, to| match &net.kind {
            Kind::Loopback(loopback) => loopback.shape(from, to).silent,
            Kind::Spaces(_) => panic!("loopback was asked for"),
        };
        net.cut(0, 1).unwrap();
        net.unplug(1).unwrap();
        net.unplug(0).unwrap();
        net.mend(0, 1).unwrap();
        assert!(silent(0, 1) && silent(1, 0) && silent(2, 1));
        net.plug(1).unwrap();
        assert!(silent(0, 1) && silent(1, 0), "the other end is still unplugged");
        assert!(!silent(2, 1) && !silent(1, 2));
        net.plug(0).unwrap();
        assert!(!silent(0, 1) && !silent(1, 0));
        net.mend(0, 1).unwrap();
        net.cut(0, 1).unwrap();
        assert!(silent(0, 1), "an end too many counts for nothing");
    }
}
