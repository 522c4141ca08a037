//! Keys, values and transactions.

use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_proto::convert;
use alhambra_proto::schema;
use alhambra_proto::schema::precondition::Precondition as Wire;
use tonic::{Request, Response};

use super::{Reply, open, read_reply};
use crate::method;
use crate::service::App;
use crate::service::kv::{self, Entry, Get, History, NewValue, Precondition, Reference, Scan};
use crate::service::transaction::{self, Action, EntriesSpec, TxById, TxScan, TxView, ZEntry};

pub(super) fn new_value(kv: schema::KeyValue) -> NewValue {
    NewValue { metadata: convert::kv_metadata_from(kv.metadata.as_ref()), key: kv.key, value: kv.value }
}

pub(super) fn new_values(values: Vec<schema::KeyValue>) -> Vec<NewValue> {
    values.into_iter().map(new_value).collect()
}

pub(super) fn preconditions(wire: Vec<schema::Precondition>) -> Vec<Precondition> {
    let precondition = |wire: schema::Precondition| match wire.precondition {
        None => Precondition::Empty,
        Some(Wire::KeyMustExist(condition)) => Precondition::MustExist(condition.key),
        Some(Wire::KeyMustNotExist(condition)) => Precondition::MustNotExist(condition.key),
        Some(Wire::KeyNotModifiedAfterTx(condition)) => {
            Precondition::NotModifiedAfter(condition.key, TxId(condition.tx_id))
        }
    };
    wire.into_iter().map(precondition).collect()
}

pub(super) fn get_of(request: schema::KeyRequest) -> Get {
    Get {
        key: request.key,
        at_tx: TxId(request.at_tx),
        since_tx: TxId(request.since_tx),
        at_revision: request.at_revision,
    }
}

pub(super) fn scan_of(request: schema::ScanRequest) -> Scan {
    Scan {
        seek_key: request.seek_key,
        end_key: request.end_key,
        prefix: request.prefix,
        desc: request.desc,
        limit: request.limit,
        since_tx: TxId(request.since_tx),
        inclusive_seek: request.inclusive_seek,
        inclusive_end: request.inclusive_end,
        offset: request.offset,
    }
}

pub(super) fn history_of(request: schema::HistoryRequest) -> History {
    History {
        key: request.key,
        offset: request.offset,
        limit: request.limit,
        desc: request.desc,
        since_tx: TxId(request.since_tx),
    }
}

/// The form of entries that is asked for. A number that is no action counts as leaving out.
pub(super) fn entries_spec(spec: Option<schema::EntriesSpec>) -> Option<EntriesSpec> {
    let action = |spec: Option<schema::EntryTypeSpec>| match spec
        .and_then(|spec| schema::EntryTypeAction::try_from(spec.action).ok())
    {
        None | Some(schema::EntryTypeAction::Exclude) => Action::Exclude,
        Some(schema::EntryTypeAction::OnlyDigest) => Action::OnlyDigest,
        Some(schema::EntryTypeAction::RawValue) => Action::RawValue,
        Some(schema::EntryTypeAction::Resolve) => Action::Resolve,
    };
    spec.map(|spec| EntriesSpec {
        kv: action(spec.kv_entries_spec),
        z: action(spec.z_entries_spec),
        sql: action(spec.sql_entries_spec),
    })
}

pub(super) fn reference(reference: Reference) -> schema::Reference {
    schema::Reference {
        tx: reference.tx.get(),
        key: reference.key,
        at_tx: reference.at_tx.get(),
        metadata: convert::kv_metadata(&reference.metadata),
        revision: reference.revision.get(),
    }
}

pub(super) fn entry(entry: Entry) -> schema::Entry {
    schema::Entry {
        tx: entry.tx.get(),
        key: entry.key,
        value: entry.value,
        referenced_by: entry.referenced_by.map(reference),
        metadata: convert::kv_metadata(&entry.metadata),
        expired: entry.expired,
        revision: entry.revision.get(),
    }
}

fn entries(found: Vec<Entry>) -> schema::Entries {
    schema::Entries { entries: found.into_iter().map(entry).collect() }
}

