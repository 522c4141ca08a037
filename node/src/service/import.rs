//! Transactions that another server made: one after the other, each as it was exported there, into a database in replica mode.
//!
//! Whether one is what it says it is, is judged where all writes are: at apply (`alhambra_storage::import`), on every replica. Here it
//! is read, and waits for the ones before it.

use alhambra_ledger::error::FormatError;
use alhambra_ledger::export::{self, ExportedTx};
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_proto::code::{WireError, text};
use alhambra_raft::group::Level;
use alhambra_storage::command::TxProposal;
use alhambra_storage::import::ImportRefusal;
use tokio::time::timeout_at;

use super::kv::{self, Committed, commit, until_applied};
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
/// call.
pub async fn replicate(cx: &Context, bytes: &[u8]) -> Result<TxHeader> {
    let limits = kv::settings(cx)?;
    // Before the entries, of which a few bytes each may make millions.
    let header = export::decode_header(bytes).map_err(|_| text::ILLEGAL_ARGUMENTS)?;
    if header.nentries > limits.tx_entries_max {
        return Err(text::MAX_TX_ENTRIES.into());
    }
    let tx = read(bytes)?;
    wait_for_turn(cx, header.id).await?;
    let proposal = TxProposal::imported(tx)?;
    kv::check_limits(&limits, &proposal.entries)?;
    match commit(cx, proposal).await? {
        Committed::Yes(header) => {
            until_applied(cx, header.id).await?;
            Ok(header)
        }
        Committed::Refused(_) => Err(Error::Internal("an imported transaction has no preconditions")),
    }
}

/// Waits for the transactions before this one, in a database that takes any. What is known to be refused is refused here: the log
/// would keep it for ever. What this node may not know yet, apply says.
async fn wait_for_turn(cx: &Context, id: TxId) -> Result<()> {
    let database = cx.replica.database();
    let is_replica = || database.settings().is_some_and(|settings| settings.replica);
    if !is_replica() {
        cx.replica.barrier(Level::Linearizable, cx.deadline).await?;
        if !is_replica() {
            return Err(text::NOT_REPLICA.into());
        }
    }
    let mut applied = cx.replica.watch_applied();
    if applied.borrow().tx >= id {
        return Err(text::TX_ALREADY_COMMITTED.into());
    }
    match timeout_at(cx.deadline, applied.wait_for(|applied| applied.tx.next() >= Some(id))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Error::Stopping),
        Err(_) => Err(text::IMPORT_GAP.into()),
    }
}
