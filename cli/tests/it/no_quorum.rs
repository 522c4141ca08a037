//! With two of three nodes gone every call ends by its deadline with a typed error, and writes resume by themselves.
//!
//! The nodes are paused, not killed: the demo would start them again, and a silent peer is the harder case.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::support::{Demo, Wire, free_base_port, send_signal, wait_for, wait_until};

/// The server's limit for calls without a deadline of their own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// What a shared machine may add to it.
const SLACK: Duration = Duration::from_secs(4);

/// Paused processes, which go on when this is dropped, so that a failing test leaves none behind.
struct Paused(Vec<u32>);

impl Paused {
    /// Returns when nothing runs any more: a signal is taken by one thread, which on a busy machine may be the last to run.
    fn pause(process_ids: Vec<u32>) -> Paused {
        let paused = Paused(process_ids);
        for &process_id in &paused.0 {
            send_signal("STOP", process_id);
        }
        for &process_id in &paused.0 {
            wait_until("all threads to stop", || is_stopped(process_id).then_some(()));
        }
        paused
    }
}

/// Whether every thread of the process is stopped.
fn is_stopped(process_id: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process_id}/task")).unwrap();
    threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default()).all(|stat| {
        // A thread that has just ended has no state.
        stat.is_empty() || stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

impl Drop for Paused {
    fn drop(&mut self) {
        for &process_id in &self.0 {
            send_signal("CONT", process_id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_calls_end_and_with_one_they_resume() {
    let home = tempfile::tempdir().unwrap();
    let timeout = format!("{}s", REQUEST_TIMEOUT.as_secs());
    let environment = [("ALHAMBRA_REQUEST_TIMEOUT", timeout.as_str())];
    let demo = Demo::start_with(home.path(), 3, free_base_port(3), &environment);
    let pair = |key: &str| [(key.to_owned(), "value".to_owned())];

    let leader = demo.leader().await;
    let follower = (leader + 1) % 3;
    for (left, what) in [(leader, "leader"), (follower, "follower")] {
        let mut wire = Wire::open(&demo.endpoints()[left]).await.unwrap().without_deadline();
        wire.set(&pair(&format!("before-{what}"))).await.unwrap();
        let process_ids = demo.process_ids();
        let others = (0..3).filter(|&node| node != left).map(|node| process_ids[node]).collect();
        let paused = Paused::pause(others);

        let began = Instant::now();
        let write = wire.set(&pair(&format!("during-{what}"))).await.unwrap_err();
        assert!(
            began.elapsed() < REQUEST_TIMEOUT + SLACK,
            "a write took {:?} with only the {what} left",
            began.elapsed()
        );
        assert!(matches!(write.code(), Code::DeadlineExceeded | Code::Unavailable), "{what}: {write}");

        let began = Instant::now();
        let read = wire.get(&format!("before-{what}")).await.unwrap_err();
        assert!(
            began.elapsed() < REQUEST_TIMEOUT + SLACK,
            "a read took {:?} with only the {what} left",
            began.elapsed()
        );
        assert!(matches!(read.code(), Code::DeadlineExceeded | Code::Unavailable), "{what}: {read}");

        drop(paused);
        let mut attempt = 0;
        wait_for("writes to resume", || {
            attempt += 1;
            let (endpoint, key) = (demo.endpoints()[left].clone(), format!("after-{what}-{attempt}"));
            async move { Wire::open(&endpoint).await.ok()?.set(&[(key, "value".to_owned())]).await.ok() }
        })
        .await;
        let mut wire = Wire::open(&demo.endpoints()[left]).await.unwrap();
        assert_eq!(wire.get(&format!("before-{what}")).await.unwrap(), "value");
    }
    assert_eq!(demo.stop(), Some(0));
}
