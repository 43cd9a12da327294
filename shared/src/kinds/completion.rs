//! `completion.notify`: tells whoever asked (`completion_url`) how a job ended. Made by the ledger with the end, never by a client.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Kind, Violation};
use crate::{
    job::{Backoff, JobId, Policy, State},
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `completion.notify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CompletionNotify {
    /// The job that ended.
    pub job: JobId,
    /// Its version then.
    pub version: i32,
    /// How it ended.
    pub state: State,
    /// When.
    pub ended_at: DateTime<Utc>,
    /// Where to tell it.
    pub url: String,
}

impl Kind for CompletionNotify {
    const NAME: &'static str = "completion.notify";
    const QUEUE: Queue = Queue::Webhooks;
    const OUTWARD: bool = true;
    /// From 10 s to 6 h apart, over most of a day: a receiver that is down overnight still hears of it. The timeout is above the
    /// delivery's own deadline.
    const POLICY: Policy = Policy {
        attempts: 14,
        backoff: Backoff { first: Duration::from_secs(10), cap: Duration::from_secs(6 * 3_600), jitter_percent: 20 },
        timeout: Duration::from_secs(30),
        deadline: Duration::from_secs(3 * 24 * 3_600),
        ..Policy::DEFAULT
    };
    const ESTIMATE: Duration = Duration::from_secs(2);

    fn violations_for(&self, _: &Manifest, _: Option<&str>) -> Vec<Violation> {
        vec![Violation::new("", "jobs of this kind are made when a job with a `completion_url` ends; ask for such a job instead")]
    }

    fn sample() -> Self {
        Self {
            job: JobId(Uuid::nil()),
            version: 4,
            state: State::Succeeded,
            ended_at: DateTime::UNIX_EPOCH,
            url: "https://hooks.example.com/offstage".into(),
        }
    }
}
