//! `alhambra database`: the databases of a cluster, through any of its nodes.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use alhambra_client::Error;
use alhambra_proto::code::text;
use alhambra_proto::schema;
use serde_json::{Value, json};

use crate::connect::{Common, Target};
use crate::failure::{Failure, Kind, OrFail};
use crate::kv::yes;
use crate::output::{Output, Table, print_json, print_raw};
use crate::trusted::Trusted;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Flags of `alhambra database`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the databases that the user may see
    List(ListArgs),
    /// Create a database
    Create(CreateArgs),
    /// Open a database that was unloaded, on all nodes
    Load(NameArgs),
    /// Close a database on all nodes; it stays listed
    Unload(NameArgs),
    /// Forget the values that are older than a period; hashes and proofs stay
    Truncate(TruncateArgs),
    /// Change settings of a database
    Update(UpdateArgs),
    /// Have the node that answers write the index of a database to its disk
    Flush(NameArgs),
    /// Have the node that answers merge the index of a database
    Compact(NameArgs),
    /// Delete an unloaded database on all nodes, for good
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    /// The database.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    #[command(flatten)]
    of: NameArgs,
    /// Do nothing when it exists.
    #[arg(long)]
    if_not_exists: bool,
}

#[derive(Debug, clap::Args)]
struct TruncateArgs {
    #[command(flatten)]
    of: NameArgs,
    /// Days of which the values stay; 0 forgets everything before today (UTC).
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    keep_days: u32,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
struct UpdateArgs {
    #[command(flatten)]
    of: NameArgs,
    /// Leave the time out of new transactions.
    #[arg(long, value_name = "BOOL")]
    exclude_commit_time: Option<bool>,
    /// Kept and shown; whether a database is loaded is said by load and unload.
    #[arg(long, value_name = "BOOL")]
    autoload: Option<bool>,
    /// Forget values by themselves that are older than so many days; 0 keeps them for ever. What is forgotten is gone for good.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    retention_days: Option<u32>,
    /// How often it is looked for such values.
    #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(1..=8_760))]
    truncation_hours: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct DeleteArgs {
    #[command(flatten)]
    of: NameArgs,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Carries out one of them.
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::List(args) => list(args.common).await,
        Command::Create(args) => {
            let (name, if_not_exists) = (args.of.name, args.if_not_exists);
            let made = on(&args.of.common, async |client| client.create_database(&name, if_not_exists).await).await?;
            tell(args.of.common.output, &name, if made { "created" } else { "existed already" })
        }
        Command::Load(args) => {
            on(&args.common, async |client| client.load_database(&args.name).await).await?;
            tell(args.common.output, &args.name, "loaded")
        }
        Command::Unload(args) => {
            on(&args.common, async |client| client.unload_database(&args.name).await).await?;
            tell(args.common.output, &args.name, "unloaded")
        }
        Command::Truncate(args) => {
            let name = &args.of.name;
            let kept = match args.keep_days {
                0 => "before today".to_owned(),
                days => format!("older than {days} days"),
            };
            confirm(args.yes, name, &format!("All values of {name} that were written {kept} will be gone for good."))?;
            let retention_ms = DAY_MS * i64::from(args.keep_days);
            on(&args.of.common, async |client| client.truncate_database(name, retention_ms).await).await?;
            tell(args.of.common.output, name, "truncated")
        }
        Command::Update(args) => update(args).await,
        Command::Flush(args) => {
            within(&args, async |client| client.flush_index().await).await?;
            tell(args.common.output, &args.name, "flushed")
        }
        Command::Compact(args) => {
            let merged = within(&args, async |client| match client.compact_index().await {
                Ok(()) => Ok(true),
                Err(Error::Refused { status, .. }) if text::NOTHING_TO_COMPACT.is(&status) => Ok(false),
                Err(error) => Err(error),
            });
            tell(args.common.output, &args.name, if merged.await? { "compacted" } else { "there was nothing to do" })
        }
        Command::Delete(args) => {
            let name = &args.of.name;
            confirm(
                args.yes,
                name,
                &format!("The database {name} and all its data will be gone from all nodes for good."),
            )?;
            on(&args.of.common, async |client| client.delete_database(name).await).await?;
            tell(args.of.common.output, name, "deleted")
        }
    }
}

/// Makes one call, in a session that ends with it.
async fn on<T>(
    common: &Common,
    call: impl AsyncFnOnce(&alhambra_client::Client) -> Result<T, Error>,
) -> Result<T, Failure> {
    let trusted = Trusted::connect(&common.connect, None).await?;
    let outcome = call(&trusted.client).await.map_err(|error| explain(&trusted, &error));
    trusted.close(outcome).await
}

/// The same in a session on the database that is named.
async fn within<T>(
    of: &NameArgs,
    call: impl AsyncFnOnce(&alhambra_client::Client) -> Result<T, Error>,
) -> Result<T, Failure> {
    let target = Target { database: of.name.clone(), ..of.common.connect.target()? };
    let trusted = Trusted::enter(target).await?;
    let outcome = call(&trusted.client).await.map_err(|error| explain(&trusted, &error));
    trusted.close(outcome).await
}

/// An error about the database that the call names, not the one that the session is on.
fn explain(trusted: &Trusted, error: &Error) -> Failure {
    if let Error::Refused { status, .. } = error {
        let advice = match status.message() {
            "database does not exist" => {
                return Failure::new(
                    Kind::NotFound,
                    status.message(),
                    "see `alhambra database list` for those there are",
                );
            }
            "cannot delete an open database" => "unload it first: `alhambra database unload NAME`",
            "already closed" => "it is unloaded: `alhambra database load NAME` opens it",
            "database already loaded" => "there is nothing to do",
            "retention period has not been reached" => "nothing is old enough; name a shorter period with --keep-days",
            "database is reserved" => "this one exists always; name another",
            _ => return trusted.explain(error, None),
        };
        return Failure::failed(status.message(), advice);
    }
    trusted.explain(error, None)
}

fn tell(output: Output, name: &str, done: &str) -> Result<(), Failure> {
    match output {
        Output::Json => print_json(&json!({ "database": name, "done": done })),
        Output::Raw => print_raw(format!("{name}\n")),
        Output::Table => {
            let mut table = Table::new(&["database", "done"]);
            table.row([name, done]);
            print_raw(table.render())
        }
    }
}

/// Has the name typed again at a terminal; elsewhere only the flag counts.
fn confirm(said_yes: bool, name: &str, what: &str) -> Result<(), Failure> {
    if said_yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Kind::Usage, "this cannot be taken back", "say --yes if that is what you want"));
    }
    let doing = "asking whether this is meant";
    let mut err = io::stderr();
    write!(err, "{what}\nType the name of the database to go on: ").or_fail(doing, "say --yes instead")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).or_fail(doing, "say --yes instead")?;
    if answer.trim_end_matches(['\r', '\n']) == name {
        return Ok(());
    }
    Err(Failure::failed("nothing was done: that is not the name", "type the name exactly"))
}

