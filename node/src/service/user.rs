//! Users: listing, creating and changing them. Their records are in `systemdb`.
//!
//! Every change is decided on records that were the newest when the call began, and written under the condition that
//! neither the record nor the caller's own is another by then; if one is, the call decides anew. So no change is lost
//! when two nodes change a user at once, and nobody acts with rights that were taken away before. A change ends all
//! sessions and tokens of its user, on every live node before the call is answered (`App::settle`).

mod rules;

use alhambra_proto::code::{WireError, text};
use alhambra_raft::meta::{ADMIN_USER, Meta, MetaError, SYSTEM_DATABASE, User};

use self::rules::Records;
pub use self::rules::{Action, PermissionChange, PrivilegeChange, SQL_PRIVILEGES, listed_privileges};
use super::App;
use crate::context::{Call, Caller, ReadLevel};
use crate::error::{Error, Result};

/// How often a call decides anew because a record was changed at the same time; then it tells of the conflict.
const DECISIONS_MAX: usize = 16;

impl Records for Meta {
    fn user(&self, name: &str) -> Option<User> {
        Self::user(self, name)
    }

    fn has_database(&self, name: &str) -> bool {
        name == SYSTEM_DATABASE || self.database(name).is_some()
    }
}

impl App {
    /// The users that the caller may see, by name.
    pub async fn users(&self, call: &Call) -> Result<Vec<User>> {
        let caller = match call.level {
            ReadLevel::Linearizable => self.current_caller(call).await?,
            ReadLevel::Local => self.user_call(call)?,
        };
        Ok(rules::visible(self.groups.meta().users(), &caller.user, caller.database.as_deref()))
    }

    /// Creates a user with one permission on one database.
    pub async fn create_user(
        &self,
        call: &Call,
        name: &str,
        password: &[u8],
        permission: u32,
        database: &str,
    ) -> Result<()> {
        self.change_user(call, name, Some(password), |meta, caller| {
            let fallback = self.first_database();
            rules::create(meta, caller, name, password, permission, database, fallback.as_deref())
        })
        .await
    }

    /// Changes a password. The first administrator's takes the caller's present one.
    pub async fn change_password(&self, call: &Call, name: &str, old: &[u8], new: &[u8]) -> Result<()> {
        let caller = self.current_caller(call).await?;
        if name.is_empty() {
            return Err(text::USER_NAME_EMPTY.into());
        }
        if name == ADMIN_USER && !self.has_password(&caller.user, old, call.source).await? {
            return Err(text::OLD_PASSWORD_INCORRECT.into());
        }
        self.change_user(call, name, Some(new), |meta, caller| rules::change_password(meta, caller, name, new)).await
    }

    /// Changes a user's permission on a database.
    pub async fn change_permission(&self, call: &Call, change: &PermissionChange) -> Result<()> {
        self.change_user(call, &change.user, None, |meta, caller| rules::change_permission(meta, caller, change)).await
    }

    /// Changes a user's SQL privileges on a database.
    pub async fn change_privileges(&self, call: &Call, change: &PrivilegeChange) -> Result<()> {
        self.change_user(call, &change.user, None, |meta, caller| rules::change_privileges(meta, caller, change)).await
    }

    /// Lets a user log in again, or not any more.
    pub async fn set_active_user(&self, call: &Call, name: &str, active: bool) -> Result<()> {
        self.change_user(call, name, None, |meta, caller| rules::set_active(meta, caller, name, active)).await
    }

    /// Writes the record of user `name` that `decide` makes of the newest ones, with the hash of `password` if there is one.
    async fn change_user(
        &self,
        call: &Call,
        name: &str,
        password: Option<&[u8]>,
        decide: impl Fn(&Meta, &User) -> Result<User>,
    ) -> Result<()> {
        let meta = self.groups.meta();
        let mut hash = None;
        for _ in 0..DECISIONS_MAX {
            let caller = self.current_caller(call).await?;
            // Before the decision: one on a record that is newer than this is then taken for a conflict, never the reverse.
            let expected = meta.user(name);
            let mut user = decide(meta, &caller.user)?;
            if let Some(password) = password {
                // Only now, because it is slow by intent: who may not change anything shall not make us work.
                let hash = match &mut hash {
                    Some(hash) => hash,
                    none => none.insert(self.hash(password).await?),
                };
                user.password.clone_from(hash);
            }
            user.created_by.clone_from(&caller.user.name);
            user.created_at_ms = self.env.clock.now_unix_ms();
            let by = Some(&*caller.user).filter(|by| by.name != user.name);
            match meta.put_user(user, expected.as_ref(), by, call.deadline).await {
                Ok(tx) => {
                    self.settle(tx, None, call.deadline).await;
                    return Ok(());
                }
                // Nothing is written; another look tells why.
                Err(MetaError::Conflict { .. } | MetaError::Exists { .. } | MetaError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(MetaError::Conflict { name: name.to_owned() }.into())
    }

    /// Who calls, in the words that calls on users have for nobody.
    pub(super) fn user_call(&self, call: &Call) -> Result<Caller> {
        self.authenticate(call).map_err(|error| match error {
            Error::Wire(error) if error == text::TOKEN_EXPIRED => text::TOKEN_EXPIRED_USER_CALL.into(),
            other => other,
        })
    }

    /// Who calls, when that user is still as it was at login, also to the newest records, which are here from now on.
    pub(super) async fn current_caller(&self, call: &Call) -> Result<Caller> {
        let caller = self.user_call(call)?;
        self.groups.meta().barrier(call.deadline).await?;
        self.must_be_current(&caller, text::NOT_LOGGED_IN)?;
        Ok(caller)
    }

    /// Refuses a caller whose record here is another than at login; without a session in the words for `nobody`.
    pub(super) fn must_be_current(&self, caller: &Caller, nobody: WireError) -> Result<()> {
        if self.is_current(&caller.user) {
            return Ok(());
        }
        self.end_changed_users();
        Err(if caller.session.is_some() { text::SESSION_NOT_FOUND } else { nobody }.into())
    }

    /// Whether the user's record here is still this one.
    pub(super) fn is_current(&self, user: &User) -> bool {
        // Who needs no login has no record.
        self.access().is_nobody(user) || self.groups.meta().is_user(user)
    }

    /// Ends sessions and tokens of users that the records here show as changed.
    pub(crate) fn end_changed_users(&self) {
        let meta = self.groups.meta();
        self.sessions.user_changed(|name| meta.user_epochs(name));
    }
}
