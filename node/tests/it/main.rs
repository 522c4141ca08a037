//! Nodes in one process, driven through their sockets by a plain gRPC client. What is expected stands in the protocol sheet.

#![allow(clippy::unwrap_used)] // helpers of tests
#![allow(deprecated, reason = "old SDKs make deprecated calls, so they are tested")]

mod access;
mod admin;
mod capacity;
mod cluster;
mod deletion;
mod exec;
mod exports;
mod imports;
mod kv;
mod lifecycle;
mod logins;
mod mutated;
#[path = "../../../raft/tests/it/own_address.rs"]
mod own_address;
mod permissions;
mod reads;
mod rest;
mod roaming;
mod server;
mod sessions;
mod slow_uploads;
mod streams;
mod support;
mod tls;
mod transactions;
mod traps;
mod truncation;
mod users;
mod verified;
