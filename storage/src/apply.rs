//! Applying commands: pure preparation of transaction records, then the derived logs and the index, in order.

use alhambra_ledger::digest::Digest;
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use bytes::Bytes;

use crate::ahtlog::Frontier;
use crate::checkpoint::{self, State};
use crate::command::{
    self, Citation, ForeignHeader, Located, LocatedBatch, LocatedEntry, LocatedProposal, LocatedTarget, Settings,
    ValueForm,
};
use crate::commitlog::CommitRecord;
use crate::core::Core;
use crate::database::{Database, Options};
use crate::digested::{Digested, Hashes};
use crate::error::{Error, Result};
use crate::format::FRAME_HEAD_BYTES;
use crate::import::{self, ImportRefusal};
use crate::indexing;
use crate::limits::{MEMORY_RELEASE_BYTES_MIN, REQUEST_OUTCOMES_KEPT};
use crate::plant::{Plant, is_planted};
use crate::precondition::{self, Conditions};
use crate::prune::Pruned;
use crate::rebuild;
use crate::release;
use crate::requests::{Kept, Requests, Seen};
use crate::segment::{FrameKind, Position};
use crate::txlog::{EntryToStore, encode_record};

/// What became of one proposal; the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The transaction exists.
    Committed {
        /// Its id.
        tx: TxId,
        /// Its Alh.
        alh: [u8; 32],
    },
    /// Nothing was written.
    Rejected(Rejection),
    /// A prune that writes no transaction is in force.
    Pruned {
        /// Its number, from 1.
        number: u32,
    },
}

/// Why a proposal was refused at apply. Deterministic: a function of the log alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The precondition at this position of the proposal does not hold.
    Precondition {
        /// 0-based position in `TxProposal::preconditions`.
        index: u32,
    },
    /// No `Genesis` stands before this command.
    NotInitialised,
    /// No entries and no transaction metadata.
    NoEntries,
    /// A stored key is empty.
    NullKey,
    /// A stored key is longer than `key_len_max`.
    KeyTooLong,
    /// A stored value is longer than `value_len_max`.
    ValueTooLong,
    /// More entries than `tx_entries_max`.
    TooManyEntries,
    /// Two entries have the same stored key.
    DuplicateKey,
    /// Entry or transaction metadata in a database whose header version is 0.
    MetadataUnsupported,
    /// Metadata bytes that do not parse.
    MetadataInvalid,
    /// The request's floor is older than the window of remembered outcomes: nobody can tell whether it was carried out.
    RequestTooOld,
    /// A compressed value does not decompress to the length that its entry claims.
    ValueForm,
    /// What the transaction has read is different at this position of the log: run it again.
    Conflict {
        /// The first range of the read set with a version after the snapshot, 0-based; `None` when the time of the
        /// transaction is outside of the read set's times, so that something has expired or has not yet.
        range: Option<u32>,
    },
    /// The read set is of a snapshot that this position of the log has not come to.
    SnapshotAhead,
    /// What is to be pruned does not exist, has no value or is pruned already, or there are too many prunes.
    NothingToPrune,
    /// A transaction of the own in a database that is a replica of another.
    Replica,
    /// A transaction that was made elsewhere cannot be the next one here.
    Import(ImportRefusal),
}

/// What a transaction is chained to: the newest one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Newest transaction; 0 when there is none.
    pub tx: TxId,
    /// Its Alh; SHA-256 of nothing when there is none.
    pub alh: Digest,
    /// Root of the main tree over all transactions up to it; zero bytes when there is none.
    pub root: Digest,
}

/// What is known of a proposal's hashes before it is applied.
#[derive(Clone, Copy, Debug)]
struct Hashing<'a> {
    /// Worked out ahead, under settings that may not be in force any more.
    digested: Option<&'a Digested>,
    /// Of values that are gone; empty when none is.
    kept: &'a [Option<Digest>],
}

/// What goes into a transaction.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// In the order in which they are hashed.
    pub entries: &'a [LocatedEntry<'a>],
    /// Of these entries.
    pub hashes: &'a Hashes,
    /// Place in the ledger of the payload that the entries are located in.
    pub payload_at: Position,
    /// Log entry that carries them.
    pub log_index: LogIndex,
}

/// A transaction ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Its header.
    pub header: TxHeader,
    /// Alh of that header.
    pub alh: Digest,
}

