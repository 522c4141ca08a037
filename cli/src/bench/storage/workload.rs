//! What `alhambra bench storage` does to a database, and what it measures: no flags, no printing.
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark measures real time, and the caller of the library is where time comes from"
)]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use alhambra_ledger::digest::{self, Digest};
use alhambra_ledger::entry::{entry_digest, entry_digests};
use alhambra_ledger::ids::{DatabaseId, TxId};
use alhambra_ledger::proof::{verify_dual, verify_entry};
use alhambra_ledger::{htree, kv};
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{ProposalEntry, Settings, TxProposal};
use alhambra_storage::limits::SEGMENT_BYTES_DEFAULT;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::{Committer, Database, DatabaseSpec, Durability, Options};
use bytes::Bytes;

/// An error of any of the parts.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    pub dir: PathBuf,
    pub committers: u64,
    /// Per committer.
    pub transactions: u64,
    /// Per transaction.
    pub entries: u32,
    pub key_len: usize,
    pub value_len: usize,
    pub synced: bool,
    pub random_keys: bool,
    pub verify: bool,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// From the first commit until everything is applied and indexed.
    pub elapsed: Duration,
    /// Of the process, meanwhile: user and system.
    pub cpu: Duration,
    /// Of each commit, sorted.
    pub commits: Vec<Duration>,
    /// All files, as allocated by the file system.
    pub disk_bytes: u64,
    /// All logs together, without what they were asked to keep, per transaction.
    pub overhead_bytes_per_transaction: f64,
    /// Greatest so far.
    pub resident_bytes: u64,
    /// Read back with a proof, sorted.
    pub verified_gets: Vec<Duration>,
}

/// What opening an earlier run's database and reading from it took.
#[derive(Clone, Debug, Default)]
pub struct Reopening {
    /// Until everything was applied and could be read.
    pub open: Duration,
    pub transactions: u64,
    /// Of keys at random, sorted.
    pub first_gets: Vec<Duration>,
    /// The same keys once more, sorted.
    pub gets: Vec<Duration>,
    /// Of these.
    pub found: u64,
}

/// Keys that are read of a database that was opened again.
const REOPEN_GETS: u64 = 100_000;

/// What nothing could be faster than.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// SHA-256 of what a commit hashes, one core, one message after the other.
    pub hash_entries_per_second: f64,
    /// The same, two messages at a time where the processor allows.
    pub lanes_entries_per_second: f64,
    /// Writes and syncs of the bytes of one transaction, one after the other.
    pub one_sync: Duration,
    /// Writes and syncs of the bytes of one transaction of each committer.
    pub group_sync: Duration,
}

impl Plan {
    /// Transactions in all.
    pub fn transactions_total(&self) -> u64 {
        self.committers * self.transactions
    }

    /// Entries in all.
    pub fn entries_total(&self) -> u64 {
        self.transactions_total() * u64::from(self.entries)
    }

    /// Stored key number `n`: with a prefix byte, then random bytes or a number.
    fn key(&self, n: u64) -> Bytes {
        let mut key = vec![0; 1 + self.key_len];
        key[0] = kv::PLAIN_KEY;
        if self.random_keys {
            fill(&mut key[1..], n);
        } else {
            let digits = n.to_be_bytes();
            let len = self.key_len.min(digits.len());
            key[1 + self.key_len - len..].copy_from_slice(&digits[digits.len() - len..]);
        }
        Bytes::from(key)
    }

    fn proposal(&self, transaction: u64) -> TxProposal {
        let first = transaction * u64::from(self.entries);
        let entries = (0..u64::from(self.entries))
            .map(|n| {
                let mut value = vec![0; 1 + self.value_len];
                fill(&mut value[1..], first + n);
                let key = self.key(if self.random_keys { first + n } else { n });
                ProposalEntry::plain(key, Bytes::new(), Bytes::from(value))
            })
            .collect();
        TxProposal { entries, ..TxProposal::default() }
    }

    /// Opens the database, which must be new.
    pub fn open(&self) -> Result<Arc<Database>, Failed> {
        if std::fs::read_dir(&self.dir).is_ok_and(|mut names| names.next().is_some()) {
            return Err(format!("{} is not empty", self.dir.display()).into());
        }
        self.open_database()
    }

