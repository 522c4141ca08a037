//! Tests of the crate from outside: golden vectors, real exports, an independent model, and tampering.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

mod export_sample;
mod golden;
mod history;
mod model;
mod model_proofs;
mod model_trees;
mod tamper_dual;
mod tamper_entry;
mod vectors_hashes;
mod vectors_proofs;
