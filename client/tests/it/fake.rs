//! A gRPC server over a [`Chain`], with hooks for everything a dishonest or dying one might do.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use alhambra_client::{Client, MemoryStateStore, Options};
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv::{self, StoredValue};
use alhambra_ledger::state::TrustedState;
use alhambra_proto::code::text;
use alhambra_proto::convert::{immutable_state, kv_metadata, kv_metadata_from};
use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_server::{ImmuService, ImmuServiceServer};
use alhambra_proto::schema::op::Operation;
use alhambra_proto::schema::precondition::Precondition;
use bytes::Bytes;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::EncodePublicKey;
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tonic::codegen::{BoxStream, tokio_stream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::chain::{Chain, Stored};

type Hook<T> = Option<Box<dyn FnMut(&mut T) + Send>>;

/// What the next write does instead of being answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is applied, and the answer never comes.
    AppliedThenSilent,
    /// It is applied, and the answer is this code of the transport.
    AppliedThen(tonic::Code),
}

/// Data that several endpoints share, as the nodes of a cluster do.
pub struct Cluster {
    pub chain: Mutex<Chain>,
    pub on_header: Mutex<Hook<schema::TxHeader>>,
    pub on_tx: Mutex<Hook<schema::VerifiableTx>>,
    pub on_entry: Mutex<Hook<schema::VerifiableEntry>>,
    pub on_state: Mutex<Hook<schema::ImmutableState>>,
    pub on_chunks: Mutex<Hook<BoxStream<schema::Chunk>>>,
    /// Signs all states.
    pub key: Mutex<Option<SigningKey>>,
}

impl Cluster {
    pub fn new(chain: Chain) -> Arc<Self> {
        Arc::new(Self {
            chain: Mutex::new(chain),
            on_header: Mutex::default(),
            on_tx: Mutex::default(),
            on_entry: Mutex::default(),
            on_state: Mutex::default(),
            on_chunks: Mutex::default(),
            key: Mutex::default(),
        })
    }

    pub fn state(&self) -> TrustedState {
        self.chain.lock().unwrap().state()
    }

    /// Whether there is a database of this name: that of the chain, and "second".
    fn has(&self, database: &str) -> bool {
        database == "second" || database == self.chain.lock().unwrap().database
    }

    fn signed(&self, state: &TrustedState) -> Option<schema::Signature> {
        let key = self.key.lock().unwrap();
        let signature: Signature = key.as_ref()?.sign(&state.signed_bytes().unwrap());
        let public_key = key.as_ref()?.verifying_key().to_sec1_point(false).as_bytes().to_vec().into();
        Some(schema::Signature { public_key, signature: signature.to_der().as_bytes().to_vec().into() })
    }
}

/// A key of tests, and the PEM text that a client is given.
pub fn signing_key(seed: u8) -> (SigningKey, String) {
    let key = SigningKey::from_slice(&[seed; 32]).unwrap();
    let pem = key.verifying_key().to_public_key_pem(p256::pkcs8::LineEnding::LF).unwrap();
    (key, pem)
}

pub struct Node {
    cluster: Arc<Cluster>,
    uuid: Mutex<String>,
    sessions: AtomicU64,
    /// Sessions with a lower number are forgotten.
    sessions_from: AtomicU64,
    /// So many sessions may be open at once.
    pub sessions_max: AtomicU64,
    /// Answers to the next calls that carry a session, instead of doing them.
    pub refusals: Mutex<VecDeque<Status>>,
    /// Answers to the next uploads, once so many bytes of them have come, instead of doing them.
    pub upload_refusals: Mutex<VecDeque<(usize, Status)>>,
    /// Stands in the entry of a streamed answer, beside the value that is proven.
    pub value_beside: Mutex<Bytes>,
    pub fate: Mutex<Option<Fate>>,
    pub calls: Mutex<Vec<&'static str>>,
    /// Answers the next selection of a database, in whatever way, only when this does.
    pub held_selection: Mutex<Option<oneshot::Receiver<()>>>,
    /// The database that each session has selected.
    selected: Mutex<HashMap<u64, String>>,
    /// The database in which each call was served, in order.
    pub served_in: Mutex<Vec<String>>,
    pub privileges: Mutex<Vec<schema::ChangeSqlPrivilegesRequest>>,
}

