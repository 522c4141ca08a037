//! Starts nodes and speaks to them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use alhambra_node::config::Secret;
use alhambra_node::{Config, Env, Node, NodeHandle};
use alhambra_proto::code::Details;
use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use alhambra_raft::env::Clock;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{FileKind, OpenMode, Vfs};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

pub const PASSWORD: &str = "correct horse";

/// Far more than anything here takes, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Settings that suit a test: loopback, free ports, cheap hashes, quick elections.
pub fn config() -> Config {
    let mut config = Config::default();
    config.dir = "/data".into();
    config.address = "127.0.0.1".into();
    config.port = 0;
    config.peer_port = 0;
    config.metrics_server_port = 0;
    config.web_server_port = 0;
    config.admin_password = Some(Secret::new(PASSWORD));
    config.password_hash_memory = 8;
    config.password_hash_passes = 1;
    config.segment_size = 1 << 20;
    config.raft_heartbeat = Duration::from_millis(50);
    config.raft_election_min = Duration::from_millis(300);
    config.raft_election_max = Duration::from_millis(600);
    config
}

pub fn env(disk: &MemVfs) -> Env {
    Env::production(Arc::new(disk.clone()))
}

/// The wall clock, shifted.
#[derive(Debug)]
pub struct Shifted {
    real: Arc<dyn Clock>,
    by_ms: AtomicI64,
}

impl Shifted {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { real: env(&MemVfs::new()).clock, by_ms: AtomicI64::new(0) })
    }

    pub fn days(&self, days: i64) {
        self.by_ms.store(days * 86_400_000, Ordering::Relaxed);
    }
}

impl Clock for Shifted {
    fn now_unix_ms(&self) -> i64 {
        self.real.now_unix_ms() + self.by_ms.load(Ordering::Relaxed)
    }
}

/// One node, serving.
pub async fn single() -> NodeHandle {
    single_with(config()).await
}

pub async fn single_with(config: Config) -> NodeHandle {
    let node = Node::start(config, env(&MemVfs::new())).await.expect("the node starts");
    assert!(node.wait_ready(Instant::now() + PATIENCE).await, "{:?}", node.groups().ready());
    node
}

/// Tries until it is true.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let tried = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, tried).await.unwrap_or_else(|_| panic!("{what} did not happen in time"));
}

/// All bytes of all files in the data folder, one after the other.
pub fn contents(disk: &MemVfs) -> Vec<u8> {
    fn gather(disk: &MemVfs, folder: &Path, into: &mut Vec<u8>) {
        for (name, kind) in disk.read_dir(folder).unwrap() {
            let path = folder.join(name);
            match kind {
                FileKind::Dir => gather(disk, &path, into),
                FileKind::File => {
                    let file = disk.open(&path, OpenMode::Read).unwrap();
                    let len = usize::try_from(file.len().unwrap()).unwrap();
                    into.extend(file.read_at(0, len).unwrap());
                }
            }
        }
    }
    let mut all = Vec::new();
    gather(disk, Path::new("/data"), &mut all);
    all
}

