//! `marks` and `vote`: what is this node's own and not part of the ledger.
//!
//! Marks are written unsynced and synced with each checkpoint; a crash may bring back older ones, never torn ones. They
//! only tell how much of the ledger must be there, and where Raft went on. The vote is durable before it is answered.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, LogId, LogIndex};
use parking_lot::Mutex;

use crate::checkpoint::CHECKPOINT_NAME;
use crate::error::{Damage, Error, FileOp, Result};
use crate::smallfile::{self, Places, ToSync, TwinFile};
use crate::vfs::Vfs;
use crate::wire::{Malformed, Put, Reader};

const MARKS_MAGIC: [u8; 8] = *b"ALHMARKS";
const VOTE_MAGIC: [u8; 8] = *b"ALHVOTE\0";

/// The marks, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Marks {
    database: DatabaseId,
    file: TwinFile,
    values: Values,
}

/// What the marks of a database that is not open promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MarksOnDisk {
    /// Durable once, with everything before it.
    pub durable: Option<LogId>,
    /// Committed, with everything before it.
    pub committed: Option<LogId>,
    /// A vote was saved.
    pub voted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Values {
    flushed: Option<LogId>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// A vote was saved, so there must be one.
    voted: bool,
}

impl Values {
    fn encode(&self, database: DatabaseId) -> Vec<u8> {
        let mut out = Vec::with_capacity(68);
        out.put_bytes(&database.0);
        for mark in [self.flushed, self.committed, self.purged] {
            out.put_log_id_or_none(mark);
        }
        out.put_u8(u8::from(self.voted));
        out
    }

    fn decode(bytes: &[u8]) -> std::result::Result<(DatabaseId, Self), Malformed> {
        let mut reader = Reader::new(bytes);
        let database = DatabaseId(reader.array()?);
        let values = Self {
            flushed: reader.log_id_or_none()?,
            committed: reader.log_id_or_none()?,
            purged: reader.log_id_or_none()?,
            voted: false,
        };
        let voted = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        let values = Self { voted, ..values };
        reader.finish()?;
        Ok((database, values))
    }
}

