//! Real processes under real faults, judged from outside.
//!
//! | module | what |
//! |---|---|
//! | `run` | one run: form, load, faults, heal, judge |
//! | `cluster` | the nodes: configuration, start, signals, what they say of themselves |
//! | `net` | a network namespace per node, or loopback; who reaches whom |
//! | `proxy`, `owner` | slow and silent TCP links; whose connection it is |
//! | `control`, `files`, `clock` | what `chaos-node` puts between the production node and its disk and clock |
//! | `faults` | one file per kind, and the table of them |
//! | `wire`, `judge` | reading whole ledgers; the verdicts |
//! | `monitor`, `report` | who leads, what memory; the page |
//!
//! A seed decides which faults come when, whom they hit and what clients do. It does not decide what the machine makes of
//! it: a failure is found again by running the seed again, not by replaying it.

pub mod clock;
pub mod cluster;
pub mod control;
pub mod faults;
pub mod files;
pub mod judge;
pub mod leftovers;
pub mod monitor;
pub mod net;
pub mod owner;
pub mod proxy;
pub mod report;
pub mod rng;
pub mod run;
pub mod wire;
