//! The index alone under load: how long a batch of inserts takes while runs are written and merged, and how fast snapshots are
//! read beside a writer that never pauses.
//!
//! `cargo run --release -p alhambra-storage --example index [FOLDER [KEYS]]`
//!
//! `alhambra bench index` measures the same and more, beside another store; this builds in a minute and shows the distribution.

#![allow(clippy::disallowed_methods, reason = "measured for the reader")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use alhambra_ledger::ids::TxId;
use alhambra_storage::index::{Alone, BlockCache, IndexOptions};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::os::OsVfs;

type Failed = Box<dyn Error + Send + Sync>;
type Key = [u8; 32];

const BATCH_KEYS: u64 = 1000;
const CACHE_BYTES: u64 = 32 << 20;

/// Looks random; the same number always gives the same key.
fn key(number: u64) -> Key {
    let mut key = [0; 32];
    let mut state = number;
    for part in key.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
        state = mixed;
    }
    key
}

/// Inserts batches `from..to`; how long each took.
fn insert(index: &Alone, from: u64, to: u64) -> Result<Vec<Duration>, Failed> {
    (from..to)
        .map(|batch| {
            let keys: Vec<Key> = (batch * BATCH_KEYS..(batch + 1) * BATCH_KEYS).map(key).collect();
            let began = Instant::now();
            index.insert(TxId(batch + 1), keys.iter())?;
            Ok(began.elapsed())
        })
        .collect()
}

fn print(what: &str, mut taken: Vec<Duration>) {
    let seconds: f64 = taken.iter().map(Duration::as_secs_f64).sum();
    let per_second = taken.len() as f64 * BATCH_KEYS as f64 / seconds;
    taken.sort_unstable();
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what}: {per_second:.0} inserts/s; batch of {BATCH_KEYS}: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn measure(dir: &Path, keys: u64) -> Result<(), Failed> {
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
    let index = Alone::create(&vfs, dir, &IndexOptions::new(Arc::new(BlockCache::new(CACHE_BYTES))))?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<(), Failed> {
            while !stop.load(Ordering::Relaxed) {
                if !index.work()? {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        });
        let batches = keys.div_ceil(BATCH_KEYS);
        let measured = load(&index, batches);
        stop.store(true, Ordering::Relaxed);
        worker.join().map_err(|_| "the background work panicked")??;
        measured
    })
}

fn load(index: &Alone, batches: u64) -> Result<(), Failed> {
    let taken = insert(index, 0, batches)?;
    let runs = index.index().run_count();
    print("while runs are written and merged", taken);
    let began = Instant::now();
    index.finish()?;
    println!(
        "  {runs} runs at the end of it; {:.2} s later all was merged: {} runs, {:.1} MB",
        began.elapsed().as_secs_f64(),
        index.index().run_count(),
        index.index().disk_bytes() as f64 / 1e6
    );
    let (stop, gets) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    let taken = thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<(), Failed> {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let at = index.index().newest_tx();
                for _ in 0..100 {
                    number = (number + 0x9e37_79b9) % (batches * BATCH_KEYS);
                    index.index().get(&key(number), at)?.ok_or("a key is missing")?;
                    gets.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        let inserted = insert(index, batches, batches + (batches / 4).max(1));
        stop.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| "the reader panicked")??;
        inserted
    })?;
    let per_second = gets.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    print("beside a reader", taken);
    println!("  {per_second:.0} gets on snapshots/s");
    Ok(())
}

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("alhambra-index"), PathBuf::from);
    let keys = args.next().map_or(Ok(1_000_000), |keys| keys.parse())?;
    std::fs::create_dir_all(&dir)?;
    let dir = dir.join(format!("load-{}", std::process::id()));
    let measured = measure(&dir, keys);
    std::fs::remove_dir_all(&dir)?;
    measured
}
