//! What a life came to: a line for people, a line of JSON for programs; and what many lives together have tried, so that an
//! operation that never works, or a fault that never comes, is noticed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// How calls of one operation ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// As they should.
    pub done: u64,
    /// The server said that nothing was done, or there was nothing to do it with.
    pub refused: u64,
    /// Nobody knows.
    pub unknown: u64,
}

/// What came out of a simulation that found nothing wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Hash over every call of every client with its times, every fault, and the final ledger.
    pub trace: String,
    /// Nodes.
    pub nodes: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Writes with an unknown outcome.
    pub unknown: u64,
    /// Successful linearizable reads.
    pub reads: u64,
    /// Proofs that were verified.
    pub proofs: u64,
    /// Closed segments on the first node at the end.
    pub closed_segments: u64,
    /// Transactions at the end.
    pub transactions: u64,
    /// Longest time between two acknowledged writes of the whole cluster.
    pub longest_gap: Duration,
    /// From the end of the faults until all nodes were alike.
    pub healed_in: Duration,
    /// Raft snapshots whose files came to nodes.
    pub snapshots: u64,
    /// Replicas that could not come back by themselves, and said so.
    pub lost: u64,
    /// Simulated time of the whole life.
    pub simulated: Duration,
    /// Every operation that this life had.
    pub operations: BTreeMap<String, Tally>,
    /// Every fault that this life had, and how often it came.
    pub faults: BTreeMap<String, u64>,
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Report {
    /// Faults that came.
    pub fn incidents(&self) -> u64 {
        self.faults.values().sum()
    }

    /// For programs, one line.
    pub fn json(&self) -> String {
        let operations: Map<String, Value> = (self.operations.iter())
            .map(|(name, Tally { done, refused, unknown })| (name.clone(), json!([done, refused, unknown])))
            .collect();
        json!({
            "seed": self.seed,
            "trace": self.trace,
            "nodes": self.nodes,
            "acknowledged": self.acknowledged,
            "unknown": self.unknown,
            "reads": self.reads,
            "proofs": self.proofs,
            "closed_segments": self.closed_segments,
            "transactions": self.transactions,
            "longest_gap_ms": ms(self.longest_gap),
            "healed_in_ms": ms(self.healed_in),
            "snapshots": self.snapshots,
            "lost": self.lost,
            "simulated_ms": ms(self.simulated),
            "operations": operations,
            "faults": self.faults,
        })
        .to_string()
    }

    /// Reads such a line.
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let number = |name: &str| value[name].as_u64();
        let time = |name: &str| number(name).map(Duration::from_millis);
        let operations = value["operations"].as_object()?.iter().map(|(name, counts)| {
            let count = |at: usize| counts[at].as_u64();
            Some((name.clone(), Tally { done: count(0)?, refused: count(1)?, unknown: count(2)? }))
        });
        let faults = value["faults"].as_object()?.iter().map(|(name, count)| Some((name.clone(), count.as_u64()?)));
        Some(Self {
            seed: number("seed")?,
            trace: value["trace"].as_str()?.to_string(),
            nodes: number("nodes")?,
            acknowledged: number("acknowledged")?,
            unknown: number("unknown")?,
            reads: number("reads")?,
            proofs: number("proofs")?,
            closed_segments: number("closed_segments")?,
            transactions: number("transactions")?,
            longest_gap: time("longest_gap_ms")?,
            healed_in: time("healed_in_ms")?,
            snapshots: number("snapshots")?,
            lost: number("lost")?,
            simulated: time("simulated_ms")?,
            operations: operations.collect::<Option<_>>()?,
            faults: faults.collect::<Option<_>>()?,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, nodes, acknowledged, unknown, reads, proofs, trace, .. } = self;
        let [gap, healed, simulated] =
            [self.longest_gap, self.healed_in, self.simulated].map(|time| time.as_secs_f64());
        write!(
            f,
            "seed {seed}: ok, {nodes} {}, {acknowledged} writes acknowledged, {unknown} unknown, {reads} reads, \
             {proofs} proofs, {} faults, longest gap {gap:.1} s, healed in {healed:.1} s, {simulated:.0} s simulated, \
             trace {trace}",
            if *nodes == 1 { "node" } else { "nodes" },
            self.incidents(),
        )
    }
}

