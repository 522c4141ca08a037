//! Forgetting values, against an independent model: what is named is gone for every reader from the prune on, nothing else
//! is, proofs hold, the bytes leave the disk, and replicas end equal whatever each of them did when.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Citation, Command, Compression, Prune, PruneTarget, RequestId, Settings};
use alhambra_storage::prune::Pruned;
use alhambra_storage::segment::{Frame, FrameKind};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Database, DatabaseSpec, Error, FolderSource, Health, Options, Unopened, fsck};
use bytes::Bytes;
use proptest::prelude::*;

use crate::database::a_proposal;
use crate::model::{self, Model, Proposal};
use crate::replicas::{Replica, files};
use crate::support::{self, apply_through, compare_pruned, dir, open, put};
use crate::transfer::flip;

const ALL: LogIndex = LogIndex(u64::MAX);

/// What a prune names, in words of the model.
#[derive(Clone, Debug)]
pub enum Named {
    Before(u64),
    Versions { prefix: Vec<u8>, keep: u64, as_of: u64 },
    Value(u64, u32),
}

/// Whether the value of an entry that has one is gone.
pub fn is_pruned(model: &Model, prunes: &[Named], tx: u64, entry: u32) -> bool {
    let content = &model.txs[tx as usize - 1].entries[entry as usize];
    !content.value.is_empty()
        && prunes.iter().any(|prune| match prune {
            Named::Before(before) => tx < *before,
            Named::Value(at, number) => (*at, *number) == (tx, entry),
            Named::Versions { prefix, keep, as_of } => {
                let newer = model.history(&content.key, *as_of).iter().filter(|(at, ..)| *at > tx).count() as u64;
                let is_version = !content.metadata.non_indexable && tx <= *as_of;
                content.key.starts_with(prefix) && is_version && newer >= *keep
            }
        })
}

pub fn check(db: &Database, model: &Model, prunes: &[Named]) {
    compare_pruned(db, model, &|tx, entry| is_pruned(model, prunes, tx, entry));
}

#[derive(Clone, Debug)]
pub enum Order {
    Before(u8),
    Versions(Vec<u8>, u32),
    Value(u8, u32),
}

fn an_order() -> impl Strategy<Value = Order> {
    prop_oneof![
        any::<u8>().prop_map(Order::Before),
        (prop_oneof![Just(Vec::new()), Just(b"k".to_vec()), Just(b"ka".to_vec())], 1..4_u32)
            .prop_map(|(prefix, keep)| Order::Versions(prefix, keep)),
        (any::<u8>(), 0..4_u32).prop_map(|(tx, entry)| Order::Value(tx, entry)),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<Proposal>),
    Prune(Order),
}

fn citation(n: u64) -> Citation {
    Citation { tx: TxId(n), alh: [n as u8; 32] }
}

/// The command for an order at this point of the model, and what the model says to it.
pub fn carry_out(
    order: &Order,
    ts: i64,
    model: &mut Model,
    prunes: &mut Vec<Named>,
) -> (Command, model::Outcome, bool) {
    let last = model.txs.len() as u64;
    let truncated = prunes.iter().fold(0, |max, prune| if let Named::Before(tx) = prune { max.max(*tx) } else { max });
    let refused = model::Outcome::Refused(model::Refusal::NothingToPrune);
    let accepted = model::Outcome::Committed(0, [0; 32]);
    let (target, outcome, named) = match order {
        Order::Before(tx) => {
            let tx = u64::from(*tx) % (last + 3);
            let catalog = put("kcat", b"what must outlive the truncation");
            let entries = support::proposal(&catalog).entries;
            let target = PruneTarget::Before { tx: TxId(tx), ts, marker: PruneTarget::marker(None, TxId(tx), entries) };
            if tx > truncated && tx <= last {
                (target, model.marker(ts, tx, &catalog.entries), Some(Named::Before(tx)))
            } else {
                model.tick(ts);
                (target, refused, None)
            }
        }
        Order::Versions(prefix, keep) => {
            let target = PruneTarget::Versions { prefix: Bytes::from(prefix.clone()), keep: *keep };
            let named = Named::Versions { prefix: prefix.clone(), keep: u64::from(*keep), as_of: last };
            (target, accepted, Some(named))
        }
        Order::Value(tx, entry) => {
            let tx = u64::from(*tx) % (last + 2);
            let content = tx.checked_sub(1).and_then(|at| model.txs.get(at as usize)?.entries.get(*entry as usize));
            let twice = prunes.iter().any(|prune| matches!(prune, Named::Value(at, n) if (*at, *n) == (tx, *entry)));
            let takes = content.is_some_and(|content| !content.value.is_empty()) && tx >= truncated && !twice;
            let target = PruneTarget::Value { tx: TxId(tx), entry: *entry };
            if takes { (target, accepted, Some(Named::Value(tx, *entry))) } else { (target, refused, None) }
        }
    };
    let taken = named.is_some();
    prunes.extend(named);
    (Command::Prune(Prune { order: Some(citation(last)), target }), outcome, taken)
}

