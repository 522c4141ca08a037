//! The pure ledger: hashes, trees, headers, proofs and their verification.
//!
//! Nothing here reads a file, a clock or a socket, so an auditor can build on this crate alone. `docs/proofs.md` tells
//! in a page what is hashed and how a proof is checked; `docs/format.md` gives every byte.
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
//! What an auditor does with a reply, here for the first transaction of a ledger:
//!
//! ```
//! use alhambra_ledger::{digest::{EMPTY, ZERO, sha256}, entry::entry_digest, header::{TxHeader, TxMetadata}};
//! use alhambra_ledger::{htree, ids::TxId, kv, proof};
//!
//! let digest = entry_digest(1, &kv::set_key(b"invoice-7"), &[], &sha256(&kv::set_value(b"paid")))?;
//! let all = [digest, sha256(b"another entry of the same transaction")];
//! let header = TxHeader {
//!     id: TxId(1), ts: 1_700_000_000, version: 1, metadata: TxMetadata::default(), nentries: 2,
//!     eh: htree::root(&all), bl_tx_id: TxId(0), bl_root: ZERO, prev_alh: EMPTY,
//! };
//! let inclusion = htree::prove(&all, 0).expect("there is an entry 0");
//! // The verifier has rebuilt `digest` from what it asked for, and compares the Alh with the one that it trusts.
//! assert!(proof::verify_entry(&inclusion, &digest, &header).is_ok());
//! assert!(proof::verify_entry(&inclusion, &sha256(b"something else"), &header).is_err());
//! assert_eq!(header.alh()?.to_string(), "fba059541b5358ea23e8225111925d87de7752edf8a88fb4693aa50875af2a70");
//! # Ok::<(), alhambra_ledger::FormatError>(())
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
pub mod plant;
pub mod proof;
pub mod state;

pub use digest::Digest;
pub use error::{FormatError, ProveError, Step, VerifyError};
