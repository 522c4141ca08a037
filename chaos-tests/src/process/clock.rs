//! A wall clock that is wrong as it is told.

use alhambra_raft::env::{Clock, SystemClock};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::control;

/// The machine's clock, and how far it is off.
#[derive(Debug)]
pub struct SkewedClock {
    said: Mutex<(control::Clock, Instant)>,
}

impl Default for SkewedClock {
    fn default() -> Self {
        Self { said: Mutex::new((control::Clock::default(), Instant::now())) }
    }
}

impl SkewedClock {
    /// From now on it is wrong like this.
    pub fn set(&self, skew: control::Clock) {
        let mut said = self.said.lock();
        if said.0 != skew {
            *said = (skew, Instant::now());
        }
    }
}

impl Clock for SkewedClock {
    fn now_unix_ms(&self) -> i64 {
        let (skew, since) = *self.said.lock();
        let elapsed_ms = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let gained_ms = elapsed_ms.saturating_mul(skew.drift_ppm) / 1_000_000;
        SystemClock.now_unix_ms().saturating_add(skew.offset_ms).saturating_add(gained_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn jumps_and_drifts() {
        let clock = SkewedClock::default();
        let off = |clock: &SkewedClock| clock.now_unix_ms() - SystemClock.now_unix_ms();
        assert!(off(&clock).abs() < 1000);
        clock.set(control::Clock { offset_ms: -3_600_000, drift_ppm: 0 });
        assert!((off(&clock) + 3_600_000).abs() < 1000);
        clock.set(control::Clock { offset_ms: 0, drift_ppm: 200_000 });
        tokio::time::advance(std::time::Duration::from_secs(100)).await;
        assert!((off(&clock) - 20_000).abs() < 1000);
        clock.set(control::Clock::default());
        assert!(off(&clock).abs() < 1000);
    }
}
