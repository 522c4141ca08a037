//! What an insert pays when the work is behind, counted in bytes of work, not in time; and that readers have their turn beside
//! one.

use super::*;
use crate::index::work::{OWED_BYTES, SYNC_STEP_BYTES};
use crate::limits::{INDEX_MERGE_RUNS, INDEX_WORK_BYTES};

const MEMTABLE_BYTES: usize = 2 << 20;
const TX_KEYS: u64 = 100;

/// The same number always gives the same key; the order of numbers is not that of keys.
fn key(number: u64) -> [u8; 16] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn flushed(tx: TxId) -> Result<Digest> {
    Ok(Digest([tx.0 as u8; 32]))
}

fn insert(index: &Sound, tx: u64) {
    let keys = (tx * TX_KEYS..(tx + 1) * TX_KEYS).map(key);
    index.insert_tx(TxId(tx), (0..).zip(keys).map(|(entry, key)| (key, entry, plain())));
}

/// Nobody works in the background: the inserter pays for everything, and still no insert does more than its share and the
/// end of a step; parts never wait until the inserter has to; the number of runs stays bounded.
#[test]
fn an_insert_pays_in_proportion_to_what_it_brings_and_the_number_of_runs_is_bounded() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let index = Sound::open(&vfs, STEPS_PER_LOCK, MEMTABLE_BYTES);
    let brought = TX_KEYS * (16 + 96);
    // A step ends behind its budget by what it could not divide: a sync, or the sorting of a piece.
    let slack = OWED_BYTES.unsigned_abs() + SYNC_STEP_BYTES.max(INDEX_WORK_BYTES);
    let (mut most_runs, mut most_frozen, mut merged, mut newest) = (0, 0, false, 0);
    for tx in 1.. {
        let before = index.work_bytes.load(Ordering::Relaxed);
        let runs = index.run_count();
        insert(&index, tx);
        let pressure = index.pressure.load(Ordering::Relaxed);
        index.help(&flushed).unwrap();
        let work = index.work_bytes.load(Ordering::Relaxed) - before;
        assert!(
            work <= brought * pressure / 2 + slack,
            "transaction {tx}: {work} bytes under a pressure of {pressure}"
        );
        let view = index.view();
        most_frozen = most_frozen.max(view.frozen.len());
        most_runs = most_runs.max(view.runs.len());
        merged |= view.runs.len() < runs;
        newest = tx;
        if view.runs.last().is_some_and(|run| run.info.number >= 40) {
            break;
        }
    }
    assert!(merged, "nothing was merged");
    assert!(most_frozen > 1, "it was never behind");
    assert!(most_frozen < INDEX_FROZEN_MAX, "an insert had to wait for a whole part");
    assert!(most_runs < 7 * INDEX_MERGE_RUNS, "{most_runs} runs");
    for number in (TX_KEYS..(newest + 1) * TX_KEYS).step_by(997) {
        assert_eq!(index.get(&key(number), TxId(newest)).map(|version| version.tx.0), Some(number / TX_KEYS));
    }
    index.verify().unwrap();
}

/// A merge that is under way steps back for a part that is full, and for a merge of newer runs; all of them end well.
#[test]
fn what_is_urgent_does_not_wait_for_a_merge() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let index = Sound::open(&vfs, STEPS_PER_LOCK, usize::MAX);
    let mut tx = 0;
    let mut part = |index: &Sound| {
        for _ in 0..20 {
            tx += 1;
            insert(index, tx);
        }
        index.freeze();
        tx
    };
    let write = |index: &Sound| {
        let mut steps = 0;
        while !index.view().frozen.is_empty() {
            index.work(&flushed, 1).unwrap();
            steps += 1;
        }
        steps
    };
    for _ in 0..INDEX_MERGE_RUNS {
        part(&index);
        write(&index);
    }
    // The merge has begun, by one cell.
    index.work(&flushed, 1).unwrap();
    assert_eq!(index.run_count(), INDEX_MERGE_RUNS);
    for more in 1..=INDEX_MERGE_RUNS {
        part(&index);
        assert!(write(&index) > 0);
        assert_eq!(index.run_count(), INDEX_MERGE_RUNS + more, "written beside the merge");
    }
    // The newer runs are merged first: they become one, and the old ones are still there.
    while index.run_count() > INDEX_MERGE_RUNS + 1 {
        index.work(&flushed, 1).unwrap();
    }
    assert_eq!(index.view().runs[INDEX_MERGE_RUNS].info.first_tx, TxId(20 * INDEX_MERGE_RUNS as u64 + 1));
    let newest = part(&index);
    index.work_all(1);
    assert!(index.run_count() < INDEX_MERGE_RUNS);
    for number in TX_KEYS..(newest + 1) * TX_KEYS {
        assert_eq!(index.get(&key(number), TxId(newest)).map(|version| version.tx.0), Some(number / TX_KEYS));
    }
    index.verify().unwrap();
    assert_eq!(vfs.read_dir(Path::new("/db/index")).unwrap().len(), index.run_count() + 1, "merged files are gone");
    let again = Sound::open(&vfs, STEPS_PER_LOCK, usize::MAX);
    assert_eq!(again.newest_tx(), TxId(newest));
    assert_eq!(again.count(b"", TxId(newest)), newest * TX_KEYS);
}

/// One call inserts many keys under one lock, which readers that wait get in between. Rounds, because nothing says that a reader
/// runs at the same time; one that gets in late every time would be one that waits for the end.
#[test]
fn a_reader_has_its_turn_before_an_insert_is_done() {
    const KEYS: u64 = 20_000;
    let within = (0..1000).any(|_| {
        let table = Memtable::new(TxId(1), 0, STEPS_PER_LOCK);
        let inserts: Vec<_> =
            (0..KEYS).map(|number| table.prepare(TxId(1), key(number), number as u32, &plain())).collect();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while table.newest(&key(0), TxId(1)).is_none() {}
                table.newest(&key(KEYS - 1), TxId(1)).is_none()
            });
            table.insert(TxId(1), &inserts);
            reader.join().unwrap()
        })
    });
    assert!(within, "no reader saw the first key without the last");
}