/// A running endpoint, on threads of its own. Dropping it ends all of it at once, connections included, as when a
/// process is killed.
pub struct Fake {
    pub node: Arc<Node>,
    pub endpoint: String,
    runtime: Option<Runtime>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Fake {
    pub fn start(cluster: &Arc<Cluster>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let node = Arc::new(Node {
            cluster: Arc::clone(cluster),
            uuid: Mutex::new("d7l3kq8s9pmc73fn1g20".into()),
            sessions: AtomicU64::new(0),
            sessions_from: AtomicU64::new(0),
            sessions_max: AtomicU64::new(u64::MAX),
            refusals: Mutex::default(),
            upload_refusals: Mutex::default(),
            value_beside: Mutex::default(),
            fate: Mutex::default(),
            calls: Mutex::default(),
            held_selection: Mutex::default(),
            selected: Mutex::default(),
            served_in: Mutex::default(),
            privileges: Mutex::default(),
        });
        let service = ImmuServiceServer::from_arc(Arc::clone(&node));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap()).with_nodelay(Some(true));
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { node, endpoint, runtime: Some(runtime) }
    }

    pub fn set_uuid(&self, uuid: &str) {
        *self.node.uuid.lock().unwrap() = uuid.into();
    }

    pub fn forget_sessions(&self) {
        self.node.sessions_from.store(self.node.sessions.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    }

    pub fn refuse(&self, status: Status) {
        self.node.refusals.lock().unwrap().push_back(status);
    }

    pub fn count(&self, call: &str) -> usize {
        self.node.calls.lock().unwrap().iter().filter(|name| **name == call).count()
    }

    pub async fn client(&self) -> (Client, Arc<MemoryStateStore>) {
        self.client_with(Options::default()).await
    }

    pub async fn client_with(&self, options: Options) -> (Client, Arc<MemoryStateStore>) {
        let store = Arc::new(MemoryStateStore::new());
        let state_store: Arc<dyn alhambra_client::StateStore> = store.clone();
        let options = Options { state_store: Some(state_store), ..options };
        (Client::connect(vec![self.endpoint.clone()], options).await.unwrap(), store)
    }
}

/// The messages of an upload; one without its end is refused, as by the node.
fn messages(mut rest: &[u8]) -> Result<Vec<Bytes>, Status> {
    let mut found = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk::<8>() {
        let (message, next) =
            behind.split_at_checked(u64::from_be_bytes(*len) as usize).ok_or(text::STREAM_EOF.status())?;
        found.push(Bytes::copy_from_slice(message));
        rest = next;
    }
    Ok(found)
}

/// Messages in chunks that have nothing to do with them.
fn chunks(messages: &[&[u8]]) -> BoxStream<schema::Chunk> {
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend((message.len() as u64).to_be_bytes());
        bytes.extend_from_slice(message);
    }
    let chunk = |content: &[u8]| schema::Chunk { content: Bytes::copy_from_slice(content), ..Default::default() };
    let chunks: Vec<Result<_, Status>> = bytes.chunks(1000).map(|content| Ok(chunk(content))).collect();
    Box::pin(tokio_stream::iter(chunks))
}

fn number_of<T>(request: &Request<T>, key: &str) -> Option<u64> {
    request.metadata().get(key)?.to_str().ok()?.parse().ok()
}

impl Node {
    /// Counts the call; checks the session; takes a refusal if one is waiting.
    fn admit<T>(&self, name: &'static str, request: Request<T>) -> Result<T, Status> {
        self.calls.lock().unwrap().push(name);
        let (session, unknown) = match (number_of(&request, "sessionid"), number_of(&request, "authorization")) {
            (Some(session), _) => (session, text::SESSION_NOT_FOUND),
            (None, Some(token)) => (token, text::TOKEN_EXPIRED),
            (None, None) => return Err(text::NOT_LOGGED_IN.status()),
        };
        if session < self.sessions_from.load(Ordering::SeqCst) {
            return Err(unknown.status());
        }
        match self.refusals.lock().unwrap().pop_front() {
            Some(status) => Err(status),
            None => {
                let selected = self.selected.lock().unwrap().get(&session).cloned();
                self.served_in.lock().unwrap().extend(selected);
                Ok(request.into_inner())
            }
        }
    }

