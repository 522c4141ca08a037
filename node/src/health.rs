//! Metrics and health over HTTP: `/metrics`, `/livez`, `/readyz`, `/initz`, `/version`.
//!
//! Alive means that the process answers. Ready means that traffic may be sent here: every database of this node has a known
//! leader and has applied nearly everything that is committed; otherwise the body says what is missing.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use alhambra_raft::env::{BoxIo, Listener};
use alhambra_raft::forming::company::Stranger;
use alhambra_raft::group::Health;
use alhambra_raft::groups::{Groups, Phase, Readiness};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::metrics::Metrics;
use crate::session::Sessions;

/// What the pages are made of.
#[derive(Clone, Debug)]
pub struct Pages {
    /// Groups of this node.
    pub groups: Arc<Groups>,
    /// Sessions of this node.
    pub sessions: Arc<Sessions>,
    /// Metrics of this node.
    pub metrics: Arc<Metrics>,
}

impl Pages {
    /// The routes.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(ready))
            .route("/initz", get(formed))
            .route("/version", get(version))
            .with_state(self)
    }
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let text = pages.metrics.render(&pages.groups, &pages.sessions);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn ready(State(pages): State<Pages>) -> impl IntoResponse {
    let readiness = pages.groups.ready();
    (status(readiness.ready), explain(&readiness))
}

async fn formed(State(pages): State<Pages>) -> impl IntoResponse {
    match pages.groups.identity() {
        Some(_) => (status(true), "the cluster is formed\n".to_owned()),
        None => (status(false), explain(&pages.groups.ready())),
    }
}

async fn version() -> impl IntoResponse {
    let body = serde_json::json!({
        "component": "alhambra",
        "version": env!("CARGO_PKG_VERSION"),
        "compatible_with": crate::COMPATIBLE_VERSION,
    });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string())
}

const fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// One line for the node and one for every database.
fn explain(readiness: &Readiness) -> String {
    let phase = match &readiness.phase {
        Phase::Forming(reason) => format!("forming: {reason}"),
        Phase::Starting => "starting: systemdb is being opened".to_owned(),
        Phase::Serving => "serving".to_owned(),
        Phase::Stopping => "stopping".to_owned(),
    };
    let mut out = format!("{}: {phase}\n", if readiness.ready { "ready" } else { "not ready" });
    for Stranger { addr, cluster } in &readiness.strangers {
        let _ =
            writeln!(out, "the peer {addr} belongs to another cluster ({cluster}): look at its --dir and its --peers");
    }
    if readiness.phase == Phase::Serving && !readiness.among_peers {
        out.push_str("no majority of --peers has answered that it belongs to this cluster\n");
    }
    if let Some(disk) = readiness.disk.filter(|disk| disk.low) {
        let _ = writeln!(
            out,
            "disk low: {} bytes left, below the low-water mark of {}: free space or prune",
            disk.free_bytes, disk.low_bytes
        );
    }
    for group in &readiness.groups {
        let leader = group.leader.map_or_else(|| "no known leader".to_owned(), |id| format!("leader node {id}"));
        let index = |log_id: Option<alhambra_ledger::ids::LogId>| log_id.map_or(0, |id| id.index.get());
        let (committed, applied) = (index(group.committed), index(group.applied));
        let state = if group.ready { "ready" } else { "not ready" };
        let _ = write!(out, "{}: {state}, {leader}, applied {applied} of {committed} log entries", group.name);
        if let Some(Health::Failed { reason }) = &group.health {
            let _ = write!(out, ", failed: {reason}");
        }
        if group.waits_for_space {
            out.push_str(", the disk is full: writes wait for space");
        }
        if let Some(limit) = &group.limit {
            let _ = write!(out, ", user writes are refused: {limit}");
        }
        out.push('\n');
    }
    out
}

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The next connection, however long that takes. What fails, for want of open files for example, passes; the log names the `port`.
pub(crate) async fn accept(listener: &dyn Listener, port: &str) -> (BoxIo, String) {
    loop {
        match listener.accept().await {
            Ok(connection) => return connection,
            Err(error) => {
                tracing::warn!(%error, port, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A listener of ours as the HTTP server wants it.
pub struct HttpListener(pub Box<dyn Listener>);

impl axum::serve::Listener for HttpListener {
    type Io = BoxIo;
    type Addr = String;

    async fn accept(&mut self) -> (BoxIo, String) {
        accept(&*self.0, "HTTP").await
    }

    fn local_addr(&self) -> std::io::Result<String> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use alhambra_ledger::ids::{GroupId, LogId};
    use alhambra_raft::disk::DiskReport;
    use alhambra_raft::error::WriteLimit;
    use alhambra_raft::groups::GroupReadiness;

    use super::*;

    #[test]
    fn the_body_says_what_is_missing() {
        let group = GroupReadiness {
            name: "defaultdb".into(),
            group: GroupId(3),
            ready: false,
            leader: None,
            committed: Some(LogId::new(2, 90)),
            applied: Some(LogId::new(2, 7)),
            health: None,
            waits_for_space: false,
            limit: None,
            reopened: 0,
        };
        let serving = |groups| Readiness {
            ready: false,
            phase: Phase::Serving,
            among_peers: true,
            strangers: vec![],
            disk: None,
            groups,
        };
        let text = explain(&serving(vec![group.clone()]));
        assert_eq!(text, "not ready: serving\ndefaultdb: not ready, no known leader, applied 7 of 90 log entries\n");
        let damaged = GroupReadiness { health: Some(Health::Failed { reason: "rotten".into() }), ..group.clone() };
        let text = explain(&serving(vec![damaged]));
        assert!(text.ends_with("applied 7 of 90 log entries, failed: rotten\n"), "{text}");
        let disk = DiskReport { free_bytes: 9, low_bytes: 10, low: true };
        let limit = WriteLimit::DiskLow { node: 1, free_bytes: 9, low_bytes: 10 };
        let full = GroupReadiness { waits_for_space: true, limit: Some(limit), ..group.clone() };
        let text = explain(&Readiness { disk: Some(disk), ..serving(vec![full]) });
        assert_eq!(
            text,
            "not ready: serving\ndisk low: 9 bytes left, below the low-water mark of 10: free space or prune\ndefaultdb: not ready, \
             no known leader, applied 7 of 90 log entries, the disk is full: writes wait for space, user writes are refused: \
             the disk of node 1 has 9 bytes left, below the low-water mark of 10 bytes: free space or prune; writes resume by \
             themselves\n"
        );
        let stranger = Stranger { addr: "b:1".into(), cluster: "9m4e2mr0ui3e8a215n4g".into() };
        let strangers = Readiness { among_peers: false, strangers: vec![stranger], ..serving(vec![]) };
        assert_eq!(
            explain(&strangers),
            "not ready: serving\nthe peer b:1 belongs to another cluster (9m4e2mr0ui3e8a215n4g): look at its --dir and its \
             --peers\nno majority of --peers has answered that it belongs to this cluster\n"
        );
        let forming = Phase::Forming("2 of 3 nodes".into());
        let waiting = Readiness { phase: forming, among_peers: false, ..serving(vec![]) };
        assert_eq!(explain(&waiting), "not ready: forming: 2 of 3 nodes\n");
    }
}
