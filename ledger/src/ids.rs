//! Newtypes for every number that names a place, so that one kind is never taken for another.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number itself.
            pub const fn get(self) -> u64 {
                self.0
            }
            /// The next number; `None` past `u64::MAX`.
            pub const fn next(self) -> Option<Self> {
                match self.0.checked_add(1) {
                    Some(n) => Some(Self(n)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Position of a transaction in a database's ledger, from 1; 0 means none.
    TxId
}
id! {
    /// Position of an entry in a group's replicated log. Not a [`TxId`]: blank, membership and rejected proposals
    /// take an index but make no transaction.
    LogIndex
}
id! {
    /// Raft epoch.
    Term
}
id! {
    /// Raft group; 0 is the meta group (`systemdb`).
    GroupId
}
id! {
    /// Number of a version of one key, from 1.
    Revision
}

/// Term and index of a log entry; ordered by term first, as Raft orders them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// Epoch of the leader that proposed the entry.
    pub term: Term,
    /// Position in the log.
    pub index: LogIndex,
}

impl LogId {
    /// Builds a log id from plain numbers.
    pub const fn new(term: u64, index: u64) -> Self {
        Self { term: Term(term), index: LogIndex(index) }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{}-{}", self.term, self.index)
    }
}

/// 128-bit name of a database, chosen once at creation and never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseId(pub [u8; 16]);

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
