//! Tests of the built `alhambra` binary: real processes, real ports on loopback, real kills.

#![allow(clippy::unwrap_used)] // helpers of tests are not seen as tests

mod bad_input;
mod commands;
mod crash;
mod demo;
mod exec_all;
mod first_password;
mod import;
mod import_source;
mod no_login;
mod no_quorum;
mod shell;
mod support;
mod tls;
mod users;
