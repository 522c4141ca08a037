//! `alhambra demo`: a cluster on this machine in one command.
//!
//! The nodes are ordinary `alhambra serve` processes of this same binary; nothing here is known to them but
//! `--exit-with-parent`. What happens to them is told on standard error, the answer goes to standard output.

mod plan;
pub mod ports;
mod record;
mod supervise;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alhambra_proto::code::text::INVALID_CREDENTIALS;
use tokio::time::{self, Instant};

use crate::demo::plan::NodePlan;
use crate::demo::record::{NodeRecord, Record};
use crate::demo::supervise::{Event, RESTART_AFTER, Supervisor};
use crate::failure::{Failure, OrFail};
use crate::http;
use crate::output::{Table, print_raw};
use crate::session::{Login, Session, cluster_of};
use crate::signals::Signals;

pub use plan::{BASE_PORT, METRICS_ABOVE_GRPC};

/// The demo's admin is the one the SDKs' examples log in as.
const USERNAME: &str = "immudb";
const PASSWORD: &str = "immudb";
const DATABASE: &str = "defaultdb";
/// Stands for a password that the demo does not know.
const CHANGED: &str = "(changed since)";
/// A cluster that does not serve after this time will not serve by waiting longer.
const READY_WITHIN: Duration = Duration::from_secs(60);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
const ONE_QUESTION: Duration = Duration::from_secs(5);
/// So begins what a node's readiness page says about a database that cannot be served at all.
const FAILED_MARK: &str = ", failed: ";
/// How much of a dead node's log is shown.
const LOG_LINES_SHOWN: usize = 8;

/// Flags of `alhambra demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of all nodes; starting again on it resumes.
    #[arg(long, value_name = "DIR", default_value = "alhambra-demo")]
    dir: PathBuf,
    /// How many nodes.
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: u16,
    /// gRPC port of node 1, its peer port is one higher, its REST port 4758, its metrics port 6175; each
    /// port of node i is raised by 10 * (i - 1).
    #[arg(long, value_name = "PORT", default_value_t = BASE_PORT)]
    base_port: u16,
    /// Print one JSON object (ports, folders, process ids, cluster uuid) when ready; it is also kept in
    /// DIR/demo.json, where the process ids stay right when a node is started again.
    #[arg(long)]
    json: bool,
}

/// Runs the demo until a signal comes or a node fails at the start.
pub async fn run(args: Args) -> Result<(), Failure> {
    let nodes = plan::plan(&args.dir, args.nodes, args.base_port)?;
    let mut record = Record::prepare(&args.dir, args.base_port, &nodes, [USERNAME, PASSWORD, DATABASE])?;
    ports::check_free(&nodes)?;
    let mut signals = Signals::listen()?;
    let binary = std::env::current_exe().or_fail("finding this program's own file", "start it by its full path")?;
    for node in &nodes {
        fs::create_dir_all(&node.dir)
            .or_fail(format_args!("creating {}", node.dir.display()), "choose a folder you may write to with --dir")?;
    }
    record.save(&args.dir)?;
    let arguments = nodes.iter().map(|node| plan::serve_arguments(node, &nodes, PASSWORD)).collect();
    let mut supervisor = Supervisor::start(binary, &nodes, arguments);

    let outcome = tokio::select! {
        outcome = serve(&args, &nodes, &mut record, &mut supervisor) => outcome,
        () = signals.next() => Ok(()),
    };
    eprintln!("stopping {} nodes", nodes.len());
    tokio::select! {
        () = supervisor.stop() => outcome,
        () = signals.next() => Err(Failure::failed(
            "a second signal came before all nodes had stopped",
            "nothing: what was acknowledged is on disk; the next start takes a little longer",
        )),
    }
}

/// Waits until all nodes serve, says so, and tells from then on what happens to them; returns only with a failure.
async fn serve(
    args: &Args,
    nodes: &[NodePlan],
    record: &mut Record,
    supervisor: &mut Supervisor,
) -> Result<(), Failure> {
    record.uuid = {
        let ready = wait_until_serving(nodes);
        tokio::pin!(ready);
        loop {
            tokio::select! {
                uuid = &mut ready => break uuid?,
                event = supervisor.event() => note_at_start(nodes, record, event)?,
            }
        }
    };
    if let Some(node) = nodes.first()
        && !has_first_password(node).await
    {
        CHANGED.clone_into(&mut record.password);
    }
    record.save(&args.dir)?;
    announce(args, record)?;
    loop {
        let event = supervisor.event().await;
        note(record, event);
        record.save(&args.dir)?;
    }
}

