//! A network namespace per node: an own address on an own link into one bridge.
//!
//! Node n has two addresses on its link, `10.x.y.n` for clients and `127.77.0.n` for its peers. The second is a loopback
//! address, which is what nodes without TLS between them take, and travels over the link all the same: `route_localnet` lets
//! it, and the namespace keeps of `127.0.0.0/8` only `127.0.0.1` for itself.
//!
//! A cut from a to b is a wrong hardware address for b that a has for good: what a sends is lost on the bridge without a word,
//! in open connections as well, and the way back is untouched. A slow link is a proxy inside the namespace of either end that has the
//! peer's address there; packets of connections that were open before are answered with a reset.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{Addresses, NodeIndex, Slowness};
use crate::process::leftovers::{LINK, SPACE, ip};

/// A hardware address that no link has.
const NOBODY: &str = "02:00:00:00:ff:ff";
const LINK_INSIDE: &str = "eth0";
const PORT: u16 = 3322;
const METRICS_PORT: u16 = 9497;
/// A proxy that does not listen after this long will not.
const PROXY_STARTS_WITHIN: Duration = Duration::from_secs(20);

/// The namespaces of a run.
#[derive(Debug)]
pub struct Spaces {
    run: u32,
    subnet: [u8; 2],
    addresses: Vec<Addresses>,
    /// Proxies of slow links: where each runs, towards whom.
    proxies: Vec<(NodeIndex, NodeIndex, Child)>,
}

fn peer_port(node: NodeIndex) -> u16 {
    // Each node has another one, so that in each namespace the ports of the peers are free for proxies.
    3323 + 10 * u16::try_from(node).unwrap_or(0)
}

fn peer_host(node: NodeIndex) -> String {
    format!("127.77.0.{}", node + 1)
}

impl Spaces {
    /// Makes them; removes what it made when that fails half-way.
    pub fn make(nodes: usize) -> Result<Self, String> {
        let run = std::process::id();
        let mut net = Self { run, subnet: free_subnet(run)?, addresses: Vec::new(), proxies: Vec::new() };
        // Dropped on failure, which removes what there is.
        net.build(nodes)?;
        Ok(net)
    }

