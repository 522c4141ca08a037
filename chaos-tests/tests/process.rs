//! Real processes under real faults, in the form that fits into a test; and that the judge can fail.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};

/// Runs share the processors, and each looks for what dead ones have left: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("chaos.html");
    let faults = "kill-leader,pause-long,isolate,one-way,slow-link,failing-disk,clock-jump,restart-all";
    let output = chaos(&report, &["--seconds", "25", "--sdks", "none", "--faults", faults]);
    assert!(output.status.success(), "{}", text(&output));
    is_tidy(&text(&output));
    let page = std::fs::read_to_string(&report).unwrap();
    for part in ["<svg", "nothing was found", "an acknowledged write is never lost", "Who says that it leads"] {
        assert!(page.contains(part), "the page has no {part:?}");
    }
    assert!(!page.contains("http"), "the page needs nothing from elsewhere");
}

/// The same without namespaces, where every peer link goes through a proxy.
#[test]
fn loopback_has_partitions_and_slow_links_too() {
    let _alone = alone();
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
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("chaos.html");
    let args = ["--plant", "syncs-lie", "--seed", "1", "--seconds", "8", "--sdks", "none", "--faults", "restart-all"];
    let output = chaos(&report, &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(
        said.lines().any(|line| line.starts_with("FAILED  an acknowledged write") && line.contains("(R4)")),
        "{said}"
    );
    assert!(said.contains("--seed 1 --seconds 8"), "the command that runs it again: {said}");
    assert!(std::fs::read_to_string(&report).unwrap().contains("failed"));
    assert!(report.with_extension("logs").join("node-1.log").is_file(), "the logs of the nodes are kept");
}

/// The same disk without the lie keeps everything, so that it is the lie that is caught above.
#[test]
fn the_same_schedule_with_honest_syncs_passes() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let args = ["--seed", "1", "--seconds", "8", "--sdks", "none", "--faults", "restart-all"];
    let output = chaos(&dir.path().join("chaos.html"), &args);
    assert!(output.status.success(), "{}", text(&output));
}

/// Waits until the run says that its nodes serve; what it said so far.
fn until_it_serves(child: &mut Child) -> String {
    let mut said = String::new();
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    while !said.contains("nodes serve") {
        let read = lines.read_line(&mut said).expect("a line of text");
        assert!(read > 0, "it ended early: {said}");
    }
    // It may go on talking to nobody.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    said
}

fn begin(report: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.args(["--seconds", "600", "--sdks", "none", "--faults", "pause-long"]);
    command.arg("--report").arg(report).arg("--alhambra").arg(alhambra()).stdout(Stdio::piped());
    command.spawn().expect("the chaos program starts")
}

fn signal(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(id, signal).expect("it runs");
}

#[test]
fn an_interrupted_run_leaves_nothing_and_a_killed_one_is_tidied_up_by_the_next() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("chaos.html");
    let folder = |child: &Child| std::env::temp_dir().join(format!("alhambra-chaos-{}", child.id()));

    let mut interrupted = begin(&report);
    let said = until_it_serves(&mut interrupted);
    assert!(folder(&interrupted).is_dir());
    signal(&interrupted, Signal::INT);
    assert_eq!(interrupted.wait().expect("it ends").code(), Some(2));
    assert!(!folder(&interrupted).exists());
    is_tidy(&said);

    let mut killed = begin(&report);
    let said = until_it_serves(&mut killed);
    signal(&killed, Signal::KILL);
    killed.wait().expect("it ends");
    let left = folder(&killed);
    assert!(left.is_dir(), "SIGKILL leaves time for nothing");
    let output = chaos(&report, &["--seconds", "1", "--sdks", "none", "--faults", "pause-short"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("left behind by an earlier run"), "{}", text(&output));
    assert!(!left.exists());
    is_tidy(&said);
}

#[test]
fn a_fault_that_does_not_exist_is_named() {
    let output = chaos(Path::new("unused.html"), &["--faults", "flood"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("no fault flood; there are: kill-leader"), "{}", text(&output));
}