/// With a log made elsewhere.
impl Replica {
    fn catch_up(&self, log: &[Frame]) -> Vec<Outcome> {
        let next = support::next_index(self.db()) as usize;
        if next < log.len() {
            self.db().ledger().stage(&log[next..]).expect("follows");
            self.db().ledger().flush().expect("healthy disk");
            self.db().ledger().settle().expect("healthy disk");
        }
        apply_through(self.db(), log.len() as u64 - 1).expect("applies")
    }

    /// The power fails; with `derive` everything but the ledger is lost as well.
    fn lose_power(&mut self, derive: bool, log: &[Frame]) {
        self.db = None;
        self.disk.crash(Crash::PowerLoss);
        if derive && self.vfs.exists(&dir().join("checkpoint")).expect("healthy disk") {
            self.vfs.remove_file(&dir().join("checkpoint")).expect("there");
        }
        self.db = Some(open(&self.vfs, &dir()).expect("reopens"));
        self.catch_up(log);
    }

    fn prune_all(&self) {
        while self.db().prune_step(ALL).expect("healthy disk").rewritten.is_some() {}
    }
}

fn equal_files(one: &Replica, other: &Replica, folder: &str) {
    let (one, other) = (files(&one.vfs, &dir().join(folder)), files(&other.vfs, &dir().join(folder)));
    assert!(one.keys().eq(other.keys()), "{folder}");
    for (name, bytes) in &one {
        assert!(*bytes == other[name], "R2: {folder}/{}", name.display());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn replicas_forget_the_same_and_end_equal(
        steps in proptest::collection::vec(
            prop_oneof![
                4 => proptest::collection::vec(a_proposal(), 0..4).prop_map(Step::Batch),
                1 => an_order().prop_map(Step::Prune),
            ], 4..50),
        schedule in any::<u64>(),
    ) {
        let (one, mut other) = (Replica::new(), Replica::new());
        let (mut model, mut prunes) = (Model::new(), Vec::new());
        model.limits = Some(support::limits());
        let mut log: Vec<Frame> = Vec::new();
        let push = |log: &mut Vec<Frame>, command: Command| {
            let log_id = LogId::new(1, log.len() as u64);
            log.push(Frame { log_id, kind: FrameKind::Command, payload: command.encode() });
        };
        push(&mut log, support::genesis());
        one.catch_up(&log);
        for (n, step) in steps.iter().enumerate() {
            let ts = 100 + n as i64;
            let bit = |k: usize| schedule >> ((n * 7 + k) % 64) & 1 == 1;
            match step {
                Step::Batch(proposals) => {
                    push(&mut log, support::batch(ts, proposals));
                    let outcomes: Vec<_> = one.catch_up(&log).iter().map(support::outcome).collect();
                    prop_assert_eq!(outcomes, model.batch(ts, proposals));
                }
                Step::Prune(order) => {
                    let (command, want, taken) = carry_out(order, ts, &mut model, &mut prunes);
                    push(&mut log, command);
                    match &one.catch_up(&log)[..] {
                        [Outcome::Pruned { number }] => prop_assert!(taken && *number as usize == prunes.len()),
                        [Outcome::Rejected(Rejection::NothingToPrune)] => prop_assert!(!taken),
                        [found] => prop_assert_eq!(support::outcome(found), want),
                        _ => panic!("one outcome per prune"),
                    }
                }
            }
            if bit(0) {
                one.db().prune_step(ALL).expect("healthy disk");
            }
            for seal in one.db().pending_seals().expect("healthy disk") {
                push(&mut log, Command::Seal(seal));
                one.catch_up(&log);
            }
            if bit(1) {
                other.catch_up(&log);
                if bit(2) {
                    other.db().checkpoint().expect("healthy disk");
                }
                if bit(3) {
                    other.db().prune_step(ALL).expect("healthy disk");
                }
                if bit(4) && bit(5) {
                    other.lose_power(bit(6), &log);
                }
            }
        }
        check(one.db(), &model, &prunes);
        // Seals fill segments, which are sealed and pruned in their turn.
        loop {
            one.prune_all();
            let seals = one.db().pending_seals().expect("healthy disk");
            if seals.is_empty() {
                break;
            }
            seals.into_iter().for_each(|seal| push(&mut log, Command::Seal(seal)));
            one.catch_up(&log);
        }
        check(one.db(), &model, &prunes);
        other.catch_up(&log);
        other.prune_all();
        check(other.db(), &model, &prunes);
        for replica in [&one, &other] {
            replica.db().checkpoint().expect("healthy disk");
            prop_assert_eq!(replica.db().compare_seals().expect("healthy disk"), Health::Sound);
        }
        for folder in ["tx", "commit", "aht", "seal", "prune", "ledger"] {
            equal_files(&one, &other, folder);
        }
        let segments = one.db().ledger().segments();
        for segment in segments.iter().filter(|segment| segment.closed) {
            let digest = one.db().ledger().digest(segment.number).expect("closed");
            prop_assert_eq!(digest, other.db().ledger().recompute_digest(segment.number).expect("closed"));
        }
        // Everything is derived again from a ledger that has lost values.
        other.lose_power(true, &log);
        check(other.db(), &model, &prunes);
        other.db().checkpoint().expect("healthy disk");
        for folder in ["tx", "commit", "aht", "seal", "prune"] {
            equal_files(&one, &other, folder);
        }
        let left = other.db().prune_step(ALL).expect("healthy disk");
        prop_assert_eq!(left.rewritten, None, "nothing is done twice");
        let report = fsck::seals(&other.vfs, &dir(), |_, _| ()).expect("readable");
        prop_assert!(report.is_sound() && report.segments.iter().all(|segment| !segment.is_of_another_generation()));
    }
}

/// Sealed segments, the first ones of which have `Before` pruned; and the model.
pub fn pruned(compression: Compression) -> (Arc<dyn Vfs>, Database, Model, Vec<Named>) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let settings = Settings { compression, value_len_max: 500, ..support::settings() };
    let db = Database::open_embedded(Arc::clone(&vfs), &dir(), support::spec(), support::options(), settings)
        .expect("an empty disk");
    let mut model = Model::new();
    model.limits = Some(model::Limits { value_len_max: 500, ..support::limits() });
    for n in 0..60u64 {
        let proposals =
            [put(&format!("k{}", n % 9), &[n as u8; 90]), put(&format!("l{n}"), format!("secret {n}").as_bytes())];
        db.commit(n as i64, proposals.iter().map(support::proposal).collect()).expect("healthy disk");
        model.batch(n as i64, &proposals);
    }
    let mut prunes = Vec::new();
    let (command, ..) = carry_out(&Order::Before(61), 70, &mut model, &mut prunes);
    let Command::Prune(Prune { order, target }) = command else { panic!("a prune") };
    db.prune(order, target).expect("healthy disk");
    db.seal_closed().expect("healthy disk");
    (vfs, db, model, prunes)
}

