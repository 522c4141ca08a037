//! Runs simulated lives of a cluster. One seed per process: with several, this program starts itself once per seed.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use alhambra_chaos_tests::sim::cluster::{Options, Plant, run};
use clap::Parser;

/// Simulates a cluster of three production nodes under faults and judges what its clients saw.
#[derive(Parser)]
struct Args {
    /// Run this one seed and tell its story.
    #[arg(long)]
    seed: Option<u64>,
    /// Run this many seeds, each in a process of its own, two at a time.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// First of the seeds.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Simulated seconds of load and faults.
    #[arg(long, default_value_t = 60)]
    load_seconds: u64,
    /// Run the first seed twice and compare the traces.
    #[arg(long)]
    replay_check: bool,
    /// Plant this bug: the simulation is expected to fail.
    #[arg(long, value_parser = ["ack-before-fsync"])]
    plant: Option<String>,
    /// Do not tell the story.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => one(&args, seed),
        None => many(&args),
    }
}

fn one(args: &Args, seed: u64) -> ExitCode {
    let plant = if args.plant.is_some() { Plant::AcknowledgeBeforeFsync } else { Plant::Nothing };
    let options = Options { seed, load: Duration::from_secs(args.load_seconds), story: !args.quiet, plant };
    match run(options) {
        Ok(report) => {
            println!("seed {seed}: ok {report:?}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("seed {seed}: FAILED: {what}");
            let plant = args.plant.as_ref().map(|p| format!(" --plant {p}")).unwrap_or_default();
            println!("replay: cargo run --bin sim -- --seed {seed} --load-seconds {}{plant}", args.load_seconds);
            ExitCode::FAILURE
        }
    }
}

/// Starts this program for one seed; answers whether it succeeded, and its last line.
fn child(args: &Args, seed: u64) -> Result<std::process::Child, std::io::Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--quiet", "--seed", &seed.to_string(), "--load-seconds", &args.load_seconds.to_string()]);
    if let Some(plant) = &args.plant {
        command.args(["--plant", plant]);
    }
    command.stdout(Stdio::piped()).spawn()
}

fn finish(child: std::process::Child) -> (bool, String) {
    match child.wait_with_output() {
        Ok(output) => (output.status.success(), String::from_utf8_lossy(&output.stdout).trim_end().to_string()),
        Err(e) => (false, e.to_string()),
    }
}

fn many(args: &Args) -> ExitCode {
    let seeds: Vec<u64> = (args.from..args.from + args.seeds).collect();
    let mut failed = Vec::new();
    let mut outputs = Vec::new();
    for pair in seeds.chunks(2) {
        let children: Vec<_> = pair.iter().map(|seed| (*seed, child(args, *seed))).collect();
        for (seed, child) in children {
            let (ok, text) = child.map(finish).unwrap_or_else(|e| (false, e.to_string()));
            println!("{text}");
            if !ok {
                failed.push(seed);
            }
            outputs.push(text);
        }
    }
    if args.replay_check {
        let (_, again) = child(args, args.from).map(finish).unwrap_or_else(|e| (false, e.to_string()));
        if outputs.first() != Some(&again) {
            println!("seed {}: FAILED: the same seed told another story:\n{again}", args.from);
            failed.push(args.from);
        } else {
            println!("seed {}: the same trace twice", args.from);
        }
    }
    println!("{} passed, {} failed", seeds.len().saturating_sub(failed.len()), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