/// Fewer lives than these show nothing about what is rare.
pub const LIVES_MIN: u64 = 20;
/// Every fault is drawn in one of so many lives, or more: the rarest needs five nodes, and is one of half of the faults.
const DRAWN_ONE_IN: u64 = 16;
/// A fault that none of so many lives had is never drawn.
const LIVES_MANY: u64 = 100;
/// A cluster that misses a node when it is to be formed takes no write until the faults are over. One of so many lives may show
/// as little as that.
const EMPTY_ONE_IN: u64 = 20;
/// Rot in what a replica has still to apply, and the others have just forgotten, is rarer than in one of so many lives.
const LOST_ONE_IN: u64 = 20;

/// What many lives did together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Lives that found nothing wrong.
    pub lives: u64,
    /// Their simulated time.
    pub simulated: Duration,
    /// Those of them in which nothing was acknowledged before healing.
    pub empty: u64,
    /// Raft snapshots whose files came to nodes, and in how many lives.
    snapshots: (u64, u64),
    /// Replicas that could not come back by themselves, and in how many lives.
    lost: (u64, u64),
    operations: BTreeMap<String, Tally>,
    faults: BTreeMap<String, u64>,
    /// Lives that had each fault.
    had: BTreeMap<String, u64>,
}

impl Totals {
    /// One more life.
    pub fn add(&mut self, report: &Report) {
        self.lives += 1;
        self.empty += u64::from(report.acknowledged == 0);
        self.simulated += report.simulated;
        self.snapshots.0 += report.snapshots;
        self.snapshots.1 += u64::from(report.snapshots > 0);
        self.lost.0 += report.lost;
        self.lost.1 += u64::from(report.lost > 0);
        for (name, tally) in &report.operations {
            let sum = self.operations.entry(name.clone()).or_default();
            sum.done += tally.done;
            sum.refused += tally.refused;
            sum.unknown += tally.unknown;
        }
        for (name, count) in &report.faults {
            *self.faults.entry(name.clone()).or_default() += count;
            *self.had.entry(name.clone()).or_default() += 1;
        }
    }

