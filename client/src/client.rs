//! The calls. Plain ones are here; verified ones are in [`crate::verified`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_proto::convert::{ConvertError, Tx, kv_metadata, kv_metadata_from};
use alhambra_proto::schema;
use bytes::Bytes;
use p256::ecdsa::VerifyingKey;
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::check::{KeyValue, public_key};
use crate::connect::{Connection, Credentials, endpoint};
use crate::error::Error;
use crate::precondition::{Precondition, requests};
use crate::retry::Kind;
use crate::state_store::{FileStateStore, MemoryStateStore, StateStore};
use crate::tls::Tls;

/// How a client connects and what it trusts.
#[derive(Clone)]
pub struct Options {
    /// Whether to log in. Without, the server must run with authentication off or in maintenance mode. Default true.
    pub login: bool,
    /// User name. Default `immudb`.
    pub user: String,
    /// Password. Default `immudb`.
    pub password: String,
    /// Database to select. Default `defaultdb`.
    pub database: String,
    /// Every call ends within this time. Default 10 s.
    pub request_timeout: Duration,
    /// Folder of the trusted states and of evidence; `None` keeps both in memory. Not used when `state_store` is given.
    pub state_dir: Option<PathBuf>,
    /// Where trusted states are kept, instead of `state_dir`.
    pub state_store: Option<Arc<dyn StateStore>>,
    /// The server's public key (PEM, SubjectPublicKeyInfo, P-256). With it, every state must be signed.
    pub server_public_key: Option<String>,
    /// Encrypts connections; `None` for plain ones.
    pub tls: Option<Tls>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            login: true,
            user: "immudb".into(),
            password: "immudb".into(),
            database: "defaultdb".into(),
            request_timeout: Duration::from_secs(10),
            state_dir: None,
            state_store: None,
            server_public_key: None,
            tls: None,
        }
    }
}

/// A value found under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key; of a reference the key it leads to.
    pub key: Bytes,
    /// The value; empty for a deletion or an expired entry in a history.
    pub value: Bytes,
    /// Transaction that wrote it.
    pub tx: TxId,
    /// Number of this version of the key, from 1; 0 where the server does not say.
    pub revision: u64,
    /// Its attributes.
    pub metadata: KvMetadata,
    /// Has expired.
    pub expired: bool,
    /// The reference that led here.
    pub referenced_by: Option<Reference>,
}

/// A reference that led to an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Key of the reference.
    pub key: Bytes,
    /// Transaction that wrote it.
    pub tx: TxId,
    /// Transaction it is bound to; 0: the newest version of the target.
    pub at_tx: TxId,
    /// Number of this version of the reference.
    pub revision: u64,
}

impl From<schema::Entry> for Entry {
    fn from(entry: schema::Entry) -> Self {
        let reference = |by: schema::Reference| Reference {
            key: by.key,
            tx: TxId(by.tx),
            at_tx: TxId(by.at_tx),
            revision: by.revision,
        };
        Self {
            key: entry.key,
            value: entry.value,
            tx: TxId(entry.tx),
            revision: entry.revision,
            metadata: kv_metadata_from(entry.metadata.as_ref()),
            expired: entry.expired,
            referenced_by: entry.referenced_by.map(reference),
        }
    }
}

/// A member of a sorted set.
#[derive(Clone, Debug, PartialEq)]
pub struct ZEntry {
    /// Its score.
    pub score: f64,
    /// Its key.
    pub key: Bytes,
    /// Transaction it is bound to; 0: the newest version of the key.
    pub at_tx: TxId,
    /// What the key has.
    pub entry: Option<Entry>,
}

/// Which members [`Client::z_scan`] returns. Limit 0 means the maximum (2500). Members outside the bounds, and those whose value
/// is gone, use up their place in offset and limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ZScan {
    /// Name of the set.
    pub set: Bytes,
    /// From the greatest score down. Then members of exactly the greatest score are left out.
    pub desc: bool,
    /// Smallest score.
    pub min_score: Option<f64>,
    /// Greatest score.
    pub max_score: Option<f64>,
    /// Members to leave out at the start.
    pub offset: u64,
    /// Most members; 0 for the maximum.
    pub limit: u64,
}

/// Which keys [`Client::scan`] returns. All limits as the protocol has them: limit 0 means the maximum (2500).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// Where to start; empty: at the first (descending: last) key.
    pub seek_key: Bytes,
    /// Where to end; empty: at the last (descending: first) key.
    pub end_key: Bytes,
    /// `seek_key` itself is returned.
    pub inclusive_seek: bool,
    /// `end_key` itself is returned.
    pub inclusive_end: bool,
    /// From the last key to the first.
    pub desc: bool,
    /// Keys to leave out at the start.
    pub offset: u64,
    /// Most keys to return.
    pub limit: u64,
}

