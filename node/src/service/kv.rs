//! Keys and values: writing, and reading the newest state, versions and ranges. Stored forms are those of
//! `alhambra_ledger::kv`; one request is exactly one transaction.

use std::collections::HashSet;

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::{Revision, TxId};
use alhambra_ledger::kv::{self, StoredValue};
use alhambra_proto::code::{WireError, text};
use alhambra_raft::forward::Written;
use alhambra_raft::group::Level;
use alhambra_storage::EntryRecord;
use alhambra_storage::apply::Rejection;
use alhambra_storage::command::{Precondition as Condition, ProposalEntry, Settings, TxProposal};
use alhambra_storage::index::{ScanSpec, Version};
use alhambra_storage::read::ReadSnapshot;
use bytes::{BufMut, Bytes, BytesMut};

use super::walk::{HistoryWalk, ScanWalk};
use super::{App, ENTRIES_PER_TURN, import};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::router::part_of;

/// A value as it is to be written.
#[derive(Clone, Debug)]
pub struct NewValue {
    /// Key.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
    /// Attributes.
    pub metadata: KvMetadata,
}

/// A condition of a write.
#[derive(Clone, Debug)]
pub enum Precondition {
    /// The message says nothing.
    Empty,
    /// The key has a value.
    MustExist(Bytes),
    /// The key has none.
    MustNotExist(Bytes),
    /// The key was not written after this transaction.
    NotModifiedAfter(Bytes, TxId),
}

/// A value as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Transaction that wrote it.
    pub tx: TxId,
    /// Key.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
    /// Attributes.
    pub metadata: KvMetadata,
    /// Whether it does not count any more.
    pub expired: bool,
    /// Number of the version; 0 where none is told.
    pub revision: Revision,
    /// The reference that led to it.
    pub referenced_by: Option<Reference>,
}

/// A reference that was followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Transaction that wrote it.
    pub tx: TxId,
    /// Its key.
    pub key: Bytes,
    /// Transaction that it is bound to; 0 for none.
    pub at_tx: TxId,
    /// Its attributes.
    pub metadata: KvMetadata,
    /// Number of its version; 0 where none is told.
    pub revision: Revision,
}

/// Which version of which key is asked for.
#[derive(Clone, Debug, Default)]
pub struct Get {
    /// Key.
    pub key: Bytes,
    /// What exactly this transaction wrote; 0 for no such wish.
    pub at_tx: TxId,
    /// The newest version must not be older than this transaction.
    pub since_tx: TxId,
    /// Number of the version; negative ones count back from the newest; 0 is the newest.
    pub at_revision: i64,
}

/// Which keys are asked for.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Where to begin.
    pub seek_key: Bytes,
    /// Where to end.
    pub end_key: Bytes,
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// From the greatest key down.
    pub desc: bool,
    /// Most entries; 0 for the maximum.
    pub limit: u64,
    /// Transaction that must be seen.
    pub since_tx: TxId,
    /// Whether the first key counts.
    pub inclusive_seek: bool,
    /// Whether the last key counts.
    pub inclusive_end: bool,
    /// Entries to leave out first.
    pub offset: u64,
}

/// Which versions are asked for.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Key.
    pub key: Bytes,
    /// Versions to leave out first.
    pub offset: u64,
    /// Most versions; 0 for the maximum.
    pub limit: i32,
    /// From the newest down.
    pub desc: bool,
    /// Transaction that must be seen.
    pub since_tx: TxId,
}

/// A stored key: the layer's byte and the user's key.
pub(crate) fn stored_key(key: &[u8]) -> Bytes {
    prefixed(kv::PLAIN_KEY, key)
}

fn prefixed(first: u8, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + rest.len());
    out.put_u8(first);
    out.put_slice(rest);
    out.freeze()
}

/// The first byte of the stored form of a plain value.
const PLAIN_VALUE: u8 = 0;

/// Whether there is a value at `now`, in the words of a read that asks for it.
pub(crate) fn must_be_live(metadata: &KvMetadata, now: i64) -> Result<()> {
    if metadata.deleted {
        Err(text::KEY_NOT_FOUND.into())
    } else if metadata.is_expired(now) {
        Err(text::EXPIRED_ENTRY.into())
    } else {
        Ok(())
    }
}

