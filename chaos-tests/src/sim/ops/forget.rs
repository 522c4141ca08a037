//! A database of the client's own in which old values are forgotten: writes there, has everything from before today forgotten, and
//! reads what is left, by key and by number, proven and not, on any node and at any level.

use std::time::Duration;

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{Session, bounded, ending_of, found};
use super::super::setup::NAMES;
use super::super::shared::now;
use super::verified::{State, Verifier};
use super::{Ctx, Done, Op, elsewhere, stored};
use crate::history::{Ending, Forgetful, ForgetfulRead, Showed, Truncation, TruncationEnding, Trusted, Write};
use crate::model::chain::{Entry, eh, hash};
use crate::reader::{forgotten, to_hash};
use crate::rng::SplitMix64;

/// See the module.
pub struct Forget;

/// Calls of one run.
const STEPS: u64 = 6;
/// Keys of the database; few, so that versions of one are forgotten and others are not.
const KEYS: u64 = 6;
/// What the server says when nothing is old enough.
const NOTHING_OLD: &str = "retention period has not been reached";

/// What the client remembers of its database.
#[derive(Default)]
pub struct Own {
    /// What it trusts there.
    trusted: Option<State>,
    /// Acknowledged writes: transaction, key, value.
    wrote: Vec<(u64, Vec<u8>, Vec<u8>)>,
    /// A transaction behind everything that was acknowledged before this time.
    floor: Option<(u64, Duration)>,
    /// Number of its newest value.
    sequence: u64,
}

impl Op for Forget {
    fn name(&self) -> &'static str {
        "forget"
    }

    fn weight(&self) -> u64 {
        12
    }

    fn own_draw(&self) -> Option<(&'static str, u64)> {
        Some(("forget", 2))
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let name = format!("forget{}", ctx.client);
            if ctx.memory.forgetful.is_none() {
                let create = schema::CreateDatabaseRequest { name: name.clone(), settings: None, if_not_exists: true };
                ctx.create(create).await?;
                ctx.memory.forgetful = Some(Own::default());
            }
            let (shared, node) = (ctx.shared, ctx.rng.below(ctx.nodes as u64) as usize);
            elsewhere(shared, self.name(), node, async move {
                let session = Session::open(NAMES[node], &name).await?;
                let mut visit = Visit { ctx, name, node, session };
                let mut done = Done::Refused;
                for _ in 0..STEPS {
                    if visit.step().await? {
                        done = Done::Well;
                    }
                }
                Ok(done)
            })
            .await
        })
    }
}

/// A client on one node, in its database.
struct Visit<'a, 'b> {
    ctx: &'a mut Ctx<'b>,
    name: String,
    node: usize,
    session: Session,
}

/// How new a read is: whether the server was told to read what it has, the least transaction, and what it therefore has to see.
struct Level {
    local: bool,
    since_tx: u64,
    sees: Option<Duration>,
}

impl Visit<'_, '_> {
    /// One call; whether something was forgotten.
    async fn step(&mut self) -> Result<bool, Status> {
        match self.ctx.rng.below(16) {
            0..=5 => self.write().await?,
            6 | 7 => return self.truncate().await,
            8 | 9 => self.get().await?,
            10 => self.get_at().await?,
            11 => self.verified_get().await?,
            12 | 13 => self.proven_transaction().await?,
            14 => self.scan().await?,
            _ => self.history().await?,
        }
        Ok(false)
    }

    fn own(&mut self) -> &mut Own {
        self.ctx.memory.forgetful.get_or_insert_default()
    }

    fn note(&self, note: impl FnOnce(&mut Forgetful)) {
        let mut shared = self.ctx.shared.borrow_mut();
        note(shared.history.forgetful.entry(self.name.clone()).or_default());
    }

    fn key(&self) -> Vec<u8> {
        format!("own-{}", self.ctx.rng.below(KEYS)).into_bytes()
    }

    /// One of the acknowledged writes.
    fn written(&mut self) -> Option<(u64, Vec<u8>, Vec<u8>)> {
        let count = self.own().wrote.len() as u64;
        if count == 0 {
            return None;
        }
        let at = self.ctx.rng.below(count) as usize;
        self.own().wrote.get(at).cloned()
    }

    /// A value that nobody else writes, long enough that segments close before midnight, and that does not get smaller.
    fn value(&mut self) -> Vec<u8> {
        let words = 128 + self.ctx.rng.below(256);
        let name = self.name.clone();
        let sequence = &mut self.own().sequence;
        *sequence += 1;
        let mut text = format!("{name}-{sequence}-");
        let mut noise = SplitMix64::of(*sequence, &name);
        (0..words).for_each(|_| text.push_str(&format!("{:016x}", noise.draw())));
        text.into_bytes()
    }

