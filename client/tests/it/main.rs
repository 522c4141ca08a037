//! The client against a server that lives in this process and can be told to lie, to refuse and to vanish.

#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod chain;
mod exec;
mod failover;
mod fake;
mod no_login;
mod preconditions;
mod state_store;
mod streams;
mod tampering;
mod users;
mod verified;
