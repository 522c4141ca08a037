//! The production node on a disk and a clock that the chaos program steers through a file. Everything else is `alhambra serve`.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use alhambra_chaos_tests::process::clock::SkewedClock;
use alhambra_chaos_tests::process::control::Control;
use alhambra_chaos_tests::process::files::Faults;
use alhambra_chaos_tests::process::files::volatile::Volatile;
use alhambra_node::config::ServeArgs;
use alhambra_node::{Config, Env, Node, resources};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::pooled::PooledVfs;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

/// How often the file is looked at.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// What a replica of ours calls a segment, for the planted bug.
const SEGMENT: &str = ".seg";

/// One node, until SIGTERM or the end of standard input.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    settings: ServeArgs,
    /// The file that says how disk and clock are.
    #[arg(long)]
    control: PathBuf,
    /// What is not synced is lost when this process is killed.
    #[arg(long)]
    volatile: bool,
    /// Plant a bug: syncs of segments answer at once and do nothing. Needs --volatile to be seen.
    #[arg(long, requires = "volatile")]
    syncs_lie: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = end_with_parent() {
        eprintln!("error: this process would outlive the one that started it: {error}");
        return ExitCode::FAILURE;
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(EnvFilter::new("info,openraft=warn"))
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(serve(args)),
        Err(error) => Err(format!("no runtime: {error}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The kernel ends this process with its parent, also while SIGSTOP holds it, when it would not see the end of its input.
fn end_with_parent() -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

async fn serve(args: Args) -> Result<(), String> {
    let config = Config::load(&args.settings).map_err(|error| error.to_string())?;
    let files = Arc::new(PooledVfs::new(Arc::new(OsVfs), resources::open_files_max(&config)));
    let volatile = match (args.volatile, args.syncs_lie) {
        (true, false) => Some(Volatile::new(files.clone())),
        (true, true) => Some(Volatile::lying_about(files.clone(), SEGMENT)),
        (false, _) => None,
    };
    let faults = match &volatile {
        Some(volatile) => Faults::new(Arc::new(volatile.clone())),
        None => Faults::new(files),
    };
    let clock = Arc::new(SkewedClock::default());
    follow(args.control, faults.clone(), clock.clone())?;
    let env = Env { clock, ..Env::production(Arc::new(faults)) };

    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let end = end_of_input()?;
    let node = Node::start(config, env).await.map_err(|error| chain(&error))?;
    tracing::info!(grpc = node.grpc_addr(), peer = node.peer_addr(), "serving");
    tokio::select! {
        ended = node.wait() => ended.map_err(|error| chain(&error))?,
        _ = terminate.recv() => node.shutdown().await,
        _ = end => node.shutdown().await,
    }
    match volatile {
        Some(volatile) => volatile.write_back().map_err(|error| format!("what was not synced: {error}")),
        None => Ok(()),
    }
}

/// Looks at the file for as long as the process lives.
fn follow(path: PathBuf, faults: Faults, clock: Arc<SkewedClock>) -> Result<(), String> {
    let look = move || {
        loop {
            if let Some(control) = std::fs::read_to_string(&path).ok().as_deref().and_then(Control::parse) {
                faults.set(control.disk);
                clock.set(control.clock);
            }
            std::thread::sleep(LOOK_AGAIN_AFTER);
        }
    };
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(look);
    thread.map(drop).map_err(|error| error.to_string())
}

/// Ends with standard input, so that a node does not outlive the program that started it.
fn end_of_input() -> Result<oneshot::Receiver<()>, String> {
    let (ended, end) = oneshot::channel::<()>();
    let read = move || {
        let _until_the_end = ended;
        let mut byte = [0; 64];
        while matches!(std::io::stdin().read(&mut byte), Ok(len) if len > 0) {}
    };
    let thread = std::thread::Builder::new().name("parent".to_owned()).spawn(read);
    thread.map(|_| end).map_err(|error| error.to_string())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