#[test]
fn pruned_values_leave_the_disk_and_proofs_stay() {
    for compression in [Compression::None, Compression::Lz4] {
        let (vfs, db, model, prunes) = pruned(compression);
        check(&db, &model, &prunes);
        let holds = |text: &[u8]| {
            let segments = files(&vfs, &dir().join("ledger"));
            segments.values().any(|bytes| bytes.windows(text.len()).any(|window| window == text))
        };
        assert!(holds(b"secret 7"), "in force before the bytes go");
        let before = db.size_bytes();
        let mut rewritten = BTreeSet::new();
        while let Some(segment) = db.prune_step(ALL).expect("healthy disk").rewritten {
            assert!(rewritten.insert(segment), "each segment once");
        }
        assert!(rewritten.len() > 3, "{rewritten:?}");
        assert!(!holds(b"secret 7"), "gone from every file");
        assert!(holds(b"secret 55"));
        // A hash of 32 bytes and its place stay, so values that short do not give space back.
        assert!(compression == Compression::Lz4 || db.size_bytes() < before);
        check(&db, &model, &prunes);
        db.seal_closed().expect("healthy disk");
        assert_eq!(db.compare_seals().expect("healthy disk"), Health::Sound);
        assert!(rewritten.iter().all(|n| db.seal(*n).expect("healthy disk").expect("sealed").generation == 1));
        let records = db.prunes().expect("healthy disk");
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].order, &records[0].pruned), (Some(citation(120)), &Pruned::Before(TxId(61))));
        assert_eq!(db.truncated_before(), TxId(61));
        let marker = db.tx(TxId(121)).expect("applied");
        assert_eq!(marker.header.metadata.truncated_up_to, Some(TxId(61)));
        drop(db);
        let db = open(&vfs, &dir()).expect("reopens");
        apply_through(&db, support::next_index(&db) - 1).expect("applies");
        check(&db, &model, &prunes);
    }
}

