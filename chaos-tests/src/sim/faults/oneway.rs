//! A link on which messages pass in one direction only.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// One node is heard by no other, or hears no other.
pub struct OneWay;

impl Fault for OneWay {
    fn name(&self) -> &'static str {
        "one-way"
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.any()?;
        let (others, deaf) = (world.others(node), world.rng.below(2) == 0);
        for other in &others {
            if deaf { world.cut_oneway(*other, node) } else { world.cut_oneway(node, *other) }
        }
        let what = format!("{} {}", NAMES[node], if deaf { "hears nobody" } else { "is heard by nobody" });
        let after = world.between(500, 6_000);
        Some(Incident::until(what, after, move |world| {
            for other in others {
                if deaf { world.mend_oneway(other, node) } else { world.mend_oneway(node, other) }
            }
            format!("{} is reached and heard again", NAMES[node])
        }))
    }
}
