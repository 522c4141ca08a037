//! `alhambra set`, `get`, `restore`, `history` and `scan`, verified unless told otherwise; `delete` and `count`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use alhambra_client::{Entry, Scan, TxId};
use serde_json::{Value, json};

use crate::connect::{Connect, StateDir};
use crate::failure::{Failure, Kind};
use crate::output::{Output, Table, print_json, print_raw, text};
use crate::trusted::Trusted;

/// The most that the server answers at once.
pub const ENTRIES_MAX: u16 = 2500;

/// Flags that all of these commands have.
#[derive(Debug, clap::Args)]
pub struct Common {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    states: StateDir,
    /// Do not ask for proofs, and leave the trusted state alone.
    #[arg(long)]
    no_verify: bool,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// As `--output raw`.
    #[arg(long, conflicts_with = "output")]
    value_only: bool,
}

impl Common {
    /// Connects as the flags say.
    pub async fn connect(&self) -> Result<Trusted, Failure> {
        Trusted::connect(&self.connect, (!self.no_verify).then_some(&self.states)).await
    }

    /// Whether proofs are asked for.
    pub fn verifies(&self) -> bool {
        !self.no_verify
    }

    /// Form of the answer.
    pub fn output(&self) -> Output {
        if self.value_only { Output::Raw } else { self.output }
    }
}

/// Flags of `alhambra delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// The keys; all must have a value.
    #[arg(value_name = "KEY", required = true)]
    keys: Vec<OsString>,
    #[command(flatten)]
    connect: Connect,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Flags of `alhambra count`.
#[derive(Debug, clap::Args)]
pub struct CountArgs {
    /// Only keys that begin so.
    #[arg(value_name = "PREFIX", default_value = "")]
    prefix: OsString,
    #[command(flatten)]
    connect: Connect,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Flags of `alhambra set`.
#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// The key.
    #[arg(value_name = "KEY")]
    key: OsString,
    /// The value.
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: OsString,
    #[command(flatten)]
    common: Common,
}

/// A key that may say which version is meant.
#[derive(Debug, clap::Args)]
struct Versioned {
    /// The key; with `@N` behind it version N: 1 is the first, -1 the one before the newest.
    #[arg(value_name = "KEY[@N]")]
    key: OsString,
    /// What stands between a key and a version; with an empty one, and where a version is given otherwise, the whole word is the key.
    #[arg(long, value_name = "TEXT", default_value = "@")]
    revision_separator: OsString,
}

impl Versioned {
    /// The key, and the version behind it if `split` and there is one: what is no number belongs to the key.
    fn parts(self, split: bool) -> (Vec<u8>, Option<i64>) {
        let (mut key, separator) = (self.key.into_vec(), self.revision_separator.into_vec());
        if !split || separator.is_empty() {
            return (key, None);
        }
        let at = key.windows(separator.len()).rposition(|part| part == separator);
        let number = at.and_then(|at| std::str::from_utf8(&key[at + separator.len()..]).ok());
        let revision = number.filter(|number| !number.starts_with('+')).and_then(|number| number.parse().ok());
        if let (Some(at), Some(_)) = (at, revision) {
            key.truncate(at);
        }
        (key, revision)
    }
}

