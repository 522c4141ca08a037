//! Applies frames anew and compares what comes out with the derived logs on disk, frame by frame.
//!
//! The code is the one that applies; only its logs are of another kind: they never write, and what was found equal is
//! forgotten and read from the files.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{LogIndex, TxId};

use crate::ahtlog::{Frontier, inner_count};
use crate::apply::{Applier, Applying};
use crate::checkpoint::{Checkpoint, LogSizes, State};
use crate::chunklog::ChunkLog;
use crate::commitlog::CommitRecord;
use crate::core::Core;
use crate::database::DatabaseSpec;
use crate::error::{Error, Result};
use crate::format::SegmentHeader;
use crate::format::derived::{COMMIT_RECORD_BYTES, DIGEST_BYTES, LogKind};
use crate::index::Index;
use crate::indexing;
use crate::segment::{Frame, Position};
use crate::txlog::Record;
use crate::vfs::Vfs;

/// What a frame gave that the files do not hold.
#[derive(Debug)]
pub(super) struct Difference {
    pub tx: Option<TxId>,
    pub error: Error,
}

#[derive(Debug)]
pub(super) struct Replay {
    core: Core,
    applier: Applier,
    /// Of the logs on disk.
    sizes: LogSizes,
    /// The commit log on disk, compared or not.
    commit_on_disk: ChunkLog,
    /// Next transaction whose keys are put into the index without deriving it again.
    known: TxId,
}

impl Replay {
    /// Goes on behind `from`, whose transactions must first be shown to [`Replay::skip`], or starts at the beginning.
    pub(super) fn new(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        spec: DatabaseSpec,
        sizes: LogSizes,
        from: Option<Checkpoint>,
    ) -> Result<Self> {
        let (state, done) = match from {
            Some(Checkpoint { state, sizes, .. }) => (state, sizes),
            None => (State::empty(), LogSizes { chunk: sizes.chunk, ..LogSizes::default() }),
        };
        let core = Core::read_only(vfs, dir, spec, done, &state)?;
        let frontier = Frontier::load(state.tx.0, &core.nodes())?;
        let commit = dir.join("commit");
        let commit_on_disk = ChunkLog::open_read_only(vfs, commit, LogKind::Commit, spec.id, sizes.chunk, sizes.commit);
        let applier = Applier::new(state, frontier, spec.segment_bytes);
        Ok(Self { core, applier, sizes, commit_on_disk, known: TxId(1) })
    }

    pub(super) fn state(&self) -> &State {
        &self.applier.state
    }

    /// The next frames are of this segment, which has lost values.
    pub(super) fn lend(&self, segment: &SegmentHeader) {
        self.core.ledger.lend(segment);
    }

    /// The keys of all transactions so far.
    pub(super) fn index(&self) -> &Index {
        &self.core.index
    }

    /// The Alh of a transaction that was derived.
    pub(super) fn alh(&self, tx: TxId) -> Result<Digest> {
        self.core.alh(tx)
    }

    /// The log entry of a transaction that was derived.
    pub(super) fn log_index(&self, tx: TxId) -> Result<LogIndex> {
        Ok(self.core.commit_record(tx)?.log_index)
    }

    /// State and sizes after the last frame, as a checkpoint holds them.
    pub(super) fn encode(&self) -> Vec<u8> {
        Checkpoint::encode(self.core.spec.id, &self.applier.state, &self.core.sizes())
    }

    /// The first transaction that the commit log on disk has for a log entry that cannot be applied.
    pub(super) fn tx_of_next(&self, index: LogIndex) -> Option<TxId> {
        let next = self.applier.state.tx.next()?;
        let commit = CommitRecord::read(&self.commit_on_disk, next).ok()?;
        (commit.log_index == index).then_some(next)
    }

    /// A frame that an earlier check has done: its keys are needed by later conditions.
    pub(super) fn skip(&mut self, position: Position, frame: &Frame) -> Result<()> {
        while self.known <= self.applier.state.tx {
            let tx = self.known;
            let commit = self.core.commit_record(tx)?;
            if commit.log_index != frame.log_id.index {
                return Ok(());
            }
            let bytes = self.core.tx.read(commit.offset, commit.size as usize)?.into();
            let record = Record::decode(tx, commit.log_index, bytes).map_err(|bad| self.core.bad_record(tx, bad))?;
            indexing::insert(&self.core, tx, &record, position, &frame.payload)?;
            self.known = TxId(tx.0 + 1);
        }
        Ok(())
    }

    /// Applies the next frame; answers what differs, first transaction first. After a difference nothing more can be
    /// applied.
    pub(super) fn apply(&mut self, position: Position, frame: &Frame) -> Result<Vec<Difference>> {
        let first = TxId(self.applier.state.tx.0 + 1);
        let Frame { log_id, kind, payload } = frame;
        match self
            .applier
            .apply(&self.core, Applying { log_id: *log_id, position, kind: *kind, payload, digested: &[] })
        {
            Ok(_) => self.compare(first),
            Err(error @ (Error::Io { .. } | Error::NoSpace { .. })) => Err(error),
            Err(error) => Ok(vec![Difference { tx: Some(first), error }]),
        }
    }

    fn compare(&self, first: TxId) -> Result<Vec<Difference>> {
        let last = self.applier.state.tx;
        let made_by = |test: &dyn Fn(TxId) -> bool| (first.0..=last.0).map(TxId).find(|tx| test(*tx));
        let core = &self.core;
        let mut found = Vec::new();
        // Before the commit records, which say to which transaction an offset belongs, are compared and forgotten.
        if let Err((at, error)) = core.tx.compare(self.sizes.tx) {
            let tx =
                made_by(&|tx| core.commit_record(tx).is_ok_and(|commit| at < commit.offset + u64::from(commit.size)));
            found.push((tx, error));
        }
        if let Err((at, error)) = core.aht.compare(self.sizes.aht) {
            found.push((made_by(&|tx| at / DIGEST_BYTES < inner_count(tx.0)), error));
        }
        if let Err((at, error)) = core.commit.compare(self.sizes.commit) {
            found.push((Some(TxId(at / COMMIT_RECORD_BYTES + 1)), error));
        }
        for (log, size) in [(&core.seals.log, self.sizes.seal), (&core.prunes.log, self.sizes.prune)] {
            if let Err((_, error)) = log.compare(size) {
                found.push((None, error));
            }
        }
        found.sort_by_key(|(tx, _)| tx.unwrap_or(TxId(u64::MAX)));
        let mut differences = Vec::with_capacity(found.len());
        for (tx, error) in found {
            match error {
                Error::Io { .. } | Error::UnsupportedVersion { .. } => return Err(error),
                error => differences.push(Difference { tx, error }),
            }
        }
        Ok(differences)
    }
}
