//! Properties, one file each; the ids are those of `ARCHITECTURE.md`.

pub mod acked_durable;
pub mod linearizable;
pub mod replicas_equal;
