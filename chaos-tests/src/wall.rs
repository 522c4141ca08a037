//! The wall clock of a simulated host, with its past: what it showed is evidence, because the server promises things about days.

use std::time::Duration;

/// 2026-01-01 00:00:00 UTC: the midnight that falls into every simulated life, Unix milliseconds.
pub const MIDNIGHT_MS: i64 = 1_767_225_600_000;

/// What a clock is off from some time on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Skew {
    /// Virtual time from which this holds, milliseconds.
    from_ms: i64,
    offset_ms: i64,
    /// Parts in a thousand that it runs fast, or slow.
    drift: i64,
    /// Virtual time from which it drifts, milliseconds.
    since_ms: i64,
}

impl Skew {
    fn at(&self, now_ms: i64) -> i64 {
        MIDNIGHT_MS + now_ms + self.offset_ms + (now_ms - self.since_ms) * self.drift / 1000
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wall(Vec<Skew>);

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2)
}

impl Wall {
    /// A clock that shows the midnight and so many milliseconds more when the virtual time begins.
    pub fn new(offset_ms: i64) -> Self {
        Self(vec![Skew { offset_ms, ..Skew::default() }])
    }

    fn last(&self) -> Skew {
        self.0.last().copied().unwrap_or_default()
    }

    /// What it shows at virtual time `now`, Unix milliseconds.
    pub fn at(&self, now: Duration) -> i64 {
        self.last().at(ms(now))
    }

    /// It jumps at virtual time `now`, milliseconds.
    pub fn jump(&mut self, now: Duration, by_ms: i64) {
        let last = self.last();
        self.0.push(Skew { from_ms: ms(now), offset_ms: last.offset_ms + by_ms, ..last });
    }

    /// From virtual time `now` on it runs so many parts in a thousand fast; 0 ends the drift, not what it has come to.
    pub fn drift(&mut self, now: Duration, drift: i64) {
        let (now, last) = (ms(now), self.last());
        let offset_ms = last.offset_ms + (now - last.since_ms) * last.drift / 1000;
        self.0.push(Skew { from_ms: now, offset_ms, drift, since_ms: now });
    }

    /// The least and the most that it showed between two virtual times, both included, Unix milliseconds.
    pub fn between(&self, from: Duration, to: Duration) -> (i64, i64) {
        let (from, to) = (ms(from), ms(to));
        let ends = (self.0.iter()).zip(self.0.iter().skip(1).map(|next| next.from_ms).chain([i64::MAX]));
        let shown = ends.filter(|(skew, end)| skew.from_ms <= to && *end >= from).flat_map(|(skew, end)| {
            // Within a piece it runs forward only.
            [skew.at(skew.from_ms.max(from)), skew.at(end.min(to))]
        });
        shown.fold((i64::MAX, i64::MIN), |(least, most), shown| (least.min(shown), most.max(shown)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_what_it_showed() {
        let s = Duration::from_secs;
        let mut wall = Wall::new(-3_000);
        assert_eq!(wall.at(s(3)), MIDNIGHT_MS);
        wall.jump(s(10), 60_000);
        wall.drift(s(20), 100);
        assert_eq!(wall.at(s(30)), MIDNIGHT_MS + 30_000 - 3_000 + 60_000 + 1_000);
        wall.drift(s(30), 0);
        wall.jump(s(40), -100_000);
        assert_eq!(wall.at(s(50)), MIDNIGHT_MS + 50_000 - 3_000 + 61_000 - 100_000);
        let between = |from, to| {
            let (least, most) = wall.between(s(from), s(to));
            (least - MIDNIGHT_MS, most - MIDNIGHT_MS)
        };
        assert_eq!(between(1, 2), (-2_000, -1_000));
        assert_eq!(between(9, 11), (6_000, 68_000), "over a jump");
        assert_eq!(between(22, 24), (79_200, 81_400), "while it drifts");
        assert_eq!(between(35, 45), (-2_000, 98_000), "back again");
        assert_eq!(between(60, 60), (18_000, 18_000));
    }
}
