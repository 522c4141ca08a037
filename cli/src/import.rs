//! `alhambra import`: takes a database over from a running server, transaction by transaction, with its ids, headers and hashes.
//!
//! The source is asked for one transaction after the other as any replica of it would ask. Each is checked here before it is handed on
//! (its entries hash to its Eh, it continues the one before, and its Alh is the one that the next transaction or the source's state
//! names), and again by the target, which believes nothing. Where to go on is never remembered here: the target is asked what it
//! has, so that an interrupted import goes on wherever it is started again.
//!
//! | module | content |
//! |---|---|
//! | `source` | what is read, checked, some transactions ahead |
//! | `target` | the database that takes it over, some transactions at once, in order |
//! | `progress` | what the person at the terminal sees |

mod progress;
mod source;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use alhambra_client::Tls;
use alhambra_ledger::digest::Digest;
use alhambra_ledger::ids::TxId;
use serde::Serialize;
use tokio::time::sleep;
use tonic::{Code, Status};

use self::progress::Progress;
use self::source::{Checked, Source};
use self::target::Target;
use crate::connect::{self, Connect};
use crate::failure::{Failure, Kind, OrFail};
use crate::output::{Output, Table, hex, print_json, print_raw};
use crate::signals::Signals;

/// How long a source or a target that does not answer is tried for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two tries, and between two questions whether a source has anything new.
const PAUSE: Duration = Duration::from_millis(500);
/// What to do after an interruption.
const AGAIN: &str = "run the same command again: it goes on where the target is";

/// Whether another try may go better: also when a server has forgotten a session.
fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted => true,
        _ => status.message().contains("session") || status.message().contains("transport"),
    }
}

/// Flags of `alhambra import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server to import from
    #[arg(long, value_name = "HOST:PORT")]
    from: String,
    /// Database there [default: the name of the target database]
    #[arg(long, value_name = "NAME")]
    from_database: Option<String>,
    /// User there, who administrates the database
    #[arg(long, value_name = "NAME", env = "ALHAMBRA_FROM_USERNAME", default_value = "immudb")]
    from_username: String,
    /// Password there; better in the environment than on the command line
    #[arg(long, value_name = "TEXT", env = "ALHAMBRA_FROM_PASSWORD", hide_env_values = true, default_value = "immudb")]
    from_password: String,
    /// Encrypt the connection to the source, which somebody vouches for whom this system trusts
    #[arg(long)]
    from_tls: bool,
    /// File (PEM) of those who vouch for the source, instead; implies --from-tls
    #[arg(long, value_name = "FILE")]
    from_cacert: Option<PathBuf>,
    /// Go on when everything is there, for as long as this runs
    #[arg(long, conflicts_with = "cut_over")]
    follow: bool,
    /// When everything is there, let users write into the target. Stop whoever writes into the source before
    #[arg(long)]
    cut_over: bool,
    /// Then let every node of the cluster show the source's UUID, under which its clients keep their trusted states
    #[arg(long, requires = "cut_over")]
    take_uuid: bool,
    /// Where to and as whom; users of the target keep their names
    #[command(flatten)]
    connect: Connect,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Args {
    /// Where the source is, and as whom.
    fn source(&self, target: &connect::Target) -> Result<connect::Target, Failure> {
        let read = |path: &PathBuf| {
            std::fs::read(path).or_fail(format_args!("reading {}", path.display()), "name a file that can be read")
        };
        let authorities = self.from_cacert.as_ref().map(read).transpose()?;
        let is_encrypted = self.from_tls || authorities.is_some();
        Ok(connect::Target {
            endpoints: vec![self.from.clone()],
            login: true,
            username: self.from_username.clone(),
            password: self.from_password.clone(),
            database: self.from_database.clone().unwrap_or_else(|| target.database.clone()),
            tls: is_encrypted.then(|| Tls { authorities, ..Tls::default() }),
            // What it sends is checked against hashes, whoever it is.
            server_key: None,
            guessed: false,
        })
    }
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    database: String,
    source_uuid: String,
    target_uuid: String,
    /// Newest transaction, the same on both sides.
    tx: u64,
    /// Its Alh, the same on both sides.
    alh: String,
    imported: u64,
    cut_over: bool,
}

/// Runs the command. The sessions that it has opened are closed however it ends.
pub async fn run(args: Args) -> Result<(), Failure> {
    let connect = args.connect.user_target()?;
    let mut source = Source::open(args.source(&connect)?).await?;
    let outcome = into_target(&args, connect, &mut source).await;
    source.close().await;
    let report = outcome?;
    match args.output {
        Output::Json => print_json(&report),
        Output::Raw => print_raw(format!("{} {}\n", report.tx, report.alh)),
        Output::Table => {
            let mut table = Table::new(&["database", "transactions", "imported now", "alh", "open to users"]);
            let open = if report.cut_over { "yes" } else { "no: it is a replica" };
            let numbers = [report.tx.to_string(), report.imported.to_string()];
            table.row([&report.database, &numbers[0], &numbers[1], &report.alh, open]);
            print_raw(table.render())
        }
    }
}

async fn into_target(args: &Args, connect: connect::Target, source: &mut Source) -> Result<Report, Failure> {
    let settings = source.settings().await?;
    let mut target = Target::open(connect, settings).await?;
    let outcome = import(args, source, &mut target).await;
    target.close().await;
    outcome
}