/// A connection to a server or cluster, as one user with one selected database. Cheap to clone; clones share the session,
/// the selected database and the trusted state.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) connection: Connection,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) server_key: Option<VerifyingKey>,
    /// Held during a verified call: each proof starts from the state that the one before it left.
    pub(crate) verifying: Mutex<()>,
}

impl Client {
    /// Connects to the first of `endpoints` (`host:port` or URL) that takes the login.
    pub async fn connect(endpoints: Vec<String>, options: Options) -> Result<Self, Error> {
        Self::with_dialer(endpoints, options, |endpoint| endpoint.connect_lazy()).await
    }

    /// As [`Self::connect`], over connections that `dial` makes: another transport, or a simulated network
    /// (`|endpoint| endpoint.connect_with_connector_lazy(connector.clone())`).
    pub async fn with_dialer(
        endpoints: Vec<String>,
        options: Options,
        dial: impl Fn(Endpoint) -> Channel,
    ) -> Result<Self, Error> {
        let channel = |text: String| Ok((text.clone(), dial(endpoint(&text, options.tls.as_ref())?)));
        let channels = endpoints.into_iter().map(channel).collect::<Result<_, Error>>()?;
        Self::over(channels, options).await
    }

    /// As [`Self::connect`], over one channel that exists already.
    pub async fn from_channel(channel: Channel, options: Options) -> Result<Self, Error> {
        Self::over(vec![("channel".to_owned(), channel)], options).await
    }

    async fn over(channels: Vec<(String, Channel)>, options: Options) -> Result<Self, Error> {
        let key = options.server_public_key.as_deref().map(public_key).transpose();
        let server_key = key.map_err(|source| Error::BadPublicKey { source: source.into() })?;
        let store: Arc<dyn StateStore> = match (options.state_store, options.state_dir) {
            (Some(store), _) => store,
            (None, Some(dir)) => Arc::new(FileStateStore::open(dir)?),
            (None, None) => Arc::new(MemoryStateStore::new()),
        };
        let credentials = Credentials { user: options.user, password: options.password };
        let credentials = options.login.then_some(credentials);
        let connection = Connection::new(channels, credentials, options.database, options.request_timeout)?;
        let client = Self { inner: Arc::new(Inner { connection, store, server_key, verifying: Mutex::new(()) }) };
        // Logs in, so that wrong credentials are told now.
        client.keep_alive().await?;
        Ok(client)
    }

    fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// Identity of the server, the same on all nodes of a cluster.
    pub async fn server_uuid(&self) -> String {
        self.connection().server_uuid().await.expect("a client exists only after its first login")
    }

    /// The selected database.
    pub async fn database(&self) -> String {
        self.connection().database().await
    }

    /// The endpoint that the next call goes to.
    pub fn endpoint(&self) -> &str {
        self.connection().endpoint()
    }

    /// Ends the sessions at the server.
    pub async fn close(&self) {
        self.connection().close().await;
    }

    /// Tells the server that the session is still in use. Not needed for correctness: a lost session is made anew. Where nobody
    /// logs in, looks whether the server answers.
    pub async fn keep_alive(&self) -> Result<(), Error> {
        let connection = self.connection();
        if !connection.logs_in() {
            return self.health().await.map(drop);
        }
        let deadline = connection.deadline();
        connection.call("keep_alive", Kind::Read, deadline, (), async |mut c, r| c.keep_alive(r).await).await
    }

    /// Writes one pair as one transaction.
    pub async fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<TxHeader, Error> {
        self.set_all(vec![KeyValue::new(key, value)]).await
    }

    /// Writes all pairs as one transaction, in this order.
    pub async fn set_all(&self, pairs: Vec<KeyValue>) -> Result<TxHeader, Error> {
        self.set_all_if(pairs, &[]).await
    }

    /// Writes a reference to `target` under `key`, which leads to its newest value, or with an `at_tx` other than 0 to what that
    /// transaction wrote.
    pub async fn set_reference(
        &self,
        key: impl Into<Bytes>,
        target: impl Into<Bytes>,
        at_tx: TxId,
    ) -> Result<TxHeader, Error> {
        self.set_reference_if(key, target, at_tx, &[]).await
    }

