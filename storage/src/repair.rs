//! Mending: what is damaged is made again from what is whole. Everything derived comes from the own segments; a segment
//! comes from a source: another replica, or a folder that holds a copy.
//!
//! Three digests decide: that of the bytes on disk, that remembered since the frames were written, and that of the seal. A
//! segment is fetched without asking anybody only when its bytes are not what was written here and the seal, if there is
//! one, says the same as memory. Where memory and seal differ either may be wrong: the segment is disputed, and nothing is
//! overwritten until whoever asked a majority says which digest counts ([`Database::repair_segment`]). What is fetched must
//! hash to the digest that was agreed on, so a rotten source does no harm.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::digest::Hasher;
use alhambra_ledger::ids::{LogId, LogIndex};

use crate::checkpoint;
use crate::core::Core;
use crate::database::Database;
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::SEGMENT_HEADER_BYTES;
use crate::indexing;
use crate::limits::COPY_BYTES;
use crate::rebuild;
use crate::scrub::{self, Damaged};
use crate::seal::SegmentVersion;
use crate::segment::upkeep::{Staged, Whole};
use crate::segment::walk::{Step, Walk};
use crate::segment::{Ledger, SEGMENT_SUFFIX, file_name};
use crate::transfer::hash_range;
use crate::vfs::{OpenMode, Vfs};

/// Where whole segments can be had.
pub trait SegmentSource {
    /// Hands what stands behind the header of a closed segment to `sink`, in order, in pieces. `expected` is the digest of that:
    /// a source that knows better, or has the segment in another generation, does not begin. Nothing of it is believed
    /// before the digest holds.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when it does not have it, those of `sink`, which it hands on; IO.
    fn fetch(&self, segment: u64, expected: &Digest, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

/// A copy of a database's folder: a backup, or the disk of a stopped node.
#[derive(Clone, Debug)]
pub struct FolderSource {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
}

impl FolderSource {
    /// `dir` holds `ledger/`.
    pub fn new(vfs: Arc<dyn Vfs>, dir: &Path) -> Self {
        Self { vfs, dir: dir.to_path_buf() }
    }
}

impl SegmentSource for FolderSource {
    fn fetch(&self, segment: u64, _expected: &Digest, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let path = self.dir.join("ledger").join(file_name(segment, SEGMENT_SUFFIX));
        let file = match self.vfs.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoSuchSegment { number: segment });
            }
            Err(e) => return Err(Error::io(FileOp::Open, &path, e)),
        };
        let len = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let mut at = SEGMENT_HEADER_BYTES;
        while at < len {
            let piece = (len - at).min(COPY_BYTES as u64);
            sink(&file.read_at(at, piece as usize).map_err(|e| Error::io(FileOp::Read, &path, e))?)?;
            at += piece;
        }
        Ok(())
    }
}

/// What [`Database::mend`] did.
#[derive(Debug, Default)]
pub struct Mended {
    /// Whole again, or found whole.
    pub repaired: Vec<Damaged>,
    /// Still damaged, and why: no source has it, or it is disputed.
    pub waiting: Vec<(Damaged, Error)>,
}

/// See [`Database::mend`].
pub(crate) fn mend(db: &Database, source: Option<&dyn SegmentSource>) -> Result<Mended> {
    let _one_at_a_time = db.mending.lock();
    let mut mended = Mended::default();
    // In this order: what is derived needs segments.
    for what in scrub::damaged(db) {
        match repair(db, what, source) {
            Ok(()) => {
                scrub::mended(db, what);
                tracing::warn!(?what, "damage is repaired");
                mended.repaired.push(what);
            }
            Err(error @ (Error::Poisoned | Error::NoSpace { .. } | Error::DerivedFromRot { .. })) => return Err(error),
            Err(error) => mended.waiting.push((what, error)),
        }
    }
    Ok(mended)
}

