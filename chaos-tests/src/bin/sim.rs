//! Runs simulated lives of a cluster. One seed per process: with several, this program starts itself once per seed.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use alhambra_chaos_tests::sim::plant::Plant;
use alhambra_chaos_tests::sim::report::{LIVES_MIN, Report, Totals};
use alhambra_chaos_tests::sim::run::{self, Options};
use alhambra_chaos_tests::sim::{faults, ops};
use clap::Parser;
use mimalloc::MiMalloc;
use serde_json::{Value, json};

/// A life allocates all the time, on one thread.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Simulates clusters of production nodes under faults and judges what their clients saw.
#[derive(Clone, Parser)]
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
    /// Run the seeds of this file too: a number at the beginning of each line, with its own seconds of load behind an @ where it has them.
    #[arg(long)]
    kept: Option<std::path::PathBuf>,
    /// Begin no seed after so many seconds.
    #[arg(long)]
    budget_seconds: Option<u64>,
    /// Simulated seconds of load and faults.
    #[arg(long, default_value_t = 60)]
    load_seconds: u64,
    /// A seed whose process has not ended after so many real seconds is stopped and has failed.
    #[arg(long, default_value_t = 600)]
    limit_seconds: u64,
    /// Processes at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// These faults only, by name.
    #[arg(long, value_delimiter = ',', value_parser = faults::ALL.iter().map(|fault| fault.name()).collect::<Vec<_>>())]
    faults: Vec<String>,
    /// Run the first seed, kept and fresh, twice and compare the traces.
    #[arg(long)]
    replay_check: bool,
    /// Plant this bug: the simulation is expected to fail. Of several seeds none begins after the first that finds it.
    #[arg(long, value_parser = Plant::all().map(Plant::name).collect::<Vec<_>>())]
    plant: Option<String>,
    /// The life that the bug of --plant would have, without the bug.
    #[arg(long, requires = "plant")]
    control: bool,
    /// Print a line of JSON per life instead of words, and nothing else on standard output.
    #[arg(long)]
    json: bool,
    /// Do not tell the story.
    #[arg(long)]
    quiet: bool,
    /// Print the log of the nodes too, with virtual times, at this level.
    #[arg(long)]
    log: Option<tracing::Level>,
}

impl Args {
    /// What has to be said besides the seed to run the same again.
    fn rest(&self, life: Life) -> Vec<String> {
        let mut rest = vec!["--load-seconds".into(), life.load.unwrap_or(self.load_seconds).to_string()];
        if !self.faults.is_empty() {
            rest.extend(["--faults".into(), self.faults.join(",")]);
        }
        if let Some(plant) = &self.plant {
            rest.extend(["--plant".into(), plant.clone()]);
        }
        if self.control {
            rest.push("--control".into());
        }
        rest
    }
}

/// One life to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    seed: u64,
    /// Its own seconds of load, where it needs them to show what it shows.
    load: Option<u64>,
}

impl Life {
    const fn of(seed: u64) -> Self {
        Self { seed, load: None }
    }

    /// From a line of the file of kept seeds.
    fn parse(line: &str) -> Option<Self> {
        let first = line.split_whitespace().next()?;
        let (seed, load) = first.split_once('@').map_or((first, None), |(seed, load)| (seed, Some(load)));
        Some(Self { seed: seed.parse().ok()?, load: load.map(str::parse).transpose().ok()? })
    }
}

/// Seeds that fail in a checkout go here, so that none is lost; from here to `kept`, with what they found.
const FAILED: &str = "chaos-tests/seeds/failed";

/// Adds a line to [`FAILED`], when this runs in a checkout.
fn write_down(args: &Args, life: Life, what: &str) -> std::io::Result<()> {
    let path = std::path::Path::new(FAILED);
    if !path.parent().is_some_and(std::path::Path::is_dir) {
        return Ok(());
    }
    let what: String = what.chars().take(200).map(|c| if c == '\n' { ' ' } else { c }).collect();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{}@{} {what}", life.seed, life.load.unwrap_or(args.load_seconds))
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
    // A panic in a task of a node looks like a lost connection from outside, and while it unwinds there may be another one, which
    // would end the process without a word.
    let usual = std::panic::take_hook();
    let teller = args.clone();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        tell_end(&teller, seed, &format!("W2: a panic: {}", panic.payload_as_str().unwrap_or_default()));
        std::process::exit(1);
    }));
    let plant = args.plant.as_ref().and_then(|name| Plant::all().find(|plant| plant.name() == name));
    let load = Duration::from_secs(args.load_seconds);
    let (story, faults) = (!args.quiet && !args.json, args.faults.clone());
    let options = Options { seed, load, story, plant, control: args.control, faults };
    match run::run(&options) {
        Ok(report) => {
            println!("{}", if args.json { report.json() } else { report.to_string() });
            ExitCode::SUCCESS
        }
        Err(what) => {
            tell_end(args, seed, &what);
            ExitCode::FAILURE
        }
    }
}

