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

use super::company::{Company, Stranger, Verdict};
use super::machine::{Answer, Durable, Effect, Machine};
use super::wire::{
    read_answer, read_plan, read_proposal, read_view, write_answer, write_plan, write_proposal, write_view,
};
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
    /// Who of the listed nodes is of this cluster.
    company: Mutex<Company>,
    limits: Limits,
}

enum State {
    /// The node does not know yet which listed address is its own.
    Nameless(Durable),
    Named(Machine),
    /// A decision could not be made durable, so nobody knows what the disk has; nothing is decided until it was read again. The node's
    /// listed address.
    Failed(String),
}

/// Connections that are kept between two questions, by address.
pub(crate) type Channels = BTreeMap<String, PeerClient<Channel>>;

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
        let company = Mutex::new(Company::new(plan.peers()));
        Ok(Arc::new(Self {
            env,
            dir,
            plan,
            listen,
            nonce,
            machine: tokio::sync::Mutex::new(state),
            identity: Mutex::new(identity),
            status: Mutex::new(String::from("looking for peers")),
            company,
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

    /// Asks the listed peers that are not known to be of this cluster which one they are of. Fails when so many are of
    /// another one that this node must be the one that is wrong. Ends at once in a cluster that does not exist yet.
    pub(crate) async fn look_around(&self, channels: &mut Channels) -> Result<(), FormError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let asked = self.company.lock().to_ask(&identity.cluster);
        let mine = self.my_view().await;
        let mut probes: FuturesUnordered<_> =
            asked.iter().map(|addr| self.probe(addr, mine.clone(), channels)).collect();
        while let Some(heard) = probes.next().await {
            let Heard::View(addr, Some(view), channel) = heard else { continue };
            keep(channels, &addr, channel);
            if *view.nonce == self.nonce {
                self.company.lock().note_self(&addr);
            } else if let (wire::view::State::Formed, Some(theirs)) = (view.state(), &view.proposal) {
                self.note_cluster(&addr, &theirs.cluster);
            }
            // Whoever does not answer keeps nobody waiting who needs no more answers.
            if self.is_sound() {
                break;
            }
        }
        self.check_cluster()
    }

    /// Waits for as long as a peer of another cluster has answered and too few of this one have.
    pub(crate) async fn await_company(&self, channels: &mut Channels) -> Result<(), FormError> {
        let mut reported = String::new();
        loop {
            self.check_cluster()?;
            let strangers = self.strangers();
            let Some(Stranger { addr, cluster }) = strangers.first() else { return Ok(()) };
            if self.is_sound() {
                return Ok(());
            }
            let status = format!(
                "the peer {addr} belongs to cluster {cluster}, and no majority of --peers has answered that it belongs to the \
                 cluster of this data folder; waiting for the others"
            );
            if status != reported {
                tracing::warn!("{status}");
                (*self.status.lock()).clone_from(&status);
                reported = status;
            }
            sleep_until(Instant::now() + TICK).await;
            self.look_around(channels).await?;
        }
    }

    /// A node has said behind this address which cluster it belongs to.
    pub(crate) fn note_cluster(&self, addr: &str, cluster: &str) {
        self.company.lock().note(addr, cluster);
    }

    /// Whether a majority of the listed nodes, this one included, is known to be of this node's cluster.
    pub fn is_sound(&self) -> bool {
        self.identity().is_some_and(|identity| self.company.lock().verdict(&identity.cluster) == Verdict::Sound)
    }

    /// Listed peers that belong to another cluster.
    pub fn strangers(&self) -> Vec<Stranger> {
        self.identity().map(|identity| self.company.lock().strangers(&identity.cluster)).unwrap_or_default()
    }

    fn check_cluster(&self) -> Result<(), FormError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        match self.company.lock().verdict(&identity.cluster) {
            Verdict::Open | Verdict::Sound => Ok(()),
            Verdict::Foreign(Stranger { addr, cluster: theirs }) => {
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
            self.read_again(&mut state).await?;
            let State::Named(machine) = &mut *state else { return Ok(TICK_WAITING) };
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

    /// After a failure: begins again from what the disk has, as a start does, if it answers.
    async fn read_again(&self, state: &mut State) -> Result<(), FormError> {
        let State::Failed(me) = &*state else { return Ok(()) };
        let (vfs, dir) = (self.env.vfs.clone(), self.dir.clone());
        let read = move || {
            let durable = store::load(&*vfs, &dir)?;
            // What can be read may still be lost with the power.
            store::save(&*vfs, &dir, &durable)?;
            Ok(durable)
        };
        match self.env.blocking(of_node::FILES, read).await {
            Some(Ok(durable)) => {
                tracing::info!("the disk answers again: forming goes on");
                if let Durable::Formed(identity) = &durable {
                    *self.identity.lock() = Some(identity.clone());
                }
                *state = State::Named(Machine::new(me.clone(), self.plan.clone(), durable));
                Ok(())
            }
            // As long as the disk refuses, and when the node stops.
            Some(Err(FormError::Io { .. })) | None => Ok(()),
            Some(Err(error)) => Err(error),
        }
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
                        if let State::Named(machine) = &*state {
                            *state = State::Failed(machine.view().addr);
                        }
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
            State::Nameless(_) | State::Failed(_) => self.nameless_view(),
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
            State::Nameless(_) | State::Failed(_) => self.nameless_view(),
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{OnceLock, mpsc};
    use std::thread;

    use alhambra_storage::vfs::Vfs;
    use alhambra_storage::vfs::faulty::FaultyVfs;
    use alhambra_storage::vfs::mem::MemVfs;
    use futures::poll;

    use super::super::machine::Proposal;
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

    /// One of three nodes, that nobody reaches.
    fn alone(vfs: Arc<dyn Vfs>, net: Arc<Refusing>) -> (Arc<Former>, Plan) {
        let env = Env { net, ..Env::production(vfs) };
        let peers = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(String::from);
        let plan = Plan::new(3, &peers, &peers[2]).unwrap();
        (Former::open(env, PathBuf::from("/node"), plan.clone(), peers[2].clone()).unwrap(), plan)
    }

    /// The initiator asks again and again; the node must not stay away for a disk that refused once.
    #[tokio::test]
    async fn a_promise_that_the_disk_refused_is_given_when_it_answers_again() {
        let disk = FaultyVfs::on_memory(MemVfs::default());
        disk.create_dir_all(&PathBuf::from("/node")).unwrap();
        let net = Arc::new(Refusing { former: OnceLock::new(), release: Mutex::new(None) });
        let (former, plan) = alone(Arc::new(disk.clone()), net);
        let members = (1..).zip(plan.peers().iter().cloned()).collect();
        let proposal = Proposal { cluster: "9m4e2mr0ui3e8a215n4g".into(), members };
        let ask = || wire::PromiseRequest {
            format: FORMAT,
            plan: Some(write_plan(&plan)),
            addr: "127.0.0.1:3".into(),
            proposal: Some(write_proposal(&proposal)),
        };
        let granted = async || {
            let reply = former.answer_promise(ask()).await?;
            Some(reply.answer() == wire::promise_reply::Answer::Granted)
        };
        let mut channels = Channels::new();
        disk.set_broken(Some(io::ErrorKind::Other));
        assert_eq!(granted().await, None);
        former.round(&mut channels).await.unwrap();
        assert_eq!(granted().await, Some(false), "the disk still refuses");
        disk.set_broken(None);
        former.round(&mut channels).await.unwrap();
        assert_eq!(granted().await, Some(true));
        assert_eq!(store::load(&disk, &PathBuf::from("/node")).unwrap(), Durable::Promised(proposal.clone()));
    }

    #[tokio::test]
    async fn a_promise_that_is_being_saved_between_two_probes_does_not_stop_the_node() {
        let (release, held) = mpsc::channel();
        let net = Arc::new(Refusing { former: OnceLock::new(), release: Mutex::new(Some(held)) });
        let (former, _) = alone(Arc::new(MemVfs::default()), net.clone());
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
