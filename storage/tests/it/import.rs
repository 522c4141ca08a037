//! Histories of other servers: what is taken over has the Alh that it had there, what was changed on the way is refused and
//! changes nothing, and nothing of it is lost in a crash. The exports are real, or hashed by the model from the text of the
//! specification.

use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::export::{self, ExportedEntry, ExportedTx, ExportedValue};
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{verify_dual, verify_dual_v2};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Command, ProposalEntry, Settings, TxProposal, ValueForm};
use alhambra_storage::import::ImportRefusal;
use alhambra_storage::limits::LINK_GAP_MAX;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::{Damaged, Database, Error, Result, fsck};
use bytes::Bytes;

use crate::import_source::{self as source, Source, batch, replica};
use crate::model::Hash;
use crate::scrub::{self, all_files};
use crate::support::{self, commit_command, dir};
use crate::transfer::flip;

fn genesis(settings: Settings) -> Command {
    Command::Genesis { database: support::DATABASE, segment_bytes: support::spec().segment_bytes, settings }
}

/// An empty database with these settings.
fn database(settings: Settings) -> (Arc<dyn Vfs>, Database) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = scrub::open(&vfs);
    commit_command(&db, &genesis(settings)).expect("applies");
    (vfs, db)
}

fn committed(outcomes: Vec<Outcome>) -> Vec<(u64, Hash)> {
    let one = |outcome| match outcome {
        Outcome::Committed { tx, alh } => (tx.0, alh),
        other => panic!("{other:?}"),
    };
    outcomes.into_iter().map(one).collect()
}

fn refused(db: &Database, proposal: TxProposal) -> Rejection {
    let before = db.applied();
    let outcomes = commit_command(db, &Command::Batch { ts: 3_000_000_000, proposals: vec![proposal] });
    assert_eq!((db.applied().tx, db.applied().alh), (before.tx, before.alh), "nothing changes");
    match outcomes.expect("healthy disk").remove(0) {
        Outcome::Rejected(rejection) => rejection,
        other => panic!("{other:?}"),
    }
}

fn import(db: &Database, source: &Source) {
    for (id, (bytes, alh)) in (1u64..).zip(&source.txs).skip(db.applied().tx.0 as usize) {
        let outcome = committed(commit_command(db, &batch(std::slice::from_ref(bytes))).expect("applies"));
        assert_eq!(outcome, [(id, *alh)], "{}", source.name);
    }
}

/// The transaction as this database would export it.
fn exported(db: &Database, tx: u64) -> Vec<u8> {
    let record = db.tx(TxId(tx)).expect("applied");
    let mut values_gone = false;
    let entries = (record.entries.iter())
        .map(|entry| {
            let value = match db.value(entry) {
                Ok(value) => ExportedValue::Present(value.to_vec()),
                Err(Error::ValuePruned { .. }) => {
                    values_gone = true;
                    ExportedValue::Gone(entry.value_hash)
                }
                Err(other) => panic!("{other}"),
            };
            ExportedEntry { key: entry.key.to_vec(), metadata: entry.kv_metadata(), value }
        })
        .collect();
    export::encode(&ExportedTx { header: record.header, entries, values_gone }).expect("as it came")
}

/// What a reader and a verifier get is what the source gave.
fn compare(db: &Database, source: &Source) {
    assert_eq!(db.applied().tx.0, source.txs.len() as u64);
    for (id, (bytes, alh)) in (1u64..).zip(&source.txs) {
        assert_eq!(exported(db, id), *bytes, "{} tx {id}", source.name);
        assert_eq!(db.alh(TxId(id)).expect("applied").0, *alh);
        assert_eq!(db.header(TxId(id)).expect("applied").alh().expect("valid").0, *alh);
    }
    prove_all(db, &source.txs.iter().map(|(_, alh)| *alh).collect::<Vec<_>>());
}

/// Proofs between all pairs hold; whether they had to be of the long form.
fn prove_all(db: &Database, alhs: &[Hash]) -> bool {
    let mut advanced = false;
    for t in 1..=alhs.len() {
        for s in 1..=t {
            advanced |= prove(db, alhs, s, t);
        }
    }
    advanced
}

