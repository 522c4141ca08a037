//! Writes that land beside their place. Those of derived files only: on the log's tail, bytes that were reported as durable and
//! are not there cannot be told from a tail that a power loss has cut, so one copy of the quorum would be gone by itself.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::{Trouble, World};
use super::{Fault, Incident};

/// See the module.
pub struct Misdirected;

impl Fault for Misdirected {
    fn name(&self) -> &'static str {
        "misdirected"
    }

    fn rots(&self) -> bool {
        true
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.victim()?;
        let trouble = Trouble::Misdirected(50);
        world.hosts[node].begin(trouble);
        let after = world.between(500, 5_000);
        let what = format!("disk of {}: 50 of 1000 writes to derived files go astray", NAMES[node]);
        Some(Incident::until(what, after, move |world| {
            world.hosts[node].end(trouble);
            format!("disk of {} writes where it should again", NAMES[node])
        }))
    }
}
