//! Where a client keeps the state that it trusts, one per (server identity, database).
//!
//! A trusted state only moves forward (V2): [`StateStore::advance`] compares before it sets, so that two clients that
//! share a store cannot accept two histories, each consistent with an old state but not with one another. Implementors
//! are held to `conformance` in `tests/it/state_store.rs`.
//!
//! What the file implementation writes is documented in `docs/client-state.md`: one JSON object per state and one per piece of
//! evidence.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use alhambra_ledger::Digest;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::state::TrustedState;
use serde::{Deserialize, Serialize};

/// Which state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StateId {
    /// Identity of the server, the same on all nodes of a cluster.
    pub server_uuid: String,
    /// Name of the database.
    pub database: String,
}

/// What [`StateStore::advance`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advanced {
    /// The new state is stored.
    Stored,
    /// Somebody else stored this one since; nothing was changed. The caller proves against it, then tries again.
    Changed(TrustedState),
}

/// Why a state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A state file that is not one; look at it, and remove it to trust the server anew.
    #[error("{} is not a state file", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A state file that belongs to another server, another database, or a later version of this program.
    #[error("{} is the state of another server or database, or of a later version", path.display())]
    ForeignFile {
        /// The file.
        path: PathBuf,
    },
    /// The new state is older than the one it shall replace, or another one of the same transaction (V2).
    #[error("a trusted state at tx {from} cannot move to tx {to}")]
    Backward {
        /// Transaction of the state in place.
        from: TxId,
        /// Transaction of the state that was to replace it.
        to: TxId,
    },
}

/// What is kept when a check failed: all that is needed to show the lie to somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The call.
    pub call: String,
    /// The check that failed.
    pub step: String,
    /// Identity of the server.
    pub server_uuid: String,
    /// Endpoint that answered.
    pub endpoint: String,
    /// Name of the database.
    pub database: String,
    /// Transaction of the trusted state.
    pub trusted_tx: u64,
    /// Alh of the trusted state, hexadecimal.
    pub trusted_alh: String,
    /// The request as protobuf bytes, hexadecimal.
    pub request: String,
    /// The answer as protobuf bytes, hexadecimal; empty where the answer was an error.
    pub reply: String,
    /// A state that the server claimed, as protobuf bytes (`ImmutableState`), hexadecimal; empty where there is none.
    pub claimed_state: String,
}

/// Keeps trusted states, and evidence against servers.
pub trait StateStore: Send + Sync {
    /// The stored state; `None` when there is none.
    fn load(&self, id: &StateId) -> Result<Option<TrustedState>, StateError>;

    /// Replaces `expected` (`None`: nothing stored) by `new`, atomically.
    ///
    /// Fails with [`StateError::Backward`], unchanged, when `new` does not continue `expected`: [`TrustedState::advance`].
    fn advance(
        &self,
        id: &StateId,
        expected: Option<&TrustedState>,
        new: &TrustedState,
    ) -> Result<Advanced, StateError>;

    /// Keeps evidence and says where; `None` when this store keeps no files.
    fn keep_evidence(&self, evidence: &Evidence) -> Result<Option<PathBuf>, StateError>;
}

/// (V2) for every store.
fn check_forward(expected: Option<&TrustedState>, new: &TrustedState) -> Result<(), StateError> {
    let Some(expected) = expected else { return Ok(()) };
    let backward = StateError::Backward { from: expected.tx, to: new.tx };
    if expected.database != new.database {
        return Err(backward);
    }
    expected.clone().advance(new.tx, new.alh).map_err(|_| backward)
}

/// Keeps states as long as it lives.
#[derive(Debug, Default)]
pub struct MemoryStateStore {
    states: Mutex<HashMap<StateId, TrustedState>>,
    evidence: Mutex<Vec<Evidence>>,
}

impl MemoryStateStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The evidence kept so far.
    pub fn evidence(&self) -> Vec<Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl StateStore for MemoryStateStore {
    fn load(&self, id: &StateId) -> Result<Option<TrustedState>, StateError> {
        Ok(self.states.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned())
    }

    fn advance(
        &self,
        id: &StateId,
        expected: Option<&TrustedState>,
        new: &TrustedState,
    ) -> Result<Advanced, StateError> {
        check_forward(expected, new)?;
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        match states.get(id) {
            Some(found) if Some(found) != expected => return Ok(Advanced::Changed(found.clone())),
            _ => states.insert(id.clone(), new.clone()),
        };
        Ok(Advanced::Stored)
    }

    fn keep_evidence(&self, evidence: &Evidence) -> Result<Option<PathBuf>, StateError> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).push(evidence.clone());
        Ok(None)
    }
}

