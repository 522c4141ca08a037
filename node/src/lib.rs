//! One node: the protocols that clients speak, on top of the replicated databases.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | everything that an operator can choose |
//! | [`node`] | start and stop |
//! | [`grpc`] | what SDKs call: decode, one function of `service`, encode; the gate that every call passes |
//! | [`rest`] | the same calls as JSON over HTTP |
//! | [`service`] | the use cases, without protobuf and sockets |
//! | [`method`], [`auth`], [`session`], [`throttle`] | who may make which call; wrong passwords become slow |
//! | [`access`] | who is served when authentication is off, and in maintenance mode |
//! | [`claim`], [`keys`], [`peer`] | session ids and tokens that every node takes; what nodes say to each other about them |
//! | [`context`], [`router`] | what a call brings with it; from the name of a database to its replica |
//! | [`signer`] | signatures of states |
//! | [`uploads`] | memory of requests that are arriving |
//! | [`tls`] | encryption of everything that clients reach |
//! | [`resources`] | what the machine has when nobody says how much a node may take |
//! | [`metrics`], [`health`] | what operators look at |
//! | [`limits`] | bounds of sessions and logins |
//! | [`error`] | errors of the use cases, and their gRPC form |
//!
//! What does not belong here: rules of the ledger, formats on disk, consensus.

pub mod access;
pub mod auth;
pub mod claim;
pub mod config;
pub mod context;
pub mod error;
pub(crate) mod gather;
pub mod grpc;
pub mod health;
pub mod keys;
pub mod limits;
pub mod method;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod resources;
pub mod rest;
pub mod router;
pub mod service;
pub mod session;
pub mod signer;
pub mod throttle;
pub mod tls;
pub mod uploads;

pub use alhambra_raft::env::Env;
pub use alhambra_raft::forming::{FormError, store::release_promise};
pub use config::Config;
pub use node::{Node, NodeError, NodeHandle};

/// The version of the compatible server whose calls are understood: SDKs decide by it what they may ask for. Our own
/// version stands in the reply header [`alhambra_proto::header::VERSION`] of Health and ServerInfo, in `/version`, and in the
/// metric `alhambra_build_info`.
pub const COMPATIBLE_VERSION: &str = "1.11.1";