/// Whether an error only says that there is no value, so that a list leaves it out.
pub(crate) fn is_absence(error: &Error) -> bool {
    match error {
        Error::Wire(error) => *error == text::KEY_NOT_FOUND || *error == text::EXPIRED_ENTRY,
        Error::ValuePruned { .. } => true,
        _ => false,
    }
}

/// The entry that a read has come to, of which the value is not read yet.
pub(super) struct Place {
    pub tx: TxId,
    /// Number of the entry in that transaction.
    pub entry: u32,
    /// 0 when it is not told.
    revision: Revision,
    metadata: KvMetadata,
    /// The entry itself, when it was read to find it.
    record: Option<EntryRecord>,
}

impl From<&Version> for Place {
    fn from(version: &Version) -> Self {
        let Version { tx, entry, revision, metadata, .. } = *version;
        Self { tx, entry, revision, metadata, record: None }
    }
}

impl Place {
    /// What is found there, which is this entry with this value.
    pub(super) fn holding(&self, entry: &EntryRecord, stored: Bytes) -> Found {
        Found { tx: self.tx, revision: self.revision, metadata: entry.kv_metadata(), stored }
    }
}

/// A value as stored, before references are followed.
pub(crate) struct Found {
    pub tx: TxId,
    pub revision: Revision,
    pub metadata: KvMetadata,
    pub stored: Bytes,
}

/// Reads a database at one moment.
pub(crate) struct Reader<'a> {
    pub context: &'a Context,
    pub view: &'a ReadSnapshot,
    pub now: i64,
}

impl Reader<'_> {
    /// What this version of a stored key holds.
    pub(super) fn version(&self, key: &[u8], version: &Version) -> Result<Found> {
        self.read(key, &Place::from(version))
    }

    /// What stands at a place where a read of this stored key has come to.
    fn read(&self, key: &[u8], place: &Place) -> Result<Found> {
        let entry = match &place.record {
            Some(entry) => entry,
            None => &self.view.entry(key, place.tx, place.entry)?,
        };
        Ok(place.holding(entry, self.view.value_of(entry)?))
    }

    /// Where the newest version of a stored key is.
    fn newest(&self, key: &[u8]) -> Result<Place> {
        let version = self.view.get(key)?.ok_or(text::KEY_NOT_FOUND)?;
        Ok(Place::from(&version))
    }

    /// Where exactly this transaction wrote to a stored key, indexed or not. No revision is told.
    fn place_in(&self, key: &[u8], tx: TxId) -> Result<Place> {
        if tx > self.view.tx() {
            return Err(text::TX_NOT_FOUND.into());
        }
        Ok(match self.view.get_at(key, tx)? {
            Some(version) => Place { revision: Revision(0), ..Place::from(&version) },
            // Perhaps it is not indexed.
            None => {
                let entries = self.context.replica.database().tx(tx)?.entries;
                let entry = entries.into_iter().find(|entry| entry.key == key).ok_or(text::KEY_NOT_FOUND)?;
                let (number, metadata) = (entry.number, entry.kv_metadata());
                Place { tx, entry: number, revision: Revision(0), metadata, record: Some(entry) }
            }
        })
    }

    /// What exactly this transaction wrote to a stored key, indexed or not. No revision is told.
    pub(crate) fn written_in(&self, key: &[u8], tx: TxId) -> Result<Found> {
        self.read(key, &self.live(self.place_in(key, tx)?)?)
    }

    /// The same place, if there is a value now.
    fn live(&self, place: Place) -> Result<Place> {
        must_be_live(&place.metadata, self.now).map(|()| place)
    }

    /// The value of a user's key, followed when it is a reference.
    pub(crate) fn resolve(&self, key: Bytes, found: Found) -> Result<Entry> {
        let Found { tx, revision, metadata, stored, .. } = found;
        match kv::parse_value(&stored)? {
            StoredValue::Deletion => Err(text::KEY_NOT_FOUND.into()),
            StoredValue::Plain(_) => {
                let value = stored.slice(1..);
                Ok(Entry { tx, key, value, metadata, expired: false, revision, referenced_by: None })
            }
            StoredValue::Reference { at_tx, key: target } => {
                let reference = Reference { tx, key, at_tx, metadata, revision };
                let mut entry = self.target(at_tx, stored.slice_ref(target))?;
                entry.referenced_by = Some(reference);
                Ok(entry)
            }
        }
    }

    /// What a reference or a member of a sorted set leads to.
    pub(crate) fn target(&self, at_tx: TxId, key: Bytes) -> Result<Entry> {
        let stored_key = stored_key(&key);
        let place = if at_tx.get() > 0 { self.place_in(&stored_key, at_tx)? } else { self.newest(&stored_key)? };
        let found = self.read(&stored_key, &self.live(place)?)?;
        match kv::parse_value(&found.stored)? {
            StoredValue::Deletion => Err(text::KEY_NOT_FOUND.into()),
            StoredValue::Reference { .. } => Err(text::RESOLUTION_LIMIT.into()),
            StoredValue::Plain(_) => Ok(Entry {
                tx: found.tx,
                key,
                value: found.stored.slice(1..),
                metadata: found.metadata,
                expired: false,
                revision: found.revision,
                referenced_by: None,
            }),
        }
    }

    /// What Get answers.
    pub(crate) fn get(&self, get: &Get) -> Result<Entry> {
        let key = stored_key(&get.key);
        self.resolve(get.key.clone(), self.read(&key, &self.place(get, &key)?)?)
    }

    /// Where what Get asks for is. There is a value.
    pub(super) fn place(&self, get: &Get, key: &[u8]) -> Result<Place> {
        let place = if get.at_tx.get() > 0 {
            self.place_in(key, get.at_tx)?
        } else if get.at_revision != 0 {
            let revision = self.absolute_revision(key, get.at_revision)?;
            let version = self.view.revision(key, revision)?.ok_or(text::INVALID_REVISION)?;
            Place::from(&version)
        } else {
            self.newest(key)?
        };
        self.live(place)
    }

    fn absolute_revision(&self, key: &[u8], revision: i64) -> Result<Revision> {
        let count = self.view.revisions(key)?;
        if count == 0 {
            return Err(text::KEY_NOT_FOUND.into());
        }
        let absolute = if revision < 0 {
            count.checked_sub(revision.unsigned_abs()).ok_or(text::INVALID_REVISION)?
        } else {
            revision.unsigned_abs()
        };
        if (1..=count).contains(&absolute) { Ok(Revision(absolute)) } else { Err(text::INVALID_REVISION.into()) }
    }
}

