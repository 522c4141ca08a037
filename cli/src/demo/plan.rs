//! Which ports, folders and flags each node of a demo gets.

use std::path::{Path, PathBuf};

use alhambra_node::resources::memory_budget_bytes;

use crate::failure::{Failure, Kind};

/// gRPC port of the first node unless told otherwise; the port the official SDKs expect.
pub const BASE_PORT: u16 = 3322;
/// The metrics port of a node is this much above its gRPC port (9497 for 3322).
pub const METRICS_ABOVE_GRPC: u16 = 9497 - BASE_PORT;
/// The port of REST is this much above the gRPC port (8080 for 3322).
const WEB_ABOVE_GRPC: u16 = 8080 - BASE_PORT;
/// Each node's ports are this much above those of the node before.
const PORT_STEP: u16 = 10;
/// A demo is for trying out; more nodes only make it slow.
pub const NODES_MAX: u16 = 9;

/// One node of a demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// From 1; also in the names of the folder and the log file.
    pub number: u16,
    /// Clients connect here.
    pub grpc_port: u16,
    /// The other nodes connect here.
    pub peer_port: u16,
    /// Metrics and health pages.
    pub metrics_port: u16,
    /// REST and its documentation.
    pub web_port: u16,
    /// Data folder.
    pub dir: PathBuf,
    /// Log file, appended to.
    pub log: PathBuf,
}

impl NodePlan {
    /// `host:port` for clients.
    pub fn grpc(&self) -> String {
        format!("127.0.0.1:{}", self.grpc_port)
    }

    /// `host:port` of metrics and health.
    pub fn metrics(&self) -> String {
        format!("127.0.0.1:{}", self.metrics_port)
    }

    /// Every port with what it is for.
    pub fn ports(&self) -> [(u16, &'static str); 4] {
        [
            (self.grpc_port, "clients"),
            (self.peer_port, "other nodes"),
            (self.metrics_port, "metrics"),
            (self.web_port, "REST"),
        ]
    }
}

/// Plans `nodes` nodes below `dir`; refuses counts and ports that cannot work.
pub fn plan(dir: &Path, nodes: u16, base_port: u16) -> Result<Vec<NodePlan>, Failure> {
    if nodes == 0 || nodes > NODES_MAX {
        return Err(Failure::new(
            Kind::Usage,
            format!("a demo of {nodes} nodes is not possible"),
            format!("use --nodes 1 to {NODES_MAX}; 3 survives the loss of one node"),
        ));
    }
    let highest = u32::from(base_port) + u32::from(METRICS_ABOVE_GRPC) + u32::from(PORT_STEP * (nodes - 1));
    if base_port == 0 || highest > u32::from(u16::MAX) {
        return Err(Failure::new(
            Kind::Usage,
            format!("base port {base_port} leaves no room: the ports of {nodes} nodes go up to {highest}"),
            format!("use --base-port between 1 and {}", u16::MAX - METRICS_ABOVE_GRPC - PORT_STEP * (nodes - 1)),
        ));
    }
    let node = |number: u16| {
        let grpc_port = base_port + PORT_STEP * (number - 1);
        NodePlan {
            number,
            grpc_port,
            peer_port: grpc_port + 1,
            metrics_port: grpc_port + METRICS_ABOVE_GRPC,
            web_port: grpc_port + WEB_ABOVE_GRPC,
            dir: dir.join(format!("node-{number}")),
            log: dir.join(format!("node-{number}.log")),
        }
    };
    Ok((1..=nodes).map(node).collect())
}

/// The share of this machine's processors that one of so many nodes has; one at least.
fn worker_threads(nodes: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / nodes).max(1)
}

/// The arguments that start node `me` of `all`: exactly what a person would type.
pub fn serve_arguments(me: &NodePlan, all: &[NodePlan], admin_password: &str) -> Vec<String> {
    let mut arguments: Vec<String> = [
        ("--dir", me.dir.display().to_string()),
        ("--address", "127.0.0.1".to_owned()),
        ("--port", me.grpc_port.to_string()),
        ("--peer-port", me.peer_port.to_string()),
        ("--metrics-server-port", me.metrics_port.to_string()),
        ("--web-server-port", me.web_port.to_string()),
        ("--admin-password", admin_password.to_owned()),
        ("--bootstrap-expect", all.len().to_string()),
        ("--worker-threads", worker_threads(all.len()).to_string()),
        ("--memory-budget", memory_budget_bytes(0, all.len()).to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    arguments.insert(0, "serve".to_owned());
    if all.len() > 1 {
        let peers: Vec<String> = all.iter().map(|node| format!("127.0.0.1:{}", node.peer_port)).collect();
        arguments.extend(["--peers".to_owned(), peers.join(","), "--insecure-peers".to_owned()]);
    }
    // Whatever the environment says.
    arguments.extend(["--auth=true", "--maintenance=false", "--exit-with-parent"].map(str::to_owned));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_demo_has_the_documented_ports() {
        let nodes = plan(Path::new("d"), 3, BASE_PORT).unwrap();
        let ports: Vec<_> = nodes.iter().map(|n| (n.grpc_port, n.peer_port, n.metrics_port, n.web_port)).collect();
        assert_eq!(ports, [(3322, 3323, 9497, 8080), (3332, 3333, 9507, 8090), (3342, 3343, 9517, 8100)]);
    }

    #[test]
    fn no_two_ports_of_the_largest_demo_are_equal() {
        for base_port in [1, 1024, BASE_PORT, u16::MAX - METRICS_ABOVE_GRPC - PORT_STEP * (NODES_MAX - 1)] {
            let nodes = plan(Path::new("d"), NODES_MAX, base_port).unwrap();
            let mut ports: Vec<u16> = nodes.iter().flat_map(|n| n.ports()).map(|(port, _)| port).collect();
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports.len(), 4 * usize::from(NODES_MAX), "base port {base_port}");
        }
    }

    #[test]
    fn impossible_demos_are_refused() {
        for (nodes, base_port) in [(0, BASE_PORT), (NODES_MAX + 1, BASE_PORT), (3, 0), (1, 59_361), (3, u16::MAX)] {
            assert!(plan(Path::new("d"), nodes, base_port).is_err(), "{nodes} nodes from {base_port}");
        }
        assert!(plan(Path::new("d"), 1, 59_360).is_ok());
    }

    #[test]
    fn a_single_node_gets_no_peers() {
        let one = plan(Path::new("d"), 1, BASE_PORT).unwrap();
        let arguments = serve_arguments(&one[0], &one, "secret");
        assert!(!arguments.iter().any(|a| a == "--peers" || a == "--insecure-peers"), "{arguments:?}");
        let three = plan(Path::new("d"), 3, BASE_PORT).unwrap();
        let arguments = serve_arguments(&three[1], &three, "secret");
        let peers = arguments.iter().position(|a| a == "--peers").map(|at| arguments[at + 1].as_str());
        assert_eq!(peers, Some("127.0.0.1:3323,127.0.0.1:3333,127.0.0.1:3343"));
    }
}
