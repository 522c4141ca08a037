//! The server that is imported from.

use std::collections::VecDeque;
use std::time::Duration;

use alhambra_ledger::digest::Digest;
use alhambra_ledger::export::{self, ExportedTx};
use alhambra_ledger::ids::TxId;
use alhambra_proto::schema::{self, DatabaseSettingsRequest, ExportTxRequest};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;
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
/// Transactions that are asked for before it is their turn.
const AHEAD: usize = 32;
/// Of a longer one, bytes, only as much is read before its turn; then it is asked for again. So this bounds what is held ahead.
const AHEAD_BYTES: usize = 256 << 10;
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
    /// Those behind, in order, as far as they were asked for.
    asked: VecDeque<Asked>,
    newest: TxId,
}

/// A transaction that was asked for before its turn. Nobody waits for it any more when it is dropped.
struct Asked {
    tx: TxId,
    answer: JoinHandle<Result<Export, Status>>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

/// A transaction as it comes, and the newest one that the source spoke of; no bytes when they are too many before its turn.
struct Export {
    bytes: Option<Bytes>,
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
        Ok(Self { connect, session, uuid, last, ahead: None, asked: VecDeque::new(), newest: TxId(0) })
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
        self.asked.clear();
    }

    /// Ends the session.
    pub async fn close(mut self) {
        self.asked.clear();
        self.session.close().await;
    }

    /// The next transaction; none when the source has no more.
    pub async fn next(&mut self) -> Result<Option<Checked>, Failure> {
        let (before, prev_alh) = self.last;
        let id = TxId(before.get() + 1);
        let fetched = match self.ahead.take() {
            Some(ahead) => Some(ahead),
            None => self.take(id).await?,
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
            if let Some((bytes, next)) = self.take(following).await? {
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

    /// A transaction whose turn it is, and asks for those behind it.
    async fn take(&mut self, tx: TxId) -> Result<Option<(Bytes, ExportedTx)>, Failure> {
        if self.asked.front().is_none_or(|asked| asked.tx != tx) {
            self.asked.clear();
        }
        let mut next = self.asked.back().map_or(tx, |asked| TxId(asked.tx.get() + 1));
        while self.asked.len() < AHEAD && next <= self.newest {
            let export = export(self.session.clone(), next, AHEAD_BYTES);
            self.asked.push_back(Asked { tx: next, answer: tokio::spawn(export) });
            next = TxId(next.get() + 1);
        }
        if let Some(mut asked) = self.asked.pop_front()
            && let Ok(Ok(Ok(Export { bytes: Some(bytes), newest }))) = timeout(CALL_TIMEOUT, &mut asked.answer).await
        {
            self.newest = self.newest.max(newest);
            return self.read(tx, bytes).map(Some);
        }
        // It was too large, or did not come: now it is the only one, and is tried for as long as that can help.
        self.fetch(tx).await
    }

    /// A transaction as it comes, and read; none when it does not exist yet.
    async fn fetch(&mut self, tx: TxId) -> Result<Option<(Bytes, ExportedTx)>, Failure> {
        let begun = Instant::now();
        loop {
            let exported = match timeout(CALL_TIMEOUT, export(self.session.clone(), tx, usize::MAX)).await {
                Ok(exported) => exported,
                Err(_) => Err(Status::deadline_exceeded("it took too long")),
            };
            match exported {
                Ok(Export { bytes, newest }) => {
                    self.newest = self.newest.max(newest).max(tx);
                    return self.read(tx, bytes.unwrap_or_default()).map(Some);
                }
                Err(status) if NOTHING_NEW.contains(&status.message()) => return Ok(None),
                Err(status) => self.try_again(status, begun).await?,
            }
        }
    }

    fn read(&self, tx: TxId, bytes: Bytes) -> Result<(Bytes, ExportedTx), Failure> {
        let read = export::decode(&bytes);
        let read = read.map_err(|error| self.lies(format!("transaction {tx} cannot be read: {error}")))?;
        Ok((bytes, read))
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
                let failure = self.lies(format!("it was server {} and is {} now", self.uuid, session.cluster()));
                session.close().await;
                return Err(failure);
            }
            // Those that were asked for in the old one will not come.
            self.asked.clear();
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

/// Asks for a transaction. Of one with more than `bytes_max` bytes none are answered.
async fn export(mut session: Session, tx: TxId, bytes_max: usize) -> Result<Export, Status> {
    let request = session.request(ExportTxRequest { tx: tx.get(), ..ExportTxRequest::default() });
    let mut chunks = session.stub().export_tx(request).await?.into_inner();
    let (mut found, mut newest) = (BytesMut::new(), TxId(0));
    while let Some(chunk) = chunks.message().await? {
        if let Some(told) = chunk.metadata.get("committed-txid-bin").and_then(|bytes| bytes[..].try_into().ok()) {
            newest = newest.max(TxId(u64::from_be_bytes(told)));
        }
        found.extend_from_slice(&chunk.content);
        if let Some((length, rest)) = found.split_first_chunk::<LENGTH_BYTES>() {
            let length = u64::from_be_bytes(*length);
            if length > TX_BYTES_MAX || rest.len() as u64 > length {
                return Err(Status::data_loss(format!("a message of {length} bytes")));
            }
        }
        if found.len() > bytes_max {
            return Ok(Export { bytes: None, newest });
        }
    }
    match found.split_first_chunk::<LENGTH_BYTES>() {
        Some((length, rest)) if rest.len() as u64 == u64::from_be_bytes(*length) => {
            Ok(Export { bytes: Some(found.freeze().slice(LENGTH_BYTES..)), newest })
        }
        // The stream was cut: not what was asked for, and no lie.
        _ => Err(Status::unavailable("the message ended too early")),
    }
}

async fn log_in(connect: &Connect) -> Result<Session, String> {
    Session::open(&connect.endpoints[0], Login::of(connect), CALL_TIMEOUT).await
}
