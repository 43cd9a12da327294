//! `byok.check`: asks a provider whether it takes the key that a user brought (R45). Made by `PUT /v1/byok/{provider}` and its test, never by
//! a client: they count how often.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, Violation};
use crate::{
    byok::Vendor,
    job::{Backoff, Policy},
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `byok.check`. It names no key: that stands sealed in its row, and is read when it is checked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ByokCheck {
    /// Of which provider.
    pub provider: Vendor,
    /// Which key: where another one took its place there is nothing to check.
    pub version: i32,
}

impl Kind for ByokCheck {
    const NAME: &'static str = "byok.check";
    const QUEUE: Queue = Queue::Ai;
    /// It costs nothing and changes nothing, but the key leaves the house.
    const OUTWARD: bool = true;
    /// Somebody waits for it, for seconds; and after that it is worth knowing all the same.
    const POLICY: Policy = Policy {
        attempts: 5,
        backoff: Backoff { first: Duration::from_secs(2), cap: Duration::from_secs(60), jitter_percent: 20 },
        timeout: Duration::from_secs(30),
        deadline: Duration::from_secs(3_600),
        ..Policy::DEFAULT
    };
    const ESTIMATE: Duration = Duration::from_secs(2);

    fn violations_for(&self, _: &Manifest, _: Option<&str>) -> Vec<Violation> {
        vec![Violation::new("", "jobs of this kind are made by `PUT /v1/byok/{provider}` and `POST /v1/byok/{provider}/test`")]
    }

    fn sample() -> Self {
        Self { provider: Vendor::OpenAi, version: 1 }
    }
}
