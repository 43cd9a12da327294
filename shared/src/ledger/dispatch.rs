//! Step 3, dispatch: due jobs leave the backlog for their queue's stream, as many as the window has room for. Every replica
//! may do it at once: each takes rows that nobody else holds.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row};

use super::LedgerError;
use crate::{
    job::{JobId, Priority},
    queue::{Queue, push::Handover},
};

/// Rows of one statement: bounds a transaction, not a round.
pub const BATCH: usize = 1_000;

/// What one look at a queue's backlog brought.
#[derive(Debug, Default)]
pub struct Dispatched {
    /// Jobs that are queued now and must be pushed.
    pub handovers: Vec<Handover>,
    /// Jobs whose `start_by` had passed: expired now.
    pub expired: Vec<JobId>,
}

/// Moves up to `room` due jobs of a queue from the backlog to `queued`, oldest due time first.
///
/// # Errors
/// [`LedgerError`].
pub async fn dispatch(pool: &PgPool, queue: Queue, now: DateTime<Utc>, room: usize) -> Result<Dispatched, LedgerError> {
    let mut transaction = pool.begin().await?;
    let rows = sqlx::query(
        "WITH due AS (
            SELECT job_id FROM job_waiting WHERE queue = $1 AND run_at <= $2 ORDER BY run_at, job_id LIMIT $3 FOR UPDATE SKIP LOCKED
        ), taken AS (
            DELETE FROM job_waiting w USING due WHERE w.job_id = due.job_id RETURNING w.job_id, w.tenant_id, w.priority
        ), moved AS (
            UPDATE job_state s
            SET state = CASE WHEN j.start_by < $2 THEN 6 ELSE 1 END,
                finished_at = CASE WHEN j.start_by < $2 THEN $2 END,
                reason = 0, changed_at = $2, version = s.version + 1
            FROM taken t JOIN job j ON j.id = t.job_id
            WHERE s.job_id = t.job_id AND s.state = 0
            RETURNING s.job_id, s.state, t.tenant_id, t.priority
        ), dispatched AS (
            INSERT INTO job_dispatched (job_id, tenant_id, dispatched_at, priority, queue)
            SELECT job_id, tenant_id, now(), priority, $1 FROM moved WHERE state = 1
        ), unsuccessful AS (
            INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, ended_at)
            SELECT m.job_id, m.tenant_id, m.state, j.kind, $1, $2 FROM moved m JOIN job j ON j.id = m.job_id WHERE m.state = 6
        )
        SELECT job_id, priority, state FROM moved",
    )
    .bind(queue.name())
    .bind(now)
    .bind(i64::try_from(room.min(BATCH)).unwrap_or(0))
    .fetch_all(&mut *transaction)
    .await?;

    let mut dispatched = Dispatched::default();
    for row in rows {
        let job = JobId(row.try_get("job_id")?);
        let state: i16 = row.try_get("state")?;
        if state == 1 {
            let priority = Priority::from_code(row.try_get("priority")?).unwrap_or(Priority::Normal);
            dispatched.handovers.push(Handover { job, queue, priority });
        } else {
            dispatched.expired.push(job);
        }
    }
    super::leave(&mut transaction, dispatched.expired.iter().map(|job| job.0).collect(), now).await?;
    transaction.commit().await?;
    Ok(dispatched)
}

/// How long until a queue's next waiting job is due: zero when one is, `None` when none waits.
///
/// # Errors
/// [`LedgerError`].
pub async fn next_due(pool: &PgPool, queue: Queue, now: DateTime<Utc>) -> Result<Option<Duration>, LedgerError> {
    let due: Option<DateTime<Utc>> =
        sqlx::query_scalar("SELECT run_at FROM job_waiting WHERE queue = $1 AND run_at < 'infinity' ORDER BY run_at LIMIT 1")
            .bind(queue.name())
            .fetch_optional(pool)
            .await?;
    Ok(due.map(|due| (due - now).to_std().unwrap_or_default()))
}

/// A queue's backlog, in figures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backlog {
    /// Jobs that wait, due or not; counted up to [`COUNTED`].
    pub waiting: i64,
    /// How long the oldest due job has been due.
    pub oldest_due: Duration,
}

/// Where counting a backlog stops.
pub const COUNTED: i64 = 100_000;

/// Takes a queue's figures.
///
/// # Errors
/// [`LedgerError`].
pub async fn backlog(pool: &PgPool, queue: Queue, now: DateTime<Utc>) -> Result<Backlog, LedgerError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM (SELECT FROM job_waiting WHERE queue = $1 LIMIT $2) w) AS waiting,
                (SELECT run_at FROM job_waiting WHERE queue = $1 AND run_at < 'infinity' ORDER BY run_at LIMIT 1) AS oldest",
    )
    .bind(queue.name())
    .bind(COUNTED)
    .fetch_one(pool)
    .await?;
    let oldest: Option<DateTime<Utc>> = row.try_get("oldest")?;
    let oldest_due = oldest.and_then(|oldest| (now - oldest).to_std().ok()).unwrap_or_default();
    Ok(Backlog { waiting: row.try_get("waiting")?, oldest_due })
}
