//! The rules of forming, as a value: events go in, effects come out, in the order in which they must be carried out.
//!
//! A node that crashes loses everything but [`Durable`], and begins again from there.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Identity, Plan};

/// Ticks after which a node that has not been heard of again does not count.
const FRESH_TICKS: u64 = 12;
/// Ticks that an initiator waits for listed nodes that it has not heard of yet.
const SETTLE_TICKS: u64 = 8;

/// A cluster to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Its name.
    pub cluster: String,
    /// Exactly its members: id and listed address. The initiator has the lowest address.
    pub members: BTreeMap<u64, String>,
}

impl Proposal {
    /// The member that proposes it.
    pub fn initiator(&self) -> Option<u64> {
        self.members.iter().min_by_key(|(_, addr)| addr.as_str()).map(|(id, _)| *id)
    }

    fn id_of(&self, addr: &str) -> Option<u64> {
        self.members.iter().find(|(_, member)| *member == addr).map(|(id, _)| *id)
    }

    fn identity(&self, addr: &str) -> Option<Identity> {
        Some(Identity {
            cluster: self.cluster.clone(),
            node_id: self.id_of(addr)?,
            members: self.members.clone(),
            initiator: self.initiator()?,
        })
    }
}

/// What a node never forgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Durable {
    /// In no cluster, nothing promised.
    Free,
    /// This node proposed it and collects promises. It refuses others meanwhile.
    Collecting(Proposal),
    /// Promised; only an operator takes that back.
    Promised(Proposal),
    /// A member, for ever.
    Formed(Identity),
}

/// What a node shows to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its listed address.
    pub addr: String,
    /// What it was told.
    pub plan: Plan,
    /// How far it is.
    pub state: ViewState,
    /// The free node that it thinks should initiate; only free nodes say one.
    pub yields_to: Option<String>,
}

/// How far a node is, as it shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewState {
    /// See [`Durable::Free`].
    Free,
    /// See [`Durable::Collecting`].
    Collecting(Proposal),
    /// See [`Durable::Promised`].
    Promised(Proposal),
    /// See [`Durable::Formed`].
    Formed(Proposal),
}

/// What a node answers to a request for its promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Durable and exclusive.
    Granted,
    /// Not now: the node collects promises itself.
    Busy,
    /// Promised to this other cluster.
    Taken(String),
    /// Member of this cluster, or has seen it.
    Formed(String),
    /// The nodes were told different things.
    DifferentPlan,
    /// This node has another address.
    NotMe,
}

/// What has to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable before anything that follows.
    Save(Durable),
    /// Ask this node how far it is.
    Probe(String),
    /// Ask this node for its promise.
    Ask(String, Proposal),
}

/// What a node waits for, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Status {
    /// It is a member.
    #[error("member of cluster {cluster}")]
    Formed {
        /// Of which.
        cluster: String,
    },
    /// Not enough nodes have been heard of.
    #[error("waiting for peers: {found} of {expect} found; missing {missing}")]
    Missing {
        /// Free nodes, this one included.
        found: usize,
        /// Needed.
        expect: usize,
        /// Addresses not heard of.
        missing: String,
    },
    /// A peer was started with other values.
    #[error("{addr} was started with other --peers or --bootstrap-expect than this node; make them equal")]
    DifferentPlan {
        /// Which.
        addr: String,
    },
    /// Another node initiates.
    #[error("waiting for {addr} to form the cluster")]
    Yielding {
        /// Which.
        addr: String,
    },
    /// Collects promises.
    #[error("forming cluster {cluster}: waiting for the promise of {addr}")]
    Collecting {
        /// Which.
        cluster: String,
        /// Who is asked.
        addr: String,
    },
    /// Has promised.
    #[error("promised to cluster {cluster}: waiting for {initiator} to form it")]
    Promised {
        /// Which.
        cluster: String,
        /// Who forms it.
        initiator: String,
    },
    /// Has promised to a cluster that was given up or lost against another.
    #[error(
        "promised to cluster {promised}, but {addr} is in cluster {formed}; if {promised} was never formed, stop this node, \
         run `{} DIR` and add the node to {formed}",
        super::RELEASE_COMMAND
    )]
    Stray {
        /// To which.
        promised: String,
        /// Which exists.
        formed: String,
        /// Who said so.
        addr: String,
    },
    /// The cluster exists without this node.
    #[error(
        "cluster {cluster} exists already ({addr} is in it): this empty node waits to be added to it with a new id"
    )]
    WaitingToJoin {
        /// Which.
        cluster: String,
        /// Who said so.
        addr: String,
    },
}

#[derive(Clone, Debug)]
struct Heard {
    view: View,
    tick: u64,
}

/// One node that forms a cluster.
#[derive(Clone, Debug)]
pub struct Machine {
    me: String,
    plan: Plan,
    durable: Durable,
    tick: u64,
    heard: BTreeMap<String, Heard>,
    granted: BTreeSet<String>,
    /// A cluster that this node is not in, and who said so.
    elsewhere: Option<(String, String)>,
}

