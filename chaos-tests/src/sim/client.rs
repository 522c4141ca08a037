//! Clients of the simulated cluster: plain gRPC over turmoil's TCP, one session at a time. Deadlines are the server's: a call
//! that a living node leaves waiting is found, not cut off by the client; but for clients that have a deadline of their own.

use std::io;
use std::time::Duration;

use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::history::Ending;
use crate::model::chain::Hash;
use crate::model::proof::Dual;
use crate::reader::{ANSWER_BYTES_MAX, at_local};
pub use crate::reader::{found, header, to_hash};

/// The password of user `immudb` in every simulation.
pub const PASSWORD: &str = "Simulated-1";
/// The database that clients write to.
pub const DATABASE: &str = "defaultdb";
/// Port of the gRPC face of every node.
pub const PORT: u16 = 3322;
/// The deadline that nodes give a call without one.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// How much later an answer may come: connections and the simulation's own ticks take time.
const SLACK: Duration = Duration::from_secs(1);
/// Message of the status of a call that was left waiting.
const OVERDUE: &str = "the client gave up: the server did not keep the deadline";

/// How a call that a client makes ends when it has no answer.
pub fn is_overdue(status: &Status) -> bool {
    status.message() == OVERDUE
}

/// A session on one node.
pub struct Session {
    /// The calls.
    pub api: ImmuServiceClient<Channel>,
    id: String,
    /// The deadline of each of its calls; nothing for the node's own.
    patience: Option<Duration>,
}

/// Connects to hosts of the simulation.
pub async fn dial(uri: Uri) -> io::Result<TokioIo<turmoil::net::TcpStream>> {
    let host = uri.host().unwrap_or_default().to_string();
    let stream = turmoil::net::TcpStream::connect((host, uri.port_u16().unwrap_or(PORT))).await?;
    Ok(TokioIo::new(stream))
}

/// A channel to a simulated host.
pub async fn channel(host: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{host}:{PORT}"))
        .map_err(|e| Status::internal(e.to_string()))?
        .connect_timeout(DEADLINE);
    match tokio::time::timeout(DEADLINE, endpoint.connect_with_connector(tower::service_fn(dial))).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(Status::unavailable(e.to_string())),
        Err(_) => Err(Status::unavailable("no connection before the deadline")),
    }
}

/// Ends a call a little after its deadline even if the server does not.
pub async fn bounded<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(DEADLINE + SLACK, call).await {
        Ok(reply) => reply.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(OVERDUE)),
    }
}

impl Session {
    /// Logs in on `host` and selects a database.
    pub async fn open(host: &str, database: &str) -> Result<Self, Status> {
        let mut api = ImmuServiceClient::new(channel(host).await?).max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = schema::OpenSessionRequest {
            username: b"immudb".to_vec().into(),
            password: PASSWORD.as_bytes().to_vec().into(),
            database_name: database.into(),
        };
        let reply = bounded(api.open_session(Request::new(request))).await?;
        Ok(Self { api, id: reply.session_id, patience: None })
    }

    /// Gives every call from here on this deadline, at which it is cancelled.
    pub fn with_patience(self, patience: Option<Duration>) -> Self {
        Self { patience, ..self }
    }

    /// A request of this session.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("sessionid", self.id.parse().expect("session ids are ASCII"));
        if let Some(patience) = self.patience {
            request.set_timeout(patience);
        }
        request
    }

    /// A request of this session that takes whatever the node has applied.
    pub fn local<T>(&self, message: T) -> Request<T> {
        at_local(self.request(message))
    }

    /// Writes one key.
    pub async fn set(&mut self, key: &[u8], value: &[u8]) -> Result<u64, Status> {
        let request = self.request(set_request(key, value, vec![]));
        bounded(self.api.set(request)).await.map(|header| header.id)
    }

    /// Reads one key at the default level.
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        let request = self.request(schema::KeyRequest { key: key.to_vec().into(), ..Default::default() });
        found(bounded(self.api.get(request)).await).map(|entry| entry.map(|entry| entry.value.to_vec()))
    }
}

/// A message that writes one key under conditions.
pub fn set_request(key: &[u8], value: &[u8], preconditions: Vec<schema::Precondition>) -> schema::SetRequest {
    let kv = schema::KeyValue { key: key.to_vec().into(), value: value.to_vec().into(), metadata: None };
    schema::SetRequest { k_vs: vec![kv], no_wait: false, preconditions }
}

fn hashes(list: &[bytes::Bytes]) -> Result<Vec<Hash>, Status> {
    list.iter().map(|bytes| to_hash(bytes)).collect()
}

/// A dual proof of the wire for the model.
pub fn dual(proof: Option<&schema::DualProof>) -> Result<Dual, Status> {
    let proof = proof.ok_or_else(|| Status::data_loss("no dual proof"))?;
    let linear = proof.linear_proof.as_ref().ok_or_else(|| Status::data_loss("no linear proof"))?;
    Ok(Dual {
        source: header(proof.source_tx_header.as_ref())?,
        target: header(proof.target_tx_header.as_ref())?,
        inclusion: hashes(&proof.inclusion_proof)?,
        consistency: hashes(&proof.consistency_proof)?,
        target_bl_alh: to_hash(&proof.target_bl_tx_alh)?,
        last_inclusion: hashes(&proof.last_inclusion_proof)?,
        linear: (linear.source_tx_id, linear.target_tx_id, hashes(&linear.terms)?),
    })
}

/// What a failed write means: these codes promise that nothing was applied, all others promise nothing.
pub fn ending_of(status: &Status) -> Ending {
    match status.code() {
        Code::ResourceExhausted | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            Ending::Refused
        }
        // A promise when the server says it, which its own header tells. The transport says it too, for a connection that broke while
        // the call was on its way.
        Code::Unavailable if status.metadata().contains_key("alhambra-code") => Ending::Refused,
        _ => Ending::Unknown,
    }
}
