//! Reading and writing of the hand-specified byte forms: big-endian integers and variable-length integers.
//!
//! Everything this crate keeps on disk goes through these two types, so that a bound is checked in one place. A
//! variable-length integer is that of RFC 9000 section 16 (the top two bits of the first byte give the length 1, 2, 4 or
//! 8; the rest is big endian) and must be in its shortest form, so that equal content has equal bytes.

use alhambra_ledger::ids::LogId;

/// Largest number a variable-length integer holds: 62 bits.
pub(crate) const VARINT_MAX: u64 = (1 << 62) - 1;

/// Bytes that `value` takes as a variable-length integer.
pub(crate) const fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends big-endian forms to a byte vector.
pub(crate) trait Put {
    fn put_u8(&mut self, value: u8);
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_i64(&mut self, value: i64);
    fn put_varint(&mut self, value: u64);
    fn put_bytes(&mut self, value: &[u8]);
    /// A length as variable-length integer, then the bytes.
    fn put_prefixed(&mut self, value: &[u8]);
    /// Whether there is one, then term and index; zeros for none.
    fn put_log_id_or_none(&mut self, value: Option<LogId>);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }
    fn put_i64(&mut self, value: i64) {
        self.extend_from_slice(&value.to_be_bytes());
    }
    fn put_varint(&mut self, value: u64) {
        debug_assert!(value <= VARINT_MAX, "variable-length integers hold 62 bits");
        match varint_len(value) {
            1 => self.push(value as u8),
            2 => self.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
            4 => self.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
            _ => self.extend_from_slice(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
        }
    }
    fn put_bytes(&mut self, value: &[u8]) {
        self.extend_from_slice(value);
    }
    fn put_prefixed(&mut self, value: &[u8]) {
        self.put_varint(value.len() as u64);
        self.extend_from_slice(value);
    }
    fn put_log_id_or_none(&mut self, value: Option<LogId>) {
        self.put_u8(u8::from(value.is_some()));
        let id = value.unwrap_or_default();
        self.put_u64(id.term.0);
        self.put_u64(id.index.0);
    }
}

/// The bytes end early, or are not in the form that the format asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads big-endian forms from a slice; remembers how far it has come.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// Offset of the next byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn left(&self) -> usize {
        self.data.len() - self.at
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        if len > self.left() {
            return Err(Malformed);
        }
        let bytes = &self.data[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let first = *self.data.get(self.at).ok_or(Malformed)?;
        let value = match first >> 6 {
            0 => u64::from(self.u8()?),
            1 => u64::from(self.u16()? & 0x3fff),
            2 => u64::from(self.u32()? & 0x3fff_ffff),
            _ => self.u64()? & VARINT_MAX,
        };
        if varint_len(value) != 1 << (first >> 6) {
            return Err(Malformed);
        }
        Ok(value)
    }

    /// A variable-length integer that must fit 32 bits.
    pub(crate) fn varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    /// A variable-length integer that counts things of at least `each_min` bytes which follow, so that a forged count
    /// cannot ask for more memory than the input has bytes.
    pub(crate) fn count(&mut self, each_min: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        if count > self.left() / each_min.max(1) { Err(Malformed) } else { Ok(count) }
    }

    /// See [`Put::put_log_id_or_none`].
    pub(crate) fn log_id_or_none(&mut self) -> Result<Option<LogId>, Malformed> {
        let is_some = self.u8()?;
        let id = LogId::new(self.u64()?, self.u64()?);
        match is_some {
            0 if id == LogId::default() => Ok(None),
            1 => Ok(Some(id)),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn prefixed(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        self.take(len)
    }

    /// As [`Reader::prefixed`], but never empty: what is absent is said by a flag, so there is one form for it.
    pub(crate) fn some_prefixed(&mut self) -> Result<&'a [u8], Malformed> {
        let bytes = self.prefixed()?;
        if bytes.is_empty() { Err(Malformed) } else { Ok(bytes) }
    }

    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.left() == 0 { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_lengths_and_shortest_form() {
        for (value, bytes) in [
            (0u64, &[0x00u8][..]),
            (0x3f, &[0x3f]),
            (0x40, &[0x40, 0x40]),
            (0x3fff, &[0x7f, 0xff]),
            (0x4000, &[0x80, 0x00, 0x40, 0x00]),
            (0x3fff_ffff, &[0xbf, 0xff, 0xff, 0xff]),
            (0x4000_0000, &[0xc0, 0, 0, 0, 0x40, 0, 0, 0]),
            (VARINT_MAX, &[0xff; 8]),
        ] {
            let mut out = Vec::new();
            out.put_varint(value);
            assert_eq!(out, bytes);
            assert_eq!(out.len(), varint_len(value));
            let mut reader = Reader::new(&out);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.finish(), Ok(()));
            for cut in 0..bytes.len() {
                assert_eq!(Reader::new(&bytes[..cut]).varint(), Err(Malformed));
            }
        }
        for long in [&[0x40u8, 0x3f][..], &[0x80, 0, 0x3f, 0xff], &[0xc0, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff]] {
            assert_eq!(Reader::new(long).varint(), Err(Malformed), "only the shortest form is accepted");
        }
    }

    #[test]
    fn a_count_never_exceeds_what_follows() {
        let mut out = Vec::new();
        out.put_varint(3);
        out.put_bytes(&[0; 6]);
        assert_eq!(Reader::new(&out).count(2), Ok(3));
        assert_eq!(Reader::new(&out).count(3), Err(Malformed));
    }
}