impl Get {
    /// Refuses what contradicts itself.
    pub(crate) fn check(&self) -> Result<()> {
        if self.key.is_empty() {
            return Err(text::EMPTY_KEY.into());
        }
        if self.at_tx.get() > 0 {
            if self.since_tx.get() > 0 {
                return Err(text::SINCE_TX_WITH_AT_TX.into());
            }
            if self.at_revision != 0 {
                return Err(text::AT_REVISION_WITH_AT_TX.into());
            }
        }
        Ok(())
    }
}

/// Keys and values in stored form, all in one allocation: a transaction of a thousand entries would make two thousand, and
/// as many again when the proposal is first cloned on its way.
fn stored_entries(values: &[NewValue]) -> Vec<ProposalEntry> {
    let mut all = BytesMut::with_capacity(values.iter().map(|v| v.key.len() + v.value.len() + 2).sum());
    for value in values {
        all.put_u8(kv::PLAIN_KEY);
        all.put_slice(&value.key);
        all.put_u8(PLAIN_VALUE);
        all.put_slice(&value.value);
    }
    let mut all = all.freeze();
    let mut next = |len: usize| all.split_to(len + 1);
    (values.iter())
        .map(|value| {
            let (key, stored) = (next(value.key.len()), next(value.value.len()));
            ProposalEntry::plain(key, encode_metadata(&value.metadata), stored)
        })
        .collect()
}

/// Writes values; their order stays.
pub async fn set(cx: &Context, values: Vec<NewValue>, preconditions: Vec<Precondition>) -> Result<TxHeader> {
    let settings = settings(cx).await?;
    let mut seen = HashSet::with_capacity(if values.len() > 1 { values.len() } else { 0 });
    for value in &values {
        if value.key.is_empty() {
            return Err(text::ILLEGAL_ARGUMENTS.into());
        }
        if values.len() > 1 && !seen.insert(&value.key) {
            return Err(text::DUPLICATED_KEYS.into());
        }
    }
    drop(seen);
    if values.is_empty() {
        return Err(text::NO_ENTRIES.into());
    }
    let entries = stored_entries(&values);
    drop(values);
    let preconditions = conditions(&settings, preconditions, Words::Set)?;
    check_limits(&settings, &entries)?;
    let proposal = TxProposal { entries, preconditions, ..TxProposal::default() };
    let kinds: Vec<WireError> = proposal.preconditions.iter().map(failure_of).collect();
    match commit(cx, proposal).await? {
        Committed::Yes(header) => Ok(header),
        Committed::Refused(index) => {
            Err(kinds.get(index).copied().map_or(Error::Internal("an unknown precondition failed"), Error::from))
        }
    }
}

