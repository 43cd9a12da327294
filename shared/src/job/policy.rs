//! How often and how patiently a kind's jobs are tried.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// A kind's policy. R2: 3 attempts, exponential backoff from 2 s with jitter, overridable per kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Runs that count, the first included.
    pub attempts: u16,
    /// The pause between attempts.
    pub backoff: Backoff,
    /// The longest one attempt may run.
    pub timeout: Duration,
    /// The longest from when the job was due (or redriven) to the last time it is started again. A retry or a snooze that would
    /// begin later is not waited for: the job fails. The first run is always granted; `start_by` is for that.
    pub deadline: Duration,
    /// How often and how long its handler may ask for later.
    pub snooze: SnoozeBounds,
}

impl Policy {
    /// R2's defaults, with 60 s an attempt, and two days in all: long enough for another side that asks for a day's pause.
    pub const DEFAULT: Self = Self {
        attempts: 3,
        backoff: Backoff::DEFAULT,
        timeout: Duration::from_secs(60),
        deadline: Duration::from_secs(2 * 24 * 3_600),
        snooze: SnoozeBounds::DEFAULT,
    };

    /// When a job that counts from then must have been started for the last time; `None` where that is beyond all dates.
    #[must_use]
    pub fn deadline_of(&self, counted_from: DateTime<Utc>) -> Option<DateTime<Utc>> {
        counted_from.checked_add_signed(TimeDelta::from_std(self.deadline).ok()?)
    }
}

/// Bounds on what a handler may put off. Snoozes use no attempt, so without them a job could go on for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnoozeBounds {
    /// Snoozes of one job, until it is redriven.
    pub times: u16,
    /// Their pauses together.
    pub total: Duration,
}

impl SnoozeBounds {
    /// A hundred times, a day in all.
    pub const DEFAULT: Self = Self { times: 100, total: Duration::from_secs(24 * 3_600) };

    /// Of messages, which wait for their user's quiet hours: those last less than a day, but may be changed while something waits.
    pub const QUIET_HOURS: Self = Self { total: Duration::from_secs(3 * 24 * 3_600), ..Self::DEFAULT };
}

/// Exponential backoff: `first × 2^(attempt-1)`, at most `cap`, the whole spread by ±`jitter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The pause after the first failed attempt.
    pub first: Duration,
    /// The longest pause.
    pub cap: Duration,
    /// The spread in percent of the pause, to both sides, so that jobs that failed together do not return together.
    pub jitter_percent: u8,
}

impl Backoff {
    /// From 2 s (R2) to at most 10 minutes, ±20 %.
    pub const DEFAULT: Self = Self { first: Duration::from_secs(2), cap: Duration::from_secs(600), jitter_percent: 20 };

    /// The pause after `attempt` (1 is the first) failed. `spread` in 0..1 picks the place within the jitter.
    #[must_use]
    pub fn pause(&self, attempt: u16, spread: f64) -> Duration {
        let doublings = u32::from(attempt.saturating_sub(1)).min(31);
        let plain = self.first.saturating_mul(1 << doublings).min(self.cap);
        let jitter = f64::from(self.jitter_percent.min(100)) / 100.0;
        plain.mul_f64(1.0 - jitter + 2.0 * jitter * spread.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_stay_within_the_jitter() {
        let backoff = Backoff::DEFAULT;
        for attempt in 1..=u16::MAX {
            let plain = Duration::from_secs(2).saturating_mul(1 << u32::from(attempt - 1).min(31)).min(Duration::from_secs(600));
            assert_eq!(backoff.pause(attempt, 0.5), plain);
            assert_eq!(backoff.pause(attempt, 0.0), plain.mul_f64(0.8));
            assert!(backoff.pause(attempt, 1.0) <= plain.mul_f64(1.2) + Duration::from_nanos(1));
        }
    }

    #[test]
    fn a_deadline_beyond_all_dates_is_none() {
        let from = DateTime::UNIX_EPOCH;
        assert_eq!(Policy::DEFAULT.deadline_of(from), Some(from + TimeDelta::days(2)));
        assert_eq!(Policy { deadline: Duration::MAX, ..Policy::DEFAULT }.deadline_of(from), None);
        assert_eq!(Policy::DEFAULT.deadline_of(DateTime::<Utc>::MAX_UTC), None);
    }
}
