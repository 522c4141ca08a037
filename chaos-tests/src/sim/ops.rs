//! What clients do, one file each. A new operation is a file and a row of [`ALL`].

pub mod again;
mod batch;
mod conditional;
mod database;
mod floor;
mod forget;
mod get;
mod import;
mod many;
mod past;
mod set;
mod sorted_set;
mod transaction;
mod verified;
mod verified_client;

use std::time::Duration;

use alhambra_client::Client;
use alhambra_node::node::NodeHandle;
use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tonic::{Response, Status};

use super::client::{Session, bounded, is_overdue};
use super::env::SimRng;
use super::plant::Plant;
use super::shared::{HostJob, Shared, now};
use super::workload::{life, note_overdue};
use crate::history::{Database, Ending, Read, Write};
use crate::model::chain::Hash;

/// A client at work on one node.
pub struct Ctx<'a> {
    /// Number of the client.
    pub client: u32,
    /// Decides.
    pub rng: &'a SimRng,
    /// The bug that this life has.
    pub plant: Option<Plant>,
    /// Where everything is written down.
    pub shared: &'a Shared,
    /// How many keys there are.
    pub keys: u64,
    /// Node that the session is on.
    pub node: usize,
    /// How many nodes there are.
    pub nodes: usize,
    /// The session.
    pub session: &'a mut Session,
    /// What the client remembers, on whatever node.
    pub memory: &'a mut Memory,
}

/// What a client remembers.
#[derive(Default)]
pub struct Memory {
    /// Number of its newest value.
    pub sequence: u64,
    /// Newest transaction that it has seen.
    pub newest: u64,
    /// What it trusts.
    pub trusted: Option<(u64, Hash)>,
    /// A client of our own, with its trusted state.
    pub verifier: Option<Client>,
    /// How far it has copied the database.
    pub copied: u64,
    /// Whether the database for copies is there.
    pub copy_made: bool,
    /// Its database in which values are forgotten.
    pub forgetful: Option<forget::Own>,
    /// What it has asked for and may ask for again, by its place among all of those.
    pub asked: Option<usize>,
}

impl Ctx<'_> {
    /// Whether this life has that bug.
    pub fn has(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    /// One of the keys.
    pub fn key(&self) -> Vec<u8> {
        format!("key-{}", self.rng.below(self.keys)).into_bytes()
    }

    /// A value that nobody else writes; long enough that segments close within the minute.
    pub fn value(&mut self) -> Vec<u8> {
        self.memory.sequence += 1;
        let len = 64 + self.rng.below(192) as usize;
        format!("{}-{}-{}", self.client, self.memory.sequence, "x".repeat(len)).into_bytes()
    }

    /// The client has seen this transaction.
    pub fn saw(&mut self, tx: u64) {
        self.memory.newest = self.memory.newest.max(tx);
    }

    /// Writes down how a write ended.
    pub fn wrote(&mut self, key: Vec<u8>, value: Vec<u8>, invoked: Duration, ending: Ending) {
        if let Ending::Acknowledged(tx) = ending {
            self.saw(tx);
        }
        let write = Write { client: self.client, key, value, invoked, ended: now(), ending };
        let mut shared = self.shared.borrow_mut();
        shared.trace.add(&write);
        shared.history.writes.push(write);
    }

    /// Writes down what a read at the default level showed of a key; nothing for no value.
    pub fn read(&self, key: Vec<u8>, value: Option<Vec<u8>>, invoked: Duration) {
        let read = Read { client: self.client, node: self.node as u32, key, value, invoked, ended: now() };
        let mut shared = self.shared.borrow_mut();
        shared.trace.add(&read);
        shared.history.reads.push(read);
    }

    /// Makes a database, and writes down that it did.
    pub async fn create(&mut self, create: schema::CreateDatabaseRequest) -> Result<(), Status> {
        let name = create.name.clone();
        self.note_database(&name, |_| {});
        let request = self.session.request(create);
        bounded(self.session.api.create_database_v2(request)).await?;
        self.note_database(&name, |database| database.created = true);
        Ok(())
    }

    pub(super) fn note_database(&self, name: &str, note: impl FnOnce(&mut Database)) {
        note(self.shared.borrow_mut().history.databases.entry(name.to_owned()).or_default());
    }

    /// Something was answered that must never be.
    pub fn wrong(&self, what: String) {
        self.shared.borrow_mut().sightings.wrong.push(what);
    }
}

/// Has a node do something, as its own code does it. Nothing when it is down by then, or goes down meanwhile.
async fn within<T: 'static>(
    jobs: UnboundedSender<HostJob>,
    work: impl AsyncFnOnce(&NodeHandle) -> T + 'static,
) -> Result<Option<T>, Status> {
    let (send, receive) = oneshot::channel();
    let job: HostJob = Box::new(move |node| {
        Box::pin(async move {
            // The client is gone when the simulation ends.
            let _ = send.send(work(&node).await);
        })
    });
    if jobs.send(job).is_err() {
        return Ok(None);
    }
    bounded(async { Ok(Response::new(receive.await.ok())) }).await
}

/// Makes calls on another node than the client's own. When one is left waiting, it is that node that has done so.
async fn elsewhere<T>(
    shared: &Shared,
    call: &'static str,
    node: usize,
    calls: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let (before, invoked) = (life(shared, node), now());
    match calls.await {
        Err(status) if is_overdue(&status) => {
            note_overdue(shared, &status, call, node, before, invoked);
            Err(Status::unavailable("another node did not answer"))
        }
        done => done,
    }
}

/// A key or value as a ledger has it, behind the byte that says of which kind it is.
fn stored(prefix: u8, bytes: &[u8]) -> Vec<u8> {
    [&[prefix], bytes].concat()
}

/// How an operation that got its answers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It did what it is for.
    Well,
    /// It was refused for its condition or its read set, or there was nothing to do it with.
    Refused,
}

/// Something that a client does. A status means that it did not work; what that says about writes is in the history.
pub trait Op: Sync {
    /// Its name, for the story.
    fn name(&self) -> &'static str;
    /// How often it is chosen.
    fn weight(&self) -> u64;
    /// What came later than seeds that are known to find something is drawn by itself: the name of its draw, and of how many lives
    /// one has it. Nothing for those that are drawn one after the other, two of three.
    fn own_draw(&self) -> Option<(&'static str, u64)> {
        None
    }
    /// Whether every life has it.
    fn is_always(&self) -> bool {
        false
    }
    /// Does it once.
    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>>;
}

/// All of them.
pub const ALL: &[&dyn Op] = &[
    &set::Set,
    &get::Get,
    &batch::Batch,
    &conditional::Conditional,
    &transaction::ReadWrite,
    &many::GetAll,
    &many::ScanAll,
    &floor::AtFloor,
    &past::History,
    &past::AtTx,
    &past::AtRevision,
    &verified::Set,
    &verified::Get,
    &verified_client::Verify,
    &database::MakeAndDrop,
    &import::Copy,
    &forget::Forget,
    &sorted_set::Add,
    &sorted_set::ScanSet,
    &again::Again,
];
