//! When a provider wants to be asked again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::HeaderMap;

use crate::clients::outbound::Answer;

/// The longest pause that is kept to; whoever asks for more is asked again then.
pub const LONGEST: Duration = Duration::from_secs(3_600);

/// The shortest: `0` must not be a loop without end.
const SHORTEST: Duration = Duration::from_millis(500);

/// Headers with milliseconds, finer than `retry-after` (`OpenAI` sends the first, Azure the second); they go before it.
const MILLISECONDS: [&str; 2] = ["retry-after-ms", "x-ms-retry-after-ms"];

/// The pause that an answer asks for, within bounds.
pub fn of(answer: &Answer, now: DateTime<Utc>) -> Option<Duration> {
    let pause = milliseconds(&answer.headers).or_else(|| answer.retry_after(now))?;
    Some(pause.clamp(SHORTEST, LONGEST))
}

fn milliseconds(headers: &HeaderMap) -> Option<Duration> {
    MILLISECONDS.iter().find_map(|name| {
        let value: f64 = headers.get(*name)?.to_str().ok()?.trim().parse().ok()?;
        Duration::try_from_secs_f64(value / 1_000.0).ok()
    })
}