/// Deletes keys, each of which must have a value.
pub async fn delete(app: &App, cx: &Context, keys: Vec<Bytes>, since_tx: TxId) -> Result<TxHeader> {
    let settings = settings(cx).await?;
    if since_tx.get() > 0 {
        cx.view_of(since_tx).await?;
    }
    if keys.iter().any(Bytes::is_empty) {
        return Err(text::ILLEGAL_ARGUMENTS.into());
    }
    if keys.is_empty() {
        return Err(text::NO_ENTRIES.into());
    }
    let entries: Vec<ProposalEntry> = keys.iter().map(|key| ProposalEntry::deletion(key)).collect();
    let twice = {
        let mut seen = HashSet::with_capacity(keys.len());
        keys.iter().any(|key| !seen.insert(key))
    };
    let too_long = entries.iter().any(|entry| over(entry.key.len(), settings.key_len_max));
    if twice || too_long {
        // Cannot succeed: a key is not there, or not there any more. Which error it is, reading tells.
        return Err(missing(app, cx, &entries).await?);
    }
    check_limits(&settings, &entries)?;
    let preconditions = entries.iter().map(|entry| Condition::MustExist(entry.key.clone())).collect();
    let proposal = TxProposal { entries: entries.clone(), preconditions, ..TxProposal::default() };
    match commit(cx, proposal).await? {
        Committed::Yes(header) => Ok(header),
        Committed::Refused(index) => Err(missing(app, cx, &entries[index..=index]).await?),
    }
}

/// Why these keys cannot be deleted one after the other.
async fn missing(app: &App, cx: &Context, entries: &[ProposalEntry]) -> Result<Error> {
    let view = cx.view(TxId(0)).await?;
    let now = app.now();
    let mut seen = HashSet::new();
    for entry in entries {
        let version = view.get(&entry.key)?.filter(|version| !version.metadata.deleted && seen.insert(&entry.key));
        match version {
            None => break,
            Some(version) if version.metadata.is_expired(now) => return Ok(text::EXPIRED_ENTRY.into()),
            Some(_) => {}
        }
    }
    // A key that has a value now had none when the deletion was applied.
    Ok(text::KEY_NOT_FOUND.into())
}

/// Reads one key.
pub async fn get(app: &App, cx: &Context, get: Get) -> Result<Entry> {
    let view = view(cx, &get).await?;
    Reader { context: cx, view: &view, now: app.now() }.get(&get)
}

/// What a request for one key reads, if it does not contradict itself.
pub(super) async fn view(cx: &Context, get: &Get) -> Result<ReadSnapshot> {
    get.check()?;
    if get.at_tx.get() > 0 {
        cx.view_of(get.at_tx).await
    } else {
        cx.view(get.since_tx).await.map_err(|error| error.beyond_is(text::SINCE_TX_TOO_HIGH))
    }
}

/// Reads many keys; those without a value are left out.
pub async fn get_all(app: &App, cx: &Context, keys: Vec<Bytes>, since_tx: TxId) -> Result<Vec<Entry>> {
    let view = cx.view(since_tx).await.map_err(|error| error.beyond_is(text::ILLEGAL_ARGUMENTS))?;
    let reader = Reader { context: cx, view: &view, now: app.now() };
    let mut out = Vec::with_capacity(keys.len());
    for (n, key) in keys.into_iter().enumerate() {
        match reader.get(&Get { key, ..Get::default() }) {
            Ok(entry) => out.push(entry),
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(error),
        }
        take_turns(n).await;
    }
    Ok(out)
}

/// Reads a range of keys.
pub async fn scan(app: &App, cx: &Context, scan: Scan) -> Result<Vec<Entry>> {
    let mut walk = ScanWalk::begin(app, cx, &scan).await?;
    let mut out = Vec::new();
    while let Some(entry) = walk.next(cx).await? {
        out.push(entry);
    }
    Ok(out)
}

