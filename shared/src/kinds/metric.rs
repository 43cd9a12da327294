//! `metric.rebuild`: a metric's days are counted anew from raw events (R61): for repair, and for what happened before it was declared. Made by
//! `POST /v1/analytics/{metric}/rebuild`, and by the worker for each new metric.

use std::time::Duration;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    keys::Scope,
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `metric.rebuild`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricRebuild {
    /// The metric's name.
    pub metric: String,
    /// The first UTC day; the first that has events when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NaiveDate>,
    /// The last UTC day; the last that has events when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NaiveDate>,
}

impl Kind for MetricRebuild {
    const NAME: &'static str = "metric.rebuild";
    const QUEUE: Queue = Queue::Analytics;
    const OUTWARD: bool = false;
    const SCOPE: Option<Scope> = Some(Scope::AnalyticsWrite);
    /// Each day is a transaction; a run that is cut off is begun again, and comes to the same. One that finds as many under way as may be
    /// comes back, as often as its deadline allows.
    const POLICY: Policy = Policy {
        attempts: 10,
        backoff: Backoff { first: Duration::from_secs(5), cap: Duration::from_secs(600), jitter_percent: 20 },
        timeout: Duration::from_secs(3_600),
        deadline: Duration::from_secs(24 * 3_600),
        snooze: SnoozeBounds { times: 25_000, total: Duration::from_secs(24 * 3_600) },
    };
    const ESTIMATE: Duration = Duration::from_secs(30);

    fn violations(&self) -> Vec<Violation> {
        match (self.from, self.to) {
            (Some(from), Some(to)) if from > to => vec![Violation::new("/to", "is before `from`")],
            _ => Vec::new(),
        }
    }

    fn violations_for(&self, tenant: &Manifest, owner: Option<&str>) -> Vec<Violation> {
        let mut violations = Vec::new();
        if owner.is_some() {
            violations.push(Violation::new("", "is for the product's backend: leave the owner out"));
        }
        if !tenant.metrics.contains_key(&self.metric) {
            let known: Vec<_> = tenant.metrics.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            violations.push(Violation::new("/metric", format!("is no metric of this product; it has: {known}")));
        }
        violations
    }

    fn sample() -> Self {
        Self { metric: "runs".into(), from: NaiveDate::from_ymd_opt(2026, 11, 1), to: NaiveDate::from_ymd_opt(2026, 11, 30) }
    }
}
