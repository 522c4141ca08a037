//! Tests of the `raft` crate that need more than one module.

#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere.

mod cluster;
mod disks;
mod envelopes;
mod faults;
mod forming;
mod fuzz;
mod lifecycle;
mod links;
mod memory;
mod mending;
mod nodes;
mod own_address;
mod pruning;
mod quotas;
mod replicas;
mod scrub;
mod seeding;
mod slow_disk;
mod strangers;
