//! Big-endian reading of untrusted bytes: every read is checked and names the part that was cut short.

use crate::{digest::Digest, error::FormatError};

/// What is left to read.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take(&mut self, len: usize, part: &'static str) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(FormatError::Truncated { part })?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(FormatError::Truncated { part })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self, part: &'static str) -> Result<u8, FormatError> {
        self.array(part).map(|[b]| b)
    }

    pub(crate) fn u16(&mut self, part: &'static str) -> Result<u16, FormatError> {
        self.array(part).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self, part: &'static str) -> Result<u32, FormatError> {
        self.array(part).map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, part: &'static str) -> Result<u64, FormatError> {
        self.array(part).map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self, part: &'static str) -> Result<i64, FormatError> {
        self.array(part).map(i64::from_be_bytes)
    }

    pub(crate) fn digest(&mut self, part: &'static str) -> Result<Digest, FormatError> {
        self.array(part).map(Digest)
    }

    /// A u64 length and as many bytes.
    pub(crate) fn long(&mut self, part: &'static str) -> Result<&'a [u8], FormatError> {
        let len = usize::try_from(self.u64(part)?).map_err(|_| FormatError::Truncated { part })?;
        self.take(len, part)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    pub(crate) fn finish(self) -> Result<(), FormatError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(FormatError::TrailingBytes { count }),
        }
    }
}

/// A length as the u16 that precedes the bytes.
pub(crate) fn len_u16(bytes: &[u8], part: &'static str) -> Result<[u8; 2], FormatError> {
    let len = bytes.len();
    u16::try_from(len).map(u16::to_be_bytes).map_err(|_| FormatError::TooLong { part, len })
}
