//! The pure ledger: hashes, trees, headers, proofs and their verification.
//!
//! Nothing here reads a file, a clock or a socket, so an auditor can build on this crate alone. `docs/proofs.md` tells in
//! a page what is hashed and how a proof is checked; `docs/format.md` gives every byte.
//!
//! From the inside out:
//!
//! ```text
//! value --sha256--> value hash --+ key, metadata --> entry digest        entry, kv
//! entry digests of a tx --------------- Merkle tree --> Eh                htree
//! id, PrevAlh, H(ts, metadata, count, Eh, BlTxID, BlRoot) --> Alh         header
//! Alh of tx 1..n --------- append-only Merkle tree --> BlRoot of later tx aht
//! two headers and the hashes between them --> dual proof                  proof
//! (database, tx, Alh) --------------------- signed --> trusted state      state
//! ```
//!
//! With the `std` feature, trees are built with two-lane SHA instructions where the processor has them; every result is
//! the same without it.
#![no_std]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod bytes;
mod path;

pub mod aht;
pub mod digest;
pub mod entry;
pub mod error;
pub mod export;
pub mod header;
pub mod htree;
pub mod ids;
pub mod kv;
pub mod proof;
pub mod state;

pub use digest::Digest;
pub use error::{FormatError, ProveError, Step, VerifyError};
