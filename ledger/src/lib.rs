//! The pure ledger: hashes, trees, headers, proofs and their verification.
#![no_std]
extern crate alloc;

pub mod ids;
