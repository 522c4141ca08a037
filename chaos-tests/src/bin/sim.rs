//! Runs simulated lives of a cluster. One seed per process: with several, this program starts itself once per seed.

use std::collections::VecDeque;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use alhambra_chaos_tests::sim::faults;
use alhambra_chaos_tests::sim::plant::Plant;
use alhambra_chaos_tests::sim::run::{Options, run};
use clap::Parser;

/// Simulates clusters of production nodes under faults and judges what their clients saw.
#[derive(Parser)]
struct Args {
    /// Run this one seed and tell its story.
    #[arg(long)]
    seed: Option<u64>,
    /// Run this many seeds, each in a process of its own.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// First of the seeds; without it, one that nobody knows before.
    #[arg(long)]
    from: Option<u64>,
    /// Run the seeds of this file too, one number at the beginning of each line.
    #[arg(long)]
    kept: Option<std::path::PathBuf>,
    /// Begin no seed after so many seconds.
    #[arg(long)]
    budget_seconds: Option<u64>,
    /// Simulated seconds of load and faults.
    #[arg(long, default_value_t = 60)]
    load_seconds: u64,
    /// Processes at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// These faults only, by name.
    #[arg(long, value_delimiter = ',', value_parser = faults::ALL.iter().map(|fault| fault.name()).collect::<Vec<_>>())]
    faults: Vec<String>,
    /// Run the first seed, kept and fresh, twice and compare the traces.
    #[arg(long)]
    replay_check: bool,
    /// Plant this bug: the simulation is expected to fail.
    #[arg(long, value_parser = Plant::ALL.iter().map(|plant| plant.name()).collect::<Vec<_>>())]
    plant: Option<String>,
    /// Do not tell the story.
    #[arg(long)]
    quiet: bool,
    /// Print the log of the nodes too, with virtual times, at this level.
    #[arg(long)]
    log: Option<tracing::Level>,
}

impl Args {
    /// What has to be said besides the seed to run the same again.
    fn rest(&self) -> Vec<String> {
        let mut rest = vec!["--load-seconds".into(), self.load_seconds.to_string()];
        if !self.faults.is_empty() {
            rest.extend(["--faults".into(), self.faults.join(",")]);
        }
        if let Some(plant) = &self.plant {
            rest.extend(["--plant".into(), plant.clone()]);
        }
        rest
    }
}

/// Virtual time for the log.
struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>10.3} s ", turmoil::sim_elapsed().unwrap_or_default().as_secs_f64())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => one(&args, seed),
        None => many(&args),
    }
}

fn one(args: &Args, seed: u64) -> ExitCode {
    if let Some(level) = args.log {
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_timer(VirtualTime)
            .with_ansi(false)
            .with_writer(std::io::stdout)
            .init();
    }
    // A panic in a task of a node looks like a lost connection from outside.
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(panic);
    }));
    let plant = args.plant.as_ref().and_then(|name| Plant::ALL.iter().find(|plant| plant.name() == name)).copied();
    let load = Duration::from_secs(args.load_seconds);
    let options = Options { seed, load, story: !args.quiet, plant, faults: args.faults.clone() };
    let verdict = run(&options).and_then(|report| match PANICS.load(Ordering::Relaxed) {
        0 => Ok(report),
        n => Err(format!("W2: {n} panics, see above")),
    });
    match verdict {
        Ok(report) => {
            println!("seed {seed}: ok {report:?}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("seed {seed}: FAILED: {what}");
            println!("replay: cargo run --bin sim -- --seed {seed} {}", args.rest().join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Starts this program for one seed.
fn child(args: &Args, seed: u64) -> Result<Child, std::io::Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--quiet", "--seed", &seed.to_string()]).args(args.rest());
    command.stdout(Stdio::piped()).spawn()
}

fn finish(child: std::io::Result<Child>) -> (bool, String) {
    match child.and_then(Child::wait_with_output) {
        Ok(output) => (output.status.success(), String::from_utf8_lossy(&output.stdout).trim_end().to_string()),
        Err(e) => (false, e.to_string()),
    }
}

fn kept(args: &Args) -> std::io::Result<Vec<u64>> {
    let Some(path) = &args.kept else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
}

/// Simulated time in the last line of a report, seconds.
fn simulated(text: &str) -> f64 {
    let tail = text.rsplit("simulated: ").next().unwrap_or_default();
    tail.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0.0)
}

/// Many lives. This is not part of any simulation, so time here is real.
#[allow(clippy::disallowed_methods)]
fn many(args: &Args) -> ExitCode {
    let begin = Instant::now();
    // Without a first seed they are new ones every time.
    let from = args.from.unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(1, |since| u64::try_from(since.as_millis()).unwrap_or(1)) * 1000
    });
    let mut seeds: VecDeque<u64> = match kept(args) {
        Ok(kept) => kept.into(),
        Err(e) => {
            eprintln!("the file of kept seeds cannot be read: {e}");
            return ExitCode::FAILURE;
        }
    };
    let first = seeds.front().copied().unwrap_or(from);
    seeds.extend(from..from + args.seeds);
    println!("{} seeds, the fresh ones from {from} on", seeds.len());
    let (mut passed, mut failed, mut hours, mut again) = (0, Vec::new(), 0.0, Vec::new());
    let mut running: VecDeque<(u64, std::io::Result<Child>)> = VecDeque::new();
    loop {
        let in_time = args.budget_seconds.is_none_or(|budget| begin.elapsed().as_secs() < budget);
        while running.len() < args.jobs.max(1)
            && in_time
            && let Some(seed) = seeds.pop_front()
        {
            running.push_back((seed, child(args, seed)));
        }
        let Some((seed, child)) = running.pop_front() else { break };
        let (ok, text) = finish(child);
        println!("{text}");
        hours += simulated(&text) / 3600.0;
        if ok {
            passed += 1;
        } else {
            failed.push(seed);
        }
        // The first one that is fixed, and the first that is new.
        if args.replay_check && (seed == first || seed == from) {
            again.push((seed, text));
        }
    }
    for (seed, output) in &again {
        let (_, again) = finish(child(args, *seed));
        if output != &again {
            println!("seed {seed}: FAILED: the same seed told another story:\n{again}");
            failed.push(*seed);
        } else {
            println!("seed {seed}: the same trace twice");
        }
    }
    let took = begin.elapsed().as_secs_f64() / 3600.0;
    println!("{hours:.2} simulated cluster-hours in {:.0} s: {:.0} per hour", took * 3600.0, hours / took.max(1e-9));
    println!("{passed} passed, {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
