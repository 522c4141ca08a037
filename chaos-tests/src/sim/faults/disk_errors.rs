//! A disk on which writes and syncs fail now and then.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct Errors;

impl Fault for Errors {
    fn name(&self) -> &'static str {
        "disk-errors"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.victim()?;
        let of_thousand = [1, 20, 300][world.rng.below(3) as usize];
        world.hosts[node].disk.set_failing(of_thousand);
        let after = world.between(500, 8_000);
        let what = format!("disk of {}: {of_thousand} of 1000 writes fail", NAMES[node]);
        Some(Incident::until(what, after, move |world| {
            world.hosts[node].disk.set_failing(0);
            format!("disk of {} works again", NAMES[node])
        }))
    }
}
