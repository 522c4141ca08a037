//! Replication: one Raft group per database.
//!
//! | module | what |
//! |---|---|
//! | [`mod@env`] | the seams to the outside: files, clock, randomness, executor, connections |
//! | [`types`] | type configuration of openraft |
//! | [`group`] | one replica of one database: start, stop, propose, read |
//! | [`groups`], [`meta`] | all groups of a node; `systemdb`, which says what there is |
//! | [`forming`] | how a cluster comes to be, once |
//! | [`link`], [`network`], [`envelope`] | connections between nodes; raft messages over them; their bytes |
//! | [`forward`] | the one hop to the leader |
//! | `write`, `charges`, `read` | the proposer, batches and retries; retries are charged to a quota once; read index and waiting |
//! | [`turns`] | transactions that another server made, in their order |
//! | `membership`, `duties` | who belongs to a group; what its leader does unasked: genesis, seals, seeding |
//! | [`log_store`] | log and vote on the database's ledger, in fsync order |
//! | [`state_machine`] | applies committed entries |
//! | [`snapshot`] | raft snapshots as files |
//! | [`codec`] | bytes of membership frames and votes |
//! | [`disk`] | room on the disks of the nodes, and when user writes are refused for it |
//! | [`scrub`] | files are read again, rot is mended, by majority where that is needed |
//! | [`mending`] | a database that does not open because it has rotted is mended from the others first |
//! | [`error`] | errors by what the caller can do |

mod charges;
pub mod codec;
pub mod disk;
mod duties;
pub mod env;
pub mod envelope;
pub mod error;
pub mod forming;
pub mod forward;
pub mod group;
pub mod groups;
mod hosting;
pub mod link;
pub mod log_store;
mod membership;
pub mod mending;
pub mod meta;
pub mod network;
mod prune;
mod read;
pub mod scrub;
mod server;
pub mod snapshot;
pub mod state_machine;
pub mod strand;
#[cfg(test)]
mod suite;
mod tasks;
pub mod turns;
pub mod types;
mod write;