/// What is not what was sealed is repaired before it is written again: of what would come out of it no seal speaks.
#[test]
fn a_segment_in_dispute_is_not_written_again() {
    let (vfs, db, _, _) = pruned(Compression::None);
    drop(db);
    crate::repair::rot_unnoticed(&vfs, 1);
    let db = open(&vfs, &dir()).expect("it is consistent in itself");
    apply_through(&db, support::next_index(&db) - 1).expect("applies");
    assert_ne!(db.compare_seals().expect("healthy disk"), Health::Sound);
    let mut rewritten = BTreeSet::new();
    while let Some(segment) = db.prune_step(ALL).expect("healthy disk").rewritten {
        rewritten.insert(segment);
    }
    assert!(!rewritten.is_empty() && !rewritten.contains(&1), "{rewritten:?}");
}

/// A log of which segment 1 is to lose values, a replica whose newest checkpoint ends exactly with that segment, the end of it, and the
/// model.
pub fn checkpointed_at_an_end() -> (Vec<Frame>, Replica, LogId, Model, Vec<Named>) {
    let (_, source, model, prunes) = pruned(Compression::None);
    let last = LogIndex(support::next_index(&source));
    let log = source.ledger().read(LogIndex(0), last, usize::MAX).expect("healthy disk");
    let log: Vec<Frame> = log.into_iter().map(|(_, frame)| frame).collect();
    let replica = Replica::new();
    replica.db().ledger().stage(&log).expect("follows");
    replica.db().ledger().flush().expect("healthy disk");
    replica.db().ledger().settle().expect("healthy disk");
    let boundary = replica.db().ledger().segments()[1].last_log_id;
    apply_through(replica.db(), boundary.index.0).expect("applies");
    replica.db().checkpoint().expect("healthy disk");
    (log, replica, boundary, model, prunes)
}

