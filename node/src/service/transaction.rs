//! Whole transactions by number, as raw entries or with what their entries stand for.

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::{Revision, TxId};
use alhambra_ledger::kv::{self, SortedSetMember, StoredValue};
use alhambra_proto::code::text;
use alhambra_proto::convert::TxEntry;
use alhambra_storage::read::ReadSnapshot;
use alhambra_storage::txlog::{EntryRecord, TxRecord};
use bytes::Bytes;

use super::kv::{Entry, Found, Reader, Reference, is_absence, take_turns};
use super::{App, result_limit};
use crate::context::Context;
use crate::error::{Error, Result};

/// What becomes of the entries of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Left out.
    #[default]
    Exclude,
    /// Key, metadata and hash.
    OnlyDigest,
    /// And the stored value.
    RawValue,
    /// What the entry stands for.
    Resolve,
}

/// What becomes of the entries of a transaction.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntriesSpec {
    /// Plain values and references.
    pub kv: Action,
    /// Members of sorted sets.
    pub z: Action,
    /// Rows.
    pub sql: Action,
}

/// Which transaction is asked for, and in which form.
#[derive(Clone, Copy, Debug, Default)]
pub struct TxById {
    /// Number.
    pub tx: TxId,
    /// Form of the entries; none for all of them with digests.
    pub spec: Option<EntriesSpec>,
    /// Transaction that must be seen.
    pub since_tx: TxId,
    /// Whether references are told, not followed.
    pub keep_references: bool,
}

/// Which transactions are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct TxScan {
    /// The first one.
    pub initial: TxId,
    /// Most transactions; 0 for the maximum.
    pub limit: u64,
    /// Downward.
    pub desc: bool,
    /// Form of the entries.
    pub spec: Option<EntriesSpec>,
    /// Transaction that must be seen.
    pub since_tx: TxId,
}

/// A member of a sorted set.
#[derive(Clone, Debug)]
pub struct ZEntry {
    /// Name of the set.
    pub set: Bytes,
    /// Key of the member.
    pub key: Bytes,
    /// Score.
    pub score: f64,
    /// Transaction that the member is bound to; 0 for none.
    pub at_tx: TxId,
    /// The member's value, unless references are only told.
    pub entry: Option<Entry>,
}

/// A transaction as it was asked for.
#[derive(Clone, Debug)]
pub struct TxView {
    /// Its header.
    pub header: TxHeader,
    /// Entries in stored form.
    pub entries: Vec<TxEntry>,
    /// Plain values and references, resolved.
    pub kv: Vec<Entry>,
    /// Members of sorted sets, resolved.
    pub z: Vec<ZEntry>,
}

/// An entry as it travels, without its value.
fn digest_of(entry: EntryRecord) -> TxEntry {
    TxEntry {
        metadata: entry.kv_metadata(),
        key: entry.key,
        value_hash: entry.value_hash,
        value_len: entry.value_len,
        value: Bytes::new(),
    }
}

/// A transaction with all its entries and no values.
pub(crate) fn raw(record: TxRecord) -> TxView {
    let entries = record.entries.into_iter().map(digest_of).collect();
    TxView { header: record.header, entries, kv: Vec::new(), z: Vec::new() }
}

/// A transaction of which one entry is told, with its proof.
pub(crate) fn of_one(header: TxHeader, entry: EntryRecord) -> TxView {
    TxView { header, entries: vec![digest_of(entry)], kv: Vec::new(), z: Vec::new() }
}

/// The transaction in the form that was asked for.
pub(crate) async fn shape(
    reader: &Reader<'_>,
    tx: TxId,
    spec: Option<EntriesSpec>,
    keep_references: bool,
) -> Result<TxView> {
    let database = reader.context.replica.database();
    let record = database.tx(tx)?;
    let Some(spec) = spec else { return Ok(raw(record)) };
    let mut out = TxView { header: record.header, entries: Vec::new(), kv: Vec::new(), z: Vec::new() };
    for (n, entry) in record.entries.into_iter().enumerate() {
        let action = match entry.key.first() {
            Some(&kv::PLAIN_KEY) => spec.kv,
            Some(&kv::SORTED_SET_KEY) => spec.z,
            Some(&kv::SQL_KEY) => spec.sql,
            _ => Action::Exclude,
        };
        let metadata = entry.kv_metadata();
        match action {
            Action::Exclude => {}
            Action::OnlyDigest => out.entries.push(digest_of(entry)),
            Action::RawValue | Action::Resolve if metadata.is_expired(reader.now) => {}
            Action::RawValue => {
                let value = database.value(&entry)?;
                out.entries.push(TxEntry { value, ..digest_of(entry) });
            }
            Action::Resolve => match entry.key.first() {
                Some(&kv::PLAIN_KEY) => {
                    let stored = database.value(&entry)?;
                    let key = entry.key.slice(1..);
                    let found = Found { tx, revision: Revision(0), metadata, stored };
                    out.kv.extend(present(resolve_kv(reader, key, found, keep_references))?);
                }
                Some(&kv::SORTED_SET_KEY) => {
                    out.z.extend(present(resolve_z(reader, &entry.key, keep_references))?);
                }
                _ => return Err(text::SQL_RESOLUTION_UNSUPPORTED.into()),
            },
        }
        take_turns(n).await;
    }
    Ok(out)
}