async fn import(args: &Args, source: &mut Source, target: &mut Target) -> Result<Report, Failure> {
    let mut progress = Progress::start();
    let (imported, (tx, alh)) = if target.is_replica().await? {
        let imported = follow(args, source, target, &mut progress).await?;
        let state = target.state().await?;
        if args.cut_over {
            cut_over(source, target).await?;
        }
        (imported, state)
    } else if args.cut_over {
        // An earlier one got as far as that, and nobody was told.
        (0, was_cut_over(source, target).await?)
    } else {
        return Err(Failure::failed(
            format!("database {:?} of the target is written by users", target.database()),
            "import into a new database: --database NAME",
        ));
    };
    if args.take_uuid {
        target.take_uuid(source.uuid()).await?;
    }
    progress.end();
    Ok(Report {
        database: target.database().to_owned(),
        source_uuid: source.uuid().to_owned(),
        target_uuid: target.uuid().to_owned(),
        tx: tx.get(),
        alh: hex(&alh.0),
        imported,
        cut_over: args.cut_over,
    })
}

/// Imports what the target lacks; answers how many transactions, when the source has no more, or when it was to follow and was told to
/// stop.
async fn follow(
    args: &Args,
    source: &mut Source,
    target: &mut Target,
    progress: &mut Progress,
) -> Result<u64, Failure> {
    begin(source, target).await?;
    let mut stop = if args.follow { Some(Signals::listen()?) } else { None };
    let stopped = async {
        match &mut stop {
            Some(signals) => signals.next().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(stopped);
    let mut imported = 0;
    loop {
        // What is asked for already is asked for again by the next import, so that nothing is lost here.
        let next = tokio::select! {
            biased;
            () = &mut stopped => {
                imported += compared(target.settle().await?, source, progress)?;
                return Ok(imported);
            }
            next = source.next() => next,
        };
        let done = match next {
            Ok(Some(checked)) => target.hand_on(checked).await?,
            Ok(None) => {
                let done = target.settle().await?;
                if !args.follow {
                    imported += compared(done, source, progress)?;
                    must_be_equal(source, target).await?;
                    return Ok(imported);
                }
                if done.is_empty() {
                    progress.caught_up();
                    sleep(PAUSE).await;
                }
                done
            }
            Err(failure) => {
                // What came before was good.
                compared(target.settle().await?, source, progress)?;
                return Err(failure);
            }
        };
        imported += compared(done, source, progress)?;
    }
}

/// Compares what is there now with what was to be there; answers how many.
fn compared(done: Vec<(Checked, Digest)>, source: &Source, progress: &mut Progress) -> Result<u64, Failure> {
    for (checked, alh) in &done {
        if *alh != checked.alh {
            return Err(Failure::new(
                Kind::Tampered,
                format!(
                    "transaction {} has the Alh {} at the source and {} at the target",
                    checked.id, checked.alh, alh
                ),
                "do not use the target; report this",
            ));
        }
        progress.at(checked.id, source.newest());
    }
    Ok(done.len() as u64)
}

/// A target that users write into already is what an interrupted cut-over left behind when it has all that the source has.
async fn was_cut_over(source: &mut Source, target: &mut Target) -> Result<(TxId, Digest), Failure> {
    let (tx, alh) = source.state().await?;
    let (newest, _) = target.state().await?;
    if tx.get() > 0 && tx <= newest && target.alh_of(tx).await? == alh {
        return Ok((tx, alh));
    }
    Err(Failure::failed(
        format!("database {:?} of the target is written by users, and lacks what the source has", target.database()),
        "import into a new database: --database NAME",
    ))
}

/// Finds the place to go on from: what the target has must be what the source had.
async fn begin(source: &mut Source, target: &mut Target) -> Result<(), Failure> {
    let (tx, alh) = target.state().await?;
    if tx.get() > 0 && source.alh_of(tx).await? != Some(alh) {
        return Err(Failure::new(
            Kind::Failed,
            format!(
                "database {:?} holds another history than the source: its transaction {tx} differs",
                target.database()
            ),
            "import into a database that is empty or that was imported from this source",
        ));
    }
    source.begin_behind(tx, alh);
    Ok(())
}

/// At a moment at which the source has nothing that the target lacks, both have the same state.
async fn must_be_equal(source: &mut Source, target: &mut Target) -> Result<(), Failure> {
    let (ours, theirs) = (target.state().await?, source.state().await?);
    // It may have gone on meanwhile, and then the next import fetches it; what the target has was compared before.
    if theirs.0 > ours.0 || theirs == ours {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Tampered,
        format!("the source is at transaction {} {} and the target at {} {}", theirs.0, theirs.1, ours.0, ours.1),
        "do not use the target; ask why the source has changed its history",
    ))
}

async fn cut_over(source: &mut Source, target: &mut Target) -> Result<(), Failure> {
    let went_on = |there: TxId, here: TxId, advice: &str| {
        let what = format!("the source went on to transaction {there} while the target is at {here}");
        Err(Failure::failed(what, advice))
    };
    let (here, _) = target.state().await?;
    let (there, _) = source.state().await?;
    if there != here {
        return went_on(there, here, "stop whoever writes into the source, then run the same command again");
    }
    let known = source.bytes_of(here).await?;
    target.become_ordinary(known).await?;
    let (there, _) = source.state().await?;
    if there != here {
        let advice = "users can write into the target, and what came last into the source is not there: write it again";
        return went_on(there, here, advice);
    }
    Ok(())
}
