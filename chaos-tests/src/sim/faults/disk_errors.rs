//! A disk on which writes and syncs fail now and then.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::{Trouble, World};
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
        let trouble = Trouble::Failing(of_thousand);
        world.hosts[node].begin(trouble);
        let after = world.between(500, 8_000);
        let what = format!("disk of {}: {of_thousand} of 1000 writes fail", NAMES[node]);
        Some(Incident::until(what, after, move |world| {
            world.hosts[node].end(trouble);
            format!("disk of {} fails no more", NAMES[node])
        }))
    }
}