fn repair(db: &Database, what: Damaged, source: Option<&dyn SegmentSource>) -> Result<()> {
    let core = db.core();
    match what {
        Damaged::Segment(number) => match examine(db, &core, number)? {
            Verdict::Sound => Ok(()),
            Verdict::Disputed { own, sealed } => Err(Error::SealDisputed { segment: number, own, sealed }),
            Verdict::Rotten { error, own: Some(own) } => {
                // Who proposed the seal may be the rotten one, so it alone is not believed. For the same reason a later
                // generation is not taken because it is sealed.
                match (core.seals.digest(number, own.generation), source) {
                    (Some(sealed), _) if own.digest != sealed => {
                        Err(Error::SealDisputed { segment: number, own: own.digest, sealed })
                    }
                    // In the header alone, which is a function of what is known: the own file is a source.
                    _ if error.damaged_offset() == Some(0)
                        && fetch(db, &core, number, own, &FolderSource::new(Arc::clone(&db.vfs), &db.dir)).is_ok() =>
                    {
                        Ok(())
                    }
                    (_, Some(source)) => fetch(db, &core, number, own, source),
                    (_, None) => Err(error),
                }
            }
            Verdict::Rotten { error, own: None } => Err(error),
        },
        Damaged::Padding(number) => core.ledger.rewrite_zeros(number),
        Damaged::Sidecar(number) => core.ledger.rewrite_sidecar(number),
        Damaged::Derived => rebuild::derived(db).map(drop),
        Damaged::Index => {
            while core.index.is_damaged() || core.index.is_rebuilding() {
                db.index_work()?;
                if indexing::waits_for_repair(&core) {
                    // It goes on by itself when the segment, which is damage of its own, is mended.
                    return Ok(());
                }
            }
            Ok(())
        }
        Damaged::Checkpoint => db.checkpoint(),
        Damaged::Marks => db.marks.lock().rewrite(&*db.vfs),
        Damaged::Vote => db.vote.rewrite(&db.vfs),
        Damaged::PruneMark => db.rewrite_prune_mark(),
    }
}

/// What a segment's own bytes say.
enum Verdict {
    Sound,
    /// Not what was written here; the digest of that, of a closed segment.
    Rotten {
        error: Error,
        own: Option<SegmentVersion>,
    },
    /// What was written here, and not what was sealed.
    Disputed {
        own: Digest,
        sealed: Digest,
    },
}

/// What reading a segment's frames came to.
enum Read {
    Digest(Digest),
    /// Where, and how.
    Bad(u64, Damage),
}

fn examine(db: &Database, core: &Core, number: u64) -> Result<Verdict> {
    let verdict = examine_bytes(&*db.vfs, &core.ledger, number)?;
    if let (Verdict::Sound, Some(own)) = (&verdict, core.ledger.view(number).and_then(|view| view.version())) {
        match core.seals.digest(number, own.generation) {
            Some(sealed) if sealed != own.digest => return Ok(Verdict::Disputed { own: own.digest, sealed }),
            _ => {}
        }
    }
    Ok(verdict)
}

/// Compares with what is remembered, whatever the seal says.
fn examine_bytes(vfs: &dyn Vfs, ledger: &Ledger, number: u64) -> Result<Verdict> {
    let Some(view) = ledger.view(number) else { return Ok(Verdict::Sound) };
    let path = ledger.segment_path(number);
    let rotten = |offset, damage| {
        let error = Error::Corrupted { path: path.clone(), segment: Some(number), offset, damage };
        Ok(Verdict::Rotten { error, own: view.version() })
    };
    let file = match vfs.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return rotten(0, Damage::Missing),
        Err(e) => return Err(Error::io(FileOp::Open, &path, e)),
    };
    let end = view.end();
    match ledger.check_head(&view.info, &*file, end) {
        Ok(()) => {}
        Err(error) if matches!(error, Error::Corrupted { .. }) || error.is_unreadable() => {
            return Ok(Verdict::Rotten { error, own: view.version() });
        }
        Err(error) => return Err(error),
    }
    let read = || -> Result<Read> {
        if view.info.generation > 0 {
            return hash_range(vfs, &path, SEGMENT_HEADER_BYTES, end).map(Read::Digest);
        }
        let mut walk = Walk::new(&*file, &path, view.info.first_log_id, end);
        let mut hasher = Hasher::new();
        loop {
            match walk.next()? {
                Step::Frame { bytes, .. } => hasher.update(&bytes),
                Step::End if walk.at() == end => return Ok(Read::Digest(hasher.finish())),
                Step::End => return Ok(Read::Bad(walk.at(), Damage::Missing)),
                Step::Bad(damage) => return Ok(Read::Bad(walk.at(), damage)),
            }
        }
    };
    let read = read();
    if ledger.view(number).is_none_or(|now| now.epoch != view.epoch) {
        // Cut or written again meanwhile.
        return examine_bytes(vfs, ledger, number);
    }
    let found = match read {
        Ok(Read::Digest(digest)) => digest,
        Ok(Read::Bad(at, damage)) => return rotten(at, damage),
        Err(error) if error.is_unreadable() => return Ok(Verdict::Rotten { error, own: view.version() }),
        Err(error) => return Err(error),
    };
    let Some(own) = view.digest else { return Ok(Verdict::Sound) };
    if found != own {
        return rotten(SEGMENT_HEADER_BYTES, Damage::Hash);
    }
    Ok(Verdict::Sound)
}

