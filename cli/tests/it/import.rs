//! `alhambra import`: from a server of ours that replays real exports, honest, interrupted and lying; and from one own cluster into
//! another.

use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;

use alhambra_client::{Client, Options};
use serde_json::{Value, json};

use crate::import_source::{Source, UUID};
use crate::support::{Demo, Wire, alhambra, free_base_port, run, send_signal, stderr, stdout, wait_until};

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

    fn import(&self, source: &Source, more: &[&str]) -> Output {
        let from = ["import", "--from", &source.endpoint, "--database", "moved", "--output", "json"];
        self.call(&[&from[..], more].concat())
    }

    fn imported(&self, source: &Source, more: &[&str]) -> Value {
        let output = self.import(source, more);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    fn moved(&self) -> Option<Value> {
        let status: Value = serde_json::from_str(&stdout(&self.call(&["status", "--output", "json"]))).ok()?;
        let databases = status["nodes"][0]["databases"].as_array()?;
        databases.iter().find(|database| database["name"] == "moved").cloned()
    }

    /// Newest transaction of the target, when there is one.
    fn found(&self) -> Option<u64> {
        self.moved()?["tx"].as_u64()
    }

    /// Newest transaction of the target, and its Alh.
    fn state(&self) -> (u64, String) {
        let moved = self.moved().unwrap();
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
