//! How messages travel in chunks: each is its length in eight bytes, big endian, and then its bytes.
//!
//! What is sent keeps messages apart: each begins in a chunk of its own and ends its last chunk, and no chunk is longer than
//! [`CHUNK_BYTES_MAX`], the length included. What is received is a byte stream whose chunk borders mean nothing.
//!
//! The decoder holds what has arrived of one message and the rest of one chunk, whatever length a message claims: memory
//! follows the bytes that came. Which lengths are acceptable is for the caller to say, who sees each before its bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of a length.
pub(crate) const LENGTH_BYTES: usize = 8;
/// Longest chunk that is sent, bytes, the length of the message included.
pub(crate) const CHUNK_BYTES_MAX: usize = 64 << 10;

/// The chunks of one message, in order; at least one. Only the first is copied.
pub(crate) fn chunks(payload: Bytes) -> impl Iterator<Item = Bytes> + Send {
    let mut rest = payload;
    let beginning = rest.split_to(rest.len().min(CHUNK_BYTES_MAX - LENGTH_BYTES));
    let mut first = BytesMut::with_capacity(LENGTH_BYTES + beginning.len());
    first.put_u64((beginning.len() + rest.len()) as u64);
    first.put_slice(&beginning);
    let following = std::iter::from_fn(move || {
        let next = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
        (!next.is_empty()).then_some(next)
    });
    std::iter::once(first.freeze()).chain(following)
}

/// Finds the messages in a byte stream.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// What came and belongs to nothing yet.
    rest: Bytes,
    /// The length under way: its bytes, and how many of them there are.
    length: [u8; LENGTH_BYTES],
    length_bytes: usize,
    /// What there is of the message under way, as far as it came in earlier chunks.
    begun: BytesMut,
}

impl Decoder {
    /// Adds what came. Meant to be called when [`Self::message`] has found no further message.
    pub(crate) fn push(&mut self, content: Bytes) {
        self.rest = if self.rest.is_empty() { content } else { [&self.rest[..], &content[..]].concat().into() };
    }

    /// The length that the message under way claims, once it is there. Nothing is held for it yet.
    pub(crate) fn announced(&mut self) -> Option<u64> {
        let missing = LENGTH_BYTES - self.length_bytes;
        let came = self.rest.split_to(self.rest.len().min(missing));
        self.length[self.length_bytes..][..came.len()].copy_from_slice(&came);
        self.length_bytes += came.len();
        (self.length_bytes == LENGTH_BYTES).then(|| u64::from_be_bytes(self.length))
    }

    /// The message under way, once it is whole. One that came in one chunk is not copied.
    pub(crate) fn message(&mut self) -> Option<Bytes> {
        let missing = self.announced()? - self.begun.len() as u64;
        let whole = usize::try_from(missing).ok().filter(|missing| *missing <= self.rest.len());
        let Some(missing) = whole else {
            self.begun.extend_from_slice(&std::mem::take(&mut self.rest));
            return None;
        };
        self.length_bytes = 0;
        let end = self.rest.split_to(missing);
        if self.begun.is_empty() {
            return Some(end);
        }
        self.begun.extend_from_slice(&end);
        Some(std::mem::take(&mut self.begun).freeze())
    }

    /// Whether the length of the message under way is there.
    pub(crate) fn has_length(&self) -> bool {
        self.length_bytes == LENGTH_BYTES
    }
}

#[cfg(test)]
mod tests;
