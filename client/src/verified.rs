//! Verified calls: ask, check the answer against the trusted state, move that state forward, and only then answer.
//!
//! The first contact with a database trusts what CurrentState says, as the SDKs do: from then on every answer must be
//! of that history. Calls of one client are verified one after the other, because each proof starts from the state that
//! the one before left. Several clients may share a store: whoever finds the state moved by another one proves the
//! transaction against that state as well, so that no two branches are ever accepted.

use alhambra_ledger::Digest;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::state::TrustedState;
use alhambra_proto::convert::{ConvertError, Tx};
use alhambra_proto::schema;
use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;

use crate::check::{self, Check, GetQuestion, KeyValue, Wanted};
use crate::client::{Client, Entry, reference_request, set_request, z_add_request};
use crate::error::Error;
use crate::precondition::Precondition;
use crate::retry::Kind;
use crate::state_store::{Advanced, Evidence, StateId};

/// An answer that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    /// The answer.
    pub value: T,
    /// Header of the transaction that holds it, proven to be in the history.
    pub header: TxHeader,
    /// The state trusted from now on.
    pub state: TrustedState,
}

/// What [`Client::verify_state`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateCheck {
    /// The state that was trusted before; `None` on the first contact, when there was nothing to compare with.
    pub before: Option<TrustedState>,
    /// The state trusted now. Equal to `before` when nothing was written since, or when the endpoint lags behind.
    pub now: TrustedState,
    /// True when the state carried a valid signature of the server's key.
    pub signed: bool,
}

/// Everything that belongs to one verified call.
pub(crate) struct Round {
    call: &'static str,
    deadline: Instant,
    id: StateId,
    /// What the store holds; `None` on the first contact.
    stored: Option<TrustedState>,
    /// What proofs start from.
    trusted: TrustedState,
}

impl Round {
    /// When the call ends.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The transaction that proofs start from.
    pub(crate) fn trusted_tx(&self) -> TxId {
        self.trusted.tx
    }
}

impl Client {
    /// Writes one pair as one transaction and verifies that it is in the history.
    pub async fn verified_set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Verified<()>, Error> {
        self.verified_set_all(vec![KeyValue::new(key, value)]).await
    }

    /// Writes all pairs as one transaction and verifies that exactly they are in the history.
    pub async fn verified_set_all(&self, pairs: Vec<KeyValue>) -> Result<Verified<()>, Error> {
        self.verified_set_all_if(pairs, &[]).await
    }

    /// As [`Self::verified_set`], if all preconditions hold. That they held is not proven.
    pub async fn verified_set_if(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        preconditions: &[Precondition],
    ) -> Result<Verified<()>, Error> {
        self.verified_set_all_if(vec![KeyValue::new(key, value)], preconditions).await
    }

    /// As [`Self::verified_set_all`], if all preconditions hold. That they held is not proven.
    pub async fn verified_set_all_if(
        &self,
        pairs: Vec<KeyValue>,
        preconditions: &[Precondition],
    ) -> Result<Verified<()>, Error> {
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin("verified_set").await?;
        let request = schema::VerifiableSetRequest {
            set_request: Some(set_request(&pairs, preconditions)),
            prove_since_tx: round.trusted.tx.get(),
        };
        let answer = self
            .inner
            .connection
            .call(round.call, Kind::Write, round.deadline, request.clone(), async |mut c, r| c.verifiable_set(r).await)
            .await;
        self.written(round, &request, answer, None, &pairs.iter().map(Wanted::value).collect::<Vec<_>>()).await
    }

    /// Writes a reference to `target` under `key` and verifies that it is in the history. It leads to the newest value of the
    /// target, or with an `at_tx` other than 0 to what that transaction wrote.
    pub async fn verified_set_reference(
        &self,
        key: impl Into<Bytes>,
        target: impl Into<Bytes>,
        at_tx: TxId,
    ) -> Result<Verified<()>, Error> {
        self.verified_set_reference_if(key, target, at_tx, &[]).await
    }