/// One file per state in a folder; processes that share the folder exclude each other by a lock file.
///
/// A state is written to a temporary file, synced and renamed, so a crash leaves the old or the new one. An old one is
/// no harm: the next proof starts from there.
#[derive(Debug)]
pub struct FileStateStore {
    dir: PathBuf,
}

/// Version of the file format.
const FORMAT: u32 = 1;

/// A state as it stands in its file.
#[derive(Serialize, Deserialize)]
struct StateFile {
    format: u32,
    server_uuid: String,
    database: String,
    tx: u64,
    alh: String,
}

fn io_error<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateError + 'a {
    move |source| StateError::Io { operation, path: path.to_owned(), source }
}

/// A name that is safe in any file system: all but letters, digits and `_` of ASCII as `%xx`, case kept apart, too.
fn file_name_part(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

impl FileStateStore {
    /// Keeps states in `dir`, which is created when it does not exist.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StateError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io_error("creating", &dir))?;
        Ok(Self { dir })
    }

    /// The file of a state.
    pub fn path(&self, id: &StateId) -> PathBuf {
        self.dir.join(format!("state-{}-{}.json", file_name_part(&id.server_uuid), file_name_part(&id.database)))
    }

    /// Takes the lock of a state, released when the file is dropped.
    fn lock(&self, path: &Path) -> Result<File, StateError> {
        let path = path.with_extension("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(io_error("opening", &path))?;
        file.lock().map_err(io_error("locking", &path))?;
        Ok(file)
    }

    fn read(&self, id: &StateId, path: &Path) -> Result<Option<TrustedState>, StateError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading", path)(error)),
        };
        let file: StateFile =
            serde_json::from_slice(&bytes).map_err(|source| StateError::BadFile { path: path.to_owned(), source })?;
        let foreign = StateError::ForeignFile { path: path.to_owned() };
        if file.format != FORMAT || file.server_uuid != id.server_uuid || file.database != id.database {
            return Err(foreign);
        }
        let alh = file.alh.parse::<Digest>().map_err(|_| foreign)?;
        Ok(Some(TrustedState { database: file.database, tx: TxId(file.tx), alh }))
    }

    fn write(&self, id: &StateId, path: &Path, state: &TrustedState) -> Result<(), StateError> {
        let file = StateFile {
            format: FORMAT,
            server_uuid: id.server_uuid.clone(),
            database: state.database.clone(),
            tx: state.tx.get(),
            alh: state.alh.to_string(),
        };
        let mut json = serde_json::to_vec_pretty(&file).expect("a struct of texts and numbers is JSON");
        json.push(b'\n');
        let temporary = path.with_extension("tmp");
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&json)?;
            file.sync_data()
        });
        written.map_err(io_error("writing", &temporary))?;
        fs::rename(&temporary, path).map_err(io_error("replacing", path))
    }
}

impl StateStore for FileStateStore {
    /// Needs no lock: a rename shows the old file or the new one.
    fn load(&self, id: &StateId) -> Result<Option<TrustedState>, StateError> {
        self.read(id, &self.path(id))
    }

    fn advance(
        &self,
        id: &StateId,
        expected: Option<&TrustedState>,
        new: &TrustedState,
    ) -> Result<Advanced, StateError> {
        check_forward(expected, new)?;
        let path = self.path(id);
        let _lock = self.lock(&path)?;
        match self.read(id, &path)? {
            Some(found) if Some(&found) != expected => return Ok(Advanced::Changed(found)),
            Some(found) if found == *new => return Ok(Advanced::Stored),
            _ => {}
        }
        self.write(id, &path, new)?;
        Ok(Advanced::Stored)
    }

    fn keep_evidence(&self, evidence: &Evidence) -> Result<Option<PathBuf>, StateError> {
        let mut json = serde_json::to_vec_pretty(evidence).expect("a struct of texts and numbers is JSON");
        json.push(b'\n');
        let stem = format!("evidence-{}-{}", file_name_part(&evidence.server_uuid), file_name_part(&evidence.database));
        for number in 1_u64.. {
            let path = self.dir.join(format!("{stem}-{number}.json"));
            match OpenOptions::new().create_new(true).write(true).open(&path) {
                Ok(mut file) => {
                    let written = file.write_all(&json).and_then(|()| file.sync_all());
                    written.map_err(io_error("writing", &path))?;
                    return Ok(Some(path));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error("creating", &path)(error)),
            }
        }
        Ok(None)
    }
}
