//! Tests of the crate from outside, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod committer;
mod compression;
mod corruption;
mod database;
mod db_crash;
mod db_faults;
mod db_golden;
mod fsck;
mod fsck_index;
mod import;
mod import_source;
mod index_space;
mod large_tx;
mod ledger_crash;
mod ledger_damage;
mod ledger_golden;
mod ledger_model;
mod ledger_space;
mod ledger_support;
mod ledger_threads;
mod missing;
mod model;
mod prune;
mod prune_crash;
mod prune_rot;
mod rederive;
mod removal;
mod repair;
mod replicas;
mod rules;
mod scrub;
mod serial;
mod support;
mod swapped;
mod transaction_rules;
mod transactions;
mod transfer;
mod unopened;
mod vfs_pooled;
mod vfs_suite;
