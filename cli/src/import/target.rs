//! The database that takes everything over.

use std::collections::VecDeque;
use std::time::Duration;

use alhambra_ledger::digest::Digest;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_proto::code::{CODE_KEY, Code as Outcome};
use alhambra_proto::schema::{self, Chunk, CreateDatabaseRequest, NullableBool, TxRequest, UpdateDatabaseRequest};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::codegen::tokio_stream;
use tonic::{Code, Status};

use super::source::Checked;
use super::{AGAIN, PATIENCE, PAUSE, may_pass};
use crate::connect::Target as Connect;
use crate::failure::{Failure, Kind};
use crate::session::{self, Session, say};

/// Longest that one call may take; a node that does not answer by then is left for another.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Content of one chunk, bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// The database that always exists.
const DEFAULT_DATABASE: &str = "defaultdb";

const ALREADY_COMMITTED: &str = "tx already committed";
const NOT_REPLICA: &str = "database is NOT a replica";

/// Transactions that are on their way at once, and their bytes. A larger one goes alone.
const ON_THEIR_WAY: usize = 64;
const ON_THEIR_WAY_BYTES: usize = 8 << 20;

/// Why a transaction is not taken.
enum Refused {
    /// It, or another one of this id, is there.
    AlreadyThere,
    /// No other try helps.
    Final(Failure),
}

/// A database in replica mode.
pub struct Target {
    connect: Connect,
    session: Session,
    /// What the cluster may show.
    uuids: Vec<String>,
    /// In order.
    on_their_way: VecDeque<OnItsWay>,
}

