//! Replication: one Raft group per database.

pub mod env;
pub mod types;
