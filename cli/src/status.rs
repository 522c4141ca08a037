//! `alhambra status`: every node asked by itself, over gRPC and its health and metrics pages.

use std::time::Duration;

use alhambra_proto::schema::{Database, DatabaseListRequestV2};
use serde::Serialize;

use crate::connect::{Connect, Target};
use crate::demo::METRICS_ABOVE_GRPC;
use crate::failure::{Failure, Kind, OrFail};
use crate::http;
use crate::output::{Output, Table, hex, print_json, print_raw};
use crate::session::{Login, Session, say};

const SYSTEM_DATABASE: &str = "systemdb";
/// A node that says nothing for this long counts as not reachable.
const ONE_QUESTION: Duration = Duration::from_secs(5);
/// How much of an Alh the table shows; JSON has all of it.
const ALH_DIGITS_SHOWN: usize = 16;

/// Flags of `alhambra status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    /// Health and metrics of the same nodes in the same order [default: each endpoint's port raised by 6175]
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', env = "ALHAMBRA_METRICS_ENDPOINT")]
    metrics_endpoint: Vec<String>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Status {
    nodes: Vec<Node>,
}

/// One node as it shows itself.
#[derive(Debug, Default, Serialize)]
struct Node {
    endpoint: String,
    metrics_endpoint: String,
    /// Whether `/readyz` says so.
    ready: bool,
    /// What `/readyz` says, or why it could not be asked.
    readiness: String,
    /// Whether `/readyz` was heard.
    #[serde(skip)]
    heard: bool,
    /// The cluster's uuid; none when the node gives no session.
    cluster: Option<String>,
    /// Why the node gives no session.
    error: Option<String>,
    databases: Vec<DatabaseState>,
    /// How many nodes its cluster has, as far as it tells.
    members: Option<u64>,
}

/// One database as one node shows it.
#[derive(Debug, Serialize)]
struct DatabaseState {
    name: String,
    /// `leader`, `follower`, `unloaded`, or `unknown` when the metrics page does not tell.
    role: &'static str,
    /// Last transaction.
    tx: Option<u64>,
    /// Its Alh as hex.
    alh: Option<String>,
    /// Why there is no state.
    error: Option<String>,
}

/// Asks all nodes at once and prints what they say; fails when one is not ready.
pub async fn run(args: Args) -> Result<(), Failure> {
    let target = args.connect.user_target()?;
    let metrics_endpoints = metrics_endpoints(&target, &args.metrics_endpoint)?;
    let asked: Vec<_> = target
        .endpoints
        .iter()
        .zip(metrics_endpoints)
        .map(|(endpoint, metrics)| tokio::spawn(ask(target.clone(), endpoint.clone(), metrics)))
        .collect();
    let mut nodes = Vec::new();
    for node in asked {
        nodes.push(node.await.or_fail("asking a node", "report this")?);
    }
    if target.guessed {
        leave_out_strangers(&mut nodes);
    }
    let status = Status { nodes };
    match args.output {
        Output::Json => print_json(&status)?,
        Output::Table => print_raw(status.table().render())?,
        Output::Raw => {
            for node in &status.nodes {
                let ready = match node.is_ready() {
                    Some(true) => "ready",
                    Some(false) => "not ready",
                    None => "unknown",
                };
                print_raw(format!("{} {ready}\n", node.endpoint))?;
            }
        }
    }
    let missing: Vec<&Node> = status.nodes.iter().filter(|n| !n.is_well()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|n| n.endpoint.as_str()).collect::<Vec<_>>().join(", ");
    let how_many = format!("{} of {} nodes", missing.len(), status.nodes.len());
    if missing.iter().all(|node| node.is_ready().is_none()) {
        return Err(Failure::failed(
            format!("{how_many} do not say whether they are ready: {names}"),
            "name where their metrics and health pages are with --metrics-endpoint",
        ));
    }
    Err(Failure::failed(
        format!("{how_many} are not ready: {names}"),
        "look into the logs of these nodes; where metrics are on other ports, name them with --metrics-endpoint",
    ))
}

/// Of endpoints that nobody named, those where nothing is are left out when the others are all that their cluster has.
fn leave_out_strangers(nodes: &mut Vec<Node>) {
    let members = nodes.iter().filter_map(|node| node.members).max();
    let there = nodes.iter().filter(|node| node.members.is_some()).count() as u64;
    if members == Some(there) {
        nodes.retain(|node| node.members.is_some());
    }
}

