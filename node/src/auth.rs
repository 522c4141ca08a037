//! Who a caller is and what it may do: password hashes (Argon2id), and the one function that compares a user's permission
//! with what a call needs. Sessions and tokens are in [`crate::session`].

use std::collections::HashSet;

use alhambra_ledger::digest::{Digest, sha256_parts};
use alhambra_raft::env::Env;
use alhambra_raft::meta::{ADMIN_USER, User};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use parking_lot::Mutex;

use crate::method::Right;

/// Permission numbers of the protocol.
pub mod permission {
    /// Reads.
    pub const READ: u32 = 1;
    /// Reads and writes.
    pub const WRITE: u32 = 2;
    /// Administrates one database.
    pub const ADMIN: u32 = 254;
    /// Administrates everything.
    pub const SYSADMIN: u32 = 255;
}

/// Key of a user's permissions that stands for every database.
pub const EVERY_DATABASE: &str = "*";

const SALT_LEN: usize = 16;
const HASH_LEN: usize = 32;

/// What one password hash costs. Stored with each hash, so it may be changed at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashCost {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl HashCost {
    fn hasher(self) -> Option<Argon2<'static>> {
        let params = Params::new(self.memory_kib, self.passes, 1, Some(HASH_LEN)).ok()?;
        Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }
}

/// Hashes a password, PHC string format. Slow by intent: not for async threads.
///
/// # Panics
/// When the cost is outside the range that the configuration allows.
pub fn hash_password(password: &[u8], cost: HashCost, salt: [u8; SALT_LEN]) -> String {
    let mut hash = [0; HASH_LEN];
    let hasher = cost.hasher().expect("the configuration checks the cost");
    hasher.hash_password_into(password, &salt, &mut hash).expect("lengths are fixed and there is memory");
    format!(
        "$argon2id$v=19$m={},t={},p=1${}${}",
        cost.memory_kib,
        cost.passes,
        STANDARD_NO_PAD.encode(salt),
        STANDARD_NO_PAD.encode(hash)
    )
}

/// Whether the password has this hash; false for a hash that is none of ours. Slow by intent: not for async threads.
pub fn verify_password(password: &[u8], hash: &str) -> bool {
    let Some((cost, salt, expected)) = parse_hash(hash) else { return false };
    let mut actual = [0; HASH_LEN];
    let Some(hasher) = cost.hasher() else { return false };
    if hasher.hash_password_into(password, &salt, &mut actual).is_err() {
        return false;
    }
    // Every byte is looked at, so the time says nothing about where they differ.
    expected.iter().zip(actual).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn parse_hash(hash: &str) -> Option<(HashCost, Vec<u8>, [u8; HASH_LEN])> {
    let rest = hash.strip_prefix("$argon2id$v=19$m=")?;
    let (memory, rest) = rest.split_once(",t=")?;
    let (passes, rest) = rest.split_once(",p=1$")?;
    let (salt, hash) = rest.split_once('$')?;
    let cost = HashCost { memory_kib: memory.parse().ok()?, passes: passes.parse().ok()? };
    Some((cost, STANDARD_NO_PAD.decode(salt).ok()?, STANDARD_NO_PAD.decode(hash).ok()?.try_into().ok()?))
}

/// Remembers which password had which hash, so that the many sessions of one program cost one slow comparison.
///
/// What is kept is a digest of both with a key that only this process has; a wrong password is never remembered.
#[derive(Debug)]
pub struct Proven {
    key: [u8; 32],
    digests: Mutex<HashSet<Digest>>,
}

/// Passwords that are remembered, at most; then all are forgotten.
const PROVEN_MAX: usize = 1024;

impl Proven {
    /// Nothing yet. `key` must be random.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, digests: Mutex::default() }
    }

    fn digest(&self, password: &[u8], hash: &str) -> Digest {
        // A hash has no zero byte, so the two parts cannot be mistaken for others.
        sha256_parts(&[&self.key, hash.as_bytes(), &[0], password])
    }

    /// Whether the password is known to have this hash. Fast.
    pub fn knows(&self, password: &[u8], hash: &str) -> bool {
        self.digests.lock().contains(&self.digest(password, hash))
    }

    /// As [`verify_password`], fast when it was asked before.
    pub fn verify(&self, password: &[u8], hash: &str) -> bool {
        if self.knows(password, hash) {
            return true;
        }
        let matches = verify_password(password, hash);
        if matches {
            let mut digests = self.digests.lock();
            if digests.len() >= PROVEN_MAX {
                digests.clear();
            }
            digests.insert(self.digest(password, hash));
        }
        matches
    }
}

