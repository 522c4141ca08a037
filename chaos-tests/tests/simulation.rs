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

/// Lives that a planted bug may need to be found, from the first seed of its row on: each change of the server makes other stories, and
/// what ignores a floor shows in one of eight.
const LIVES: &str = "40";

/// Looks for a planted bug from a seed on; it must be found by a property that it breaks.
fn is_found(plant: &str, from: &str, load: &str, properties: &[&str]) {
    let lives = ["--quiet", "--seeds", LIVES, "--jobs", "1", "--from", from, "--load-seconds", load];
    let output = sim(&[&lives[..], &["--plant", plant]].concat());
    let text = text(&output);
    assert!(output.status.success(), "{LIVES} lives from seed {from} on did not notice {plant}: {text}");
    let is_of = |property: &&str| text.contains(&format!("{plant}: found by {property} with seed "));
    assert!(properties.iter().any(is_of), "{plant} breaks {properties:?}: {text}");
}

/// A simulation that cannot fail shows nothing: each planted bug is found, by a property that it breaks.
#[test]
fn planted_bugs_are_found() {
    let plants: [(&str, &str, &[&str]); 14] = [
        ("ack-before-fsync", "1", &["liveness", "R4"]),
        ("forget-vote", "1", &["liveness"]),
        ("skip-barrier", "1", &["R5", "R6"]),
        ("apply-twice", "1", &["R4"]),
        ("torn-batch", "1", &["A1"]),
        ("ignore-conditions", "2", &["A2"]),
        ("ignore-read-sets", "3", &["A3"]),
        ("many-states", "2", &["R6"]),
        ("ignore-floor", "20", &["R7"]),
        ("accept-any-consistency", "1", &["P1"]),
        ("no-scrub", "3", &["R2"]),
        ("forget-trust", "1", &["V2"]),
        ("no-deadline", "1", &["T1"]),
        ("index-lags", "1", &["R9"]),
    ];
    for (plant, from, properties) in plants {
        is_found(plant, from, "15", properties);
    }
}

/// The same for bugs in the server itself (`storage::plant`), which only builds with debug assertions have.
#[test]
#[cfg(debug_assertions)]
fn bugs_in_the_server_are_found() {
    // Each with the first seed, the seconds of load and faults, and what it breaks.
    let plants: [(&str, &str, &str, &[&str]); 28] = [
        ("server-skip-read-barrier", "1", "12", &["R5", "R6"]),
        ("server-stale-snapshot-read", "1", "12", &["R5", "R6"]),
        ("server-index-lags", "1", "12", &["R5", "R6", "R9"]),
        ("server-history-forgets", "1", "12", &["R8"]),
        ("server-wrong-proof-step", "1", "12", &["P1"]),
        ("server-proof-of-another-revision", "1", "12", &["P1"]),
        ("server-ignore-preconditions", "2", "12", &["A2"]),
        ("server-ignore-read-sets", "3", "12", &["A3"]),
        ("server-apply-twice-after-restart", "1", "12", &["R2", "liveness"]),
        ("server-local-setting-in-apply", "1", "12", &["R2", "liveness"]),
        ("server-ack-before-sync", "1", "12", &["liveness", "R4"]),
        ("server-forget-requests", "1", "12", &["R4", "S6"]),
        ("server-forget-requests-on-install", "1", "40", &["R2", "R4", "liveness"]),
        ("server-forget-parked-requests", "1", "12", &["R2", "R4", "liveness"]),
        ("server-forget-vote", "1", "12", &["W2"]),
        ("server-ignore-seal-mismatch", "1", "12", &["R2"]),
        ("server-overwrite-on-dispute", "1", "30", &["R2", "liveness"]),
        ("server-drop-pre-vote", "3", "12", &["M3"]),
        ("server-unconfirmed-read-index", "9", "20", &["R5", "R6"]),
        ("server-serve-before-caught-up", "1", "12", &["R5", "R6", "R8"]),
        ("library-accept-any-consistency", "1", "12", &["P1", "P2"]),
        ("server-ignore-read-floor", "20", "14", &["R7", "S5"]),
        ("server-stale-frame-after-cut", "14", "14", &["liveness"]),
        ("server-forget-too-much", "2", "12", &["S6"]),
        ("server-show-forgotten", "2", "12", &["S5"]),
        ("server-follow-bound-members", "2", "12", &["R10"]),
        ("server-local-verified-reads", "1", "12", &["R5"]),
        ("server-deny-after-commit", "1", "12", &["R4"]),
    ];
    for (plant, from, load, properties) in plants {
        is_found(plant, from, load, properties);
    }
}

/// Looking for a seed stops at the first that finds the bug, and says by what and after how long.
#[test]
#[cfg(debug_assertions)]
fn the_first_seed_that_finds_a_bug_is_told() {
    let args = ["--seeds", "3", "--from", "1", "--load-seconds", "12", "--jobs", "1"];
    let output = sim(&[&args[..], &["--plant", "server-history-forgets"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("server-history-forgets: found by R8 with seed "), "{}", text(&output));
}
