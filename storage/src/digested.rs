//! What of applying a proposal depends on the proposal and the settings alone: limits, hashes of the values, the tree over
//! the entries. Most of the work of an apply, and it can be done before: by the callers of an embedded database on their own
//! threads, by a replica while the log entry is on its way. Pure, so it makes no difference who does it and when.

use alhambra_ledger::digest::{self, Digest};
use alhambra_ledger::entry::{entry_digest, entry_digests};
use alhambra_ledger::header::TxMetadata;
use alhambra_ledger::htree;
use bytes::Bytes;

use crate::apply::{Rejection, check_limits};
use crate::command::{self, ForeignHeader, Located, LocatedEntry, Settings, TxProposal};
use crate::compression;
use crate::limits::KEPT_LEVELS;

/// Hashes over the entries of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// SHA-256 of the plain value of each entry.
    pub values: Vec<Digest>,
    /// Root of the tree over the entries `L4`.
    pub eh: Digest,
    /// Of a large transaction, the levels of that tree that its record keeps.
    pub kept: Vec<Digest>,
}

impl Hashes {
    /// Hashes entries that [`check_limits`] has passed. `pruned` has the hashes of values that are gone, and is empty when
    /// none is. `plain` is a buffer that is kept from call to call.
    pub fn new(
        version: u16,
        entries: &[LocatedEntry<'_>],
        pruned: &[Option<Digest>],
        plain: &mut Vec<u8>,
    ) -> Result<Self, Rejection> {
        let values = compression::value_hashes(entries, pruned, plain)?;
        let mut kept = Vec::new();
        let eh = match entries {
            [] => Ok(digest::EMPTY),
            [LocatedEntry { key, metadata, .. }] => {
                entry_digest(version, key, metadata, &values[0]).map(|digest| digest::leaf(&digest))
            }
            _ => entry_digests(version, entries.len(), |n| (entries[n].key, entries[n].metadata, &values[n]))
                .map(|digests| htree::root_keeping(&digests, KEPT_LEVELS, &mut kept)),
        };
        let eh = eh.expect("limits are checked");
        Ok(Self { values, eh, kept })
    }
}

/// A proposal's verdict by limits, and its hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digested {
    settings: Settings,
    verdict: Result<(TxMetadata, Hashes), Rejection>,
}

impl Digested {
    /// For a proposal as it stands in a command. `pruned` as [`Hashes::new`] takes it.
    pub(crate) fn new(
        settings: &Settings,
        foreign: Option<&ForeignHeader>,
        metadata: &[u8],
        entries: &[LocatedEntry<'_>],
        pruned: &[Option<Digest>],
        plain: &mut Vec<u8>,
    ) -> Self {
        let version = foreign.map_or(settings.header_version, |foreign| foreign.version);
        let verdict = check_limits(settings, foreign, metadata, entries)
            .and_then(|metadata| Ok((metadata, Hashes::new(version, entries, pruned, plain)?)));
        Self { settings: settings.clone(), verdict }
    }

    /// For a proposal that is not in a command yet.
    pub fn of_proposal(settings: &Settings, proposal: &TxProposal) -> Self {
        let entries: Vec<_> = (proposal.entries.iter())
            .map(|entry| LocatedEntry {
                key: &entry.key,
                // Where it will stand is not hashed.
                key_at: 0,
                metadata: &entry.metadata,
                value: &entry.value,
                form: entry.form,
                pruned: false,
                value_at: 0,
            })
            .collect();
        Self::new(settings, proposal.foreign.as_deref(), &proposal.metadata, &entries, &[], &mut Vec::new())
    }

    /// For all proposals of an encoded batch, in order; empty for any other command and for what is no command.
    pub fn of_payload(settings: &Settings, payload: &Bytes) -> Vec<Self> {
        let Ok(Located::Batch(batch)) = command::decode_located(payload) else { return Vec::new() };
        let mut plain = Vec::new();
        (batch.proposals.iter())
            .map(|proposal| {
                let foreign = proposal.foreign.as_deref();
                Self::new(settings, foreign, proposal.metadata, batch.entries_of(proposal), &[], &mut plain)
            })
            .collect()
    }

    /// Whether it holds under these settings; others may have come into force meanwhile.
    pub(crate) fn is_of(&self, settings: &Settings) -> bool {
        self.settings == *settings
    }

    pub(crate) fn verdict(&self) -> Result<(&TxMetadata, &Hashes), Rejection> {
        self.verdict.as_ref().map(|(metadata, hashes)| (metadata, hashes)).map_err(Clone::clone)
    }
}
