//! A database that does not open because one of its closed segments has rotted: so much of it as it takes to put a whole
//! segment in the place of that one. Nothing is applied, and votes, promises and log entries stay what they are.
//!
//! The same for a frame of the newest segment, of which nothing is agreed on yet but the log itself ([`DamagedLog`]).
//!
//! As in a database that is open, what takes a segment's place hashes to what the caller has agreed on with others, and what
//! is remembered here since the frames were written speaks for this replica.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::LogId;
use bytes::Bytes;

use crate::checkpoint;
use crate::database::DatabaseSpec;
use crate::error::{Error, Result};
use crate::recover;
use crate::repair::{self, SegmentVote};
use crate::seal::{self, Sealed, SegmentVersion};
use crate::segment::tail::DamagedTail;
use crate::segment::upkeep::Staged;
use crate::segment::{Ledger, LedgerSpec, TailPiece};
use crate::vfs::{LockGuard, Vfs};

/// See the module. Its folder is locked for as long as this lives.
#[derive(Debug)]
pub struct Unopened {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    ledger: Ledger,
    /// What was sealed, as far as that can be read.
    seals: Sealed,
    /// As of the checkpoint.
    applied: Option<LogId>,
    /// All up to here is known to be committed.
    committed: Option<LogId>,
    membership: Option<Bytes>,
    _lock: Box<dyn LockGuard>,
}

impl Unopened {
    /// Opens the log of the database in `dir`, and no more.
    ///
    /// # Errors
    /// Those of [`crate::Database::open`] that come before anything is derived or applied: then nothing can be mended here.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec) -> Result<Self> {
        let (lock, marks) = recover::enter(&vfs, dir, spec)?;
        let (checkpoint, floor) = recover::floor(&vfs, dir, spec, &marks)?;
        let ledger_spec = LedgerSpec { database: spec.id, segment_bytes: spec.segment_bytes };
        let (ledger, _) = Ledger::open_to_mend(Arc::clone(&vfs), &dir.join("ledger"), ledger_spec, floor)?;
        let seals = checkpoint.as_ref().map(|checkpoint| seal::sealed_at(&vfs, dir, spec, checkpoint)).transpose()?;
        let state = checkpoint.map(|checkpoint| checkpoint.state);
        let applied = state.as_ref().and_then(|state| state.applied);
        // Known durably, before a segment is taken that must not be what is committed last.
        marks.to_sync().sync()?;
        let committed = marks.committed().max(marks.purged()).max(applied).max(ledger.pruned_through());
        let membership = state.and_then(|state| state.membership).map(|(_, members)| members);
        let dir = dir.to_path_buf();
        Ok(Self { vfs, dir, ledger, seals: seals.unwrap_or_default(), applied, committed, membership, _lock: lock })
    }

    /// The membership of the group as of the last checkpoint: opaque bytes of whoever proposed it.
    pub fn membership(&self) -> Option<&Bytes> {
        self.membership.as_ref()
    }

    /// What is remembered here of a closed segment, and whether its bytes, which are read for it, are that; `None` when it is
    /// not closed, or [forgotten](Self::forgotten).
    ///
    /// # Errors
    /// IO.
    pub fn segment_vote(&self, segment: u64) -> Result<Option<SegmentVote>> {
        repair::vote_of(&*self.vfs, &self.ledger, segment)
    }

    /// The generation of a closed segment of which nothing else is remembered here: it is missing or damaged, and so is its
    /// sidecar. Then this replica is no witness.
    pub fn forgotten(&self, segment: u64) -> Option<u32> {
        let view = self.ledger.view(segment).filter(|_| self.ledger.is_forgotten(segment));
        view.map(|view| view.info.generation)
    }

    /// The digest that was sealed of a segment in this generation, as far as that is known at the last checkpoint.
    pub fn sealed_digest(&self, segment: u64, generation: u32) -> Option<Digest> {
        self.seals.get(&(segment, generation)).copied()
    }

    /// Whether the segment may be replaced by one that has lost values: it is known to be committed, and what is committed does
    /// not end with it.
    pub fn takes_later_generation(&self, segment: u64) -> bool {
        self.is_before(segment, self.committed)
    }

    fn is_before(&self, segment: u64, position: Option<LogId>) -> bool {
        // What is committed is told by the index alone; the term of a forgotten segment's last entry is not known.
        let last = self.ledger.view(segment).map(|view| view.info.last_log_id.index);
        last.is_some() && last < position.map(|position| position.index)
    }

    /// A file for what stands behind the header of a segment, of the version on which replicas have agreed.
    ///
    /// # Errors
    /// [`Error::NoSuchSegment`] when the segment is not closed, of a later generation, or of an earlier one that is not known to be
    /// committed; IO.
    pub fn begin_segment_repair(&self, segment: u64, agreed: SegmentVersion) -> Result<FetchedSegment> {
        let staged = self.ledger.begin_repair(segment, agreed)?;
        let own = self.ledger.view(segment).map_or(0, |view| view.info.generation);
        if agreed.generation > own && !self.takes_later_generation(segment) {
            return Err(Error::NoSuchSegment { number: segment });
        }
        Ok(FetchedSegment { staged, segment, agreed })
    }

    /// Puts the segment in place if it hashes to what was agreed on.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when it does not: then nothing is changed. IO.
    pub fn finish_segment_repair(&self, fetched: &FetchedSegment) -> Result<()> {
        let FetchedSegment { staged, segment, agreed } = fetched;
        let sealed = |generation| self.sealed_digest(*segment, generation);
        // Runs of the index may be ahead of the checkpoint.
        let read = self.ledger.last_log_id();
        let whole = self.ledger.check_staged(staged)?;
        let misled = repair::has_misled(&*self.vfs, &self.ledger, read, sealed, (staged, &whole), *segment, *agreed)?;
        if misled {
            tracing::error!(segment, "a segment was another one than was agreed on when it was read");
        }
        let generation = self.ledger.view(*segment).map_or(0, |view| view.info.generation);
        // What is still to be applied of it is to be had from nobody. Deriving everything again does without the values.
        let is_to_be_applied = agreed.generation > generation && !self.is_before(*segment, self.applied);
        if misled || is_to_be_applied {
            checkpoint::remove(&*self.vfs, &self.dir)?;
        }
        self.ledger.replace(staged, &whole)
    }
}