/// A checkpoint may end with the last frame of a closed segment. A replica that starts again from it, and whoever gets its files then,
/// ends with that segment, so it must not have lost values meanwhile.
#[test]
fn a_replica_does_not_start_again_at_the_end_of_a_pruned_segment() {
    let (log, mut replica, boundary, model, prunes) = checkpointed_at_an_end();
    replica.catch_up(&log);
    replica.prune_all();
    assert!(replica.db().ledger().segments()[1].generation > 0, "it has lost values");
    replica.db = None;
    replica.disk.crash(Crash::PowerLoss);
    replica.db = Some(open(&replica.vfs, &dir()).expect("reopens"));
    let manifest = replica.db().manifest().expect("its files can be given to others");
    assert!(manifest.log_id > Some(boundary), "behind the segment");
    replica.catch_up(&log);
    check(replica.db(), &model, &prunes);
}

/// Neither does one whose checkpoint is lost: what it had applied is derived again from the ledger.
#[test]
fn a_replica_without_its_checkpoint_starts_again_behind_the_segments_that_it_pruned() {
    let (log, mut replica, boundary, model, prunes) = checkpointed_at_an_end();
    replica.catch_up(&log);
    replica.prune_all();
    assert!(replica.db().checkpoint_position() > Some(boundary));
    replica.db = None;
    replica.disk.crash(Crash::PowerLoss);
    let checkpoint = replica.vfs.open(&dir().join("checkpoint"), OpenMode::ReadWrite).expect("there");
    checkpoint.write_at(40, &[0xa5; 8]).expect("healthy disk");
    drop(checkpoint);
    replica.db = Some(open(&replica.vfs, &dir()).expect("reopens"));
    assert!(replica.db().applied().log_id > Some(boundary), "{:?}", replica.db().applied());
    assert!(replica.db().manifest().expect("its files can be given to others").log_id > Some(boundary));
    replica.catch_up(&log);
    check(replica.db(), &model, &prunes);
}

/// A segment that comes from the others without its values is put in place only when nothing here ends with it.
#[test]
fn a_segment_at_the_end_of_what_is_applied_is_not_replaced_by_one_that_has_lost_values() {
    let (log, mut replica, boundary, model, prunes) = checkpointed_at_an_end();
    let ahead = Replica::new();
    ahead.catch_up(&log);
    ahead.prune_all();
    let agreed = ahead.db().segment_vote(1).expect("healthy disk").expect("closed").version;
    assert!(agreed.generation > 0, "it has lost values");
    let source = FolderSource::new(Arc::clone(&ahead.vfs), &dir());
    let refused = replica.db().repair_segment(1, agreed, &source);
    assert!(matches!(refused, Err(Error::NoSuchSegment { number: 1 })), "{refused:?}");
    assert_eq!(replica.db().ledger().segments()[1].generation, 0, "nothing came in");
    // Nor while it is not open.
    replica.db = None;
    flip(&replica.vfs, &dir().join("ledger/0000000001.seg"), 400);
    let unopened = Unopened::open(Arc::clone(&replica.vfs), &dir(), support::spec()).expect("to be mended");
    assert!(!unopened.takes_later_generation(1));
    let refused = unopened.begin_segment_repair(1, agreed).map(drop);
    assert!(matches!(refused, Err(Error::NoSuchSegment { number: 1 })), "{refused:?}");
    drop(unopened);
    flip(&replica.vfs, &dir().join("ledger/0000000001.seg"), 400);
    replica.db = Some(open(&replica.vfs, &dir()).expect("reopens"));
    apply_through(replica.db(), boundary.index.0 + 1).expect("applies");
    replica.db().repair_segment(1, agreed, &source).expect("nothing ends with it any more");
    assert!(replica.db().checkpoint_position() > Some(boundary), "and what starts again does not either");
    replica.catch_up(&log);
    replica.prune_all();
    check(replica.db(), &model, &prunes);
}