    /// For people: an operation per line, then the faults.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{:<18} {:>9} {:>9} {:>9}", "operation", "done", "refused", "unknown")];
        for (name, Tally { done, refused, unknown }) in &self.operations {
            lines.push(format!("{name:<18} {done:>9} {refused:>9} {unknown:>9}"));
        }
        lines.push(format!("{:<18} {:>9} {:>9}", "fault", "times", "lives"));
        for (name, count) in &self.faults {
            lines.push(format!("{name:<18} {count:>9} {:>9}", self.had.get(name).unwrap_or(&0)));
        }
        lines.push(format!("{:<18} {:>9} {:>9}", "what else happened", "times", "lives"));
        for (what, (count, lives)) in [("snapshot sent", self.snapshots), ("replica lost", self.lost)] {
            lines.push(format!("{what:<18} {count:>9} {lives:>9}"));
        }
        lines
    }

    /// What of this catalogue these lives should have seen and have not, in words; each fault with the lives in which it comes.
    pub fn missing(&self, operations: &[&str], faults: &[(&str, u64)]) -> Vec<String> {
        let mut missing = Vec::new();
        if self.lives < LIVES_MIN {
            return missing;
        }
        if self.empty * EMPTY_ONE_IN > self.lives {
            missing.push(format!("nothing was acknowledged in {} of {} lives", self.empty, self.lives));
        }
        if self.snapshots.0 == 0 && self.lives >= LIVES_MANY {
            missing.push(format!("the files of a raft snapshot came to no node in {} lives", self.lives));
        }
        if self.lost.1 * LOST_ONE_IN > self.lives {
            missing.push(format!("a replica could not come back by itself in {} of {} lives", self.lost.1, self.lives));
        }
        for name in operations {
            if self.operations.get(*name).is_none_or(|tally| tally.done == 0) {
                missing.push(format!("the operation {name} never succeeded in {} lives", self.lives));
            }
        }
        for (name, lives) in faults {
            let had = self.had.get(*name).copied().unwrap_or(0);
            let came = self.faults.get(*name).is_some_and(|count| *count > 0);
            let many = LIVES_MANY.max(lives * DRAWN_ONE_IN);
            if !came && (had >= *lives || self.lives >= many || (had == 0 && self.lives >= LIVES_MANY)) {
                missing.push(format!("the fault {name} never came in {} lives, {had} of which had it", self.lives));
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(operations: &[(&str, u64)], faults: &[(&str, u64)]) -> Report {
        let tally = |done| Tally { done, refused: 1, unknown: 2 };
        Report {
            seed: 7,
            trace: "ab".into(),
            nodes: 3,
            acknowledged: 9,
            longest_gap: Duration::from_millis(1_500),
            snapshots: 2,
            simulated: Duration::from_secs(44),
            operations: operations.iter().map(|(name, done)| (name.to_string(), tally(*done))).collect(),
            faults: faults.iter().map(|(name, count)| (name.to_string(), *count)).collect(),
            ..Report::default()
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let report = Report { lost: 1, ..report(&[("set", 3), ("get", 0)], &[("rot", 0), ("hold", 4)]) };
        assert_eq!(Report::parse(&report.json()), Some(report.clone()));
        assert!(!report.json().contains('\n'));
        assert_eq!(Report::parse("{}"), None);
        assert!(report.to_string().starts_with("seed 7: ok, 3 nodes, 9 writes acknowledged"), "{report}");
        assert!(report.to_string().contains("4 faults, longest gap 1.5 s"), "{report}");
    }

    #[test]
    fn what_never_happens_is_named() {
        let missing = |lives: usize, report: &Report| {
            let mut totals = Totals::default();
            (0..lives).for_each(|_| totals.add(report));
            totals.missing(&["set", "get"], &[("rot", 8), ("hold", 8)])
        };
        let good = report(&[("set", 1), ("get", 1)], &[("rot", 1), ("hold", 1)]);
        assert_eq!(missing(20, &good), Vec::<String>::new());
        let refused = report(&[("set", 1), ("get", 0)], &[("rot", 1), ("hold", 1)]);
        assert_eq!(missing(19, &refused), Vec::<String>::new(), "too few to tell");
        assert_eq!(missing(20, &refused), ["the operation get never succeeded in 20 lives"]);
        let never = report(&[("set", 1), ("get", 1)], &[("rot", 0), ("hold", 1)]);
        assert_eq!(missing(20, &never), ["the fault rot never came in 20 lives, 20 of which had it"]);
        let mut totals = Totals::default();
        (0..20).for_each(|_| totals.add(&never));
        assert_eq!(totals.missing(&["set"], &[("rot", 21)]), Vec::<String>::new(), "it is rare");
        let drawn_once = report(&[("set", 1), ("get", 1)], &[("hold", 1)]);
        let mut totals = Totals::default();
        totals.add(&never);
        (1..8 * DRAWN_ONE_IN).for_each(|_| totals.add(&drawn_once));
        assert_eq!(totals.missing(&["set"], &[("rot", 8)]).len(), 1, "drawn, and it never came");
        let undrawn = report(&[("set", 1)], &[("rot", 1)]);
        assert_eq!(missing(20, &undrawn), ["the operation get never succeeded in 20 lives"]);
        assert_eq!(missing(100, &undrawn).len(), 2, "a fault may be rare, but not so rare");
        let by_log = Report { snapshots: 0, ..good.clone() };
        assert_eq!(missing(99, &by_log), Vec::<String>::new());
        assert_eq!(missing(100, &by_log), ["the files of a raft snapshot came to no node in 100 lives"]);
        let losing = Report { lost: 2, ..good.clone() };
        assert_eq!(missing(20, &losing), ["a replica could not come back by itself in 20 of 20 lives"]);
        let empty = Report { acknowledged: 0, ..good.clone() };
        assert_eq!(missing(20, &empty), ["nothing was acknowledged in 20 of 20 lives"]);
        let mut totals = Totals::default();
        (0..19).for_each(|_| totals.add(&good));
        totals.add(&empty);
        assert_eq!(totals.missing(&["set"], &[("rot", 8)]), Vec::<String>::new(), "one of twenty");
    }
}
