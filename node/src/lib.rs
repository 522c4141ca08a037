//! One node: the protocols that clients speak, on top of the replicated databases.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | everything that an operator can choose |
//! | [`node`] | start and stop |
//!
//! What does not belong here: rules of the ledger, formats on disk, consensus.

pub mod config;
pub mod node;

pub use alhambra_raft::env::Env;
pub use config::Config;
pub use node::{Node, NodeError, NodeHandle};