/// The range of stored keys that a scan walks; none when it is empty.
pub(super) fn range(scan: &Scan) -> Option<ScanSpec> {
    let prefix = stored_key(&scan.prefix);
    let bound = |key: &Bytes, inclusive: bool| (!key.is_empty()).then(|| (stored_key(key), inclusive));
    let seek = bound(&scan.seek_key, scan.inclusive_seek);
    let end = bound(&scan.end_key, scan.inclusive_end);
    // A bound on the near side of the prefix changes nothing; one on the far side leaves nothing.
    let (below, above) = (|key: &Bytes| *key < prefix, |key: &Bytes| *key > prefix && !key.starts_with(&prefix));
    let (low, high) = if scan.desc { (end, seek) } else { (seek, end) };
    if low.as_ref().is_some_and(|(key, _)| above(key)) || high.as_ref().is_some_and(|(key, _)| below(key)) {
        return None;
    }
    let low = low.filter(|(key, _)| !below(key));
    let high = high.filter(|(key, _)| !above(key));
    let (start, end) = if scan.desc { (high, low) } else { (low, high) };
    let (start, start_inclusive) = start.map_or((None, true), |(key, inclusive)| (Some(key), inclusive));
    let (end, end_inclusive) = end.map_or((None, true), |(key, inclusive)| (Some(key), inclusive));
    Some(ScanSpec { prefix, start, start_inclusive, end, end_inclusive, desc: scan.desc })
}

/// Reads versions of a key; references are not followed.
pub async fn history(app: &App, cx: &Context, history: History) -> Result<Vec<Entry>> {
    let mut walk = HistoryWalk::begin(app, cx, history).await?;
    let mut out = Vec::new();
    while let Some(entry) = walk.next(cx).await? {
        out.push(entry);
    }
    Ok(out)
}

/// Counts keys that begin with `prefix`, also those without a value now.
pub async fn count(cx: &Context, prefix: &[u8]) -> Result<u64> {
    if over(prefix.len() + 1, settings(cx).await?.key_len_max) {
        return Err(text::TREE_ILLEGAL_ARGUMENTS.into());
    }
    let view = cx.view(TxId(0)).await?;
    let spec = ScanSpec::prefix(stored_key(prefix));
    let mut count = 0;
    for (n, found) in view.scan(&spec).enumerate() {
        found?;
        count += 1;
        // Keys are cheaper than values.
        take_turns(n / 16).await;
    }
    Ok(count)
}

/// Lets other calls run now and then.
pub(crate) async fn take_turns(n: usize) {
    if (n + 1).is_multiple_of(ENTRIES_PER_TURN) {
        tokio::task::yield_now().await;
    }
}

/// Settings in force. A new database has none here until its first command is applied, for which the call waits a part of its time.
pub(crate) async fn settings(cx: &Context) -> Result<Settings> {
    let database = cx.replica.database();
    if let Some(settings) = database.settings() {
        return Ok(settings);
    }
    let _ = cx.replica.wait_applied(part_of(cx.deadline), |_| database.settings().is_some()).await;
    database.settings().ok_or(Error::Starting { what: "the database" })
}

pub(crate) fn over(len: usize, max: u32) -> bool {
    len > max as usize
}

pub(crate) fn encode_metadata(metadata: &KvMetadata) -> Bytes {
    if metadata.is_empty() { Bytes::new() } else { Bytes::from(metadata.to_bytes()) }
}

/// What apply would refuse, refused before it travels.
pub(crate) fn check_limits(settings: &Settings, entries: &[ProposalEntry]) -> Result<()> {
    if over(entries.len(), settings.tx_entries_max) {
        return Err(text::MAX_TX_ENTRIES.into());
    }
    for entry in entries {
        if over(entry.key.len(), settings.key_len_max) {
            return Err(text::MAX_KEY_LENGTH.into());
        }
        if over(entry.value.len(), settings.value_len_max) {
            return Err(text::MAX_VALUE_LENGTH.into());
        }
        if settings.header_version == 0 && !entry.metadata.is_empty() {
            return Err(text::METADATA_UNSUPPORTED.into());
        }
    }
    Ok(())
}

/// Whose words malformed preconditions are refused in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// Set and SetReference.
    Set,
    /// ExecAll.
    ExecAll,
}

