//! `alhambra cluster`: decisions that no timeout may make.

use std::path::PathBuf;

use alhambra_node::{FormError, release_promise};
use alhambra_storage::vfs::os::OsVfs;

use crate::failure::{Failure, Kind};
use crate::output::print_raw;

/// Flags of `alhambra cluster`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Take back the promise that a stopped node gave to a cluster which was never formed
    ReleasePromise(ReleaseArgs),
}

#[derive(Debug, clap::Args)]
struct ReleaseArgs {
    /// Data folder of the stopped node.
    #[arg(long, value_name = "DIR", env = "ALHAMBRA_DIR")]
    dir: PathBuf,
    /// Says that the cluster of the promise was not formed and never will be; a node released from a cluster that exists
    /// could become a member of two.
    #[arg(long, required = true)]
    that_cluster_was_never_formed: bool,
}

/// Carries out one decision.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::ReleasePromise(release) => {
            if !release.dir.is_dir() {
                return Err(Failure::new(
                    Kind::NotFound,
                    format!("{} is not a folder", release.dir.display()),
                    "name the data folder of a node: its --dir",
                ));
            }
            match release_promise(&OsVfs, &release.dir) {
                Ok(Some(cluster)) => print_raw(format!("released from cluster {cluster}; the node may form another\n")),
                Ok(None) => print_raw("there is no promise to release; nothing was changed\n"),
                Err(FormError::Io { path, source }) if source.kind() == std::io::ErrorKind::WouldBlock => {
                    Err(Failure::new(
                        Kind::Failed,
                        format!("{} is held: the node is running", path.display()),
                        "stop the node first",
                    ))
                }
                Err(error) => Err(Failure::new(Kind::Failed, error.to_string(), "see the reason; nothing was changed")),
            }
        }
    }
}
