//! Kill -9 of any one node at any moment, or of all three at once, loses nothing acknowledged [R4].
//!
//! Writers keep their own record of what was acknowledged and judge every node by it. A killed process keeps the page
//! cache, so this does not show that acknowledged writes are synced; the simulation does, which loses unsynced data.
//!
//! `ALHAMBRA_CRASH_ROUNDS` sets the rounds of each kind (default 2; acceptance is 20).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::support::{Demo, Wire, free_base_port, send_signal, wait_for};

const WRITERS: usize = 6;
/// Acknowledged writes of a round before the kill, so that it meets a cluster under load.
const WRITES_BEFORE_KILL: usize = 300;

/// A write as its writer saw it.
struct Write {
    key: String,
    value: String,
    /// The transaction, when the write was acknowledged; else its outcome is unknown.
    tx: Option<u64>,
}

/// Writes keys of its own until told to stop; goes on with the next node after an error.
async fn write(endpoints: Vec<String>, name: String, number: usize, stop: Arc<AtomicBool>, seen: mpsc::Sender<Write>) {
    let mut at = number;
    let mut wire: Option<Wire> = None;
    let mut sequence = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = &mut wire else {
            at = (at + 1) % endpoints.len();
            wire = Wire::open(&endpoints[at]).await.ok();
            if wire.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        };
        sequence += 1;
        // A transaction of two entries: both or none.
        let value = format!("{name} {number} {sequence}");
        let keys = ["a", "b"].map(|half| format!("{name}/{number}/{sequence}/{half}"));
        let entries = keys.clone().map(|key| (key, value.clone()));
        let tx = open.set(&entries).await.ok();
        for key in keys {
            let _ = seen.send(Write { key, value: value.clone(), tx }).await;
        }
        if tx.is_none() {
            wire = None;
        }
    }
}

fn rounds() -> usize {
    std::env::var("ALHAMBRA_CRASH_ROUNDS").map_or(2, |text| text.parse().expect("a number of rounds"))
}

/// Loads the demo, kills the nodes that `victims` picks, and compares every node with the writers' record.
async fn round(demo: &Demo, name: &str, victims: &[usize]) {
    let before = demo.process_ids();
    let stop = Arc::new(AtomicBool::new(false));
    let (send, mut receive) = mpsc::channel(10_000);
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| tokio::spawn(write(demo.endpoints(), name.to_owned(), number, Arc::clone(&stop), send.clone())))
        .collect();
    drop(send);

    let mut seen = Vec::new();
    while seen.len() < 2 * WRITES_BEFORE_KILL {
        seen.push(receive.recv().await.expect("writers write until they are told to stop"));
    }
    let gone: Vec<u32> = victims.iter().map(|&victim| before[victim]).collect();
    for &process_id in &gone {
        send_signal("KILL", process_id);
    }
    let acknowledged = AtomicUsize::new(0);
    // The load goes on over the restart, until something was acknowledged after all nodes were back.
    let more = async {
        demo.wait_ready(&gone).await;
        let so_far = acknowledged.load(Ordering::Relaxed);
        wait_for("writes to go on", || async {
            (acknowledged.load(Ordering::Relaxed) > so_far + WRITERS).then_some(())
        })
        .await;
        stop.store(true, Ordering::Relaxed);
    };
    let collect = async {
        while let Some(write) = receive.recv().await {
            acknowledged.fetch_add(usize::from(write.tx.is_some()), Ordering::Relaxed);
            seen.push(write);
        }
    };
    tokio::join!(more, collect);
    for writer in writers {
        writer.await.unwrap();
    }

    let acknowledged: BTreeMap<&str, (&str, u64)> =
        seen.iter().filter_map(|w| Some((w.key.as_str(), (w.value.as_str(), w.tx?)))).collect();
    let unknown: Vec<&Write> = seen.iter().filter(|write| write.tx.is_none()).collect();
    assert!(acknowledged.len() >= WRITES_BEFORE_KILL, "the cluster was not under load");
    let keys: Vec<String> = seen.iter().map(|write| write.key.clone()).collect();

    let mut states = Vec::new();
    for endpoint in demo.endpoints() {
        let mut wire = wait_for("a session", || async { Wire::open(&endpoint).await.ok() }).await;
        let found = wire.get_all(&keys).await.unwrap();
        for (key, (value, tx)) in &acknowledged {
            let there = found.get(*key).map(|(value, tx)| (value.as_str(), *tx));
            assert_eq!(there, Some((*value, *tx)), "{name}: {key} was acknowledged; {endpoint} shows this");
        }
        for write in &unknown {
            let there = found.get(&write.key).map(|(value, _)| value);
            assert!(there.is_none_or(|value| *value == write.value), "{name}: {} has a value nobody wrote", write.key);
            let twin =
                if write.key.ends_with("/a") { write.key.replace("/a", "/b") } else { write.key.replace("/b", "/a") };
            assert_eq!(found.contains_key(&twin), there.is_some(), "{name}: half of a transaction at {}", write.key);
        }
        states.push(wire.state().await.unwrap());
    }
    assert!(
        states.iter().all(|state| state.tx_id == states[0].tx_id && state.tx_hash == states[0].tx_hash),
        "{name}: {states:?}"
    );
    println!(
        "{name}: {} writes acknowledged, {} unknown, all nodes at tx {}",
        acknowledged.len(),
        unknown.len(),
        states[0].tx_id
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_one_node_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), 3, free_base_port(3));
    for number in 0..rounds() {
        // Every other round takes the leader; the rest go over all nodes in turn.
        let victim = if number % 2 == 0 { demo.leader().await } else { number / 2 % 3 };
        round(&demo, &format!("one-{number}"), &[victim]).await;
    }
    assert_eq!(demo.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_all_nodes_at_once_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), 3, free_base_port(3));
    for number in 0..rounds() {
        round(&demo, &format!("all-{number}"), &[0, 1, 2]).await;
    }
    assert_eq!(demo.stop(), Some(0));
}
