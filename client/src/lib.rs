//! A client that does not need to trust the server.
//!
//! [`Client`] logs in to a server or cluster, sends calls to an endpoint that can serve them, and never sends a write
//! twice that may have been applied. Verified calls check what is answered with the pure rules of `alhambra_ledger`
//! against the last state this client has verified, kept in a [`StateStore`].
//!
//! | module | what |
//! |---|---|
//! | `client` | options, plain calls |
//! | `verified` | verified calls, the trusted state |
//! | `exec` | several operations in one transaction, plain and verified |
//! | `precondition` | conditions of writes |
//! | `stream` | values in parts, plain and verified |
//! | `users` | users and their permissions |
//! | `check` | what is demanded of an answer, as pure functions |
//! | `state_store` | where trusted states and evidence are kept (V2) |
//! | `connect`, `retry` | endpoints, sessions, deadlines; what may be sent again |
//!
//! What does not belong here: storage, formats of the server.

mod check;
mod client;
mod connect;
mod error;
mod exec;
mod precondition;
mod retry;
mod state_store;
mod stream;
mod tls;
mod users;
mod verified;

pub use alhambra_ledger::entry::KvMetadata;
pub use alhambra_ledger::ids::TxId;
pub use alhambra_ledger::state::TrustedState;
pub use check::{Check, KeyValue};
pub use client::{Client, Entry, Options, Reference, Scan, ZEntry, ZScan};
pub use connect::endpoint;
pub use error::Error;
pub use exec::{Operation, Version};
pub use precondition::Precondition;
pub use state_store::{Advanced, Evidence, FileStateStore, MemoryStateStore, StateError, StateId, StateStore};
pub use stream::{StreamError, ValueStream};
pub use tls::Tls;
pub use users::{Permission, SqlPrivilege};
pub use verified::{StateCheck, Verified};