/// The trap of chunk-wise truncation: one later transaction whose first entry has an empty value. Blocks are counted, not
/// lengths.
#[test]
fn disk_space_really_returns() {
    let folder = tempfile::tempdir().expect("a disk");
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
    let spec = DatabaseSpec { id: support::DATABASE, segment_bytes: 1 << 20 };
    let settings = Settings { value_len_max: 1 << 20, key_len_max: 64, ..Settings::DEFAULT };
    let db = Database::open_embedded(vfs, folder.path(), spec, Options::default(), settings).expect("an empty disk");
    let blocks = || -> u64 {
        let ledger = std::fs::read_dir(folder.path().join("ledger")).expect("there");
        ledger.map(|file| file.expect("there").metadata().expect("there").blocks() * 512).sum()
    };
    let mut entries = 0;
    // Values of all sizes: most far smaller than a block of the file system.
    for n in 0..200u32 {
        let mut proposal = support::proposal(&put(&format!("{n} first"), &[]));
        for (k, len) in (0..40).map(|k| (k, [60, 100, 300, 1000][k % 4])).chain([(40, 40_000)]) {
            let value = vec![(n + k as u32) as u8; len];
            proposal.entries.push(support::proposal(&put(&format!("{n} {k}"), &value)).entries.remove(0));
            entries += len as u64;
        }
        db.commit(1, vec![proposal]).expect("healthy disk");
    }
    let last = db.applied().tx;
    db.commit(2, vec![support::proposal(&put("empty", &[]))]).expect("healthy disk");
    let before = blocks();
    assert!(before > entries);
    let marker = PruneTarget::marker(None, last, Vec::new());
    let target = PruneTarget::Before { tx: last, ts: 3, marker };
    assert!(matches!(db.prune(None, target).expect("healthy disk"), Outcome::Committed { .. }));
    // The newest segment is not closed, so it is filled up.
    while db.ledger().segments().last().is_none_or(|segment| segment.frame_bytes >= 2000) {
        db.commit(4, vec![support::proposal(&put("filler", &[0; 1000]))]).expect("healthy disk");
    }
    while db.prune_step(ALL).expect("healthy disk").rewritten.is_some() {}
    let after = blocks();
    assert!(after < before / 4, "{before} bytes of blocks, then {after}, for {entries} bytes of values");
    for tx in 1..last.0 {
        let record = db.tx(TxId(tx)).expect("hashes stay");
        assert_eq!(record.entries.len(), 42);
        assert!(db.value(&record.entries[0]).expect("nothing to lose").is_empty());
        assert!(matches!(db.value(&record.entries[41]), Err(Error::ValuePruned { .. })));
    }
    let kept = db.tx(last).expect("applied");
    assert_eq!(db.value(&kept.entries[41]).expect("kept").len(), 40_000);
    db.dual_proof(TxId(1), last).expect("V1");
}

