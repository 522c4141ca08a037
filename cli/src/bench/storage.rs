//! `alhambra bench storage`: the storage engine alone, in this process, without network and without Raft.
//!
//! Committers are threads; each commits its transactions one after the other. Without `--random-keys` every transaction
//! writes the same keys. Beside the figures stand the limits of this machine, measured in the same run: SHA-256 of what a
//! commit hashes, on one core, and with `--synced` a bare write and fdatasync of the same bytes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::workload::{Failed, Plan};
use crate::bench::failed;
use crate::bench::machine::Machine;
use crate::failure::Failure;
use crate::output::{Table, print_json, print_raw};

pub(super) mod workload;

/// Flags of `alhambra bench storage`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the new database; empty or absent. It is left there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Threads that commit.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    committers: u64,
    /// Transactions per committer.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    transactions: u64,
    /// Entries per transaction.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    entries: u32,
    /// Bytes of a key; a transaction of many entries needs room for as many different ones.
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u16).range(4..=1023))]
    key_len: u16,
    /// Bytes of a value.
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    value_len: u32,
    /// A commit returns when it is on disk.
    #[arg(long)]
    synced: bool,
    /// Every key is written once, in random order; else every transaction writes the same keys.
    #[arg(long)]
    random_keys: bool,
    /// Read every entry back at the end, with its proof, and verify all of them.
    #[arg(long)]
    verify: bool,
    /// Open what an earlier run with the same flags has left in the folder, killed or not, and measure that and gets of random
    /// keys instead of commits. Writes nothing but what opening recovers.
    #[arg(long, conflicts_with_all = ["synced", "verify"])]
    reopen: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    committers: u64,
    transactions: u64,
    entries: u64,
    key_len: u16,
    value_len: u32,
    synced: bool,
    random_keys: bool,
    machine: Machine,
    /// From the first commit until everything is applied and indexed.
    seconds: f64,
    entries_per_second: f64,
    transactions_per_second: f64,
    cpu_seconds: f64,
    commit_p50_us: f64,
    commit_p99_us: f64,
    /// All files, as allocated.
    disk_bytes: u64,
    /// All logs, without keys and values.
    overhead_bytes_per_transaction: f64,
    /// Greatest of the process.
    resident_bytes: u64,
    /// Of the process with the empty database open.
    resident_bytes_empty: u64,
    hash_limit_entries_per_second: f64,
    hash_limit_two_lanes_entries_per_second: f64,
    /// With `--synced`: write and fdatasync of the bytes of one transaction.
    disk_sync_one_us: Option<f64>,
    /// With `--synced`: of one transaction of each committer at once.
    disk_sync_group_us: Option<f64>,
    /// What such syncs one after the other would commit.
    disk_limit_transactions_per_second: Option<f64>,
    /// With `--verify`: entries that were read back with proof.
    verified_entries: Option<u64>,
    verified_get_p50_us: Option<f64>,
    verified_get_p99_us: Option<f64>,
}

/// Runs the workload and prints the report.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.reopen {
        let report =
            reopen(args).map_err(|error| failed(&error, "give --dir the folder of an earlier run, and its flags"))?;
        return if args.json { print_json(&report) } else { print_raw(report.table()) };
    }
    let report = measure(args).map_err(|error| failed(&error, "give --dir an empty folder on a disk with room"))?;
    if args.json { print_json(&report) } else { print_raw(report.table()) }
}

/// What `--reopen` measures.
#[derive(Debug, Serialize)]
struct Reopened {
    machine: Machine,
    /// Transactions that were found.
    transactions: u64,
    open_seconds: f64,
    /// Gets of random keys, all of them once before, and how many had a value: a killed run has not written all.
    gets: u64,
    found: u64,
    get_p50_us: f64,
    get_p99_us: f64,
    first_get_p50_us: f64,
    first_get_p99_us: f64,
    resident_bytes: u64,
}

fn reopen(args: &Args) -> Result<Reopened, Failed> {
    let figures = plan_of(args).reopen()?;
    Ok(Reopened {
        machine: Machine::here(),
        transactions: figures.transactions,
        open_seconds: figures.open.as_secs_f64(),
        gets: figures.gets.len() as u64,
        found: figures.found,
        get_p50_us: at(&figures.gets, 50).unwrap_or_default(),
        get_p99_us: at(&figures.gets, 99).unwrap_or_default(),
        first_get_p50_us: at(&figures.first_gets, 50).unwrap_or_default(),
        first_get_p99_us: at(&figures.first_gets, 99).unwrap_or_default(),
        resident_bytes: workload::resident_bytes_max(),
    })
}

