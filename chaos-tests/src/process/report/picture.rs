//! The picture: faults, throughput with gaps, latency, leaders and memory over one axis of time.

use std::fmt::Write;
use std::time::Duration;

use super::escaped;
use super::figures::{Figures, gaps};
use crate::process::cluster::MEMORY_BUDGET_BYTES;
use crate::process::faults::Group;
use crate::process::judge::MEMORY_BESIDE_BUDGET_BYTES;
use crate::process::run::Story;
use crate::workload::record::Outcome;

const LEFT: f64 = 92.0;
const WIDTH: f64 = 1180.0;
const RIGHT: f64 = WIDTH - 12.0;
/// Columns in which calls are counted.
const COLUMNS: usize = 180;
/// A shorter time without acknowledged writes is no gap that one could see.
const GAP: Duration = Duration::from_millis(1_000);
/// Calls that took longer are shown one by one.
const LATE: Duration = Duration::from_millis(500);

/// The class that gives a fault its colour.
pub fn class_of(group: Group) -> &'static str {
    match group {
        Group::Process => "process",
        Group::Network => "network",
        Group::Disk => "disk",
        Group::Clock => "clock",
    }
}

struct Sheet {
    out: String,
    length: f64,
    y: f64,
}

impl Sheet {
    fn x(&self, at: Duration) -> f64 {
        LEFT + (RIGHT - LEFT) * (at.as_secs_f64() / self.length).min(1.0)
    }

    fn name(&mut self, text: &str) {
        let _ = write!(self.out, "<text class=\"name\" x=\"0\" y=\"{:.1}\">{text}</text>", self.y);
        self.y += 10.0;
    }

    /// A line across, with a word at its left.
    fn rule(&mut self, y: f64, class: &str, word: &str) {
        let _ = write!(
            self.out,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{word}</text>",
            LEFT - 8.0,
            y + 4.0
        );
    }

    fn bar(&mut self, class: &str, from: Duration, to: Duration, (y, height): (f64, f64), title: &str) {
        let (x, end) = (self.x(from), self.x(to));
        let title = if title.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(title)) };
        let width = (end - x).max(2.0);
        let _ = write!(
            self.out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\">{title}</rect>"
        );
    }
}

/// A round number not below `value`.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

/// The picture and its legend.
pub fn draw(story: &Story) -> String {
    let length = story.length.as_secs_f64().max(1.0);
    let mut sheet = Sheet { out: String::new(), length, y: 14.0 };
    faults(&mut sheet, story);
    let top = 4.0;
    throughput(&mut sheet, story);
    latency(&mut sheet, story);
    leaders(&mut sheet, story);
    memory(&mut sheet, story);
    let bottom = sheet.y - 14.0;
    // Each fault as a pale band through everything below it.
    let mut bands = String::new();
    for event in &story.events {
        let (x, end) = (sheet.x(event.from), sheet.x(event.to));
        let _ = write!(
            bands,
            "<rect class=\"band {}\" x=\"{x:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            class_of(event.group),
            (end - x).max(2.0),
            bottom - top
        );
    }
    let mut axis = String::new();
    let step = round_up(length / 12.0);
    let mut at = 0.0;
    while at <= length {
        let x = LEFT + (RIGHT - LEFT) * at / length;
        let _ = write!(
            axis,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.0} s</text>",
            bottom + 15.0
        );
        at += step;
    }
    let height = bottom + 22.0;
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"Faults, throughput, latency, leaders and memory over \
         time\">{axis}{bands}{}</svg>{}",
        sheet.out,
        legend(story)
    )
}

fn legend(story: &Story) -> String {
    let mut out = String::from("<p class=\"legend\">");
    for (class, text) in [("process", "processes"), ("network", "network"), ("disk", "disk"), ("clock", "clock")] {
        let _ = write!(out, "<span><i class=\"dot {class}\"></i>fault of {text}</span>");
    }
    for kind in Figures::of(story).kinds {
        let _ = write!(out, "<span><i class=\"dot {}\"></i>{} clients</span>", kind.name, kind.name);
    }
    out + "<span>pale after a fault: until all nodes are ready; red shade: no write acknowledged for more than 1 s</span></p>"
}

