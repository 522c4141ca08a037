//! `--no-login`: the commands where authentication is off, and in maintenance mode.

use std::process::Output;

use crate::first_password::Serve;
use crate::support::{alhambra, free_base_port, run, stderr, stdout, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_work_where_nobody_logs_in() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, port) = (folder.path().join("node"), free_base_port(1));
    let endpoint = format!("127.0.0.1:{port}");
    let call = |words: &[&str]| -> Output {
        let mut command = alhambra(words);
        command.env("ALHAMBRA_ENDPOINT", &endpoint).env("ALHAMBRA_STATE_DIR", folder.path().join("states"));
        run(&mut command)
    };
    let answers = |words: &[&str], expected: &str| {
        let output = call(words);
        assert!(output.status.success() && stdout(&output).contains(expected), "{words:?}: {output:?}");
    };
    let fails = |words: &[&str], expected: &[&str]| {
        let output = call(words);
        let told = stderr(&output);
        assert!(!output.status.success() && expected.iter().all(|text| told.contains(text)), "{words:?}: {told}");
    };

    // Authentication is off: what is read is verified as ever, with the trusted state of before.
    let serve = Serve::start(&dir, port, &["--auth=false", "--admin-password", "Admin-123"]);
    wait_until("a write", || call(&["set", "k", "v", "--no-login"]).status.success().then_some(()));
    answers(&["get", "k", "--no-login"], "v");
    answers(&["verify", "k", "--no-login"], "v");
    answers(&["history", "k", "--no-login"], "v");
    fails(&["get", "k"], &["authentication disabled", "--no-login"]);
    fails(&["get", "k", "--no-login", "--database", "other"], &["only with authentication on"]);
    for command in [&["status"][..], &["bench", "kv"], &["import", "--from", "localhost:1"]] {
        fails(&[command, &["--no-login"]].concat(), &["needs a login"]);
    }
    answers(&["info", "--no-login"], "compatible with");
    serve.stop();

    // With it on, nobody is let in without a login.
    let serve = Serve::start(&dir, port, &[]);
    serve.serves("Admin-123").await;
    fails(&["get", "k", "--no-login"], &["leave --no-login out"]);
    answers(&["database", "create", "other", "--password", "Admin-123"], "other");
    answers(&["set", "k", "in other", "--database", "other", "--password", "Admin-123"], "");
    serve.stop();

    // Maintenance mode gives a token for each database, and takes no writes of users.
    let serve = Serve::start(&dir, port, &["--auth=false", "--maintenance"]);
    wait_until("a read", || call(&["get", "k", "--no-login"]).status.success().then_some(()));
    answers(&["get", "k", "--no-login", "--database", "other"], "in other");
    fails(&["get", "k", "--no-login", "--database", "nowhere"], &["nowhere"]);
    fails(&["set", "k", "w", "--no-login"], &["maintenance"]);
    answers(&["get", "k", "--no-login"], "v");
    serve.stop();
}