/// A failure of this process's own life, with how long that was.
fn tell_end(args: &Args, seed: u64, what: &str) {
    tell_failure(args, Life::of(seed), &format!("{what} ({AFTER}{:.1} simulated s)", run::simulated().as_secs_f64()));
}

fn tell_failure(args: &Args, life: Life, what: &str) {
    let seed = life.seed;
    if args.json {
        println!("{}", json!({ "seed": seed, "failed": what }));
    } else {
        println!("seed {seed}: FAILED: {what}");
        println!("replay: cargo run --bin sim -- --seed {seed} {}", args.rest(life).join(" "));
    }
}

/// What stands before the length of a life that failed.
const AFTER: &str = "after ";

/// The property that found something, which stands before the first colon, and the simulated seconds it took.
fn found_by(what: &str) -> (&str, f64) {
    let text = what.strip_prefix("W1: ").unwrap_or(what);
    let after = what.rsplit(AFTER).next().and_then(|text| text.split(' ').next()?.parse().ok());
    (text.split(':').next().unwrap_or_default(), after.unwrap_or(0.0))
}

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Runs one seed in a process of its own, within the limit; its report, or what it found.
// This is not part of any simulation, so time here is real.
#[allow(clippy::disallowed_methods)]
fn child(args: &Args, life: Life) -> Result<Report, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(own);
    command.args(["--json", "--seed", &life.seed.to_string()]).args(args.rest(life));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let mut out = child.stdout.take().ok_or("no standard output")?;
    // Read while it runs: a long text would fill the pipe, and the process would wait.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let until = Instant::now() + Duration::from_secs(args.limit_seconds);
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        if Instant::now() > until {
            child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
            return Err(format!("T2: no end after {} s of real time", args.limit_seconds));
        }
        std::thread::sleep(LOOK);
    }
    let text = reader.join().map_err(|_| "its output was not read".to_string())?.map_err(|e| e.to_string())?;
    let last = text.lines().last().unwrap_or_default();
    if let Some(report) = Report::parse(last) {
        return Ok(report);
    }
    let said = serde_json::from_str(last).ok().and_then(|said: Value| Some(said["failed"].as_str()?.to_string()));
    Err(said.unwrap_or_else(|| format!("the process ended without a verdict: {text}")))
}

