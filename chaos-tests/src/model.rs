//! Independent models, written from the published description of the hashes alone. Nothing of the judged crates is used.

pub mod chain;
pub mod proof;
