//! What the ledger knows of calls of models: what was said, and answers that are kept for who asks the same.
//!
//! What must stay true: what a model said stands in one place, with its call in the effect ledger; what is kept beside that knows whose it
//! was, so that it goes with its user.

pub mod cache;

use serde_json::Value;
use sqlx::PgConnection;

use super::LedgerError;
use crate::job::JobId;

/// What the keys of calls of models begin with in the effect ledger.
pub const CALL: &str = "ai:";

/// What a model said last in a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Which of the job's streams of words it is; empty where it was not streamed.
    pub stream: String,
    /// The words.
    pub text: String,
}

/// What a model said last in a job, as the API may read it; of one that has a result of several rounds, in the round that the result is of.
///
/// # Errors
/// [`LedgerError`].
pub async fn said(connection: &mut PgConnection, job: JobId) -> Result<Option<Said>, LedgerError> {
    let receipt: Option<Value> = sqlx::query_scalar(
        "SELECT e.receipt FROM effect e LEFT JOIN job_result r ON r.job_id = e.job_id
         WHERE e.job_id = $1 AND e.key LIKE 'ai:%' AND e.receipt IS NOT NULL
         ORDER BY (split_part(e.key, ':', 2) = r.result #>> '{gate,round}') DESC NULLS LAST, e.finished_at DESC, e.key DESC LIMIT 1",
    )
    .bind(job.0)
    .fetch_optional(connection)
    .await?;
    Ok(receipt.map(|receipt| {
        let text = |field: &str| receipt.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        Said { stream: text("stream"), text: text("text") }
    }))
}
