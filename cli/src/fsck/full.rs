//! The whole check: every transaction derived again from the segments.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::fsck::{self, Checked, Finding};
use alhambra_storage::vfs::Vfs;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Args, REPAIR};
use crate::failure::{Failure, OrFail};
use crate::output::{Output, Table, print_json, print_raw};

pub(super) fn run(vfs: &Arc<dyn Vfs>, databases: Vec<PathBuf>, args: &Args) -> Result<(), Failure> {
    let positions = if args.resume { Some(positions_folder(&args.dir)?) } else { None };
    let mut reports = Vec::new();
    for dir in databases {
        let position = positions.as_deref().map(|folder| position_file(folder, &args.dir, &dir));
        let bar = ProgressBar::no_length().with_style(style()).with_message(dir.display().to_string());
        let checked = fsck::check(vfs, &dir, position.as_deref(), &mut |progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes_done);
            true
        });
        bar.finish_and_clear();
        let checked = checked.or_fail(
            format_args!("checking {}", dir.display()),
            "stop whoever uses the folder, or read what it says",
        )?;
        reports.push((dir, checked));
    }
    if let Some(folder) = positions {
        // Empty when all checks came to their end; otherwise it is needed.
        let _ = std::fs::remove_dir(folder);
    }
    print(&reports, args.output())?;
    let bad: Vec<_> = reports.iter().filter(|(_, checked)| !checked.is_sound()).collect();
    let Some((dir, checked)) = bad.first() else { return Ok(()) };
    let first = checked.first_bad_tx().or(checked.findings.first()).expect("it is not sound");
    Err(Failure::failed(
        format!("{} of {} databases damaged; {}: {first}", bad.len(), reports.len(), dir.display()),
        advice(&bad),
    ))
}

/// What helps: an index is made again from the rest, and nothing else is.
fn advice(bad: &[&(PathBuf, Checked)]) -> String {
    let index = |dir: &Path| dir.join("index");
    let only_index = bad.iter().all(|(dir, checked)| {
        checked.findings.iter().all(|finding| finding.path().is_some_and(|path| path.starts_with(index(dir))))
    });
    if !only_index {
        return REPAIR.to_owned();
    }
    let folders: Vec<_> = bad.iter().map(|(dir, _)| index(dir).display().to_string()).collect();
    format!("remove {}: the node makes it again from the ledger when it starts", folders.join(" and "))
}

/// Beside the data folder, because nothing in it is changed.
fn positions_folder(dir: &Path) -> Result<PathBuf, Failure> {
    let advice = "check the folder's name and rights, or go without --resume";
    let dir = dir.canonicalize().or_fail(format_args!("finding {}", dir.display()), advice)?;
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".fsck");
    let folder = dir.with_file_name(name);
    std::fs::create_dir_all(&folder).or_fail(format_args!("making {}", folder.display()), advice)?;
    Ok(folder)
}

fn position_file(folder: &Path, data: &Path, database: &Path) -> PathBuf {
    let below = database.strip_prefix(data).unwrap_or(database);
    let parts: Vec<_> = below.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    folder.join(format!("{}.position", if parts.is_empty() { "database".into() } else { parts.join("_") }))
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
        .expect("the template is a constant that is tested")
        .progress_chars("=> ")
}

fn result(checked: &Checked) -> &'static str {
    if checked.is_sound() { "sound" } else { "DAMAGED" }
}

fn finding(finding: &Finding) -> serde_json::Value {
    let derived_from = finding.derived_from.as_ref().map(|(path, offset)| json!({"path": path, "offset": offset}));
    json!({
        "tx": finding.tx.map(|tx| tx.0),
        "log_index": finding.log_index.map(|index| index.0),
        "path": finding.path(),
        "offset": finding.offset(),
        "derived_from": derived_from,
        "message": finding.to_string(),
    })
}

fn print(reports: &[(PathBuf, Checked)], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let databases: Vec<_> = reports
                .iter()
                .map(|(dir, checked)| {
                    json!({
                        "dir": dir,
                        "id": checked.database.map(|id| id.to_string()),
                        "transactions": checked.resumed_after + checked.txs,
                        "resumed_after": checked.resumed_after,
                        "segments": checked.segments,
                        "sealed": checked.sealed,
                        "index_runs": checked.index_runs,
                        "uncompared_frames": checked.uncompared_frames,
                        "torn_bytes": checked.torn_bytes,
                        "unfinished": checked.unfinished,
                        "sound": checked.is_sound(),
                        "first_bad": checked.first_bad_tx().map(finding),
                        "findings": checked.findings.iter().map(finding).collect::<Vec<_>>(),
                    })
                })
                .collect();
            print_json(&json!({ "databases": databases }))
        }
        Output::Raw => {
            let lines = reports.iter().map(|(dir, checked)| format!("{} {}\n", result(checked), dir.display()));
            print_raw(lines.collect::<String>())
        }
        Output::Table => {
            let mut table = Table::new(&[
                "database",
                "transactions",
                "segments",
                "sealed",
                "index runs",
                "behind checkpoint",
                "result",
            ]);
            for (dir, checked) in reports {
                table.row([
                    dir.display().to_string(),
                    (checked.resumed_after + checked.txs).to_string(),
                    checked.segments.to_string(),
                    checked.sealed.to_string(),
                    checked.index_runs.to_string(),
                    checked.uncompared_frames.to_string(),
                    result(checked).to_owned(),
                ]);
            }
            let mut text = table.render();
            for finding in reports.iter().flat_map(|(_, checked)| &checked.findings) {
                text.push_str(&format!("\n{finding}"));
            }
            if reports.iter().any(|(_, checked)| !checked.is_sound()) {
                text.push('\n');
            }
            print_raw(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_kept_apart_and_the_style_is_valid() {
        let (folder, data) = (Path::new("/n.fsck"), Path::new("/n"));
        let file = |database: &str| position_file(folder, data, Path::new(database));
        assert_eq!(file("/n/systemdb"), folder.join("systemdb.position"));
        assert_eq!(file("/n/databases/a.0"), folder.join("databases_a.0.position"));
        assert_eq!(file("/n"), folder.join("database.position"));
        style();
    }
}
