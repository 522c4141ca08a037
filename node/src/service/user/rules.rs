//! What may be done to which user by whom: pure functions from the records to the new record, or to the refusal that the
//! compatible server has for it. The checks of a function stand in the order in which they are answered.
//!
//! Two grants that the original takes are refused, because they could only do harm: the system administrator's permission,
//! with which the user can no longer open that database, and any on `systemdb`, which holds everybody's password hash.

use std::collections::{BTreeMap, BTreeSet};

use alhambra_proto::code::text;
use alhambra_raft::meta::{ADMIN_USER, SYSTEM_DATABASE, User};

use crate::auth::{self, permission};
use crate::error::{Result, UserRefusal};
use crate::limits::USER_NAME_LEN_MAX;
use crate::method::Right;

/// Every SQL privilege, in the order of lists.
pub const SQL_PRIVILEGES: [&str; 7] = ["SELECT", "CREATE", "INSERT", "UPDATE", "DELETE", "DROP", "ALTER"];

/// Longest password, bytes. Ours could be longer; clients know this one.
const PASSWORD_LEN_MAX: usize = 72;

/// Which way a permission or privilege goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is given.
    Grant,
    /// It is taken back.
    Revoke,
}

/// A change of a user's permission.
#[derive(Clone, Debug)]
pub struct PermissionChange {
    /// None for a number that is no action.
    pub action: Option<Action>,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// In the numbers of the protocol.
    pub permission: u32,
}

/// A change of a user's SQL privileges.
#[derive(Clone, Debug)]
pub struct PrivilegeChange {
    /// None for a number that is no action.
    pub action: Option<Action>,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// Names, see [`SQL_PRIVILEGES`].
    pub privileges: Vec<String>,
}

/// The records that a rule may look at.
pub(super) trait Records {
    fn user(&self, name: &str) -> Option<User>;
    /// Whether a database of exactly this name exists; `systemdb` does.
    fn has_database(&self, name: &str) -> bool;
}

/// SQL privileges that come with a permission.
fn default_privileges(number: u32) -> BTreeSet<String> {
    let all = match number {
        permission::READ => &SQL_PRIVILEGES[..1],
        _ => &SQL_PRIVILEGES[..],
    };
    all.iter().map(|name| (*name).to_owned()).collect()
}

const fn is_permission(number: u32) -> bool {
    matches!(number, permission::READ | permission::WRITE | permission::ADMIN | permission::SYSADMIN)
}

/// Whether the user administrates this database.
fn administrates(user: &User, database: &str) -> bool {
    auth::includes(auth::permission_in(user, database), Right::Admin)
}

fn administrates_any(user: &User) -> bool {
    user.permissions.values().any(|number| auth::includes(*number, Right::Admin))
}

fn check_name(name: &str) -> Result<()> {
    let form = name.len() <= USER_NAME_LEN_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if form { Ok(()) } else { Err(text::USER_NAME_FORM.into()) }
}

fn check_password(password: &[u8]) -> Result<()> {
    match password.len() {
        0 => Err(text::PASSWORD_EMPTY.into()),
        1..=PASSWORD_LEN_MAX => Ok(()),
        _ => Err(text::PASSWORD_TOO_LONG.into()),
    }
}

/// The users that `caller` is shown while it has `database` selected.
pub(super) fn visible(users: Vec<User>, caller: &User, database: Option<&str>) -> Vec<User> {
    let administrated = database.filter(|database| administrates(caller, database));
    let shown = |user: &User| {
        auth::is_sysadmin(caller)
            || user.name == caller.name
            || administrated.is_some_and(|database| user.permissions.contains_key(database))
    };
    users.into_iter().filter(shown).collect()
}

/// A new user, without password hash. `fallback` is the database that is meant when none is named.
pub(super) fn create(
    records: &impl Records,
    caller: &User,
    name: &str,
    password: &[u8],
    number: u32,
    database: &str,
    fallback: Option<&str>,
) -> Result<User> {
    if name.is_empty() {
        return Err(text::USER_NAME_EMPTY.into());
    }
    let database = match database {
        "" => fallback.ok_or(text::DATABASE_NAME_EMPTY)?,
        named => named,
    };
    if database == SYSTEM_DATABASE || !records.has_database(database) {
        return Err(UserRefusal::NoDatabase { database: database.to_owned() }.into());
    }
    if !is_permission(number) {
        return Err(text::PERMISSION_UNRECOGNIZED.into());
    }
    if !administrates(caller, database) {
        return Err(text::NOT_ADMIN_OF_DATABASE.into());
    }
    if number == permission::SYSADMIN {
        return Err(text::ANOTHER_SYSADMIN.into());
    }
    if records.user(name).is_some() {
        return Err(text::USER_EXISTS.into());
    }
    check_name(name)?;
    check_password(password)?;
    Ok(User {
        name: name.to_owned(),
        password: String::new(),
        permissions: [(database.to_owned(), number)].into(),
        sql_privileges: [(database.to_owned(), default_privileges(number))].into(),
        active: true,
        created_by: String::new(),
        created_at_ms: 0,
    })
}

