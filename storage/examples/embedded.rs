//! The database as an embedded library: no cluster, no server, one folder.
//!
//! `cargo run --release -p alhambra-storage --example embedded [FOLDER [TRANSACTIONS]]`
//!
//! Opens a ledger, writes to it, reads back with proof, travels in time, and prints what a transaction costs on disk and in
//! time. Run it again on the same folder: it goes on where it stopped.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alhambra_ledger::ids::{DatabaseId, LogIndex, TxId};
use alhambra_ledger::kv::{set_key, set_value};
use alhambra_ledger::proof::{verify_dual, verify_entry};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Precondition, ProposalEntry, RequestId, Settings, TxProposal};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::{Database, DatabaseSpec, Options};
use bytes::Bytes;

const VALUE_BYTES: usize = 100;
const BATCH_TXS: u64 = 1000;

fn set(key: &str, value: &[u8]) -> TxProposal {
    TxProposal { entries: vec![ProposalEntry::set(key.as_bytes(), value)], ..TxProposal::default() }
}

#[allow(clippy::disallowed_methods, reason = "the caller of the library is where time comes from")]
fn now_unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}

#[allow(clippy::disallowed_methods, reason = "measured for the reader")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let out = work();
    (out, start.elapsed())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("alhambra-embedded"), PathBuf::from);
    let count: u64 = args.next().map_or(Ok(20_000), |count| count.parse())?;

    let spec = DatabaseSpec { id: DatabaseId(*b"embedded example"), segment_bytes: 64 << 20 };
    let open = || Database::open_embedded(Arc::new(OsVfs::new()), &dir, spec, Options::default(), Settings::DEFAULT);
    let (db, elapsed) = timed(open);
    let db = db?;
    println!("opened {} at transaction {} in {elapsed:.1?}", dir.display(), db.applied().tx);

    one_key(&db)?;
    many(&db, &dir, count)?;

    let (checkpoint, elapsed) = timed(|| db.checkpoint());
    checkpoint?;
    println!("checkpoint in {elapsed:.1?}");
    let last = db.applied();
    drop(db);
    let (db, elapsed) = timed(open);
    let db = db?;
    assert_eq!(db.applied(), last);
    println!("opened again at transaction {} in {elapsed:.1?}", last.tx);
    Ok(())
}

/// Write, read, verify, travel back.
fn one_key(db: &Database) -> Result<(), Box<dyn Error>> {
    let first = db.applied();
    let outcomes = db.commit(now_unix_s(), vec![set("account/7", b"100 EUR"), set("account/7", b"70 EUR")])?;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Committed { .. })));
    println!("wrote transactions up to {}", db.applied().tx);

    // A condition that does not hold refuses the transaction; nothing is written.
    let mut conditional = set("account/7", b"0 EUR");
    conditional.preconditions.push(Precondition::MustNotExist(set_key(b"account/7").into()));
    let refused = db.commit(now_unix_s(), vec![conditional])?;
    assert_eq!(refused, [Outcome::Rejected(Rejection::Precondition { index: 0 })]);

    // Two transactions read the same balance; the second to commit has read something that is not so any more.
    let account = Bytes::from(set_key(b"account/7"));
    let withdraw = |left: &[u8]| -> Result<TxProposal, Box<dyn Error>> {
        let mut transaction = db.begin(now_unix_s())?;
        assert!(transaction.exists(&account)?);
        transaction.set(account.clone(), set_value(left).into())?;
        Ok(transaction.into_proposal())
    };
    let outcomes = db.commit(now_unix_s(), vec![withdraw(b"60 EUR")?, withdraw(b"50 EUR")?])?;
    assert!(matches!(outcomes[0], Outcome::Committed { .. }));
    assert_eq!(outcomes[1], Outcome::Rejected(Rejection::Conflict { range: Some(0) }));
    println!("of two transactions that had read account/7, one had to run again");

    let snapshot = db.snapshot();
    let key = set_key(b"account/7");
    let version = snapshot.get(&key)?.ok_or("written above")?;
    // The first byte of a stored value says that it is a plain one.
    let text = |value: Bytes| String::from_utf8_lossy(&value[1..]).into_owned();
    println!("account/7 = {}, revision {}", text(snapshot.value(&key, &version)?), version.revision);
    let earlier = db.snapshot_at(TxId(version.tx.0 - 1));
    let before = earlier.get(&key)?.ok_or("written above")?;
    println!("one transaction earlier it was {}", text(earlier.value(&key, &before)?));

    // What a client checks: the entry is in its transaction, and that transaction continues what the client knew.
    let record = db.tx(version.tx)?;
    let proof = db.prove_inclusion(version.tx, version.entry)?;
    verify_entry(&proof, &record.entries[version.entry as usize].digest(1), &record.header)?;
    let trusted = first.tx.max(TxId(1));
    let dual = db.dual_proof(trusted, version.tx)?;
    verify_dual(&dual, trusted, version.tx, &db.alh(trusted)?, &db.alh(version.tx)?)?;
    println!("proved: transaction {trusted} is history of {}", version.tx);
    println!("{} keys below account/", snapshot.count(&set_key(b"account/"))?);
    Ok(())
}