pub(super) fn z_entry(found: ZEntry) -> schema::ZEntry {
    schema::ZEntry {
        set: found.set,
        key: found.key,
        entry: found.entry.map(entry),
        score: found.score,
        at_tx: found.at_tx.get(),
    }
}

pub(super) fn tx(view: TxView) -> schema::Tx {
    schema::Tx {
        header: Some((&view.header).into()),
        entries: view.entries.iter().map(Into::into).collect(),
        kv_entries: view.kv.into_iter().map(entry).collect(),
        z_entries: view.z.into_iter().map(z_entry).collect(),
    }
}

pub(super) fn header(header: &TxHeader) -> Response<schema::TxHeader> {
    Response::new(header.into())
}

pub(super) async fn set(app: &App, request: Request<schema::SetRequest>) -> Reply<schema::TxHeader> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::SET).await?;
    let written = kv::set(&cx, new_values(request.k_vs), preconditions(request.preconditions)).await?;
    Ok(header(&written))
}

pub(super) async fn delete(app: &App, request: Request<schema::DeleteKeysRequest>) -> Reply<schema::TxHeader> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::DELETE).await?;
    let written = kv::delete(app, &cx, request.keys, TxId(request.since_tx)).await?;
    Ok(header(&written))
}

pub(super) async fn get(app: &App, request: Request<schema::KeyRequest>) -> Reply<schema::Entry> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::GET).await?;
    let found = kv::get(app, &cx, get_of(request)).await?;
    Ok(read_reply(cx.level, entry(found)))
}

pub(super) async fn get_all(app: &App, request: Request<schema::KeyListRequest>) -> Reply<schema::Entries> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::GET_ALL).await?;
    let found = kv::get_all(app, &cx, request.keys, TxId(request.since_tx)).await?;
    Ok(read_reply(cx.level, entries(found)))
}

pub(super) async fn scan(app: &App, request: Request<schema::ScanRequest>) -> Reply<schema::Entries> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::SCAN).await?;
    let found = kv::scan(app, &cx, scan_of(request)).await?;
    Ok(read_reply(cx.level, entries(found)))
}

pub(super) async fn history(app: &App, request: Request<schema::HistoryRequest>) -> Reply<schema::Entries> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::HISTORY).await?;
    let found = kv::history(app, &cx, history_of(request)).await?;
    Ok(read_reply(cx.level, entries(found)))
}

pub(super) async fn count(app: &App, request: Request<schema::KeyPrefix>) -> Reply<schema::EntryCount> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::COUNT).await?;
    let count = kv::count(&cx, &request.prefix).await?;
    Ok(read_reply(cx.level, schema::EntryCount { count }))
}

pub(super) async fn count_all(app: &App, request: Request<()>) -> Reply<schema::EntryCount> {
    let (call, ()) = open(request)?;
    let cx = app.enter(&call, &method::COUNT_ALL).await?;
    let count = kv::count(&cx, &[]).await?;
    Ok(read_reply(cx.level, schema::EntryCount { count }))
}

pub(super) async fn tx_by_id(app: &App, request: Request<schema::TxRequest>) -> Reply<schema::Tx> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::TX_BY_ID).await?;
    let request = TxById {
        tx: TxId(request.tx),
        spec: entries_spec(request.entries_spec),
        since_tx: TxId(request.since_tx),
        keep_references: request.keep_references_unresolved,
    };
    let found = transaction::tx_by_id(app, &cx, request).await?;
    Ok(read_reply(cx.level, tx(found)))
}

pub(super) async fn tx_scan(app: &App, request: Request<schema::TxScanRequest>) -> Reply<schema::TxList> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::TX_SCAN).await?;
    let request = TxScan {
        initial: TxId(request.initial_tx),
        limit: request.limit.into(),
        desc: request.desc,
        spec: entries_spec(request.entries_spec),
        since_tx: TxId(request.since_tx),
    };
    let found = transaction::tx_scan(app, &cx, request).await?;
    Ok(read_reply(cx.level, schema::TxList { txs: found.into_iter().map(tx).collect() }))
}
