//! A server that has what the real exports hold, and everything that a source may do to whoever imports from it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alhambra_ledger::export;
use alhambra_ledger::header::TxHeader;
use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_server::{ImmuService, ImmuServiceServer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tonic::codegen::tokio_stream::StreamExt;
use tonic::codegen::{BoxStream, tokio_stream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, async_trait};

pub const UUID: &str = "d7l3kq8s9pmc73fn1g20";

fn all() -> impl Iterator<Item = Value> {
    let lines = include_str!("../../../ledger/testdata/export-sample.jsonl").lines();
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap())
}

/// Every database of the sample.
pub fn databases() -> BTreeSet<String> {
    all().map(|line| line["database"].as_str().unwrap().to_owned()).collect()
}

/// A database of the sample: the stream of each transaction, and its Alh.
pub fn sample(database: &str) -> Vec<(Vec<u8>, String)> {
    all()
        .filter(|line| line["database"] == database)
        .map(|line| (unhex(line["chunk_content_hex"].as_str().unwrap()), line["alh_hex"].as_str().unwrap().to_owned()))
        .collect()
}

/// The header in the stream of a transaction.
pub fn header(stream: &[u8]) -> TxHeader {
    export::decode(&stream[8..]).unwrap().header
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// What it has and does.
pub struct Served {
    pub txs: Vec<(Vec<u8>, String)>,
    /// As many of them exist.
    pub newest: AtomicUsize,
    /// Transaction and byte of it that is changed on the way.
    pub change: Mutex<Option<(u64, usize)>>,
    /// The state says another hash.
    pub wrong_state: Mutex<bool>,
    /// Streams that are cut in the middle, and sessions that are forgotten, before the next answers are good.
    pub cuts: AtomicUsize,
    pub forgets: AtomicUsize,
    /// Transaction whose stream does not end; 0 for none.
    pub silent: AtomicU64,
    pub exports: AtomicUsize,
    /// Sessions that are open.
    pub sessions: AtomicIsize,
}

pub struct Source {
    pub served: Arc<Served>,
    pub endpoint: String,
    runtime: Option<Runtime>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Source {
    pub fn start(database: &str) -> Self {
        let txs = sample(database);
        let served = Arc::new(Served {
            newest: AtomicUsize::new(txs.len()),
            txs,
            change: Mutex::default(),
            wrong_state: Mutex::default(),
            cuts: AtomicUsize::new(0),
            forgets: AtomicUsize::new(0),
            silent: AtomicU64::new(0),
            exports: AtomicUsize::new(0),
            sessions: AtomicIsize::new(0),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let service = ImmuServiceServer::from_arc(Arc::new(Service(Arc::clone(&served))));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap()).with_nodelay(Some(true));
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { served, endpoint, runtime: Some(runtime) }
    }
}

struct Service(Arc<Served>);

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Service {
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match request.metadata().get("sessionid") {
            Some(id) if id == "a session" => Ok(()),
            _ => Err(Status::invalid_argument("no session found")),
        }
    }
}

#[async_trait]
impl ImmuService for Service {
    async fn open_session(
        &self,
        request: Request<schema::OpenSessionRequest>,
    ) -> Result<Response<schema::OpenSessionResponse>, Status> {
        if request.get_ref().password != "of the source" {
            return Err(Status::unknown("invalid user name or password"));
        }
        self.0.sessions.fetch_add(1, Ordering::SeqCst);
        let reply = schema::OpenSessionResponse { session_id: "a session".into(), server_uuid: UUID.into() };
        Ok(Response::new(reply))
    }

    async fn get_database_settings_v2(
        &self,
        request: Request<schema::DatabaseSettingsRequest>,
    ) -> Result<Response<schema::DatabaseSettingsResponse>, Status> {
        self.admit(&request)?;
        let first = header(&self.0.txs[0].0);
        let settings = schema::DatabaseNullableSettings {
            max_key_len: Some(schema::NullableUint32 { value: 777 }),
            exclude_commit_time: Some(schema::NullableBool { value: first.ts == 0 }),
            write_tx_header_version: Some(schema::NullableUint32 { value: first.version.into() }),
            ..Default::default()
        };
        Ok(Response::new(schema::DatabaseSettingsResponse { settings: Some(settings), ..Default::default() }))
    }

    async fn current_state(&self, request: Request<()>) -> Result<Response<schema::ImmutableState>, Status> {
        self.admit(&request)?;
        let newest = self.0.newest.load(Ordering::SeqCst);
        let mut hash = unhex(&self.0.txs[newest - 1].1);
        if *self.0.wrong_state.lock().unwrap() {
            hash[31] ^= 1;
        }
        Ok(Response::new(schema::ImmutableState { tx_id: newest as u64, tx_hash: hash.into(), ..Default::default() }))
    }

    async fn export_tx(
        &self,
        request: Request<schema::ExportTxRequest>,
    ) -> Result<Response<BoxStream<schema::Chunk>>, Status> {
        self.admit(&request)?;
        let calls = self.0.exports.fetch_add(1, Ordering::SeqCst);
        if calls > 3 && take_one(&self.0.forgets) {
            return Err(Status::invalid_argument("no session found"));
        }
        let schema::ExportTxRequest { tx, allow_pre_committed, .. } = request.into_inner();
        assert!(!allow_pre_committed);
        let newest = self.0.newest.load(Ordering::SeqCst) as u64;
        if tx > newest {
            return Err(Status::unknown("no new transactions"));
        }
        let mut bytes = self.0.txs[tx as usize - 1].0.clone();
        if let Some((changed, at)) = *self.0.change.lock().unwrap()
            && changed == tx
        {
            bytes[at] ^= 1;
        }
        let committed = HashMap::from([("committed-txid-bin".to_owned(), newest.to_be_bytes().to_vec().into())]);
        // Odd places: within the length, within numbers, empty chunks.
        let step = [3, 1, 11, 100, 4096][calls % 5];
        let mut chunks: Vec<Result<schema::Chunk, Status>> = Vec::new();
        for content in bytes.chunks(step) {
            chunks.push(Ok(schema::Chunk { content: content.to_vec().into(), ..Default::default() }));
            if chunks.len().is_multiple_of(4) {
                chunks.push(Ok(schema::Chunk::default()));
            }
        }
        chunks[0].as_mut().unwrap().metadata = committed;
        if calls > 2 && take_one(&self.0.cuts) {
            chunks.truncate(chunks.len() / 2);
            if calls.is_multiple_of(2) {
                chunks.push(Err(Status::unavailable("going down")));
            }
        }
        let chunks = tokio_stream::iter(chunks);
        let stream: BoxStream<schema::Chunk> = if self.0.silent.load(Ordering::SeqCst) == tx {
            Box::pin(chunks.take(1).chain(tokio_stream::pending()))
        } else {
            Box::pin(chunks)
        };
        Ok(Response::new(stream))
    }

    async fn close_session(&self, request: Request<()>) -> Result<Response<()>, Status> {
        self.admit(&request)?;
        self.0.sessions.fetch_sub(1, Ordering::SeqCst);
        Ok(Response::new(()))
    }
}
