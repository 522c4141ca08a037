//! The checkpoint: the replicated state at one log position and the sizes of the derived logs there, written atomically.
//!
//! Rule: a checkpoint covers what is applied when it begins. What of that is not flushed in the ledger yet, it flushes
//! itself, before anything else [S1: no derived record outlives a crash that the durable ledger does not contain]. Then it
//! syncs the derived logs and writes the file; a crash in between leaves the checkpoint before. Applying and reading go on
//! meanwhile: the state is copied under the applier's lock, and everything that waits for the disk happens outside it.

use std::path::Path;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::{LogId, TxId};
use alhambra_ledger::{digest, ids};
use bytes::Bytes;

use crate::apply::Since;
use crate::command::Settings;
use crate::core::Core;
use crate::database::Database;
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::derived::SMALL_FILE_HEAD_BYTES;
use crate::limits::REQUEST_OUTCOMES_KEPT;
use crate::requests::Requests;
use crate::seal::Trail;
use crate::segment::Position;
use crate::smallfile;
use crate::vfs::Vfs;
use crate::wire::{Malformed, Put, Reader};

pub(crate) const CHECKPOINT_MAGIC: [u8; 8] = *b"ALHCHECK";
pub(crate) const CHECKPOINT_NAME: &str = "checkpoint";

/// How far a database has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Last applied log entry.
    pub log_id: Option<LogId>,
    /// Last applied membership, with its log id; opaque bytes of the caller.
    pub membership: Option<(LogId, Bytes)>,
    /// Newest transaction; 0 when there is none.
    pub tx: TxId,
    /// Its Alh; SHA-256 of nothing when there is none.
    pub alh: Digest,
}

/// Everything that apply depends on but the log and the index; equal on all replicas at the same log position.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub applied: Option<LogId>,
    pub membership: Option<(LogId, Bytes)>,
    pub tx: TxId,
    pub alh: Digest,
    /// Latest time of a batch: header time never runs backward.
    pub clock: i64,
    pub settings: Option<Settings>,
    /// Logical ledger offset behind the last applied frame.
    pub end: Position,
    pub trail: Trail,
    pub requests: Requests,
}

impl State {
    pub(crate) fn empty() -> Self {
        Self {
            applied: None,
            membership: None,
            tx: TxId(0),
            alh: digest::EMPTY,
            clock: i64::MIN,
            settings: None,
            end: Position(0),
            trail: Trail::default(),
            requests: Requests::new(REQUEST_OUTCOMES_KEPT),
        }
    }

    pub(crate) fn applied(&self) -> Applied {
        Applied { log_id: self.applied, membership: self.membership.clone(), tx: self.tx, alh: self.alh }
    }
}

/// Sizes of the derived logs, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogSizes {
    /// Of a log, per file.
    pub chunk: u64,
    pub tx: u64,
    pub commit: u64,
    pub aht: u64,
    pub seal: u64,
    pub prune: u64,
}

/// A state with the sizes that belong to it.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub database: ids::DatabaseId,
    pub state: State,
    pub sizes: LogSizes,
}

impl Checkpoint {
    pub(crate) fn encode(database: ids::DatabaseId, state: &State, sizes: &LogSizes) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.put_bytes(&database.0);
        out.put_log_id_or_none(state.applied);
        out.put_log_id_or_none(state.membership.as_ref().map(|(id, _)| *id));
        out.put_prefixed(state.membership.as_ref().map_or(&[], |(_, bytes)| bytes));
        out.put_u64(state.tx.0);
        out.put_bytes(&state.alh.0);
        out.put_i64(state.clock);
        out.put_u8(u8::from(state.settings.is_some()));
        if let Some(settings) = &state.settings {
            settings.encode_into(&mut out);
        }
        out.put_u64(state.end.0);
        for size in [sizes.chunk, sizes.tx, sizes.commit, sizes.aht, sizes.seal, sizes.prune] {
            out.put_u64(size);
        }
        state.trail.encode_into(&mut out);
        state.requests.encode_into(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let database = ids::DatabaseId(reader.array()?);
        let applied = reader.log_id_or_none()?;
        let membership_id = reader.log_id_or_none()?;
        let membership = Bytes::copy_from_slice(reader.prefixed()?);
        if membership_id.is_none() && !membership.is_empty() {
            return Err(Malformed);
        }
        let tx = TxId(reader.u64()?);
        let alh = Digest(reader.array()?);
        let clock = reader.i64()?;
        let settings = match reader.u8()? {
            0 => None,
            1 => Some(Settings::read(&mut reader)?),
            _ => return Err(Malformed),
        };
        let end = Position(reader.u64()?);
        let sizes = LogSizes {
            chunk: reader.u64()?,
            tx: reader.u64()?,
            commit: reader.u64()?,
            aht: reader.u64()?,
            seal: reader.u64()?,
            prune: reader.u64()?,
        };
        if sizes.chunk == 0 {
            return Err(Malformed);
        }
        let trail = Trail::read(&mut reader)?;
        let requests = Requests::read(&mut reader, REQUEST_OUTCOMES_KEPT)?;
        reader.finish()?;
        let membership = membership_id.map(|id| (id, membership));
        let state = State { applied, membership, tx, alh, clock, settings, end, trail, requests };
        Ok(Self { database, state, sizes })
    }
}

