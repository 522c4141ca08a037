//! What is recorded of the life of a database between its creation and its deletion.

use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv::{StoredValue, parse_set_key, parse_value, set_key};
use alhambra_storage::apply::Rejection;
use alhambra_storage::command::{Citation, Precondition, ProposalEntry, TxProposal};
use alhambra_storage::index::{KeyRange, ScanSpec};
use alhambra_storage::read::ReadSnapshot;
use alhambra_storage::reads::Reads;
use tokio::time::Instant;

use super::record::{self, DeletedDatabase, RecordError};
use super::{DatabaseRecord, Meta, MetaError, User, Written, database_key, entry, user_key};
use crate::error::ProposeError;

/// Records of users that one transaction changes; of more, several do, before the one that deletes the database.
const USERS_AT_ONCE: usize = 256;

/// Which values of a database somebody orders to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TruncationOrder<'a> {
    /// The oldest transaction that keeps its values.
    pub before: TxId,
    /// What is older than this goes, Unix seconds.
    pub cutoff: i64,
    /// What the cut-off was worked out from, milliseconds.
    pub retention_ms: i64,
    /// Who orders it.
    pub by: &'a str,
}

impl Meta {
    /// Records whether the replicas of a database are to be open. `expected` is the record that the caller has read;
    /// [`MetaError::Conflict`] tells that it is another by now. Every node opens or closes its replica when it has applied this.
    pub(crate) async fn set_loaded(
        &self,
        expected: &DatabaseRecord,
        loaded: bool,
        deadline: Instant,
    ) -> Result<DatabaseRecord, MetaError> {
        self.replace(expected, DatabaseRecord { loaded, ..expected.clone() }, deadline).await
    }

    /// Records that a database is no more, and with it that nobody has rights in it: whoever creates one of that name finds
    /// nothing of the old. `expected` is the record that the caller has read; [`MetaError::Conflict`] tells that it is another by
    /// now, and that nothing was deleted.
    pub(crate) async fn record_deletion(
        &self,
        expected: &DatabaseRecord,
        by: &str,
        deadline: Instant,
    ) -> Result<(), MetaError> {
        let mut begun = false;
        let recorded = self.record_deletion_in_parts(expected, by, deadline, &mut begun).await;
        recorded.map_err(|error| if begun { after_a_part(error) } else { error })
    }

