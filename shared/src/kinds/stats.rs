//! `stats.refresh`: a statistic is asked for where it comes from (R63). By the clock, by whoever reads one that is not fresh, and by
//! `POST /v1/stats/{source}/refresh`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    keys::Scope,
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `stats.refresh`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsRefresh {
    /// The statistic, by its name in the manifest.
    pub source: String,
}

impl StatsRefresh {
    /// What no two unfinished jobs of a statistic have in common. With a space: no key that a caller names can be the same.
    #[must_use]
    pub fn unique_key(&self) -> String {
        format!("statistic {}", self.source)
    }
}

impl Kind for StatsRefresh {
    const NAME: &'static str = "stats.refresh";
    const QUEUE: Queue = Queue::Stats;
    /// It reads: nothing outside is changed by it.
    const OUTWARD: bool = false;
    const SCOPE: Option<Scope> = Some(Scope::StatsWrite);
    /// So often an hour, and never two at once: known to that door alone.
    const DOOR: Option<&'static str> = Some("POST /v1/stats/{source}/refresh");
    /// A vendor that is down is not asked often; one that says when to come back is asked then, which may be hours away, and again and
    /// again where many statistics share a budget.
    const POLICY: Policy = Policy {
        attempts: 3,
        backoff: Backoff { first: Duration::from_secs(30), cap: Duration::from_secs(600), jitter_percent: 20 },
        timeout: Duration::from_secs(120),
        snooze: SnoozeBounds { times: 2_000, total: Duration::from_secs(2 * 24 * 3_600) },
        ..Policy::DEFAULT
    };
    const ESTIMATE: Duration = Duration::from_secs(2);

    fn violations_for(&self, tenant: &Manifest, owner: Option<&str>) -> Vec<Violation> {
        if owner.is_some() {
            return vec![Violation::new("", "statistics are the product's own; leave `owner` and X-Acting-User out")];
        }
        if tenant.stats.contains_key(&self.source) {
            return Vec::new();
        }
        let shown: String = self.source.chars().take(63).collect();
        vec![Violation::new("/source", format!("there is no statistic `{shown}` in the product's manifest, [stats]"))]
    }

    fn sample() -> Self {
        Self { source: "tools".to_owned() }
    }
}
