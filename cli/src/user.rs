//! `alhambra user`: who may log in, and what they may do.

use alhambra_client::{Client, Error, Permission};
use alhambra_proto::schema;
use serde_json::{Value, json};

use crate::connect::Common;
use crate::failure::{Failure, Kind};
use crate::kv::yes;
use crate::output::{Output, Table, print_json, print_raw};
use crate::secret::NewPassword;
use crate::trusted::Trusted;

/// Flags of `alhambra user`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the users that the user may see
    List(Common),
    /// Create a user with a permission on one database
    Create(CreateArgs),
    /// Give a user a new password; ends all its sessions
    #[command(visible_alias = "changepassword")]
    Passwd(PasswdArgs),
    /// Let a user log in again
    Activate(NameArgs),
    /// Let a user log in no more; ends all its sessions
    Deactivate(NameArgs),
    /// Grant and revoke permissions on databases
    Permission(PermissionArgs),
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    /// The user.
    #[arg(value_name = "USER")]
    user: String,
    #[command(flatten)]
    common: Common,
}

/// What can be given to a user.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Level {
    /// Read
    Read,
    /// Read and write
    #[value(name = "readwrite")]
    ReadWrite,
    /// All of the database, and its users
    Admin,
}

impl From<Level> for Permission {
    fn from(level: Level) -> Self {
        match level {
            Level::Read => Self::Read,
            Level::ReadWrite => Self::ReadWrite,
            Level::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// The user: letters, digits and underscores.
    #[arg(value_name = "USER")]
    user: String,
    /// What the user may do in the database.
    #[arg(value_name = "PERMISSION")]
    permission: Level,
    /// The database.
    #[arg(value_name = "IN_DATABASE", default_value = "defaultdb")]
    on: String,
    #[command(flatten)]
    password: NewPassword,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct PasswdArgs {
    #[command(flatten)]
    of: NameArgs,
    #[command(flatten)]
    password: NewPassword,
}

#[derive(Debug, clap::Args)]
struct PermissionArgs {
    #[command(subcommand)]
    command: PermissionCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PermissionCommand {
    /// Give a user a permission on a database, instead of the one that it has there
    Grant(ChangeArgs),
    /// Take a user's permission on a database away
    Revoke(ChangeArgs),
}

#[derive(Debug, clap::Args)]
struct ChangeArgs {
    /// The user.
    #[arg(value_name = "USER")]
    user: String,
    /// The permission; a user has one on each database, which is the one that is revoked.
    #[arg(value_name = "PERMISSION")]
    permission: Level,
    /// The database.
    #[arg(value_name = "IN_DATABASE")]
    on: String,
    #[command(flatten)]
    common: Common,
}

impl Args {
    /// Whether this gives the user of this name another password.
    pub fn gives_password_to(&self, name: &str) -> bool {
        matches!(&self.command, Command::Passwd(args) if args.of.user == name)
    }
}

/// Carries out one of them.
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::List(common) => list(&common).await,
        Command::Create(CreateArgs { user, permission, on, password, common }) => {
            let password = password.get(&user)?;
            let outcome =
                call(&common, async |client| client.create_user(&user, &password, permission.into(), &on).await);
            tell(outcome.await, &common, &user, "created")
        }
        Command::Passwd(PasswdArgs { of: NameArgs { user, common }, password }) => {
            let password = password.get(&user)?;
            // The first administrator's is changed by who knows the present one, which has just been said at the login.
            let present = common.connect.target()?.password;
            let outcome = call(&common, async |client| client.change_password(&user, &present, &password).await);
            tell(outcome.await, &common, &user, "has a new password")
        }
        Command::Activate(NameArgs { user, common }) => tell(
            call(&common, async |client| client.set_active_user(&user, true).await).await,
            &common,
            &user,
            "active",
        ),
        Command::Deactivate(NameArgs { user, common }) => {
            let outcome = call(&common, async |client| client.set_active_user(&user, false).await);
            tell(outcome.await, &common, &user, "not active any more")
        }
        Command::Permission(PermissionArgs { command: PermissionCommand::Grant(args) }) => {
            let ChangeArgs { user, permission, on, common } = args;
            let outcome = call(&common, async |client| client.grant_permission(&user, permission.into(), &on).await);
            tell(outcome.await, &common, &user, "permission granted")
        }
        Command::Permission(PermissionArgs { command: PermissionCommand::Revoke(args) }) => {
            let ChangeArgs { user, on, common, .. } = args;
            let outcome = call(&common, async |client| client.revoke_permission(&user, &on).await);
            tell(outcome.await, &common, &user, "permission revoked")
        }
    }
}

/// Makes one call, in a session that ends with it.
async fn call<T>(common: &Common, call: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T, Failure> {
    let trusted = Trusted::connect(&common.connect, None).await?;
    let outcome = call(&trusted.client).await.map_err(|error| explain(&trusted, &error));
    trusted.close(outcome).await
}

/// An error about the user or the database that the call names, not those of the session.
fn explain(trusted: &Trusted, error: &Error) -> Failure {
    let Error::Refused { status, .. } = error else { return trusted.explain(error, None) };
    let what = status.message();
    let not_found = |advice: &str| Failure::new(Kind::NotFound, what, advice);
    if what.starts_with("user ") && (what.ends_with(" not found") || what.contains(" was not found ")) {
        return not_found("see `alhambra user list` for those there are");
    }
    if what.starts_with("database ") && what.ends_with(" does not exist") {
        return not_found("see `alhambra database list` for those there are");
    }
    match what {
        "database does not exist" => not_found("see `alhambra database list` for those there are"),
        "user already exists" => Failure::failed(what, "name another one, or change this one: `alhambra user --help`"),
        _ => trusted.explain(error, None),
    }
}

fn tell(outcome: Result<(), Failure>, common: &Common, user: &str, done: &str) -> Result<(), Failure> {
    outcome?;
    match common.output {
        Output::Json => print_json(&json!({ "user": user, "done": done })),
        Output::Raw => print_raw(format!("{user}\n")),
        Output::Table => {
            let mut table = Table::new(&["user", "done"]);
            table.row([user, done]);
            print_raw(table.render())
        }
    }
}

fn permission(number: u32) -> String {
    match Permission::of(number) {
        Some(Permission::Read) => "read".to_owned(),
        Some(Permission::ReadWrite) => "readwrite".to_owned(),
        Some(Permission::Admin) => "admin".to_owned(),
        Some(Permission::SystemAdmin) => "sysadmin".to_owned(),
        None => number.to_string(),
    }
}

async fn list(common: &Common) -> Result<(), Failure> {
    let users = call(common, async |client| client.list_users().await).await?;
    let name = |user: &schema::User| String::from_utf8_lossy(&user.user).into_owned();
    match common.output {
        Output::Json => {
            let users: Vec<Value> = users.iter().map(|user| shown(&name(user), user)).collect();
            print_json(&json!({ "users": users }))
        }
        Output::Raw => print_raw(users.iter().map(|user| name(user) + "\n").collect::<String>()),
        Output::Table => {
            let mut table = Table::new(&["user", "active", "database", "permission", "created by", "created at"]);
            for user in &users {
                let row = |database: &str, permission: String| {
                    let (by, at) = (user.createdby.clone(), user.createdat.clone());
                    [name(user), yes(user.active), database.to_owned(), permission, by, at]
                };
                for one in &user.permissions {
                    table.row(row(&one.database, permission(one.permission)));
                }
                if user.permissions.is_empty() {
                    table.row(row("-", "none".to_owned()));
                }
            }
            print_raw(table.render())
        }
    }
}

fn shown(name: &str, user: &schema::User) -> Value {
    let permissions = user.permissions.iter();
    let privileges = user.sql_privileges.iter();
    json!({
        "user": name,
        "active": user.active,
        "permissions": permissions
            .map(|one| json!({ "database": one.database, "permission": permission(one.permission) }))
            .collect::<Vec<_>>(),
        "sql_privileges": privileges
            .map(|one| json!({ "database": one.database, "privilege": one.privilege }))
            .collect::<Vec<_>>(),
        "created_by": user.createdby,
        "created_at": user.createdat,
    })
}
