//! Checkpoints: a small state that a handler saves while it runs and finds on its next attempt, wherever that is.
//!
//! Only a live claim saves, so a run that was taken over can't overwrite what its successor goes on from.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgPool, Row};

use super::{LedgerError, claim::ClaimedJob};
use crate::job::JobId;

/// The largest state, in bytes of JSON.
pub const CHECKPOINT_LIMIT: usize = 64 * 1024;

/// Saves a state in the place of any before. `keeps` names the object whose unfinished upload the next attempt goes on with, which no
/// sweep takes away while the job has not ended. Answers `false` when the claim is gone.
///
/// # Errors
/// [`LedgerError`].
pub async fn save(pool: &PgPool, job: &ClaimedJob, state: &Value, keeps: Option<&str>, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let saved = sqlx::query(
        "INSERT INTO job_checkpoint AS c (job_id, tenant_id, token, saved_at, state, keeps)
         SELECT job_id, tenant_id, token, $3, $4, $5 FROM job_state WHERE job_id = $1 AND token = $2 AND state = 2 FOR SHARE
         ON CONFLICT (job_id) DO UPDATE SET token = excluded.token, saved_at = excluded.saved_at, state = excluded.state, keeps = excluded.keeps",
    )
    .bind(job.id.0)
    .bind(job.token)
    .bind(now)
    .bind(state)
    .bind(keeps)
    .execute(pool)
    .await?;
    Ok(saved.rows_affected() == 1)
}

/// The state that an earlier attempt saved.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(pool: &PgPool, job: JobId) -> Result<Option<Value>, LedgerError> {
    let row = sqlx::query("SELECT state FROM job_checkpoint WHERE job_id = $1").bind(job.0).fetch_optional(pool).await?;
    Ok(row.map(|row| row.try_get("state")).transpose()?)
}

/// Forgets what was saved: the next attempt begins anew. Only a live claim may. Answers whether there was anything.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, job: &ClaimedJob) -> Result<bool, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM job_checkpoint c USING job_state s WHERE c.job_id = $1 AND s.job_id = c.job_id AND s.token = $2 AND s.state = 2",
    )
    .bind(job.id.0)
    .bind(job.token)
    .execute(pool)
    .await?;
    Ok(forgotten.rows_affected() == 1)
}

/// Forgets what jobs saved that have ended since, a bounded bite at a time.
///
/// # Errors
/// [`LedgerError`].
pub async fn tidy(pool: &PgPool) -> Result<u64, LedgerError> {
    let gone = sqlx::query(
        "DELETE FROM job_checkpoint c USING (
            SELECT c.job_id FROM job_checkpoint c LEFT JOIN job_state s ON s.job_id = c.job_id
            WHERE s.job_id IS NULL OR s.state > 2 LIMIT 1000 FOR UPDATE OF c SKIP LOCKED
         ) AS ended WHERE c.job_id = ended.job_id",
    );
    Ok(gone.execute(pool).await?.rows_affected())
}