/// The user whose password is changed. The caller's own password is checked elsewhere, when the user is the first
/// administrator.
pub(super) fn change_password(records: &impl Records, caller: &User, name: &str, password: &[u8]) -> Result<User> {
    if !administrates_any(caller) {
        return Err(text::NOT_ADMIN_ANYWHERE.into());
    }
    let user = records.user(name).filter(|user| auth::is_sysadmin(caller) || user.created_by == caller.name);
    let user = user.ok_or_else(|| UserRefusal::NotFoundOrNotYours { user: name.to_owned() })?;
    check_password(password)?;
    Ok(user)
}

/// The user with its permission on one database changed, and all its SQL privileges those that come with it.
pub(super) fn change_permission(records: &impl Records, caller: &User, change: &PermissionChange) -> Result<User> {
    let PermissionChange { action, user: name, database, permission: number } = change;
    if name.is_empty() {
        return Err(text::USER_NAME_EMPTY_ARGUMENT.into());
    }
    if database.is_empty() {
        return Err(text::DATABASE_EMPTY_ARGUMENT.into());
    }
    if !records.has_database(database) {
        return Err(text::DATABASE_NOT_FOUND_ARGUMENT.into());
    }
    let action = action.ok_or(text::ACTION_UNRECOGNIZED)?;
    if !is_permission(*number) {
        return Err(text::PERMISSION_UNRECOGNIZED_ARGUMENT.into());
    }
    if *name == caller.name {
        return Err(text::OWN_PERMISSIONS.into());
    }
    if name == ADMIN_USER {
        return Err(text::SYSADMIN_PERMISSIONS.into());
    }
    let mut user = other_user(records, caller, name, database)?;
    if database == SYSTEM_DATABASE && (action == Action::Grant || *number == permission::WRITE) {
        return Err(text::PERMISSION_DENIED.into());
    }
    match action {
        Action::Grant if *number == permission::SYSADMIN => return Err(text::SYSADMIN_PERMISSIONS.into()),
        Action::Grant => _ = user.permissions.insert(database.clone(), *number),
        Action::Revoke => _ = user.permissions.remove(database),
    }
    user.sql_privileges = [(database.clone(), default_privileges(*number))].into();
    Ok(user)
}

/// The user with SQL privileges on one database given or taken back.
pub(super) fn change_privileges(records: &impl Records, caller: &User, change: &PrivilegeChange) -> Result<User> {
    let PrivilegeChange { action, user: name, database, privileges } = change;
    if name.is_empty() {
        return Err(text::USER_NAME_EMPTY_ARGUMENT.into());
    }
    if !records.has_database(database) {
        return Err(text::DATABASE_NOT_FOUND_ARGUMENT.into());
    }
    let action = action.ok_or(text::ACTION_UNRECOGNIZED)?;
    if privileges.iter().any(|privilege| !SQL_PRIVILEGES.contains(&&**privilege)) {
        return Err(text::PRIVILEGE_UNRECOGNIZED.into());
    }
    if *name == caller.name {
        return Err(text::OWN_PRIVILEGES.into());
    }
    if name == ADMIN_USER {
        return Err(text::SYSADMIN_PRIVILEGES.into());
    }
    let mut user = other_user(records, caller, name, database)?;
    if !user.permissions.contains_key(database) {
        return Err(UserRefusal::WithoutPermission { user: name.clone(), database: database.clone() }.into());
    }
    let mut held = user.sql_privileges.remove(database).unwrap_or_default();
    match action {
        Action::Grant => held.extend(privileges.iter().cloned()),
        Action::Revoke => held.retain(|privilege| !privileges.contains(privilege)),
    }
    if !held.is_empty() {
        user.sql_privileges.insert(database.clone(), held);
    }
    Ok(user)
}

/// The active user that an administrator of the database names. Who administrates nothing is not told which users exist.
fn other_user(records: &impl Records, caller: &User, name: &str, database: &str) -> Result<User> {
    if !administrates(caller, database) {
        return Err(text::NOT_ADMIN_OF_DATABASE_DENIED.into());
    }
    let user = records.user(name).ok_or_else(|| UserRefusal::NotFound { user: name.to_owned() })?;
    if user.active { Ok(user) } else { Err(UserRefusal::NotActive { user: name.to_owned() }.into()) }
}

/// The user, active or not from now on.
pub(super) fn set_active(records: &impl Records, caller: &User, name: &str, active: bool) -> Result<User> {
    if name.is_empty() {
        return Err(text::USER_NAME_EMPTY.into());
    }
    if name == caller.name {
        return Err(text::OWN_STATUS.into());
    }
    if !administrates_any(caller) {
        return Err(text::NOT_ADMIN_ANYWHERE.into());
    }
    let user = records.user(name).ok_or_else(|| UserRefusal::NotFoundPlain { user: name.to_owned() })?;
    if !auth::is_sysadmin(caller) && user.created_by != caller.name {
        return Err(UserRefusal::NotYours { user: name.to_owned() }.into());
    }
    Ok(User { active, ..user })
}

/// SQL privileges of a user as lists show them: by database, then in the order of [`SQL_PRIVILEGES`].
pub fn listed_privileges(
    privileges: &BTreeMap<String, BTreeSet<String>>,
) -> impl Iterator<Item = (&str, &'static str)> {
    privileges.iter().flat_map(|(database, held)| {
        SQL_PRIVILEGES.into_iter().filter(|name| held.contains(*name)).map(move |name| (&**database, name))
    })
}

#[cfg(test)]
mod tests;