pub(crate) fn conditions(
    settings: &Settings,
    preconditions: Vec<Precondition>,
    words: Words,
) -> Result<Vec<Condition>> {
    let (key_length, tx_zero) = match words {
        Words::Set => (text::PRECONDITION_KEY_LENGTH, text::PRECONDITION_TX),
        Words::ExecAll => (text::PRECONDITION_KEY_LENGTH_EXEC_ALL, text::PRECONDITION_TX_EXEC_ALL),
    };
    if over(preconditions.len(), settings.tx_entries_max) {
        return Err(text::PRECONDITIONS_TOO_MANY.into());
    }
    let stored = |key: &Bytes| {
        if key.is_empty() {
            Err(text::PRECONDITION_NULL_KEY)
        } else if over(key.len() + 1, settings.key_len_max) {
            Err(key_length)
        } else {
            Ok(stored_key(key))
        }
    };
    let condition = |precondition: &Precondition| match precondition {
        Precondition::Empty => Err(text::PRECONDITION_NULL),
        Precondition::MustExist(key) => Ok(Condition::MustExist(stored(key)?)),
        Precondition::MustNotExist(key) => Ok(Condition::MustNotExist(stored(key)?)),
        Precondition::NotModifiedAfter(key, tx) => {
            let key = stored(key)?;
            if tx.get() == 0 { Err(tx_zero) } else { Ok(Condition::NotModifiedAfter { key, tx: *tx }) }
        }
    };
    preconditions.iter().map(|precondition| condition(precondition).map_err(Error::from)).collect()
}

/// What is said when a condition does not hold.
pub(crate) const fn failure_of(condition: &Condition) -> WireError {
    match condition {
        // Made again by whoever asks for it.
        Condition::Becomes(_) => text::READ_CONFLICT,
        Condition::MustExist(_) => text::KEY_MUST_EXIST,
        Condition::MustNotExist(_) => text::KEY_MUST_NOT_EXIST,
        Condition::NotModifiedAfter { .. } => text::KEY_MODIFIED,
    }
}

/// What became of a write.
pub(crate) enum Committed {
    /// The transaction exists; this node may not have applied it yet.
    Yes(TxHeader),
    /// The precondition at this place does not hold.
    Refused(usize),
}

/// Waits until a transaction that was just committed can be read here.
pub(crate) async fn until_applied(cx: &Context, tx: TxId) -> Result<()> {
    match cx.replica.barrier(Level::AtLeast(tx), cx.deadline).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::from(error).after_commit(tx)),
    }
}

/// Proposes; the outcome is the leader's.
pub(crate) async fn commit(cx: &Context, proposal: TxProposal) -> Result<Committed> {
    judged(cx.replica.write(proposal, cx.deadline).await?)
}

