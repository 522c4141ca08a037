//! Forgetting values: retention, history limits, erasure of one value.
//!
//! A prune is a command in the log. Apply gives it a number and adds it to the prunes in force (`rules`, kept in the derived
//! log `prune/`); from then on no replica answers the values that it names (`Error::ValuePruned`), whether their bytes are
//! still there or not. Which values a set of prunes names is a function of the log alone.
//!
//! Getting rid of the bytes is work of each replica in its own time ([`crate::Database::prune_step`]): one sealed segment
//! after the other is written again without them. The generation of a segment is the number of the newest prune of which it has lost a
//! value, so two replicas whose segments have the same generation have the same bytes, however many steps each of them took.
//! The new digest is then sealed through the log as any other.
//!
//! Keys, hashes and headers stay, so every proof of a pruned transaction still verifies, and everything can still be derived
//! again from the ledger.

mod log;
mod rules;
mod step;

pub(crate) use log::PruneLog;
pub use rules::{PruneRecord, Pruned};
pub use step::PruneProgress;
pub(crate) use step::{MARK_NAME, Pruner};
#[cfg(test)]
pub(crate) use step::{decode_mark, encode_mark};
