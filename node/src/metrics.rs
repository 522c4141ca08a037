//! What a node counts and measures, in Prometheus' text form. Names carry their units; those with the prefix `immudb_` and
//! the `grpc_server_` set are what existing dashboards read.
//!
//! The recorder belongs to the node, not to the process, so that several nodes can live in one process. Calls are counted as
//! they happen; everything else is read when somebody asks.

use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alhambra_raft::error::WriteLimit;
use alhambra_raft::group::{Health, Role};
use alhambra_raft::groups::Groups;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::time::Instant;

use crate::method::{self, Kind, Method};
use crate::session::Sessions;
use crate::tls::Tls;
use crate::uploads::Uploads;

/// Upper bounds of the latency buckets, seconds: a microsecond-scale local read to the longest call.
const LATENCY_BUCKETS: &[f64] =
    &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// gRPC codes in the order of their numbers, as labels.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

#[derive(Debug)]
struct Calls {
    started: Counter,
    seconds: Histogram,
    latency: Histogram,
    handled: [OnceLock<Counter>; CODES.len()],
}

/// All metrics of a node.
#[derive(Debug)]
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    calls: Vec<OnceLock<Calls>>,
    started: Instant,
    tls: Option<Arc<Tls>>,
    uploads: Arc<Uploads>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(None, Uploads::new(0))
    }
}

impl Metrics {
    /// All zero. With TLS the end of its certificate is told.
    pub fn new(tls: Option<Arc<Tls>>, uploads: Arc<Uploads>) -> Self {
        let recorder =
            PrometheusBuilder::new().set_buckets(LATENCY_BUCKETS).expect("there are buckets").build_recorder();
        let handle = recorder.handle();
        let metrics = Self {
            recorder,
            handle,
            calls: method::ALL.iter().map(|_| OnceLock::new()).collect(),
            started: Instant::now(),
            tls,
            uploads,
        };
        metrics.describe();
        metrics
    }

