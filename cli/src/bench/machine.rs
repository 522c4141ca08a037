//! A short description of the machine, so that a table can be judged later.

use std::fs;

/// What the figures were measured on; fields that cannot be found out are left out.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Machine {
    /// Model name of the first processor.
    pub cpu: Option<String>,
    /// Processors this process may use.
    pub cores: usize,
    /// Whether the processor has SHA-256 instructions.
    pub sha_ni: Option<bool>,
    /// Total memory in MiB.
    pub memory_mib: Option<u64>,
    /// Kernel name and release.
    pub kernel: Option<String>,
}

impl Machine {
    /// Describes this machine.
    pub fn here() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        Machine {
            cpu: field(&cpuinfo, "model name").map(str::to_owned),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            sha_ni: field(&cpuinfo, "flags").map(|flags| flags.split(' ').any(|flag| flag == "sha_ni")),
            memory_mib: field(&meminfo, "MemTotal")
                .and_then(|text| text.split(' ').next())
                .and_then(|kib| kib.parse::<u64>().ok())
                .map(|kib| kib / 1024),
            kernel: kernel.map(|release| format!("Linux {}", release.trim())),
        }
    }

    /// One line of text.
    pub fn describe(&self) -> String {
        let mut parts = vec![format!("{} cores", self.cores)];
        if let Some(cpu) = &self.cpu {
            parts.push(cpu.clone());
        }
        if let Some(sha_ni) = self.sha_ni {
            parts.push(if sha_ni { "SHA-NI" } else { "no SHA-NI" }.to_owned());
        }
        if let Some(memory) = self.memory_mib {
            parts.push(format!("{:.1} GiB memory", memory as f64 / 1024.0));
        }
        if let Some(kernel) = &self.kernel {
            parts.push(kernel.clone());
        }
        parts.join(", ")
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 85\nmodel name\t: Some CPU @ 2 GHz\nflags : fpu sha_ni avx";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "MemTotal"), None);
        assert!(Machine::here().describe().contains("cores"));
    }
}
