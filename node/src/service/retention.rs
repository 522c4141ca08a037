//! Databases whose settings name a retention period are truncated by themselves, with the same order in `systemdb` as when somebody
//! asks for it. The node that leads a database does it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use alhambra_raft::error::ReadError;
use alhambra_raft::meta::DatabaseRecord;
use tokio::time::Instant;

use super::App;
use super::settings::{DatabaseSettings, TruncationSettings};
use super::truncation::Truncated;
use crate::error::Result;
use crate::peer::{Answer, Ask};

/// Who gives these orders. No user can have this name.
const BY_SETTING: &str = "setting retention-period";
/// How often it is looked which databases are due.
const LOOK: Duration = Duration::from_secs(5);
/// How long a truncation may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the other nodes are waited for.
const ANSWERS: Duration = Duration::from_secs(5);
/// After one that failed, before the next.
const AGAIN: Duration = Duration::from_secs(60);

/// When each database that this node leads is due next. Kept by no one: whoever begins to lead one looks at it at once, and where
/// nothing is old enough that changes nothing.
#[derive(Debug, Default)]
struct Schedule(HashMap<GroupId, (TruncationSettings, Instant)>);

impl Schedule {
    /// Forgets all databases but those that are led and have a period.
    fn keep(&mut self, led: &[(DatabaseRecord, TruncationSettings)]) {
        self.0.retain(|group, _| led.iter().any(|(record, _)| record.group == *group));
    }

    /// One that was never looked at is due, and one whose settings have changed since.
    fn is_due(&self, group: GroupId, settings: &TruncationSettings, now: Instant) -> bool {
        self.0.get(&group).is_none_or(|(then, next)| then != settings || *next <= now)
    }

    fn looked(&mut self, group: GroupId, settings: TruncationSettings, next: Instant) {
        self.0.insert(group, (settings, next));
    }
}

/// Truncates what is due, one database after the other, as long as the node runs.
pub async fn keep_retention(app: Arc<App>) {
    let mut schedule = Schedule::default();
    loop {
        let led = app.led_with_retention();
        schedule.keep(&led);
        for (record, settings) in led {
            if !schedule.is_due(record.group, &settings, Instant::now()) {
                continue;
            }
            let pause = match app.truncate_by_setting(&record, &settings).await {
                Ok(Truncated::Changed | Truncated::Partly) => Duration::ZERO,
                Ok(Truncated::Done | Truncated::NotReached) => {
                    Duration::from_millis(settings.truncation_frequency.unsigned_abs())
                }
                Err(error) => {
                    tracing::warn!(database = record.name, %error, "not truncated; it is tried again");
                    AGAIN
                }
            };
            schedule.looked(record.group, settings, Instant::now() + pause);
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl App {
    /// The databases that this node leads and whose settings name a period.
    fn led_with_retention(&self) -> Vec<(DatabaseRecord, TruncationSettings)> {
        let with_settings = |record: DatabaseRecord| {
            let settings = DatabaseSettings::from_record(&record.face, &record.settings).truncation;
            (record, settings)
        };
        let is_led = |record: &DatabaseRecord| {
            // One in replica mode has its values from elsewhere, and those that are gone there are gone here.
            !record.settings.replica && self.groups.group_by_name(&record.name).is_some_and(|group| group.is_leader())
        };
        let led = self.groups.meta().databases().into_iter().filter(is_led);
        led.map(with_settings).filter(|(_, settings)| settings.retention_period > 0).collect()
    }

    /// Truncates a database as its settings say, if they still say so.
    async fn truncate_by_setting(&self, record: &DatabaseRecord, settings: &TruncationSettings) -> Result<Truncated> {
        let deadline = Instant::now() + PATIENCE;
        // This node may know older settings than those that somebody was told are in force.
        self.groups.meta().barrier(deadline).await?;
        if self.groups.meta().database(&record.name).as_ref() != Some(record) {
            return Ok(Truncated::Changed);
        }
        // Nobody looks at the cut-off before the values are gone, so one wrong clock must not decide.
        let now_ms = self.agreed_time(deadline).await.ok_or(ReadError::NoQuorum)?;
        self.truncate(record, (settings.retention_period, now_ms), BY_SETTING, deadline).await
    }

    /// A time that is not later than this node's clock, nor than those of half of the members; none when most do not answer.
    async fn agreed_time(&self, deadline: Instant) -> Option<i64> {
        let own = self.env.clock.now_unix_ms();
        let answers = self.ask_all(&Ask::Clock, deadline.min(Instant::now() + ANSWERS)).await;
        let members = answers.len() + 1;
        let others = answers.into_iter().filter_map(|answer| match answer {
            Some(Answer::Clock { unix_ms }) => Some(unix_ms),
            _ => None,
        });
        agreed(others.chain([own]).collect(), members).map(|agreed| agreed.min(own))
    }
}

/// The lower median of the clocks that were told; none of a minority's.
fn agreed(mut clocks: Vec<i64>, members: usize) -> Option<i64> {
    clocks.sort_unstable();
    let middle = clocks.len().checked_sub(1)? / 2;
    clocks.get(middle).copied().filter(|_| 2 * clocks.len() > members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_clock_that_is_ahead_decides_nothing() {
        assert_eq!(agreed(vec![5], 1), Some(5));
        assert_eq!(agreed(vec![9_000, 5, 6], 3), Some(6));
        assert_eq!(agreed(vec![9_000, 5], 3), Some(5), "of two the earlier one");
        assert_eq!(agreed(vec![9_000, 9_000, 5, 6, 7], 5), Some(7));
        for (clocks, members) in [(vec![9_000], 3), (vec![9_000, 5], 4), (vec![9_000, 5], 5), (vec![], 1)] {
            assert_eq!(agreed(clocks, members), None, "of {members}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_is_due_at_first_after_its_frequency_and_when_its_settings_change() {
        let settings = TruncationSettings { retention_period: 86_400_000, truncation_frequency: 3_600_000 };
        let (group, begin) = (GroupId(7), Instant::now());
        let mut schedule = Schedule::default();
        assert!(schedule.is_due(group, &settings, begin));
        schedule.looked(group, settings.clone(), begin + Duration::from_secs(3600));
        assert!(!schedule.is_due(group, &settings, begin + Duration::from_secs(3599)));
        assert!(schedule.is_due(group, &settings, begin + Duration::from_secs(3600)));
        assert!(schedule.is_due(GroupId(8), &settings, begin), "another database");
        let longer = TruncationSettings { retention_period: 2 * 86_400_000, ..settings.clone() };
        assert!(schedule.is_due(group, &longer, begin), "other settings");
        schedule.keep(&[]);
        assert!(schedule.is_due(group, &settings, begin), "led again");
    }
}
