//! References, members of sorted sets, and several operations in one transaction.
//!
//! What is pointed to is looked at in a snapshot, and the proposal carries what was looked at: it is carried out only if all
//! of it is still so at its place in the log. Otherwise it is made again, a bounded number of times.

use std::collections::{HashMap, HashSet};

use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv::{self as stored, StoredValue};
use alhambra_proto::code::{WireError, text};
use alhambra_raft::group::Level;
use alhambra_storage::command::{Precondition as Condition, ProposalEntry, Settings, TxProposal};
use alhambra_storage::transaction::{Transaction, TransactionError};
use bytes::Bytes;
use tokio::time::Instant;

use super::App;
use super::kv::{
    Committed, NewValue, Precondition, Reader, Words, check_limits, commit, conditions, encode_metadata, failure_of,
    must_be_live, settings, stored_key,
};
use crate::context::Context;
use crate::error::{Error, Result};

/// How often a transaction is made again because of others before its caller is told.
const ATTEMPTS_MAX: usize = 64;
/// A large one is made again less often: each attempt is in the log of every replica. Bytes of all attempts together, but two are
/// made of any.
const ATTEMPTS_BYTES_MAX: usize = 64 << 20;

/// What a reference or a member of a sorted set points to.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Key.
    pub key: Bytes,
    /// Transaction to which it is bound; 0 for none, or for the transaction that is being made.
    pub at_tx: TxId,
    /// Whether it is bound.
    pub bound: bool,
}

/// A reference as it is to be written.
#[derive(Clone, Debug, Default)]
pub struct NewReference {
    /// Its key.
    pub key: Bytes,
    /// What it points to.
    pub target: Target,
}

/// A member of a sorted set as it is to be written.
#[derive(Clone, Debug, Default)]
pub struct NewMember {
    /// Name of the set.
    pub set: Bytes,
    /// Score.
    pub score: f64,
    /// What it points to.
    pub target: Target,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Writes a value.
    Value(NewValue),
    /// Writes a reference.
    Reference(NewReference),
    /// Adds to a sorted set.
    Member(NewMember),
}

/// To which version of its target a reference leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    /// The newest.
    Newest,
    /// What this transaction wrote.
    At(TxId),
    /// What the transaction that is being made writes.
    Own,
}

impl Target {
    fn check(&self, own_allowed: bool) -> Result<Binding> {
        match (self.bound, self.at_tx.get()) {
            _ if self.key.is_empty() => Err(text::ILLEGAL_ARGUMENTS.into()),
            (false, 0) => Ok(Binding::Newest),
            (true, 0) if own_allowed => Ok(Binding::Own),
            (true, 1..) => Ok(Binding::At(self.at_tx)),
            _ => Err(text::ILLEGAL_ARGUMENTS.into()),
        }
    }
}

/// An operation whose arguments are in order.
#[derive(Debug)]
enum Checked {
    Value(NewValue),
    Reference { key: Bytes, target: Bytes, binding: Binding },
    Member { set: Bytes, score: f64, target: Bytes, binding: Binding },
}

impl Checked {
    fn new(operation: Operation, own_allowed: bool) -> Result<Self> {
        Ok(match operation {
            Operation::Value(value) if value.key.is_empty() => return Err(text::ILLEGAL_ARGUMENTS.into()),
            Operation::Value(value) => Self::Value(value),
            Operation::Reference(NewReference { key, .. }) if key.is_empty() => {
                return Err(text::ILLEGAL_ARGUMENTS.into());
            }
            Operation::Reference(NewReference { key, target }) => {
                Self::Reference { binding: target.check(own_allowed)?, key, target: target.key }
            }
            Operation::Member(NewMember { set, .. }) if set.is_empty() => return Err(text::ILLEGAL_ARGUMENTS.into()),
            Operation::Member(NewMember { set, score, target }) => {
                Self::Member { binding: target.check(own_allowed)?, set, score, target: target.key }
            }
        })
    }

    fn points(&self) -> Option<(&Bytes, Binding)> {
        match self {
            Self::Value(_) => None,
            Self::Reference { target, binding, .. } | Self::Member { target, binding, .. } => Some((target, *binding)),
        }
    }

    /// The stored form; `own` is the id of the transaction that is being made.
    fn entry(&self, own: TxId) -> ProposalEntry {
        let at = |binding: Binding| match binding {
            Binding::Newest => TxId(0),
            Binding::At(tx) => tx,
            Binding::Own => own,
        };
        match self {
            Self::Value(NewValue { key, value, metadata }) => {
                let value = Bytes::from(stored::set_value(value));
                ProposalEntry::plain(stored_key(key), encode_metadata(metadata), value)
            }
            Self::Reference { key, target, binding } => {
                let value = Bytes::from(stored::reference_value(at(*binding), target));
                ProposalEntry::plain(stored_key(key), Bytes::new(), value)
            }
            Self::Member { set, score, target, binding } => {
                let key = Bytes::from(stored::zadd_key(set, *score, target, at(*binding)));
                ProposalEntry::plain(key, Bytes::new(), Bytes::new())
            }
        }
    }
}

