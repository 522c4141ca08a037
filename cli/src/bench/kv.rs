//! `alhambra bench kv`: one row per number of clients and batch size, as Markdown and JSON.
//!
//! The load is closed: each client has its own connection and session, and sends its next call when the last one was
//! answered. Keys are 32 random bytes, values 128. A failed call is counted, the client goes on with the next endpoint.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::bench::load::{self, Mode, Workload};
use crate::bench::machine::Machine;
use crate::bench::stats::{Row, Samples};
use crate::connect::{Connect, Target};
use crate::failure::{Failure, Kind, OrFail};
use crate::output::{Table, print_json, print_raw};

/// The server's limit of entries per transaction.
const BATCH_MAX: u32 = 1024;
const CLIENTS_MAX: u32 = 10_000;

/// Flags of `alhambra bench kv`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    /// Numbers of concurrent clients, one row each; they are spread over the endpoints.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,10,100",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CLIENTS_MAX)))]
    clients: Vec<u32>,
    /// Entries per transaction, one row each; ignored by --mode get.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(BATCH_MAX)))]
    batch: Vec<u32>,
    /// How long each row is measured.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Use the verified calls, and verify every answer against a trusted state; one entry per transaction.
    #[arg(long)]
    verified: bool,
    /// What each call does.
    #[arg(long, value_enum, default_value_t = Mode::Set)]
    mode: Mode,
    /// Print JSON instead of Markdown.
    #[arg(long)]
    json: bool,
}

/// Everything a reader needs to judge the figures.
#[derive(Debug, Serialize)]
struct Report {
    mode: Mode,
    verified: bool,
    endpoints: Vec<String>,
    seconds_per_row: u64,
    key_bytes: usize,
    value_bytes: usize,
    machine: Machine,
    rows: Vec<Row>,
}

/// Measures every combination and prints the report.
pub async fn run(args: Args) -> Result<(), Failure> {
    let target = args.connect.user_target()?;
    let batches = if args.mode == Mode::Get { vec![1] } else { args.batch.clone() };
    if args.verified && batches.iter().any(|&batch| batch != 1) {
        return Err(Failure::new(
            Kind::Usage,
            "a verified call carries one entry",
            "use --batch 1 with --verified, or measure batches without it",
        ));
    }
    if args.mode == Mode::Get {
        load::populate(&target).await?;
    }
    let mut rows = Vec::new();
    for &batch in &batches {
        for &clients in &args.clients {
            eprintln!("{clients} clients, batch {batch}: {} s", args.seconds);
            let workload = Workload { mode: args.mode, verified: args.verified, batch };
            rows.push(measure(&target, workload, clients, Duration::from_secs(args.seconds)).await?);
        }
    }
    let report = Report {
        mode: args.mode,
        verified: args.verified,
        endpoints: target.endpoints,
        seconds_per_row: args.seconds,
        key_bytes: load::KEY_BYTES,
        value_bytes: load::VALUE_BYTES,
        machine: Machine::here(),
        rows,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print_raw(report.markdown())?;
    }
    if report.rows.iter().any(|row| row.tx_per_second == 0.0) {
        return Err(Failure::failed("a row has no successful call at all", "read the errors above"));
    }
    Ok(())
}

/// One row: `clients` connect first, then all of them start at once.
async fn measure(target: &Target, workload: Workload, clients: u32, duration: Duration) -> Result<Row, Failure> {
    let mut workers = Vec::new();
    for number in 0..clients {
        workers.push(load::Worker::connect(target, workload, number).await?);
    }
    let start = Instant::now();
    let running: Vec<_> = workers.into_iter().map(|worker| tokio::spawn(worker.run(start, start + duration))).collect();
    let mut samples: Vec<Samples> = Vec::new();
    for worker in running {
        samples.push(worker.await.or_fail("running a client", "report this")?);
    }
    Ok(Row::of(clients, workload.batch, start.elapsed(), samples))
}

impl Report {
    fn markdown(&self) -> String {
        let mut table =
            Table::new(&["clients", "batch", "tx/s", "entries/s", "p50 ms", "p95 ms", "p99 ms", "errors", "gap ms"]);
        for row in &self.rows {
            table.row([
                row.clients.to_string(),
                row.batch.to_string(),
                format!("{:.0}", row.tx_per_second),
                format!("{:.0}", row.entries_per_second),
                format!("{:.2}", row.p50_ms),
                format!("{:.2}", row.p95_ms),
                format!("{:.2}", row.p99_ms),
                row.errors.to_string(),
                format!("{:.0}", row.longest_gap_ms),
            ]);
        }
        let mut text = format!(
            "Machine: {}\nLoad: {}{}, keys of {} bytes, values of {}, {} s per row, against {}\n\n{}",
            self.machine.describe(),
            if self.verified { "verified " } else { "" },
            match self.mode {
                Mode::Set => "set",
                Mode::Get => "get",
            },
            self.key_bytes,
            self.value_bytes,
            self.seconds_per_row,
            self.endpoints.join(", "),
            table.markdown()
        );
        for row in &self.rows {
            for (error, count) in &row.error_texts {
                text.push_str(&format!("\n{} clients, batch {}: {count} x {error}\n", row.clients, row.batch));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_markdown_has_machine_load_rows_and_errors() {
        let samples = Samples {
            done: vec![(Duration::from_millis(100), Duration::from_millis(2))],
            entries: 100,
            errors: vec![("busy".to_owned(), 3)],
        };
        let report = Report {
            mode: Mode::Set,
            verified: false,
            endpoints: vec!["h:1".to_owned()],
            seconds_per_row: 1,
            key_bytes: load::KEY_BYTES,
            value_bytes: load::VALUE_BYTES,
            machine: Machine::here(),
            rows: vec![Row::of(1, 100, Duration::from_secs(1), vec![samples])],
        };
        let text = report.markdown();
        assert!(text.contains("| 1 | 100 | 1 | 100 | 2.00 | 2.00 | 2.00 | 3 | 900 |"), "{text}");
        assert!(text.contains("Load: set, keys of 32 bytes, values of 128, 1 s per row, against h:1"), "{text}");
        assert!(text.contains("1 clients, batch 100: 3 x busy"), "{text}");
    }
}