fn fetch(
    db: &Database,
    core: &Arc<Core>,
    number: u64,
    version: SegmentVersion,
    source: &dyn SegmentSource,
) -> Result<()> {
    let mut staged = core.ledger.begin_repair(number, version)?;
    source.fetch(number, &version.digest, &mut |piece| staged.write(piece))?;
    put(db, core, &staged, number, version)
}

/// Whether the version is a later generation; refused when such a one cannot be taken yet.
fn takes(db: &Database, core: &Core, number: u64, agreed: SegmentVersion) -> Result<bool> {
    let info = core.ledger.view(number).ok_or(Error::NoSuchSegment { number })?.info;
    let newer = agreed.generation > info.generation;
    // Entries of a pruned segment count as purged, so nothing is to be applied from it any more.
    if newer && !checkpoint::reach_behind(db, core, info.last_log_id)? {
        return Err(Error::NoSuchSegment { number });
    }
    Ok(newer)
}

fn put(db: &Database, core: &Core, staged: &Staged, number: u64, agreed: SegmentVersion) -> Result<()> {
    if !std::ptr::eq(core, Arc::as_ptr(&db.core())) {
        // An install came in between: all files are others.
        return Err(Error::NoSuchSegment { number });
    }
    let newer = takes(db, core, number, agreed)?;
    let whole = core.ledger.check_staged(staged)?;
    let sealed = |generation| core.seals.digest(number, generation);
    let misled = has_misled(&*db.vfs, &core.ledger, core.applied().log_id, sealed, (staged, &whole), number, agreed)?;
    if misled {
        // First: after a crash nothing may be left that was derived from what is replaced.
        checkpoint::give_up(db)?;
    }
    let replaced = core.ledger.replace(staged, &whole).and_then(|()| {
        if newer {
            core.seals.rewritten(number);
        }
        core.seals.settle(number, agreed);
        core.seals.compare(&core.ledger)
    });
    match replaced {
        _ if misled => {
            tracing::error!(
                segment = number,
                ?replaced,
                "a segment was another one than was agreed on when it was read"
            );
            Err(Error::DerivedFromRot { segment: number })
        }
        replaced => replaced,
    }
}

/// Whether something may have been derived from a segment, applied up to `applied`, that was not what it is to be now: then all
/// that is derived is to be derived again. Damage that a reader notices by a checksum has misled nobody. `sealed` are digests
/// by generation.
pub(crate) fn has_misled(
    vfs: &dyn Vfs,
    ledger: &Ledger,
    applied: Option<LogId>,
    sealed: impl Fn(u32) -> Option<Digest>,
    (staged, whole): (&Staged, &Whole),
    number: u64,
    agreed: SegmentVersion,
) -> Result<bool> {
    let Some(view) = ledger.view(number) else { return Ok(false) };
    if applied.is_none_or(|applied| applied.index < view.info.first_log_id.index) {
        return Ok(false);
    }
    let own = view.version();
    if own.is_some_and(|own| own.generation == agreed.generation && own.digest != agreed.digest) {
        return Ok(true);
    }
    if agreed.generation == 0 {
        return ledger.has_other_frames(staged, whole);
    }
    // Without its values the segment cannot be compared frame by frame.
    let earlier = own.filter(|own| own.generation < agreed.generation);
    if earlier.is_some_and(|own| sealed(own.generation).is_some_and(|sealed| sealed != own.digest)) {
        return Ok(true);
    }
    // Nothing is applied from a segment that has lost values.
    let applied_from = view.info.generation == 0;
    Ok(applied_from
        && matches!(examine_bytes(vfs, ledger, number)?, Verdict::Rotten { error, .. } if is_unnoticed(&error)))
}

