//! What a person asks of a job: cancel it, run it again. Both run in the caller's transaction for one tenant.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{LedgerError, unique};
use crate::{
    job::{JobId, State},
    queue::Queue,
};

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Done: the job is in the wished state.
    Done,
    /// The job runs; its worker has been asked, and the state follows.
    Asked,
    /// The job's state does not allow it.
    NotFrom(State),
    /// Another job holds its unique key.
    Held(JobId),
    /// Its `start_by` has passed, so it could only expire again.
    TooLate(DateTime<Utc>),
    /// This tenant has no such job.
    Missing,
    /// It moved on while it was looked at. Nothing was done; roll back, which lets go of it, and ask again.
    Moved,
}

/// Cancels: at once what has not started; what runs is asked to stop, and a success that comes first wins.
///
/// # Errors
/// [`LedgerError`].
pub async fn cancel(connection: &mut PgConnection, tenant: i32, job: JobId, now: DateTime<Utc>) -> Result<Change, LedgerError> {
    // The backlog's row before the state's, as dispatch takes them: the other way round the two would deadlock.
    let held = sqlx::query("SELECT FROM job_waiting WHERE job_id = $1 AND tenant_id = $2 FOR UPDATE")
        .bind(job.0)
        .bind(tenant)
        .execute(&mut *connection)
        .await?;
    let Some(row) = sqlx::query("SELECT state, worker FROM job_state WHERE job_id = $1 AND tenant_id = $2 FOR UPDATE")
        .bind(job.0)
        .bind(tenant)
        .fetch_optional(&mut *connection)
        .await?
    else {
        return Ok(Change::Missing);
    };
    let code: i16 = row.try_get("state")?;
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    match state {
        // It came to the backlog between the two statements, so a dispatcher may hold its row there and wait for this one:
        // whoever of the two is aborted, a batch of dispatching should not be.
        State::Waiting if held.rows_affected() == 0 => Ok(Change::Moved),
        State::Waiting | State::Queued => {
            sqlx::query(
                "WITH stopped AS (
                    UPDATE job_state SET state = 5, reason = 0, cancel_requested = true, changed_at = $2, finished_at = $2, version = version + 1
                    WHERE job_id = $1 RETURNING job_id, tenant_id
                 ), waiting AS (DELETE FROM job_waiting WHERE job_id = $1), held AS (DELETE FROM job_held WHERE job_id = $1), dispatched AS (DELETE FROM job_dispatched WHERE job_id = $1)
                 INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, ended_at)
                 SELECT s.job_id, s.tenant_id, 5, j.kind, j.queue, $2 FROM stopped s JOIN job j ON j.id = s.job_id",
            )
            .bind(job.0)
            .bind(now)
            .execute(&mut *connection)
            .await?;
            super::leave(connection, vec![job.0], now).await?;
            Ok(Change::Done)
        }
        State::Running => {
            let worker: Option<Uuid> = row.try_get("worker")?;
            sqlx::query(
                "WITH asked AS (
                    UPDATE job_state SET cancel_requested = true, changed_at = $2, version = version + 1
                    WHERE job_id = $1 AND NOT cancel_requested RETURNING job_id, tenant_id
                 )
                 INSERT INTO job_cancel (job_id, tenant_id, worker, requested_at) SELECT job_id, tenant_id, $3, $2 FROM asked
                 ON CONFLICT (job_id) DO NOTHING",
            )
            .bind(job.0)
            .bind(now)
            .bind(worker)
            .execute(connection)
            .await?;
            Ok(Change::Asked)
        }
        State::Cancelled => Ok(Change::Done),
        State::Succeeded | State::Failed | State::Expired => Ok(Change::NotFrom(state)),
    }
}

/// What a redrive makes of a `job_state` row, `s`: due at `$now` with the attempts that its job, `$job`, was accepted with, and
/// nothing of what it went through counted any more.
macro_rules! redriven {
    ($now:literal, $job:literal) => {
        concat!(
            "state = 0, reason = 3, run_at = ",
            $now,
            ", changed_at = ",
            $now,
            ", finished_at = NULL, cancel_requested = false,
             crashes = 0, deaths = 0, counted_from = ",
            $now,
            ", snoozes = 0, snoozed_seconds = 0,
             attempts_allowed = least(s.attempt + ",
            $job,
            ".max_attempts, 32767), version = s.version + 1"
        )
    };
}
pub(super) use redriven;

/// Runs a failed, cancelled or expired job again with its kind's full number of attempts: it waits as due now, and the caller
/// wakes its queue's dispatcher.
///
/// # Errors
/// [`LedgerError`].
pub async fn retry(
    connection: &mut PgConnection,
    tenant: i32,
    job: JobId,
    now: DateTime<Utc>,
) -> Result<(Change, Option<Queue>), LedgerError> {
    let Some(row) = sqlx::query(
        "SELECT s.state, j.start_by, j.queue FROM job_state s JOIN job j ON j.id = s.job_id
         WHERE s.job_id = $1 AND s.tenant_id = $2 FOR UPDATE OF s",
    )
    .bind(job.0)
    .bind(tenant)
    .fetch_optional(&mut *connection)
    .await?
    else {
        return Ok((Change::Missing, None));
    };
    let code: i16 = row.try_get("state")?;
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    let start_by: Option<DateTime<Utc>> = row.try_get("start_by")?;
    let queue: String = row.try_get("queue")?;
    if !matches!(state, State::Failed | State::Cancelled | State::Expired) {
        return Ok((Change::NotFrom(state), None));
    }
    if let Some(start_by) = start_by.filter(|start_by| *start_by < now) {
        return Ok((Change::TooLate(start_by), None));
    }
    if let Some(holder) = unique::hold(connection, job, now).await? {
        return Ok((Change::Held(holder), None));
    }
    sqlx::query(concat!(
        "WITH again AS (
            UPDATE job_state s SET ",
        redriven!("$2", "j"),
        " FROM job j WHERE s.job_id = $1 AND j.id = s.job_id
            RETURNING s.job_id, s.tenant_id, j.priority, j.queue
        ), gone AS (DELETE FROM job_unsuccessful WHERE job_id = $1)
        INSERT INTO job_waiting (job_id, tenant_id, run_at, priority, reason, queue)
        SELECT job_id, tenant_id, $2, priority, 3, queue FROM again"
    ))
    .bind(job.0)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    super::limit(connection, vec![job.0], now).await?;
    Ok((Change::Done, Queue::from_name(&queue)))
}
