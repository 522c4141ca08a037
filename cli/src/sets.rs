//! `alhambra reference`, `zadd` and `zscan`: other names of keys, and keys by score.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use alhambra_client::{TxId, ZEntry, ZScan};
use serde_json::{Value, json};

use crate::failure::{Failure, Kind};
use crate::kv::{Common, ENTRIES_MAX, tell_if_cut, yes};
use crate::output::{Output, Table, print_json, print_raw, text};

/// Flags of `alhambra reference`.
#[derive(Debug, clap::Args)]
pub struct ReferenceArgs {
    /// The new name.
    #[arg(value_name = "KEY")]
    key: OsString,
    /// The key that it leads to.
    #[arg(value_name = "TARGET")]
    target: OsString,
    /// Lead to what this transaction wrote, for ever, instead of to the newest value.
    #[arg(long, value_name = "TX", value_parser = clap::value_parser!(u64).range(1..))]
    at_tx: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `alhambra zadd`.
#[derive(Debug, clap::Args)]
pub struct ZAddArgs {
    /// The set.
    #[arg(value_name = "SET")]
    set: OsString,
    /// The score.
    #[arg(value_name = "SCORE", allow_negative_numbers = true)]
    score: f64,
    /// The key to add, which must have a value.
    #[arg(value_name = "KEY")]
    key: OsString,
    /// Lead to what this transaction wrote, for ever, instead of to the newest value.
    #[arg(long, value_name = "TX", value_parser = clap::value_parser!(u64).range(1..))]
    at_tx: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `alhambra zscan`.
#[derive(Debug, clap::Args)]
pub struct ZScanArgs {
    /// The set.
    #[arg(value_name = "SET")]
    set: OsString,
    /// From the greatest score down; then the members of exactly the score --max are left out.
    #[arg(long)]
    desc: bool,
    /// Smallest score.
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    min: Option<f64>,
    /// Greatest score.
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    max: Option<f64>,
    /// Members to leave out at the start.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// Most members to look at.
    #[arg(long, value_name = "N", default_value_t = ENTRIES_MAX, value_parser = clap::value_parser!(u16).range(1..=i64::from(ENTRIES_MAX)))]
    limit: u16,
    #[command(flatten)]
    common: Common,
}

fn must_be_given(what: &str, bytes: &[u8]) -> Result<(), Failure> {
    if bytes.is_empty() {
        return Err(Failure::new(Kind::Usage, format!("{what} is empty"), "give at least one byte"));
    }
    Ok(())
}

/// Gives a key another name.
pub async fn reference(args: ReferenceArgs) -> Result<(), Failure> {
    let (key, target) = (args.key.into_vec(), args.target.into_vec());
    must_be_given("the key", &key)?;
    must_be_given("the target", &target)?;
    let at_tx = TxId(args.at_tx.unwrap_or(0));
    let trusted = args.common.connect().await?;
    let verify = args.common.verifies();
    let outcome = if verify {
        let written = trusted.client.verified_set_reference(key.clone(), target.clone(), at_tx).await;
        written.map(|verified| verified.header)
    } else {
        trusted.client.set_reference(key.clone(), target.clone(), at_tx).await
    };
    let outcome = outcome.map_err(|error| trusted.explain(&error, Some(&target)));
    let tx = trusted.close(outcome).await?.id.get();
    match args.common.output() {
        Output::Json => {
            let at_tx = args.at_tx;
            print_json(
                &json!({"key": text(&key), "target": text(&target), "at_tx": at_tx, "tx": tx, "verified": verify}),
            )
        }
        Output::Raw => print_raw(format!("{tx}\n")),
        Output::Table => {
            let mut table = Table::new(&["key", "leads to", "version", "tx", "verified"]);
            table.row([text(&key), text(&target), version(at_tx), tx.to_string(), yes(verify)]);
            print_raw(table.render())
        }
    }
}

/// Adds a key to a set.
pub async fn zadd(args: ZAddArgs) -> Result<(), Failure> {
    let (set, key) = (args.set.into_vec(), args.key.into_vec());
    must_be_given("the set", &set)?;
    must_be_given("the key", &key)?;
    let at_tx = TxId(args.at_tx.unwrap_or(0));
    let trusted = args.common.connect().await?;
    let verify = args.common.verifies();
    let outcome = if verify {
        let written = trusted.client.verified_z_add(set.clone(), args.score, key.clone(), at_tx).await;
        written.map(|verified| verified.header)
    } else {
        trusted.client.z_add(set.clone(), args.score, key.clone(), at_tx).await
    };
    let outcome = outcome.map_err(|error| trusted.explain(&error, Some(&key)));
    let tx = trusted.close(outcome).await?.id.get();
    match args.common.output() {
        Output::Json => print_json(
            &json!({"set": text(&set), "score": args.score, "key": text(&key), "at_tx": args.at_tx, "tx": tx, "verified": verify}),
        ),
        Output::Raw => print_raw(format!("{tx}\n")),
        Output::Table => {
            let mut table = Table::new(&["set", "score", "key", "version", "tx", "verified"]);
            table.row([text(&set), args.score.to_string(), text(&key), version(at_tx), tx.to_string(), yes(verify)]);
            print_raw(table.render())
        }
    }
}

/// Lists the members of a set. What they lead to is verified; that they are in the set, and all of it, is not.
pub async fn zscan(args: ZScanArgs) -> Result<(), Failure> {
    let set = args.set.into_vec();
    must_be_given("the set", &set)?;
    let mut trusted = args.common.connect().await?;
    let scan = ZScan {
        set: set.clone().into(),
        desc: args.desc,
        min_score: args.min,
        max_score: args.max,
        offset: args.offset,
        limit: u64::from(args.limit),
    };
    let outcome = async {
        let found = trusted.client.z_scan(scan).await.map_err(|error| trusted.explain(&error, None))?;
        let mut judged = Vec::with_capacity(found.len());
        for member in found {
            let verified = match &member.entry {
                Some(entry) if args.common.verifies() => trusted.verify_entry(entry).await?,
                _ => false,
            };
            judged.push((member, verified));
        }
        Ok(judged)
    }
    .await;
    let members: Vec<(ZEntry, bool)> = trusted.close(outcome).await?;
    tell_if_cut(members.len(), args.limit);
    let value = |member: &ZEntry| member.entry.as_ref().map(|entry| text(&entry.value)).unwrap_or_default();
    match args.common.output() {
        Output::Json => {
            let members: Vec<Value> = members
                .iter()
                .map(|(member, verified)| {
                    json!({
                        "score": member.score,
                        "key": text(&member.key),
                        "value": value(member),
                        "at_tx": (member.at_tx.get() > 0).then_some(member.at_tx.get()),
                        "tx": member.entry.as_ref().map(|entry| entry.tx.get()),
                        "verified": verified,
                    })
                })
                .collect();
            print_json(&json!({"set": text(&set), "members": members}))
        }
        Output::Raw => {
            let keys: Vec<u8> = members.iter().flat_map(|(m, _)| m.key.iter().copied().chain([b'\n'])).collect();
            print_raw(keys)
        }
        Output::Table => {
            let mut table = Table::new(&["score", "key", "value", "version", "verified"]);
            for (member, verified) in &members {
                table.row([
                    member.score.to_string(),
                    text(&member.key),
                    value(member),
                    version(member.at_tx),
                    yes(*verified),
                ]);
            }
            print_raw(table.render())
        }
    }
}

fn version(at_tx: TxId) -> String {
    if at_tx.get() == 0 { "newest".to_owned() } else { format!("of tx {at_tx}") }
}