/// GET of a page on the metrics port: status line and body.
pub async fn page(node: &NodeHandle, path: &str) -> (String, String) {
    let address = node.metrics_addr().expect("metrics are on");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// A client with the headers of its choice.
#[derive(Clone)]
pub struct Client {
    pub inner: ImmuServiceClient<Channel>,
    pub headers: Vec<(&'static str, String)>,
}

pub async fn channel(node: &NodeHandle) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", node.grpc_addr())).unwrap();
    endpoint.tcp_nodelay(true).connect().await.unwrap()
}

impl Client {
    /// Nobody yet.
    pub async fn anonymous(node: &NodeHandle) -> Self {
        let inner = ImmuServiceClient::new(channel(node).await).max_decoding_message_size(usize::MAX);
        Self { inner, headers: Vec::new() }
    }

    /// The administrator with a session on a database.
    pub async fn on(node: &NodeHandle, database: &str) -> Self {
        let mut client = Self::anonymous(node).await;
        let opened = client.open("immudb", PASSWORD, database).await.unwrap();
        client.headers.push(("sessionid", opened.session_id));
        client
    }

    pub async fn open(
        &mut self,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<schema::OpenSessionResponse, Status> {
        let request = schema::OpenSessionRequest {
            username: bytes(user),
            password: bytes(password),
            database_name: database.to_owned(),
        };
        self.inner.open_session(self.request(request)).await.map(Response::into_inner)
    }

    /// A user with a session on a database.
    pub async fn session(node: &NodeHandle, user: &str, password: &str, database: &str) -> Result<Self, Status> {
        let mut client = Self::anonymous(node).await;
        let opened = client.open(user, password, database).await?;
        Ok(client.with("sessionid", opened.session_id))
    }

    pub fn with(&self, key: &'static str, value: impl Into<String>) -> Self {
        let mut headers: Vec<_> = self.headers.iter().filter(|(name, _)| *name != key).cloned().collect();
        headers.push((key, value.into()));
        Self { inner: self.inner.clone(), headers }
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (key, value) in &self.headers {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        request
    }

    pub async fn set(&self, key: &str, value: &str) -> Result<schema::TxHeader, Status> {
        self.set_all(vec![kv(key, value)]).await
    }

    pub async fn set_all(&self, k_vs: Vec<schema::KeyValue>) -> Result<schema::TxHeader, Status> {
        self.set_if(k_vs, vec![]).await
    }

    pub async fn set_if(
        &self,
        k_vs: Vec<schema::KeyValue>,
        preconditions: Vec<schema::Precondition>,
    ) -> Result<schema::TxHeader, Status> {
        let request = schema::SetRequest { k_vs, no_wait: false, preconditions };
        self.inner.clone().set(self.request(request)).await.map(Response::into_inner)
    }

    pub async fn get(&self, key: &str) -> Result<schema::Entry, Status> {
        self.get_of(schema::KeyRequest { key: bytes(key), ..Default::default() }).await
    }

    pub async fn get_of(&self, request: schema::KeyRequest) -> Result<schema::Entry, Status> {
        self.inner.clone().get(self.request(request)).await.map(Response::into_inner)
    }

    pub async fn delete(&self, keys: &[&str]) -> Result<schema::TxHeader, Status> {
        let keys = keys.iter().map(|key| bytes(key)).collect();
        let request = schema::DeleteKeysRequest { keys, ..Default::default() };
        self.inner.clone().delete(self.request(request)).await.map(Response::into_inner)
    }

    pub async fn scan(&self, request: schema::ScanRequest) -> Result<Vec<schema::Entry>, Status> {
        Ok(self.inner.clone().scan(self.request(request)).await?.into_inner().entries)
    }

    pub async fn history(&self, request: schema::HistoryRequest) -> Result<Vec<schema::Entry>, Status> {
        Ok(self.inner.clone().history(self.request(request)).await?.into_inner().entries)
    }

    pub async fn state(&self) -> Result<schema::ImmutableState, Status> {
        self.inner.clone().current_state(self.request(())).await.map(Response::into_inner)
    }
}

/// The text with another character at one place.
pub fn altered(text: &str, at: usize) -> String {
    let mut other = text.as_bytes().to_vec();
    other[at] = if other[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8(other).unwrap()
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn kv(key: &str, value: &str) -> schema::KeyValue {
    schema::KeyValue { key: bytes(key), value: bytes(value), metadata: None }
}

/// A value that counts until the given Unix second.
pub fn expiring(key: &str, value: &str, expires_at: i64) -> schema::KeyValue {
    let expiration = Some(schema::Expiration { expires_at });
    schema::KeyValue { metadata: Some(schema::KvMetadata { expiration, ..Default::default() }), ..kv(key, value) }
}

/// Code, text, and the code in the details or "" without details.
pub fn told(status: &Status) -> (Code, String, String) {
    let details = Details::of(status).map(|details| details.code).unwrap_or_default();
    (status.code(), status.message().to_owned(), details)
}

/// Holds a refusal to what it must be.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str, details: &str) {
    let status = result.expect_err("the call is refused");
    assert_eq!(told(&status), (code, text.to_owned(), details.to_owned()));
}

/// Keys and values of entries.
pub fn pairs(entries: &[schema::Entry]) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    entries.iter().map(|entry| (text(&entry.key), text(&entry.value))).collect()
}

/// Keys of entries.
pub fn keys(entries: &[schema::Entry]) -> Vec<String> {
    pairs(entries).into_iter().map(|(key, _)| key).collect()
}
