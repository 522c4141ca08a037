//! Bytes of how a value stands in the ledger: the same in commands, in tx records, and in pruned segments.

use super::ValueForm;
use crate::wire::{Malformed, Put, Reader, varint_len};

pub(super) const COMPRESSION_NONE: u8 = 0;
pub(super) const COMPRESSION_LZ4: u8 = 1;
/// The value is gone, and not by a prune of this database.
const VALUE_GONE: u8 = 2;

/// Set in the compression code of a value that was pruned; its bytes read as zeros, its hash is in the segment's table.
pub(crate) const VALUE_IS_PRUNED: u8 = 0x80;

impl ValueForm {
    /// The code of the form and, if it is not plain, the length in plain.
    pub(crate) fn encode_into(self, out: &mut Vec<u8>) {
        match self {
            Self::Plain => out.put_u8(COMPRESSION_NONE),
            Self::Lz4 { plain_len } => {
                out.put_u8(COMPRESSION_LZ4);
                out.put_varint(u64::from(plain_len));
            }
            Self::Gone => out.put_u8(VALUE_GONE),
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match Self::read_or_pruned(reader)? {
            (form, false) => Ok(form),
            (_, true) => Err(Malformed),
        }
    }

    /// The form, and whether the value was pruned.
    pub(super) fn read_or_pruned(reader: &mut Reader<'_>) -> Result<(Self, bool), Malformed> {
        let code = reader.u8()?;
        let form = match code & !VALUE_IS_PRUNED {
            COMPRESSION_NONE => Self::Plain,
            COMPRESSION_LZ4 => Self::Lz4 { plain_len: reader.varint_u32()? },
            VALUE_GONE => Self::Gone,
            _ => return Err(Malformed),
        };
        Ok((form, code & VALUE_IS_PRUNED != 0))
    }

    /// Bytes from the compression code of an entry to the first byte of its value, of which `stored_len` are stored.
    pub(crate) const fn code_to_value(self, stored_len: u32) -> u32 {
        let plain_len = match self {
            Self::Plain | Self::Gone => 0,
            Self::Lz4 { plain_len } => varint_len(plain_len as u64),
        };
        (1 + plain_len + varint_len(stored_len as u64)) as u32
    }
}