/// What was fetched of a segment, in a file that opening removes. Dropped unfinished it leaves everything as it was.
#[derive(Debug)]
pub struct FetchedSegment {
    staged: Staged,
    segment: u64,
    agreed: SegmentVersion,
}

impl FetchedSegment {
    /// Takes the next bytes of what stands behind the header.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when they are too many; IO.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.staged.write(piece)
    }
}

/// A database that does not open because a frame of its newest segment has rotted of which it is known that it was durable
/// here. The log is not cut there: that would forget what was acknowledged. Its folder is locked for as long as this lives.
#[derive(Debug)]
pub struct DamagedLog {
    tail: DamagedTail,
    membership: Option<Bytes>,
    _lock: Box<dyn LockGuard>,
}

impl DamagedLog {
    /// Looks at the database in `dir`; `None` when its newest segment has no such damage.
    ///
    /// # Errors
    /// Those of [`crate::Database::open`] for what stands before it.
    pub fn find(vfs: &Arc<dyn Vfs>, dir: &Path, spec: DatabaseSpec) -> Result<Option<Self>> {
        let (lock, marks) = recover::enter(vfs, dir, spec)?;
        let (checkpoint, floor) = recover::floor(vfs, dir, spec, &marks)?;
        let state = checkpoint.map(|checkpoint| checkpoint.state);
        let applied = state.as_ref().and_then(|state| state.applied);
        let known = marks.known().chain(applied).collect();
        let ledger_spec = LedgerSpec { database: spec.id, segment_bytes: spec.segment_bytes };
        let tail = DamagedTail::find(vfs, &dir.join("ledger"), ledger_spec, floor, known)?;
        let membership = state.and_then(|state| state.membership).map(|(_, members)| members);
        Ok(tail.map(|tail| Self { tail, membership, _lock: lock }))
    }

    /// The membership of the group as of the last checkpoint: opaque bytes of whoever proposed it.
    pub fn membership(&self) -> Option<&Bytes> {
        self.membership.as_ref()
    }

    /// Number of the newest segment.
    pub fn segment(&self) -> u64 {
        self.tail.segment()
    }

    /// Where the damaged frame begins, bytes behind the header of the segment.
    pub fn offset(&self) -> u64 {
        self.tail.offset()
    }

    /// Judges bytes that another replica has there.
    ///
    /// # Errors
    /// IO.
    pub fn judge(&self, bytes: &Bytes) -> Result<TailPiece> {
        self.tail.judge(bytes)
    }

    /// Whether what is left of the damaged frames speaks for a piece that fits: of each either the checksum or what it covers is
    /// the same.
    ///
    /// # Errors
    /// IO.
    pub fn speaks_for(&self, piece: &Bytes) -> Result<bool> {
        self.tail.speaks_for(piece)
    }

    /// Puts a piece that fits in the place of the damage: all of it or, after a crash, nothing.
    ///
    /// # Errors
    /// [`Error::Corrupted`] when it does not fit; IO.
    pub fn mend(&self, piece: &Bytes) -> Result<()> {
        self.tail.mend(piece)
    }
}