/// What an earlier operation of the same transaction has written under a key.
#[derive(Clone, Copy, Debug)]
enum Written<'a> {
    Value(&'a KvMetadata),
    Reference,
}

/// A transaction whose operations are in order among each other.
#[derive(Debug)]
struct Plan {
    operations: Vec<Checked>,
    conditions: Vec<Condition>,
}

/// Writes a reference.
pub async fn set_reference(
    app: &App,
    cx: &Context,
    reference: NewReference,
    preconditions: Vec<Precondition>,
) -> Result<TxHeader> {
    let operation = Checked::new(Operation::Reference(reference), false)?;
    let conditions = conditions(&settings(cx).await?, preconditions, Words::Set)?;
    carry_out(app, cx, &Plan { operations: vec![operation], conditions }).await
}

/// Adds a member to a sorted set.
pub async fn add_member(app: &App, cx: &Context, member: NewMember) -> Result<TxHeader> {
    let operation = Checked::new(Operation::Member(member), false)?;
    carry_out(app, cx, &Plan { operations: vec![operation], conditions: Vec::new() }).await
}

/// Carries out operations in one transaction, in their order; `None` is one that says nothing. With `self_contained`
/// nothing is looked at but the operations.
pub async fn exec_all(
    app: &App,
    cx: &Context,
    operations: Vec<Option<Operation>>,
    preconditions: Vec<Precondition>,
    self_contained: bool,
) -> Result<TxHeader> {
    if operations.is_empty() {
        return Err(text::EMPTY_SET.into());
    }
    let operations = operations
        .into_iter()
        .map(|operation| Checked::new(operation.ok_or(text::OPERATION_NOT_SET)?, true))
        .collect::<Result<Vec<_>>>()?;
    check_duplicates(&operations)?;
    if self_contained {
        check_self_contained(&operations)?;
    }
    let conditions = conditions(&settings(cx).await?, preconditions, Words::ExecAll)?;
    carry_out(app, cx, &Plan { operations, conditions }).await
}

fn check_duplicates(operations: &[Checked]) -> Result<()> {
    let (mut keys, mut members) = (HashSet::new(), HashSet::new());
    for operation in operations {
        match operation {
            Checked::Value(NewValue { key, .. }) | Checked::Reference { key, .. } => {
                if !keys.insert(key) {
                    return Err(Error::DuplicatedKey { key: key.clone() });
                }
            }
            Checked::Member { set, target, binding, .. } => {
                let at_tx = if let Binding::At(tx) = binding { *tx } else { TxId(0) };
                if !members.insert((set, target, at_tx)) {
                    return Err(text::DUPLICATED_MEMBERS.into());
                }
            }
        }
    }
    Ok(())
}

fn check_self_contained(operations: &[Checked]) -> Result<()> {
    let mut set = HashSet::new();
    for operation in operations {
        let (target, binding, refusal) = match operation {
            Checked::Value(value) => {
                set.insert(&value.key);
                continue;
            }
            Checked::Reference { target, binding, .. } => (target, binding, text::NO_WAIT_REFERENCE),
            Checked::Member { target, binding, .. } => (target, binding, text::NO_WAIT_MEMBER),
        };
        if *binding != Binding::Own {
            return Err(text::NO_WAIT_UNBOUND.into());
        }
        if !set.contains(target) {
            return Err(refusal.into());
        }
    }
    Ok(())
}

