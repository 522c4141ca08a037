//! What the parts of a simulation share; one thread, so no locks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::rc::Rc;
use std::time::Duration;

use alhambra_node::node::NodeHandle;
use futures::future::LocalBoxFuture;
use tokio::sync::mpsc::UnboundedSender;

use super::collect::Final;
use super::ops::again::Asked;
use super::report::Tally;
use super::watch::Snapshots;
use crate::check::Sightings;
use crate::history::History;

/// Work that is to run on a host, as its own code would.
pub type HostJob = Box<dyn FnOnce(Rc<NodeHandle>) -> LocalBoxFuture<'static, ()>>;

/// A node that runs.
pub struct Running {
    /// The production node.
    pub handle: Rc<NodeHandle>,
    /// Runs work on its host.
    pub jobs: UnboundedSender<HostJob>,
}

/// See the module.
#[derive(Default)]
pub struct State {
    /// What clients did and saw.
    pub history: History,
    /// What was seen of the nodes.
    pub sightings: Sightings,
    /// Raft snapshots whose files came to nodes.
    pub snapshots: Snapshots,
    /// Nodes that run.
    pub running: BTreeMap<usize, Running>,
    /// How often each node was started.
    pub lives: BTreeMap<usize, u64>,
    /// Clients end.
    pub load_over: bool,
    /// How many have.
    pub clients_done: u32,
    /// When the last one had.
    pub clients_ended: Duration,
    /// Nodes whose disk was emptied: they wait outside until an operator adds them.
    pub outside: Vec<usize>,
    /// What was collected after healing.
    pub verdict: Option<Result<Final, String>>,
    /// Requests with an id that may have been carried out.
    pub asked: Vec<Asked>,
    /// How the calls of each operation ended.
    pub done: BTreeMap<&'static str, Tally>,
    /// Everything that happened.
    pub trace: Trace,
}

/// The state, for everybody.
pub type Shared = Rc<RefCell<State>>;

/// A hash over everything that happens; two equal runs of one build have equal traces.
#[derive(Default)]
pub struct Trace(DefaultHasher);

impl Trace {
    /// Something has happened.
    pub fn add(&mut self, what: &(impl Hash + ?Sized)) {
        what.hash(&mut self.0);
    }

    /// Hash over all of it.
    pub fn digest(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

/// Virtual time since the beginning.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}
