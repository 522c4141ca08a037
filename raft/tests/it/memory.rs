//! One node with many databases and little memory: those that are not written to give back what they hold, and nobody can tell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alhambra_raft::disk::DiskLimits;
use alhambra_raft::env::Env;
use alhambra_raft::group::{Group, Tuning};
use alhambra_raft::groups::{Groups, NodeSpec};
use alhambra_raft::meta::{ADMIN_USER, NewDatabase};
use alhambra_storage::MemoryBudget;
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::Settings;
use alhambra_storage::vfs::mem::MemVfs;
use tokio::time::Instant;

use crate::cluster::{peek, set};
use crate::disks::user;

const DATABASES: usize = 24;
const ROUNDS: usize = 6;
const VALUE_BYTES: usize = 512 << 10;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_give_memory_back_to_those_that_need_it() {
    let memory = Arc::new(MemoryBudget::new(0));
    let spec = NodeSpec {
        dir: PathBuf::from("/data"),
        listen: "127.0.0.1:0".into(),
        bootstrap_expect: 1,
        peers: Vec::new(),
        insecure_peers: false,
        segment_bytes: 1 << 20,
        settings: Settings::DEFAULT,
        default_face: serde_json::json!({}),
        first_user: Arc::new(|| user(ADMIN_USER)),
        tuning: Tuning { memory: memory.clone(), ..Tuning::default() },
        disk: DiskLimits { low_bytes: 0, reserve_bytes: 0 },
        apply_lag_max: 100,
    };
    let node = Groups::start(Env::production(Arc::new(MemVfs::new())), spec).await.unwrap();
    assert!(node.wait_ready(soon()).await, "{:?}", node.ready());
    let mut groups: Vec<Arc<Group>> = Vec::new();
    for number in 0..DATABASES {
        let record = NewDatabase {
            name: format!("db{number}"),
            settings: Settings::DEFAULT,
            segment_bytes: 1 << 20,
            face: serde_json::json!({}),
            created_by: ADMIN_USER.into(),
        };
        node.meta().create_database(record, false, soon()).await.unwrap();
        assert!(node.wait_ready(soon()).await, "{:?}", node.ready());
        groups.push(node.group_by_name(&format!("db{number}")).expect("ready"));
    }
    let value = |number: usize, round: usize| format!("{number}-{round}-").repeat(VALUE_BYTES / 8);
    for round in 0..ROUNDS {
        for (number, group) in groups.iter().enumerate() {
            let done = group.propose(set(&format!("k{round}"), &value(number, round)), soon()).await;
            assert!(matches!(done, Ok(Outcome::Committed { .. })), "{done:?}");
            let (held, most) = (memory.held_bytes(), memory.held_bytes_max());
            assert!(held <= most, "{held} of {most} bytes after round {round} of database {number}");
        }
    }
    let each = groups.iter().map(|group| group.database().held_bytes());
    assert!(each.clone().any(|held| held < VALUE_BYTES as u64), "somebody gave back: {:?}", each.collect::<Vec<_>>());
    for (number, group) in groups.iter().enumerate() {
        for round in 0..ROUNDS {
            let found = peek(group, &format!("k{round}"));
            assert_eq!(
                found.map(|text| text == value(number, round)),
                Some(true),
                "round {round} of database {number}"
            );
        }
    }
    node.shutdown(soon()).await;
}
