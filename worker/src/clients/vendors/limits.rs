//! What an answer's headers say of limits, vendor by vendor.
//!
//! Times that a vendor gives by its own clock are counted from that clock (`Date`), so that ours need not be right.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::DATE;
use serde_json::Value;
use shared::{ledger::vendors::Told, tenant::Vendor};

use crate::clients::outbound::Answer;

/// The longest that any header can make us wait: who says more is asked once a day.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// What is said.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Limits {
    /// Calls of a window.
    pub(super) most: Option<i32>,
    /// What remains.
    pub(super) remaining: Option<i32>,
    /// In how long it ends.
    pub(super) resets_in: Option<Duration>,
    /// The pause that is asked for.
    pub(super) retry_after: Option<Duration>,
    /// For how long not to ask for the same again.
    pub(super) poll_after: Option<Duration>,
}

impl Limits {
    pub(super) fn of(vendor: Vendor, answer: &Answer, now: DateTime<Utc>) -> Self {
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let number = |name: &str| header(name).and_then(|text| text.parse::<f64>().ok()).filter(|number| number.is_finite());
        let mut limits = Self { retry_after: retry_after(vendor, answer, now), ..Self::default() };
        match vendor {
            Vendor::Github => {
                limits.most = number("x-ratelimit-limit").map(whole);
                limits.remaining = number("x-ratelimit-remaining").map(whole);
                limits.resets_in = number("x-ratelimit-reset").map(|at| until(at, answer, now));
                limits.poll_after = number("x-poll-interval").map(seconds);
            }
            // Floats all three, and what is used instead of what there is.
            Vendor::Reddit => {
                limits.remaining = number("x-ratelimit-remaining").map(whole);
                let used = number("x-ratelimit-used").map(|used| whole(used.ceil()));
                limits.most = limits.remaining.zip(used).map(|(remaining, used)| remaining.saturating_add(used));
                limits.resets_in = number("x-ratelimit-reset").map(seconds);
            }
            Vendor::Discord => {
                limits.most = number("x-ratelimit-limit").map(whole);
                limits.remaining = number("x-ratelimit-remaining").map(whole);
                let after = number("x-ratelimit-reset-after").map(seconds);
                limits.resets_in = after.or_else(|| number("x-ratelimit-reset").map(|at| until(at, answer, now)));
            }
            // `"api";r=499;t=243`, `"fixed window";"api";q=500;w=300` (draft-ietf-httpapi-ratelimit-headers).
            Vendor::HuggingFace | Vendor::Json => {
                let part = |name: &str, key: &str| {
                    let parts = header(name)?.split(';').map(str::trim);
                    parts.filter_map(|part| part.strip_prefix(key)?.strip_prefix('=')).find_map(|value| value.parse::<f64>().ok())
                };
                limits.remaining = part("ratelimit", "r").map(whole);
                limits.resets_in = part("ratelimit", "t").map(seconds);
                limits.most = part("ratelimit-policy", "q").map(whole);
            }
        }
        limits
    }

    /// For a budget. Of a limit in this order: the pause that is asked for, the window's end where nothing remains, or nothing at all, after
    /// which it is waited for at least a minute.
    pub(super) fn told(&self, key: &str, is_limit: bool) -> Told {
        let ends = self.resets_in.filter(|_| self.remaining == Some(0));
        let blocked_for = self.retry_after.filter(|_| is_limit).or(ends.filter(|_| is_limit));
        // The pause that is asked for goes before whatever else is said; and a number without a time, or a time without a number, is of no
        // window.
        let window = self.remaining.zip(self.resets_in).filter(|_| !is_limit || self.retry_after.is_none());
        Told {
            key: key.to_owned(),
            most: self.most,
            remaining: window.map(|(remaining, _)| remaining),
            resets_in: window.map(|(_, resets_in)| resets_in),
            blocked_for,
            is_unexplained: is_limit && blocked_for.is_none(),
            is_invalid: false,
            bucket: None,
        }
    }
}

/// Seconds or a date; at Discord seconds with fractions, and more exactly in the body.
fn retry_after(vendor: Vendor, answer: &Answer, now: DateTime<Utc>) -> Option<Duration> {
    if vendor == Vendor::Discord && answer.status.as_u16() == 429 {
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let exact = body.as_ref().and_then(|body| body.pointer("/retry_after")?.as_f64()).filter(|pause| pause.is_finite());
        if exact.is_some() {
            return exact.map(seconds);
        }
    }
    answer.retry_after(now)
}

/// A time of the vendor's clock, from now.
fn until(at: f64, answer: &Answer, now: DateTime<Utc>) -> Duration {
    let date = answer.headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(|date| DateTime::parse_from_rfc2822(date).ok());
    let theirs = date.map_or(now, |date| date.to_utc());
    seconds(at - theirs.timestamp() as f64)
}

/// Up to whole seconds: too early is a call too many.
fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value.clamp(0.0, LONGEST.as_secs_f64()).ceil())
}

#[expect(clippy::cast_possible_truncation, reason = "within the bounds of the type by the clamp before it")]
fn whole(value: f64) -> i32 {
    // Down: what is half a call is none.
    value.clamp(0.0, f64::from(i32::MAX)).floor() as i32
}
