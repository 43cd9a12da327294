//! `probe.run`: a job that does what it is told, for drills, canaries, benchmarks and outside observers.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Kind, Violation};
use crate::{job::Policy, queue::Queue, tenant::Manifest, usage::Charge};

/// The payload of `probe.run`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ProbeRun {
    /// The queue to run in; `analytics` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// How long to run, in milliseconds; at most an hour.
    #[serde(default)]
    pub sleep_ms: u64,
    /// How to end.
    #[serde(default)]
    pub outcome: ProbeOutcome,
    /// The longest one attempt may run, in milliseconds, at least 1; the kind's own limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Where to POST `{job_id, attempt, phase, at}` when it starts and when it finishes: `started` at each run, `finished` once an
    /// attempt, again after a crash only where nobody knows whether it arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// What it is charged for, as a kind that is metered would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<ProbeMeter>,
    /// Ballast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<String>,
}

/// What a probe is charged for.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ProbeMeter {
    /// The metric.
    pub metric: String,
    /// How much of it is reserved.
    pub amount: u64,
    /// How much of it is used, whatever comes of the run; when absent it is charged as reserved, where the run succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
}

/// How a probe ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// It succeeds.
    #[default]
    Ok,
    /// It fails in passing, at every attempt.
    Retry,
    /// It fails for good.
    Fail,
    /// Its handler panics.
    Panic,
    /// It ends the worker's process.
    Exit,
    /// It waits for ever and does not hear that it is to stop.
    Hang,
    /// It keeps a thread of its process busy for ever.
    Spin,
    /// It takes memory until there is none, or 4 GiB where nothing limits its process.
    Allocate,
}

/// The most that a probe may be charged.
const MOST_METERED: u64 = 1_000_000;

/// The longest a probe may sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(3_600);

impl Kind for ProbeRun {
    const NAME: &'static str = "probe.run";
    const QUEUE: Queue = Queue::Analytics;
    const OUTWARD: bool = true;
    const POLICY: Policy = Policy { timeout: Duration::from_secs(3_660), ..Policy::DEFAULT };
    const ESTIMATE: Duration = Duration::from_secs(1);

    fn queue(&self) -> Queue {
        self.queue.unwrap_or(Self::QUEUE)
    }

    fn timeout(&self) -> Duration {
        self.timeout_ms.map_or(Self::POLICY.timeout, |limit| Duration::from_millis(limit).min(Self::POLICY.timeout))
    }

    /// It calls somebody, or it only sleeps.
    fn is_outward(&self) -> bool {
        self.callback_url.is_some()
    }

    fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        if u128::from(self.sleep_ms) > LONGEST_SLEEP.as_millis() {
            violations
                .push(Violation::new("/sleep_ms", format!("{} ms is too long; at most {}", self.sleep_ms, LONGEST_SLEEP.as_millis())));
        }
        if self.queue == Some(Queue::Drill) {
            violations.push(Violation::new("/queue", "`drill` is for `worker drill`, and nobody serves it otherwise; name another queue"));
        }
        if self.timeout_ms == Some(0) {
            violations.push(Violation::new("/timeout_ms", "a limit of 0 ms lets nothing run; at least 1"));
        }
        if let Some(url) = &self.callback_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            violations.push(Violation::new("/callback_url", "must be an http:// or https:// address"));
        }
        if self.meter.as_ref().is_some_and(|meter| meter.metric.is_empty() || meter.metric.len() > 63 || meter.amount > MOST_METERED) {
            violations.push(Violation::new("/meter", "must name a metric of at most 63 bytes, and at most a million of it"));
        }
        violations
    }

    fn is_metered(&self) -> bool {
        self.meter.is_some()
    }

    fn charges(&self, _: &Manifest, _: Option<&str>, _: DateTime<Utc>) -> Vec<Charge> {
        let charge = |meter: &ProbeMeter| {
            let of = if meter.used.is_some() { Charge::incurred } else { Charge::of };
            of(meter.metric.clone(), meter.amount)
        };
        self.meter.as_ref().map(charge).into_iter().collect()
    }

    fn sample() -> Self {
        Self {
            queue: Some(Queue::Email),
            sleep_ms: 5,
            outcome: ProbeOutcome::Retry,
            timeout_ms: Some(60_000),
            callback_url: Some("http://127.0.0.1:9/".into()),
            meter: Some(ProbeMeter { metric: "probes".into(), amount: 3, used: Some(2) }),
            pad: Some("x".into()),
        }
    }
}
