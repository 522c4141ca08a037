//! A disk that fills up.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::{Trouble, World};
use super::{Fault, Incident};

/// See the module.
pub struct Full;

impl Fault for Full {
    fn name(&self) -> &'static str {
        "full-disk"
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let files = world.hosts[node].disk.files();
        let room = world.rng.below(64 << 10);
        let trouble = Trouble::Capacity(files.size_bytes() + room);
        world.hosts[node].begin(trouble);
        let after = world.between(500, 8_000);
        Some(Incident::until(format!("disk of {} has {room} bytes left", NAMES[node]), after, move |world| {
            world.hosts[node].end(trouble);
            format!("disk of {} has room again", NAMES[node])
        }))
    }
}
