//! One network for all nodes: each listens on a port that only a proxy connects to, and the peers know the proxy.
//!
//! A node listens on an address of its own, so that nobody else is given its ports while it is down. Whose connection the
//! proxy has accepted is found out from the process at its other end, because all come from `127.0.0.1`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Addresses, NodeIndex};
use crate::process::owner;
use crate::process::proxy::{Proxy, Shape, Shapes};

/// Process ids of the nodes that run.
type Running = Arc<Mutex<BTreeMap<u32, NodeIndex>>>;
/// A switch for each ordered pair of nodes.
type Links = Arc<BTreeMap<(NodeIndex, NodeIndex), watch::Sender<Shape>>>;

/// The proxies of a run.
#[derive(Debug)]
pub struct Loopback {
    addresses: Vec<Addresses>,
    links: Links,
    running: Running,
    _proxies: Vec<Proxy>,
}

/// The address of a node, which other runs mostly do not use. `127.0.0.1` is left to the proxies, where it is not the only one.
fn own_host(node: NodeIndex) -> Ipv4Addr {
    let [.., run, low] = std::process::id().to_be_bytes();
    let node = u8::try_from(node % 250).expect("less than 250");
    Ipv4Addr::new(127, run % 254 + 1, low, node + 1)
}

/// Ports of an address that nobody uses now. Held open together, so that they differ.
async fn free_ports(host: Ipv4Addr, count: usize) -> Result<Vec<u16>, String> {
    let mut held = Vec::new();
    for _ in 0..count {
        let listener = TcpListener::bind((host, 0)).await.map_err(|error| error.to_string())?;
        held.push(listener);
    }
    held.iter().map(|held| held.local_addr().map(|at| at.port()).map_err(|error| error.to_string())).collect()
}

impl Loopback {
    /// Makes them.
    pub async fn make(nodes: usize) -> Result<Self, String> {
        // A pair of a node with itself has a switch that nobody turns: a node looks for itself among its peers.
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        let links: Links = Arc::new(pairs.map(|pair| (pair, watch::Sender::default())).collect());
        let running = Running::default();
        let (mut addresses, mut proxies) = (Vec::new(), Vec::new());
        for node in 0..nodes {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| error.to_string())?;
            let peer = listener.local_addr().map_err(|error| error.to_string())?;
            let own = own_host(node);
            let host = if TcpListener::bind((own, 0)).await.is_ok() { own } else { Ipv4Addr::LOCALHOST };
            let ports = free_ports(host, 3).await?;
            let host = host.to_string();
            let (known, links) = (running.clone(), links.clone());
            let admit = Arc::new(move |near: &TcpStream| admit(near, node, &known, &links));
            proxies.push(Proxy::start(listener, format!("{host}:{}", ports[1]), admit));
            addresses.push(Addresses {
                bind: host.clone(),
                host,
                port: ports[0],
                peer_port: ports[1],
                metrics_port: ports[2],
                peer: peer.to_string(),
            });
        }
        Ok(Self { addresses, links, running, _proxies: proxies })
    }

    pub(super) fn addresses(&self, node: NodeIndex) -> &Addresses {
        &self.addresses[node]
    }

    pub(super) fn node_runs_as(&self, node: NodeIndex, process_id: Option<u32>) {
        let mut running = self.running.lock();
        running.retain(|_, other| *other != node);
        running.extend(process_id.map(|id| (id, node)));
    }

    pub(super) fn change(&self, from: NodeIndex, to: NodeIndex, change: impl Fn(&mut Shape)) {
        if let Some(link) = self.links.get(&(from, to)) {
            link.send_modify(change);
        }
    }

    /// Every link of a node, both ways.
    pub(super) fn ways(&self, node: NodeIndex) -> Vec<(NodeIndex, NodeIndex)> {
        self.links.keys().filter(|(from, to)| from != to && (*from == node || *to == node)).copied().collect()
    }

    #[cfg(test)]
    pub(super) fn shape(&self, from: NodeIndex, to: NodeIndex) -> Shape {
        *self.links[&(from, to)].borrow()
    }
}

/// The shapes of a connection to node `to`; none when no node of ours made it.
fn admit(near: &TcpStream, to: NodeIndex, running: &Running, links: &Links) -> Option<Shapes> {
    let SocketAddr::V4(far) = near.peer_addr().ok()? else { return None };
    let processes: Vec<u32> = running.lock().keys().copied().collect();
    let owner = owner::of(far.into(), processes)?;
    let from = *running.lock().get(&owner)?;
    Some(Shapes { there: links.get(&(from, to))?.subscribe(), back: links.get(&(to, from))?.subscribe() })
}
