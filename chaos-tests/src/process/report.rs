//! The page about a run: one file, no script, nothing from elsewhere; it follows the reader's choice of dark or light.

mod figures;
mod picture;

use std::fmt::Write;
use std::path::Path;

use self::figures::Figures;
use super::cluster::Kind;
use super::run::{Story, described};

const STYLE: &str = include_str!("report/style.css");

/// Text as it may stand in a page.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

/// The same numbers as lines.
pub fn summary(story: &Story) -> Vec<String> {
    let figures = Figures::of(story);
    let mut lines = vec![format!(
        "{} faults in {:.0} s; {} calls: {} done, {} refused, {} unknown; longest time without an acknowledged write {:.1} s",
        story.events.len(),
        story.length.as_secs_f64(),
        story.calls.len(),
        figures.done,
        figures.refused,
        figures.unknown,
        figures.longest_gap.as_secs_f64(),
    )];
    for kind in &figures.kinds {
        lines.push(format!(
            "{:<7} {:>6} writes acknowledged ({:.0}/s), {:>6} reads; p50 {:.0} ms, p99 {:.0} ms, longest {:.1} s",
            kind.name,
            kind.writes,
            kind.writes as f64 / story.length.as_secs_f64().max(1.0),
            kind.reads,
            kind.p50.as_secs_f64() * 1e3,
            kind.p99.as_secs_f64() * 1e3,
            kind.longest.as_secs_f64(),
        ));
    }
    lines
}

/// Writes the page.
pub fn write(path: &Path, story: &Story, command: &str) -> Result<(), String> {
    std::fs::write(path, page(story, command)).map_err(|error| format!("{}: {error}", path.display()))
}

/// The page.
pub fn page(story: &Story, command: &str) -> String {
    let figures = Figures::of(story);
    let good = story.is_good();
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Chaos, seed {seed}: {verdict}</title><style>{STYLE}</style></head><body><main>\
         <header><p class=\"over\">Alhambra · processes under faults</p>\
         <h1>Seed {seed} <span class=\"{class}\">{verdict}</span></h1>\
         <p class=\"command\"><code>{command}</code></p></header>",
        seed = story.seed,
        verdict = if good { "nothing was found" } else { "failed" },
        class = if good { "good" } else { "bad" },
        command = escaped(command),
    );
    out += "<section class=\"tiles\">";
    let seconds = story.length.as_secs_f64();
    for (value, name) in [
        (story.events.len().to_string(), "faults"),
        (format!("{seconds:.0} s"), "under load"),
        (figures.acknowledged.to_string(), "writes acknowledged"),
        (figures.reads.to_string(), "linearizable reads"),
        (figures.unknown_writes.to_string(), "writes of unknown outcome"),
        (format!("{:.1} s", figures.longest_gap.as_secs_f64()), "longest gap between writes"),
        (figures.leaders.to_string(), "changes of leader"),
        (format!("{} MiB", figures.memory >> 20), "most memory of a node"),
    ] {
        let _ = write!(out, "<div><b>{value}</b><span>{name}</span></div>");
    }
    out += "</section><section><h2>What happened</h2>";
    out += &picture::draw(story);
    out += "</section><section><h2>Verdicts</h2><table class=\"verdicts\"><tbody>";
    for verdict in &story.verdicts {
        let (class, sign, text) = match &verdict.outcome {
            Ok(text) => ("good", "✓", text),
            Err(text) => ("bad", "✗", text),
        };
        let _ = write!(
            out,
            "<tr><td class=\"{class}\">{sign}</td><th>{}</th><td class=\"said\">{}</td></tr>",
            escaped(&verdict.property),
            escaped(text)
        );
    }
    out += "</tbody></table></section><section><h2>Clients</h2><table><thead><tr><th>client</th><th>writes</th><th>per second</th>\
            <th>verified</th><th>reads</th><th>refused</th><th>unknown</th><th>p50</th><th>p99</th><th>longest</th></tr></thead><tbody>";
    for kind in &figures.kinds {
        let ms = |time: std::time::Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
        let _ = write!(
            out,
            "<tr><th><i class=\"dot {}\"></i>{}</th><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td></tr>",
            kind.name,
            kind.name,
            kind.writes,
            kind.writes as f64 / seconds.max(1.0),
            kind.verified,
            kind.reads,
            kind.refused,
            kind.unknown,
            ms(kind.p50),
            ms(kind.p99),
            ms(kind.longest),
        );
    }
    out += "</tbody></table></section><section><h2>Faults</h2><table><thead><tr><th>at</th><th>fault</th><th>node</th><th></th>\
            <th>held</th><th>ready after</th></tr></thead><tbody>";
    for event in &story.events {
        let nodes: Vec<String> = event.hit.nodes.iter().map(|node| (node + 1).to_string()).collect();
        let ready = event
            .ready
            .map_or("never".to_owned(), |ready| format!("{:.1} s", ready.saturating_sub(event.to).as_secs_f64()));
        let _ = write!(
            out,
            "<tr><td>{:.1} s</td><th><i class=\"dot {}\"></i>{}</th><td>{}</td><td class=\"said\">{}</td><td>{:.1} s</td><td>{ready}</td></tr>",
            event.from.as_secs_f64(),
            picture::class_of(event.group),
            event.name,
            nodes.join(", "),
            escaped(&event.hit.what),
            (event.to - event.from).as_secs_f64(),
        );
    }
    let real: Vec<String> = (1..)
        .zip(&story.kinds)
        .map(|(node, kind)| {
            format!("node {node}: {}", if *kind == Kind::Serve { "alhambra serve" } else { "chaos-node" })
        })
        .collect();
    let _ = write!(
        out,
        "</tbody></table></section><footer><p>{}. {} ({}).</p><p>The seed decides which faults come when, whom they hit and what \
         clients do; not what the machine makes of it. Nodes that are steered keep unsynced bytes in their process, so that \
         SIGKILL loses what a power failure would.</p></footer></main></body></html>",
        escaped(&story.network),
        escaped(&described(&story.kinds)),
        real.join(", "),
    );
    out
}
