//! `activity.fan_out`: what a user did comes into the feeds of who follows them (R25). Made by `POST /v1/activities`, never by a client.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy},
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `activity.fan_out`. It names nobody: what was done stands in `activity`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ActivityFanOut {
    /// What was done.
    pub activity: Uuid,
}

impl Kind for ActivityFanOut {
    const NAME: &'static str = "activity.fan_out";
    const QUEUE: Queue = Queue::Analytics;
    const OUTWARD: bool = false;
    /// Work on the ledger alone, in short steps, each of which goes on where the one before stood.
    const POLICY: Policy = Policy {
        attempts: 20,
        backoff: Backoff { first: Duration::from_secs(2), cap: Duration::from_secs(1_800), jitter_percent: 20 },
        timeout: Duration::from_secs(300),
        ..Policy::DEFAULT
    };
    const ESTIMATE: Duration = Duration::from_secs(1);

    fn violations_for(&self, _: &Manifest, _: Option<&str>) -> Vec<Violation> {
        vec![Violation::new("", "jobs of this kind are made by `POST /v1/activities`; ask for that instead")]
    }

    fn sample() -> Self {
        Self { activity: Uuid::nil() }
    }
}