/// The proof from transaction `s` to transaction `t` holds; whether it had to be of the long form.
fn prove(db: &Database, alhs: &[Hash], s: usize, t: usize) -> bool {
    let (alh_s, alh_t) = (Digest(alhs[s - 1]), Digest(alhs[t - 1]));
    let (s, t) = (TxId(s as u64), TxId(t as u64));
    let proof = db.dual_proof(s, t).expect("V1");
    verify_dual(&proof, s, t, &alh_s, &alh_t).expect("V1");
    match db.dual_proof_v2(s, t) {
        Ok(short) => verify_dual_v2(&short, s, t, &alh_s, &alh_t).expect("V1"),
        Err(Error::NoCompactProof { tx }) => {
            assert!(!db.header(tx).expect("applied").is_linked() && (tx == s || tx == t));
        }
        Err(other) => panic!("{other}"),
    }
    proof.linear_advance.is_some()
}

#[test]
fn every_transaction_keeps_header_hash_and_content() {
    for source in source::all() {
        let (vfs, db) = database(replica());
        import(&db, &source);
        compare(&db, &source);
        db.checkpoint().expect("healthy disk");
        drop(db);
        let checked = fsck::check(&vfs, &dir(), None, &mut |_| true).expect("readable");
        assert!(checked.is_sound() && checked.complete, "{}: {:?}", source.name, checked.findings);
        assert_eq!(checked.txs, source.txs.len() as u64);
        let db = scrub::open(&vfs);
        assert_eq!(scrub::pass(&db, 1000), []);
        compare(&db, &source);
    }
}

#[test]
fn a_batch_of_many_is_the_same_as_one_by_one() {
    for source in source::all() {
        let (one_by_one, db) = database(replica());
        import(&db, &source);
        db.checkpoint().expect("healthy disk");
        let (_, together) = database(replica());
        let all: Vec<_> = source.txs.iter().map(|(bytes, _)| bytes.clone()).collect();
        let outcomes = committed(commit_command(&together, &batch(&all)).expect("applies"));
        assert_eq!(outcomes.last(), Some(&(all.len() as u64, source.txs[all.len() - 1].1)));
        compare(&together, &source);
        // What is digested ahead is taken for what it is.
        let again: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let db = scrub::open(&again);
        commit_command(&db, &genesis(replica())).expect("applies");
        for (bytes, alh) in &source.txs {
            let payload = batch(std::slice::from_ref(bytes)).encode();
            let digested = alhambra_storage::digested::Digested::of_payload(&replica(), &payload);
            assert_eq!(digested.len(), 1);
            let kind = alhambra_storage::segment::FrameKind::Command;
            let log_id = support::stage(&db, 1, kind, payload.clone()).expect("healthy disk");
            db.ledger().flush().expect("healthy disk");
            let (position, frame) =
                db.ledger().read(log_id.index, log_id.index.next().unwrap(), 1000).unwrap().remove(0);
            let outcome = db.apply_digested(frame.log_id, position, &frame.payload, &digested).expect("applies");
            assert_eq!(committed(outcome)[0].1, *alh);
        }
        db.checkpoint().expect("healthy disk");
        assert_eq!(all_files(&again), all_files(&one_by_one), "{}", source.name);
    }
}

/// Time and metadata of a transaction, in its header: nothing else in it depends on them. What comes after does.
fn unproven(exported: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let metadata_len = if exported[53] == 1 { usize::from(exported[54]) << 8 | usize::from(exported[55]) } else { 0 };
    [44..52, 56..56 + metadata_len].into_iter()
}