/// A transaction that was sent. Nobody waits for the answer any more when it is dropped.
struct OnItsWay {
    checked: Checked,
    answer: JoinHandle<Result<schema::TxHeader, Status>>,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

/// What the new database takes over of the source's settings: everything that decides whether a transaction fits.
fn settings_of(source: schema::DatabaseNullableSettings) -> schema::DatabaseNullableSettings {
    schema::DatabaseNullableSettings {
        max_key_len: source.max_key_len,
        max_value_len: source.max_value_len,
        max_tx_entries: source.max_tx_entries,
        exclude_commit_time: source.exclude_commit_time,
        write_tx_header_version: source.write_tx_header_version,
        ..replica_mode(true)
    }
}

fn replica_mode(replica: bool) -> schema::DatabaseNullableSettings {
    schema::DatabaseNullableSettings {
        replication_settings: Some(schema::ReplicationNullableSettings {
            replica: Some(NullableBool { value: replica }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Target {
    /// Finds the database, or creates it as a replica with the limits of the source.
    pub async fn open(connect: Connect, source: schema::DatabaseNullableSettings) -> Result<Self, Failure> {
        let session = session::open_any(&connect, DEFAULT_DATABASE, CALL_TIMEOUT).await.map_err(|why| {
            let advice = "check --endpoint, --username and --password";
            Failure::new(Kind::Unavailable, format!("the target does not let this command in: {why}"), advice)
        })?;
        let uuids = vec![session.cluster().to_owned()];
        let mut target = Self { connect, session, uuids, on_their_way: VecDeque::new() };
        match target.prepare(source).await {
            Ok(()) => Ok(target),
            Err(failure) => {
                target.close().await;
                Err(failure)
            }
        }
    }

    async fn prepare(&mut self, source: schema::DatabaseNullableSettings) -> Result<(), Failure> {
        if self.connect.database == DEFAULT_DATABASE {
            return Ok(());
        }
        let name = self.connect.database.clone();
        let settings = Some(settings_of(source));
        let request = self.session.request(CreateDatabaseRequest { name, settings, if_not_exists: true });
        let created = self.session.stub().create_database_v2(request).await;
        created.map_err(|status| {
            let what = format!("the target cannot be created: {}", say(&status));
            Failure::failed(what, "use a user who may create databases")
        })?;
        let selected = session::open_any(&self.connect, &self.connect.database, CALL_TIMEOUT).await.map_err(|why| {
            Failure::new(Kind::Unavailable, format!("the target database cannot be opened: {why}"), AGAIN)
        })?;
        std::mem::replace(&mut self.session, selected).close().await;
        Ok(())
    }

    /// Ends the session.
    pub async fn close(mut self) {
        self.on_their_way.clear();
        self.session.close().await;
    }

    /// Identity of the cluster.
    pub fn uuid(&self) -> &str {
        self.session.cluster()
    }

    /// Its name.
    pub fn database(&self) -> &str {
        &self.connect.database
    }

    /// Makes it a replica when it is empty; false when users write into it already.
    pub async fn is_replica(&mut self) -> Result<bool, Failure> {
        let begun = Instant::now();
        let settings = loop {
            let request = self.session.request(schema::DatabaseSettingsRequest::default());
            match self.session.stub().get_database_settings_v2(request).await {
                Ok(reply) => break reply.into_inner().settings.unwrap_or_default(),
                Err(status) => self.try_again(status, begun).await?,
            }
        };
        let replication = settings.replication_settings.unwrap_or_default();
        if replication.replica.is_some_and(|replica| replica.value) {
            return Ok(true);
        }
        let (newest, _) = self.state().await?;
        if newest.get() > 0 {
            return Ok(false);
        }
        self.update(replica_mode(true)).await?;
        Ok(true)
    }

    async fn update(&mut self, settings: schema::DatabaseNullableSettings) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let request =
                UpdateDatabaseRequest { database: self.connect.database.clone(), settings: Some(settings.clone()) };
            let request = self.session.request(request);
            match self.session.stub().update_database_v2(request).await {
                Ok(_) => return Ok(()),
                Err(status) => self.try_again(status, begun).await?,
            }
        }
    }

    /// Newest transaction and its Alh.
    pub async fn state(&mut self) -> Result<(TxId, Digest), Failure> {
        let begun = Instant::now();
        loop {
            let request = self.session.request(());
            match self.session.stub().current_state(request).await {
                Ok(reply) => {
                    let state = reply.into_inner();
                    return Ok((TxId(state.tx_id), Digest::try_from(&state.tx_hash[..]).map_err(|_| odd("state"))?));
                }
                Err(status) => self.try_again(status, begun).await?,
            }
        }
    }

    /// Alh of a transaction that is there.
    pub async fn alh_of(&mut self, tx: TxId) -> Result<Digest, Failure> {
        let begun = Instant::now();
        loop {
            let request = self.session.request(TxRequest { tx: tx.get(), ..TxRequest::default() });
            match self.session.stub().tx_by_id(request).await {
                Ok(reply) => return alh(reply.into_inner().header.as_ref()),
                Err(status) => self.try_again(status, begun).await?,
            }
        }
    }

    /// Sends a transaction behind those that are on their way. Answers those that are there by now, with what they are there.
    pub async fn hand_on(&mut self, checked: Checked) -> Result<Vec<(Checked, Digest)>, Failure> {
        let mut done = Vec::new();
        while self.is_full_with(&checked) {
            self.settle_first(&mut done).await?;
        }
        let answer = tokio::spawn(send(self.session.clone(), checked.bytes.clone()));
        self.on_their_way.push_back(OnItsWay { checked, answer });
        while self.on_their_way.front().is_some_and(|first| first.answer.is_finished()) {
            self.settle_first(&mut done).await?;
        }
        Ok(done)
    }

    /// Waits until all that were sent are there.
    pub async fn settle(&mut self) -> Result<Vec<(Checked, Digest)>, Failure> {
        let mut done = Vec::new();
        while !self.on_their_way.is_empty() {
            self.settle_first(&mut done).await?;
        }
        Ok(done)
    }

    fn is_full_with(&self, next: &Checked) -> bool {
        let bytes: usize = self.on_their_way.iter().map(|sent| sent.checked.bytes.len()).sum();
        let some = !self.on_their_way.is_empty();
        self.on_their_way.len() >= ON_THEIR_WAY || (some && bytes + next.bytes.len() > ON_THEIR_WAY_BYTES)
    }

    /// Waits for the one that was sent first. When it did not get there, none behind it did: they go again, one by one.
    async fn settle_first(&mut self, done: &mut Vec<(Checked, Digest)>) -> Result<(), Failure> {
        let Some(mut first) = self.on_their_way.pop_front() else { return Ok(()) };
        if let Ok(Ok(header)) = (&mut first.answer).await {
            done.push((first.checked.clone(), alh(Some(&header))?));
            return Ok(());
        }
        let again: Vec<Checked> =
            std::iter::once(first).chain(self.on_their_way.drain(..)).map(|sent| sent.checked.clone()).collect();
        for checked in again {
            let alh = match self.replicate(&checked).await {
                Ok(alh) => alh,
                // It was taken, and the answer was lost.
                Err(Refused::AlreadyThere) => self.alh_of(checked.id).await?,
                Err(Refused::Final(failure)) => return Err(failure),
            };
            done.push((checked, alh));
        }
        Ok(())
    }

    /// Hands a transaction on, for as long as that can help; answers the Alh that it has here.
    async fn replicate(&mut self, checked: &Checked) -> Result<Digest, Refused> {
        let begun = Instant::now();
        loop {
            match send(self.session.clone(), checked.bytes.clone()).await {
                Ok(header) => return alh(Some(&header)).map_err(Refused::Final),
                Err(status) if status.message() == ALREADY_COMMITTED => return Err(Refused::AlreadyThere),
                Err(status) if status.message() == NOT_REPLICA && begun.elapsed() < PATIENCE => {
                    // Just created or changed: the setting is on its way into the log.
                    sleep(PAUSE).await;
                }
                Err(status) => self.try_again(status, begun).await.map_err(Refused::Final)?,
            }
        }
    }

    /// Ends replica mode, and waits until that is in force. `known` is a transaction that is there, if there is one: it is refused
    /// for another reason before and after.
    pub async fn become_ordinary(&mut self, known: Option<Bytes>) -> Result<(), Failure> {
        self.update(replica_mode(false)).await?;
        let Some(known) = known else { return Ok(()) };
        let begun = Instant::now();
        loop {
            match send(self.session.clone(), known.clone()).await {
                Err(status) if status.message() == NOT_REPLICA => return Ok(()),
                Err(status) if status.message() == ALREADY_COMMITTED && begun.elapsed() < PATIENCE => {
                    sleep(PAUSE).await
                }
                Err(status) => self.try_again(status, begun).await?,
                Ok(_) => return Err(odd("answer to a transaction that it has")),
            }
        }
    }

    /// Lets the cluster show this UUID from now on.
    pub async fn take_uuid(&mut self, uuid: &str) -> Result<(), Failure> {
        let begun = Instant::now();
        // A node may show the old one for a moment longer.
        self.uuids.push(uuid.to_owned());
        loop {
            match self.session.take_server_uuid(uuid).await {
                Ok(()) => return Ok(()),
                Err(status) => self.try_again(status, begun).await?,
            }
        }
    }

    /// Waits and logs in at the node that answers, as long as that can help.
    async fn try_again(&mut self, status: Status, begun: Instant) -> Result<(), Failure> {
        // Too large, or over a quota: no other try helps.
        let is_final = !may_pass(&status)
            || (status.code() == Code::ResourceExhausted && outcome(&status) == Some(Outcome::LimitExceeded));
        if is_final || begun.elapsed() >= PATIENCE {
            let kind = if is_final { Kind::Failed } else { Kind::Unavailable };
            return Err(Failure::new(kind, format!("the target refuses: {}", say(&status)), AGAIN));
        }
        sleep(PAUSE).await;
        if let Ok(session) = session::open_any(&self.connect, &self.connect.database, CALL_TIMEOUT).await {
            if !self.uuids.iter().any(|uuid| uuid == session.cluster()) {
                session.close().await;
                return Err(odd("cluster behind another endpoint"));
            }
            self.session = session;
        }
        Ok(())
    }
}

async fn send(mut session: Session, exported: Bytes) -> Result<schema::TxHeader, Status> {
    let mut framed = BytesMut::with_capacity(8 + exported.len());
    framed.put_u64(exported.len() as u64);
    framed.put_slice(&exported);
    let mut rest = framed.freeze();
    let mut chunks = Vec::with_capacity(rest.len() / CHUNK_BYTES + 1);
    while !rest.is_empty() {
        let content = rest.split_to(rest.len().min(CHUNK_BYTES));
        chunks.push(Chunk { content, ..Chunk::default() });
    }
    let request = session.request(tokio_stream::iter(chunks));
    Ok(session.stub().replicate_tx(request).await?.into_inner())
}

/// What went wrong, as our own servers tell it.
fn outcome(status: &Status) -> Option<Outcome> {
    Outcome::from_name(status.metadata().get(CODE_KEY)?.to_str().ok()?)
}

fn alh(header: Option<&schema::TxHeader>) -> Result<Digest, Failure> {
    let header = header.ok_or_else(|| odd("transaction without header"))?;
    let header = TxHeader::try_from(header).map_err(|_| odd("header"))?;
    header.alh().map_err(|_| odd("header"))
}

fn odd(what: &str) -> Failure {
    Failure::failed(
        format!("the target sends a {what} that makes no sense"),
        "check that it is an Alhambra of this release",
    )
}
