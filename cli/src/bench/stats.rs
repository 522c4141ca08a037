//! Arithmetic of a benchmark row: percentiles, rates and the longest silence.

use std::time::Duration;

/// What one client measured.
#[derive(Debug, Default)]
pub struct Samples {
    /// One per success: when it ended, counted from the start of the run, and how long it took.
    pub done: Vec<(Duration, Duration)>,
    /// Entries written or read by the successes.
    pub entries: u64,
    /// Failed calls: text of the error and how often.
    pub errors: Vec<(String, u64)>,
}

impl Samples {
    /// Counts a failed call.
    pub fn fail(&mut self, text: String) {
        match self.errors.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => self.errors.push((text, 1)),
        }
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Row {
    /// Concurrent clients, each with its own connection and session.
    pub clients: u32,
    /// Entries per transaction.
    pub batch: u32,
    /// Successful calls per second.
    pub tx_per_second: f64,
    /// Entries in successful calls per second.
    pub entries_per_second: f64,
    /// Half of the successful calls took at most this long.
    pub p50_ms: f64,
    /// 95 of 100 took at most this long.
    pub p95_ms: f64,
    /// 99 of 100 took at most this long.
    pub p99_ms: f64,
    /// Failed calls.
    pub errors: u64,
    /// Longest time without any success, the beginning and the end of the run included.
    pub longest_gap_ms: f64,
    /// Failed calls by text, most frequent first.
    pub error_texts: Vec<(String, u64)>,
}

impl Row {
    /// Sums up what all clients of a run measured in `elapsed`.
    pub fn of(clients: u32, batch: u32, elapsed: Duration, samples: Vec<Samples>) -> Row {
        let mut all = Samples::default();
        for client in samples {
            all.entries += client.entries;
            all.done.extend(client.done);
            for (text, count) in client.errors {
                for _ in 0..count {
                    all.fail(text.clone());
                }
            }
        }
        all.errors.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let mut took: Vec<Duration> = all.done.iter().map(|&(_, took)| took).collect();
        took.sort_unstable();
        let mut ends: Vec<Duration> = all.done.iter().map(|&(end, _)| end).collect();
        ends.sort_unstable();
        let seconds = elapsed.as_secs_f64().max(f64::EPSILON);
        Row {
            clients,
            batch,
            tx_per_second: took.len() as f64 / seconds,
            entries_per_second: all.entries as f64 / seconds,
            p50_ms: ms(percentile(&took, 50)),
            p95_ms: ms(percentile(&took, 95)),
            p99_ms: ms(percentile(&took, 99)),
            errors: all.errors.iter().map(|(_, count)| count).sum(),
            longest_gap_ms: ms(longest_gap(&ends, elapsed)),
            error_texts: all.errors,
        }
    }
}

/// The smallest of `sorted` that `percent` of all do not exceed (nearest rank); zero when there is none.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    if sorted.is_empty() {
        return Duration::ZERO;
    }
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

fn longest_gap(sorted_ends: &[Duration], elapsed: Duration) -> Duration {
    let mut last = Duration::ZERO;
    let mut gap = Duration::ZERO;
    for &end in sorted_ends.iter().chain([&elapsed]) {
        gap = gap.max(end.saturating_sub(last));
        last = end;
    }
    gap
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        for percent in [1, 50, 95, 99, 100] {
            assert_eq!(percentile(&millis(&hundred), percent), Duration::from_millis(percent as u64));
        }
        assert_eq!(percentile(&millis(&[7]), 99), Duration::from_millis(7));
        assert_eq!(percentile(&millis(&[1, 9]), 50), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn a_gap_may_lie_at_either_end() {
        let second = Duration::from_secs(1);
        assert_eq!(longest_gap(&millis(&[400, 500]), second), Duration::from_millis(500));
        assert_eq!(longest_gap(&millis(&[700, 900]), second), Duration::from_millis(700));
        assert_eq!(longest_gap(&millis(&[300, 800, 900]), second), Duration::from_millis(500));
        assert_eq!(longest_gap(&[], second), second);
    }

    #[test]
    fn a_row_sums_up_all_clients() {
        let sample = |ends: &[u64], took: u64| Samples {
            done: millis(ends).into_iter().map(|end| (end, Duration::from_millis(took))).collect(),
            entries: 10 * ends.len() as u64,
            errors: vec![("refused".to_owned(), 2)],
        };
        let row = Row::of(2, 10, Duration::from_secs(2), vec![sample(&[500, 1000], 4), sample(&[1500, 2000], 8)]);
        assert_eq!((row.tx_per_second, row.entries_per_second), (2.0, 20.0));
        assert_eq!((row.p50_ms, row.p95_ms, row.p99_ms), (4.0, 8.0, 8.0));
        assert_eq!((row.errors, row.error_texts), (4, vec![("refused".to_owned(), 4)]));
        assert_eq!(row.longest_gap_ms, 500.0);
    }
}
