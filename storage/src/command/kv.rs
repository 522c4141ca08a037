//! Entries of the key-value operations in stored form (`alhambra_ledger::kv`): one place for everyone who writes them.

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv;
use bytes::Bytes;

use super::ProposalEntry;

impl ProposalEntry {
    /// A plain value under a plain key.
    pub fn set(key: &[u8], value: &[u8]) -> Self {
        Self::plain(kv::set_key(key).into(), Bytes::new(), kv::set_value(value).into())
    }

    /// The end of the value, or reference, under a plain key.
    pub fn deletion(key: &[u8]) -> Self {
        Self::stored_deletion(kv::set_key(key).into())
    }

    /// The end of what stands under a stored key of any layer.
    pub fn stored_deletion(key: Bytes) -> Self {
        Self::plain(key, Bytes::new(), Bytes::new())
            .with_metadata(&KvMetadata { deleted: true, ..KvMetadata::default() })
    }

    /// A reference to the plain key `referenced`, bound to its version of `at_tx` or, with 0, to the newest one. Whether
    /// that exists, and is no reference itself, is for the caller to see to.
    pub fn reference(key: &[u8], referenced: &[u8], at_tx: TxId) -> Self {
        Self::plain(kv::set_key(key).into(), Bytes::new(), kv::reference_value(at_tx, referenced).into())
    }

    /// A member of a sorted set: the plain key `key`, bound to its version of `at_tx` or, with 0, to the newest one.
    pub fn sorted_set_member(set: &[u8], score: f64, key: &[u8], at_tx: TxId) -> Self {
        Self::plain(kv::zadd_key(set, score, key, at_tx).into(), Bytes::new(), Bytes::new())
    }

    /// The entry with these attributes, in place of those that it had.
    pub fn with_metadata(mut self, metadata: &KvMetadata) -> Self {
        self.metadata = if metadata.is_empty() { Bytes::new() } else { metadata.to_bytes().into() };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(entry: &ProposalEntry) -> (&[u8], &[u8], &[u8]) {
        (&entry.key, &entry.metadata, &entry.value)
    }

    /// Bytes written out from the table of stored keys and values.
    #[test]
    fn stored_forms_are_those_of_the_sheet() {
        assert_eq!(parts(&ProposalEntry::set(b"k", b"v")), (&b"\0k"[..], &b""[..], &b"\0v"[..]));
        assert_eq!(parts(&ProposalEntry::set(b"k", b"")), (&b"\0k"[..], &b""[..], &b"\0"[..]));
        // A deletion has an empty value, without the prefix byte, and says so in its metadata (attribute 0).
        assert_eq!(parts(&ProposalEntry::deletion(b"k")), (&b"\0k"[..], &b"\0"[..], &b""[..]));
        // 0x01, u64 transaction, 0x00, referenced key.
        assert_eq!(
            parts(&ProposalEntry::reference(b"r", b"key", TxId(0x0102))),
            (&b"\0r"[..], &b""[..], &b"\x01\0\0\0\0\0\0\x01\x02\0key"[..])
        );
        assert_eq!(
            parts(&ProposalEntry::reference(b"r", b"", TxId(0))),
            (&b"\0r"[..], &b""[..], &b"\x01\0\0\0\0\0\0\0\0\0"[..])
        );
        // 0x01, u64 length of the set, set, score, u64 length of 0x00 and key, 0x00, key, u64 transaction; no value.
        let score = [0xbf, 0xf8, 0, 0, 0, 0, 0, 0]; // -1.5
        let member =
            [&b"\x01\0\0\0\0\0\0\0\x03set"[..], &score, b"\0\0\0\0\0\0\0\x04\0key", b"\0\0\0\0\0\0\0\x07"].concat();
        assert_eq!(
            parts(&ProposalEntry::sorted_set_member(b"set", -1.5, b"key", TxId(7))),
            (&member[..], &b""[..], &b""[..])
        );
        let zero = ProposalEntry::sorted_set_member(b"", 0.0, b"", TxId(0));
        assert_eq!(&zero.key[..], &[&[1][..], &[0; 8], &[0; 8], &[0, 0, 0, 0, 0, 0, 0, 1], &[0], &[0; 8]].concat()[..]);
    }

    #[test]
    fn attributes_are_written_in_ascending_order_of_their_codes() {
        let all = KvMetadata { deleted: true, expires_at: Some(0x0102), non_indexable: true };
        let entry = ProposalEntry::set(b"k", b"v").with_metadata(&all);
        assert_eq!(&entry.metadata[..], b"\0\x01\0\0\0\0\0\0\x01\x02\x02");
        assert_eq!(entry.with_metadata(&KvMetadata::default()), ProposalEntry::set(b"k", b"v"));
        assert_eq!(ProposalEntry::stored_deletion(Bytes::from_static(b"\x02R.")).key, "\x02R.");
    }
}