/// Makes the transaction until it meets no other one, or too often.
async fn carry_out(app: &App, cx: &Context, plan: &Plan) -> Result<TxHeader> {
    let settings = settings(cx).await?;
    let entries: Vec<_> = plan.operations.iter().map(|operation| operation.entry(TxId(0))).collect();
    check_limits(&settings, &entries)?;
    if plan.operations.iter().any(|operation| operation.points().is_some()) {
        // Everything that was acknowledged before, whatever the call says about reads.
        cx.replica.barrier(Level::Linearizable, cx.deadline).await?;
    }
    let bytes: usize = entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
    for _ in 0..attempts(bytes) {
        let (proposal, refusals) = propose(app, cx, plan, &entries, &settings).await?;
        match commit(cx, proposal).await {
            Ok(Committed::Yes(header)) => return Ok(header),
            Ok(Committed::Refused(index)) => match refusals.get(index) {
                Some(refusal) if *refusal != text::READ_CONFLICT => return Err((*refusal).into()),
                Some(_) => {}
                None => return Err(Error::Internal("an unknown precondition failed")),
            },
            Err(Error::Wire(error)) if error == text::READ_CONFLICT => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= cx.deadline {
            break;
        }
        // What was in the way is applied here before it is looked at again.
        cx.replica.barrier(Level::Linearizable, cx.deadline).await?;
    }
    Err(text::READ_CONFLICT.into())
}

fn attempts(bytes: usize) -> usize {
    (ATTEMPTS_BYTES_MAX / bytes.max(1)).clamp(2, ATTEMPTS_MAX)
}

/// The proposal on what is applied here, and what is said when one of its preconditions does not hold.
/// `entries` are those of the plan without the transaction's own id.
async fn propose(
    app: &App,
    cx: &Context,
    plan: &Plan,
    entries: &[ProposalEntry],
    settings: &Settings,
) -> Result<(TxProposal, Vec<WireError>)> {
    for operation in &plan.operations {
        if let Some((_, Binding::At(tx))) = operation.points() {
            cx.view_of(tx).await?;
        }
    }
    let now = app.now();
    let snapshot = cx.replica.database().snapshot();
    let mut transaction = Transaction::new(snapshot, settings.clone(), now);
    let mut written: HashMap<&Bytes, Written<'_>> = HashMap::new();
    let mut is_own = false;
    for operation in &plan.operations {
        if let Some((target, binding)) = operation.points() {
            is_own |= binding == Binding::Own;
            match (written.get(target), binding) {
                (Some(Written::Reference), Binding::Newest | Binding::Own) => return Err(text::KEY_NOT_FOUND.into()),
                // Not to be found in the index, only by its transaction.
                (Some(Written::Value(metadata)), Binding::Newest) if metadata.non_indexable => {
                    return Err(text::KEY_NOT_FOUND.into());
                }
                (Some(Written::Value(metadata)), Binding::Newest | Binding::Own) => must_be_live(metadata, now)?,
                (None, Binding::Own) => {}
                (_, Binding::At(tx)) => {
                    let reader = Reader { context: cx, view: transaction.snapshot(), now };
                    must_be_a_value(&reader.written_in(&stored_key(target), tx)?.stored)?;
                }
                (None, Binding::Newest) => match read(&mut transaction, target, now)? {
                    Some(value) => must_be_a_value(&value)?,
                    None => return Err(text::KEY_NOT_FOUND.into()),
                },
            }
        }
        match operation {
            Checked::Value(value) => drop(written.insert(&value.key, Written::Value(&value.metadata))),
            Checked::Reference { key, .. } => {
                let before = read(&mut transaction, key, now)?;
                let is_reference =
                    |value: &Bytes| Ok(matches!(stored::parse_value(value)?, StoredValue::Reference { .. }));
                if !before.as_ref().map_or(Ok::<_, Error>(true), is_reference)? {
                    return Err(text::KEY_HAS_VALUE.into());
                }
                written.insert(key, Written::Reference);
            }
            Checked::Member { .. } => {}
        }
    }
    let own = transaction.snapshot().tx().next().ok_or(Error::Internal("the ledger is full"))?;
    let mut preconditions = plan.conditions.clone();
    if is_own {
        preconditions.push(Condition::Becomes(own));
    }
    let refusals = preconditions.iter().map(failure_of).collect();
    // Only what holds the id itself is made again; the others share their bytes.
    let with_id = |(operation, entry): (&Checked, &ProposalEntry)| match operation.points() {
        Some((_, Binding::Own)) => operation.entry(own),
        _ => entry.clone(),
    };
    let entries = plan.operations.iter().zip(entries).map(with_id).collect();
    // Nothing was read for values alone.
    let read_set = transaction.into_proposal().read_set.filter(|reads| !reads.ranges().is_empty());
    Ok((TxProposal { entries, preconditions, read_set, ..TxProposal::default() }, refusals))
}

/// The newest stored value of a key, which must not have expired; none when there is none.
fn read(transaction: &mut Transaction, key: &Bytes, now: i64) -> Result<Option<Bytes>> {
    let key = stored_key(key);
    let found = transaction.get(&key).map_err(unreadable)?;
    if let Some(found) = found {
        return transaction.value(&found).map(Some).map_err(unreadable);
    }
    match transaction.snapshot().get(&key)? {
        Some(version) if !version.metadata.deleted && version.metadata.is_expired(now) => {
            Err(text::EXPIRED_ENTRY.into())
        }
        _ => Ok(None),
    }
}

fn must_be_a_value(stored_value: &[u8]) -> Result<()> {
    match stored::parse_value(stored_value)? {
        StoredValue::Plain(_) => Ok(()),
        StoredValue::Reference { .. } => Err(text::REFERENCE_TO_REFERENCE.into()),
        StoredValue::Deletion => Err(text::KEY_NOT_FOUND.into()),
    }
}

/// A transaction that only reads cannot be refused for what it writes.
fn unreadable(error: TransactionError) -> Error {
    match error {
        TransactionError::Storage(error) => error.into(),
        _ => Error::Internal("a transaction refused to be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_transaction_is_made_again_less_often() {
        for (bytes, expected) in [(0, 64), (1 << 20, 64), (2 << 20, 32), (30 << 20, 2), (usize::MAX, 2)] {
            assert_eq!(attempts(bytes), expected, "{bytes}");
        }
    }
}