impl Machine {
    /// A node as it starts. `me` is its address in the plan.
    pub fn new(me: String, plan: Plan, durable: Durable) -> Self {
        Self { me, plan, durable, tick: 0, heard: BTreeMap::new(), granted: BTreeSet::new(), elsewhere: None }
    }

    /// What must survive a crash.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// What other nodes are shown.
    pub fn view(&self) -> View {
        let state = match &self.durable {
            Durable::Free => ViewState::Free,
            Durable::Collecting(proposal) => ViewState::Collecting(proposal.clone()),
            Durable::Promised(proposal) => ViewState::Promised(proposal.clone()),
            Durable::Formed(identity) => {
                ViewState::Formed(Proposal { cluster: identity.cluster.clone(), members: identity.members.clone() })
            }
        };
        let yields_to = match &self.durable {
            Durable::Free if self.elsewhere.is_none() => {
                Some(self.free().into_iter().next().unwrap_or(self.me.clone()))
            }
            Durable::Free | Durable::Collecting(_) | Durable::Promised(_) | Durable::Formed(_) => None,
        };
        View { addr: self.me.clone(), plan: self.plan.clone(), state, yields_to }
    }

    /// What this node waits for.
    pub fn status(&self) -> Status {
        let different = self.fresh().find(|view| view.plan != self.plan);
        match &self.durable {
            Durable::Formed(identity) => Status::Formed { cluster: identity.cluster.clone() },
            Durable::Promised(proposal) => {
                let promised = proposal.cluster.clone();
                match &self.elsewhere {
                    Some((formed, addr)) => Status::Stray { promised, formed: formed.clone(), addr: addr.clone() },
                    None => {
                        let initiator = proposal.initiator().and_then(|id| proposal.members.get(&id)).cloned();
                        Status::Promised { cluster: promised, initiator: initiator.unwrap_or_default() }
                    }
                }
            }
            Durable::Collecting(proposal) => {
                let addr = self.next_to_ask(proposal).unwrap_or_else(|| self.me.clone());
                Status::Collecting { cluster: proposal.cluster.clone(), addr }
            }
            Durable::Free => {
                if let Some((cluster, addr)) = &self.elsewhere {
                    return Status::WaitingToJoin { cluster: cluster.clone(), addr: addr.clone() };
                }
                if let Some(view) = different {
                    return Status::DifferentPlan { addr: view.addr.clone() };
                }
                let free = self.free();
                if let Some(busy) = self.fresh().find(|view| view.state != ViewState::Free) {
                    return Status::Yielding { addr: busy.addr.clone() };
                }
                if free.len() < self.plan.expect() {
                    let missing: Vec<&str> =
                        self.plan.peers().iter().filter(|addr| !free.contains(*addr)).map(String::as_str).collect();
                    let (found, expect) = (free.len(), self.plan.expect());
                    return Status::Missing { found, expect, missing: missing.join(", ") };
                }
                Status::Yielding { addr: free.into_iter().next().unwrap_or_default() }
            }
        }
    }

    /// Time passes. `fresh_name` makes the name of a new cluster.
    pub fn tick(&mut self, fresh_name: impl FnOnce() -> String) -> Vec<Effect> {
        self.tick += 1;
        let mut effects = Vec::new();
        if self.durable == Durable::Free
            && let Some(members) = self.may_initiate()
        {
            let members = members.into_iter().zip(1_u64..).map(|(addr, id)| (id, addr)).collect();
            let proposal = Proposal { cluster: fresh_name(), members };
            effects.extend(self.become_(Durable::Collecting(proposal)));
        }
        effects.extend(self.ask_next());
        if !matches!(self.durable, Durable::Formed(_)) {
            let others = self.plan.peers().iter().filter(|addr| **addr != self.me);
            effects.extend(others.map(|addr| Effect::Probe(addr.clone())));
        }
        effects
    }

    /// Another node asks how far this one is, and shows itself.
    pub fn on_probe(&mut self, asker: Option<View>) -> View {
        if let Some(view) = asker {
            self.hear(view);
        }
        self.view()
    }

    /// A node has answered a probe.
    pub fn on_view(&mut self, view: View) -> Vec<Effect> {
        if let ViewState::Formed(formed) = &view.state {
            match &self.durable {
                Durable::Promised(promised) if promised.cluster == formed.cluster => {
                    // The promise says who the members are; another list under the same name would be a lie.
                    let identity = (promised == formed).then(|| promised.identity(&self.me)).flatten();
                    return identity.map(|identity| self.become_(Durable::Formed(identity))).unwrap_or_default();
                }
                Durable::Formed(_) => return Vec::new(),
                Durable::Collecting(_) => {
                    self.elsewhere = Some((formed.cluster.clone(), view.addr.clone()));
                    return self.become_(Durable::Free);
                }
                Durable::Free | Durable::Promised(_) => {
                    self.elsewhere = Some((formed.cluster.clone(), view.addr.clone()));
                }
            }
        }
        self.hear(view);
        Vec::new()
    }