/// Takes a checkpoint of `db`; answers its bytes.
pub(crate) fn write(db: &Database) -> Result<Vec<u8>> {
    let _one_at_a_time = db.exclusive.lock();
    let since = db.applier.lock().since;
    let written = write_exclusive(db, &db.core());
    match &written {
        // Due still, and taken when there is space; the one before holds until then.
        Err(error) if error.waits_for_space() => {
            let mut applier = db.applier.lock();
            applier.since.bytes += since.bytes;
            applier.since.txs += since.txs;
        }
        Err(_) => db.applier.lock().fail(),
        Ok(_) => {}
    }
    written
}

/// Removes the checkpoint, durably, because what it is of was derived from rot; nothing is applied any more, and no other one is
/// taken. The next opening derives everything again. When the file cannot be removed nothing is changed.
pub(crate) fn give_up(db: &Database) -> Result<()> {
    let _one_at_a_time = db.exclusive.lock();
    let mut applier = db.applier.lock();
    remove_file(&*db.vfs, &db.dir)?;
    applier.fail();
    *db.core().checkpointed.write() = None;
    db.vfs.sync_dir(&db.dir).map_err(|e| Error::io(FileOp::SyncDir, &db.dir, e))
}

/// The same, of a database that is not open.
pub(crate) fn remove(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    remove_file(vfs, dir)?;
    vfs.sync_dir(dir).map_err(|e| Error::io(FileOp::SyncDir, dir, e))
}

fn remove_file(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    let path = dir.join(CHECKPOINT_NAME);
    match vfs.remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(FileOp::Remove, &path, e)),
        _ => Ok(()),
    }
}

/// Whether the newest checkpoint stands behind `last`, the end of a segment that is to lose values; takes one if need be. A replica
/// that starts again ends where its checkpoint does, and so do the files that it gives to others then. A segment without its
/// values cannot be the newest one there.
pub(crate) fn reach_behind(db: &Database, core: &Core, last: ids::LogId) -> Result<bool> {
    let behind = || core.checkpointed.read().is_some_and(|id| id.index > last.index);
    if !behind() {
        write(db)?;
    }
    Ok(behind())
}

fn write_exclusive(db: &Database, core: &Core) -> Result<Vec<u8>> {
    let (applied, bytes) = {
        let mut applier = db.applier.lock();
        applier.must_be_sound()?;
        applier.unpark(db)?;
        db.note_memory(applier.state_bytes());
        applier.since = Since::default();
        (applier.state.applied, Checkpoint::encode(db.spec.id, &applier.state, &core.sizes()))
    };
    if core.ledger.flushed().map(|id| id.index) < applied.map(|id| id.index) {
        core.ledger.flush()?;
    }
    for log in [&core.tx, &core.commit, &core.aht, &core.seals.log, &core.prunes.log] {
        log.sync()?;
    }
    let marks = {
        let mut marks = db.marks.lock();
        marks.note_flushed(core.ledger.flushed())?;
        marks.to_sync()
    };
    marks.sync()?;
    smallfile::write_atomic(&*db.vfs, &db.dir.join(CHECKPOINT_NAME), CHECKPOINT_MAGIC, &bytes)?;
    core.seals.compare(&core.ledger)?;
    *core.checkpointed.write() = applied;
    Ok(bytes)
}

/// Reads the checkpoint of the database in `dir`; `None` when none was taken yet.
pub(crate) fn read(vfs: &dyn Vfs, dir: &Path, expected: Option<ids::DatabaseId>) -> Result<Option<Checkpoint>> {
    let path = dir.join(CHECKPOINT_NAME);
    let Some(bytes) = smallfile::read(vfs, &path, CHECKPOINT_MAGIC)? else { return Ok(None) };
    let checkpoint = Checkpoint::decode(&bytes).map_err(|Malformed| Error::Corrupted {
        path: path.clone(),
        segment: None,
        offset: SMALL_FILE_HEAD_BYTES as u64,
        damage: Damage::Field,
    })?;
    match expected {
        Some(expected) if expected != checkpoint.database => {
            Err(Error::ForeignDatabase { path, expected, found: checkpoint.database })
        }
        _ => Ok(Some(checkpoint)),
    }
}
