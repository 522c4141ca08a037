//! The file by which the chaos program steers the disk and the clock of a `chaos-node` while it runs.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

/// How the disk of a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Nothing may grow.
    pub full: bool,
    /// Reads answer EIO.
    pub read_errors: bool,
    /// Writes, syncs and changes of folders answer EIO.
    pub write_errors: bool,
    /// Whatever changes something is refused, as after a file system has remounted itself.
    pub read_only: bool,
    /// Each sync takes this much longer, milliseconds.
    pub slow_ms: u64,
}

impl Disk {
    /// It is bad in this way too; what else is wrong with it stays.
    pub fn begin(&mut self, bad: Self) {
        self.full |= bad.full;
        self.read_errors |= bad.read_errors;
        self.write_errors |= bad.write_errors;
        self.read_only |= bad.read_only;
        self.slow_ms = self.slow_ms.max(bad.slow_ms);
    }

    /// It is bad in this way no more.
    pub fn end(&mut self, bad: Self) {
        self.full &= !bad.full;
        self.read_errors &= !bad.read_errors;
        self.write_errors &= !bad.write_errors;
        self.read_only &= !bad.read_only;
        if bad.slow_ms > 0 {
            self.slow_ms = 0;
        }
    }
}

/// How the wall clock of a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Ahead of the machine's, milliseconds; negative: behind.
    pub offset_ms: i64,
    /// Gains so many millionths more, from when this was said.
    pub drift_ppm: i64,
}

/// Everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The disk.
    pub disk: Disk,
    /// The clock.
    pub clock: Clock,
}

impl Control {
    /// The text of the file.
    pub fn text(&self) -> String {
        let Self { disk, clock } = self;
        json!({
            "full": disk.full,
            "read_errors": disk.read_errors,
            "write_errors": disk.write_errors,
            "read_only": disk.read_only,
            "slow_ms": disk.slow_ms,
            "offset_ms": clock.offset_ms,
            "drift_ppm": clock.drift_ppm,
        })
        .to_string()
    }

    /// Reads such a text; what it does not say is as by default.
    pub fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let is = |name: &str| value[name].as_bool().unwrap_or(false);
        let number = |name: &str| value[name].as_i64().unwrap_or(0);
        Some(Self {
            disk: Disk {
                full: is("full"),
                read_errors: is("read_errors"),
                write_errors: is("write_errors"),
                read_only: is("read_only"),
                slow_ms: value["slow_ms"].as_u64().unwrap_or(0),
            },
            clock: Clock { offset_ms: number("offset_ms"), drift_ppm: number("drift_ppm") },
        })
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, self.text())?;
        fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let control = Control {
            disk: Disk { full: true, read_errors: true, write_errors: true, read_only: true, slow_ms: 7 },
            clock: Clock { offset_ms: -5, drift_ppm: 9 },
        };
        assert_eq!(Control::parse(&control.text()), Some(control));
        assert_eq!(Control::parse("{}"), Some(Control::default()));
        assert_eq!(Control::parse("{"), None);
    }

    #[test]
    fn a_slow_disk_may_fill_up_and_stays_slow_when_it_has_room() {
        let (slow, full) =
            (Disk { slow_ms: 150, ..Disk::default() }, Disk { full: true, read_errors: true, ..Disk::default() });
        let mut disk = Disk::default();
        disk.begin(full);
        disk.begin(slow);
        assert_eq!(disk, Disk { slow_ms: 150, ..full });
        disk.end(full);
        assert_eq!(disk, slow);
        disk.begin(full);
        disk.end(slow);
        assert_eq!(disk, full);
        disk.end(full);
        assert_eq!(disk, Disk::default());
    }
}