#[test]
fn what_cannot_be_pruned_is_refused_and_changes_nothing() {
    let (_, db, _, _) = pruned(Compression::None);
    let refuse = |target: PruneTarget| {
        let before = (db.applied().tx, db.prunes().expect("healthy disk").len());
        let outcome = db.prune(None, target.clone()).expect("healthy disk");
        assert_eq!(outcome, Outcome::Rejected(Rejection::NothingToPrune), "{target:?}");
        assert_eq!((db.applied().tx, db.prunes().expect("healthy disk").len()), before);
    };
    let before = |tx: u64, says: u64| PruneTarget::Before {
        tx: TxId(tx),
        ts: 80,
        marker: PruneTarget::marker(None, TxId(says), Vec::new()),
    };
    let last = db.applied().tx.0;
    for tx in [0, 1, 60, 61, last + 1, u64::MAX >> 2] {
        refuse(before(tx, tx));
    }
    refuse(before(100, 99));
    for (tx, entry) in [(0, 0), (last + 1, 0), (60, 0), (100, 1), (100, u32::MAX)] {
        refuse(PruneTarget::Value { tx: TxId(tx), entry });
    }
    let erase = PruneTarget::Value { tx: TxId(100), entry: 0 };
    assert_eq!(db.prune(None, erase.clone()).expect("healthy disk"), Outcome::Pruned { number: 2 });
    refuse(erase);
    // A marker that would break a limit prunes nothing either.
    let too_long = support::proposal(&put("far too long a key", b"")).entries;
    let target = PruneTarget::Before { tx: TxId(100), ts: 80, marker: PruneTarget::marker(None, TxId(100), too_long) };
    assert_eq!(db.prune(None, target).expect("healthy disk"), Outcome::Rejected(Rejection::KeyTooLong));
    assert_eq!(db.truncated_before(), TxId(61));
    // A retry is answered with what became of the first.
    let request = RequestId { client: [7; 16], sequence: 1, floor: LogIndex(last) };
    let marker = PruneTarget::marker(Some(request), TxId(100), Vec::new());
    let target = PruneTarget::Before { tx: TxId(100), ts: 80, marker };
    let first = db.prune(None, target.clone()).expect("healthy disk");
    assert!(matches!(first, Outcome::Committed { .. }));
    assert_eq!(db.prune(None, target).expect("healthy disk"), first);
    assert_eq!(db.prunes().expect("healthy disk").len(), 3);
    for n in 0..256u32 {
        let versions = PruneTarget::Versions { prefix: format!("p{n}").into(), keep: 1 };
        assert!(matches!(db.prune(None, versions).expect("healthy disk"), Outcome::Pruned { .. }));
    }
    refuse(PruneTarget::Versions { prefix: Bytes::from_static(b"one more"), keep: 1 });
    let known = PruneTarget::Versions { prefix: Bytes::from_static(b"p7"), keep: 2 };
    assert!(matches!(db.prune(None, known).expect("healthy disk"), Outcome::Pruned { .. }));
}

#[test]
fn a_value_that_was_never_given_cannot_be_proposed_as_pruned() {
    let (_, db, _, _) = pruned(Compression::None);
    let honest = support::batch(90, &[put("k", b"value")]).encode();
    let mut forged = honest.to_vec();
    let code_at = forged.len() - b"value".len() - 2;
    assert_eq!(forged[code_at], 0);
    forged[code_at] = 0x80;
    Command::decode(&Bytes::from(forged.clone())).expect_err("nobody proposes that");
    let outcomes = support::commit(&db, FrameKind::Command, forged.into()).expect("not fatal");
    assert_eq!(outcomes, [Outcome::Rejected(Rejection::ValueForm)]);
}

#[test]
fn every_flipped_bit_of_a_pruned_segment_is_found() {
    let (vfs, db, model, prunes) = pruned(Compression::Lz4);
    while db.prune_step(ALL).expect("healthy disk").rewritten.is_some() {}
    db.seal_closed().expect("healthy disk");
    db.checkpoint().expect("healthy disk");
    drop(db);
    let segment = Path::new("ledger/0000000001.seg");
    let bytes = files(&vfs, &dir().join("ledger")).remove(Path::new("0000000001.seg")).expect("there");
    for at in 0..bytes.len() as u64 {
        flip(&vfs, &dir().join(segment), at);
        match open(&vfs, &dir()) {
            Err(Error::Corrupted { segment: Some(1), .. }) => {}
            Err(other) => panic!("byte {at}: {other}"),
            // Neither frames nor table are read at open as long as keys are where they were; what is answered is right.
            Ok(db) => {
                for (id, tx) in (1u64..).zip(&model.txs) {
                    match db.tx(TxId(id)) {
                        Ok(record) => assert_eq!(record.entries.len(), tx.entries.len()),
                        Err(Error::Corrupted { segment: Some(1), .. } | Error::Corrupted { segment: None, .. }) => {}
                        Err(Error::NoSuchTx { .. }) => {}
                        Err(other) => panic!("byte {at}: {other}"),
                    }
                }
                drop(db);
                let report = fsck::seals(&vfs, &dir(), |_, _| ()).expect("readable");
                assert!(!report.is_sound(), "byte {at} of {}", bytes.len());
            }
        }
        flip(&vfs, &dir().join(segment), at);
    }
    let db = open(&vfs, &dir()).expect("reopens");
    apply_through(&db, support::next_index(&db) - 1).expect("applies");
    check(&db, &model, &prunes);
}
