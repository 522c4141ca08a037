//! `alhambra bench index`: the index of keys alone, beside fjall (an LSM tree in Rust) in the same run.
//!
//! Both get the same random keys of 32 bytes in batches of 1,000, unsynced, each with 12 bytes that say which transaction and
//! entry wrote it: to ours that is what a version is, to fjall it is the value. Both have block caches of the same size and their
//! own defaults otherwise, and work in the background with threads of their own. Reading begins when both have written out and
//! merged what they had.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use alhambra_ledger::ids::TxId;
use alhambra_storage::index::{Alone, BlockCache, IndexOptions, ScanSpec};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::os::OsVfs;
use bytes::Bytes;
use fjall::Readable;
use serde::Serialize;

use crate::bench::failed;
use crate::bench::machine::Machine;
use crate::bench::storage::workload::{Failed, disk_bytes, fill};
use crate::failure::Failure;
use crate::output::{Table, print_json, print_raw};

const KEY_BYTES: usize = 32;
const BATCH_KEYS: u64 = 1000;
const CACHE_BYTES: u64 = 32 << 20;
/// Keys of one scan.
const SCAN_KEYS: usize = 100;
/// Gets on one snapshot.
const SNAPSHOT_GETS: u64 = 100;

/// Flags of `alhambra bench index`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for both; made and removed. A temporary one when left out.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keys to insert.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    keys: u64,
    /// What the keys follow from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

type Key = [u8; KEY_BYTES];

/// What is measured: one of the two.
trait Store: Sync {
    /// Inserts one batch. Batches come in order.
    fn insert(&self, batch: u64, keys: &[Key]) -> Result<(), Failed>;
    /// Waits until everything is written out and merged.
    fn finish(&self) -> Result<(), Failed>;
    fn get(&self, key: &Key) -> Result<bool, Failed>;
    /// Reads up to [`SCAN_KEYS`] keys from `start` on; answers how many.
    fn scan(&self, start: &Key) -> Result<usize, Failed>;
    /// Opens a snapshot and reads these keys from it: how long opening took, and how many were there.
    fn snapshot(&self, keys: &[Key]) -> Result<(Duration, u64), Failed>;
}

struct Ours(Alone);

impl Store for Ours {
    fn insert(&self, batch: u64, keys: &[Key]) -> Result<(), Failed> {
        Ok(self.0.insert(TxId(batch + 1), keys.iter())?)
    }

    fn finish(&self) -> Result<(), Failed> {
        Ok(self.0.finish()?)
    }

    fn get(&self, key: &Key) -> Result<bool, Failed> {
        let index = self.0.index();
        Ok(index.get(key, index.newest_tx())?.is_some())
    }

    fn scan(&self, start: &Key) -> Result<usize, Failed> {
        let index = self.0.index();
        let start = Some(Bytes::copy_from_slice(start));
        let spec = ScanSpec { start, start_inclusive: true, ..ScanSpec::default() };
        Ok(index.scan_chunk(&spec, index.newest_tx(), None, SCAN_KEYS)?.len())
    }

    fn snapshot(&self, keys: &[Key]) -> Result<(Duration, u64), Failed> {
        let index = self.0.index();
        let began = Instant::now();
        let at = index.newest_tx();
        let opened = began.elapsed();
        let mut found = 0;
        for key in keys {
            found += u64::from(index.get(key, at)?.is_some());
        }
        Ok((opened, found))
    }
}

struct Fjall {
    database: fjall::Database,
    keys: fjall::Keyspace,
}

impl Store for Fjall {
    fn insert(&self, batch: u64, keys: &[Key]) -> Result<(), Failed> {
        let mut writes = self.database.batch();
        for (entry, key) in (0u32..).zip(keys) {
            let mut version = [0; 12];
            version[..8].copy_from_slice(&(batch + 1).to_be_bytes());
            version[8..].copy_from_slice(&entry.to_be_bytes());
            writes.insert(&self.keys, &key[..], &version[..]);
        }
        Ok(writes.commit()?)
    }

    fn finish(&self) -> Result<(), Failed> {
        self.keys.rotate_memtable_and_wait()?;
        Ok(self.keys.major_compact()?)
    }

    fn get(&self, key: &Key) -> Result<bool, Failed> {
        Ok(self.keys.get(key)?.is_some())
    }

    fn scan(&self, start: &Key) -> Result<usize, Failed> {
        let mut read = 0;
        for item in self.keys.range(&start[..]..).take(SCAN_KEYS) {
            read += usize::from(!item.into_inner()?.1.is_empty());
        }
        Ok(read)
    }

