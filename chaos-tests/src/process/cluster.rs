//! The nodes: what they are started with, their processes, what they say of themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin};
use tokio::time::{Instant, timeout};

use super::control::Control;
use super::faults::rot::Rot;
use super::net::{Addresses, Net, NodeIndex};

/// The admin of every run.
pub const USER: &str = "immudb";
/// Its password.
pub const PASSWORD: &str = "Chaos-1-run";
/// The database that is judged.
pub const DATABASE: &str = "defaultdb";
/// Small, so that segments are closed while the run lasts.
const SEGMENT_BYTES: u64 = 64 << 10;
/// The least that a node takes.
pub const MEMORY_BUDGET_BYTES: u64 = 64 << 20;
/// Calls without a deadline of their own end within this on the server.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const ONE_QUESTION: Duration = Duration::from_millis(700);
/// A node that stops in order has this long; it allows itself 13 s.
const STOPS_WITHIN: Duration = Duration::from_secs(40);

/// What a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `alhambra serve`, the binary that users run.
    Serve,
    /// `chaos-node`: the same node on a steered disk and clock, where SIGKILL loses what is not synced.
    Steered,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `alhambra`.
    pub alhambra: PathBuf,
    /// `chaos-node`.
    pub chaos_node: PathBuf,
}

/// One node.
#[derive(Debug)]
pub struct Member {
    /// What it runs.
    pub kind: Kind,
    /// Its data folder.
    pub dir: PathBuf,
    /// Where it writes its log.
    pub log: PathBuf,
    control: Control,
    control_file: PathBuf,
    config: PathBuf,
    child: Option<Child>,
    /// Open as long as the node shall run. Not in `child`, which closes it when it is waited for: to a node that is told
    /// to stop, the end of its input would be a second word.
    input: Option<ChildStdin>,
    /// Runs without it while this is set: the chaos program stopped it.
    down: bool,
}

/// All nodes and their network.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes. Before the network, so that they end before it does.
    pub members: Vec<Member>,
    /// The network.
    pub net: Net,
    /// Flipped bits that may still be there.
    pub rot: Vec<Rot>,
    /// How many there have been.
    pub flips: usize,
    programs: Programs,
    syncs_lie: bool,
    /// Nodes that ended by themselves, in words.
    pub deaths: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What each node runs.
    pub kinds: Vec<Kind>,
    /// Their binaries.
    pub programs: Programs,
    /// Plants a bug in every steered node: syncs of segments lie.
    pub syncs_lie: bool,
}