/// Random bytes of a fixed number.
pub fn random<const N: usize>(env: &Env) -> [u8; N] {
    let mut out = [0; N];
    env.rng.fill(&mut out);
    out
}

/// A password that a person can copy: 24 letters and digits, about 142 bits.
pub fn generate_password(env: &Env) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";
    let mut out = String::with_capacity(24);
    while out.len() < 24 {
        for byte in random::<32>(env) {
            // Bytes past the last whole multiple of the alphabet would make some letters likelier.
            let usable = 256 / ALPHABET.len() * ALPHABET.len();
            if usize::from(byte) < usable && out.len() < 24 {
                out.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            }
        }
    }
    out
}

/// The first administrator.
pub fn first_user(password_hash: String, now_ms: i64) -> User {
    User {
        name: ADMIN_USER.to_owned(),
        password: password_hash,
        permissions: [(EVERY_DATABASE.to_owned(), permission::SYSADMIN)].into(),
        sql_privileges: Default::default(),
        active: true,
        created_by: ADMIN_USER.to_owned(),
        created_at_ms: now_ms,
    }
}

/// Whether the user administrates everything.
pub fn is_sysadmin(user: &User) -> bool {
    user.permissions.get(EVERY_DATABASE) == Some(&permission::SYSADMIN)
}

/// The user's permission in a database, in the numbers of the protocol; 0 for none.
pub fn permission_in(user: &User, database: &str) -> u32 {
    let everywhere = user.permissions.get(EVERY_DATABASE).copied().unwrap_or(0);
    everywhere.max(user.permissions.get(database).copied().unwrap_or(0))
}

/// Whether a permission number includes a right. Unknown numbers include none.
pub const fn includes(number: u32, right: Right) -> bool {
    match number {
        permission::READ => matches!(right, Right::Read),
        permission::WRITE => matches!(right, Right::Read | Right::Write),
        permission::ADMIN | permission::SYSADMIN => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: HashCost = HashCost { memory_kib: 8, passes: 1 };

    #[test]
    fn hashes_verify_and_tell_their_cost() {
        let hash = hash_password(b"secret", CHEAP, [7; 16]);
        assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
        assert!(verify_password(b"secret", &hash));
        assert!(!verify_password(b"secreT", &hash) && !verify_password(b"", &hash));
        assert_ne!(hash, hash_password(b"secret", CHEAP, [8; 16]));
        let dearer = hash_password(b"secret", HashCost { memory_kib: 16, passes: 2 }, [7; 16]);
        assert!(verify_password(b"secret", &dearer));
    }

    #[test]
    fn only_right_passwords_are_remembered_and_only_for_their_hash() {
        let proven = Proven::new([1; 32]);
        let (hash, other) = (hash_password(b"secret", CHEAP, [7; 16]), hash_password(b"secret", CHEAP, [8; 16]));
        assert!(!proven.verify(b"wrong", &hash) && !proven.knows(b"wrong", &hash));
        assert!(!proven.knows(b"secret", &hash));
        assert!(proven.verify(b"secret", &hash) && proven.knows(b"secret", &hash));
        assert!(!proven.knows(b"secret", &other) && !proven.knows(b"wrong", &hash));
        assert!(proven.verify(b"secret", &hash));
    }

    #[test]
    fn hashes_of_another_form_verify_nothing() {
        let hash = hash_password(b"secret", CHEAP, [7; 16]);
        for bad in [
            "",
            "secret",
            "$2b$10$abc",
            &hash[..hash.len() - 1],
            &hash.replace("m=8", "m=0"),
            &hash.replace("p=1", "p=2"),
        ] {
            assert!(!verify_password(b"secret", bad), "{bad}");
        }
    }

    #[test]
    fn rights_of_each_permission() {
        for (number, read, write, admin) in [
            (0, false, false, false),
            (permission::READ, true, false, false),
            (permission::WRITE, true, true, false),
            (permission::ADMIN, true, true, true),
            (permission::SYSADMIN, true, true, true),
            (3, false, false, false),
        ] {
            let rights = [Right::Read, Right::Write, Right::Admin].map(|right| includes(number, right));
            assert_eq!(rights, [read, write, admin], "{number}");
        }
    }

    #[test]
    fn permissions_are_per_database_unless_for_all() {
        let mut user = first_user(String::new(), 0);
        assert!(is_sysadmin(&user));
        assert_eq!(permission_in(&user, "any"), permission::SYSADMIN);
        user.permissions = [("a".to_owned(), permission::READ)].into();
        assert!(!is_sysadmin(&user));
        assert_eq!((permission_in(&user, "a"), permission_in(&user, "b")), (permission::READ, 0));
    }
}
