//! Random batches against the model, with checkpoints and restarts in between.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_storage::Error;
use alhambra_storage::command::Command;
use alhambra_storage::segment::FrameKind;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use bytes::Bytes;
use proptest::prelude::*;

use crate::model::{Condition, Entry, Metadata, Model, Proposal};
use crate::support::{self, apply_through, commit, commit_command, compare, dir, open};

#[derive(Clone, Debug)]
pub enum Step {
    Batch {
        ts: i64,
        proposals: Vec<Proposal>,
    },
    SecondGenesis,
    Blank,
    Membership(Vec<u8>),
    Checkpoint,
    Release,
    Seal,
    /// Close and open; with `true` the power fails first.
    Reopen(bool),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => "k[a-d]".prop_map(String::into_bytes),
        4 => "[a-z]{1,6}".prop_map(String::into_bytes),
        1 => Just(Vec::new()),
        1 => Just(b"too long".to_vec()),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    prop_oneof![
        5 => Just(Metadata::default()),
        1 => Just(Metadata { deleted: true, ..Metadata::default() }),
        1 => (90..130i64).prop_map(|at| Metadata { expires_at: Some(at), ..Metadata::default() }),
        1 => Just(Metadata { non_indexable: true, ..Metadata::default() }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (key(), metadata(), proptest::collection::vec(any::<u8>(), 0..42)).prop_map(|(key, metadata, value)| Entry {
        key,
        metadata,
        value,
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        key().prop_map(Condition::MustExist),
        key().prop_map(Condition::MustNotExist),
        (key(), 0..30u64).prop_map(|(key, tx)| Condition::NotModifiedAfter(key, tx)),
        (0..30u64).prop_map(Condition::Becomes),
    ]
}

pub fn a_proposal() -> impl Strategy<Value = Proposal> {
    (
        proptest::option::of((0..2u8, 0..12u64).prop_map(|(client, sequence)| (client, sequence, 0))),
        proptest::collection::vec(entry(), 0..5),
        proptest::collection::vec(condition(), 0..3),
    )
        .prop_map(|(request, entries, conditions)| Proposal { request, entries, conditions })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => (80..130i64, proptest::collection::vec(a_proposal(), 0..5))
            .prop_map(|(ts, proposals)| Step::Batch { ts, proposals }),
        1 => Just(Step::SecondGenesis),
        1 => Just(Step::Blank),
        1 => proptest::collection::vec(any::<u8>(), 0..20).prop_map(Step::Membership),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Release),
        2 => Just(Step::Seal),
        2 => any::<bool>().prop_map(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_database_is_what_the_model_says(
        before_genesis in proptest::collection::vec(a_proposal(), 0..2),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let disk = MemVfs::new();
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let mut db = open(&vfs, &dir()).expect("an empty disk");
        let mut model = Model::new();
        let found = commit_command(&db, &support::batch(50, &before_genesis)).expect("applies");
        let want = model.batch(50, &before_genesis);
        prop_assert_eq!(found.iter().map(support::outcome).collect::<Vec<_>>(), want);
        commit_command(&db, &support::genesis()).expect("applies");
        model.limits = Some(support::limits());
        for step in steps {
            match step {
                Step::Batch { ts, proposals } => {
                    let found = commit_command(&db, &support::batch(ts, &proposals)).expect("applies");
                    let want = model.batch(ts, &proposals);
                    prop_assert_eq!(found.iter().map(support::outcome).collect::<Vec<_>>(), want);
                }
                Step::SecondGenesis => {
                    let mut other = support::settings();
                    other.tx_entries_max = 99;
                    let Command::Genesis { database, segment_bytes, .. } = support::genesis() else { unreachable!() };
                    let second = Command::Genesis { database, segment_bytes, settings: other };
                    commit_command(&db, &second).expect("ignored");
                    prop_assert_eq!(db.settings(), Some(support::settings()));
                }
                Step::Blank => {
                    commit(&db, FrameKind::Blank, Bytes::new()).expect("applies");
                }
                Step::Membership(bytes) => {
                    commit(&db, FrameKind::Membership, Bytes::from(bytes.clone())).expect("applies");
                    let (at, kept) = db.applied().membership.expect("applied just now");
                    prop_assert_eq!(Some(at), db.applied().log_id);
                    prop_assert_eq!(&kept[..], &bytes[..]);
                }
                Step::Checkpoint => db.checkpoint().expect("healthy disk"),
                Step::Release => db.release_memory().expect("healthy disk"),
                Step::Seal => {
                    db.ledger().settle().expect("healthy disk");
                    while let Some(seal) = db.pending_seals().expect("healthy disk").into_iter().next() {
                        commit_command(&db, &Command::Seal(seal.clone())).expect("applies");
                        prop_assert_eq!(db.seal(seal.segment).expect("healthy disk"), Some(seal));
                    }
                    prop_assert_eq!(db.compare_seals().expect("healthy disk"), alhambra_storage::Health::Sound);
                }
                Step::Reopen(power_loss) => {
                    let (applied, settings) = (db.applied(), db.settings());
                    drop(db);
                    if power_loss {
                        disk.crash(Crash::PowerLoss);
                    }
                    db = open(&vfs, &dir()).expect("reopens");
                    prop_assert!(db.applied().log_id <= applied.log_id, "R3");
                    if let Some(last) = applied.log_id {
                        apply_through(&db, last.index.0).expect("applies again");
                    }
                    prop_assert_eq!(db.applied(), applied);
                    prop_assert_eq!(db.settings(), settings);
                }
            }
        }
        compare(&db, &model);
        db.checkpoint().expect("healthy disk");
        drop(db);
        let db = open(&vfs, &dir()).expect("reopens");
        compare(&db, &model);
    }
}

/// An index that is lost while the disk is full: opening neither fails nor waits for space, what needs the index says so, and the
/// rest is made when there is room.
#[test]
fn an_index_that_is_lost_on_a_full_disk_does_not_hold_up_opening() {
    let disk = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let mut model = Model::new();
    model.limits = Some(support::limits());
    let db = open(&vfs, &dir()).expect("healthy disk");
    commit_command(&db, &support::genesis()).expect("healthy disk");
    for n in 0..150u8 {
        let proposals = [support::put(&format!("a{n}"), &[n; 9]), support::put(&format!("b{n}"), &[n; 9])];
        commit_command(&db, &support::batch(i64::from(n), &proposals)).expect("healthy disk");
        model.batch(i64::from(n), &proposals);
    }
    db.checkpoint().expect("healthy disk");
    drop(db);
    vfs.remove_dir_all(&dir().join("index")).expect("runs were written");
    disk.set_capacity(Some(disk.size_bytes()));
    let db = open(&vfs, &dir()).expect("a full disk is no failure");
    assert!(db.index_work_due());
    assert!(matches!(db.snapshot().get(b"a149"), Err(Error::IndexRebuilding { .. })));
    assert!(db.header(TxId(1)).is_ok(), "what does not need the index is served");
    disk.set_capacity(None);
    while db.index_work().expect("there is room") {}
    compare(&db, &model);
}
