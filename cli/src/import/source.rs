//! The server that is imported from.

use std::time::Duration;

use alhambra_ledger::digest::Digest;
use alhambra_ledger::export::{self, ExportedTx};
use alhambra_ledger::ids::TxId;
use alhambra_proto::schema::{self, DatabaseSettingsRequest, ExportTxRequest};
use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::{AGAIN, PATIENCE, PAUSE, may_pass};
use crate::connect::Target as Connect;
use crate::failure::{Failure, Kind};
use crate::session::{Login, Session, say};

/// A transaction comes within this time or the source is asked again.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest transaction, bytes: a whole one of the largest kind, with room for its keys.
const TX_BYTES_MAX: u64 = 1 << 30;
/// Bytes of the length before a message.
const LENGTH_BYTES: usize = 8;
/// How a server says that it does not have a transaction yet.
const NOTHING_NEW: [&str; 2] = ["no new transactions", "tx not found"];

/// A transaction that is what the source committed.
#[derive(Clone, Debug)]
pub struct Checked {
    pub id: TxId,
    /// As it came.
    pub bytes: Bytes,
    /// As the source has it.
    pub alh: Digest,
}

/// The transactions of a database, one after the other.
pub struct Source {
    connect: Connect,
    session: Session,
    uuid: String,
    /// Alh of the transaction that was handed out last, and its number.
    last: (TxId, Digest),
    /// The one that follows, when it was fetched to check the one before.
    ahead: Option<(Bytes, ExportedTx)>,
    newest: TxId,
}

impl Source {
    /// Logs in.
    pub async fn open(connect: Connect) -> Result<Self, Failure> {
        let session = log_in(&connect).await.map_err(|why| {
            Failure::new(
                Kind::Unavailable,
                format!("the source does not let this command in: {why}"),
                "check --from, --from-username, --from-password and --from-database",
            )
        })?;
        let uuid = session.cluster().to_owned();
        let last = (TxId(0), alhambra_ledger::digest::EMPTY);
        Ok(Self { connect, session, uuid, last, ahead: None, newest: TxId(0) })
    }

    /// Identity of the server.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Newest transaction that the source has spoken of.
    pub fn newest(&self) -> TxId {
        self.newest
    }

