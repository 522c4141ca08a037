//! `alhambra import`: from a server of ours that replays real exports, honest, interrupted and lying; and from one own cluster into
//! another.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

use alhambra_client::{Client, Options, TxId};
use alhambra_ledger::header::TxHeader;
use serde_json::{Value, json};

use crate::import_source::{Source, UUID, databases, header};
use crate::support::{
    DEADLINE, Demo, Serve, Wire, alhambra, free_base_port, run, send_signal, stderr, stdout, wait_until,
};
use crate::users::Terminal;

struct Target {
    demo: Demo,
    home: tempfile::TempDir,
}

impl Target {
    fn start() -> Target {
        let home = tempfile::tempdir().unwrap();
        let demo = Demo::start(&home.path().join("demo"), 1, free_base_port(1));
        Target { demo, home }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = alhambra(arguments);
        command.env("ALHAMBRA_ENDPOINT", self.demo.endpoint_list()).env("ALHAMBRA_FROM_PASSWORD", "of the source");
        command.env("ALHAMBRA_STATE_DIR", self.home.path().join("states"));
        command
    }

    fn call(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.call(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    fn import(&self, source: &Source, more: &[&str]) -> Output {
        let from = ["import", "--from", &source.endpoint, "--database", "moved", "--output", "json"];
        self.call(&[&from[..], more].concat())
    }

    fn imported(&self, source: &Source, more: &[&str]) -> Value {
        let output = self.import(source, more);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    fn database(&self, name: &str) -> Option<Value> {
        let status: Value = serde_json::from_str(&stdout(&self.call(&["status", "--output", "json"]))).ok()?;
        let databases = status["nodes"][0]["databases"].as_array()?;
        databases.iter().find(|database| database["name"] == name).cloned()
    }

    /// Newest transaction of the target, when there is one.
    fn found(&self) -> Option<u64> {
        self.database("moved")?["tx"].as_u64()
    }

    /// Newest transaction of the target, and its Alh.
    fn state(&self) -> (u64, String) {
        let moved = self.database("moved").unwrap();
        (moved["tx"].as_u64().unwrap(), moved["alh"].as_str().unwrap().to_owned())
    }
}

#[test]
fn a_database_moves_over_in_pieces_and_is_cut_over() {
    let target = Target::start();
    let source = Source::start("kvone");
    let txs = &source.served.txs;
    // What there is so far, with a source that breaks off and forgets.
    source.served.newest.store(10, Ordering::SeqCst);
    source.served.cuts.store(3, Ordering::SeqCst);
    source.served.forgets.store(2, Ordering::SeqCst);
    let report = target.imported(&source, &[]);
    let expected = json!({
        "database": "moved", "source_uuid": UUID, "target_uuid": report["target_uuid"],
        "tx": 10, "alh": txs[9].1, "imported": 10, "cut_over": false,
    });
    assert_eq!(report, expected);
    assert_eq!(source.served.cuts.load(Ordering::SeqCst) + source.served.forgets.load(Ordering::SeqCst), 0);
    let refused = target.call(&["set", "--database", "moved", "--no-verify", "k", "v"]);
    assert!(stderr(&refused).contains("database is read-only because it's a replica"), "{}", stderr(&refused));

    // The rest, from where the target is.
    source.served.newest.store(31, Ordering::SeqCst);
    let exports = source.served.exports.load(Ordering::SeqCst);
    let report = target.imported(&source, &[]);
    assert_eq!((&report["tx"], &report["alh"], &report["imported"]), (&json!(31), &json!(txs[30].1), &json!(21)));
    assert!(source.served.exports.load(Ordering::SeqCst) - exports < 30, "nothing is fetched twice");
    assert_eq!(target.state(), (31, txs[30].1.clone()));

    // Nothing new; then users may write.
    let report = target.imported(&source, &["--cut-over"]);
    assert_eq!((&report["imported"], &report["cut_over"]), (&json!(0), &json!(true)));
    let set = target.call(&["set", "--database", "moved", "--output", "json", "after", "v"]);
    let set: Value = serde_json::from_str(&stdout(&set)).unwrap_or_else(|error| panic!("{error}: {}", stderr(&set)));
    assert_eq!((&set["tx"], &set["verified"]), (&json!(32), &json!(true)));
    let again = target.import(&source, &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("written by users"), "{}", stderr(&again));

    // A cut-over that was interrupted at its very end is ended by the same command; not one from elsewhere.
    let report = target.imported(&source, &["--cut-over", "--take-uuid"]);
    assert_eq!((&report["tx"], &report["alh"]), (&json!(31), &json!(txs[30].1)));
    assert_eq!((&report["imported"], &report["cut_over"]), (&json!(0), &json!(true)));
    assert_eq!(report["target_uuid"], UUID, "clients of the source find their states");
    let refused = target.call(&["cluster", "take-uuid", "9M4E"]);
    assert!(stderr(&refused).contains("20 characters, 0-9 and a-v"), "{}", stderr(&refused));
    let taken = target.call(&["cluster", "take-uuid", "9m4e2mr0ui3e8a215n4g", "--output", "json"]);
    let taken: Value = serde_json::from_str(&stdout(&taken)).unwrap();
    assert_eq!(taken, json!({ "server_uuid": "9m4e2mr0ui3e8a215n4g", "before": UUID }));
    let other = Source::start("notime");
    let refused = target.import(&other, &["--cut-over"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("lacks what the source has"), "{}", stderr(&refused));
    assert_eq!(other.served.sessions.load(Ordering::SeqCst), 0, "sessions are closed");
}

#[test]
fn a_source_in_use_is_followed_until_the_command_is_told_to_stop() {
    let target = Target::start();
    let source = Source::start("kvone");
    source.served.newest.store(10, Ordering::SeqCst);
    let arguments = ["import", "--from", &source.endpoint, "--database", "moved", "--output", "json", "--follow"];
    let child = target.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for newest in [10, 11, 31] {
        source.served.newest.store(newest, Ordering::SeqCst);
        wait_until("what is new", || (target.found()? == newest as u64).then_some(()));
    }
    send_signal("TERM", child.id());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&report["tx"], &report["imported"]), (&json!(31), &json!(31)));
    assert_eq!((&report["alh"], &report["cut_over"]), (&json!(source.served.txs[30].1), &json!(false)));
    assert_eq!(source.served.sessions.load(Ordering::SeqCst), 0, "sessions are closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_there_is_moves_over_as_it_was_although_the_command_is_killed_in_the_middle() {
    let target = Target::start();
    let mut versions = BTreeSet::new();
    for name in databases() {
        let source = Source::start(&name);
        let txs = &source.served.txs;
        let headers: Vec<TxHeader> = txs.iter().map(|(stream, _)| header(stream)).collect();
        versions.extend(headers.iter().map(|header| header.version));
        let last = txs.len() as u64;
        let import = ["import", "--from", &source.endpoint, "--database", &name];

        // The source falls silent within a transaction. The one before that needs it to vouch for it, and does not go on either.
        let silent = last / 2 + 1;
        let kept = silent - 2;
        source.served.silent.store(silent, Ordering::SeqCst);
        let killed = Serve(target.command(&import).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("what comes before the silence", || (target.database(&name)?["tx"] == kept).then_some(()));
        drop(killed);
        source.served.silent.store(0, Ordering::SeqCst);
        let trusted = target.json(&["verify", "--database", &name]);
        assert_eq!((&trusted["tx"], &trusted["alh"]), (&json!(kept), &json!(txs[kept as usize - 1].1)), "{name}");

        let report = target.json(&import);
        let expected = (&json!(last), &json!(txs[txs.len() - 1].1), &json!(last - kept));
        assert_eq!((&report["tx"], &report["alh"], &report["imported"]), expected, "{name}");
        let options = Options { database: name.clone(), ..Options::default() };
        let client = Client::connect(target.demo.endpoints(), options).await.unwrap();
        for (header, (_, alh)) in headers.iter().zip(txs) {
            let found = client.tx_by_id(header.id).await.unwrap().header;
            assert_eq!((&found, &found.alh().unwrap().to_string()), (header, alh), "{name}");
        }

        // Users go on in the form and within the limits of the source, and what was trusted in the middle leads there.
        target.json(&[&import[..], &["--cut-over"]].concat());
        let set = target.json(&["set", "--database", &name, "--no-verify", "after", "v"]);
        assert_eq!(set["tx"], json!(last + 1), "{name}");
        let own = client.tx_by_id(TxId(last + 1)).await.unwrap().header;
        assert_eq!((own.version, own.ts == 0), (headers[0].version, headers[0].ts == 0), "{name}");
        client.close().await;
        let verified = target.json(&["verify", "--database", &name, "after"]);
        let expected = (&json!(kept), &json!(last + 1), &json!("v"));
        assert_eq!((&verified["trusted_before"], &verified["tx"], &verified["entry"]["value"]), expected, "{name}");
        let long = "k".repeat(777);
        let refused = target.call(&["set", "--database", &name, "--no-verify", &long, "v"]);
        assert!(stderr(&refused).contains("max key length exceeded"), "{name}: {}", stderr(&refused));
    }
    assert_eq!(versions, BTreeSet::from([0, 1]), "old headers and new ones");
}

/// A line without its numbers, and these.
fn parts(line: &str) -> (String, Vec<usize>) {
    let words = line.chars().filter(|c| !c.is_ascii_digit()).collect();
    (words, line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect())
}

#[test]
fn how_far_it_is_is_told_while_it_runs_and_how_far_it_came_at_the_end() {
    let target = Target::start();
    let source = Source::start("kvone");
    let arguments = ["import", "--from", &source.endpoint, "--database", "moved", "--follow"];
    source.served.newest.store(10, Ordering::SeqCst);
    let child = target.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut import = Serve(child);
    let (say, heard) = mpsc::channel();
    let lines = BufReader::new(import.0.stderr.take().unwrap()).lines();
    thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
    // One more each time that it has caught up. It asks twice a second, and tells every five seconds how far it is.
    let (mut newest, mut told) = (9, Vec::new());
    while told.len() < 2 {
        newest += 1;
        source.served.newest.store(newest, Ordering::SeqCst);
        let caught_up = format!("caught up after {newest} transactions, following");
        loop {
            let line = heard.recv_timeout(DEADLINE).unwrap();
            if line == caught_up {
                break;
            }
            let (words, numbers) = parts(&line);
            assert_eq!(words, "transaction  of , /s,  behind", "{line}");
            let [at, of, _, behind] = numbers[..] else { panic!("{line}") };
            assert!(of == newest && at + behind == of, "{line}, of {newest}");
            told.push(at);
        }
    }
    assert_eq!(told[0], 1, "from the first on: {told:?}");
    send_signal("TERM", import.0.id());
    let status = wait_until("the end of the command", || import.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let mut report = String::new();
    import.0.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    let cells: Vec<&str> =
        report.lines().last().unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let (count, alh) = (newest.to_string(), &source.served.txs[newest - 1].1);
    assert_eq!(cells, ["moved", &count, &count, alh, "no: it is a replica"], "{report}");

    // At a terminal it is a bar, and then the report.
    let other = Source::start("notime");
    other.served.newest.store(5, Ordering::SeqCst);
    let arguments = ["import", "--from", &other.endpoint, "--database", "other"];
    let (success, seen) = Terminal::start("xterm", &target.command(&arguments)).end();
    assert!(success && seen.contains(" 1 of 5 transactions, ") && seen.contains("/s, 4 behind"), "{seen}");
    assert!(seen.trim_end().ends_with("no: it is a replica"), "{seen}");
}

/// Writes as many transactions, many at once.
async fn write_many(endpoints: Vec<String>, count: usize) {
    let client = Client::connect(endpoints, Options::default()).await.unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                for n in 0..count / 50 {
                    client.set(format!("key-{task}-{n}"), format!("value {n}")).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_leader_of_the_target_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let old = Demo::start(&folder.path().join("old"), 1, free_base_port(1));
    let new = Demo::start(&folder.path().join("new"), 3, free_base_port(3));
    write_many(old.endpoints(), 3_000).await;
    let leader = new.leader().await;
    let other = (leader + 1) % 3;
    let from = old.endpoint_list();
    // Through a follower, so that its way to the leader breaks and not the session.
    let to = [new.endpoints()[other].clone(), new.endpoints()[leader].clone()].join(",");
    let arguments = ["import", "--from", &from, "--from-password", "immudb", "--endpoint", &to, "--output", "json"];
    let child = alhambra(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut wire = Wire::open(&new.endpoints()[other]).await.unwrap();
    loop {
        let at = wire.state().await.unwrap().tx_id;
        assert!(at < 3_000, "it was over before the leader could be killed");
        if at >= 100 {
            break;
        }
    }
    let killed = new.process_ids()[leader];
    send_signal("KILL", killed);
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&report["tx"], &report["imported"]), (&json!(3_000), &json!(3_000)));
    new.wait_ready(&[killed]).await;
    let expected = Wire::open(&old.endpoints()[0]).await.unwrap().state().await.unwrap();
    for endpoint in new.endpoints() {
        let found = Wire::open(&endpoint).await.unwrap().state().await.unwrap();
        assert_eq!((found.tx_id, &found.tx_hash), (3_000, &expected.tx_hash), "{endpoint}");
    }
}

#[test]
fn what_a_lying_source_sends_is_not_imported() {
    let target = Target::start();
    let source = Source::start("kvone");
    let txs = &source.served.txs;
    let last = |n: usize| txs[n - 1].0.len() - 1;
    // Transaction, byte of its stream, as many transactions as are good.
    let lies = [
        ((5, last(5) - 3), 4, "the entries of transaction 5 are not the ones that it committed"),
        ((8, 8 + 4 + 8 + 32 + 7), 7, "transaction 8 is not the one that transaction 9 follows"),
        ((10, 8 + 4 + 7), 9, "it sends 11"),
        ((12, 8 + 4 + 8), 10, "transaction 11 is not the one that transaction 12 follows"),
        // The newest: nothing follows it.
        ((31, 8 + 4 + 8 + 32 + 7), 30, "transaction 31 is not the one in its state"),
    ];
    for ((tx, at), good, words) in lies {
        *source.served.change.lock().unwrap() = Some((tx, at));
        let output = target.import(&source, &[]);
        assert_eq!(output.status.code(), Some(4), "{tx}: {}", stderr(&output));
        assert_eq!(source.served.sessions.load(Ordering::SeqCst), 0, "sessions are closed");
        assert!(stderr(&output).contains(words), "{tx}: {}", stderr(&output));
        let (found, alh) = target.state();
        // The one before a lie may not be handed on yet: what follows it was to vouch for it.
        assert!((good - 1..=good).contains(&found), "{tx}: {found}");
        assert_eq!(alh, txs[found as usize - 1].1, "{tx}");
    }
    *source.served.change.lock().unwrap() = None;
    *source.served.wrong_state.lock().unwrap() = true;
    let output = target.import(&source, &[]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    *source.served.wrong_state.lock().unwrap() = false;
    let report = target.imported(&source, &[]);
    assert_eq!((&report["tx"], &report["alh"]), (&json!(31), &json!(txs[30].1)));

    // Another history does not go into the same database, and nobody gets in with a wrong password.
    let other = Source::start("notime");
    let output = target.import(&other, &[]);
    assert!(stderr(&output).contains("holds another history"), "{}", stderr(&output));
    let output = target.import(&other, &["--from-password", "wrong"]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("invalid user name or password"), "{}", stderr(&output));
}

#[test]
fn one_cluster_moves_into_another() {
    let (old, new) = (Target::start(), Target::start());
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
        assert!(old.call(&["set", key, value]).status.success());
    }
    assert!(old.call(&["reference", "r", "a"]).status.success());
    assert!(old.call(&["zadd", "set", "1.5", "a"]).status.success());
    assert!(old.call(&["delete", "b"]).status.success());
    let from = old.demo.endpoint_list();
    let arguments = ["import", "--from", &from, "--from-password", "immudb", "--cut-over", "--output", "json"];
    let output = new.call(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&report["database"], &report["tx"], &report["imported"]), (&json!("defaultdb"), &json!(6), &json!(6)));
    for command in [&["history", "a", "--no-verify"][..], &["zscan", "set"], &["get", "r"]] {
        let [there, here] = [&old, &new].map(|target| {
            let output = target.call(&[command, &["--output", "json"]].concat());
            assert!(output.status.success(), "{command:?}: {}", stderr(&output));
            serde_json::from_str::<Value>(&stdout(&output)).unwrap()
        });
        assert_eq!(there, here, "{command:?}");
    }
    assert!(new.call(&["set", "a", "4"]).status.success());
    assert!(new.call(&["verify"]).status.success());
}

#[test]
fn what_a_client_trusts_of_the_old_server_is_proven_on_at_the_cluster_that_took_its_uuid() {
    let (old, new) = (Target::start(), Target::start());
    for (key, value) in [("a", "1"), ("b", "2")] {
        old.json(&["set", key, value]);
    }
    for (key, value) in [("a", "3"), ("b", "4")] {
        old.json(&["set", "--no-verify", key, value]);
    }
    let from = old.demo.endpoint_list();
    let report = new.json(&["import", "--from", &from, "--from-password", "immudb", "--cut-over", "--take-uuid"]);
    assert_eq!((&report["tx"], &report["target_uuid"]), (&json!(4), &report["source_uuid"]));
    let Target { demo, home } = old;
    assert_eq!(demo.stop(), Some(0));

    // The folder stays; nothing in it is touched.
    let uuid = report["source_uuid"].as_str().unwrap();
    let states = home.path().join("states");
    let file = states.join(format!("state-{uuid}-defaultdb.json"));
    let kept = fs::read_to_string(&file).unwrap();
    let trusted = || serde_json::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(trusted()["tx"], json!(2));
    let folder = ["--state-dir", states.to_str().unwrap()];
    let call = |arguments: &[&str]| new.json(&[arguments, &folder].concat());
    let verified = call(&["verify", "a"]);
    let continued = json!("tx 4 continues the history trusted up to tx 2");
    assert!(verified["proven"].as_array().unwrap().contains(&continued), "{verified}");
    assert_eq!((&verified["cluster"], &verified["trusted_before"]), (&json!(uuid), &json!(2)));
    assert_eq!((&verified["entry"]["value"], &verified["entry"]["tx"]), (&json!("3"), &json!(3)));
    fs::write(&file, &kept).unwrap();
    let got = call(&["get", "b"]);
    assert_eq!((&got["value"], &got["tx"], &got["verified"]), (&json!("4"), &json!(4), &json!(true)));
    assert_eq!((&trusted()["tx"], &trusted()["alh"]), (&json!(4), &report["alh"]), "it was proven from the old state");
    assert_eq!(call(&["set", "a", "5"])["tx"], json!(5));
    assert_eq!(trusted()["tx"], json!(5));
    let files = fs::read_dir(&states).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(files.filter(|path| path.extension().is_some_and(|end| end == "json")).count(), 1, "no other was begun");

    // Of another history no less is found out than at the old server.
    let alh = trusted()["alh"].as_str().unwrap().to_owned();
    let forged = fs::read_to_string(&file).unwrap().replace(&alh, &"ab".repeat(32));
    new.json(&["set", "--no-verify", "a", "6"]);
    for arguments in [&["verify"][..], &["get", "a"]] {
        fs::write(&file, &forged).unwrap();
        let output = new.call(&[arguments, &folder].concat());
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {}", stderr(&output));
        assert_eq!(fs::read_to_string(&file).unwrap(), forged, "{arguments:?}");
    }
}
