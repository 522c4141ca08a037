//! Links that are cut.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

fn apart(world: &mut World<'_>, links: Vec<(usize, usize)>, what: String) -> Incident {
    for (a, b) in &links {
        world.cut(*a, *b);
    }
    let after = world.between(300, 6_000);
    let again = format!("end of: {what}");
    Incident::until(what, after, move |world| {
        for (a, b) in links {
            world.mend(a, b);
        }
        again
    })
}

/// One node cannot reach any other, and the reverse.
pub struct Partition;

impl Fault for Partition {
    fn name(&self) -> &'static str {
        "partition"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let leads = world.leader() == Some(node);
        let links = world.others(node).into_iter().map(|other| (node, other)).collect();
        let what = format!("partition of {}{}", NAMES[node], if leads { " (leader)" } else { "" });
        Some(Incident { cut_off: (!leads).then_some(node), ..apart(world, links, what) })
    }
}

/// Two nodes cannot reach each other.
pub struct OneLink;

impl Fault for OneLink {
    fn name(&self) -> &'static str {
        "one-link"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let (node, other) = world.link()?;
        Some(apart(world, vec![(node, other)], format!("link {} - {} cut", NAMES[node], NAMES[other])))
    }
}

/// The cluster falls into two parts, with the leader in the smaller one.
pub struct Halves;

impl Fault for Halves {
    fn name(&self) -> &'static str {
        "halves"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 3
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let leader = world.leader()?;
        let others = world.others(leader);
        let friend = others[world.rng.below(others.len() as u64) as usize];
        let far: Vec<usize> = others.into_iter().filter(|other| *other != friend).collect();
        let links = [leader, friend].into_iter().flat_map(|near| far.iter().map(move |other| (near, *other))).collect();
        let what = format!("{} (leader) and {} are cut off from the others", NAMES[leader], NAMES[friend]);
        Some(apart(world, links, what))
    }
}
