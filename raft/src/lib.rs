//! Replication: one Raft group per database.
//!
//! | module | what |
//! |---|---|
//! | [`env`] | the seams to the outside: files, clock, randomness, executor, connections |
//! | [`types`] | type configuration of openraft |
//! | [`group`] | one replica of one database: start, stop, propose, read |
//! | [`groups`], [`meta`] | all groups of a node; `systemdb`, which says what there is |
//! | [`forming`] | how a cluster comes to be, once |
//! | [`forward`] | the one hop to the leader |
//! | [`state_machine`] | applies committed entries |
//! | [`snapshot`] | raft snapshots as files |
//! | [`error`] | errors by what the caller can do |

pub mod codec;
pub mod env;
pub mod error;
pub mod forming;
pub mod forward;
pub mod group;
pub mod groups;
pub mod link;
pub mod meta;
pub mod snapshot;
pub mod state_machine;
pub mod types;