    fn open_database(&self) -> Result<Arc<Database>, Failed> {
        let spec = DatabaseSpec { id: DatabaseId(*b"bench storage..."), segment_bytes: SEGMENT_BYTES_DEFAULT };
        let settings = Settings { tx_entries_max: self.entries.max(1024), ..Settings::DEFAULT };
        let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
        Ok(Arc::new(Database::open_embedded(vfs, &self.dir, spec, Options::default(), settings)?))
    }

    /// Opens the database of an earlier run and reads from it. Values are compared with what that run must have written.
    pub fn reopen(&self) -> Result<Reopening, Failed> {
        if !self.dir.join("ledger").is_dir() {
            return Err(format!("{} holds no database", self.dir.display()).into());
        }
        let start = Instant::now();
        let db = self.open_database()?;
        let mut figures = Reopening { open: start.elapsed(), transactions: db.applied().tx.0, ..Reopening::default() };
        let distinct = if self.random_keys { self.entries_total() } else { u64::from(self.entries) };
        let snapshot = db.snapshot();
        let mut value = vec![0; 1 + self.value_len];
        for round in 0..2 {
            figures.found = 0;
            let mut took = Vec::with_capacity(REOPEN_GETS as usize);
            for get in 0..REOPEN_GETS {
                let mut random = [0; 8];
                fill(&mut random, get ^ 0x5eed);
                let number = u64::from_be_bytes(random) % distinct;
                let key = self.key(number);
                let asked = Instant::now();
                let found = match snapshot.get(&key)? {
                    Some(version) => Some(snapshot.value(&key, &version)?),
                    None => None,
                };
                took.push(asked.elapsed());
                figures.found += u64::from(found.is_some());
                fill(&mut value[1..], number);
                if self.random_keys && found.is_some_and(|found| found[..] != value[..]) {
                    return Err(format!("key {number} has another value than was written").into());
                }
            }
            took.sort_unstable();
            if round == 0 { figures.first_gets = took } else { figures.gets = took }
        }
        Ok(figures)
    }