    /// A new session or token with `database` selected.
    async fn select(&self, database: String) -> u64 {
        let held = self.held_selection.lock().unwrap().take();
        if let Some(held) = held {
            held.await.unwrap();
        }
        let session = self.sessions.fetch_add(1, Ordering::SeqCst) + 1;
        self.selected.lock().unwrap().insert(session, database);
        session
    }

    fn must_hold(&self, preconditions: &[schema::Precondition]) -> Result<(), Status> {
        let chain = self.cluster.chain.lock().unwrap();
        let written = |key: &[u8]| chain.find(key, TxId(0)).map(|(tx, ..)| tx);
        for precondition in preconditions {
            let (holds, refusal) = match precondition.precondition.as_ref().unwrap() {
                Precondition::KeyMustExist(of) => (written(&of.key).is_some(), text::KEY_MUST_EXIST),
                Precondition::KeyMustNotExist(of) => (written(&of.key).is_none(), text::KEY_MUST_NOT_EXIST),
                Precondition::KeyNotModifiedAfterTx(of) => {
                    (written(&of.key).is_none_or(|tx| tx.get() <= of.tx_id), text::KEY_MODIFIED)
                }
            };
            if !holds {
                return Err(refusal.status());
            }
        }
        Ok(())
    }

    fn commit(&self, request: &schema::SetRequest) -> Result<TxId, Status> {
        self.must_hold(&request.preconditions)?;
        let entry = |kv: &schema::KeyValue| {
            let metadata = kv_metadata_from(kv.metadata.as_ref());
            Stored { metadata, ..Stored::pair(&kv.key, &kv.value) }
        };
        Ok(self.cluster.chain.lock().unwrap().commit(request.k_vs.iter().map(entry).collect()))
    }

    fn commit_reference(&self, request: &schema::ReferenceRequest) -> Result<TxId, Status> {
        self.must_hold(&request.preconditions)?;
        let entry = Stored::bound_reference(&request.key, &request.referenced_key, TxId(request.at_tx));
        Ok(self.cluster.chain.lock().unwrap().commit(vec![entry]))
    }

    fn exec(&self, request: &schema::ExecAllRequest) -> schema::TxHeader {
        let mut chain = self.cluster.chain.lock().unwrap();
        let own = chain.last().next().unwrap();
        let at = |bound: bool, at_tx: u64| if bound && at_tx == 0 { own } else { TxId(at_tx) };
        let entry = |op: &schema::Op| match op.operation.as_ref().unwrap() {
            Operation::Kv(pair) => {
                let metadata = kv_metadata_from(pair.metadata.as_ref());
                Stored { metadata, ..Stored::pair(&pair.key, &pair.value) }
            }
            Operation::Ref(wanted) => {
                Stored::bound_reference(&wanted.key, &wanted.referenced_key, at(wanted.bound_ref, wanted.at_tx))
            }
            Operation::ZAdd(wanted) => {
                let at_tx = at(wanted.bound_ref, wanted.at_tx);
                let key = kv::zadd_key(&wanted.set, wanted.score, &wanted.key, at_tx).into();
                Stored { key, value: Default::default(), metadata: KvMetadata::default() }
            }
        };
        let tx = chain.commit(request.operations.iter().map(entry).collect());
        let mut reply: schema::TxHeader = chain.header_of(tx).into();
        drop(chain);
        if let Some(hook) = &mut *self.cluster.on_header.lock().unwrap() {
            hook(&mut reply);
        }
        reply
    }

    async fn meet_fate(&self) -> Result<(), Status> {
        let fate = self.fate.lock().unwrap().take();
        match fate {
            None => Ok(()),
            Some(Fate::AppliedThen(code)) => Err(Status::new(code, "the connection went away")),
            Some(Fate::AppliedThenSilent) => std::future::pending().await,
        }
    }

    fn beyond(&self, since: u64) -> bool {
        since > self.cluster.chain.lock().unwrap().last().get()
    }

    fn verifiable_tx(&self, tx: TxId, since: u64) -> schema::VerifiableTx {
        let chain = self.cluster.chain.lock().unwrap();
        let mut reply: schema::VerifiableTx = (&chain.verifiable_tx(tx, TxId(since))).into();
        reply.signature = self.cluster.signed(&chain.state_at(tx.max(TxId(since))));
        drop(chain);
        if let Some(hook) = &mut *self.cluster.on_tx.lock().unwrap() {
            hook(&mut reply);
        }
        reply
    }