    /// Of the newest state, of what this node has, or of what this node has and at least the floor.
    fn level(&mut self) -> Level {
        let newest = Level { local: false, since_tx: 0, sees: Some(now()) };
        let (kind, floor) = (self.ctx.rng.below(4), self.own().floor);
        match (kind, floor) {
            (0, _) => Level { local: true, since_tx: 0, sees: None },
            (1, Some((tx, moment))) => Level { local: true, since_tx: tx, sees: Some(moment) },
            _ => newest,
        }
    }

    fn request<T>(&self, level: &Level, message: T) -> tonic::Request<T> {
        if level.local { self.session.local(message) } else { self.session.request(message) }
    }

    fn read(&self, call: &'static str, key: Vec<u8>, showed: Showed, sees: Option<Duration>) {
        let read = ForgetfulRead { call, node: self.node as u32, key, showed, sees, ended: now() };
        self.ctx.shared.borrow_mut().trace.add(&read);
        self.note(|own| own.reads.push(read));
    }

    /// What an answer about one version shows; an error that says nothing about it stays one.
    fn showed(answer: Result<schema::Entry, Status>) -> Result<Showed, Status> {
        match found(answer) {
            Ok(Some(entry)) => Ok(Showed::Value(entry.tx, entry.value.to_vec())),
            Ok(None) => Ok(Showed::Nothing),
            Err(status) => forgotten(&status).map(Showed::Gone).ok_or(status),
        }
    }

    async fn write(&mut self) -> Result<(), Status> {
        let (key, value, invoked) = (self.key(), self.value(), now());
        let answer = self.session.set(&key, &value).await;
        let ending = answer.as_ref().map_or_else(ending_of, |tx| Ending::Acknowledged(*tx));
        let write =
            Write { client: self.ctx.client, key: key.clone(), value: value.clone(), invoked, ended: now(), ending };
        self.ctx.shared.borrow_mut().trace.add(&write);
        self.note(|own| own.writes.push(write));
        let tx = answer?;
        self.own().wrote.push((tx, key, value));
        Ok(())
    }

    async fn truncate(&mut self) -> Result<bool, Status> {
        let invoked = now();
        let message = schema::TruncateDatabaseRequest { database: self.name.clone(), retention_period: 0 };
        let request = self.session.request(message);
        let answer = bounded(self.session.api.truncate_database(request)).await;
        let ending = match &answer {
            Ok(_) => TruncationEnding::Done,
            Err(status) if status.message().ends_with(NOTHING_OLD) => TruncationEnding::NothingOld,
            Err(_) => TruncationEnding::Unknown,
        };
        let truncation = Truncation { node: self.node as u32, invoked, ended: now(), ending };
        self.ctx.shared.borrow_mut().trace.add(&truncation);
        self.note(|own| own.truncations.push(truncation));
        match ending {
            TruncationEnding::Done => {
                // From now on there is a transaction behind it.
                let moment = now();
                let request = self.session.request(());
                let tx = bounded(self.session.api.current_state(request)).await?.tx_id;
                self.own().floor = Some((tx, moment));
                Ok(true)
            }
            TruncationEnding::NothingOld => Ok(false),
            TruncationEnding::Unknown => answer.map(|_| false),
        }
    }

    /// The newest version of a key.
    async fn get(&mut self) -> Result<(), Status> {
        let (key, level) = (self.key(), self.level());
        let message = schema::KeyRequest { key: key.clone().into(), since_tx: level.since_tx, ..Default::default() };
        let request = self.request(&level, message);
        let showed = Self::showed(bounded(self.session.api.get(request)).await)?;
        self.read("Get", key, showed, level.sees);
        Ok(())
    }

    /// What a transaction wrote. What has a number is read from whatever the node has.
    async fn get_at(&mut self) -> Result<(), Status> {
        let Some((tx, key, _)) = self.written() else { return Ok(()) };
        let message = schema::KeyRequest { key: key.clone().into(), at_tx: tx, ..Default::default() };
        let request = self.session.request(message);
        let showed = Self::showed(bounded(self.session.api.get(request)).await)?;
        if showed == Showed::Nothing || matches!(showed, Showed::Gone(at) | Showed::Value(at, _) if at != tx) {
            self.ctx.wrong(format!("S6: {} was asked for transaction {tx} of {}: {showed:?}", self.node, self.name));
        }
        self.read("Get at a transaction", key, showed, None);
        Ok(())
    }

