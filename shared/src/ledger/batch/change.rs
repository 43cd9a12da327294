//! Cancelling a batch, in bounded steps.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::{
    job::{JobId, State},
    ledger::{LedgerError, leave_unrun},
};

/// Jobs that one step looks at.
pub const STEP: i64 = 500;

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Cancelled: they had not started.
    pub cancelled: Vec<JobId>,
    /// Asked to stop: they run.
    pub asked: Vec<JobId>,
    /// Moved on while they were looked at: to be looked at again.
    pub moved: i64,
    /// The last one that was looked at; `None` when there were no more.
    pub last: Option<JobId>,
}

/// Notes that a batch is to be cancelled: what was to follow it does not. Answers whether it is to be, by this or before: not where it had
/// finished first.
///
/// # Errors
/// [`LedgerError`].
pub async fn note_cancel(connection: &mut PgConnection, tenant: i32, batch: Uuid, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let noted = sqlx::query(
        "UPDATE batch SET cancel_requested_at = coalesce(cancel_requested_at, $3)
         WHERE id = $1 AND tenant_id = $2 AND (cancel_requested_at IS NOT NULL OR finished_at IS NULL)",
    );
    Ok(noted.bind(batch).bind(tenant).bind(now).execute(connection).await?.rows_affected() == 1)
}

/// Cancels the next [`STEP`] jobs of a batch behind `after` that have not ended: what has not started at once, what runs is asked
/// to stop. Jobs that were there before the batch are somebody else's too, and go on. In a transaction of the caller's for one tenant.
///
/// # Errors
/// [`LedgerError`].
pub async fn cancel_step(
    connection: &mut PgConnection,
    tenant: i32,
    batch: Uuid,
    after: Option<JobId>,
    now: DateTime<Utc>,
) -> Result<Step, LedgerError> {
    let jobs: Vec<Uuid> = sqlx::query_scalar(
        "SELECT m.job_id FROM batch_member m JOIN job_state s ON s.job_id = m.job_id
         WHERE m.batch_id = $1 AND m.tenant_id = $2 AND m.job_id > $3 AND s.state < 3 AND NOT s.cancel_requested AND NOT m.before ORDER BY m.job_id LIMIT $4",
    )
    .bind(batch)
    .bind(tenant)
    .bind(after.map_or(Uuid::nil(), |job| job.0))
    .bind(STEP)
    .fetch_all(&mut *connection)
    .await?;
    let Some(last) = jobs.last().copied() else { return Ok(Step::default()) };
    // The backlog's rows before the states', as dispatch takes them, and both in order.
    let waiting: Vec<Uuid> =
        sqlx::query_scalar("SELECT job_id FROM job_waiting WHERE job_id = ANY ($1) AND tenant_id = $2 ORDER BY job_id FOR UPDATE")
            .bind(&jobs)
            .bind(tenant)
            .fetch_all(&mut *connection)
            .await?;
    let rows = sqlx::query("SELECT job_id, state FROM job_state WHERE job_id = ANY ($1) AND tenant_id = $2 ORDER BY job_id FOR UPDATE")
        .bind(&jobs)
        .bind(tenant)
        .fetch_all(&mut *connection)
        .await?;
    let mut step = Step { last: Some(JobId(last)), ..Step::default() };
    for row in rows {
        let job: Uuid = row.try_get("job_id")?;
        let code: i16 = row.try_get("state")?;
        match State::from_code(code) {
            // It came to the backlog between the two statements; a dispatcher may hold its row there.
            Some(State::Waiting) if waiting.binary_search(&job).is_err() => step.moved += 1,
            Some(State::Waiting | State::Queued) => step.cancelled.push(JobId(job)),
            Some(State::Running) => step.asked.push(JobId(job)),
            Some(State::Succeeded | State::Failed | State::Cancelled | State::Expired) => {}
            None => return Err(LedgerError::Unknown { what: "state", value: code.to_string() }),
        }
    }
    let ids = |jobs: &[JobId]| jobs.iter().map(|job| job.0).collect::<Vec<Uuid>>();
    let cancelled = ids(&step.cancelled);
    if !cancelled.is_empty() {
        sqlx::query(
            "WITH stopped AS (
                UPDATE job_state SET state = 5, reason = 0, cancel_requested = true, changed_at = $2, finished_at = $2, version = version + 1
                WHERE job_id = ANY ($1) RETURNING job_id, tenant_id
             ), waiting AS (DELETE FROM job_waiting WHERE job_id = ANY ($1)), held AS (DELETE FROM job_held WHERE job_id = ANY ($1)),
             dispatched AS (DELETE FROM job_dispatched WHERE job_id = ANY ($1))
             INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, ended_at)
             SELECT s.job_id, s.tenant_id, 5, j.kind, j.queue, $2 FROM stopped s JOIN job j ON j.id = s.job_id",
        )
        .bind(&cancelled)
        .bind(now)
        .execute(&mut *connection)
        .await?;
        leave_unrun(connection, cancelled, now).await?;
    }
    if !step.asked.is_empty() {
        sqlx::query(
            "WITH asked AS (
                UPDATE job_state SET cancel_requested = true, changed_at = $2, version = version + 1
                WHERE job_id = ANY ($1) AND NOT cancel_requested RETURNING job_id, tenant_id, worker
             )
             INSERT INTO job_cancel (job_id, tenant_id, worker, requested_at) SELECT job_id, tenant_id, worker, $2 FROM asked WHERE worker IS NOT NULL
             ON CONFLICT (job_id) DO NOTHING",
        )
        .bind(ids(&step.asked))
        .bind(now)
        .execute(connection)
        .await?;
    }
    Ok(step)
}