    /// As [`Self::verified_set_reference`], if all preconditions hold. That they held is not proven.
    pub async fn verified_set_reference_if(
        &self,
        key: impl Into<Bytes>,
        target: impl Into<Bytes>,
        at_tx: TxId,
        preconditions: &[Precondition],
    ) -> Result<Verified<()>, Error> {
        let reference = reference_request(key.into(), target.into(), at_tx, preconditions);
        let wanted = Wanted::reference(&reference.key, &reference.referenced_key, at_tx);
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin("verified_set_reference").await?;
        let prove_since_tx = round.trusted.tx.get();
        let request = schema::VerifiableReferenceRequest { reference_request: Some(reference), prove_since_tx };
        let answer = self
            .inner
            .connection
            .call(round.call, Kind::Write, round.deadline, request.clone(), async |mut c, r| {
                c.verifiable_set_reference(r).await
            })
            .await;
        self.written(round, &request, answer, None, &[wanted]).await
    }

    /// Adds `key` with a score to a sorted set and verifies that it is in the history. The member leads to the newest value of
    /// the key, or with an `at_tx` other than 0 to what that transaction wrote.
    pub async fn verified_z_add(
        &self,
        set: impl Into<Bytes>,
        score: f64,
        key: impl Into<Bytes>,
        at_tx: TxId,
    ) -> Result<Verified<()>, Error> {
        let member = z_add_request(set.into(), score, key.into(), at_tx);
        let wanted = Wanted::member(&member.set, score, &member.key, at_tx);
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin("verified_z_add").await?;
        let prove_since_tx = round.trusted.tx.get();
        let request = schema::VerifiableZAddRequest { z_add_request: Some(member), prove_since_tx };
        let answer = self
            .inner
            .connection
            .call(round.call, Kind::Write, round.deadline, request.clone(), async |mut c, r| {
                c.verifiable_z_add(r).await
            })
            .await;
        self.written(round, &request, answer, None, &[wanted]).await
    }

    /// Judges the answer to a write of these entries.
    async fn written<Req: Message>(
        &self,
        round: Round,
        request: &Req,
        answer: Result<schema::VerifiableTx, Error>,
        tx: Option<TxId>,
        wanted: &[Wanted],
    ) -> Result<Verified<()>, Error> {
        let reply = self.answered(&round, request, answer).await?;
        let call = round.call;
        let stored = async {
            let checked = check::written(tx, wanted, &reply, &round.trusted, self.inner.server_key.as_ref());
            let (header, next) = self.judged(&round, request, &reply, checked)?;
            let state = self.store(round, next).await?;
            Ok(Verified { value: (), header, state })
        };
        // To bring a trusted state forward that somebody else has moved may take another call.
        stored.await.map_err(|error: Error| error.after_writing(call))
    }

    /// Proves that transaction `tx`, which was written in this round, has exactly these entries.
    pub(crate) async fn proven(&self, round: Round, tx: TxId, wanted: &[Wanted]) -> Result<Verified<()>, Error> {
        let request =
            schema::VerifiableTxRequest { tx: tx.get(), prove_since_tx: round.trusted.tx.get(), ..Default::default() };
        let answer = self
            .inner
            .connection
            .call(round.call, Kind::Read, round.deadline, request, async |mut c, r| c.verifiable_tx_by_id(r).await)
            .await;
        self.written(round, &request, answer, Some(tx), wanted).await
    }

    /// The newest value of a key, verified to be in the history. That it is the newest is not proven.
    pub async fn verified_get(&self, key: impl Into<Bytes>) -> Result<Verified<Entry>, Error> {
        self.verified_get_at(key, TxId(0)).await
    }

    /// The value that transaction `tx` wrote to this key, verified; 0 means the newest.
    pub async fn verified_get_at(&self, key: impl Into<Bytes>, tx: TxId) -> Result<Verified<Entry>, Error> {
        let key = key.into();
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin("verified_get").await?;
        let request = schema::VerifiableGetRequest {
            key_request: Some(schema::KeyRequest { key: key.clone(), at_tx: tx.get(), ..Default::default() }),
            prove_since_tx: round.trusted.tx.get(),
        };
        let answer = self
            .inner
            .connection
            .call(round.call, Kind::Read, round.deadline, request.clone(), async |mut c, r| c.verifiable_get(r).await)
            .await;
        let reply = self.answered(&round, &request, answer).await?;
        self.got(round, &request, &GetQuestion { key: &key, at_tx: tx }, reply, Ok(None)).await
    }