    /// Adds `key` with a score to a sorted set; `at_tx` as for [`Self::set_reference`].
    pub async fn z_add(
        &self,
        set: impl Into<Bytes>,
        score: f64,
        key: impl Into<Bytes>,
        at_tx: TxId,
    ) -> Result<TxHeader, Error> {
        let connection = self.connection();
        let request = z_add_request(set.into(), score, key.into(), at_tx);
        let reply = connection
            .call("z_add", Kind::Write, connection.deadline(), request, async |mut c, r| c.z_add(r).await)
            .await?;
        written("z_add", &reply)
    }

    /// Members of a sorted set, by score.
    pub async fn z_scan(&self, scan: ZScan) -> Result<Vec<ZEntry>, Error> {
        let connection = self.connection();
        let score = |score: Option<f64>| score.map(|score| schema::Score { score });
        let request = schema::ZScanRequest {
            set: scan.set,
            desc: scan.desc,
            limit: scan.limit,
            offset: scan.offset,
            min_score: score(scan.min_score),
            max_score: score(scan.max_score),
            ..Default::default()
        };
        let reply = connection
            .call("z_scan", Kind::Read, connection.deadline(), request, async |mut c, r| c.z_scan(r).await)
            .await?;
        let z_entry = |found: schema::ZEntry| ZEntry {
            score: found.score,
            key: found.key,
            at_tx: TxId(found.at_tx),
            entry: found.entry.map(Into::into),
        };
        Ok(reply.entries.into_iter().map(z_entry).collect())
    }

    /// Marks the keys as deleted, as one transaction. All must exist.
    pub async fn delete(&self, keys: Vec<Bytes>) -> Result<TxHeader, Error> {
        let connection = self.connection();
        let request = schema::DeleteKeysRequest { keys, since_tx: 0, no_wait: false };
        let reply = connection
            .call("delete", Kind::Write, connection.deadline(), request, async |mut c, r| c.delete(r).await)
            .await?;
        written("delete", &reply)
    }