#[test]
fn a_changed_time_or_metadata_is_noticed_by_what_follows() {
    for source in source::all() {
        for (id, (bytes, alh)) in (1u64..).zip(&source.txs) {
            for at in unproven(bytes).flatten().step_by(5) {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                let (Ok(tx), Some((next, _))) = (export::decode(&bad), source.txs.get(id as usize)) else { continue };
                let (_, db) = database(replica());
                import(&db, &Source { name: source.name.clone(), txs: source.txs[..id as usize - 1].to_vec() });
                let proposals = vec![TxProposal::imported(tx).expect("decoded")];
                let outcomes = commit_command(&db, &Command::Batch { ts: 1, proposals }).expect("applies");
                assert_ne!(committed(outcomes)[0].1, *alh, "who has a trusted state knows at once");
                let refusal = refused(&db, source::proposal(next));
                assert!(
                    matches!(refusal, Rejection::Import(ImportRefusal::BlRoot | ImportRefusal::PrevAlh)),
                    "{} tx {id} byte {at}: {refusal:?}",
                    source.name
                );
            }
        }
    }
}

#[test]
fn every_flipped_byte_is_refused_and_changes_nothing() {
    for source in source::all() {
        let (_, db) = database(replica());
        for (id, (bytes, _)) in (1u64..).zip(&source.txs) {
            let mut flipped = Vec::new();
            for at in (0..bytes.len()).filter(|at| !unproven(bytes).any(|range| range.contains(at))) {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << (at % 8);
                // Most of the rest is no transaction at all.
                if let Ok(tx) = export::decode(&bad) {
                    flipped.push((at, TxProposal::imported(tx).expect("decoded")));
                }
            }
            assert!(flipped.len() * 4 > bytes.len(), "{} of {}", flipped.len(), bytes.len());
            let before = db.applied();
            for some in flipped.chunks(64) {
                let proposals = some.iter().map(|(_, proposal)| proposal.clone()).collect();
                let outcomes = commit_command(&db, &Command::Batch { ts: 1, proposals }).expect("applies");
                for ((at, proposal), outcome) in some.iter().zip(outcomes) {
                    let as_content = match &outcome {
                        Outcome::Rejected(Rejection::DuplicateKey) => true,
                        Outcome::Rejected(Rejection::Import(why)) => {
                            !matches!(why, ImportRefusal::NotReplica | ImportRefusal::PartlyGone)
                        }
                        _ => false,
                    };
                    assert!(as_content, "{} tx {id} byte {at}: {outcome:?}: {proposal:?}", source.name);
                }
            }
            assert_eq!((db.applied().tx, db.applied().alh), (before.tx, before.alh));
            import(&db, &Source { name: source.name.clone(), txs: source.txs[..id as usize].to_vec() });
        }
        compare(&db, &source);
    }
}

