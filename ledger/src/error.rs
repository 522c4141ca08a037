//! Why bytes are not canonical, why a proof is refused, why a proof cannot be made. Written by hand: the crate has no
//! dependency but the hash function.

use core::fmt;

use crate::ids::TxId;

/// Why bytes or a value do not have the one form that is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// The bytes end before the named part does.
    Truncated {
        /// Part that was being read.
        part: &'static str,
    },
    /// Bytes follow the end.
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// The header version is neither 0 nor 1.
    UnknownVersion {
        /// The version found.
        version: u16,
    },
    /// Header version 0 has no room for metadata, of the transaction or of an entry.
    MetadataInVersion0,
    /// Header version 0 counts at most 65,535 entries.
    TooManyEntries {
        /// The count found.
        count: u32,
    },
    /// A transaction without entries carries no truncation mark.
    NoEntries,
    /// An attribute code that is unknown, repeated or out of order.
    UnexpectedAttribute {
        /// The code found.
        code: u8,
    },
    /// The "extra" attribute has no byte or more than 256.
    ExtraLength {
        /// Length found, bytes.
        len: usize,
    },
    /// A length does not fit its length field.
    TooLong {
        /// Part that is too long.
        part: &'static str,
        /// Its length, bytes.
        len: usize,
    },
    /// Transaction ids start at 1.
    ZeroTxId,
    /// The first transaction continues from SHA-256 of nothing.
    FirstPrevAlh,
    /// The main tree recorded in a header covers earlier transactions only.
    LinkNotEarlier {
        /// Transaction of the header.
        tx: TxId,
        /// Size of the tree that it records.
        bl_tx_id: TxId,
    },
    /// A header without main tree has 32 zero bytes as root.
    RootOfNoTree,
    /// A flag, marker or prefix byte has a value without meaning.
    UnexpectedByte {
        /// Part that was being read.
        part: &'static str,
        /// The byte found.
        byte: u8,
    },
    /// The values of a transaction are either all there or all gone.
    PartlyGone,
    /// Header and content count a different number of entries.
    EntryCount {
        /// As the header says.
        header: u32,
        /// As found.
        found: usize,
    },
    /// Not 64 hexadecimal digits.
    NotHex,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { part } => write!(f, "bytes end within {part}"),
            Self::TrailingBytes { count } => write!(f, "{count} bytes follow the end"),
            Self::UnknownVersion { version } => write!(f, "unknown header version {version}"),
            Self::MetadataInVersion0 => f.write_str("header version 0 cannot carry metadata"),
            Self::TooManyEntries { count } => write!(f, "header version 0 cannot count {count} entries"),
            Self::NoEntries => f.write_str("transaction without entries and without truncation mark"),
            Self::UnexpectedAttribute { code } => {
                write!(f, "attribute 0x{code:02x} is unknown, repeated or out of order")
            }
            Self::ExtraLength { len } => write!(f, "extra attribute of {len} bytes, must be 1 to 256"),
            Self::TooLong { part, len } => write!(f, "{part} of {len} bytes does not fit its length field"),
            Self::ZeroTxId => f.write_str("transaction id 0"),
            Self::FirstPrevAlh => f.write_str("first transaction with a predecessor"),
            Self::LinkNotEarlier { tx, bl_tx_id } => {
                write!(f, "header of tx {tx} records a tree of {bl_tx_id} transactions")
            }
            Self::RootOfNoTree => f.write_str("header records a root but no tree"),
            Self::UnexpectedByte { part, byte } => write!(f, "unexpected byte 0x{byte:02x} as {part}"),
            Self::PartlyGone => f.write_str("some values of the transaction are gone and some are not"),
            Self::EntryCount { header, found } => write!(f, "header counts {header} entries, found {found}"),
            Self::NotHex => f.write_str("not 64 hexadecimal digits"),
        }
    }
}

impl core::error::Error for FormatError {}

/// The check of a proof that failed; everything before it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The source header is of another transaction than asked for.
    SourceId,
    /// The target header is of another transaction than asked for.
    TargetId,
    /// The source is 0 or after the target.
    Order,
    /// The source header cannot be the header of any transaction.
    SourceHeader,
    /// The target header cannot be the header of any transaction.
    TargetHeader,
    /// The source header does not hash to the known Alh of the source.
    SourceAlh,
    /// The target header does not hash to the known Alh of the target.
    TargetAlh,
    /// A header does not record the tree of all transactions before it, where the proof form demands that.
    Linking,
    /// The source is not the leaf of its number in the target's tree.
    Inclusion,
    /// The source's tree is not the beginning of the target's tree.
    Consistency,
    /// The transaction from which the linear part starts is not the last leaf of the target's tree.
    LastInclusion,
    /// The linear chain of inner hashes does not lead to the target.
    Linear,
    /// Transactions between source tree and source, accepted linearly before, are not those in the target's tree.
    LinearAdvance,
    /// The entry is not at its place in the tree of its transaction.
    EntryInclusion,
    /// The proof is about a transaction of another size than the header says.
    EntryCount,
    /// The entries of a transaction do not hash to the Eh of its header.
    Entries,
    /// A trusted state would move backward, or sideways to another history.
    Advance,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceId => "source id",
            Self::TargetId => "target id",
            Self::Order => "order of source and target",
            Self::SourceHeader => "source header",
            Self::TargetHeader => "target header",
            Self::SourceAlh => "source alh",
            Self::TargetAlh => "target alh",
            Self::Linking => "binary linking",
            Self::Inclusion => "inclusion",
            Self::Consistency => "consistency",
            Self::LastInclusion => "last inclusion",
            Self::Linear => "linear proof",
            Self::LinearAdvance => "linear advance proof",
            Self::EntryInclusion => "entry inclusion",
            Self::EntryCount => "entry count",
            Self::Entries => "entries",
            Self::Advance => "advance of the trusted state",
        })
    }
}

/// A proof was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The first check that failed.
    pub step: Step,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proof refused at step: {}", self.step)
    }
}

impl core::error::Error for VerifyError {}

/// `Ok` when `holds`, otherwise the error that names `step`.
pub(crate) fn require(holds: bool, step: Step) -> Result<(), VerifyError> {
    if holds { Ok(()) } else { Err(VerifyError { step }) }
}

/// A proof cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProveError<E> {
    /// Reading a node or header failed.
    Read(E),
    /// A header that was read cannot be hashed.
    Format(FormatError),
    /// There is no such proof: positions from 1, first not after last, last within the size, trees that only grow.
    OutOfRange {
        /// First position asked for.
        from: u64,
        /// Last position asked for.
        to: u64,
    },
    /// The compact form needs headers that record the tree of all transactions before them.
    NotLinked {
        /// Transaction whose header does not.
        tx: TxId,
    },
}

impl<E: fmt::Display> fmt::Display for ProveError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(e) => write!(f, "reading history failed: {e}"),
            Self::Format(e) => write!(f, "header cannot be hashed: {e}"),
            Self::OutOfRange { from, to } => write!(f, "no proof from {from} to {to}"),
            Self::NotLinked { tx } => write!(f, "header of tx {tx} does not record all transactions before it"),
        }
    }
}

impl<E: core::error::Error + 'static> core::error::Error for ProveError<E> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Read(e) => Some(e),
            Self::Format(e) => Some(e),
            Self::OutOfRange { .. } | Self::NotLinked { .. } => None,
        }
    }
}

impl<E> From<FormatError> for ProveError<E> {
    fn from(e: FormatError) -> Self {
        Self::Format(e)
    }
}
