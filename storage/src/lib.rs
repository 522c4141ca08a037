//! One database on local disk.

pub mod apply;
pub mod command;
pub mod error;
pub mod format;
pub mod index;
pub mod limits;
pub mod segment;
pub mod vfs;
mod wire;

pub use error::{Error, Result};
