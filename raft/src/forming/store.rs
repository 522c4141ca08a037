//! The files `identity` and `promise` of the data folder (`docs/format.md`, "identity and promise").
//!
//! Each is one line of JSON and a line with its CRC-32C in hexadecimal; written beside, synced, renamed.

use std::io;
use std::path::{Path, PathBuf};

use alhambra_storage::vfs::{OpenMode, Vfs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::machine::{Durable, Proposal};
use super::{FORMAT, FormError, Identity};

const IDENTITY: &str = "identity";
const PROMISE: &str = "promise";

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    format: u32,
    record: T,
}

#[derive(Serialize, Deserialize)]
struct PromiseFile {
    /// The node that wrote this proposed it; otherwise it promised.
    initiator: bool,
    proposal: Proposal,
}

/// Reads what a node has decided so far.
pub fn load(vfs: &dyn Vfs, dir: &Path) -> Result<Durable, FormError> {
    if let Some(identity) = read::<Identity>(vfs, &dir.join(IDENTITY))? {
        return Ok(Durable::Formed(identity));
    }
    Ok(match read::<PromiseFile>(vfs, &dir.join(PROMISE))? {
        None => Durable::Free,
        Some(file) if file.initiator => Durable::Collecting(file.proposal),
        Some(file) => Durable::Promised(file.proposal),
    })
}

/// Makes a decision durable.
pub fn save(vfs: &dyn Vfs, dir: &Path, durable: &Durable) -> Result<(), FormError> {
    match durable {
        Durable::Free => remove(vfs, dir, PROMISE),
        Durable::Collecting(proposal) => {
            write(vfs, dir, PROMISE, &PromiseFile { initiator: true, proposal: proposal.clone() })
        }
        Durable::Promised(proposal) => {
            write(vfs, dir, PROMISE, &PromiseFile { initiator: false, proposal: proposal.clone() })
        }
        Durable::Formed(identity) => {
            write(vfs, dir, IDENTITY, identity)?;
            // From here on the promise means nothing; a crash in between leaves a file that `load` does not look at.
            remove(vfs, dir, PROMISE)
        }
    }
}

/// Takes a promise back: the operator's command, on a node that is stopped. Answers the cluster it was given to.
///
/// Dangerous when that cluster exists or can still be formed: this node could then become a member of two.
pub fn release_promise(vfs: &dyn Vfs, dir: &Path) -> Result<Option<String>, FormError> {
    let lock = dir.join("LOCK");
    let _guard = vfs.lock(&lock).map_err(|source| FormError::Io { path: lock, source })?;
    match load(vfs, dir)? {
        Durable::Promised(proposal) | Durable::Collecting(proposal) => {
            remove(vfs, dir, PROMISE)?;
            Ok(Some(proposal.cluster))
        }
        Durable::Free | Durable::Formed(_) => Ok(None),
    }
}

fn read<T: DeserializeOwned>(vfs: &dyn Vfs, path: &Path) -> Result<Option<T>, FormError> {
    let io = |source| FormError::Io { path: path.to_owned(), source };
    let damaged = || FormError::Damaged { path: path.to_owned() };
    let file = match vfs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let len = usize::try_from(file.len().map_err(io)?).map_err(|_| damaged())?;
    let bytes = file.read_at(0, len).map_err(io)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged())?;
    let (json, sum) = text.strip_suffix('\n').and_then(|text| text.split_once('\n')).ok_or_else(damaged)?;
    if sum != format!("{:08x}", crc32c::crc32c(json.as_bytes())) {
        return Err(damaged());
    }
    let versioned: Versioned<T> = serde_json::from_str(json).map_err(|_| damaged())?;
    if versioned.format != FORMAT {
        return Err(damaged());
    }
    Ok(Some(versioned.record))
}

fn write<T: Serialize>(vfs: &dyn Vfs, dir: &Path, name: &str, content: &T) -> Result<(), FormError> {
    let path = dir.join(name);
    let json =
        serde_json::to_string(&Versioned { format: FORMAT, record: content }).expect("plain records become JSON");
    let text = format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes()));
    let beside = dir.join(format!("{name}.new"));
    let steps = || {
        let file = vfs.open(&beside, OpenMode::Create)?;
        file.set_len(0)?;
        file.write_at(0, text.as_bytes())?;
        file.sync_data()?;
        drop(file);
        vfs.rename(&beside, &path)?;
        vfs.sync_dir(dir)
    };
    steps().map_err(|source| FormError::Io { path: path.clone(), source })
}

fn remove(vfs: &dyn Vfs, dir: &Path, name: &str) -> Result<(), FormError> {
    let path: PathBuf = dir.join(name);
    let steps = || {
        if vfs.exists(&path)? {
            vfs.remove_file(&path)?;
            vfs.sync_dir(dir)?;
        }
        Ok(())
    };
    steps().map_err(|source: io::Error| FormError::Io { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use alhambra_storage::vfs::mem::MemVfs;

    use super::*;

    fn proposal() -> Proposal {
        let members = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        Proposal { cluster: "9m4e2mr0ui3e8a215n4g".to_owned(), members }
    }

    #[test]
    fn every_decision_is_read_back_and_a_damaged_one_is_noticed() {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let dir = Path::new("/data");
        vfs.create_dir_all(dir).unwrap();
        assert_eq!(load(&*vfs, dir).unwrap(), Durable::Free);
        let identity = Identity { cluster: proposal().cluster, node_id: 2, members: proposal().members, initiator: 1 };
        for durable in
            [Durable::Collecting(proposal()), Durable::Free, Durable::Promised(proposal()), Durable::Formed(identity)]
        {
            save(&*vfs, dir, &durable).unwrap();
            assert_eq!(load(&*vfs, dir).unwrap(), durable);
        }
        let file = vfs.open(&dir.join(IDENTITY), OpenMode::ReadWrite).unwrap();
        let len = file.len().unwrap();
        let text = file.read_at(0, len as usize).unwrap();
        assert_eq!(
            std::str::from_utf8(&text).unwrap(),
            "{\"format\":1,\"record\":{\"cluster\":\"9m4e2mr0ui3e8a215n4g\",\"node_id\":2,\
             \"members\":{\"1\":\"a:1\",\"2\":\"b:1\"},\"initiator\":1}}\nb9ef8051\n"
        );
        for at in 0..len {
            let byte = text[at as usize];
            file.write_at(at, &[byte ^ 1]).unwrap();
            assert!(matches!(load(&*vfs, dir), Err(FormError::Damaged { .. })), "byte {at}");
            file.write_at(at, &[byte]).unwrap();
        }
        assert!(load(&*vfs, dir).is_ok());
    }

    #[test]
    fn only_the_operator_takes_a_promise_back_and_never_an_identity() {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let dir = Path::new("/data");
        vfs.create_dir_all(dir).unwrap();
        save(&*vfs, dir, &Durable::Promised(proposal())).unwrap();
        let running = vfs.lock(&dir.join("LOCK")).unwrap();
        assert!(release_promise(&*vfs, dir).is_err(), "the node runs");
        drop(running);
        assert_eq!(release_promise(&*vfs, dir).unwrap(), Some(proposal().cluster));
        assert_eq!(load(&*vfs, dir).unwrap(), Durable::Free);
        let identity = Identity { cluster: proposal().cluster, node_id: 2, members: proposal().members, initiator: 1 };
        save(&*vfs, dir, &Durable::Formed(identity.clone())).unwrap();
        assert_eq!(release_promise(&*vfs, dir).unwrap(), None);
        assert_eq!(load(&*vfs, dir).unwrap(), Durable::Formed(identity));
    }
}
