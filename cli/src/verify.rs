//! `alhambra verify`: proves that the history this client trusts is still part of the server's, and moves its trust
//! forward. What a proof does not show is said as well.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use serde_json::json;

use crate::connect::{Connect, StateDir};
use crate::failure::Failure;
use crate::kv::entry_json;
use crate::output::{Output, hex, print_json, print_raw, text};
use crate::trusted::Trusted;

/// Flags of `alhambra verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also prove that the value the server shows for this key is in the history.
    #[arg(value_name = "KEY")]
    key: Option<OsString>,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    states: StateDir,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Verifies the current state, then the key.
pub async fn run(args: Args) -> Result<(), Failure> {
    let trusted = Trusted::connect(&args.connect, Some(&args.states)).await?;
    let key = args.key.map(OsString::into_vec);
    let outcome = async {
        let state = trusted.client.verify_state().await.map_err(|error| trusted.explain(&error, None))?;
        let entry = match &key {
            Some(key) => {
                let verified = trusted.client.verified_get(key.clone()).await;
                Some(verified.map_err(|error| trusted.explain(&error, Some(key)))?)
            }
            None => None,
        };
        Ok((state, entry, trusted.client.server_uuid().await))
    }
    .await;
    let (check, entry, cluster) = trusted.close(outcome).await?;
    // A write between the two calls may have moved the trusted state on.
    let now = entry.as_ref().map_or(&check.now, |entry| &entry.state);
    let alh = hex(now.alh.as_ref());
    let trusted_before = check.before.as_ref().map_or(0, |before| before.tx.get());

    let mut proven = Vec::new();
    let mut not_proven = vec!["that other clients are shown the same history: compare the alh with theirs".to_owned()];
    match &check.before {
        Some(before) if before.tx < now.tx => {
            proven.push(format!("tx {} continues the history trusted up to tx {}", now.tx, before.tx));
        }
        Some(before) => proven.push(format!("tx {} is still the last one trusted, nothing was changed", before.tx)),
        None => not_proven
            .push(format!("anything about the past: this was the first contact, tx {} is trusted from now on", now.tx)),
    }
    if check.signed {
        proven.push("the state is signed by the server's key".to_owned());
    }
    if let (Some(key), Some(entry)) = (&key, &entry) {
        let key = text(key);
        match &entry.value.referenced_by {
            Some(reference) => {
                proven.push(format!("tx {} made {key:?} a reference to {:?}", reference.tx, text(&entry.value.key)));
                not_proven.push(format!("the value of {:?}", text(&entry.value.key)));
            }
            None => proven.push(format!("tx {} set {key:?} to {:?}", entry.value.tx, text(&entry.value.value))),
        }
        not_proven.push(format!("that this is the newest entry of {key:?}: only that it is in the history"));
    }

    match args.output {
        Output::Json => print_json(&json!({
            "cluster": cluster,
            "database": now.database,
            "tx": now.tx.get(),
            "alh": alh,
            "trusted_before": trusted_before,
            "signed": check.signed,
            "entry": key.zip(entry).map(|(key, entry)| {
                entry_json(&key, &entry.value, entry.value.referenced_by.is_none())
            }),
            "proven": proven,
            "not_proven": not_proven,
        })),
        Output::Raw => print_raw(format!("{} {alh}\n", now.tx)),
        Output::Table => {
            let mut out = format!("database {} of cluster {cluster}\ntx {}  alh {alh}\n", now.database, now.tx);
            for line in &proven {
                out.push_str(&format!("proven: {line}\n"));
            }
            for line in &not_proven {
                out.push_str(&format!("not proven: {line}\n"));
            }
            print_raw(out)
        }
    }
}
