//! The client commands against a running node.

use std::fs;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Demo, alhambra, free_base_port, run, stderr, stdout};

struct Client {
    demo: Demo,
    home: tempfile::TempDir,
}

impl Client {
    fn start() -> Client {
        let home = tempfile::tempdir().unwrap();
        let demo = Demo::start(&home.path().join("demo"), 1, free_base_port(1));
        Client { demo, home }
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = alhambra(arguments);
        command
            .env("ALHAMBRA_ENDPOINT", self.demo.endpoint_list())
            .env("IMMUDB_USERNAME", "immudb")
            .env("ALHAMBRA_STATE_DIR", self.home.path().join("states"));
        run(&mut command)
    }

    fn answer(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.answer(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {answer}"))
    }
}

#[test]
fn what_is_set_is_read_back_verified() {
    let client = Client::start();
    let set = client.json(&["set", "hello", "world"]);
    assert_eq!((&set["tx"], &set["key"], &set["verified"]), (&json!(1), &json!("hello"), &json!(true)));
    client.json(&["set", "hello", "again"]);
    client.json(&["set", "other", "x"]);

    let got = client.json(&["get", "hello"]);
    let expected = json!({"key": "hello", "value": "again", "tx": 2, "revision": 2, "deleted": false, "expired": false,
        "expires_at": null, "non_indexable": false, "reference": null, "verified": true});
    assert_eq!(got, expected);
    assert_eq!(client.answer(&["get", "hello", "--output", "raw"]), "again");
    let table = client.answer(&["get", "hello"]);
    assert!(table.starts_with("key    value  tx  revision  verified\nhello  again  2   2         yes\n"), "{table}");
    let unverified = client.json(&["get", "hello", "--no-verify"]);
    assert_eq!((&unverified["value"], &unverified["verified"]), (&json!("again"), &json!(false)));

    let history = client.json(&["history", "hello"]);
    let versions: Vec<_> =
        history["entries"].as_array().unwrap().iter().map(|e| (&e["revision"], &e["value"])).collect();
    assert_eq!(versions, [(&json!(1), &json!("world")), (&json!(2), &json!("again"))]);
    assert!(history["entries"].as_array().unwrap().iter().all(|entry| entry["verified"] == json!(true)), "{history}");

    let scan = client.json(&["scan"]);
    let keys: Vec<_> = scan["entries"].as_array().unwrap().iter().map(|entry| &entry["key"]).collect();
    assert_eq!(keys, [&json!("hello"), &json!("other")]);
    assert_eq!(client.json(&["scan", "oth"])["entries"].as_array().unwrap().len(), 1);
    assert_eq!(client.json(&["scan", "nothing"])["entries"], json!([]));
    assert_eq!(client.demo.stop(), Some(0));
}

#[test]
fn verify_moves_the_trusted_state_forward_and_says_what_is_proven() {
    let client = Client::start();
    client.json(&["set", "k", "1", "--no-verify"]);
    let first = client.json(&["verify"]);
    assert_eq!((&first["trusted_before"], &first["tx"]), (&json!(0), &json!(1)));
    client.json(&["set", "k", "2", "--no-verify"]);
    client.json(&["set", "k", "3", "--no-verify"]);
    let second = client.json(&["verify", "k"]);
    assert_eq!((&second["trusted_before"], &second["tx"]), (&json!(1), &json!(3)));
    assert_eq!((&second["entry"]["value"], &second["entry"]["tx"]), (&json!("3"), &json!(3)));
    let text = client.answer(&["verify", "k"]);
    for part in ["proven", "not proven", "newest"] {
        assert!(text.contains(part), "{text}");
    }

    // A client that trusts another history at the same transaction finds the server out, and keeps what it trusts.
    let states: Vec<_> = fs::read_dir(client.home.path().join("states")).unwrap().map(|e| e.unwrap().path()).collect();
    let state = states
        .iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "json"))
        .expect("one state file");
    let text = fs::read_to_string(state).unwrap();
    let alh = second["alh"].as_str().unwrap();
    assert!(text.contains(alh), "the state file shows the Alh as hex: {text}");
    let other = alh.replace(&alh[..2], if &alh[..2] == "00" { "11" } else { "00" });
    let forged = text.replace(alh, &other);
    fs::write(state, &forged).unwrap();
    client.json(&["set", "k", "4", "--no-verify"]);
    let output = client.call(&["verify"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("what to do: "), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(state).unwrap(), forged, "the trusted state must not move");
    assert_eq!(client.demo.stop(), Some(0));
}