    /// The newest value of a key.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Entry, Error> {
        self.get_where(schema::KeyRequest { key: key.into(), ..Default::default() }).await
    }

    /// The value that transaction `tx` wrote to this key.
    pub async fn get_at(&self, key: impl Into<Bytes>, tx: TxId) -> Result<Entry, Error> {
        self.get_where(schema::KeyRequest { key: key.into(), at_tx: tx.get(), ..Default::default() }).await
    }

    /// A version of a key: from 1, or negative counted from the newest.
    pub async fn get_revision(&self, key: impl Into<Bytes>, revision: i64) -> Result<Entry, Error> {
        self.get_where(schema::KeyRequest { key: key.into(), at_revision: revision, ..Default::default() }).await
    }

    async fn get_where(&self, request: schema::KeyRequest) -> Result<Entry, Error> {
        let connection = self.connection();
        let reply =
            connection.call("get", Kind::Read, connection.deadline(), request, async |mut c, r| c.get(r).await).await?;
        Ok(reply.into())
    }

    /// The newest values of several keys; those that do not exist are left out.
    pub async fn get_all(&self, keys: Vec<Bytes>) -> Result<Vec<Entry>, Error> {
        let connection = self.connection();
        let request = schema::KeyListRequest { keys, since_tx: 0 };
        let reply = connection
            .call("get_all", Kind::Read, connection.deadline(), request, async |mut c, r| c.get_all(r).await)
            .await?;
        Ok(reply.entries.into_iter().map(Into::into).collect())
    }

    /// Keys in order, with their newest values.
    pub async fn scan(&self, scan: Scan) -> Result<Vec<Entry>, Error> {
        let connection = self.connection();
        let request = schema::ScanRequest {
            seek_key: scan.seek_key,
            prefix: scan.prefix,
            desc: scan.desc,
            limit: scan.limit,
            since_tx: 0,
            no_wait: false,
            end_key: scan.end_key,
            inclusive_seek: scan.inclusive_seek,
            inclusive_end: scan.inclusive_end,
            offset: scan.offset,
        };
        let reply = connection
            .call("scan", Kind::Read, connection.deadline(), request, async |mut c, r| c.scan(r).await)
            .await?;
        Ok(reply.entries.into_iter().map(Into::into).collect())
    }

    /// All versions of a key, deletions included, oldest first unless `desc`. `limit` 0 means the maximum (2500).
    pub async fn history(
        &self,
        key: impl Into<Bytes>,
        offset: u64,
        limit: i32,
        desc: bool,
    ) -> Result<Vec<Entry>, Error> {
        let connection = self.connection();
        let request = schema::HistoryRequest { key: key.into(), offset, limit, desc, since_tx: 0 };
        let reply = connection
            .call("history", Kind::Read, connection.deadline(), request, async |mut c, r| c.history(r).await)
            .await?;
        Ok(reply.entries.into_iter().map(Into::into).collect())
    }

    /// Number of keys with this prefix; deleted and expired ones count.
    pub async fn count(&self, prefix: impl Into<Bytes>) -> Result<u64, Error> {
        let connection = self.connection();
        let request = schema::KeyPrefix { prefix: prefix.into() };
        let reply = connection
            .call("count", Kind::Read, connection.deadline(), request, async |mut c, r| c.count(r).await)
            .await?;
        Ok(reply.count)
    }

    /// A transaction with all its entries as stored, without values.
    pub async fn tx_by_id(&self, tx: TxId) -> Result<Tx, Error> {
        let connection = self.connection();
        let request = schema::TxRequest { tx: tx.get(), ..Default::default() };
        let reply = connection
            .call("tx_by_id", Kind::Read, connection.deadline(), request, async |mut c, r| c.tx_by_id(r).await)
            .await?;
        Tx::try_from(&reply).map_err(|source| Error::Malformed { call: "tx_by_id", source })
    }

    /// Transactions from `initial` on, downward if `desc`. `limit` 0 means the maximum (2500).
    pub async fn tx_scan(&self, initial: TxId, limit: u32, desc: bool) -> Result<Vec<Tx>, Error> {
        let connection = self.connection();
        let request = schema::TxScanRequest { initial_tx: initial.get(), limit, desc, ..Default::default() };
        let reply = connection
            .call("tx_scan", Kind::Read, connection.deadline(), request, async |mut c, r| c.tx_scan(r).await)
            .await?;
        let txs = reply.txs.iter().map(TryInto::try_into).collect::<Result<_, ConvertError>>();
        txs.map_err(|source| Error::Malformed { call: "tx_scan", source })
    }

    /// The state that the server claims for the selected database. Its signature is verified if a key is given, nothing else; see
    /// [`Self::verify_state`].
    pub async fn current_state(&self) -> Result<schema::ImmutableState, Error> {
        let reply = self.current_state_by(self.connection().deadline()).await?;
        if self.inner.server_key.is_some() {
            self.must_be_signed(&reply).await?;
        }
        Ok(reply)
    }

    pub(crate) async fn current_state_by(
        &self,
        deadline: tokio::time::Instant,
    ) -> Result<schema::ImmutableState, Error> {
        self.connection()
            .call("current_state", Kind::Read, deadline, (), async |mut c, r| c.current_state(r).await)
            .await
    }

    /// Health of the endpoint.
    pub async fn health(&self) -> Result<schema::HealthResponse, Error> {
        let connection = self.connection();
        connection.call("health", Kind::Read, connection.deadline(), (), async |mut c, r| c.health(r).await).await
    }

    /// Health of the selected database.
    pub async fn database_health(&self) -> Result<schema::DatabaseHealthResponse, Error> {
        let connection = self.connection();
        let deadline = connection.deadline();
        connection.call("database_health", Kind::Read, deadline, (), async |mut c, r| c.database_health(r).await).await
    }

    /// Version and counts of the server.
    pub async fn server_info(&self) -> Result<schema::ServerInfoResponse, Error> {
        let connection = self.connection();
        let request = schema::ServerInfoRequest {};
        connection
            .call("server_info", Kind::Read, connection.deadline(), request, async |mut c, r| c.server_info(r).await)
            .await
    }

    /// Selects another database, for all clones of this client.
    pub async fn use_database(&self, name: &str) -> Result<(), Error> {
        // No verified call may see the database change under it.
        let _verifying = self.inner.verifying.lock().await;
        self.connection().reselect(name).await
    }

    /// Creates a database with default settings. True when it was made now; false when it existed, which is an error
    /// unless `if_not_exists`.
    pub async fn create_database(&self, name: &str, if_not_exists: bool) -> Result<bool, Error> {
        let connection = self.connection();
        let request = schema::CreateDatabaseRequest { name: name.to_owned(), settings: None, if_not_exists };
        let deadline = connection.deadline();
        let reply = connection
            .call("create_database", Kind::Write, deadline, request, async |mut c, r| c.create_database_v2(r).await)
            .await?;
        Ok(!reply.already_existed)
    }

    /// Opens a database that was unloaded, on all nodes.
    pub async fn load_database(&self, name: &str) -> Result<(), Error> {
        let connection = self.connection();
        let request = schema::LoadDatabaseRequest { database: name.to_owned() };
        let deadline = connection.deadline();
        let call =
            connection.call("load_database", Kind::Write, deadline, request, async |mut c, r| c.load_database(r).await);
        call.await.map(drop)
    }

    /// Closes a database on all nodes; it stays listed, and nothing can be done in it until it is loaded.
    pub async fn unload_database(&self, name: &str) -> Result<(), Error> {
        let connection = self.connection();
        let request = schema::UnloadDatabaseRequest { database: name.to_owned() };
        let deadline = connection.deadline();
        let call = connection
            .call("unload_database", Kind::Write, deadline, request, async |mut c, r| c.unload_database(r).await);
        call.await.map(drop)
    }

    /// Deletes an unloaded database on all nodes, with its data and everybody's rights in it, for good.
    pub async fn delete_database(&self, name: &str) -> Result<(), Error> {
        let connection = self.connection();
        let request = schema::DeleteDatabaseRequest { database: name.to_owned() };
        let deadline = connection.deadline();
        let call = connection
            .call("delete_database", Kind::Write, deadline, request, async |mut c, r| c.delete_database(r).await);
        call.await.map(drop)
    }

    /// Has the values forgotten that were written before the day, in UTC, that lies `retention_ms` back; 0 for today, else at
    /// least a day. Hashes and proofs stay.
    pub async fn truncate_database(&self, name: &str, retention_ms: i64) -> Result<(), Error> {
        let connection = self.connection();
        let request = schema::TruncateDatabaseRequest { database: name.to_owned(), retention_period: retention_ms };
        let deadline = connection.deadline();
        let call = connection
            .call("truncate_database", Kind::Write, deadline, request, async |mut c, r| c.truncate_database(r).await);
        call.await.map(drop)
    }

    /// Has the node that is called write the index of the selected database to its disk.
    pub async fn flush_index(&self) -> Result<(), Error> {
        let connection = self.connection();
        let request = schema::FlushIndexRequest { cleanup_percentage: 0.0, synced: true };
        let deadline = connection.deadline();
        let call =
            connection.call("flush_index", Kind::Read, deadline, request, async |mut c, r| c.flush_index(r).await);
        call.await.map(drop)
    }

    /// Has the node that is called merge the index of the selected database.
    pub async fn compact_index(&self) -> Result<(), Error> {
        let connection = self.connection();
        let deadline = connection.deadline();
        connection.call("compact_index", Kind::Read, deadline, (), async |mut c, r| c.compact_index(r).await).await
    }

    /// Changes the settings that are given. Answers all of them.
    pub async fn update_database(
        &self,
        name: &str,
        settings: schema::DatabaseNullableSettings,
    ) -> Result<schema::DatabaseNullableSettings, Error> {
        let connection = self.connection();
        let request = schema::UpdateDatabaseRequest { database: name.to_owned(), settings: Some(settings) };
        let deadline = connection.deadline();
        let call = connection
            .call("update_database", Kind::Write, deadline, request, async |mut c, r| c.update_database_v2(r).await);
        Ok(call.await?.settings.unwrap_or_default())
    }

    /// The databases that the user may see.
    pub async fn database_list(&self) -> Result<Vec<schema::DatabaseInfo>, Error> {
        let connection = self.connection();
        let request = schema::DatabaseListRequestV2 {};
        let deadline = connection.deadline();
        let reply = connection
            .call("database_list", Kind::Read, deadline, request, async |mut c, r| c.database_list_v2(r).await)
            .await?;
        Ok(reply.databases)
    }
}

