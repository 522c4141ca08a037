//! Reads what one node has, whole, over any connection: the ledger itself, transaction by transaction, and what the index says of
//! it. No client library, whose mistakes could hide those of the server.

use std::time::Duration;

use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::check::acked_durable::Ledger;
use crate::check::index::{Gone, KeyShown};
use crate::history::{Member, MemberShown};
use crate::model::chain::{self, Hash};
use crate::model::proof::Header;

/// Transactions, versions or keys of one answer.
const BATCH: u32 = 250;
/// Largest answer that is taken, bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The request, for whatever the node has applied.
pub fn at_local<T>(mut request: Request<T>) -> Request<T> {
    request.metadata_mut().insert("alhambra-read-level", MetadataValue::from_static("local"));
    request
}

/// A session on one node, for reading what that very node has.
pub struct Reader {
    api: ImmuServiceClient<Channel>,
    session: String,
    deadline: Duration,
}

/// A transaction as a node shows it.
pub struct Shown {
    /// What the chain is computed from.
    pub chain: chain::Transaction,
    /// The stored value of each entry; none for one that is forgotten.
    pub values: Vec<Option<Vec<u8>>>,
}

/// All that is in a ledger. Keys and values are without the byte that says of which kind they are.
#[derive(Default)]
pub struct Whole {
    /// Transaction, key and value of every entry that has one.
    pub ledger: Ledger,
    /// Those whose value is forgotten.
    pub gone: Vec<Gone>,
    /// Transaction and member of every entry that adds one to a sorted set.
    pub members: Vec<(u64, Member)>,
    /// What the chain is computed from.
    pub chain: Vec<chain::Transaction>,
}

impl Whole {
    /// Takes the next transactions.
    pub fn extend(&mut self, batch: Vec<Shown>) {
        for Shown { chain, values } in batch {
            for (entry, value) in chain.entries.iter().zip(values) {
                let (tx, key) = (chain.id, bare(&entry.key));
                if let Some(member) = member(&entry.key) {
                    self.members.push((tx, member));
                    continue;
                }
                match value {
                    Some(value) => self.ledger.push((tx, key, bare(&value))),
                    None => self.gone.push(Gone { tx, key, value_hash: entry.value_hash }),
                }
            }
            self.chain.push(chain);
        }
    }
}

/// Without its first byte.
fn bare(stored: &[u8]) -> Vec<u8> {
    stored.get(1..).unwrap_or_default().to_vec()
}

/// The member that a stored key adds to a sorted set, if it is of that kind: a byte, length and name of the set, the score, length and
/// stored form of the key, the transaction.
fn member(stored: &[u8]) -> Option<Member> {
    fn number(rest: &mut &[u8]) -> Option<u64> {
        let (bytes, behind) = rest.split_first_chunk::<8>()?;
        *rest = behind;
        Some(u64::from_be_bytes(*bytes))
    }
    fn counted(rest: &mut &[u8]) -> Option<Vec<u8>> {
        let len = usize::try_from(number(rest)?).ok()?;
        let (bytes, behind) = rest.split_at_checked(len)?;
        *rest = behind;
        Some(bytes.to_vec())
    }
    let mut rest = stored.strip_prefix(&[1])?;
    let (set, score) = (counted(&mut rest)?, number(&mut rest)?);
    let (key, at_tx) = (counted(&mut rest)?, number(&mut rest)?);
    (rest.is_empty() && key.first() == Some(&0)).then(|| Member { set, score, key: bare(&key), at_tx })
}

/// Members of the wire, with their values.
pub fn members(list: schema::ZEntries) -> Result<Vec<MemberShown>, Status> {
    let shown = |shown: schema::ZEntry| {
        let entry = shown.entry.ok_or_else(|| Status::data_loss("a member without a value"))?;
        if entry.key != shown.key {
            return Err(Status::data_loss("a member with the value of another key"));
        }
        let (set, score) = (shown.set.to_vec(), shown.score.to_bits());
        let member = Member { set, score, key: shown.key.to_vec(), at_tx: shown.at_tx };
        Ok(MemberShown { member, tx: entry.tx, value: entry.value.to_vec() })
    };
    list.entries.into_iter().map(shown).collect()
}

/// What a status that says so tells of a value that is forgotten: its transaction.
pub fn forgotten(status: &Status) -> Option<u64> {
    let (before, _) = status.message().split_once(" was pruned; its hash and proofs are still there")?;
    before.rsplit(' ').next()?.parse().ok()
}