    fn build(&mut self, nodes: usize) -> Result<(), String> {
        let bridge = format!("{LINK}{}b", self.run);
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", self.host(253)), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for node in 0..nodes {
            let (space, outside) = (self.space(node), self.outside(node));
            ip(&["netns", "add", &space])?;
            ip(&["link", "add", &outside, "type", "veth", "peer", "name", LINK_INSIDE, "netns", &space])?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            let inside = |arguments: &[&str]| ip(&[&["-n", &space], arguments].concat());
            inside(&["link", "set", "lo", "up"])?;
            inside(&["addr", "del", "127.0.0.1/8", "dev", "lo"])?;
            inside(&["addr", "add", "127.0.0.1/32", "dev", "lo"])?;
            let setting = format!("/proc/sys/net/ipv4/conf/{LINK_INSIDE}/route_localnet");
            ip(&["netns", "exec", &space, "sh", "-c", &format!("echo 1 > {setting}")])?;
            for address in [self.host(node), peer_host(node)] {
                inside(&["addr", "add", &format!("{address}/24"), "dev", LINK_INSIDE])?;
            }
            inside(&["link", "set", LINK_INSIDE, "up"])?;
            self.addresses.push(Addresses {
                bind: Ipv4Addr::UNSPECIFIED.to_string(),
                host: self.host(node),
                port: PORT,
                peer_port: peer_port(node),
                metrics_port: METRICS_PORT,
                peer: format!("{}:{}", peer_host(node), peer_port(node)),
            });
        }
        Ok(())
    }

    fn space(&self, node: NodeIndex) -> String {
        format!("{SPACE}{}n{}", self.run, node + 1)
    }

    fn outside(&self, node: NodeIndex) -> String {
        format!("{LINK}{}n{}", self.run, node + 1)
    }

    fn host(&self, node: NodeIndex) -> String {
        format!("10.{}.{}.{}", self.subnet[0], self.subnet[1], node + 1)
    }

    /// The subnet, for messages.
    pub fn subnet(&self) -> String {
        format!("10.{}.{}.0/24", self.subnet[0], self.subnet[1])
    }

    pub(super) fn addresses(&self, node: NodeIndex) -> &Addresses {
        &self.addresses[node]
    }

    pub(super) fn command(&self, node: NodeIndex, program: &Path) -> Command {
        // `ip` becomes the program, so its process id is the program's.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(node)]).arg(program);
        command
    }

    pub(super) fn cut(&self, from: NodeIndex, to: NodeIndex) -> Result<(), String> {
        for address in [self.host(to), peer_host(to)] {
            let known = ["neigh", "replace", &address, "lladdr", NOBODY, "dev", LINK_INSIDE, "nud", "permanent"];
            ip(&[&["-n", &self.space(from)], &known[..]].concat())?;
        }
        Ok(())
    }

    pub(super) fn mend(&self, from: NodeIndex, to: NodeIndex) -> Result<(), String> {
        for address in [self.host(to), peer_host(to)] {
            ip(&["-n", &self.space(from), "neigh", "del", &address, "dev", LINK_INSIDE])?;
        }
        Ok(())
    }

    pub(super) fn set_plugged(&self, node: NodeIndex, plugged: bool) -> Result<(), String> {
        // The outer end, so that the addresses inside stay.
        ip(&["link", "set", &self.outside(node), if plugged { "up" } else { "down" }]).map(drop)
    }

    pub(super) async fn slow(&mut self, a: NodeIndex, b: NodeIndex, slowness: Slowness) -> Result<(), String> {
        for (from, to) in [(a, b), (b, a)] {
            ip(&["-n", &self.space(from), "addr", "add", &format!("{}/32", peer_host(to)), "dev", "lo"])?;
            let program = std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
            let mut command = self.command(from, &program);
            command
                .args(["link", "--listen", &format!("{}:{}", peer_host(to), peer_port(to))])
                .args(["--to", &format!("{}:{}", self.host(to), peer_port(to))])
                .args(["--delay-ms", &slowness.delay.as_millis().to_string()])
                .args(["--bytes-per-second", &slowness.bytes_per_second.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true);
            let mut child = command.spawn().map_err(|error| format!("a proxy: {error}"))?;
            let mut lines = BufReader::new(child.stdout.take().ok_or("a proxy without output")?).lines();
            let ready = tokio::time::timeout(PROXY_STARTS_WITHIN, lines.next_line()).await;
            self.proxies.push((from, to, child));
            if !matches!(ready, Ok(Ok(Some(_)))) {
                return Err(format!("the proxy from node {} to node {} did not start", from + 1, to + 1));
            }
        }
        Ok(())
    }

    pub(super) async fn fast(&mut self, a: NodeIndex, b: NodeIndex) -> Result<(), String> {
        let mut kept = Vec::new();
        for (from, to, mut child) in std::mem::take(&mut self.proxies) {
            if (from, to) != (a, b) && (from, to) != (b, a) {
                kept.push((from, to, child));
                continue;
            }
            child.kill().await.map_err(|error| format!("a proxy: {error}"))?;
            ip(&["-n", &self.space(from), "addr", "del", &format!("{}/32", peer_host(to)), "dev", "lo"])?;
        }
        self.proxies = kept;
        Ok(())
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        self.proxies.clear();
        remove_of_network(self.run);
    }
}

/// The folder of the run is another one's to remove, and may be looked into after the network is gone.
fn remove_of_network(run: u32) {
    let names = ip(&["netns", "list"]).unwrap_or_default();
    for space in names.lines().filter_map(|line| line.split_whitespace().next()) {
        if space.starts_with(&format!("{SPACE}{run}n")) {
            let _ = ip(&["netns", "del", space]);
        }
    }
    let _ = ip(&["link", "del", &format!("{LINK}{run}b")]);
}

/// Two numbers y and z such that nobody on this machine uses `10.y.z.0/24`.
fn free_subnet(run: u32) -> Result<[u8; 2], String> {
    let used = ip(&["-o", "-4", "addr", "show"])?;
    (0..=u8::MAX)
        .map(|n| [77, n.wrapping_add(run.to_le_bytes()[0])])
        .find(|[y, z]| !used.contains(&format!(" 10.{y}.{z}.")))
        .ok_or_else(|| "no free subnet 10.77.x.0/24".to_owned())
}
