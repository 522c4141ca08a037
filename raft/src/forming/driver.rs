//! Carries out what the forming machine decides: probes and asks over gRPC, decisions on the disk.
//!
//! Invariant: calls that run beside each other take no lock. The round that drives them locks the machine between two
//! answers; a call that stood in the queue before it would be handed the lock, and nobody would run it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alhambra_proto::peer as wire;
use alhambra_proto::peer::peer_client::PeerClient;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;

use super::machine::{Answer, Durable, Effect, Machine, Proposal, View, ViewState};
use super::{FORMAT, FormError, Identity, Plan, new_cluster_id, store};
use crate::env::Env;
use crate::link::{Limits, dial};
use crate::strand::of_node;

/// How often a node that forms looks around.
const TICK: Duration = Duration::from_millis(200);
/// How often a node looks around that only waits for an operator.
const TICK_WAITING: Duration = Duration::from_secs(1);
/// A node that does not answer within this does not count for now.
const ANSWER_WAIT: Duration = Duration::from_millis(600);

/// One node while it forms, and the voice of its identity ever after.
pub struct Former {
    env: Env,
    dir: PathBuf,
    plan: Plan,
    listen: String,
    nonce: [u8; 16],
    /// Held while a decision is made durable, so that nobody hears of it before.
    machine: tokio::sync::Mutex<State>,
    identity: Mutex<Option<Identity>>,
    status: Mutex<String>,
    limits: Limits,
}

enum State {
    /// The node does not know yet which listed address is its own.
    Nameless(Durable),
    Named(Machine),
    /// A decision could not be made durable; nothing is decided any more.
    Failed,
}

type Channels = BTreeMap<String, PeerClient<Channel>>;

enum Heard {
    View(String, Option<wire::View>, Option<PeerClient<Channel>>),
    Answer(String, String, Option<wire::PromiseReply>, Option<PeerClient<Channel>>),
}

impl Former {
    /// Reads what the node has decided so far. `listen` is the address that peers reach.
    pub fn open(env: Env, dir: PathBuf, plan: Plan, listen: String) -> Result<Arc<Self>, FormError> {
        let durable = store::load(&*env.vfs, &dir)?;
        let mut nonce = [0; 16];
        env.rng.fill(&mut nonce);
        let identity = match &durable {
            Durable::Formed(identity) => Some(identity.clone()),
            Durable::Free | Durable::Collecting(_) | Durable::Promised(_) => None,
        };
        let state = match &identity {
            Some(identity) => {
                let me = identity.members.get(&identity.node_id).cloned().unwrap_or_else(|| listen.clone());
                State::Named(Machine::new(me, plan.clone(), durable))
            }
            None if plan.peers().contains(&listen) => State::Named(Machine::new(listen.clone(), plan.clone(), durable)),
            None => State::Nameless(durable),
        };
        Ok(Arc::new(Self {
            env,
            dir,
            plan,
            listen,
            nonce,
            machine: tokio::sync::Mutex::new(state),
            identity: Mutex::new(identity),
            status: Mutex::new(String::from("looking for peers")),
            limits: Limits::default(),
        }))
    }

    /// Who this node is; none until the cluster is formed.
    pub fn identity(&self) -> Option<Identity> {
        self.identity.lock().clone()
    }

    /// What is waited for, for people.
    pub fn status(&self) -> String {
        self.status.lock().clone()
    }