/// Before the cluster serves, a node that ends is a failure of the whole start: another start would end the same way.
fn note_at_start(nodes: &[NodePlan], record: &mut Record, event: Event) -> Result<(), Failure> {
    let (number, how) = match event {
        Event::Started { number, process_id } => {
            record.set_process(number, process_id);
            return Ok(());
        }
        Event::Died { number, status } => (number, format!("ended at its start ({status})")),
        Event::NotStarted { number, error } => (number, format!("could not be started: {error}")),
    };
    let log = nodes.iter().find(|node| node.number == number).map(|node| node.log.as_path());
    let log = log.unwrap_or(Path::new(""));
    Err(Failure::failed(
        format!("node {number} {how}; the end of {}:\n{}", log.display(), log_end(log)),
        "mend what the log names and start again; the other nodes were stopped, no data was touched",
    ))
}

/// Once the cluster serves, a node that ends is told and started again.
fn note(record: &mut Record, event: Event) {
    match event {
        Event::Started { number, process_id } => {
            record.set_process(number, process_id);
            eprintln!("node {number} started again as process {process_id}");
        }
        Event::Died { number, status } => {
            record.set_process(number, 0);
            eprintln!("node {number} died ({status}); starting it again in {} s", RESTART_AFTER.as_secs());
        }
        Event::NotStarted { number, error } => {
            record.set_process(number, 0);
            eprintln!("node {number} could not be started: {error}; trying again in {} s", RESTART_AFTER.as_secs());
        }
    }
}

fn log_end(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    shown.iter().map(|line| format!("    {line}\n")).collect()
}

/// Waits until every node says that it is ready and answers calls; returns the uuid all of them show.
async fn wait_until_serving(nodes: &[NodePlan]) -> Result<String, Failure> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut uuids = Vec::new();
    for node in nodes {
        let mut last = String::from("not asked yet");
        let uuid = loop {
            if Instant::now() >= deadline {
                return Err(Failure::failed(
                    format!("node {} does not serve after {} s: {last}", node.number, READY_WITHIN.as_secs()),
                    format!("look into {}", node.log.display()),
                ));
            }
            match ask(node).await {
                Ok(uuid) => break uuid,
                // What has failed does not heal by waiting.
                Err(why) if why.contains(FAILED_MARK) => {
                    return Err(Failure::failed(
                        format!("node {} cannot serve: {why}", node.number),
                        format!("look into {}; nothing was changed", node.log.display()),
                    ));
                }
                Err(why) => last = why,
            }
            time::sleep(ASK_AGAIN_AFTER).await;
        };
        uuids.push(uuid);
    }
    let uuid = uuids.pop().unwrap_or_default();
    if uuids.iter().any(|other| *other != uuid) {
        return Err(Failure::failed(
            "the nodes belong to different clusters",
            "these folders were not made by one demo; choose another folder with --dir",
        ));
    }
    Ok(uuid)
}

/// Whether the node is ready and answers calls: its cluster's uuid, or why not.
async fn ask(node: &NodePlan) -> Result<String, String> {
    match http::get(&node.metrics(), "/readyz", None, ONE_QUESTION).await {
        Ok((200, _)) => {}
        Ok((status, body)) => return Err(format!("readyz says {status} {}", body.trim())),
        Err(error) => return Err(format!("readyz: {error}")),
    }
    // Without a login: of a demo that is resumed, the password may be another one by now.
    cluster_of(&node.grpc(), ONE_QUESTION).await
}

/// Whether the administrator still has the password with which the demo began.
async fn has_first_password(node: &NodePlan) -> bool {
    let login = Login { username: USERNAME, password: PASSWORD, database: DATABASE, tls: None };
    match Session::open(&node.grpc(), login, ONE_QUESTION).await {
        Ok(session) => {
            session.close().await;
            true
        }
        Err(why) => !why.contains(INVALID_CREDENTIALS.text()),
    }
}

fn announce(args: &Args, record: &Record) -> Result<(), Failure> {
    if args.json {
        let json = serde_json::to_string(record).or_fail("encoding the demo's record", "report this")?;
        return print_raw(json + "\n");
    }
    let mut table = Table::new(&["node", "clients", "REST", "metrics", "process", "log"]);
    for NodeRecord { node, endpoint, metrics_port, web_port, pid, log, .. } in &record.nodes {
        table.row([
            node.to_string(),
            endpoint.clone(),
            format!("http://127.0.0.1:{web_port}/"),
            format!("http://127.0.0.1:{metrics_port}/metrics"),
            pid.to_string(),
            log.display().to_string(),
        ]);
    }
    let endpoints: Vec<&str> = record.nodes.iter().map(|node| node.endpoint.as_str()).collect();
    let flag = if args.base_port == BASE_PORT { String::new() } else { format!(" --endpoint {}", endpoints.join(",")) };
    print_raw(format!(
        "{} nodes serve cluster {}\n\n{}\nuser {}, password {}, database {}\n\nTry in another terminal:\n  \
         alhambra set hello world{flag}\n  alhambra verify hello{flag}\n  alhambra status{flag}\n\n\
         Ctrl-C stops all nodes; the same command resumes them.\n",
        record.nodes.len(),
        record.uuid,
        table.render(),
        record.username,
        record.password,
        record.database,
    ))
}
