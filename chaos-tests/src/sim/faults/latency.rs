//! A link that becomes slow.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct Latency;

impl Fault for Latency {
    fn name(&self) -> &'static str {
        "latency"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let (others, slow) = (world.others(node), world.between(20, 400));
        for other in &others {
            world.slow_link(node, *other, slow);
        }
        let after = world.between(1_000, 8_000);
        Some(Incident::until(format!("links of {} take up to {slow:?}", NAMES[node]), after, move |world| {
            for other in others {
                world.fast_link(node, other, slow);
            }
            format!("links of {} are fast again", NAMES[node])
        }))
    }
}
