//! What the tests share: commands, demos and the wire.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use alhambra_proto::schema::{ImmutableState, KeyListRequest, KeyRequest, KeyValue, OpenSessionRequest, SetRequest};
use serde_json::Value;
use tokio::time::Instant;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Anything that takes longer on a slow, shared machine has failed.
pub const DEADLINE: Duration = Duration::from_secs(120);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The binary with a clean environment, so that no variable of the caller changes what is tested.
pub fn alhambra(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alhambra"));
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Runs it to its end, within the deadline.
pub fn run(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let process_id = child.id();
    let (done, waited) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    match waited.recv_timeout(DEADLINE) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            send_signal("KILL", process_id);
            panic!("{command:?} did not end");
        }
    }
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Sends a signal to one process by its id.
pub fn send_signal(name: &str, process_id: u32) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {process_id}")]).status().unwrap();
    assert!(status.success(), "no process {process_id} to send {name} to");
}

/// Whether the process exists and is not waiting to be collected.
pub fn is_running(process_id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Waits until the condition gives something.
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::sleep(LOOK_AGAIN_AFTER);
    }
}

/// The same where waiting must not hold up a thread.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// A base port whose demo has all its ports free; never the same twice in this process.
pub fn free_base_port(nodes: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 200) as u16;
    for _ in 0..400 {
        let slot = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 400;
        let base = 12_000 + 100 * (slot % 60) + slot / 60 * 2;
        let ports = (0..nodes).flat_map(|i| [base, base + 1, base + 4758, base + 6175].map(|port| port + 10 * i));
        if ports.clone().all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return base;
        }
    }
    panic!("no free ports");
}

/// A single `serve` as a person would start it; killed when dropped.
pub struct Serve(pub Child);

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `alhambra demo`; killed when dropped, its nodes with it.
pub struct Demo {
    child: Child,
    /// Its folder.
    pub dir: PathBuf,
    /// What `--json` printed.
    pub json: Value,
}

impl Demo {
    /// Starts a demo and waits until it serves.
    pub fn start(dir: &Path, nodes: u16, base_port: u16) -> Demo {
        Demo::start_with(dir, nodes, base_port, &[])
    }

    /// The same with environment variables for the nodes.
    pub fn start_with(dir: &Path, nodes: u16, base_port: u16, environment: &[(&str, &str)]) -> Demo {
        let (nodes, port) = (nodes.to_string(), base_port.to_string());
        let arguments = ["demo", "--json", "--dir", dir.to_str().unwrap(), "--nodes", &nodes, "--base-port", &port];
        let mut child = alhambra(&arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = lines.read_line(&mut line);
            let _ = send.send(line);
        });
        let mut demo = Demo { child, dir: dir.to_owned(), json: Value::Null };
        let line = receive.recv_timeout(DEADLINE).expect("the demo says that it serves");
        demo.json = serde_json::from_str(&line).expect("one JSON object");
        demo
    }

    /// The record as it is now, with the process ids as they are now.
    pub fn record(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join("demo.json")).unwrap()).unwrap()
    }

    /// Process id of each node; 0 while it is not running.
    pub fn process_ids(&self) -> Vec<u32> {
        let record = self.record();
        let nodes = record["nodes"].as_array().unwrap();
        nodes.iter().map(|node| u32::try_from(node["pid"].as_u64().unwrap()).unwrap()).collect()
    }

    /// `host:port` of each node.
    pub fn endpoints(&self) -> Vec<String> {
        let nodes = self.json["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["endpoint"].as_str().unwrap().to_owned()).collect()
    }

    /// All endpoints as a flag value.
    pub fn endpoint_list(&self) -> String {
        self.endpoints().join(",")
    }

    /// Waits until every node runs as a process of its own that is not in `gone`, and says that it is ready.
    pub async fn wait_ready(&self, gone: &[u32]) {
        wait_for("all nodes to run again", || async {
            self.process_ids().iter().all(|id| *id != 0 && !gone.contains(id)).then_some(())
        })
        .await;
        for node in self.json["nodes"].as_array().unwrap() {
            let address = format!("127.0.0.1:{}", node["metrics_port"]);
            wait_for(&format!("{address}/readyz"), || async {
                page(&address, "/readyz").await.filter(|page| page.starts_with("HTTP/1.1 200")).map(drop)
            })
            .await;
        }
    }

    /// Place in [`Self::endpoints`] of the node that leads `defaultdb`.
    pub async fn leader(&self) -> usize {
        wait_for("exactly one leader", || async {
            let mut leading = Vec::new();
            for (place, node) in self.json["nodes"].as_array().unwrap().iter().enumerate() {
                let metrics = page(&format!("127.0.0.1:{}", node["metrics_port"]), "/metrics").await;
                let leads = metrics.unwrap_or_default().lines().any(|line| {
                    line.starts_with("alhambra_raft_is_leader{")
                        && line.contains("db=\"defaultdb\"")
                        && line.ends_with(" 1")
                });
                leading.extend(leads.then_some(place));
            }
            (leading.len() == 1).then(|| leading[0])
        })
        .await
    }

    /// Asks the demo to stop and waits for its end; the exit code.
    pub fn stop(mut self) -> Option<i32> {
        send_signal("TERM", self.child.id());
        wait_until("the demo to stop", || self.child.try_wait().unwrap()).code()
    }

    /// Process id of the demo itself.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Head and body of an HTTP page, as they came.
async fn page(address: &str, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    };
    tokio::time::timeout(Duration::from_secs(5), asked).await.ok().flatten()
}