    /// Judges the answer to a verified get, of whose value there is the hash where it came apart from the entry.
    pub(crate) async fn got(
        &self,
        round: Round,
        request: &schema::VerifiableGetRequest,
        question: &GetQuestion<'_>,
        reply: schema::VerifiableEntry,
        value_hash: Result<Option<Digest>, ConvertError>,
    ) -> Result<Verified<Entry>, Error> {
        let key = self.inner.server_key.as_ref();
        let checked = match value_hash {
            Ok(hash) => check::get(question, &reply, hash, &round.trusted, key),
            Err(malformed) => Err(malformed.into()),
        };
        let (header, next) = self.judged(&round, request, &reply, checked)?;
        let state = self.store(round, next).await?;
        let entry = reply.entry.expect("a reply without entry does not pass the check");
        Ok(Verified { value: entry.into(), header, state })
    }

    /// A transaction with all its entries as stored, without values, verified to be in the history.
    pub async fn verified_tx_by_id(&self, tx: TxId) -> Result<Verified<Tx>, Error> {
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin("verified_tx_by_id").await?;
        let (tx, next) = self.checked_tx(&round, tx, &round.trusted).await?;
        let state = self.store(round, next).await?;
        Ok(Verified { header: tx.header.clone(), value: tx, state })
    }

    /// Asks for the current state, verifies that it continues the trusted one, and trusts it from then on.
    pub async fn verify_state(&self) -> Result<StateCheck, Error> {
        let _one_at_a_time = self.inner.verifying.lock().await;
        let round = self.begin("verify_state").await?;
        let signed = self.inner.server_key.is_some();
        let Some(before) = round.stored.clone() else {
            // What `begin` has just fetched, and checked as far as a first contact can be.
            let now = round.trusted.clone();
            return Ok(StateCheck { before: None, now: self.store(round, now).await?, signed });
        };
        let reply = self.current_state_by(round.deadline).await?;
        let checked = check::current_state(&round.id.database, &reply, self.inner.server_key.as_ref());
        let claimed = self.judged(&round, &(), &reply, checked)?;
        let now = if claimed.tx < before.tx {
            self.confirm_not_rewound(&round, &claimed, &reply).await?;
            before.clone()
        } else if claimed.tx == before.tx {
            let same = if claimed == before { Ok(()) } else { Err(Check::Fork { tx: claimed.tx }) };
            self.judged(&round, &(), &reply, same)?;
            before.clone()
        } else {
            let (tx, next) = self.checked_tx(&round, claimed.tx, &round.trusted).await?;
            self.judged(&round, &(), &reply, check::same_alh(&tx, &claimed.alh))?;
            next
        };
        Ok(StateCheck { before: Some(before), now: self.store(round, now).await?, signed })
    }

    /// The state that is trusted for the selected database, without asking the server; `None` before the first contact.
    pub async fn trusted_state(&self) -> Result<Option<TrustedState>, Error> {
        Ok(self.inner.store.load(&self.state_id().await)?)
    }

    /// Refuses a claimed state without the right signature.
    pub(crate) async fn must_be_signed(&self, reply: &schema::ImmutableState) -> Result<(), Error> {
        // Of whatever database it is: a clone may have selected another one since it was asked for, and the signature says which.
        let id = StateId { database: reply.db.clone(), ..self.state_id().await };
        let trusted = TrustedState::empty(id.database.clone());
        let checked = check::current_state(&id.database, reply, self.inner.server_key.as_ref());
        let round =
            Round { call: "current_state", deadline: self.inner.connection.deadline(), id, stored: None, trusted };
        self.judged(&round, &(), reply, checked).map(drop)
    }

    async fn state_id(&self) -> StateId {
        StateId { server_uuid: self.server_uuid().await, database: self.database().await }
    }

    /// Loads the trusted state; on the first contact, takes the server's.
    pub(crate) async fn begin(&self, call: &'static str) -> Result<Round, Error> {
        let deadline = self.inner.connection.deadline();
        let id = self.state_id().await;
        let stored = self.inner.store.load(&id)?;
        let trusted = stored.clone().unwrap_or_else(|| TrustedState::empty(id.database.clone()));
        let mut round = Round { call, deadline, id, stored, trusted };
        if round.stored.is_none() {
            let reply = self.current_state_by(deadline).await?;
            let checked = check::current_state(&round.id.database, &reply, self.inner.server_key.as_ref());
            round.trusted = self.judged(&round, &(), &reply, checked)?;
        }
        Ok(round)
    }

