//! How answers look: tables for people, JSON for programs, raw bytes for pipes.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde::Serialize;

use crate::failure::{Failure, OrFail};

/// The form of an answer on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Aligned columns, for reading.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// The bytes alone, one value per line where there are several; nothing is escaped.
    Raw,
}

/// Bytes as text where they are printable UTF-8, else as `hex:` and their digits. Text that itself begins with `hex:`
/// is shown as hex too, so that what is printed is never ambiguous.
pub fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) && !text.starts_with("hex:") => text.to_owned(),
        _ => format!("hex:{}", hex(bytes)),
    }
}

/// Lower case hexadecimal digits, two per byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Prints a JSON document.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).or_fail("encoding the answer", "report this")?;
    print_raw(json + "\n")
}

/// Prints bytes as they are. A reader that went away is an error, not a panic.
pub fn print_raw(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref()).and_then(|()| out.flush()).or_fail("writing the answer", "check what reads it")
}

/// A cell with more characters than this stands out of its column, which would make every other row as long.
const ALIGNED_CHARS_MAX: usize = 100;

/// Columns aligned by their widest cell up to 100 characters, two spaces apart, no trailing blanks.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table that has only a heading.
    pub fn new(heading: &[&str]) -> Table {
        Table { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a line; missing cells are empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as text, each line ended by a line feed.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.filter(|chars| *chars <= ALIGNED_CHARS_MAX).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let missing = width.saturating_sub(cell.chars().count());
                line.extend([cell.as_str(), "  ", &" ".repeat(missing)]);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for (position, row) in self.rows.iter().enumerate() {
            let _ = writeln!(out, "| {} |", row.join(" | "));
            if position == 0 {
                let _ = writeln!(out, "|{}", "---|".repeat(row.len()));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_printable_are_marked_hex() {
        assert_eq!(text(b"caf\xc3\xa9 1"), "caf\u{e9} 1");
        assert_eq!(text(&[0xff, 0x00]), "hex:ff00");
        assert_eq!(text(b"two\nlines"), "hex:74776f0a6c696e6573");
        assert_eq!(text(b"hex:00"), "hex:6865783a3030");
        assert_eq!(text(b""), "");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["key", "value"]);
        table.row(["a", "1"]);
        table.row(["longer"]);
        assert_eq!(table.render(), "key     value\na       1\nlonger\n");
        assert_eq!(table.markdown(), "| key | value |\n|---|---|\n| a | 1 |\n| longer |\n");
        let long = "v".repeat(usize::from(u16::MAX) + 1);
        table.row([long.as_str(), "2"]);
        assert_eq!(table.render(), format!("key     value\na       1\nlonger\n{long}  2\n"));
    }
}