impl Tail {
    /// The header of the next transaction, which continues the tail [L1, L2, L3]; `ts` is its time.
    pub fn next_header(
        &self,
        settings: &Settings,
        ts: i64,
        metadata: TxMetadata,
        nentries: u32,
        eh: Digest,
    ) -> TxHeader {
        TxHeader {
            id: self.tx.next().expect("a ledger never holds 2^64 transactions"),
            ts,
            version: settings.header_version,
            metadata,
            nentries,
            eh,
            bl_tx_id: self.tx,
            bl_root: self.root,
            prev_alh: self.alh,
        }
    }
}

/// Makes the transaction of a proposal that [`check_limits`] has passed and appends its record to `record`. Pure: the same
/// arguments give the same bytes on every replica.
pub fn prepare(header: TxHeader, content: &Content<'_>, record: &mut Vec<u8>) -> Prepared {
    let Content { entries, hashes, payload_at, log_index } = *content;
    let Hashes { values, kept, .. } = hashes;
    let stored = entries.iter().zip(values).map(|(entry, value_hash)| EntryToStore {
        key_at: payload_at.0 + u64::from(entry.key_at),
        key_len: entry.key.len() as u32,
        metadata: entry.metadata,
        value_at: payload_at.0 + u64::from(entry.value_at),
        value_len: entry.value.len() as u32,
        form: entry.form,
        value_hash: *value_hash,
    });
    let alh = header.alh().expect("metadata and entry count are checked against the header version");
    encode_record(record, &header, log_index, stored, kept, &alh);
    Prepared { header, alh }
}

/// Checks a proposal against the settings in force, in the order of its entries; answers its transaction metadata, read. One
/// with a foreign header follows the rules of that header's version.
pub fn check_limits(
    settings: &Settings,
    foreign: Option<&ForeignHeader>,
    metadata: &[u8],
    entries: &[LocatedEntry<'_>],
) -> std::result::Result<TxMetadata, Rejection> {
    let version = foreign.map_or(settings.header_version, |foreign| foreign.version);
    if version > 1 {
        return Err(Rejection::Import(ImportRefusal::Header));
    }
    let metadata_allowed = version == 1;
    if !metadata.is_empty() && !metadata_allowed {
        return Err(Rejection::MetadataUnsupported);
    }
    let tx_metadata = TxMetadata::from_bytes(metadata).map_err(|_| Rejection::MetadataInvalid)?;
    if entries.is_empty() && tx_metadata.truncated_up_to.is_none() {
        return Err(Rejection::NoEntries);
    }
    if entries.len() as u64 > u64::from(settings.tx_entries_max) {
        return Err(Rejection::TooManyEntries);
    }
    for entry in entries {
        if entry.key.is_empty() {
            return Err(Rejection::NullKey);
        }
        if entry.key.len() as u64 > u64::from(settings.key_len_max) {
            return Err(Rejection::KeyTooLong);
        }
        let value_len = entry.form.plain_len(entry.value.len() as u32);
        if value_len > settings.value_len_max {
            return Err(Rejection::ValueTooLong);
        }
        if !entry.metadata.is_empty() {
            if !metadata_allowed {
                return Err(Rejection::MetadataUnsupported);
            }
            KvMetadata::from_bytes(entry.metadata).map_err(|_| Rejection::MetadataInvalid)?;
        }
    }
    let gone = entries.iter().filter(|entry| entry.form == ValueForm::Gone).count();
    if gone > 0 {
        if foreign.is_none() || entries.iter().any(|entry| entry.form == ValueForm::Gone && entry.value.len() != 32) {
            return Err(Rejection::ValueForm);
        }
        if gone != entries.len() {
            return Err(Rejection::Import(ImportRefusal::PartlyGone));
        }
    }
    if has_duplicate(entries) { Err(Rejection::DuplicateKey) } else { Ok(tx_metadata) }
}

fn has_duplicate(entries: &[LocatedEntry<'_>]) -> bool {
    /// Up to here comparing all pairs is cheaper than sorting.
    const PAIRS_MAX: usize = 8;
    if entries.len() <= PAIRS_MAX {
        return entries.iter().enumerate().any(|(n, a)| entries[..n].iter().any(|b| a.key == b.key));
    }
    // Sorting checksums with places is several times faster than sorting keys; only keys of equal checksums are compared.
    const PLACE_BITS: u32 = 32;
    let mut sums: Vec<u64> = (0u64..)
        .zip(entries)
        .map(|(place, entry)| u64::from(crc32c::crc32c(entry.key)) << PLACE_BITS | place)
        .collect();
    sums.sort_unstable();
    sums.chunk_by(|a, b| a >> PLACE_BITS == b >> PLACE_BITS).filter(|equal| equal.len() > 1).any(|equal| {
        let mut keys: Vec<&[u8]> = equal.iter().map(|sum| entries[*sum as u32 as usize].key).collect();
        keys.sort_unstable();
        keys.windows(2).any(|pair| pair[0] == pair[1])
    })
}

/// Why a proposal is not carried out.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// On every replica.
    Rejected(Rejection),
    /// This replica cannot tell.
    Fatal(Error),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// Evaluates conditions at the tail. An index that is being rebuilt, or turns out damaged, is completed first: the outcome must
/// be that of every other replica.
fn check_conditions(
    core: &Core,
    conditions: &Conditions<'_>,
    tail: TxId,
    now: i64,
) -> std::result::Result<(), Refusal> {
    if conditions.is_empty() {
        return Ok(());
    }
    match precondition::check(conditions, &core.index, tail, now) {
        Ok(verdict) => Ok(verdict?),
        Err(Error::IndexRebuilding { .. } | Error::Corrupted { .. }) => {
            indexing::complete(core)?;
            Ok(precondition::check(conditions, &core.index, tail, now)??)
        }
        Err(error) => Err(error.into()),
    }
}

/// Where a log entry stands and what it carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applying<'a> {
    pub log_id: LogId,
    pub position: Position,
    pub kind: FrameKind,
    pub payload: &'a Bytes,
    /// Of the first proposals of a batch, in order, what was worked out before; may be empty.
    pub digested: &'a [Digested],
}

/// Bounds what is in memory only.
fn write_out(core: &Core) -> Result<()> {
    core.spill()?;
    indexing::help(core)
}

/// See [`Database::write_out`].
pub(crate) fn write_out_apart(db: &Database) -> Result<()> {
    // Nor a checkpoint, which writes the same.
    let _no_install = db.exclusive.lock();
    db.core().spill().inspect_err(|_| db.applier.lock().fail())
}

/// The one writer of a database's derived state.
#[derive(Debug)]
pub(crate) struct Applier {
    pub state: State,
    frontier: Frontier,
    segment_bytes: u64,
    /// Since the last checkpoint.
    pub since: Since,
    failed: bool,
    record: Vec<u8>,
    nodes: Vec<u8>,
    /// A value in plain, while it is hashed.
    plain: Vec<u8>,
    /// The outcomes of requests are in the checkpoint only, which is of this very state.
    parked: bool,
}

/// How much was applied since the last checkpoint began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since {
    pub bytes: u64,
    pub txs: u64,
}

