//! Signs states, so that a client that knows the public key can hold the server to what it has shown.
//!
//! ECDSA over P-256 with SHA-256; nonces are derived from key and message (RFC 6979), so signing needs no randomness. Only
//! committed states may be signed.

use std::path::{Path, PathBuf};

use alhambra_ledger::state::TrustedState;
use alhambra_proto::schema;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use p256::SecretKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::DecodePrivateKey;

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The file cannot be read.
    #[error("the signing key {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not such a key.
    #[error(
        "{} is not a P-256 private key in PEM; `openssl ecparam -name prime256v1 -genkey -noout` makes one",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
}

/// Holds the key.
pub struct Signer {
    key: SigningKey,
    public_key: Bytes,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the key, SEC1 or PKCS#8.
    pub fn open(path: &Path) -> Result<Self, SignerError> {
        let pem = std::fs::read_to_string(path)
            .map_err(|source| SignerError::Unreadable { path: path.to_owned(), source })?;
        Self::from_pem(&pem).ok_or_else(|| SignerError::NoKey { path: path.to_owned() })
    }

    /// The key in a PEM text, which may have other parts (`openssl` writes the curve's parameters before it) and lines of
    /// any length.
    pub fn from_pem(pem: &str) -> Option<Self> {
        let secret = match section(pem, "EC PRIVATE KEY") {
            Some(der) => SecretKey::from_sec1_der(&der).ok(),
            None => SecretKey::from_pkcs8_der(&section(pem, "PRIVATE KEY")?).ok(),
        }?;
        let key = SigningKey::from(secret);
        let public_key = Bytes::copy_from_slice(key.verifying_key().to_sec1_point(false).as_bytes());
        Some(Self { key, public_key })
    }

    /// Signs a committed state.
    pub fn sign(&self, state: &TrustedState) -> schema::Signature {
        let bytes = state.signed_bytes().expect("database names are shorter than 4 GiB");
        let signature: DerSignature = self.key.sign(&bytes);
        schema::Signature {
            public_key: self.public_key.clone(),
            signature: Bytes::copy_from_slice(signature.as_bytes()),
        }
    }
}

/// The bytes of the first part of a PEM text that has this label.
fn section(pem: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}

#[cfg(test)]
mod tests {
    use alhambra_ledger::digest::sha256;
    use alhambra_ledger::ids::TxId;
    use p256::ecdsa::VerifyingKey;
    use p256::ecdsa::signature::Verifier as _;

    use super::*;

    /// Made for this test with `openssl ecparam -name prime256v1 -genkey`, parameters included.
    const PEM: &str = include_str!("../testdata/signing_key.pem");

    #[test]
    fn a_signature_verifies_with_the_public_key_over_exactly_this_state() {
        let signer = Signer::from_pem(PEM).unwrap();
        let state = TrustedState { database: "defaultdb".into(), tx: TxId(7), alh: sha256(b"7") };
        let signed = signer.sign(&state);
        assert_eq!((signed.public_key.len(), signed.public_key[0]), (65, 4));
        let key = VerifyingKey::from_sec1_bytes(&signed.public_key).unwrap();
        let signature = DerSignature::try_from(&signed.signature[..]).unwrap();
        key.verify(&state.signed_bytes().unwrap(), &signature).unwrap();
        let other = TrustedState { tx: TxId(8), ..state };
        assert!(key.verify(&other.signed_bytes().unwrap(), &signature).is_err());
    }

    #[test]
    fn lines_may_have_any_length() {
        let (begin, rest) = PEM.split_once("-----BEGIN EC PRIVATE KEY-----").unwrap();
        let (body, _) = rest.split_once("-----END").unwrap();
        let one_line: String = body.split_whitespace().collect();
        let pem = format!("{begin}-----BEGIN EC PRIVATE KEY-----\n{one_line}\n-----END EC PRIVATE KEY-----\n");
        assert_eq!(Signer::from_pem(&pem).unwrap().public_key, Signer::from_pem(PEM).unwrap().public_key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(Signer::from_pem("").is_none());
        assert!(Signer::from_pem(&PEM.replace("EC PRIVATE KEY", "PRIVATE KEY")).is_none());
        let error = Signer::open(Path::new("/nonexistent/key.pem")).unwrap_err();
        assert!(matches!(error, SignerError::Unreadable { .. }));
    }
}