    /// Fails when a peer belongs to another cluster than this folder and none belongs to the same.
    pub async fn check_cluster(&self) -> Result<(), FormError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let mut channels = Channels::new();
        let others = self.plan.peers().iter().filter(|addr| Some(*addr) != identity.members.get(&identity.node_id));
        let mine = self.my_view().await;
        let mut probes: FuturesUnordered<_> =
            others.map(|addr| self.probe(addr, mine.clone(), &mut channels)).collect();
        let mut foreign = None;
        while let Some(heard) = probes.next().await {
            let Heard::View(addr, Some(view), _) = heard else { continue };
            if view.state() != wire::view::State::Formed || *view.nonce == self.nonce {
                continue;
            }
            let theirs = view.proposal.map(|proposal| proposal.cluster).unwrap_or_default();
            if theirs == identity.cluster {
                return Ok(());
            }
            foreign = Some((addr, theirs));
        }
        match foreign {
            None => Ok(()),
            Some((addr, theirs)) => {
                Err(FormError::OtherCluster { dir: self.dir.clone(), ours: identity.cluster, addr, theirs })
            }
        }
    }

    /// Forms the cluster or waits until it is formed. Runs until this node is a member.
    pub async fn run(&self) -> Result<Identity, FormError> {
        if let Some(identity) = self.identity() {
            return Ok(identity);
        }
        let mut channels = Channels::new();
        self.find_name(&mut channels).await?;
        let mut reported = String::new();
        loop {
            let next = Instant::now() + self.round(&mut channels).await?;
            if let Some(identity) = self.identity() {
                tracing::info!(cluster = identity.cluster, node = identity.node_id, "member of the cluster");
                return Ok(identity);
            }
            let status = self.status();
            if status != reported {
                tracing::info!("{status}");
                reported = status;
            }
            sleep_until(next).await;
        }
    }

    /// Finds out which listed address is this node's: the one behind which it meets itself.
    async fn find_name(&self, channels: &mut Channels) -> Result<(), FormError> {
        if !matches!(*self.machine.lock().await, State::Nameless(_)) {
            return Ok(());
        }
        let mut strangers = BTreeSet::new();
        loop {
            let next = Instant::now() + TICK;
            let mut probes: FuturesUnordered<_> =
                self.plan.peers().iter().map(|addr| self.probe(addr, self.nameless_view(), channels)).collect();
            while let Some(heard) = probes.next().await {
                let Heard::View(addr, Some(view), channel) = heard else { continue };
                channels.extend(channel.map(|channel| (addr.clone(), channel)));
                if *view.nonce == self.nonce {
                    let mut state = self.machine.lock().await;
                    if let State::Nameless(durable) = &*state {
                        *state = State::Named(Machine::new(addr, self.plan.clone(), durable.clone()));
                    }
                    return Ok(());
                }
                strangers.insert(addr);
            }
            if strangers.len() == self.plan.peers().len() {
                let peers = self.plan.peers().join(", ");
                return Err(FormError::NotListed { peers, listen: self.listen.clone() });
            }
            sleep_until(next).await;
        }
    }

    /// Looks around once; answers how long to wait for the next time.
    async fn round(&self, channels: &mut Channels) -> Result<Duration, FormError> {
        let (effects, mut mine) = {
            let mut state = self.machine.lock().await;
            let State::Named(machine) = &mut *state else { return Ok(TICK) };
            let effects = machine.tick(|| new_cluster_id(&self.env));
            (self.save(&mut state, effects).await?, self.view_of(&state))
        };
        let mut calls: FuturesUnordered<BoxFuture<'_, Heard>> = FuturesUnordered::new();
        calls.extend(effects.into_iter().filter_map(|effect| self.start(effect, &mine, channels)));
        while let Some(heard) = calls.next().await {
            let mut state = self.machine.lock().await;
            let State::Named(machine) = &mut *state else { break };
            let effects = match heard {
                Heard::View(addr, view, channel) => {
                    keep(channels, &addr, channel);
                    let view = view.filter(|view| *view.nonce != self.nonce).and_then(|view| read_view(&view));
                    view.map(|view| machine.on_view(view)).unwrap_or_default()
                }
                Heard::Answer(addr, cluster, reply, channel) => {
                    keep(channels, &addr, channel);
                    let answer = reply.and_then(|reply| read_answer(&reply));
                    answer.map(|answer| machine.on_answer(&addr, &cluster, &answer)).unwrap_or_default()
                }
            };
            let effects = self.save(&mut state, effects).await?;
            mine = self.view_of(&state);
            drop(state);
            calls.extend(effects.into_iter().filter_map(|effect| self.start(effect, &mine, channels)));
        }
        let state = self.machine.lock().await;
        let State::Named(machine) = &*state else { return Ok(TICK) };
        *self.status.lock() = machine.status().to_string();
        let waits = matches!(machine.durable(), Durable::Free) && machine.view().yields_to.is_none();
        Ok(if waits { TICK_WAITING } else { TICK })
    }

    /// Makes decisions durable; answers the other effects, which come after.
    async fn save(&self, state: &mut State, effects: Vec<Effect>) -> Result<Vec<Effect>, FormError> {
        let mut rest = Vec::new();
        for effect in effects {
            match effect {
                Effect::Save(durable) => {
                    let (vfs, dir, saved) = (self.env.vfs.clone(), self.dir.clone(), durable.clone());
                    let done = self.env.blocking(of_node::FILES, move || store::save(&*vfs, &dir, &saved)).await;
                    let done = done.unwrap_or_else(|| {
                        let source = std::io::Error::other("the executor has stopped");
                        Err(FormError::Io { path: self.dir.clone(), source })
                    });
                    if let Err(error) = done {
                        *state = State::Failed;
                        return Err(error);
                    }
                    if let Durable::Formed(identity) = durable {
                        *self.identity.lock() = Some(identity);
                    }
                }
                Effect::Probe(_) | Effect::Ask(..) => rest.push(effect),
            }
        }
        Ok(rest)
    }

    fn start(&self, effect: Effect, mine: &wire::View, channels: &mut Channels) -> Option<BoxFuture<'_, Heard>> {
        match effect {
            Effect::Save(_) => None,
            Effect::Probe(addr) => Some(self.probe(&addr, mine.clone(), channels)),
            Effect::Ask(addr, proposal) => {
                let channel = channels.remove(&addr);
                let request = wire::PromiseRequest {
                    format: FORMAT,
                    plan: Some(write_plan(&self.plan)),
                    addr: addr.clone(),
                    proposal: Some(write_proposal(&proposal)),
                };
                Some(Box::pin(async move {
                    let call = async {
                        let mut client = self.client(&addr, channel).await?;
                        let reply = client.promise(request).await.ok()?.into_inner();
                        Some((reply, client))
                    };
                    let (reply, client) = timeout(ANSWER_WAIT, call).await.ok().flatten().unzip();
                    Heard::Answer(addr, proposal.cluster, reply, client)
                }))
            }
        }
    }

    fn probe(&self, addr: &str, mine: wire::View, channels: &mut Channels) -> BoxFuture<'_, Heard> {
        let channel = channels.remove(addr);
        let addr = addr.to_owned();
        Box::pin(async move {
            let call = async {
                let mut client = self.client(&addr, channel).await?;
                let view = client.probe(mine).await.ok()?.into_inner();
                Some((view, client))
            };
            let (view, client) = timeout(ANSWER_WAIT, call).await.ok().flatten().unzip();
            Heard::View(addr, view, client)
        })
    }

    async fn client(&self, addr: &str, channel: Option<PeerClient<Channel>>) -> Option<PeerClient<Channel>> {
        match channel {
            Some(channel) => Some(channel),
            None => dial(self.env.net.clone(), addr.to_owned(), &self.limits).await.ok(),
        }
    }

    async fn my_view(&self) -> wire::View {
        self.view_of(&*self.machine.lock().await)
    }

    fn view_of(&self, state: &State) -> wire::View {
        match state {
            State::Named(machine) => write_view(&machine.view(), self.nonce),
            State::Nameless(_) | State::Failed => self.nameless_view(),
        }
    }

    fn nameless_view(&self) -> wire::View {
        wire::View { format: FORMAT, nonce: self.nonce.to_vec().into(), ..wire::View::default() }
    }

    /// A peer shows itself and asks how far this node is.
    pub async fn answer_probe(&self, theirs: wire::View) -> wire::View {
        match &mut *self.machine.lock().await {
            State::Named(machine) => {
                let theirs = (*theirs.nonce != self.nonce).then(|| read_view(&theirs)).flatten();
                write_view(&machine.on_probe(theirs), self.nonce)
            }
            State::Nameless(_) | State::Failed => self.nameless_view(),
        }
    }

    /// A peer asks for this node's promise. None: it could not be made durable.
    ///
    /// In a task of its own: the peer may hang up at any moment, and a decision that is made must not be left half-way, known
    /// here and not on the disk.
    pub async fn answer_promise(self: &Arc<Self>, request: wire::PromiseRequest) -> Option<wire::PromiseReply> {
        let this = self.clone();
        tokio::spawn(async move { this.promise(request).await }).await.ok().flatten()
    }

    async fn promise(&self, request: wire::PromiseRequest) -> Option<wire::PromiseReply> {
        let mut state = self.machine.lock().await;
        let busy = wire::PromiseReply { answer: wire::promise_reply::Answer::Busy.into(), cluster: String::new() };
        let State::Named(machine) = &mut *state else { return Some(busy) };
        let (plan, proposal) = match (read_plan(request.plan.as_ref()), request.proposal.as_ref().map(read_proposal)) {
            (Some(plan), Some(proposal)) if request.format == FORMAT => (plan, proposal),
            _ => return Some(write_answer(&Answer::DifferentPlan)),
        };
        let (effects, answer) = machine.on_ask(&request.addr, &plan, &proposal);
        match self.save(&mut state, effects).await {
            Ok(_) => {
                tracing::info!(cluster = proposal.cluster, ?answer, "asked for a promise");
                Some(write_answer(&answer))
            }
            Err(error) => {
                tracing::error!(%error, "a promise was not given");
                None
            }
        }
    }
}