    /// The same with a proof, or of the newest version.
    async fn verified_get(&mut self) -> Result<(), Status> {
        let Some((tx, key, _)) = self.written() else { return Ok(()) };
        let by_number = self.ctx.rng.below(2) == 0;
        let (at_tx, sees) = if by_number { (tx, None) } else { (0, Some(now())) };
        let key_request = Some(schema::KeyRequest { key: key.clone().into(), at_tx, ..Default::default() });
        let trusted = self.own().trusted;
        let prove_since_tx = trusted.map_or(0, |(tx, _)| tx);
        let request = self.session.request(schema::VerifiableGetRequest { key_request, prove_since_tx });
        let answer = bounded(self.session.api.verifiable_get(request)).await;
        let proven = answer.as_ref().ok().map(|answer| Verifier { trusted, lax: false }.entry(&key, answer));
        let entry = |answer: schema::VerifiableEntry| answer.entry.ok_or_else(|| Status::data_loss("no entry"));
        let showed = Self::showed(answer.and_then(entry))?;
        match proven {
            Some(Ok((state, _))) => self.trust(state),
            Some(Err(step)) => self.refuted(tx, &step),
            None => {}
        }
        self.read("VerifiableGet", key, showed, sees);
        Ok(())
    }

    /// A transaction with its proof: the hash of its value stands there, whether the value is forgotten or not.
    async fn proven_transaction(&mut self) -> Result<(), Status> {
        let Some((tx, key, value)) = self.written() else { return Ok(()) };
        let trusted = self.own().trusted;
        let prove_since_tx = trusted.map_or(0, |(tx, _)| tx);
        let message = schema::VerifiableTxRequest { tx, prove_since_tx, ..Default::default() };
        let request = self.session.request(message);
        let answer = bounded(self.session.api.verifiable_tx_by_id(request)).await?;
        let mut entries = Vec::new();
        for entry in answer.tx.iter().flat_map(|tx| &tx.entries) {
            entries.push(Entry { key: entry.key.to_vec(), metadata: vec![], value_hash: to_hash(&entry.h_value)? });
        }
        let stood = Entry { key: stored(0, &key), metadata: vec![], value_hash: hash(&[&stored(0, &value)]) };
        match (Verifier { trusted, lax: false }).transaction(&answer) {
            Ok((_, seen)) if seen.header.tx.id != tx => self.refuted(tx, "another transaction"),
            Ok((_, seen)) if eh(&entries) != seen.header.tx.eh => self.refuted(tx, "its entries"),
            Ok(_) if entries != [stood] => self.refuted(tx, "the entry that was written"),
            Ok((state, _)) => self.trust(state),
            Err(step) => self.refuted(tx, &step),
        }
        Ok(())
    }

    fn refuted(&self, tx: u64, step: &str) {
        self.ctx.wrong(format!("P1: node {} does not prove transaction {tx} of {}: {step}", self.node, self.name));
    }

    fn trust(&mut self, (tx, alh): State) {
        self.own().trusted = Some((tx, alh));
        let trusted = Trusted { client: self.ctx.client, tx, alh: alh.to_vec() };
        self.note(|own| own.trusted.push(trusted));
    }

    /// All keys: those whose newest value is forgotten are left out.
    async fn scan(&mut self) -> Result<(), Status> {
        let level = self.level();
        let message = schema::ScanRequest { since_tx: level.since_tx, ..Default::default() };
        let request = self.request(&level, message);
        let answer = bounded(self.session.api.scan(request)).await?;
        for number in 0..KEYS {
            let key = format!("own-{number}").into_bytes();
            let entry = answer.entries.iter().find(|entry| entry.key == key);
            let showed = entry.map_or(Showed::Nothing, |entry| Showed::Value(entry.tx, entry.value.to_vec()));
            self.read("Scan", key, showed, level.sees);
        }
        Ok(())
    }

    /// All versions of a key: those that are forgotten are left out.
    async fn history(&mut self) -> Result<(), Status> {
        let (key, level) = (self.key(), self.level());
        let message =
            schema::HistoryRequest { key: key.clone().into(), since_tx: level.since_tx, ..Default::default() };
        let request = self.request(&level, message);
        let answer = found(bounded(self.session.api.history(request)).await)?;
        let Some(answer) = answer else {
            self.read("History", key, Showed::Nothing, level.sees);
            return Ok(());
        };
        // What the read has to see is told, or it is gone.
        let newest = match level {
            Level { sees: None, .. } => 0,
            Level { local: true, since_tx, .. } => since_tx,
            Level { local: false, .. } => u64::MAX,
        };
        let there = |tx: &u64| *tx > newest || answer.entries.iter().any(|entry| entry.tx == *tx);
        let all = (self.own().wrote.iter()).filter(|(_, of, _)| *of == key).map(|(tx, ..)| *tx);
        let missing: Vec<u64> = all.filter(|tx| !there(tx)).collect();
        for tx in missing {
            self.read("History", key.clone(), Showed::Gone(tx), level.sees);
        }
        for entry in answer.entries {
            self.read("History", key.clone(), Showed::Value(entry.tx, entry.value.to_vec()), level.sees);
        }
        Ok(())
    }
}