    /// What limits keys, values and transactions there.
    pub async fn settings(&mut self) -> Result<schema::DatabaseNullableSettings, Failure> {
        let request = self.session.request(DatabaseSettingsRequest::default());
        let reply = self.session.stub().get_database_settings_v2(request).await;
        match reply {
            Ok(reply) => Ok(reply.into_inner().settings.unwrap_or_default()),
            // An older server: what does not fit into the defaults is refused, by name.
            Err(status) if status.code() == Code::Unimplemented => Ok(Default::default()),
            Err(status) => Err(Failure::failed(
                format!("the source does not tell its settings: {}", say(&status)),
                "use a user who administrates the database there",
            )),
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
                    let alh = Digest::try_from(&state.tx_hash[..]).map_err(|_| self.lies("its state has no hash"))?;
                    self.newest = self.newest.max(TxId(state.tx_id));
                    return Ok((TxId(state.tx_id), alh));
                }
                Err(status) => self.try_again(status, begun).await?,
            }
        }
    }

    /// Alh of a transaction; none when it does not exist.
    pub async fn alh_of(&mut self, tx: TxId) -> Result<Option<Digest>, Failure> {
        let Some((_, exported)) = self.fetch(tx).await? else { return Ok(None) };
        Ok(exported.header.alh().ok())
    }

    /// A transaction as it comes; none when it does not exist.
    pub async fn bytes_of(&mut self, tx: TxId) -> Result<Option<Bytes>, Failure> {
        Ok(if tx.get() > 0 { self.fetch(tx).await?.map(|(bytes, _)| bytes) } else { None })
    }

    /// Goes on behind this transaction.
    pub fn begin_behind(&mut self, tx: TxId, alh: Digest) {
        self.last = (tx, alh);
        self.ahead = None;
    }

    /// The next transaction; none when the source has no more.
    pub async fn next(&mut self) -> Result<Option<Checked>, Failure> {
        let (before, prev_alh) = self.last;
        let id = TxId(before.get() + 1);
        let fetched = match self.ahead.take() {
            Some(ahead) => Some(ahead),
            None => self.fetch(id).await?,
        };
        let Some((bytes, tx)) = fetched else { return Ok(None) };
        let header = &tx.header;
        if header.id != id {
            return Err(self.lies(format!("asked for transaction {id} it sends {}", header.id)));
        }
        if header.prev_alh != prev_alh {
            return Err(self.lies(format!("transaction {id} does not continue the one before")));
        }
        if tx.eh().as_ref() != Ok(&header.eh) {
            return Err(self.lies(format!("the entries of transaction {id} are not the ones that it committed")));
        }
        let alh = header.alh().map_err(|error| self.lies(format!("transaction {id}: {error}")))?;
        self.must_be_known(id, alh).await?;
        self.last = (id, alh);
        Ok(Some(Checked { id, bytes, alh }))
    }

    /// Nothing in a transaction depends on its time: only what comes after does. So that is looked at before anything is handed on.
    async fn must_be_known(&mut self, id: TxId, alh: Digest) -> Result<(), Failure> {
        let following = TxId(id.get() + 1);
        let begun = Instant::now();
        loop {
            if let Some((bytes, next)) = self.fetch(following).await? {
                if next.header.prev_alh != alh {
                    return Err(
                        self.lies(format!("transaction {id} is not the one that transaction {following} follows"))
                    );
                }
                self.ahead = Some((bytes, next));
                return Ok(());
            }
            let (newest, state) = self.state().await?;
            if newest == id {
                let what = format!("transaction {id} is not the one in its state");
                return if state == alh { Ok(()) } else { Err(self.lies(what)) };
            }
            // The two answers may come from servers of which one is behind.
            if begun.elapsed() >= PATIENCE {
                return Err(if newest < id {
                    self.lies(format!("it has sent transaction {id} and says that {newest} is its newest"))
                } else {
                    let what =
                        format!("the source says that it has transaction {newest}, and does not send {following}");
                    Failure::new(Kind::Unavailable, what, AGAIN)
                });
            }
            sleep(PAUSE).await;
        }
    }

    /// A transaction as it comes, and read; none when it does not exist yet.
    async fn fetch(&mut self, tx: TxId) -> Result<Option<(Bytes, ExportedTx)>, Failure> {
        let begun = Instant::now();
        loop {
            let exported = match timeout(CALL_TIMEOUT, self.export(tx)).await {
                Ok(exported) => exported,
                Err(_) => Err(Status::deadline_exceeded("it took too long")),
            };
            match exported {
                Ok(bytes) => {
                    let read = export::decode(&bytes);
                    let read = read.map_err(|error| self.lies(format!("transaction {tx} cannot be read: {error}")))?;
                    self.newest = self.newest.max(tx);
                    return Ok(Some((bytes, read)));
                }
                Err(status) if NOTHING_NEW.contains(&status.message()) => return Ok(None),
                Err(status) => self.try_again(status, begun).await?,
            }
        }
    }

    async fn export(&mut self, tx: TxId) -> Result<Bytes, Status> {
        let request = self.session.request(ExportTxRequest { tx: tx.get(), ..ExportTxRequest::default() });
        let mut chunks = self.session.stub().export_tx(request).await?.into_inner();
        let mut found = BytesMut::new();
        while let Some(chunk) = chunks.message().await? {
            if let Some(newest) = chunk.metadata.get("committed-txid-bin").and_then(|bytes| bytes[..].try_into().ok()) {
                self.newest = self.newest.max(TxId(u64::from_be_bytes(newest)));
            }
            found.extend_from_slice(&chunk.content);
            if let Some((length, rest)) = found.split_first_chunk::<LENGTH_BYTES>() {
                let length = u64::from_be_bytes(*length);
                if length > TX_BYTES_MAX || rest.len() as u64 > length {
                    return Err(Status::data_loss(format!("a message of {length} bytes")));
                }
            }
        }
        match found.split_first_chunk::<LENGTH_BYTES>() {
            Some((length, rest)) if rest.len() as u64 == u64::from_be_bytes(*length) => {
                Ok(found.freeze().slice(LENGTH_BYTES..))
            }
            // The stream was cut: not what was asked for, and no lie.
            _ => Err(Status::unavailable("the message ended too early")),
        }
    }

    /// Waits and logs in again, as long as that can help.
    async fn try_again(&mut self, status: Status, begun: Instant) -> Result<(), Failure> {
        let is_final = !may_pass(&status);
        if is_final || begun.elapsed() >= PATIENCE {
            return Err(Failure::new(
                if is_final { Kind::Failed } else { Kind::Unavailable },
                format!("the source {} does not answer: {}", self.connect.endpoints[0], say(&status)),
                AGAIN,
            ));
        }
        sleep(PAUSE).await;
        if let Ok(session) = log_in(&self.connect).await {
            if session.cluster() != self.uuid {
                return Err(self.lies(format!("it was server {} and is {} now", self.uuid, session.cluster())));
            }
            self.session = session;
        }
        Ok(())
    }

    fn lies(&self, what: impl Into<String>) -> Failure {
        Failure::new(
            Kind::Tampered,
            format!("the source {} cannot be believed: {}", self.connect.endpoints[0], what.into()),
            "nothing of this was imported; look at the source, and at what is between it and this machine",
        )
    }
}

async fn log_in(connect: &Connect) -> Result<Session, String> {
    Session::open(&connect.endpoints[0], Login::of(connect), CALL_TIMEOUT).await
}