    /// The entry as Get answers it, and where it (or the reference to it) stands.
    fn entry(&self, key: &[u8], at: u64) -> Result<(schema::Entry, TxId, u32), Status> {
        let chain = self.cluster.chain.lock().unwrap();
        let missing = || text::KEY_NOT_FOUND.status();
        let (tx, place, stored) = chain.find(key, TxId(at)).ok_or_else(missing)?;
        let plain = |key: &[u8], tx: TxId, value: &[u8], metadata: &KvMetadata| schema::Entry {
            tx: tx.get(),
            key: key.to_vec().into(),
            value: value.to_vec().into(),
            metadata: kv_metadata(metadata),
            revision: 1,
            ..Default::default()
        };
        let entry = match kv::parse_value(&stored.value).unwrap() {
            StoredValue::Deletion => return Err(missing()),
            StoredValue::Plain(value) => plain(key, tx, value, &stored.metadata),
            StoredValue::Reference { at_tx, key: target } => {
                let (target_tx, _, found) = chain.find(target, at_tx).ok_or_else(missing)?;
                let StoredValue::Plain(value) = kv::parse_value(&found.value).unwrap() else { return Err(missing()) };
                let by = schema::Reference {
                    tx: tx.get(),
                    key: key.to_vec().into(),
                    at_tx: at_tx.get(),
                    ..Default::default()
                };
                schema::Entry { referenced_by: Some(by), ..plain(target, target_tx, value, &found.metadata) }
            }
        };
        Ok((entry, tx, place))
    }

    fn verifiable_entry(&self, request: schema::VerifiableGetRequest) -> Result<schema::VerifiableEntry, Status> {
        if self.beyond(request.prove_since_tx) {
            return Err(text::ILLEGAL_STATE.status());
        }
        let key = request.key_request.unwrap();
        let (entry, tx, place) = self.entry(&key.key, key.at_tx)?;
        let inclusion = self.cluster.chain.lock().unwrap().inclusion(tx, place);
        let mut reply = schema::VerifiableEntry {
            entry: Some(entry),
            verifiable_tx: Some(self.verifiable_tx(tx, request.prove_since_tx)),
            inclusion_proof: Some(inclusion),
        };
        if let Some(hook) = &mut *self.cluster.on_entry.lock().unwrap() {
            hook(&mut reply);
        }
        Ok(reply)
    }

    fn streamed(&self, messages: &[&[u8]]) -> Response<BoxStream<schema::Chunk>> {
        let mut chunks = chunks(messages);
        if let Some(hook) = &mut *self.cluster.on_chunks.lock().unwrap() {
            hook(&mut chunks);
        }
        Response::new(chunks)
    }
}

#[async_trait]
impl ImmuService for Node {
    async fn open_session(
        &self,
        request: Request<schema::OpenSessionRequest>,
    ) -> Result<Response<schema::OpenSessionResponse>, Status> {
        self.calls.lock().unwrap().push("open_session");
        if request.get_ref().password != "immudb" {
            return Err(text::INVALID_CREDENTIALS.status());
        }
        let database = request.into_inner().database_name;
        if !self.cluster.has(&database) {
            return Err(text::database_not_found(&database));
        }
        let ended = self.calls.lock().unwrap().iter().filter(|call| **call == "close_session").count() as u64;
        if self.sessions.load(Ordering::SeqCst) - ended >= self.sessions_max.load(Ordering::SeqCst) {
            return Err(text::MAX_SESSIONS.status());
        }
        let session_id = self.select(database).await.to_string();
        let server_uuid = self.uuid.lock().unwrap().clone();
        Ok(Response::new(schema::OpenSessionResponse { session_id, server_uuid }))
    }

    async fn close_session(&self, _: Request<()>) -> Result<Response<()>, Status> {
        self.calls.lock().unwrap().push("close_session");
        Ok(Response::new(()))
    }

    async fn keep_alive(&self, request: Request<()>) -> Result<Response<()>, Status> {
        self.admit("keep_alive", request).map(Response::new)
    }

