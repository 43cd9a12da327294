//! How sensitive the circuit breaker of a provider is: `[ai.providers.NAME.breaker]`.
//!
//! What must stay true: every setting has a default that suits a provider nobody knows, and a range outside of which a breaker would either
//! never open or never close.

use std::{ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Serialize};

/// When a breaker opens, for how long, and how it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerSettings {
    /// The calls of so many seconds count: a window of ten parts that slides by one of them.
    pub window_seconds: u32,
    /// Fewer calls in the window than this prove nothing.
    pub minimum_calls: u32,
    /// It opens when so many of 100 calls in the window failed (R40: 50).
    pub failure_percent: u32,
    /// It opens when so many of 100 calls in the window were slow.
    pub slow_percent: u32,
    /// Slow is a call that took longer; three quarters of the call's own deadline where nothing is said.
    pub slow_seconds: Option<u32>,
    /// How long it stays open before one call is tried (R40: 30 s).
    pub open_seconds: u32,
}

/// What each of them may be.
const WINDOW_SECONDS: RangeInclusive<u32> = 1..=600;
const MINIMUM_CALLS: RangeInclusive<u32> = 1..=10_000;
const PERCENT: RangeInclusive<u32> = 1..=100;
const SLOW_SECONDS: RangeInclusive<u32> = 1..=3_600;
const OPEN_SECONDS: RangeInclusive<u32> = 1..=3_600;

impl BreakerSettings {
    /// Ten seconds, ten calls, 50 %, 30 s.
    pub const DEFAULT: Self =
        Self { window_seconds: 10, minimum_calls: 10, failure_percent: 50, slow_percent: 50, slow_seconds: None, open_seconds: 30 };

    /// What is wrong: the field and what it may be.
    #[must_use]
    pub fn wrong(&self) -> Option<(&'static str, String)> {
        let fields = [
            ("window_seconds", self.window_seconds, WINDOW_SECONDS),
            ("minimum_calls", self.minimum_calls, MINIMUM_CALLS),
            ("failure_percent", self.failure_percent, PERCENT),
            ("slow_percent", self.slow_percent, PERCENT),
            ("slow_seconds", self.slow_seconds.unwrap_or(1), SLOW_SECONDS),
            ("open_seconds", self.open_seconds, OPEN_SECONDS),
        ];
        let (name, value, range) = fields.into_iter().find(|(_, value, range)| !range.contains(value))?;
        Some((name, format!("is {value}; it may be {} to {}", range.start(), range.end())))
    }

    /// From when on a call is slow.
    #[must_use]
    pub fn slow_after(&self, deadline: Duration) -> Duration {
        self.slow_seconds.map_or_else(|| deadline.mul_f64(0.75), |seconds| Duration::from_secs(seconds.into()))
    }
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_the_requirements_have_it_and_nonsense_is_named() {
        let read = |text: &str| toml::from_str::<BreakerSettings>(text);
        assert_eq!(read("").unwrap(), BreakerSettings::DEFAULT);
        assert_eq!(BreakerSettings::DEFAULT.wrong(), None);
        assert_eq!(read("open_seconds = 0").unwrap().wrong().unwrap().0, "open_seconds");
        assert_eq!(read("failure_percent = 101").unwrap().wrong().unwrap().0, "failure_percent");
        assert!(read("opens_seconds = 3").is_err());
    }
}