/// A row per node, a bar per fault that hit it.
fn faults(sheet: &mut Sheet, story: &Story) {
    sheet.name("Faults");
    for node in 0..story.kinds.len() {
        let y = sheet.y + 4.0;
        sheet.rule(y + 6.0, "grid", &format!("node {}", node + 1));
        for event in story.events.iter().filter(|event| event.hit.nodes.contains(&node)) {
            let title = format!("{}: {} ({:.1} s)", event.name, event.hit.what, event.from.as_secs_f64());
            if let Some(ready) = event.ready {
                sheet.bar(&format!("after {}", class_of(event.group)), event.to, ready, (y, 12.0), &title);
            }
            sheet.bar(&format!("bar {}", class_of(event.group)), event.from, event.to, (y, 12.0), &title);
        }
        sheet.y += 19.0;
    }
    sheet.y += 24.0;
}

/// Acknowledged writes and reads per second, a line per kind of client.
fn throughput(sheet: &mut Sheet, story: &Story) {
    sheet.name("Calls answered per second");
    let (top, height) = (sheet.y + 4.0, 130.0);
    let kinds = Figures::of(story).kinds;
    let width = sheet.length / COLUMNS as f64;
    let counts: Vec<(&str, Vec<f64>)> = kinds
        .iter()
        .map(|kind| {
            let mut columns = vec![0.0; COLUMNS];
            for call in story.calls.iter().filter(|call| call.kind == kind.name && call.outcome == Outcome::Done) {
                let column = (call.ended.as_secs_f64() / width) as usize;
                columns[column.min(COLUMNS - 1)] += 1.0 / width;
            }
            (kind.name, columns)
        })
        .collect();
    let most = round_up(counts.iter().flat_map(|(_, columns)| columns).fold(1.0, |a: f64, b| a.max(*b)));
    for part in 0..=2 {
        let share = f64::from(part) / 2.0;
        sheet.rule(
            top + height * (1.0 - share),
            if part == 0 { "axis" } else { "grid" },
            &format!("{:.0}", most * share),
        );
    }
    for (from, to) in gaps(&story.calls, story.length, GAP) {
        let title = format!("no write acknowledged for {:.1} s", (to - from).as_secs_f64());
        sheet.bar("gap", from, to, (top, height), &title);
    }
    for (name, columns) in counts {
        let mut points = String::new();
        for (column, count) in columns.iter().enumerate() {
            let x = LEFT + (RIGHT - LEFT) * (column as f64 + 0.5) / COLUMNS as f64;
            let _ = write!(points, "{x:.1},{:.1} ", top + height * (1.0 - count / most));
        }
        let _ = write!(sheet.out, "<polyline class=\"line {name}\" points=\"{points}\"/>");
    }
    sheet.y = top + height + 34.0;
}

