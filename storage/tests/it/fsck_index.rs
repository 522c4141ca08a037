//! The offline check of the index: rot at any place of its files, files that are gone or stand in another's place, and files that
//! are whole and right in themselves but not what the ledger gives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, TxId};
use alhambra_storage::command::Command;
use alhambra_storage::error::Damage;
use alhambra_storage::fsck::{self, Checked};
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use alhambra_storage::{Database, DatabaseSpec, Error};

use crate::fsck::check_watched;
use crate::model::{Entry, Metadata, Proposal};
use crate::replicas::files;
use crate::support::{self, commit_command, dir, options, put};
use crate::transfer::flip;

const OTHER: DatabaseId = DatabaseId(*b"another database");
const BATCHES: u64 = 70;

/// A database whose index has runs. In batch `odd` it writes what `what` says instead of the usual two transactions.
fn filled(id: DatabaseId, odd: Option<(u64, [Proposal; 2])>) -> Arc<dyn Vfs> {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let spec = DatabaseSpec { id, ..support::spec() };
    let db = Database::open(Arc::clone(&vfs), &dir(), spec, options()).expect("an empty disk");
    let genesis = Command::Genesis { database: id, segment_bytes: spec.segment_bytes, settings: support::settings() };
    commit_command(&db, &genesis).expect("applies");
    for n in 0..BATCHES {
        let proposals = match &odd {
            Some((batch, what)) if *batch == n => what.clone(),
            _ => usual(n),
        };
        commit_command(&db, &support::batch(n as i64, &proposals)).expect("applies");
        if n == BATCHES - 10 {
            db.checkpoint().expect("healthy disk");
        }
        while db.index_work().expect("healthy disk") {}
    }
    vfs
}

/// Transactions 2n + 1 and 2n + 2.
fn usual(n: u64) -> [Proposal; 2] {
    let expires = Metadata { expires_at: Some(n as i64), ..Metadata::default() };
    let mut second = put(&format!("l{n}"), &[n as u8; 9]);
    second.entries.push(Entry { key: b"e".to_vec(), metadata: expires, value: Vec::new() });
    [put(&format!("k{}", n % 9), &[n as u8; 20]), second]
}

fn check(vfs: &Arc<dyn Vfs>) -> Checked {
    fsck::check(vfs, &dir(), None, &mut |_| true).expect("readable")
}

fn index() -> PathBuf {
    dir().join("index")
}

fn write(vfs: &Arc<dyn Vfs>, path: &Path, bytes: &[u8]) {
    let file = vfs.open(path, OpenMode::Create).expect("healthy disk");
    file.set_len(0).expect("healthy disk");
    file.write_at(0, bytes).expect("healthy disk");
}

/// The runs, oldest transactions first, as long as nothing renamed them.
fn runs(vfs: &Arc<dyn Vfs>) -> Vec<PathBuf> {
    files(vfs, &index()).into_keys().filter(|name| name.extension().is_some_and(|end| end == "run")).collect()
}

#[test]
fn a_sound_index_is_read_whole_and_compared_and_nothing_is_changed() {
    let vfs = filled(support::DATABASE, None);
    let before = files(&vfs, &index());
    let runs = runs(&vfs);
    assert!(runs.len() > 1, "{runs:?}");
    let (checked, last) = check_watched(&vfs);
    assert!(checked.is_sound() && checked.complete, "{:?}", checked.findings);
    assert_eq!(checked.index_runs, runs.len() as u64);
    assert!(checked.unfinished.is_empty(), "{:?}", checked.unfinished);
    assert!(checked.uncompared_frames > 0, "the runs go on behind the checkpoint");
    assert_eq!(last.bytes_done, last.bytes_total);
    assert_eq!(files(&vfs, &index()), before);

    // What a crash leaves there is no damage.
    write(&vfs, &index().join("0000009999.run"), b"half");
    let checked = check(&vfs);
    assert!(checked.is_sound() && checked.unfinished == [index().join("0000009999.run")], "{checked:?}");
}

#[test]
fn a_check_that_was_interrupted_in_the_index_goes_on_behind_the_segments() {
    let vfs = filled(support::DATABASE, None);
    let position = Path::new("/elsewhere/position");
    vfs.create_dir_all(Path::new("/elsewhere")).expect("healthy");
    // The last call is the one behind the index.
    let mut calls = 0;
    assert!(
        fsck::check(&vfs, &dir(), None, &mut |_| {
            calls += 1;
            true
        })
        .expect("readable")
        .complete
    );
    let mut left = calls;
    let interrupted = fsck::check(&vfs, &dir(), Some(position), &mut |_| {
        left -= 1;
        left > 0
    })
    .expect("readable");
    assert!(!interrupted.complete && interrupted.is_sound());
    let run = index().join(&runs(&vfs)[0]);
    flip(&vfs, &run, 100);
    let resumed = fsck::check(&vfs, &dir(), Some(position), &mut |_| true).expect("readable");
    assert!(resumed.resumed_after > 0 && !resumed.is_sound());
    flip(&vfs, &run, 100);
    assert!(check(&vfs).is_sound());
}

