//! The seams, proven: production nodes under simulated network, clock, randomness and disk, decided by one seed.

use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sim")).args(args).output().expect("the simulator starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_simulated_minute_with_faults_loses_nothing_and_is_repeatable() {
    let output = sim(&["--seeds", "2", "--from", "1", "--load-seconds", "30", "--replay-check"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("the same trace twice"), "{}", text(&output));
}

/// A simulation that cannot fail shows nothing: each planted bug is found, by the property that it breaks, with this seed.
#[test]
fn planted_bugs_are_found() {
    const LIVENESS: &str = "liveness";
    let plants = [
        ("ack-before-fsync", "1", LIVENESS),
        ("forget-vote", "1", LIVENESS),
        ("skip-barrier", "1", "R5"),
        ("apply-twice", "1", "R4"),
        ("torn-batch", "1", "A1"),
        ("ignore-conditions", "2", "A2"),
        ("ignore-read-sets", "3", "A3"),
        ("many-states", "2", "R6"),
        ("ignore-floor", "4", "R7"),
        ("accept-any-consistency", "1", "W1: P1"),
        ("no-scrub", "3", "R2"),
        ("forget-trust", "1", "V2"),
        ("no-deadline", "1", "T1"),
        ("index-lags", "1", "R9"),
    ];
    for (plant, seed, property) in plants {
        let output = sim(&["--quiet", "--seed", seed, "--load-seconds", "40", "--plant", plant]);
        let text = text(&output);
        assert!(!output.status.success(), "seed {seed} did not notice {plant}: {text}");
        assert!(text.contains(&format!("seed {seed}: FAILED: {property}:")), "{plant} breaks {property}: {text}");
    }
}
