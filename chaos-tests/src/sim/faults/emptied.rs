//! Somebody starts a machine with an empty disk under its old name. It must not vote, found another cluster, or serve: it waits
//! until an operator adds it.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct Emptied;

impl Fault for Emptied {
    fn name(&self) -> &'static str {
        "emptied-disk"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        // Once per life, and not before there is a cluster: emptied before, it is a new machine like any other.
        let formed = world.shared.borrow().history.writes.len() > 20;
        if !formed || !world.shared.borrow().outside.is_empty() {
            return None;
        }
        let node = world.victim()?;
        // What is left must be enough, and nothing else may be wrong with it.
        world.setup.victims = vec![node];
        world.crash(node);
        world.hosts[node].disk.replace();
        world.shared.borrow_mut().outside.push(node);
        let after = world.between(100, 3_000);
        Some(Incident::until(format!("{} loses its disk", NAMES[node]), after, move |world| {
            world.start(node);
            format!("{} starts with an empty disk", NAMES[node])
        }))
    }
}
