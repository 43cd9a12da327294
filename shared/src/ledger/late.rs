//! Jobs that wait past their `start_by` expire then, whatever holds them up: a pause, a switch, a busy key, a long backlog. (What is
//! queued is looked at when it is about to start.)

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::LedgerError;
use crate::job::JobId;

/// Jobs of one statement.
pub const BATCH: usize = 500;

/// Expires waiting jobs whose `start_by` lies between `since` and `now`, up to [`BATCH`] of them.
///
/// Only that time is looked at, for the index holds the finished jobs too. Who comes back to wait after its `start_by`, for another try,
/// expires when it is dispatched.
///
/// # Errors
/// [`LedgerError`].
pub async fn expire(pool: &PgPool, since: DateTime<Utc>, now: DateTime<Utc>) -> Result<Vec<JobId>, LedgerError> {
    let mut transaction = pool.begin().await?;
    let expired: Vec<uuid::Uuid> = sqlx::query_scalar(
        "WITH late AS MATERIALIZED (
            -- The backlog's row before the state's, as dispatch and cancel take them.
            SELECT w.job_id FROM job j JOIN job_waiting w ON w.job_id = j.id
            WHERE j.start_by >= $1 AND j.start_by < $2
            ORDER BY j.start_by, w.job_id LIMIT $3 FOR UPDATE OF w SKIP LOCKED
        ), expired AS (
            UPDATE job_state s SET state = 6, reason = 0, changed_at = $2, finished_at = $2, version = s.version + 1
            FROM late l WHERE s.job_id = l.job_id AND s.state = 0
            RETURNING s.job_id, s.tenant_id
        ), waiting AS (
            DELETE FROM job_waiting w USING expired e WHERE w.job_id = e.job_id
        ), held AS (
            DELETE FROM job_held h USING expired e WHERE h.job_id = e.job_id
        ), unsuccessful AS (
            INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, ended_at)
            SELECT e.job_id, e.tenant_id, 6, j.kind, j.queue, $2 FROM expired e JOIN job j ON j.id = ANY (ARRAY[e.job_id])
        )
        SELECT job_id FROM expired",
    )
    .bind(since)
    .bind(now)
    .bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
    .fetch_all(&mut *transaction)
    .await?;
    super::leave_unrun(&mut transaction, expired.clone(), now).await?;
    transaction.commit().await?;
    Ok(expired.into_iter().map(JobId).collect())
}
