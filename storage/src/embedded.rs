//! The database without Raft: this process is the whole group, what is flushed is committed.

use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::{LogId, LogIndex, Term};
use bytes::Bytes;

use crate::apply::Outcome;
use crate::command::{Citation, Command, Prune, PruneTarget, Settings, TxProposal};
use crate::database::{Database, DatabaseSpec, Options};
use crate::error::{Error, Result};
use crate::recover;
use crate::segment::{Frame, FrameKind};
use crate::vfs::Vfs;

/// Term of all log entries of an embedded database.
pub(crate) const TERM: Term = Term(1);

impl Database {
    /// Opens a database for use without Raft: everything in its ledger is applied when this returns. A new one gets
    /// `settings`; those of an existing one stay.
    pub fn open_embedded(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        spec: DatabaseSpec,
        options: Options,
        settings: Settings,
    ) -> Result<Self> {
        let db = Self::open(vfs, dir, spec, options)?;
        if let Some(last) = db.ledger().last_log_id() {
            recover::replay(&db.core(), &mut db.applier.lock(), last.index)?;
        }
        if db.settings().is_none() {
            let genesis = Command::Genesis { database: spec.id, segment_bytes: spec.segment_bytes, settings };
            db.commit_command(&genesis)?;
        }
        Ok(db)
    }

    /// Commits transactions: durable and visible when this returns, one outcome per proposal. `ts` is Unix seconds. One
    /// call costs one sync, so many transactions per call are cheap. One caller at a time; for many, and for transactions
    /// that need not be durable at once, there is [`Committer`](crate::Committer).
    ///
    /// # Errors
    /// [`Error::NoSpace`] from the log: surely not committed, and the next call may succeed. Any other error of a write or
    /// sync: perhaps committed, open anew to see.
    pub fn commit(&self, ts: i64, mut proposals: Vec<TxProposal>) -> Result<Vec<Outcome>> {
        if let Some(settings) = self.settings() {
            proposals.iter_mut().for_each(|proposal| proposal.compress(&settings));
        }
        let outcomes = self.commit_command(&Command::Batch { ts, proposals })?;
        match self.follow_up() {
            // The transactions are committed all the same; the next call tries again.
            Err(Error::NoSpace { .. }) | Ok(()) => Ok(outcomes),
            Err(error) => Err(error),
        }
    }

    /// Seals and checkpoints that are due.
    fn follow_up(&self) -> Result<()> {
        self.seal_closed()?;
        if self.checkpoint_due() {
            self.checkpoint()?;
        }
        // A step at a time; whoever has a thread to spare calls `index_work` there and leaves nothing to do here.
        if self.index_work_due() {
            self.index_work()?;
        }
        Ok(())
    }

    /// Orders values to be forgotten: in force when this returns. [`Database::prune_step`] gets rid of the bytes; nobody but
    /// this process needs log entries as they were appended, so every sealed segment may go (`LogIndex(u64::MAX)`).
    pub fn prune(&self, order: Option<Citation>, target: PruneTarget) -> Result<Outcome> {
        Ok(self.commit_command(&Command::Prune(Prune { order, target }))?.remove(0))
    }

    /// Seals the segments that are closed, those included that were pruned. [`Database::commit`] does so as well.
    pub fn seal_closed(&self) -> Result<()> {
        self.ledger().settle()?;
        self.pending_seals()?.into_iter().try_for_each(|seal| self.commit_command(&Command::Seal(seal)).map(drop))
    }

    fn commit_command(&self, command: &Command) -> Result<Vec<Outcome>> {
        let ledger = self.ledger();
        let index = ledger.last_log_id().map_or(0, |last| last.index.0 + 1);
        let payload: Bytes = command.encode();
        let log_id = LogId { term: TERM, index: LogIndex(index) };
        let frame = Frame { log_id, kind: FrameKind::Command, payload };
        let positions = ledger.stage(std::slice::from_ref(&frame))?;
        if let Err(error) = ledger.flush() {
            if matches!(error, Error::NoSpace { .. }) {
                // Surely not applied: it must not come with the next one.
                ledger.truncate_after(index.checked_sub(1).map(LogIndex))?;
            }
            return Err(error);
        }
        self.apply(log_id, positions[0], frame.kind, &frame.payload)
    }
}