impl Cluster {
    /// Writes the configurations below `folder`; nothing runs yet.
    pub fn prepare(folder: &Path, net: Net, plan: Plan) -> Result<Self, String> {
        let peers: Vec<String> = (0..plan.kinds.len()).map(|node| format!("{:?}", net.addresses(node).peer)).collect();
        let mut members = Vec::new();
        for (node, kind) in plan.kinds.iter().enumerate() {
            let own = folder.join(format!("node-{}", node + 1));
            fs::create_dir_all(&own).map_err(|error| format!("{}: {error}", own.display()))?;
            let member = Member {
                kind: *kind,
                dir: own.join("data"),
                log: own.join("log"),
                control: Control::default(),
                control_file: own.join("control.json"),
                config: own.join("config.toml"),
                child: None,
                input: None,
                down: true,
            };
            let text = configuration(&member.dir, net.addresses(node), &peers);
            fs::write(&member.config, text).map_err(|error| format!("{}: {error}", member.config.display()))?;
            members.push(member);
        }
        let (programs, syncs_lie) = (plan.programs, plan.syncs_lie);
        Ok(Self { members, net, rot: Vec::new(), flips: 0, programs, syncs_lie, deaths: Vec::new() })
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Where clients connect to a node, `host:port`.
    pub fn endpoint(&self, node: NodeIndex) -> String {
        let own = self.net.addresses(node);
        format!("{}:{}", own.host, own.port)
    }

    /// Where a node's metrics and health are, `host:port`.
    pub fn metrics(&self, node: NodeIndex) -> String {
        let own = self.net.addresses(node);
        format!("{}:{}", own.host, own.metrics_port)
    }

    /// The process of a node, while it runs.
    pub fn process_id(&self, node: NodeIndex) -> Option<u32> {
        self.members[node].child.as_ref().and_then(Child::id)
    }

    /// Starts a node that does not run.
    pub fn start(&mut self, node: NodeIndex) -> Result<(), String> {
        let member = &self.members[node];
        let program = match member.kind {
            Kind::Serve => &self.programs.alhambra,
            Kind::Steered => &self.programs.chaos_node,
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(&member.log);
        let log = log.map_err(|error| format!("{}: {error}", member.log.display()))?;
        let mut command = self.net.command(node, program);
        match member.kind {
            Kind::Serve => command.args(["serve", "--exit-with-parent"]),
            Kind::Steered => command.arg("--volatile").arg("--control").arg(&member.control_file),
        };
        if self.syncs_lie && member.kind == Kind::Steered {
            command.arg("--syncs-lie");
        }
        let command = command
            .arg("--config")
            .arg(&member.config)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        self.net.node_runs_as(node, child.id());
        let member = &mut self.members[node];
        member.input = child.stdin.take();
        member.child = Some(child);
        member.down = false;
        Ok(())
    }

    fn signal(&self, node: NodeIndex, signal: Signal) -> Result<(), String> {
        let id = self.process_id(node).and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.ok_or_else(|| format!("node {} does not run", node + 1))?;
        kill_process(id, signal).map_err(|error| format!("signal to node {}: {error}", node + 1))
    }

    /// SIGKILL; the process is gone when this returns.
    pub async fn kill(&mut self, node: NodeIndex) -> Result<(), String> {
        self.members[node].down = true;
        self.signal(node, Signal::KILL)?;
        self.reap(node).await
    }

    /// SIGKILL to all of them before the first is waited for.
    pub async fn kill_all(&mut self) -> Result<(), String> {
        for node in 0..self.len() {
            self.members[node].down = true;
            self.signal(node, Signal::KILL)?;
        }
        for node in 0..self.len() {
            self.reap(node).await?;
        }
        Ok(())
    }

    async fn reap(&mut self, node: NodeIndex) -> Result<(), String> {
        if let Some(mut child) = self.members[node].child.take() {
            child.wait().await.map_err(|error| format!("node {}: {error}", node + 1))?;
        }
        self.net.node_runs_as(node, None);
        Ok(())
    }

    /// SIGTERM, and waits for an orderly end.
    pub async fn stop(&mut self, node: NodeIndex) -> Result<(), String> {
        self.members[node].down = true;
        self.signal(node, Signal::TERM)?;
        let Some(child) = self.members[node].child.as_mut() else { return Ok(()) };
        let ended = timeout(STOPS_WITHIN, child.wait()).await;
        let (line, log) = (node + 1, self.log_end(node));
        match ended {
            Ok(Ok(status)) if status.success() => {}
            Ok(status) => self.deaths.push(format!("node {line} did not stop in order: {status:?}\n{log}")),
            Err(_) => {
                self.deaths.push(format!("node {line} did not stop within {STOPS_WITHIN:?} of SIGTERM\n{log}"));
                self.signal(node, Signal::KILL)?;
            }
        }
        self.reap(node).await
    }

    /// SIGSTOP.
    pub fn pause(&self, node: NodeIndex) -> Result<(), String> {
        self.signal(node, Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self, node: NodeIndex) -> Result<(), String> {
        self.signal(node, Signal::CONT)
    }

    /// Says how disk and clock of a steered node are from now on; what is not changed stays.
    pub fn control(&mut self, node: NodeIndex, change: impl FnOnce(&mut Control)) -> Result<(), String> {
        let member = &mut self.members[node];
        change(&mut member.control);
        let path = &member.control_file;
        member.control.write(path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Nodes whose disk and clock can be steered.
    pub fn steered(&self) -> Vec<NodeIndex> {
        (0..self.len()).filter(|node| self.members[*node].kind == Kind::Steered).collect()
    }

    /// Notices nodes that ended although nobody stopped them, and starts them again.
    pub fn look_after(&mut self) -> Result<(), String> {
        for node in 0..self.len() {
            let member = &mut self.members[node];
            let ended: Option<ExitStatus> = match &mut member.child {
                Some(child) if !member.down => child.try_wait().map_err(|error| error.to_string())?,
                _ => None,
            };
            if let Some(status) = ended {
                member.child = None;
                let log = self.log_end(node);
                self.deaths.push(format!("node {} ended by itself ({status}):\n{log}", node + 1));
                self.start(node)?;
            }
        }
        Ok(())
    }

    /// The last lines of a node's log.
    pub fn log_end(&self, node: NodeIndex) -> String {
        let text = fs::read(&self.members[node].log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].iter().map(|line| format!("    {line}\n")).collect()
    }

    /// The node that says it leads the database, if exactly one does.
    pub async fn leader(&self) -> Option<NodeIndex> {
        let pages =
            (0..self.len()).map(|node| async move { leads(&self.metrics(node)).await.is_some_and(|(leads, _)| leads) });
        let said = futures::future::join_all(pages).await;
        let mut leading = (0..self.len()).filter(|node| said[*node]);
        leading.next().filter(|_| leading.next().is_none())
    }

    /// Waits for one leader.
    pub async fn wait_leader(&self, within: Duration) -> Option<NodeIndex> {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(leader) = self.leader().await {
                return Some(leader);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        None
    }

    /// Waits until every node says that it is ready, and tells what they said shortly before; what they say now otherwise.
    pub async fn wait_ready(&mut self, within: Duration) -> Result<String, String> {
        let begin = Instant::now();
        let mut before = String::new();
        loop {
            self.look_after()?;
            let mut missing = Vec::new();
            for node in 0..self.len() {
                match page(&self.metrics(node), "/readyz", ONE_QUESTION * 3).await {
                    Some(page) if page.starts_with("HTTP/1.1 200") => {}
                    Some(page) => {
                        let body = page.split("\r\n\r\n").nth(1).unwrap_or_default().trim().to_owned();
                        missing.push(format!("node {}: {body}", node + 1));
                    }
                    None => missing.push(format!("node {}: no answer", node + 1)),
                }
            }
            if missing.is_empty() {
                return Ok(before);
            }
            before = missing.join("; ");
            if begin.elapsed() > within {
                return Err(format!("not ready after {:.0} s: {before}", within.as_secs_f64()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn configuration(dir: &Path, own: &Addresses, peers: &[String]) -> String {
    let peers = if peers.len() > 1 {
        format!("peers = [{}]\ninsecure-peers = true\n", peers.join(", "))
    } else {
        String::new()
    } + &format!("bootstrap-expect = {}\n", peers.len());
    format!(
        "dir = {dir:?}\naddress = {:?}\nport = {}\npeer-port = {}\nmetrics-server-port = {}\nweb-server = false\n\
         admin-password = {PASSWORD:?}\n{peers}segment-size = {SEGMENT_BYTES}\nmemory-budget = {MEMORY_BUDGET_BYTES}\n\
         request-timeout = \"{}s\"\ndisk-reserve = 1048576\nworker-threads = 1\npassword-hash-memory = 8\n\
         password-hash-passes = 1\n",
        own.bind,
        own.port,
        own.peer_port,
        own.metrics_port,
        REQUEST_TIMEOUT.as_secs(),
    )
}

/// Whether the node behind this address says that it leads the database, and the term; nothing when it says nothing.
pub async fn leads(metrics: &str) -> Option<(bool, u64)> {
    said_of_leading(&page(metrics, "/metrics", ONE_QUESTION).await?)
}

fn said_of_leading(page: &str) -> Option<(bool, u64)> {
    let wanted = format!("db=\"{DATABASE}\"");
    let value = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(&wanted))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    Some((value("alhambra_raft_is_leader{")? == 1.0, value("alhambra_raft_term{")? as u64))
}

/// A page with its status line and headers.
async fn page(address: &str, path: &str, within: Duration) -> Option<String> {
    let fetch = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        String::from_utf8(answer).ok()
    };
    timeout(within, fetch).await.ok().flatten()
}

/// Resident memory of a process, bytes.
pub fn resident_bytes(process_id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_of_leading_is_of_the_judged_database() {
        let page = "alhambra_raft_is_leader{db=\"other\"} 0\nalhambra_raft_is_leader{db=\"defaultdb\"} 1\n\
                    alhambra_raft_term{db=\"other\"} 3\nalhambra_raft_term{db=\"defaultdb\"} 12\n";
        assert_eq!(said_of_leading(page), Some((true, 12)));
        assert_eq!(said_of_leading("alhambra_up 1\n"), None);
    }
}
