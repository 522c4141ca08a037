//! The newest segment when a frame in it has rotted of which it is known that it was durable here. Cutting the log there would
//! forget what was acknowledged, so the frame is taken from another replica's log.
//!
//! Which bytes are meant is said by the log matching property of Raft: when two logs hold an entry with the same index and term,
//! they are the same up to there. So what another replica has in the place of the damage counts only up to an entry that is
//! surely in this log as well: the next whole frame here that is byte for byte the same there, or an entry whose log id this
//! replica has noted durably. Everything behind that stays as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::LogId;
use bytes::Bytes;

use super::{Layout, LedgerReport, LedgerSpec, RecoveryFloor, recover, scan, upkeep};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{self, FRAME_PREFIX_BYTES, FramePrefix, SEGMENT_HEADER_BYTES};
use crate::limits::COPY_BYTES;
use crate::vfs::{File, OpenMode, Vfs};

/// Bytes of the checksum, behind the length.
const CHECKSUM: std::ops::Range<usize> = 4..FRAME_PREFIX_BYTES;

/// See the module.
#[derive(Debug)]
pub(crate) struct DamagedTail {
    layout: Layout,
    number: u64,
    path: PathBuf,
    file: Box<dyn File>,
    file_bytes: u64,
    /// Offset of the damaged frame from the first one.
    offset: u64,
    /// The frame before it, in whatever segment.
    before: Option<LogId>,
    /// Of the segment, as its header says.
    first: LogId,
    /// Entries that are surely in this log.
    known: Vec<LogId>,
}

/// What bytes of another replica are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailPiece {
    /// So many of them, from the first, are what has to stand here.
    Fits(usize),
    /// More of them have to be seen.
    Short,
    /// They are damaged, or of another log.
    Unfit,
}

