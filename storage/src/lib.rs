//! One database on local disk.

pub mod apply;
pub mod command;
pub mod database;
pub mod error;
pub mod format;
pub mod fsck;
pub mod index;
pub mod limits;
pub mod prove;
pub mod read;
pub mod reads;
pub mod seal;
pub mod segment;
pub mod transaction;
pub mod transfer;
pub mod txlog;
pub mod vfs;

mod ahtlog;
mod checkpoint;
mod chunklog;
mod commitlog;
mod compression;
mod core;
mod embedded;
mod indexing;
mod marks;
mod parts;
mod precondition;
mod recover;
mod requests;
mod smallfile;
mod waiting;
mod wire;

pub use checkpoint::Applied;
pub use database::{Database, DatabaseSpec, Options};
pub use error::{Error, Result};
pub use index::{BlockCache, Change, KeyRange, ScanSpec, Version};
pub use parts::ProvenEntry;
pub use read::ReadSnapshot;
pub use seal::Health;
pub use transaction::Transaction;
pub use transfer::{FileRange, Manifest};
pub use txlog::{EntryRecord, TxRecord};
pub use waiting::OnApplied;
