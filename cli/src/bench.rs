//! `alhambra bench`: loads a server, or the storage engine alone, and says what it measured.

mod index;
mod kv;
mod load;
mod machine;
mod stats;
mod storage;

use crate::failure::{Failure, Kind};

/// Flags of `alhambra bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Writes or reads keys and prints a row for each number of clients and each batch size.
    Kv(Box<kv::Args>),
    /// Inserts and reads keys in the index alone, beside fjall.
    Index(index::Args),
    /// Commits to a new database in this process and compares with the limits of the machine.
    Storage(storage::Args),
}

/// A measurement that did not come to its end.
fn failed(error: &storage::workload::Failed, what_to_do: &str) -> Failure {
    Failure::new(Kind::Failed, format!("the benchmark failed: {error}"), what_to_do)
}

/// Runs the benchmark that was asked for.
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.what {
        What::Kv(args) => kv::run(*args).await,
        What::Index(args) => tokio::task::block_in_place(|| index::run(&args)),
        What::Storage(args) => tokio::task::block_in_place(|| storage::run(&args)),
    }
}
