//! The key with which a node signs the sessions and tokens that it makes: ECDSA over P-256 with SHA-256.
//!
//! The secret is in the file `session.key` of the data folder, which only its owner may read, and nowhere else; the public key
//! stands in the node's record in `systemdb`. A node that has lost the file makes a new key: what it has signed before is void
//! then, and nothing else.

use std::io;
use std::path::{Path, PathBuf};

use alhambra_ledger::digest::sha256;
use alhambra_raft::env::Env;
use alhambra_raft::meta::SESSION_KEY_LEN;
use alhambra_storage::vfs::{OpenMode, Vfs};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};

use crate::auth::random;

/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = 64;
/// Name of the file in the data folder.
pub const FILE: &str = "session.key";
/// First line of the file.
const HEAD: &str = "alhambra session key 1";

/// First bytes of the SHA-256 of a public key.
pub type KeyId = [u8; 8];
/// A public key, as the point's compressed form.
pub type PublicKey = [u8; SESSION_KEY_LEN];

/// The key cannot be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("the file {} cannot be used", path.display())]
pub struct KeyError {
    /// The file.
    path: PathBuf,
    /// What the system says.
    #[source]
    source: io::Error,
}

/// The key of this node.
pub struct NodeKey {
    key: SigningKey,
    public_key: PublicKey,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl NodeKey {
    /// The key in the data folder; made when there is none, or none that is whole.
    pub fn open(env: &Env, dir: &Path) -> Result<Self, KeyError> {
        let path = dir.join(FILE);
        let unusable = |source| KeyError { path: path.clone(), source };
        if let Some(text) = read(&*env.vfs, &path).map_err(unusable)? {
            if let Some(key) = Self::from_text(&text) {
                return Ok(key);
            }
            tracing::error!(path = %path.display(), "the key of sessions is damaged: a new one is made, and whoever has logged in \
                through this node has to log in again");
        }
        let (secret, key) = loop {
            // One number of four thousand million is no key.
            let secret = random(env);
            if let Some(key) = Self::from_secret(&secret) {
                break (secret, key);
            }
        };
        write(&*env.vfs, dir, &path, &key.to_text(&secret)).map_err(unusable)?;
        Ok(key)
    }

    /// The key with this secret number; none when it is out of range.
    pub fn from_secret(secret: &[u8; 32]) -> Option<Self> {
        let key = SigningKey::from_slice(secret).ok()?;
        let public_key = key.verifying_key().to_sec1_point(true).as_bytes().try_into().ok()?;
        Some(Self { key, public_key })
    }

    /// The public key.
    pub const fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Which key it is.
    pub fn id(&self) -> KeyId {
        key_id(&self.public_key)
    }

    /// Signs. Of the two signatures that are valid the one with the smaller number. Takes no randomness (RFC 6979).
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let signature: Signature = self.key.sign(message);
        signature.normalize_s().to_bytes().into()
    }

    fn to_text(&self, secret: &[u8; 32]) -> String {
        format!("{HEAD}\n{}\n{}\n", hex(secret), hex(&self.public_key))
    }

    /// The public key in the file shows that the secret is whole.
    fn from_text(text: &str) -> Option<Self> {
        let (secret, public_key) = text.strip_prefix(HEAD)?.strip_prefix('\n')?.strip_suffix('\n')?.split_once('\n')?;
        let key = Self::from_secret(&unhex(secret)?)?;
        (hex(&key.public_key) == public_key).then_some(key)
    }
}

/// Which key it is.
pub fn key_id(public_key: &PublicKey) -> KeyId {
    *sha256(public_key).0.first_chunk().expect("a digest is longer")
}

/// Whether the holder of the public key has made this signature of the message. The larger of the two valid ones is none.
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
    let (Ok(key), Ok(signature)) = (VerifyingKey::from_sec1_bytes(public_key), Signature::from_slice(signature)) else {
        return false;
    };
    signature.normalize_s() == signature && key.verify(message, &signature).is_ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn read(vfs: &dyn Vfs, path: &Path) -> io::Result<Option<String>> {
    let file = match vfs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // What is longer is damaged anyhow.
    let len = usize::try_from(file.len()?.min(1024)).expect("small");
    Ok(Some(String::from_utf8_lossy(&file.read_at(0, len)?).into_owned()))
}

fn write(vfs: &dyn Vfs, dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let beside = dir.join(format!("{FILE}.new"));
    if vfs.exists(&beside)? {
        vfs.remove_file(&beside)?;
    }
    let file = vfs.open(&beside, OpenMode::CreatePrivate)?;
    file.write_at(0, text.as_bytes())?;
    file.sync_data()?;
    drop(file);
    vfs.rename(&beside, path)?;
    vfs.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alhambra_storage::vfs::mem::MemVfs;
    use alhambra_storage::vfs::os::OsVfs;

    use super::*;

    fn env(vfs: impl Vfs + 'static) -> Env {
        Env::production(Arc::new(vfs))
    }

    #[test]
    fn a_key_is_made_once_and_damage_makes_another() {
        let disk = MemVfs::new();
        let env = env(disk.clone());
        let dir = Path::new("/data");
        disk.create_dir_all(dir).unwrap();
        let made = NodeKey::open(&env, dir).unwrap();
        let signature = made.sign(b"message");
        assert!(
            verify(&made.public_key(), b"message", &signature) && !verify(&made.public_key(), b"other", &signature)
        );
        assert_eq!(NodeKey::open(&env, dir).unwrap().public_key(), made.public_key());
        assert!(!disk.exists(&dir.join("session.key.new")).unwrap());

        let text = read(&disk, &dir.join(FILE)).unwrap().unwrap();
        for at in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] ^= 1;
            assert!(NodeKey::from_text(&String::from_utf8(altered).unwrap()).is_none(), "byte {at}");
            assert!(NodeKey::from_text(&text[..at]).is_none(), "{at} bytes");
        }
        let file = disk.open(&dir.join(FILE), OpenMode::ReadWrite).unwrap();
        file.set_len(40).unwrap();
        drop(file);
        // A crash may have left a new file that was never named.
        drop(disk.open(&dir.join("session.key.new"), OpenMode::CreateNew).unwrap());
        let other = NodeKey::open(&env, dir).unwrap();
        assert_ne!(other.public_key(), made.public_key());
        assert_eq!(NodeKey::open(&env, dir).unwrap().public_key(), other.public_key());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        NodeKey::open(&env(OsVfs), dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
