//! Creating and listing databases, their settings, and their upkeep by order.

use std::time::Duration;

use alhambra_proto::code::{WireError, text};
use alhambra_raft::meta::{DEFAULT_DATABASE, DatabaseRecord, MetaError, NewDatabase, SYSTEM_DATABASE};
use alhambra_raft::strand::of_node;
use alhambra_storage::command::Settings;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::settings::DatabaseSettings;
use crate::auth;
use crate::context::{Call, Context, ReadLevel, Visit};
use crate::error::{Error, Result};
use crate::method::Right;

/// Longest name of a database, bytes.
const NAME_LEN_MAX: usize = 128;

/// How long a change of settings waits until it is in force here.
const IN_FORCE_WAIT: Duration = Duration::from_secs(2);

/// How often it is looked whether an index is merged.
const COMPACTION_LOOK: Duration = Duration::from_millis(20);

/// A database as a list shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Name.
    pub name: String,
    /// Settings, complete.
    pub settings: DatabaseSettings,
    /// Whether its replicas are meant to be open.
    pub loaded: bool,
    /// Size on the disk of this node, bytes.
    pub disk_bytes: u64,
    /// Newest transaction applied here.
    pub transactions: u64,
    /// Unix seconds.
    pub created_at: i64,
    /// User who created it.
    pub created_by: String,
}

/// What CreateDatabase answers.
#[derive(Clone, Debug)]
pub struct Created {
    /// Name, lower-cased.
    pub name: String,
    /// Settings, complete.
    pub settings: DatabaseSettings,
    /// Whether it existed before.
    pub existed: bool,
}

/// Checks a name, lower-cased before.
fn check_name(name: &str) -> std::result::Result<(), WireError> {
    if !(1..=NAME_LEN_MAX).contains(&name.len()) {
        return Err(text::DATABASE_NAME_LENGTH);
    }
    for character in name.chars() {
        if character.is_alphanumeric() || character == '_' {
            continue;
        }
        // Beyond ASCII, what is neither letter nor space nor invisible is a mark or a symbol.
        let punctuation = character.is_ascii_punctuation()
            || !(character.is_ascii() || character.is_whitespace() || character.is_control());
        return Err(if punctuation { text::DATABASE_NAME_PUNCTUATION } else { text::DATABASE_NAME_CHARACTER });
    }
    Ok(())
}

