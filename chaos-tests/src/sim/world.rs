//! The hosts, and what can be done to them. Every call says what it did, so that a fault is a few lines.

use std::sync::Arc;
use std::time::Duration;

use turmoil::Sim;

use super::disk::SimDisk;
use super::env::{SimClock, SimExecutor, SimRng};
use super::setup::{NAMES, Setup};
use super::shared::Shared;

/// One machine.
pub struct Host {
    /// Its disk.
    pub disk: SimDisk,
    /// Its clock.
    pub clock: Arc<SimClock>,
    /// What its disk work waits for.
    pub executor: Arc<SimExecutor>,
    /// Whether it runs.
    pub up: bool,
}

/// See the module.
pub struct World<'a> {
    /// Network and hosts.
    pub sim: Sim<'a>,
    /// The machines.
    pub hosts: Vec<Host>,
    /// Decides.
    pub rng: SimRng,
    /// What clients and nodes share with the driver.
    pub shared: Shared,
    /// What the seed decided before.
    pub setup: Setup,
}

impl World<'_> {
    /// A random time.
    pub fn between(&self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.rng.below(to_ms - from_ms))
    }

    /// A random machine that runs.
    pub fn any(&self) -> Option<usize> {
        self.pick(&|_| true)
    }

    /// A random machine whose disk may rot.
    pub fn victim(&self) -> Option<usize> {
        self.pick(&|i| self.setup.victims.contains(&i))
    }

    /// A random machine that runs and that fits.
    pub fn pick(&self, fits: &dyn Fn(usize) -> bool) -> Option<usize> {
        let outside = &self.shared.borrow().outside;
        let free = |i: &usize| self.hosts[*i].up && !outside.contains(i) && fits(*i);
        let free: Vec<usize> = (0..self.hosts.len()).filter(free).collect();
        if free.is_empty() { None } else { Some(free[self.rng.below(free.len() as u64) as usize]) }
    }

    /// The machine that leads the database that clients write to.
    pub fn leader(&self) -> Option<usize> {
        super::watch::leader_with_term(self).map(|(node, _)| node)
    }

    /// A random machine that runs, and any other one.
    pub fn link(&self) -> Option<(usize, usize)> {
        let node = self.any()?;
        let others = self.others(node);
        Some((node, others[self.rng.below(others.len() as u64) as usize]))
    }

    /// Every other machine.
    pub fn others(&self, node: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|other| *other != node).collect()
    }

    /// The machine loses power.
    pub fn crash(&mut self, node: usize) {
        self.shared.borrow_mut().running.remove(&node);
        self.sim.crash(NAMES[node]);
        self.hosts[node].disk.crash(self.rng.below(2) == 0);
        self.hosts[node].up = false;
    }

    /// And comes up again.
    pub fn start(&mut self, node: usize) {
        if !self.hosts[node].up {
            self.sim.bounce(NAMES[node]);
            self.hosts[node].up = true;
        }
    }

    /// Nothing passes between two machines.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.sim.partition(NAMES[a], NAMES[b]);
    }

    /// Nothing passes from one machine to another; what comes back does.
    pub fn cut_oneway(&mut self, from: usize, to: usize) {
        self.sim.partition_oneway(NAMES[from], NAMES[to]);
    }

    /// Everything passes between them.
    pub fn mend(&mut self, a: usize, b: usize) {
        self.sim.repair(NAMES[a], NAMES[b]);
    }

    /// Nothing is lost, everything waits.
    pub fn hold_link(&mut self, a: usize, b: usize) {
        self.sim.hold(NAMES[a], NAMES[b]);
    }

    /// What waited passes, all at once.
    pub fn release_link(&mut self, a: usize, b: usize) {
        self.sim.release(NAMES[a], NAMES[b]);
    }
}
