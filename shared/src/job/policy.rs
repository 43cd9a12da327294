//! How often and how patiently a kind's jobs are tried.

use std::time::Duration;

/// A kind's policy. R2: 3 attempts, exponential backoff from 2 s with jitter, overridable per kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Runs that count, the first included.
    pub attempts: u16,
    /// The pause between attempts.
    pub backoff: Backoff,
    /// The longest one attempt may run.
    pub timeout: Duration,
}

impl Policy {
    /// R2's defaults, with 60 s an attempt.
    pub const DEFAULT: Self = Self { attempts: 3, backoff: Backoff::DEFAULT, timeout: Duration::from_secs(60) };
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
}
