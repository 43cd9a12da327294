//! `suspension.end`: a suspension's time is over (R23). Made where a moderator suspends somebody, never by a client; it waits for its moment
//! as any job that is not due, and so outlives restarts.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy},
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `suspension.end`. It names no user: whose it is stands in `suspension`, as long as it holds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct SuspensionEnd {
    /// The action that suspended somebody. Where another one took its place there is nothing to end.
    pub suspension: Uuid,
}

impl Kind for SuspensionEnd {
    const NAME: &'static str = "suspension.end";
    const QUEUE: Queue = Queue::Analytics;
    const OUTWARD: bool = false;
    /// Short work on the ledger: what fails does so with the database, and is tried for hours.
    const POLICY: Policy = Policy {
        attempts: 20,
        backoff: Backoff { first: Duration::from_secs(2), cap: Duration::from_secs(1_800), jitter_percent: 20 },
        timeout: Duration::from_secs(60),
        ..Policy::DEFAULT
    };
    const ESTIMATE: Duration = Duration::from_secs(1);

    fn violations_for(&self, _: &Manifest, _: Option<&str>) -> Vec<Violation> {
        vec![Violation::new(
            "",
            "jobs of this kind are made when somebody is suspended; ask for that with `POST /v1/users/{id}/moderation`",
        )]
    }

    fn sample() -> Self {
        Self { suspension: Uuid::nil() }
    }
}