/// Whether the checksums of all frames hold.
const fn is_unnoticed(error: &Error) -> bool {
    matches!(error, Error::Corrupted { damage: Damage::Hash, .. })
}

/// Before everything up to `through` is derived again: each closed segment is what was written here, and what counts of its
/// generation according to `agreed`. The checksum of a frame that has rotted may fit all the same, and what is derived from it
/// has another Alh from there on [R2].
pub(crate) fn must_be_agreed(
    vfs: &dyn Vfs,
    ledger: &Ledger,
    through: LogIndex,
    agreed: impl Fn(u64, u32) -> Option<Digest>,
) -> Result<()> {
    let segments = ledger.segments().into_iter();
    for info in segments.filter(|info| info.closed && info.first_log_id.index <= through) {
        if let Verdict::Rotten { error, .. } = examine_bytes(vfs, ledger, info.number)? {
            ledger.suspect(info.number);
            return Err(error);
        }
        let Some(own) = ledger.view(info.number).and_then(|view| view.version()) else { continue };
        match agreed(info.number, own.generation) {
            Some(sealed) if sealed != own.digest => {
                return Err(Error::SealDisputed { segment: info.number, own: own.digest, sealed });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A closed segment that comes in pieces, for whoever cannot wait for them in a [`SegmentSource`]. Dropped unfinished it
/// leaves everything as it was.
#[derive(Debug)]
pub struct SegmentRepair {
    core: Arc<Core>,
    staged: Staged,
    segment: u64,
    agreed: SegmentVersion,
}

impl SegmentRepair {
    /// Takes the next bytes of what stands behind the header.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when they are too many; IO.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.staged.write(piece)
    }

    /// Puts the segment in place if it hashes to what was agreed on.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when it does not: then nothing is changed. IO.
    pub fn finish(self, db: &Database) -> Result<()> {
        let _one_at_a_time = db.mending.lock();
        put(db, &self.core, &self.staged, self.segment, self.agreed)?;
        scrub::mended(db, Damaged::Segment(self.segment));
        Ok(())
    }
}

/// See [`Database::begin_segment_repair`].
pub(crate) fn begin(db: &Database, segment: u64, agreed: SegmentVersion) -> Result<SegmentRepair> {
    let core = db.core();
    // Before anything is fetched for it.
    takes(db, &core, segment, agreed)?;
    let staged = core.ledger.begin_repair(segment, agreed)?;
    Ok(SegmentRepair { core, staged, segment, agreed })
}

/// What a replica says about a closed segment of its own when others ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentVote {
    /// As it was written here.
    pub version: SegmentVersion,
    /// Bytes behind the header of its file.
    pub bytes: u64,
    /// The bytes on disk are these: it can be fetched from here.
    pub whole: bool,
}

/// See [`Database::segment_vote`].
pub(crate) fn vote(db: &Database, number: u64) -> Result<Option<SegmentVote>> {
    vote_of(&*db.vfs, &db.core().ledger, number)
}

/// The same of a ledger of which nothing else may be open.
pub(crate) fn vote_of(vfs: &dyn Vfs, ledger: &Ledger, number: u64) -> Result<Option<SegmentVote>> {
    loop {
        let Some(view) = ledger.view(number) else { return Ok(None) };
        let Some(version) = view.version() else { return Ok(None) };
        let whole = !matches!(examine_bytes(vfs, ledger, number)?, Verdict::Rotten { .. });
        // Written again meanwhile: what was looked at may have been either.
        if ledger.view(number).is_some_and(|now| now.info == view.info) {
            return Ok(Some(SegmentVote { version, bytes: view.info.stored_bytes, whole }));
        }
    }
}

/// See [`Database::settle_segment`].
pub(crate) fn settle(db: &Database, number: u64, agreed: SegmentVersion) -> Result<()> {
    let core = db.core();
    core.seals.settle(number, agreed);
    core.seals.compare(&core.ledger)?;
    if let Verdict::Sound = examine(db, &core, number)? {
        scrub::mended(db, Damaged::Segment(number));
    }
    Ok(())
}

/// See [`Database::repair_segment`].
pub(crate) fn segment(db: &Database, number: u64, agreed: SegmentVersion, source: &dyn SegmentSource) -> Result<()> {
    let _one_at_a_time = db.mending.lock();
    fetch(db, &db.core(), number, agreed, source)?;
    scrub::mended(db, Damaged::Segment(number));
    Ok(())
}