pub(crate) fn reference_request(
    key: Bytes,
    target: Bytes,
    at_tx: TxId,
    preconditions: &[Precondition],
) -> schema::ReferenceRequest {
    schema::ReferenceRequest {
        key,
        referenced_key: target,
        at_tx: at_tx.get(),
        bound_ref: at_tx.get() > 0,
        no_wait: false,
        preconditions: requests(preconditions),
    }
}

pub(crate) fn z_add_request(set: Bytes, score: f64, key: Bytes, at_tx: TxId) -> schema::ZAddRequest {
    schema::ZAddRequest { set, score, key, at_tx: at_tx.get(), bound_ref: at_tx.get() > 0, no_wait: false }
}

pub(crate) fn key_value(pair: &KeyValue) -> schema::KeyValue {
    schema::KeyValue { key: pair.key.clone(), value: pair.value.clone(), metadata: kv_metadata(&pair.metadata) }
}

pub(crate) fn set_request(pairs: &[KeyValue], preconditions: &[Precondition]) -> schema::SetRequest {
    let k_vs = pairs.iter().map(key_value).collect();
    schema::SetRequest { k_vs, no_wait: false, preconditions: requests(preconditions) }
}

/// The header in the answer of a write, which is there when it has been done.
pub(crate) fn written(call: &'static str, header: &schema::TxHeader) -> Result<TxHeader, Error> {
    header.try_into().map_err(|source| Error::Malformed { call, source }.after_writing(call))
}
