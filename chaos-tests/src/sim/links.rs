//! Links between hosts, on which several faults may lie at once: a direction is cut as long as one fault cuts it, messages are held
//! back as long as one fault holds them, and the greatest delay that is wanted counts.

use std::collections::BTreeMap;
use std::time::Duration;

use turmoil::Sim;

use super::setup::NAMES;
use super::wanted::Wanted;

/// What can be done to a link.
trait Wire {
    /// What goes from one host to another is lost from now on, and what is on its way there.
    fn cut(&self, from: usize, to: usize);
    /// It arrives again.
    fn mend(&self, from: usize, to: usize);
    /// Both ways, what is on its way and what is sent waits; nothing is cut after this.
    fn hold(&self, a: usize, b: usize);
    /// Both ways, what waited arrives; nothing is cut after this.
    fn release(&self, a: usize, b: usize);
    /// The most that a message takes.
    fn delay(&self, a: usize, b: usize, most: Duration);
}

impl Wire for Sim<'_> {
    fn cut(&self, from: usize, to: usize) {
        self.partition_oneway(NAMES[from], NAMES[to]);
    }

    fn mend(&self, from: usize, to: usize) {
        self.repair_oneway(NAMES[from], NAMES[to]);
    }

    fn hold(&self, a: usize, b: usize) {
        Sim::hold(self, NAMES[a], NAMES[b]);
    }

    fn release(&self, a: usize, b: usize) {
        Sim::release(self, NAMES[a], NAMES[b]);
    }

    fn delay(&self, a: usize, b: usize, most: Duration) {
        self.set_link_max_message_latency(NAMES[a], NAMES[b], most);
    }
}

/// What lies on one link.
#[derive(Debug, Default)]
struct Link {
    /// Faults that cut it, from the smaller number to the greater one and back.
    cuts: [u32; 2],
    holds: u32,
    delays: Wanted<Duration>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Links(BTreeMap<(usize, usize), Link>);

fn way(from: usize, to: usize) -> usize {
    usize::from(from > to)
}

impl Links {
    fn link(&mut self, a: usize, b: usize) -> &mut Link {
        self.0.entry((a.min(b), a.max(b))).or_default()
    }

    /// A fault cuts the way from one host to another.
    pub fn cut(&mut self, sim: &Sim<'_>, from: usize, to: usize) {
        self.cut_on(sim, from, to);
    }

    /// Its end.
    pub fn mend(&mut self, sim: &Sim<'_>, from: usize, to: usize) {
        self.mend_on(sim, from, to);
    }

    /// A fault holds back what two hosts send each other.
    pub fn hold(&mut self, sim: &Sim<'_>, a: usize, b: usize) {
        self.hold_on(sim, a, b);
    }

    /// Its end.
    pub fn release(&mut self, sim: &Sim<'_>, a: usize, b: usize) {
        self.release_on(sim, a, b);
    }

    /// A fault lets messages between two hosts take so long.
    pub fn slow(&mut self, sim: &Sim<'_>, a: usize, b: usize, most: Duration, usual: Duration) {
        let delays = &mut self.link(a, b).delays;
        delays.begin(most);
        sim.delay(a, b, delays.worst().unwrap_or(usual));
    }

    /// Its end.
    pub fn fast(&mut self, sim: &Sim<'_>, a: usize, b: usize, most: Duration, usual: Duration) {
        let delays = &mut self.link(a, b).delays;
        delays.end(most);
        sim.delay(a, b, delays.worst().unwrap_or(usual));
    }

    fn cut_on(&mut self, wire: &impl Wire, from: usize, to: usize) {
        let cuts = &mut self.link(from, to).cuts[way(from, to)];
        *cuts += 1;
        if *cuts == 1 {
            wire.cut(from, to);
        }
    }

    fn mend_on(&mut self, wire: &impl Wire, from: usize, to: usize) {
        let link = self.link(from, to);
        link.cuts[way(from, to)] -= 1;
        if link.cuts[way(from, to)] > 0 {
            return;
        }
        if link.holds == 0 {
            wire.mend(from, to);
            return;
        }
        // What is sent from now on waits like everything else on this link.
        let back = link.cuts[way(to, from)] > 0;
        wire.hold(from, to);
        if back {
            wire.cut(to, from);
        }
    }

    fn hold_on(&mut self, wire: &impl Wire, a: usize, b: usize) {
        let link = self.link(a, b);
        link.holds += 1;
        if link.holds == 1 {
            let cuts = link.cuts;
            wire.hold(a, b);
            Self::again(wire, cuts, a, b);
        }
    }

    fn release_on(&mut self, wire: &impl Wire, a: usize, b: usize) {
        let link = self.link(a, b);
        link.holds -= 1;
        if link.holds == 0 {
            let cuts = link.cuts;
            wire.release(a, b);
            Self::again(wire, cuts, a, b);
        }
    }

    /// Cuts again what was cut.
    fn again(wire: &impl Wire, cuts: [u32; 2], a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if cuts[way(from, to)] > 0 {
                wire.cut(from, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A link as the simulated network has it: the state of each way.
    #[derive(Default)]
    struct Model(RefCell<[char; 2]>);

    impl Wire for Model {
        fn cut(&self, from: usize, to: usize) {
            self.0.borrow_mut()[way(from, to)] = 'x';
        }

        fn mend(&self, from: usize, to: usize) {
            self.0.borrow_mut()[way(from, to)] = ' ';
        }

        fn hold(&self, _: usize, _: usize) {
            *self.0.borrow_mut() = ['h', 'h'];
        }

        fn release(&self, _: usize, _: usize) {
            *self.0.borrow_mut() = [' ', ' '];
        }

        fn delay(&self, _: usize, _: usize, _: Duration) {}
    }

    #[test]
    fn a_link_is_whole_only_when_the_last_fault_has_ended() {
        let (mut links, wire) = (Links::default(), Model::default());
        let is = |there: [u8; 2], wire: &Model| assert_eq!(*wire.0.borrow(), there.map(char::from));
        links.cut_on(&wire, 0, 1);
        links.cut_on(&wire, 1, 0);
        links.cut_on(&wire, 0, 1);
        links.mend_on(&wire, 0, 1);
        links.mend_on(&wire, 1, 0);
        is(*b"x ", &wire);
        links.hold_on(&wire, 1, 0);
        is(*b"xh", &wire);
        links.mend_on(&wire, 0, 1);
        is(*b"hh", &wire);
        links.cut_on(&wire, 1, 0);
        links.hold_on(&wire, 0, 1);
        links.release_on(&wire, 0, 1);
        is(*b"hx", &wire);
        links.release_on(&wire, 0, 1);
        is(*b" x", &wire);
        links.mend_on(&wire, 1, 0);
        is(*b"  ", &wire);
    }
}