#[test]
fn each_refusal_has_its_name() {
    let [own, other] = ["kvone", "notime"]
        .map(|name| source::sample().into_iter().find(|source| source.name == name).expect("in the sample"));
    let proposal = |source: &Source, tx: usize| source::proposal(&source.txs[tx - 1].0);
    let import = |refusal| Rejection::Import(refusal);
    let (_, db) = database(Settings::DEFAULT);
    assert_eq!(refused(&db, proposal(&own, 1)), import(ImportRefusal::NotReplica));
    commit_command(&db, &Command::Configure(replica())).expect("applies");
    assert_eq!(refused(&db, proposal(&own, 2)), import(ImportRefusal::Gap));
    let all: Vec<_> = own.txs[..3].iter().map(|(bytes, _)| bytes.clone()).collect();
    committed(commit_command(&db, &batch(&all)).expect("applies"));
    for tx in 1..=3 {
        assert_eq!(refused(&db, proposal(&own, tx)), import(ImportRefusal::AlreadyCommitted));
        assert_eq!(refused(&db, proposal(&other, tx)), import(ImportRefusal::AlreadyCommitted));
    }
    assert_eq!(refused(&db, proposal(&own, 5)), import(ImportRefusal::Gap));
    assert_eq!(refused(&db, proposal(&other, 4)), import(ImportRefusal::BlRoot));
    let user = TxProposal { entries: vec![ProposalEntry::set(b"k", b"v")], ..TxProposal::default() };
    assert_eq!(refused(&db, user.clone()), Rejection::Replica);

    let changed = |change: &dyn Fn(&mut alhambra_storage::command::ForeignHeader)| {
        let mut proposal = proposal(&own, 4);
        change(proposal.foreign.as_mut().expect("imported"));
        refused(&db, proposal)
    };
    assert_eq!(changed(&|header| header.prev_alh.0[31] ^= 1), import(ImportRefusal::PrevAlh));
    assert_eq!(changed(&|header| header.bl_root.0[0] ^= 1), import(ImportRefusal::BlRoot));
    assert_eq!(changed(&|header| header.eh.0[0] ^= 1), import(ImportRefusal::Entries));
    assert_eq!(changed(&|header| header.version = 2), import(ImportRefusal::Header));
    assert_eq!(changed(&|header| header.version = 0), import(ImportRefusal::Entries));
    assert_eq!(changed(&|header| header.bl_tx_id = TxId(4)), import(ImportRefusal::Header));
    assert_eq!(changed(&|header| header.bl_tx_id = TxId(u64::MAX)), import(ImportRefusal::Header));
    assert_eq!(
        changed(&|header| header.bl_tx_id = TxId(2)),
        import(ImportRefusal::BlRoot),
        "another size, another root"
    );
    assert_eq!(changed(&|header| header.bl_tx_id = TxId(1)), import(ImportRefusal::Link), "tx 3 has linked to 2");

    let with = |change: &dyn Fn(&mut TxProposal)| {
        let mut proposal = source::proposal(&own.txs[27].0);
        proposal.foreign.as_mut().expect("imported").id = TxId(4);
        change(&mut proposal);
        refused(&db, proposal)
    };
    assert_eq!(with(&|_| ()), import(ImportRefusal::Header), "of a later place");
    let gone = |entry: &mut ProposalEntry, len| {
        entry.form = ValueForm::Gone;
        entry.value = Bytes::from(vec![0; len]);
    };
    assert_eq!(with(&|proposal| gone(&mut proposal.entries[1], 32)), import(ImportRefusal::PartlyGone));
    assert_eq!(with(&|proposal| gone(&mut proposal.entries[1], 31)), Rejection::ValueForm);
    assert_eq!(with(&|proposal| proposal.entries.clear()), Rejection::NoEntries);
    let mut own_gone = user;
    gone(&mut own_gone.entries[0], 32);
    commit_command(&db, &Command::Configure(Settings::DEFAULT)).expect("applies");
    assert_eq!(refused(&db, own_gone), Rejection::ValueForm, "only who imports may lack a value");
}

#[test]
fn values_that_are_gone_stay_gone_and_change_no_hash() {
    for whole in source::sample() {
        let txs = whole.txs.iter().map(|(bytes, alh)| (source::without_values(bytes), *alh)).collect();
        let source = Source { name: format!("{} without values", whole.name), txs };
        let (vfs, db) = database(replica());
        import(&db, &source);
        compare(&db, &source);
        for id in 1..=source.txs.len() as u64 {
            for entry in db.tx(TxId(id)).expect("applied").entries {
                assert_eq!((entry.value_len, entry.form), (0, ValueForm::Gone));
                assert!(
                    matches!(db.value(&entry), Err(Error::ValuePruned { tx, entry: n }) if (tx.0, n) == (id, entry.number))
                );
            }
        }
        db.checkpoint().expect("healthy disk");
        drop(db);
        let checked = fsck::check(&vfs, &dir(), None, &mut |_| true).expect("readable");
        assert!(checked.is_sound(), "{:?}", checked.findings);
    }
}

#[test]
fn own_transactions_follow_after_the_cut_over() {
    for source in source::all() {
        let (_, db) = database(replica());
        import(&db, &source);
        let mut alhs: Vec<Hash> = source.txs.iter().map(|(_, alh)| *alh).collect();
        commit_command(&db, &Command::Configure(Settings::DEFAULT)).expect("applies");
        for n in 0..3u8 {
            let entries = vec![ProposalEntry::set(b"after", &[n])];
            let proposals = vec![TxProposal { entries, ..TxProposal::default() }];
            let outcome = committed(commit_command(&db, &Command::Batch { ts: 7, proposals }).expect("applies"));
            let header = db.header(TxId(outcome[0].0)).expect("applied");
            assert!(header.is_linked() && header.version == 1, "L3");
            alhs.push(outcome[0].1);
        }
        assert_eq!(refused(&db, source::proposal(&source.txs[0].0)), Rejection::Import(ImportRefusal::NotReplica));
        let advanced = prove_all(&db, &alhs);
        assert_eq!(advanced, source.name == "chain_lagging");
    }
}