    async fn current_state(&self, request: Request<()>) -> Result<Response<schema::ImmutableState>, Status> {
        self.admit("current_state", request)?;
        let state = self.cluster.state();
        let mut reply = immutable_state(&state, self.cluster.signed(&state));
        if let Some(hook) = &mut *self.cluster.on_state.lock().unwrap() {
            hook(&mut reply);
        }
        Ok(Response::new(reply))
    }

    async fn set(&self, request: Request<schema::SetRequest>) -> Result<Response<schema::TxHeader>, Status> {
        let request = self.admit("set", request)?;
        let tx = self.commit(&request)?;
        self.meet_fate().await?;
        Ok(Response::new(self.cluster.chain.lock().unwrap().header_of(tx).into()))
    }

    async fn verifiable_set(
        &self,
        request: Request<schema::VerifiableSetRequest>,
    ) -> Result<Response<schema::VerifiableTx>, Status> {
        let request = self.admit("verifiable_set", request)?;
        if self.beyond(request.prove_since_tx) {
            return Err(text::ILLEGAL_STATE.status());
        }
        let tx = self.commit(request.set_request.as_ref().unwrap())?;
        self.meet_fate().await?;
        Ok(Response::new(self.verifiable_tx(tx, request.prove_since_tx)))
    }

    async fn set_reference(
        &self,
        request: Request<schema::ReferenceRequest>,
    ) -> Result<Response<schema::TxHeader>, Status> {
        let request = self.admit("set_reference", request)?;
        let tx = self.commit_reference(&request)?;
        Ok(Response::new(self.cluster.chain.lock().unwrap().header_of(tx).into()))
    }

    async fn verifiable_set_reference(
        &self,
        request: Request<schema::VerifiableReferenceRequest>,
    ) -> Result<Response<schema::VerifiableTx>, Status> {
        let request = self.admit("verifiable_set_reference", request)?;
        if self.beyond(request.prove_since_tx) {
            return Err(text::ILLEGAL_ARGUMENTS.status());
        }
        let tx = self.commit_reference(request.reference_request.as_ref().unwrap())?;
        Ok(Response::new(self.verifiable_tx(tx, request.prove_since_tx)))
    }

    async fn verifiable_z_add(
        &self,
        request: Request<schema::VerifiableZAddRequest>,
    ) -> Result<Response<schema::VerifiableTx>, Status> {
        let request = self.admit("verifiable_z_add", request)?;
        if self.beyond(request.prove_since_tx) {
            return Err(text::ILLEGAL_ARGUMENTS.status());
        }
        let wanted = request.z_add_request.unwrap();
        let key = kv::zadd_key(&wanted.set, wanted.score, &wanted.key, TxId(wanted.at_tx)).into();
        let entry = Stored { key, value: Default::default(), metadata: KvMetadata::default() };
        let tx = self.cluster.chain.lock().unwrap().commit(vec![entry]);
        Ok(Response::new(self.verifiable_tx(tx, request.prove_since_tx)))
    }

    async fn exec_all(&self, request: Request<schema::ExecAllRequest>) -> Result<Response<schema::TxHeader>, Status> {
        let request = self.admit("exec_all", request)?;
        self.must_hold(&request.preconditions)?;
        let header = self.exec(&request);
        self.meet_fate().await?;
        Ok(Response::new(header))
    }

