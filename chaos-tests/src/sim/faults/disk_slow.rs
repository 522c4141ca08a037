//! A disk that becomes slow: everything that a node does there takes its time.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::{Trouble, World};
use super::{Fault, Incident};

/// See the module.
pub struct Slow;

impl Fault for Slow {
    fn name(&self) -> &'static str {
        "slow-disk"
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let delay = world.between(2, 300);
        let trouble = Trouble::Slow(delay);
        world.hosts[node].begin(trouble);
        let after = world.between(1_000, 8_000);
        Some(Incident::until(format!("disk of {} takes {delay:?} for everything", NAMES[node]), after, move |world| {
            world.hosts[node].end(trouble);
            format!("disk of {} is fast again", NAMES[node])
        }))
    }
}
