//! The seams, proven: production nodes under simulated network, clock, randomness and disk, decided by one seed.

use std::process::{Command, Output};

use alhambra_chaos_tests::sim::report::Report;

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

/// A life that does not come to its end keeps nobody waiting for ever.
#[test]
fn a_seed_that_takes_too_long_is_stopped_and_has_failed() {
    let output = sim(&["--seeds", "2", "--from", "1", "--limit-seconds", "0"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("seed 2: FAILED: T2: no end after 0 s"), "{}", text(&output));
}

/// What programs read is one line per life, with what its operations and faults came to.
#[test]
fn a_life_is_one_line_of_json() {
    let output = sim(&["--seeds", "1", "--from", "2", "--load-seconds", "5", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).expect("text");
    let report = Report::parse(said.trim_end()).expect("one line");
    assert_eq!((report.seed, report.nodes), (2, 3));
    assert!(report.operations["set"].done > 0, "{said}");
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