    /// A node asks for this node's promise. The effects come before the answer.
    pub fn on_ask(&mut self, addr: &str, plan: &Plan, proposal: &Proposal) -> (Vec<Effect>, Answer) {
        if addr != self.me || proposal.id_of(&self.me).is_none() {
            return (Vec::new(), Answer::NotMe);
        }
        if *plan != self.plan || proposal.members.len() != self.plan.expect() {
            return (Vec::new(), Answer::DifferentPlan);
        }
        match &self.durable {
            Durable::Formed(identity) => (Vec::new(), Answer::Formed(identity.cluster.clone())),
            Durable::Promised(promised) if promised == proposal => (Vec::new(), Answer::Granted),
            Durable::Promised(promised) => (Vec::new(), Answer::Taken(promised.cluster.clone())),
            Durable::Collecting(_) => (Vec::new(), Answer::Busy),
            Durable::Free => match &self.elsewhere {
                Some((cluster, _)) => (Vec::new(), Answer::Formed(cluster.clone())),
                None => (self.become_(Durable::Promised(proposal.clone())), Answer::Granted),
            },
        }
    }

    /// A node has answered the request for its promise to `cluster`.
    pub fn on_answer(&mut self, from: &str, cluster: &str, answer: &Answer) -> Vec<Effect> {
        match &self.durable {
            Durable::Collecting(proposal) if proposal.cluster == cluster => {}
            // Late: that proposal has been given up, or has succeeded.
            Durable::Free | Durable::Collecting(_) | Durable::Promised(_) | Durable::Formed(_) => return Vec::new(),
        }
        match answer {
            Answer::Granted => {
                self.granted.insert(from.to_owned());
                self.ask_next()
            }
            // Neither is for ever: asked again at the next tick.
            Answer::Busy | Answer::DifferentPlan | Answer::NotMe => Vec::new(),
            // This node will never promise, so the proposal can never succeed.
            Answer::Taken(_) => self.become_(Durable::Free),
            Answer::Formed(formed) => {
                self.elsewhere = Some((formed.clone(), from.to_owned()));
                self.become_(Durable::Free)
            }
        }
    }

    fn become_(&mut self, durable: Durable) -> Vec<Effect> {
        self.granted.clear();
        self.durable = durable.clone();
        vec![Effect::Save(durable)]
    }

    fn hear(&mut self, view: View) {
        if view.addr != self.me && self.plan.peers().contains(&view.addr) {
            self.heard.insert(view.addr.clone(), Heard { view, tick: self.tick });
        }
    }

    fn fresh(&self) -> impl Iterator<Item = &View> {
        self.heard.values().filter(|heard| self.tick - heard.tick <= FRESH_TICKS).map(|heard| &heard.view)
    }

    /// This node and the free nodes that were heard of lately, sorted. Called while this node is free.
    fn free(&self) -> BTreeSet<String> {
        let others = self.fresh().filter(|view| view.state == ViewState::Free && view.plan == self.plan);
        others.map(|view| view.addr.clone()).chain([self.me.clone()]).collect()
    }

    /// The members to propose, when it is for this node to propose and nothing stands in the way.
    fn may_initiate(&self) -> Option<BTreeSet<String>> {
        let in_progress = self.fresh().any(|view| view.state != ViewState::Free || view.plan != self.plan);
        if in_progress || self.elsewhere.is_some() {
            return None;
        }
        let free = self.free();
        let settled = free.len() == self.plan.peers().len() || self.tick > SETTLE_TICKS;
        if free.len() < self.plan.expect() || !settled || free.first() != Some(&self.me) {
            return None;
        }
        // Proposals that compete then meet early, at the highest address, before promises are given in vain.
        let members: BTreeSet<String> =
            free.into_iter().rev().take(self.plan.expect() - 1).chain([self.me.clone()]).collect();
        let yields = |addr: &String| {
            *addr == self.me || self.fresh().any(|view| view.addr == *addr && view.yields_to.as_ref() == Some(&self.me))
        };
        members.iter().all(yields).then_some(members)
    }

    /// The highest member that has not promised yet; none when only this node is left.
    fn next_to_ask(&self, proposal: &Proposal) -> Option<String> {
        let open = proposal.members.values().filter(|addr| **addr != self.me && !self.granted.contains(*addr));
        open.max().cloned()
    }

    /// Asks for the next promise, or, when all have been given, forms the cluster.
    fn ask_next(&mut self) -> Vec<Effect> {
        let Durable::Collecting(proposal) = &self.durable else { return Vec::new() };
        match self.next_to_ask(proposal) {
            Some(addr) => vec![Effect::Ask(addr, proposal.clone())],
            None => {
                let identity = proposal.identity(&self.me).expect("the initiator is a member of its own proposal");
                self.become_(Durable::Formed(identity))
            }
        }
    }
}
