//! The simulated world around production nodes: network, clock, randomness, disk.

pub mod env;
