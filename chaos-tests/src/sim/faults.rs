//! What goes wrong, one file each. A new fault is a file and a row of [`ALL`].

mod clock;
mod crash;
mod disk_errors;
mod disk_full;
mod disk_slow;
mod emptied;
mod hold;
mod latency;
mod lost_sync;
mod memory_pressure;
mod misdirected;
mod oneway;
mod partition;
mod rot;
mod rot_unnoticed;

use std::time::Duration;

use super::world::World;

/// Undoes a fault; answers what it did.
pub type Heal = Box<dyn FnOnce(&mut World<'_>) -> String>;

/// A fault that was injected.
pub struct Incident {
    /// What happened, for the story.
    pub what: String,
    /// What undoes it, and how much later.
    pub heals: Vec<(Duration, Heal)>,
    /// A node that is only cut off: when it comes back, the leader must stay.
    pub cut_off: Option<usize>,
}

impl Incident {
    /// Something that needs no healing.
    pub fn done(what: String) -> Self {
        Self { what, heals: Vec::new(), cut_off: None }
    }

    /// Something that is undone after a while.
    pub fn until(what: String, after: Duration, heal: impl FnOnce(&mut World<'_>) -> String + 'static) -> Self {
        Self { what, heals: vec![(after, Box::new(heal))], cut_off: None }
    }
}

/// Something that goes wrong.
pub trait Fault: Sync {
    /// Its name, for the command line.
    fn name(&self) -> &'static str;
    /// Whether a cluster of so many nodes can have it.
    fn fits(&self, _nodes: usize) -> bool {
        true
    }
    /// In so many lives that have it, it comes at least once, or it does not come at all.
    fn comes_within(&self) -> u64 {
        8
    }
    /// Whether it changes what disks have, so that a node may say of what it reads that it is damaged.
    fn rots(&self) -> bool {
        false
    }
    /// As that of an operation: what came later is drawn by itself.
    fn own_draw(&self) -> Option<(&'static str, u64)> {
        None
    }
    /// Makes it happen; `None` when nothing is there that it could happen to.
    fn inject(&self, world: &mut World<'_>, now: Duration) -> Option<Incident>;
}

/// All of them.
pub const ALL: &[&dyn Fault] = &[
    &crash::CrashLeader,
    &crash::CrashAny,
    &crash::PowerLoss,
    &crash::LongAbsence,
    &crash::Restart,
    &partition::Partition,
    &partition::OneLink,
    &partition::Halves,
    &oneway::OneWay,
    &hold::Hold,
    &latency::Latency,
    &clock::Jump,
    &clock::Drift,
    &disk_slow::Slow,
    &disk_errors::Errors,
    &disk_full::Full,
    &lost_sync::LostSync,
    &misdirected::Misdirected,
    &rot::Rot,
    &emptied::Emptied,
    &rot_unnoticed::RotUnnoticed,
    &memory_pressure::MemoryPressure,
];