    /// Sets `begun` when a right may be gone and the database is still there.
    async fn record_deletion_in_parts(
        &self,
        expected: &DatabaseRecord,
        by: &str,
        deadline: Instant,
        begun: &mut bool,
    ) -> Result<(), MetaError> {
        let name = &expected.name;
        loop {
            // Before the records: a change in between is then taken for a conflict, never overlooked.
            let seen = *self.inner.changes.borrow();
            let unchanged = self.unchanged_database(expected)?;
            let mut concerned: Vec<User> = self.users().into_iter().filter(|user| has_rights_in(user, name)).collect();
            let last = concerned.split_off(concerned.len() - concerned.len().min(USERS_AT_ONCE));
            if !concerned.is_empty() {
                concerned.truncate(USERS_AT_ONCE);
                let (entries, mut preconditions) = self.without_rights(&concerned, name, by)?;
                // Nobody loses a right in a database that is loaded again, or another one by now.
                preconditions.push(unchanged);
                match self.write(entries, preconditions, deadline).await? {
                    Written::At(_) => *begun = true,
                    Written::Refused(_) => self.barrier(deadline).await?,
                }
                continue;
            }
            let (mut entries, mut preconditions) = self.without_rights(&last, name, by)?;
            let key = set_key(format!("{}{}", record::DELETED, expected.id).as_bytes());
            let now = self.inner.env.clock.now_unix_ms().div_euclid(1000);
            entries.push(ProposalEntry::stored_deletion(database_key(name)));
            entries.push(entry(key.into(), &record::deleted_json(expected, now, by)));
            preconditions.push(unchanged);
            // Nobody else may be given rights in the meantime.
            let mut reads = Reads::new(seen);
            reads.prefix(&set_key(record::USER.as_bytes()));
            let proposal = TxProposal { entries, preconditions, read_set: reads.finish(), ..TxProposal::default() };
            match self.write_proposal(proposal, deadline).await {
                Ok(Written::At(tx)) => {
                    tracing::info!(%tx, name, "the database is deleted");
                    return Ok(());
                }
                Ok(Written::Refused(_)) | Err(MetaError::Rejected { rejection: Rejection::Conflict { .. } }) => {
                    if Instant::now() >= deadline {
                        return Err(MetaError::Propose(ProposeError::NoQuorum));
                    }
                    self.barrier(deadline).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Records an order to truncate a database. The answer is what the prune cites.
    pub async fn order_truncation(
        &self,
        database: &DatabaseRecord,
        order: &TruncationOrder<'_>,
        deadline: Instant,
    ) -> Result<Citation, MetaError> {
        let name = &database.name;
        let unchanged = self.unchanged_database(database)?;
        let key = set_key(format!("{}{}", record::TRUNCATION, database.id).as_bytes());
        let now = self.inner.env.clock.now_unix_ms().div_euclid(1000);
        let ordered = entry(key.into(), &record::truncation_json(name, order, now));
        match self.write(vec![ordered], vec![unchanged], deadline).await? {
            Written::Refused(_) => Err(MetaError::Conflict { name: name.clone() }),
            Written::At(tx) => {
                let group = self.group().map_err(|_| MetaError::NotShown { tx })?;
                let alh = group.database().alh(tx).map_err(|error| {
                    tracing::error!(%error, %tx, "a transaction of systemdb cannot be read");
                    MetaError::NotShown { tx }
                })?;
                Ok(Citation { tx, alh: alh.0 })
            }
        }
    }

    /// Whether a database was deleted after transaction `tx`. True when nobody knows.
    pub(crate) fn has_deleted_since(&self, tx: TxId) -> bool {
        let Ok(group) = self.group() else { return true };
        let deleted = KeyRange::prefix(set_key(record::DELETED.as_bytes()).into());
        group.database().snapshot().changed_since(&deleted, tx).unwrap_or(true)
    }

    /// The deleted database whose folder has this name; nothing when there is none, or when a database that is there has it.
    pub(crate) fn deleted_of_folder(&self, folder: &str) -> Result<Option<DeletedDatabase>, MetaError> {
        let Some((name, digits)) = record::of_folder(folder) else { return Ok(None) };
        let snapshot = self.group()?.database().snapshot();
        if self.database(name).is_some_and(|record| record.folder() == folder) {
            return Ok(None);
        }
        let deleted = deleted_with(&snapshot, digits).map_err(|error| {
            tracing::warn!(%error, source = ?std::error::Error::source(&error), folder, "the records are not readable");
            MetaError::Unreadable { name: folder.to_owned() }
        })?;
        Ok(deleted.into_iter().find(|deleted| deleted.name == name))
    }

    /// Records of users without their rights in a database, under the condition that they are still these.
    fn without_rights(
        &self,
        users: &[User],
        database: &str,
        by: &str,
    ) -> Result<(Vec<ProposalEntry>, Vec<Precondition>), MetaError> {
        let (mut entries, mut preconditions) = (Vec::new(), Vec::new());
        for user in users {
            preconditions.push(self.unchanged(user)?);
            let mut changed = user.clone();
            changed.permissions.remove(database);
            changed.sql_privileges.remove(database);
            by.clone_into(&mut changed.created_by);
            changed.created_at_ms = self.inner.env.clock.now_unix_ms();
            entries.push(entry(user_key(&user.name), &record::user_json(&changed)));
        }
        Ok((entries, preconditions))
    }

    /// Writes another record in the place of the one that the caller has read. Answers the new one.
    pub(super) async fn replace(
        &self,
        expected: &DatabaseRecord,
        record: DatabaseRecord,
        deadline: Instant,
    ) -> Result<DatabaseRecord, MetaError> {
        let name = expected.name.clone();
        let unchanged = self.unchanged_database(expected)?;
        let changed = entry(database_key(&name), &record::database_json(&record));
        match self.write(vec![changed], vec![unchanged], deadline).await? {
            Written::At(_) => Ok(record),
            Written::Refused(_) => Err(MetaError::Conflict { name }),
        }
    }

    /// The condition that a database's record is still what the caller has read.
    fn unchanged_database(&self, expected: &DatabaseRecord) -> Result<Precondition, MetaError> {
        let name = &expected.name;
        match self.inner.records.read().database(name) {
            None => Err(MetaError::NotFound { name: name.clone() }),
            Some((now, _)) if now != expected => Err(MetaError::Conflict { name: name.clone() }),
            Some((_, tx)) => Ok(Precondition::NotModifiedAfter { key: database_key(name), tx }),
        }
    }
}

/// Deleted databases whose ids begin with these digits.
fn deleted_with(snapshot: &ReadSnapshot, digits: &str) -> Result<Vec<DeletedDatabase>, RecordError> {
    let prefix = format!("{}{digits}", record::DELETED);
    let unreadable = |source| RecordError::Storage { key: prefix.clone(), source };
    let mut deleted = Vec::new();
    for found in snapshot.scan(&ScanSpec::prefix(set_key(prefix.as_bytes()))) {
        let (key, version) = found.map_err(unreadable)?;
        let value = snapshot.value(&key, &version).map_err(unreadable)?;
        let text = parse_set_key(&key).ok().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        let id = text.strip_prefix(record::DELETED).unwrap_or_default();
        match parse_value(&value) {
            Ok(StoredValue::Plain(json)) => deleted.push(record::read_deleted(id, json)?),
            _ => return Err(RecordError::Form { key: text.to_owned() }),
        }
    }
    Ok(deleted)
}

/// What an error means when some have lost their rights already: nobody may say that nothing was done.
fn after_a_part(error: MetaError) -> MetaError {
    match error {
        // Told by the records, and looked at again by whoever asked.
        MetaError::Conflict { .. } | MetaError::NotFound { .. } => error,
        _ => MetaError::Propose(ProposeError::OutcomeUnknown),
    }
}

fn has_rights_in(user: &User, database: &str) -> bool {
    user.permissions.contains_key(database) || user.sql_privileges.contains_key(database)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ReadError;

    #[test]
    fn a_deletion_that_was_begun_is_not_told_as_undone() {
        let name = || "orders".to_owned();
        for error in [
            MetaError::Propose(ProposeError::NoQuorum),
            MetaError::Propose(ProposeError::NotLeader { leader: None }),
            MetaError::Read(ReadError::NoQuorum),
            MetaError::Starting,
            MetaError::Rejected { rejection: Rejection::NothingToPrune },
        ] {
            let told = after_a_part(error);
            assert!(matches!(told, MetaError::Propose(ProposeError::OutcomeUnknown)), "{told:?}");
        }
        assert!(matches!(after_a_part(MetaError::Conflict { name: name() }), MetaError::Conflict { .. }));
        assert!(matches!(after_a_part(MetaError::NotFound { name: name() }), MetaError::NotFound { .. }));
    }
}