/// A session on one node, over the plain wire: no client library whose mistakes could hide those of the server.
pub struct Wire {
    stub: ImmuServiceClient<Channel>,
    session: AsciiMetadataValue,
    timeout: Option<Duration>,
}

impl Wire {
    /// Logs in as the demo's admin.
    pub async fn open(endpoint: &str) -> Result<Wire, String> {
        let channel = Endpoint::from_shared(format!("http://{endpoint}")).unwrap().connect_timeout(CALL_TIMEOUT);
        let channel = channel.connect().await.map_err(|error| error.to_string())?;
        let mut stub = ImmuServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let mut request = Request::new(OpenSessionRequest {
            username: "immudb".into(),
            password: "immudb".into(),
            database_name: "defaultdb".to_owned(),
        });
        request.set_timeout(CALL_TIMEOUT);
        let session = stub.open_session(request).await.map_err(|status| status.to_string())?;
        Ok(Wire { stub, session: session.into_inner().session_id.parse().unwrap(), timeout: Some(CALL_TIMEOUT) })
    }

    /// Sends no deadline from now on, as the Python SDK does.
    pub fn without_deadline(mut self) -> Wire {
        self.timeout = None;
        self
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request.metadata_mut().insert("sessionid", self.session.clone());
        request
    }

    /// Writes one transaction; its id.
    pub async fn set(&mut self, entries: &[(String, String)]) -> Result<u64, Status> {
        let k_vs = entries
            .iter()
            .map(|(key, value)| KeyValue { key: key.clone().into(), value: value.clone().into(), metadata: None })
            .collect();
        let request = self.request(SetRequest { k_vs, ..SetRequest::default() });
        Ok(self.stub.set(request).await?.into_inner().id)
    }

    /// The value of a key.
    pub async fn get(&mut self, key: &str) -> Result<String, Status> {
        let request = self.request(KeyRequest { key: key.to_owned().into(), ..KeyRequest::default() });
        let entry = self.stub.get(request).await?.into_inner();
        Ok(String::from_utf8(entry.value.to_vec()).unwrap())
    }

    /// What is there of these keys: value and transaction.
    pub async fn get_all(&mut self, keys: &[String]) -> Result<HashMap<String, (String, u64)>, Status> {
        let mut found = HashMap::new();
        for chunk in keys.chunks(1000) {
            let keys = chunk.iter().map(|key| key.clone().into()).collect();
            let request = self.request(KeyListRequest { keys, since_tx: 0 });
            for entry in self.stub.get_all(request).await?.into_inner().entries {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                found.insert(text(&entry.key), (text(&entry.value), entry.tx));
            }
        }
        Ok(found)
    }

    /// Last transaction and its Alh.
    pub async fn state(&mut self) -> Result<ImmutableState, Status> {
        let request = self.request(());
        Ok(self.stub.current_state(request).await?.into_inner())
    }
}