    fn snapshot(&self, keys: &[Key]) -> Result<(Duration, u64), Failed> {
        let began = Instant::now();
        let snapshot = self.database.snapshot();
        let opened = began.elapsed();
        let mut found = 0;
        for key in keys {
            found += u64::from(snapshot.get(&self.keys, key)?.is_some());
        }
        Ok((opened, found))
    }
}

/// What one of them reached.
#[derive(Debug, Serialize)]
struct Figures {
    inserts_per_second: f64,
    /// The longest that one batch of inserts took, while runs are written and merged.
    longest_insert_ms: f64,
    /// Writing out and merging what was left after the last insert.
    finish_seconds: f64,
    gets_per_second: f64,
    misses_per_second: f64,
    scans_per_second: f64,
    /// While another thread inserts.
    snapshot_open_us: f64,
    snapshot_gets_per_second: f64,
    inserts_per_second_meanwhile: f64,
    longest_insert_ms_meanwhile: f64,
    disk_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    keys: u64,
    key_len: usize,
    seed: u64,
    batch: u64,
    cache_bytes: u64,
    scan_keys: usize,
    machine: Machine,
    alhambra: Figures,
    fjall: Figures,
}

/// Runs both and prints the report.
pub fn run(args: &Args) -> Result<(), Failure> {
    let what_to_do = "give --dir a folder on a disk with room for both, about 200 bytes per key";
    let report = measure(args).map_err(|error| failed(&error, what_to_do))?;
    if args.json { print_json(&report) } else { print_raw(report.table()) }
}

fn measure(args: &Args) -> Result<Report, Failed> {
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("alhambra-bench-index-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let figures = measure_both(args, &dir);
    std::fs::remove_dir_all(&dir)?;
    let (alhambra, fjall) = figures?;
    Ok(Report {
        keys: args.keys,
        key_len: KEY_BYTES,
        seed: args.seed,
        batch: BATCH_KEYS,
        cache_bytes: CACHE_BYTES,
        scan_keys: SCAN_KEYS,
        machine: Machine::here(),
        alhambra,
        fjall,
    })
}

fn measure_both(args: &Args, dir: &Path) -> Result<(Figures, Figures), Failed> {
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
    let ours = dir.join("alhambra");
    let store = Ours(Alone::create(&vfs, &ours, &IndexOptions::new(Arc::new(BlockCache::new(CACHE_BYTES))))?);
    let stop = AtomicBool::new(false);
    let alhambra = thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<(), Failed> {
            while !stop.load(Ordering::Relaxed) {
                if !store.0.work()? {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        });
        let figures = measure_one(args, &store, &ours);
        stop.store(true, Ordering::Relaxed);
        worker.join().map_err(|_| "the background work panicked")??;
        figures
    })?;
    drop(store);
    let theirs = dir.join("fjall");
    let database = fjall::Database::builder(&theirs).cache_size(CACHE_BYTES).open()?;
    let keys = database.keyspace("keys", fjall::KeyspaceCreateOptions::default)?;
    let fjall = measure_one(args, &Fjall { database, keys }, &theirs)?;
    Ok((alhambra, fjall))
}

fn key(seed: u64, number: u64) -> Key {
    let mut key = [0; KEY_BYTES];
    fill(&mut key, seed.wrapping_mul(0x9e37_79b9) ^ number.wrapping_mul(0xff51_afd7_ed55_8ccd));
    key
}

/// Numbers below `bound` that look random.
fn some(seed: u64, count: u64, bound: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |n| {
        let mut bytes = [0; 8];
        fill(&mut bytes, seed ^ n.wrapping_mul(0xc4ce_b9fe_1a85_ec53));
        u64::from_be_bytes(bytes) % bound
    })
}

/// Inserts batches `from..to`; inserts per second and the longest one.
fn insert(store: &impl Store, seed: u64, from: u64, to: u64) -> Result<(f64, f64), Failed> {
    let (mut taken, mut longest) = (Duration::ZERO, Duration::ZERO);
    for batch in from..to {
        let keys: Vec<Key> = (batch * BATCH_KEYS..(batch + 1) * BATCH_KEYS).map(|number| key(seed, number)).collect();
        let began = Instant::now();
        store.insert(batch, &keys)?;
        let elapsed = began.elapsed();
        taken += elapsed;
        longest = longest.max(elapsed);
    }
    Ok((((to - from) * BATCH_KEYS) as f64 / taken.as_secs_f64(), longest.as_secs_f64() * 1e3))
}