    fn describe(&self) {
        let gauges = [
            ("immudb_db_size_bytes", Unit::Bytes, "Size of a database on the disk of this node"),
            ("immudb_number_of_stored_entries", Unit::Count, "Newest transaction of a database, applied here"),
            ("immudb_last_committed_trx_id", Unit::Count, "Newest transaction of a database, applied here"),
            ("immudb_loaded_databases", Unit::Count, "Databases of this node"),
            ("immudb_active_sessions", Unit::Count, "Open sessions of this node"),
            ("alhambra_ready", Unit::Count, "1 while this node may be sent traffic"),
            ("alhambra_build_info", Unit::Count, "Always 1; the labels tell the version"),
            ("alhambra_raft_is_leader", Unit::Count, "1 while this node leads the group of a database"),
            ("alhambra_raft_has_leader", Unit::Count, "1 while this node knows a leader of the group"),
            ("alhambra_raft_term", Unit::Count, "Epoch of the group of a database"),
            ("alhambra_raft_last_log_index", Unit::Count, "Newest log entry of a database here"),
            ("alhambra_raft_committed_log_index", Unit::Count, "Newest log entry known to be committed"),
            ("alhambra_raft_applied_log_index", Unit::Count, "Newest log entry applied here"),
            ("alhambra_raft_voters", Unit::Count, "Members of the group that vote"),
            ("alhambra_disk_free_bytes", Unit::Bytes, "Free space on the disk of the data folder"),
            ("alhambra_disk_low", Unit::Count, "1 while less than the low-water mark is free"),
            ("alhambra_waits_for_space", Unit::Count, "1 while the full disk holds up writes of a database"),
            (
                "alhambra_scrub_unrepaired",
                Unit::Count,
                "Pieces of damage in files that wait for a good copy or a majority",
            ),
            (
                "alhambra_scrub_last_pass_timestamp_seconds",
                Unit::Seconds,
                "End of the last complete pass over a database's files since the start, Unix time; 0 for none",
            ),
            ("alhambra_certificate_ends_timestamp_seconds", Unit::Seconds, "End of the TLS certificate, Unix time"),
            ("alhambra_database_failed", Unit::Count, "1 while a database is closed because its disk failed"),
            ("alhambra_memory_budget_bytes", Unit::Bytes, "Memory that all databases share"),
            ("alhambra_memory_used_bytes", Unit::Bytes, "Memory of the budget in use, by part"),
            ("process_resident_memory_bytes", Unit::Bytes, "Memory of the process"),
            ("process_open_fds", Unit::Count, "Open files and connections of the process"),
        ];
        for (name, unit, help) in gauges {
            self.recorder.describe_gauge(KeyName::from_const_str(name), Some(unit), SharedString::const_str(help));
        }
        let counters = [
            ("grpc_server_started_total", "Calls started"),
            ("grpc_server_handled_total", "Calls ended, by code"),
            ("alhambra_scrub_bytes_total", "Bytes of a database's files that were read again to find rot"),
            ("alhambra_scrub_mismatches_total", "Pieces of damage that reading the files again came upon"),
            ("alhambra_scrub_repaired_total", "Pieces of damage in files that were mended"),
            ("alhambra_writes_refused_total", "User writes refused by this leader, by reason"),
            (
                "alhambra_database_reopens_total",
                "Times a database was closed because its disk failed, to be opened again",
            ),
            ("alhambra_link_frames_sent_total", "Requests that were sent to other nodes, by lane"),
            ("alhambra_link_packets_sent_total", "Packets that carried them"),
            ("alhambra_raft_snapshots_sent_total", "Raft snapshots that were offered to other nodes"),
            ("alhambra_raft_snapshots_received_total", "Raft snapshots whose files came from other nodes"),
            ("alhambra_raft_snapshot_received_bytes_total", "Bytes of the files of these snapshots"),
            ("alhambra_password_hashes_total", "Passwords that were hashed, to be kept or to be compared"),
            ("alhambra_logins_refused_total", "Logins that were refused unseen after too many wrong passwords"),
            ("immudb_uptime_hours", "Hours since this node started"),
            ("process_cpu_seconds_total", "Processor time of the process"),
        ];
        for (name, help) in counters {
            self.recorder.describe_counter(KeyName::from_const_str(name), None, SharedString::const_str(help));
        }
        for name in ["grpc_server_handling_seconds", "immudb_query_latency_seconds"] {
            let help = SharedString::const_str("Time from a call's headers to the beginning of its answer");
            self.recorder.describe_histogram(KeyName::from_const_str(name), Some(Unit::Seconds), help);
        }
    }

    fn calls(&self, method: &Method) -> &Calls {
        self.calls[method.index].get_or_init(|| {
            let labels = Self::labels(method);
            Calls {
                started: self
                    .recorder
                    .register_counter(&Key::from_parts("grpc_server_started_total", labels.clone()), &METADATA),
                seconds: self
                    .recorder
                    .register_histogram(&Key::from_parts("grpc_server_handling_seconds", labels), &METADATA),
                latency: self.recorder.register_histogram(
                    &Key::from_parts("immudb_query_latency_seconds", vec![Label::from_static_parts("op", method.path)]),
                    &METADATA,
                ),
                handled: Default::default(),
            }
        })
    }

    fn labels(method: &Method) -> Vec<Label> {
        let kind = match method.kind {
            Kind::Unary => "unary",
            Kind::Stream => "stream",
        };
        vec![
            Label::from_static_parts("grpc_type", kind),
            Label::from_static_parts("grpc_service", method.service),
            Label::from_static_parts("grpc_method", method.name),
        ]
    }

    /// A call begins.
    pub fn started(&self, method: &Method) {
        self.calls(method).started.increment(1);
    }