    async fn stream_exec_all(
        &self,
        request: Request<Streaming<schema::Chunk>>,
    ) -> Result<Response<schema::TxHeader>, Status> {
        let mut chunks = self.admit("stream_exec_all", request)?;
        let refusal = self.upload_refusals.lock().unwrap().pop_front();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            bytes.extend_from_slice(&chunk.content);
            if let Some((_, status)) = refusal.as_ref().filter(|(at, _)| bytes.len() >= *at) {
                if status.code() != tonic::Code::Ok {
                    return Err(status.clone());
                }
                // What a liar does: what has come so far is all that there is.
                let key_len = usize::from_be_bytes(bytes[9..17].try_into().unwrap());
                let (key, value) = bytes[17..].split_at(key_len);
                let (key, value) = (key.to_vec().into(), value[8..].to_vec().into());
                let operation = Operation::Kv(schema::KeyValue { key, value, metadata: None });
                let operations = vec![schema::Op { operation: Some(operation) }];
                return Ok(Response::new(self.exec(&schema::ExecAllRequest { operations, ..Default::default() })));
            }
        }
        let messages = messages(&bytes)?;
        let [kind, key, value] = &messages[..] else { return Err(text::STREAM_EOF.status()) };
        assert_eq!(kind[..], [1_u8], "a value");
        let pair = schema::KeyValue { key: key.clone(), value: value.clone(), metadata: None };
        let operations = vec![schema::Op { operation: Some(Operation::Kv(pair)) }];
        let header = self.exec(&schema::ExecAllRequest { operations, ..Default::default() });
        self.meet_fate().await?;
        Ok(Response::new(header))
    }

    async fn stream_get(
        &self,
        request: Request<schema::KeyRequest>,
    ) -> Result<Response<BoxStream<schema::Chunk>>, Status> {
        let request = self.admit("stream_get", request)?;
        let (entry, ..) = self.entry(&request.key, request.at_tx)?;
        Ok(self.streamed(&[&entry.key, &entry.value]))
    }

    async fn stream_verifiable_get(
        &self,
        request: Request<schema::VerifiableGetRequest>,
    ) -> Result<Response<BoxStream<schema::Chunk>>, Status> {
        let reply = self.verifiable_entry(self.admit("stream_verifiable_get", request)?)?;
        let mut entry = reply.entry.unwrap();
        let beside = self.value_beside.lock().unwrap().clone();
        let value = std::mem::replace(&mut entry.value, beside);
        let tx = reply.verifiable_tx.unwrap().encode_to_vec();
        let inclusion = reply.inclusion_proof.unwrap().encode_to_vec();
        Ok(self.streamed(&[&entry.encode_to_vec(), &tx, &inclusion, &value]))
    }

    async fn get(&self, request: Request<schema::KeyRequest>) -> Result<Response<schema::Entry>, Status> {
        let request = self.admit("get", request)?;
        Ok(Response::new(self.entry(&request.key, request.at_tx)?.0))
    }

    async fn verifiable_get(
        &self,
        request: Request<schema::VerifiableGetRequest>,
    ) -> Result<Response<schema::VerifiableEntry>, Status> {
        Ok(Response::new(self.verifiable_entry(self.admit("verifiable_get", request)?)?))
    }

    async fn verifiable_tx_by_id(
        &self,
        request: Request<schema::VerifiableTxRequest>,
    ) -> Result<Response<schema::VerifiableTx>, Status> {
        let request = self.admit("verifiable_tx_by_id", request)?;
        let last = self.cluster.chain.lock().unwrap().last().get();
        if request.tx > last {
            return Err(text::TX_NOT_FOUND.status());
        }
        if request.prove_since_tx > last {
            return Err(text::illegal_state(last, request.prove_since_tx));
        }
        Ok(Response::new(self.verifiable_tx(TxId(request.tx), request.prove_since_tx)))
    }

    /// In maintenance mode the answer has the token with which calls are made.
    async fn use_database(
        &self,
        request: Request<schema::Database>,
    ) -> Result<Response<schema::UseDatabaseReply>, Status> {
        self.calls.lock().unwrap().push("use_database");
        let session = number_of(&request, "sessionid");
        let name = request.into_inner().database_name;
        if !self.cluster.has(&name) {
            return Err(text::database_not_found(&name));
        }
        let token = self.select(name.clone()).await.to_string();
        // Who has a session goes on with it.
        session.into_iter().for_each(|session| drop(self.selected.lock().unwrap().insert(session, name.clone())));
        Ok(Response::new(schema::UseDatabaseReply { token }))
    }

    async fn change_sql_privileges(
        &self,
        request: Request<schema::ChangeSqlPrivilegesRequest>,
    ) -> Result<Response<schema::ChangeSqlPrivilegesResponse>, Status> {
        let request = self.admit("change_sql_privileges", request)?;
        self.privileges.lock().unwrap().push(request);
        Ok(Response::new(schema::ChangeSqlPrivilegesResponse {}))
    }

    async fn health(&self, _: Request<()>) -> Result<Response<schema::HealthResponse>, Status> {
        let mut reply = Response::new(schema::HealthResponse { status: true, ..Default::default() });
        let uuid = self.uuid.lock().unwrap().clone();
        if !uuid.is_empty() {
            reply.metadata_mut().insert("immudb-uuid", uuid.parse().unwrap());
        }
        Ok(reply)
    }
}