fn measure_one(args: &Args, store: &impl Store, dir: &Path) -> Result<Figures, Failed> {
    let batches = args.keys / BATCH_KEYS;
    let keys = batches * BATCH_KEYS;
    let (inserts_per_second, longest_insert_ms) = insert(store, args.seed, 0, batches)?;
    let began = Instant::now();
    store.finish()?;
    let finish_seconds = began.elapsed().as_secs_f64();
    let disk_bytes = disk_bytes(dir)?;

    let reads = keys.min(1_000_000);
    let timed = |read: &dyn Fn(u64) -> Result<(), Failed>, count: u64| -> Result<f64, Failed> {
        let numbers: Vec<u64> = some(args.seed, count, keys).collect();
        let began = Instant::now();
        numbers.into_iter().try_for_each(read)?;
        Ok(count as f64 / began.elapsed().as_secs_f64())
    };
    let expect = |holds: bool, what: &str| if holds { Ok(()) } else { Err(Failed::from(what.to_owned())) };
    // Once before, so that both begin with a warm cache.
    timed(&|number| expect(store.get(&key(args.seed, number))?, "a key is missing"), reads / 10)?;
    let gets_per_second = timed(&|number| expect(store.get(&key(args.seed, number))?, "a key is missing"), reads)?;
    let misses_per_second =
        timed(&|number| expect(!store.get(&key(!args.seed, number))?, "a key is there that nobody wrote"), reads)?;
    let scans_per_second = timed(
        &|number| expect(store.scan(&key(args.seed, number))? > 0, "a scan does not begin with its key"),
        (reads / 50).max(100),
    )?;

    let more = (batches / 4).max(1);
    let (stop, gets, opened_ns, snapshots) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let (inserts_per_second_meanwhile, longest_insert_ms_meanwhile) = thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<(), Failed> {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                let wanted: Vec<Key> =
                    some(args.seed ^ round, SNAPSHOT_GETS, keys).map(|number| key(args.seed, number)).collect();
                let (opened, found) = store.snapshot(&wanted)?;
                expect(found == SNAPSHOT_GETS, "a snapshot does not have what was there before it")?;
                opened_ns.fetch_add(u64::try_from(opened.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
                snapshots.fetch_add(1, Ordering::Relaxed);
                gets.fetch_add(found, Ordering::Relaxed);
                round += 1;
            }
            Ok(())
        });
        let inserted = insert(store, args.seed, batches, batches + more);
        stop.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| "the reader panicked")??;
        inserted
    })?;
    let elapsed = began.elapsed().as_secs_f64();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    Ok(Figures {
        inserts_per_second,
        longest_insert_ms,
        finish_seconds,
        gets_per_second,
        misses_per_second,
        scans_per_second,
        snapshot_open_us: load(&opened_ns) / 1e3 / load(&snapshots).max(1.0),
        snapshot_gets_per_second: load(&gets) / elapsed,
        inserts_per_second_meanwhile,
        longest_insert_ms_meanwhile,
        disk_bytes,
    })
}

impl Report {
    fn table(&self) -> String {
        let mut table = Table::new(&["", "alhambra", "fjall", "ratio"]);
        type Row = (&'static str, fn(&Figures) -> f64, usize);
        let rows: [Row; 11] = [
            ("inserts/s", |f| f.inserts_per_second, 0),
            ("longest batch of 1,000, ms", |f| f.longest_insert_ms, 1),
            ("write out and merge the rest, s", |f| f.finish_seconds, 2),
            ("gets/s", |f| f.gets_per_second, 0),
            ("misses/s", |f| f.misses_per_second, 0),
            ("scans of 100/s", |f| f.scans_per_second, 0),
            ("under load: open a snapshot, us", |f| f.snapshot_open_us, 2),
            ("under load: gets on snapshots/s", |f| f.snapshot_gets_per_second, 0),
            ("under load: inserts/s", |f| f.inserts_per_second_meanwhile, 0),
            ("under load: longest batch, ms", |f| f.longest_insert_ms_meanwhile, 1),
            ("disk MB", |f| f.disk_bytes as f64 / 1e6, 1),
        ];
        for (name, value, digits) in rows {
            let (ours, theirs) = (value(&self.alhambra), value(&self.fjall));
            table.row([
                name.to_owned(),
                format!("{ours:.digits$}"),
                format!("{theirs:.digits$}"),
                format!("{:.2}", ours / theirs),
            ]);
        }
        format!(
            "Machine: {}\n{} random keys of {} bytes, seed {}\n\n{}",
            self.machine.describe(),
            self.keys,
            self.key_len,
            self.seed,
            table.render()
        )
    }
}