/// What a transaction costs.
fn many(db: &Database, dir: &Path, count: u64) -> Result<(), Box<dyn Error>> {
    let start = db.applied().tx.0;
    let proposal = |n: u64| {
        let key = format!("key/{:010x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24);
        let mut proposal = set(&key, &[n as u8; VALUE_BYTES - 1]);
        // All of these are new: what the writer knows when it sends n is at least everything before.
        proposal.request = Some(RequestId { client: [7; 16], sequence: n, floor: LogIndex(n) });
        proposal
    };
    let payload = |proposals: &[TxProposal]| -> u64 {
        proposals.iter().flat_map(|p| &p.entries).map(|e| (e.key.len() + e.value.len()) as u64).sum()
    };

    let singles = (count / 20).clamp(1, 1000);
    let (size, mut useful) = (db.size_bytes(), 0);
    let mut slowest = Duration::ZERO;
    let (result, elapsed) = timed(|| -> alhambra_storage::Result<()> {
        for n in start..start + singles {
            let proposals = vec![proposal(n)];
            useful += payload(&proposals);
            let (committed, took) = timed(|| db.commit(now_unix_s(), proposals));
            assert!(matches!(committed?[..], [Outcome::Committed { .. }]));
            slowest = slowest.max(took);
        }
        Ok(())
    });
    result?;
    let overhead = (db.size_bytes() - size - useful) as f64 / singles as f64;
    println!(
        "one-entry transactions of {VALUE_BYTES} bytes, one per sync: {:.1?} each, slowest {slowest:.1?}, {overhead:.1} bytes of overhead",
        elapsed / singles as u32,
    );
    assert!(overhead <= 250.0, "the budget of docs/format.md");

    let (size, mut useful) = (db.size_bytes(), 0);
    let batches: Vec<Vec<TxProposal>> = (0..count.div_ceil(BATCH_TXS))
        .map(|batch| (batch * BATCH_TXS..(batch + 1) * BATCH_TXS).map(|n| proposal(start + singles + n)).collect())
        .collect();
    let total = batches.len() as u64 * BATCH_TXS;
    let (result, elapsed) = timed(|| -> alhambra_storage::Result<()> {
        for proposals in batches {
            useful += payload(&proposals);
            let outcomes = db.commit(now_unix_s(), proposals)?;
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Committed { .. })));
        }
        Ok(())
    });
    result?;
    let overhead = (db.size_bytes() - size - useful) as f64 / total as f64;
    println!(
        "the same, {BATCH_TXS} per sync: {:.2?} each ({:.0} per second), {overhead:.1} bytes of overhead; all in {}",
        elapsed / total as u32,
        total as f64 / elapsed.as_secs_f64(),
        dir.display(),
    );
    Ok(())
}
