//! What the person at the terminal sees while it goes: a bar, or a line now and then where there is no terminal.

use std::io::IsTerminal;
use std::time::Duration;

use alhambra_ledger::ids::TxId;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// See the module.
pub struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    said: Option<Instant>,
    imported: u64,
    caught_up: bool,
}

impl Progress {
    /// Nothing imported yet.
    pub fn start() -> Self {
        let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} transactions, {msg}");
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0));
        if let (Some(bar), Ok(style)) = (&bar, style) {
            bar.set_style(style);
        }
        Self { bar, began: Instant::now(), said: None, imported: 0, caught_up: false }
    }

    /// A transaction was imported, and the source has `newest`.
    pub fn at(&mut self, tx: TxId, newest: TxId) {
        self.imported += 1;
        self.caught_up = false;
        let behind = newest.get().saturating_sub(tx.get());
        let rate = self.imported as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        if let Some(bar) = &self.bar {
            bar.set_length(newest.get().max(tx.get()));
            bar.set_position(tx.get());
            bar.set_message(format!("{rate:.0}/s, {behind} behind"));
        } else if self.said.is_none_or(|said| said.elapsed() >= LINE_EVERY) {
            self.said = Some(Instant::now());
            eprintln!("transaction {tx} of {newest}, {rate:.0}/s, {behind} behind");
        }
    }

    /// There is no more for now.
    pub fn caught_up(&mut self) {
        if !std::mem::replace(&mut self.caught_up, true) {
            match &self.bar {
                Some(bar) => bar.set_message("nothing new"),
                None => eprintln!("caught up after {} transactions, following", self.imported),
            }
        }
    }

    /// Nothing more follows.
    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
