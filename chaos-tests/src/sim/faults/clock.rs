//! Wall clocks that are wrong. Nothing that is promised may depend on them.

use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// The clock jumps, up to two minutes to either side, and stays there.
pub struct Jump;

impl Fault for Jump {
    fn name(&self) -> &'static str {
        "clock-jump"
    }

    fn inject(&self, world: &mut World<'_>, now: Duration) -> Option<Incident> {
        let node = world.any()?;
        let ms = world.rng.below(240_000) as i64 - 120_000;
        world.hosts[node].clock.jump(now, ms);
        Some(Incident::done(format!("clock of {} jumps by {ms} ms", NAMES[node])))
    }
}

/// The clock runs up to a fifth too fast or too slow for a while.
pub struct Drift;

impl Fault for Drift {
    fn name(&self) -> &'static str {
        "clock-drift"
    }

    fn inject(&self, world: &mut World<'_>, now: Duration) -> Option<Incident> {
        let node = world.any()?;
        let drift = world.rng.below(400) as i64 - 200;
        world.hosts[node].clock.drift(now, drift);
        let after = world.between(2_000, 20_000);
        Some(Incident::until(format!("clock of {} drifts by {drift} of 1000", NAMES[node]), after, move |world| {
            world.hosts[node].clock.drift(world.sim.elapsed(), 0);
            format!("clock of {} drifts no more", NAMES[node])
        }))
    }
}