/// Lags at random, so that the tree never gets smaller.
fn lags(seed: u64, count: u64) -> Vec<u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut link = 0;
    (1..=count)
        .map(|id| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if state.is_multiple_of(3) {
                link += state / 3 % (id - link);
            }
            id - 1 - link
        })
        .collect()
}

#[test]
fn headers_that_lag_in_any_way_are_taken_and_proven() {
    for seed in 0..12 {
        let source = source::lagging(&lags(seed, 25));
        let (vfs, db) = database(replica());
        import(&db, &source);
        compare(&db, &source);
        assert!(prove_all(&db, &source.txs.iter().map(|(_, alh)| *alh).collect::<Vec<_>>()), "with gaps");
        db.checkpoint().expect("healthy disk");
        drop(db);
        let checked = fsck::check(&vfs, &dir(), None, &mut |_| true).expect("readable");
        assert!(checked.is_sound() && checked.complete, "{}: {:?}", source.name, checked.findings);
        assert_eq!(scrub::pass(&scrub::open(&vfs), 1000), []);
    }
}

#[test]
fn a_tree_that_gets_smaller_or_too_old_is_refused() {
    let source = source::lagging(&[0, 0, 0, 2]);
    let (_, db) = database(replica());
    import(&db, &Source { name: source.name, txs: source.txs[..3].to_vec() });
    assert_eq!(refused(&db, source::proposal(&source.txs[3].0)), Rejection::Import(ImportRefusal::Link));

    // The longest lag that is taken, and one more.
    let source = source::lagging(&(0..LINK_GAP_MAX + 2).collect::<Vec<_>>());
    let db = crate::large_tx::open(&(Arc::new(MemVfs::new()) as Arc<dyn Vfs>), alhambra_storage::Options::default());
    commit_command(&db, &Command::Configure(replica())).expect("applies");
    let (last, most) = source.txs.split_last().expect("many");
    for some in most.chunks(1000) {
        let bytes: Vec<_> = some.iter().map(|(bytes, _)| bytes.clone()).collect();
        let outcomes = committed(commit_command(&db, &batch(&bytes)).expect("applies"));
        assert_eq!(outcomes.last().expect("some").1, some.last().expect("some").1);
    }
    assert_eq!(db.applied().tx.0, LINK_GAP_MAX + 1);
    assert_eq!(refused(&db, source::proposal(&last.0)), Rejection::Import(ImportRefusal::Link));
    // The longest that is taken can be proven, from the oldest on.
    let (alhs, newest): (Vec<_>, _) = (most.iter().map(|(_, alh)| *alh).collect(), most.len());
    for (s, t) in [(1, newest), (newest / 2, newest), (newest - 1, newest), (newest, newest), (1, newest - 1)] {
        prove(&db, &alhs, s, t);
    }
}

#[test]
fn derived_files_come_back_as_they_were() {
    for source in [source::lagging(&lags(5, 40)), source::chain("chain_v1")] {
        let (vfs, db) = database(replica());
        import(&db, &source);
        db.checkpoint().expect("healthy disk");
        let before = all_files(&vfs);
        for folder in ["tx", "commit", "aht"] {
            let path = dir().join(folder).join("0000000000.log");
            for at in (64..before[&path].len() as u64).step_by(29) {
                flip(&vfs, &path, at);
                assert!(!scrub::pass(&db, u64::MAX).is_empty(), "{folder} byte {at}");
                assert_eq!(db.mend(None).expect("healthy disk").repaired, [Damaged::Derived], "{folder} byte {at}");
                assert_eq!(all_files(&vfs), before, "{folder} byte {at}");
            }
        }
        compare(&db, &source);
    }
}

