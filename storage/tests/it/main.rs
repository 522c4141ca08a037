//! Tests of the crate from outside, in one binary.

mod ledger_model;
mod ledger_support;