    /// Fetches and checks transaction `tx` against `trusted`.
    async fn checked_tx(&self, round: &Round, tx: TxId, trusted: &TrustedState) -> Result<(Tx, TrustedState), Error> {
        let request =
            schema::VerifiableTxRequest { tx: tx.get(), prove_since_tx: trusted.tx.get(), ..Default::default() };
        let answer = self
            .inner
            .connection
            .call(round.call, Kind::Read, round.deadline, request, async |mut c, r| c.verifiable_tx_by_id(r).await)
            .await;
        let reply = self.answered(round, &request, answer).await?;
        let checked = check::tx_by_id(tx, &reply, trusted, self.inner.server_key.as_ref());
        self.judged(round, &request, &reply, checked)
    }

    /// The server claims an older state than the trusted one: that is a lie, unless it merely has not caught up and
    /// still proves the trusted transaction when asked for it.
    async fn confirm_not_rewound(
        &self,
        round: &Round,
        claimed: &TrustedState,
        reply: &schema::ImmutableState,
    ) -> Result<(), Error> {
        match self.checked_tx(round, round.trusted.tx, &round.trusted).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_tx_not_found() => {
                let rewound = Check::Rewound { server: claimed.tx, trusted: round.trusted.tx };
                self.judged(round, &(), reply, Err(rewound))
            }
            Err(error) => Err(error),
        }
    }

    /// Looks behind the answer "illegal state": it says that the trusted transaction does not exist.
    pub(crate) async fn answered<Req: Message, Res>(
        &self,
        round: &Round,
        request: &Req,
        answer: Result<Res, Error>,
    ) -> Result<Res, Error> {
        match answer {
            Err(error) if error.is_illegal_state() => {
                let claimed = self.current_state_by(round.deadline).await?;
                if TxId(claimed.tx_id) >= round.trusted.tx {
                    return Err(error);
                }
                let step = Check::Rewound { server: TxId(claimed.tx_id), trusted: round.trusted.tx };
                Err(self.tampered(round, step, request.encode_to_vec(), Vec::new(), claimed.encode_to_vec()))
            }
            answer => answer,
        }
    }

    /// Turns a failed check into [`Error::Tampered`], with the evidence kept.
    fn judged<Req: Message, Res: Message, T>(
        &self,
        round: &Round,
        request: &Req,
        reply: &Res,
        checked: Result<T, Check>,
    ) -> Result<T, Error> {
        checked.map_err(|step| self.tampered(round, step, request.encode_to_vec(), reply.encode_to_vec(), Vec::new()))
    }

    fn tampered(&self, round: &Round, step: Check, request: Vec<u8>, reply: Vec<u8>, claimed: Vec<u8>) -> Error {
        let evidence = Evidence {
            call: round.call.to_owned(),
            step: step.to_string(),
            server_uuid: round.id.server_uuid.clone(),
            endpoint: self.endpoint().to_owned(),
            database: round.id.database.clone(),
            trusted_tx: round.trusted.tx.get(),
            trusted_alh: round.trusted.alh.to_string(),
            request: hex(&request),
            reply: hex(&reply),
            claimed_state: hex(&claimed),
        };
        match self.inner.store.keep_evidence(&evidence) {
            Ok(evidence) => Error::Tampered { call: round.call, step, evidence },
            // That the answer is a lie matters more than that the disk is full.
            Err(_) => Error::Tampered { call: round.call, step, evidence: None },
        }
    }

    /// Stores `next`. When somebody else has moved the state meanwhile, `next` must be of the same history as theirs.
    async fn store(&self, mut round: Round, mut next: TrustedState) -> Result<TrustedState, Error> {
        loop {
            match self.inner.store.advance(&round.id, round.stored.as_ref(), &next)? {
                Advanced::Stored => return Ok(next),
                Advanced::Changed(theirs) => {
                    let mine = next;
                    round.trusted = theirs.clone();
                    next = if mine.tx.get() == 0 {
                        theirs.clone()
                    } else {
                        let (tx, next) = self.checked_tx(&round, mine.tx, &theirs).await?;
                        self.judged(&round, &(), &(), check::same_alh(&tx, &mine.alh))?;
                        next
                    };
                    round.stored = Some(theirs);
                }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