/// Flags of `alhambra get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    #[command(flatten)]
    key: Versioned,
    /// This version instead of the newest: 1 is the first, -1 the one before the newest.
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "at_tx")]
    revision: Option<i64>,
    /// What this transaction wrote to the key.
    #[arg(long, value_name = "TX", value_parser = clap::value_parser!(u64).range(1..))]
    at_tx: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `alhambra restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    key: Versioned,
    /// The version to write again, when it does not stand behind the key.
    #[arg(value_name = "N", allow_negative_numbers = true)]
    revision: Option<i64>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `alhambra history`.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// The key.
    #[arg(value_name = "KEY")]
    key: OsString,
    /// The newest revision first.
    #[arg(long)]
    desc: bool,
    /// Revisions to leave out at the start.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// Most revisions to show.
    #[arg(long, value_name = "N", default_value_t = ENTRIES_MAX, value_parser = clap::value_parser!(u16).range(1..=i64::from(ENTRIES_MAX)))]
    limit: u16,
    #[command(flatten)]
    common: Common,
}

/// Flags of `alhambra scan`.
#[derive(Debug, clap::Args)]
pub struct ScanArgs {
    /// Only keys that begin so.
    #[arg(value_name = "PREFIX", default_value = "")]
    prefix: OsString,
    /// From the last key to the first.
    #[arg(long)]
    desc: bool,
    /// Keys to leave out at the start.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// Most keys to show.
    #[arg(long, value_name = "N", default_value_t = ENTRIES_MAX, value_parser = clap::value_parser!(u16).range(1..=i64::from(ENTRIES_MAX)))]
    limit: u16,
    #[command(flatten)]
    common: Common,
}

/// Writes one pair as one transaction.
pub async fn set(args: SetArgs) -> Result<(), Failure> {
    let (key, value) = (args.key.into_vec(), args.value.into_vec());
    if key.is_empty() {
        return Err(Failure::new(Kind::Usage, "the key is empty", "give a key of at least one byte"));
    }
    let trusted = args.common.connect().await?;
    let outcome = write(&trusted, &args.common, &key, &value).await;
    let tx = trusted.close(outcome).await?;
    tell_written(&args.common, &key, &value, tx)
}

/// Writes an old value again.
pub async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let (key, behind) = args.key.parts(args.revision.is_none());
    let revision = args.revision.or(behind).ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            "it is not said which version",
            "write KEY@N: 1 is the first, -1 the one before the newest",
        )
    })?;
    let mut trusted = args.common.connect().await?;
    let outcome = async {
        let old = at_revision(&mut trusted, &args.common, &key, revision).await?.0;
        let tx = write(&trusted, &args.common, &key, &old.value).await?;
        Ok((old.value, tx))
    }
    .await;
    let (value, tx) = trusted.close(outcome).await?;
    tell_written(&args.common, &key, &value, tx)
}

async fn write(trusted: &Trusted, common: &Common, key: &[u8], value: &[u8]) -> Result<u64, Failure> {
    let outcome = if common.verifies() {
        trusted.client.verified_set(key.to_vec(), value.to_vec()).await.map(|verified| verified.header)
    } else {
        trusted.client.set(key.to_vec(), value.to_vec()).await
    };
    outcome.map(|header| header.id.get()).map_err(|error| trusted.explain(&error, Some(key)))
}

/// An older version of a key, and whether it was verified.
async fn at_revision(
    trusted: &mut Trusted,
    common: &Common,
    key: &[u8],
    revision: i64,
) -> Result<(Entry, bool), Failure> {
    let entry = trusted.client.get_revision(key.to_vec(), revision).await;
    let entry = entry.map_err(|error| trusted.explain(&error, Some(key)))?;
    let verified = common.verifies() && trusted.verify_entry(&entry).await?;
    Ok((entry, verified))
}

fn tell_written(common: &Common, key: &[u8], value: &[u8], tx: u64) -> Result<(), Failure> {
    let verify = common.verifies();
    match common.output() {
        Output::Json => print_json(&json!({"key": text(key), "value": text(value), "tx": tx, "verified": verify})),
        Output::Raw => print_raw(format!("{tx}\n")),
        Output::Table => {
            let mut table = Table::new(&["key", "value", "tx", "verified"]);
            table.row([text(key), text(value), tx.to_string(), yes(verify)]);
            print_raw(table.render())
        }
    }
}

/// Marks keys as deleted, all in one transaction; their histories stay.
pub async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let keys: Vec<Vec<u8>> = args.keys.into_iter().map(OsString::into_vec).collect();
    if keys.iter().any(Vec::is_empty) {
        return Err(Failure::new(Kind::Usage, "a key is empty", "give keys of at least one byte"));
    }
    let trusted = Trusted::connect(&args.connect, None).await?;
    let outcome = trusted.client.delete(keys.iter().map(|key| key.clone().into()).collect()).await;
    let outcome = outcome.map_err(|error| trusted.explain(&error, if keys.len() == 1 { Some(&keys[0]) } else { None }));
    let tx = trusted.close(outcome).await?.id.get();
    let names: Vec<String> = keys.iter().map(|key| text(key)).collect();
    match args.output {
        Output::Json => print_json(&json!({"keys": names, "tx": tx})),
        Output::Raw => print_raw(format!("{tx}\n")),
        Output::Table => {
            let mut table = Table::new(&["deleted", "tx"]);
            names.into_iter().for_each(|name| table.row([name, tx.to_string()]));
            print_raw(table.render())
        }
    }
}

/// Counts keys, deleted and expired ones included.
pub async fn count(args: CountArgs) -> Result<(), Failure> {
    let prefix = args.prefix.into_vec();
    let trusted = Trusted::connect(&args.connect, None).await?;
    let outcome = trusted.client.count(prefix.clone()).await.map_err(|error| trusted.explain(&error, None));
    let count = trusted.close(outcome).await?;
    match args.output {
        Output::Json => print_json(&json!({"prefix": text(&prefix), "count": count})),
        Output::Raw => print_raw(format!("{count}\n")),
        Output::Table => {
            let mut table = Table::new(&["prefix", "keys"]);
            table.row([text(&prefix), count.to_string()]);
            print_raw(table.render())
        }
    }
}

/// Reads a value of a key, the newest unless told otherwise.
pub async fn get(args: GetArgs) -> Result<(), Failure> {
    let mut trusted = args.common.connect().await?;
    let (key, behind) = args.key.parts(args.revision.is_none() && args.at_tx.is_none());
    let verify = args.common.verifies();
    let outcome = async {
        let entry = match (args.revision.or(behind), args.at_tx) {
            (Some(revision), _) => return at_revision(&mut trusted, &args.common, &key, revision).await,
            (None, at_tx) if verify => {
                let tx = TxId(at_tx.unwrap_or(0));
                trusted.client.verified_get_at(key.clone(), tx).await.map(|verified| verified.value)
            }
            (None, Some(tx)) => trusted.client.get_at(key.clone(), TxId(tx)).await,
            (None, None) => trusted.client.get(key.clone()).await,
        };
        let entry = entry.map_err(|error| trusted.explain(&error, Some(&key)))?;
        // Of a reference, only the reference is proven.
        let verified = verify && entry.referenced_by.is_none();
        Ok((entry, verified))
    }
    .await;
    let (entry, verified) = trusted.close(outcome).await?;
    match args.common.output() {
        Output::Json => print_json(&entry_json(&key, &entry, verified)),
        Output::Raw => print_raw(&entry.value),
        Output::Table => print_raw(entry_table([(&entry, verified)].into_iter()).render()),
    }
}

/// Entries by their keys; a last column where one of them has attributes or is a reference.
fn entry_table<'a>(entries: impl Iterator<Item = (&'a Entry, bool)> + Clone) -> Table {
    let remarks = entries.clone().any(|(entry, _)| !remark(entry).is_empty());
    let heading = ["key", "value", "tx", "revision", "verified", "remark"];
    let mut table = Table::new(&heading[..if remarks { 6 } else { 5 }]);
    for (entry, verified) in entries {
        table.row([
            text(name(entry)),
            text(&entry.value),
            entry.tx.to_string(),
            entry.revision.to_string(),
            yes(verified),
            remark(entry),
        ]);
    }
    table
}

/// The key by which an entry was found.
fn name(entry: &Entry) -> &[u8] {
    entry.referenced_by.as_ref().map_or(&entry.key, |reference| &reference.key)
}

/// What there is to say about an entry beside its value.
fn remark(entry: &Entry) -> String {
    let metadata = &entry.metadata;
    let reference = entry.referenced_by.as_ref().map(|reference| match reference.at_tx.get() {
        0 => format!("leads to {}", text(&entry.key)),
        at_tx => format!("leads to {} of tx {at_tx}", text(&entry.key)),
    });
    let expiry = metadata
        .expires_at
        .map(|at| if entry.expired { format!("expired at {at}") } else { format!("expires at {at}") });
    let parts = [
        reference,
        metadata.deleted.then(|| "deleted".to_owned()),
        expiry,
        metadata.non_indexable.then(|| "not indexed".to_owned()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The object that is printed for an entry found by `key`.
pub fn entry_json(key: &[u8], entry: &Entry, verified: bool) -> Value {
    let reference = entry
        .referenced_by
        .as_ref()
        .map(|reference| json!({"target": text(&entry.key), "tx": reference.tx.get(), "at_tx": reference.at_tx.get()}));
    json!({
        "key": text(key),
        "value": text(&entry.value),
        "tx": entry.tx.get(),
        "revision": entry.revision,
        "deleted": entry.metadata.deleted,
        "expired": entry.expired,
        "expires_at": entry.metadata.expires_at,
        "non_indexable": entry.metadata.non_indexable,
        "reference": reference,
        "verified": verified,
    })
}

/// Lists all versions of a key.
pub async fn history(args: HistoryArgs) -> Result<(), Failure> {
    let mut trusted = args.common.connect().await?;
    let key = args.key.into_vec();
    let outcome = async {
        let entries = trusted
            .client
            .history(key.clone(), args.offset, i32::from(args.limit), args.desc)
            .await
            .map_err(|error| trusted.explain(&error, Some(&key)))?;
        judge(&mut trusted, entries, args.common.no_verify).await
    }
    .await;
    let entries = trusted.close(outcome).await?;
    tell_if_cut(entries.len(), args.limit);
    match args.common.output() {
        Output::Json => {
            let entries: Vec<Value> =
                entries.iter().map(|(entry, verified)| entry_json(&key, entry, *verified)).collect();
            print_json(&json!({"key": text(&key), "entries": entries}))
        }
        Output::Raw => print_raw(lines(&entries)),
        Output::Table => {
            let mut table = Table::new(&["revision", "value", "tx", "verified", "remark"]);
            for (entry, verified) in &entries {
                table.row([
                    entry.revision.to_string(),
                    text(&entry.value),
                    entry.tx.to_string(),
                    yes(*verified),
                    remark(entry),
                ]);
            }
            print_raw(table.render())
        }
    }
}

/// Lists keys with their newest values.
pub async fn scan(args: ScanArgs) -> Result<(), Failure> {
    let mut trusted = args.common.connect().await?;
    let prefix = args.prefix.into_vec();
    let scan = Scan {
        prefix: prefix.clone().into(),
        desc: args.desc,
        offset: args.offset,
        limit: u64::from(args.limit),
        ..Scan::default()
    };
    let outcome = async {
        let entries = trusted.client.scan(scan).await.map_err(|error| trusted.explain(&error, None))?;
        judge(&mut trusted, entries, args.common.no_verify).await
    }
    .await;
    let entries = trusted.close(outcome).await?;
    tell_if_cut(entries.len(), args.limit);
    match args.common.output() {
        Output::Json => {
            let entries: Vec<Value> =
                entries.iter().map(|(entry, verified)| entry_json(name(entry), entry, *verified)).collect();
            print_json(&json!({"prefix": text(&prefix), "entries": entries}))
        }
        Output::Raw => print_raw(lines(&entries)),
        Output::Table => print_raw(entry_table(entries.iter().map(|(entry, verified)| (entry, *verified))).render()),
    }
}

/// Verifies each entry by itself. That a list is complete cannot be proven and is not claimed.
async fn judge(trusted: &mut Trusted, entries: Vec<Entry>, no_verify: bool) -> Result<Vec<(Entry, bool)>, Failure> {
    let mut judged = Vec::with_capacity(entries.len());
    for entry in entries {
        let verified = !no_verify && trusted.verify_entry(&entry).await?;
        judged.push((entry, verified));
    }
    Ok(judged)
}

/// Tells that a list may go on.
pub fn tell_if_cut(shown: usize, limit: u16) {
    if shown == usize::from(limit) {
        eprintln!("only {limit} were asked for, there may be more; go on with --offset {limit}");
    }
}

fn lines(entries: &[(Entry, bool)]) -> Vec<u8> {
    entries.iter().flat_map(|(entry, _)| entry.value.iter().copied().chain([b'\n'])).collect()
}

/// How a table says whether something was verified.
pub fn yes(verified: bool) -> String {
    if verified { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_behind_the_separator_is_a_version_and_nothing_else_is() {
        let parts = |key: &str, separator: &str| {
            let versioned = Versioned { key: key.into(), revision_separator: separator.into() };
            let (key, revision) = versioned.parts(true);
            (String::from_utf8(key).unwrap(), revision)
        };
        assert_eq!(parts("k@3", "@"), ("k".to_owned(), Some(3)));
        assert_eq!(parts("k@-1", "@"), ("k".to_owned(), Some(-1)));
        assert_eq!(parts("ada@example.com@2", "@"), ("ada@example.com".to_owned(), Some(2)));
        assert_eq!(parts("k::4", "::"), ("k".to_owned(), Some(4)));
        for whole in ["ada@example.com", "k", "k@", "k@1x", "tel@+4930123"] {
            assert_eq!(parts(whole, "@"), (whole.to_owned(), None));
        }
        assert_eq!(parts("k@3", ""), ("k@3".to_owned(), None));
        assert_eq!(parts("@3", "@"), (String::new(), Some(3)), "an empty key, which the server refuses");
        let given = Versioned { key: "k@3".into(), revision_separator: "@".into() };
        assert_eq!(given.parts(false), (b"k@3".to_vec(), None));
    }

    #[test]
    fn what_is_beside_a_value_is_told() {
        use alhambra_client::{KvMetadata, Reference};
        let entry = |metadata, expired, referenced_by| Entry {
            key: "k".into(),
            value: "v".into(),
            tx: TxId(2),
            revision: 1,
            metadata,
            expired,
            referenced_by,
        };
        let none = KvMetadata::default();
        let reference = |at_tx| Some(Reference { key: "r".into(), tx: TxId(3), at_tx: TxId(at_tx), revision: 1 });
        let until = KvMetadata { expires_at: Some(70), ..none };
        for (entry, wanted) in [
            (entry(none, false, None), ""),
            (entry(until, false, None), "expires at 70"),
            (entry(until, true, None), "expired at 70"),
            (entry(KvMetadata { deleted: true, non_indexable: true, ..none }, false, None), "deleted, not indexed"),
            (entry(none, false, reference(0)), "leads to k"),
            (entry(none, false, reference(2)), "leads to k of tx 2"),
        ] {
            assert_eq!(remark(&entry), wanted);
            assert_eq!(entry_table([(&entry, true)].into_iter()).render().contains("remark"), !wanted.is_empty());
        }
    }
}