    /// A call has ended with this code after this time.
    pub fn handled(&self, method: &Method, code: tonic::Code, took: Duration) {
        let calls = self.calls(method);
        let code = code as usize;
        let counter = calls.handled[code].get_or_init(|| {
            let mut labels = Self::labels(method);
            labels.push(Label::from_static_parts("grpc_code", CODES[code]));
            self.recorder.register_counter(&Key::from_parts("grpc_server_handled_total", labels), &METADATA)
        });
        counter.increment(1);
        calls.seconds.record(took.as_secs_f64());
        calls.latency.record(took.as_secs_f64());
    }

    /// A password is hashed.
    pub fn password_hashed(&self) {
        self.counter("alhambra_password_hashes_total", vec![]).increment(1);
    }

    /// A login is refused after too many wrong passwords.
    pub fn login_refused(&self) {
        self.counter("alhambra_logins_refused_total", vec![]).increment(1);
    }

    fn gauge(&self, name: &'static str, labels: Vec<Label>) -> Gauge {
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    /// Moves recorded times into their buckets; without it they would pile up until somebody asks.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Everything, in text form.
    pub fn render(&self, groups: &Arc<Groups>, sessions: &Sessions) -> String {
        let readiness = groups.ready();
        self.gauge("alhambra_ready", vec![]).set(u8::from(readiness.ready));
        let version = vec![Label::from_static_parts("version", env!("CARGO_PKG_VERSION"))];
        self.gauge("alhambra_build_info", version).set(1);
        #[allow(clippy::cast_precision_loss)] // gauges are floating-point numbers
        {
            self.gauge("immudb_active_sessions", vec![]).set(sessions.count() as f64);
            self.gauge("immudb_loaded_databases", vec![]).set(readiness.groups.len() as f64);
            if let Some(tls) = &self.tls {
                self.gauge("alhambra_certificate_ends_timestamp_seconds", vec![]).set(tls.ends() as f64);
            }
            if let Some(disk) = &readiness.disk {
                self.gauge("alhambra_disk_free_bytes", vec![]).set(disk.free_bytes as f64);
                self.gauge("alhambra_disk_low", vec![]).set(u8::from(disk.low));
            }
            let memory = groups.memory();
            self.gauge("alhambra_memory_budget_bytes", vec![]).set(memory.bytes() as f64);
            let parts = [
                ("blocks", memory.cache().used_bytes()),
                ("databases", memory.held_bytes()),
                ("proposals", memory.waiting_bytes()),
                ("uploads", self.uploads.bytes()),
            ];
            for (part, bytes) in parts {
                self.gauge("alhambra_memory_used_bytes", vec![Label::new("part", part)]).set(bytes as f64);
            }
            if let Some(traffic) = groups.traffic() {
                for (lane, sent) in traffic.sent {
                    let lane = || vec![Label::from_static_parts("lane", lane.name())];
                    self.counter("alhambra_link_frames_sent_total", lane()).absolute(sent.frames);
                    self.counter("alhambra_link_packets_sent_total", lane()).absolute(sent.packets);
                }
                let snapshots = [
                    ("alhambra_raft_snapshots_sent_total", traffic.snapshots_sent),
                    ("alhambra_raft_snapshots_received_total", traffic.snapshots_received),
                    ("alhambra_raft_snapshot_received_bytes_total", traffic.snapshot_bytes_received),
                ];
                for (name, count) in snapshots {
                    self.counter(name, vec![]).absolute(count);
                }
            }
            for group in &readiness.groups {
                let db = || vec![Label::new("db", group.name.clone())];
                self.counter("alhambra_database_reopens_total", db()).absolute(group.reopened);
                let failed = matches!(group.health, Some(Health::Failed { .. }));
                self.gauge("alhambra_database_failed", db()).set(u8::from(failed));
                self.gauge("alhambra_waits_for_space", db()).set(u8::from(group.waits_for_space));
                self.gauge("alhambra_raft_has_leader", db()).set(u8::from(group.leader.is_some()));
                let Some(replica) = groups.group_by_name(&group.name) else { continue };
                let status = replica.status();
                let index = |log_id: Option<alhambra_ledger::ids::LogId>| log_id.map_or(0, |id| id.index.get()) as f64;
                self.gauge("alhambra_raft_is_leader", db()).set(u8::from(status.role == Role::Leader));
                for (reason, count) in WriteLimit::REASONS.into_iter().zip(status.refused) {
                    let mut by_reason = db();
                    by_reason.push(Label::from_static_parts("reason", reason));
                    self.counter("alhambra_writes_refused_total", by_reason).absolute(count);
                }
                let scrub = status.scrub;
                self.counter("alhambra_scrub_bytes_total", db()).absolute(scrub.bytes);
                self.counter("alhambra_scrub_mismatches_total", db()).absolute(scrub.mismatches);
                self.counter("alhambra_scrub_repaired_total", db()).absolute(scrub.repaired);
                self.gauge("alhambra_scrub_unrepaired", db()).set(scrub.waiting as f64);
                let last_pass_ms = scrub.last_pass_ms.unwrap_or(0);
                self.gauge("alhambra_scrub_last_pass_timestamp_seconds", db()).set(last_pass_ms as f64 / 1000.0);
                self.gauge("alhambra_raft_term", db()).set(status.term as f64);
                self.gauge("alhambra_raft_last_log_index", db()).set(index(status.last_log));
                self.gauge("alhambra_raft_committed_log_index", db()).set(index(status.committed));
                self.gauge("alhambra_raft_applied_log_index", db()).set(index(status.applied));
                self.gauge("alhambra_raft_voters", db()).set(status.voters.len() as f64);
                self.gauge("immudb_number_of_stored_entries", db()).set(status.applied_tx.get() as f64);
                let mut with_index = db();
                with_index.push(Label::from_static_parts("index", "kv"));
                self.gauge("immudb_last_committed_trx_id", with_index).set(status.applied_tx.get() as f64);
                self.gauge("immudb_db_size_bytes", db()).set(replica.database().size_bytes() as f64);
            }
        }
        let process = process::read();
        self.gauge("process_resident_memory_bytes", vec![]).set(process.resident_bytes);
        self.gauge("process_open_fds", vec![]).set(process.open_files);
        let mut out = self.handle.render();
        // The recorder's counters are whole numbers; these two are not.
        let hours = self.started.elapsed().as_secs_f64() / 3600.0;
        for (name, help, value) in [
            ("immudb_uptime_hours", "Hours since this node started", hours),
            ("process_cpu_seconds_total", "Processor time of the process", process.cpu_seconds),
        ] {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n\n");
        }
        out
    }
}

/// What the operating system says about this process; zeros where it does not.
mod process {
    use std::fs;

    pub(super) struct Process {
        pub(super) resident_bytes: f64,
        pub(super) open_files: f64,
        pub(super) cpu_seconds: f64,
    }

    /// Clock ticks per second in `/proc`, the same on every Linux that we run on.
    const TICKS_PER_SECOND: f64 = 100.0;

    #[allow(clippy::cast_precision_loss)] // gauges are floating-point numbers
    pub(super) fn read() -> Process {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident_kib: u64 = (status.lines().find_map(|line| line.strip_prefix("VmRSS:")))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
            .unwrap_or(0);
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name of the program stands in parentheses and may hold anything; the numbers come after it.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        Process {
            resident_bytes: resident_kib as f64 * 1024.0,
            open_files: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64,
            cpu_seconds: (ticks(11) + ticks(12)) as f64 / TICKS_PER_SECOND,
        }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn the_process_has_memory_and_files() {
            let process = super::read();
            assert!(process.resident_bytes > 1e6 && process.open_files >= 3.0 && process.cpu_seconds >= 0.0);
        }
    }
}
