//! What a run leaves behind when it is killed, found by the next one. Every name carries the process id of its run.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Names of network namespaces begin so, then come the process id, `n` and the number of the node.
pub const SPACE: &str = "alhchaos";
/// Names of links in the first namespace begin so; they may have 15 characters only.
pub const LINK: &str = "ac";
/// Names of folders begin so, then comes the process id.
pub const FOLDER: &str = "alhambra-chaos-";

/// Runs `ip` with these arguments; its words when it refuses.
pub fn ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// The process id in a name, if the name is one of ours.
fn run_of(name: &str, prefix: &str) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let follows = &rest[digits..];
    let known = follows.is_empty() || follows.starts_with('n') || follows.starts_with('b');
    if known { rest[..digits].parse().ok() } else { None }
}

/// Whether a process exists that is a run of ours, this one included. Process ids are used again, so its name counts.
fn lives(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pid == std::process::id() || name.trim_end().starts_with("chaos")
}

/// Removes everything of runs whose process is gone; tells what it removed.
pub fn remove_dead() -> Vec<String> {
    remove(|pid| !lives(pid))
}

/// Removes everything of one run.
pub fn remove_of(run: u32) -> Vec<String> {
    remove(|pid| pid == run)
}

fn remove(wanted: impl Fn(u32) -> bool) -> Vec<String> {
    let mut told = Vec::new();
    let first_words = |text: String| -> Vec<String> {
        text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    };
    for space in ip(&["netns", "list"]).map(first_words).unwrap_or_default() {
        if !run_of(&space, SPACE).is_some_and(&wanted) {
            continue;
        }
        for pid in ip(&["netns", "pids", &space]).map(first_words).unwrap_or_default() {
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            // One that has ended meanwhile is none to remove.
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
        told.extend(ip(&["netns", "del", &space]).map(|_| format!("namespace {space}")));
    }
    let links = ip(&["-o", "link", "show"]).unwrap_or_default();
    let names = links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    for link in names.filter(|link| run_of(link, LINK).is_some_and(&wanted)) {
        // The one end of a pair takes the other with it.
        told.extend(ip(&["link", "del", link]).map(|_| format!("link {link}")));
    }
    for pid in processes_of(&wanted) {
        told.extend(kill_process(pid, Signal::KILL).map(|()| format!("process {}", pid.as_raw_nonzero())));
    }
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(|name| run_of(name, FOLDER)).is_some_and(&wanted) {
            told.extend(fs::remove_dir_all(entry.path()).map(|()| format!("folder {}", entry.path().display())));
        }
    }
    told
}

/// Processes that were started with a file in the folder of such a run. On loopback nothing else tells whose they are, and one that
/// was stopped by SIGSTOP does not notice that its parent is gone.
fn processes_of(wanted: &impl Fn(u32) -> bool) -> Vec<Pid> {
    let folders = std::env::temp_dir();
    let is_of = |argument: &[u8]| {
        let argument = Path::new(OsStr::from_bytes(argument));
        let folder = argument.strip_prefix(&folders).ok().and_then(|rest| rest.iter().next()).and_then(OsStr::to_str);
        folder.and_then(|name| run_of(name, FOLDER)).is_some_and(wanted)
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        line.split(|byte| *byte == 0).any(is_of).then_some(pid)
    })
    .filter(|pid| pid.as_raw_nonzero().get().cast_unsigned() != std::process::id())
    .collect()
}

/// The folder of this run.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it.
    pub fn make() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The next run removes what could not be removed now.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        assert_eq!(run_of("alhchaos123n1", SPACE), Some(123));
        assert_eq!(run_of("ac123n1", LINK), Some(123));
        assert_eq!(run_of("ac123b", LINK), Some(123));
        assert_eq!(run_of("alhambra-chaos-77", FOLDER), Some(77));
        assert_eq!(run_of("acme0", LINK), None);
        assert_eq!(run_of("ac12eth0", LINK), None);
        assert_eq!(run_of("acn1", LINK), None);
        assert_eq!(run_of("eth0", LINK), None);
        assert!(lives(std::process::id()));
        assert!(!lives(u32::MAX / 2));
    }

    #[test]
    fn a_folder_ends_with_its_run() {
        let folder = Folder::make().unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("x"), "y").unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_stopped_process_of_a_dead_run_is_ended() {
        let run = u32::MAX / 2;
        let file = std::env::temp_dir().join(format!("{FOLDER}{run}/node-1/config.toml"));
        let mut stopped =
            Command::new("sh").args(["-c", "kill -STOP $$; sleep 600", "node"]).arg(&file).spawn().unwrap();
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        let told = remove_of(run);
        assert_eq!(told, [format!("process {}", stopped.id())]);
        assert!(!stopped.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "nobody else's");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
