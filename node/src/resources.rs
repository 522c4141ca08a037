//! What this machine has for a node when nobody says how much it may take: memory and open files.

use std::path::Path;

use alhambra_storage::limits::MEMORY_BUDGET_BYTES_MIN;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Open files when the system's limit cannot be read.
const OPEN_FILES_FALLBACK: u64 = 512;
/// More are not needed, however many the system allows.
const OPEN_FILES_MAX: u64 = 16_384;
/// Fewer make every access open a file.
const OPEN_FILES_MIN: u64 = 64;

/// The memory budget of a node, bytes: what is set, or a quarter of what one of `nodes` on this machine has.
pub fn memory_budget_bytes(set: u64, nodes: usize) -> u64 {
    if set > 0 {
        return set;
    }
    let share = machine_memory_bytes().unwrap_or(0) / 4 / nodes.max(1) as u64;
    share.max(MEMORY_BUDGET_BYTES_MIN)
}

/// Memory of this machine or the limit of the cgroup of this process, whichever is less, bytes.
fn machine_memory_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let machine = read("/proc/meminfo").as_deref().and_then(total_of_meminfo);
    // Version 2, and version 1 behind it.
    let cgroup = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let cgroup = cgroup.iter().find_map(|path| read(path)?.trim().parse::<u64>().ok());
    [machine, cgroup].into_iter().flatten().min()
}

fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// How many files of databases may be open at once: what is set, or half of what the system allows, after asking it for as many
/// as it gives.
pub fn open_files_max(config: &Config) -> usize {
    let set = u64::from(config.open_files_max);
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        let wanted = limit.maximum.map_or(2 * OPEN_FILES_MAX, |most| most.min(2 * OPEN_FILES_MAX));
        if limit.current.is_some_and(|now| now < wanted) {
            let raised = rustix::process::Rlimit { current: Some(wanted), maximum: limit.maximum };
            // Refused, it stays as it is.
            if setrlimit(Resource::Nofile, raised).is_ok() {
                limit = raised;
            }
        }
    }
    let half = limit.current.map_or(OPEN_FILES_FALLBACK, |most| most / 2);
    let most = if set > 0 { set } else { half.min(OPEN_FILES_MAX) };
    usize::try_from(most.max(OPEN_FILES_MIN)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_what_is_set_or_a_share_of_the_machine_and_never_too_small() {
        assert_eq!(memory_budget_bytes(123 << 20, 3), 123 << 20);
        let one = memory_budget_bytes(0, 1);
        assert!(one >= MEMORY_BUDGET_BYTES_MIN);
        assert!(memory_budget_bytes(0, 2) <= one);
        assert_eq!(memory_budget_bytes(0, usize::MAX), MEMORY_BUDGET_BYTES_MIN);
    }

    #[test]
    fn meminfo_is_read_in_kib_and_nonsense_is_none() {
        assert_eq!(total_of_meminfo("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(total_of_meminfo("MemFree: 1 kB\n"), None);
        assert_eq!(total_of_meminfo("MemTotal: many kB\n"), None);
    }
}
