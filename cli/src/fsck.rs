//! `alhambra fsck`: offline checks of a data folder. It reads; it repairs nothing.
//!
//! By default everything is derived again from the segments and compared (`full`); with `--seals` only the digests of sealed
//! segments are.

mod full;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::Error;
use alhambra_storage::fsck::{self, Report};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::{FileKind, LockGuard, Vfs};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::failure::{Failure, Kind, OrFail};
use crate::output::{Output, Table, print_json, print_raw};

/// How deep below the folder databases are looked for.
const DEPTH_MAX: usize = 4;

/// What to do about damage.
const REPAIR: &str = "do not start this node on them; take these files from a node whose fsck is clean";

/// Flags of `alhambra fsck`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only compare each sealed segment with the digest in its seal, which the replicas agreed on: quick.
    #[arg(long, conflicts_with = "resume")]
    seals: bool,
    /// Only this database.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Go on where an earlier check with this flag was interrupted. The place is kept in a folder beside DIR, `DIR.fsck`.
    #[arg(long)]
    resume: bool,
    /// Data folder of a stopped node, or the folder of one database.
    #[arg(long, value_name = "DIR", env = "ALHAMBRA_DIR")]
    dir: PathBuf,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// The same as `--output json`.
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl Args {
    fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }
}

/// Checks every database of the folder, or one of them; fails when something is wrong.
pub fn run(args: &Args) -> Result<(), Failure> {
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
    if !args.dir.is_dir() {
        return Err(Failure::new(
            Kind::NotFound,
            format!("{} is not a folder", args.dir.display()),
            "name the data folder of a node: its --dir",
        ));
    }
    let _nobody_else = lock(&*vfs, &args.dir)?;
    let mut databases = Vec::new();
    find(&*vfs, &args.dir, DEPTH_MAX, &mut databases)?;
    if let Some(name) = &args.database {
        databases.retain(|dir| is_named(dir, name));
    }
    if databases.is_empty() {
        let which = args.database.as_ref().map_or(String::from("database"), |name| format!("database {name}"));
        return Err(Failure::new(
            Kind::NotFound,
            format!("there is no {which} in {}", args.dir.display()),
            "name the data folder of a node: its --dir",
        ));
    }
    if args.seals { seals(&vfs, databases, args.output()) } else { full::run(&vfs, databases, args) }
}