fn keep(channels: &mut Channels, addr: &str, channel: Option<PeerClient<Channel>>) {
    if let Some(channel) = channel {
        channels.insert(addr.to_owned(), channel);
    }
}

fn write_plan(plan: &Plan) -> wire::Plan {
    wire::Plan { peers: plan.peers().to_vec(), expect: u32::try_from(plan.expect()).unwrap_or(u32::MAX) }
}

fn read_plan(plan: Option<&wire::Plan>) -> Option<Plan> {
    let plan = plan?;
    Plan::new(usize::try_from(plan.expect).ok()?, &plan.peers, "").ok()
}

fn write_proposal(proposal: &Proposal) -> wire::Proposal {
    let members = proposal.members.iter().map(|(id, addr)| wire::Member { id: *id, addr: addr.clone() });
    wire::Proposal { cluster: proposal.cluster.clone(), members: members.collect() }
}

fn read_proposal(proposal: &wire::Proposal) -> Proposal {
    let members = proposal.members.iter().map(|member| (member.id, member.addr.clone())).collect();
    Proposal { cluster: proposal.cluster.clone(), members }
}

fn write_view(view: &View, nonce: [u8; 16]) -> wire::View {
    use wire::view::State;
    let (state, proposal) = match &view.state {
        ViewState::Free => (State::Free, None),
        ViewState::Collecting(proposal) => (State::Collecting, Some(proposal)),
        ViewState::Promised(proposal) => (State::Promised, Some(proposal)),
        ViewState::Formed(proposal) => (State::Formed, Some(proposal)),
    };
    wire::View {
        format: FORMAT,
        nonce: nonce.to_vec().into(),
        addr: view.addr.clone(),
        plan: Some(write_plan(&view.plan)),
        state: state.into(),
        proposal: proposal.map(write_proposal),
        yields_to: view.yields_to.clone().unwrap_or_default(),
    }
}