impl Reader {
    /// Logs in over a channel and selects a database; every call ends within `deadline`.
    pub async fn open(
        channel: Channel,
        user: &str,
        password: &str,
        database: &str,
        deadline: Duration,
    ) -> Result<Self, Status> {
        let mut api = ImmuServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = schema::OpenSessionRequest {
            username: user.as_bytes().to_vec().into(),
            password: password.as_bytes().to_vec().into(),
            database_name: database.into(),
        };
        let reply = bounded(deadline, api.open_session(request)).await?;
        Ok(Self { api, session: reply.session_id, deadline })
    }

    /// A request of this session.
    fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let session = self.session.parse().map_err(|_| Status::internal("not header text"))?;
        request.metadata_mut().insert("sessionid", session);
        Ok(request)
    }

    /// The same, about this very node's own state.
    fn local<T>(&self, message: T) -> Result<Request<T>, Status> {
        self.request(message).map(at_local)
    }

    async fn state_by(&mut self, request: Request<()>) -> Result<(u64, Vec<u8>), Status> {
        let state = bounded(self.deadline, self.api.current_state(request)).await?;
        Ok((state.tx_id, state.tx_hash.to_vec()))
    }

    /// The newest transaction that this node has applied, and its Alh.
    pub async fn state(&mut self) -> Result<(u64, Vec<u8>), Status> {
        let request = self.local(())?;
        self.state_by(request).await
    }

    /// The newest transaction that was acknowledged by whatever node, and its Alh.
    pub async fn newest(&mut self) -> Result<(u64, Vec<u8>), Status> {
        let request = self.request(())?;
        self.state_by(request).await
    }

    /// Names of the databases that are loaded, but for `systemdb`: of all that there are, not only of those that this node knows (seed
    /// 7008210).
    pub async fn databases(&mut self) -> Result<Vec<String>, Status> {
        Ok(self.listed().await?.into_iter().filter(|(_, loaded)| *loaded).map(|(name, _)| name).collect())
    }

    /// The same with those that are not loaded: name, and whether it is loaded.
    pub async fn listed(&mut self) -> Result<Vec<(String, bool)>, Status> {
        let request = self.request(schema::DatabaseListRequestV2::default())?;
        let list = bounded(self.deadline, self.api.database_list_v2(request)).await?;
        Ok(list.databases.into_iter().map(|database| (database.name, database.loaded)).collect())
    }

    /// Transactions from `first` on, oldest first, with keys and values; none behind the newest one.
    pub async fn transactions(&mut self, first: u64) -> Result<Vec<Shown>, Status> {
        // One value that is forgotten hides the whole answer.
        match self.tx_scan(first, BATCH, true).await {
            Err(status) => match forgotten(&status) {
                Some(tx) if tx == first => self.tx_scan(first, 1, false).await,
                Some(tx) if tx > first => self.tx_scan(first, (tx - first) as u32, true).await,
                _ => Err(status),
            },
            list => list,
        }
    }

    /// With values, or without any.
    async fn tx_scan(&mut self, initial_tx: u64, limit: u32, values: bool) -> Result<Vec<Shown>, Status> {
        let raw = || Some(schema::EntryTypeSpec { action: schema::EntryTypeAction::RawValue as i32 });
        let spec = schema::EntriesSpec { kv_entries_spec: raw(), z_entries_spec: raw(), sql_entries_spec: raw() };
        let entries_spec = values.then_some(spec);
        let request = self.local(schema::TxScanRequest { initial_tx, limit, entries_spec, ..Default::default() })?;
        let list = bounded(self.deadline, self.api.tx_scan(request)).await?;
        list.txs.into_iter().map(|tx| shown(tx, values)).collect()
    }

    /// What the index says of a key in the state of transaction `at` or a newer one: its newest version, and its whole past.
    /// A key of which something is forgotten must not have more versions than fit into one answer.
    pub async fn key(&mut self, key: &[u8], at: u64) -> Result<KeyShown, Status> {
        let mut shown = KeyShown { key: key.to_vec(), ..KeyShown::default() };
        let request =
            self.local(schema::KeyRequest { key: key.to_vec().into(), since_tx: at, ..Default::default() })?;
        match found(bounded(self.deadline, self.api.get(request)).await) {
            Ok(Some(entry)) => {
                shown.newest = Some((entry.tx, entry.value.to_vec()));
                shown.revision = entry.revision;
            }
            Ok(None) => {}
            Err(status) => shown.gone = Some(forgotten(&status).ok_or(status)?),
        }
        loop {
            let request = self.local(schema::HistoryRequest {
                key: key.to_vec().into(),
                offset: shown.past.len() as u64,
                limit: BATCH as i32,
                since_tx: at,
                ..Default::default()
            })?;
            let part = match found(bounded(self.deadline, self.api.history(request)).await) {
                Ok(Some(part)) => part,
                Ok(None) => return Ok(shown),
                // All of them were in the answers before.
                Err(status) if status.message().ends_with("no more entries") => return Ok(shown),
                Err(status) => return Err(status),
            };
            let is_last = part.entries.len() < BATCH as usize;
            shown.past.extend(part.entries.into_iter().map(|entry| (entry.tx, entry.value.to_vec())));
            if is_last {
                return Ok(shown);
            }
        }
    }

    /// What a scan over all keys shows in the state of transaction `at` or a newer one: (key, transaction, value). Where something
    /// is forgotten, there must not be more keys than fit into one answer.
    pub async fn scan(&mut self, at: u64) -> Result<Vec<(Vec<u8>, u64, Vec<u8>)>, Status> {
        let mut all: Vec<(Vec<u8>, u64, Vec<u8>)> = Vec::new();
        loop {
            let seek_key = all.last().map(|(key, _, _)| key.clone()).unwrap_or_default();
            let request = self.local(schema::ScanRequest {
                seek_key: seek_key.into(),
                limit: u64::from(BATCH),
                since_tx: at,
                ..Default::default()
            })?;
            let part = bounded(self.deadline, self.api.scan(request)).await?;
            let is_last = part.entries.len() < BATCH as usize;
            all.extend(part.entries.into_iter().map(|entry| (entry.key.to_vec(), entry.tx, entry.value.to_vec())));
            if is_last {
                return Ok(all);
            }
        }
    }
}

