//! The simulated world around production nodes, the story of one seed, and its judgement.
//!
//! | module | what |
//! |---|---|
//! | `setup` | what a seed decides before anything runs: nodes, settings, clients, which faults and operations there are |
//! | `env`, `disk` | clock, randomness, executor, network and disk of a host |
//! | `world` | the hosts, and what can be done to them |
//! | `links`, `wanted` | what several faults at once want of a link, of a disk |
//! | `faults` | what goes wrong, one file each |
//! | `ops` | what clients do, one file each |
//! | `workload` | a client: picks operations, changes nodes |
//! | `watch` | what is seen of the nodes from outside while they run |
//! | `collect` | after healing: convergence, and the whole ledger of every node |
//! | `run`, `report` | one life from beginning to verdict; what it came to, and what many did together |
//! | `plant` | bugs that are planted to show that the judge finds them |

pub mod client;
pub mod collect;
pub mod disk;
pub mod env;
pub mod faults;
pub mod links;
pub mod ops;
pub mod plant;
pub mod report;
pub mod run;
pub mod setup;
pub mod shared;
pub mod wanted;
pub mod watch;
pub mod workload;
pub mod world;