/// None for a node that does not know its address yet, and for one of another version.
fn read_view(view: &wire::View) -> Option<View> {
    use wire::view::State;
    if view.format != FORMAT || view.addr.is_empty() {
        return None;
    }
    let proposal = view.proposal.as_ref().map(read_proposal);
    let state = match view.state() {
        State::Free => ViewState::Free,
        State::Collecting => ViewState::Collecting(proposal?),
        State::Promised => ViewState::Promised(proposal?),
        State::Formed => ViewState::Formed(proposal?),
        State::Unknown => return None,
    };
    let yields_to = Some(view.yields_to.clone()).filter(|addr| !addr.is_empty());
    Some(View { addr: view.addr.clone(), plan: read_plan(view.plan.as_ref())?, state, yields_to })
}

fn write_answer(answer: &Answer) -> wire::PromiseReply {
    use wire::promise_reply::Answer as Wire;
    let (answer, cluster) = match answer {
        Answer::Granted => (Wire::Granted, ""),
        Answer::Busy => (Wire::Busy, ""),
        Answer::Taken(cluster) => (Wire::Taken, cluster.as_str()),
        Answer::Formed(cluster) => (Wire::Formed, cluster.as_str()),
        Answer::DifferentPlan => (Wire::DifferentPlan, ""),
        Answer::NotMe => (Wire::NotMe, ""),
    };
    wire::PromiseReply { answer: answer.into(), cluster: cluster.to_owned() }
}