impl Since {
    pub(crate) fn is_due(&self, options: &Options) -> bool {
        self.bytes >= options.checkpoint_bytes || self.txs >= options.checkpoint_txs
    }
}

/// See [`Database::apply`].
pub(crate) fn run(db: &Database, entry: Applying<'_>) -> Result<Vec<Outcome>> {
    let (outcomes, tx) = {
        let mut applier = db.applier.lock();
        // Under the lock: an install replaces both.
        applier.unpark(db)?;
        db.account.warm();
        let core = db.core();
        let outcomes = if db.options.applier_writes {
            applier.apply(&core, entry)?
        } else {
            applier.apply_in_memory(&core, entry)?
        };
        db.note_memory(applier.state_bytes());
        (outcomes, applier.state.tx)
    };
    db.waiting.advance(tx, entry.log_id.index);
    let budget = db.account.budget();
    if budget.look() {
        // Memory stays bounded even when nobody does it in the background.
        budget.relieve();
        if budget.is_exceeded() && db.held_bytes() >= MEMORY_RELEASE_BYTES_MIN {
            release::help(db)?;
        }
    }
    Ok(outcomes)
}

impl Applier {
    pub(crate) fn new(state: State, frontier: Frontier, segment_bytes: u64) -> Self {
        Self {
            state,
            frontier,
            segment_bytes,
            since: Since::default(),
            failed: false,
            record: Vec::new(),
            nodes: Vec::new(),
            plain: Vec::new(),
            parked: false,
        }
    }

    /// Memory that the replicated state takes, bytes.
    pub(crate) fn state_bytes(&self) -> u64 {
        self.state.requests.memory_bytes()
    }

