//! The commands about single transactions and versions, and all of them at the prompt of `alhambra shell`.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Demo, alhambra, free_base_port, run, stderr, stdout};

struct Home {
    demo: Demo,
    folder: tempfile::TempDir,
}

impl Home {
    fn start() -> Home {
        let folder = tempfile::tempdir().unwrap();
        let demo = Demo::start(&folder.path().join("demo"), 1, free_base_port(1));
        Home { demo, folder }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = alhambra(arguments);
        command.env("ALHAMBRA_ENDPOINT", self.demo.endpoint_list());
        command.env("ALHAMBRA_STATE_DIR", self.folder.path().join("states"));
        command.env("ALHAMBRA_HISTORY", self.folder.path().join("history"));
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = run(self.command(arguments).args(["--output", "json"]));
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    /// Lines through a pipe.
    fn shell(&self, lines: &str) -> Output {
        let mut command = self.command(&["shell"]);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A shell that has ended reads no more.
        let _ = shell.stdin.take().unwrap().write_all(lines.as_bytes());
        shell.wait_with_output().unwrap()
    }
}

#[test]
fn versions_are_read_and_restored_and_transactions_shown() {
    let home = Home::start();
    for value in ["one", "two", "three"] {
        home.json(&["set", "k", value]);
    }
    let value = |arguments: &[&str]| home.json(&[&["get", "k"], arguments].concat());
    assert_eq!(
        value(&["--revision", "1"]),
        json!({"key":"k","value":"one","tx":1,"revision":1,"deleted":false,"expired":false,"expires_at":null,
            "non_indexable":false,"reference":null,"verified":true})
    );
    let raw = |arguments: &[&str]| stdout(&run(&mut home.command(arguments)));
    assert_eq!(
        (raw(&["g", "k@2", "--value-only"]), raw(&["sg", "k@-2", "--value-only"])),
        ("two".into(), "one".into())
    );
    assert_eq!(raw(&["get", "k#2", "--revision-separator", "#", "--value-only"]), "two");
    // A mail address is no version.
    home.json(&["s", "a@b.example", "five"]);
    assert_eq!(raw(&["get", "a@b.example", "--value-only"]), "five");
    assert_eq!(raw(&["get", "a@b.example@1", "--value-only"]), "five");
    let both = run(&mut home.command(&["get", "k", "--value-only", "--output", "json"]));
    assert_eq!(both.status.code(), Some(2), "{}", stderr(&both));
    assert_eq!(value(&["--revision", "-1"])["value"], "two");
    assert_eq!(
        (&value(&["--at-tx", "2"])["value"], &value(&["--at-tx", "2"])["verified"]),
        (&json!("two"), &json!(true))
    );
    assert_eq!(value(&["--at-tx", "2", "--no-verify"])["verified"], false);
    let output = run(&mut home.command(&["get", "k", "--revision", "9"]));
    assert!(output.status.code() == Some(1) && stderr(&output).contains("invalid key revision number"), "{output:?}");

    let restored = home.json(&["restore", "k", "-2"]);
    assert_eq!((&restored["value"], &restored["tx"], &restored["verified"]), (&json!("one"), &json!(5), &json!(true)));
    assert_eq!(value(&[])["value"], "one");
    assert_eq!(home.json(&["restore", "k@2"])["value"], "two");
    assert_eq!(value(&[])["value"], "two");
    assert_eq!(run(&mut home.command(&["restore", "k", "77"])).status.code(), Some(1));
    let unsaid = run(&mut home.command(&["restore", "k"]));
    assert!(unsaid.status.code() == Some(2) && stderr(&unsaid).contains("KEY@N"), "{unsaid:?}");

    let (tx, current) = (home.json(&["stx", "6"]), home.json(&["crt"]));
    assert_eq!((&tx["alh"], &tx["verified"]), (&current["alh"], &json!(true)));
    assert_eq!(tx["entries"][0]["key"], "k");
    assert_eq!((&current["tx"], &current["database"]), (&json!(6), &json!("defaultdb")));
    home.json(&["za", "set", "-1.5", "k"]);
    let entry = &home.json(&["safetx", "7", "--no-verify"])["entries"][0];
    assert_eq!((&entry["kind"], &entry["key"]), (&json!("set"), &json!("set -1.5 k")));
    let output = run(&mut home.command(&["tx", "99"]));
    assert!(output.status.code() == Some(1) && stderr(&output).contains("tx not found"), "{output:?}");

    let info = home.json(&["info"]);
    assert_eq!((&info["transactions"], &info["databases"]), (&json!(7), &json!(1)));
    assert_eq!(info["cluster"], home.demo.record()["uuid"]);
    assert!(home.json(&["health"])["last_request_completed_at_ms"].as_i64().unwrap() > 1_600_000_000_000);
}

#[test]
fn the_shell_does_what_its_lines_say() {
    let home = Home::start();
    let lines = "# a comment\n\nset greeting \"hello world\"\nget greeting --output raw\n get   'greeting' --output raw\nexit\nset never x\n";
    let output = home.shell(lines);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).ends_with("hello worldhello world"), "{}", stdout(&output));
    assert_eq!(run(&mut home.command(&["get", "never"])).status.code(), Some(3), "exit ends it");

    let output = home.shell("help\nset --help\n");
    assert!(output.status.success(), "{}", stderr(&output));
    for part in ["zscan", "use DATABASE", "--no-verify"] {
        assert!(stdout(&output).contains(part), "{part}");
    }

    // The first line that fails ends it, with the exit code of the command.
    for (lines, code, says) in [
        ("get nothing\nset after x\n", 3, "there is no key"),
        ("gett k\nset after x\n", 2, "'get'"),
        ("set k \"open\nset after x\n", 2, "not closed"),
        ("serve\nset after x\n", 2, "not for the shell"),
        ("use\nset after x\n", 2, "one word has to follow"),
        ("use nowhere\nset after x\n", 3, "database does not exist"),
        ("login nobody\nwrong\nset after x\n", 1, "invalid user name or password"),
        ("get greeting --password wrong\nset after x\n", 1, "--password"),
        ("logout\nget greeting\nset after x\n", 1, "what to do: login USER"),
        ("logout\nuser list\nset after x\n", 1, "what to do: login USER"),
    ] {
        let output = home.shell(lines);
        assert_eq!(output.status.code(), Some(code), "{lines:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{lines:?}: {}", stderr(&output));
    }
    assert_eq!(run(&mut home.command(&["get", "after"])).status.code(), Some(3), "nothing follows a failure");
    let output = home
        .shell("use systemdb\ncurrent --output json\nuse defaultdb\nlogin immudb\nimmudb\nget greeting --output raw\n");
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("\"database\": \"systemdb\"") && said.ends_with("hello world"), "{said}");
    assert!(!home.folder.path().join("history").exists(), "lines from a pipe are no history");
}