/// Leaves out what has no value.
fn present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn resolve_kv(reader: &Reader<'_>, key: Bytes, found: Found, keep_references: bool) -> Result<Entry> {
    if found.metadata.deleted {
        return Err(text::KEY_NOT_FOUND.into());
    }
    if keep_references && let StoredValue::Reference { at_tx, key: target } = kv::parse_value(&found.stored)? {
        let target = found.stored.slice_ref(target);
        let reference = Reference { tx: found.tx, key, at_tx, metadata: found.metadata, revision: found.revision };
        return Ok(Entry {
            tx: at_tx,
            key: target,
            value: Bytes::new(),
            metadata: Default::default(),
            expired: false,
            revision: Revision(0),
            referenced_by: Some(reference),
        });
    }
    reader.resolve(key, found)
}

fn resolve_z(reader: &Reader<'_>, stored_key: &Bytes, keep_references: bool) -> Result<ZEntry> {
    let SortedSetMember { set, score, key, at_tx } = kv::parse_zadd_key(stored_key)?;
    let (set, key) = (stored_key.slice_ref(set), stored_key.slice_ref(key));
    let entry = if keep_references { None } else { Some(reader.target(at_tx, key.clone())?) };
    Ok(ZEntry { set, key, score, at_tx, entry })
}

/// A view in which this transaction exists, and everything that the call wants to see.
pub(crate) async fn view_with(
    cx: &Context,
    tx: TxId,
    spec: Option<EntriesSpec>,
    since_tx: TxId,
) -> Result<ReadSnapshot> {
    // Resolved entries are the newest state; without them a transaction is what it always was.
    let resolves = spec.is_some_and(|spec| [spec.kv, spec.z, spec.sql].contains(&Action::Resolve));
    if resolves || since_tx.get() > 0 {
        cx.view(since_tx).await.map_err(|error| error.beyond_is(text::ILLEGAL_ARGUMENTS))?;
    }
    cx.view_of(tx).await
}

/// One transaction.
pub async fn tx_by_id(app: &App, cx: &Context, request: TxById) -> Result<TxView> {
    if request.tx.get() == 0 {
        return Err(text::ILLEGAL_ARGUMENTS.into());
    }
    let view = view_with(cx, request.tx, request.spec, request.since_tx).await?;
    let reader = Reader { context: cx, view: &view, now: app.now() };
    shape(&reader, request.tx, request.spec, request.keep_references).await
}

/// Transactions one after the other; none beyond the newest.
pub async fn tx_scan(app: &App, cx: &Context, request: TxScan) -> Result<Vec<TxView>> {
    if request.initial.get() == 0 {
        return Err(text::ILLEGAL_ARGUMENTS.into());
    }
    let limit = result_limit(request.limit)?;
    let view = cx.view(request.since_tx).await.map_err(|error| error.beyond_is(text::ILLEGAL_ARGUMENTS))?;
    let reader = Reader { context: cx, view: &view, now: app.now() };
    let (initial, newest) = (request.initial.get(), view.tx().get());
    let mut out = Vec::new();
    let mut next = Some(initial).filter(|tx| *tx <= newest);
    while let Some(tx) = next
        && out.len() < limit
    {
        match shape(&reader, TxId(tx), request.spec, false).await {
            Ok(tx) => out.push(tx),
            Err(Error::BeyondLedger { .. }) => break,
            Err(error) => return Err(error),
        }
        take_turns(out.len()).await;
        next =
            if request.desc { tx.checked_sub(1).filter(|tx| *tx > 0) } else { Some(tx + 1).filter(|tx| *tx <= newest) };
    }
    Ok(out)
}