fn read_answer(reply: &wire::PromiseReply) -> Option<Answer> {
    use wire::promise_reply::Answer as Wire;
    Some(match reply.answer() {
        Wire::Granted => Answer::Granted,
        Wire::Busy => Answer::Busy,
        Wire::Taken => Answer::Taken(reply.cluster.clone()),
        Wire::Formed => Answer::Formed(reply.cluster.clone()),
        Wire::DifferentPlan => Answer::DifferentPlan,
        Wire::NotMe => Answer::NotMe,
        Wire::Unknown => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{OnceLock, mpsc};
    use std::thread;

    use alhambra_storage::vfs::mem::MemVfs;
    use futures::poll;

    use super::*;
    use crate::env::{BoxIo, Listener, Net};

    /// Refuses every connection. With the first, a thread takes the machine's lock, as a peer's request does whose
    /// promise is being made durable, and keeps it until it is told.
    #[derive(Debug)]
    struct Refusing {
        former: OnceLock<Arc<Former>>,
        release: Mutex<Option<mpsc::Receiver<()>>>,
    }

    impl Net for Refusing {
        fn listen<'a>(&'a self, _addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
            unreachable!("the test only asks")
        }

        fn connect<'a>(&'a self, _addr: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
            if let (Some(former), Some(release)) = (self.former.get().cloned(), self.release.lock().take()) {
                let (taken, is_taken) = mpsc::channel();
                thread::spawn(move || {
                    let _held = former.machine.blocking_lock();
                    taken.send(()).unwrap();
                    let _ = release.recv();
                });
                is_taken.recv().unwrap();
            }
            Box::pin(async {
                // Meanwhile the other calls start.
                tokio::task::yield_now().await;
                Err(io::ErrorKind::ConnectionRefused.into())
            })
        }
    }

    impl std::fmt::Debug for Former {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Former").finish_non_exhaustive()
        }
    }

    #[tokio::test]
    async fn a_promise_that_is_being_saved_between_two_probes_does_not_stop_the_node() {
        let (release, held) = mpsc::channel();
        let net = Arc::new(Refusing { former: OnceLock::new(), release: Mutex::new(Some(held)) });
        let env = Env { net: net.clone(), ..Env::production(Arc::new(MemVfs::default())) };
        let peers = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(String::from);
        let plan = Plan::new(3, &peers, &peers[2]).unwrap();
        let former = Former::open(env, PathBuf::from("/node"), plan, peers[2].clone()).unwrap();
        net.former.set(former.clone()).unwrap();

        let mut channels = Channels::new();
        let mut round = Box::pin(former.round(&mut channels));
        while net.release.lock().is_some() {
            assert!(poll!(&mut round).is_pending(), "the round ended before it asked anybody");
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        let waited = timeout(Duration::from_secs(10), round).await;
        waited.expect("the round ends when the lock is free again").unwrap();
    }
}
