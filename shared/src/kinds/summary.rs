//! `summary.refresh`: a materialised view or a summary table of the product's own database is brought up to date.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    queue::Queue,
    tenant::{LONGEST_TIMEOUT, Manifest},
};

/// The payload of `summary.refresh`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryRefresh {
    /// The summary, by its name in the manifest.
    pub summary: String,
}

impl Kind for SummaryRefresh {
    const NAME: &'static str = "summary.refresh";
    const QUEUE: Queue = Queue::Analytics;
    /// What it writes is the product's own, and the same whenever it is written again.
    const OUTWARD: bool = false;
    /// The longest refresh, and time to connect beside it; whose turn it is not yet asks again every few seconds.
    const POLICY: Policy = Policy {
        attempts: 3,
        backoff: Backoff { first: Duration::from_secs(10), cap: Duration::from_secs(600), jitter_percent: 20 },
        timeout: Duration::from_secs(LONGEST_TIMEOUT as u64 + 60),
        snooze: SnoozeBounds { times: 2_000, total: Duration::from_secs(24 * 3_600) },
        ..Policy::DEFAULT
    };
    const ESTIMATE: Duration = Duration::from_secs(10);

    fn violations_for(&self, tenant: &Manifest, owner: Option<&str>) -> Vec<Violation> {
        if owner.is_some() {
            return vec![Violation::new("", "summaries are the product's own; leave `owner` and X-Acting-User out")];
        }
        if tenant.summaries.contains_key(&self.summary) {
            return Vec::new();
        }
        let shown: String = self.summary.chars().take(63).collect();
        vec![Violation::new("/summary", format!("there is no summary `{shown}` in the product's manifest, [summaries]"))]
    }

    fn sample() -> Self {
        Self { summary: "trainers".to_owned() }
    }
}
