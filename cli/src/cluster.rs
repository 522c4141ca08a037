//! `alhambra cluster`: decisions that only an operator may make.

use std::path::PathBuf;
use std::time::Duration;

use alhambra_node::{FormError, release_promise};
use alhambra_storage::vfs::os::OsVfs;
use serde_json::json;

use crate::connect::Common;
use crate::failure::{Failure, Kind};
use crate::output::{Output, print_json, print_raw};
use crate::session::{self, say};

/// Longest that one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Let every node show the UUID of another server, whose databases were moved here: its clients find their trusted states again
    TakeUuid(Box<TakeUuidArgs>),
}

#[derive(Debug, clap::Args)]
struct TakeUuidArgs {
    /// The UUID: 20 characters, 0-9 and a-v. The server that had it must be gone.
    uuid: String,
    #[command(flatten)]
    common: Common,
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
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::ReleasePromise(args) => release(&args),
        Command::TakeUuid(args) => take_uuid(&args).await,
    }
}

async fn take_uuid(args: &TakeUuidArgs) -> Result<(), Failure> {
    let target = args.common.connect.user_target()?;
    let mut session = session::open_any(&target, &target.database, CALL_TIMEOUT)
        .await
        .map_err(|why| Failure::new(Kind::Unavailable, why, "check --endpoint, --username and --password"))?;
    let before = session.cluster().to_owned();
    let taken = session.take_server_uuid(&args.uuid).await;
    session.close().await;
    taken.map_err(|status| {
        let advice = "use the administrator, and the UUID that `alhambra import --output json` reports as source_uuid";
        Failure::failed(format!("the UUID is not taken: {}", say(&status)), advice)
    })?;
    match args.common.output {
        Output::Json => print_json(&json!({ "server_uuid": args.uuid, "before": before })),
        Output::Raw => print_raw(format!("{}\n", args.uuid)),
        Output::Table => print_raw(format!("clients see the UUID {} now, and {before} no more\n", args.uuid)),
    }
}

fn release(args: &ReleaseArgs) -> Result<(), Failure> {
    if !args.dir.is_dir() {
        return Err(Failure::new(
            Kind::NotFound,
            format!("{} is not a folder", args.dir.display()),
            "name the data folder of a node: its --dir",
        ));
    }
    match release_promise(&OsVfs, &args.dir) {
        Ok(Some(cluster)) => print_raw(format!("released from cluster {cluster}; the node may form another\n")),
        Ok(None) => print_raw("there is no promise to release; nothing was changed\n"),
        Err(FormError::Io { path, source }) if source.kind() == std::io::ErrorKind::WouldBlock => Err(Failure::new(
            Kind::Failed,
            format!("{} is held: the node is running", path.display()),
            "stop the node first",
        )),
        Err(error) => Err(Failure::new(Kind::Failed, error.to_string(), "see the reason; nothing was changed")),
    }
}