/// What apply said to a transaction, in the words of the protocol.
pub(super) fn judged(written: Written) -> Result<Committed> {
    let rejection = match written {
        Written::Committed(header) => return Ok(Committed::Yes(header)),
        Written::Rejected(rejection) => rejection,
    };
    Err(match rejection {
        Rejection::Precondition { index } => return Ok(Committed::Refused(index as usize)),
        Rejection::NotInitialised => Error::Starting { what: "the database" },
        Rejection::NoEntries => text::NO_ENTRIES.into(),
        Rejection::NullKey => text::NULL_KEY.into(),
        Rejection::KeyTooLong => text::MAX_KEY_LENGTH.into(),
        Rejection::ValueTooLong => text::MAX_VALUE_LENGTH.into(),
        Rejection::TooManyEntries => text::MAX_TX_ENTRIES.into(),
        Rejection::DuplicateKey => text::DUPLICATED_KEYS.into(),
        Rejection::MetadataUnsupported => text::METADATA_UNSUPPORTED.into(),
        Rejection::MetadataInvalid => Error::Internal("metadata that this node made was refused"),
        Rejection::ValueForm => Error::Internal("a value that this node compressed was refused"),
        Rejection::Conflict { .. } => text::READ_CONFLICT.into(),
        Rejection::SnapshotAhead => Error::Internal("a snapshot of this node is ahead of the ledger"),
        Rejection::NothingToPrune => Error::Internal("a proposal was refused as a prune"),
        Rejection::Replica => text::IS_REPLICA.into(),
        Rejection::Import(refusal) => import::refusal(refusal).into(),
        Rejection::RequestTooOld => alhambra_raft::error::ProposeError::OutcomeUnknown.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    /// Keys `a`, `aa`, `ab`, `b`, as a scan of these bounds answers them, by the words of the protocol sheet.
    fn model(scan: &Scan) -> Vec<&'static str> {
        let mut keys: Vec<&str> =
            ["a", "aa", "ab", "b", "c"].into_iter().filter(|k| k.as_bytes().starts_with(&scan.prefix)).collect();
        if scan.desc {
            keys.reverse();
        }
        let seek = std::str::from_utf8(&scan.seek_key).unwrap();
        let end = std::str::from_utf8(&scan.end_key).unwrap();
        let before = |a: &str, b: &str| if scan.desc { a > b } else { a < b };
        keys.retain(|key| {
            let after_seek = seek.is_empty() || before(seek, key) || (scan.inclusive_seek && *key == seek);
            let until_end = end.is_empty() || before(key, end) || (scan.inclusive_end && *key == end);
            after_seek && until_end
        });
        keys
    }

    #[test]
    fn ranges_answer_what_the_bounds_say() {
        let names = ["", "a", "aa", "ab", "ac", "b", "c", "d"];
        for prefix in ["", "a", "aa", "b", "x"] {
            for seek in names {
                for end in names {
                    for flags in 0..8 {
                        let scan = Scan {
                            prefix: bytes(prefix),
                            seek_key: bytes(seek),
                            end_key: bytes(end),
                            inclusive_seek: flags & 1 > 0,
                            inclusive_end: flags & 2 > 0,
                            desc: flags & 4 > 0,
                            ..Scan::default()
                        };
                        let got: Vec<&str> = range(&scan).map_or_else(Vec::new, |spec| walk(&spec));
                        assert_eq!(got, model(&scan), "{scan:?}");
                    }
                }
            }
        }
    }

    /// What an index of these keys answers.
    fn walk(spec: &ScanSpec) -> Vec<&'static str> {
        let mut keys: Vec<&str> = ["a", "aa", "ab", "b", "c"]
            .into_iter()
            .filter(|key| {
                let key = stored_key(key.as_bytes());
                let (low, high) = if spec.desc { (&spec.end, &spec.start) } else { (&spec.start, &spec.end) };
                let (low_in, high_in) = if spec.desc {
                    (spec.end_inclusive, spec.start_inclusive)
                } else {
                    (spec.start_inclusive, spec.end_inclusive)
                };
                key.starts_with(&spec.prefix)
                    && low.as_ref().is_none_or(|low| key > *low || (low_in && key == *low))
                    && high.as_ref().is_none_or(|high| key < *high || (high_in && key == *high))
            })
            .collect();
        if spec.desc {
            keys.reverse();
        }
        keys
    }

    #[test]
    fn malformed_preconditions_in_the_words_of_the_compatible_server() {
        let settings = Settings { key_len_max: 32, tx_entries_max: 2, ..Settings::DEFAULT };
        let long = Bytes::from(vec![b'k'; 32]);
        let fits = Bytes::from(vec![b'k'; 31]);
        for (precondition, expected) in [
            (Precondition::Empty, "invalid precondition: null"),
            (Precondition::MustExist(Bytes::new()), "invalid precondition: null key"),
            (Precondition::MustNotExist(Bytes::new()), "invalid precondition: null key"),
            (Precondition::NotModifiedAfter(Bytes::new(), TxId(1)), "invalid precondition: null key"),
            (
                Precondition::MustExist(long.clone()),
                "invalid precondition: invalid precondition: max key length exceeded",
            ),
            (
                Precondition::NotModifiedAfter(fits.clone(), TxId(0)),
                "invalid precondition: invalid precondition: invalid transaction ID",
            ),
        ] {
            let error = conditions(&settings, vec![precondition], Words::Set).unwrap_err();
            assert_eq!(tonic::Status::from(error).message(), expected);
        }
        let fine =
            vec![Precondition::MustExist(fits.clone()), Precondition::NotModifiedAfter(fits.clone(), TxId(u64::MAX))];
        assert_eq!(conditions(&settings, fine, Words::Set).unwrap().len(), 2);
        let error = conditions(&settings, vec![Precondition::MustExist(fits); 3], Words::ExecAll).unwrap_err();
        assert_eq!(tonic::Status::from(error).message(), "invalid precondition: too many preconditions");
    }
}
