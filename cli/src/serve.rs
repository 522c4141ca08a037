//! `alhambra serve`: one node, until a signal stops it in order.

use std::error::Error;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

use alhambra_node::config::{LogFormat, LogLevel, Origin, ServeArgs};
use alhambra_node::{Config, Env, Node, NodeError, resources};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::pooled::PooledVfs;
use tokio::sync::oneshot;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::demo::ports;
use crate::failure::{Failure, Kind, chain};
use crate::output::print_raw;
use crate::signals::Signals;

/// Flags of `alhambra serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: ServeArgs,
    /// Stop in order when standard input closes, so that this node does not outlive the demo that started it.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Flags of `alhambra config`.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Print every setting with its value and where the value came from.
    #[arg(long, required = true)]
    print: bool,
    #[command(flatten)]
    settings: ServeArgs,
}

impl Args {
    /// The configuration of the node.
    pub fn load(&self) -> Result<Config, Failure> {
        load(&self.settings)
    }
}

/// Runs a node; `Ok` after an orderly stop.
pub async fn run(args: &Args, config: Config) -> Result<(), Failure> {
    log_to_stderr(&config);
    let mut signals = Signals::listen()?;
    let parent_gone = async {
        if args.exit_with_parent {
            wait_for_end_of_input().await;
        } else {
            std::future::pending().await
        }
    };
    tokio::pin!(parent_gone);

    let files = PooledVfs::new(Arc::new(OsVfs), resources::open_files_max(&config));
    let start = Node::start(config, Env::production(Arc::new(files)));
    let node = tokio::select! {
        started = start => started.map_err(|error| node_failure(&error))?,
        () = signals.next() => return Ok(()),
        () = &mut parent_gone => return Ok(()),
    };
    tracing::info!(
        grpc = node.grpc_addr(),
        peer = node.peer_addr(),
        metrics = node.metrics_addr().unwrap_or("off"),
        rest = node.web_addr().unwrap_or("off"),
        "serving"
    );
    tokio::select! {
        ended = node.wait() => return ended.map_err(|error| node_failure(&error)),
        () = signals.next() => {}
        () = &mut parent_gone => {}
    }
    tracing::info!("stopping in order; a second signal stops at once");
    tokio::select! {
        () = node.shutdown() => {
            tracing::info!("stopped");
            Ok(())
        }
        () = signals.next() => Err(Failure::failed(
            "stopped at once by a second signal",
            "nothing: what was acknowledged is on disk; the next start takes a little longer",
        )),
    }
}

/// `alhambra config --print`: a TOML file that says the same, each line with its origin.
pub fn print_config(args: &ConfigArgs) -> Result<(), Failure> {
    for Origin { key, value, source } in load(&args.settings)?.origins() {
        // What is not set has no value to write; a masked secret must not be taken for one.
        let unset = value.is_empty() || value.chars().all(|char| char == '*');
        print_raw(format!("{}{key} = {value:?}  # {source}\n", if unset { "# " } else { "" }))?;
    }
    Ok(())
}

fn load(args: &ServeArgs) -> Result<Config, Failure> {
    Config::load(args).map_err(|error| {
        Failure::new(
            Kind::Usage,
            chain(&error),
            "see `alhambra serve --help`; `alhambra config --print` shows every setting and where it came from",
        )
    })
}

fn node_failure(error: &NodeError) -> Failure {
    let mut what = chain(error);
    if is_port_in_use(error)
        && let Some(owner) = port_named_in(&error.to_string()).and_then(ports::owner)
    {
        what = format!("{what}, by process {} ({})", owner.process_id, owner.name);
    }
    Failure::failed(what, "mend what is named above and start again; nothing in the data folder was changed")
}

/// Whether the system said so, at the bottom of the error.
fn is_port_in_use(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            return true;
        }
        next = error.source();
    }
    false
}

/// The port of the first `host:port` in a text.
fn port_named_in(text: &str) -> Option<u16> {
    text.split_whitespace().find_map(|word| {
        let (_, port) = word.trim_end_matches([':', ';', ',']).rsplit_once(':')?;
        port.parse().ok()
    })
}

fn log_to_stderr(config: &Config) {
    let level = match config.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // The consensus library tells every step of every group at `info`; that is debugging for everybody else.
    let consensus = if level > LevelFilter::INFO { level } else { level.min(LevelFilter::WARN) };
    let targets = Targets::new().with_default(level).with_target("openraft", consensus);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let log = tracing_subscriber::registry();
    match config.log_format {
        LogFormat::Text => {
            log.with(lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_filter(targets)).init();
        }
        LogFormat::Json => log.with(lines.json().with_filter(targets)).init(),
    }
}

/// Ends when standard input does. A thread of its own reads it, because a blocking read cannot be taken back: it would
/// hold up the end of the runtime.
async fn wait_for_end_of_input() {
    let (ended, end) = oneshot::channel::<()>();
    let reader = thread::Builder::new().name("parent".to_owned()).spawn(move || {
        let _until_the_end = ended;
        let mut byte = [0; 64];
        while matches!(io::stdin().read(&mut byte), Ok(read) if read > 0) {}
    });
    if reader.is_ok() {
        let _ = end.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_found_at_the_bottom_of_an_error() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot listen on 127.0.0.1:3322 for clients")]
        struct Outer(#[source] io::Error);
        let in_use = Outer(io::ErrorKind::AddrInUse.into());
        assert!(is_port_in_use(&in_use));
        assert!(!is_port_in_use(&Outer(io::ErrorKind::PermissionDenied.into())));
        assert_eq!(port_named_in(&in_use.to_string()), Some(3322));
        assert_eq!(port_named_in("on [::1]:9497: in use"), Some(9497));
        assert_eq!(port_named_in("no port: none"), None);
    }
}