impl Reader {
    /// All members of a sorted set in the state of transaction `at` or a newer one.
    pub async fn set(&mut self, set: &[u8], at: u64) -> Result<Vec<MemberShown>, Status> {
        let mut all: Vec<MemberShown> = Vec::new();
        loop {
            let mut scan = schema::ZScanRequest {
                set: set.to_vec().into(),
                limit: u64::from(BATCH),
                since_tx: at,
                ..Default::default()
            };
            if let Some(MemberShown { member, .. }) = all.last() {
                scan.seek_key = member.key.clone().into();
                (scan.seek_score, scan.seek_at_tx) = (f64::from_bits(member.score), member.at_tx);
            }
            let request = self.local(scan)?;
            let part = members(bounded(self.deadline, self.api.z_scan(request)).await?)?;
            let is_last = part.len() < BATCH as usize;
            all.extend(part);
            if is_last {
                return Ok(all);
            }
        }
    }
}

/// Ends a call at the deadline even if the server does not.
async fn bounded<T>(deadline: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(reply) => reply.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer before the deadline")),
    }
}

/// An answer that may be that there is nothing.
pub fn found<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(status) if status.message().ends_with("key not found") => Ok(None),
        Err(status) => Err(status),
    }
}

/// 32 bytes, or an answer that is no hash.
pub fn to_hash(bytes: &[u8]) -> Result<Hash, Status> {
    bytes.try_into().map_err(|_| Status::data_loss(format!("a hash of {} bytes", bytes.len())))
}

/// A header of the wire for the model.
pub fn header(header: Option<&schema::TxHeader>) -> Result<Header, Status> {
    let header = header.ok_or_else(|| Status::data_loss("no header"))?;
    let metadata = header.metadata.as_ref();
    if metadata.is_some_and(|metadata| !metadata.extra.is_empty()) {
        return Err(Status::data_loss("an attribute that nobody wrote"));
    }
    let tx = chain::Transaction {
        id: header.id,
        ts: header.ts,
        metadata: chain::truncated_up_to(metadata.map_or(0, |metadata| metadata.truncated_tx_id)),
        prev_alh: to_hash(&header.prev_alh)?,
        eh: to_hash(&header.e_h)?,
        bl_tx_id: header.bl_tx_id,
        bl_root: to_hash(&header.bl_root)?,
        entries: Vec::new(),
    };
    let entries = u32::try_from(header.nentries).map_err(|_| Status::data_loss("a negative number of entries"))?;
    Ok(Header { tx, entries })
}

/// A transaction of the wire, with the values of its entries or without any.
fn shown(tx: schema::Tx, with_values: bool) -> Result<Shown, Status> {
    let Header { tx: mut chain, .. } = header(tx.header.as_ref())?;
    let mut values = Vec::new();
    for entry in tx.entries {
        if entry.metadata.is_some() {
            return Err(Status::data_loss("metadata that nobody wrote"));
        }
        let value_hash = to_hash(&entry.h_value)?;
        // A value without a byte has nothing to lose.
        let has_value = with_values || value_hash == chain::hash(&[]);
        if has_value && value_hash != chain::hash(&[&entry.value]) {
            return Err(Status::data_loss(format!("a value of transaction {} is not that of its hash", chain.id)));
        }
        values.push(has_value.then(|| entry.value.to_vec()));
        chain.entries.push(chain::Entry { key: entry.key.to_vec(), metadata: vec![], value_hash });
    }
    Ok(Shown { chain, values })
}
