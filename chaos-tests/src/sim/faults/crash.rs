//! Machines that lose power: what they had not synced is gone, or torn.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

fn down(world: &mut World<'_>, nodes: &[usize], what: String, after: &[Duration]) -> Incident {
    let mut incident = Incident::done(what);
    for (node, after) in nodes.iter().zip(after) {
        let node = *node;
        world.crash(node);
        let start = move |world: &mut World<'_>| {
            world.start(node);
            format!("{} starts", NAMES[node])
        };
        incident.heals.push((*after, Box::new(start)));
    }
    incident
}

/// The leader of the database that clients write to.
pub struct CrashLeader;

impl Fault for CrashLeader {
    fn name(&self) -> &'static str {
        "crash-leader"
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let leader = world.leader()?;
        let node = world.pick(&|i| i == leader)?;
        let after = world.between(300, 5_000);
        Some(down(world, &[node], format!("crash of {} (leader)", NAMES[node]), &[after]))
    }
}

/// Any machine.
pub struct CrashAny;

impl Fault for CrashAny {
    fn name(&self) -> &'static str {
        "crash"
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let after = world.between(300, 5_000);
        Some(down(world, &[node], format!("crash of {}", NAMES[node]), &[after]))
    }
}

/// All machines at once.
pub struct PowerLoss;

impl Fault for PowerLoss {
    fn name(&self) -> &'static str {
        "power-loss"
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let nodes: Vec<usize> = (0..world.hosts.len()).filter(|i| world.hosts[*i].up).collect();
        let after: Vec<Duration> = nodes.iter().map(|_| world.between(100, 1_100)).collect();
        Some(down(world, &nodes, "power loss on all machines".into(), &after))
    }
}

/// One machine is away for so long that the others forget what it misses.
pub struct LongAbsence;

impl Fault for LongAbsence {
    fn name(&self) -> &'static str {
        "long-absence"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let after = world.between(15_000, 40_000);
        Some(down(world, &[node], format!("{} is away for {after:?}", NAMES[node]), &[after]))
    }
}

/// A machine that is down for a moment only.
pub struct Restart;

impl Fault for Restart {
    fn name(&self) -> &'static str {
        "restart"
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let after = world.between(1, 50);
        Some(down(world, &[node], format!("{} restarts", NAMES[node]), &[after]))
    }
}
