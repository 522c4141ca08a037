//! Bugs that are planted to show that the judge would find them.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// Syncs of segments answer `Ok` and do nothing, so writes are acknowledged that a power loss takes away.
    AcknowledgeBeforeFsync,
}

impl Plant {
    /// All of them.
    pub const ALL: &[Self] = &[Self::AcknowledgeBeforeFsync];

    /// Its name, for the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcknowledgeBeforeFsync => "ack-before-fsync",
        }
    }

    /// The faults that bring it to light, so that nobody waits for luck.
    pub const fn faults(self) -> &'static [&'static str] {
        match self {
            // Only this shows the bug as what it is; with other faults consensus itself stumbles over it first.
            Self::AcknowledgeBeforeFsync => &["power-loss"],
        }
    }
}