#[test]
fn status_shows_nodes_roles_databases_and_readiness() {
    let home = tempfile::tempdir().unwrap();
    let demo = Demo::start(home.path(), 3, free_base_port(3));
    let output = run(&mut alhambra(&["status", "--output", "json", "--endpoint", &demo.endpoint_list()]));
    assert!(output.status.success(), "{}", stderr(&output));
    let status: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    let mut leaders = 0;
    for node in nodes {
        assert_eq!(node["ready"], json!(true), "{node}");
        assert_eq!(node["cluster"], demo.json["uuid"]);
        let database = &node["databases"].as_array().unwrap()[0];
        assert_eq!((&database["name"], &database["tx"]), (&json!("defaultdb"), &json!(0)));
        leaders += usize::from(database["role"] == json!("leader"));
    }
    assert_eq!(leaders, 1, "{status}");

    // A node that is down is shown as such, and makes the command fail.
    let with_a_hole = format!("{},127.0.0.1:9", demo.endpoint_list());
    let output = run(&mut alhambra(&["status", "--endpoint", &with_a_hole]));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("127.0.0.1:9"), "{}", stdout(&output));
    assert_eq!(demo.stop(), Some(0));
}

#[test]
fn bench_prints_a_table_and_json() {
    let client = Client::start();
    let endpoint = client.demo.endpoint_list();
    let kv = |more: &[&str]| {
        let base = ["bench", "kv", "--endpoint", &endpoint, "--seconds", "1", "--clients", "1,4"];
        client.answer(&[&base[..], more].concat())
    };
    let table = kv(&["--batch", "1,10"]);
    assert_eq!(table.lines().filter(|line| line.starts_with("| ")).count(), 5, "a heading and four rows: {table}");
    assert!(table.contains("Machine: "), "{table}");
    for more in [&["--json"][..], &["--json", "--verified"], &["--json", "--mode", "get", "--verified"]] {
        let report: Value = serde_json::from_str(&kv(more)).unwrap();
        for row in report["rows"].as_array().unwrap() {
            assert_eq!(row["errors"], json!(0), "{row}");
            assert!(row["tx_per_second"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
    assert_eq!(client.demo.stop(), Some(0));
}

#[test]
fn fsck_checks_a_stopped_node() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("demo");
    let base_port = free_base_port(1);
    let demo = Demo::start_with(&dir, 1, base_port, &[("ALHAMBRA_SEGMENT_SIZE", "65536")]);
    let states = home.path().join("states");
    for n in 0..8 {
        let (key, value) = (format!("key-{n}"), "v".repeat(30_000));
        let output =
            run(alhambra(&["set", &key, &value, "--endpoint", &demo.endpoint_list()])
                .env("ALHAMBRA_STATE_DIR", &states));
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let node = dir.join("node-1");
    let fsck = || run(&mut alhambra(&["fsck", "--seals", "--dir", node.to_str().unwrap()]));
    assert_eq!(fsck().status.code(), Some(1), "a folder in use is refused: {}", stderr(&fsck()));
    assert_eq!(demo.stop(), Some(0));

    let output = fsck();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let segment =
        find(&node.join("databases"), &|path| path.ends_with("0000000001.seg")).pop().expect("a sealed segment");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    let output = fsck();
    assert_eq!(output.status.code(), Some(1), "{}{}", stdout(&output), stderr(&output));
    let said = stdout(&output) + &stderr(&output);
    assert!(said.contains(segment.file_name().unwrap().to_str().unwrap()), "{said}");

    // All of it: the frame that holds the flipped bit is named with the transaction that it carries.
    let full = |more: &[&str]| {
        let args = [&["fsck", "--json", "--dir", node.to_str().unwrap()], more].concat();
        let output = run(&mut alhambra(&args));
        let report = serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap_or_default();
        (output.status.code(), report)
    };
    let (code, report) = full(&[]);
    assert_eq!(code, Some(1), "{report}");
    let rotten: Vec<_> =
        report["databases"].as_array().unwrap().iter().filter(|d| d["sound"] == json!(false)).collect();
    let [rotten] = rotten[..] else { panic!("{report}") };
    let first = &rotten["first_bad"];
    assert_eq!(first["path"], json!(segment), "{report}");
    assert!(first["tx"].as_u64().unwrap() >= 1 && first["offset"].as_u64().unwrap() < middle as u64, "{report}");
    let (code, report) = full(&["--database", "systemdb"]);
    assert_eq!((code, report["databases"].as_array().unwrap().len()), (Some(0), 1), "{report}");
    assert_eq!(full(&["--database", "absent"]).0, Some(3));

    bytes[middle] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    for more in [&["--resume"][..], &[]] {
        let (code, report) = full(more);
        assert_eq!(code, Some(0), "{report}");
        let databases = report["databases"].as_array().unwrap();
        assert!(databases.len() >= 2 && databases.iter().all(|d| d["transactions"].as_u64().unwrap() >= 1), "{report}");
    }
    assert!(!dir.join("node-1.fsck").exists(), "nothing is left of a check that came to its end");

    // The index needs no other node: the advice says so, and following it helps.
    let index = segment.parent().unwrap().with_file_name("index");
    fs::create_dir_all(&index).unwrap();
    fs::write(index.join("manifest"), b"nothing of ours").unwrap();
    let output = run(&mut alhambra(&["fsck", "--dir", node.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stderr(&output).contains(&format!("remove {}:", index.display())), "{}", stderr(&output));
    fs::remove_dir_all(&index).unwrap();
    assert_eq!(full(&[]).0, Some(0));
}

fn find(dir: &std::path::Path, wanted: &dyn Fn(&std::path::Path) -> bool) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(find(&entry.path(), wanted));
        } else if wanted(&entry.path()) {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn version_and_completions_need_no_server() {
    assert_eq!(stdout(&run(&mut alhambra(&["version"]))), format!("alhambra {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&run(&mut alhambra(&["completions", shell]))).contains("alhambra"), "{shell}");
        let mut unread =
            alhambra(&["completions", shell]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(unread.stdout.take());
        let told = stderr(&unread.wait_with_output().unwrap());
        assert!(told.contains("writing the answer") && !told.contains("panicked"), "{shell}: {told}");
    }
    let help = stdout(&run(&mut alhambra(&["--help"])));
    assert!(help.contains("Exit codes:"), "{help}");
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    let told = run(alhambra(&["mangen"]).arg(&pages));
    assert!(told.status.success(), "{}", stderr(&told));
    let page = std::fs::read_to_string(pages.join("alhambra-get.1")).unwrap();
    assert!(page.contains(".SH OPTIONS") && page.contains("revision"), "{page}");
}

#[test]
fn config_shows_every_setting_with_its_origin() {
    let output = run(alhambra(&["config", "--print", "--port", "4001"])
        .env("ALHAMBRA_PEER_PORT", "4002")
        .env("IMMUDB_PORT", "4003")
        .env("IMMUDB_MAX_SESSIONS", "7"));
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for line in [
        "port = \"4001\"  # flag",
        "peer-port = \"4002\"  # environment ALHAMBRA_PEER_PORT",
        "max-sessions = \"7\"  # environment IMMUDB_MAX_SESSIONS",
        "bootstrap-expect = \"1\"  # default",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in:\n{text}");
    }
}

#[test]
fn references_sets_deletions_and_counts() {
    let client = Client::start();
    client.json(&["set", "invoice-17", "EUR 1200"]);
    let named = client.json(&["reference", "latest", "invoice-17"]);
    let expected = json!({"key": "latest", "target": "invoice-17", "at_tx": null, "tx": 2, "verified": true});
    assert_eq!(named, expected);
    client.json(&["reference", "first", "invoice-17", "--at-tx", "1"]);
    client.json(&["set", "invoice-17", "EUR 1250"]);
    for (key, value) in [("latest", "EUR 1250"), ("first", "EUR 1200")] {
        assert_eq!(client.answer(&["get", key, "--output", "raw"]), value);
    }
    for (key, remark) in [("latest", "leads to invoice-17"), ("first", "leads to invoice-17 of tx 1")] {
        assert!(client.answer(&["get", key]).ends_with(&format!("{remark}\n")), "{key}");
    }
    assert!(!client.answer(&["get", "invoice-17"]).contains("remark"), "only where there is one");
    let reference = &client.json(&["scan", "first"])["entries"][0]["reference"];
    assert_eq!(*reference, json!({"target": "invoice-17", "tx": 3, "at_tx": 1}));

    client.json(&["set", "invoice-18", "EUR 80"]);
    client.json(&["zadd", "amounts", "1250", "invoice-17"]);
    client.json(&["zadd", "amounts", "-80.5", "invoice-18"]);
    let added = client.json(&["zadd", "amounts", "80", "invoice-18", "--at-tx", "5"]);
    assert_eq!((&added["score"], &added["at_tx"], &added["verified"]), (&json!(80.0), &json!(5), &json!(true)));
    let set = client.json(&["zscan", "amounts"]);
    let members: Vec<_> =
        set["members"].as_array().unwrap().iter().map(|m| (&m["score"], &m["value"], &m["verified"])).collect();
    let yes = json!(true);
    assert_eq!(
        members,
        [
            (&json!(80.0), &json!("EUR 80"), &yes),
            (&json!(1250.0), &json!("EUR 1250"), &yes),
            (&json!(-80.5), &json!("EUR 80"), &yes)
        ],
        "negative scores come last"
    );
    let some = ["zscan", "amounts", "--min", "100", "--output", "raw"];
    assert_eq!(client.answer(&some), "invoice-17\n");
    let table = client.answer(&["zscan", "amounts", "--desc", "--limit", "1"]);
    assert!(
        table.starts_with("score  key         value     version  verified\n1250   invoice-17  EUR 1250"),
        "{table}"
    );

    assert_eq!(client.json(&["count"])["count"], json!(4));
    assert_eq!(client.answer(&["count", "invoice-", "--output", "raw"]), "2\n");
    client.json(&["delete", "invoice-18", "latest"]);
    let gone = client.call(&["get", "invoice-18"]);
    assert_eq!(gone.status.code(), Some(3), "{}", stderr(&gone));
    for (arguments, text) in [
        (&["delete", "invoice-18"][..], "there is no key \"invoice-18\""),
        (&["reference", "x", "absent"], "there is no key \"absent\""),
        (&["reference", "x", "first"], "referenced key cannot be a reference"),
        (&["reference", "", "first"], "the key is empty"),
        (&["zadd", "amounts", "1", "absent"], "there is no key \"absent\""),
        (&["zscan", ""], "the set is empty"),
    ] {
        let output = client.call(arguments);
        assert!(!output.status.success());
        assert!(stderr(&output).contains(text) && stderr(&output).contains("what to do"), "{}", stderr(&output));
    }
    assert_eq!(client.demo.stop(), Some(0));
}

#[test]
fn databases_are_made_unloaded_loaded_and_deleted() {
    let client = Client::start();
    assert_eq!(client.json(&["database", "create", "orders"]), json!({"database": "orders", "done": "created"}));
    let again = client.json(&["database", "create", "orders", "--if-not-exists"]);
    assert_eq!(again["done"], json!("existed already"));
    client.json(&["set", "k", "v", "--database", "orders"]);
    let refused = |arguments: &[&str], code: i32, what: &str| {
        let output = client.call(arguments);
        assert_eq!((output.status.code(), stdout(&output)), (Some(code), String::new()), "{arguments:?}");
        assert!(stderr(&output).contains(what), "{arguments:?}: {}", stderr(&output));
    };
    refused(&["database", "delete", "orders"], 2, "say --yes");
    refused(&["database", "delete", "orders", "--yes"], 1, "cannot delete an open database");
    refused(&["database", "truncate", "orders", "--keep-days", "1"], 2, "say --yes");
    refused(
        &["database", "truncate", "orders", "--keep-days", "1", "--yes"],
        1,
        "retention period has not been reached",
    );
    refused(&["database", "update", "orders"], 2, "nothing to change");
    let changed = client.json(&["database", "update", "orders", "--exclude-commit-time", "true"]);
    assert_eq!(changed["exclude_commit_time"], json!(true));
    assert_eq!((&changed["retention_days"], &changed["truncation_hours"]), (&json!(0), &json!(24)));
    let changed = client.json(&["database", "update", "orders", "--retention-days", "30", "--truncation-hours", "1"]);
    assert_eq!((&changed["retention_days"], &changed["truncation_hours"]), (&json!(30), &json!(1)));
    assert_eq!(changed["exclude_commit_time"], json!(true), "what is not named stays");
    refused(&["database", "update", "orders", "--truncation-hours", "0"], 2, "--truncation-hours");
    assert_eq!(client.json(&["database", "flush", "orders"]), json!({"database": "orders", "done": "flushed"}));
    // Perhaps the node was first; after it nothing is left.
    let merged = client.json(&["database", "compact", "orders"])["done"].clone();
    assert!([json!("compacted"), json!("there was nothing to do")].contains(&merged), "{merged}");
    assert_eq!(client.json(&["database", "compact", "orders"])["done"], json!("there was nothing to do"));
    refused(&["database", "flush", "absent"], 3, "database does not exist");
    assert_eq!(client.json(&["database", "unload", "orders"])["done"], json!("unloaded"));
    refused(&["get", "k", "--database", "orders"], 1, "already closed");
    let table = client.answer(&["database", "list"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..2], ["defaultdb", "yes"], "{table}");
    assert_eq!(lines[2][..2], ["orders", "no"], "{table}");
    // That is how somebody wants it: nothing is wrong with the nodes.
    let status = client.json(&["status"]);
    let orders = &status["nodes"][0]["databases"][1];
    assert_eq!((&orders["name"], &orders["role"]), (&json!("orders"), &json!("unloaded")), "{status}");
    client.json(&["database", "load", "orders"]);
    assert_eq!(client.answer(&["get", "k", "--database", "orders", "--output", "raw"]), "v");
    client.json(&["database", "unload", "orders"]);
    assert_eq!(client.answer(&["database", "delete", "orders", "--yes", "--output", "raw"]), "orders\n");
    refused(&["database", "load", "orders"], 3, "database does not exist");
    assert_eq!(client.answer(&["database", "list", "--output", "raw"]), "defaultdb\n");
    assert_eq!(client.demo.stop(), Some(0));
}
