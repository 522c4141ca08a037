//! The memory and the files of a thousand open databases in one process. Alone in its process, because it looks at what the whole
//! process has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, LogIndex};
use alhambra_ledger::kv::set_key;
use alhambra_storage::command::{ProposalEntry, RequestId, Settings, TxProposal};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::FaultyVfs;
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::pooled::PooledVfs;
use alhambra_storage::{Database, DatabaseSpec, MemoryBudget, Options};

const DATABASES: u32 = 1000;
const BUDGET_BYTES: u64 = 64 << 20;
const OPEN_FILES_MAX: usize = 200;
const TS: i64 = 1_700_000_000;
/// What the process may have beyond the budget, bytes: the databases themselves, the allocator's holes, this test.
const SLACK_BYTES: u64 = 64 << 20;

/// Memory that this process has, bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn open(vfs: &Arc<dyn Vfs>, dir: &Path, number: u32, options: &Options) -> Arc<Database> {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    let spec = DatabaseSpec { id: DatabaseId(id), segment_bytes: 64 << 20 };
    let dir = dir.join(format!("db{number}"));
    let database = Database::open_embedded(Arc::clone(vfs), &dir, spec, options.clone(), Settings::DEFAULT);
    let database = Arc::new(database.unwrap());
    options.memory.watch(&database);
    database
}

fn write(database: &Database, number: u32, round: u32) {
    let entry = |n: u32| {
        let key = format!("{number}/{round}/{n}/some more of a key");
        ProposalEntry::set(key.as_bytes(), &[round as u8; 200])
    };
    let request = RequestId { client: [7; 16], sequence: u64::from(round), floor: LogIndex(0) };
    let proposal =
        TxProposal { entries: (0..200).map(entry).collect(), request: Some(request), ..TxProposal::default() };
    database.commit(TS, vec![proposal]).unwrap();
}

#[test]
fn a_thousand_open_databases_stay_within_the_budget_and_the_files() {
    let dir = tempfile::tempdir().unwrap();
    // Thousands of syncs would make minutes of this test, and nothing crashes here.
    let unsynced = FaultyVfs::new(Arc::new(OsVfs::new()));
    unsynced.set_syncs_lie(true);
    let pooled = Arc::new(PooledVfs::new(Arc::new(unsynced), OPEN_FILES_MAX));
    let vfs: Arc<dyn Vfs> = pooled.clone();
    let budget = Arc::new(MemoryBudget::new(BUDGET_BYTES));
    let options = Options::new(Arc::clone(&budget));

    let before = resident_bytes();
    let databases: Vec<_> = (0..DATABASES).map(|number| open(&vfs, dir.path(), number, &options)).collect();
    let each = (resident_bytes() - before) / u64::from(DATABASES);
    println!("an empty database: {} KiB, {} files open", each >> 10, pooled.open_files());
    assert!(each <= 1 << 20, "an empty open database takes {each} bytes");

    let mut written = 0u64;
    let mut most = 0;
    for round in 0..2 {
        for (number, database) in (0..).zip(&databases) {
            write(database, number, round);
            written += 200 * 230;
            most = most.max(resident_bytes());
            assert!(budget.held_bytes() <= budget.held_bytes_max(), "{} at {number}", budget.held_bytes());
        }
        println!(
            "{} MB written: {} MiB resident, {} MiB held, {} files open",
            written / 1_000_000,
            resident_bytes() >> 20,
            budget.held_bytes() >> 20,
            pooled.open_files()
        );
    }
    assert!(most - before <= BUDGET_BYTES + SLACK_BYTES, "{} MiB at the peak", (most - before) >> 20);
    assert!(pooled.open_files() <= OPEN_FILES_MAX + 100, "{} files are open", pooled.open_files());

    // What was given back comes back: values, and the outcomes of requests.
    for (number, database) in (0..).zip(&databases).step_by(97) {
        let tx = database.applied().tx;
        write(database, number, 1);
        assert_eq!(database.applied().tx, tx, "a request that was carried out is not carried out again");
        let key = format!("{number}/0/5/some more of a key");
        let found = database.snapshot().get(&set_key(key.as_bytes())).unwrap();
        assert!(found.is_some(), "{key}");
    }
    drop(databases);
    assert_eq!((budget.held_bytes(), pooled.open_files()), (0, 0));
}
