//! Bad input: a clear error that says what to do, a non-zero exit, and nothing changed.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{Demo, alhambra, free_base_port, run, stderr, stdout};

/// Every file below a folder with its bytes, so that "nothing changed" can be checked. Lock files hold nothing.
fn image(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if !entry.file_name().eq_ignore_ascii_case("lock") {
                found.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

/// The command ended with this code, said all of this on standard error and nothing on standard output.
fn refused(output: &Output, code: i32, says: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(stdout(output), "", "an answer in spite of the error {text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn wrong_words_are_answered_with_the_nearest_right_one() {
    for (arguments, says) in [
        (&["serv"][..], &["unrecognized subcommand", "serve"][..]),
        (&["stauts"], &["unrecognized subcommand", "status"]),
        (&["demo", "--base-prot", "4000"], &["unexpected argument", "--base-port"]),
        (&["serve", "--bootstrap-expct", "1"], &["unexpected argument", "--bootstrap-expect"]),
        (&["get"], &["KEY"]),
        (&["set", "only-a-key"], &["VALUE"]),
        (&["status", "--output", "yaml"], &["json", "table"]),
        (&["bench", "kv", "--batch", "0"], &["--batch"]),
        (&["completions", "tcsh"], &["bash", "fish", "zsh"]),
        (&["scan", "--endpoint", "localhost"], &["HOST:PORT", "what to do"]),
        (&["login", "ada"], &["logs in by itself", "what to do", "--username", "alhambra shell"]),
        (&["use", "orders"], &["logs in by itself", "--database"]),
        (&["logout"], &["logs in by itself"]),
        (&["demo", "--nodes", "0"], &["what to do", "--nodes 1"]),
        (&["bench", "kv", "--verified", "--batch", "100"], &["what to do", "--batch 1"]),
        (&[], &["Usage"]),
    ] {
        refused(&run(&mut alhambra(arguments)), 2, says);
    }
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_is_touched() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let file = home.path().join("alhambra.toml");
    fs::write(&file, "prot = 4000\n").unwrap();
    let serve = |more: &[&str], environment: &[(&str, &str)]| {
        let mut arguments = vec!["serve", "--dir", dir.to_str().unwrap(), "--address", "127.0.0.1"];
        arguments.extend(more);
        run(alhambra(&arguments).envs(environment.iter().copied()))
    };
    let far = ["--bootstrap-expect", "2", "--peers", "127.0.0.1:3323,192.0.2.7:3323"];
    let near = ["--bootstrap-expect", "2", "--peers", "127.0.0.1:3323,127.0.0.1:3333"];
    for (output, says) in [
        (serve(&[&far[..], &["--insecure-peers"]].concat(), &[]), &["192.0.2.7:3323", "loopback"][..]),
        (serve(&near, &[]), &["TLS", "--insecure-peers"]),
        (serve(&["--maintenance"], &[]), &["--maintenance", "--auth=false"]),
        (serve(&["--bootstrap-expect", "3"], &[]), &["--peers"]),
        (serve(&["--port", "70000"], &[]), &["port", "70000", "flag"]),
        (serve(&[], &[("ALHAMBRA_PORT", "many")]), &["port", "many", "ALHAMBRA_PORT"]),
        (serve(&[], &[("IMMUDB_PORT", "many")]), &["port", "many", "IMMUDB_PORT"]),
        (serve(&["--config", file.to_str().unwrap()], &[]), &["prot", "alhambra.toml", "--print"]),
        (serve(&["--config", "/nonexistent.toml"], &[]), &["/nonexistent.toml", "--config"]),
    ] {
        refused(&output, 2, says);
        assert!(stderr(&output).contains("what to do: "), "{}", stderr(&output));
        assert!(!dir.exists(), "the data folder was made");
    }
}

#[test]
fn a_port_in_use_is_named_and_nothing_starts() {
    let home = tempfile::tempdir().unwrap();
    let base_port = free_base_port(3);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, base_port + 11)).unwrap();
    let me = std::process::id().to_string();

    let dir = home.path().join("demo");
    let base = base_port.to_string();
    let output = run(&mut alhambra(&["demo", "--dir", dir.to_str().unwrap(), "--base-port", &base]));
    refused(&output, 1, &[&(base_port + 11).to_string(), &me, "nothing was started", "--base-port"]);
    assert!(image(&dir).is_empty(), "something is in the demo's folder");

    let dir = home.path().join("serve");
    let port = (base_port + 11).to_string();
    let ports = ["--port", "--peer-port", "--metrics-server-port", "--web-server-port"];
    for flag in ports {
        let mut arguments = vec!["serve", "--dir", dir.to_str().unwrap(), "--address", "127.0.0.1"];
        for other in ports {
            arguments.extend([other, if other == flag { &port } else { "0" }]);
        }
        let output = run(&mut alhambra(&arguments));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{flag}: {text}");
        for part in ["error: ", &port, &me, "what to do: "] {
            assert!(text.contains(part), "{flag}: {part:?} is missing in: {text}");
        }
        assert!(image(&dir).is_empty(), "{flag}: something is in the data folder");
    }
    drop(taken);
}

#[test]
fn what_the_server_refuses_is_said_clearly() {
    let home = tempfile::tempdir().unwrap();
    let demo = Demo::start(home.path(), 1, free_base_port(1));
    let state_dir = home.path().join("states");
    let call = |arguments: &[&str]| {
        let mut command = alhambra(arguments);
        command.args(["--endpoint", &demo.endpoint_list()]).env("ALHAMBRA_STATE_DIR", &state_dir);
        run(&mut command)
    };
    let before = call(&["status", "--output", "json"]);
    for (output, code, says) in [
        (call(&["get", "k", "--password", "wrong"]), 1, &["invalid user name or password", "--password"][..]),
        (call(&["get", "k", "--username", "nobody"]), 1, &["invalid user name or password", "--username"]),
        (call(&["get", "k", "--database", "nowhere"]), 3, &["nowhere", "--database"]),
        (call(&["get", "absent"]), 3, &["absent"]),
        (call(&["history", "absent"]), 3, &["absent"]),
        (call(&["set", "", "v"]), 2, &["the key is empty"]),
        (call(&["set", &"k".repeat(1024), "v"]), 1, &["max key length exceeded"]),
    ] {
        refused(&output, code, says);
        assert!(stderr(&output).contains("what to do: "), "{}", stderr(&output));
    }
    assert_eq!(stdout(&call(&["status", "--output", "json"])), stdout(&before), "a refused call changed something");
    let nobody = run(alhambra(&["get", "k", "--endpoint", "127.0.0.1:9"]).env("ALHAMBRA_STATE_DIR", &state_dir));
    refused(&nobody, 5, &["127.0.0.1:9", "what to do: "]);
    assert_eq!(demo.stop(), Some(0));
}

/// Starts the single node of a stopped demo on its folder again and expects it to refuse.
fn start_again(dir: &Path, base_port: u16) -> Output {
    let port = base_port.to_string();
    run(&mut alhambra(&["demo", "--dir", dir.to_str().unwrap(), "--nodes", "1", "--base-port", &port]))
}

#[test]
fn damaged_files_are_named_at_open_and_left_as_they_are() {
    let home = tempfile::tempdir().unwrap();
    let base_port = free_base_port(1);
    let dir = home.path().join("demo");
    let demo = Demo::start(&dir, 1, base_port);
    for n in 0..20 {
        let key = format!("key-{n}");
        let output = run(alhambra(&["set", &key, &"v".repeat(300), "--endpoint", &demo.endpoint_list()])
            .env("ALHAMBRA_STATE_DIR", home.path().join("states")));
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(demo.stop(), Some(0));

    let node = dir.join("node-1");
    let whole = image(&node);
    let segments: Vec<&PathBuf> =
        whole.keys().filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect();
    let largest = segments.iter().max_by_key(|path| whole[**path].iter().filter(|byte| **byte != 0).count()).unwrap();
    let used = whole[*largest].iter().rposition(|byte| *byte != 0).unwrap();
    let mut flipped = whole[*largest].clone();
    flipped[used / 2] ^= 1;
    let truncated = whole[*largest][..used / 2].to_vec();
    for (what, bytes) in [("flipped", flipped), ("truncated", truncated)] {
        fs::write(largest, &bytes).unwrap();
        let databases = node.join("databases");
        let damaged = image(&databases);
        let output = start_again(&dir, base_port);
        refused(&output, 1, &["what to do: ", largest.file_name().unwrap().to_str().unwrap()]);
        assert!(image(&databases) == damaged, "{what}: something was changed");
        fs::write(largest, &whole[*largest]).unwrap();
    }
    let demo = Demo::start(&dir, 1, base_port);
    assert_eq!(demo.stop(), Some(0));
}

#[test]
fn a_folder_of_another_cluster_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (ours, theirs) = (home.path().join("ours"), home.path().join("theirs"));
    let base_port = free_base_port(3);
    for (dir, base_port) in [(&ours, base_port), (&theirs, free_base_port(3))] {
        let demo = Demo::start(dir, 3, base_port);
        assert_eq!(demo.stop(), Some(0));
    }
    let kept = home.path().join("kept");
    fs::rename(ours.join("node-1"), &kept).unwrap();
    fs::rename(theirs.join("node-1"), ours.join("node-1")).unwrap();
    let ledger = |dir: &Path| {
        let mut files = image(dir);
        files.retain(|path, _| path.extension().is_some_and(|extension| extension == "seg"));
        files
    };
    let before = ledger(&ours.join("node-1"));
    assert!(!before.is_empty());

    let port = base_port.to_string();
    let output = run(&mut alhambra(&["demo", "--dir", ours.to_str().unwrap(), "--base-port", &port]));
    // The one that is wrong, in whatever order the three come up.
    refused(&output, 1, &["node 1 ended at its start", "belongs to cluster", "what to do: "]);
    assert!(ledger(&ours.join("node-1")) == before, "the ledger of the other cluster was changed");

    fs::remove_dir_all(ours.join("node-1")).unwrap();
    fs::rename(&kept, ours.join("node-1")).unwrap();
    let demo = Demo::start(&ours, 3, base_port);
    assert_eq!(demo.stop(), Some(0));
}

#[test]
fn a_promise_is_released_only_on_purpose() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().to_str().unwrap();
    let output = run(&mut alhambra(&["cluster", "release-promise", "--dir", dir]));
    refused(&output, 2, &["--that-cluster-was-never-formed"]);
    let output = run(&mut alhambra(&["cluster", "release-promise", "--that-cluster-was-never-formed", "--dir", dir]));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "there is no promise to release; nothing was changed\n");
    let missing = home.path().join("missing");
    let missing = missing.to_str().unwrap();
    let output =
        run(&mut alhambra(&["cluster", "release-promise", "--that-cluster-was-never-formed", "--dir", missing]));
    refused(&output, 3, &["is not a folder"]);
}

#[test]
fn without_a_server_a_command_says_that_it_waits_and_then_what_to_start() {
    // Nobody listens there any more.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let endpoint = format!("127.0.0.1:{port}");
    let home = tempfile::tempdir().unwrap();
    let output = run(alhambra(&["get", "key", "--endpoint", &endpoint]).env("ALHAMBRA_STATE_DIR", home.path()));
    refused(
        &output,
        5,
        &[
            "no answer yet; trying for 10 s",
            &format!("no node answers at {endpoint}"),
            "Connection refused",
            "alhambra demo",
        ],
    );
    assert!(!stderr(&output).contains("ConnectError"), "{}", stderr(&output));
}
