//! One database on local disk.

pub mod apply;
pub mod command;
pub mod vfs;
