//! Compression of values: decided per value by whoever makes a proposal, once, and never hashed.
//!
//! A value stands in the ledger either as it is or compressed, and its entry says which and how long it is in plain. Hashes,
//! limits and proofs are about the plain bytes. Apply never compresses; it decompresses once, to hash, into a buffer that it
//! keeps. Whether bytes decompress is a function of the bytes alone (the LZ4 block format has one meaning), so every replica
//! takes or refuses a proposal alike. The setting says what new proposals do and nothing about old values.

use alhambra_ledger::digest::{self, Digest};
use bytes::Bytes;

use crate::apply::Rejection;
use crate::command::{Compression, LocatedEntry, Settings, TxProposal, ValueForm};
use crate::limits::{COMPRESSION_SAVED_BYTES_MIN, COMPRESSION_VALUE_BYTES_MIN, LZ4_EXPANSION_MAX};

impl TxProposal {
    /// Compresses the values for which it pays, as the settings say. To be called once, before the proposal is first handed
    /// on; values that are compressed already stay as they are.
    pub fn compress(&mut self, settings: &Settings) {
        if settings.compression == Compression::None {
            return;
        }
        for entry in &mut self.entries {
            if entry.form == ValueForm::Plain
                && let Some(compressed) = compress(settings.compression, &entry.value)
            {
                entry.form = ValueForm::Lz4 { plain_len: entry.value.len() as u32 };
                entry.value = compressed;
            }
        }
    }
}

/// The compressed form of a value; `None` when it does not save enough.
fn compress(compression: Compression, value: &[u8]) -> Option<Bytes> {
    if value.len() < COMPRESSION_VALUE_BYTES_MIN || u32::try_from(value.len()).is_err() {
        return None;
    }
    let compressed = match compression {
        Compression::None => return None,
        Compression::Lz4 => lz4_flex::block::compress(value),
    };
    let saves = compressed.len() + COMPRESSION_SAVED_BYTES_MIN <= value.len();
    // Exactly as long as it is: the capacity is that of the worst case.
    saves.then(|| Bytes::from(compressed.into_boxed_slice()))
}

/// SHA-256 of the plain value of an entry that has its bytes; `None` when they do not decompress.
pub(crate) fn hash_of(entry: &LocatedEntry<'_>) -> Option<Digest> {
    let mut plain = Vec::new();
    value_hashes(std::slice::from_ref(entry), &[None], &mut plain).ok()?.pop()
}

/// SHA-256 of each plain value, in order. `plain` is a buffer that is kept from call to call.
///
/// `kept` has the hashes of values that were pruned; it may be shorter than `entries`.
///
/// # Errors
/// [`Rejection::ValueForm`] when a value does not decompress to exactly the length that its entry claims, or is not shorter
/// than that. Nothing is allocated for a length that the stored bytes cannot have. Limits are checked before.
pub(crate) fn value_hashes(
    entries: &[LocatedEntry<'_>],
    kept: &[Option<Digest>],
    plain: &mut Vec<u8>,
) -> std::result::Result<Vec<Digest>, Rejection> {
    let mut malformed = false;
    let mut hashes = digest::sha256_each(entries.len(), |number, message| match entries[number].form {
        _ if entries[number].pruned => {}
        ValueForm::Plain => message.extend_from_slice(entries[number].value),
        // Stands there instead of the value; below.
        ValueForm::Gone => {}
        ValueForm::Lz4 { plain_len } => match decompress_lz4(entries[number].value, plain_len, plain) {
            Some(()) => message.extend_from_slice(plain),
            None => malformed = true,
        },
    });
    for (number, _) in entries.iter().enumerate().filter(|(_, entry)| entry.pruned) {
        match kept.get(number).copied().flatten() {
            Some(hash) => hashes[number] = hash,
            // A proposal cannot take back a value that it never gave.
            None => malformed = true,
        }
    }
    for (hash, entry) in hashes.iter_mut().zip(entries).filter(|(_, entry)| entry.form == ValueForm::Gone) {
        match entry.value.try_into() {
            Ok(stored) if !entry.pruned => *hash = Digest(stored),
            _ => malformed = true,
        }
    }
    if malformed { Err(Rejection::ValueForm) } else { Ok(hashes) }
}

/// The plain form of stored bytes; `None` when they are not a whole value of that length, or no value at all.
pub(crate) fn plain(form: ValueForm, stored: Bytes) -> Option<Bytes> {
    match form {
        ValueForm::Plain => Some(stored),
        ValueForm::Gone => None,
        ValueForm::Lz4 { plain_len } => {
            let mut plain = Vec::new();
            decompress_lz4(&stored, plain_len, &mut plain)?;
            Some(Bytes::from(plain))
        }
    }
}

fn decompress_lz4(stored: &[u8], plain_len: u32, plain: &mut Vec<u8>) -> Option<()> {
    let len = plain_len as usize;
    if stored.len() >= len || len / LZ4_EXPANSION_MAX > stored.len() {
        return None;
    }
    plain.clear();
    plain.resize(len, 0);
    let found = lz4_flex::block::decompress_into(stored, plain).ok()?;
    (found == len).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(value: &[u8]) -> (ValueForm, Bytes) {
        let compressed = compress(Compression::Lz4, value).expect("pays");
        (ValueForm::Lz4 { plain_len: value.len() as u32 }, compressed)
    }

    #[test]
    fn only_what_pays_is_compressed() {
        assert_eq!(compress(Compression::None, &[7; 1000]), None);
        assert_eq!(compress(Compression::Lz4, &[7; COMPRESSION_VALUE_BYTES_MIN - 1]), None);
        let noise: Vec<u8> = (0..4096u32).flat_map(|n| digest::sha256(&n.to_be_bytes()).0).collect();
        assert_eq!(compress(Compression::Lz4, &noise), None);
        let (form, bytes) = stored(&[7; COMPRESSION_VALUE_BYTES_MIN]);
        assert!(bytes.len() < COMPRESSION_VALUE_BYTES_MIN);
        assert_eq!(plain(form, bytes).as_deref(), Some(&[7; COMPRESSION_VALUE_BYTES_MIN][..]));
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_anything_is_allocated() {
        let (_, bytes) = stored(&[0; 100_000]);
        for plain_len in [0, 1, bytes.len() as u32, 99_999, 100_001, u32::MAX] {
            let mut buffer = Vec::new();
            assert_eq!(decompress_lz4(&bytes, plain_len, &mut buffer), None, "{plain_len}");
            assert!(buffer.capacity() <= (bytes.len() + 1) * LZ4_EXPANSION_MAX, "{plain_len}");
        }
        assert_eq!(decompress_lz4(&[], 0, &mut Vec::new()), None);
        assert_eq!(decompress_lz4(&[], 1, &mut Vec::new()), None);
    }

    #[test]
    fn cut_and_flipped_bytes_never_give_a_value_of_another_length() {
        let value: Vec<u8> = (0..3000u32).map(|n| (n % 97) as u8).collect();
        let (form, bytes) = stored(&value);
        for cut in 0..bytes.len() {
            assert_eq!(plain(form, bytes.slice(..cut)), None);
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.to_vec();
                bad[at] ^= 1 << bit;
                let found = plain(form, bad.into());
                assert!(found.is_none_or(|found| found.len() == value.len()));
            }
        }
    }
}
