//! Replicas are equal byte for byte, whatever each of them went through.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{LogId, LogIndex};
use alhambra_storage::command::{Command, Seal};
use alhambra_storage::segment::{Frame, FrameKind};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::{FileKind, OpenMode, Vfs};
use alhambra_storage::{Database, Health};
use proptest::prelude::*;

use crate::database::a_proposal;
use crate::support::{self, apply_through, dir, open};

/// Content of all files of a folder.
pub fn files(vfs: &Arc<dyn Vfs>, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let names = vfs.read_dir(dir).expect("folder");
    (names.into_iter().filter(|(_, kind)| *kind == FileKind::File))
        .map(|(name, _)| {
            let path = dir.join(&name);
            let file = vfs.open(&path, OpenMode::Read).expect("file");
            let len = file.len().expect("file") as usize;
            (PathBuf::from(name), file.read_at(0, len).expect("file").to_vec())
        })
        .collect()
}

/// One replica with a schedule of its own.
pub struct Replica {
    pub disk: MemVfs,
    pub vfs: Arc<dyn Vfs>,
    pub db: Option<Database>,
}

impl Replica {
    pub fn new() -> Self {
        let disk = MemVfs::new();
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let db = Some(open(&vfs, &dir()).expect("an empty disk"));
        Self { disk, vfs, db }
    }

    pub fn db(&self) -> &Database {
        self.db.as_ref().expect("open but for a moment in restart")
    }

    fn take(&self, frames: &[Frame]) {
        self.db().ledger().stage(frames).expect("healthy disk");
        self.db().ledger().flush().expect("healthy disk");
        apply_through(self.db(), frames.last().expect("some").log_id.index.0).expect("applies");
    }

    fn restart(&mut self) {
        let last = self.db().applied().log_id.expect("applied").index.0;
        self.db = None;
        self.disk.crash(Crash::PowerLoss);
        self.db = Some(open(&self.vfs, &dir()).expect("reopens"));
        apply_through(self.db(), last).expect("applies again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn two_replicas_of_one_log_have_equal_files(
        batches in proptest::collection::vec((80..130i64, proptest::collection::vec(a_proposal(), 0..4)), 4..40),
        schedule in any::<u64>(),
    ) {
        let (one, mut other) = (Replica::new(), Replica::new());
        let mut waiting = Vec::new();
        let mut index = 0;
        let mut next = |payload| {
            index += 1;
            Frame { log_id: LogId::new(1, index - 1), kind: FrameKind::Command, payload }
        };
        let genesis = next(support::genesis().encode());
        one.take(std::slice::from_ref(&genesis));
        waiting.push(genesis);
        for (n, (ts, proposals)) in batches.iter().enumerate() {
            let frame = next(support::batch(*ts, proposals).encode());
            one.take(std::slice::from_ref(&frame));
            waiting.push(frame);
            one.db().ledger().settle().expect("healthy disk");
            for seal in one.db().pending_seals().expect("healthy disk") {
                let frame = next(Command::Seal(seal).encode());
                one.take(std::slice::from_ref(&frame));
                waiting.push(frame);
            }
            // The other one takes frames in larger groups, checkpoints and restarts now and then.
            if schedule >> (n % 64) & 1 == 1 {
                other.take(&std::mem::take(&mut waiting));
                if n % 3 == 0 {
                    other.db().checkpoint().expect("healthy disk");
                }
                if n % 4 == 1 {
                    other.restart();
                }
            }
        }
        if !waiting.is_empty() {
            other.take(&waiting);
        }
        let (a, b) = (one.db(), other.db());
        prop_assert_eq!(a.applied(), b.applied());
        a.checkpoint().expect("healthy disk");
        b.checkpoint().expect("healthy disk");
        prop_assert_eq!((a.health(), b.health()), (Health::Sound, Health::Sound));
        for folder in ["tx", "commit", "aht", "seal", "prune"] {
            prop_assert_eq!(files(&one.vfs, &dir().join(folder)), files(&other.vfs, &dir().join(folder)), "{}", folder);
        }
        let checkpoint = Path::new("checkpoint");
        prop_assert_eq!(&files(&one.vfs, &dir())[checkpoint], &files(&other.vfs, &dir())[checkpoint]);
        let segments = a.ledger().segments();
        prop_assert_eq!(&segments, &b.ledger().segments());
        for segment in segments.iter().filter(|segment| segment.closed) {
            a.ledger().settle().expect("healthy disk");
            b.ledger().settle().expect("healthy disk");
            let digest = a.ledger().digest(segment.number).expect("closed");
            prop_assert_eq!(digest, b.ledger().recompute_digest(segment.number).expect("closed"));
        }
    }
}

#[test]
fn a_replica_with_other_bytes_says_so_and_a_duplicate_seal_changes_nothing() {
    let replica = Replica::new();
    let db = replica.db();
    support::commit_command(db, &support::genesis()).expect("applies");
    for n in 0..40u64 {
        support::commit_command(db, &support::batch(1, &[support::put("k", &n.to_be_bytes())])).expect("applies");
    }
    db.ledger().settle().expect("healthy disk");
    let mut seals = db.pending_seals().expect("healthy disk");
    assert!(seals.len() >= 2);
    let good = seals.remove(0);
    support::commit_command(db, &Command::Seal(good.clone())).expect("applies");
    assert_eq!(db.compare_seals().expect("healthy disk"), Health::Sound);
    let duplicate = Seal { rejected: vec![(1, 1)], ..good.clone() };
    support::commit_command(db, &Command::Seal(duplicate)).expect("ignored");
    assert_eq!(db.compare_seals().expect("healthy disk"), Health::Sound);
    assert_eq!(db.seal(good.segment).expect("healthy disk"), Some(good.clone()), "the first of equal digests counts");
    let mut corrected = good.clone();
    corrected.digest[0] ^= 1;
    support::commit_command(db, &Command::Seal(corrected)).expect("applies: the log decides");
    assert_eq!(db.compare_seals().expect("healthy disk"), Health::SealMismatch { segment: good.segment });
    support::commit_command(db, &Command::Seal(good.clone())).expect("applies: and corrects it again");
    assert_eq!(db.compare_seals().expect("healthy disk"), Health::Sound);
    assert_eq!(db.seal(good.segment).expect("healthy disk"), Some(good));
    let mut open = seals[0].clone();
    open.segment = db.ledger().segments().last().expect("some").number;
    support::commit_command(db, &Command::Seal(open.clone())).expect("ignored");
    assert_eq!(db.seal(open.segment).expect("healthy disk"), None, "that segment is not closed");
    let mut wrong = seals.remove(0);
    wrong.digest[31] ^= 1;
    let segment = wrong.segment;
    support::commit_command(db, &Command::Seal(wrong)).expect("applies: the log decides");
    assert_eq!(db.compare_seals().expect("healthy disk"), Health::SealMismatch { segment });
    db.checkpoint().expect("healthy disk");
    let last = LogIndex(support::next_index(db) - 1);
    assert_eq!(db.applied().log_id.map(|id| id.index), Some(last), "goes on applying");
    let mut replica = replica;
    replica.restart();
    assert_eq!(replica.db().health(), Health::SealMismatch { segment }, "still visible after a restart");
}
