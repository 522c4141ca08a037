//! Nodes in one process, driven through their sockets by a plain gRPC client. What is expected stands in the protocol sheet.

mod cluster;
mod kv;
mod reads;
mod server;
mod sessions;
mod support;
mod transactions;
mod verified;