impl App {
    /// Creates a database. Answers its record and whether it existed before.
    pub async fn create_database(
        &self,
        call: &Call,
        name: &str,
        settings: DatabaseSettings,
        if_not_exists: bool,
    ) -> Result<Created> {
        let caller = self.caller_or(call, text::NO_USER_DATA)?;
        if !auth::is_sysadmin(&caller.user) {
            return Err(text::NO_OPERATION_PERMISSION.into());
        }
        if name == DEFAULT_DATABASE || name == SYSTEM_DATABASE {
            return Err(text::DATABASE_RESERVED.into());
        }
        let name = name.to_lowercase();
        if name == SYSTEM_DATABASE {
            return Err(text::DATABASE_RESERVED.into());
        }
        check_name(&name)?;
        settings.check(&name)?;
        let new = NewDatabase {
            name,
            settings: settings.to_apply(),
            segment_bytes: self.choices.segment_bytes,
            face: settings.to_face(),
            created_by: caller.user.name.clone(),
        };
        match self.groups.meta().create_database(new, if_not_exists, call.deadline).await {
            Ok((record, existed)) => Ok(Created {
                settings: DatabaseSettings::from_record(&record.face, &record.settings),
                name: record.name,
                existed,
            }),
            Err(MetaError::Exists { .. }) => Err(text::DATABASE_EXISTS.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes settings of a database; answers all of them. What apply uses of them is in force then on this node, if the leader of
    /// the database puts it into the log in time; else a moment later.
    pub async fn update_database(
        &self,
        call: &Call,
        name: &str,
        change: impl Fn(&mut DatabaseSettings),
    ) -> Result<DatabaseSettings> {
        // It cannot be created as a replica, so it has to be made one; nothing else of it may be changed.
        let is_sysadmin = || self.authenticate(call).is_ok_and(|caller| auth::is_sysadmin(&caller.user));
        let is_default = name == DEFAULT_DATABASE && is_sysadmin();
        if is_default {
            self.groups.meta().barrier(call.deadline).await?;
        } else {
            self.still_administrates(call, name).await?;
        }
        loop {
            let record = self.groups.meta().database(name).ok_or(text::DATABASE_NOT_FOUND)?;
            let before = DatabaseSettings::from_record(&record.face, &record.settings);
            let mut settings = before.clone();
            change(&mut settings);
            if is_default && !settings.differ_in_replica_mode_only(&before) {
                return Err(text::DATABASE_RESERVED.into());
            }
            settings.check_change(&before, name)?;
            settings.check(name)?;
            let (apply, face) = (settings.to_apply_after(&record.settings), settings.to_face());
            match self.groups.meta().update_database(&record, apply.clone(), face, call.deadline).await {
                Ok(_) => {
                    self.until_in_force(name, &apply, call.deadline).await;
                    return Ok(settings);
                }
                // Others change it as well: again, on top of theirs.
                Err(MetaError::Conflict { .. }) => self.groups.meta().barrier(call.deadline).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As [`Self::may_administrate`], to the newest records, which are here from now on: rights at login are no rights in a database
    /// that was deleted and made anew since.
    pub(super) async fn still_administrates(&self, call: &Call, name: &str) -> Result<()> {
        self.may_administrate(call, name)?;
        self.groups.meta().barrier(call.deadline).await?;
        let caller = self.caller_or(call, text::NO_USER_DATA)?;
        self.must_be_current(&caller, text::NO_USER_DATA)
    }

    /// Waits until this node's replica applies with these settings, but not long: they are recorded, and come into force by themselves.
    async fn until_in_force(&self, name: &str, settings: &Settings, deadline: Instant) {
        let Some(group) = self.groups.group_by_name(name) else { return };
        let until = deadline.min(Instant::now() + IN_FORCE_WAIT);
        let _ = group.wait_applied(until, |_| group.database().settings().is_none_or(|now| now == *settings)).await;
    }

    /// Refuses callers who do not administrate a database, and the two databases that nobody does.
    pub(super) fn may_administrate(&self, call: &Call, name: &str) -> Result<()> {
        let caller = self.caller_or(call, text::NO_USER_DATA)?;
        if name == DEFAULT_DATABASE || name == SYSTEM_DATABASE {
            return Err(text::DATABASE_RESERVED.into());
        }
        if auth::includes(auth::permission_in(&caller.user, name), Right::Admin) {
            Ok(())
        } else {
            Err(Error::NotYourDatabase { name: name.to_owned() })
        }
    }

    /// Settings of the selected database, complete.
    pub async fn database_settings(&self, visit: &Visit) -> Result<DatabaseSettings> {
        if visit.level == ReadLevel::Linearizable {
            self.groups.meta().barrier(visit.deadline).await?;
        }
        let record = self.groups.meta().database(visit.database.name()).ok_or(text::DATABASE_NOT_FOUND)?;
        Ok(DatabaseSettings::from_record(&record.face, &record.settings))
    }

    /// Writes out what this node has of the index in memory only, and takes a checkpoint; one database at a time. `cleanup` is a
    /// percentage, which is checked and without effect: merged runs have nothing to clean up.
    pub async fn flush_index(&self, cx: &Context, cleanup: f32) -> Result<()> {
        if !(0.0..=100.0).contains(&cleanup) {
            return Err(text::CLEANUP_PERCENTAGE.into());
        }
        let others = tokio::select! {
            others = timeout_at(cx.deadline, self.flushing.clone().lock_owned()) => others,
            error = self.closing(cx) => return Err(error),
        };
        let alone = others.map_err(|_| Error::GoesOn { what: "flushing another index" })?;
        let database = cx.replica.database().clone();
        let done = self.env.blocking(of_node::MEMORY, move || {
            // Also when the caller waits no more.
            let _alone = alone;
            database.release_memory()
        });
        match timeout_at(cx.deadline, done).await {
            Ok(Some(done)) => Ok(done?),
            Ok(None) => Err(Error::Stopping),
            Err(_) => Err(Error::GoesOn { what: "flushing the index" }),
        }
    }

    /// Waits until there is nothing to merge in the index of this node.
    pub async fn compact_index(&self, cx: &Context) -> Result<()> {
        let database = cx.replica.database();
        if !database.index_work_due() {
            return Err(text::NOTHING_TO_COMPACT.into());
        }
        let done = async {
            while database.index_work_due() {
                cx.replica.tend_index();
                tokio::time::sleep(COMPACTION_LOOK).await;
            }
        };
        tokio::select! {
            merged = timeout_at(cx.deadline, done) => merged.map_err(|_| Error::GoesOn { what: "merging the index" }),
            error = self.closing(cx) => Err(error),
        }
    }

    /// Databases that the caller may select, the default one first, then in the order of their creation.
    pub async fn databases(&self, call: &Call) -> Result<Vec<Listed>> {
        let caller = self.caller_or(call, text::PLEASE_LOGIN_LIST)?;
        if call.level == ReadLevel::Linearizable {
            self.groups.meta().barrier(call.deadline).await?;
        }
        let mut records = self.groups.meta().databases();
        records.retain(|record| auth::permission_in(&caller.user, &record.name) > 0);
        records.sort_by_key(|record| (record.name != DEFAULT_DATABASE, record.group));
        Ok(records.into_iter().map(|record| self.listed(record)).collect())
    }

    fn listed(&self, record: DatabaseRecord) -> Listed {
        let group = self.groups.group_by_name(&record.name);
        Listed {
            settings: DatabaseSettings::from_record(&record.face, &record.settings),
            loaded: record.loaded,
            disk_bytes: group.as_ref().map_or(0, |group| group.database().size_bytes()),
            transactions: group.as_ref().map_or(0, |group| group.database().applied().tx.get()),
            created_at: record.created_at,
            created_by: record.created_by,
            name: record.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let longest = "x".repeat(NAME_LEN_MAX);
        for good in ["a", "db_1", "0", "größe", "数据", "_", &longest] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("", text::DATABASE_NAME_LENGTH),
            (&*format!("{longest}x"), text::DATABASE_NAME_LENGTH),
            ("a b", text::DATABASE_NAME_CHARACTER),
            ("a\n", text::DATABASE_NAME_CHARACTER),
            ("a-b", text::DATABASE_NAME_PUNCTUATION),
            ("a.b", text::DATABASE_NAME_PUNCTUATION),
            ("../a", text::DATABASE_NAME_PUNCTUATION),
            ("a!", text::DATABASE_NAME_PUNCTUATION),
            ("a$", text::DATABASE_NAME_PUNCTUATION),
            ("5€", text::DATABASE_NAME_PUNCTUATION),
        ] {
            assert_eq!(check_name(bad), Err(expected), "{bad}");
        }
    }
}
