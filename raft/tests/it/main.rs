//! Tests of the `raft` crate that need more than one module.

#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere.

mod cluster;
mod envelopes;
mod faults;
mod forming;
mod links;
mod nodes;
mod replicas;
mod seeding;
