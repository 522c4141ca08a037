//! Judges Alhambra from outside.
//!
//! `model`, `history` and `check` share no code with what they judge: they import nothing of the `ledger`, `storage`, `raft` and
//! `node` crates, and hash with the hash function alone. The one exception is `check::forged`, which has our own prover forge
//! proofs as well as it can, and both verifiers judge them. `sim` runs the production node, three times, in one thread from
//! one seed.

pub mod check;
pub mod history;
pub mod model;
pub mod process;
pub mod reader;
pub mod rng;
pub mod sim;
pub mod wall;
pub mod workload;