fn metrics_endpoints(target: &Target, given: &[String]) -> Result<Vec<String>, Failure> {
    if !given.is_empty() {
        if given.len() != target.endpoints.len() {
            return Err(Failure::new(
                Kind::Usage,
                format!("{} metrics endpoints for {} endpoints", given.len(), target.endpoints.len()),
                "name one for each endpoint, in the same order",
            ));
        }
        return Ok(given.to_vec());
    }
    let shift = |endpoint: &String| {
        let (host, port) = endpoint.rsplit_once(':')?;
        Some(format!("{host}:{}", port.parse::<u16>().ok()?.checked_add(METRICS_ABOVE_GRPC)?))
    };
    target.endpoints.iter().map(shift).collect::<Option<_>>().ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            "an endpoint's port is too high to guess the port of its metrics",
            "name the metrics of each node with --metrics-endpoint",
        )
    })
}

async fn ask(target: Target, endpoint: String, metrics_endpoint: String) -> Node {
    let mut node = Node { endpoint, metrics_endpoint, ..Node::default() };
    match http::get(&node.metrics_endpoint, "/readyz", target.tls.as_ref(), ONE_QUESTION).await {
        Ok((status, body)) => {
            node.heard = true;
            node.ready = status == 200;
            node.readiness = body.trim().to_owned();
        }
        Err(error) => node.readiness = format!("no answer to /readyz at {}: {error}", node.metrics_endpoint),
    }
    let metrics = http::get(&node.metrics_endpoint, "/metrics", target.tls.as_ref(), ONE_QUESTION).await;
    let metrics = metrics.map_or(String::new(), |page| page.1);
    node.members = value(&metrics, "alhambra_raft_voters{", SYSTEM_DATABASE).map(|members| members as u64);
    match Session::open(&node.endpoint, Login::of(&target), ONE_QUESTION).await {
        Ok(mut session) => {
            node.cluster = Some(session.cluster().to_owned());
            match databases(&mut session, &metrics).await {
                Ok(databases) => node.databases = databases,
                Err(error) => node.error = Some(error),
            }
            session.close().await;
        }
        Err(error) => node.error = Some(error),
    }
    node
}

async fn databases(session: &mut Session, metrics: &str) -> Result<Vec<DatabaseState>, String> {
    let request = session.request(DatabaseListRequestV2::default());
    let list = session.stub().database_list_v2(request).await.map_err(|status| say(&status))?.into_inner();
    let mut found = Vec::new();
    for listed in list.databases {
        let role = if listed.loaded { role(metrics, &listed.name) } else { "unloaded" };
        let mut database = DatabaseState { name: listed.name, role, tx: None, alh: None, error: None };
        if !listed.loaded {
            found.push(database);
            continue;
        }
        let request = session.request(Database { database_name: database.name.clone() });
        let state = match session.stub().use_database(request).await {
            Ok(_) => {
                let request = session.request(());
                session.stub().current_state(request).await
            }
            Err(status) => Err(status),
        };
        match state {
            Ok(state) => {
                let state = state.into_inner();
                database.tx = Some(state.tx_id);
                database.alh = Some(hex(&state.tx_hash));
            }
            Err(status) => database.error = Some(say(&status)),
        }
        found.push(database);
    }
    Ok(found)
}

/// What the metrics page says about this node's part in a database.
fn role(metrics: &str, database: &str) -> &'static str {
    match value(metrics, "alhambra_raft_is_leader{", database) {
        Some(1.0) => "leader",
        Some(_) => "follower",
        None => "unknown",
    }
}