/// Whether `marks` or `vote` says that it is of this database; refused when one says that it is of another. A damaged one says
/// nothing.
pub(crate) fn says_database(vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<bool> {
    let (marks, vote) = (dir.join("marks"), dir.join("vote"));
    let newest = smallfile::read_twin(vfs, &marks, MARKS_MAGIC)?.and_then(|places| places.newest);
    let voted = match smallfile::read(vfs, &vote, VOTE_MAGIC) {
        Err(Error::Corrupted { .. }) => None,
        voted => voted?,
    };
    let mut said = false;
    for (path, content) in [(marks, newest.map(|(_, content)| content)), (vote, voted)] {
        let Some(found) = content.as_deref().and_then(<[u8]>::first_chunk::<16>) else { continue };
        if *found != database.0 {
            return Err(Error::ForeignDatabase { path, expected: database, found: DatabaseId(*found) });
        }
        said = true;
    }
    Ok(said)
}

impl Marks {
    pub(crate) fn open(vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<Self> {
        let path = dir.join("marks");
        let (file, content) = TwinFile::open(vfs, path.clone(), MARKS_MAGIC)?;
        // The vote and the checkpoint must not have names before it: see `must_be_there`. Also one that was there may have been
        // made by a process that did not get as far as this.
        vfs.sync_dir(dir).map_err(|e| Error::io(FileOp::SyncDir, dir, e))?;
        let values = match content {
            None => Values::default(),
            Some(bytes) => match Values::decode(&bytes) {
                Ok((found, _)) if found != database => {
                    return Err(Error::ForeignDatabase { path, expected: database, found });
                }
                Ok((_, values)) => values,
                Err(Malformed) => {
                    return Err(Error::Corrupted { path, segment: None, offset: 0, damage: Damage::Field });
                }
            },
        };
        let mut marks = Self { database, file, values };
        if marks.file.read()?.torn.is_some() {
            // A crash did that. Whole from here on, what is torn later has rotted.
            marks.rewrite(vfs)?;
        }
        Ok(marks)
    }

    /// Whether `marks` or `vote` was there once and is gone: without them nobody knows what this node has promised.
    pub(crate) fn must_be_there(vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<()> {
        let exists = |path: &Path| vfs.exists(path).map_err(|e| Error::io(FileOp::Open, path, e));
        let (marks, vote) = (dir.join("marks"), dir.join("vote"));
        let missing = |path| Err(Error::Corrupted { path, segment: None, offset: 0, damage: Damage::Missing });
        if !exists(&marks)? {
            // They are made when a database is opened first, and their name is durable before any of these.
            let used = exists(&vote)? || exists(&dir.join(CHECKPOINT_NAME))?;
            return if used { missing(marks) } else { Ok(()) };
        }
        let voted = Self::read(vfs, dir, database)?.0.voted;
        if voted && !exists(&vote)? { missing(vote) } else { Ok(()) }
    }

    /// The marks of a database that nobody has open, and whether one of the two places is torn; changes nothing.
    pub(crate) fn read(vfs: &dyn Vfs, dir: &Path, database: DatabaseId) -> Result<(MarksOnDisk, Option<u64>)> {
        let path = dir.join("marks");
        let Some(Places { newest, torn }) = smallfile::read_twin(vfs, &path, MARKS_MAGIC)? else {
            return Ok((MarksOnDisk::default(), None));
        };
        let values = match newest.map(|(_, content)| Values::decode(&content)) {
            None => Values::default(),
            Some(Ok((found, _))) if found != database => {
                return Err(Error::ForeignDatabase { path, expected: database, found });
            }
            Some(Ok((_, values))) => values,
            Some(Err(Malformed)) => {
                return Err(Error::Corrupted { path, segment: None, offset: 0, damage: Damage::Field });
            }
        };
        let durable = values.flushed.max(values.committed);
        let committed = values.committed.max(values.purged);
        Ok((MarksOnDisk { durable, committed, voted: values.voted }, torn))
    }

    /// Compares the file with what is in memory; answers how many bytes it has.
    pub(crate) fn check(&self, vfs: &dyn Vfs) -> Result<u64> {
        let path = self.file.path();
        let corrupted = |offset, damage| Error::Corrupted { path: path.to_path_buf(), segment: None, offset, damage };
        let Some(Places { newest, torn }) = smallfile::read_twin(vfs, path, MARKS_MAGIC)? else {
            return Err(corrupted(0, Damage::Missing));
        };
        if let Some(offset) = torn {
            return Err(corrupted(offset, Damage::Checksum));
        }
        let same = match newest {
            None => self.values == Values::default(),
            Some((_, content)) => content == self.values.encode(self.database),
        };
        if same { Ok(self.file.bytes()) } else { Err(corrupted(0, Damage::Changed)) }
    }

    /// Writes the file again from memory.
    pub(crate) fn rewrite(&mut self, vfs: &dyn Vfs) -> Result<()> {
        self.file.rewrite(vfs, &self.values.encode(self.database))
    }

    /// Log entries at or below this index were durable here once.
    pub(crate) fn durable_through(&self) -> Option<LogIndex> {
        self.values.flushed.max(self.values.committed).map(|id| id.index)
    }

    /// Log entries that were durable here once, and are still.
    pub(crate) fn known(&self) -> impl Iterator<Item = LogId> {
        [self.values.flushed, self.values.committed, self.values.purged].into_iter().flatten()
    }

    fn set(&mut self, values: Values) -> Result<()> {
        if values == self.values {
            return Ok(());
        }
        self.file.write(&values.encode(self.database))?;
        self.values = values;
        Ok(())
    }

    pub(crate) fn note_flushed(&mut self, flushed: Option<LogId>) -> Result<()> {
        self.set(Values { flushed: self.values.flushed.max(flushed), ..self.values })
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        self.values.committed
    }

    /// Remembers the committed log id, but no further than this node has flushed: the mark must not promise bytes that a
    /// crash may take.
    pub(crate) fn note_committed(&mut self, committed: LogId, flushed: Option<LogId>) -> Result<()> {
        let within = Some(committed).min(flushed);
        self.set(Values { committed: self.values.committed.max(within), ..self.values })
    }

    /// There is a durable vote; from here on it is missed when it is gone. Durable when this returns.
    pub(crate) fn note_voted(&mut self) -> Result<()> {
        if self.values.voted {
            return Ok(());
        }
        self.set(Values { voted: true, ..self.values })?;
        self.file.sync()
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.values.purged
    }

    pub(crate) fn note_purged(&mut self, purged: LogId) -> Result<()> {
        self.set(Values { purged: self.values.purged.max(Some(purged)), ..self.values })
    }

    /// Before the ledger is cut behind `kept`: from here on nothing later is missed, even after a crash.
    pub(crate) fn lower(&mut self, kept: Option<LogId>) -> Result<()> {
        if self.values.flushed <= kept && self.values.committed <= kept {
            return Ok(());
        }
        let values = Values {
            flushed: self.values.flushed.min(kept),
            committed: self.values.committed.min(kept),
            purged: self.values.purged,
            ..self.values
        };
        self.set(values)?;
        // Both places must be free of the higher mark: recovery may fall back to the older one.
        self.file.sync()?;
        self.file.write(&values.encode(self.database))?;
        self.file.sync()
    }

    /// After an install: the ledger ends at `last`, all of it durable.
    pub(crate) fn installed(&mut self, last: Option<LogId>) -> Result<()> {
        let purged = self.values.purged.min(last);
        self.set(Values { flushed: last, committed: last, purged, ..self.values })?;
        self.file.sync()
    }

    /// The file, to be synced when the lock of the marks is not held any more.
    pub(crate) fn to_sync(&self) -> ToSync {
        self.file.to_sync()
    }
}

/// The durable vote: opaque bytes of the caller.
#[derive(Debug)]
pub(crate) struct Vote {
    database: DatabaseId,
    path: PathBuf,
    /// What was saved or loaded last; held while the file is written.
    known: Mutex<Option<Vec<u8>>>,
}

impl Vote {
    pub(crate) fn new(dir: &Path, database: DatabaseId) -> Self {
        Self { database, path: dir.join("vote"), known: Mutex::default() }
    }

    pub(crate) fn save(&self, vfs: &Arc<dyn Vfs>, bytes: &[u8]) -> Result<()> {
        let mut known = self.known.lock();
        self.write(vfs, bytes)?;
        *known = Some(bytes.to_vec());
        Ok(())
    }

    fn write(&self, vfs: &Arc<dyn Vfs>, bytes: &[u8]) -> Result<()> {
        smallfile::write_atomic(&**vfs, &self.path, VOTE_MAGIC, &[&self.database.0, bytes].concat())
    }

    pub(crate) fn load(&self, vfs: &Arc<dyn Vfs>) -> Result<Option<Vec<u8>>> {
        let mut known = self.known.lock();
        let vote = self.read(vfs)?;
        known.clone_from(&vote);
        Ok(vote)
    }

    /// Compares the file with the vote that was saved or loaded last, if there was one.
    pub(crate) fn check(&self, vfs: &Arc<dyn Vfs>) -> Result<()> {
        let known = self.known.lock();
        let found = self.read(vfs)?;
        if known.is_none() || *known == found {
            return Ok(());
        }
        let damage = if found.is_none() { Damage::Missing } else { Damage::Changed };
        Err(Error::Corrupted { path: self.path.clone(), segment: None, offset: 0, damage })
    }

    /// Writes the vote that was saved or loaded last again.
    ///
    /// # Errors
    /// Those of loading it, when that was never done: what a damaged file said, nobody knows. IO.
    pub(crate) fn rewrite(&self, vfs: &Arc<dyn Vfs>) -> Result<()> {
        match &*self.known.lock() {
            Some(vote) => self.write(vfs, vote),
            None => self.read(vfs).map(drop),
        }
    }

    fn read(&self, vfs: &Arc<dyn Vfs>) -> Result<Option<Vec<u8>>> {
        let Some(content) = smallfile::read(&**vfs, &self.path, VOTE_MAGIC)? else { return Ok(None) };
        let path = self.path.clone();
        match content.split_first_chunk() {
            None => Err(Error::Corrupted { path, segment: None, offset: 0, damage: Damage::Length }),
            Some((found, vote)) if *found == self.database.0 => Ok(Some(vote.to_vec())),
            // Another database's vote would let this replica vote twice in a term.
            Some((found, _)) => {
                Err(Error::ForeignDatabase { path, expected: self.database, found: DatabaseId(*found) })
            }
        }
    }
}