/// A database's folder is called by its name and the beginning of its id.
fn is_named(dir: &Path, name: &str) -> bool {
    let Some(found) = dir.file_name().and_then(|found| found.to_str()) else { return false };
    let id = found.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
    found == name || id.is_some_and(|id| id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn seals(vfs: &Arc<dyn Vfs>, databases: Vec<PathBuf>, output: Output) -> Result<(), Failure> {
    let mut reports = Vec::new();
    for dir in databases {
        let bar = ProgressBar::no_length().with_style(style()).with_message(dir.display().to_string());
        let report = fsck::seals(vfs, &dir, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let report = match report {
            // Nothing is sealed before the first checkpoint.
            Err(Error::NoDatabase { .. }) => Report::default(),
            report => report
                .or_fail(format_args!("checking {}", dir.display()), "restore this node's folder from another node")?,
        };
        reports.push((dir, report));
    }
    print(&reports, output)?;
    let damaged: Vec<String> = reports
        .iter()
        .flat_map(|(_, report)| &report.segments)
        .filter(|verdict| !verdict.is_sound())
        .map(|verdict| verdict.path.display().to_string())
        .collect();
    if damaged.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(
        format!("{} sealed segments are not what was sealed: {}", damaged.len(), damaged.join(", ")),
        REPAIR,
    ))
}

/// Keeps a node from starting on the folder meanwhile, and refuses a folder on which one runs.
fn lock(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Box<dyn LockGuard>>, Failure> {
    let file = dir.join("LOCK");
    if !file.exists() {
        return Ok(None);
    }
    match vfs.lock(&file) {
        Ok(guard) => Ok(Some(guard)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(Failure::failed(format!("{} is in use by a running node", dir.display()), "stop the node first"))
        }
        Err(error) => Err(error).or_fail(format_args!("locking {}", file.display()), "run as the user of the node"),
    }
}

/// A database's folder has a ledger, and marks from the first moment or a checkpoint.
fn find(vfs: &dyn Vfs, dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let names = vfs.read_dir(dir).or_fail(format_args!("reading {}", dir.display()), "run as the user of the node")?;
    let has = |wanted: &str, kind| names.iter().any(|(name, found)| name == wanted && *found == kind);
    if has("ledger", FileKind::Dir) && (has("checkpoint", FileKind::File) || has("marks", FileKind::File)) {
        found.push(dir.to_owned());
        return Ok(());
    }
    if depth > 0 {
        for (name, _) in names.iter().filter(|(_, kind)| *kind == FileKind::Dir) {
            find(vfs, &dir.join(name), depth - 1, found)?;
        }
    }
    Ok(())
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} segments, {eta} left")
        .expect("the template is a constant that is tested")
        .progress_chars("=> ")
}

fn print(reports: &[(PathBuf, Report)], output: Output) -> Result<(), Failure> {
    let result = |report: &Report| if report.is_sound() { "sound" } else { "DAMAGED" };
    match output {
        Output::Json => {
            let databases: Vec<_> = reports
                .iter()
                .map(|(dir, report)| {
                    let segments: Vec<_> = report
                        .segments
                        .iter()
                        .map(|verdict| {
                            json!({
                                "segment": verdict.segment,
                                "path": verdict.path,
                                "sealed": verdict.sealed.to_string(),
                                "found": verdict.found.map(|digest| digest.to_string()),
                                "sound": verdict.is_sound(),
                            })
                        })
                        .collect();
                    json!({"dir": dir, "segments": segments, "unsealed": report.unsealed, "sound": report.is_sound()})
                })
                .collect();
            print_json(&json!({ "databases": databases }))
        }
        Output::Raw => {
            let lines = reports.iter().map(|(dir, report)| format!("{} {}\n", result(report), dir.display()));
            print_raw(lines.collect::<String>())
        }
        Output::Table => {
            let mut table = Table::new(&["database", "sealed segments", "not sealed yet", "result"]);
            for (dir, report) in reports {
                table.row([
                    dir.display().to_string(),
                    report.segments.len().to_string(),
                    report.unsealed.to_string(),
                    result(report).to_owned(),
                ]);
            }
            print_raw(table.render())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_found_below_the_folder_and_the_style_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        for database in ["databases/a", "b"] {
            std::fs::create_dir_all(dir.path().join(database).join("ledger")).unwrap();
            std::fs::write(dir.path().join(database).join("checkpoint"), "").unwrap();
        }
        std::fs::create_dir_all(dir.path().join("c").join("ledger")).unwrap();
        let mut found = Vec::new();
        find(&OsVfs, dir.path(), DEPTH_MAX, &mut found).unwrap();
        assert_eq!(found, [dir.path().join("b"), dir.path().join("databases/a")]);
        style();
    }

    #[test]
    fn databases_are_named_without_their_ids() {
        for (folder, name, named) in [
            ("databases/orders.0a1b2c3d", "orders", true),
            ("databases/orders.0a1b2c3d", "orders.0a1b2c3d", true),
            ("systemdb", "systemdb", true),
            ("databases/orders.0a1b2c3d", "order", false),
            ("databases/orders.eu.0a1b2c3d", "orders", false),
            ("databases/orders.0a1b2c3", "orders", false),
        ] {
            assert_eq!(is_named(Path::new(folder), name), named, "{folder} {name}");
        }
    }

    #[test]
    fn a_folder_without_databases_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [dir.path().to_owned(), dir.path().join("absent")] {
            for seals in [true, false] {
                let (dir, output) = (folder.clone(), Output::Table);
                let args = Args { seals, database: None, resume: false, dir, output, json: false };
                let said = run(&args).unwrap_err();
                assert_eq!(said.exit_code(), Kind::NotFound.exit_code().into());
            }
        }
    }
}