fn kept(args: &Args) -> std::io::Result<Vec<Life>> {
    let Some(path) = &args.kept else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(Life::parse).collect())
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
    let mut seeds: VecDeque<Life> = match kept(args) {
        Ok(kept) => kept.into(),
        Err(e) => {
            eprintln!("the file of kept seeds cannot be read: {e}");
            return ExitCode::FAILURE;
        }
    };
    let first = seeds.front().copied().unwrap_or(Life::of(from));
    seeds.extend((from..from + args.seeds).map(Life::of));
    let say = |text: &str| if args.json { eprintln!("{text}") } else { println!("{text}") };
    say(&format!("{} seeds, the fresh ones from {from} on", seeds.len()));
    let found = AtomicBool::new(false);
    let in_time = || {
        !found.load(Ordering::Relaxed) && args.budget_seconds.is_none_or(|budget| begin.elapsed().as_secs() < budget)
    };
    let (mut totals, mut failed, mut again) = (Totals::default(), Vec::new(), Vec::new());
    side_by_side(
        args.jobs,
        seeds,
        in_time,
        |life| (life, child(args, life)),
        |(life, verdict)| {
            let seed = life.seed;
            match &verdict {
                Ok(report) => {
                    println!("{}", if args.json { report.json() } else { report.to_string() });
                    totals.add(report);
                }
                Err(what) => {
                    tell_failure(args, life, what);
                    if args.plant.is_none()
                        && args.faults.is_empty()
                        && let Err(e) = write_down(args, life, what)
                    {
                        eprintln!("{FAILED} cannot be written: {e}");
                    }
                    // A life may also take its time to heal. What fails without the bug as well is not found by it.
                    let control = Args { control: true, ..args.clone() };
                    if args.plant.is_some()
                        && !args.control
                        && found_by(what).0 == "liveness"
                        && let Err(what) = child(&control, life)
                    {
                        say(&format!("seed {seed} fails without the bug as well: {what}"));
                        return;
                    }
                    failed.push(seed);
                    if let Some(plant) = args.plant.as_ref().filter(|_| !found.swap(true, Ordering::Relaxed)) {
                        let (property, after) = found_by(what);
                        let (lives, before) = (totals.lives, totals.simulated.as_secs_f64());
                        let took = begin.elapsed().as_secs_f64();
                        say(&format!(
                            "{plant}: found by {property} with seed {seed} after {after:.0} simulated s, {lives} lives of \
                             {before:.0} simulated s without; {took:.0} s in all"
                        ));
                    }
                }
            }
            // The first one that is fixed, and the first that is new.
            if args.replay_check && (life == first || life == Life::of(from)) {
                again.push((life, verdict));
            }
        },
    );
    for (life, verdict) in &again {
        let (seed, other) = (life.seed, child(args, *life));
        if *verdict != other {
            say(&format!("seed {seed}: FAILED: the same seed told another story: {other:?}"));
            failed.push(seed);
        } else {
            say(&format!("seed {seed}: the same trace twice"));
        }
    }
    totals.lines().iter().for_each(|line| say(line));
    // With a bug, or with faults that somebody chose, other things than usual never happen.
    let missing = if args.seeds < LIVES_MIN || args.plant.is_some() || !args.faults.is_empty() {
        Vec::new()
    } else {
        let operations: Vec<&str> = ops::ALL.iter().map(|op| op.name()).collect();
        let faults: Vec<_> = faults::ALL.iter().map(|fault| (fault.name(), fault.comes_within())).collect();
        totals.missing(&operations, &faults)
    };
    missing.iter().for_each(|what| say(&format!("FAILED: {what}")));
    let (hours, took) = (totals.simulated.as_secs_f64() / 3600.0, begin.elapsed().as_secs_f64() / 3600.0);
    let per_hour = hours / took.max(1e-9);
    say(&format!("{hours:.2} simulated cluster-hours in {:.0} s: {per_hour:.0} per hour", took * 3600.0));
    say(&format!("{} passed ({} without a write), {} failed {failed:?}", totals.lives, totals.empty, failed.len()));
    if let Some(plant) = &args.plant {
        if failed.is_empty() {
            say(&format!("{plant}: not found"));
        }
        return if failed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    if failed.is_empty() && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Does `work` for all items, `jobs` at once, for as long as it `goes_on`, and tells each result. Who has done with one takes the next:
/// a slow life keeps nobody waiting.
fn side_by_side<T: Send, R: Send>(
    jobs: usize,
    items: VecDeque<T>,
    goes_on: impl Fn() -> bool + Sync,
    work: impl Fn(T) -> R + Sync,
    mut tell: impl FnMut(R),
) {
    let (queue, (send, ended)) = (Mutex::new(items), mpsc::channel());
    // In a function, because the condition of a loop would hold the lock for as long as the loop's body runs.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (next, goes_on, work, send) = (&next, &goes_on, &work, send.clone());
            scope.spawn(move || {
                while goes_on()
                    && let Some(item) = next()
                    && send.send(work(item)).is_ok()
                {}
            });
        }
        drop(send);
        ended.into_iter().for_each(&mut tell);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_seed_may_have_its_own_load() {
        assert_eq!(Life::parse("21 a closed segment rots"), Some(Life::of(21)));
        assert_eq!(Life::parse("21@15 the same"), Some(Life { seed: 21, load: Some(15) }));
        assert_eq!([Life::parse(""), Life::parse("# 21"), Life::parse("21@x")], [None; 3]);
    }

    #[test]
    fn as_many_as_wanted_run_at_once_and_each_runs_once() {
        let (send, receive) = mpsc::channel();
        let receive = Mutex::new(receive);
        let mut done = Vec::new();
        // The first waits for the second.
        let work = |n: u32| {
            match n {
                0 => receive.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap(),
                1 => send.send(()).unwrap(),
                _ => {}
            }
            n
        };
        side_by_side(2, (0..7).collect(), || true, work, |n| done.push(n));
        done.sort_unstable();
        assert_eq!(done, (0..7).collect::<Vec<_>>());
        side_by_side(3, VecDeque::from([1]), || false, |n: u32| n, |n| panic!("{n} ran, and there was no time"));
    }
}