/// A damaged node must not refuse here what every other replica takes.
#[test]
fn a_rotten_tree_stops_the_replica_instead_of_refusing() {
    let source = source::lagging(&[0, 0, 0, 0, 1, 2, 3, 2]);
    let (vfs, db) = database(replica());
    import(&db, &Source { name: source.name.clone(), txs: source.txs[..7].to_vec() });
    db.checkpoint().expect("healthy disk");
    // Inner node of leaves 1 to 4, which the root over five leaves is made of.
    let node = dir().join("aht/0000000000.log");
    flip(&vfs, &node, 64 + 2 * 32 + 5);
    let stopped = commit_command(&db, &batch(&[source.txs[7].0.clone()]));
    assert!(matches!(stopped, Err(Error::Corrupted { .. })), "{stopped:?}");
    flip(&vfs, &node, 64 + 2 * 32 + 5);
    drop(db);
    let db = scrub::open(&vfs);
    support::apply_through(&db, support::next_index(&db) - 1).expect("applies");
    compare(&db, &source);
}

/// Imports what is missing, as whoever follows a source does: it asks where the target is.
fn follow(db: &Database, source: &Source, done: &mut usize) -> Result<()> {
    if db.settings().is_none() {
        commit_command(db, &genesis(replica()))?;
    }
    while db.applied().tx.0 < source.txs.len() as u64 {
        let next = db.applied().tx.0 as usize;
        let until = source.txs.len().min(next + 1 + next % 3);
        let bytes: Vec<_> = source.txs[next..until].iter().map(|(bytes, _)| bytes.clone()).collect();
        let outcomes = committed(commit_command(db, &batch(&bytes))?);
        assert_eq!(outcomes.last(), Some(&(until as u64, source.txs[until - 1].1)));
        *done = until;
        if until.is_multiple_of(5) {
            db.checkpoint()?;
            while db.index_work()? {}
        }
    }
    db.checkpoint()
}

#[test]
fn nothing_imported_is_lost_wherever_the_power_fails() {
    let mut source = source::lagging(&lags(3, 9));
    source.name = "a lagging one".into();
    for source in [source, source::chain("chain_v0")] {
        let run = |vfs: Arc<dyn Vfs>, done: &mut usize| {
            follow(&Database::open(vfs, &dir(), support::spec(), scrub::options())?, &source, done)
        };
        let faulty = Arc::new(FaultyVfs::new(Arc::new(MemVfs::new())));
        run(faulty.clone(), &mut 0).expect("no fault planned");
        let steps = faulty.step_count();
        assert!(steps > 30, "{steps}");
        for step in 0..steps {
            for (fault, crash) in [
                (Fault::Crash, Crash::PowerLoss),
                (Fault::CrashShort, Crash::Process),
                (Fault::CrashShort, Crash::PowerLossTorn { seed: step }),
            ] {
                let place = format!("{} step {step}, {fault:?}, {crash:?}", source.name);
                let disk = MemVfs::new();
                let faulty = Arc::new(FaultyVfs::new(Arc::new(disk.clone())));
                faulty.fail_at(step, fault);
                let mut done = 0;
                run(faulty, &mut done).expect_err("the machine stopped");
                disk.crash(crash);
                let vfs: Arc<dyn Vfs> = Arc::new(disk);
                let db = scrub::open(&vfs);
                if let Some(last) = db.ledger().last_log_id() {
                    support::apply_through(&db, last.index.0).unwrap_or_else(|e| panic!("{place}: {e}"));
                }
                let found = db.applied().tx.0 as usize;
                assert!(found >= done, "{place}: {found} of {done}");
                compare(&db, &Source { name: place.clone(), txs: source.txs[..found].to_vec() });
                follow(&db, &source, &mut done).unwrap_or_else(|e| panic!("{place}: {e}"));
                drop(db);
                let checked = fsck::check(&vfs, &dir(), None, &mut |_| true).expect("readable");
                assert!(checked.is_sound(), "{place}: {:?}", checked.findings);
            }
        }
    }
}
