//! Whole transactions as bytes, for whoever keeps a copy of the ledger: see `alhambra_ledger::export` for the form.

use alhambra_ledger::export::{self, ExportedEntry, ExportedTx, ExportedValue};
use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_raft::error::ReadError;
use alhambra_storage::txlog::{EntryRecord, TxRecord};
use bytes::Bytes;

use super::kv::take_turns;
use crate::context::Context;
use crate::error::{Error, Result};

/// Which transaction is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Export {
    /// Its number.
    pub tx: TxId,
    /// Whether to wait for it when it does not exist yet.
    pub wait: bool,
    /// Whether the asking replica tells its own state, which counts for the acknowledgement of writes on servers where
    /// replicas vote. Here they do not.
    pub has_state: bool,
}

/// A transaction as bytes.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Header, entries with their values, and whether these are there.
    pub bytes: Bytes,
    /// Newest transaction that this node had applied.
    pub newest: TxId,
}

/// Exports a transaction. One that does not exist is waited for until the deadline of the call, when that is wished.
pub async fn export(cx: &Context, request: Export) -> Result<Exported> {
    if request.tx.get() == 0 {
        return Err(text::ILLEGAL_ARGUMENTS.into());
    }
    if request.has_state {
        return Err(text::REPLICA_STATE_UNEXPECTED.into());
    }
    if request.wait {
        match cx.replica.wait_applied(cx.deadline, |applied| applied.tx >= request.tx).await {
            Ok(()) => {}
            Err(ReadError::Lagging) => return Err(text::NO_NEW_TRANSACTIONS.into()),
            Err(error) => return Err(error.into()),
        }
    }
    let view = cx.view_of(request.tx).await.map_err(|error| error.beyond_is(text::NO_NEW_TRANSACTIONS))?;
    let record = cx.replica.database().tx(request.tx)?;
    let bytes = match encode(cx, &record, true).await {
        // One that is gone takes the others of the transaction with it: the form has one flag for all.
        Err(Error::ValuePruned { .. }) => encode(cx, &record, false).await?,
        encoded => encoded?,
    };
    Ok(Exported { bytes, newest: view.tx() })
}

async fn encode(cx: &Context, record: &TxRecord, with_values: bool) -> Result<Bytes> {
    let mut entries = Vec::with_capacity(record.entries.len());
    for (n, entry) in record.entries.iter().enumerate() {
        entries.push(exported(cx, entry, with_values)?);
        take_turns(n).await;
    }
    let tx = ExportedTx { header: record.header.clone(), entries, values_gone: !with_values };
    Ok(export::encode(&tx)?.into())
}

fn exported(cx: &Context, entry: &EntryRecord, with_values: bool) -> Result<ExportedEntry> {
    let value = if with_values {
        ExportedValue::Present(cx.replica.database().value(entry)?.into())
    } else {
        ExportedValue::Gone(entry.value_hash)
    };
    Ok(ExportedEntry { key: entry.key.to_vec(), metadata: entry.kv_metadata(), value })
}