/// Median of each column by kind, and every call that took long.
fn latency(sheet: &mut Sheet, story: &Story) {
    sheet.name("Time to the answer");
    let (top, height) = (sheet.y + 4.0, 110.0);
    // From 1 ms to 10 s, in powers of ten.
    let place = |time: Duration| top + height * (1.0 - (time.as_secs_f64().max(1e-3).log10() + 3.0).min(4.0) / 4.0);
    for (time, word) in [(1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1_000, "1 s"), (10_000, "10 s")] {
        sheet.rule(place(Duration::from_millis(time)), if time == 1 { "axis" } else { "grid" }, word);
    }
    let width = sheet.length / COLUMNS as f64;
    for kind in Figures::of(story).kinds {
        let mut columns: Vec<Vec<Duration>> = vec![Vec::new(); COLUMNS];
        for call in story.calls.iter().filter(|call| call.kind == kind.name) {
            let took = call.ended - call.invoked;
            if took > LATE {
                let class = format!("late {}", kind.name);
                let (x, y) = (sheet.x(call.ended), place(took));
                let _ = write!(sheet.out, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>");
            } else if call.outcome == Outcome::Done {
                let column = (call.ended.as_secs_f64() / width) as usize;
                columns[column.min(COLUMNS - 1)].push(took);
            }
        }
        let mut points = String::new();
        for (column, times) in columns.iter_mut().enumerate() {
            times.sort_unstable();
            if let Some(median) = times.get(times.len() / 2) {
                let x = LEFT + (RIGHT - LEFT) * (column as f64 + 0.5) / COLUMNS as f64;
                let _ = write!(points, "{x:.1},{:.1} ", place(*median));
            }
        }
        let _ = write!(sheet.out, "<polyline class=\"line {}\" points=\"{points}\"/>", kind.name);
    }
    sheet.y = top + height + 34.0;
}

/// Who says that it leads.
fn leaders(sheet: &mut Sheet, story: &Story) {
    sheet.name("Who says that it leads");
    for node in 0..story.kinds.len() {
        let y = sheet.y + 4.0;
        sheet.rule(y + 5.0, "grid", &format!("node {}", node + 1));
        for (said, from, to) in spans(story, node) {
            match said {
                Some(true) => {
                    let (begin, end) = (from.as_secs_f64(), to.as_secs_f64());
                    let title = format!("node {} leads from {begin:.1} s to {end:.1} s", node + 1);
                    sheet.bar(&format!("leads n{}", node + 1), from, to, (y, 10.0), &title);
                }
                Some(false) => {}
                None => sheet.bar("mute", from, to, (y + 2.0, 6.0), "no answer"),
            }
        }
        sheet.y += 17.0;
    }
    sheet.y += 24.0;
}

/// Times in which a node said the same about leading.
fn spans(story: &Story, node: usize) -> Vec<(Option<bool>, Duration, Duration)> {
    let mut spans: Vec<(Option<bool>, Duration, Duration)> = Vec::new();
    for sample in story.samples.iter().filter(|sample| sample.node == node) {
        if let Some(last) = spans.last_mut() {
            last.2 = sample.at;
            if last.0 == sample.leads {
                continue;
            }
        }
        spans.push((sample.leads, sample.at, story.length));
    }
    spans
}

/// Resident memory, a line per node.
fn memory(sheet: &mut Sheet, story: &Story) {
    sheet.name("Resident memory");
    let (top, height) = (sheet.y + 4.0, 80.0);
    let bound = (MEMORY_BUDGET_BYTES + MEMORY_BESIDE_BUDGET_BYTES) as f64;
    let highest = story.samples.iter().map(|sample| sample.resident).max().unwrap_or(0) as f64;
    let most = bound.max(highest) * 1.05;
    sheet.rule(top + height, "axis", "0");
    sheet.rule(top + height * (1.0 - bound / most), "grid", &format!("{:.0} MiB", bound / f64::from(1 << 20)));
    let budget = MEMORY_BUDGET_BYTES as f64;
    sheet.rule(top + height * (1.0 - budget / most), "grid", "budget");
    for node in 0..story.kinds.len() {
        let mut points = String::new();
        let flush = |points: &mut String, out: &mut String| {
            if !points.is_empty() {
                let _ = write!(out, "<polyline class=\"line memory n{}\" points=\"{points}\"/>", node + 1);
                points.clear();
            }
        };
        for sample in story.samples.iter().filter(|sample| sample.node == node) {
            if sample.resident == 0 {
                flush(&mut points, &mut sheet.out);
                continue;
            }
            let y = top + height * (1.0 - sample.resident as f64 / most);
            let _ = write!(points, "{:.1},{y:.1} ", sheet.x(sample.at));
        }
        flush(&mut points, &mut sheet.out);
    }
    sheet.y = top + height + 30.0;
}
