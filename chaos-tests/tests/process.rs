//! Real processes under real faults, in the form that fits into a test; and that the judge can fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary that users run lies beside ours: `cargo test --workspace` builds it.
fn alhambra() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_chaos")).with_file_name("alhambra");
    assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}

fn chaos(report: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.args(args).arg("--report").arg(report).arg("--alhambra").arg(alhambra());
    command.output().expect("the chaos program starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Nothing of a run stays: no namespace, no link, no folder.
fn is_tidy(said: &str) {
    let listed = |args: &[&str]| {
        let output = Command::new("ip").args(args).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    let subnet =
        said.split_whitespace().find(|word| word.starts_with("10.77.")).and_then(|word| word.strip_suffix(".0/24"));
    if let Some(subnet) = subnet {
        let left = listed(&["-o", "-4", "addr", "show"]);
        assert!(!left.contains(&format!(" {subnet}.")), "the bridge is still there: {left}");
    }
}

#[test]
fn real_nodes_under_faults_lose_nothing_and_the_page_tells() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("chaos.html");
    let faults = "kill-leader,pause-long,isolate,one-way,slow-link,failing-disk,clock-jump,restart-all";
    let output = chaos(&report, &["--seconds", "25", "--sdks", "none", "--faults", faults]);
    assert!(output.status.success(), "{}", text(&output));
    is_tidy(&text(&output));
    let page = std::fs::read_to_string(&report).unwrap();
    for part in ["<svg", "nothing was found", "acknowledged writes are never lost", "Who says that it leads"] {
        assert!(page.contains(part), "the page has no {part:?}");
    }
    assert!(!page.contains("http"), "the page needs nothing from elsewhere");
}

/// The same without namespaces, where every peer link goes through a proxy.
#[test]
fn loopback_has_partitions_and_slow_links_too() {
    let dir = tempfile::tempdir().unwrap();
    let faults = "isolate,one-way,slow-link,unplug";
    let args = ["--loopback", "--seconds", "15", "--sdks", "none", "--faults", faults];
    let output = chaos(&dir.path().join("chaos.html"), &args);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("LOOPBACK"), "{}", text(&output));
}

/// A judge that cannot fail shows nothing: syncs of segments that lie, and all nodes killed, lose acknowledged writes.
#[test]
fn syncs_that_lie_are_caught() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("chaos.html");
    let args = ["--plant", "syncs-lie", "--seed", "1", "--seconds", "8", "--sdks", "none", "--faults", "restart-all"];
    let output = chaos(&report, &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("FAILED  acknowledged writes are never lost (R4)"), "{said}");
    assert!(said.contains("--seed 1 --seconds 8"), "the command that runs it again: {said}");
    assert!(std::fs::read_to_string(&report).unwrap().contains("failed"));
    assert!(report.with_extension("logs").join("node-1.log").is_file(), "the logs of the nodes are kept");
}

/// The same disk without the lie keeps everything, so that it is the lie that is caught above.
#[test]
fn the_same_schedule_with_honest_syncs_passes() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--seed", "1", "--seconds", "8", "--sdks", "none", "--faults", "restart-all"];
    let output = chaos(&dir.path().join("chaos.html"), &args);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_fault_that_does_not_exist_is_named() {
    let output = chaos(Path::new("unused.html"), &["--faults", "flood"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("no fault flood; there are: kill-leader"), "{}", text(&output));
}
