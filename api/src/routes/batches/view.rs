//! A batch as clients see it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    job::{JobId, State},
    kinds::Violation,
    ledger::{
        batch::find::{Counts, FoundBatch},
        insert::DuplicateBy,
    },
};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    problem::Code,
    routes::jobs::{Followers, Progress},
};

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct Batch {
    /// Its id.
    id: Uuid,
    /// Its name for people.
    #[schema(required)]
    name: Option<String>,
    /// The end user who asked for it.
    #[schema(required)]
    owner: Option<String>,
    /// Where it is.
    state: BatchState,
    /// When it was accepted.
    created_at: DateTime<Utc>,
    /// When all its jobs had ended for the first time.
    #[schema(required)]
    finished_at: Option<DateTime<Utc>>,
    /// When somebody cancelled it.
    #[schema(required)]
    cancel_requested_at: Option<DateTime<Utc>>,
    /// Items of the request, those included that were refused.
    items_asked: i32,
    /// Its jobs. Several items that led to one job count once.
    jobs: i32,
    /// How many of its jobs have ended, and how many there are. Left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Progress, required = false)]
    progress: Option<Progress>,
    /// How many are in each state. Left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = BatchCounts, required = false)]
    counts: Option<BatchCounts>,
    /// What follows when all have ended, however they ended; not when the batch is cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Followers, required = false)]
    then: Option<Followers>,
    /// Where to go from here.
    links: Links,
}

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Not all of its jobs have ended.
    Open,
    /// It was cancelled, and some of its jobs have not ended yet.
    Cancelling,
    /// All of its jobs have ended.
    Finished,
    /// It was cancelled, and all of its jobs have ended.
    Cancelled,
}

/// A batch's jobs by state.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct BatchCounts {
    waiting: i64,
    queued: i64,
    running: i64,
    succeeded: i64,
    failed: i64,
    cancelled: i64,
    expired: i64,
    /// Ended, and gone with finished history or discarded.
    removed: i64,
}

impl BatchCounts {
    fn of(counts: &Counts) -> Self {
        Self {
            waiting: counts.of(State::Waiting),
            queued: counts.of(State::Queued),
            running: counts.of(State::Running),
            succeeded: counts.of(State::Succeeded),
            failed: counts.of(State::Failed),
            cancelled: counts.of(State::Cancelled),
            expired: counts.of(State::Expired),
            removed: counts.removed,
        }
    }
}

/// Where to go from a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchLinks)]
struct Links {
    /// The batch itself.
    #[serde(rename = "self")]
    this: String,
    /// Its jobs.
    jobs: String,
    /// POST here to cancel what of it has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    cancel: Option<String>,
}

/// The address of a batch.
pub fn address(id: Uuid) -> String {
    format!("/v1/batches/{id}")
}

impl Batch {
    /// The view of a batch as found.
    pub fn of(found: FoundBatch, counts: Option<&Counts>) -> Self {
        let is_cancelled = found.cancel_requested_at.is_some();
        let state = match (found.finished_at.is_some(), is_cancelled) {
            (false, false) => BatchState::Open,
            (false, true) => BatchState::Cancelling,
            (true, false) => BatchState::Finished,
            (true, true) => BatchState::Cancelled,
        };
        let this = address(found.id);
        Self {
            id: found.id,
            name: found.name,
            owner: found.owner,
            state,
            created_at: found.created_at,
            finished_at: found.finished_at,
            cancel_requested_at: found.cancel_requested_at,
            items_asked: found.asked,
            jobs: found.members,
            progress: counts.map(|counts| Progress { done: counts.ended(), total: Some(counts.all()) }),
            counts: counts.map(BatchCounts::of),
            then: Followers::of(found.then, found.followed_by, is_cancelled),
            links: Links { jobs: format!("{this}/jobs"), cancel: found.finished_at.is_none().then(|| format!("{this}/cancel")), this },
        }
    }
}

/// A page of batches, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchPage {
    /// The batches, without their counts.
    pub items: Vec<Batch>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// A batch as it was accepted, and what became of each item.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcceptedBatch {
    /// The batch.
    #[serde(flatten)]
    pub batch: Batch,
    /// What became of the items, in order. Where the batch had been accepted before: its jobs, each by the first item that led to it.
    pub items: Vec<Item>,
}

/// What became of an item.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchItem)]
pub struct Item {
    /// Its place in the request, from 0.
    pub index: usize,
    /// What became of it.
    pub outcome: ItemOutcome,
    /// Its job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = JobId, required = false)]
    pub job: Option<JobId>,
    /// Of a duplicate: by what it was found to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = DuplicateBy, required = false)]
    pub by: Option<DuplicateBy>,
    /// Of what was refused: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Code, required = false)]
    pub code: Option<Code>,
    /// Of what was refused: what is wrong, by its place in the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<Violation>,
}

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BatchItemOutcome)]
pub enum ItemOutcome {
    /// It is a job now.
    Accepted,
    /// It was one already, by its idempotency key or its unique key; that one belongs to the batch.
    Duplicate,
    /// It is none; only where `mode` is `per_item`.
    Refused,
}

impl Item {
    /// One that is a job.
    pub const fn job(index: usize, outcome: ItemOutcome, job: JobId, by: Option<DuplicateBy>) -> Self {
        Self { index, outcome, job: Some(job), by, code: None, errors: Vec::new() }
    }

    /// One that is none.
    pub const fn refused(index: usize, code: Code, errors: Vec<Violation>) -> Self {
        Self { index, outcome: ItemOutcome::Refused, job: None, by: None, code: Some(code), errors }
    }
}
