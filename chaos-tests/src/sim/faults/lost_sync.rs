//! A sync that fails and loses what it should have made durable, whatever later ones answer.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct LostSync;

impl Fault for LostSync {
    fn name(&self) -> &'static str {
        "lost-sync"
    }

    fn rots(&self) -> bool {
        true
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.victim()?;
        world.hosts[node].disk.files().lose_next_sync();
        Some(Incident::done(format!("the next sync of {} fails and loses its bytes", NAMES[node])))
    }
}
