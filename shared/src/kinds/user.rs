//! `user.erase`: nothing of a user is left (R83). Made by `DELETE /v1/users/{id}`, never by a client: whom it erases stands in the table
//! `erasure`, not in the job, which outlives the name.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `user.erase`: none.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct UserErase {}

impl Kind for UserErase {
    const NAME: &'static str = "user.erase";
    const QUEUE: Queue = Queue::Analytics;
    const OUTWARD: bool = false;
    /// A run removes what it can within a quarter of an hour. In between it waits for the sweeper, which looks a second time for what a
    /// cancelled run may have left a quarter of an hour after it did so first, and for as long as object storage is away: three days.
    const POLICY: Policy = Policy {
        attempts: 20,
        backoff: Backoff { first: Duration::from_secs(5), cap: Duration::from_secs(3_600), jitter_percent: 20 },
        timeout: Duration::from_secs(900),
        deadline: Duration::from_secs(3 * 24 * 3_600),
        snooze: SnoozeBounds { times: 10_000, total: Duration::from_secs(3 * 24 * 3_600) },
    };
    const ESTIMATE: Duration = Duration::from_secs(20);

    fn violations_for(&self, _: &Manifest, _: Option<&str>) -> Vec<Violation> {
        vec![Violation::new("", "jobs of this kind are made by `DELETE /v1/users/{id}`; ask for that instead")]
    }

    fn sample() -> Self {
        Self {}
    }
}
