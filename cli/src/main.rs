//! The `alhambra` command: the server, a demo cluster, the client commands, benchmarks and checks.
//!
//! One file per group of commands. A command returns a [`failure::Failure`] that says what went wrong and what to do;
//! answers go to standard output, everything else to standard error. No rule of the ledger lives here.

mod bench;
mod cluster;
mod connect;
mod database;
mod demo;
mod failure;
mod fsck;
mod http;
mod import;
mod kv;
mod output;
mod secret;
mod serve;
mod session;
mod sets;
mod shell;
mod signals;
mod status;
mod transaction;
mod trusted;
mod user;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::{EXIT_CODES, Failure, OrFail};

/// A replicated ledger database that nobody has to trust.
#[derive(Debug, Parser)]
#[command(name = "alhambra", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node
    Serve(Box<serve::Args>),
    /// Start a cluster on this machine and keep it running
    Demo(demo::Args),
    /// Write a value under a key, and verify that it is in the history
    #[command(visible_alias = "safeset", aliases = ["s", "ss"])]
    Set(kv::SetArgs),
    /// Read the newest value of a key, or an older one, and verify it
    #[command(visible_alias = "safeget", aliases = ["g", "sg"])]
    Get(kv::GetArgs),
    /// Write an old value of a key again, as its newest
    Restore(kv::RestoreArgs),
    /// Mark keys as deleted; their histories stay
    #[command(visible_alias = "del")]
    Delete(kv::DeleteArgs),
    /// Give a key another name, and verify that it is in the history
    #[command(visible_alias = "safereference", aliases = ["r", "sr"])]
    Reference(sets::ReferenceArgs),
    /// Add a key to a sorted set, and verify that it is in the history
    #[command(visible_alias = "safezadd", aliases = ["za", "sza"])]
    Zadd(sets::ZAddArgs),
    /// List the members of a sorted set by score, and verify their values
    #[command(alias = "zscn")]
    Zscan(sets::ZScanArgs),
    /// Count keys, deleted and expired ones included
    #[command(alias = "cnt")]
    Count(kv::CountArgs),
    /// List all versions of a key, and verify each
    #[command(alias = "h")]
    History(kv::HistoryArgs),
    /// List keys with their newest values, and verify each
    #[command(alias = "scn")]
    Scan(kv::ScanArgs),
    /// Show a transaction, and verify that it is in the history
    #[command(visible_alias = "safetx", aliases = ["stx", "gettx"])]
    Tx(transaction::TxArgs),
    /// Show the newest transaction that the server claims
    #[command(alias = "crt")]
    Current(transaction::AskArgs),
    /// Show what waits in the selected database of the node that answers
    Health(transaction::AskArgs),
    /// Show version, age and size of the server
    Info(transaction::AskArgs),
    /// List, create, load, unload, update, truncate, flush, compact and delete databases
    Database(database::Args),
    /// List, create, activate and deactivate users; their passwords and permissions
    User(user::Args),
    /// Prove that the server's history continues the one this client trusts
    Verify(verify::Args),
    /// Show nodes, roles, databases and readiness
    Status(status::Args),
    /// The client commands at a prompt, with history and completion
    #[command(visible_alias = "it", alias = "cli-mode")]
    Shell(shell::interactive::ShellArgs),
    /// Load a server and print what it reached
    Bench(bench::Args),
    /// Decisions about the cluster that only an operator may make
    Cluster(cluster::Args),
    /// Take a database over from a running server, with its ids, headers and hashes
    Import(Box<import::Args>),
    /// Check the data folder of a stopped node
    Fsck(fsck::Args),
    /// Show the settings that `serve` would use
    Config(Box<serve::ConfigArgs>),
    /// Print the completions of a shell, to be sourced by it
    #[command(alias = "completion")]
    Completions(shell::CompletionsArgs),
    /// Write manual pages of all commands into a folder
    Mangen(shell::MangenArgs),
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(wrong) => Err(connect::no_session(&wrong).unwrap_or_else(|| wrong.exit())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Completions(args) => shell::completions(&args),
        Command::Mangen(args) => shell::mangen(&args),
        Command::Version => output::print_raw(concat!("alhambra ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Cluster(args) => block_on(cluster::run(args)),
        Command::Fsck(args) => fsck::run(&args),
        Command::Config(args) => serve::print_config(&args),
        Command::Serve(args) => {
            let config = args.load()?;
            runtime(config.worker_threads)?.block_on(serve::run(&args, config))
        }
        Command::Set(args) => block_on(kv::set(args)),
        Command::Get(args) => block_on(kv::get(args)),
        Command::Restore(args) => block_on(kv::restore(args)),
        Command::Tx(args) => block_on(transaction::tx(args)),
        Command::Current(args) => block_on(transaction::current(args)),
        Command::Health(args) => block_on(transaction::health(args)),
        Command::Info(args) => block_on(transaction::info(args)),
        Command::Shell(args) => shell::interactive::run(&args),
        Command::Delete(args) => block_on(kv::delete(args)),
        Command::Reference(args) => block_on(sets::reference(args)),
        Command::Zadd(args) => block_on(sets::zadd(args)),
        Command::Zscan(args) => block_on(sets::zscan(args)),
        Command::Count(args) => block_on(kv::count(args)),
        Command::History(args) => block_on(kv::history(args)),
        Command::Scan(args) => block_on(kv::scan(args)),
        Command::Database(args) => block_on(database::run(args)),
        Command::User(args) => block_on(user::run(args)),
        Command::Verify(args) => block_on(verify::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Import(args) => block_on(import::run(*args)),
        Command::Bench(args) => block_on(bench::run(args)),
    }
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    runtime(0)?.block_on(work)
}

/// Threads for async work; one per processor for 0.
fn runtime(worker_threads: u32) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(count) = usize::try_from(worker_threads).ok().filter(|count| *count > 0) {
        builder.worker_threads(count);
    }
    builder
        .enable_all()
        .build()
        .or_fail("starting the threads of this program", "raise the limit of threads and open files")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
