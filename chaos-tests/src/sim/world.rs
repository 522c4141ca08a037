//! The hosts, and what can be done to them. Every call says what it did, so that a fault is a few lines.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use turmoil::Sim;

use super::disk::SimDisk;
use super::env::{SimClock, SimExecutor, SimRng};
use super::links::Links;
use super::setup::{NAMES, Setup};
use super::shared::Shared;
use super::wanted::Wanted;

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
    /// What is wrong with its disk.
    pub troubles: Troubles,
}

/// What faults want of a disk.
#[derive(Debug, Default)]
pub struct Troubles {
    /// Of a thousand writes and syncs so many fail.
    failing: Wanted<u64>,
    /// Of a thousand writes to derived files so many go astray.
    misdirected: Wanted<u64>,
    /// Everything takes so long.
    slow: Wanted<Duration>,
    /// No more bytes than these.
    capacity: Wanted<Reverse<u64>>,
}

/// Something wrong with a disk.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// Of a thousand writes and syncs so many fail.
    Failing(u64),
    /// Of a thousand writes to derived files so many go astray.
    Misdirected(u64),
    /// Everything takes so long.
    Slow(Duration),
    /// No more bytes than these.
    Capacity(u64),
}

impl Host {
    /// A fault begins on this disk; others that last go on.
    pub fn begin(&mut self, trouble: Trouble) {
        let troubles = &mut self.troubles;
        match trouble {
            Trouble::Failing(of_thousand) => troubles.failing.begin(of_thousand),
            Trouble::Misdirected(of_thousand) => troubles.misdirected.begin(of_thousand),
            Trouble::Slow(delay) => troubles.slow.begin(delay),
            Trouble::Capacity(bytes) => troubles.capacity.begin(Reverse(bytes)),
        }
        self.suffer();
    }

    /// Its end.
    pub fn end(&mut self, trouble: Trouble) {
        let troubles = &mut self.troubles;
        match trouble {
            Trouble::Failing(of_thousand) => troubles.failing.end(of_thousand),
            Trouble::Misdirected(of_thousand) => troubles.misdirected.end(of_thousand),
            Trouble::Slow(delay) => troubles.slow.end(delay),
            Trouble::Capacity(bytes) => troubles.capacity.end(Reverse(bytes)),
        }
        self.suffer();
    }

    fn suffer(&self) {
        let Troubles { failing, misdirected, slow, capacity } = &self.troubles;
        self.disk.set_failing(failing.worst().unwrap_or(0));
        self.disk.set_misdirected(misdirected.worst().unwrap_or(0));
        self.executor.slow_down(slow.worst().unwrap_or(Duration::ZERO));
        self.disk.files().set_capacity(capacity.worst().map(|Reverse(bytes)| bytes));
    }
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
    /// What lies on the links.
    pub links: Links,
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
        self.cut_oneway(a, b);
        self.cut_oneway(b, a);
    }

    /// The end of [`Self::cut`]; what others have cut stays so.
    pub fn mend(&mut self, a: usize, b: usize) {
        self.mend_oneway(a, b);
        self.mend_oneway(b, a);
    }

    /// Nothing passes from one machine to another; what comes back does.
    pub fn cut_oneway(&mut self, from: usize, to: usize) {
        self.links.cut(&self.sim, from, to);
    }

    /// The end of [`Self::cut_oneway`].
    pub fn mend_oneway(&mut self, from: usize, to: usize) {
        self.links.mend(&self.sim, from, to);
    }

    /// Nothing is lost, everything waits.
    pub fn hold_link(&mut self, a: usize, b: usize) {
        self.links.hold(&self.sim, a, b);
    }

    /// What waited passes, all at once.
    pub fn release_link(&mut self, a: usize, b: usize) {
        self.links.release(&self.sim, a, b);
    }

    /// Messages between two machines take up to so long.
    pub fn slow_link(&mut self, a: usize, b: usize, most: Duration) {
        self.links.slow(&self.sim, a, b, most, self.setup.latency);
    }

    /// The end of [`Self::slow_link`].
    pub fn fast_link(&mut self, a: usize, b: usize, most: Duration) {
        self.links.fast(&self.sim, a, b, most, self.setup.latency);
    }
}