#[test]
fn rot_anywhere_in_the_files_of_the_index_is_named() {
    let vfs = filled(support::DATABASE, None);
    for (name, bytes) in files(&vfs, &index()) {
        let path = index().join(&name);
        let len = bytes.len() as u64;
        for at in (0..len).step_by(29).chain([len - 1]) {
            flip(&vfs, &path, at);
            let checked = match fsck::check(&vfs, &dir(), None, &mut |_| true) {
                Ok(checked) => checked,
                // The version, under a checksum: in a small file it is looked at first.
                Err(Error::UnsupportedVersion { path: found, .. }) if found == path => {
                    flip(&vfs, &path, at);
                    continue;
                }
                Err(error) => panic!("{} byte {at}: {error}", path.display()),
            };
            assert_eq!(checked.findings.len(), 1, "{} byte {at}: {:?}", path.display(), checked.findings);
            assert_eq!(checked.findings[0].path(), Some(&*path), "{}", checked.findings[0]);
            flip(&vfs, &path, at);
        }
    }
    assert!(check(&vfs).is_sound(), "flipped back");
}

#[test]
fn a_run_that_is_gone_or_another_one_is_named() {
    let vfs = filled(support::DATABASE, None);
    let foreign = filled(OTHER, None);
    let names = runs(&vfs);
    let (all, others) = (files(&vfs, &index()), files(&foreign, &index()));
    for (number, name) in names.iter().enumerate() {
        let path = index().join(name);
        let found = |damage: &dyn Fn(&Error) -> bool| {
            let checked = check(&vfs);
            let here = |finding: &&fsck::Finding| finding.path() == Some(&*path) && damage(&finding.error);
            assert!(checked.findings.iter().find(here).is_some(), "{:?}", checked.findings);
            assert_eq!(checked.index_runs, names.len() as u64 - 1);
        };
        vfs.remove_file(&path).expect("there");
        found(&|error| matches!(error, Error::Corrupted { damage: Damage::Missing, .. }));
        write(&vfs, &path, &others[name]);
        found(&|error| matches!(error, Error::ForeignDatabase { found: OTHER, .. }));
        write(&vfs, &path, &all[&names[(number + 1) % names.len()]]);
        found(&|error| matches!(error, Error::Corrupted { .. }));
        write(&vfs, &path, &all[name]);
    }
    let manifest = PathBuf::from("manifest");
    write(&vfs, &index().join(&manifest), &others[&manifest]);
    let checked = check(&vfs);
    assert!(
        matches!(checked.findings[..], [fsck::Finding { error: Error::ForeignDatabase { .. }, .. }]),
        "{checked:?}"
    );
    write(&vfs, &index().join(&manifest), &all[&manifest]);
    assert!(check(&vfs).is_sound(), "as it was");
}

/// Whole files of an index of another history, under the same id: only the ledger can tell. The first transaction that
/// differs is named, whichever of the two has more.
#[test]
fn an_index_that_does_not_say_what_the_ledger_says_is_named_with_the_first_bad_transaction() {
    let odds: [fn(u64) -> [Proposal; 2]; 5] = [
        // Another key; a key more; a key less; another place in the transaction; another expiry.
        |n| [usual(n)[0].clone(), put("other", b"")],
        |n| {
            let [first, mut second] = usual(n);
            second.entries.push(Entry { key: b"zz".to_vec(), metadata: Metadata::default(), value: Vec::new() });
            [first, second]
        },
        |n| {
            let [first, mut second] = usual(n);
            second.entries.pop();
            [first, second]
        },
        |n| {
            let [first, mut second] = usual(n);
            second.entries.reverse();
            [first, second]
        },
        |n| {
            let [first, mut second] = usual(n);
            second.entries[1].metadata.expires_at = Some(-1);
            [first, second]
        },
    ];
    let right = filled(support::DATABASE, None);
    for odd in odds {
        for n in [0, BATCHES / 3, BATCHES - 15] {
            let wrong = filled(support::DATABASE, Some((n, odd(n))));
            for (vfs, other) in [(&right, &wrong), (&wrong, &right)] {
                let own = files(vfs, &index());
                let replace = |by: &std::collections::BTreeMap<PathBuf, Vec<u8>>| {
                    vfs.remove_dir_all(&index()).expect("there");
                    vfs.create_dir_all(&index()).expect("healthy disk");
                    by.iter().for_each(|(name, bytes)| write(vfs, &index().join(name), bytes));
                };
                replace(&files(other, &index()));
                let checked = check(vfs);
                let first = checked.first_bad_tx().unwrap_or_else(|| panic!("batch {n}: {:?}", checked.findings));
                assert_eq!(first.tx, Some(TxId(2 * n + 2)), "{first}");
                assert_eq!(first.log_index.map(|index| index.0), Some(n + 1), "{first}");
                assert!(first.path().expect("a run").starts_with(index()), "{first}");
                assert!(matches!(first.error, Error::Corrupted { damage: Damage::Differs, .. }), "{first}");
                replace(&own);
                assert!(check(vfs).is_sound(), "as it was");
            }
        }
    }
}
