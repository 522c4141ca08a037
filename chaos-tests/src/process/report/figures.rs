//! The numbers of a run.

use std::time::Duration;

use crate::process::run::Story;
use crate::workload::record::{Call, Outcome};

/// Of one kind of client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KindFigures {
    /// Its name.
    pub name: &'static str,
    /// Acknowledged writes.
    pub writes: usize,
    /// Of these, and of the reads, with a proof that was verified.
    pub verified: usize,
    /// Reads that worked.
    pub reads: usize,
    /// Calls that surely did nothing.
    pub refused: usize,
    /// Calls of unknown outcome.
    pub unknown: usize,
    /// Half of the calls that worked took no longer.
    pub p50: Duration,
    /// 99 of 100.
    pub p99: Duration,
    /// The longest of all calls.
    pub longest: Duration,
}

/// Of the whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// By kind of client.
    pub kinds: Vec<KindFigures>,
    /// Calls that worked.
    pub done: usize,
    /// Calls that surely did nothing.
    pub refused: usize,
    /// Calls of unknown outcome.
    pub unknown: usize,
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Writes of unknown outcome.
    pub unknown_writes: usize,
    /// Reads that worked.
    pub reads: usize,
    /// Longest time without any acknowledged write.
    pub longest_gap: Duration,
    /// How often another node was seen to lead.
    pub leaders: usize,
    /// Most resident memory of a node, bytes.
    pub memory: u64,
}

/// Times without any acknowledged write that are longer than `least`.
pub fn gaps(calls: &[Call], length: Duration, least: Duration) -> Vec<(Duration, Duration)> {
    let done = |call: &&Call| call.write && call.outcome == Outcome::Done;
    let mut times: Vec<Duration> = calls.iter().filter(done).map(|call| call.ended).collect();
    times.extend([Duration::ZERO, length]);
    times.sort_unstable();
    times.windows(2).map(|pair| (pair[0], pair[1])).filter(|(from, to)| *to - *from > least).collect()
}

impl Figures {
    /// Counts.
    pub fn of(story: &Story) -> Self {
        let mut names: Vec<&'static str> = Vec::new();
        for call in &story.calls {
            if !names.contains(&call.kind) {
                names.push(call.kind);
            }
        }
        names.sort_unstable_by_key(|name| (*name != "rust", *name));
        let count = |wanted: &dyn Fn(&Call) -> bool| story.calls.iter().filter(|call| wanted(call)).count();
        let with = |outcome: Outcome| count(&|call| call.outcome == outcome);
        let mut leader = None;
        let mut leaders = 0;
        for sample in story.samples.iter().filter(|sample| sample.leads == Some(true)) {
            leaders += usize::from(leader.is_some_and(|before| before != sample.node));
            leader = Some(sample.node);
        }
        Self {
            kinds: names.into_iter().map(|name| kind(&story.calls, name)).collect(),
            done: with(Outcome::Done),
            refused: with(Outcome::Refused),
            unknown: with(Outcome::Unknown),
            acknowledged: count(&|call| call.write && call.outcome == Outcome::Done),
            unknown_writes: count(&|call| call.write && call.outcome == Outcome::Unknown),
            reads: count(&|call| !call.write && call.outcome == Outcome::Done),
            longest_gap: gaps(&story.calls, story.length, Duration::ZERO)
                .into_iter()
                .map(|(from, to)| to - from)
                .max()
                .unwrap_or_default(),
            leaders,
            memory: story.samples.iter().map(|sample| sample.resident).max().unwrap_or(0),
        }
    }
}

fn kind(calls: &[Call], name: &'static str) -> KindFigures {
    let mine: Vec<&Call> = calls.iter().filter(|call| call.kind == name).collect();
    let count = |wanted: &dyn Fn(&Call) -> bool| mine.iter().filter(|call| wanted(call)).count();
    let mut times: Vec<Duration> =
        mine.iter().filter(|call| call.outcome == Outcome::Done).map(|call| call.ended - call.invoked).collect();
    times.sort_unstable();
    let at = |share: f64| {
        let last = times.len().saturating_sub(1);
        times.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    };
    KindFigures {
        name,
        writes: count(&|call| call.write && call.outcome == Outcome::Done),
        verified: count(&|call| call.verified && call.outcome == Outcome::Done),
        reads: count(&|call| !call.write && call.outcome == Outcome::Done),
        refused: count(&|call| call.outcome == Outcome::Refused),
        unknown: count(&|call| call.outcome == Outcome::Unknown),
        p50: at(0.5),
        p99: at(0.99),
        longest: mine.iter().map(|call| call.ended - call.invoked).max().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_begin_and_end_with_the_run() {
        let s = Duration::from_secs;
        let call = |ended, write, outcome| Call {
            kind: "rust",
            client: 0,
            write,
            verified: false,
            invoked: s(0),
            ended: s(ended),
            outcome,
        };
        let calls = [
            call(3, true, Outcome::Done),
            call(4, true, Outcome::Done),
            call(6, false, Outcome::Done),
            call(7, true, Outcome::Unknown),
        ];
        assert_eq!(gaps(&calls, s(10), s(2)), [(s(0), s(3)), (s(4), s(10))]);
        let figures = kind(&calls, "rust");
        assert_eq!((figures.writes, figures.reads, figures.unknown, figures.p50), (2, 1, 1, s(4)));
    }
}