impl Reopened {
    fn table(&self) -> String {
        let mut table = Table::new(&["measured", ""]);
        table.row(["transactions found".into(), self.transactions.to_string()]);
        table.row(["open, seconds".into(), format!("{:.3}", self.open_seconds)]);
        let gets = |p50: f64, p99: f64| format!("{p50:.1}, {p99:.1}");
        table.row(["first gets p50, p99 us".into(), gets(self.first_get_p50_us, self.first_get_p99_us)]);
        table.row(["the same again p50, p99 us".into(), gets(self.get_p50_us, self.get_p99_us)]);
        table.row(["found".into(), format!("{} of {}", self.found, self.gets)]);
        table.row(["resident MiB, peak".into(), format!("{:.1}", mib(self.resident_bytes))]);
        format!("Machine: {}\n\n{}", self.machine.describe(), table.render())
    }
}

fn plan_of(args: &Args) -> Plan {
    Plan {
        dir: args.dir.clone(),
        committers: args.committers,
        transactions: args.transactions,
        entries: args.entries,
        key_len: usize::from(args.key_len),
        value_len: args.value_len as usize,
        synced: args.synced,
        random_keys: args.random_keys,
        verify: args.verify,
    }
}

fn measure(args: &Args) -> Result<Report, Failed> {
    let plan = plan_of(args);
    let db = plan.open()?;
    let resident_bytes_empty = workload::resident_bytes_max();
    let total = plan.transactions_total();
    let mut figures = with_progress("commit", total, |done| plan.load(&db, done))?;
    if plan.verify {
        figures.verified_gets = with_progress("verify", total, |done| plan.verify(&db, done))?;
    }
    drop(db);
    let limits = plan.limits()?;
    let seconds = figures.elapsed.as_secs_f64();
    let synced = |value: f64| args.synced.then_some(value);
    Ok(Report {
        committers: plan.committers,
        transactions: total,
        entries: plan.entries_total(),
        key_len: args.key_len,
        value_len: args.value_len,
        synced: args.synced,
        random_keys: args.random_keys,
        machine: Machine::here(),
        seconds,
        entries_per_second: plan.entries_total() as f64 / seconds,
        transactions_per_second: total as f64 / seconds,
        cpu_seconds: figures.cpu.as_secs_f64(),
        commit_p50_us: at(&figures.commits, 50).unwrap_or_default(),
        commit_p99_us: at(&figures.commits, 99).unwrap_or_default(),
        disk_bytes: figures.disk_bytes,
        overhead_bytes_per_transaction: figures.overhead_bytes_per_transaction,
        resident_bytes: figures.resident_bytes,
        resident_bytes_empty,
        hash_limit_entries_per_second: limits.hash_entries_per_second,
        hash_limit_two_lanes_entries_per_second: limits.lanes_entries_per_second,
        disk_sync_one_us: synced(micros(limits.one_sync)),
        disk_sync_group_us: synced(micros(limits.group_sync)),
        disk_limit_transactions_per_second: synced(plan.committers as f64 / limits.group_sync.as_secs_f64()),
        verified_entries: plan.verify.then_some(figures.verified_gets.len() as u64),
        verified_get_p50_us: at(&figures.verified_gets, 50),
        verified_get_p99_us: at(&figures.verified_gets, 99),
    })
}

/// Runs `work`, which counts up to `total`, beside a bar on standard error.
fn with_progress<T: Send>(
    what: &'static str,
    total: u64,
    work: impl FnOnce(&AtomicU64) -> Result<T, Failed> + Send,
) -> Result<T, Failed> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")?;
    let bar = ProgressBar::new(total).with_style(style).with_message(what);
    let done = AtomicU64::new(0);
    let result = std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&done));
        while !working.is_finished() && !bar.is_hidden() {
            bar.set_position(done.load(Ordering::Relaxed));
            std::thread::park_timeout(Duration::from_millis(100));
        }
        working.join().map_err(|_| "a thread panicked")?
    });
    bar.finish_and_clear();
    result
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// A percentile of sorted durations, in microseconds.
fn at(sorted: &[Duration], percent: usize) -> Option<f64> {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?)).copied().map(micros)
}