    /// Whether there are outcomes that a checkpoint could keep.
    pub(crate) fn is_parkable(&self) -> bool {
        !self.failed && !self.parked && self.state.applied.is_some() && self.state_bytes() > 0
    }

    /// Leaves the outcomes of requests to the checkpoint, which must be of this very state.
    pub(crate) fn park(&mut self) {
        self.state.requests = Requests::new(REQUEST_OUTCOMES_KEPT);
        self.parked = true;
        (self.record, self.nodes, self.plain) = Default::default();
    }

    /// Brings back what [`Applier::park`] left to the checkpoint of `db`, before anything looks at the state. When that has
    /// rotted meanwhile, the outcomes are derived from the log again.
    pub(crate) fn unpark(&mut self, db: &Database) -> Result<()> {
        if !self.parked || self.state.applied.is_none() {
            return Ok(());
        }
        self.must_be_sound()?;
        if is_planted(Plant::ForgetParkedRequests) {
            self.parked = false;
            return Ok(());
        }
        let found = match checkpoint::read(&*db.vfs, &db.dir, Some(db.spec.id)) {
            Ok(Some(found)) if found.state.applied == self.state.applied => found.state.requests,
            Ok(_) | Err(Error::Corrupted { .. }) => {
                tracing::error!("the checkpoint is damaged, deriving the outcomes of requests again from the ledger");
                rebuild::outcomes(db, &self.state.applied())?
            }
            Err(error) => return Err(error),
        };
        self.unpark_as(found);
        Ok(())
    }

    /// As [`Applier::unpark`], for whoever has derived the outcomes already. Nothing when they are here.
    pub(crate) fn unpark_as(&mut self, outcomes: Requests) {
        if std::mem::take(&mut self.parked) {
            self.state.requests = outcomes;
        }
    }

