//! Real nodes under real faults, judged by what clients saw. `docs/testing.md`, "Processes under faults".

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use alhambra_chaos_tests::process::cluster::Programs;
use alhambra_chaos_tests::process::proxy::{Proxy, Shape, Shapes};
use alhambra_chaos_tests::process::run::{Options, Story, run};
use alhambra_chaos_tests::process::{faults, leftovers, report};
use alhambra_chaos_tests::workload::sdk;
use clap::{Parser, Subcommand};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Runs a cluster of real processes under faults and judges it from outside.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Load with faults, seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Decides which faults come when and what clients do; a fresh one without it.
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    nodes: u8,
    /// Only these faults.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    faults: Vec<String>,
    /// Clients beside our own.
    #[arg(long, value_delimiter = ',', default_value = "python,go", value_parser = ["python", "go", "none"])]
    sdks: Vec<String>,
    /// Where the page goes.
    #[arg(long, default_value = "chaos.html")]
    report: PathBuf,
    /// No network namespaces: loopback, with a proxy in every peer link.
    #[arg(long)]
    loopback: bool,
    /// The `alhambra` binary; by default the one beside this program.
    #[arg(long)]
    alhambra: Option<PathBuf>,
    /// Pause of a client between two calls, milliseconds.
    #[arg(long, default_value_t = 10)]
    pace_ms: u64,
    /// Plant a bug in every node: the run is expected to fail.
    #[arg(long, value_parser = ["syncs-lie"])]
    plant: Option<String>,
    /// Keep the logs of the nodes beside the report, also when nothing was found.
    #[arg(long)]
    keep_logs: bool,
    /// Print the names of all faults and end.
    #[arg(long)]
    list: bool,
}

#[derive(Subcommand)]
enum Part {
    /// One slow link, for the use of this program.
    #[command(hide = true)]
    Link {
        #[arg(long)]
        listen: String,
        #[arg(long)]
        to: String,
        #[arg(long)]
        delay_ms: u64,
        #[arg(long)]
        bytes_per_second: u64,
    },
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.part {
        Some(Part::Link { listen, to, delay_ms, bytes_per_second }) => {
            let delay = Duration::from_millis(*delay_ms);
            let shape = Shape { delay, bytes_per_second: *bytes_per_second, ..Shape::default() };
            link(listen, to.clone(), shape).await.map(|()| true)
        }
        None if args.list => {
            faults::TABLE.iter().for_each(|fault| println!("{}", fault.name()));
            Ok(true)
        }
        None => chaos(&args).await,
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs and tells; whether nothing was found.
async fn chaos(args: &Args) -> Result<bool, String> {
    for removed in leftovers::remove_dead() {
        println!("left behind by an earlier run, removed: {removed}");
    }
    let mut fresh = [0; 4];
    let seed = match args.seed {
        Some(seed) => seed,
        None => {
            let file = std::fs::File::open("/dev/urandom")
                .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut fresh));
            file.map_err(|error| format!("/dev/urandom: {error}"))?;
            u64::from(u32::from_le_bytes(fresh))
        }
    };
    let own = std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
    let beside = |name: &str| own.with_file_name(name);
    let programs = Programs {
        alhambra: args.alhambra.clone().unwrap_or_else(|| beside("alhambra")),
        chaos_node: beside("chaos-node"),
    };
    for program in [&programs.alhambra, &programs.chaos_node] {
        if !program.is_file() {
            return Err(format!("{} does not exist: cargo build --workspace --bins", program.display()));
        }
    }
    let mut sdks = Vec::new();
    for name in args.sdks.iter().filter(|name| *name != "none") {
        let prepared = if name == "python" { sdk::python().await } else { sdk::go().await };
        match prepared {
            Ok(program) => sdks.push(program),
            Err(why) => println!("SKIPPED: clients of the {name} SDK: {why}"),
        }
    }
    let options = Options {
        seed,
        load: Duration::from_secs(args.seconds),
        nodes: usize::from(args.nodes),
        faults: faults::chosen(&args.faults)?,
        loopback: args.loopback,
        programs,
        sdks,
        pace: Duration::from_millis(args.pace_ms),
        syncs_lie: args.plant.is_some(),
        logs: args.report.with_extension("logs"),
        keep_logs: args.keep_logs,
    };
    println!("seed {seed}");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    // Whatever was made is removed when the run is dropped, also on a signal and in a panic.
    let story = tokio::select! {
        story = run(&options) => story?,
        _ = interrupt.recv() => return Err("interrupted".to_owned()),
        _ = terminate.recv() => return Err("terminated".to_owned()),
    };
    let command = again(args, seed);
    report::write(&args.report, &story, &command)?;
    tell(&story, args, &command);
    Ok(story.is_good())
}

/// The command that runs this seed again.
fn again(args: &Args, seed: u64) -> String {
    let mut command =
        format!("cargo run --bin chaos -- --seed {seed} --seconds {} --nodes {}", args.seconds, args.nodes);
    if !args.faults.is_empty() {
        command += &format!(" --faults {}", args.faults.join(","));
    }
    if args.sdks != ["python", "go"] {
        command += &format!(" --sdks {}", args.sdks.join(","));
    }
    if args.pace_ms != 10 {
        command += &format!(" --pace-ms {}", args.pace_ms);
    }
    if args.loopback {
        command += " --loopback";
    }
    if let Some(plant) = &args.plant {
        command += &format!(" --plant {plant}");
    }
    command
}

fn tell(story: &Story, args: &Args, command: &str) {
    for line in report::summary(story) {
        println!("{line}");
    }
    for verdict in &story.verdicts {
        match &verdict.outcome {
            Ok(said) => println!("ok      {}: {said}", verdict.property),
            Err(found) => println!("FAILED  {}: {found}", verdict.property),
        }
    }
    println!("report: {}", args.report.display());
    let good = if story.is_good() { "nothing was found" } else { "FAILED" };
    println!("seed {}: {good}; the same schedule again: {command}", story.seed);
}

/// Serves a slow link until standard input closes.
async fn link(listen: &str, to: String, shape: Shape) -> Result<(), String> {
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
    let (there, back) = (watch::Sender::new(shape), watch::Sender::new(shape));
    let shapes = Shapes { there: there.subscribe(), back: back.subscribe() };
    let _proxy = Proxy::start(listener, to, Arc::new(move |_: &TcpStream| Some(shapes.clone())));
    println!("ready");
    let mut rest = Vec::new();
    tokio::io::stdin().read_to_end(&mut rest).await.map(drop).map_err(|error| error.to_string())
}
