//! Clients of the simulated cluster: plain gRPC over turmoil's TCP, one session at a time, every call with a deadline.

use std::io;
use std::time::Duration;

use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::history::Ending;
use crate::model::chain;

/// The password of user `immudb` in every simulation.
pub const PASSWORD: &str = "Simulated-1";
/// The database that clients write to.
pub const DATABASE: &str = "defaultdb";
/// Port of the gRPC face of every node.
pub const PORT: u16 = 3322;

/// A session on one node.
pub struct Session {
    api: ImmuServiceClient<Channel>,
    id: String,
    deadline: Duration,
}

/// A channel to a simulated host.
pub async fn channel(host: &str, deadline: Duration) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{host}:{PORT}"))
        .map_err(|e| Status::internal(e.to_string()))?
        .connect_timeout(deadline);
    let connect = endpoint.connect_with_connector(tower::service_fn(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default().to_string();
        let port = uri.port_u16().unwrap_or(PORT);
        let stream = turmoil::net::TcpStream::connect((host, port)).await?;
        Ok::<_, io::Error>(TokioIo::new(stream))
    }));
    match tokio::time::timeout(deadline, connect).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(Status::unavailable(e.to_string())),
        Err(_) => Err(Status::unavailable("no connection before the deadline")),
    }
}

impl Session {
    /// Logs in on `host`; every later call ends within `deadline`.
    pub async fn open(host: &str, deadline: Duration) -> Result<Self, Status> {
        let mut api = ImmuServiceClient::new(channel(host, deadline).await?).max_decoding_message_size(64 << 20);
        let mut request = Request::new(schema::OpenSessionRequest {
            username: b"immudb".to_vec().into(),
            password: PASSWORD.as_bytes().to_vec().into(),
            database_name: DATABASE.into(),
        });
        request.set_timeout(deadline);
        let reply = bounded(deadline, api.open_session(request)).await?;
        Ok(Self { api, id: reply.session_id, deadline })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request.metadata_mut().insert("sessionid", self.id.parse().expect("session ids are ASCII"));
        request
    }

    /// Writes one key.
    pub async fn set(&mut self, key: &[u8], value: &[u8]) -> Result<u64, Status> {
        let kv = schema::KeyValue { key: key.to_vec().into(), value: value.to_vec().into(), metadata: None };
        let request = self.request(schema::SetRequest { k_vs: vec![kv], no_wait: false, preconditions: vec![] });
        bounded(self.deadline, self.api.set(request)).await.map(|header| header.id)
    }

    /// Reads one key at the default level.
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        let request = self.request(schema::KeyRequest { key: key.to_vec().into(), ..Default::default() });
        match bounded(self.deadline, self.api.get(request)).await {
            Ok(entry) => Ok(Some(entry.value.to_vec())),
            Err(status) if status.message().ends_with("key not found") => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// The newest transaction that this node has applied, and its Alh.
    pub async fn local_state(&mut self) -> Result<(u64, Vec<u8>), Status> {
        let mut request = self.request(());
        request.metadata_mut().insert("alhambra-read-level", "local".parse().expect("ASCII"));
        let state = bounded(self.deadline, self.api.current_state(request)).await?;
        Ok((state.tx_id, state.tx_hash.to_vec()))
    }

    /// Reads `limit` transactions from `first` on, with keys and values, as this node has them.
    pub async fn transactions(&mut self, first: u64, limit: u32) -> Result<Vec<Shown>, Status> {
        let raw = || Some(schema::EntryTypeSpec { action: schema::EntryTypeAction::RawValue as i32 });
        let spec = schema::EntriesSpec { kv_entries_spec: raw(), z_entries_spec: raw(), sql_entries_spec: raw() };
        let mut request = self.request(schema::TxScanRequest {
            initial_tx: first,
            limit,
            entries_spec: Some(spec),
            ..Default::default()
        });
        request.metadata_mut().insert("alhambra-read-level", "local".parse().expect("ASCII"));
        let list = bounded(self.deadline, self.api.tx_scan(request)).await?;
        list.txs.into_iter().map(shown).collect()
    }
}

/// A transaction as a node shows it.
pub struct Shown {
    /// What the chain is computed from.
    pub chain: chain::Transaction,
    /// Stored key and stored value of each entry.
    pub values: Vec<(Vec<u8>, Vec<u8>)>,
}

fn shown(tx: schema::Tx) -> Result<Shown, Status> {
    let hash = |bytes: &[u8]| {
        <[u8; 32]>::try_from(bytes).map_err(|_| Status::data_loss(format!("a hash of {} bytes", bytes.len())))
    };
    let header = tx.header.ok_or_else(|| Status::data_loss("a transaction without header"))?;
    let mut entries = Vec::new();
    let mut values = Vec::new();
    for entry in tx.entries {
        if entry.metadata.is_some() {
            return Err(Status::data_loss("metadata that nobody wrote"));
        }
        entries.push(chain::Entry { key: entry.key.to_vec(), metadata: vec![], value_hash: hash(&entry.h_value)? });
        values.push((entry.key.to_vec(), entry.value.to_vec()));
    }
    let chain = chain::Transaction {
        id: header.id,
        ts: header.ts,
        prev_alh: hash(&header.prev_alh)?,
        eh: hash(&header.e_h)?,
        bl_tx_id: header.bl_tx_id,
        bl_root: hash(&header.bl_root)?,
        entries,
    };
    Ok(Shown { chain, values })
}

/// Ends a call a little after its deadline even if the server does not.
async fn bounded<T>(
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline + Duration::from_millis(500), call).await {
        Ok(reply) => reply.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the client gave up: the server did not keep the deadline")),
    }
}

/// What a failed write means: these codes promise that nothing was applied, all others promise nothing.
pub fn ending_of(status: &Status) -> Ending {
    match status.code() {
        Code::ResourceExhausted | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            Ending::Refused
        }
        // UNAVAILABLE is a promise when the server says it, but the transport says it too, for a connection that broke
        // while the call was on its way; the two are told apart by the server's own header, which this client does not
        // read. Treating both as unknown is always safe for the judge.
        _ => Ending::Unknown,
    }
}
