//! `alhambra tx`, `current`, `health` and `info`: a transaction, the newest one, and how the server is.

use alhambra_client::TxId;
use alhambra_ledger::kv::{parse_set_key, parse_zadd_key};
use alhambra_proto::convert::Tx;
use serde_json::{Value, json};

use crate::connect::Connect;
use crate::failure::Failure;
use crate::kv::{Common, yes};
use crate::output::{Output, Table, hex, print_json, print_raw, text};
use crate::trusted::Trusted;

/// Flags of `alhambra tx`.
#[derive(Debug, clap::Args)]
pub struct TxArgs {
    /// Number of the transaction.
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    #[command(flatten)]
    common: Common,
}

/// Flags of commands that only ask.
#[derive(Debug, clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    connect: Connect,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What a stored key is, and the key for people.
fn kind(stored: &[u8]) -> (&'static str, String) {
    if let Ok(key) = parse_set_key(stored) {
        ("key", text(key))
    } else if let Ok(member) = parse_zadd_key(stored) {
        ("set", format!("{} {} {}", text(member.set), member.score, text(member.key)))
    } else {
        ("other", text(stored))
    }
}

/// Shows a transaction with its entries.
pub async fn tx(args: TxArgs) -> Result<(), Failure> {
    let trusted = args.common.connect().await?;
    let (id, verify) = (TxId(args.id), args.common.verifies());
    let outcome = if verify {
        trusted.client.verified_tx_by_id(id).await.map(|verified| verified.value)
    } else {
        trusted.client.tx_by_id(id).await
    };
    let outcome = outcome.map_err(|error| trusted.explain(&error, None));
    let Tx { header, entries } = trusted.close(outcome).await?;
    let alh = header.alh().map_or_else(|error| format!("none: {error}"), |alh| hex(alh.as_ref()));
    match args.common.output() {
        Output::Json => {
            let entries: Vec<Value> = entries
                .iter()
                .map(|entry| {
                    let (kind, key) = kind(&entry.key);
                    json!({
                        "kind": kind, "key": key, "value_hash": hex(entry.value_hash.as_ref()),
                        "value_len": entry.value_len, "deleted": entry.metadata.deleted,
                    })
                })
                .collect();
            print_json(&json!({
                "tx": header.id.get(), "time": header.ts, "alh": alh, "eh": hex(header.eh.as_ref()),
                "previous_alh": hex(header.prev_alh.as_ref()), "entries": entries, "verified": verify,
            }))
        }
        Output::Raw => print_raw(format!("{alh}\n")),
        Output::Table => {
            let mut table = Table::new(&["entry", "key", "value hash", "bytes", "remark"]);
            for entry in &entries {
                let (kind, key) = kind(&entry.key);
                let remark = if entry.metadata.deleted { "deleted" } else { "" };
                let (hash, len) = (hex(entry.value_hash.as_ref()), entry.value_len.to_string());
                table.row([kind.to_owned(), key, hash, len, remark.to_owned()]);
            }
            print_raw(format!(
                "tx {} of {} (unix seconds), {} entries, verified: {}\nalh {alh}\n\n{}",
                header.id,
                header.ts,
                header.nentries,
                yes(verify),
                table.render()
            ))
        }
    }
}

/// Shows the newest transaction that the server claims; `verify` proves that it continues what is trusted.
pub async fn current(args: AskArgs) -> Result<(), Failure> {
    let trusted = Trusted::connect(&args.connect, None).await?;
    let outcome = trusted.client.current_state().await.map_err(|error| trusted.explain(&error, None));
    let state = trusted.close(outcome).await?;
    let alh = hex(&state.tx_hash);
    match args.output {
        Output::Json => print_json(&json!({
            "database": state.db, "tx": state.tx_id, "alh": alh, "signed": state.signature.is_some(),
        })),
        Output::Raw => print_raw(format!("{} {alh}\n", state.tx_id)),
        Output::Table if state.tx_id == 0 => print_raw(format!("database {} is empty\n", state.db)),
        Output::Table => {
            let mut table = Table::new(&["database", "tx", "alh", "signed"]);
            table.row([state.db, state.tx_id.to_string(), alh, yes(state.signature.is_some())]);
            print_raw(table.render())
        }
    }
}

/// Shows what waits in the selected database of the node that answers.
pub async fn health(args: AskArgs) -> Result<(), Failure> {
    let trusted = Trusted::connect(&args.connect, None).await?;
    let outcome = trusted.client.database_health().await.map_err(|error| trusted.explain(&error, None));
    let node = trusted.client.endpoint().to_owned();
    let health = trusted.close(outcome).await?;
    // There may have been none since the node began; the protocol then tells a time long before 1970.
    let last = (health.last_request_completed_at > 0).then_some(health.last_request_completed_at);
    match args.output {
        Output::Json => print_json(&json!({
            "node": node, "pending_requests": health.pending_requests, "last_request_completed_at_ms": last,
        })),
        Output::Raw => print_raw(format!("{}\n", health.pending_requests)),
        Output::Table => {
            let mut table = Table::new(&["node", "pending requests", "last completed (unix ms)"]);
            let last = last.map_or_else(|| "none yet".to_owned(), |last| last.to_string());
            table.row([node, health.pending_requests.to_string(), last]);
            print_raw(table.render())
        }
    }
}

/// Shows version, age and size of the server.
pub async fn info(args: AskArgs) -> Result<(), Failure> {
    let trusted = Trusted::connect(&args.connect, None).await?;
    let outcome = trusted.client.server_info().await.map_err(|error| trusted.explain(&error, None));
    let (node, cluster) = (trusted.client.endpoint().to_owned(), trusted.client.server_uuid().await);
    let info = trusted.close(outcome).await?;
    match args.output {
        Output::Json => print_json(&json!({
            "node": node, "cluster": cluster, "compatible_with": info.version, "started_at": info.started_at,
            "databases": info.num_databases, "transactions": info.num_transactions,
            "disk_bytes": info.databases_disk_size,
        })),
        Output::Raw => print_raw(format!("{}\n", info.version)),
        Output::Table => {
            let mut table =
                Table::new(&["node", "cluster", "compatible with", "databases", "transactions", "disk bytes"]);
            table.row([
                node,
                cluster,
                info.version,
                info.num_databases.to_string(),
                info.num_transactions.to_string(),
                info.databases_disk_size.to_string(),
            ]);
            print_raw(table.render())
        }
    }
}
