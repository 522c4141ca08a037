//! Tests of the crate from outside, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod ledger_model;
mod ledger_support;
