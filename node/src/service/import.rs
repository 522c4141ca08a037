//! Transactions that another server made: one after the other, each as it was exported there, into a database in replica mode.
//!
//! Whether one is what it says it is, is judged where all writes are: at apply (`alhambra_storage::import`), on every replica. Here it
//! is read, and waits for the ones before it.

use alhambra_ledger::error::FormatError;
use alhambra_ledger::export::{self, ExportedTx};
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_proto::code::{WireError, text};
use alhambra_raft::error::ReadError;
use alhambra_raft::forward::Written;
use alhambra_raft::group::Level;
use alhambra_raft::turns::Turn;
use alhambra_storage::apply::Rejection;
use alhambra_storage::command::TxProposal;
use alhambra_storage::import::ImportRefusal;
use tokio::time::timeout_at;

use super::kv::{self, Committed, until_applied};
use crate::context::Context;
use crate::error::{Error, Result};

/// What a refusal says to clients.
pub(super) fn refusal(refusal: ImportRefusal) -> WireError {
    match refusal {
        ImportRefusal::NotReplica => text::NOT_REPLICA,
        ImportRefusal::AlreadyCommitted => text::TX_ALREADY_COMMITTED,
        ImportRefusal::Gap => text::IMPORT_GAP,
        ImportRefusal::Header | ImportRefusal::PartlyGone => text::ILLEGAL_ARGUMENTS,
        ImportRefusal::Entries => text::IMPORT_EH,
        ImportRefusal::Link => text::IMPORT_BL_TX_ID,
        ImportRefusal::BlRoot => text::IMPORT_BL_ROOT,
        ImportRefusal::PrevAlh => text::IMPORT_PREV_ALH,
    }
}

/// A transaction at the beginning of these bytes; what follows it means nothing.
fn read(bytes: &[u8]) -> Result<ExportedTx> {
    let read = match export::decode(bytes) {
        Err(FormatError::TrailingBytes { count }) => export::decode(&bytes[..bytes.len() - count]),
        read => read,
    };
    read.map_err(|_| text::ILLEGAL_ARGUMENTS.into())
}

/// Takes over a transaction; its header is the answer. One whose predecessors are missing waits for them, to the deadline of the
/// call. Those behind it need not wait for its end: see `alhambra_raft::turns`.
pub async fn replicate(cx: &Context, bytes: &[u8]) -> Result<TxHeader> {
    let limits = kv::settings(cx).await?;
    // Before the entries, of which a few bytes each may make millions.
    let header = export::decode_header(bytes).map_err(|_| text::ILLEGAL_ARGUMENTS)?;
    if header.nentries > limits.tx_entries_max {
        return Err(text::MAX_TX_ENTRIES.into());
    }
    let tx = read(bytes)?;
    must_be_replica(cx).await?;
    must_be_new(cx, header.id)?;
    let proposal = TxProposal::imported(tx)?;
    kv::check_limits(&limits, &proposal.entries)?;
    loop {
        let turn = turn_of(cx, header.id).await?;
        must_be_new(cx, header.id)?;
        let written = cx.replica.write(proposal.clone(), cx.deadline).await?;
        if matches!(written, Written::Rejected(Rejection::Import(ImportRefusal::Gap))) {
            // One before it was on its way, and came to nothing.
            drop(turn);
            wait_for_the_one_before(cx, header.id).await?;
            continue;
        }
        return match kv::judged(written)? {
            Committed::Yes(header) => {
                turn.committed();
                until_applied(cx, header.id).await?;
                Ok(header)
            }
            Committed::Refused(_) => Err(Error::Internal("an imported transaction has no preconditions")),
        };
    }
}

/// Refuses what apply would: the log would keep it for ever. What this node may not know yet, apply says.
async fn must_be_replica(cx: &Context) -> Result<()> {
    let database = cx.replica.database();
    let is_replica = || database.settings().is_some_and(|settings| settings.replica);
    if !is_replica() {
        cx.replica.barrier(Level::Linearizable, cx.deadline).await?;
        if !is_replica() {
            return Err(text::NOT_REPLICA.into());
        }
    }
    Ok(())
}

/// The same about a transaction that is there.
fn must_be_new(cx: &Context, id: TxId) -> Result<()> {
    let is_there = cx.replica.watch_applied().borrow().tx >= id;
    if is_there { Err(text::TX_ALREADY_COMMITTED.into()) } else { Ok(()) }
}

/// Waits for what only the transactions before this one can bring.
async fn turn_of(cx: &Context, id: TxId) -> Result<Turn> {
    match timeout_at(cx.deadline, cx.replica.import_turn(id)).await {
        Ok(turn) => turn.ok_or(Error::Read(ReadError::Stopped)),
        Err(_) => Err(text::IMPORT_GAP.into()),
    }
}

async fn wait_for_the_one_before(cx: &Context, id: TxId) -> Result<()> {
    match cx.replica.wait_applied(cx.deadline, |applied| applied.tx.next() >= Some(id)).await {
        Err(ReadError::Lagging) => Err(text::IMPORT_GAP.into()),
        waited => Ok(waited?),
    }
}
