//! The simulated world around production nodes: network, clock, randomness, disk, clients, and the story of one seed.

pub mod client;
pub mod cluster;
pub mod env;
pub mod plant;