    /// After an error nobody knows how far the derived logs came: this replica has to reopen.
    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }

    pub(crate) fn must_be_sound(&self) -> Result<()> {
        if self.failed { Err(Error::Poisoned) } else { Ok(()) }
    }

    /// Applies the next log entry and writes what waits in memory out when it is much.
    pub(crate) fn apply(&mut self, core: &Core, entry: Applying<'_>) -> Result<Vec<Outcome>> {
        let outcomes = self.apply_in_memory(core, entry)?;
        write_out(core).inspect_err(|_| self.failed = true)?;
        Ok(outcomes)
    }

    /// Applies the next log entry: derived logs, then the index, then the published mark that readers start from `R1`.
    ///
    /// Outcomes are deterministic. An error says that this replica cannot go on.
    pub(crate) fn apply_in_memory(&mut self, core: &Core, entry: Applying<'_>) -> Result<Vec<Outcome>> {
        self.must_be_sound()?;
        let expected = self.state.applied.map_or(LogIndex(0), |id| LogIndex(id.index.0 + 1));
        if entry.log_id.index != expected {
            return Err(Error::NotNextToApply { expected, found: entry.log_id.index });
        }
        if entry.position != self.state.end {
            return Err(Error::NotWhereApplied { expected: self.state.end.0, found: entry.position.0 });
        }
        let applied = self.apply_next(core, &entry);
        self.failed = applied.is_err();
        applied
    }

    fn apply_next(&mut self, core: &Core, entry: &Applying<'_>) -> Result<Vec<Outcome>> {
        let frame_bytes = (FRAME_HEAD_BYTES + entry.payload.len()) as u64;
        let (tx, alh) = (self.state.tx, self.state.alh);
        self.state.trail.frame(frame_bytes, self.segment_bytes, tx, alh);
        let outcomes = match entry.kind {
            FrameKind::Blank => Vec::new(),
            FrameKind::Membership => {
                self.state.membership = Some((entry.log_id, entry.payload.clone()));
                Vec::new()
            }
            FrameKind::Command => self.command(core, entry)?,
        };
        self.state.applied = Some(entry.log_id);
        self.state.end = Position(entry.position.0 + frame_bytes);
        self.since.bytes += frame_bytes;
        core.publish(&self.state);
        Ok(outcomes)
    }

    fn command(&mut self, core: &Core, entry: &Applying<'_>) -> Result<Vec<Outcome>> {
        match command::decode_located(entry.payload)? {
            Located::Genesis { database, segment_bytes, settings } => {
                if self.state.settings.is_some() {
                    return Ok(Vec::new());
                }
                if database != core.spec.id || segment_bytes != core.spec.segment_bytes {
                    return Err(Error::GenesisMismatch { expected: core.spec.id, found: database, segment_bytes });
                }
                self.state.settings = Some(settings);
            }
            Located::Configure(settings) => {
                if self.state.settings.is_some() {
                    self.state.settings = Some(settings);
                }
            }
            Located::Seal(seal) => {
                if self.state.settings.is_some() {
                    core.seals.apply(seal, &mut self.state.trail);
                }
            }
            Located::Prune(order, target) => return Ok(vec![self.prune(core, entry, order, target)?]),
            Located::Batch(batch) => {
                self.state.clock = self.state.clock.max(batch.ts);
                let mut outcomes = Vec::with_capacity(batch.proposals.len());
                // Where a checkpoint was taken, or read.
                let twice = is_planted(Plant::ApplyTwiceAfterRestart) && self.since.txs == 0 && self.state.tx > TxId(0);
                for (number, proposal) in (0u32..).zip(&batch.proposals) {
                    let digested = entry.digested.get(number as usize);
                    let outcome = self.proposal(core, entry, &batch, proposal, digested)?;
                    if twice {
                        let again = LocatedProposal { request: None, ..proposal.clone() };
                        self.proposal(core, entry, &batch, &again, None)?;
                    }
                    if matches!(outcome, Outcome::Rejected(_)) {
                        self.state.trail.rejected(entry.log_id.index, number);
                    }
                    outcomes.push(outcome);
                }
                return Ok(outcomes);
            }
        }
        Ok(Vec::new())
    }

    fn proposal(
        &mut self,
        core: &Core,
        entry: &Applying<'_>,
        batch: &LocatedBatch<'_>,
        proposal: &LocatedProposal<'_>,
        digested: Option<&Digested>,
    ) -> Result<Outcome> {
        let Some(settings) = self.state.settings.clone() else {
            return Ok(Outcome::Rejected(Rejection::NotInitialised));
        };
        if let Some(request) = proposal.request.as_ref().filter(|_| !is_planted(Plant::ForgetRequests)) {
            match self.state.requests.look_up(request) {
                Seen::New => {}
                Seen::TooOld => return Ok(Outcome::Rejected(Rejection::RequestTooOld)),
                Seen::Before(Kept::Rejected(rejection)) => return Ok(Outcome::Rejected(rejection)),
                Seen::Before(Kept::Committed(tx)) => {
                    return Ok(Outcome::Committed { tx, alh: core.checked_alh(tx)?.0 });
                }
            }
        }
        let kept = self.kept_hashes(core, entry, batch.entries_of(proposal))?;
        let hashing = Hashing { digested, kept: &kept };
        let decided = match self.decide(core, &settings, entry, batch, proposal, &hashing) {
            Ok(prepared) => Ok(prepared),
            Err(Refusal::Rejected(rejection)) => Err(rejection),
            Err(Refusal::Fatal(error)) => return Err(error),
        };
        if let Some(request) = &proposal.request {
            let kept = match &decided {
                Ok(prepared) => Kept::Committed(prepared.header.id),
                Err(rejection) => Kept::Rejected(rejection.clone()),
            };
            self.state.requests.record(request, entry.log_id.index, kept);
        }
        Ok(match decided {
            Ok(prepared) => {
                let (tx, alh) = (prepared.header.id, prepared.alh.0);
                self.commit(core, entry, batch.entries_of(proposal), prepared);
                Outcome::Committed { tx, alh }
            }
            Err(rejection) => Outcome::Rejected(rejection),
        })
    }

    /// Hashes of values that are gone, when the ledger is applied again; empty when none is.
    fn kept_hashes(
        &self,
        core: &Core,
        entry: &Applying<'_>,
        entries: &[LocatedEntry<'_>],
    ) -> Result<Vec<Option<Digest>>> {
        if !entries.iter().any(|entry| entry.pruned) {
            return Ok(Vec::new());
        }
        let payload_at = entry.position.0 + FRAME_HEAD_BYTES as u64;
        (entries.iter())
            .map(|entry| match entry.pruned {
                true => core.ledger.pruned_hash(Position(payload_at + u64::from(entry.value_at))),
                false => Ok(None),
            })
            .collect()
    }

    /// Puts a prune in force, for all readers from here on. Its bytes go later, see [`crate::prune`].
    fn prune(
        &mut self,
        core: &Core,
        entry: &Applying<'_>,
        order: Option<Citation>,
        target: LocatedTarget<'_>,
    ) -> Result<Outcome> {
        if self.state.settings.is_none() {
            return Ok(self.refuse(entry, Rejection::NotInitialised));
        }
        let as_of = self.state.tx;
        let rules = core.prunes.rules();
        let pruned = match target {
            LocatedTarget::Before { tx, batch } => return self.truncate(core, entry, order, tx, &batch),
            LocatedTarget::Versions { prefix, keep } => {
                Pruned::Versions { prefix: Bytes::copy_from_slice(prefix), keep }
            }
            LocatedTarget::Value { tx, entry: number } => {
                let exists = (TxId(1)..=as_of).contains(&tx) && {
                    let (record, _) = core.record(tx)?;
                    let stored = record.entries().nth(number as usize).transpose();
                    stored
                        .map_err(|bad| core.bad_record(tx, bad))?
                        .is_some_and(|stored| stored.value_len > 0 && stored.form != ValueForm::Gone)
                };
                if !exists {
                    return Ok(self.refuse(entry, Rejection::NothingToPrune));
                }
                Pruned::Value { tx, entry: number }
            }
        };
        if !rules.takes(&pruned) {
            return Ok(self.refuse(entry, Rejection::NothingToPrune));
        }
        Ok(Outcome::Pruned { number: core.prunes.append(as_of, order, pruned) })
    }

    /// Retention: the marker transaction, and with it the prune. A retry of the marker is answered and prunes nothing.
    fn truncate(
        &mut self,
        core: &Core,
        entry: &Applying<'_>,
        order: Option<Citation>,
        tx: TxId,
        batch: &LocatedBatch<'_>,
    ) -> Result<Outcome> {
        self.state.clock = self.state.clock.max(batch.ts);
        let [marker] = &batch.proposals[..] else {
            return Ok(self.refuse(entry, Rejection::NothingToPrune));
        };
        let as_of = self.state.tx;
        let retried =
            marker.request.is_some_and(|request| matches!(self.state.requests.look_up(&request), Seen::Before(_)));
        let marked = TxMetadata::from_bytes(marker.metadata).ok().and_then(|metadata| metadata.truncated_up_to);
        let pruned = Pruned::Before(tx);
        if !retried && (tx > as_of || marked != Some(tx) || !core.prunes.rules().takes(&pruned)) {
            return Ok(self.refuse(entry, Rejection::NothingToPrune));
        }
        let outcome = self.proposal(core, entry, batch, marker, None)?;
        match outcome {
            Outcome::Committed { tx: marker, .. } if marker > as_of => drop(core.prunes.append(as_of, order, pruned)),
            Outcome::Rejected(_) => self.state.trail.rejected(entry.log_id.index, 0),
            _ => {}
        }
        Ok(outcome)
    }

    fn refuse(&mut self, entry: &Applying<'_>, why: Rejection) -> Outcome {
        self.state.trail.rejected(entry.log_id.index, 0);
        Outcome::Rejected(why)
    }

    /// Limits first, then conditions; leaves the record in `self.record`.
    fn decide(
        &mut self,
        core: &Core,
        settings: &Settings,
        entry: &Applying<'_>,
        batch: &LocatedBatch<'_>,
        proposal: &LocatedProposal<'_>,
        hashing: &Hashing<'_>,
    ) -> std::result::Result<Prepared, Refusal> {
        let now = self.state.clock;
        let entries = batch.entries_of(proposal);
        if is_planted(Plant::LocalSettingInApply) {
            // How much of the log is here already is not the same on two replicas.
            let ahead = core.ledger.last_log_id().map_or(0, |last| last.index.0 - entry.log_id.index.0);
            if ahead > 1 {
                return Err(Rejection::ValueTooLong.into());
            }
        }
        let foreign = proposal.foreign.as_deref();
        import::check_turn(settings, foreign, self.state.tx)?;
        let mut own = None;
        let digested = match hashing.digested.filter(|digested| hashing.kept.is_empty() && digested.is_of(settings)) {
            Some(digested) => digested,
            None => {
                own.insert(Digested::new(settings, foreign, proposal.metadata, entries, hashing.kept, &mut self.plain))
            }
        };
        let (metadata, hashes) = digested.verdict()?;
        let conditions = Conditions {
            payload: entry.payload,
            reads: proposal.read_set.as_ref(),
            preconditions: batch.preconditions_of(proposal),
        };
        check_conditions(core, &conditions, self.state.tx, now)?;
        let tail = Tail { tx: self.state.tx, alh: self.state.alh, root: self.frontier.root() };
        let nentries = entries.len() as u32;
        let header = match foreign {
            None => {
                let ts = if settings.exclude_commit_time { 0 } else { now };
                tail.next_header(settings, ts, metadata.clone(), nentries, hashes.eh)
            }
            Some(foreign) => {
                let header = foreign.with(metadata.clone(), nentries);
                import::check_header(core, &tail, &header, &hashes.eh)?;
                header
            }
        };
        let payload_at = Position(entry.position.0 + FRAME_HEAD_BYTES as u64);
        let log_index = entry.log_id.index;
        let content = Content { entries, hashes, payload_at, log_index };
        self.record.clear();
        Ok(prepare(header, &content, &mut self.record))
    }

    /// Record, tree, then the commit record that names both and the log entry `S2`, then the index.
    fn commit(&mut self, core: &Core, entry: &Applying<'_>, entries: &[LocatedEntry<'_>], prepared: Prepared) {
        let Prepared { header, alh } = prepared;
        let tx = header.id;
        let offset = core.tx.append(&self.record);
        self.nodes.clear();
        self.frontier.append(&alh, &mut self.nodes);
        if !self.nodes.is_empty() {
            core.aht.append(&self.nodes);
        }
        let size = u32::try_from(self.record.len()).expect("settings and the size of frames bound it");
        core.commit.append(&CommitRecord { offset, size, log_index: entry.log_id.index }.encode());
        core.remember(header);
        core.index.insert_tx(
            tx,
            (0u32..).zip(entries).map(|(number, located)| {
                let metadata = KvMetadata::from_bytes(located.metadata).expect("checked by prepare");
                (located.key, number, metadata)
            }),
        );
        self.state.tx = tx;
        self.state.alh = alh;
        self.since.txs += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::ValueForm;

    #[test]
    fn duplicates_are_found_wherever_they_stand() {
        let keys: Vec<Vec<u8>> =
            (0..200u32).map(|n| (n * 977 % 199).to_be_bytes()[..].repeat(1 + n as usize % 9)).collect();
        let located = |keys: &[Vec<u8>]| -> bool {
            let entries: Vec<_> = (keys.iter())
                .map(|key| LocatedEntry {
                    key,
                    key_at: 0,
                    metadata: &[],
                    value: &[],
                    form: ValueForm::Plain,
                    pruned: false,
                    value_at: 0,
                })
                .collect();
            has_duplicate(&entries)
        };
        for count in [0, 1, 2, 8, 9, 10, 100, 199] {
            let distinct = &keys[..count];
            let model = |keys: &[Vec<u8>]| keys.iter().collect::<std::collections::BTreeSet<_>>().len() < keys.len();
            assert_eq!(located(distinct), model(distinct), "{count} keys");
            for (a, b) in [(0, 1), (0, count.saturating_sub(1)), (count / 2, count / 3)] {
                if a != b && a < count && b < count {
                    let mut twice = distinct.to_vec();
                    twice[a] = twice[b].clone();
                    assert!(located(&twice), "{a} and {b} of {count}");
                }
            }
        }
    }

    #[test]
    fn keys_of_equal_checksums_are_no_duplicates() {
        let mut found: std::collections::HashMap<u32, Vec<u8>> = std::collections::HashMap::new();
        let mut pair = None;
        for n in 0..400_000u64 {
            let key = alhambra_ledger::digest::sha256(&n.to_be_bytes()).0[..12].to_vec();
            if let Some(other) = found.insert(crc32c::crc32c(&key), key.clone()) {
                pair = Some((other, key));
                break;
            }
        }
        let (a, b) = pair.expect("of so many, two have the same checksum");
        let mut keys: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n; 12]).collect();
        keys.extend([a.clone(), b]);
        let entry = |key: &'static [u8]| LocatedEntry {
            key,
            key_at: 0,
            metadata: &[],
            value: &[],
            form: ValueForm::Plain,
            pruned: false,
            value_at: 0,
        };
        let mut entries: Vec<_> = keys.into_iter().map(|key| entry(key.leak())).collect();
        assert!(!has_duplicate(&entries));
        entries.push(entry(a.leak()));
        assert!(has_duplicate(&entries));
    }
}