impl DamagedTail {
    /// Looks for such damage and changes nothing but a sidecar that may have to be made anew. `known` are log ids of entries
    /// that are surely in this log. `None` when the newest segment has no such damage.
    ///
    /// # Errors
    /// Those of [`super::Ledger::open`] for the segments before it.
    pub(crate) fn find(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        spec: LedgerSpec,
        floor: RecoveryFloor,
        known: Vec<LogId>,
    ) -> Result<Option<Self>> {
        let layout = Layout::to_mend(Arc::clone(vfs), dir, spec);
        let (headers, segments) = recover::chain(&layout, &mut LedgerReport::default())?;
        let Some(header) = headers.last().filter(|header| header.generation == 0) else { return Ok(None) };
        recover::check_chain(&layout, segments.last(), header)?;
        let (number, first) = (header.number, header.first_log_id);
        let path = layout.segment_path(number);
        let file = vfs.open(&path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, &path, e))?;
        let file_bytes = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
        let scan = scan::scan(&*file, &path, first, file_bytes)?;
        let next = scan.last_log_id.map_or(Some(first.index), |last| last.index.next());
        if next.is_none() || floor.durable_through < next {
            return Ok(None);
        }
        let before = scan.last_log_id;
        let offset = scan.frame_bytes;
        Ok(Some(Self { layout, number, path, file, file_bytes, offset, before, first, known }))
    }

    /// Number of the segment.
    pub(crate) fn segment(&self) -> u64 {
        self.number
    }

    /// Offset of the damaged frame from the first one.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes here, as they are, in the place of `len` bytes from the damage on; fewer at the end of the file.
    fn own(&self, len: usize) -> Result<Bytes> {
        let at = SEGMENT_HEADER_BYTES + self.offset;
        let len = self.file_bytes.saturating_sub(at).min(len as u64);
        let len = usize::try_from(len).expect("not more than was asked for");
        self.file.read_at(at, len).map_err(|e| Error::io(FileOp::Read, &self.path, e))
    }

    /// Judges bytes that another replica has from the damage on.
    pub(crate) fn judge(&self, bytes: &Bytes) -> Result<TailPiece> {
        let own = self.own(bytes.len())?;
        let mut last = self.before;
        let mut at = 0;
        loop {
            let rest = bytes.slice(at..);
            if rest.len() < FRAME_PREFIX_BYTES {
                return Ok(TailPiece::Short);
            }
            let total = match format::frame_prefix(&rest) {
                Ok(FramePrefix::Frame(total)) => total,
                Ok(FramePrefix::Nothing) | Err(_) => return Ok(TailPiece::Unfit),
            };
            if total > rest.len() {
                return Ok(TailPiece::Short);
            }
            let Ok((frame, _)) = format::decode_frame(&rest) else { return Ok(TailPiece::Unfit) };
            let follows = match last {
                None => frame.log_id == self.first,
                Some(last) => Some(frame.log_id.index) == last.index.next() && frame.log_id.term >= last.term,
            };
            if !follows {
                return Ok(TailPiece::Unfit);
            }
            if at > 0 && own.get(at..at + total) == Some(&rest[..total]) {
                return Ok(TailPiece::Fits(at));
            }
            at += total;
            if self.known.contains(&frame.log_id) {
                return Ok(TailPiece::Fits(at));
            }
            last = Some(frame.log_id);
        }
    }

    /// Whether what is left of the damaged frames here speaks for `piece`, which fits: of each of them either the checksum or
    /// what it covers is the same.
    pub(crate) fn speaks_for(&self, piece: &Bytes) -> Result<bool> {
        let own = self.own(piece.len())?;
        let mut at = 0;
        while at < piece.len() {
            let Ok(FramePrefix::Frame(total)) = format::frame_prefix(&piece[at..]) else { return Ok(false) };
            let (Some(ours), Some(theirs)) = (own.get(at..at + total), piece.get(at..at + total)) else {
                return Ok(false);
            };
            let same = ours[CHECKSUM] == theirs[CHECKSUM] || ours[FRAME_PREFIX_BYTES..] == theirs[FRAME_PREFIX_BYTES..];
            if !same {
                return Ok(false);
            }
            at += total;
        }
        Ok(true)
    }

    /// `piece`, and the frame here that it leads to.
    fn continued(&self, piece: &Bytes) -> Result<Bytes> {
        let head = self.own(piece.len() + FRAME_PREFIX_BYTES)?;
        let next = head.get(piece.len()..).map(format::frame_prefix);
        let Some(Ok(FramePrefix::Frame(total))) = next else { return Ok(piece.clone()) };
        let own = self.own(piece.len() + total)?;
        Ok([piece, &own[piece.len()..]].concat().into())
    }

    /// Puts `piece`, which fits, in the place of the damage: all or, after a crash, nothing.
    pub(crate) fn mend(&self, piece: &Bytes) -> Result<()> {
        if self.judge(&self.continued(piece)?)? != TailPiece::Fits(piece.len()) {
            let offset = SEGMENT_HEADER_BYTES + self.offset;
            let (path, segment) = (self.path.clone(), Some(self.number));
            return Err(Error::Corrupted { path, segment, offset, damage: Damage::Changed });
        }
        let to = self.layout.fetched_segment_path(self.number);
        let file = self.layout.vfs.open(&to, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &to, e))?;
        let written = self.write_with(piece, &*file, &to);
        if written.is_err() {
            // Opening removes it as well.
            let _ = self.layout.vfs.remove_file(&to);
        }
        written?;
        upkeep::name(&self.layout, &to, self.number)
    }

    fn write_with(&self, piece: &Bytes, file: &dyn File, to: &Path) -> Result<()> {
        let write = |at: u64, bytes: &[u8]| file.write_at(at, bytes).map_err(|e| Error::io(FileOp::Write, to, e));
        let copy = |from: u64, end: u64| -> Result<()> {
            let mut at = from;
            while at < end {
                let len = usize::try_from((end - at).min(COPY_BYTES as u64)).expect("a small constant");
                let bytes = self.file.read_at(at, len).map_err(|e| Error::io(FileOp::Read, &self.path, e))?;
                write(at, &bytes)?;
                at += len as u64;
            }
            Ok(())
        };
        file.set_len(0).map_err(|e| Error::io(FileOp::SetLength, to, e))?;
        let start = SEGMENT_HEADER_BYTES + self.offset;
        copy(0, start)?;
        write(start, piece)?;
        copy(start + piece.len() as u64, self.file_bytes)?;
        file.sync_data().map_err(|e| Error::io(FileOp::Sync, to, e))
    }
}
