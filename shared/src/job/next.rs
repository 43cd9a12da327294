//! What follows a job: those that are made when it succeeds, or when all of a batch have ended; and where a job comes from.
//!
//! Checked when the first of them is accepted and stored with it, so that nothing can be found wrong with them later.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{JobId, Priority};
use crate::queue::Queue;

/// The most jobs that follow one job or one batch directly.
pub const MOST_NEXT: usize = 10;

/// The most jobs in all that one job or batch leads to, however they are nested.
pub const MOST_NEXT_IN_ALL: usize = 50;

/// How deep jobs may be nested that follow each other, the first `then` being 1.
pub const DEEPEST: usize = 5;

/// A job to be made later: found right, kept with the job or batch that it follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Next {
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: Queue,
    /// Its priority.
    pub priority: Priority,
    /// Its payload.
    pub payload: Value,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How long after that it is due, in seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delay_seconds: u32,
    /// What follows it in turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Self>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a job follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = JobParent)]
pub enum Parent {
    /// A job that succeeded.
    Job(JobId),
    /// A batch all of whose jobs have ended.
    Batch(Uuid),
}

/// A key that one unfinished job at a time may have, or one job in a period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unique {
    /// The key, among jobs of its tenant, owner and kind.
    pub key: String,
    /// For how long after acceptance, in seconds; for as long as the job has not ended when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u32>,
}