async fn list(common: Common) -> Result<(), Failure> {
    let databases = on(&common, async |client| client.database_list().await).await?;
    match common.output {
        Output::Json => {
            let entries: Vec<Value> = databases.iter().map(shown).collect();
            print_json(&json!({ "databases": entries }))
        }
        Output::Raw => print_raw(databases.iter().map(|info| format!("{}\n", info.name)).collect::<String>()),
        Output::Table => {
            let mut table = Table::new(&["database", "loaded", "transactions", "bytes", "created by"]);
            for info in &databases {
                let numbers = [info.num_transactions.to_string(), info.disk_size.to_string()];
                let [transactions, bytes] = numbers;
                table.row([info.name.clone(), yes(info.loaded), transactions, bytes, info.created_by.clone()]);
            }
            print_raw(table.render())
        }
    }
}

fn shown(info: &schema::DatabaseInfo) -> Value {
    json!({
        "name": info.name,
        "loaded": info.loaded,
        "transactions": info.num_transactions,
        "bytes": info.disk_size,
        "created_at": info.created_at,
        "created_by": info.created_by,
    })
}

/// What of truncation is to be changed.
fn truncation(args: &UpdateArgs) -> Option<schema::TruncationNullableSettings> {
    let time = |count: Option<u32>, unit_ms: i64| {
        count.map(|count| schema::NullableMilliseconds { value: i64::from(count) * unit_ms })
    };
    let change = schema::TruncationNullableSettings {
        retention_period: time(args.retention_days, DAY_MS),
        truncation_frequency: time(args.truncation_hours, HOUR_MS),
    };
    (change != schema::TruncationNullableSettings::default()).then_some(change)
}

async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let truth = |value: Option<bool>| value.map(|value| schema::NullableBool { value });
    let change = schema::DatabaseNullableSettings {
        exclude_commit_time: truth(args.exclude_commit_time),
        autoload: truth(args.autoload),
        truncation_settings: truncation(&args),
        ..Default::default()
    };
    if change == schema::DatabaseNullableSettings::default() {
        return Err(Failure::new(
            Kind::Usage,
            "nothing to change",
            "name a setting: see `alhambra database update --help`",
        ));
    }
    let name = &args.of.name;
    let now = on(&args.of.common, async |client| client.update_database(name, change).await).await?;
    let exclude = now.exclude_commit_time.is_some_and(|setting| setting.value);
    let autoload = now.autoload.is_some_and(|setting| setting.value);
    let truncation = now.truncation_settings.unwrap_or_default();
    let retention_days = truncation.retention_period.unwrap_or_default().value / DAY_MS;
    let truncation_hours = truncation.truncation_frequency.unwrap_or_default().value / HOUR_MS;
    match args.of.common.output {
        Output::Json => print_json(&json!({
            "database": name,
            "exclude_commit_time": exclude,
            "autoload": autoload,
            "retention_days": retention_days,
            "truncation_hours": truncation_hours,
        })),
        Output::Raw => print_raw(format!("{name}\n")),
        Output::Table => {
            let mut table = Table::new(&["database", "exclude commit time", "autoload", "retention", "looked for"]);
            let retention = match retention_days {
                0 => "none".to_owned(),
                days => format!("{days} days"),
            };
            let every = format!("every {truncation_hours} hours");
            table.row([name.clone(), yes(exclude), yes(autoload), retention, every]);
            print_raw(table.render())
        }
    }
}
