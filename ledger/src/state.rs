//! What a client remembers of a database: the last transaction that it has verified. One digest commits to all history
//! before it, so this is all that must be kept. Making and checking signatures is the caller's; the bytes are ours.

use alloc::{string::String, vec::Vec};

use crate::{
    digest::{Digest, EMPTY},
    error::{FormatError, Step, VerifyError, require},
    ids::TxId,
};

/// The newest transaction of a database that somebody vouches for: a client to itself, a server by its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedState {
    /// Name of the database.
    pub database: String,
    /// The transaction; 0 while the database is empty.
    pub tx: TxId,
    /// Its Alh; SHA-256 of nothing while the database is empty.
    pub alh: Digest,
}

impl TrustedState {
    /// State of a database without transactions.
    pub fn empty(database: String) -> Self {
        Self { database, tx: TxId(0), alh: EMPTY }
    }

    /// The bytes that a server signs (ECDSA on P-256 with SHA-256). Fails on a name of 4 GiB or more.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let len = self.database.len();
        let name_len = u32::try_from(len).map_err(|_| FormatError::TooLong { part: "database name", len })?;
        let mut out = Vec::with_capacity(4 + len + 8 + 32);
        out.extend(name_len.to_be_bytes());
        out.extend(self.database.as_bytes());
        out.extend(self.tx.get().to_be_bytes());
        out.extend(self.alh.0);
        Ok(out)
    }

    /// Moves forward to a transaction that was proven to continue this state (V2).
    ///
    /// Staying at the same transaction with the same Alh is allowed. Fails with [`Step::Advance`], unchanged, on an
    /// older transaction and on another Alh for the same one.
    pub fn advance(&mut self, tx: TxId, alh: Digest) -> Result<(), VerifyError> {
        require(tx > self.tx || (tx == self.tx && alh == self.alh), Step::Advance)?;
        self.tx = tx;
        self.alh = alh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ZERO, sha256};

    #[test]
    fn moves_forward_only() {
        let mut state = TrustedState::empty("db".into());
        let alh = sha256(b"5");
        state.advance(TxId(5), alh).unwrap();
        let refused = Err(VerifyError { step: Step::Advance });
        assert_eq!(state.advance(TxId(4), sha256(b"4")), refused);
        assert_eq!(state.advance(TxId(5), ZERO), refused);
        assert_eq!(state.advance(TxId(0), EMPTY), refused);
        assert_eq!(state, TrustedState { database: "db".into(), tx: TxId(5), alh });
        state.advance(TxId(5), alh).unwrap();
        state.advance(TxId(6), ZERO).unwrap();
        assert_eq!(state.tx, TxId(6));
    }
}