/// The value of a gauge for a database.
fn value(metrics: &str, gauge: &str, database: &str) -> Option<f64> {
    let label = format!("db=\"{database}\"");
    let line = metrics.lines().find(|line| line.starts_with(gauge) && line.contains(&label))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

impl Node {
    /// None when it answers clients and its page is somewhere else.
    fn is_ready(&self) -> Option<bool> {
        (self.heard || self.error.is_some()).then_some(self.ready)
    }

    fn is_well(&self) -> bool {
        self.ready && self.error.is_none() && self.databases.iter().all(|database| database.error.is_none())
    }

    /// The line of `/readyz` about this.
    fn trouble(&self, about: &str) -> Option<&str> {
        self.readiness.lines().find(|line| line.strip_prefix(about).is_some_and(|rest| rest.starts_with(':')))
    }

    /// What `/readyz` says about a database behind what it says about each: that writes are refused, and why.
    fn trouble_of(&self, database: &str) -> Option<&str> {
        self.trouble(database)?.split_once(" log entries, ").map(|(_, trouble)| trouble)
    }
}

impl Status {
    fn table(&self) -> Table {
        let mut table = Table::new(&["node", "ready", "cluster", "database", "role", "tx", "alh", "remark"]);
        for node in &self.nodes {
            let ready = match node.is_ready() {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            };
            let cluster = node.cluster.as_deref().unwrap_or("-");
            let remark = match &node.error {
                Some(error) => error.as_str(),
                None if node.ready => node.trouble("disk low").unwrap_or_default(),
                None => node.readiness.as_str(),
            };
            let remark = remark.lines().next().unwrap_or_default();
            if node.databases.is_empty() {
                table.row([node.endpoint.as_str(), ready, cluster, "-", "-", "-", "-", remark]);
            }
            for database in &node.databases {
                let tx = database.tx.map_or("-".to_owned(), |tx| tx.to_string());
                let alh = database.alh.as_deref().map_or("-", |alh| alh.get(..ALH_DIGITS_SHOWN).unwrap_or(alh));
                let remark = database.error.as_deref().or_else(|| node.trouble_of(&database.name)).unwrap_or(remark);
                table.row([&node.endpoint, ready, cluster, &database.name, database.role, &tx, alh, remark]);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_is_read_for_the_database_asked_for() {
        let metrics = "# TYPE alhambra_raft_is_leader gauge\n\
            alhambra_raft_is_leader{db=\"defaultdb\"} 1\n\
            alhambra_raft_is_leader{db=\"other\"} 0\n";
        assert_eq!(role(metrics, "defaultdb"), "leader");
        assert_eq!(role(metrics, "other"), "follower");
        assert_eq!(role(metrics, "default"), "unknown");
        assert_eq!(role("", "defaultdb"), "unknown");
    }

    #[test]
    fn a_node_that_is_ready_and_takes_no_writes_says_why() {
        let database =
            |name: &str| DatabaseState { name: name.to_owned(), role: "leader", tx: Some(1), alh: None, error: None };
        let node = |readiness: &str| Node {
            endpoint: "a:1".to_owned(),
            ready: true,
            readiness: readiness.to_owned(),
            databases: vec![database("orders"), database("order")],
            ..Node::default()
        };
        let table = |readiness: &str| Status { nodes: vec![node(readiness)] }.table().render();
        let well = "ready: serving\norders: ready, leader node 1, applied 3 of 3 log entries\n";
        assert!(table(well).lines().skip(1).all(|line| line.ends_with(" -")), "{}", table(well));
        let low = "ready: serving\ndisk low: 9 bytes left, free space\n\
            orders: ready, leader node 1, applied 3 of 3 log entries, user writes are refused: no room\n";
        let low = table(low);
        let lines: Vec<&str> = low.lines().collect();
        assert!(lines[1].ends_with("  user writes are refused: no room"), "{low}");
        assert!(lines[2].ends_with("  disk low: 9 bytes left, free space"), "{low}");
    }

    #[test]
    fn a_page_that_is_elsewhere_is_not_a_node_that_is_not_ready() {
        let ready = |heard: bool, error: Option<&str>| {
            let node = Node { heard, error: error.map(str::to_owned), ..Node::default() };
            let table = Status { nodes: vec![node] }.table().render();
            table.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
        };
        assert_eq!(ready(false, None), "unknown");
        assert_eq!(ready(true, None), "no");
        assert_eq!(ready(false, Some("connection refused")), "no");
    }

    #[test]
    fn of_endpoints_that_nobody_named_only_those_of_the_cluster_are_shown() {
        let node = |members| Node { members, ..Node::default() };
        let shown = |members: &[Option<u64>]| {
            let mut nodes: Vec<Node> = members.iter().map(|members| node(*members)).collect();
            leave_out_strangers(&mut nodes);
            nodes.len()
        };
        assert_eq!(shown(&[Some(1), None, None]), 1, "a demo of one node");
        assert_eq!(shown(&[Some(3), Some(3), None]), 3, "one of three is gone");
        assert_eq!(shown(&[None, None, None]), 3, "nothing is there");
    }

    #[test]
    fn metrics_ports_follow_the_default_layout_or_are_given() {
        let target = |endpoints: &[&str]| Target {
            endpoints: endpoints.iter().map(|text| (*text).to_owned()).collect(),
            login: true,
            username: String::new(),
            password: String::new(),
            database: String::new(),
            tls: None,
            server_key: None,
            guessed: false,
        };
        let two = target(&["a:3322", "[::1]:3332"]);
        assert_eq!(metrics_endpoints(&two, &[]).unwrap(), ["a:9497", "[::1]:9507"]);
        assert_eq!(metrics_endpoints(&two, &["x:1".to_owned(), "y:2".to_owned()]).unwrap(), ["x:1", "y:2"]);
        assert!(metrics_endpoints(&two, &["x:1".to_owned()]).is_err());
        assert!(metrics_endpoints(&target(&["a:65000"]), &[]).is_err());
    }
}
