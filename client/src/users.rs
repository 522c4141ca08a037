//! Users and what they may do. The rules are the server's; nothing is decided here.

use alhambra_proto::schema::{self, PermissionAction};

use crate::client::Client;
use crate::error::Error;
use crate::retry::Kind;

/// What a user may do in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
    /// All of it, and its users.
    Admin,
    /// Everything in all databases: the first administrator.
    SystemAdmin,
}

impl Permission {
    /// The number of the protocol.
    pub const fn number(self) -> u32 {
        match self {
            Self::Read => 1,
            Self::ReadWrite => 2,
            Self::Admin => 254,
            Self::SystemAdmin => 255,
        }
    }

    /// What a number of the protocol means; none for one that means nothing.
    pub fn of(number: u32) -> Option<Self> {
        [Self::Read, Self::ReadWrite, Self::Admin, Self::SystemAdmin].into_iter().find(|one| one.number() == number)
    }
}

/// A kind of SQL statement that a user may make in a database, beside having a permission there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlPrivilege {
    /// Read rows.
    Select,
    /// Make tables and indexes.
    Create,
    /// Write new rows.
    Insert,
    /// Change rows.
    Update,
    /// Delete rows.
    Delete,
    /// Remove tables and indexes.
    Drop,
    /// Change tables.
    Alter,
}

impl SqlPrivilege {
    /// The name in the protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Select => "SELECT",
            Self::Create => "CREATE",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Drop => "DROP",
            Self::Alter => "ALTER",
        }
    }
}

impl Client {
    /// The users that the caller may see, by name.
    pub async fn list_users(&self) -> Result<Vec<schema::User>, Error> {
        let connection = &self.inner.connection;
        let deadline = connection.deadline();
        let call = connection.call("list_users", Kind::Read, deadline, (), async |mut c, r| c.list_users(r).await);
        Ok(call.await?.users)
    }

    /// Creates a user with one permission on one database.
    pub async fn create_user(
        &self,
        name: &str,
        password: &str,
        permission: Permission,
        database: &str,
    ) -> Result<(), Error> {
        let connection = &self.inner.connection;
        let request = schema::CreateUserRequest {
            user: name.to_owned().into(),
            password: password.to_owned().into(),
            permission: permission.number(),
            database: database.to_owned(),
        };
        let deadline = connection.deadline();
        connection.call("create_user", Kind::Write, deadline, request, async |mut c, r| c.create_user(r).await).await
    }

    /// Changes a password, which ends all sessions of that user. `old` is looked at for the first administrator only, and is the
    /// caller's present one.
    pub async fn change_password(&self, name: &str, old: &str, new: &str) -> Result<(), Error> {
        let connection = &self.inner.connection;
        let request = schema::ChangePasswordRequest {
            user: name.to_owned().into(),
            old_password: old.to_owned().into(),
            new_password: new.to_owned().into(),
        };
        let deadline = connection.deadline();
        let call = connection
            .call("change_password", Kind::Write, deadline, request, async |mut c, r| c.change_password(r).await);
        call.await
    }

    /// Gives a user this permission on a database instead of the one that it has there.
    pub async fn grant_permission(&self, name: &str, permission: Permission, database: &str) -> Result<(), Error> {
        self.change_permission(PermissionAction::Grant, name, permission, database).await
    }

    /// Takes a user's permission on a database away, whichever it is.
    pub async fn revoke_permission(&self, name: &str, database: &str) -> Result<(), Error> {
        // The number has to be one of the protocol's, and means nothing.
        self.change_permission(PermissionAction::Revoke, name, Permission::Read, database).await
    }

    async fn change_permission(
        &self,
        action: PermissionAction,
        name: &str,
        permission: Permission,
        database: &str,
    ) -> Result<(), Error> {
        let connection = &self.inner.connection;
        let request = schema::ChangePermissionRequest {
            action: action.into(),
            username: name.to_owned(),
            database: database.to_owned(),
            permission: permission.number(),
        };
        let deadline = connection.deadline();
        let call = connection
            .call("change_permission", Kind::Write, deadline, request, async |mut c, r| c.change_permission(r).await);
        call.await
    }

    /// Gives a user who has a permission on a database these SQL privileges there, too; ends all its sessions. A permission that is
    /// granted or revoked later puts all of them back to what goes with it.
    pub async fn grant_sql_privileges(
        &self,
        name: &str,
        privileges: &[SqlPrivilege],
        database: &str,
    ) -> Result<(), Error> {
        self.change_sql_privileges(PermissionAction::Grant, name, privileges, database).await
    }

    /// Takes these SQL privileges on a database from a user; ends all its sessions.
    pub async fn revoke_sql_privileges(
        &self,
        name: &str,
        privileges: &[SqlPrivilege],
        database: &str,
    ) -> Result<(), Error> {
        self.change_sql_privileges(PermissionAction::Revoke, name, privileges, database).await
    }

    async fn change_sql_privileges(
        &self,
        action: PermissionAction,
        name: &str,
        privileges: &[SqlPrivilege],
        database: &str,
    ) -> Result<(), Error> {
        let connection = &self.inner.connection;
        let request = schema::ChangeSqlPrivilegesRequest {
            action: action.into(),
            username: name.to_owned(),
            database: database.to_owned(),
            privileges: privileges.iter().map(|privilege| privilege.name().to_owned()).collect(),
        };
        let deadline = connection.deadline();
        let call = connection.call("change_sql_privileges", Kind::Write, deadline, request, async |mut c, r| {
            c.change_sql_privileges(r).await
        });
        call.await.map(drop)
    }

    /// Lets a user log in again, or not any more; ends all its sessions.
    pub async fn set_active_user(&self, name: &str, active: bool) -> Result<(), Error> {
        let connection = &self.inner.connection;
        let request = schema::SetActiveUserRequest { active, username: name.to_owned() };
        let deadline = connection.deadline();
        let call = connection
            .call("set_active_user", Kind::Write, deadline, request, async |mut c, r| c.set_active_user(r).await);
        call.await
    }
}
