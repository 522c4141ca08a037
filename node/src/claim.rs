//! What a session id and a token say, and their bytes (`docs/format.md`, "Session ids and tokens").
//!
//! A claim is signed by the node that made it, its owner; every node can verify it with the public key in the owner's record.
//! To clients it is opaque text. One claim has exactly one text: what differs in any character is another claim, or none.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_raft::meta::SessionId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::keys::{KeyId, NodeKey, SIGNATURE_LEN, verify};

const VERSION: u8 = 1;
/// Longest text that is looked at, characters. The longest that is made has 420.
const TEXT_LEN_MAX: usize = 1023;
/// Bytes before the names: version, kind, id, owner, key, issued, expires, epoch.
const FIXED_LEN: usize = 2 + 16 + 8 + 8 + 8 + 8 + 8;
/// What is signed begins with this, so that a signature means nothing elsewhere.
const DOMAIN: &[u8] = b"alhambra claim\0";

/// What a claim is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A session, which its owner holds.
    Session,
    /// A token, which nobody holds.
    Token,
    /// As a token, for whoever shows it: only nodes in maintenance mode make and take it.
    Anonymous,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Session => 1,
            Self::Token => 2,
            Self::Anonymous => 3,
        }
    }
}

/// What a node claims of a session or a token that it has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Session or token.
    pub kind: Kind,
    /// Random.
    pub id: SessionId,
    /// The node that made it.
    pub owner: u64,
    /// The key that it was signed with.
    pub key: KeyId,
    /// When it was made, milliseconds since 1970-01-01 UTC.
    pub issued_ms: i64,
    /// When it ends, milliseconds since 1970-01-01 UTC; 0 for never.
    pub expires_ms: i64,
    /// The `systemdb` transaction that it rests on: a session on the one that wrote its user's record; a token on that one, or
    /// on the one that last ended all tokens of the user, whichever is later. A later one ends it.
    pub epoch: TxId,
    /// The user.
    pub user: String,
    /// The database that was selected first; none for none.
    pub database: Option<Arc<str>>,
}

/// Part of the text of a claim that no other claim has, for tables of them.
pub type Slot = [u8; 20];

/// The slot of a text; none when it is too short to be a claim. 120 bits of the random id.
pub fn slot(text: &str) -> Option<Slot> {
    text.as_bytes().get(4..24)?.try_into().ok()
}

/// The slot of claims with this id.
pub fn slot_of(id: &SessionId) -> Slot {
    let mut slot = [0; 20];
    URL_SAFE_NO_PAD.encode_slice(&id[1..], &mut slot).expect("fifteen bytes are twenty characters");
    slot
}

