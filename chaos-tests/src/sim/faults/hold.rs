//! Messages that are held back and then all come at once: much later than others that were sent after them on other links.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct Hold;

impl Fault for Hold {
    fn name(&self) -> &'static str {
        "hold"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let (node, other) = world.link()?;
        world.hold_link(node, other);
        let what = format!("messages between {} and {} are held back", NAMES[node], NAMES[other]);
        let after = world.between(200, 4_000);
        Some(Incident::until(what, after, move |world| {
            world.release_link(node, other);
            format!("all messages between {} and {} arrive", NAMES[node], NAMES[other])
        }))
    }
}
