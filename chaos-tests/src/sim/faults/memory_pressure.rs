//! Something else in the process takes memory: little of the budget is left for databases, so that they write out what they have in
//! memory again and again, leave the outcomes of requests to their checkpoints, and read both back. No answer may change by that.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct MemoryPressure;

impl Fault for MemoryPressure {
    fn name(&self) -> &'static str {
        "memory-pressure"
    }

    fn own_draw(&self) -> Option<(&'static str, u64)> {
        Some(("memory that others take", 3))
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        // All of the share, so that each write is one too many, or so much that databases are only asked now and then.
        let (of_share, after) = (world.rng.below(2), world.between(1_000, 10_000));
        let memory = world.shared.borrow().running.get(&node)?.handle.groups().memory().clone();
        let most = if of_share == 0 { memory.held_bytes_max() } else { memory.held_bytes_max() / 4 * 3 };
        // Together with what databases hold, and with what others have taken already: the budget stays the bound of all.
        let bytes = most.saturating_sub(memory.held_bytes());
        if bytes == 0 {
            return None;
        }
        let taken = memory.take(bytes);
        let what = format!("others take {} MiB of the memory of {}", bytes >> 20, NAMES[node]);
        Some(Incident::until(what, after, move |_| {
            drop(taken);
            format!("what others took of the memory of {} is free", NAMES[node])
        }))
    }
}
