//! The demo's promises: it serves, it resumes, a node that dies is started again, nothing outlives it.

use std::process::Stdio;

use crate::support::{
    Demo, Serve, Wire, alhambra, free_base_port, is_running, run, send_signal, stderr, wait_for, wait_until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_serves_stops_in_order_and_resumes() {
    let home = tempfile::tempdir().unwrap();
    let base_port = free_base_port(3);
    let demo = Demo::start(home.path(), 3, base_port);
    let uuid = demo.json["uuid"].clone();
    assert_eq!(uuid.as_str().map(str::len), Some(20), "an SDK's server uuid has 20 characters");
    let ports: Vec<_> = demo.json["nodes"].as_array().unwrap().iter().map(|node| node["port"].clone()).collect();
    assert_eq!(ports, [base_port, base_port + 10, base_port + 20]);
    let first = demo.process_ids();
    assert!(first.iter().all(|id| is_running(*id)), "{first:?}");

    let mut states = Vec::new();
    for (number, endpoint) in demo.endpoints().iter().enumerate() {
        let mut wire = Wire::open(endpoint).await.unwrap();
        wire.set(&[(format!("key-{number}"), format!("value-{number}"))]).await.unwrap();
        states.push(wire.state().await.unwrap().tx_id);
    }
    assert_eq!(states, [1, 2, 3], "each node takes writes, and its state shows them");
    assert_eq!(demo.stop(), Some(0));
    assert!(first.iter().all(|id| !is_running(*id)), "a node outlived its demo");

    let demo = Demo::start(home.path(), 3, base_port);
    assert_eq!(demo.json["uuid"], uuid, "the same cluster");
    for endpoint in demo.endpoints() {
        let mut wire = Wire::open(&endpoint).await.unwrap();
        for number in 0..3 {
            assert_eq!(wire.get(&format!("key-{number}")).await.unwrap(), format!("value-{number}"));
        }
    }
    // Nor does it matter to the next one that the administrator has got another password.
    let file = home.path().join("password");
    std::fs::write(&file, "An0ther.password!").unwrap();
    let change = ["user", "changepassword", "immudb", "--new-password-file", file.to_str().unwrap()];
    let mut change = alhambra(&change);
    change.env("ALHAMBRA_ENDPOINT", demo.endpoint_list()).env("ALHAMBRA_USERNAME", "immudb");
    let changed = run(change.env("ALHAMBRA_PASSWORD", "immudb"));
    assert!(changed.status.success(), "{}", stderr(&changed));
    assert_eq!(demo.stop(), Some(0));
    let demo = Demo::start(home.path(), 3, base_port);
    assert_eq!((&demo.json["uuid"], &demo.json["password"]), (&uuid, &"(changed since)".into()));
    assert!(Wire::open(&demo.endpoints()[0]).await.is_err_and(|why| why.contains("invalid user name or password")));
    assert_eq!(demo.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_started_again() {
    let home = tempfile::tempdir().unwrap();
    let demo = Demo::start(home.path(), 1, free_base_port(1));
    let before = demo.process_ids();
    send_signal("KILL", before[0]);
    demo.wait_ready(&before).await;
    let after = demo.process_ids();
    assert_ne!(after, before);
    assert!(is_running(after[0]));
    Wire::open(&demo.endpoints()[0]).await.unwrap();
    assert_eq!(demo.stop(), Some(0));
}

#[test]
fn no_node_outlives_a_demo_that_is_killed() {
    let home = tempfile::tempdir().unwrap();
    let demo = Demo::start(home.path(), 3, free_base_port(3));
    let nodes = demo.process_ids();
    assert_eq!(nodes.len(), 3);
    send_signal("KILL", demo.id());
    for node in nodes {
        wait_until("a node to end with its demo", || (!is_running(node)).then_some(()));
    }
}

#[test]
fn a_node_that_cannot_start_ends_the_demo_with_the_end_of_its_log() {
    let home = tempfile::tempdir().unwrap();
    let port = free_base_port(1).to_string();
    let output = run(alhambra(&["demo", "--nodes", "1", "--base-port", &port, "--dir"])
        .arg(home.path())
        .env("ALHAMBRA_REQUEST_TIMEOUT", "soon"));
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    for part in ["node 1 ended at its start", "ALHAMBRA_REQUEST_TIMEOUT", "what to do: "] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_stops_in_order_on_sigterm_and_resumes_by_itself() {
    let home = tempfile::tempdir().unwrap();
    let base_port = free_base_port(1);
    let [port, peer_port, metrics_port, web_port] =
        [base_port, base_port + 1, base_port + 6175, base_port + 4758].map(|port| port.to_string());
    let endpoint = format!("127.0.0.1:{port}");
    for round in 1..=2_u64 {
        let mut command = alhambra(&["serve", "--address", "127.0.0.1", "--port", &port, "--peer-port", &peer_port]);
        command.args(["--metrics-server-port", &metrics_port, "--web-server-port", &web_port]);
        command.args(["--bootstrap-expect", "1", "--dir"]).arg(home.path());
        let command = command.env("ALHAMBRA_ADMIN_PASSWORD", "immudb");
        let mut serve = Serve(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        // A session may be had before the database is open; what is refused until then is surely not applied.
        let write = || async {
            let mut wire = Wire::open(&endpoint).await.ok()?;
            wire.set(&[("key".to_owned(), format!("value {round}"))]).await.ok()
        };
        assert_eq!(wait_for("a write", write).await, round);
        send_signal("TERM", serve.0.id());
        let status = wait_until("serve to stop", || serve.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }
}