impl Claim {
    /// Whether it has ended by its own words.
    pub const fn is_over(&self, now_ms: i64) -> bool {
        self.expires_ms != 0 && self.expires_ms <= now_ms
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_LEN + 2 + self.user.len() + 64 + SIGNATURE_LEN);
        out.extend([VERSION, self.kind.number()]);
        out.extend(self.id);
        out.extend(self.owner.to_be_bytes());
        out.extend(self.key);
        out.extend(self.issued_ms.to_be_bytes());
        out.extend(self.expires_ms.to_be_bytes());
        out.extend(self.epoch.get().to_be_bytes());
        for name in [self.user.as_str(), self.database.as_deref().unwrap_or_default()] {
            out.push(u8::try_from(name.len()).expect("names of users and databases are shorter"));
            out.extend(name.as_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        let [VERSION, kind] = input.array()? else { return None };
        let kind = [Kind::Session, Kind::Token, Kind::Anonymous].into_iter().find(|known| known.number() == kind)?;
        let (id, owner, key) = (input.array()?, u64::from_be_bytes(input.array()?), input.array()?);
        let (issued_ms, expires_ms) = (i64::from_be_bytes(input.array()?), i64::from_be_bytes(input.array()?));
        let epoch = TxId(u64::from_be_bytes(input.array()?));
        let (user, database) = (input.name()?, input.name()?);
        let database = (!database.is_empty()).then(|| database.into());
        input.0.is_empty().then(|| Self {
            kind,
            id,
            owner,
            key,
            issued_ms,
            expires_ms,
            epoch,
            user: user.to_owned(),
            database,
        })
    }

    /// Signs it with the owner's key; answers the text.
    pub fn sign(&self, key: &NodeKey) -> String {
        let mut bytes = self.encode();
        let signature = key.sign(&[DOMAIN, &bytes].concat());
        bytes.extend(signature);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Takes a text apart; the signature is not looked at. None for what is no claim.
    pub fn read(text: &str) -> Option<Unverified> {
        if text.len() > TEXT_LEN_MAX {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let end = bytes.len().checked_sub(SIGNATURE_LEN)?;
        let signature = bytes.get(end..)?.try_into().ok()?;
        bytes.truncate(end);
        let claim = Self::decode(&bytes)?;
        Some(Unverified { claim, bytes, signature })
    }
}

/// A claim that anybody may have written.
#[derive(Clone, Debug)]
pub struct Unverified {
    /// What it says.
    pub claim: Claim,
    bytes: Vec<u8>,
    signature: [u8; SIGNATURE_LEN],
}

impl Unverified {
    /// Whether the holder of this public key has signed it.
    pub fn is_signed_by(&self, public_key: &[u8]) -> bool {
        verify(public_key, &[DOMAIN, &self.bytes].concat(), &self.signature)
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn name(&mut self) -> Option<&'a str> {
        let [len] = self.array()?;
        let (head, tail) = self.0.split_at_checked(usize::from(len))?;
        self.0 = tail;
        std::str::from_utf8(head).ok()
    }
}

#[cfg(test)]
mod tests {
    use alhambra_fuzz::{Decoded, Target};

    use super::*;

    fn key() -> NodeKey {
        NodeKey::from_secret(&[7; 32]).unwrap()
    }

    fn claim() -> Claim {
        Claim {
            kind: Kind::Session,
            id: [0x11; 16],
            owner: 2,
            key: key().id(),
            issued_ms: 1_700_000_000_000,
            expires_ms: 0,
            epoch: TxId(9),
            user: "eve".into(),
            database: Some("orders".into()),
        }
    }

    /// The golden bytes of `docs/format.md`.
    #[test]
    fn claims_have_a_fixed_form() {
        let hex: String = claim().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "01",
                "01",
                "11111111111111111111111111111111",
                "0000000000000002",
                "341b2be0bed75e27",
                "0000018bcfe56800",
                "0000000000000000",
                "0000000000000009",
                "03",
                "657665",
                "06",
                "6f7264657273"
            )
        );
        let text = claim().sign(&key());
        assert_eq!(
            text,
            concat!(
                "AQERERERERERERERERERERERAAAAAAAAAAI0GyvgvtdeJwAAAYvP5WgAAAAAAAAAAAAAAAAAAAAACQNldmUGb3JkZXJzvXtok8",
                "SR_cxf6kVn0LQXLF4-2QS-cW1Bxwx5_44ZSVtjnBlGbxznSynGImP7bN9jfaSRNGGQA_nOmdXX0mFFFQ"
            )
        );
        assert_eq!(claim().sign(&key()), text, "signing takes no randomness");
        let read = Claim::read(&text).unwrap();
        assert!(read.claim == claim() && read.is_signed_by(&key().public_key()));
        assert!(!read.is_signed_by(&NodeKey::from_secret(&[8; 32]).unwrap().public_key()));
    }

    #[test]
    fn every_field_is_read_back_and_the_longest_fits_into_a_header() {
        let token = Claim {
            kind: Kind::Token,
            id: [0xfe; 16],
            owner: u64::MAX,
            issued_ms: -1,
            expires_ms: i64::MAX,
            epoch: TxId(u64::MAX),
            user: "u".repeat(63),
            database: Some("d".repeat(128).into()),
            ..claim()
        };
        let nothing = Claim { kind: Kind::Token, user: String::new(), database: None, ..claim() };
        for claim in [token, nothing] {
            let text = claim.sign(&key());
            assert!(text.len() < 512 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            assert_eq!(Claim::read(&text).unwrap().claim, claim);
        }
    }

    #[test]
    fn slots_differ_with_the_random_id_and_with_nothing_else() {
        let of = |claim: &Claim| slot(&claim.sign(&key())).unwrap();
        let first = of(&claim());
        for byte in 1..16 {
            let mut other = claim();
            other.id[byte] ^= 1;
            assert_ne!(of(&other), first, "byte {byte}");
            assert_eq!(of(&other), slot_of(&other.id));
        }
        assert_eq!(of(&Claim { user: "other".into(), epoch: TxId(1), ..claim() }), first);
        assert_eq!(slot("short"), None);
    }

    #[test]
    fn an_altered_cut_or_prolonged_claim_is_none() {
        let text = claim().sign(&key());
        let bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        let accepted = |text: &str| Claim::read(text).is_some_and(|read| read.is_signed_by(&key().public_key()));
        assert!(accepted(&text));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut altered = bytes.clone();
                altered[at] ^= 1 << bit;
                assert!(!accepted(&URL_SAFE_NO_PAD.encode(&altered)), "byte {at} bit {bit}");
            }
        }
        for len in 0..text.len() {
            assert!(!accepted(&text[..len]), "{len} characters");
        }
        for at in 0..text.len() {
            for other in ["=", " ", "+", "ä", ""] {
                assert!(!accepted(&format!("{}{other}{}", &text[..at], &text[at + 1..])), "{other:?} at {at}");
            }
        }
        for suffix in ["A", "AA", "AAAA", "="] {
            assert!(!accepted(&format!("{text}{suffix}")), "{suffix}");
        }
        assert!(Claim::read(&"A".repeat(TEXT_LEN_MAX + 1)).is_none());
    }

    #[test]
    fn fuzz_claims() {
        let decode = |bytes: &[u8]| match std::str::from_utf8(bytes).ok().and_then(Claim::read) {
            Some(read) => {
                let mut all = read.claim.encode();
                all.extend(read.signature);
                Decoded::Canonical(URL_SAFE_NO_PAD.encode(all).into_bytes())
            }
            None => Decoded::Refused,
        };
        let token = Claim { kind: Kind::Token, database: None, user: "ü".into(), ..claim() };
        let corpus = [claim(), token].map(|claim| claim.sign(&key()).into_bytes()).into();
        Target { name: "claim", corpus, seal: &|_| {}, memory: (4096, 8), decode: &decode }.run();
    }

    /// ECDSA has a second valid signature for each: with it one claim would have two texts.
    #[test]
    fn the_other_signature_of_the_same_claim_is_refused() {
        use p256::ecdsa::Signature;
        let text = claim().sign(&key());
        let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        let at = bytes.len() - SIGNATURE_LEN;
        let signature = Signature::from_slice(&bytes[at..]).unwrap();
        let (r, s) = signature.split_scalars();
        let other = Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
        bytes[at..].copy_from_slice(&other.to_bytes());
        let read = Claim::read(&URL_SAFE_NO_PAD.encode(&bytes)).unwrap();
        assert!(!read.is_signed_by(&key().public_key()));
    }
}