    /// Commits everything. `done` is told the number of committed transactions now and then.
    pub fn load(&self, db: &Arc<Database>, done: &AtomicU64) -> Result<Figures, Failed> {
        let durability = if self.synced { Durability::Synced } else { Durability::Unsynced };
        let committer = Committer::new(Arc::clone(db), durability);
        let size = db.size_bytes();
        let (start, cpu) = (Instant::now(), cpu_time());
        let run = |number: u64| -> Result<Vec<Duration>, Failed> {
            let mut took = Vec::with_capacity(self.transactions as usize);
            for n in 0..self.transactions {
                let proposal = self.proposal(number * self.transactions + n);
                let asked = Instant::now();
                match committer.commit(now_unix_s(), proposal)? {
                    Outcome::Committed { .. } => {}
                    other => return Err(format!("not committed: {other:?}").into()),
                }
                took.push(asked.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(took)
        };
        let mut commits = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.committers).map(|number| scope.spawn(move || run(number))).collect();
            let results = threads.into_iter().map(|thread| thread.join().map_err(|_| "a committer panicked")?);
            results.collect::<Result<Vec<_>, Failed>>()
        })?
        .concat();
        let (elapsed, cpu) = (start.elapsed(), cpu_time().saturating_sub(cpu));
        commits.sort_unstable();
        let payload = self.entries_total() * (2 + self.key_len + self.value_len) as u64;
        let overhead = (db.size_bytes() - size).saturating_sub(payload) as f64 / self.transactions_total() as f64;
        let resident_bytes = resident_bytes_max();
        db.checkpoint()?;
        Ok(Figures {
            elapsed,
            cpu,
            commits,
            disk_bytes: disk_bytes(&self.dir)?,
            overhead_bytes_per_transaction: overhead,
            resident_bytes,
            verified_gets: Vec::new(),
        })
    }

    /// Reads every entry back, each with header, value and proof, and proves that each transaction is history of the last.
    pub fn verify(&self, db: &Database, done: &AtomicU64) -> Result<Vec<Duration>, Failed> {
        let last = TxId(self.transactions_total());
        if db.applied().tx != last {
            return Err(format!("{} transactions, {last} were committed", db.applied().tx).into());
        }
        let last_alh = db.alh(last)?;
        let mut took = Vec::with_capacity(self.entries_total() as usize);
        for tx in (1..=last.0).map(TxId) {
            let alh = db.alh(tx)?;
            for number in 0..self.entries {
                let asked = Instant::now();
                let proven = db.prove_entry(tx, number)?;
                let value = db.value(&proven.entry)?;
                took.push(asked.elapsed());
                let digest = entry_digest(1, &proven.entry.key, &proven.entry.metadata, &digest::sha256(&value))?;
                verify_entry(&proven.inclusion, &digest, &proven.header)?;
                if proven.header.alh()? != alh || value.len() != 1 + self.value_len {
                    return Err(format!("transaction {tx}, entry {number}: not what was committed").into());
                }
            }
            verify_dual(&db.dual_proof(tx, last)?, tx, last, &alh, &last_alh)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        took.sort_unstable();
        Ok(took)
    }

    /// Measures the limits: the pure hashing of a transaction, and the disk in the folder.
    pub fn limits(&self) -> Result<Limits, Failed> {
        let proposal = self.proposal(0);
        let per_second = |hash: &dyn Fn() -> Digest| {
            let (start, mut rounds) = (Instant::now(), 0u64);
            while rounds < 3 || start.elapsed() < Duration::from_millis(400) {
                std::hint::black_box(hash());
                rounds += 1;
            }
            (rounds * u64::from(self.entries)) as f64 / start.elapsed().as_secs_f64()
        };
        let entries = &proposal.entries;
        let mut limits = Limits {
            hash_entries_per_second: per_second(&|| one_by_one(entries)),
            lanes_entries_per_second: per_second(&|| two_by_two(entries)),
            ..Limits::default()
        };
        if self.synced {
            let bytes = entries.iter().map(|e| e.key.len() + e.value.len() + 6).sum::<usize>() + 40;
            limits.one_sync = self.sync_median(bytes)?;
            limits.group_sync = self.sync_median(bytes * self.committers as usize)?;
        }
        Ok(limits)
    }

    /// Median of a write of so many bytes and fdatasync, into space that was zeroed before.
    fn sync_median(&self, bytes: usize) -> Result<Duration, Failed> {
        let path = self.dir.with_extension("sync");
        let rounds = (64 << 20) / bytes.clamp(1 << 10, 4 << 20);
        let rounds = rounds.clamp(16, 500);
        let file = File::create(&path)?;
        let data = vec![0xa5; bytes];
        file.write_all_at(&vec![0; rounds * bytes], 0)?;
        file.sync_all()?;
        let mut took = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let start = Instant::now();
            file.write_all_at(&data, (round * bytes) as u64)?;
            file.sync_data()?;
            took.push(start.elapsed());
        }
        std::fs::remove_file(&path)?;
        took.sort_unstable();
        Ok(took[rounds / 2])
    }
}

/// The hashes of a transaction: values, entries, the tree; header and main tree are a handful more.
fn one_by_one(entries: &[ProposalEntry]) -> Digest {
    let mut level: Vec<Digest> = (entries.iter())
        .map(|e| entry_digest(1, &e.key, &e.metadata, &digest::sha256(&e.value)).expect("short keys"))
        .map(|digest| digest::leaf(&digest))
        .collect();
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| if let [l, r] = pair { digest::node(l, r) } else { pair[0] }).collect();
    }
    level[0]
}

fn two_by_two(entries: &[ProposalEntry]) -> Digest {
    let values = digest::sha256_each(entries.len(), |n, message| message.extend_from_slice(&entries[n].value));
    let digests = entry_digests(1, entries.len(), |n| (&entries[n].key[..], &entries[n].metadata[..], &values[n]));
    htree::root(&digests.expect("short keys"))
}

/// Bytes that follow from `seed` and look random (SplitMix64).
pub fn fill(out: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    for chunk in out.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes()[..chunk.len()]);
    }
}

fn now_unix_s() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// User and system time of this process, in the system's ticks of 10 ms; zero where it cannot be found out.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the process, in parentheses, may hold anything; behind it utime and stime are fields 12 and 13.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    Duration::from_millis(10 * fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>())
}

/// Greatest resident size of this process so far; 0 where it cannot be found out.
pub fn resident_bytes_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Space that all files below a folder take.
pub fn disk_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { disk_bytes(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}