impl Report {
    fn table(&self) -> String {
        let mut table = Table::new(&["measured", "", "of this machine's limit"]);
        let share = |figure: f64, limit: f64| format!("{:.0} %", 100.0 * figure / limit);
        let hash = share(self.entries_per_second, self.hash_limit_entries_per_second);
        table.row([
            "entries/s".into(),
            format!("{:.0}", self.entries_per_second),
            format!("{hash} of SHA-256, one core"),
        ]);
        let disk = self.disk_limit_transactions_per_second;
        let disk = disk.map(|limit| share(self.transactions_per_second, limit) + " of group syncs");
        table.row(["transactions/s".into(), format!("{:.0}", self.transactions_per_second), disk.unwrap_or_default()]);
        table.row(["seconds, CPU".into(), format!("{:.2}, {:.2}", self.seconds, self.cpu_seconds)]);
        let sync = self.disk_sync_one_us.map(|us| format!("bare write and fdatasync {us:.0}"));
        let commit = format!("{:.0}, {:.0}", self.commit_p50_us, self.commit_p99_us);
        table.row(["commit p50, p99 us".into(), commit, sync.unwrap_or_default()]);
        table.row(["disk MB".into(), format!("{:.1}", self.disk_bytes as f64 / 1e6)]);
        table.row(["overhead bytes/transaction".into(), format!("{:.1}", self.overhead_bytes_per_transaction)]);
        let resident = format!("{:.1} ({:.1} empty)", mib(self.resident_bytes), mib(self.resident_bytes_empty));
        table.row(["resident MiB, peak".into(), resident]);
        let lanes = format!("{:.0} in two lanes", self.hash_limit_two_lanes_entries_per_second);
        table.row(["SHA-256 limit entries/s".into(), format!("{:.0}", self.hash_limit_entries_per_second), lanes]);
        if let (Some(count), Some(p50), Some(p99)) =
            (self.verified_entries, self.verified_get_p50_us, self.verified_get_p99_us)
        {
            let gets = format!("{p50:.1}, {p99:.1}");
            table.row(["verified get p50, p99 us".into(), gets, format!("all {count} entries verify")]);
        }
        format!("Machine: {}\n\n{}", self.machine.describe(), table.render())
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: PathBuf, synced: bool, random_keys: bool) -> Args {
        Args {
            dir,
            committers: 3,
            transactions: 4,
            entries: 40,
            key_len: 8,
            value_len: 20,
            synced,
            random_keys,
            verify: true,
            reopen: false,
            json: false,
        }
    }

    #[test]
    fn every_kind_of_run_commits_verifies_and_reports() {
        for (synced, random_keys) in [(false, false), (false, true), (true, false), (true, true)] {
            let parent = tempfile::tempdir().unwrap();
            let args = args(parent.path().join("db"), synced, random_keys);
            let report = measure(&args).unwrap();
            assert_eq!((report.transactions, report.entries, report.verified_entries), (12, 480, Some(480)));
            assert!(report.entries_per_second > 0.0 && report.hash_limit_entries_per_second > 0.0);
            assert!(report.disk_bytes > 480 * 28 && report.overhead_bytes_per_transaction > 0.0);
            assert_eq!(report.disk_limit_transactions_per_second.is_some(), synced);
            let table = report.table();
            assert!(table.contains("all 480 entries verify"), "{table}");
            assert_eq!(table.contains("of group syncs"), synced, "{table}");
            let opened = reopen(&args).unwrap();
            assert_eq!((opened.transactions, opened.found), (12, opened.gets));
            assert!(opened.table().contains("100000 of 100000"), "{}", opened.table());
            let again = measure(&args).unwrap_err().to_string();
            assert!(again.contains("is not empty"), "{again}");
            assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1, "nothing else is left behind");
        }
    }

    #[test]
    fn a_folder_without_a_database_is_not_opened_again_and_stays_as_it_was() {
        let parent = tempfile::tempdir().unwrap();
        let error = reopen(&args(parent.path().to_owned(), false, true)).unwrap_err().to_string();
        assert!(error.contains("holds no database"), "{error}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn percentiles_of_few() {
        let of = |count: u64| (1..=count).map(Duration::from_micros).collect::<Vec<_>>();
        assert_eq!((at(&of(0), 50), at(&of(1), 99)), (None, Some(1.0)));
        assert_eq!((at(&of(100), 50), at(&of(100), 99)), (Some(51.0), Some(100.0)));
    }
}
