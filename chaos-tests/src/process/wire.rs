//! Reading a node's whole ledger over the plain protocol, with no client library whose mistakes could hide those of the server.

use std::time::Duration;

use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::cluster::{DATABASE, PASSWORD, USER};
use crate::model::chain;

/// Transactions that are asked for at once.
const BATCH: u32 = 250;
const LARGEST_ANSWER_BYTES: usize = 64 << 20;

/// A session on one node.
pub struct Wire {
    api: ImmuServiceClient<Channel>,
    session: String,
    deadline: Duration,
}

/// A transaction as a node shows it.
pub struct Shown {
    /// What the chain is computed from.
    pub chain: chain::Transaction,
    /// Key and value of each entry, without the bytes that say of which kind they are.
    pub values: Vec<(Vec<u8>, Vec<u8>)>,
}

async fn bounded<T>(deadline: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(reply) => reply.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer before the deadline")),
    }
}

impl Wire {
    /// Logs in; every call ends within `deadline`.
    pub async fn open(endpoint: &str, deadline: Duration) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}"));
        let endpoint = endpoint.map_err(|error| Status::internal(error.to_string()))?.connect_timeout(deadline);
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut api = ImmuServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER_BYTES);
        let request = schema::OpenSessionRequest {
            username: USER.into(),
            password: PASSWORD.into(),
            database_name: DATABASE.into(),
        };
        let reply = bounded(deadline, api.open_session(request)).await?;
        Ok(Self { api, session: reply.session_id, deadline })
    }

    /// A request about this very node's own state.
    fn local<T>(&self, message: T) -> Result<Request<T>, Status> {
        let text = |text: &str| text.parse().map_err(|_| Status::internal("not header text"));
        let mut request = Request::new(message);
        request.metadata_mut().insert("sessionid", text(&self.session)?);
        request.metadata_mut().insert("alhambra-read-level", text("local")?);
        Ok(request)
    }

    /// The newest transaction that this node has applied, and its Alh.
    pub async fn state(&mut self) -> Result<(u64, Vec<u8>), Status> {
        let request = self.local(())?;
        let state = bounded(self.deadline, self.api.current_state(request)).await?;
        Ok((state.tx_id, state.tx_hash.to_vec()))
    }

    /// All transactions that this node has, from the first on.
    pub async fn ledger(&mut self) -> Result<Vec<Shown>, Status> {
        let mut all: Vec<Shown> = Vec::new();
        loop {
            let raw = || Some(schema::EntryTypeSpec { action: schema::EntryTypeAction::RawValue as i32 });
            let request = self.local(schema::TxScanRequest {
                initial_tx: all.len() as u64 + 1,
                limit: BATCH,
                entries_spec: Some(schema::EntriesSpec {
                    kv_entries_spec: raw(),
                    z_entries_spec: raw(),
                    sql_entries_spec: raw(),
                }),
                ..Default::default()
            })?;
            let list = bounded(self.deadline, self.api.tx_scan(request)).await?;
            if list.txs.is_empty() {
                return Ok(all);
            }
            for tx in list.txs {
                all.push(shown(tx)?);
            }
        }
    }
}

fn shown(tx: schema::Tx) -> Result<Shown, Status> {
    let hash = |bytes: &[u8]| {
        <[u8; 32]>::try_from(bytes).map_err(|_| Status::data_loss(format!("a hash of {} bytes", bytes.len())))
    };
    let bare = |bytes: &[u8]| bytes.get(1..).unwrap_or_default().to_vec();
    let header = tx.header.ok_or_else(|| Status::data_loss("a transaction without header"))?;
    let (mut entries, mut values) = (Vec::new(), Vec::new());
    for entry in tx.entries {
        if entry.metadata.is_some() {
            return Err(Status::data_loss("metadata that nobody wrote"));
        }
        values.push((bare(&entry.key), bare(&entry.value)));
        entries.push(chain::Entry { key: entry.key.to_vec(), metadata: vec![], value_hash: hash(&entry.h_value)? });
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
